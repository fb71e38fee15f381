"""What a user store keeps of one user: the record, the rules by which it changes, and its packed form.

Packed, so that a request costs one read and no parsing of lists, and every kind of store can hold it:

    header     version, checksum of the rest, lengths
    heard      (n,) uint64, sorted: every track ever heard
    events     (n,) uint64, hashes of the newest event ids, oldest first: a retried play counts once
    skipped    (n,) uint64, tracks skipped last and not liked since, oldest first; not in version 1
    history    (n,) HISTORY_DTYPE: what requests read, loaded and live plays merged
    live       (n,) HISTORY_DTYPE: plays recorded since the loaded data ends, as they came
    profile    JSON
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lhydra.domain import (
    HISTORY_DTYPE,
    MAX_HISTORY,
    MAX_SKIPPED,
    Hashes,
    History,
    Play,
    UserState,
    make_history,
    merge_history,
    no_hashes,
    no_history,
    track_hashes,
)
from lhydra.errors import UserStoreError, complain

VERSION = 2  # 1 had zeros for the number of skipped tracks, and none: it reads as 2 and is written as 2
MAX_EVENTS = 1024  # remembered event ids per user
MAX_LIVE = 2 * MAX_HISTORY  # live plays kept one by one; beyond, they are added up per track
# Together 32 bytes: the 64-bit arrays behind stay aligned. Lengths of heard, events, history, live, profile, skipped.
_HEAD, _LENGTHS = struct.Struct("<B3xI"), struct.Struct("<6I")
_START, _ENTRY = _HEAD.size + _LENGTHS.size, HISTORY_DTYPE.itemsize


@dataclass(frozen=True, slots=True)
class UserRecord:
    """One user. `state` is what requests read; `live` and `events` are there for the next write."""

    state: UserState = field(default_factory=UserState)
    live: History = field(default_factory=no_history)
    events: Hashes = field(default_factory=no_hashes)  # in order of arrival

    def with_plays(self, plays: Sequence[Play]) -> tuple["UserRecord", list[bool]]:
        """Returns the record with `plays` added, and which of them were new.

        A skipped play is heard, but does not enter the history: it is no sign of liking. Its track counts as
        skipped until a play of it arrives that was not.

        Args:
            plays: of this user, in order of arrival.

        Returns:
            The new record, and for each play whether its event id was new.
        """
        seen, fresh = set(self.events.tolist()), []
        events = track_hashes(play.event_id for play in plays)  # the hash of track ids serves events too
        for event in events.tolist():
            fresh.append(event not in seen)
            seen.add(event)
        new = [play for play, is_new in zip(plays, fresh, strict=True) if is_new]
        liked = [play for play in new if not play.skipped]
        added = np.zeros(len(liked), HISTORY_DTYPE)
        added["track"] = track_hashes(play.track_id for play in liked)
        added["count"] = [play.count for play in liked]
        added["time"] = [play.time for play in liked]
        live = np.concatenate([self.live, added])
        if len(live) > MAX_LIVE:
            live = make_history(live["track"], live["count"], live["time"])
        history = merge_history(self.state.history, added) if len(added) else self.state.history
        heard = np.union1d(self.state.heard, track_hashes(play.track_id for play in new))
        kept = np.concatenate([self.events, events[fresh]])[-MAX_EVENTS:]
        skipped = _skipped(self.state.skipped, new)
        return UserRecord(UserState(self.state.profile, history, heard, skipped), live, kept), fresh

    def with_base(self, loaded: UserState) -> "UserRecord":
        """Returns the record with its loaded part replaced; live plays are kept until the data covers them.

        A live play is covered when the loaded history holds its track with a last play at least as late: it
        is in the loaded count already. The others are added to the loaded history. Heard only ever grows, and
        skips stay: prepared data has none.

        Args:
            loaded: the user's state in the prepared data.

        Returns:
            The new record.
        """
        live, history = self.live, loaded.history
        if len(live) and len(history):
            by_track = np.argsort(history["track"])
            tracks, times = history["track"][by_track], history["time"][by_track]
            at = np.minimum(np.searchsorted(tracks, live["track"]), len(tracks) - 1)
            live = live[(tracks[at] != live["track"]) | (times[at] < live["time"])]
        if len(live):
            history = merge_history(history, live)
        heard = np.union1d(loaded.heard, self.state.heard)
        return UserRecord(UserState(loaded.profile, history, heard, self.state.skipped), live, self.events)

    def pack(self) -> bytes:
        """Returns the record as bytes.

        Raises:
            UserStoreError: the profile holds something else than text and finite numbers.
        """
        state = self.state
        try:
            profile = json.dumps(dict(state.profile), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise UserStoreError(complain("profile", str(error), "text and finite numbers by column")) from None
        hashes = [np.ascontiguousarray(array, "<u8") for array in (state.heard, self.events, state.skipped)]
        entries = [np.ascontiguousarray(array, HISTORY_DTYPE) for array in (state.history, self.live)]
        (heard, events, skipped), (history, live) = map(len, hashes), map(len, entries)
        lengths = _LENGTHS.pack(heard, events, history, live, len(profile), skipped)
        body = b"".join([lengths, *(array.tobytes() for array in hashes + entries), profile])
        return _HEAD.pack(VERSION, zlib.crc32(body)) + body


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
    if not packed or not 1 <= packed[0] <= VERSION:
        found = f"format {packed[0] if packed else 'none'}"
        raise UserStoreError(complain(_value_of(user_id), found, f"format {VERSION}"))
    if len(packed) < _START or zlib.crc32(memoryview(packed)[_HEAD.size :]) != _HEAD.unpack_from(packed)[1]:
        raise UserStoreError(
            complain(_value_of(user_id), f"{len(packed)} damaged bytes", "the bytes that were written")
        )
    n_heard, n_events, n_history, n_live, n_profile, n_skipped = _LENGTHS.unpack_from(packed, _HEAD.size)
    events_at = _START + 8 * n_heard
    skipped_at = events_at + 8 * n_events
    history_at = skipped_at + 8 * n_skipped
    live_at = history_at + _ENTRY * n_history
    profile_at = live_at + _ENTRY * n_live
    state = UserState(
        json.loads(packed[profile_at:]) if n_profile > 2 else {},  # of most users nothing is declared
        np.frombuffer(packed, HISTORY_DTYPE, n_history, history_at),
        np.frombuffer(packed, "<u8", n_heard, _START),
        np.frombuffer(packed, "<u8", n_skipped, skipped_at),
    )
    live = np.frombuffer(packed, HISTORY_DTYPE, n_live, live_at)
    return UserRecord(state, live, np.frombuffer(packed, "<u8", n_events, events_at))


def _skipped(before: Hashes, plays: Sequence[Play]) -> Hashes:
    """Tracks skipped last and not liked since, after `plays` in order."""
    kept = dict.fromkeys(before.tolist())
    for track, play in zip(track_hashes(play.track_id for play in plays).tolist(), plays, strict=True):
        kept.pop(track, None)
        if play.skipped:
            kept[track] = None
    return np.array(list(kept)[-MAX_SKIPPED:], np.uint64)


def _value_of(user_id: str) -> str:
    return f"user store: value of user {user_tag(user_id)}"


def user_tag(user_id: str) -> str:
    """Returns the tag of a user for logs and messages, which must not name users.

    Args:
        user_id: whose.

    Returns:
        Eight hex digits: BLAKE2b of the id.
    """
    return hashlib.blake2b(user_id.encode(), digest_size=4).hexdigest()


def user_key(user_id: str) -> bytes:
    """Returns the key of a user's record. LMDB keys end at 511 bytes: a longer id is hashed.

    Args:
        user_id: whose.

    Returns:
        `u` and the id, or `h` and the 32-byte BLAKE2b of an id over 500 bytes.
    """
    name = user_id.encode()
    return b"u" + name if len(name) <= 500 else b"h" + hashlib.blake2b(name, digest_size=32).digest()
