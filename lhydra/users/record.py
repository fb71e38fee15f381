"""What a user store keeps of one user, and the rules by which it changes; its packed form is `lhydra.users.packed`.

Whatever a user has heard, a play changes values of bounded size: the record, and one chunk of heard tracks or the two
that it is divided in (`lhydra.users.heard`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from lhydra.domain import (
    I64,
    LIVE,
    MAX_HISTORY,
    SKIPPED,
    Hashes,
    History,
    Play,
    Recent,
    Repeats,
    UserState,
    no_hashes,
    no_history,
    no_repeats,
    track_hashes,
)
from lhydra.repeats import (
    add_up,
    after_plays,
    at_once,
    live_flags,
    make_recent,
    merge_recent,
    merged,
    repeats_of,
    single_plays,
    without,
)
from lhydra.users import heard

MAX_EVENTS = 1024  # remembered event ids per user
MAX_LIVE = 2 * MAX_HISTORY  # live plays kept one by one; beyond, they are added up per track


@dataclass(frozen=True, slots=True)
class UserRecord:
    """One user. `state` is what requests read; `live`, `sums` and `events` are there for the next write.

    live: plays recorded since the loaded data ends. sums: repeats of the first of them, which are sums; the others are
    single plays. events: hashes of the newest event ids: a retried play counts once. flags: none yet.
    lows: where the chunks of heard tracks begin; while there are none, `state.heard` holds them all, else none.
    chunks: those at hand, by where they begin. changed: those that this record would have written.
    """

    state: UserState = field(default_factory=UserState)
    live: History = field(default_factory=no_history)
    events: Hashes = field(default_factory=no_hashes)  # in order of arrival
    sums: Repeats = field(default_factory=no_repeats)
    lows: Hashes = field(default_factory=no_hashes)
    chunks: Mapping[int, Hashes] = field(default_factory=dict)
    changed: frozenset[int] = frozenset()
    flags: int = 0

    def with_plays(self, plays: Sequence[Play]) -> tuple["UserRecord", list[bool]]:
        """Returns the record with `plays` added, and which of them were new.

        `after_plays` says how the state changes; every play is heard, a skipped one too.

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
        tracks, times = track_hashes(play.track_id for play in new), [play.time for play in new]
        added, flags = single_plays(tracks, [play.count for play in new], times), live_flags(new)
        live, sums = np.concatenate([self.live, added[flags & SKIPPED == 0]]), self.sums
        if len(live) > MAX_LIVE:
            live, sums = add_up(live, _repeats_of(live, self.sums))
        kept = np.concatenate([self.events, events[fresh]])[-MAX_EVENTS:]
        lying = self._lying(np.unique(tracks))
        state = replace(after_plays(self.state, added, flags), heard=lying[0])
        return UserRecord(state, live, kept, sums, *lying[1:], self.flags), fresh

    def with_base(self, loaded: UserState, later: Sequence[Play] | None = None) -> "UserRecord":
        """Returns the record with its loaded part replaced; live plays are kept until the data covers them.

        A live play is covered when the loaded history holds its track with a last play at least as late: it
        is in the loaded count already. The others are added to the loaded history. Heard only ever grows, and
        skips stay: prepared data has none. The last plays of data that know none are those recorded live.

        Args:
            loaded: the user's state in the prepared data.
            later: all live plays of which an event log tells that the data were made before they came, none of which
                is covered, whatever its time and what was loaded before; None where no log tells.

        Returns:
            The new record.
        """
        own, live, sums, history = self.state.recent, self.live, self.sums, loaded.history
        tracks, times = track_hashes(play.track_id for play in later or ()), [play.time for play in later or ()]
        known = set(zip(tracks.tolist(), times, strict=True))
        if len(own):
            own = own[own["flags"] & LIVE != 0]
        if later:
            told = single_plays(tracks, [play.count for play in later], times)
            live, sums = _told_again(live, sums, told[[not play.skipped for play in later]])
            told_recent = make_recent(tracks, times, live_flags(later))
            own = merge_recent(without(own, told_recent), told_recent)

        def covered(plays: History | Recent) -> npt.NDArray[np.bool_]:
            held = _covered(history, plays["track"], plays["time"].astype(np.int64))
            if known:
                keys = zip(plays["track"].tolist(), plays["time"].tolist(), strict=True)
                held &= np.fromiter((key not in known for key in keys), bool, len(plays))
            return held

        if len(own) and len(loaded.recent):
            liked = own["flags"] & SKIPPED == 0
            own = without(own[~(liked & covered(own))], loaded.recent)
        repeats = repeats_of(loaded)
        if len(live):
            kept = ~covered(live)
            live, sums = live[kept], sums[kept[: len(sums)]]
            if len(live) > MAX_LIVE:
                live, sums = add_up(live, _repeats_of(live, sums))
            history, repeats = merged(history, repeats, live, _repeats_of(live, sums))
        lying = self._lying(loaded.heard)
        recent = merge_recent(loaded.recent, own)
        state = UserState(loaded.profile, history, lying[0], self.state.skipped, repeats, recent, self.state.version)
        return UserRecord(state, live, self.events, sums, *lying[1:], self.flags)

    def places(self, hashes: Hashes) -> list[int]:
        """Returns which chunks must be at hand where tracks may be heard.

        Args:
            hashes: of tracks that may be added.

        Returns:
            Where those chunks begin; nothing while all heard tracks lie in the record.
        """
        return heard.places(self.lows, hashes) if len(self.lows) else []

    def _lying(self, hashes: Hashes) -> tuple[Hashes, Hashes, Mapping[int, Hashes], frozenset[int]]:
        """Where heard tracks lie once `hashes` are among them: those in the record; lows, chunks, which changed."""
        lows, chunks = self.lows, self.chunks
        if not len(lows):
            together = heard.union(self.state.heard, hashes)
            if len(together) <= heard.MAX_CHUNK:
                return together, lows, chunks, self.changed
            lows, chunks, hashes = np.zeros(1, np.uint64), {0: no_hashes()}, together
        lows, changed = heard.add(lows, chunks, hashes)
        return no_hashes(), lows, {**chunks, **changed}, self.changed | set(changed)


def _repeats_of(live: History, sums: Repeats) -> Repeats:
    return np.concatenate([sums, at_once(live[len(sums) :])])


def _told_again(live: History, sums: Repeats, told: History) -> tuple[History, Repeats]:
    """Live plays with all that a log tells of, single again: other data may have covered some, sums may hold others."""
    n_sums = len(sums)
    stays = ~np.isin(live["track"][:n_sums], told["track"])
    return np.concatenate([live[:n_sums][stays], without(live[n_sums:], told), told]), sums[stays]


def _covered(history: History, tracks: Hashes, times: I64) -> npt.NDArray[np.bool_]:
    """Which of some plays the loaded history holds already: their track, with a last play at least as late."""
    if not (len(history) and len(tracks)):
        return np.zeros(len(tracks), bool)
    by_track = np.argsort(history["track"])
    held = history[by_track]
    at = np.minimum(np.searchsorted(held["track"], tracks), len(held) - 1)
    covered: npt.NDArray[np.bool_] = (held["track"][at] == tracks) & (held["time"][at] >= times)
    return covered


def user_key(user_id: str) -> bytes:
    """Returns the key of a user's record. LMDB keys end at 511 bytes: a longer id is hashed.

    Args:
        user_id: whose.

    Returns:
        `u` and the id, or `h` and the 32-byte BLAKE2b of an id over 500 bytes.
    """
    name = user_id.encode()
    return b"u" + name if len(name) <= 500 else b"h" + hashlib.blake2b(name, digest_size=32).digest()


def is_named(key: bytes) -> bool:
    """Says whether a user's key holds the id itself, and not a hash of it.

    Args:
        key: as `user_key` returns it.

    Returns:
        Whether it is `u` and the id.
    """
    return key[:1] == b"u"
