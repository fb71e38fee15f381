"""A worker process as the supervisor sees it: spawned (never forked loaded), told, listened to, ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from lhydra.errors import LhydraError, complain
from lhydra_server.config import FleetStatus, Message, WorkerReport, WorkerSettings
from lhydra_server.metrics.totals import Block

COMMAND = (sys.executable, "-P", "-m", "lhydra_server.worker")
_ENVIRONMENT = {  # one thread budget per worker: must be in the environment before the libraries load
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # threads take turns: a heap for each would only grow
}


class WorkerProcess:
    """One worker. `look` brings `ready`, `served` (it was ready once), `ended` and `error` up to date.

    `report` is the pipe it will report on.

    Args:
        command: what starts a worker.
        settings: what it is told on its stdin.
        block: the memory it counts into, where metrics are asked for.
    """

    def __init__(self, command: Sequence[str], settings: WorkerSettings, block: Block | None = None) -> None:
        environment = {"GRPC_VERBOSITY": "NONE"} | os.environ | _ENVIRONMENT
        self.core = settings.core
        if block is not None:
            settings = replace(settings, metrics=block.descriptor)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
            pass_fds=(block.descriptor,) if block is not None else (),
        )
        if block is not None:
            block.handed_over()
        self._block = block
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)  # a stuck worker must not stop its supervisor
        os.set_blocking(self._stdout.fileno(), False)
        self._started_s = time.monotonic()
        self._stopped_s: float | None = None
        self._sent_status = FleetStatus()
        self.pid = self._process.pid
        self.report: int | None = self._stdout.fileno()
        self.ready = self.ended = self.served = False
        self.error = self.model_id = ""
        self._write(settings)

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started_s

    @property
    def crashed(self) -> bool:
        """Whether it died of a fault in memory, or of a check that a library makes: mapped files may be the reason."""
        return self._process.returncode in (-signal.SIGABRT, -signal.SIGBUS, -signal.SIGSEGV)

    def look(self) -> None:
        """Reads the report where one has come, and notes the end of the process."""
        code = self._process.poll()  # before the report is read: what it wrote last must not be missed
        if self.report is not None:
            try:
                line = os.read(self.report, 65_536)  # one short write, so one read
            except BlockingIOError:
                line = None
            if line is not None:
                if line:
                    try:
                        report = WorkerReport.from_json(line)
                    except LhydraError as error:
                        report = WorkerReport(str(error))
                    self.error, self.model_id = report.error, report.model_id
                self.ready = self.served = bool(line) and not self.error
                self.report = None
        if code is not None and not self.ended:
            self.ended, self.ready, self.report = True, False, None
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.error = self.error or f"worker {self.pid} ended with {how}"
            self._stdin.close()
            self._stdout.close()
            if self._block is not None:
                self._block.end()

    def limit_opening(self, most_s: float) -> None:
        """Kills the worker when it has not reported in time; `error` says so.

        Args:
            most_s: seconds since it was started.
        """
        if self.report is not None and self._stopped_s is None and self.age_s > most_s:
            found = f"no report after {most_s:g} s"
            self.error = complain(f"worker {self.pid}", found, "the bundle open by then")
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
        self._stopped_s = time.monotonic()
        self._process.terminate()

    def finished(self, most_s: float) -> bool:
        """Whether a stopped worker has ended; one that takes too long is killed.

        Args:
            most_s: seconds since it was told to stop.

        Returns:
            False until the process is gone.
        """
        self.look()
        if not self.ended and self._stopped_s is not None and time.monotonic() - self._stopped_s > most_s:
            self._process.kill()
        return self.ended

    def _write(self, message: Message) -> bool:
        try:
            os.write(self._stdin.fileno(), message.to_json().encode() + b"\n")
        except (BrokenPipeError, BlockingIOError):
            return False
        return True
