"""The catalog of a bundle: everything about its tracks, by row, as flat files that are mapped, never copied.

Rows are in track-id order, so that ties by row are ties by track id. `ARRAYS` says how each array lies on disk;
opening, checking, writing and adding tracks follow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lhydra import kernels
from lhydra.bundle.arrays import blocks, check_ascending, check_lists, check_rows, mapped
from lhydra.bundle.history_vectors import HistoryVectors, is_sound
from lhydra.bundle.strings import StringColumn
from lhydra.domain import F16, F32, I64, Hashes, UserState, Value
from lhydra.errors import BundleCorrupt, complain
from lhydra.features.spec import Encoded

if TYPE_CHECKING:
    from lhydra.kernels.compiled import HashTable

I32 = npt.NDArray[np.int32]
CHART = 1_000  # tracks in the chart of a country
BUCKET_LOOKUP_FROM = 512  # hashes in one lookup from which on buckets are faster than a binary search

PER_ROW, REORDERED, OWN_LENGTH = "per row", "reordered", "own length"
TEXT = "text"


@dataclass(frozen=True)
class CatalogArray:
    """How one array of the catalog lies on disk.

    Args:
        name: the attribute of `Catalog`.
        dtype: NumPy's name of it, or TEXT for a StringColumn.
        extent: PER_ROW where entry i belongs to row i, REORDERED where there is one entry a row in another order,
            else OWN_LENGTH.
        stem: the file is `<stem>.npy`, and `<stem>_offsets.npy` for texts.
        ndim: dimensions.
        rows_of: the array whose rows its numbers are; empty where they are none.
        lowest: of these numbers.
        earlier: the dtype that bundles of before may have instead; empty where there is none.
        ascending: whether its numbers are in order, which lookups rely on.
    """

    name: str
    dtype: str
    extent: str
    stem: str
    ndim: int = 1
    rows_of: str = ""
    lowest: int = 0
    earlier: str = ""
    ascending: bool = False

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the files."""
        return (f"{self.stem}.npy", f"{self.stem}_offsets.npy") if self.dtype == TEXT else (f"{self.stem}.npy",)


def _array(
    name: str,
    dtype: str,
    extent: str,
    stem: str = "",
    *,
    ndim: int = 1,
    rows_of: str = "",
    lowest: int = 0,
    earlier: str = "",
    ascending: bool = False,
) -> CatalogArray:
    return CatalogArray(name, dtype, extent, stem or name, ndim, rows_of, lowest, earlier, ascending)


ARRAYS = (
    _array("vectors", "float16", PER_ROW, ndim=2),
    _array("history", "int8", PER_ROW, ndim=2, earlier="float16"),
    _array("dense", "float16", PER_ROW, ndim=2),
    _array("ids", "int32", PER_ROW, ndim=2),
    _array("popularity", "float32", PER_ROW),
    _array("item_rows", "int32", PER_ROW, "lines", rows_of="neighbours"),
    _array("neighbours", "int32", OWN_LENGTH, ndim=2, rows_of="neighbours"),
    _array("neighbour_weights", "float16", OWN_LENGTH, ndim=2),
    _array("share", "float32", PER_ROW),
    _array("popular", "int32", REORDERED, rows_of="vectors"),
    _array("hashes", "uint64", REORDERED, ascending=True),
    _array("hash_rows", "int32", REORDERED, rows_of="vectors"),
    _array("hash_starts", "int32", OWN_LENGTH),
    _array("removed", "int64", OWN_LENGTH, rows_of="vectors", ascending=True),
    _array("chart_rows", "int32", OWN_LENGTH, ndim=2, rows_of="vectors", lowest=-1),
    _array("chart_share", "float32", OWN_LENGTH, ndim=2),
    _array("charts", TEXT, OWN_LENGTH),
    _array("names", TEXT, PER_ROW),
    _array("title_texts", TEXT, PER_ROW),
    _array("artist_texts", TEXT, PER_ROW),
)


@dataclass(frozen=True)
class Catalog:
    """The tracks of a bundle, n of them; arrays may be mapped files. `lhydra.bundle.embedding` makes it."""

    vectors: F16  # (n, dim) retrieval vectors, unit norm; halves: the towers' noise is far above their rounding
    history: HistoryVectors  # n of them
    dense: F16  # (n, dt) encoded features, as FeatureSpec.encode_tracks gives them
    ids: I32  # (n, ct)
    popularity: F32  # (n,) in [0, 1], log-scaled listeners: the head's feature
    item_rows: I32  # (n,) the track's row in the co-listening table, 0 for tracks that training did not know
    neighbours: I32  # (item rows, width) item rows of tracks played together with it; see lhydra.features.item_item
    neighbour_weights: npt.NDArray[np.float16]  # (item rows, width) and how much each counts, 0 where there is none
    share: F32  # (n,) share of train users who played the track
    popular: I32  # (n,) rows, most listeners first, ties by row
    hashes: Hashes  # (n,) track hashes, ascending
    hash_rows: I32  # (n,) the row of each
    hash_starts: I32  # (2^b,) how many hashes are below b bits 0, 1, 2, …: they are spread evenly
    removed: I64  # (m,) rows, ascending, that are part of histories but never returned
    chart_rows: I32  # (c, CHART) most played first by the listeners of each country, -1 behind the last
    chart_share: F32  # (c, CHART) share of the country's train users who played the track
    charts: StringColumn  # (c,) the countries, ascending
    names: StringColumn  # track ids
    title_texts: StringColumn
    artist_texts: StringColumn

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def n_eligible(self) -> int:
        """How many tracks may be returned: all but the removed."""
        return len(self) - len(self.removed)

    @cached_property
    def tracks(self) -> Encoded:
        """The encoded tracks; bags are used up by the item tower and left out."""
        dense: Any = self.dense  # both half as wide as elsewhere, on disk and in memory
        ids: Any = self.ids
        return Encoded(dense, ids, np.zeros((len(self), 0), np.int64))

    @cached_property
    def by_hash(self) -> "HashTable":
        """The rows by hash as the compiled kernels, where there are any, find them."""
        return kernels.compiled.HashTable(self.hashes, self.hash_rows, self.hash_starts)

    def rows(self, hashes: Hashes) -> I64:
        """Finds tracks by their hashes.

        Args:
            hashes: (m,) uint64 in any order.

        Returns:
            (m,) int64 rows in the order given, -1 where unknown.
        """
        if not len(hashes):
            return np.empty(0, np.int64)
        if kernels.compiled is not None:
            return self.by_hash.rows_of(hashes)
        if not (n := len(self)):
            return np.full(len(hashes), -1, np.int64)
        if len(hashes) < BUCKET_LOOKUP_FROM:
            at = np.minimum(np.searchsorted(self.hashes, hashes), n - 1)
            return np.where(self.hashes.take(at) == hashes, self.hash_rows.take(at), -1).astype(np.int64, copy=False)
        at = self.hash_starts.take((hashes >> np.uint64(hash_shift(n))).astype(np.intp)).astype(np.intp)
        found = self.hashes.take(at, mode="clip")
        behind = np.flatnonzero(found < hashes)
        while len(behind):  # a bucket holds one or two
            at[behind] += 1
            found[behind] = self.hashes.take(at[behind], mode="clip")
            behind = behind[(found[behind] < hashes[behind]) & (at[behind] < n)]
        rows = self.hash_rows.take(at, mode="clip").astype(np.int64)
        rows[found != hashes] = -1
        return rows

    def state_rows(self, state: UserState) -> tuple[I64, I64, I64]:
        """Finds all tracks of a user at once, which costs little more than some of them.

        Args:
            state: of the user.

        Returns:
            (h,) int64 rows of the history, (r,) of the last plays and (m,) of the heard tracks, -1 where unknown.
        """
        h, r = len(state.history), len(state.recent)
        if kernels.compiled is not None:
            rows = self.by_hash.state_rows(state.history, state.recent, state.heard)
        else:
            rows = self.rows(np.concatenate([state.history["track"], state.recent["track"], state.heard]))
        return rows[:h], rows[h : h + r], rows[h + r :]

    def chart(self, country: Value) -> tuple[I64, F32]:
        """Returns what the listeners of a country play most.

        Args:
            country: as profiles name it.

        Returns:
            (m,) int64 rows, most played first, and (m,) float32 shares of listeners there; m is 0 without a chart.
        """
        at, known = self.charts.place(country) if isinstance(country, str) else (0, False)
        if not known:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        rows = self.chart_rows[at]
        there = rows >= 0
        return rows[there].astype(np.int64), self.chart_share[at][there]

    def track_ids(self, rows: I64) -> list[str]:
        """Returns the ids of tracks.

        Args:
            rows: (m,) int64.

        Returns:
            m texts.
        """
        return self.names.at(rows)

    def titles(self, rows: I64) -> list[str]:
        """Returns the titles of tracks, "" where there is none.

        Args:
            rows: (m,) int64.

        Returns:
            m texts.
        """
        return self.title_texts.at(rows)

    def artists(self, rows: I64) -> list[str]:
        """Returns the artists of tracks, "" where there is none.

        Args:
            rows: (m,) int64.

        Returns:
            m texts.
        """
        return self.artist_texts.at(rows)

    @classmethod
    def open(cls, folder: Path) -> "Catalog":
        """Maps a catalog.

        Args:
            folder: where its files lie.

        Returns:
            The catalog.

        Raises:
            BundleCorrupt: a file cannot be read, has another dtype or shape than the others ask for.
        """
        loaded: dict[str, Any] = {}
        for array in ARRAYS:
            path = folder / array.file_names[0]
            value: Any = StringColumn.open(folder, array.stem) if array.dtype == TEXT else mapped(path)
            if array.dtype != TEXT and value.dtype not in (array.dtype, array.earlier or array.dtype):
                raise BundleCorrupt(complain(path, str(value.dtype), array.dtype))
            if array.dtype != TEXT and not (value.ndim == array.ndim and value.flags.c_contiguous):
                found = f"{value.ndim} dimensions" if value.ndim != array.ndim else "columns one behind the other"
                raise BundleCorrupt(complain(path, found, f"{array.ndim} dimensions, rows one behind the other"))
            loaded[array.name] = value
            if array.extent != OWN_LENGTH and len(value) != len(loaded["vectors"]):
                raise BundleCorrupt(complain(path, f"{len(value)} rows", f"{len(loaded['vectors'])} rows"))
        history = loaded["history"] = HistoryVectors(loaded["history"])
        catalog = cls(**loaded)
        buckets = 2 ** (64 - hash_shift(len(catalog)))
        for name, shape, fitting in (
            ("history", (len(history), history.dim), catalog.vectors.shape),
            ("neighbour_weights", catalog.neighbour_weights.shape, catalog.neighbours.shape),
            ("hash_starts", catalog.hash_starts.shape, (buckets,)),
            ("chart_rows", catalog.chart_rows.shape, (len(catalog.charts), *catalog.chart_rows.shape[1:])),
            ("chart_share", catalog.chart_share.shape, catalog.chart_rows.shape),
        ):
            if shape != fitting:
                raise BundleCorrupt(complain(folder / f"{name}.npy", f"the shape {shape}", str(fitting)))
        return catalog


def check_numbers(folder: Path, catalog: Catalog) -> None:
    """Refuses a catalog with a number that is none a row of no track, or texts that are not there.

    Args:
        folder: where its files lie.
        catalog: opened from there.

    Raises:
        BundleCorrupt: an array holds a NaN, an infinity, a row or a place in texts that is not there, or
            numbers out of order.
    """
    for array in ARRAYS:
        path = folder / f"{array.stem}.npy"
        if array.ascending:
            check_ascending(path)
        if array.dtype in ("float16", "float32", "int8"):
            if not all(is_sound(block) for block in blocks(path)):
                raise BundleCorrupt(complain(path, "a number that is not finite", "finite numbers"))
        elif array.rows_of:
            check_rows(path, len(getattr(catalog, array.rows_of)), array.lowest)
        elif array.dtype == TEXT:
            check_lists(folder / array.file_names[1], len(getattr(catalog, array.name).data))


def check_ids(folder: Path, sizes: Sequence[int]) -> None:
    """Refuses a catalog whose encoded ids are beyond what their columns can hold.

    Args:
        folder: where its files lie.
        sizes: of each column how many values it has.

    Raises:
        BundleCorrupt: an id is none of its column.
    """
    path = folder / "ids.npy"
    for ids in blocks(path):
        beyond = (ids < 0) | (ids >= np.array(sizes))
        if beyond.any():
            raise BundleCorrupt(complain(path, f"the id {ids[beyond][0]}", f"ids of columns with {sizes} values"))


def file_names() -> list[str]:
    """Returns the names of the files a catalog consists of."""
    return [name for array in ARRAYS for name in array.file_names]


def hash_shift(n: int) -> int:
    """Returns how far a hash is shifted to give its bucket, one or two buckets a track.

    Args:
        n: how many tracks there are.

    Returns:
        Bits.
    """
    return 64 - max(1, (n - 1).bit_length())
