"""Pools of scratch arrays, so that no request allocates an array as long as the catalog.

There is one pool for each dtype. An array is lent to one thread at a time, so a pool grows with the threads that
compute at once, not with all threads.
"""

from collections import deque
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

_POOL_SIZE = 4  # arrays kept of each dtype
_pools: dict[type[Any], deque[npt.NDArray[Any]]] = {
    np.bool_: deque(maxlen=_POOL_SIZE),
    np.int16: deque(maxlen=_POOL_SIZE),
}


class _Borrowed:
    """An array of a pool during a `with` block; a class, for a request has many of them and generators cost more."""

    __slots__ = ("_array", "_dtype", "_n")

    def __init__(self, n: int, dtype: type[Any]) -> None:
        self._n, self._dtype = n, dtype

    def __enter__(self) -> npt.NDArray[Any]:
        try:
            array = _pools[self._dtype].pop()
        except IndexError:
            array = np.zeros(self._n, self._dtype)
        if len(array) < self._n:
            array = np.zeros(self._n, self._dtype)
        self._array = array
        return array[: self._n]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # after an error the array may not be cleared
            _pools[self._dtype].append(self._array)


def borrowed_mask(n: int) -> AbstractContextManager[npt.NDArray[np.bool_]]:
    """Lends a mask that is False everywhere; the borrower clears what it has set before the end of the `with` block.

    Args:
        n: length.

    Returns:
        A context manager that gives an (n,) bool array.
    """
    return _Borrowed(n, np.bool_)


def borrowed_places(n: int) -> AbstractContextManager[npt.NDArray[np.int16]]:
    """Lends an array of arbitrary contents.

    Args:
        n: length.

    Returns:
        A context manager that gives an (n,) int16 array.
    """
    return _Borrowed(n, np.int16)
