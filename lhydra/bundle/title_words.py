"""The words of titles and artists, and which tracks have each: a text finds the tracks with all of its words.

    search_words.npy  search_words_offsets.npy   the words, folded, ascending by their bytes
    search_offsets.npy  search_rows.npy          rows[offsets[i]:offsets[i + 1]] have word i, ascending

The words that begin alike lie side by side, and so do their rows: a word that is half typed costs one slice. Bundles
without the files get the same of their texts in memory.
"""

import re
import unicodedata
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.bundle.arrays import are_sealed, check_lists, check_rows, column
from lhydra.bundle.strings import StringColumn
from lhydra.domain import I64
from lhydra.errors import BundleCorrupt, complain
from lhydra.features.histories import offsets_of

FILES = ("search_words.npy", "search_words_offsets.npy", "search_offsets.npy", "search_rows.npy")
SHARD = 100_000  # texts decoded at a time
_WORD = re.compile("[^\\W_]+|[\u2100-\u2bff\U0001f000-\U0001fbff]")  # each emoji is a word
_BEHIND = b"\xff"  # no UTF-8 holds it: all that begins with a word is smaller

Mask = npt.NDArray[np.bool_]


def words_of(text: str) -> list[str]:
    """Splits a text into words, without case, accents and punctuation.

    Args:
        text: any.

    Returns:
        The words in order; where there is nothing but punctuation, that.
    """
    folded = _folded(text)
    return _WORD.findall(folded) or folded.split()


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")


@dataclass(frozen=True)
class TitleWords:
    """Which of n tracks have which words."""

    words: StringColumn  # (w,) folded, ascending by their bytes
    offsets: I64  # (w + 1,)
    rows: npt.NDArray[np.int32]

    @classmethod
    def of(cls, titles: StringColumn, artists: StringColumn) -> "TitleWords":
        """Collects the words of n tracks.

        Args:
            titles: n titles.
            artists: n artists.

        Returns:
            The words, each track once under each of its own.
        """
        number: dict[str, int] = {}
        numbers, lengths = array("i"), array("i")
        for start in range(0, len(titles), SHARD):
            some = (texts.part(start, start + SHARD).raw() for texts in (titles, artists))
            for title, artist in zip(*some, strict=True):
                own = {*words_of(title.decode()), *words_of(artist.decode())}
                numbers.extend([number.setdefault(word, len(number)) for word in own])
                lengths.append(len(own))
        texts = [word.encode() for word in number]
        order = np.array(sorted(range(len(texts)), key=texts.__getitem__), np.int64)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        at = place[np.frombuffer(numbers, np.int32)] if numbers else np.empty(0, np.int64)
        rows = np.repeat(np.arange(len(lengths), dtype=np.int32), np.frombuffer(lengths, np.int32) if lengths else [])
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.bincount(at, minlength=len(texts)), out=offsets[1:])
        return cls(StringColumn.of(texts[i].decode() for i in order), offsets, rows[np.argsort(at, kind="stable")])

    def with_tracks(self, fresh: "TitleWords", moved: I64, own: I64) -> "TitleWords":
        """Adds the words of tracks that come between those of before.

        Args:
            fresh: words of m more tracks.
            moved: (n,) rows where the tracks of before went, ascending.
            own: (m,) rows of the new ones, ascending.

        Returns:
            What `of` collects of all of them, though no title of before is read again.
        """
        rows, more, counts = moved.astype(np.int32)[self.rows], own.astype(np.int32)[fresh.rows], np.diff(fresh.offsets)
        at, known = np.zeros(len(counts), np.int64), np.zeros(len(counts), np.bool_)
        for i, word in enumerate(fresh.words.raw()):
            at[i], known[i] = self.words.place(word, int(at[i - 1]) if i else 0)
        places = np.repeat(self.offsets[at], counts)  # before which of the rows: all of the next word's, or among them
        for i in np.flatnonzero(known).tolist():
            here = slice(fresh.offsets[i], fresh.offsets[i + 1])
            places[here] += np.searchsorted(rows[self.offsets[at[i]] : self.offsets[at[i] + 1]], more[here])
        sizes, unknown = np.diff(self.offsets), np.flatnonzero(~known)
        sizes[at[known]] += counts[known]
        words = self.words.inserted(at[unknown], StringColumn.of(fresh.words.at(unknown)))
        offsets = offsets_of(np.insert(sizes, at[unknown], counts[unknown]))
        return TitleWords(words, offsets, np.insert(rows, places, more))

    def save(self, folder: Path) -> None:
        """Writes the files.

        Args:
            folder: of the bundle.
        """
        arrays: tuple[npt.NDArray[Any], ...] = self.words.data, self.words.offsets, self.offsets, self.rows
        for name, values in zip(FILES, arrays, strict=True):
            np.save(folder / name, values)

    @classmethod
    def open(cls, folder: Path, n: int, sealed: Collection[str]) -> "TitleWords | None":
        """Maps the files.

        Args:
            folder: of the bundle.
            n: its tracks.
            sealed: names of the files that its manifest knows.

        Returns:
            The words; None where the bundle has no files of them.

        Raises:
            BundleCorrupt: a file is missing, of another type, does not fit the others, or names no tracks.
        """
        if not are_sealed(folder, FILES, sealed):
            return None
        dtypes = "uint8", "int64", "int64", "int32"
        text, ends, offsets, rows = (column(folder / name, dtype) for name, dtype in zip(FILES, dtypes, strict=True))
        check_lists(folder / FILES[1], len(text))
        check_lists(folder / FILES[2], len(rows))
        check_rows(folder / FILES[3], n)
        if len(offsets) != len(ends):
            raise BundleCorrupt(complain(folder / FILES[2], f"{len(offsets)} offsets", f"{len(ends)}, as of words"))
        return cls(StringColumn(text, ends), offsets, rows)

    def find(
        self, words: Sequence[str], allowed: Mask, popular: npt.NDArray[np.int32], check: Callable[[], None]
    ) -> npt.NDArray[np.int32]:
        """Finds the tracks with words that begin with all of some words.

        Args:
            words: at least one, as `words_of` gives them.
            allowed: (n,) which tracks may be found.
            popular: (n,) rows, most listeners first.
            check: runs between words; its error ends the search.

        Returns:
            (m,) rows: those with most of the words whole first, then as in `popular`.
        """
        found, whole = allowed.copy(), np.zeros(len(allowed), np.uint8)
        distinct = [word.encode() for word in dict.fromkeys(words)]
        for word in distinct:
            check()
            first, known = self.words.place(word)
            last, _ = self.words.place(word + _BEHIND, first)
            here = np.zeros(len(allowed), bool)
            here[self.rows[self.offsets[first] : self.offsets[last]].astype(np.int64)] = True
            found &= here
            if known:
                whole[self.rows[self.offsets[first] : self.offsets[first + 1]].astype(np.int64)] += 1
        best = popular[found[popular]]
        return best[np.argsort(len(distinct) - whole[best], kind="stable")]


def names_in(folder: Path) -> list[str]:
    """Names the files.

    Args:
        folder: of a bundle.

    Returns:
        Their names, none where there are none.
    """
    return list(FILES) if (folder / FILES[0]).is_file() else []
