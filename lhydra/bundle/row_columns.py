"""What rules look at: the values of given rows in a column, and which rows are recordings of one song.

Filters ask for the rows of a value; a rule asks for the values of a few hundred rows. A column is turned around the
first time that a rule names it, and kept: four bytes a track, where tracks have several values four a value and eight a
track.
"""

import re
import unicodedata
from collections.abc import Iterable
from threading import Lock

import numpy as np
import numpy.typing as npt

from lhydra.bundle.catalog import Catalog
from lhydra.bundle.columns import FilterColumns, Numbers, Words
from lhydra.domain import I64
from lhydra.lists.labels import Labels, Several, Single

_VERSION_WORDS = (
    "acoustic|bonus|clean|deluxe|demo|edit|explicit|extended|featuring|feat|ft|instrumental|live|mix|mono|original|radio|"
    "remaster|remastered|remix|remixed|session|single|stereo|unplugged|version|vip|with"
)
_BRACKETED = re.compile(r"[(\[{][^)\]}]*[)\]}]")
_VERSION = re.compile(rf"\s[-–—]\s.*\b({_VERSION_WORDS})\b.*$|\s(feat|ft|featuring)\.?\s.*$")
_OTHER = re.compile(r"\W+")
_IS_VERSION = re.compile(rf"\b({_VERSION_WORDS})\b")


def normalised_title(title: str) -> str:
    """Returns a title without what tells one recording of a song from another.

    Args:
        title: as the catalog has it.

    Returns:
        Lower case, no accents, no punctuation, nothing in brackets or behind a dash that names a version or a guest.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", title.casefold()) if not unicodedata.combining(c))
    short = _BRACKETED.sub(lambda found: " " if _IS_VERSION.search(found[0]) else found[0], plain)
    short = _OTHER.sub(" ", _VERSION.sub("", short)).strip()
    return short or _OTHER.sub(" ", plain).strip() or plain


class RowColumns:
    """The columns of a bundle by row; safe to use from several threads.

    Args:
        catalog: titles and artists.
        filters: the columns.
    """

    def __init__(self, catalog: Catalog, filters: FilterColumns) -> None:
        self._catalog, self._filters = catalog, filters
        self._turned: dict[str, Labels] = {}
        self._songs = np.zeros(len(catalog), np.int64)  # hash of artist and title, 0 where nobody has asked
        self._lock = Lock()

    def knows(self, column: str) -> bool:
        """Says whether rules can look at a column.

        Args:
            column: its name.

        Returns:
            Whether the bundle has it; the artist it always has.
        """
        return column in self._filters.names or column == "artist"

    def labels(self, column: str, rows: I64) -> Labels:
        """Returns the values of rows in a column.

        Args:
            column: its name.
            rows: (n,) rows.

        Returns:
            Labels of n tracks; numbers stand for nothing outside of this answer where the column is of numbers.
        """
        kept = self._filters.columns.get(column)
        if isinstance(kept, Words):
            return self._turn(column, kept).take(rows)
        if isinstance(kept, Numbers):
            numbers = kept.values.take(rows)
            known, codes = np.unique(numbers, return_inverse=True)
            return Single(np.where(np.isnan(numbers), -1, codes), len(known))
        artists = self._catalog.artists(rows)
        codes_of: dict[str, int] = {}
        own = [codes_of.setdefault(artist, len(codes_of)) if artist else -1 for artist in artists]
        return Single(np.array(own, np.int64).reshape(-1), len(codes_of))

    def full(self, column: str, rows: I64, most: int) -> I64:
        """Finds the rows of values that many of some rows have.

        Args:
            column: its name.
            rows: (n,) rows.
            most: of how many a value is full.

        Returns:
            Rows with a full value, repeats allowed; none where the column is kept as text, which names no rows.
        """
        kept = self._filters.columns.get(column)
        if isinstance(kept, Words):
            values, counts = np.unique(self.labels(column, rows).codes, return_counts=True)
            own = [kept.rows[kept.offsets[i] : kept.offsets[i + 1]] for i in values[counts >= most]]
            return np.concatenate([np.empty(0, np.int64), *own])
        if isinstance(kept, Numbers):
            numbers = kept.values.take(rows)
            values, counts = np.unique(numbers[~np.isnan(numbers)], return_counts=True)
            return np.flatnonzero(np.isin(kept.values, values[counts >= most]))
        return np.empty(0, np.int64)

    def numbers(self, column: str, rows: I64) -> npt.NDArray[np.float64] | None:
        """Returns the numbers of rows in a column.

        Args:
            column: its name.
            rows: (n,) rows.

        Returns:
            (n,) numbers, NaN where unknown; None where the column is not one of numbers.
        """
        kept = self._filters.columns.get(column)
        return kept.values.take(rows).astype(np.float64) if isinstance(kept, Numbers) else None

    def having(self, column: str, values: Iterable[str], rows: I64) -> npt.NDArray[np.bool_]:
        """Finds which of some rows have one of some values.

        Args:
            column: its name.
            values: exact texts; numbers as texts in a column of numbers.
            rows: (n,) rows.

        Returns:
            (n,) bool.
        """
        kept = self._filters.columns.get(column)
        if isinstance(kept, Words):
            found = np.zeros(len(rows), np.bool_)
            for value in values:
                i, known = kept.texts.place(value)
                if known:
                    own = kept.rows[kept.offsets[i] : kept.offsets[i + 1]]
                    at = np.minimum(np.searchsorted(own, rows.astype(np.int32)), len(own) - 1)
                    found |= own[at] == rows
            return found
        if isinstance(kept, Numbers):
            return np.isin(kept.values.take(rows), np.array([float(value) for value in values], kept.values.dtype))
        wanted = set(values)
        return np.array([artist in wanted for artist in self._catalog.artists(rows)], np.bool_).reshape(-1)

    def songs(self, rows: I64, versions: Iterable[str] = ()) -> I64:
        """Tells recordings of one song from others: the same artist, the same normalised title.

        Args:
            rows: (n,) rows.
            versions: columns of which one that differs makes another song.

        Returns:
            (n,) int64, equal for recordings of one song, -1 for a track without a title or artist.
        """
        found = self._songs.take(rows)
        if len(new := np.flatnonzero(found == 0)):
            texts = zip(self._catalog.artists(rows[new]), self._catalog.titles(rows[new]), strict=True)
            keys = [
                hash((artist.casefold(), normalised_title(title))) if artist and title else -1
                for artist, title in texts
            ]
            found[new] = [key & 0x7FFF_FFFF_FFFF_FFFF if key != -1 else -1 for key in keys]
            self._songs[rows[new]] = found[new]
        for column in versions:
            labels = self.labels(column, rows)
            own = np.array([hash(tuple(codes)) for codes in labels.lists], np.int64).reshape(-1)
            known = found >= 0
            with np.errstate(over="ignore"):
                mixed = (found * np.int64(1_000_003)) ^ own
            found = np.where(known, mixed & np.int64(0x7FFF_FFFF_FFFF_FFFF), found)
        return found

    def _turn(self, column: str, words: Words) -> Labels:
        """The column by row, turned around once: every other thread waits for it."""
        with self._lock:
            if (turned := self._turned.get(column)) is None:
                n, size = self._filters.n, len(words.texts)
                codes = np.repeat(np.arange(size, dtype=np.int32), np.diff(words.offsets))
                counts = np.bincount(words.rows, minlength=n)
                if counts.max(initial=0) <= 1:
                    values = np.full(n, -1, np.int32)
                    values[words.rows] = codes
                    turned = self._turned[column] = Single(values, size)
                else:
                    offsets = np.concatenate([[0], np.cumsum(counts)])
                    order = np.argsort(words.rows, kind="stable")
                    turned = self._turned[column] = Several(codes[order], offsets, size)
            return turned
