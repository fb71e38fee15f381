"""Histories of many users in one ragged array: computations per segment, encoding and padding of the entries.

Every function treats each user's segment by itself, so an answer does not depend on the rest of the batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64

MAX_GAP_DAYS = 3 * 365.0
_LOG_MAX_GAP = float(np.log1p(MAX_GAP_DAYS))
POSITION_SCALE = 7  # log1p of a position, divided by this, is a feature between 0 and about 1.1
HISTORY_FEATURES = ("count", "gap", "position")  # of each history entry; the user tower weighs it by them
COUNT, GAP, POSITION = range(3)  # their columns


@dataclass(frozen=True)
class Histories:
    """Histories of n users back to back: entry j of user i lies at offsets[i] + j; newest last.

    Args:
        offsets: (n + 1,) int64.
        rows: (m,) int64 positions in the encoded tracks.
        counts: (m,) float32 plays.
        times: (m,) int64 Unix seconds of the last play; 0 unknown, and below 0, where the order is known all the same.
    """

    offsets: I64
    rows: I64
    counts: F32
    times: I64

    @classmethod
    def one(cls, rows: I64, counts: F32, times: I64) -> "Histories":
        """Returns the histories of a single user.

        Args:
            rows: (m,) int64.
            counts: (m,) float32.
            times: (m,) int64.

        Returns:
            Histories of one user.
        """
        return cls(np.array([0, len(rows)], np.int64), rows, counts, times)


@dataclass(frozen=True)
class EncodedUsers:
    """Encoded users: dense (n, du) float32, ids (n, cu) int64, and per history entry `entry` (m, 3) float32."""

    dense: F32
    ids: I64
    histories: Histories
    entry: F32

    def take(self, chosen: I64) -> "EncodedUsers":
        """Returns some of the users.

        Args:
            chosen: (m,) int64 positions.

        Returns:
            The m users in that order, copied.
        """
        h = self.histories
        starts, ends = h.offsets[chosen], h.offsets[chosen + 1]
        at = spans(starts, ends)
        histories = Histories(offsets_of(ends - starts), h.rows[at], h.counts[at], h.times[at])
        return EncodedUsers(self.dense[chosen], self.ids[chosen], histories, self.entry[at])

    def one(self, i: int) -> "EncodedUsers":
        """Returns one user alone.

        Args:
            i: its position.

        Returns:
            The user, in views of these arrays.
        """
        h = self.histories
        at = slice(h.offsets[i], h.offsets[i + 1])
        histories = Histories.one(h.rows[at], h.counts[at], h.times[at])
        return EncodedUsers(self.dense[i : i + 1], self.ids[i : i + 1], histories, self.entry[at])

    def padded(self) -> tuple[I64, F32, F32]:
        """Returns rows (n, h) int64, entry features (n, h, 3) float32 and mask (n, h) float32, h >= 1 the longest."""
        offsets = self.histories.offsets
        if len(offsets) == 2 and (h := len(self.entry)):  # a request: nothing to pad
            mask = np.empty((1, h), np.float32)
            mask.fill(1)  # in a third of the time of `numpy.ones`
            return self.histories.rows[None], self.entry[None], mask
        lengths = np.diff(offsets)
        n, longest = len(lengths), max(1, int(lengths.max(initial=0)))
        rows = np.zeros((n, longest), np.int64)
        entry = np.zeros((n, longest, len(HISTORY_FEATURES)), np.float32)
        mask = (np.arange(longest) < lengths[:, None]).astype(np.float32)
        filled = mask.astype(bool)
        rows[filled], entry[filled] = self.histories.rows, self.entry
        return rows, entry, mask


def spans(starts: I64, ends: I64) -> I64:
    """Concatenates ranges.

    Args:
        starts: (n,) int64.
        ends: (n,) int64, none below its start.

    Returns:
        (m,) int64, arange(starts[i], ends[i]) for each i in turn.
    """
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.arange(lengths.sum()) - np.repeat(before - starts, lengths), np.int64)


def offsets_of(lengths: I64) -> I64:
    """Returns the offsets of segments.

    Args:
        lengths: (n,) integers.

    Returns:
        (n + 1,) int64, beginning with 0.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def play_weights(counts: F32) -> F32:
    """Returns the weight of plays: log1p of their count, so that a favourite does not drown the rest.

    Args:
        counts: (m,) float32.

    Returns:
        (m,) float32.
    """
    return np.asarray(np.log1p(counts), np.float32)


def relative_weights(weight: F32, offsets: I64, total: F32 | None = None) -> F32:
    """Returns weights relative to the mean of their segment, clipped to 0.05 and 20.

    Teachers, co-listening scores and an untrained user tower weigh a play by this.

    Args:
        weight: (m,) float32.
        offsets: (n + 1,) int64 of the segments.
        total: (n,) float32 sums of `weight` over the segments, computed where None.

    Returns:
        (m,) float32.
    """
    lengths = offsets[1:] - offsets[:-1]
    total = sums(weight, offsets) if total is None else total
    mean = np.maximum(np.maximum(total, 1e-9) / np.maximum(lengths, 1), 1e-9)
    relative = weight / spread(mean, lengths)
    np.minimum(np.maximum(relative, 0.05, out=relative), 20.0, out=relative)
    return np.asarray(relative, np.float32)


def entry_features(histories: Histories, relative: F32) -> tuple[F32, npt.NDArray[np.float64]]:
    """Computes the HISTORY_FEATURES of every entry.

    Args:
        histories: of n users, m entries in all.
        relative: (m,) float32 from `relative_weights`.

    Returns:
        (m, 3) float32: log of the relative weight, scaled gap to the newest play, scaled distance from the end; and
        (n,) float64, how many days each user's dated plays span.
    """
    offsets, times = histories.offsets, histories.times
    entry = np.zeros((len(relative), len(HISTORY_FEATURES)), np.float32)
    np.log(relative, out=entry[:, COUNT])
    if not times.any():  # of plays without times the order means nothing, unless it is given
        return entry, np.zeros(len(offsets) - 1)
    lengths = offsets[1:] - offsets[:-1]
    last = spread(maxima(times, offsets), lengths)
    days = (last - times) / 86400.0
    np.minimum(np.maximum(days, 0, out=days), MAX_GAP_DAYS, out=days)
    span, unknown = days, times <= 0
    if unknown.any():
        days[unknown], span = MAX_GAP_DAYS, np.where(unknown, 0, days)
    position = spread(offsets[1:] - 1, lengths) - np.arange(len(relative))
    np.multiply(np.log1p(days) / _LOG_MAX_GAP, last > 0, out=entry[:, GAP])
    np.multiply(np.log1p(position) / POSITION_SCALE, last != 0, out=entry[:, POSITION])
    return entry, maxima(span, offsets)


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


def spread(values: npt.NDArray[Any], lengths: I64) -> npt.NDArray[Any]:
    """Gives each entry of a segment the value of its segment.

    Args:
        values: (n,).
        lengths: (n,) int64 of the segments, m entries in all.

    Returns:
        (m,), or (1,) for a single segment, which arithmetic broadcasts alike.
    """
    return values if len(values) == 1 else np.repeat(values, lengths)


def sums(values: F32, offsets: I64) -> F32:
    """Sums values over each segment, independently of the other segments.

    Args:
        values: (m, ...) float32.
        offsets: (n + 1,) int64 of the segments.

    Returns:
        (n, ...) float32, 0 for an empty segment.
    """
    return np.asarray(_per_segment(np.add, values, offsets), np.float32)


def maxima(values: npt.NDArray[Any], offsets: I64) -> npt.NDArray[Any]:
    """Returns the largest value of each segment.

    Args:
        values: (m,).
        offsets: (n + 1,) int64 of the segments.

    Returns:
        (n,) in the dtype of `values`, 0 for an empty segment.
    """
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
