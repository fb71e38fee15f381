"""Writes the answer log of one process, beside its requests: a full queue or a full disk loses entries, never time."""

import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lhydra.answers.entry import LoggedAnswer, to_line
from lhydra.answers.folder import PACKED, PLAIN, files, locked, open_plain, pack_file, sweep
from lhydra.answers.people import Deletions
from lhydra.files import Lease, in_use

MOST_BYTES = 2**24  # of answers that wait
GATHER_S = 0.5  # answers of so long are written together
FILE_BYTES, FILE_S = 2**22, 3600  # at which a plain file is full, and so old that it is compressed
CLOSE_S = 5.0  # that a process which ends waits for its entries
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An answer that is made into an entry by the thread that writes it."""

    made: Callable[[], LoggedAnswer]
    seen_ns: int
    n_bytes: int


class AnswerLog:
    """The log as a server's worker sees it; safe to use from any thread.

    Args:
        folder: of the log, shared by all workers of a machine.
        share: of the answers that are logged, 0 to 1.
        most_bytes: of compressed files; beyond, the oldest are deleted.
        logged: is told of so many entries written, and their bytes.
        dropped: is told of so many entries lost.
    """

    def __init__(
        self,
        folder: Path,
        share: float,
        most_bytes: int,
        *,
        logged: Callable[[int, int], None] = lambda n, n_bytes: None,
        dropped: Callable[[int], None] = lambda n: None,
    ) -> None:
        self._folder, self._below, self._most_bytes = folder, round(share * 2**64), most_bytes
        self._logged, self._dropped = logged, dropped
        self._deletions = Deletions(folder)
        self._queue: deque[_Waiting] = deque()
        self._bytes, self._lock = 0, threading.Lock()
        self._filled, self._hurry, self._ending = threading.Event(), threading.Event(), False
        self._path: Path | None = None  # of the plain file, of which the next four tell
        self._descriptor, self._size, self._full_s = -1, 0, 0.0
        self._lease: Lease | None = None
        self._failing = False
        self._thread = threading.Thread(target=self._write, name="answers", daemon=True)
        self._thread.start()

    def wants(self, request_id: str) -> bool:
        """Says whether an answer belongs to the sample: the same for the same id, wherever it is asked.

        Args:
            request_id: of the call.

        Returns:
            Whether it is to be logged.
        """
        digest = hashlib.blake2b(request_id.encode(), digest_size=8, person=b"answers").digest()  # not that of seeds
        return int.from_bytes(digest, "little") < self._below

    def put(self, made: Callable[[], LoggedAnswer], seen_ns: int, n_bytes: int) -> None:
        """Queues an answer, or counts it as lost where there is no room.

        Args:
            made: makes the entry, later.
            seen_ns: when the user's state was looked up, on the clock of `time.monotonic_ns`.
            n_bytes: that the answer holds in memory, roughly.
        """
        with self._lock:
            full = self._bytes > 0 and self._bytes + n_bytes > MOST_BYTES
            if not full:
                self._queue.append(_Waiting(made, seen_ns, n_bytes))
                self._bytes += n_bytes
        if full:
            self._dropped(1)
        if self._bytes > MOST_BYTES // 2:
            self._hurry.set()
        if not self._filled.is_set():
            self._filled.set()

    def close(self) -> None:
        """Writes what is queued and compresses the file; waits CLOSE_S at most."""
        self._ending = True
        self._hurry.set()
        self._filled.set()
        self._thread.join(CLOSE_S)

    def _write(self) -> None:
        done = False
        while not done:
            if not self._ending:
                self._filled.wait(FILE_S)
                self._hurry.wait(GATHER_S)
            self._filled.clear()
            self._hurry.clear()
            done = self._ending  # before the last batch is taken
            with self._lock:
                batch, self._bytes = list(self._queue), 0
                self._queue.clear()
            self._append(batch)

    def _append(self, batch: list[_Waiting]) -> None:
        """Writes entries that are not of people deleted since; a file that is full by then is compressed."""
        answers = []
        for waiting in batch:
            try:
                answers.append((waiting.made(), waiting.seen_ns))
            except Exception:
                self._dropped(1)
                _log.exception("an answer cannot be logged")
            time.sleep(0)  # a request may come between
        try:
            with locked(self._folder):
                self._deletions.look()
                kept = [one for one, seen_ns in answers if not self._deletions.covers(one.user_id, seen_ns)]
                if kept:
                    self._put(b"".join(map(to_line, kept)), len(kept))
                answers.clear()
                if self._path is not None and (
                    self._ending or self._size >= FILE_BYTES or time.monotonic() >= self._full_s
                ):
                    self._turn()
            self._failing = False
        except OSError as error:
            self._dropped(len(answers))
            if not self._failing:
                _log.error("answers are not logged: %s", error, extra={"folder": str(self._folder)})
            self._failing = True

    def _put(self, data: bytes, n: int) -> None:
        if self._path is None or not self._is_there():
            self._open()
        try:
            written = os.write(self._descriptor, data)
            if written < len(data):
                written += os.write(self._descriptor, data[written:])  # which says why
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)
        self._logged(n, len(data))

    def _is_there(self) -> bool:
        """Whether the plain file is still under its name: `users delete` compresses it, and a folder may be removed."""
        assert self._path is not None
        try:
            there = os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            there = False
        if not there:
            self._leave()
        return there

    def _open(self) -> None:
        """Opens a new plain file; what killed processes left is compressed first."""
        self._tidy()
        begun = time.time_ns() // 1000
        name = time.strftime("%Y%m%dT%H%M%S", time.gmtime(begun // 10**6)) + f"-{begun % 10**6:06}-{os.getpid()}"
        self._path = self._folder / f"{name}{PLAIN}"
        self._descriptor = open_plain(self._path)
        self._lease = Lease(self._path)
        self._size, self._full_s = os.fstat(self._descriptor).st_size, time.monotonic() + FILE_S

    def _leave(self) -> None:
        os.close(self._descriptor)
        self._path = self._lease = None

    def _turn(self) -> None:
        """Compresses the plain file: the next entry begins another one."""
        path = self._path
        assert path is not None
        self._leave()
        with suppress(FileNotFoundError):
            pack_file(path)
        self._tidy()

    def _tidy(self) -> None:
        """Compresses what killed processes left, and deletes the oldest files beyond the bound."""
        sweep(self._folder)
        for path in self._folder.glob(f"*{PLAIN}"):
            if not in_use(path):
                pack_file(path)
        packed = [(path, path.stat().st_size) for path in files(self._folder) if path.name.endswith(PACKED)]
        total = sum(size for _, size in packed)
        for path, size in packed:
            if total <= self._most_bytes:
                break
            path.unlink()
            total -= size
