"""Work done ahead by one thread: while a step is computed, the next batch is made."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(make: Callable[[T], R], given: Iterable[T]) -> Iterator[R]:
    """Makes things in order, each while the one before is used.

    Args:
        make: called by one other thread, in the order of `given`: what it draws at random stays the same.
        given: what to call it with.

    Yields:
        What it returns; what it raises is raised here.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for one in given:
            made, coming = coming, thread.submit(make, one)
            if made is not None:
                yield made.result()
        if coming is not None:
            yield coming.result()
