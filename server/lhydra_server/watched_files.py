"""Files that a running server reads again when they change: a new version is checked before any worker gets it.

Workers read copies of the last version that was sound, so a worker that is replaced while the files are wrong starts
with the same as the others.
"""

import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from lhydra.errors import ConfigError, complain

MAX_BYTES = 16 << 20
MEMORY = Path("/dev/shm")  # noqa: S108  # copies of a key or of tokens need never be on a disk
_log = logging.getLogger(__name__)


class WatchedFiles:
    """Watches files that belong together; `path` is the folder of the copies in force, "" for none.

    `error` says why the files themselves are not in force, `failures` counts the versions that were refused.

    Args:
        what: names them, in plural, in the log.
        sources: each file, by the name of its copy; none where there is nothing to watch.
        check: raises ConfigError for a folder of copies that is not sound for a bundle.
        secret: names of copies whose sources others should not be able to read.
    """

    def __init__(
        self,
        what: str,
        sources: Mapping[str, str | None],
        check: Callable[[Path, str], None],
        secret: Collection[str] = (),
    ) -> None:
        self._what, self._check, self._secret = what, check, secret
        self._sources = {name: Path(source) for name, source in sources.items() if source}
        self._folder: Path | None = None
        self._seen: list[tuple[int, ...] | None] = []
        self._refused_for = ""  # the bundle that the version last seen did not fit
        self._versions = 0
        self.path, self.error, self.failures = "", "", 0

    def open(self, bundle_id: str) -> None:
        """Reads the files for the first time.

        Args:
            bundle_id: what will be served.

        Raises:
            ConfigError: one cannot be read, is wrong, or does not fit the bundle; or there is no room for copies.
        """
        if self._sources:
            self._seen = self._marks()
            try:
                memory = MEMORY if os.access(MEMORY, os.W_OK) else None
                self._folder = Path(tempfile.mkdtemp(prefix="lhydra-", dir=memory))
                self._take(bundle_id)
            except OSError as error:
                thing, found = f"copies of the {self._what}", error.strerror or str(error)
                raise ConfigError(complain(thing, found, f"room in {MEMORY} or in $TMPDIR")) from None

    def look(self, bundle_id: str) -> bool:
        """Takes a new version of the files, if there is one and it is sound; else says why not.

        Args:
            bundle_id: what is served.

        Returns:
            Whether another version is in force now.
        """
        if not self._sources:
            return False
        marks, other = self._marks(), bool(self.error) and self._refused_for != bundle_id
        if marks == self._seen and not other:  # a file that does not fit one bundle may fit the next
            return False
        again, self._seen, self._refused_for = marks == self._seen, marks, bundle_id
        try:
            self._take(bundle_id)
        except (ConfigError, OSError) as error:
            self.failures += not again
            self.error = str(error)
            _log.error("the %s stay as they were: %s", self._what, error)
            return False
        self.error = ""
        _log.info("%s changed", self._what, extra={"files": [str(source) for source in self._sources.values()]})
        return True

    def close(self) -> None:
        """Removes the copies."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _marks(self) -> list[tuple[int, ...] | None]:
        """What changes with each file; None of one that is not there."""
        return [_mark(source) for source in self._sources.values()]

    def _take(self, bundle_id: str) -> None:
        assert self._folder is not None
        copies = self._folder / str(self._versions)
        copies.mkdir(exist_ok=True)
        try:
            for name, source in self._sources.items():
                (copies / name).write_bytes(self._read(source))
            self._check(copies, bundle_id)
        except OSError:
            shutil.rmtree(copies, ignore_errors=True)
            raise
        except ConfigError as error:
            shutil.rmtree(copies, ignore_errors=True)
            text = str(error)
            for name, source in self._sources.items():
                text = text.replace(str(copies / name), str(source))
            raise ConfigError(text) from None
        for name, source in self._sources.items():
            if name in self._secret and source.stat().st_mode & stat.S_IROTH:
                _log.warning("%s can be read by every user of this machine: chmod o-r", source)
        if self._versions >= 2:  # a worker may be about to read the one before
            shutil.rmtree(self._folder / str(self._versions - 2), ignore_errors=True)
        self._versions += 1
        self.path = str(copies)

    def _read(self, source: Path) -> bytes:
        expected = f"a file of {self._what}"
        try:
            with open(os.open(source, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would be waited for
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ConfigError(complain(source, "no regular file", expected))
                text = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ConfigError(complain(source, error.strerror or str(error), expected)) from None
        if len(text) > MAX_BYTES:
            raise ConfigError(complain(source, f"more than {MAX_BYTES:,} bytes", expected))
        return text


def _mark(source: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(source)
    except OSError:
        return None
    # The time of the last change of the inode too: the other one can be set back, and a token stay that was revoked.
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
