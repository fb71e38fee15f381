"""Files of a sealed folder: how they are hashed, checked and made durable. Models and bundles share this."""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import weakref
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.errors import LhydraError, complain

FileInfo = dict[str, Any]  # {"sha256": hex, "bytes": int}


def new_id(now: datetime) -> str:
    """Returns a name for a model or bundle made `now` (UTC); names sort by time, to the millisecond."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%S}-{now.microsecond // 1000:03x}{secrets.token_hex(3)[:5]}"


def seal(folder: Path, names: list[str]) -> dict[str, FileInfo]:
    """Returns size and SHA-256 of each named file of `folder`."""
    return {
        name: {"sha256": found, "bytes": (folder / name).stat().st_size}
        for name, found in zip(names, sha256_of(folder / name for name in names), strict=True)
    }


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: Iterable[Path]) -> list[str]:
    """Returns the SHA-256 of each file as hex, several at a time."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing holds no lock
        return list(pool.map(sha256, paths))


def check(folder: Path, files: dict[str, FileInfo], error: type[LhydraError]) -> None:
    """Raises `error` naming the first file that differs from what was sealed."""
    for name, info in files.items():
        path = folder / name
        if not path.is_file():
            raise error(complain(path, "no such file", "the file its manifest names"))
        size = path.stat().st_size
        if size != info["bytes"]:
            raise error(complain(path, f"{size} bytes", f"{info['bytes']} bytes"))
    for (name, info), found in zip(files.items(), sha256_of(folder / name for name in files), strict=True):
        if found != info["sha256"]:
            raise error(complain(folder / name, f"sha256 {found[:12]}…", f"sha256 {info['sha256'][:12]}…"))


def read_json(path: Path, error: type[LhydraError], expected: str) -> dict[str, Any]:
    """Returns the JSON object in `path`; raises `error` when there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(complain(path.parent, f"no {path.name}", expected)) from None
    except NotADirectoryError:
        raise error(complain(path.parent, "a file", expected)) from None
    except (OSError, ValueError) as fault:
        raise error(complain(path, str(fault), expected)) from None
    if not isinstance(document, dict):
        raise error(complain(path, type(document).__name__, expected))
    return document


def write_text(path: Path, text: str) -> None:
    """Replaces the content of `path` atomically and durably: readers see the old text or the new."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with hidden.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
        sync(path.parent)
    finally:
        hidden.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy(source: Path, target: Path) -> None:
    """Copies a file's content. Raises OSError, of `target` where that cannot be written whole."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:  # Python names the source first, when it is the target's disk that is full
        raise OSError(error.errno, error.strerror, error.filename2 or error.filename) from None


def link(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, which is never rewritten; a copy where the system cannot."""
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes arrays like `numpy.savez`, but the same arrays are the same bytes: no time is written."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


class Lease:
    """Says that a file is in use for as long as this object lives, and its process: a shared lock on it."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        weakref.finalize(self, os.close, descriptor)


def in_use(path: Path) -> bool:
    """Whether somebody holds a `Lease` on the file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
