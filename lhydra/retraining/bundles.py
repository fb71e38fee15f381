"""The bundles of a store as a turn sees them: which is served, of which model each is, where that model lies."""

from collections.abc import Sequence
from pathlib import Path

from lhydra.bundle.manifest import BUNDLE_ID, Manifest, current_or_none
from lhydra.bundle.model import ModelInfo
from lhydra.errors import BundleError, ModelError


def of_model(store: Path, model_id: str) -> Manifest | None:
    """Finds the newest bundle of a store that was built from a model.

    Args:
        store: the store.
        model_id: of the model.

    Returns:
        What its manifest says, None where there is none.
    """
    names = sorted((one.name for one in store.iterdir() if BUNDLE_ID.fullmatch(one.name)) if store.is_dir() else ())
    for name in reversed(names):
        try:
            found = Manifest.read(store / name, name)
        except BundleError:
            continue
        if found.model_id == model_id and not found.parents["bundle"]:
            return found
    return None


def model_in_service(store: Path, folders: Sequence[Path]) -> Path | None:
    """Finds the model that the served bundle was built from.

    Args:
        store: the store.
        folders: where it may lie.

    Returns:
        The first folder that holds it, None for none.
    """
    bundle_id = current_or_none(store)
    if not bundle_id:
        return None
    model_id = Manifest.read(store / bundle_id, bundle_id).model_id
    for folder in folders:
        try:
            if ModelInfo.read(folder).model_id == model_id:
                return folder
        except ModelError:
            continue
    return None
