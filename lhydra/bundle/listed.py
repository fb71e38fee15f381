"""The bundles of a store: which are there, what each is to the others, and why one cannot be opened."""

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lhydra import files
from lhydra.bundle.manifest import BUNDLE_ID, Manifest, current_or_none
from lhydra.errors import BundleCorrupt, BundleError, BundleMissing, complain

STAGING = ".staging-"  # begins the names of folders in which bundles are built
REFUSED = "refused"  # verdict of a gate, and state of a bundle that it kept from CURRENT


@dataclass(frozen=True)
class Entry:
    """One bundle; error says why it cannot be opened, where files are missing, cut short or of no known format.

    age_s: since it was made, as its manifest says, which no copy of a store changes; else by its folder.
    state: current, previous (what rollback without an id goes to), older, newer, refused, partial (being built, or
    left by a process that is gone), broken. manifest is None when it cannot be read.
    """

    bundle_id: str
    state: str
    age_s: float
    manifest: Manifest | None
    error: str = ""


def entries(store: Path) -> list[Entry]:
    """Returns the bundles of a store.

    Args:
        store: the store.

    Returns:
        Newest first, then what is partial.

    Raises:
        BundleMissing: there is no such folder.
    """
    _check_store(store)
    current = current_or_none(store)
    names = sorted((path.name for path in store.iterdir() if BUNDLE_ID.fullmatch(path.name)), reverse=True)
    found, older = [], False
    for name in names:
        manifest, error, state = None, "", "older" if name < current else "newer"
        try:
            manifest = Manifest.read(store / name, name)
            if name == current:
                state = "current"
            elif manifest.gate["verdict"] == REFUSED:
                state = REFUSED
            files.check_sizes(store / name, manifest.files, BundleCorrupt)  # hashes take too long
            if state == "older" and not older:
                state, older = "previous", True
        except (BundleError, OSError) as fault:
            state, error = "current" if state == "current" else "broken", str(fault)
        found.append(Entry(name, state, _age_s(store / name, manifest), manifest, error))
    return found + [Entry(path.name, "partial", _age_s(path), None) for path in sorted(store.glob(f"{STAGING}*"))]


def _check_store(store: Path) -> None:
    if not store.is_dir():
        raise BundleMissing(complain(store, "no such folder", "a store that `lhydra index rebuild` has published to"))


def _age_s(path: Path, manifest: Manifest | None = None) -> float:
    made_s = time.time()
    with suppress(FileNotFoundError):  # swept meanwhile
        made_s = path.stat().st_mtime
    with suppress(ValueError):
        made_s = datetime.fromisoformat(manifest.created if manifest else "").timestamp()
    return max(0.0, time.time() - made_s)


def find_bundle_id(store: Path, name: str, flag: str = "--bundle") -> str:
    """Returns the id of a bundle by the name that a person gives it.

    Args:
        store: the store.
        name: an id, or `previous`: the newest sound bundle before CURRENT that its gate did not refuse.
        flag: that gave the name, for the error.

    Returns:
        The id.

    Raises:
        BundleMissing: there is none, or no such folder.
    """
    _check_store(store)
    if name == "previous":
        older = [entry.bundle_id for entry in entries(store) if entry.state == "previous"]
        if older:
            return older[0]
        raise BundleMissing(complain(store, "nothing older than CURRENT", "a bundle to go back to"))
    if not BUNDLE_ID.fullmatch(name) or not (store / name).is_dir():
        raise BundleMissing(complain(flag, repr(name), "one that `lhydra index list` names, or previous"))
    return name
