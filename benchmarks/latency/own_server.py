"""Starts the programs that a benchmark measures, and stops them again."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lhydra.errors import NotReady, complain

READY_LINE = re.compile(r"serving bundle \S+ on (\S+:\d+) with \d+ worker")
CONNECTION_AGE_S = 300  # longer than a run: h2load does not open another connection when a server ends one


@dataclass(frozen=True)
class RunningServer:
    """A running server: HOST:PORT and the id of its first process, 0 where it is somebody else's."""

    address: str
    pid: int = 0


def child_environment() -> dict[str, str]:
    """Returns the environment in which another Python finds the modules that this one finds."""
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def serve_command(
    store: Path, workers: int | None = None, *, depth: int = 0, users: str | None = None, flags: Sequence[str] = ()
) -> list[str]:
    """Returns the command that serves `store` on a free port.

    Args:
        store: the folder with the bundles.
        workers: worker processes; None for the server's own number.
        depth: candidates to rerank; 0 for the bundle's.
        users: URL of the user store; None for the one in `store`.
        flags: more words for `lhydra serve`.

    Returns:
        The words of the command.
    """
    count = [] if workers is None else ["--workers", str(workers)]
    wide = ["--depth", str(depth)] if depth else []
    known = ["--users", users] if users else []
    age = ["--connection-age-s", str(CONNECTION_AGE_S)]
    return [sys.executable, "-m", "lhydra.cli", "serve", str(store), "--port", "0", *age, *count, *wide, *known, *flags]


@contextmanager
def start_server(command: Sequence[str], *, startup_s: float = 60.0, stop_s: float = 20.0) -> Iterator[RunningServer]:
    """Runs `command` until the block ends.

    Args:
        command: a program that prints a ready line as `lhydra serve` does.
        startup_s: seconds until that line, then the program is killed.
        stop_s: seconds from SIGTERM to SIGKILL at the end.

    Yields:
        The server at the address that the ready line names.

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
            yield RunningServer(_address(process, noise.fileno(), startup_s, limit), process.pid)
        finally:
            limit.cancel()
            _stop(process, stop_s)


@contextmanager
def start_web_server(
    command: Sequence[str], workers: int, *, environment: dict[str, str], startup_s: float = 120.0, stop_s: float = 20.0
) -> Iterator[RunningServer]:
    """Runs a web server on a free port until the block ends.

    Args:
        command: its command; `--port` is added.
        workers: how many there will be. The server is ready when so many different processes have answered
            GET /health with {"pid": ...}, or when it has been answered otherwise: by a server that does so when all
            of its workers are there.
        environment: variables, added to this process's.
        startup_s: seconds until the server is ready.
        stop_s: seconds from SIGTERM to SIGKILL at the end.

    Yields:
        The server.

    Raises:
        NotReady: the program ended, or was not there within `startup_s`; says its last line.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise,
        subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=noise,
            stderr=noise,
            env=os.environ | environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            seen: set[int] = set()
            last_s = time.monotonic() + startup_s
            while len(seen) < workers:
                if process.poll() is not None or time.monotonic() > last_s:
                    raise _not_ready(f"exit {process.poll()}", noise.fileno(), f"{workers} workers in {startup_s:g} s")
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                        seen |= _workers(reply.read(), workers)
                except (urllib.error.URLError, OSError):
                    time.sleep(0.1)
            yield RunningServer(f"127.0.0.1:{port}", process.pid)
        finally:
            _stop(process, stop_s)
            with contextlib.suppress(ProcessLookupError):  # workers that outlive their parent
                os.killpg(process.pid, signal.SIGKILL)


def _workers(reply: bytes, workers: int) -> set[int]:
    """The process id in a reply, or as many made-up ones as there should be workers."""
    try:
        return {int(json.loads(reply)["pid"])}
    except (ValueError, TypeError, KeyError):
        return set(range(workers))


def _stop(process: "subprocess.Popen[str] | subprocess.Popen[bytes]", stop_s: float) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(stop_s)
    except subprocess.TimeoutExpired:
        process.kill()


def _address(process: "subprocess.Popen[str]", noise: int, startup_s: float, limit: threading.Timer) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if ready := READY_LINE.search(line):
            limit.cancel()
            return ready.group(1)
    raise _not_ready(f"exit {process.wait()}", noise, f"a ready line within {startup_s:g} s")


def _not_ready(found: str, noise: int, expected: str) -> NotReady:
    with open(noise, encoding="utf-8", errors="replace", closefd=False) as file:
        file.seek(0)
        last = ([line.strip() for line in file if line.strip()] or ["nothing on stderr"])[-1]
    return NotReady(complain("the server", f"{found}: {last}", expected))
