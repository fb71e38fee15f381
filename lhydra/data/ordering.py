"""Sorting many rows by several whole numbers: what numpy's lexsort does, by sorts of packed integers, which are fast.

A key and the row's number share one int64, so that an unstable sort of plain integers (vectorised, some ten times
faster than a sort of indices) gives a stable order.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64

_BITS = 63


def lexsort(keys: Sequence[npt.NDArray[Any]]) -> I64:
    """Returns the order of rows by `keys`, the last one first, equal rows in the order that they have.

    Args:
        keys: at least one array of (n,) whole numbers.

    Returns:
        (n,) int64, as np.lexsort gives them.
    """
    order: I64 | None = None
    n = len(keys[0])
    row_bits = max(n - 1, 0).bit_length()
    for key in keys:
        if not n or (key[0] == key[-1] and (key == key[0]).all()):
            continue
        low, high = int(key.min()), int(key.max())
        if (high - low).bit_length() + row_bits > _BITS:
            within = np.argsort(key if order is None else key[order], kind="stable")
            order = within if order is None else order[within]
            continue
        packed = (key if order is None else key[order]).astype(np.int64)
        packed -= low
        packed <<= row_bits
        packed |= np.arange(n)
        packed.sort()
        packed &= (1 << row_bits) - 1
        order = packed if order is None else order[packed]
    return np.arange(n) if order is None else order.astype(np.int64, copy=False)


def settle(order: I64, same: npt.NDArray[np.bool_], keys: Sequence[npt.NDArray[Any]]) -> I64:
    """Orders rows that an order holds for the same by further keys.

    Args:
        order: (n,) int64.
        same: (n,) bool, whether each row in order is the same as the one before; the first is not.
        keys: (n,) of the rows, not yet in order; the last one first.

    Returns:
        (n,) int64, the order with each stretch of equal rows sorted.
    """
    if not same.any():
        return order
    tied = same | np.append(same[1:], False)
    places = np.flatnonzero(tied)
    rows = order[places]
    stretch = np.cumsum(~same)[places]
    settled = order.copy()
    settled[places] = rows[np.lexsort([*(key[rows] for key in keys), stretch])]
    return settled
