"""Filters: the tracks of a bundle that satisfy conditions on the columns that describe them.

    filters.json                      how many tracks there are, and the columns with their kinds
    filter<i>_words.npy               categorical, multi: the values there are, ascending by their bytes
    filter<i>_rows.npy                    and the rows that have each, value after value, ascending
    filter<i>.npy                     numeric, year: a number per row, NaN where it is not known

<i> is the position of the column among the sorted names. The files are mapped, so a value costs what its rows cost, and
values that nobody filters by are not read. Written by `lhydra.bundle.columns_writer`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import capwords
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra import files
from lhydra.bundle.arrays import mapped
from lhydra.bundle.strings import StringColumn
from lhydra.domain import I64, Condition
from lhydra.errors import BundleCorrupt, InvalidRequest, complain
from lhydra.numerals import real_number

Mask = npt.NDArray[np.bool_]
WORDS, NUMBERS = ("categorical", "multi"), ("numeric", "year")  # the kinds of columns that can be filtered on
_PARTS = {"categorical": ("_words", "_words_offsets", "_offsets", "_rows"), "numeric": ("",)}
_PARTS |= {"multi": _PARTS["categorical"], "year": _PARTS["numeric"]}


def normalised(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Returns conditions in normal form: equal for the same conditions in any order.

    Args:
        conditions: joined by and.

    Returns:
        The distinct conditions, sorted.
    """
    return tuple(sorted(dict.fromkeys(conditions), key=_order))


def check(conditions: Iterable[Condition], names: Mapping[str, str]) -> None:
    """Checks that columns can answer conditions.

    Args:
        conditions: of a request.
        names: kind by column name.

    Raises:
        InvalidRequest: they cannot; it names the field.
    """
    for condition in conditions:
        if condition.column not in names:
            some = ", ".join(sorted(names)) or "this bundle has none"
            raise InvalidRequest(
                condition.at("column"), f"no column {condition.column!r}", f"a column to filter on ({some})"
            )
        kind = names[condition.column]
        bounds = {name: bound for name in ("min", "max") if (bound := getattr(condition, name)) is not None}
        texts = {name: found for name in ("any_of", "all_of", "none_of") if (found := getattr(condition, name))}
        if not (bounds or texts):
            expected = "one of any_of, all_of, none_of, min, max"
            raise InvalidRequest(condition.where.rstrip("."), "a condition that asks for nothing", expected)
        for name, bound in bounds.items():
            if kind not in NUMBERS:
                found = f"{bound:.10g} for {condition.column}, which is {kind}"
                raise InvalidRequest(condition.at(name), found, "a bound of a column of numbers")
            if not math.isfinite(bound):
                raise InvalidRequest(condition.at(name), bound, "a finite number")
        if len(bounds) == 2 and bounds["min"] > bounds["max"]:
            raise InvalidRequest(condition.at("min"), f"{bounds['min']:.10g}", f"at most max, {bounds['max']:.10g}")
        for name, values in texts.items() if kind in NUMBERS else ():
            for text in values:
                if _number(text) is None:
                    raise InvalidRequest(condition.at(name), repr(text), f"numbers, as {condition.column} is {kind}")


@dataclass(frozen=True)
class Words:
    """A column of values as an inverted list: rows[offsets[i]:offsets[i + 1]] have value i, ascending by its bytes."""

    texts: StringColumn  # (w,)
    offsets: I64  # (w + 1,)
    rows: npt.NDArray[np.int32]

    def having(self, n: int, values: Iterable[str]) -> Mask:
        """Finds the rows that have one of some values.

        Args:
            n: rows of the column.
            values: the values.

        Returns:
            (n,) bool.
        """
        found = np.zeros(n, bool)
        for value in values:
            i, known = self.texts.place(value)
            if known:
                rows = self.rows[self.offsets[i] : self.offsets[i + 1]].astype(np.int64)  # int32 takes twice as long
                found[rows] = True
        return found


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, exact in the type they are kept in."""

    values: npt.NDArray[Any]  # (n,) float32 or float64, NaN where unknown

    def having(self, n: int, values: Iterable[str]) -> Mask:
        """Finds the rows that have one of some numbers.

        Args:
            n: rows of the column.
            values: numbers as texts, which have passed `check`.

        Returns:
            (n,) bool.
        """
        found = np.zeros(n, bool)
        for value in values:
            number = _number(value)
            assert number is not None  # checked
            found |= self.within(number, number)
        return found

    def within(self, low: float, high: float) -> Mask:
        """Finds the rows whose number lies in a range.

        Args:
            low: smallest, inclusive.
            high: largest, inclusive.

        Returns:
            (n,) bool, False where the number is unknown.
        """
        kept = self.values.dtype.type
        with np.errstate(over="ignore"):  # beyond what the type holds: infinite, which no number reaches
            first, last = kept(low), kept(high)
            if float(first) < low:
                first = np.nextafter(first, kept(np.inf))
            if float(last) > high:
                last = np.nextafter(last, kept(-np.inf))
        found: Mask = self.values >= first
        found &= self.values <= last
        return found


@dataclass(frozen=True)
class FilterColumns:
    """The columns of n tracks that can be filtered on; safe to use from any thread."""

    n: int
    names: Mapping[str, str]  # of the columns, and their kinds
    columns: Mapping[str, Words | Numbers]

    def mask(self, conditions: Iterable[Condition]) -> Mask:
        """Finds the rows that satisfy all conditions.

        Args:
            conditions: any number, which have passed `check`.

        Returns:
            (n,) bool.
        """
        allowed = np.ones(self.n, bool)
        for condition in conditions:
            column = self.columns[condition.column]
            if condition.any_of:
                allowed &= column.having(self.n, condition.any_of)
            for value in condition.all_of:
                allowed &= column.having(self.n, (value,))
            if condition.none_of:
                allowed &= ~column.having(self.n, condition.none_of)
            if condition.min is not None or condition.max is not None:
                assert isinstance(column, Numbers)  # checked
                low = -math.inf if condition.min is None else condition.min
                allowed &= column.within(low, math.inf if condition.max is None else condition.max)
        return allowed

    def unknown(self, conditions: Iterable[Condition]) -> Iterator[tuple[str, str, str]]:
        """Finds the values that conditions want and no track has: misspelt ones, most likely.

        Args:
            conditions: any number, which have passed `check`.

        Yields:
            Column, value, and the value in other case that some track has, "" where none was found.
        """
        for condition in conditions:
            column = self.columns[condition.column]
            if isinstance(column, Numbers):
                continue
            for value in (*condition.any_of, *condition.all_of):
                if not column.texts.place(value)[1]:
                    plain = value.strip()
                    cases = (plain, capwords(plain), plain.capitalize(), plain.lower(), plain.upper())
                    yield condition.column, value, next((one for one in cases if column.texts.place(one)[1]), "")

    @classmethod
    def open(cls, folder: Path) -> "FilterColumns":
        """Maps columns.

        Args:
            folder: where their files lie.

        Returns:
            The columns.

        Raises:
            BundleCorrupt: the files do not fit together.
        """
        n, names = _read(folder)
        columns: dict[str, Words | Numbers] = {}
        for i, (name, kind) in enumerate(names.items()):
            arrays = [mapped(folder / f"filter{i}{part}.npy") for part in _PARTS[kind]]
            if kind in WORDS:
                words, words_offsets, offsets, rows = arrays
                columns[name] = Words(StringColumn(words, words_offsets), offsets, rows)
                found = (len(offsets), int(words_offsets[-1]), int(offsets[-1]))
                expected = (len(words_offsets), len(words), len(rows))
            else:
                columns[name] = Numbers(arrays[0])
                found, expected = (0, 0, len(arrays[0])), (0, 0, n)
            if found != expected:
                lengths = "lengths {} of values, their text and their rows"
                path = folder / f"filter{i}{_PARTS[kind][0]}.npy"
                raise BundleCorrupt(complain(path, lengths.format(found), lengths.format(expected)))
        return cls(n, names, columns)


def file_names(folder: Path) -> list[str]:
    """Lists the files that hold columns.

    Args:
        folder: where they lie.

    Returns:
        The names.

    Raises:
        BundleCorrupt: filters.json is missing or malformed.
    """
    _, names = _read(folder)
    parts = (f"filter{i}{part}.npy" for i, kind in enumerate(names.values()) for part in _PARTS[kind])
    return ["filters.json", *parts]


def _number(text: str) -> float | None:
    try:
        number = real_number(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _order(condition: Condition) -> tuple[Any, ...]:
    low, high = condition.min, condition.max
    texts = condition.column, condition.any_of, condition.all_of, condition.none_of
    return (*texts, low is None, low or 0.0, high is None, high or 0.0)


def _read(folder: Path) -> tuple[int, dict[str, str]]:
    """Returns the number of tracks, and the kind of each column by name, sorted."""
    path = folder / "filters.json"
    said = files.read_json(path, BundleCorrupt, "the columns of a bundle")
    try:
        names = {str(name): str(said["columns"][name]) for name in sorted(said["columns"])}
        if unknown := set(names.values()) - set(_PARTS):
            raise ValueError(f"kind {sorted(unknown)[0]}")
        return int(said["tracks"]), names
    except (KeyError, TypeError, ValueError) as error:
        raise BundleCorrupt(complain(path, str(error), "the columns of a bundle")) from None


NO_COLUMNS = FilterColumns(0, {}, {})  # of a bundle without filters
