"""The manifest of a bundle: what it holds, what it was made from, what was measured; and which bundle is current."""

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lhydra import files
from lhydra.errors import BundleCorrupt, BundleMismatch, BundleMissing, complain

FORMAT = 4
BUNDLE_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{8}")


@dataclass(frozen=True)
class OperatingPoint:
    """How hard an approximate index looks.

    effort: inverted lists probed (IVF) or candidates kept on the walk (HNSW); 0 leaves FAISS's own default.
    refine: so many times the tracks asked for are found by their codes, then ordered by their exact vectors; 1: not.
    """

    effort: int = 0
    refine: int = 1


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says."""

    bundle_id: str
    model_id: str
    created: str  # ISO 8601, UTC
    lhydra_version: str
    dim: int
    n_tracks: int
    n_users: int  # users with train plays, behind every share of listeners
    features: str  # fingerprint of the feature spec
    recipe: str  # `flat` or a FAISS factory string
    point: dict[str, int]  # the operating point: fields of `lhydra.bundle.index.Point`
    recall: dict[str, float]  # there, against exact search: `recall@10`, `recall@100`, `coverage`
    index: dict[str, Any]  # what was measured to choose recipe and point: target, users, curve
    depth: int  # candidates to rerank
    cascade: dict[str, Any]  # what was measured to choose it: the loss of the cascade by depth
    quality: dict[str, float]  # of the model, on the validation fold
    changes: dict[str, Any]  # since the last full build: base (its id), added, removed, due (why to rebuild, or "")
    gate: dict[str, Any]  # verdict (passed, refused, forced), against (a bundle id or ""), checks
    columns: dict[str, str]  # track columns and their kinds, for tracks that are added
    parents: dict[str, Any]  # what it was made from: dataset, split, model, fitted_on, bundle
    content: str  # the same for the same content: SHA-256 of everything but names, times and the gate
    files: dict[str, files.FileInfo]
    format: int = FORMAT

    def to_json(self) -> str:
        """Returns the text of manifest.json."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads the manifest of the bundle in `folder`. Raises BundleError when it is not a known one."""
        raw = files.read_json(folder / "manifest.json", BundleCorrupt, "a bundle made by `lhydra index rebuild`")
        if raw.get("format") != FORMAT:
            found = f"format {raw.get('format')!r}"
            raise BundleMismatch(complain(folder / "manifest.json", found, f"format {FORMAT}"))
        wanted = {field.name for field in fields(cls)}
        if set(raw) != wanted:
            wrong = ", ".join(sorted(set(raw) ^ wanted))
            raise BundleCorrupt(complain(folder / "manifest.json", f"keys that differ: {wrong}", "a whole manifest"))
        return cls(**raw)


def current_bundle_id(store: Path) -> str:
    """Returns the id in store/CURRENT. Raises BundleMissing when there is none."""
    store = Path(store)
    expected = "a store that `lhydra index rebuild` has published to"
    if not store.is_dir():
        raise BundleMissing(complain(store, "no such folder" if not store.exists() else "a file", expected))
    try:
        bundle_id = (store / "CURRENT").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise BundleMissing(complain(store, "no CURRENT", expected)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleMissing(complain(store / "CURRENT", str(error), expected)) from None
    if not BUNDLE_ID.fullmatch(bundle_id):
        raise BundleMissing(complain(store / "CURRENT", repr(bundle_id), "one line with a bundle id"))
    return bundle_id
