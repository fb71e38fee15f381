"""Arrays of a bundle as `.npy` files: mapped and checked when read, appended to in blocks when written."""

import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from lhydra import kernels
from lhydra.domain import I64
from lhydra.errors import BundleCorrupt, complain

BLOCK_ROWS = 65_536
MAX_NARROW = 2**31 - 1  # the largest end of a list whose offsets take four bytes each
NOT_NPZ = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)  # of a file that is none


def mapped(path: Path) -> npt.NDArray[Any]:
    """Opens the array in a .npy file.

    Args:
        path: the file.

    Returns:
        The array, mapped from 4 KiB on, read below.

    Raises:
        BundleCorrupt: it is not a .npy file.
    """
    try:
        array = (
            np.load(path, allow_pickle=False) if path.stat().st_size < 4096 else np.load(path, "r", allow_pickle=False)
        )
    except (OSError, ValueError, EOFError) as error:
        raise BundleCorrupt(complain(path, str(error), "a .npy array")) from None
    return np.asarray(array)


def column(path: Path, *dtypes: str) -> npt.NDArray[Any]:
    """Opens a list of numbers.

    Args:
        path: the file.
        dtypes: any of which the numbers may have.

    Returns:
        (n,) of one of these dtypes.

    Raises:
        BundleCorrupt: it holds something else, or floats that are not finite.
    """
    array = mapped(path)
    if array.dtype not in dtypes or array.ndim != 1:
        expected = f"{' or '.join(dtypes)} of one"
        raise BundleCorrupt(complain(path, f"{array.dtype} of {array.ndim} dimensions", expected))
    if array.dtype.kind == "f" and not all(map(is_finite, blocks(path))):
        raise BundleCorrupt(complain(path, "a number that is not finite", "finite numbers"))
    return array


def check_lists(path: Path, entries: int) -> None:
    """Refuses offsets that do not cut entries into lists, one after the other.

    Args:
        path: of the offsets, n + 1 of them: where each list begins, and the last ends.
        entries: how many there are.

    Raises:
        BundleCorrupt: they leave some out, overlap or go beyond.
    """
    last: int | None = None
    ascending = True
    for offsets in blocks(path):
        ascending &= offsets[0] == 0 if last is None else offsets[0] >= last
        ascending &= not (offsets[1:] < offsets[:-1]).any()
        last = int(offsets[-1])
    if not ascending or last != entries:
        raise BundleCorrupt(complain(path, "other offsets", f"lists that {entries} entries are cut into"))


def check_rows(path: Path, n: int, lowest: int = 0) -> None:
    """Refuses rows of tracks that there are not.

    Args:
        path: of the rows.
        n: how many tracks there are.
        lowest: the smallest that may be there, -1 where that stands for none.

    Raises:
        BundleCorrupt: a row is none of `lowest` to n - 1.
    """
    for rows in blocks(path):
        if rows.size and not lowest <= rows.min() <= rows.max() < n:
            raise BundleCorrupt(complain(path, f"rows {rows.min()} to {rows.max()}", f"rows of {n} tracks"))


def check_ascending(path: Path) -> None:
    """Refuses numbers that are out of order.

    Args:
        path: of the numbers.

    Raises:
        BundleCorrupt: one is smaller than the one before it.
    """
    last: np.generic | None = None
    for numbers in blocks(path):
        if (last is not None and numbers[0] < last) or (numbers[1:] < numbers[:-1]).any():
            raise BundleCorrupt(complain(path, "numbers out of order", "ascending numbers"))
        last = numbers[-1]


class GrowingArrays:
    """Arrays appended to in blocks on disk, never held in memory as a whole.

    They are written with plain writes: a mapping would count as memory of the process until the end.

    Args:
        folder: where each `<name>.npy` is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]] = {}
        self._ends: dict[str, int] = {}

    def __enter__(self) -> "GrowingArrays":
        return self

    def __exit__(self, *error: object) -> None:
        for file, shape, dtype in self._open.values():
            with file:
                if error[0] is None:
                    file.seek(0)  # the header has room for any length and is overwritten
                    _write_header(file, shape, dtype)
        for name, end in self._ends.items():
            if error[0] is None and end <= MAX_NARROW:
                _narrow(self._folder / f"{name}.npy")

    def append(self, name: str, block: npt.NDArray[Any]) -> None:
        """Appends a block to an array; the first block fixes its dtype and the shape of an entry.

        Args:
            name: of the array.
            block: (m, ...).
        """
        if name not in self._open:
            created = (self._folder / f"{name}.npy").open("wb")
            self._open[name] = created, (0, *block.shape[1:]), block.dtype
            _write_header(created, (0, *block.shape[1:]), block.dtype)
        file, shape, dtype = self._open[name]
        file.write(np.ascontiguousarray(block, dtype).data)
        self._open[name] = file, (shape[0] + len(block), *shape[1:]), dtype

    def append_lengths(self, name: str, lengths: I64) -> None:
        """Appends segments to an array of offsets, which begins with 0 and takes four bytes each where that is enough.

        Args:
            name: of the array.
            lengths: (m,) int64 of the segments.
        """
        if name not in self._ends:
            self._ends[name] = 0
            self.append(name, np.zeros(1, np.int64))
        ends = self._ends[name] + np.cumsum(lengths, dtype=np.int64)
        self._ends[name] = int(ends[-1]) if len(ends) else self._ends[name]
        self.append(name, ends)


def _narrow(path: Path) -> None:
    """Rewrites an array of int64 as int32."""
    narrow = path.with_suffix(".narrow")
    with narrow.open("wb") as file:
        _write_header(file, np.load(path, "r", allow_pickle=False).shape, np.dtype(np.int32))
        for block in blocks(path):
            file.write(block.astype(np.int32).data)
    narrow.replace(path)


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def blocks(path: Path, rows: int = BLOCK_ROWS) -> Iterator[npt.NDArray[Any]]:
    """Reads the array in a .npy file block by block, without mapping it: what only a check reads takes no memory.

    Args:
        path: the file.
        rows: in a block.

    Yields:
        (rows, ...) in turn, the last one shorter.

    Raises:
        BundleCorrupt: its header is of another version than NumPy writes for plain types.
    """
    with path.open("rb") as file:
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:  # another version of the format, which only types of other names need
            raise BundleCorrupt(complain(path, str(error), "a .npy array of version 1.0")) from None
        width = int(np.prod(shape[1:], dtype=np.int64))
        for start in range(0, shape[0], rows):
            size = min(rows, shape[0] - start)
            yield np.fromfile(file, dtype, size * width).reshape(size, *shape[1:])


def are_sealed(folder: Path, names: Sequence[str], sealed: Collection[str]) -> bool:
    """Whether a part of a model or bundle is there: what merely lies in the folder has been hashed by nobody.

    Args:
        folder: the model or bundle.
        names: files of the part.
        sealed: names of the files that the manifest knows.

    Returns:
        True where it knows all of them, False where it knows none.

    Raises:
        BundleCorrupt: it knows some of them.
    """
    missing = [name for name in names if name not in sealed]
    if 0 < len(missing) < len(names):
        raise BundleCorrupt(
            complain(folder / missing[0], "a file that is not sealed", "all of its kind sealed, or none")
        )
    return not missing


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes arrays like `numpy.savez`, but the same arrays are the same bytes: no time is written.

    Args:
        path: the archive to write.
        arrays: by name.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def all_known(rows: I64) -> bool:
    """Whether rows are all of a track, five times as fast as their least.

    Args:
        rows: (n,) int64, -1 where there is no track.

    Returns:
        Whether none is below 0.
    """
    if kernels.compiled is not None:
        return kernels.compiled.all_known(rows)
    return int(rows.min(initial=0)) >= 0


def is_finite(array: npt.NDArray[Any]) -> bool:
    """Whether all numbers are finite: by their bits, 20 times as fast as `numpy.isfinite` for halves.

    Args:
        array: float16 or float32.

    Returns:
        False where there is a NaN or an infinity.
    """
    if kernels.compiled is not None and array.dtype == np.float32:
        return kernels.compiled.all_finite(np.ascontiguousarray(array))
    signed, first = (np.int16, 0x7C00) if array.dtype == np.float16 else (np.int32, 0x7F800000)  # bits of +inf
    bits = np.ascontiguousarray(array).view(signed)
    lowest = bits.view(bits.dtype.str.replace("i", "u"))  # -inf and negative NaNs are the largest
    sign = 1 << (8 * bits.itemsize - 1)
    return int(bits.max(initial=0)) < first and int(lowest.max(initial=0)) < sign + first
