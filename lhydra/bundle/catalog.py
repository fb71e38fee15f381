"""The catalog of a bundle: everything about its tracks, by row, as flat files that are mapped, never copied.

Rows are in track-id order, so that ties by row are ties by track id. StringColumn lie back to back in one file.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.bundle.arrays import mapped
from lhydra.bundle.strings import StringColumn
from lhydra.domain import F16, F32, I64, Hashes, Value
from lhydra.errors import BundleCorrupt, complain
from lhydra.features.spec import Encoded

I32 = npt.NDArray[np.int32]
ALONE = ("neighbours", "neighbour_weights", "removed", "hash_starts", "charts", "chart_rows", "chart_share")
CHART = 1_000  # tracks in the chart of a country
BUCKET_LOOKUP_FROM = 512  # hashes to look up, from which on buckets are faster than a binary search


@dataclass(frozen=True)
class Catalog:
    """The tracks of a bundle, n of them; arrays may be mapped files. `lhydra.bundle.embedding` makes it."""

    vectors: F16  # (n, dim) retrieval vectors, unit norm; halves: the towers' noise is far above their rounding
    history: F16  # (n, dim) history vectors
    dense: F16  # (n, dt) encoded features, as FeatureSpec.encode_tracks gives them
    ids: I32  # (n, ct)
    popularity: F32  # (n,) in [0, 1], log-scaled listeners: the head's feature
    lines: I32  # (n,) the track's line in the co-listening table, 0 for tracks that training did not know
    neighbours: I32  # (lines, width) lines of tracks that are played together with it; see lhydra.features.item_item
    neighbour_weights: npt.NDArray[np.float16]  # (lines, width) and how much each counts, 0 where there is none
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
        if len(hashes) < BUCKET_LOOKUP_FROM:
            at = np.minimum(np.searchsorted(self.hashes, hashes), n - 1)
            return np.where(self.hashes.take(at) == hashes, self.hash_rows.take(at), -1).astype(np.int64, copy=False)
        at = self.hash_starts.take((hashes >> np.uint64(hash_shift(n))).astype(np.intp)).astype(np.intp)
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
        at, known = self.charts.place(country) if isinstance(country, str) else (0, False)
        if not known:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        rows = self.chart_rows[at]
        there = rows >= 0
        return rows[there].astype(np.int64), self.chart_share[at][there]

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
            if kind in (StringColumn, "StringColumn"):
                loaded[name] = StringColumn.open(folder, name)
            else:
                loaded[name] = mapped(folder / f"{name}.npy")
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
    texts = [field.name for field in fields(Catalog) if field.type in (StringColumn, "StringColumn")]
    return [f"{field.name}.npy" for field in fields(Catalog)] + [f"{name}_offsets.npy" for name in texts]


def hash_shift(n: int) -> int:
    """How far a hash is shifted to give its bucket, one or two buckets a track."""
    return 64 - max(1, (n - 1).bit_length())
