"""The user store on Redis, for servers on several machines: the records that LMDB would hold, one value per user.

A request waits READ_S for it at most, and not at all while the circuit breaker is open. A key beside the users holds
the store's id, which is read with every user: a database that was emptied, or is another one, is no store of nobody.
"""

import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from lhydra.domain import Hashes, Play, UserState
from lhydra.events import redis_log
from lhydra.events.event import Event
from lhydra.events.log import EventLogInfo, LaterPlays, opened, positions_of
from lhydra.users.connections import Address, limit
from lhydra.users.heard import chunk_key
from lhydra.users.packed import (
    Change,
    chunk_of,
    in_order,
    loading,
    recordings,
    unpack,
    values,
)
from lhydra.users.record import UserRecord, user_key
from lhydra.users.redis_guard import GuardedServer
from lhydra.users.redis_values import IDENTITY, Command, ask, chunk_names, identified, name_of, sampled, searched, whole
from lhydra.users.stored import StoredUser, lows_of, stored_of

READ_S = 0.02  # a request waits so long for its user
WRITE_S = 0.1  # for each of the two round trips of `record`
SEARCH_S = 0.5  # for all round trips of a search, each WRITE_S at most
BULK_S = 5.0  # for each round trip of what no request waits for
CONTENDED_S = 1.0  # how long `record` tries to write what others keep writing too
BULK_CONTENDED_S = 30.0  # the same for `load`
CLAIM_S = 1.0  # a server that starts waits so long
_GET_IDENTITY = b"*2\r\n$3\r\nGET\r\n$9\r\nlhydra:id\r\n"  # as it is sent: packing it for each request takes 10 us
_LOAD_CHUNK = 200  # users per transaction: short, so that live plays seldom come between

T = TypeVar("T")


class RedisUsers(GuardedServer):
    """A user store in one database of a Redis server, shared by any number of machines.

    Opening it asks nothing of the server: one that cannot be reached, now or later, makes every method raise
    UserStoreError within its time; after some failures in a row at once, until the server answers again.

    Args:
        address: of the server.
        identity: of the store that it must be; empty: the one found first; None: any, at any time.
        clock: monotonic, in seconds, for the circuit breaker.
        events: has recorded plays enter the event log.
        events_keep_ms: milliseconds after which entries of the log may be removed; 0: never.
    """

    def __init__(
        self,
        address: Address,
        *,
        identity: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        events: bool = True,
        events_keep_ms: int = 0,
    ) -> None:
        super().__init__(address, identity, clock)
        self._events, self._keep_ms = events, events_keep_ms

    def get(self, user_id: str, deadline_s: float = math.inf) -> UserState | None:
        """See `UserStore.get`: one round trip, for a user whose heard tracks lie in chunks two, within READ_S.

        Args:
            user_id: whose.
            deadline_s: on the clock of `time.monotonic`.

        Returns:
            The state, None when the user is unknown.
        """
        until_s = min(time.monotonic() + READ_S, deadline_s)
        with self._connection(READ_S, deadline_s) as connection:
            name = name_of(user_key(user_id))
            connection.send_packed_command([_GET_IDENTITY + b"".join(connection.pack_command("GET", name))])
            identity, packed = connection.read_response(), connection.read_response()
            state = whole(connection, name, packed, user_id, until_s)
        self._check(identity)
        return state

    def search(self, prefix: str, n: int, deadline_s: float = math.inf) -> tuple[list[str], bool]:
        """See `UserStore.search`. Looks through the keys of the database for SEARCH_S at most.

        Args:
            prefix: what the ids begin with; empty for any.
            n: how many at most.
            deadline_s: on the clock of `time.monotonic`.

        Returns:
            Some of them, and whether there are, or may be, others.
        """
        with self._connection(WRITE_S, deadline_s) as connection:
            until_s = min(time.monotonic() + SEARCH_S, deadline_s)
            identity, ids, more = searched(connection, prefix, n, until_s)
        self._check(identity)
        return ids, more

    def record(self, plays: Sequence[Play], deadline_s: float = math.inf) -> list[bool]:
        """See `UserStore.record`.

        Optimistic locking: Redis takes the plays only if the records that they were added to are still the stored
        ones; else the call reads again and retries, for at most CONTENDED_S. Where an error leaves open whether the
        plays were taken, the same call again counts nothing twice.

        Args:
            plays: of any users.
            deadline_s: on the clock of `time.monotonic`.

        Returns:
            Whether each play was new, in order.
        """
        return in_order(
            plays, self._change(recordings(plays), WRITE_S, CONTENDED_S, deadline_s, plays if self._events else ())
        )

    def load(self, states: Iterable[tuple[str, UserState]], logged: str | None = None) -> int:
        """See `UserStore.load`. Writes _LOAD_CHUNK users at a time: an error leaves those before it loaded.

        Args:
            states: (user id, state) pairs.
            logged: the position up to which the data hold the event log.

        Returns:
            How many users there were.
        """
        with self._connection(BULK_S) as connection:
            ask(connection, ("PING",))  # the first users may take long to come: better to know at once
        remaining, n_users, later = iter(states), 0, LaterPlays(self.events, logged)
        while chunk := list(itertools.islice(remaining, _LOAD_CHUNK)):
            bases: dict[str, list[UserState]] = {}
            for user_id, state in chunk:
                bases.setdefault(user_id, []).append(state)
            changes = {user_id: loading(given, partial(later.of, user_id)) for user_id, given in bases.items()}
            self._change(changes, BULK_S, BULK_CONTENDED_S)
            n_users += len(chunk)
        return n_users

    def stored(self, user_id: str) -> StoredUser | None:
        """See `UserStore.stored`.

        Args:
            user_id: whose.

        Returns:
            The record with every heard track, None when the user is unknown.
        """
        return self._undisturbed(
            user_id, lambda packed, names, chunks: (None if packed is None else stored_of(packed, chunks, user_id), [])
        )[0]

    def delete(self, user_id: str) -> bool:
        """See `UserStore.delete`. A damaged record has all keys of the database looked through for its chunks.

        The log is read up to where it ended when the record went: what comes later begins anew.

        Args:
            user_id: whose.

        Returns:
            Whether there was anything.
        """
        deleted, (_, ends) = self._undisturbed(
            user_id, lambda packed, names, chunks: (packed is not None, [("DEL", *names), redis_log.LAST])
        )
        for chunk in self.entries("", redis_log.read(ends)[0][0] if ends else "0"):
            if found := positions_of(chunk, user_id):
                with self._connection(BULK_S) as connection:
                    deleted |= ask(connection, ("XDEL", redis_log.NAME, *found))[0] > 0
        return deleted

    def events(
        self, after: str = "", until: str | None = None, user_id: str | None = None
    ) -> Iterator[list[tuple[str, Event]]]:
        """See `UserStore.events`. Each chunk is one round trip.

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

    def event_log(self) -> EventLogInfo:
        """See `UserStore.event_log`.

        Returns:
            Its size and its ends; the room that Redis says it takes.
        """
        with self._connection(WRITE_S) as connection:
            identity, *replies = ask(connection, ("GET", IDENTITY), *redis_log.MEASURING)
        self._check(identity)
        return redis_log.measured(identity or b"", replies, self._events)

    def prune(self, before_ms: int) -> int:
        """See `UserStore.prune`.

        Args:
            before_ms: Unix milliseconds.

        Returns:
            How many entries were removed.
        """
        n_removed = 0
        for chunk in self.entries("", None):
            if old := redis_log.oldest(chunk, before_ms):
                with self._connection(BULK_S) as connection:
                    n_removed += ask(connection, ("XDEL", redis_log.NAME, *old))[0]
            if len(old) < len(chunk):
                break
        return n_removed

    def entries(self, after: str = "", until: str | None = None) -> Iterator[list[tuple[str, bytes]]]:
        """See `UserStore.entries`. Each chunk is one round trip.

        Args:
            after: the position before the first entry; empty for the first of all.
            until: the last position that is wanted; None for the end.

        Yields:
            Positions and packed events.
        """
        while True:
            with self._connection(BULK_S) as connection:
                identity, reply = ask(connection, ("GET", IDENTITY), redis_log.reading(after, until))
            self._check(identity)
            if not (chunk := redis_log.read(reply)):
                return
            yield chunk
            after, _ = chunk[-1]

    def sample(self, n: int) -> list[UserState]:
        """See `UserStore.sample`. Scans every key of the database, and holds those of all users in memory.

        Args:
            n: how many at most.

        Returns:
            The states, spread over all users in order of their keys.
        """
        with self._connection(BULK_S) as connection:
            return sampled(connection, n, BULK_S)

    def claim(self) -> tuple[str, bool]:
        """Gives the store an id where it has none.

        Returns:
            The id, and whether the database was empty.

        Raises:
            UserStoreError: the server does not answer within CLAIM_S, or takes nothing.
        """
        with self._connection(CLAIM_S) as connection:
            found, n_keys = ask(connection, ("GET", IDENTITY), ("DBSIZE",))
            if found is None:
                _, found = ask(connection, identified(), ("GET", IDENTITY))
        return found.decode(errors="replace"), not n_keys

    def _undisturbed(
        self, user_id: str, of: Callable[[bytes | None, list[bytes], list[bytes | None]], tuple[T, list[Command]]]
    ) -> tuple[T, list[Any]]:
        """Does something with all values of a user, as of one moment: again, where others wrote meanwhile.

        of: the record, names of all keys, values of the chunks -> the result, and what to write, whose answers follow.
        """
        key, give_up = user_key(user_id), time.monotonic() + BULK_CONTENDED_S
        while time.monotonic() < give_up:
            with self._connection(BULK_S) as connection:
                _, packed = ask(connection, ("WATCH", name_of(key)), ("GET", name_of(key)))
                lows = lows_of(packed, user_id) if packed is not None else []
                names = [name_of(chunk_key(key, low)) for low in lows or ()]
                if lows is None:
                    names = chunk_names(connection, key)
                chunks: list[bytes | None] = ask(connection, ("MGET", *names))[0] if names else []
                if None in chunks and ask(connection, ("GET", name_of(key)))[0] != packed:
                    ask(connection, ("UNWATCH",))  # deleted between the two reads
                    continue
                result, writes = of(packed, [name_of(key), *names], chunks)
                if (answers := ask(connection, ("MULTI",), *writes, ("EXEC",))[-1]) is not None:
                    return result, answers
        raise self._failed(f"other writers for {BULK_CONTENDED_S:g} s")

    def _change(
        self,
        changes: Mapping[str, Change],
        budget_s: float,
        contended_s: float,
        deadline_s: float = math.inf,
        logged: Sequence[Play] = (),
    ) -> dict[str, list[bool]]:
        """Changes the records of users, all or none; returns what the changes say of each.

        Retries while others write the same users between reading and writing, until `contended_s` or the caller's
        deadline has passed. A retry computes only the records whose stored value changed, so that small calls do not
        starve a big one. budget_s: seconds for each round trip. logged: plays that enter the log where they are new.
        """
        if not changes:
            return {}
        give_up = time.monotonic() + contended_s
        keys = [user_key(user_id) for user_id in changes]
        names = [name_of(key) for key in keys]
        done: dict[str, tuple[bytes | None, list[tuple[bytes, bytes]], list[bool]]] = {}  # stored, to store, flags
        for attempt in itertools.count():
            with self._connection(budget_s, deadline_s) as connection:
                first: list[Command] = [("WATCH", IDENTITY, *names), ("MGET", IDENTITY, *names)]
                if logged:
                    first.append(("XLEN", redis_log.NAME))  # fails here if it is no log: a transaction undoes nothing
                identity, *stored = ask(connection, *first)[1]
                self._check(identity)
                todo = {
                    user_id: UserRecord() if packed is None else unpack(packed, user_id)
                    for user_id, packed in zip(changes, stored, strict=True)
                    if user_id not in done or done[user_id][0] != packed
                }
                places = [(user_id, low) for user_id in todo for low in todo[user_id].places(changes[user_id].heard)]
                wanted = [name_of(chunk_key(user_key(user_id), low)) for user_id, low in places]
                found: list[bytes | None] = []
                if wanted:
                    limit(connection, self._left(budget_s, deadline_s))
                    found = ask(connection, ("WATCH", *wanted), ("MGET", *wanted))[1]
                if None in found and ask(connection, ("MGET", *names))[0] != stored:  # deleted between the two reads
                    ask(connection, ("UNWATCH",))
                else:
                    chunks: dict[str, dict[int, Hashes]] = {}
                    for (user_id, low), packed in zip(places, found, strict=True):
                        chunks.setdefault(user_id, {})[low] = chunk_of(packed, user_id)
                    for (user_id, change), key, packed in zip(changes.items(), keys, stored, strict=True):
                        if user_id in todo:
                            record, flags = change.of(replace(todo[user_id], chunks=chunks.get(user_id, {})))
                            done[user_id] = packed, list(values(record, key)) if any(flags) else [], flags
                    writes: list[Command] = [
                        ("SET", name_of(key), value) for _, new, _ in done.values() for key, value in new
                    ]
                    limit(connection, self._left(budget_s, deadline_s))
                    if not writes:
                        ask(connection, ("UNWATCH",))
                        break
                    if logged:
                        fresh = in_order(logged, {user_id: flags for user_id, (_, _, flags) in done.items()})
                        writes += redis_log.adding(list(itertools.compress(logged, fresh)), self._keep_ms)
                    if identity is None:
                        writes.append(identified())
                    if ask(connection, ("MULTI",), *writes, ("EXEC",))[-1] is not None:
                        break
            if time.monotonic() >= min(give_up, deadline_s):
                self._left(budget_s, deadline_s)
                raise self._failed(f"other writers for {contended_s:g} s")
            time.sleep(min(random.uniform(0, 0.001 * 2 ** min(attempt, 4)), self._left(budget_s, deadline_s)))
        return {user_id: flags for user_id, (_, _, flags) in done.items()}
