"""The files of an LMDB environment as they were opened, and whether they still are what was opened."""

import os
import secrets
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import lmdb

MAX_READERS = 1024  # read transactions at a time, of all processes; a lock file of _LOCK_BYTES has room for more
MAX_DATABASES = 16  # named ones, with room for later
META, IDENTITY = b"meta", b"id"  # the named database of what is known of the store, and its key of the store's id
META_BYTES = 8192  # of the two meta pages; without them LMDB would begin a new store in the file
MAP_BYTES = 2**36 if sys.maxsize > 2**32 else 2**30  # address space, not disk: the file grows as needed
_LOCK_BYTES = 2**17  # enough for the table of MAX_READERS

File = tuple[int, int]  # device and inode
# Paths of data and lock, which files they are, the size that the data have, and the least of the lock; see
# lhydra/kernels/unchanged.pxi.
Unchanged = Callable[[bytes, bytes, tuple[File, File], int, int], bool]


class Opened:
    """One opening of the files; closed once it is given up and nobody is in a transaction.

    Args:
        folder: of the environment.
        sync: forces what is written to disk before the write returns.
        unchanged: compiled, tells in a third of the time whether nothing is wrong.
    """

    def __init__(self, folder: Path, sync: bool, unchanged: Unchanged | None = None) -> None:
        self.data, self.lock = folder / "data.mdb", folder / "lock.mdb"
        self._paths = os.fsencode(self.data), os.fsencode(self.lock)  # a Path is made one at every look
        self._unchanged = unchanged
        self.env = lmdb.open(
            str(folder),
            map_size=MAP_BYTES,
            max_readers=MAX_READERS,
            max_dbs=MAX_DATABASES,
            max_spare_txns=8,
            readahead=False,
            sync=sync,
            metasync=sync,
        )
        try:
            self.env.reader_check()  # slots of killed processes would keep old pages alive
            self._page = self.env.stat()["psize"]
            data, lock = self.data.stat(), self.lock.stat()
        except BaseException:
            self.env.close()
            raise
        self._files: tuple[File, File] = file_of(data), file_of(lock)
        self._size, self._lock_size = META_BYTES - 1, lock.st_size  # bytes that the files had when all was well
        self._users, self._given_up, self._count = 0, False, threading.Lock()
        self.databases: dict[bytes, lmdb._Database] = {}  # by name, those that a committed transaction opened
        self.closed = threading.Event()

    @property
    def lock_file(self) -> File:
        """The lock file; a process that opened one twice would lose its hold on it."""
        return self._files[1]

    def fault(self) -> str:
        """Returns what is wrong with the files at the path, nothing where all is well. Some microseconds."""
        floor = self._size  # taken before the look: other threads raise it
        if self._unchanged is not None and self._unchanged(*self._paths, self._files, floor, self._lock_size):
            return ""
        try:
            data, lock = map(os.stat, self._paths)
        except OSError as error:
            return f"{Path(os.fsdecode(error.filename)).name} gone ({error.strerror})"
        if (file_of(data), file_of(lock)) != self._files:
            return "another file in place of the one that was opened"
        if lock.st_size < self._lock_size:
            return f"lock.mdb cut to {lock.st_size} bytes"
        if data.st_size == floor:  # as when all was well
            return ""
        if data.st_size > floor:  # LMDB never shrinks it; the pages that say what is needed are there
            needed = (self.env.info()["last_pgno"] + 1) * self._page
            if data.st_size >= needed or os.stat(self.data).st_size >= needed:  # it may have grown in between
                self._size = max(floor, data.st_size)
                return ""
            floor = needed
        return f"data.mdb cut to {data.st_size} bytes of {floor}"

    def database(self, name: bytes, create: bool, txn: lmdb.Transaction) -> lmdb._Database | None:
        """Returns a named database.

        Args:
            name: of the database.
            create: makes it where there is none.
            txn: of writing, in this environment.

        Returns:
            The database, to be used in this transaction, and in others once it is committed; None where there is none.
        """
        try:
            return self.env.open_db(name, txn=txn, create=create)
        except lmdb.NotFoundError:
            return None

    def free_bytes(self, used_pages: int) -> int:
        """Returns how much of the file later writes can use again.

        Args:
            used_pages: of all named databases.

        Returns:
            Bytes, the few pages with the list of free ones among them.
        """
        stat, n_pages = self.env.stat(), self.env.info()["last_pgno"] + 1
        used = used_pages + stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return max(0, n_pages - used - META_BYTES // 4096) * self._page

    def identity(self) -> str:
        """Returns the id of the store, nothing where it has none yet."""
        with self.env.begin() as txn, suppress(lmdb.NotFoundError):
            return bytes(txn.get(IDENTITY, db=self.env.open_db(META, txn=txn, create=False)) or b"").decode()
        return ""

    def enter(self) -> bool:
        """Keeps it open until `leave`; False where it is given up."""
        with self._count:
            self._users += not self._given_up
            return not self._given_up

    def leave(self) -> None:
        """Undoes `enter`."""
        with self._count:
            self._users -= 1
            last = self._given_up and not self._users
        if last:
            self._close()

    def give_up(self) -> None:
        """Closes it as soon as nobody is in a transaction."""
        with self._count:
            idle, self._given_up = not self._users and not self._given_up, True
        if idle:
            self._close()

    def _close(self) -> None:
        self._make_lock_whole()
        self.env.close()
        self.closed.set()

    def _make_lock_whole(self) -> None:
        """Gives a lock file that was cut short its length again: closing clears entries in it.

        The file leaves its path first: no process may go on with a lock that holds zeros.
        """
        with suppress(OSError):
            if file_of(self.lock.stat()) != self._files[1] or self.lock.stat().st_size >= self._lock_size:
                return
            descriptor = os.open(self.lock, os.O_RDWR)
            try:
                self.lock.unlink(missing_ok=True)
                os.truncate(descriptor, self._lock_size)
            finally:
                os.close(descriptor)


def identified(env: lmdb.Environment, txn: lmdb.Transaction) -> str:
    """Returns the id of a store, which gets one where it has none.

    Args:
        env: the environment.
        txn: a write transaction in it.

    Returns:
        The id.
    """
    meta = env.open_db(META, txn=txn)
    if (found := txn.get(IDENTITY, db=meta)) is None:
        found = secrets.token_hex(8).encode()
        txn.put(IDENTITY, found, db=meta)
    return bytes(found).decode()


def try_all_of(env: lmdb.Environment, txn: lmdb.Transaction) -> None:
    """Reads every value of users, and of the event log, which is long, the ends that recording touches.

    Args:
        env: the environment.
        txn: a transaction in it.
    """
    from lhydra.events import lmdb_log  # and numpy with it, which a look at the store's id needs not

    for _ in txn.cursor():
        pass
    with suppress(lmdb.NotFoundError), txn.cursor(env.open_db(lmdb_log.NAME, txn=txn, create=False)) as log:
        log.first()
        log.last()


def file_of(found: os.stat_result) -> File:
    """Returns which file it is.

    Args:
        found: what the system says of it.

    Returns:
        Device and inode.
    """
    return found.st_dev, found.st_ino


def reserve(lock: Path) -> None:
    """Gives the lock file its space: LMDB maps it sparse, and on a full disk the first write would be SIGBUS.

    Args:
        lock: the path of the file, which this process has not opened.
    """
    if hasattr(os, "posix_fallocate") and (not lock.exists() or lock.stat().st_size < _LOCK_BYTES):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, _LOCK_BYTES)
        finally:
            os.close(descriptor)
