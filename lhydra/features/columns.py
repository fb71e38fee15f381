"""Raw columns as arrays: numbers and texts however they were written, missing ones as NaN and ""."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64
from lhydra.errors import FeatureError, complain

Columns = Mapping[str, Sequence[Any] | npt.NDArray[Any]]  # equal lengths; one row or a million


def length_of(columns: Columns) -> int:
    """Returns how many rows the columns have. Raises FeatureError when they disagree."""
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise FeatureError(complain("columns", f"lengths {sorted(lengths)}", "one length"))
    return lengths.pop() if lengths else 1


def numbers_of(name: str, columns: Columns, n: int) -> npt.NDArray[np.float64]:
    """(n,) float64 of a number column, NaN where missing. Raises FeatureError on an infinite number."""
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
    """The number in one cell, NaN where there is none. Raises FeatureError on an infinite number."""
    number = number_of(value)
    if math.isinf(number):
        raise FeatureError(complain(name, "an infinite number", "finite numbers"))
    return number


def number_of(value: Any) -> float:
    """Returns the number that a cell holds or spells, NaN where it is none."""
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return math.nan if isinstance(value, str) and math.isinf(number) else number


def text_of(value: Any) -> str:
    """Returns the text of a cell, "" where there is none."""
    return value if isinstance(value, str) else "" if value is None else str(value)


def stacked(columns: list[npt.NDArray[Any]], n: int, dtype: Any) -> npt.NDArray[Any]:
    """Returns `columns`, each (n,), side by side: (n, c), also where there are none."""
    return np.stack(columns, 1).astype(dtype) if columns else np.zeros((n, 0), dtype)


def joined(bags: list[I64], n: int) -> I64:
    """Returns the bags, each (n, w), side by side, also where there are none."""
    return np.concatenate(bags, 1) if bags else np.zeros((n, 0), np.int64)
