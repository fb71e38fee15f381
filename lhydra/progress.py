"""How a long loop shows where it is."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_REPORT_EVERY_S = 5.0


def with_progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yields `items`; shows a bar on a terminal, else prints a plain line every few seconds, both on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, label, total, console=Console(stderr=True))
        return
    due = time.monotonic() + _REPORT_EVERY_S
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() >= due:
            print(f"{label}: {done:,} of {total:,}", file=sys.stderr)
            due = time.monotonic() + _REPORT_EVERY_S
