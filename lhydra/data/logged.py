"""Plays of an event log as a source: one export, or a folder of exports that follow each other."""

from dataclasses import dataclass
from pathlib import Path

from lhydra.errors import DataError, complain
from lhydra.events.export import Span, span_of


@dataclass(frozen=True)
class Logged:
    """Exported plays: where they lie, of which user store, up to which position of its log; told: their name."""

    path: Path
    store: str
    until: str
    told: str


def read_logged(path: Path, told: str = "") -> Logged:
    """Looks at exports of an event log.

    Args:
        path: a file that `lhydra plays export` wrote, or a folder with several, each of which goes on where another
            one ends.
        told: their name, for people; without it their path.

    Returns:
        What they hold.

    Raises:
        DataError: a file is no export, or they are not one after the other.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    after: dict[str, Span] = {}  # by the position that each goes on from
    for file in files:
        if (span := span_of(file)) is None:
            raise DataError(complain(file, "no export of an event log", "a file that `lhydra plays export` wrote"))
        if span.begin in after or span.store != next(iter(after.values()), span).store:
            found = f"plays of store {span.store} after position {span.begin or 0} again"
            raise DataError(complain(file, found, "exports of one store, made with one --cursor"))
        after[span.begin] = span
    if not after:
        raise DataError(complain(path, "no Parquet files", "what `lhydra plays export` wrote"))
    last = after.pop(min(after, key=lambda begin: begin in {span.end for span in after.values()}))
    while last.end in after:
        last = after.pop(last.end)
    if after:
        found = f"nothing between the positions {last.end} and {min(after)}"
        raise DataError(complain(path, found, "all files that one --cursor exported"))
    return Logged(path, last.store, last.end, told or str(path))
