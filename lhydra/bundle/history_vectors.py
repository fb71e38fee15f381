"""History vectors of tracks, a byte a number.

A row is `dim` numbers of int8 and one byte more, the scale that they are multiples of: the upper bits of a float16,
three of them behind the point. So a number is off by half a scale at most, and seven bits by four are eleven, which a
float16 holds: nothing else is rounded. Row and scale lie together, because they are read together. Bundles of before
hold float16.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra import kernels
from lhydra.bundle.arrays import is_finite
from lhydra.domain import F16, F32, I64

LARGEST = 127  # of an int8, so that both signs reach as far
CUT = 7  # bits of a float16 that a scale has no use for; nor has it a sign
TOO_LARGE = 0xC0  # 512, of which a float16 cannot hold every multiple


@dataclass(frozen=True)
class HistoryVectors:
    """The history vectors of n tracks.

    Args:
        table: (n, dim + 1) int8, or (n, dim) float16 of a bundle of before; may be a mapped file.
    """

    table: npt.NDArray[Any]

    @classmethod
    def of(cls, vectors: F16 | F32) -> "HistoryVectors":
        """Rounds vectors to bytes.

        Args:
            vectors: (n, dim).

        Returns:
            Them, of int8; not sound where a number is none, or beyond 480 times LARGEST.
        """
        vectors = vectors.astype(np.float32, copy=False)
        least = (np.abs(vectors).max(axis=1, initial=0, keepdims=True) / LARGEST).astype(np.float16)
        bits = least.view(np.uint16) + ((1 << CUT) - 1) >> CUT
        scales = np.minimum(bits, 0xFF).astype(np.uint8)  # rounded up, some NaNs have a ninth bit
        widened = _widened(scales)
        multiples = np.divide(vectors, widened, out=np.zeros_like(vectors), where=widened > 0)
        rounded = np.clip(np.rint(multiples), -LARGEST, LARGEST).astype(np.int8)
        return cls(np.concatenate([rounded, scales.view(np.int8)], axis=1))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return int(self.table.shape[1]) - (self.table.itemsize == 1)

    def at(self, rows: I64) -> F16:
        """Returns the vectors of some tracks.

        Args:
            rows: (n, h) int64; without tracks they are read as nothing.

        Returns:
            (n, h, dim) float16.
        """
        if not len(self.table):
            return np.zeros((*rows.shape, self.dim), np.float16)
        if self.table.itemsize != 1:
            halves: F16 = self.table.take(rows, 0)
            return halves
        if kernels.compiled is not None:
            return kernels.compiled.history_vectors(self.table, rows)
        found = self.table.take(rows, 0)
        return (found[..., :-1] * _widened(found[..., -1:].view(np.uint8))).astype(np.float16)


def is_sound(table: npt.NDArray[Any]) -> bool:
    """Whether some vectors are made of finite numbers.

    Args:
        table: as of `HistoryVectors`.

    Returns:
        False where a number is infinite or a NaN, or a scale too large for a number to be finite.
    """
    return is_finite(table) if table.itemsize != 1 else bool((table[:, -1:].view(np.uint8) < TOO_LARGE).all())


def _widened(scales: npt.NDArray[np.uint8]) -> F32:
    """(…, 1) float32."""
    return (scales.astype(np.uint16) << CUT).view(np.float16).astype(np.float32)
