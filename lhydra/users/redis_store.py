"""The user store on Redis, for servers on several machines: the records that LMDB would hold, one value per user.

A request waits READ_S for it at most, and not at all while the circuit breaker is open. A key beside the users holds
the store's id, which is read with every user: a database that was emptied, or is another one, is no store of nobody.
"""

import itertools
import math
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import redis

from lhydra.domain import Hashes, Play, UserState, no_hashes
from lhydra.errors import DeadlineExceeded, UserStoreError, complain
from lhydra.users.breaker import Breaker, BreakerOpen
from lhydra.users.connections import Address, Connections, limit
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

READ_S = 0.02  # a request waits so long for its user
WRITE_S = 0.1  # for each of the two round trips of `record`
BULK_S = 5.0  # for each round trip of what no request waits for
CONTENDED_S = 1.0  # how long `record` tries to write what others keep writing too
BULK_CONTENDED_S = 30.0  # the same for `load`
CLAIM_S = 1.0  # a server that starts waits so long
_PREFIX, _PATTERN, _CHUNKS, _IDENTITY = b"lhydra:", b"lhydra:[uh]:*", b"lhydra:~:*", b"lhydra:id"
_GET_IDENTITY = b"*2\r\n$3\r\nGET\r\n$9\r\nlhydra:id\r\n"  # as it is sent: packing it for each request takes 10 us
_LOAD_CHUNK = 200  # users per transaction: short, so that live plays seldom come between
_READ_CHUNK = 50
_UNREACHED = (redis.ConnectionError, redis.TimeoutError)

Command = tuple[str | bytes | int, ...]
T = TypeVar("T")


class RedisUsers:
    """A user store in one database of a Redis server, shared by any number of machines.

    Opening it asks nothing of the server: one that cannot be reached, now or later, makes every method raise
    UserStoreError within its time; after some failures in a row at once, until the server answers again.

    Args:
        address: of the server.
        identity: of the store that it must be; empty: the one found first; None: any, at any time.
        clock: monotonic, in seconds, for the circuit breaker.
    """

    def __init__(
        self, address: Address, *, identity: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.address, self.identity = address, identity
        self.breaker = Breaker(f"user store {address}", _UNREACHED, clock=clock)
        self._connections = Connections(address)
        self._connections.prepare()

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
            name = _name(user_key(user_id))
            connection.send_packed_command([_GET_IDENTITY + b"".join(connection.pack_command("GET", name))])
            identity, packed = connection.read_response(), connection.read_response()
            state = _whole(connection, name, packed, user_id, until_s)
        self._check(identity)
        return state

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
        return in_order(plays, self._change(recordings(plays), WRITE_S, CONTENDED_S, deadline_s))

    def load(self, states: Iterable[tuple[str, UserState]]) -> int:
        """See `UserStore.load`. Writes _LOAD_CHUNK users at a time: an error leaves those before it loaded.

        Args:
            states: (user id, state) pairs.

        Returns:
            How many users there were.
        """
        with self._connection(BULK_S) as connection:
            _ask(connection, ("PING",))  # the first users may take long to come: better to know at once
        remaining, n_users = iter(states), 0
        while chunk := list(itertools.islice(remaining, _LOAD_CHUNK)):
            bases: dict[str, list[UserState]] = {}
            for user_id, state in chunk:
                bases.setdefault(user_id, []).append(state)
            self._change({user_id: loading(given) for user_id, given in bases.items()}, BULK_S, BULK_CONTENDED_S)
            n_users += len(chunk)
        return n_users

    def stored(self, user_id: str) -> StoredUser | None:
        """See `UserStore.stored`.

        Args:
            user_id: whose.

        Returns:
            The record with every heard track, None when the user is unknown.
        """
        return self._undisturbed(user_id, lambda packed, names, chunks: (stored_of(packed, chunks, user_id), []))

    def delete(self, user_id: str) -> bool:
        """See `UserStore.delete`. A damaged record has all keys of the database looked through for its chunks.

        Args:
            user_id: whose.

        Returns:
            Whether there was anything.
        """
        return self._undisturbed(user_id, lambda packed, names, chunks: (True, [("DEL", *names)])) or False

    def sample(self, n: int) -> list[UserState]:
        """See `UserStore.sample`. Scans every key of the database, and holds those of all users in memory.

        Args:
            n: how many at most.

        Returns:
            The states, spread over all users in order of their keys.
        """
        with self._connection(BULK_S) as connection:
            keys: set[bytes] = set()
            cursor = b"0"
            while True:
                ((cursor, found),) = _ask(connection, ("SCAN", cursor, "MATCH", _PATTERN, "COUNT", 1000))
                keys.update(found)
                if cursor == b"0":
                    break
            chosen = sorted(keys)[:: max(1, len(keys) // max(1, n))][:n]
            states: list[UserState | None] = []
            for i in range(0, len(chosen), _READ_CHUNK):
                some = chosen[i : i + _READ_CHUNK]
                (packed,) = _ask(connection, ("MGET", *some))
                until_s = time.monotonic() + BULK_S
                states += [
                    _whole(connection, name, value, "sampled", until_s)
                    for name, value in zip(some, packed, strict=True)
                ]
        return [state for state in states if state is not None]

    def claim(self) -> tuple[str, bool]:
        """Gives the store an id where it has none.

        Returns:
            The id, and whether the database was empty.

        Raises:
            UserStoreError: the server does not answer within CLAIM_S, or takes nothing.
        """
        with self._connection(CLAIM_S) as connection:
            found, n_keys = _ask(connection, ("GET", _IDENTITY), ("DBSIZE",))
            if found is None:
                _, found = _ask(connection, _identified(), ("GET", _IDENTITY))
        return found.decode(errors="replace"), not n_keys

    def close(self) -> None:
        """Closes the connections; the server makes its data durable by its own settings."""
        self._connections.close()

    def _undisturbed(
        self, user_id: str, of: Callable[[bytes, list[bytes], list[bytes | None]], tuple[T, list[Command]]]
    ) -> T | None:
        """Does something with all values of a user, as of one moment: again, where others wrote meanwhile.

        of: the record, the names of all keys, the values of the chunks -> the result, and what to write; it is not
        called where there is no record.
        """
        key, give_up = user_key(user_id), time.monotonic() + BULK_CONTENDED_S
        while time.monotonic() < give_up:
            with self._connection(BULK_S) as connection:
                _, packed = _ask(connection, ("WATCH", _name(key)), ("GET", _name(key)))
                if packed is None:
                    _ask(connection, ("UNWATCH",))
                    return None
                lows = lows_of(packed, user_id)
                names = [_name(chunk_key(key, low)) for low in lows or ()]
                if lows is None:
                    names = _chunk_names(connection, key)
                chunks: list[bytes | None] = _ask(connection, ("MGET", *names))[0] if names else []
                if None in chunks and _ask(connection, ("GET", _name(key)))[0] != packed:
                    _ask(connection, ("UNWATCH",))  # deleted between the two reads
                    continue
                result, writes = of(packed, [_name(key), *names], chunks)
                if _ask(connection, ("MULTI",), *writes, ("EXEC",))[-1] is not None:
                    return result
        raise self._failed(f"other writers for {BULK_CONTENDED_S:g} s")

    def _change(
        self, changes: Mapping[str, Change], budget_s: float, contended_s: float, deadline_s: float = math.inf
    ) -> dict[str, list[bool]]:
        """Changes the records of users, all or none; returns what the changes say of each.

        Retries while others write the same users between reading and writing, until `contended_s` or the caller's
        deadline has passed. A retry computes only the records whose stored value changed, so that small calls do not
        starve a big one. budget_s: seconds for each round trip.
        """
        if not changes:
            return {}
        give_up = time.monotonic() + contended_s
        keys = [user_key(user_id) for user_id in changes]
        names = [_name(key) for key in keys]
        done: dict[str, tuple[bytes | None, list[tuple[bytes, bytes]], list[bool]]] = {}  # stored, to store, flags
        for attempt in itertools.count():
            with self._connection(budget_s, deadline_s) as connection:
                _, (identity, *stored) = _ask(connection, ("WATCH", _IDENTITY, *names), ("MGET", _IDENTITY, *names))
                self._check(identity)
                todo = {
                    user_id: UserRecord() if packed is None else unpack(packed, user_id)
                    for user_id, packed in zip(changes, stored, strict=True)
                    if user_id not in done or done[user_id][0] != packed
                }
                places = [(user_id, low) for user_id in todo for low in todo[user_id].places(changes[user_id].heard)]
                wanted = [_name(chunk_key(user_key(user_id), low)) for user_id, low in places]
                found: list[bytes | None] = []
                if wanted:
                    limit(connection, self._left(budget_s, deadline_s))
                    found = _ask(connection, ("WATCH", *wanted), ("MGET", *wanted))[1]
                if None in found and _ask(connection, ("MGET", *names))[0] != stored:  # deleted between the two reads
                    _ask(connection, ("UNWATCH",))
                else:
                    chunks: dict[str, dict[int, Hashes]] = {}
                    for (user_id, low), packed in zip(places, found, strict=True):
                        chunks.setdefault(user_id, {})[low] = chunk_of(packed, user_id)
                    for (user_id, change), key, packed in zip(changes.items(), keys, stored, strict=True):
                        if user_id in todo:
                            record, flags = change.of(replace(todo[user_id], chunks=chunks.get(user_id, {})))
                            done[user_id] = packed, list(values(record, key)) if any(flags) else [], flags
                    writes: list[Command] = [
                        ("SET", _name(key), value) for _, new, _ in done.values() for key, value in new
                    ]
                    limit(connection, self._left(budget_s, deadline_s))
                    if not writes:
                        _ask(connection, ("UNWATCH",))
                        break
                    if identity is None:
                        writes.append(_identified())
                    if _ask(connection, ("MULTI",), *writes, ("EXEC",))[-1] is not None:
                        break
            if time.monotonic() >= min(give_up, deadline_s):
                self._left(budget_s, deadline_s)
                raise self._failed(f"other writers for {contended_s:g} s")
            time.sleep(min(random.uniform(0, 0.001 * 2 ** min(attempt, 4)), self._left(budget_s, deadline_s)))
        return {user_id: flags for user_id, (_, _, flags) in done.items()}

    @contextmanager
    def _connection(self, budget_s: float, deadline_s: float = math.inf) -> Iterator[redis.Connection]:
        wait_s = self._left(budget_s, deadline_s)
        try:
            with self.breaker.attempt():
                try:
                    with self._connections.use(wait_s) as connection:
                        yield connection
                except redis.TimeoutError:
                    self._left(budget_s, deadline_s)  # the caller's time may have ended first: no fault of the server
                    raise
        except BreakerOpen:
            raise self._failed("no answer a moment ago") from None
        except redis.RedisError as error:
            raise self._failed(_reason(error, budget_s)) from None

    def _check(self, found: bytes | None) -> None:
        """Raises where the store is another one than it was."""
        identity = (found or b"").decode(errors="replace")
        if self.identity == "":
            self.identity = identity
        if self.identity not in (None, identity):
            expected = f"store {self.identity}, which was served: put it back, or restart the server"
            there = f"store {identity}" if identity else "no store: the database was emptied, or is another one"
            raise UserStoreError(complain(f"user store {self.address}", there, expected))

    def _left(self, budget_s: float, deadline_s: float) -> float:
        """How long to wait for one step: the budget, or what is left to the caller, in seconds above 0."""
        if (left_s := deadline_s - time.monotonic()) <= 0:
            raise DeadlineExceeded(f"the deadline passed while user store {self.address} was asked")
        return min(budget_s, left_s)

    def _failed(self, found: str) -> UserStoreError:
        return UserStoreError(complain(f"user store {self.address}", found, "a Redis server that answers"))


def _identified() -> Command:
    """The command that gives a store its id, where it has none."""
    return "SET", _IDENTITY, secrets.token_hex(8), "NX"


def _ask(connection: redis.Connection, *commands: Command) -> list[Any]:
    """Sends all commands at once and returns their answers: one round trip."""
    connection.send_packed_command(connection.pack_commands(commands))
    return [connection.read_response() for _ in commands]


def _chunk_names(connection: redis.Connection, key: bytes) -> list[bytes]:
    """The keys of a user's chunks, found among all keys of the database; those of a longer id are longer."""
    first, found, cursor = _name(chunk_key(key, 0)), set[bytes](), b"0"
    while True:
        ((cursor, some),) = _ask(connection, ("SCAN", cursor, "MATCH", _CHUNKS, "COUNT", 1000))
        found.update(name for name in some if name.startswith(first[:-8]) and len(name) == len(first))
        if cursor == b"0":
            return sorted(found)


def _whole(
    connection: redis.Connection, name: bytes, packed: bytes | None, user_id: str, until_s: float
) -> UserState | None:
    """The state of a record with the heard tracks that lie in chunks, as of one moment: writers may come between."""
    read, at = no_hashes(), list[bytes | None]()
    while packed is not None:
        state, lows = unpack_state(packed, user_id)
        if not len(lows):
            return state
        if np.array_equal(lows, read):
            return with_chunks(state, at, user_id)
        if (left_s := until_s - time.monotonic()) <= 0:
            raise redis.TimeoutError
        limit(connection, left_s)
        key = name.removeprefix(_PREFIX).replace(b":", b"", 1)
        ((packed, *at),) = _ask(connection, ("MGET", name, *(_name(chunk_key(key, low)) for low in lows.tolist())))
        read = lows
    return None


def _name(key: bytes) -> bytes:
    """`lhydra:u:ID`, `lhydra:h:DIGEST` for a very long id, `lhydra:~:…` for a chunk: other things may lie there too."""
    return _PREFIX + key[:1] + b":" + key[1:]


def _reason(error: redis.RedisError, budget_s: float) -> str:
    """What went wrong, in words that cannot hold a password: servers quote the commands they do not understand."""
    if isinstance(error, redis.AuthenticationError):
        return "user or password refused"
    if isinstance(error, redis.TimeoutError):
        return f"no answer within {budget_s * 1000:.0f} ms"
    if isinstance(error, redis.BusyLoadingError):
        return "it still loading its data"
    if isinstance(error, redis.ConnectionError):
        cause = error.__context__
        return (isinstance(cause, OSError) and cause.strerror) or "the connection lost"
    text = str(error)
    return type(error).__name__ if set(text) & set("'\"`") else f"{type(error).__name__} {text}"
