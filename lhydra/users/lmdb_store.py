"""The user store on LMDB: one environment, shared by the processes of a machine."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import lmdb

from lhydra.domain import Play, UserState
from lhydra.users.environment import Environment
from lhydra.users.heard import chunk_key
from lhydra.users.packed import (
    Change,
    chunk_of,
    in_order,
    loading,
    recordings,
    unpack,
    unpack_state,
    values,
    with_chunks,
)
from lhydra.users.record import UserRecord, user_key
from lhydra.users.stored import StoredUser, lows_of, stored_of

_LOAD_CHUNK = 1000  # users per write transaction: short, so that live plays get their turn
_LOAD_WAIT_S = 30.0  # for the write lock, which other processes take for moments
SYNC_S = 1.0


class LmdbUsers:
    """A user store in one LMDB environment, shared by the processes of a machine. Open it once per process.

    Args:
        path: the folder of the environment.
        sync_s: seconds after a write at most until it is forced to disk; 0: before the write returns.
        create: makes the store where there is none.
        lasting: raises nothing here; a store that cannot be opened, now or later, is tried again every second.
        identity: of the store that it must be; empty where any will do.
        doubtful: has the files of a lasting store read by a process of its own first.

    Raises:
        UserStoreError: the folder cannot be opened, or holds something else.
    """

    def __init__(
        self,
        path: Path,
        *,
        sync_s: float = SYNC_S,
        create: bool = True,
        lasting: bool = False,
        identity: str = "",
        doubtful: bool = False,
    ) -> None:
        self.path = path
        self._env = Environment(
            path, sync_s=sync_s, create=create, lasting=lasting, identity=identity, doubtful=doubtful
        )

    def get(self, user_id: str, deadline_s: float = math.inf) -> UserState | None:
        """See `UserStore.get`. LMDB readers never block, so the deadline has no effect.

        Args:
            user_id: whose.
            deadline_s: without effect.

        Returns:
            The state, None when the user is unknown.
        """
        with self._env.reading() as txn:
            return _whole(txn, user_key(user_id), user_id)

    def record(self, plays: Sequence[Play], deadline_s: float = math.inf) -> list[bool]:
        """See `UserStore.record`. Waits a second at most for other writers.

        Args:
            plays: of any users.
            deadline_s: on the clock of `time.monotonic`.

        Returns:
            Whether each play was new, in order.
        """
        changes = recordings(plays)

        def change(txn: lmdb.Transaction) -> list[bool]:
            return in_order(plays, {user_id: _changed(txn, user_id, own) for user_id, own in changes.items()})

        return self._env.write(change, deadline_s)

    def load(self, states: Iterable[tuple[str, UserState]]) -> int:
        """See `UserStore.load`. Writes _LOAD_CHUNK users at a time: an error leaves those before it loaded.

        Args:
            states: (user id, state) pairs.

        Returns:
            How many users there were.
        """
        remaining, n_users = iter(states), 0
        while chunk := list(itertools.islice(remaining, _LOAD_CHUNK)):  # built before the lock is taken
            self._env.write(partial(_load, chunk), wait_s=_LOAD_WAIT_S)
            n_users += len(chunk)
        return n_users

    def stored(self, user_id: str) -> StoredUser | None:
        """See `UserStore.stored`.

        Args:
            user_id: whose.

        Returns:
            The record with every heard track, None when the user is unknown.
        """
        key = user_key(user_id)
        with self._env.reading() as txn:
            if (packed := _get(txn, key)) is None:
                return None
            return stored_of(
                packed, [_get(txn, chunk_key(key, low)) for low in lows_of(packed, user_id) or ()], user_id
            )

    def delete(self, user_id: str) -> bool:
        """See `UserStore.delete`. The pages of the file keep what was there until they are used again.

        Args:
            user_id: whose.

        Returns:
            Whether there was anything.
        """
        deleted = self._env.write(partial(_delete, user_id), wait_s=_LOAD_WAIT_S)
        self._env.sync()
        return deleted

    def sample(self, n: int) -> list[UserState]:
        """See `UserStore.sample`.

        Args:
            n: how many at most.

        Returns:
            The states, spread over all users in order of their keys.
        """
        with self._env.reading() as txn, txn.cursor() as cursor:
            keys = list(_user_keys(cursor))
            chosen = keys[:: max(1, len(keys) // max(1, n))][:n]
            states = [_whole(txn, key, "sampled") for key in chosen]
        return [state for state in states if state is not None]

    def close(self) -> None:
        """Forces everything to disk and releases the environment."""
        self._env.close()


def _load(users: Sequence[tuple[str, UserState]], txn: lmdb.Transaction) -> None:
    for user_id, state in users:
        _changed(txn, user_id, loading([state]))


def _delete(user_id: str, txn: lmdb.Transaction) -> bool:
    key = user_key(user_id)
    if (packed := _get(txn, key)) is None:
        return False
    lows = lows_of(packed, user_id)
    chunks = _chunk_keys(txn, key) if lows is None else [chunk_key(key, low) for low in lows]
    for name in (key, *chunks):
        txn.delete(name)
    return True


def _chunk_keys(txn: lmdb.Transaction, key: bytes) -> list[bytes]:
    """The keys of a user's chunks, found among those of all whose id begins so: theirs are longer."""
    first = chunk_key(key, 0)
    with txn.cursor() as cursor:
        if not cursor.set_range(first[:-8]):
            return []
        same = itertools.takewhile(lambda name: name.startswith(first[:-8]), map(bytes, cursor.iternext(values=False)))
        return [name for name in same if len(name) == len(first)]


def _user_keys(cursor: lmdb.Cursor) -> Iterator[bytes]:
    """Keys of users' records; chunks begin with `~`, and no name of a database begins as a user's key does."""
    users = itertools.takewhile(lambda key: key < b"~", map(bytes, cursor.iternext(values=False)))
    return filter(lambda key: key[:1] in (b"h", b"u"), users)


def _get(txn: lmdb.Transaction, key: bytes) -> bytes | None:
    value = txn.get(key)
    return None if value is None else bytes(value)


def _whole(txn: lmdb.Transaction, key: bytes, user_id: str) -> UserState | None:
    """The state of a user with the heard tracks that lie in chunks, as of one moment."""
    if (packed := _get(txn, key)) is None:
        return None
    state, lows = unpack_state(packed, user_id)
    if not len(lows):
        return state
    return with_chunks(state, [_get(txn, chunk_key(key, low)) for low in lows.tolist()], user_id)


def _changed(txn: lmdb.Transaction, user_id: str, change: Change) -> list[bool]:
    """Changes the record of one user; returns what the change answers."""
    key = user_key(user_id)
    packed = _get(txn, key)
    record = UserRecord() if packed is None else unpack(packed, user_id)
    chunks = {low: chunk_of(_get(txn, chunk_key(key, low)), user_id) for low in record.places(change.heard)}
    new, flags = change.of(replace(record, chunks=chunks) if chunks else record)
    if any(flags):
        for place, value in values(new, key):
            txn.put(place, value)
    return flags
