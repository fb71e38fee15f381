"""Lines of the log on their way to a descriptor that may stall: whoever logs never waits for whoever reads.

One thread writes. Where the reader is slower than the lines come, the newest lines are left out and counted, and
one line in their place says how many. Several processes share the descriptor, so lines are written whole, in pieces
that a pipe takes in one go.
"""

import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

MOST_BYTES = 2**21  # of lines that wait
GATHER_S = 0.01  # lines of so long are written together
MAX_LINE_BYTES = 65_536  # of what others print


class LogQueue:
    """Writes lines to a descriptor, in order; safe to use from any thread.

    Args:
        descriptor: where they go.
        lost_line: returns the line that tells of so many lost ones.
    """

    def __init__(self, descriptor: int, lost_line: Callable[[int], str]) -> None:
        self.descriptor, self._lost_line = descriptor, lost_line
        self.count_lost: Callable[[int], None] = lambda n: None
        self._lines: deque[bytes] = deque()
        self._bytes = self._lost = 0
        self._lock = threading.Lock()
        self._filled, self._hurry = threading.Event(), threading.Event()
        self._writer: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Queues a line, or counts it as lost where there is no room.

        Args:
            line: without its end.
        """
        data = f"{line}\n".encode(errors="backslashreplace")
        with self._lock:
            if self._bytes and self._bytes + len(data) > MOST_BYTES:
                self._lost += 1
                lost = 1
            else:
                self._tell_lost()
                self._lines.append(data)
                self._bytes += len(data)
                lost = 0
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="log", daemon=True)
                self._writer.start()
        if lost:
            self.count_lost(lost)
        if not self._filled.is_set():
            self._filled.set()

    def flush(self, most_s: float) -> None:
        """Returns when all that was queued is written, or after `most_s` if the reader stalls.

        Args:
            most_s: seconds.
        """
        last_s = time.monotonic() + most_s
        self._hurry.set()
        time.sleep(0.002)  # for what was printed last
        while (self._bytes or self._lost) and time.monotonic() < last_s:
            time.sleep(0.002)
        self._hurry.clear()

    def take_stderr(self) -> None:
        """Makes what this process prints to stderr lines of the queue: tracebacks, and what libraries in C print.

        Libraries write to a pipe, which loses what comes when it is full: they would wait for who reads stderr.
        """
        read, write = os.pipe()
        os.set_blocking(write, False)
        sys.stderr.flush()
        self.descriptor = os.dup(2)
        os.dup2(write, 2)
        os.close(write)
        sys.stderr = _Stderr(self.put)  # what Python prints need not go through the pipe
        threading.Thread(target=self._pump, args=(read,), name="stderr", daemon=True).start()

    def _pump(self, read: int) -> None:
        pending = b""
        while chunk := os.read(read, MAX_LINE_BYTES):
            *whole, pending = (pending + chunk).split(b"\n")
            if len(pending) > MAX_LINE_BYTES:
                whole, pending = [*whole, pending], b""
            for line in whole:
                self.put(line.decode(errors="backslashreplace"))

    def _tell_lost(self) -> None:
        if self._lost:
            data = f"{self._lost_line(self._lost)}\n".encode()
            self._lines.append(data)
            self._bytes += len(data)
            self._lost = 0

    def _piece(self) -> tuple[bytes, int]:
        """The next lines that a pipe takes in one go, and how many they are; a longer line comes alone."""
        with self._lock:
            if not self._lines:
                self._tell_lost()
            size = n = 0
            for line in self._lines:
                if n and size + len(line) > select.PIPE_BUF:
                    break
                size, n = size + len(line), n + 1
            return b"".join(self._lines.popleft() for _ in range(n)), n

    def _write(self) -> None:
        while True:
            self._filled.wait()
            self._hurry.wait(GATHER_S)
            self._filled.clear()
            while True:
                piece, n = self._piece()
                if not n:
                    break
                data = piece
                try:
                    while data:  # once, unless a signal comes between
                        data = data[os.write(self.descriptor, data) :]
                except OSError:  # a full disk, or a reader that has gone: these lines are lost, nothing else
                    self.count_lost(n)
                with self._lock:
                    self._bytes -= len(piece)


class _Stderr(io.TextIOBase):
    """A `sys.stderr` whose lines go to a queue."""

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put, self._begun, self._lock = put, "", threading.Lock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, text: str) -> int:
        with self._lock:
            *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            self._put(line)
        return len(text)
