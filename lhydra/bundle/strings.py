"""A column of texts as one array of bytes and one of offsets: mapped like any other array, decoded where asked for."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lhydra.bundle.arrays import mapped
from lhydra.domain import I64


@dataclass(frozen=True)
class StringColumn:
    """n texts back to back in UTF-8: text i is data[offsets[i]:offsets[i + 1]]."""

    data: npt.NDArray[np.uint8]
    offsets: I64  # (n + 1,)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "StringColumn":
        """Packs `texts`."""
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @classmethod
    def open(cls, folder: Path, name: str) -> "StringColumn":
        """Maps `<name>.npy` and `<name>_offsets.npy` in `folder`. Raises BundleCorrupt when they cannot be read."""
        return cls(mapped(folder / f"{name}.npy"), mapped(folder / f"{name}_offsets.npy"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> "StringColumn":
        """Returns texts `start` to `stop` alone, fewer where there are no more."""
        offsets = self.offsets[start : stop + 1]
        return StringColumn(self.data[offsets[0] : offsets[-1]], offsets - offsets[0])

    def raw(self) -> list[bytes]:
        """Returns all texts as they lie there, in UTF-8."""
        data, ends = self.data.tobytes(), self.offsets.tolist()
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    def at(self, rows: I64) -> list[str]:
        """Returns the texts of `rows`, (n,)."""
        starts, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        data = self.data
        return [data[start:end].tobytes().decode() for start, end in zip(starts, ends, strict=True)]
