"""Histories of many users back to back, what is computed per segment, and how entries are encoded and padded.

Every function treats each user's segment by itself, so an answer does not depend on who else is in the batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64

MAX_GAP_DAYS = 3 * 365.0
POSITION_SCALE = 7  # log1p of a position, divided by this, is a feature between 0 and about 1.1
HISTORY_FEATURES = ("count", "gap", "position")  # per history entry, what its weight may depend on
COUNT, GAP, POSITION = range(3)  # their columns


@dataclass(frozen=True)
class Histories:
    """Histories of n users back to back: entry j of user i lies at offsets[i] + j; newest last.

    offsets: (n + 1,) int64; rows: (m,) int64 positions in the encoded tracks; counts: (m,) float32;
    times: (m,) int64 Unix seconds, 0 unknown.
    """

    offsets: I64
    rows: I64
    counts: F32
    times: I64

    @classmethod
    def one(cls, rows: I64, counts: F32, times: I64) -> "Histories":
        """Returns the histories of a single user."""
        return cls(np.array([0, len(rows)], np.int64), rows, counts, times)


@dataclass(frozen=True)
class EncodedUsers:
    """Encoded users: dense (n, du) float32, ids (n, cu) int64, and per history entry `entry` (m, 3) float32."""

    dense: F32
    ids: I64
    histories: Histories
    entry: F32

    def take(self, chosen: I64) -> "EncodedUsers":
        """Returns the users at `chosen`, (m,) int64, in that order."""
        h = self.histories
        starts, ends = h.offsets[chosen], h.offsets[chosen + 1]
        at = spans(starts, ends)
        histories = Histories(offsets_of(ends - starts), h.rows[at], h.counts[at], h.times[at])
        return EncodedUsers(self.dense[chosen], self.ids[chosen], histories, self.entry[at])

    def one(self, i: int) -> "EncodedUsers":
        """Returns user i alone, in views."""
        h = self.histories
        at = slice(h.offsets[i], h.offsets[i + 1])
        histories = Histories.one(h.rows[at], h.counts[at], h.times[at])
        return EncodedUsers(self.dense[i : i + 1], self.ids[i : i + 1], histories, self.entry[at])

    def padded(self) -> tuple[I64, F32, F32]:
        """Returns rows (n, h) int64, entry features (n, h, 3) float32 and mask (n, h) float32, h >= 1 the longest."""
        offsets = self.histories.offsets
        if len(offsets) == 2 and offsets[1]:  # a request: nothing to pad
            return self.histories.rows[None], self.entry[None], np.ones((1, offsets[1]), np.float32)
        lengths = np.diff(offsets)
        n, longest = len(lengths), max(1, int(lengths.max(initial=0)))
        rows = np.zeros((n, longest), np.int64)
        entry = np.zeros((n, longest, len(HISTORY_FEATURES)), np.float32)
        mask = (np.arange(longest) < lengths[:, None]).astype(np.float32)
        filled = mask.astype(bool)
        rows[filled], entry[filled] = self.histories.rows, self.entry
        return rows, entry, mask


def spans(starts: I64, ends: I64) -> I64:
    """Returns the concatenation of arange(starts[i], ends[i])."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.arange(lengths.sum()) - np.repeat(before - starts, lengths), np.int64)


def offsets_of(lengths: I64) -> I64:
    """Returns the offsets (n + 1,) of segments of these lengths."""
    return np.asarray(np.concatenate([[0], np.cumsum(lengths)]), np.int64)


def play_weights(counts: F32) -> F32:
    """Returns what plays weigh, (m,) float32: the log of their count, so that a favourite does not drown the rest."""
    return np.asarray(np.log1p(counts), np.float32)


def relative_weights(weight: F32, offsets: I64, total: F32 | None = None) -> F32:
    """Returns `weight` (m,) against the mean of its segment, within 0.05 and 20.

    What teachers, co-listening scores and an untrained user tower weigh a play by. total: (n,) the sums of `weight`
    over the segments, where they are known already.
    """
    lengths = np.diff(offsets)
    total = sums(weight, offsets) if total is None else total
    mean = np.maximum(np.maximum(total, 1e-9) / np.maximum(lengths, 1), 1e-9)
    return np.asarray(np.clip(weight / np.repeat(mean, lengths), 0.05, 20.0), np.float32)


def entry_features(histories: Histories, relative: F32) -> tuple[F32, npt.NDArray[np.float64]]:
    """Returns the features of every entry, (m, 3), and how many days each user's known plays span, (n,).

    The three: log of the `relative` weight (m,), how long before the newest play, how far from the end.
    """
    offsets, times = histories.offsets, histories.times
    entry = np.zeros((len(relative), len(HISTORY_FEATURES)), np.float32)
    np.log(relative, out=entry[:, COUNT])
    if not times.any():  # without times the order means nothing
        return entry, np.zeros(len(offsets) - 1)
    newest = maxima(times, offsets)
    lengths = np.diff(offsets)
    known, last = times > 0, np.repeat(newest, lengths)
    days = np.where(known, (last - times) / 86400.0, MAX_GAP_DAYS)
    np.clip(days, 0, MAX_GAP_DAYS, out=days)
    position = np.repeat(offsets[1:], lengths) - 1 - np.arange(len(relative))
    dated = last > 0
    entry[:, GAP] = np.where(dated, np.log1p(days) / np.log1p(MAX_GAP_DAYS), 0)
    entry[:, POSITION] = np.where(dated, np.log1p(position) / POSITION_SCALE, 0)
    return entry, maxima(np.where(known, days, 0), offsets)


def relative_weights_of(entry: F32) -> F32:
    """Returns what `relative_weights` gave, from the features of the entries: the inverse of what they keep of it.

    Args:
        entry: (m, 3) float32 from `entry_features`.

    Returns:
        (m,) float32.
    """
    return np.asarray(np.exp(entry[:, COUNT]), np.float32)


def positions_of(entry: F32) -> F32:
    """Returns how many plays came after each, from the features of the entries: the inverse of what they keep of it.

    Args:
        entry: (m, 3) float32 from `entry_features`.

    Returns:
        (m,) float32, 0 for the newest play and where no times are known.
    """
    return np.asarray(np.expm1(POSITION_SCALE * entry[:, POSITION]), np.float32)


def sums(values: F32, offsets: I64) -> F32:
    """Sums of `values` (m, ...) over each segment; 0 for an empty one. Independent of the other segments."""
    return np.asarray(_per_segment(np.add, values, offsets), np.float32)


def maxima(values: npt.NDArray[Any], offsets: I64) -> npt.NDArray[Any]:
    """Largest of `values` (m,) in each segment; 0 for an empty one."""
    return _per_segment(np.maximum, values, offsets)


def _per_segment(reduce: np.ufunc, values: npt.NDArray[Any], offsets: I64) -> npt.NDArray[Any]:
    starts = offsets[:-1]
    some = offsets[1:] > starts
    if some.all() and len(some):  # every request with a history
        return np.asarray(reduce.reduceat(values, starts, axis=0))
    out = np.zeros((len(starts), *values.shape[1:]), values.dtype)
    if some.any():
        out[some] = reduce.reduceat(values, starts[some], axis=0)
    return out
