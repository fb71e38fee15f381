"""Which files of a store were hashed already: a gigabyte takes seconds, so each file is hashed once a boot.

    store/.verified-UID.json    the SHA-256 of files, each known by device, inode, size, and times of write and change

Whoever edits, cuts or replaces a file changes its ctime, which no program can set; then it is hashed again. What is on
disk may have changed while the machine was off, and a boot may number devices anew: nothing is believed across one.
Only its owner can read or write the memory, and another's is not read. Who could forge it could as well write bundles.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhydra import files

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SETTLED_NS = 2_000_000_000  # a file changed so lately may change again within one tick of its file system's clock
WAIT_S = 60.0  # for another process that hashes the same bundle; then it is hashed twice
MOST_FILES = 2_000  # that are remembered, those of about 30 bundles


@dataclass
class VerifiedFiles:
    """Hashes the files of a store's bundles, or remembers what they hashed to.

    Args:
        store: whose folder holds the memory; where it cannot be written every file is hashed.
        again: whether to hash every file all the same, and to remember that.
    """

    store: Path
    again: bool = False
    _known: dict[str, str] = field(default_factory=dict)

    def sha256_of(self, paths: Iterable[Path]) -> list[str]:
        """Returns the SHA-256 of each file as hex; processes that ask for the same bundle do not all hash it.

        Args:
            paths: files of one bundle.

        Returns:
            64 hex digits each, in the order given.
        """
        paths, boot = list(paths), _boot_id()
        if not paths or not boot or not os.access(self.store, os.W_OK):
            return files.sha256_of(paths)
        self._known = self._read(boot)
        found = self._remembered(paths)
        if None not in found.values():
            return [found[path] or "" for path in paths]
        with _turn(paths[0].parent):
            self._known = self._read(boot)  # another process may have hashed them meanwhile
            found = self._remembered(paths)
            missing = [path for path, known in found.items() if known is None]
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing holds no lock
                for path, (identity, digest) in zip(missing, pool.map(_hashed, missing), strict=True):
                    found[path] = digest
                    if identity:
                        self._known[identity] = digest
            if missing:
                self._write(boot)
        return [found[path] or "" for path in paths]

    @property
    def _path(self) -> Path:
        return self.store / f".verified-{os.geteuid()}.json"

    def _remembered(self, paths: list[Path]) -> dict[Path, str | None]:
        return {path: None if self.again else self._known.get(_identity(path.stat())) for path in paths}

    def _read(self, boot: str) -> dict[str, str]:
        """What is remembered of this boot, by the identity of a file; nothing where it may be another's word."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, encoding="utf-8") as file:
                status = os.fstat(descriptor)
                own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
                said: Any = json.load(file) if own else {}
            known = said["files"] if said["boot"] == boot else {}
            return {str(identity): str(digest) for identity, digest in known.items()}
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ):  # none yet, or none to believe
            return {}

    def _write(self, boot: str) -> None:
        latest = dict(list(self._known.items())[-MOST_FILES:])
        with contextlib.suppress(OSError), files.replacing_file(self._path) as new:  # a full disk: hash again
            new.touch(0o600)
            new.write_text(json.dumps({"boot": boot, "files": latest}), encoding="utf-8")


def _boot_id() -> str:
    """The name of this boot, "" where the system has none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _identity(status: os.stat_result) -> str:
    numbers = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return ":".join(map(str, numbers))


def _hashed(path: Path) -> tuple[str, str]:
    """The identity of a file, "" while it may still change unseen, and its SHA-256."""
    with path.open("rb") as file:
        before, now_ns = os.fstat(file.fileno()), time.time_ns()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        same = _identity(before) == _identity(os.fstat(file.fileno()))
    return _identity(before) if same and before.st_ctime_ns + SETTLED_NS < now_ns else "", digest


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Waits while another process hashes the files of a folder, but not for one that hangs."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        last_s = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > last_s:
                    break
                time.sleep(0.01)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)
