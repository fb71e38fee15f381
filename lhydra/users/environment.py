"""An LMDB environment in a process that must not die of it: checked before every use, opened again when it is back.

LMDB maps its files: reading a page that the file no longer holds ends the process by SIGBUS, and a folder that was
moved away is written to as before, where nobody will look. So every transaction begins with a look at the files at the
path: they are the ones that were opened, and as long as the pages in use need. Where they are not, the environment is
given up with a line in the log; a server's is tried again every second.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import lmdb

from lhydra.errors import UserStoreError, complain
from lhydra.users.opened import MAP_BYTES, META_BYTES, Opened, Unchanged, file_of, identified, reserve
from lhydra.users.place import EXPECTED, refuse_other, try_files
from lhydra.users.writer import WAIT_S, Writer

TRY_EVERY_S = 30.0  # after which doubtful files are read through once more
RETRY_S = 1.0  # after which a server tries again to open what it could not
_CREATING_S = 1.0  # how long the process that makes a store has for the first write of its file
_NEEDS = {
    lmdb.DiskError: "room on its disk: nothing was recorded, reads go on",
    lmdb.MapFullError: f"at most {MAP_BYTES / 2**30:g} GiB in one store: nothing was recorded, reads go on",
    lmdb.ReadersFullError: "fewer readers: see which processes have its lock.mdb open",
}
_log = logging.getLogger(__name__)

T = TypeVar("T")


class Environment:
    """The environment in one folder, for any number of threads; a process opens it once.

    Readers never wait. Writers take turns in one thread, see `Writer`.

    Args:
        folder: of the environment.
        sync_s: seconds after a write at most until it is forced to disk; 0: before the write returns.
        create: makes the environment where there is none.
        lasting: keeps trying to open what cannot be opened, now or later, instead of raising from here.
        identity: of the store that it must be; empty where any will do, and from then on the one found first.
        doubtful: of a lasting one, has the files read by a process of its own first: they may end whoever maps them.
        unchanged: see `Opened`.

    Raises:
        UserStoreError: it cannot be opened, and is not lasting.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sync_s: float,
        create: bool = False,
        lasting: bool = False,
        identity: str = "",
        doubtful: bool = False,
        unchanged: Unchanged | None = None,
    ) -> None:
        self.path, self.identity, self._unchanged = folder, identity, unchanged
        self._sync_s, self._create, self._lasting = sync_s, create, lasting
        self._doubtful, self._try_after_s = doubtful, 0.0
        self._opened: Opened | None = None
        self._given_up: list[Opened] = []
        self._why = ""
        self._unsynced, self._closing, self._faulty = threading.Event(), threading.Event(), threading.Event()
        self._writer: Writer[lmdb.Transaction] | None = None
        self._change = threading.Lock()
        self._threads = [threading.Thread(target=self._sync_in_groups, name="users-sync", daemon=True)] * (sync_s > 0)
        try:
            if doubtful:
                raise UserStoreError(
                    complain(folder, "a worker that crashed", "the files to be read without harm first")
                )
            self._open()
        except UserStoreError as error:
            if not lasting:
                raise
            self._why = str(error)
            _log.error("%s", error)
        if lasting:
            self._threads.append(threading.Thread(target=self._watch, name="users-watch", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def raw(self) -> lmdb.Environment:
        """The environment as LMDB has it.

        Raises:
            UserStoreError: it is not open.
        """
        if self._opened is None:
            raise UserStoreError(self._why)
        return self._opened.env

    def reading(self) -> AbstractContextManager[lmdb.Transaction]:
        """Lends a read transaction to the block.

        Returns:
            The context of the transaction; entering it raises UserStoreError where the environment cannot be used, and
            so does a block that fails in it.
        """
        return _InUse(self, self._opened, lmdb.Environment.begin)

    def write(self, change: Callable[[lmdb.Transaction], T], deadline_s: float = math.inf, wait_s: float = WAIT_S) -> T:
        """Changes what is stored, all or nothing; see `Writer.write`.

        Args:
            change: made in a transaction; made again where the transaction could not be committed for another's sake.
            deadline_s: when the caller leaves, on the clock of `time.monotonic`.
            wait_s: how long others may keep it from beginning.

        Returns:
            What `change` returned.

        Raises:
            UserStoreError: the environment cannot be used, or others wrote for so long.
            DeadlineExceeded: the deadline passed.
        """
        writer = self._writer
        if writer is None:
            raise UserStoreError(self._why)
        return writer.write(change, deadline_s, wait_s)

    def database(self, name: bytes, create: bool, deadline_s: float = math.inf) -> lmdb._Database | None:
        """Returns a named database of the environment, which is opened in a transaction of the writer's.

        LMDB keeps what is opened for all transactions only where the one that opened it was committed, and readers
        are not.

        Args:
            name: of the database.
            create: makes it where there is none.
            deadline_s: when the caller leaves, on the clock of `time.monotonic`.

        Returns:
            The database, None where there is none.

        Raises:
            UserStoreError: the environment cannot be used, or others wrote for long.
            DeadlineExceeded: the deadline passed.
        """
        with self._change:
            opened, writer = self._opened, self._writer
        if opened is None or writer is None:
            raise UserStoreError(self._why)
        found = opened.databases.get(name)
        if found is None and (found := writer.write(partial(opened.database, name, create), deadline_s)) is not None:
            opened.databases[name] = found
        return found

    def free_bytes(self, used_pages: int) -> int:
        """Returns how much of the file later writes can use again.

        Args:
            used_pages: of all named databases.

        Returns:
            Bytes.

        Raises:
            UserStoreError: the environment cannot be used.
        """
        opened = self._opened
        with _InUse(self, opened, nullcontext):
            assert opened is not None
            return opened.free_bytes(used_pages)

    def sync(self) -> None:
        """Forces to disk what was written.

        Raises:
            UserStoreError: the environment cannot be used.
        """
        with _InUse(self, self._opened, nullcontext) as env:
            env.sync(True)

    def close(self) -> None:
        """Forces everything to disk and closes the environment; where a writer is stuck, the process's end does."""
        self._closing.set()
        self._unsynced.set()
        self._faulty.set()
        for thread in self._threads:
            thread.join(WAIT_S)  # one may wait for a disk, or for files that are tried
        with self._change:
            opened, writer, self._opened, self._writer, self._why = self._opened, self._writer, None, None, "it closed"
        if writer is not None:
            writer.close(WAIT_S)
        if opened is None:
            return
        try:
            if not opened.fault():
                opened.env.sync(True)
        except lmdb.Error as error:
            raise _failed(f"user store {self.path}", error) from None
        finally:
            opened.give_up()

    def _check(self, opened: Opened) -> None:
        if fault := opened.fault():
            self._lost(opened, fault)
            raise UserStoreError(self._why)

    @contextmanager
    def _writing(self, opened: Opened) -> Iterator[lmdb.Transaction]:
        """One write transaction: committed when the block ends, undone when it raises."""
        with _InUse(self, opened, lambda env: env.begin(write=True)) as txn:
            self._check(opened)  # it may have waited long
            identity = self.identity or identified(opened.env, txn)
            yield txn
            self._check(opened)
        self.identity = identity
        self._unsynced.set()

    def _open(self) -> None:
        """Opens the files, where they are sound and of the right store.

        Raises:
            UserStoreError: they are not.
        """
        folder, data = self.path, self.path / "data.mdb"
        try:
            refuse_other(folder)
            if data.exists():
                self._check_size(data)
            elif not self._create:
                served = "put it back, or restart the server, with --users-create for a new one"
                made = "`lhydra users load` and `lhydra serve` make it"
                expected = f"one: {served if self._lasting else made}"
                raise UserStoreError(complain(folder, "no user store", expected))
            folder.mkdir(exist_ok=True)
            self._check_alone(folder / "lock.mdb")
            reserve(folder / "lock.mdb")
            opened = Opened(folder, self._sync_s <= 0, self._unchanged)
        except OSError as error:
            raise UserStoreError(complain(folder, error.strerror or str(error), EXPECTED)) from None
        except lmdb.Error as error:  # names the path itself
            raise _failed(folder, error, EXPECTED) from None
        try:
            if fault := opened.fault():
                raise UserStoreError(complain(folder, fault, "the whole files: restore the backup"))
            identity = opened.identity()
            if self.identity and identity != self.identity:
                found = f"store {identity or 'without id'}"
                expected = f"store {self.identity}, which was served: put it back, or restart the server"
                raise UserStoreError(complain(folder, found, expected))
        except lmdb.Error as error:
            opened.give_up()
            raise _failed(folder, error, EXPECTED) from None
        except UserStoreError:
            opened.give_up()
            raise
        with self._change:
            self.identity, self._why = identity, ""
            self._writer = Writer(lambda: self._writing(opened), f"user store {folder}")
            self._opened = opened
        self._create = False  # what was there once is not made again in silence

    def _check_size(self, data: Path) -> None:
        until_s = time.monotonic() + (_CREATING_S if self._create else 0)
        while (size := data.stat().st_size) < META_BYTES:
            if time.monotonic() >= until_s:
                found = f"data.mdb of {size} bytes"
                raise UserStoreError(complain(self.path, found, "the whole files: restore the backup"))
            time.sleep(0.01)

    def _check_alone(self, lock: Path) -> None:
        self._given_up = [one for one in self._given_up if not one.closed.is_set()]
        if lock.exists() and any(one.lock_file == file_of(lock.stat()) for one in self._given_up):
            raise UserStoreError(complain(self.path, "a transaction of before in progress", "its end"))

    def _lost(self, opened: Opened, fault: str) -> None:
        """Gives up what was opened, with one line in the log."""
        with self._change:
            if self._opened is not opened:
                return
            expected = "the files that were opened"
            self._why = complain(f"user store {self.path}", fault, expected)
            writer, self._opened, self._writer = self._writer, None, None
            self._given_up.append(opened)
        _log.error("%s", self._why)
        if writer is not None:
            writer.stop()
        opened.give_up()
        self._faulty.set()

    def _watch(self) -> None:
        """Notices faults while nobody asks, and opens again what was given up."""
        while not self._closing.wait(RETRY_S):
            opened = self._opened
            try:
                if opened is not None:
                    with _InUse(self, opened, nullcontext) as env:
                        env.reader_check()
                    continue
                if self._doubtful:
                    if time.monotonic() < self._try_after_s:
                        continue
                    self._try_after_s = time.monotonic() + TRY_EVERY_S
                    try_files(self.path)
                    self._doubtful = False
                if self._closing.is_set():
                    return
                self._open()
                _log.warning("user store %s is open again", self.path)
            except UserStoreError as error:
                self._why = str(error)
            except Exception:
                _log.exception("user store %s cannot be watched", self.path)

    def _sync_in_groups(self) -> None:
        while not self._closing.is_set():
            self._unsynced.wait()
            self._closing.wait(self._sync_s)  # what is written meanwhile shares the flush
            self._unsynced.clear()
            opened = self._opened
            try:
                if opened is not None:
                    with _InUse(self, opened, nullcontext) as env:
                        env.sync(True)
            except UserStoreError as error:
                if not self._closing.is_set():
                    _log.error("user store not flushed: %s", error)


class _InUse(Generic[T]):
    """Keeps the opened files open during the block; raises where they are not what they were.

    A class, because a generator takes twice the time, and every request reads.
    """

    __slots__ = ("_environment", "_opened", "_use", "_used")

    def __init__(
        self,
        environment: Environment,
        opened: Opened | None,
        use: Callable[[lmdb.Environment], AbstractContextManager[T]],
    ) -> None:
        self._environment, self._opened, self._use = environment, opened, use

    def __enter__(self) -> T:
        opened, environment = self._opened, self._environment
        if opened is None or not opened.enter():
            raise UserStoreError(environment._why)
        try:
            environment._check(opened)
            self._used = self._use(opened.env)
            return self._used.__enter__()
        except BaseException as error:
            opened.leave()
            if isinstance(error, lmdb.Error):
                raise _failed(f"user store {environment.path}", error) from None
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._opened is not None
        try:
            self._used.__exit__(kind, error, trace)
        except lmdb.Error as failed:
            error = failed
        finally:
            self._opened.leave()
        if isinstance(error, lmdb.Error):
            raise _failed(f"user store {self._environment.path}", error) from None


def _failed(thing: object, error: lmdb.Error, expected: str = "a store that can be read and written") -> UserStoreError:
    """What LMDB says, without the path, and without the advice that is for programmers."""
    found = str(error).removeprefix(f"{thing}: ").partition(" (Please ")[0]
    return UserStoreError(complain(thing, found, _NEEDS.get(type(error), expected)))
