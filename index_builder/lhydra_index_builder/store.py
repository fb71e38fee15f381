"""The store between rebuilds: staging, publishing, listing, rolling back. The one place that writes CURRENT."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lhydra import files
from lhydra.bundle import BUNDLE_ID, Bundle, Manifest, current_bundle_id
from lhydra.errors import BundleError, BundleMissing, complain

STAGING = ".staging-"


@dataclass(frozen=True)
class Entry:
    """One bundle as `lhydra index list` shows it; manifest is None when it cannot be read."""

    bundle_id: str
    state: str  # current, previous (what rollback without an id goes to), older, newer, broken
    manifest: Manifest | None


@contextlib.contextmanager
def staging(store: Path) -> Iterator[Path]:
    """Gives an empty folder inside the store, made when it is missing; whatever is left in it at the end is removed."""
    if store.exists() and not store.is_dir():
        raise BundleMissing(complain(store, "a file", "a folder for bundles"))
    store.mkdir(parents=True, exist_ok=True)
    _sweep(store)
    folder = Path(tempfile.mkdtemp(prefix=f"{STAGING}{os.getpid()}-", dir=store))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, store: Path, bundle_id: str) -> None:
    """Makes the finished bundle in `staged` durable, renames it into the store, and makes it CURRENT."""
    for path in staged.iterdir():
        files.sync(path)
    files.sync(staged)
    staged.chmod(0o755)
    staged.rename(store / bundle_id)
    files.sync(store)
    files.write_text(store / "CURRENT", f"{bundle_id}\n")


def entries(store: Path) -> list[Entry]:
    """Returns the bundles of `store`, newest first. Raises BundleMissing when there is no such folder."""
    if not store.is_dir():
        raise BundleMissing(complain(store, "no such folder", "a store that `lhydra index rebuild` has published to"))
    try:
        current = current_bundle_id(store)
    except BundleMissing:
        current = ""
    names = sorted((path.name for path in store.iterdir() if BUNDLE_ID.fullmatch(path.name)), reverse=True)
    previous = next((name for name in names if name < current), None)
    found = []
    for name in names:
        state = "older" if name < current else "newer"
        state = "current" if name == current else "previous" if name == previous else state
        try:
            found.append(Entry(name, state, Manifest.read(store / name)))
        except BundleError:
            found.append(Entry(name, "broken", None))
    return found


def rollback(store: Path, bundle_id: str | None = None) -> str:
    """Makes an older bundle CURRENT, the newest before it by default, after checking it whole; returns its id.

    Raises:
        BundleMissing: no such bundle, or nothing to go back to.
        BundleError: the bundle is not sound; CURRENT stays.
    """
    if bundle_id is None:
        current = current_bundle_id(store)
        older = [entry.bundle_id for entry in entries(store) if entry.state == "previous"]
        if not older:
            raise BundleMissing(complain(store, f"nothing older than {current}", "a bundle to go back to"))
        bundle_id = older[0]
    elif not BUNDLE_ID.fullmatch(bundle_id):
        raise BundleMissing(complain("bundle id", repr(bundle_id), "one that `lhydra index list` names"))
    Bundle.open(store, bundle_id)
    files.write_text(store / "CURRENT", f"{bundle_id}\n")
    return bundle_id


def _sweep(store: Path) -> None:
    """Removes staging folders whose process is gone."""
    for path in store.glob(f"{STAGING}*"):
        process = path.name.removeprefix(STAGING).partition("-")[0]
        if not (process.isdigit() and _alive(int(process))):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
