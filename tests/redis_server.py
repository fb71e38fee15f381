"""A real Redis server for tests: found or installed, started on a free port of this machine, ended by its own id."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

from lhydra.users import redis_store
from tests.harness import free_port

PATIENCE_S = 20


class RedisServer:
    """One server on 127.0.0.1 that keeps nothing on disk; `url` opens its database 0. options: further arguments."""

    def __init__(self, password: str = "", *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"
        self._options = [*(["--requirepass", password] if password else []), *options]
        self.start()

    def start(self) -> None:
        argv = [_binary(), "--save", "", "--appendonly", "no", "--port", str(self.port), "--bind", "127.0.0.1"]
        self._process = subprocess.Popen(argv + self._options, stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process.poll() is None, "redis-server ended"
            assert time.monotonic() < give_up, "redis-server does not answer"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stops it, and returns once it has stopped: connections are still taken, nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        give_up = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert time.monotonic() < give_up, "redis-server does not answer"

    def empty(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            assert connection.recv(64) == b"+OK\r\n"

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


@contextmanager
def running(password: str = "", *options: str) -> Iterator[RedisServer]:
    """A server for the block."""
    server = RedisServer(password, *options)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def budgets(read_s: float = PATIENCE_S, write_s: float = PATIENCE_S) -> Iterator[None]:
    """Other budgets for the store: by default so long that no busy machine exceeds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_store, "READ_S", read_s)
        patch.setattr(redis_store, "WRITE_S", write_s)
        yield


@cache
def _installed() -> str | None:
    if found := shutil.which("redis-server"):
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for argv in (["apt-get", "update"], ["apt-get", "install", "-y", "redis-server"]):
            subprocess.run(argv, env=environment, capture_output=True, timeout=120)
    return shutil.which("redis-server")


def _binary() -> str:
    found = _installed()
    if found is None:
        pytest.skip("REDIS ABSENT: no redis-server, and none could be installed with apt-get")
    return found
