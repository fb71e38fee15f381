"""The user store on LMDB: one environment, shared by the processes of a machine."""

import itertools
import logging
import math
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from lhydra.domain import Play, UserState
from lhydra.errors import DeadlineExceeded, UserStoreError, complain
from lhydra.users.record import UserRecord, unpack, user_key

_MAP_BYTES = 2**36 if sys.maxsize > 2**32 else 2**30  # address space, not disk: the file grows as needed
_LOAD_CHUNK = 1000  # users per write transaction: short, so that live plays get their turn
SYNC_S = 1.0
_log = logging.getLogger(__name__)


class LmdbUsers:
    """A user store in one LMDB environment, shared by the processes of a machine. Open it once per process.

    Args:
        path: the folder of the environment, created when absent.
        sync_s: seconds after a write at most until it is forced to disk; 0: before the write returns.

    Raises:
        UserStoreError: the folder cannot be opened, or holds something else.
    """

    def __init__(self, path: Path, *, sync_s: float = SYNC_S) -> None:
        self.path = path
        there = {one.name for one in path.iterdir()} - {"lost+found"} if path.is_dir() else set()
        if there and not there & {"lock.mdb", "data.mdb"}:  # the lock comes first where others open it at this moment
            expected = "an LMDB folder, an empty one or a free path"
            raise UserStoreError(complain(path, "a folder with other things in it", expected))
        try:
            self._env = lmdb.open(
                str(path),
                map_size=_MAP_BYTES,
                max_readers=1024,
                max_spare_txns=8,
                readahead=False,
                sync=sync_s <= 0,
                metasync=sync_s <= 0,
            )
            self._env.reader_check()  # slots of killed processes would keep old pages alive
        except (lmdb.Error, OSError) as error:
            raise UserStoreError(complain(path, str(error), "an LMDB folder that can be written")) from None
        self._sync_s = sync_s
        self._unsynced, self._closing = threading.Event(), threading.Event()
        self._syncer = threading.Thread(target=self._sync_in_groups, name="users-sync", daemon=True)
        if sync_s > 0:
            self._syncer.start()

    def get(self, user_id: str, deadline_s: float = math.inf) -> UserState | None:
        """See `UserStore.get`. LMDB readers never block, so the deadline has no effect.

        Args:
            user_id: whose.
            deadline_s: without effect.

        Returns:
            The state, None when the user is unknown.
        """
        try:
            with self._env.begin() as txn:
                packed: bytes | None = txn.get(user_key(user_id))
        except lmdb.Error as error:
            raise self._failed(error) from None
        return None if packed is None else unpack(packed, user_id).state

    def record(self, plays: Sequence[Play], deadline_s: float = math.inf) -> list[bool]:
        """See `UserStore.record`. LMDB's write lock has no timeout: taken after the deadline, it writes nothing.

        Args:
            plays: of any users.
            deadline_s: on the clock of `time.monotonic`.

        Returns:
            Whether each play was new, in order.
        """
        positions_of: dict[str, list[int]] = {}
        for position, play in enumerate(plays):
            positions_of.setdefault(play.user_id, []).append(position)
        fresh = [False] * len(plays)
        with self._writing(deadline_s) as txn:
            for user_id, positions in positions_of.items():
                new, flags = _stored(txn, user_id).with_plays([plays[position] for position in positions])
                for position, flag in zip(positions, flags, strict=True):
                    fresh[position] = flag
                if any(flags):
                    txn.put(user_key(user_id), new.pack())
        return fresh

    def load(self, states: Iterable[tuple[str, UserState]]) -> int:
        """See `UserStore.load`. Writes _LOAD_CHUNK users at a time: an error leaves those before it loaded.

        Args:
            states: (user id, state) pairs.

        Returns:
            How many users there were.
        """
        remaining, n_users = iter(states), 0
        while chunk := list(itertools.islice(remaining, _LOAD_CHUNK)):  # built before the lock is taken
            with self._writing() as txn:
                for user_id, state in chunk:
                    txn.put(user_key(user_id), _stored(txn, user_id).with_base(state).pack())
            n_users += len(chunk)
        return n_users

    def sample(self, n: int) -> list[UserState]:
        """See `UserStore.sample`.

        Args:
            n: how many at most.

        Returns:
            The states, spread over all users in order of their keys.
        """
        try:
            with self._env.begin() as txn, txn.cursor() as cursor:
                step = max(1, self._env.stat()["entries"] // max(1, n))
                keys = list(itertools.islice(cursor.iternext(values=False), 0, n * step, step))
                packed = [txn.get(key) for key in keys]
                return [unpack(bytes(value), "sampled").state for value in packed if value is not None]
        except lmdb.Error as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Forces everything to disk and releases the environment."""
        self._closing.set()
        self._unsynced.set()
        if self._syncer.is_alive():
            self._syncer.join()
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            raise self._failed(error) from None
        finally:
            self._env.close()

    @contextmanager
    def _writing(self, deadline_s: float = math.inf) -> Iterator[lmdb.Transaction]:
        """One write transaction: committed when the block ends, undone when it raises."""
        try:
            with self._env.begin(write=True) as txn:
                if time.monotonic() >= deadline_s:
                    raise DeadlineExceeded("the deadline passed while others wrote")
                yield txn
        except lmdb.Error as error:
            raise self._failed(error) from None
        self._unsynced.set()

    def _sync_in_groups(self) -> None:
        while not self._closing.is_set():
            self._unsynced.wait()
            self._closing.wait(self._sync_s)  # what is written meanwhile shares the flush
            self._unsynced.clear()
            try:
                self._env.sync(True)
            except lmdb.Error as error:
                _log.error("user store not flushed: %s", error, extra={"path": str(self.path)})

    def _failed(self, error: lmdb.Error) -> UserStoreError:
        return UserStoreError(complain(f"user store {self.path}", str(error), "a store that can be read and written"))


def _stored(txn: lmdb.Transaction, user_id: str) -> UserRecord:
    packed = txn.get(user_key(user_id))
    return UserRecord() if packed is None else unpack(bytes(packed), user_id)
