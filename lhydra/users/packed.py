"""The packed form of a user's record, which every kind of store can hold, and how a store changes one.

A request costs one read and no parsing of lists:

    header     version, checksum of what requests read, lengths, checksum of what only writes read
    heard      (n,) uint64, sorted: every track ever heard, or none where they lie in chunks of their own
    lows       (n,) uint64: where those chunks begin (`lhydra.users.heard`)
    skipped    (n,) uint64, tracks skipped last and not liked since, oldest first
    history    (n,) HISTORY_DTYPE: loaded and live plays merged
    repeats    (n,) REPEAT_DTYPE of the history
    recent     (n,) RECENT_DTYPE: the last plays one by one
    profile    JSON; here ends what requests read
    events     (n,) uint64, hashes of the newest event ids, oldest first: a retried play counts once
    live       (n,) HISTORY_DTYPE: plays recorded since the loaded data ends, as they came
    sums       (n,) REPEAT_DTYPE of the first entries of live, which are sums; the others are single plays
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np

from lhydra.domain import (
    HISTORY_DTYPE,
    RECENT_DTYPE,
    REPEAT_DTYPE,
    Hashes,
    Play,
    UserState,
    Value,
    no_hashes,
    no_recent,
    track_hashes,
)
from lhydra.errors import UserStoreError, complain
from lhydra.repeats import at_once, repeats_of
from lhydra.users.heard import chunk_key, pack_chunk, unpack_chunk
from lhydra.users.record import UserRecord
from lhydra.users.tag import user_tag

VERSION = 3  # 1: no skipped tracks; 2: no repeats, recent plays, state version. Both are read, and written as 3
_U64 = np.dtype("<u8")
_HEAD = struct.Struct("<B3xI")
# The state's version, flags (none yet), a checksum, and the lengths of heard, lows, skipped, history, repeats, recent,
# profile | events, live, sums. With _HEAD 64 bytes: the 64-bit arrays behind stay aligned.
_FIXED, _START = struct.Struct("<QII10I"), 64
_BOTH = struct.Struct("<4xIQII10I")  # but for the version of _HEAD
_OLD_LENGTHS = struct.Struct("<6I")  # of version 1 and 2: heard, events, history, live, profile, skipped
_OLD_START = 32
_DECODER = json.JSONDecoder()
_HISTORY, _REPEAT, _RECENT = HISTORY_DTYPE.itemsize, REPEAT_DTYPE.itemsize, RECENT_DTYPE.itemsize


@dataclass(frozen=True, slots=True)
class Change:
    """How a user's record changes: `heard` are the hashes whose chunks it needs; `of` tells what came of it.

    of: the record as stored -> the record to store, and what to answer; nothing is stored where nothing is true.
    """

    heard: Hashes
    of: Callable[[UserRecord], tuple[UserRecord, list[bool]]]


def recordings(plays: Sequence[Play]) -> dict[str, Change]:
    """Returns the changes of `UserStore.record`, one for each user.

    Args:
        plays: of any users, in order of arrival.

    Returns:
        The changes by user id; each answers whether its user's plays were new, for `in_order`.
    """
    plays_of: dict[str, list[Play]] = {}
    for play in plays:
        plays_of.setdefault(play.user_id, []).append(play)
    return {
        user_id: Change(track_hashes(play.track_id for play in own), partial(UserRecord.with_plays, plays=own))
        for user_id, own in plays_of.items()
    }


def in_order(plays: Sequence[Play], flags: Mapping[str, Sequence[bool]]) -> list[bool]:
    """Returns what the changes of `recordings` answered, in the order of the plays.

    Args:
        plays: as they were given.
        flags: the answers by user id.

    Returns:
        The answer for each play.
    """
    left = {user_id: iter(own) for user_id, own in flags.items()}
    return [next(left[play.user_id]) for play in plays]


def loading(loaded: Sequence[UserState], later: Callable[[], Sequence[Play] | None] = lambda: None) -> Change:
    """Returns the change of `UserStore.load`, which answers whether anything changed.

    Args:
        loaded: the user's states in the prepared data, one after the other; at least one.
        later: returns the live plays of which is known that the data do not hold them, as of the record at hand; None
            where that is not known.

    Returns:
        The change.
    """

    def of(record: UserRecord) -> tuple[UserRecord, list[bool]]:
        new = record
        for state in loaded:
            new = new.with_base(state, later())
        return new, [record.state.version == 0 or bool(new.changed) or pack(new) != pack(record)]

    return Change(reduce(np.union1d, (state.heard for state in loaded)), of)


def pack(record: UserRecord, later: int = 0) -> bytes:
    """Returns a record as bytes, without its chunks.

    Args:
        record: of one user.
        later: by how much its version rises.

    Returns:
        The value to store.

    Raises:
        UserStoreError: the profile holds something else than text and finite numbers.
    """
    state = record.state
    try:
        profile = json.dumps(dict(state.profile), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UserStoreError(complain("profile", str(error), "text and finite numbers by column")) from None
    hashes = [np.ascontiguousarray(array, "<u8") for array in (state.heard, record.lows, state.skipped)]
    read = [*hashes, state.history, repeats_of(state), state.recent]
    write = [np.ascontiguousarray(record.events, "<u8"), record.live, record.sums]
    lengths = [*map(len, read), len(profile), *map(len, write)]
    written = b"".join(array.tobytes() for array in write)
    fixed = _FIXED.pack(state.version + later, record.flags, zlib.crc32(written), *lengths)
    body = b"".join([fixed, *(array.tobytes() for array in read), profile])
    return b"".join([_HEAD.pack(VERSION, zlib.crc32(body, VERSION)), body, written])


def values(record: UserRecord, key: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields what is to be stored: the record, its state a version later, and the chunks that changed.

    Args:
        record: to store.
        key: the user's.

    Yields:
        Key and value.
    """
    yield key, pack(record, 1)
    for low in record.changed:
        yield chunk_key(key, low), pack_chunk(record.chunks[low])


def unpack(packed: bytes, user_id: str) -> UserRecord:
    """Returns the record that `pack` packed, in this version or an earlier one.

    Args:
        packed: the stored value.
        user_id: whose, for the error.

    Returns:
        The record; its arrays are read-only views of `packed`.

    Raises:
        UserStoreError: another format, or bytes that are not what was written; names the user by tag.
    """
    if packed and packed[0] in (1, 2):
        return _unpack_old(packed, user_id)
    state, lows, at = _unpack_read(packed, user_id)
    _, flags, checksum, *_, n_events, n_live, n_sums = _FIXED.unpack_from(packed, _HEAD.size)
    if zlib.crc32(memoryview(packed)[at:]) != checksum:
        raise damaged(user_id, packed)
    live_at = at + 8 * n_events
    sums_at = live_at + HISTORY_DTYPE.itemsize * n_live
    events = np.frombuffer(packed, _U64, n_events, at)
    live = np.frombuffer(packed, HISTORY_DTYPE, n_live, live_at)
    return UserRecord(state, live, events, np.frombuffer(packed, REPEAT_DTYPE, n_sums, sums_at), lows, flags=flags)


def unpack_state(packed: bytes, user_id: str) -> tuple[UserState, Hashes]:
    """Returns what requests read, and nothing else: `unpack`, faster.

    Args:
        packed: the stored value.
        user_id: whose, for the error.

    Returns:
        The state, and where the chunks of its heard tracks begin: where there are any, they are not in the state.

    Raises:
        UserStoreError: as for `unpack`.
    """
    if packed and packed[0] in (1, 2):
        record = _unpack_old(packed, user_id)
        return record.state, record.lows
    state, lows, _ = _unpack_read(packed, user_id)
    return state, lows


def with_chunks(state: UserState, packed: Sequence[bytes | None], user_id: str) -> UserState:
    """Returns a state with the heard tracks that lie in chunks.

    Args:
        state: what the record holds.
        packed: the stored values of all its chunks, in order.
        user_id: whose, for the error.

    Returns:
        The whole state.

    Raises:
        UserStoreError: a chunk is missing, or not what was written.
    """
    return replace(state, heard=np.concatenate([chunk_of(value, user_id) for value in packed]))


def chunk_of(packed: bytes | None, user_id: str) -> Hashes:
    """Returns a chunk of a user's heard tracks.

    Args:
        packed: the stored value, None where there is none.
        user_id: whose, for the error.

    Returns:
        (n,) uint64, sorted.

    Raises:
        UserStoreError: it is missing, or not what was written.
    """
    hashes = unpack_chunk(packed)
    if hashes is None:
        raise damaged(user_id, packed)
    return hashes


def damaged(user_id: str, packed: bytes | None) -> UserStoreError:
    """Returns the error of a value that is not what was written.

    Args:
        user_id: whose.
        packed: the value, None where there is none.

    Returns:
        The error; it names the user by tag.
    """
    found = "nothing" if packed is None else f"{len(packed)} damaged bytes"
    return UserStoreError(complain(_value_of(user_id), found, "the bytes that were written"))


def _unpack_read(packed: bytes, user_id: str) -> tuple[UserState, Hashes, int]:
    """What requests read, where the chunks begin, and at which byte begins what only writes read."""
    if not packed or packed[0] != VERSION:
        found = f"format {packed[0] if packed else 'none'}"
        raise UserStoreError(complain(_value_of(user_id), found, f"format {VERSION}"))
    if len(packed) < _START:
        raise damaged(user_id, packed)
    checksum, version, _, _, *lengths = _BOTH.unpack_from(packed)
    n_heard, n_lows, n_skipped, n_history, n_repeats, n_recent, n_profile, n_events, n_live, n_sums = lengths
    lows_at = _START + 8 * n_heard
    skipped_at = lows_at + 8 * n_lows
    history_at = skipped_at + 8 * n_skipped
    repeats_at = history_at + _HISTORY * n_history
    recent_at = repeats_at + _REPEAT * n_repeats
    profile_at = recent_at + _RECENT * n_recent
    end = profile_at + n_profile
    whole = len(packed) == end + 8 * n_events + _HISTORY * n_live + _REPEAT * n_sums
    if not whole or zlib.crc32(memoryview(packed)[_HEAD.size : end], VERSION) != checksum:
        raise damaged(user_id, packed)
    state = UserState(
        _profile(packed[profile_at:end], packed, user_id) if n_profile > 2 else {},  # of most users nothing is declared
        np.frombuffer(packed, HISTORY_DTYPE, n_history, history_at),
        np.frombuffer(packed, _U64, n_heard, _START),
        np.frombuffer(packed, _U64, n_skipped, skipped_at) if n_skipped else no_hashes(),
        np.frombuffer(packed, REPEAT_DTYPE, n_repeats, repeats_at),
        np.frombuffer(packed, RECENT_DTYPE, n_recent, recent_at) if n_recent else no_recent(),
        version,
    )
    return state, np.frombuffer(packed, _U64, n_lows, lows_at) if n_lows else no_hashes(), end


def _unpack_old(packed: bytes, user_id: str) -> UserRecord:
    if len(packed) < _OLD_START or zlib.crc32(memoryview(packed)[_HEAD.size :]) != _HEAD.unpack_from(packed)[1]:
        raise damaged(user_id, packed)
    n_heard, n_events, n_history, n_live, n_profile, n_skipped = _OLD_LENGTHS.unpack_from(packed, _HEAD.size)
    events_at = _OLD_START + 8 * n_heard
    skipped_at = events_at + 8 * n_events
    history_at = skipped_at + 8 * n_skipped
    live_at = history_at + _HISTORY * n_history
    profile_at = live_at + _HISTORY * n_live
    if len(packed) != profile_at + n_profile:
        raise damaged(user_id, packed)
    history = np.frombuffer(packed, HISTORY_DTYPE, n_history, history_at)
    state = UserState(
        _profile(packed[profile_at:], packed, user_id) if n_profile > 2 else {},
        history,
        np.frombuffer(packed, _U64, n_heard, _OLD_START),
        np.frombuffer(packed, _U64, n_skipped, skipped_at),
        at_once(history),
    )
    live = np.frombuffer(packed, HISTORY_DTYPE, n_live, live_at)
    return UserRecord(state, live, np.frombuffer(packed, _U64, n_events, events_at))


def _profile(stored: bytes, packed: bytes, user_id: str) -> dict[str, Value]:
    try:
        text = stored.decode()
        found, end = _DECODER.raw_decode(text)  # `loads` also looks for what `pack` never writes: UTF-16, blanks
    except (ValueError, RecursionError):
        raise damaged(user_id, packed) from None
    if not isinstance(found, dict) or end < len(text):
        raise damaged(user_id, packed)
    return found


def _value_of(user_id: str) -> str:
    return f"user store: value of user {user_tag(user_id)}"
