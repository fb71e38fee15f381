"""Scratch arrays that are lent to the thread that computes, so that no request allocates what is as long as a catalog.

One pool for each dtype. An array is lent to one thread at a time, so there are as many as ever compute at once, not as
many as threads.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

_KEPT = 4  # arrays kept in each pool
_pools: dict[type[Any], deque[npt.NDArray[Any]]] = {np.bool_: deque(maxlen=_KEPT), np.int16: deque(maxlen=_KEPT)}


@contextmanager
def _borrowed(n: int, dtype: type[Any]) -> Iterator[npt.NDArray[Any]]:
    pool = _pools[dtype]
    try:
        array = pool.pop()
    except IndexError:
        array = np.zeros(n, dtype)
    if len(array) < n:
        array = np.zeros(n, dtype)
    yield array[:n]
    pool.append(array)  # not after an error: something in it may still be set


def borrowed_mask(n: int) -> AbstractContextManager[npt.NDArray[np.bool_]]:
    """Lends a mask that is False everywhere; the borrower clears what it has set before the end of the `with` block.

    Args:
        n: length.

    Returns:
        A context manager that gives an (n,) bool array.
    """
    return _borrowed(n, np.bool_)


def borrowed_places(n: int) -> AbstractContextManager[npt.NDArray[np.int16]]:
    """Lends an array that may hold anything.

    Args:
        n: length.

    Returns:
        A context manager that gives an (n,) int16 array.
    """
    return _borrowed(n, np.int16)
