"""The file of rule sets, as the supervisor watches it: a new version is checked before any worker gets it.

Workers read a copy of the last version that was sound, so a worker that is replaced while the file is wrong starts with
the same rules as the others.
"""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from lhydra.errors import ConfigError, complain
from lhydra.lists.file import RuleSets, read

MAX_BYTES = 16 << 20
_log = logging.getLogger(__name__)


class RulesFile:
    """Watches a file of rule sets; `path` is the copy in force, `error` says why the file itself is not.

    Args:
        source: the file; None for none.
        store: folder of the bundles.
    """

    def __init__(self, source: str | None, store: Path) -> None:
        self._source, self._store = Path(source) if source else None, store
        self._folder: Path | None = None
        self._seen: tuple[int, ...] | None = None
        self._refused_for = ""  # the bundle that the version last seen did not fit
        self._versions = 0
        self.path, self.error, self.failures = "", "", 0

    def open(self, bundle_id: str) -> None:
        """Reads the file for the first time.

        Args:
            bundle_id: what will be served.

        Raises:
            ConfigError: it cannot be read, is wrong, or names a column that the bundle lacks.
        """
        if self._source is not None:
            self._folder = Path(tempfile.mkdtemp(prefix="lhydra-rules-"))
            self._seen = self._mark()
            self._take(bundle_id)

    def look(self, bundle_id: str) -> None:
        """Takes a new version of the file, if there is one and it is sound; else says why not.

        Args:
            bundle_id: what is served.
        """
        if self._source is None:
            return
        mark, other = self._mark(), bool(self.error) and self._refused_for != bundle_id
        if mark == self._seen and not other:  # a file that one bundle lacks a column for may fit the next
            return
        again, self._seen, self._refused_for = mark == self._seen, mark, bundle_id
        try:
            self._take(bundle_id)
        except (ConfigError, OSError) as error:
            self.failures += not again
            self.error = str(error)
            _log.error("the rules stay as they were: %s", error)
            return
        self.error = ""
        _log.info("rules changed", extra={"file": str(self._source)})

    def close(self) -> None:
        """Removes the copies."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _mark(self) -> tuple[int, ...] | None:
        """What changes with the file; None where there is none."""
        assert self._source is not None
        try:
            found = os.stat(self._source)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _take(self, bundle_id: str) -> None:
        assert self._source is not None
        assert self._folder is not None
        try:
            with self._source.open("rb") as file:
                text = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ConfigError(complain(self._source, error.strerror or str(error), "a file of rule sets")) from None
        if len(text) > MAX_BYTES:
            raise ConfigError(complain(self._source, f"more than {MAX_BYTES:,} bytes", "a file of rule sets"))
        copy = self._folder / f"{self._versions}.yaml"
        copy.write_bytes(text)
        try:
            sets = read(copy)
            sets.check(columns_of(self._store / bundle_id))
        except ConfigError as error:
            copy.unlink()
            raise ConfigError(str(error).replace(str(copy), str(self._source))) from None
        if self._versions >= 2:  # a worker may be about to read the one before
            (self._folder / f"{self._versions - 2}.yaml").unlink(missing_ok=True)
        self._versions += 1
        self.path = str(copy)


def columns_of(bundle: Path) -> dict[str, str]:
    """Reads which columns a bundle can be filtered on, without opening it.

    Args:
        bundle: its folder.

    Returns:
        Kind by name; none where they cannot be told, which whoever opens the bundle will say.
    """
    try:
        said = json.loads((bundle / "filters.json").read_text(encoding="utf-8"))["columns"]
        return {str(name): str(kind) for name, kind in said.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def rule_sets(path: str, columns: dict[str, str]) -> RuleSets:
    """Reads the rule sets that a worker answers by.

    Args:
        path: the copy in force; "" for none.
        columns: of its bundle.

    Returns:
        The sets.

    Raises:
        ConfigError: the bundle lacks a column that they name.
    """
    if not path:
        return RuleSets()
    sets = read(Path(path))
    sets.check(columns)
    return sets
