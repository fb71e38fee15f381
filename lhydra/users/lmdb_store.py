"""The user store on LMDB: one environment, shared by the processes of a machine."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import lmdb

from lhydra import kernels
from lhydra.domain import Play, UserState
from lhydra.events import lmdb_log
from lhydra.events.event import Event, now_ms, pack
from lhydra.events.log import CHUNK, EventLogInfo, LaterPlays, opened, place, positions_of
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
from lhydra.users.record import UserRecord, is_named, user_key
from lhydra.users.stored import StoredUser, lows_of, stored_of

_LOAD_CHUNK = 1000  # users per write transaction: short, so that live plays get their turn
_LOAD_WAIT_S = 30.0  # for the write lock, which other processes take for moments
SYNC_S = 1.0
_END = 2**64 - 1  # no entry of the log has a higher number


class LmdbUsers:
    """A user store in one LMDB environment, shared by the processes of a machine. Open it once per process.

    Args:
        path: the folder of the environment.
        sync_s: seconds after a write at most until it is forced to disk; 0: before the write returns.
        create: makes the store where there is none.
        lasting: raises nothing here; a store that cannot be opened, now or later, is tried again every second.
        identity: of the store that it must be; empty where any will do.
        doubtful: has the files of a lasting store read by a process of its own first.
        events: has recorded plays enter the event log.
        events_keep_ms: milliseconds after which entries of the log may be removed; 0: never.

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
        events: bool = True,
        events_keep_ms: int = 0,
    ) -> None:
        self.path, self._events, self._keep_ms = path, events, events_keep_ms
        self._env = Environment(
            path,
            sync_s=sync_s,
            create=create,
            lasting=lasting,
            identity=identity,
            doubtful=doubtful,
            unchanged=None if kernels.compiled is None else kernels.compiled.unchanged,
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

    def search(self, prefix: str, n: int, deadline_s: float = math.inf) -> tuple[list[str], bool]:
        """See `UserStore.search`. Looks at n + 1 keys, which lie in order.

        Args:
            prefix: what the ids begin with; empty for any.
            n: how many at most.
            deadline_s: without effect.

        Returns:
            The first of them, and whether there are others.
        """
        first = user_key(prefix)
        with self._env.reading() as txn, txn.cursor() as cursor:
            if not is_named(first):
                return [prefix] * (_get(txn, first) is not None), False
            if not cursor.set_range(first):
                return [], False
            keys = map(bytes, cursor.iternext(values=False))
            found = list(itertools.islice(itertools.takewhile(lambda key: key.startswith(first), keys), n + 1))
        return [key[1:].decode(errors="replace") for key in found[:n]], len(found) > n

    def record(self, plays: Sequence[Play], deadline_s: float = math.inf) -> list[bool]:
        """See `UserStore.record`. Waits a second at most for other writers.

        Args:
            plays: of any users.
            deadline_s: on the clock of `time.monotonic`.

        Returns:
            Whether each play was new, in order.
        """
        changes = recordings(plays)
        log = self._env.database(lmdb_log.NAME, True, deadline_s) if self._events else None

        def change(txn: lmdb.Transaction) -> list[bool]:
            fresh = in_order(plays, {user_id: _changed(txn, user_id, own) for user_id, own in changes.items()})
            if log is not None and any(fresh):
                now = now_ms()
                entries = [pack(play, now) for play, new in zip(plays, fresh, strict=True) if new]
                lmdb_log.append(txn, log, entries, now - self._keep_ms if self._keep_ms else 0)
            return fresh

        return self._env.write(change, deadline_s)

    def load(self, states: Iterable[tuple[str, UserState]], logged: str | None = None) -> int:
        """See `UserStore.load`. Writes _LOAD_CHUNK users at a time: an error leaves those before it loaded.

        Args:
            states: (user id, state) pairs.
            logged: the position up to which the data hold the event log.

        Returns:
            How many users there were.
        """
        remaining, n_users, later = iter(states), 0, LaterPlays(self.events, logged)
        while chunk := list(itertools.islice(remaining, _LOAD_CHUNK)):  # built before the lock is taken
            self._env.write(partial(_load, chunk, later), wait_s=_LOAD_WAIT_S)
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

        The log is read in short transactions, up to where it ended when the record went: what comes later begins anew.

        Args:
            user_id: whose.

        Returns:
            Whether there was anything.
        """
        log = self._env.database(lmdb_log.NAME, create=True)
        assert log is not None
        deleted, end = self._env.write(
            lambda txn: (_delete(user_id, txn), lmdb_log.last(txn, log)), wait_s=_LOAD_WAIT_S
        )
        for chunk in self._chunks(1, end):
            if found := positions_of(chunk, user_id):
                deleted |= self._env.write(partial(_remove, log, found), wait_s=_LOAD_WAIT_S) > 0
        self._env.sync()
        return deleted

    def events(
        self, after: str = "", until: str | None = None, user_id: str | None = None
    ) -> Iterator[list[tuple[str, Event]]]:
        """See `UserStore.events`. Each chunk is read in a transaction of its own, so that no page stays in use.

        Args:
            after: the position before the first entry; empty for the first of all.
            until: the last position that is wanted; None for the end.
            user_id: whose; None for everybody's.

        Yields:
            Entries with their positions.
        """
        for chunk in self.entries(after, until):
            if entries := list(opened(chunk, user_id)):
                yield entries

    def entries(self, after: str = "", until: str | None = None) -> Iterator[list[tuple[str, bytes]]]:
        """See `UserStore.entries`.

        Args:
            after: the position before the first entry; empty for the first of all.
            until: the last position that is wanted; None for the end.

        Returns:
            Chunks of positions and packed events.
        """
        return self._chunks(place(after)[0] + 1 if after else 1, _END if until is None else place(until)[0])

    def event_log(self) -> EventLogInfo:
        """See `UserStore.event_log`.

        Returns:
            Its size, its ends, and the room in the file.
        """
        log = self._env.database(lmdb_log.NAME, create=self._events)  # once, rather than looked for again and again
        if log is None:
            return EventLogInfo(self._env.identity, recording=False)
        with self._env.reading() as txn:
            info, pages = lmdb_log.measured(txn, log, self._env.identity)
        return replace(info, free_bytes=self._env.free_bytes(pages), recording=self._events)

    def prune(self, before_ms: int) -> int:
        """See `UserStore.prune`.

        Args:
            before_ms: Unix milliseconds.

        Returns:
            How many entries were removed.
        """
        log = self._env.database(lmdb_log.NAME, create=False)
        n_removed = 0
        while log is not None and (n := self._env.write(partial(_prune, log, before_ms), wait_s=_LOAD_WAIT_S)):
            n_removed += n
        return n_removed

    def _chunks(self, first: int, last: int) -> Iterator[list[tuple[str, bytes]]]:
        while (log := self._env.database(lmdb_log.NAME, create=False)) is not None:
            with self._env.reading() as txn:
                chunk = lmdb_log.read(txn, log, first, last, CHUNK)
            if not chunk:
                return
            yield chunk
            first = int(chunk[-1][0]) + 1

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


def _load(users: Sequence[tuple[str, UserState]], later: LaterPlays, txn: lmdb.Transaction) -> None:
    for user_id, state in users:
        _changed(txn, user_id, loading([state], partial(later.of, user_id)))


def _remove(log: lmdb_log.Log, positions: Sequence[str], txn: lmdb.Transaction) -> int:
    return lmdb_log.remove(txn, log, positions)


def _prune(log: lmdb_log.Log, before_ms: int, txn: lmdb.Transaction) -> int:
    return lmdb_log.remove(txn, log, lmdb_log.oldest(txn, log, before_ms, CHUNK))


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
