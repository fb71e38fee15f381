"""The event log in a Redis stream: the commands that write and read it. Its ids are by the clock of Redis."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lhydra.domain import Play
from lhydra.events.event import now_ms, pack, recorded_ms_of
from lhydra.events.log import CHUNK, EventLogInfo, place

NAME = b"lhydra:events"
FIELD = b"e"

Command = tuple[str | bytes | int, ...]


def adding(plays: Sequence[Play], keep_ms: int) -> list[Command]:
    """Returns what appends plays as of now, and removes entries that are too old where a whole node of the stream is.

    Args:
        plays: in order.
        keep_ms: age in milliseconds above which entries are too old; 0 for none.

    Returns:
        The commands, for a transaction.
    """
    now = now_ms()
    bound: Command = ("MINID", "~", now - keep_ms) if keep_ms else ()
    return [("XADD", NAME, *(() if i else bound), "*", FIELD, pack(play, now)) for i, play in enumerate(plays)]


def reading(after: str, until: str | None) -> Command:
    """Returns what reads CHUNK entries.

    Args:
        after: the position before the first; empty for the first of all.
        until: the last position that is wanted; None for the end.

    Returns:
        The command.
    """
    first, last = "-", "+"
    if after:
        ms, number = place(after)
        first = f"{ms}-{number + 1}"
    if until is not None:
        last = "{}-{}".format(*place(until))
    return "XRANGE", NAME, first, last, "COUNT", CHUNK


def read(reply: Sequence[Any]) -> list[tuple[str, bytes]]:
    """Returns the entries of a reply to `reading`.

    Args:
        reply: as Redis gave it.

    Returns:
        Positions and packed entries.
    """
    return [(position.decode(), dict(zip(f[::2], f[1::2], strict=True)).get(FIELD, b"")) for position, f in reply]


def oldest(entries: Sequence[tuple[str, bytes]], before_ms: int) -> list[str]:
    """Returns the first entries, up to one that was recorded at a moment or later.

    Args:
        entries: the first of the log.
        before_ms: the moment, Unix milliseconds.

    Returns:
        Their positions.
    """
    old = itertools.takewhile(lambda entry: recorded_ms_of(entry[1]) < before_ms, entries)
    return [position for position, _ in old]


LAST: Command = ("XREVRANGE", NAME, "+", "-", "COUNT", 1)
MEASURING: Sequence[Command] = (
    ("XLEN", NAME),
    ("MEMORY", "USAGE", NAME),
    ("XRANGE", NAME, "-", "+", "COUNT", 1),
    LAST,
)


def measured(identity: bytes, replies: Sequence[Any], recording: bool) -> EventLogInfo:
    """Returns what the replies to MEASURING say.

    Args:
        identity: of the store.
        replies: as Redis gave them.
        recording: whether plays that are recorded enter the log.

    Returns:
        The size and the ends.
    """
    n, n_bytes, first, last = replies
    info = EventLogInfo(identity.decode(errors="replace"), n, n_bytes or 0, recording=recording)
    if not first:
        return info
    ends = [*read(first), *read(last)]
    return replace(info, oldest_ms=recorded_ms_of(ends[0][1]), first=ends[0][0], last=ends[-1][0])
