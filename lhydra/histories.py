"""Histories of many users back to back, what is computed per segment, and how entries are encoded and padded.

Every function treats each user's segment by itself, so an answer does not depend on who else is in the batch.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64

MAX_GAP_DAYS = 3 * 365.0
HISTORY_FEATURES = ("count", "gap", "position")  # per history entry, what its weight may depend on


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

    def padded(self) -> tuple[I64, F32, F32]:
        """Returns rows (n, h) int64, entry features (n, h, 3) float32 and mask (n, h) float32, h >= 1 the longest."""
        offsets = self.histories.offsets
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


def relative_weights(weight: F32, offsets: I64) -> F32:
    """Returns `weight` (m,) against the mean of its segment, within 0.05 and 20.

    What teachers, co-listening scores and an untrained user tower weigh a play by.
    """
    lengths = np.diff(offsets)
    mean = np.maximum(sums(weight, offsets), 1e-9) / np.maximum(lengths, 1)
    return np.asarray(np.clip(weight / np.maximum(np.repeat(mean, lengths), 1e-9), 0.05, 20.0), np.float32)


def entry_features(histories: Histories, relative: F32) -> F32:
    """(m, 3): log of the `relative` weight (m,), how long before the newest play, how far from the end."""
    offsets, times = histories.offsets, histories.times
    lengths = np.diff(offsets)
    entry = np.zeros((len(relative), len(HISTORY_FEATURES)), np.float32)
    entry[:, 0] = np.log(relative)
    if times.any():  # without times the order means nothing
        newest = np.repeat(maxima(times, offsets), lengths)
        days = np.where(times > 0, (newest - times) / 86400.0, np.where(newest > 0, MAX_GAP_DAYS, 0.0))
        entry[:, 1] = np.log1p(np.clip(days, 0, MAX_GAP_DAYS)) / np.log1p(MAX_GAP_DAYS)
        position = np.repeat(offsets[1:], lengths) - 1 - np.arange(len(relative))
        entry[:, 2] = np.where(newest > 0, np.log1p(position) / 7, 0)
    return entry


def spread_days(histories: Histories) -> npt.NDArray[np.float64]:
    """(n,) days between each user's oldest and newest known play, at most MAX_GAP_DAYS."""
    times, offsets = histories.times, histories.offsets
    if not times.any():
        return np.zeros(len(offsets) - 1)
    oldest = -maxima(np.where(times > 0, -times, np.iinfo(np.int64).min), offsets)
    newest = maxima(times, offsets)
    return np.asarray(np.clip(np.where(newest > 0, newest - oldest, 0) / 86400.0, 0, MAX_GAP_DAYS))


def sums(values: F32, offsets: I64) -> F32:
    """Sums of `values` (m, ...) over each segment; 0 for an empty one. Independent of the other segments."""
    out = np.zeros((len(offsets) - 1, *values.shape[1:]), np.float32)
    some = offsets[1:] > offsets[:-1]
    if some.any():
        out[some] = np.add.reduceat(values, offsets[:-1][some], axis=0)
    return out


def maxima(values: I64, offsets: I64) -> I64:
    """Largest of `values` (m,) in each segment; 0 for an empty one."""
    out = np.zeros(len(offsets) - 1, np.int64)
    some = offsets[1:] > offsets[:-1]
    if some.any():
        out[some] = np.maximum.reduceat(values, offsets[:-1][some])
    return out
