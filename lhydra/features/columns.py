"""Raw columns as arrays, missing numbers NaN and texts ""; encodings of single columns, and of profiles by row."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra import kernels
from lhydra.domain import I64, Value
from lhydra.errors import FeatureError, complain
from lhydra.numerals import real_number

Columns = Mapping[str, Sequence[Any] | npt.NDArray[Any]]  # equal lengths; one row or a million
Profiles = Sequence[Mapping[str, Value]]  # of users, value by column


def length_of(columns: Columns) -> int:
    """Returns how many rows the columns have.

    Args:
        columns: raw columns.

    Returns:
        Their common length, 1 without columns.

    Raises:
        FeatureError: the lengths differ.
    """
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise FeatureError(complain("columns", f"lengths {sorted(lengths)}", "one length"))
    return lengths.pop() if lengths else 1


def numbers_of(name: str, columns: Columns, n: int) -> npt.NDArray[np.float64]:
    """Reads a number column.

    Args:
        name: of the column.
        columns: raw columns; the named one may be missing.
        n: their length.

    Returns:
        (n,) float64, NaN where missing.

    Raises:
        FeatureError: a number is infinite.
    """
    column = columns.get(name)
    if column is None:
        return np.full(n, np.nan)
    values = np.asarray(column)
    if values.dtype.kind not in "fiub":
        values = np.array([number_of(value) for value in column], np.float64)
    values = values.astype(np.float64)
    if np.isinf(values).any():
        raise FeatureError(complain(name, "an infinite number", "finite numbers"))
    return values


def finite(name: str, value: Any) -> float:
    """Reads the number in one cell.

    Args:
        name: of the column, for the error.
        value: the cell.

    Returns:
        The number, NaN where there is none.

    Raises:
        FeatureError: the number is infinite.
    """
    number = number_of(value)
    if math.isinf(number):
        raise FeatureError(complain(name, "an infinite number", "finite numbers"))
    return number


def number_of(value: Any) -> float:
    """Parses a cell as a number.

    Args:
        value: a number, a text that spells one, or anything else.

    Returns:
        The number, NaN where it is none; a text that spells infinity is none.
    """
    if value is None:
        return math.nan
    try:
        number = real_number(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return math.nan
    return math.nan if isinstance(value, str) and math.isinf(number) else number


def text_of(value: Any) -> str:
    """Returns the text of a cell.

    Args:
        value: anything; None is missing.

    Returns:
        The text, "" where it is missing.
    """
    return value if isinstance(value, str) else "" if value is None else str(value)


def stacked(columns: list[npt.NDArray[Any]], n: int, dtype: Any) -> npt.NDArray[Any]:
    """Stacks columns side by side.

    Args:
        columns: c arrays (n,), possibly none.
        n: rows.
        dtype: of the result.

    Returns:
        (n, c).
    """
    return np.stack(columns, 1).astype(dtype) if columns else np.zeros((n, 0), dtype)


def joined(bags: list[I64], n: int) -> I64:
    """Joins bags side by side.

    Args:
        bags: arrays (n, w) int64, possibly none.
        n: rows.

    Returns:
        (n, sum of w) int64.
    """
    return np.concatenate(bags, 1) if bags else np.zeros((n, 0), np.int64)


@dataclass(frozen=True)
class Number:
    """A number column: scaled to (x - mean) / std; `log` takes log1p first (durations)."""

    name: str
    mean: float
    std: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"{self.name} of mean {self.mean} and deviation {self.std}")

    def scaled(self, columns: Columns, n: int) -> npt.NDArray[np.float64]:
        """Scales the column and clips it at 5 deviations.

        Args:
            columns: raw columns.
            n: their length.

        Returns:
            (n,) float64, 0 where it is missing.
        """
        values = numbers_of(self.name, columns, n)
        values = np.log1p(np.maximum(values, 0)) if self.log else values
        with np.errstate(over="ignore"):  # clipped like all that is far away
            return np.asarray(np.nan_to_num(np.clip((values - self.mean) / self.std, -5, 5), nan=0.0))


@dataclass(frozen=True)
class Category:
    """A column of one value per row; value i of `values` is encoded as i + 1, anything else as 0."""

    name: str
    values: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        """Encoded number by value."""
        return {value: number for number, value in enumerate(self.values, 1)}

    def numbered(self, columns: Columns, n: int) -> I64:
        """Encodes the column as numbers.

        Args:
            columns: raw columns.
            n: their length.

        Returns:
            (n,) int64, 0 where it is missing or not among the values.
        """
        column = columns.get(self.name)
        if column is None:
            return np.zeros(n, np.int64)
        return np.fromiter((self.index.get(text_of(value), 0) for value in column), np.int64, n)


@dataclass(frozen=True)
class Bag:
    """A column of several values per row, at most `width` of them kept; numbered after those of earlier bags."""

    name: str
    values: tuple[str, ...]
    width: int
    first: int  # number of the first value

    @cached_property
    def index(self) -> dict[str, int]:
        """Encoded number by value."""
        return {value: number for number, value in enumerate(self.values, self.first)}


@dataclass(frozen=True)
class ProfileColumns:
    """The columns of user profiles.

    categories: name, and encoded number by value. numbers: name, mean, standard deviation, and the bounds of the groups
    that the number is a category of, none for no category.
    """

    categories: tuple[tuple[str, dict[str, int]], ...]
    numbers: tuple[tuple[str, float, float, tuple[float, ...]], ...]

    def known(self, profile: Mapping[str, Value]) -> set[str]:
        """Names the columns that say something to the model.

        Args:
            profile: of a user.

        Returns:
            Those with a value that it has learnt, or a number where it wants one.
        """
        found = {name for name, index in self.categories if index.get(text_of(profile.get(name)), 0)}
        return found | {name for name, *_ in self.numbers if not math.isnan(number_of(profile.get(name)))}

    def encoded(self, profiles: Profiles) -> tuple[list[list[float]], list[list[int]]]:
        """Encodes profiles given by row.

        Plain Python or a compiled loop: for the one row of a request both are several times faster than arrays.

        Args:
            profiles: n of them; columns that are no features are ignored.

        Returns:
            Of each the scaled numbers, each with whether it is known, and the ids: of categories, then of groups.

        Raises:
            FeatureError: an infinite number.
        """
        if kernels.compiled is not None:
            found = kernels.compiled.profile_numbers(profiles, self.categories, self.numbers)
            if found is not None:
                return found
        dense: list[list[float]] = []
        ids: list[list[int]] = []
        for profile in profiles:
            scaled: list[float] = []
            numbered = [index.get(text_of(profile.get(name)), 0) for name, index in self.categories]
            for name, mean, std, bounds in self.numbers:
                value = finite(name, profile.get(name))
                known = value == value  # not NaN
                scaled += (min(max((value - mean) / std, -5.0), 5.0) if known else 0.0, known)
                if bounds:
                    numbered.append(bisect.bisect_right(bounds, value) + 1 if known else 0)
            dense.append(scaled)
            ids.append(numbered)
        return dense, ids
