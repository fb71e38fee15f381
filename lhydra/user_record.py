"""What a user store keeps of one user: the record, the laws by which it changes, and its packed form.

Packed, so that a request costs one read and no parsing of lists, and every kind of store can hold it:

    header     version, checksum of the rest, lengths
    heard      (n,) uint64, sorted: every track ever heard
    events     (n,) uint64, hashes of the newest event ids, oldest first: a retried play counts once
    history    (n,) HISTORY_DTYPE: what requests read, loaded and live plays merged
    live       (n,) HISTORY_DTYPE: plays recorded since the loaded data ends, as they came
    profile    JSON
"""

import hashlib
import itertools
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lhydra.domain import (
    HISTORY_DTYPE,
    MAX_HISTORY,
    Hashes,
    History,
    Play,
    UserState,
    Value,
    make_history,
    merge_history,
    no_hashes,
    no_history,
    track_hashes,
)
from lhydra.errors import UserStoreError, complain

VERSION = 1
MAX_EVENTS = 1024  # remembered event ids per user
MAX_LIVE = 2 * MAX_HISTORY  # live plays kept one by one; beyond, they are added up per track
_HEAD, _LENGTHS = struct.Struct("<B3xI"), struct.Struct("<5I4x")  # 32 bytes: the arrays behind stay aligned
_WIDTHS = (8, 8, HISTORY_DTYPE.itemsize, HISTORY_DTYPE.itemsize, 1)


@dataclass(frozen=True, slots=True)
class UserRecord:
    """One user. `state` is what requests read; `live` and `events` are there for the next write."""

    state: UserState = field(default_factory=UserState)
    live: History = field(default_factory=no_history)
    events: Hashes = field(default_factory=no_hashes)  # in order of arrival

    def with_plays(self, plays: Sequence[Play]) -> tuple["UserRecord", list[bool]]:
        """Returns the record with `plays` added, and which of them were new.

        A skipped play is heard, but does not enter the history: it is no sign of liking.
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
        return UserRecord(UserState(self.state.profile, history, heard), live, kept), fresh

    def with_base(self, loaded: UserState) -> "UserRecord":
        """Returns the record with its loaded part replaced; live plays are kept until the data covers them.

        A live play is covered when the loaded history holds its track with a last play at least as late: it
        is in the loaded count already. The others are added to the loaded history. Heard only ever grows.
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
        return UserRecord(UserState(loaded.profile, history, heard), live, self.events)

    def pack(self) -> bytes:
        """Returns the record as bytes. Raises UserStoreError for a profile that is not text and finite numbers."""
        arrays = (
            np.ascontiguousarray(self.state.heard, "<u8"),
            np.ascontiguousarray(self.events, "<u8"),
            np.ascontiguousarray(self.state.history, HISTORY_DTYPE),
            np.ascontiguousarray(self.live, HISTORY_DTYPE),
        )
        try:
            profile = json.dumps(dict(self.state.profile), ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise UserStoreError(complain("profile", str(error), "text and finite numbers by column")) from None
        lengths = _LENGTHS.pack(*map(len, arrays), len(profile))
        body = b"".join([lengths, *(array.tobytes() for array in arrays), profile])
        return _HEAD.pack(VERSION, zlib.crc32(body)) + body


def unpack(packed: bytes, user_id: str) -> UserRecord:
    """Returns what `pack` packed; its arrays are read-only views of `packed`.

    Raises:
        UserStoreError: another format, or bytes that are not what was written; names the user by tag.
    """
    thing = f"user store: value of user {user_tag(user_id)}"
    if packed[:1] != bytes([VERSION]):
        raise UserStoreError(complain(thing, f"format {packed[0] if packed else 'none'}", f"format {VERSION}"))
    start = _HEAD.size + _LENGTHS.size
    if len(packed) >= start and zlib.crc32(memoryview(packed)[_HEAD.size :]) == _HEAD.unpack_from(packed)[1]:
        lengths = _LENGTHS.unpack_from(packed, _HEAD.size)
        sizes = (length * width for length, width in zip(lengths, _WIDTHS, strict=True))
        starts = list(itertools.accumulate(sizes, initial=start))
        heard, events = (np.frombuffer(packed, "<u8", lengths[i], starts[i]) for i in (0, 1))
        history, live = (np.frombuffer(packed, HISTORY_DTYPE, lengths[i], starts[i]) for i in (2, 3))
        profile: Mapping[str, Value] = json.loads(packed[starts[4] :])
        return UserRecord(UserState(profile, history, heard), live, events)
    raise UserStoreError(complain(thing, f"{len(packed)} damaged bytes", "the bytes that were written"))


def user_tag(user_id: str) -> str:
    """Returns the eight hex digits that stand for a user in logs and messages."""
    return hashlib.blake2b(user_id.encode(), digest_size=4).hexdigest()
