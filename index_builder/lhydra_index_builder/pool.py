"""Work on several cores: a pool of processes behind the signature of `map`.

Tasks and results are small and travel; what a task makes is a file, whose path it returns. So another engine can run
the same work: whatever has this signature is an `lhydra.bundle.embedding.Run`.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from lhydra.bundle import index
from lhydra.bundle.embedding import Run
from lhydra.errors import LhydraError, complain

Task = TypeVar("Task")


@contextlib.contextmanager
def processes(n: int) -> Iterator[Run]:
    """Gives a pool of processes of one thread each, for a `with` block.

    They are spawned: a fork of a process that has used FAISS, ONNX Runtime or torch hangs.

    Args:
        n: how many; 1 runs tasks in this process.

    Yields:
        What runs tasks.
    """
    if n <= 1:
        yield map
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n, mp_context=spawn, initializer=_start) as pool:

        def run(work: Callable[[Task], Path], tasks: Iterable[Task], /) -> Iterable[Path]:
            try:
                yield from pool.map(work, tasks)
            except BrokenProcessPool:
                raise LhydraError(complain("a process of the pool", "its end", "work; was it out of memory?")) from None

        try:
            yield run
        except KeyboardInterrupt:  # of SIGTERM they know nothing, and the exit waits for their tasks
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start() -> None:
    """Sets up a process of the pool: one thread, and an end when its parent ends."""
    index.one_thread()
    parent = multiprocessing.parent_process()
    assert parent is not None  # a spawned process has one

    def end_with_parent() -> None:
        parent.join()  # a killed builder tells its executor nothing
        os._exit(1)

    threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
