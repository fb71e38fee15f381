"""Two sparse tables of what goes with what in time: what follows a track, and what shares its sessions.

A table keeps for each track its strongest others, as rows and weights back to back; a weight is already divided by
the root of the listeners of the track that it starts from, so that what everybody plays does not drown the rest.
Transitions are ordered and fall with the distance in the session; the other table is not ordered.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lhydra import kernels
from lhydra.domain import F32, I64
from lhydra.features.histories import offsets_of

if TYPE_CHECKING:
    from lhydra.kernels.compiled import SequenceTables

F64 = npt.NDArray[np.float64]
FOLLOWS, TOGETHER = 10, 25  # plays later that count as following, and as of the same session
WIDTHS = (64, 32)  # most others that a track keeps in each table
PER_TRACK = 5.5  # others that a track keeps on average in each table: both and the damping fit in 80 bytes a track
PER_TRACK_JOINED = 22.0  # likewise where all sessions of a user are one, and tell more: 280 bytes a track
FALL = 1.0  # what follows n plays later counts n^-FALL


@dataclass(frozen=True)
class Sequences:
    """What goes with what in time, of n tracks.

    Both tables lie in the same arrays, so that one look finds both: what follows track i lies from offsets[i] to
    offsets[i + 1], what shares its sessions from offsets[n + i] to offsets[n + i + 1].

    Args:
        offsets: (2 n + 1,) int32.
        rows: (m,) int32, strongest first.
        weights: (m,) float16.
        damping: (n,) float16, listeners^-0.5 of each track; 0 counts as 1.
        shares: (3,) float32, how much of the depth the candidates of each source may take; see
            `lhydra.features.moment.SOURCES`.
    """

    offsets: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float16]
    damping: npt.NDArray[np.float16]
    shares: F32

    def __len__(self) -> int:
        return len(self.damping)

    @cached_property
    def told_shares(self) -> tuple[float, ...]:
        """The shares as numbers, by which `room_of` is kept."""
        return tuple(self.shares.tolist())

    @cached_property
    def compiled(self) -> "SequenceTables":
        """The tables as the compiled kernels, where there are any, read them."""
        weights, damping = (halves.view(np.uint16) for halves in (self.weights, self.damping))
        return kernels.compiled.SequenceTables(self.offsets, self.rows, weights, damping)

    def others(self, tracks: I64) -> tuple[npt.NDArray[np.int32], F32, I64, int]:
        """Finds what goes with some tracks: what follows, then what shares their sessions.

        Args:
            tracks: (q,) rows.

        Returns:
            (p,) the others, (p,) their weights, (p,) of which of `tracks` each is; and how many of the p follow.
        """
        n, q = len(self), len(tracks)
        if not n or not q:
            return np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int64), 0
        both = np.concatenate([tracks, tracks + n])
        starts = self.offsets.take(both)
        lengths = self.offsets.take(both + 1) - starts
        ends = lengths.cumsum()
        of = np.arange(2 * q).repeat(lengths)
        at = (starts - ends + lengths).take(of)
        at += np.arange(len(of))
        cut = int(ends[q - 1])
        of[cut:] -= q
        return self.rows.take(at), self.weights.take(at).astype(np.float32), of, cut

    def before(self, track: int) -> I64:
        """Finds the tracks that one track follows.

        Args:
            track: its row.

        Returns:
            (p,) rows, that which it follows most first.
        """
        at = np.flatnonzero(self.rows[: self.offsets[len(self)]] == track) if len(self) else np.empty(0, np.int64)
        at = at[np.argsort(-self.weights.take(at), kind="stable")]
        return np.asarray(np.searchsorted(self.offsets, at, "right") - 1, np.int64)


NO_SEQUENCES = Sequences(
    *(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float16), np.empty(0, np.float16)),
    np.zeros(3, np.float32),
)


def fit_sequences(track: I64, session: I64, listeners: I64, per_track: float = PER_TRACK) -> Sequences:
    """Fits both tables.

    Args:
        track: (p,) of plays that may be learned from, session by session, each in order of listening.
        session: (p,) which session each belongs to; -1 for none.
        listeners: (n,) users who played each track.
        per_track: others that a track keeps on average in each table.

    Returns:
        The tables.
    """
    damping = np.maximum(listeners, 1) ** -0.5
    falls: list[F64] = [np.arange(1.0, FOLLOWS + 1) ** -FALL, np.ones(TOGETHER)]
    ordered, near = (_pairs(track, session, fall, len(listeners)) for fall in falls)
    source, other, weight = near
    both = np.concatenate([source, other]), np.concatenate([other, source]), np.concatenate([weight, weight])
    keys, at = np.unique(both[0] * len(listeners) + both[1], return_inverse=True)
    source, other = np.divmod(keys, len(listeners))
    weight = np.bincount(at, both[2], len(keys)) * damping[other]
    tables = (*ordered, damping, WIDTHS[0]), (source, other, weight, damping, WIDTHS[1])
    kept = [_strongest(*table, per_track) for table in tables]
    offsets = offsets_of(np.concatenate([sizes for sizes, *_ in kept])).astype(np.int32)
    rows, weights = (np.concatenate([one[part] for one in kept]) for part in (1, 2))
    shares = np.zeros(3, np.float32)
    return Sequences(offsets, rows.astype(np.int32), weights.astype(np.float16), damping.astype(np.float16), shares)


def _pairs(track: I64, session: I64, fall: F64, n: int) -> tuple[I64, I64, F64]:
    """Which track comes later in the session of which, and the sum of `fall` over how many plays later."""
    keys: list[I64] = [np.empty(0, np.int64)]
    weights: list[F64] = [np.empty(0)]
    for step, weight in enumerate(fall.tolist(), 1):
        same = (session[step:] == session[:-step]) & (session[step:] >= 0) & (track[step:] != track[:-step])
        keys.append(track[:-step][same] * n + track[step:][same])
        weights.append(np.full(len(keys[-1]), weight))
        if step % 5 == 0:  # bounded memory: sums so far
            keys, weights = _summed(keys, weights)
    [key], [total] = _summed(keys, weights)
    return key // n, key % n, total


def _summed(keys: list[I64], weights: list[F64]) -> tuple[list[I64], list[F64]]:
    distinct, at = np.unique(np.concatenate(keys), return_inverse=True)
    return [distinct], [np.asarray(np.bincount(at, np.concatenate(weights), len(distinct)), np.float64)]


def _strongest(
    source: I64, other: I64, weight: F64, damping: F64, width: int, per_track: float
) -> tuple[I64, I64, F64]:
    """Keeps the strongest pairs of each track: `per_track` on average, at most `width`.

    Returns:
        (n,) how many each track keeps, and the others and weights back to back.
    """
    n = len(damping)
    order = np.lexsort((-weight, source))
    source, other, weight = source[order], other[order], weight[order]
    place = np.arange(len(source)) - np.searchsorted(source, np.arange(n))[source]
    fitting = np.cumsum(np.bincount(np.minimum(place, width), minlength=width + 1)[:width]) <= per_track * n
    kept = place < max(int(fitting.sum()), 1)
    source, other, weight = source[kept], other[kept], weight[kept] * damping[source[kept]]
    return np.bincount(source, minlength=n).astype(np.int64), other, np.minimum(weight, 60_000.0)
