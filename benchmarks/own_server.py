"""Starts the program that a benchmark measures, and stops it again."""

import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lhydra.errors import NotReady, complain

READY = re.compile(r"serving bundle \S+ on (\S+:\d+) with \d+ worker")


def serve_command(store: Path, workers: int | None) -> list[str]:
    """Returns the command that serves `store` on a free port."""
    count = [] if workers is None else ["--workers", str(workers)]
    return [sys.executable, "-m", "lhydra.cli", "serve", str(store), "--port", "0", *count]


@contextmanager
def started(command: Sequence[str], *, startup_s: float = 60.0, stop_s: float = 20.0) -> Iterator[str]:
    """Runs `command` until the block ends; yields the address that its ready line names.

    Raises:
        NotReady: the program ended, or printed no ready line within `startup_s`; says its last line.
    """
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True) as process,
    ):
        limit = threading.Timer(startup_s, process.kill)
        limit.start()
        try:
            yield _address(process, noise.fileno(), startup_s, limit)
        finally:
            limit.cancel()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(stop_s)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: "subprocess.Popen[str]", noise: int, startup_s: float, limit: threading.Timer) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if ready := READY.search(line):
            limit.cancel()
            return ready.group(1)
    code = process.wait()
    with open(noise, encoding="utf-8", errors="replace", closefd=False) as file:
        file.seek(0)
        last = ([line.strip() for line in file if line.strip()] or ["nothing on stderr"])[-1]
    raise NotReady(complain("the server", f"exit {code}: {last}", f"a ready line within {startup_s:g} s"))
