"""The values of a user store in a Redis database: their keys, and how they are asked for."""

import re
import secrets
import time
from typing import Any

import numpy as np
import redis

from lhydra.domain import UserState, no_hashes
from lhydra.users.connections import limit
from lhydra.users.heard import chunk_key
from lhydra.users.packed import unpack_state, with_chunks
from lhydra.users.record import is_named, user_key

IDENTITY = b"lhydra:id"
_PREFIX, _USERS, _CHUNKS = b"lhydra:", b"lhydra:[uh]:*", b"lhydra:~:*"
_READ_CHUNK = 50  # users that are read together

Command = tuple[str | bytes | int, ...]


def identified() -> Command:
    """Returns the command that gives a store its id, where it has none."""
    return "SET", IDENTITY, secrets.token_hex(8), "NX"


def ask(connection: redis.Connection, *commands: Command) -> list[Any]:
    """Sends all commands at once and returns their answers: one round trip.

    Args:
        connection: to the server.
        commands: in order.

    Returns:
        An answer for each.

    Raises:
        redis.RedisError: the server does not answer, or refuses a command, one of a transaction too.
    """
    connection.send_packed_command(connection.pack_commands(commands))
    answers = [connection.read_response() for _ in commands]
    if isinstance(answers[-1], list) and (failed := [one for one in answers[-1] if isinstance(one, redis.RedisError)]):
        raise failed[0]
    return answers


def chunk_names(connection: redis.Connection, key: bytes) -> list[bytes]:
    """Returns the keys of a user's chunks, found among all of the database; those of a longer id are longer.

    Args:
        connection: to the server.
        key: the user's.

    Returns:
        The keys, sorted.
    """
    first = name_of(chunk_key(key, 0))
    return [name for name in scanned(connection, _CHUNKS) if name[:-8] == first[:-8]]


def scanned(connection: redis.Connection, pattern: bytes) -> list[bytes]:
    """Returns the keys of the database that a pattern matches.

    Args:
        connection: to the server.
        pattern: as Redis takes it.

    Returns:
        The keys, sorted.
    """
    found, cursor = set[bytes](), b"0"
    while True:
        ((cursor, some),) = ask(connection, ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000))
        found.update(some)
        if cursor == b"0":
            return sorted(found)


def searched(connection: redis.Connection, prefix: str, n: int, until_s: float) -> tuple[bytes | None, list[str], bool]:
    """Finds users by the beginning of their ids, as far as there is time to look through all keys.

    Args:
        connection: to the server.
        prefix: what the ids begin with; who has it as the whole id is found in any case.
        n: how many at most.
        until_s: when to give up, on the clock of `time.monotonic`.

    Returns:
        The id of the store; ids of users, ascending by their bytes; whether there are, or may be, others.
    """
    key, cursor, found = user_key(prefix), b"0", set[bytes]()
    identity, there = ask(connection, ("GET", IDENTITY), ("EXISTS", name_of(key)))
    if not is_named(key):
        return identity, [prefix] * there, False
    pattern = re.sub(rb"([][*?\\^-])", rb"\\\1", name_of(key)) + b"*"
    while True:
        ((cursor, some),) = ask(connection, ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000))
        found.update(some)
        if cursor == b"0" or len(found) > n or time.monotonic() >= until_s:
            break
    found.update([name_of(key)] * (there and prefix != ""))
    first = sorted(found)[:n]
    ids = [name.removeprefix(name_of(b"u")).decode(errors="replace") for name in first]
    return identity, ids, len(found) > n or cursor != b"0"


def sampled(connection: redis.Connection, n: int, wait_s: float) -> list[UserState]:
    """Returns the states of some users; the keys of all are scanned, and held in memory.

    Args:
        connection: to the server.
        n: how many at most.
        wait_s: seconds for the chunks of so many users as are read together.

    Returns:
        The states, spread over all users in order of their keys.
    """
    keys, states = scanned(connection, _USERS), list[UserState | None]()
    chosen = keys[:: max(1, len(keys) // max(1, n))][:n]
    for i in range(0, len(chosen), _READ_CHUNK):
        some = chosen[i : i + _READ_CHUNK]
        (packed,) = ask(connection, ("MGET", *some))
        until_s = time.monotonic() + wait_s
        states += [whole(connection, name, value, "sampled", until_s) for name, value in zip(some, packed, strict=True)]
    return [state for state in states if state is not None]


def whole(
    connection: redis.Connection, name: bytes, packed: bytes | None, user_id: str, until_s: float
) -> UserState | None:
    """Returns the state of a record with the heard tracks in chunks, as of one moment: writers may come between.

    Args:
        connection: to the server.
        name: key of the record.
        packed: its value, None where there is none.
        user_id: whose, for the error.
        until_s: when to give up, on the clock of `time.monotonic`.

    Returns:
        The state, None when the user is unknown.

    Raises:
        redis.TimeoutError: others wrote for so long.
    """
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
        ((packed, *at),) = ask(connection, ("MGET", name, *(name_of(chunk_key(key, low)) for low in lows.tolist())))
        read = lows
    return None


def name_of(key: bytes) -> bytes:
    """Returns `lhydra:u:ID`, `lhydra:h:DIGEST` for a very long id, `lhydra:~:…` for a chunk.

    Args:
        key: in the words of LMDB.

    Returns:
        The key in a database that may hold other things too.
    """
    return _PREFIX + key[:1] + b":" + key[1:]


def reason(error: redis.RedisError, budget_s: float) -> str:
    """Returns what went wrong, in words that cannot hold a password: servers quote commands they do not understand.

    Args:
        error: of the connection or the server.
        budget_s: how long it had.

    Returns:
        The words.
    """
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
