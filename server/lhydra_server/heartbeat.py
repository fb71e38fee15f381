"""The sign of life that a worker gives twice a second, and when its supervisor takes it for lost."""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from lhydra.errors import complain
from lhydra_server.config import WorkerReport

BEAT_S = 0.5
WORK_STEP = 10  # less work than this is that of a process in which nothing happens
PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True)
class Limits:
    """When a worker is lost, in seconds that its supervisor was awake."""

    start_s: float = 20.0  # a new worker without any: Python itself may have to come from a slow disk
    silent_s: float = 3.0  # a serving worker without a sign of life
    silent_opening_s: float = 10.0  # one that still opens: some of that holds Python's lock for long
    stuck_s: float = 2.0  # every sign of life for so long says that a call is overdue
    idle_s: float = 60.0  # it opens, and neither computes nor reads, nor does any other of its fleet that opens
    open_s: float = 900.0  # it has not opened: 8.6 GB of bundle (10 M tracks) at 10 MB/s


class Heart:
    """Beats in a thread of its own: what a process does that is stopped, or whose threads are, is not to beat.

    Args:
        descriptor: of the pipe to the supervisor; a beat is one short write, and is left out where the pipe is full.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._report = WorkerReport()
        self._lock = threading.Lock()
        self.stuck_s: Callable[[], float] = lambda: 0.0
        threading.Thread(target=self._beat, name="heart", daemon=True).start()

    @classmethod
    def of_this_process(cls) -> Self:
        """Takes stdout for the reports; whatever else prints goes to stderr and cannot look like one.

        Returns:
            A heart that beats.
        """
        heart = cls(os.dup(1))
        os.dup2(2, 1)
        return heart

    def report(self, **news: str | bool | float) -> bool:
        """Says at once how the worker is, and again with every beat.

        Args:
            news: fields of `WorkerReport` that have changed.

        Returns:
            Whether the supervisor is still there.
        """
        with self._lock:
            self._report = replace(self._report, **news)  # type: ignore[arg-type]
            try:
                os.write(self._descriptor, self._report.to_json().encode() + b"\n")
            except BlockingIOError:
                return True
            except BrokenPipeError:
                return False
        return True

    def _beat(self) -> None:
        while self.report(stuck_s=self.stuck_s(), work=_work()):
            time.sleep(BEAT_S)


def _work() -> int:
    """What the other threads of this process have computed (in ms) and read from a disk (in blocks)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return round((used.ru_utime + used.ru_stime - time.thread_time()) * 1e3) + used.ru_inblock


def end_when_orphaned(number: int = signal.SIGKILL) -> None:
    """Has the kernel end this process when the one that started it dies, on Linux.

    The end of stdin says so too, but a process that is stopped (SIGSTOP), or in which a thread keeps Python's lock,
    would go on holding its part of the port, and no other signal ends both.

    Args:
        number: of the signal; a worker can take none but the one that kills.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


class Pulse:
    """What a supervisor has heard of one worker.

    Args:
        name: of the worker, in errors.
        now_s: seconds that the supervisor was awake.
    """

    def __init__(self, name: str, now_s: float) -> None:
        self._name = name
        self._started_s = self._heard_s = self.worked_s = now_s
        self._work = 0
        self._stuck_since_s: float | None = None  # a call that was overdue since a machine woke up may end in a moment
        self._beats = False

    def heard(self, report: WorkerReport, now_s: float) -> None:
        """Notes a sign of life.

        Args:
            report: that has come.
            now_s: seconds that the supervisor was awake.
        """
        self._heard_s, self._beats = now_s, True
        if not report.stuck_s:
            self._stuck_since_s = None
        elif self._stuck_since_s is None:
            self._stuck_since_s = now_s
        if report.work >= self._work + WORK_STEP:
            self._work, self.worked_s = report.work, now_s

    def failure(self, now_s: float, limits: Limits, *, opening: bool, worked_s: float) -> tuple[str, str]:
        """Judges whether the worker is lost.

        Args:
            now_s: seconds that the supervisor was awake.
            limits: after which it is.
            opening: whether it has not yet reported that it serves.
            worked_s: when any worker of its fleet that opens last did something; one may wait for another.

        Returns:
            (reason, error); empty while the worker is well.
        """
        silent_s = limits.silent_opening_s if opening else limits.silent_s
        if not self._beats:
            silent_s = limits.start_s
        if now_s - self._heard_s > silent_s:
            return "frozen", complain(self._name, f"no sign of life for {silent_s:g} s", f"one every {BEAT_S:g} s")
        stuck_since_s = self._stuck_since_s
        if not opening and stuck_since_s is not None and self._heard_s - stuck_since_s > limits.stuck_s:
            return "stuck", complain(self._name, "calls that do not end", "every call answered within seconds")
        if opening and now_s - worked_s > limits.idle_s:
            return "hung", complain(self._name, f"nothing done for {limits.idle_s:g} s", "the bundle being opened")
        if opening and now_s - self._started_s > limits.open_s:
            return "hung", complain(self._name, f"no report after {limits.open_s:g} s", "the bundle open by then")
        return "", ""
