"""A column of texts as one array of bytes and one of offsets: mapped like any other array, decoded on access."""

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lhydra.bundle.arrays import column
from lhydra.domain import I64
from lhydra.features.histories import offsets_of


@dataclass(frozen=True)
class StringColumn:
    """n texts back to back in UTF-8: text i is data[offsets[i]:offsets[i + 1]]."""

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.integer]  # (n + 1,) int32 or int64

    @classmethod
    def of(cls, texts: Iterable[str]) -> "StringColumn":
        """Packs texts.

        Args:
            texts: n of them.

        Returns:
            The column.
        """
        encoded = [text.encode() for text in texts]
        lengths = np.array([len(text) for text in encoded], np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets_of(lengths))

    @classmethod
    def open(cls, folder: Path, name: str) -> "StringColumn":
        """Maps the column in `<name>.npy` and `<name>_offsets.npy`.

        Args:
            folder: where they lie.
            name: of the column.

        Returns:
            The column.

        Raises:
            BundleCorrupt: a file cannot be read, or is of another type; whether offsets fit is not looked at.
        """
        return cls(column(folder / f"{name}.npy", "uint8"), column(folder / f"{name}_offsets.npy", "int32", "int64"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> "StringColumn":
        """Returns some texts alone.

        Args:
            start: the first.
            stop: behind the last; fewer come back where there are no more.

        Returns:
            The column of these texts.
        """
        offsets = self.offsets[start : stop + 1]
        return StringColumn(self.data[offsets[0] : offsets[-1]], offsets - offsets[0])

    def inserted(self, at: I64, texts: "StringColumn") -> "StringColumn":
        """Returns the column with more texts.

        Args:
            at: (m,) int64 ascending, before which text each comes.
            texts: m of them.

        Returns:
            The column of n + m texts.
        """
        lengths = np.diff(texts.offsets)
        data = np.insert(self.data, np.repeat(self.offsets[at], lengths), texts.data)
        return StringColumn(data, offsets_of(np.insert(np.diff(self.offsets), at, lengths)))

    def raw(self) -> list[bytes]:
        """Returns all texts, undecoded UTF-8."""
        data, ends = self.data.tobytes(), self.offsets.tolist()
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    def at(self, rows: I64) -> list[str]:
        """Returns the texts of some rows.

        Args:
            rows: (m,) int64.

        Returns:
            m texts.
        """
        starts, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        data = self.data
        return [data[start:end].tobytes().decode() for start, end in zip(starts, ends, strict=True)]

    def place(self, text: str | bytes, low: int = 0) -> tuple[int, bool]:
        """Finds a text by binary search; the column must ascend by the bytes of its texts.

        Args:
            text: what to find; bytes are UTF-8.
            low: texts before this one are known to be smaller.

        Returns:
            How many texts are smaller, and whether the next one is equal.
        """
        word = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        data, offsets = self.data.data, self.offsets.data  # memoryviews: numpy takes three times as long for few bytes

        def at(i: int) -> bytes:
            return bytes(data[offsets[i] : offsets[i + 1]])

        n = len(offsets) - 1
        i = bisect.bisect_left(range(n), word, low, key=at)
        return i, i < n and at(i) == word
