"""The values of a user store in a Redis database: their keys, and how they are asked for."""

import secrets
import time
from typing import Any

import numpy as np
import redis

from lhydra.domain import UserState, no_hashes
from lhydra.users.connections import limit
from lhydra.users.heard import chunk_key
from lhydra.users.packed import unpack_state, with_chunks

IDENTITY, PATTERN = b"lhydra:id", b"lhydra:[uh]:*"
_PREFIX, _CHUNKS = b"lhydra:", b"lhydra:~:*"

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
    first, found, cursor = name_of(chunk_key(key, 0)), set[bytes](), b"0"
    while True:
        ((cursor, some),) = ask(connection, ("SCAN", cursor, "MATCH", _CHUNKS, "COUNT", 1000))
        found.update(name for name in some if name.startswith(first[:-8]) and len(name) == len(first))
        if cursor == b"0":
            return sorted(found)


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
