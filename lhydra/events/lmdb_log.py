"""The event log in an LMDB database of its own: packed entries under numbers that rise and are never used again."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import lmdb

from lhydra.events.event import recorded_ms_of
from lhydra.events.log import EventLogInfo

NAME = b"events"
_NEXT = bytes(8)  # the key of the next number, once the last entry may be gone; entries begin with 1
_CHECK_EVERY = 64  # entries, after which the oldest are looked at

Log = lmdb._Database


def append(txn: lmdb.Transaction, log: Log, entries: Sequence[bytes], before_ms: int) -> None:
    """Appends entries, and now and then removes some that are too old.

    Args:
        txn: of writing.
        log: the database.
        entries: packed, in order.
        before_ms: Unix milliseconds; entries recorded earlier are too old, 0 for none.
    """
    number = _next(txn, log)
    with txn.cursor(log) as cursor:
        cursor.putmulti([(_key(number + i), entry) for i, entry in enumerate(entries)], append=True)
    if before_ms and number // _CHECK_EVERY != (number + len(entries)) // _CHECK_EVERY:
        remove(txn, log, oldest(txn, log, before_ms, 2 * max(_CHECK_EVERY, len(entries))))


def read(txn: lmdb.Transaction, log: Log, first: int, last: int, n: int) -> list[tuple[str, bytes]]:
    """Returns entries in order.

    Args:
        txn: of reading.
        log: the database.
        first: the first number that may be among them.
        last: the last one.
        n: how many at most.

    Returns:
        Positions and packed entries.
    """
    with txn.cursor(log) as cursor:
        if not cursor.set_range(_key(max(first, 1))):
            return []
        found = itertools.takewhile(lambda item: bytes(item[0]) <= _key(last), cursor.iternext())
        return [(_position(key), bytes(value)) for key, value in itertools.islice(found, n)]


def oldest(txn: lmdb.Transaction, log: Log, before_ms: int, n: int) -> list[str]:
    """Returns the first entries, up to one that was recorded at a moment or later.

    Args:
        txn: of reading or writing.
        log: the database.
        before_ms: the moment, Unix milliseconds.
        n: how many at most.

    Returns:
        Their positions.
    """
    with txn.cursor(log) as cursor:
        if not cursor.set_range(_key(1)):
            return []
        old = itertools.takewhile(lambda item: recorded_ms_of(bytes(item[1])) < before_ms, cursor.iternext())
        return [_position(key) for key, _ in itertools.islice(old, n)]


def remove(txn: lmdb.Transaction, log: Log, positions: Sequence[str]) -> int:
    """Removes entries.

    Args:
        txn: of writing.
        log: the database.
        positions: of those to remove.

    Returns:
        How many of them were there.
    """
    if not positions:
        return 0
    txn.put(_NEXT, _key(_next(txn, log)), db=log)  # the last entry may be among them
    return sum(txn.delete(_key(int(position)), db=log) for position in positions)


def last(txn: lmdb.Transaction, log: Log) -> int:
    """Returns the highest number that was ever given.

    Args:
        txn: of reading or writing.
        log: the database.

    Returns:
        The number; 0 where there was none.
    """
    return _next(txn, log) - 1


def measured(txn: lmdb.Transaction, log: Log, identity: str) -> tuple[EventLogInfo, int]:
    """Returns how large the log is.

    Args:
        txn: of reading.
        log: the database.
        identity: of the store.

    Returns:
        Its size and its ends; how many pages it takes.
    """
    stat = txn.stat(log)
    entries: int = stat["entries"] - (txn.get(_NEXT, db=log) is not None)
    pages: int = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    info = EventLogInfo(identity, entries, pages * stat["psize"])
    if entries:
        with txn.cursor(log) as cursor:
            cursor.set_range(_key(1))
            oldest_ms, first = recorded_ms_of(bytes(cursor.value())), _position(cursor.key())
            cursor.last()
            info = replace(info, oldest_ms=oldest_ms, first=first, last=_position(cursor.key()))
    return info, pages


def _next(txn: lmdb.Transaction, log: Log) -> int:
    with txn.cursor(log) as cursor:
        highest = int.from_bytes(cursor.key(), "big") if cursor.last() else 0
    kept = txn.get(_NEXT, db=log)
    return max(highest + 1, int.from_bytes(kept, "big") if kept else 1)


def _position(key: bytes | memoryview) -> str:
    return str(int.from_bytes(key, "big"))


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")
