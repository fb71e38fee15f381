"""A worker process as the supervisor sees it: spawned (never forked loaded), told, listened to, ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lhydra.errors import LhydraError
from lhydra_server.config import FleetStatus, Message, WorkerReport, WorkerSettings
from lhydra_server.heartbeat import Limits, Pulse

if TYPE_CHECKING:
    from lhydra_server.metrics.totals import Block  # and numpy with it

COMMAND = (sys.executable, "-P", "-m", "lhydra_server.start")
_ENVIRONMENT = {  # one thread budget per worker: must be in the environment before the libraries load
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # threads take turns: a heap for each would only grow
}


class WorkerProcess:
    """One worker, which loads until `begin` says what to serve.

    `look` brings `ready`, `served` (it was ready once), `ended`, `failure` and `error` up to date. `report` is the pipe
    it reports on. `failure` is the reason of a worker that is lost, `error` says more.

    Args:
        command: what starts a worker.
        core: it will keep to; below 0 any.
        address: it will listen on.
        now_s: seconds that the supervisor was awake.
        block: the memory it counts into, where metrics are asked for.
        counted: the descriptor of what all workers have counted; below 0 for none.

    Raises:
        OSError: no process can be started now; nothing of it is left.
    """

    def __init__(
        self,
        command: Sequence[str],
        core: int,
        address: str,
        now_s: float,
        block: "Block | None" = None,
        counted: int = -1,
    ) -> None:
        environment = {"GRPC_VERBOSITY": "NONE"} | os.environ | _ENVIRONMENT
        self.core, self.address, self._block = core, address, block
        self._memory = (block.descriptor, counted) if block is not None else (-1, -1)
        try:
            inherited = tuple(descriptor for descriptor in self._memory if descriptor >= 0)
            self._process, self._stdin, self.report = _started(command, environment, inherited)
        except OSError:
            if block is not None:
                block.end()
            raise
        finally:
            if block is not None:
                block.handed_over()
        self._started_s = time.monotonic()
        self._stopped_s: float | None = None
        self._sent_status = FleetStatus()
        self._unread = b""
        self.pid = self._process.pid
        self.pulse = Pulse(f"worker {self.pid}", now_s)
        self.ready = self.ended = self.served = False
        self.failure = self.error = self.model_id = ""

    def begin(self, settings: WorkerSettings) -> None:
        """Tells the worker what to serve, once.

        Args:
            settings: of its fleet; core, address and memory of its own are filled in.
        """
        metrics, counted = self._memory
        self._write(replace(settings, core=self.core, address=self.address, metrics=metrics, counted=counted))

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started_s

    @property
    def crashed(self) -> bool:
        """Whether it died of a fault in memory, or of a check that a library makes: mapped files may be the reason."""
        return self._process.returncode in (-signal.SIGABRT, -signal.SIGBUS, -signal.SIGSEGV)

    @property
    def opening(self) -> bool:
        """Whether it has yet to say that it serves, or why it cannot."""
        return not (self.served or self.ended or self.failure or self.error or self._stopped_s is not None)

    def look(self, now_s: float) -> None:
        """Reads what has been reported, and notes the end of the process.

        Args:
            now_s: seconds that the supervisor was awake.
        """
        code = self._process.poll()  # before the report is read: what it wrote last must not be missed
        if self.report >= 0:
            self._read(now_s)
        if code is not None and not self.ended:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.ended, self.ready = True, False
            self.failure = self.failure or "ended"
            self.error = self.error or f"worker {self.pid} ended with {how}"
            os.close(self._stdin)
            self._close_report()
            if self._block is not None:
                self._block.end()

    def judge(self, now_s: float, limits: Limits, worked_s: float) -> None:
        """Kills the worker when it is lost.

        Args:
            now_s: seconds that the supervisor was awake.
            limits: after which it is.
            worked_s: when any worker of its fleet that opens last did something.
        """
        if self.ended or self.failure:
            return
        opening = self.opening
        failure, error = self.pulse.failure(now_s, limits, opening=opening, worked_s=worked_s)
        if failure:
            self.failure, self.error, self.ready = failure, self.error or error, False
            self._process.kill()

    def tell(self, status: FleetStatus) -> None:
        """Tells the worker how the fleet is, when that is new to it; again later, when it takes nothing now.

        Args:
            status: how the fleet is.
        """
        if status != self._sent_status and not self.ended and self._write(status):
            self._sent_status = status

    def stop(self) -> None:
        """Tells the worker to drain and end."""
        if self._stopped_s is None:
            self._stopped_s = time.monotonic()
            self._process.terminate()

    def finished(self, most_s: float) -> bool:
        """Whether a stopped worker has ended; one that takes too long is killed.

        Args:
            most_s: seconds since it was told to stop.

        Returns:
            False until the process is gone.
        """
        if not self.ended and self._stopped_s is not None and time.monotonic() - self._stopped_s > most_s:
            self._process.kill()
        return self.ended

    def _read(self, now_s: float) -> None:
        try:
            read = os.read(self.report, 65_536)
        except BlockingIOError:
            return
        *lines, self._unread = (self._unread + read).split(b"\n")
        for line in lines:
            try:
                report = WorkerReport.from_json(line)
            except LhydraError as error:
                report = WorkerReport(str(error))
            self.pulse.heard(report, now_s)
            self.error, self.model_id = self.error or report.error, report.model_id
            if report.ready and not self.failure:
                self.ready = self.served = True
        if not read:
            self._close_report()

    def _close_report(self) -> None:
        if self.report >= 0:
            os.close(self.report)
            self.report = -1

    def _write(self, message: Message) -> bool:
        try:
            os.write(self._stdin, message.to_json().encode() + b"\n")
        except (BrokenPipeError, BlockingIOError):
            return False
        return True


def _started(
    command: Sequence[str], environment: Mapping[str, str], inherited: Sequence[int]
) -> "tuple[subprocess.Popen[bytes], int, int]":
    """Starts a process: (it, its stdin, its stdout). Popen leaks one pipe where there is no descriptor for another."""
    pipes: list[int] = []
    try:
        for _ in range(2):
            pipes += os.pipe()
        its_stdin, stdin, stdout, its_stdout = pipes
        for end in (stdin, stdout):
            os.set_blocking(end, False)  # a stuck worker must not stop its supervisor
        process = subprocess.Popen(
            command, stdin=its_stdin, stdout=its_stdout, env=environment, bufsize=0, pass_fds=inherited
        )
    except BaseException:
        for end in pipes:
            os.close(end)
        raise
    os.close(its_stdin)
    os.close(its_stdout)
    return process, stdin, stdout
