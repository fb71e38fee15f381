"""What commands show on a terminal and write into a pipe: the progress of a long loop, and tables."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from lhydra.lines import say

T = TypeVar("T")
_REPORT_EVERY_S = 5.0


def with_progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yields `items`; shows where the loop is like `progress`.

    Args:
        items: what is looped over.
        total: how many there are.
        label: what people read.

    Yields:
        Each item.
    """
    with progress(total, label) as show:
        for done, item in enumerate(items, 1):
            yield item
            show(done)


@contextmanager
def progress(total: int, label: str, *, lines: bool = True) -> Iterator[Callable[[int], None]]:
    """Gives a function to be told how much of `total` is done.

    A bar with rate and time left on a terminal, else a plain line every few seconds, both on stderr; nothing where
    there is nothing to do. What is printed meanwhile stands above the bar.

    Args:
        total: how much there is to do.
        label: what people read.
        lines: whether there are lines where there is no terminal; a caller who prints its own needs none.

    Yields:
        A function that takes how much is done.
    """
    if total and sys.stderr.isatty():
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
    if not (total and lines):
        yield lambda done: None
        return
    started = time.monotonic()
    due = started + _REPORT_EVERY_S

    def tell(done: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due and done:
            rate = done / (now - started)
            left = f"{rate:,.0f}/s, {(total - done) / rate:,.0f} s left"
            say(f"{label}: {done:,} of {total:,}, {left}", sys.stderr)
            due = now + _REPORT_EVERY_S

    yield tell


@contextmanager
def step_display(*, lines: bool = True) -> Iterator[Callable[[str], None]]:
    """Gives a function to be told which step is under way, for work whose length nobody knows.

    A spinner with the step on a terminal, else a plain line each, both on stderr.

    Args:
        lines: whether there are lines where there is no terminal.

    Yields:
        A function that takes what the step is.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status("starting") as status:
            yield lambda step: status.update(Text(step))
    elif lines:
        yield lambda step: say(step, sys.stderr)
    else:
        yield lambda step: None


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Prints a table on stdout: words to the left, numbers to the right.

    A terminal gets a rule below the header, and long cells folded to its width; a pipe gets one line per row.

    Args:
        header: the name of each column.
        rows: as many cells each as the header has.
        title: a line above the table, after an empty one.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if title is not None:
        print(f"\n{title}")
    if sys.stdout.isatty():
        console, box, gap = Console(), SIMPLE_HEAD, 1  # eight columns fit 80
    else:
        console, box, gap = Console(width=1 << 16), None, 2
    table = Table(box=box, padding=(0, gap, 0, 0), pad_edge=False)
    for n, name in enumerate(header):
        table.add_column(Text(name), justify="left" if _is_text(rows, n) else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    with console.capture() as lines:
        console.print(table)
    for line in lines.get().splitlines():
        print(line.rstrip())
    sys.stdout.flush()


def _is_text(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a column holds words: some cell in it starts with a letter."""
    return column == 0 or any(row[column][:1].isalpha() and row[column] != "undefined" for row in rows)
