"""The store between rebuilds: lock, staging, publishing, rollback, retention. Nobody else writes CURRENT.

A bundle is written into `.staging-*`, renamed into the store when it is whole, and named in CURRENT when its gate
says so. The builder holds the lock, which the system releases when the process ends; what lies in `.staging-*` while
the lock is free was left by a process that was killed.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lhydra import files
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.listed import REFUSED, STAGING, entries
from lhydra.bundle.manifest import BUNDLE_ID, check_place, current_bundle_id, current_or_none
from lhydra.errors import BundleMissing, BundleRefused, StoreLocked, complain
from lhydra.json_text import parse_json

TRASH, LOCK = ".trash-", ".lock"


@contextlib.contextmanager
def building(store: Path, what: str) -> Iterator[Path]:
    """Gives an empty folder inside the store to build in; whatever is left in it at the end is removed.

    Holds the store's lock meanwhile, and sweeps what earlier builders left.

    Args:
        store: made where there is none.
        what: the command, named to a second builder that is refused meanwhile.

    Yields:
        The folder.

    Raises:
        BundleMissing: `store` is a file, or a folder of something else.
        StoreLocked: another process is building.
        OSError: something cannot be written, for want of space say; it names the store where it would name no file.
    """
    check_place(store)
    store.mkdir(parents=True, exist_ok=True)
    with _naming_store(store), _locked(store, what):
        for path in (*store.glob(f"{STAGING}*"), *store.glob(f"{TRASH}*")):
            shutil.rmtree(path, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{STAGING}{os.getpid()}-", dir=store))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_free(store: Path) -> None:
    """Refuses a store in which somebody is building, before work that would then be for nothing.

    Nothing is made or written: the lock is taken and let go, if there is one.

    Args:
        store: it need not exist.

    Raises:
        BundleMissing: `store` is a file, or a folder of something else.
        StoreLocked: another process is building.
    """
    check_place(store)
    if (store / LOCK).is_file():
        descriptor = os.open(store / LOCK, os.O_RDWR)
        try:
            _take(descriptor, store)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _naming_store(store: Path) -> Iterator[None]:
    """Makes an OSError without a file name, as writing raises, name the store."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, f"cannot write ({error.strerror or error})", str(store)) from error


@contextlib.contextmanager
def _locked(store: Path, what: str) -> Iterator[None]:
    descriptor = os.open(store / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, store)
        owner = {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "since_s": int(time.time())}
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, store: Path) -> None:
    """Takes the lock of a store, until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        expected = "one builder at a time; wait for it to end"
        raise StoreLocked(complain(store, _owner(descriptor), expected)) from None


def _owner(descriptor: int) -> str:
    """The holder of the lock, in words."""
    try:
        owner = parse_json(os.pread(descriptor, 4096, 0))
        age_s = max(0, int(time.time() - owner["since_s"]))
        return f"{owner['what']} by process {owner['pid']} on {owner['host']} for {duration(age_s)}"
    except (ValueError, KeyError, TypeError):
        return "another builder"


def add(staged: Path, store: Path, bundle_id: str) -> None:
    """Makes a finished bundle durable and renames it into the store; CURRENT stays as it is.

    Args:
        staged: the folder that holds it, in the store.
        store: the store.
        bundle_id: its name there.
    """
    for path in staged.iterdir():
        files.sync(path)
    files.sync(staged)
    staged.chmod(0o755)
    staged.rename(store / bundle_id)
    files.sync(store)


def set_current(store: Path, bundle_id: str, expected: str | None = None) -> bool:
    """Makes a bundle of the store CURRENT, if CURRENT is what is expected.

    Args:
        store: the store.
        bundle_id: the bundle.
        expected: the id that CURRENT must have, "" for no CURRENT, None for any.

    Returns:
        False when CURRENT is another one: nothing was changed.

    Raises:
        BundleMissing: the bundle is not there, or no longer.
    """
    with _current_lock(store):
        if expected is not None and current_or_none(store) != expected:
            return False
        if not (store / bundle_id).is_dir():
            raise BundleMissing(complain(store / bundle_id, "no such bundle", "one that `lhydra index list` names"))
        files.write_text(store / "CURRENT", f"{bundle_id}\n")
        return True


@contextlib.contextmanager
def _current_lock(store: Path) -> Iterator[None]:
    """Holds the lock on changing CURRENT and on deleting bundles; for instants only, never while building."""
    descriptor = os.open(store, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def rollback(store: Path, bundle_id: str | None = None, *, force: bool = False, signed_by: bytes | None = None) -> str:
    """Makes an older bundle CURRENT after checking it whole.

    Args:
        store: the store.
        bundle_id: the bundle; None takes the newest sound one before CURRENT.
        force: whether to go even to one that its gate refused.
        signed_by: the public key of who must have signed it; None takes it without a signature.

    Returns:
        The id of what is CURRENT now.

    Raises:
        BundleMissing: no such bundle, or nothing to go back to.
        BundleRefused: its gate refused it, where `force` goes to it all the same; or it is not signed by that key.
        BundleError: the bundle is not sound; CURRENT stays.
    """
    if bundle_id is None:
        current = current_bundle_id(store)
        older = [entry.bundle_id for entry in entries(store) if entry.state == "previous"]
        if not older:
            newer = [one.bundle_id for one in entries(store) if one.state == "newer"]
            forward = f"; forward again: lhydra index rollback {newer[0]} --store {store}" if newer else ""
            raise BundleMissing(complain(store, f"nothing older than {current}", f"a bundle to go back to{forward}"))
        bundle_id = older[0]
    elif not BUNDLE_ID.fullmatch(bundle_id):
        raise BundleMissing(complain("bundle id", repr(bundle_id), "one that `lhydra index list` names"))
    bundle = Bundle.open(store, bundle_id, signed_by=signed_by)  # its lease keeps it from being deleted
    manifest = bundle.manifest
    assert manifest is not None  # opened from a folder
    if manifest.gate["verdict"] == REFUSED and not force:
        why = "; ".join(check["name"] for check in manifest.gate["checks"] if check["verdict"] == REFUSED)
        raise BundleRefused(complain(bundle_id, f"refused by its gate ({why})", "a bundle that passed, or --force"))
    set_current(store, bundle_id)
    del bundle
    return bundle_id


def retain(store: Path, keep: int) -> list[str]:
    """Deletes all but the newest bundles, and all but as many refused and broken ones.

    What is CURRENT, what rollback would go to, and what any process has open is never deleted, and counts.

    Args:
        store: the store.
        keep: how many of each kind stay.

    Returns:
        The ids of those deleted.
    """
    trash = []
    with _current_lock(store):
        found = [entry for entry in entries(store) if entry.state != "partial"]
        good = [entry for entry in found if entry.state not in (REFUSED, "broken")]
        bad = [entry for entry in found if entry.state in (REFUSED, "broken")]
        for entry in (*good[keep:], *bad[keep:]):
            folder = store / entry.bundle_id
            manifest = folder / "manifest.json"  # of a format not known here, it may still be in use
            if entry.state in ("current", "previous") or (manifest.is_file() and files.in_use(manifest)):
                continue
            trash.append(folder.rename(store / f"{TRASH}{entry.bundle_id}"))  # readers miss it at once
    for folder in trash:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name.removeprefix(TRASH) for folder in trash]


def duration(seconds: float) -> str:
    """Returns a length of time in words.

    Args:
        seconds: 0 or more.

    Returns:
        `42 s`, `7 min`, `3 h` or `12 days`.
    """
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
