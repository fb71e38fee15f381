"""Servers that drills start: with a log to look into afterwards, and what their processes hold."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.drills.callers import wait_for
from benchmarks.latency.own_server import child_environment, serve_command
from benchmarks.processes import memory_mib, process_tree
from lhydra_client import Client, ClientError

AGE_S = 2  # of a connection: a swap takes so long


@dataclass(frozen=True)
class Served:
    """A running `lhydra serve`."""

    address: str
    process: "subprocess.Popen[str]"
    log: Path

    @property
    def pids(self) -> list[int]:
        """The supervisor and everything below it."""
        return process_tree(self.process.pid)

    @property
    def workers(self) -> list[int]:
        """The processes that serve."""
        return [pid for pid in self.pids if pid != self.process.pid and b"lhydra_server.start" in _command(pid)]

    def errors(self) -> list[str]:
        """The errors in its log so far; a line that is no JSON counts as one."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                fields = json.loads(line)
            except ValueError:
                found.append(line)
            else:
                if fields["level"] == "error":
                    found.append(fields["message"])
        return found

    def settled(self, bundle: str, workers: int = 2) -> None:
        """Waits until all workers, and nobody else, serve a bundle.

        Args:
            bundle: its id.
            workers: how many there are.
        """

        def served() -> bool:
            """all workers on the bundle"""
            if len(self.workers) != workers:
                return False
            try:
                with Client(self.address, timeout_s=5) as client:
                    status = client.status()
            except ClientError:
                return False
            return (status.bundle_id, status.workers, len(self.workers)) == (bundle, workers, workers)

        wait_for(served)

    def holds(self) -> dict[str, float]:
        """Returns memory (MiB, shared pages counted once), descriptors and threads of all its processes."""
        pids = self.pids
        return {
            "mib": memory_mib(pids)["pss"],
            "descriptors": sum(_entries(pid, "fd") for pid in pids),
            "threads": sum(_entries(pid, "task") for pid in pids),
        }


@contextlib.contextmanager
def serve(
    store: Path,
    log: Path,
    *flags: str,
    users: str | None = None,
    workers: int = 2,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Iterator[Served]:
    """Serves a store until the block ends.

    Args:
        store: with bundles.
        log: file for what it prints.
        flags: more words for `lhydra serve`.
        users: URL of the user store; None for the one in `store`.
        workers: processes.
        environment: variables, added to this process's.
        before: runs in the new process first.

    Yields:
        The server, with its workers serving.

    Raises:
        RuntimeError: it did not start; says its last line.
    """
    age = ("--connection-age-s", str(AGE_S), "--log-sample", "0")
    command: Sequence[str] = serve_command(store, workers, users=users, flags=(*age, *flags))
    with log.open("wb") as lines:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=lines,
            text=True,
            env=child_environment() | dict(environment or {}),
            preexec_fn=before,
        )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            raise RuntimeError(f"lhydra serve: {log.read_text(errors='replace').strip().splitlines()[-1:]}")
        yield Served(first.partition(" on ")[2].split()[0], process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _entries(pid: int, folder: str) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/{folder}"))
    except OSError:
        return 0


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
