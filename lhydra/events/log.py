"""What every kind of store says of its event log: places in it, and how large it is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from lhydra.domain import Play
from lhydra.errors import UserStoreError, complain
from lhydra.events.event import Event, unpack

CHUNK = 1000  # entries that are read or removed at a time: short, so that writers get their turn


@dataclass(frozen=True, slots=True)
class EventLogInfo:
    """How the log is.

    identity: of the store, empty where it has none yet. entries, n_bytes: what lies in it, and the room that it takes.
    oldest_ms: when the first entry was recorded, Unix milliseconds, 0 where there is none. first, last: positions of
    the ends, empty where there is none. free_bytes: of an LMDB file, room for later writes of any kind; None where
    nobody can tell. recording: plays recorded through this opening of the store enter the log.
    """

    identity: str = ""
    entries: int = 0
    n_bytes: int = 0
    oldest_ms: int = 0
    first: str = ""
    last: str = ""
    free_bytes: int | None = None
    recording: bool = True


def holds_all(info: EventLogInfo, after: str) -> bool:
    """Returns whether a log still holds all that came after a position; in doubt, not.

    Args:
        info: of the log.
        after: the position.

    Returns:
        True where its first entry lies at the position, before it, or just behind it.
    """
    return bool(info.first) and place(info.first) <= (place(after)[0] + 1, 0)


def place(position: str) -> tuple[int, int]:
    """Returns a position as numbers that compare as the entries follow each other.

    Args:
        position: as the log of a store gave it: `number` in LMDB, `milliseconds-number` in Redis.

    Returns:
        The two numbers; of LMDB the second is 0.

    Raises:
        UserStoreError: it is no position.
    """
    first, dash, second = position.partition("-")
    digits = (first, second) if dash else (first,)
    if not all(part.isascii() and part.isdigit() and len(part) <= 20 for part in digits):
        raise UserStoreError(complain("position in the event log", position, "one that the log gave"))
    return int(first), int(second or 0)


def opened(entries: Iterable[tuple[str, bytes]], user_id: str | None) -> Iterator[tuple[str, Event]]:
    """Unpacks entries, all or those of one user.

    Args:
        entries: positions and packed entries.
        user_id: whose; None for everybody's.

    Yields:
        Position and event.

    Raises:
        UserStoreError: an entry is damaged.
    """
    name = b"" if user_id is None else user_id.encode()
    for position, packed in entries:
        if name in packed:  # faster than to unpack what is another's
            event = unpack(packed, position)
            if user_id is None or event.play.user_id == user_id:
                yield position, event


def positions_of(entries: Iterable[tuple[str, bytes]], user_id: str) -> list[str]:
    """Returns where entries of a user lie, those that are damaged and may be theirs too.

    Args:
        entries: positions and packed entries.
        user_id: whose.

    Returns:
        The positions.
    """
    name, found = user_id.encode(), []
    for position, packed in entries:
        if name in packed:
            with suppress(UserStoreError):
                if unpack(packed, position).play.user_id != user_id:
                    continue
            found.append(position)
    return found


class LaterPlays:
    """The plays of an event log after a position, by user; read on as the log grows.

    Args:
        events: reads the log after a position.
        after: the position; None where it is not known.
    """

    def __init__(self, events: Callable[[str], Iterator[list[tuple[str, Event]]]], after: str | None) -> None:
        self._events, self._position = events, after
        self._plays: dict[str, list[Play]] = {}

    def of(self, user_id: str) -> Sequence[Play] | None:
        """Returns the plays of a user that are in the log at this moment.

        Args:
            user_id: whose.

        Returns:
            The plays, in order of recording; None without a position.
        """
        if self._position is None:
            return None
        for chunk in self._events(self._position):
            for self._position, event in chunk:
                self._plays.setdefault(event.play.user_id, []).append(event.play)
        return self._plays.get(user_id, ())
