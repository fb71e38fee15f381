"""Files of a sealed folder: how they are hashed, checked and made durable. Models and bundles share this."""

import ctypes
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from lhydra.errors import LhydraError, complain
from lhydra.json_text import parse_json


class FileInfo(TypedDict):
    """How a file was sealed."""

    sha256: str  # hex
    bytes: int


def new_id(now: datetime) -> str:
    """Returns a name for a model or bundle made `now` (UTC); names sort by time, to the millisecond.

    Args:
        now: when it is made.

    Returns:
        The name.
    """
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%S}-{now.microsecond // 1000:03x}{secrets.token_hex(3)[:5]}"


def seal(folder: Path, names: list[str]) -> dict[str, FileInfo]:
    """Returns size and SHA-256 of each named file of `folder`.

    Args:
        folder: where the files lie.
        names: of the files.

    Returns:
        What was found, by name.
    """
    return {
        name: {"sha256": found, "bytes": (folder / name).stat().st_size}
        for name, found in zip(names, sha256_of(folder / name for name in names), strict=True)
    }


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file as hex.

    Args:
        path: the file.

    Returns:
        64 hex digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: Iterable[Path]) -> list[str]:
    """Returns the SHA-256 of each file as hex, several at a time.

    Args:
        paths: the files.

    Returns:
        64 hex digits each, in the order given.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing holds no lock
        return list(pool.map(sha256, paths))


def check(
    folder: Path,
    files: dict[str, FileInfo],
    error: type[LhydraError],
    hashes: Callable[[Iterable[Path]], list[str]] = sha256_of,
) -> None:
    """Checks that files are what was sealed.

    Args:
        folder: where the files lie.
        files: what was sealed, by name.
        error: the class to raise.
        hashes: gives the SHA-256 of files.

    Raises:
        LhydraError: the first file that is missing or differs, as an `error`.
    """
    check_sizes(folder, files, error)
    for (name, info), found in zip(files.items(), hashes(folder / name for name in files), strict=True):
        if found != info["sha256"]:
            raise error(complain(folder / name, f"sha256 {found[:12]}…", f"sha256 {info['sha256'][:12]}…"))


def check_sizes(folder: Path, files: dict[str, FileInfo], error: type[LhydraError]) -> None:
    """Checks that files are there and as long as what was sealed, without reading them.

    Args:
        folder: where the files lie.
        files: what was sealed, by name.
        error: the class to raise.

    Raises:
        LhydraError: the first file that is missing or has another length, as an `error`.
    """
    for name, info in files.items():
        path = folder / name
        if not path.is_file():
            raise error(complain(path, "no such file", "the file its manifest names"))
        size = path.stat().st_size
        if size != info["bytes"]:
            raise error(complain(path, f"{size} bytes", f"{info['bytes']} bytes"))


def read_json(
    path: Path, error: type[LhydraError], expected: str, check: Callable[[bytes], None] = lambda content: None
) -> dict[str, Any]:
    """Returns the JSON object in `path`.

    Args:
        path: the file.
        error: the class to raise.
        expected: what the folder should be, for the message.
        check: sees the very bytes that are read, and raises where they are not as they should be.

    Returns:
        The object, its parts unchecked.

    Raises:
        LhydraError: there is no JSON object, as an `error`.
    """
    try:
        content = path.read_bytes()
        check(content)
        document = parse_json(content)
    except FileNotFoundError:
        raise error(complain(path.parent, f"no {path.name}", expected)) from None
    except NotADirectoryError:
        raise error(complain(path.parent, "a file", expected)) from None
    except (OSError, ValueError) as fault:
        raise error(complain(path, str(fault), expected)) from None
    if not isinstance(document, dict):
        raise error(complain(path, type(document).__name__, expected))
    return document


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Gives a path to write, which becomes `path` when the block ends well: readers see the old file or the new.

    Args:
        path: the file to replace, or to make.

    Yields:
        A path of the same name in a scratch folder beside `path`, for the block to create.
    """
    recover(path)
    with _scratch(path) as scratch:
        yield scratch / path.name
        sync(scratch / path.name)
        (scratch / path.name).replace(path)
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replaces the content of a file atomically and durably.

    Args:
        path: the file to replace, or to make.
        text: all of its content, written as UTF-8.
    """
    with replacing_file(path) as new:
        new.write_text(text, encoding="utf-8")


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Gives an empty folder to write into, which becomes `target` when the block ends well.

    Where the system can exchange two folders, readers see the old one or the new. Elsewhere `target` is missing for
    an instant; a process that ends just then leaves the old one to `recover`. A mount point cannot be renamed: its
    files are replaced one by one, in order of their names.

    Args:
        target: the folder to replace, or to make with its parents; not a symbolic link.

    Yields:
        A folder `new`. It lies in a scratch folder that is the block's own, and is gone in the end.
    """
    missing = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    try:
        with _scratch(target) as scratch:
            new = scratch / "new"
            new.mkdir()
            yield new
            for path in (*new.rglob("*"), new):
                sync(path)
            _put(new, target)
            for parent in {target.parent, *(parent.parent for parent in missing)}:
                sync(parent)
    finally:
        if not target.exists():
            with suppress(OSError):  # something else lies in them by now
                for parent in missing:
                    parent.rmdir()


def recover(path: Path) -> None:
    """Puts back the folder that an interrupted `replacing_folder` had moved away, and sweeps what it left.

    Args:
        path: the file or folder that was to be replaced.
    """
    name = re.compile(re.escape(f".{path.name}.") + "[0-9a-f]{8}")
    beside = _beside(path)
    for scratch in beside.iterdir() if beside.is_dir() else ():
        if name.fullmatch(scratch.name) and scratch.is_dir():
            with suppress(BlockingIOError, FileNotFoundError):  # another process works in it, or sweeps it
                descriptor = os.open(scratch, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _settle(scratch, path)
                finally:
                    os.close(descriptor)


def _beside(target: Path) -> Path:
    """Returns the folder from which something can be renamed to `target`, or into it where it is a mount point."""
    return target if target.is_mount() else target.parent


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Gives a folder beside `target`, or in it where that is a mount point; locked until it is gone."""
    while True:
        scratch = _beside(target) / f".{target.name}.{secrets.token_hex(4)}"
        scratch.mkdir()
        with suppress(FileNotFoundError):  # swept by another process before it was locked
            lease = Lease(scratch)
            if scratch.exists():
                break
    try:
        yield scratch
    finally:
        _settle(scratch, target)
        del lease


def _put(new: Path, target: Path) -> None:
    """Renames the folder `new` to `target`; what was there before lies in the scratch folder then."""
    if target.is_mount():
        for path in sorted(path for path in new.rglob("*") if path.is_file()):
            place = target / path.relative_to(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    elif not _exchange(new, target):
        if target.exists():
            target.rename(new.with_name("old"))
        new.rename(target)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two folders in one step; False where the system or the file system cannot (renameat2, Linux 3.15)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(a.absolute()), here, os.fsencode(b.absolute()), exchange) == 0)


def _settle(scratch: Path, target: Path) -> None:
    """Puts back what was moved away from `target` when nothing came there, then removes the scratch folder."""
    old = scratch / "old"
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(scratch, ignore_errors=True)


def sync(path: Path) -> None:
    """Flushes a file or folder to disk.

    Args:
        path: the file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy(source: Path, target: Path) -> None:
    """Copies a file's content.

    Args:
        source: the file to read.
        target: the file to write.

    Raises:
        OSError: of `target`, where that cannot be written whole.
    """
    try:
        shutil.copyfile(source, target)
    except OSError as error:  # Python names the source first, when it is the target's disk that is full
        raise OSError(error.errno, error.strerror, error.filename2 or error.filename) from None


def link(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, which is never rewritten; a copy where the system cannot.

    Args:
        source: the file there is.
        target: its other name.
    """
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)


def link_missing(source: Path, target: Path) -> None:
    """Links the files of one folder, and of those in it, into another that has none of their names.

    Args:
        source: the folder with the files; folders in it that begin with a dot are left out.
        target: a folder on the same file system.
    """

    def add(one: str, other: str) -> None:
        if not os.path.exists(other):
            link(Path(one), Path(other))

    def hidden(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name.startswith(".") and Path(folder, name).is_dir()]

    shutil.copytree(source, target, copy_function=add, dirs_exist_ok=True, ignore=hidden)


class Lease:
    """Says that a file is in use for as long as this object lives, and its process: a shared lock on it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        weakref.finalize(self, os.close, descriptor)


def in_use(path: Path) -> bool:
    """Whether somebody holds a `Lease` on the file.

    Args:
        path: the file.

    Returns:
        True while another open lease holds it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
