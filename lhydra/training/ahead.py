"""Work done ahead by one thread: while a step is computed, the next batch is made."""

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(make: Callable[[T], R], given: Iterable[T]) -> Iterator[R]:
    """Makes things in order, each while the one before is used.

    Ctrl-C may come at any moment here. So both sides meet in queues written in C, which it leaves whole: what an
    executor locks in Python may stay locked, and a thread whose start it interrupts is waited for by nobody, so that
    Python aborts where it ends while that thread is in torch.

    Args:
        make: called by one other thread, in the order of `given`: what it draws at random stays the same.
        given: what to call it with.

    Yields:
        What it returns; what it raises is raised here.
    """
    asked: SimpleQueue[tuple[T] | None] = SimpleQueue()
    made: SimpleQueue[tuple[R] | BaseException | None] = SimpleQueue()

    def work() -> None:
        while (one := asked.get()) is not None:
            try:
                made.put((make(*one),))
            except BaseException as error:
                made.put(error)
        made.put(None)

    Thread(target=work, name="ahead", daemon=True).start()
    try:
        is_first = True
        for one in given:
            asked.put((one,))
            if not is_first:
                yield _told(made.get())
            is_first = False
        if not is_first:
            yield _told(made.get())
    finally:
        asked.put(None)
        while made.get() is not None:  # until the thread is out of `make`
            pass


def _told(found: tuple[R] | BaseException | None) -> R:
    assert found is not None  # says that there is no more
    if isinstance(found, BaseException):
        raise found
    return found[0]
