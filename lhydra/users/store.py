"""The user store: profile, history and heard tracks of every user, shared by all workers of a machine.

Users arrive from prepared data (`load`) and from live traffic (`record`). Loading again replaces what was
loaded before; a live play is given up only once the loaded history has caught up with it, so nothing that
was recorded is lost. The store outlives bundles: it knows tracks by hash, never by row. What is kept of a
user, and how it changes, is in `lhydra.users.record`; here is where it is kept.
"""

import itertools
import logging
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import lmdb

from lhydra.domain import Play, UserState
from lhydra.errors import ConfigError, MissingExtra, UserStoreError, complain
from lhydra.users.record import UserRecord, unpack, user_key

SYNC_S = 1.0
_MAP_BYTES = 2**36 if sys.maxsize > 2**32 else 2**30  # address space, not disk: the file grows as needed
_LOAD_CHUNK = 1000  # users per write transaction: short, so that live plays get their turn
_log = logging.getLogger(__name__)


class UserStore(Protocol):
    """Where user state lives. Every method may raise UserStoreError; all may be called from any thread."""

    def get(self, user_id: str) -> UserState | None:
        """Returns the user's state, None when the user is unknown."""

    def record(self, plays: Sequence[Play]) -> list[bool]:
        """Records plays, all or none; False where the user's event id was seen before. Creates users."""

    def load(self, states: Iterable[tuple[str, UserState]]) -> int:
        """Loads users from prepared data, keeping live plays it does not cover; returns how many."""

    def sample(self, n: int) -> list[UserState]:
        """Returns the states of at most `n` users, spread over all of them; the same ones while nobody is added."""

    def close(self) -> None:
        """Releases the store, everything written."""


def open_users(url: str | None, store: Path, *, sync_s: float = SYNC_S) -> UserStore:
    """Opens the user store at `url`, by default the LMDB one inside the bundle store `store`.

    url: None, `lmdb:PATH`, `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, or `rediss://…` for the same over TLS.
    sync_s: at most so long after a write LMDB forces it to disk (0: before the write returns); what a killed
    process wrote survives in any case.

    Raises:
        ConfigError: a URL of no known kind, or a malformed one.
        MissingExtra: Redis, without the package that talks to it.
        UserStoreError: the folder cannot be opened. A Redis server that does not answer is no error here.
    """
    if url is None:
        return LmdbUsers(store / "users.lmdb", sync_s=sync_s)
    scheme, _, rest = url.partition(":")
    if scheme == "lmdb" and rest:
        return LmdbUsers(Path(rest), sync_s=sync_s)
    if scheme in ("redis", "rediss"):
        try:
            from lhydra.users.connections import Address
            from lhydra.users.redis_store import RedisUsers
        except ModuleNotFoundError as error:
            if error.name != "redis":
                raise
            raise MissingExtra("redis", "redis") from None
        return RedisUsers(Address.parse(url))
    found = f"an address of kind '{scheme}'"  # no more of it: it may hold a password
    raise ConfigError(complain("--users", found, "lmdb:PATH or redis://HOST"))


def shown(url: str) -> str:
    """Returns the address of a user store as it may be shown: without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url


class LmdbUsers:
    """A user store in one LMDB environment, shared by the processes of a machine. Open it once per process."""

    def __init__(self, path: Path, *, sync_s: float = SYNC_S) -> None:
        self.path = path
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

    def get(self, user_id: str) -> UserState | None:
        """Returns the user's state in read-only arrays of its own, None when the user is unknown."""
        try:
            with self._env.begin() as txn:
                packed: bytes | None = txn.get(user_key(user_id))
        except lmdb.Error as error:
            raise self._failed(error) from None
        return None if packed is None else unpack(packed, user_id).state

    def record(self, plays: Sequence[Play]) -> list[bool]:
        """Records plays in one transaction; False where the user's event id was seen before."""
        positions_of: dict[str, list[int]] = {}
        for position, play in enumerate(plays):
            positions_of.setdefault(play.user_id, []).append(position)
        fresh = [False] * len(plays)
        with self._writing() as txn:
            for user_id, positions in positions_of.items():
                new, flags = _stored(txn, user_id).with_plays([plays[position] for position in positions])
                for position, flag in zip(positions, flags, strict=True):
                    fresh[position] = flag
                if any(flags):
                    txn.put(user_key(user_id), new.pack())
        return fresh

    def load(self, states: Iterable[tuple[str, UserState]]) -> int:
        """Loads users from prepared data, keeping live plays it does not cover; returns how many."""
        remaining, n_users = iter(states), 0
        while chunk := list(itertools.islice(remaining, _LOAD_CHUNK)):  # built before the lock is taken
            with self._writing() as txn:
                for user_id, state in chunk:
                    txn.put(user_key(user_id), _stored(txn, user_id).with_base(state).pack())
            n_users += len(chunk)
        return n_users

    def sample(self, n: int) -> list[UserState]:
        """Returns the states of at most `n` users, spread over all of them in order of their ids."""
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
    def _writing(self) -> Iterator[lmdb.Transaction]:
        """One write transaction: committed when the block ends, undone when it raises."""
        try:
            with self._env.begin(write=True) as txn:
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
