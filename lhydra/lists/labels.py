"""The values that tracks have in a column, as numbers: none, one, or several of each track."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Several:
    """Values of n tracks: track i has codes[offsets[i]:offsets[i + 1]], distinct, each 0 or more and below `size`."""

    codes: npt.NDArray[np.signedinteger]
    offsets: I64  # (n + 1,)
    size: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lists(self) -> list[list[int]]:
        """The values of each track."""
        codes, ends = self.codes.tolist(), self.offsets.tolist()
        return [codes[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]

    def take(self, chosen: I64) -> "Several":
        """Returns the labels of some tracks.

        Args:
            chosen: (m,) their positions.

        Returns:
            Labels of m tracks.
        """
        starts = self.offsets[chosen]
        lengths = self.offsets[chosen + 1] - starts  # of those chosen: of a whole catalog would be another array of it
        offsets = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Several(self.codes[at].astype(np.int64, copy=False), offsets, self.size)

    def shares(self) -> F64:
        """Returns the mix of the values: a track counts once, in equal parts for each of its values.

        Returns:
            (size,) shares that add up to 1; all 0 where no track has a value.
        """
        counts = np.diff(self.offsets)
        each = np.repeat(1 / np.maximum(counts, 1), counts)
        return _shares(np.bincount(self.codes, each, self.size))


@dataclass(frozen=True)
class Single:
    """Values of n tracks that have at most one each, which is the common case and costs far less to choose from."""

    values: npt.NDArray[np.signedinteger]  # (n,) below 0 for none
    size: int

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def codes(self) -> npt.NDArray[np.signedinteger]:
        """The values of the tracks that have one."""
        return self.values[self.values >= 0]

    @cached_property
    def lists(self) -> list[list[int]]:
        """The value of each track, as a list of one or none."""
        return [[code] if code >= 0 else [] for code in self.values.tolist()]

    def take(self, chosen: I64) -> "Single":
        """Returns the labels of some tracks.

        Args:
            chosen: (m,) their positions.

        Returns:
            Labels of m tracks.
        """
        return Single(self.values.take(chosen), self.size)

    def shares(self) -> F64:
        """Returns the mix of the values.

        Returns:
            (size,) shares that add up to 1; all 0 where no track has a value.
        """
        return _shares(np.bincount(self.codes, minlength=self.size))


Labels = Several | Single


def earlier(codes: npt.NDArray[np.signedinteger]) -> I64:
    """Counts before each of n entries those that have the same code.

    Args:
        codes: (n,).

    Returns:
        (n,) counts.
    """
    order = np.argsort(codes, kind="stable")
    ordered, at = codes[order], np.arange(len(codes))
    starts = np.zeros(len(codes), np.int64)  # where the run of equal codes begins that each lies in
    np.multiply(at[1:], ordered[1:] != ordered[:-1], out=starts[1:])
    counts = np.empty(len(codes), np.int64)
    counts[order] = at - np.maximum.accumulate(starts)
    return counts


def _shares(total: npt.NDArray[np.number]) -> F64:
    return total.astype(np.float64) / max(float(total.sum()), 1e-300)
