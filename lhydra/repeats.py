"""What is known of the tracks of a history beyond their counts: first plays, decayed counts, the last plays in order.

A decayed count is Σ count · 2^(-age / half-life) over the plays of a track, as of its last play. Two such sums are
added by ageing both to the later of their last plays, so plays are added one by one, in bulk or in any order, and the
work never depends on how many plays a sum holds already.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lhydra.domain import (
    COMPLETED,
    F32,
    HALF_LIVES_DAYS,
    HISTORY_DTYPE,
    I64,
    LIVE,
    MAX_HISTORY,
    MAX_RECENT,
    MAX_SKIPPED,
    RECENT_DTYPE,
    REPEAT_DTYPE,
    SKIPPED,
    Hashes,
    History,
    Recent,
    Repeats,
    UserState,
    history_order,
    no_history,
    no_recent,
    saturated,
)

_HALF_LIVES_S = np.array(HALF_LIVES_DAYS) * 86_400.0
_LATEST = np.iinfo(np.uint32).max  # of REPEAT_DTYPE and RECENT_DTYPE: the year 2106


class Ended(Protocol):
    """How a play ended."""

    @property
    def skipped(self) -> bool | None:
        """Whether it was skipped; None and False say the same."""

    @property
    def completed(self) -> bool | None:
        """Whether it was played to its end; None and False say the same."""


def single_plays(tracks: Hashes, counts: Sequence[float] | F32, times: Sequence[int] | I64) -> History:
    """Returns one entry for each play, which `add_up` adds up.

    Args:
        tracks: (n,) uint64 hashes, repeats allowed.
        counts: (n,) plays, saturated.
        times: (n,) Unix seconds, 0 unknown.

    Returns:
        (n,) HISTORY_DTYPE in the order given.
    """
    entries = np.zeros(len(tracks), HISTORY_DTYPE)
    entries["track"], entries["time"] = tracks, times
    entries["count"] = saturated(np.asarray(counts, np.float64))
    return entries


def at_once(history: History) -> Repeats:
    """Returns the repeats of entries of which no more is known than the history says: all plays at the last one.

    Args:
        history: (n,) HISTORY_DTYPE; single plays, or what an earlier version kept.

    Returns:
        (n,) REPEAT_DTYPE.
    """
    repeats = np.empty(len(history), REPEAT_DTYPE)
    repeats["first"] = np.minimum(np.maximum(history["time"], 0), _LATEST)
    repeats["decayed"] = history["count"][:, None]
    return repeats


def repeats_of(state: UserState) -> Repeats:
    """Returns the repeats of a state, those of `at_once` where it has none.

    Args:
        state: any.

    Returns:
        (n,) REPEAT_DTYPE, aligned with the history.
    """
    return state.repeats if len(state.repeats) == len(state.history) else at_once(state.history)


def add_up(history: History, repeats: Repeats) -> tuple[History, Repeats]:
    """Returns one entry per track, in `history_order`, as `make_history` would of all the plays; with their repeats.

    Args:
        history: (n,) entries of one user in any order, each a sum or a single play.
        repeats: (n,) of the same entries.

    Returns:
        At most MAX_HISTORY entries; their repeats.
    """
    if not len(history):
        return history, repeats
    total, kept, _ = sums_by_track(history, repeats)
    newest = history_order(total["track"], total["count"], total["time"])[-MAX_HISTORY:]
    return total[newest], kept[newest]


def sums_by_track(history: History, repeats: Repeats, users: I64 | None = None) -> tuple[History, Repeats, I64]:
    """Returns one entry per user and track, in that order; with their repeats.

    Args:
        history: (n,) entries in any order, each a sum or a single play; at least one.
        repeats: (n,) of the same entries.
        users: (n,) whose each is; one user's by default.

    Returns:
        (m,) entries, however many a user has; their repeats; whose they are.
    """
    order, starts, own, total, owners = _grouped(history, users)
    entries, parts = history[order], repeats[order]
    kept = np.empty(len(starts), REPEAT_DTYPE)
    # 0, an unknown time, wraps to the latest of all and back.
    kept["first"] = np.minimum.reduceat(parts["first"] - np.uint32(1), starts) + np.uint32(1)
    age, decayed = total["time"][own] - entries["time"], parts["decayed"].astype(np.float64)
    if len(older := np.flatnonzero(age)):
        decayed[older] *= np.exp2(-age[older, None] / _HALF_LIVES_S)
    kept["decayed"] = saturated(np.add.reduceat(decayed, starts))
    return total, kept, owners


def histories_of(plays: History, users: I64, n_users: int) -> list[History]:
    """Returns the histories of many users, each as `make_history` makes it, faster than one by one.

    Args:
        plays: (n,) single plays, or sums of some.
        users: (n,) whose each is, from 0 to n_users - 1.
        n_users: how many users there are.

    Returns:
        The history of each user.
    """
    if not len(plays):
        return [no_history()] * n_users
    _, _, _, total, owners = _grouped(plays, users)
    total = total[history_order(total["track"], total["count"], total["time"], owners)]
    ends = np.searchsorted(owners, np.arange(n_users), "right").tolist()
    starts = [0, *ends[:-1]]
    return [total[max(start, end - MAX_HISTORY) : end] for start, end in zip(starts, ends, strict=True)]


def hashes_of(hashes: Hashes, users: I64, n_users: int) -> list[Hashes]:
    """Returns the distinct hashes of many users.

    Args:
        hashes: (n,) uint64.
        users: (n,) whose each is, from 0 to n_users - 1.
        n_users: how many users there are.

    Returns:
        Those of each user, sorted.
    """
    order = _by_user(hashes, users)
    sorted_, owners = hashes[order], users[order]
    new = np.ones(len(order), bool)
    new[1:] = (sorted_[1:] != sorted_[:-1]) | (owners[1:] != owners[:-1])
    return np.split(sorted_[new], np.searchsorted(owners[new], np.arange(1, n_users)))


def _by_user(hashes: Hashes, users: I64) -> I64:
    """The stable order by user, then hash. One key of both, the hash cut short, sorts in a seventh of the time."""
    bits = np.uint64(int(users.max(initial=0)).bit_length())
    key = (users.astype(np.uint64) << (np.uint64(64) - bits)) | (hashes >> bits)
    order = np.argsort(key, kind="stable")
    sorted_, key = hashes[order], key[order]
    if ((key[1:] == key[:-1]) & (sorted_[1:] < sorted_[:-1])).any():  # hashes that differ in their last bits only
        return np.lexsort((hashes, users))
    return order


def _grouped(history: History, users: I64 | None) -> tuple[I64, I64, I64, History, I64]:
    """Entries by user and track: their order, where groups start in it, whose each is, sums without repeats, users."""
    tracks = history["track"]
    order = np.argsort(tracks, kind="stable") if users is None else _by_user(tracks, users)
    entries = history[order]
    owners = np.zeros(len(entries), np.int64) if users is None else users[order]
    begins = np.ones(len(entries), bool)
    begins[1:] = (entries["track"][1:] != entries["track"][:-1]) | (owners[1:] != owners[:-1])
    starts, own = np.flatnonzero(begins), np.cumsum(begins) - 1
    total = np.zeros(len(starts), HISTORY_DTYPE)
    total["track"] = entries["track"][starts]
    # A group is added in the order given, as `make_history` does: the same sums to the last bit.
    total["count"] = saturated(np.bincount(own, entries["count"].astype(np.float64)))
    total["time"] = np.maximum(np.maximum.reduceat(entries["time"], starts), 0)
    return order, starts, own, total, owners[starts]


def make_recent(tracks: Hashes, times: Sequence[int] | I64, flags: Sequence[int] | I64) -> Recent:
    """Returns plays as they are remembered one by one.

    Args:
        tracks: (n,) uint64 hashes.
        times: (n,) Unix seconds, 0 unknown.
        flags: SKIPPED, COMPLETED, LIVE of each.

    Returns:
        (n,) RECENT_DTYPE in the order given.
    """
    recent = np.zeros(len(tracks), RECENT_DTYPE)
    recent["track"], recent["flags"] = tracks, flags
    recent["time"] = np.clip(np.asarray(times, np.int64), 0, _LATEST)
    return recent


def merge_recent(before: Recent, later: Recent) -> Recent:
    """Returns the last plays of both, by time; of plays of one time those of `before` first.

    Args:
        before: by time.
        later: in order of arrival.

    Returns:
        At most MAX_RECENT plays, newest last.
    """
    if not len(later):
        return before[-MAX_RECENT:]
    both = np.concatenate([before, later])
    if (both["time"][1:] < both["time"][:-1]).any():
        both = both[np.argsort(both["time"], kind="stable")]
    return both[-MAX_RECENT:]


def live_flags(plays: Sequence[Ended]) -> I64:
    """Returns the flags of plays that arrive live.

    Args:
        plays: n of them.

    Returns:
        (n,) LIVE, with SKIPPED and COMPLETED.
    """
    flags = [LIVE | (SKIPPED if play.skipped else 0) | (COMPLETED if play.completed else 0) for play in plays]
    return np.array(flags, np.int64)


def after_plays(state: UserState, plays: History, flags: I64) -> UserState:
    """Returns a state after plays: the one rule for those that are recorded and for the session that a request brings.

    A skipped play does not enter the history: it is no sign of liking. Its track counts as skipped until a play of it
    arrives that was not.

    Args:
        state: before.
        plays: (n,) single plays in order of arrival.
        flags: (n,) SKIPPED, COMPLETED, LIVE of each.

    Returns:
        The state; `heard` is as before, for it may lie elsewhere.
    """
    liked = flags & SKIPPED == 0
    added = plays[liked]
    history, repeats = merged(state.history, repeats_of(state), added, at_once(added))
    recent = merge_recent(state.recent, make_recent(plays["track"], plays["time"], flags))
    skipped = _skipped(state.skipped, plays["track"], liked)
    return UserState(state.profile, history, state.heard, skipped, repeats, recent, state.version)


def merged(a: History, a_repeats: Repeats, b: History, b_repeats: Repeats) -> tuple[History, Repeats]:
    """Returns a history with entries added up to it, as `add_up` would; what they do not touch stays to the last bit.

    Few entries cost little beside a long history, and tracks without a time keep the order that times below 0 tell.

    Args:
        a: (n,) entries, one per track.
        a_repeats: (n,) theirs.
        b: (m,) entries in any order, each a sum or a single play.
        b_repeats: (m,) theirs.

    Returns:
        At most MAX_HISTORY entries in `history_order`; their repeats.
    """
    if not len(b):
        return a, a_repeats
    touched = np.isin(a["track"], b["track"])
    if touched.any():
        b, b_repeats = np.concatenate([a[touched], b]), np.concatenate([a_repeats[touched], b_repeats])
    total, kept, _ = sums_by_track(b, b_repeats)
    total, kept = np.concatenate([a[~touched], total]), np.concatenate([a_repeats[~touched], kept])
    newest = history_order(total["track"], total["count"], total["time"])[-MAX_HISTORY:]
    return total[newest], kept[newest]


def _skipped(before: Hashes, tracks: Hashes, liked: npt.NDArray[np.bool_]) -> Hashes:
    """Tracks skipped last and not liked since, after plays of `tracks` in order."""
    kept = dict.fromkeys(before.tolist())
    for track, is_liked in zip(tracks.tolist(), liked.tolist(), strict=True):
        kept.pop(track, None)
        if not is_liked:
            kept[track] = None
    return np.array(list(kept)[-MAX_SKIPPED:], np.uint64)


def either(a: UserState, b: UserState) -> tuple[History, Repeats, Recent]:
    """Returns what two overlapping accounts of one user say together: sums would count plays twice.

    Args:
        a: a state.
        b: another.

    Returns:
        Of each track the larger counts, the first play and the last; their repeats; the last plays, each once.
    """
    entries = np.concatenate([a.history, b.history])
    parts = np.concatenate([repeats_of(a), repeats_of(b)])
    tracks, own = np.unique(entries["track"], return_inverse=True)
    total, kept = np.zeros(len(tracks), HISTORY_DTYPE), np.zeros(len(tracks), REPEAT_DTYPE)
    total["track"] = tracks
    for name in ("count", "time"):
        np.maximum.at(total[name], own, entries[name])
    first = np.full(len(tracks), _LATEST, np.uint32)
    np.minimum.at(first, own, parts["first"] - np.uint32(1))  # 0, an unknown time, wraps to the latest of all
    kept["first"] = first + np.uint32(1)
    age = (total["time"][own] - entries["time"]).astype(np.float64)
    np.maximum.at(kept["decayed"], own, parts["decayed"] * np.exp2(-age[:, None] / _HALF_LIVES_S).astype(np.float32))
    newest = history_order(total["track"], total["count"], total["time"])[-MAX_HISTORY:]
    return total[newest], kept[newest], merge_recent(a.recent, without(b.recent, a.recent))


def without(recent: Recent, others: Recent) -> Recent:
    """Returns plays that others do not tell of too: the same track at the same time.

    Args:
        recent: (n,) plays.
        others: (m,) plays.

    Returns:
        Those of `recent` that are not among `others`, in their order.
    """
    known = set(others[["track", "time"]].tolist())
    return recent[[play not in known for play in recent[["track", "time"]].tolist()]]


def recent_of(tracks: Hashes, times: I64, users: I64, n_users: int, flags: Sequence[int] | I64) -> list[Recent]:
    """Returns the last plays of many users.

    Args:
        tracks: (n,) uint64 hashes of plays, user by user, each user's by time.
        times: (n,) Unix seconds; plays of unknown time, 0, have no place in an order and are left out.
        users: (n,) whose each is, from 0 to n_users - 1.
        n_users: how many users there are.
        flags: (n,) SKIPPED, COMPLETED of each.

    Returns:
        At most MAX_RECENT plays of each user, newest last.
    """
    if not (dated := times > 0).any():
        return [no_recent()] * n_users
    recent, owners = make_recent(tracks[dated], times[dated], np.asarray(flags)[dated]), users[dated]
    ends = np.searchsorted(owners, np.arange(n_users), "right")
    starts = np.maximum(np.searchsorted(owners, np.arange(n_users)), ends - MAX_RECENT)
    return [recent[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
