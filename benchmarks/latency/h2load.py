"""Closed loop by `h2load` (nghttp2, in C): the load generator that takes the least of the cores it measures.

It speaks to gRPC (HTTP/2 without TLS) and to HTTP/1.1. It knows one body per process, but reads the file of it for
every request, so the file is rewritten in place while it runs, each time with another user of the same length: requests
are varied, though a user may be asked for several times in a row. It does not read replies: a gRPC status is in the
trailers, so what it counts as good is HTTP status 200. Who uses it checks replies by other means.
"""

import os
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.latency.load import F64
from lhydra.errors import LhydraError, complain

PROCESSES = 4  # at most: so many different users at a moment
REWRITE_S = 0.002
GRPC_HEADERS = ("content-type: application/grpc", "te: trailers")
JSON_HEADERS = ("content-type: application/json",)


@dataclass(frozen=True)
class Target:
    """Where the load goes: a URL, whether it speaks HTTP/1.1, and the bodies to send, all of one length."""

    url: str
    http1: bool
    bodies: Sequence[bytes]

    def command(self, body: Path, log: Path, clients: int, seconds: float) -> list[str]:
        """Returns the command of one process.

        Args:
            body: file with the body to send.
            log: file for the latencies.
            clients: connections, each with one request in flight.
            seconds: duration.

        Returns:
            The words of the command.
        """
        headers = JSON_HEADERS if self.http1 else GRPC_HEADERS
        return [
            *(
                "h2load",
                "--clients",
                str(clients),
                "--max-concurrent-streams",
                "1",
                "--duration",
                f"{seconds * 1e3:.0f}ms",
            ),
            *("--data", str(body), "--log-file", str(log)),
            *(part for header in headers for part in ("--header", header)),
            *(["--h1"] if self.http1 else []),
            self.url,
        ]


@dataclass(frozen=True)
class Result:
    """What h2load saw: the latency of every request, status codes, bytes of the replies."""

    latency_ms: F64  # (n,) of requests with status 200
    statuses: dict[str, int]
    failed: int
    data_bytes: int
    seconds: float
    cpu_s: float  # of h2load itself

    @property
    def answered(self) -> int:
        """Requests with status 200."""
        return len(self.latency_ms)


def installed() -> bool:
    """Whether there is an h2load to run."""
    return shutil.which("h2load") is not None


def same_length(messages: Sequence[bytes]) -> list[bytes]:
    """Returns the messages of the commonest length: a body is rewritten in place.

    Args:
        messages: at least one.

    Returns:
        Those of one length, in their order.
    """
    (length, _), *_ = Counter(map(len, messages)).most_common(1)
    return [message for message in messages if len(message) == length]


def run(target: Target, clients: int, seconds: float) -> Result:
    """Runs h2load in up to PROCESSES processes beside each other.

    Args:
        target: where the load goes.
        clients: connections of all processes together, each with one request in flight.
        seconds: duration.

    Returns:
        What they saw together.

    Raises:
        LhydraError: h2load failed, or nothing was answered.
    """
    processes = min(clients, PROCESSES)
    shares = [clients // processes + (i < clients % processes) for i in range(processes)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bodies, logs, running = [], [], []
        for i, share in enumerate(shares):
            body, log = Path(folder, f"body-{i}"), Path(folder, f"log-{i}")
            body.write_bytes(target.bodies[i % len(target.bodies)])
            command = target.command(body, log, share, seconds)
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
            descriptor = os.open(body, os.O_WRONLY)
            stack.callback(os.close, descriptor)
            bodies.append(descriptor)
            logs.append(log)
        done = threading.Event()
        changing = threading.Thread(target=_change, args=(bodies, target.bodies, done), daemon=True)
        before = os.times()
        changing.start()
        try:
            outputs = [process.communicate(timeout=seconds + 60)[0] for process in running]
        finally:
            done.set()
            changing.join()
            for process in running:
                process.kill()
        after = os.times()
        for process, output in zip(running, outputs, strict=True):
            if process.returncode:
                raise LhydraError(complain("h2load", output.strip().splitlines()[-1:], "exit code 0"))
        cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
        return parsed(outputs, [log.read_text(encoding="utf-8") for log in logs], seconds, cpu_s)


def parsed(outputs: Sequence[str], logs: Sequence[str], seconds: float, cpu_s: float) -> Result:
    """Reads what processes that ran beside each other printed and logged.

    Args:
        outputs: the standard output of each.
        logs: the log file of each: time, status and microseconds a line.
        seconds: duration of the run.
        cpu_s: processor seconds of all of them.

    Returns:
        What they saw together.

    Raises:
        LhydraError: nothing was answered.
    """
    failed = data_bytes = 0
    for output in outputs:
        for line in output.splitlines():
            if line.startswith("requests:"):
                counts = _counts(line)
                failed += counts["failed"] + counts["errored"] + counts["timeout"]
            elif line.startswith("traffic:"):
                data_bytes += int(line.rpartition("(space savings")[2].rpartition("(")[2].partition(")")[0])
    rows = [line.split("\t") for log in logs for line in log.splitlines()]
    statuses = Counter(status for _, status, *_ in rows)
    latency_ms = np.array([float(took) for _, status, took in rows if status == "200"]) / 1e3
    if not len(latency_ms):
        raise LhydraError(complain("h2load", f"no answer with status 200 ({dict(statuses)})", "answers"))
    return Result(latency_ms, dict(statuses), failed, data_bytes, seconds, cpu_s)


def _counts(line: str) -> dict[str, int]:
    parts = (part.split() for part in line.partition(":")[2].split(","))
    return {name: int(number) for number, name in parts}


def _change(files: Sequence[int], bodies: Sequence[bytes], done: threading.Event) -> None:
    """Gives each file another body in turn, until done; overlapping reads may see parts of two: a third user."""
    at = len(files)
    while not done.wait(REWRITE_S):
        for file in files:
            os.pwrite(file, bodies[at % len(bodies)], 0)
            at += 1
