"""One entry of the event log and its packed form, the same in every kind of store.

head       version, checksum of all that follows
fixed      time of recording, time of the play, count, milliseconds played, flags, lengths of the texts in characters
texts      ids of event, user, track, request and session as one UTF-8 text
"""

import struct
import time
import zlib
from dataclasses import dataclass

from lhydra.domain import Play
from lhydra.errors import UserStoreError, complain

VERSION = 1
_HEAD, _FIXED, START = struct.Struct("<B3xI"), struct.Struct("<QqdIBx5H"), 48
COMPLETED, SKIPPED, MS_PLAYED = 1, 4, 16  # flags: that it is known; whether it is so is the next bit


@dataclass(frozen=True, slots=True)
class Event:
    """A recorded play as it came, and when the server recorded it.

    recorded_ms: Unix milliseconds by the clock of the server that recorded it.
    """

    play: Play
    recorded_ms: int


def now_ms() -> int:
    """Returns Unix milliseconds now."""
    return time.time_ns() // 1_000_000


def pack(play: Play, recorded_ms: int) -> bytes:
    """Returns an entry of the log.

    Args:
        play: as it came.
        recorded_ms: Unix milliseconds of recording.

    Returns:
        The value to store.
    """
    flags = ms_played = 0
    if play.completed is not None:
        flags = COMPLETED | play.completed * 2 * COMPLETED
    if play.skipped is not None:
        flags |= SKIPPED | play.skipped * 2 * SKIPPED
    if play.ms_played is not None:
        flags, ms_played = flags | MS_PLAYED, play.ms_played
    event_id, user_id, track_id = play.event_id, play.user_id, play.track_id
    request_id, session_id = play.request_id, play.session_id
    lengths = len(event_id), len(user_id), len(track_id), len(request_id), len(session_id)
    fixed = _FIXED.pack(recorded_ms, play.time, play.count, ms_played, flags, *lengths)
    body = fixed + f"{event_id}{user_id}{track_id}{request_id}{session_id}".encode()
    return _HEAD.pack(VERSION, zlib.crc32(body, VERSION)) + body


def check(packed: bytes, position: str) -> None:
    """Checks that a value is one that `pack` packed.

    Args:
        packed: the stored value.
        position: where it lies in the log, for the error.

    Raises:
        UserStoreError: another format, or bytes that are not what was written; names the position.
    """
    if len(packed) < START or packed[0] != VERSION:
        raise _damaged(packed, position)
    if zlib.crc32(memoryview(packed)[_HEAD.size :], VERSION) != _HEAD.unpack_from(packed)[1]:
        raise _damaged(packed, position)


def unpack(packed: bytes, position: str) -> Event:
    """Returns the entry that `pack` packed.

    Args:
        packed: the stored value.
        position: where it lies in the log, for the error.

    Returns:
        The event.

    Raises:
        UserStoreError: another format, or bytes that are not what was written; names the position.
    """
    check(packed, position)
    recorded_ms, time, count, ms_played, flags, n_event, n_user, n_track, n_request, n_session = _FIXED.unpack_from(
        packed, _HEAD.size
    )
    texts = packed[START:].decode()
    track_at = n_event + n_user
    request_at = track_at + n_track
    session_at = request_at + n_request
    if len(texts) != session_at + n_session:
        raise _damaged(packed, position)
    play = Play(
        texts[:n_event],
        texts[n_event:track_at],
        texts[track_at:request_at],
        time,
        count,
        bool(flags & 2 * COMPLETED) if flags & COMPLETED else None,
        bool(flags & 2 * SKIPPED) if flags & SKIPPED else None,
        texts[request_at:session_at],
        texts[session_at:],
        ms_played if flags & MS_PLAYED else None,
    )
    return Event(play, recorded_ms)


def recorded_ms_of(packed: bytes) -> int:
    """Returns when an entry was recorded, and reads nothing else of it.

    Args:
        packed: the stored value.

    Returns:
        Unix milliseconds, 2^63 - 1 at most; 0 of a value that is too short to say.
    """
    return min(int.from_bytes(packed[8:16], "little"), 2**63 - 1) if len(packed) >= START else 0


def _damaged(packed: bytes, position: str) -> UserStoreError:
    thing = f"event log: entry {position}"
    if packed and packed[0] != VERSION:
        return UserStoreError(complain(thing, f"format {packed[0]}", f"format {VERSION}"))
    return UserStoreError(complain(thing, f"{len(packed)} damaged bytes", "the bytes that were written"))
