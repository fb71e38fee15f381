"""The folder of an answer log: plain files that servers append to, and compressed ones that are full.

A worker of a server has one plain file of its own, `TIME-PID.jsonl`; once it is full it becomes `TIME-PID.jsonl.gz`,
in one step. Whoever changes the folder holds its lock for a moment. Readers need none: a plain file that has gone is
found under its compressed name.
"""

import fcntl
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lhydra.answers.entry import START, LoggedAnswer, from_line
from lhydra.errors import DataError, complain
from lhydra.files import sync

NAME = "answers"  # of the folder, inside a store
PLAIN, PACKED, MAKING = ".jsonl", ".jsonl.gz", ".making"
_LOCK = "lock"
_MODE = 0o600  # it holds what people played
_GZIP = b"\x1f\x8b"
_SPEED = 1  # of compression: it runs beside requests

Say = Callable[[str], None]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; makes the folder where there is none.

    Args:
        folder: of the log, whose parent is there.

    Yields:
        Nothing, while the lock is held.

    Raises:
        OSError: it cannot be made, or opened.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_plain(path: Path) -> int:
    """Opens a plain file to append to.

    Args:
        path: of the file, new or old.

    Returns:
        Its descriptor.
    """
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)


def files(folder: Path) -> list[Path]:
    """Returns the files of a log, oldest first; of one that is being compressed the compressed one.

    Args:
        folder: of the log.

    Returns:
        Their paths; none where there is no folder.
    """
    found = {path.name.partition(".")[0]: path for path in sorted(folder.glob(f"*{PLAIN}"))}
    found |= {path.name.partition(".")[0]: path for path in folder.glob(f"*{PACKED}")}
    return [found[stem] for stem in sorted(found)]


def pack_file(path: Path, keep: Callable[[bytes], bool] | None = None) -> None:
    """Turns a file into a compressed one of the same name, in one step; the caller holds the folder's lock.

    What stands after its last whole line is left out: whoever wrote it was killed there.

    Args:
        path: plain or compressed.
        keep: says of a line whether it stays; all do by default. Of a file without lines nothing is left.

    Raises:
        OSError: the disk is full; the file is as it was.
    """
    packed = path.with_name(path.name.partition(".")[0] + PACKED)
    if path.suffix == PLAIN and packed.exists():  # a process was killed between the two steps
        path.unlink()
        return
    making = packed.with_suffix(MAKING)
    empty = True
    try:
        with (
            os.fdopen(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE), "wb") as raw,
            gzip.GzipFile("", "wb", _SPEED, raw, mtime=0) as out,
        ):
            for line in lines(path):
                if keep is None or keep(line):
                    out.write(line)
                    empty = False
        if empty:
            making.unlink()
            path.unlink()
            return
        sync(making)
        making.replace(packed)
    except OSError:
        making.unlink(missing_ok=True)
        raise
    if path != packed:
        path.unlink()
    sync(packed.parent)


def sweep(folder: Path) -> None:
    """Removes what killed processes were making; the caller holds the folder's lock.

    Args:
        folder: of the log.
    """
    for path in folder.glob(f"*{MAKING}"):
        path.unlink()


def lines(path: Path, say: Say = lambda line: None) -> Iterator[bytes]:
    """Yields the whole lines of a file, plain or compressed.

    Args:
        path: of the file.
        say: is told where it ends within an entry, or where it is damaged: what comes before is kept.

    Yields:
        Lines with their ends.
    """
    with _opened(path) as file:
        number = 0
        try:
            for line in file:
                if not line.endswith(b"\n"):
                    say(f"{path}: ends within entry {number + 1}: its server was killed, or writes; kept up to it")
                    return
                number += 1
                yield line
        except (EOFError, zlib.error, gzip.BadGzipFile):
            say(f"{path}: damaged after entry {number}: kept up to it")


@contextmanager
def _opened(path: Path) -> "Iterator[BinaryIO | gzip.GzipFile]":
    try:
        file = path.open("rb")
    except FileNotFoundError:
        if path.suffix != PLAIN:
            raise
        file = path.with_name(path.name + ".gz").open("rb")  # it was compressed just now
    with file:
        if file.peek(2)[:2] == _GZIP:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        else:
            yield file


def read(place: Path, say: Say) -> Iterator[LoggedAnswer]:
    """Yields the answers of a log.

    Args:
        place: a file of it, or the folder.
        say: is told of a torn end or a damaged file: what comes before is kept.

    Yields:
        The answers, file by file, oldest file first.

    Raises:
        DataError: a file is no answer log, or an entry is damaged.
    """
    if not place.is_dir():
        check_log(place)
    for path in files(place) if place.is_dir() else [place]:
        with suppress(FileNotFoundError):  # it was the oldest, and there was no room for it any more
            for number, line in enumerate(lines(path, say), 1):
                yield from_line(line, f"{path} line {number}")


def read_of(folder: Path, request_id: str, say: Say) -> Iterator[LoggedAnswer]:
    """Yields the answers to one request: one, unless its caller used the id again.

    Args:
        folder: of the log.
        request_id: of the call.
        say: is told of torn ends and damaged files.

    Yields:
        The answers, oldest file first.

    Raises:
        DataError: a file is no answer log, or an entry is damaged.
    """
    needle = b'"request_id": ' + json.dumps(request_id).encode("ascii") + b","
    for path in files(folder):
        with suppress(FileNotFoundError):
            for number, line in enumerate(lines(path, say), 1):
                if needle in line and (answer := from_line(line, f"{path} line {number}")).request_id == request_id:
                    yield answer


def check_log(path: Path) -> None:
    """Checks by its first bytes that a file is an answer log.

    Args:
        path: of the file.

    Raises:
        DataError: it is none.
    """
    try:
        with _opened(path) as file:
            start = file.read(len(START))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        start = b"?"
    if not (start and START.startswith(start)):
        raise DataError(complain(path, "no entries", "an answer log of `lhydra serve --log-answers`"))
