"""Scratch arrays that are lent to whoever computes, so that no request allocates what is as long as a catalog."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

_masks: deque[npt.NDArray[np.bool_]] = deque(maxlen=4)


@contextmanager
def borrowed_mask(n: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Lends an (n,) array that is False everywhere; whoever sets something in it clears it before giving it back.

    Lent to one thread at a time, so there are as many as ever compute at once, not as many as threads.
    """
    try:
        array = _masks.pop()
    except IndexError:
        array = np.zeros(n, np.bool_)
    if len(array) != n:
        array = np.zeros(n, np.bool_)
    yield array
    _masks.append(array)  # not after an error: something in it may still be set
