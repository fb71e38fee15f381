"""ListBundles: what lies in the store, and what the gates said of it."""

from datetime import datetime
from pathlib import Path

from lhydra.bundle.listed import Entry, entries
from lhydra.bundle.manifest import Manifest
from lhydra.errors import complain
from lhydra_protos.v1 import recommender_pb2 as pb

MOST = 100  # bundles that are told of


def listed(store: Path, serving: str) -> list[pb.BundleInfo]:
    """Tells of the bundles of a store: of the manifest of each, and whether all of its files are there.

    Args:
        store: the store.
        serving: the id of the bundle being served.

    Returns:
        Newest first, MOST at most; what is still being built is left out.

    Raises:
        BundleMissing: there is no such folder.
    """
    found = [entry for entry in entries(store) if entry.state != "partial"]
    return [_told(store, entry, serving) for entry in found[:MOST]]


def _told(store: Path, entry: Entry, serving: str) -> pb.BundleInfo:
    info, manifest = pb.BundleInfo(bundle_id=entry.bundle_id, error=entry.error), entry.manifest
    info.current, info.previous = entry.state == "current", entry.state == "previous"
    info.serving = entry.bundle_id == serving
    if manifest is None:
        return info
    try:
        _fill(info, manifest)
    except (ValueError, OverflowError):  # of a number or a text that no message holds
        info.error = complain(store / entry.bundle_id / "manifest.json", "a value out of range", "one that was sealed")
    return info


def _fill(info: pb.BundleInfo, manifest: Manifest) -> None:
    """Tells of what the manifest says."""
    info.model_id, info.lhydra_version = manifest.model_id, manifest.lhydra_version
    info.created_s, info.index_recipe = _seconds(manifest), manifest.recipe
    info.tracks = manifest.n_tracks - manifest.changes["removed"]
    info.bytes = sum(file["bytes"] for file in manifest.files.values())
    info.verdict = manifest.gate["verdict"]
    for check in manifest.gate["checks"]:
        one = info.gates.add(name=check["name"], verdict=check["verdict"], note=check["note"])
        if check["found"] is not None:
            one.found = check["found"]
        if check["limit"] is not None:
            one.limit = check["limit"]


def _seconds(manifest: Manifest) -> int:
    try:
        return int(datetime.fromisoformat(manifest.created).timestamp())
    except (ValueError, OverflowError):  # whoever wrote it wrote no time
        return 0
