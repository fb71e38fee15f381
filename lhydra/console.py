"""How a long loop shows where it is."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_REPORT_EVERY_S = 5.0


def with_progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yields `items`; shows where the loop is like `progress`."""
    with progress(total, label) as show:
        for done, item in enumerate(items, 1):
            yield item
            show(done)


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """Gives a function to be told how much of `total` is done.

    A bar with rate and time left on a terminal, else a plain line every few seconds, both on stderr.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        rate = TextColumn("{task.fields[rate]}")
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total, rate="")

            def move(done: int) -> None:
                speed = bar.tasks[0].speed
                bar.update(task, completed=done, rate=f"{speed:,.0f}/s" if speed else "")

            yield move
        return
    started = time.monotonic()
    due = started + _REPORT_EVERY_S

    def tell(done: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due and done:
            rate = done / (now - started)
            left = f"{rate:,.0f}/s, {(total - done) / rate:,.0f} s left"
            print(f"{label}: {done:,} of {total:,}, {left}", file=sys.stderr, flush=True)
            due = now + _REPORT_EVERY_S

    yield tell
