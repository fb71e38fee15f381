"""The catalog of a bundle: everything about its tracks, by row, as flat files that are mapped, never copied.

Rows are in track-id order, so that ties by row are ties by track id. Texts lie back to back in one file.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.domain import F16, F32, I64, Hashes, Value
from lhydra.errors import BundleCorrupt, DataError, complain
from lhydra.features.spec import Encoded

I32 = npt.NDArray[np.int32]
ALONE = ("neighbours", "neighbour_weights", "removed", "hash_starts", "charts", "chart_rows", "chart_share")
CHART = 1_000  # tracks in the chart of a country
MANY = 512  # hashes to look up, from which on buckets are faster than a binary search


@dataclass(frozen=True)
class Texts:
    """n texts back to back in UTF-8: text i is data[offsets[i]:offsets[i + 1]]."""

    data: npt.NDArray[np.uint8]
    offsets: I64  # (n + 1,)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Packs `texts`."""
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @classmethod
    def open(cls, folder: Path, name: str) -> "Texts":
        """Maps `<name>.npy` and `<name>_offsets.npy` in `folder`. Raises BundleCorrupt when they cannot be read."""
        return cls(_mapped(folder / f"{name}.npy"), _mapped(folder / f"{name}_offsets.npy"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> "Texts":
        """Returns texts `start` to `stop` alone, fewer where there are no more."""
        offsets = self.offsets[start : stop + 1]
        return Texts(self.data[offsets[0] : offsets[-1]], offsets - offsets[0])

    def raw(self) -> list[bytes]:
        """Returns all texts as they lie there, in UTF-8."""
        data, ends = self.data.tobytes(), self.offsets.tolist()
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    def at(self, rows: I64) -> list[str]:
        """Returns the texts of `rows`, (n,)."""
        starts, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        data = self.data
        return [data[start:end].tobytes().decode() for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class Catalog:
    """The tracks of a bundle, n of them; arrays may be mapped files. `lhydra.bundle.embedding` makes it."""

    vectors: F16  # (n, dim) retrieval vectors, unit norm; halves: the towers' noise is far above their rounding
    history: F16  # (n, dim) history vectors
    dense: F16  # (n, dt) encoded features, as FeatureSpec.encode_tracks gives them
    ids: I32  # (n, ct)
    popularity: F32  # (n,) in [0, 1], log-scaled listeners: the head's feature
    lines: I32  # (n,) the track's line in the co-listening table, 0 for tracks that training did not know
    neighbours: I32  # (lines, width) lines of tracks that are played together with it; see lhydra.colisten
    neighbour_weights: npt.NDArray[np.float16]  # (lines, width) and how much each counts, 0 where there is none
    share: F32  # (n,) share of train users who played the track
    popular: I32  # (n,) rows, most listeners first, ties by row
    hashes: Hashes  # (n,) track hashes, ascending
    hash_rows: I32  # (n,) the row of each
    hash_starts: I32  # (2^b,) how many hashes are below b bits 0, 1, 2, …: they are spread evenly
    removed: I64  # (m,) rows, ascending, that are part of histories but never returned
    chart_rows: I32  # (c, CHART) most played first by the listeners of each country, -1 behind the last
    chart_share: F32  # (c, CHART) share of the country's train users who played the track
    charts: Texts  # (c,) the countries, ascending
    names: Texts  # track ids
    title_texts: Texts
    artist_texts: Texts

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def n_eligible(self) -> int:
        """How many tracks may be returned to somebody: all but the removed."""
        return len(self) - len(self.removed)

    @property
    def tracks(self) -> Encoded:
        """The encoded tracks; bags are used up by the item tower and left out."""
        dense: Any = self.dense  # both half as wide as elsewhere, on disk and in memory
        ids: Any = self.ids
        return Encoded(dense, ids, np.zeros((len(self), 0), np.int64))

    def rows(self, hashes: Hashes) -> I64:
        """Returns the row of each track hash, (n,) int64 in the order given, -1 where unknown."""
        n = len(self)
        if not n or not len(hashes):
            return np.full(len(hashes), -1, np.int64)
        if len(hashes) < MANY:
            at = np.minimum(np.searchsorted(self.hashes, hashes), n - 1)
            return np.where(self.hashes.take(at) == hashes, self.hash_rows.take(at), -1).astype(np.int64, copy=False)
        at = self.hash_starts.take((hashes >> np.uint64(_shift(n))).astype(np.intp)).astype(np.intp)
        found = self.hashes.take(at, mode="clip")
        behind = np.flatnonzero(found < hashes)
        while len(behind):  # within a bucket of one or two
            at[behind] += 1
            found[behind] = self.hashes.take(at[behind], mode="clip")
            behind = behind[(found[behind] < hashes[behind]) & (at[behind] < n)]
        rows = self.hash_rows.take(at, mode="clip").astype(np.int64)
        rows[found != hashes] = -1
        return rows

    def chart(self, country: Value) -> tuple[I64, F32]:
        """Returns the rows of the country's chart, (m,) most played first, and their shares of listeners there.

        m is 0 for a country without a chart.
        """
        names = self.charts.at(np.arange(len(self.charts)))
        if not isinstance(country, str) or country not in names:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        rows = self.chart_rows[names.index(country)]
        there = rows >= 0
        return rows[there].astype(np.int64), self.chart_share[names.index(country)][there]

    def track_ids(self, rows: I64) -> list[str]:
        """Returns the ids of `rows`."""
        return self.names.at(rows)

    def titles(self, rows: I64) -> list[str]:
        """Returns the titles of `rows`, "" where there is none."""
        return self.title_texts.at(rows)

    def artists(self, rows: I64) -> list[str]:
        """Returns the artists of `rows`, "" where there is none."""
        return self.artist_texts.at(rows)

    @classmethod
    def open(cls, folder: Path) -> "Catalog":
        """Maps the catalog in `folder`. Raises BundleCorrupt when its files do not fit together."""
        loaded: dict[str, Any] = {}
        for name, kind in ((field.name, field.type) for field in fields(cls)):
            if kind in (Texts, "Texts"):
                loaded[name] = Texts.open(folder, name)
            else:
                loaded[name] = _mapped(folder / f"{name}.npy")
        catalog = cls(**loaded)
        for name, value in loaded.items():
            if name in ALONE:
                continue
            length = len(value)
            if length != len(catalog):
                raise BundleCorrupt(complain(folder / f"{name}.npy", f"{length} rows", f"{len(catalog)} rows"))
        return catalog


def file_names() -> list[str]:
    """Returns the names of the files a catalog consists of."""
    texts = [field.name for field in fields(Catalog) if field.type in (Texts, "Texts")]
    return [f"{field.name}.npy" for field in fields(Catalog)] + [f"{name}_offsets.npy" for name in texts]


def _shift(n: int) -> int:
    """How far a hash is shifted to give its bucket, one or two buckets a track."""
    return 64 - max(1, (n - 1).bit_length())


def write_hashes(folder: Path, hashes: Hashes, names: Texts) -> None:
    """Writes the table from track hash to row; hashes: (n,) by row. Raises DataError when two ids share a hash."""
    order = np.argsort(hashes)
    ordered = hashes[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        a, b = names.at(np.sort(order[same[0] : same[0] + 2]))
        raise DataError(complain("track ids", f"{a!r} and {b!r} with one hash", "a hash for each: rename one"))
    np.save(folder / "hashes.npy", ordered)
    buckets = np.arange(2 ** (64 - _shift(len(ordered))), dtype=np.uint64) << np.uint64(_shift(len(ordered)))
    np.save(folder / "hash_starts.npy", np.searchsorted(ordered, buckets).astype(np.int32))
    np.save(folder / "hash_rows.npy", order.astype(np.int32))


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        array = (
            np.load(path, allow_pickle=False) if path.stat().st_size < 4096 else np.load(path, "r", allow_pickle=False)
        )
    except (OSError, ValueError, EOFError) as error:
        raise BundleCorrupt(complain(path, str(error), "a .npy array")) from None
    return np.asarray(array)
