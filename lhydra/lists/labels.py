"""The values that tracks have in a column, as numbers: none, one, or several of each track."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64


@dataclass(frozen=True)
class Labels:
    """Values of n tracks: track i has codes[offsets[i]:offsets[i + 1]], distinct, each 0 or more and below `size`."""

    codes: npt.NDArray[np.signedinteger]
    offsets: I64  # (n + 1,)
    size: int

    @classmethod
    def single(cls, codes: I64, size: int) -> "Labels":
        """Makes labels of at most one value a track.

        Args:
            codes: (n,) the value of each, below 0 for none.
            size: how many values there are.

        Returns:
            The labels.
        """
        there = codes >= 0
        offsets = np.zeros(len(codes) + 1, np.int64)
        np.cumsum(there, out=offsets[1:])
        return cls(codes[there].astype(np.int64, copy=False), offsets, size)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def counts(self) -> I64:
        """(n,) how many values each track has."""
        return np.diff(self.offsets)

    @cached_property
    def lists(self) -> list[list[int]]:
        """The values of each track."""
        codes, ends = self.codes.tolist(), self.offsets.tolist()
        return [codes[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]

    def take(self, chosen: I64) -> "Labels":
        """Returns the labels of some tracks.

        Args:
            chosen: (m,) their positions.

        Returns:
            Labels of m tracks.
        """
        starts = self.offsets[chosen]
        lengths = self.offsets[chosen + 1] - starts  # `counts` of a whole catalog would be another array of it
        offsets = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Labels(self.codes[at].astype(np.int64, copy=False), offsets, self.size)

    def shares(self, weights: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
        """Returns the mix of the values: a track counts once, in equal parts for each of its values.

        Args:
            weights: (n,) what each track counts instead of 1.

        Returns:
            (size,) shares that add up to 1; all 0 where no track has a value.
        """
        part = np.ones(len(self)) if weights is None else np.asarray(weights, np.float64)
        each = np.repeat(part / np.maximum(self.counts, 1), self.counts)
        total = np.bincount(self.codes, each, self.size).astype(np.float64, copy=False)
        return total / max(float(total.sum()), 1e-300)
