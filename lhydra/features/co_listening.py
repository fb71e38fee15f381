"""Candidates by co-listening: from what the user has played to the tracks that `item_item` scores highest for it.

The table of `lhydra.features.item_item` lists for each candidate what speaks for it. Here it is turned round: for each
track played the STRONGEST of the candidates that it speaks for, so that a request looks only at those.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64
from lhydra.features.histories import offsets_of, relative_weights_of, spans
from lhydra.scratch import borrowed_places

STRONGEST = 32  # candidates that a track played keeps
NEWEST = 256  # entries of a history that are asked with: with STRONGEST, their places fit in borrowed_places
_BLOCK = 1 << 16  # tracks turned round at a time: bounded memory


@dataclass(frozen=True)
class CoListening:
    """The table turned round, of n tracks.

    Args:
        offsets: (n + 1,) int64.
        rows: (m,) int32, the candidates of track i from offsets[i] to offsets[i + 1], strongest first.
        weights: (m,) float16, above 0.
        share: (1,) float32, how much of the depth they may take.
    """

    offsets: I64
    rows: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float16]
    share: F32

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(
        cls,
        neighbours: npt.NDArray[np.int32],
        weights: npt.NDArray[np.floating],
        share: float,
        strongest: int = STRONGEST,
    ) -> "CoListening":
        """Turns a table round.

        Args:
            neighbours: (n, width) int32 rows of the table.
            weights: (n, width) float16 or float32, what each neighbour counts.
            share: of the depth.
            strongest: candidates that each track keeps; of equal ones those with the lowest rows.

        Returns:
            What was played to candidates.
        """
        n, width = neighbours.shape
        flat, strength = neighbours.reshape(-1), weights.reshape(-1).astype(np.float16)
        sizes, rows, kept = [np.empty(0, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.float16)]
        for start in range(0, n if width else 0, _BLOCK):
            at = np.flatnonzero((flat >= start) & (flat < start + _BLOCK) & (strength > 0))
            at = at[np.lexsort((-strength[at], flat[at]))]  # of equal ones in the order of candidates
            played = flat[at].astype(np.int64) - start
            counts = np.bincount(played, minlength=min(_BLOCK, n - start))
            place = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
            at = at[place < strongest]
            sizes.append(np.minimum(counts, strongest))
            rows.append((at // width).astype(np.int32))
            kept.append(strength[at])
        lengths = np.concatenate(sizes) if width else np.zeros(n, np.int64)
        return cls(offsets_of(lengths), np.concatenate(rows), np.concatenate(kept), np.array([share], np.float32))

    def rearranged(self, to: I64, n: int) -> "CoListening":
        """Names tracks by other rows.

        Args:
            to: (m,) int64 the new row of each track, -1 for tracks that are left out.
            n: how many rows there are then.

        Returns:
            The same of n tracks.
        """
        was = np.full(n, -1)
        was[to[to >= 0]] = np.flatnonzero(to >= 0)
        known = np.flatnonzero(was >= 0)
        starts, ends = self.offsets[was[known]], self.offsets[was[known] + 1]
        at, owner = spans(starts, ends), np.repeat(known, ends - starts)
        rows = to.astype(np.int32)[self.rows[at]]
        there = rows >= 0
        lengths = np.bincount(owner[there], minlength=n)
        return CoListening(offsets_of(lengths), rows[there], np.asarray(self.weights)[at[there]], self.share)

    def candidates(
        self, played: I64, entry: F32, allowed: Callable[[npt.NDArray[np.integer]], npt.NDArray[np.bool_]], depth: int
    ) -> I64:
        """Finds the tracks that are most often played together with the last that a user has played.

        Args:
            played: (h,) rows, oldest first.
            entry: (h, 3) float32 entry features of them.
            allowed: rows -> (m,) bool, which of them may be returned.
            depth: candidates of all sources together.

        Returns:
            At most `share` of the depth, distinct rows: highest sum of weights first, ties by row.
        """
        n = round(float(self.share[0]) * depth)
        played = played[-NEWEST:]
        if not n or not len(played):
            return np.empty(0, np.int64)
        starts = self.offsets.take(played)
        lengths = self.offsets.take(played + 1) - starts
        at = spans(starts, starts + lengths)
        rows = self.rows.take(at)
        counts = np.repeat(relative_weights_of(entry[-NEWEST:]), lengths)  # as the channel of all plays has them
        each = self.weights.take(at).astype(np.float32) * counts
        with borrowed_places(len(self)) as place:  # the last of equal rows names all of them
            place[rows] = np.arange(len(rows))
            slot = place.take(rows)
        sums = np.bincount(slot, each, len(rows))
        found = np.flatnonzero(slot == np.arange(len(rows)))
        found = found[allowed(rows.take(found))]
        rows, sums = rows.take(found).astype(np.int64), sums.take(found)
        if len(rows) > n:
            edge = np.partition(sums, len(sums) - n)[-n]
            best = np.flatnonzero(sums >= edge)
            rows, sums = rows.take(best), sums.take(best)
        return np.asarray(rows.take(np.lexsort((rows, -sums))[:n]), np.int64)


NO_CO_LISTENING = CoListening(
    np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float16), np.zeros(1, np.float32)
)
