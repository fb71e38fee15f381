"""Pools of scratch arrays, so that no request allocates an array as long as the catalog.

There is one pool for each dtype. An array is lent to one thread at a time, so a pool grows with the threads that
compute at once, not with all threads.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

_POOL_SIZE = 4  # arrays kept of each dtype
_pools: dict[type[Any], deque[npt.NDArray[Any]]] = {
    np.bool_: deque(maxlen=_POOL_SIZE),
    np.int16: deque(maxlen=_POOL_SIZE),
}


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
    pool.append(array)  # an error skips this line: the array may not be cleared


def borrowed_mask(n: int) -> AbstractContextManager[npt.NDArray[np.bool_]]:
    """Lends a mask that is False everywhere; the borrower clears what it has set before the end of the `with` block.

    Args:
        n: length.

    Returns:
        A context manager that gives an (n,) bool array.
    """
    return _borrowed(n, np.bool_)


def borrowed_places(n: int) -> AbstractContextManager[npt.NDArray[np.int16]]:
    """Lends an array of arbitrary contents.

    Args:
        n: length.

    Returns:
        A context manager that gives an (n,) int16 array.
    """
    return _borrowed(n, np.int16)
