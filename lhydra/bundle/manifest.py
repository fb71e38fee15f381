"""The manifest of a bundle: what it holds, what it was made from, what was measured; and which bundle is current.

manifest.json    the Manifest
manifest.sha256  its hash, as `sha256sum` writes it, so that nothing in it changes unnoticed; not in bundles of before
manifest.sig     its signature, where it was signed: `lhydra.bundle.signature`
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict, get_type_hints

from lhydra import files
from lhydra.bundle import signature
from lhydra.errors import BundleCorrupt, BundleMismatch, BundleMissing, complain, one_line
from lhydra.typed import checked

FORMAT = 6
FORMATS = (4, 5, FORMAT)  # those that open: 4 knows nothing of what comes next, both have float16 history vectors
REMEDY = "rebuild, or roll back to another bundle"
CHECKSUM = "manifest.sha256"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")  # no path: only what is in the bundle's folder is opened
BUNDLE_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{8}")


@dataclass(frozen=True)
class OperatingPoint:
    """How hard an approximate index looks.

    effort: inverted lists probed (IVF) or candidates kept on the walk (HNSW); 0 leaves FAISS's own default.
    refine: so many times the tracks asked for are found by their codes, then ordered by their exact vectors; 1: not.
    """

    effort: int = 0
    refine: int = 1


class PointEntry(TypedDict):
    """The fields of an `OperatingPoint`."""

    effort: int
    refine: int


Recall = TypedDict(
    "Recall", {"coverage": float, "recall@10": float, "recall@100": float, "coverage error": float}, total=False
)


class CurvePoint(TypedDict, total=False):
    """What an index finds at one operating point; times are of one query on one core."""

    recipe: str
    effort: int
    refine: int
    coverage: float
    least: float
    recall_10: float
    recall_100: float
    p50_us: float
    p99_us: float
    bytes_per_track: float
    build_s: float
    coverage_error: float


class IndexChoice(TypedDict, total=False):
    """What was measured to choose recipe and operating point."""

    target: float
    users: int
    reached: bool
    curve: list[CurvePoint]


class DepthPoint(TypedDict):
    """What the cascade finds at one depth."""

    depth: int
    agreement: float
    ndcg: NotRequired[float]


class Cascade(TypedDict, total=False):
    """What was measured to choose the depth; `ndcg` is null where no plays were held out."""

    k: int
    users: int
    ndcg: float | None
    curve: list[DepthPoint]


class Changes(TypedDict):
    """What happened since the last full build."""

    base: str  # its id, "" for this one
    added: int
    removed: int
    due: str  # why to rebuild, or ""


class GateCheck(TypedDict):
    """One check of the gate; found and limit are null where nothing was measured."""

    name: str
    verdict: str
    found: float | None
    limit: float | None
    note: str


class Gate(TypedDict):
    """What the gate said."""

    verdict: str  # passed, refused, forced; "" before it was asked
    against: NotRequired[str]  # a bundle id, or ""
    checks: list[GateCheck]


class Parents(TypedDict):
    """What a bundle was made from."""

    dataset: str
    split: dict[str, Any]
    model: str
    fitted_on: str
    bundle: str
    valid: NotRequired[str]  # hash of the split whose validation fold `quality` is of


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
    point: PointEntry
    recall: Recall  # there, against exact search
    index: IndexChoice
    depth: int  # candidates to rerank
    cascade: Cascade
    quality: dict[str, float]  # of the model, on the validation fold
    changes: Changes
    gate: Gate
    columns: dict[str, str]  # track columns and their kinds, for tracks that are added
    parents: Parents
    content: str  # the same for the same content: SHA-256 of everything but names, times and the gate
    files: dict[str, files.FileInfo]
    format: int = FORMAT

    def to_json(self) -> str:
        """Returns the text of manifest.json."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    def write(self, folder: Path) -> None:
        """Writes manifest.json and its hash.

        Args:
            folder: of the bundle.
        """
        text = self.to_json()
        files.write_text(folder / "manifest.json", text)
        files.write_text(folder / CHECKSUM, f"{hashlib.sha256(text.encode()).hexdigest()}  manifest.json\n")

    @classmethod
    def read(cls, folder: Path, bundle_id: str | None = None, signed_by: bytes | None = None) -> "Manifest":
        """Reads manifest.json.

        Args:
            folder: of the bundle.
            bundle_id: the id that it must have: answers name the manifest's, so a renamed copy would pass for another.
            signed_by: the public key of who must have signed it; None takes it without a signature.

        Returns:
            The manifest, every part of it checked.

        Raises:
            BundleMismatch: another format, or another bundle.
            BundleCorrupt: no manifest, one that was changed, or a part that is missing or of another type.
            BundleRefused: it is not signed by that key.
        """
        path = folder / "manifest.json"

        def proved(content: bytes) -> None:
            _check_sum(folder, content)
            if signed_by is not None:
                signature.check(folder, content, signed_by)

        raw = files.read_json(path, BundleCorrupt, "a bundle made by `lhydra index rebuild`", proved)
        if raw.get("format") not in FORMATS:
            raise BundleMismatch(complain(path, f"format {raw.get('format')!r}", f"format {FORMAT}"))
        checked(raw, _JSON, path, BundleCorrupt, REMEDY)
        if unknown := set(raw) - {field.name for field in fields(cls)}:
            raise BundleCorrupt(complain(f"{path}: {min(unknown)}", "a key", f"none of this name; {REMEDY}"))
        manifest = cls(**raw)
        for name in ("manifest.json", *manifest.files):
            if not _FILE_NAME.fullmatch(name):
                raise BundleCorrupt(
                    complain(f"{path}: files", repr(name), "names of files in the folder of the bundle")
                )
            if (folder / name).is_symlink():  # what it leads to may change while it is mapped
                raise BundleCorrupt(complain(folder / name, "a symbolic link", "the file itself"))
        if bundle_id is not None and manifest.bundle_id != bundle_id:
            expected = f"{bundle_id}, as its folder is named; rename the folder to the id it has, or remove it"
            raise BundleMismatch(complain(path, f"bundle {manifest.bundle_id}", expected))
        return manifest


def _check_sum(folder: Path, content: bytes) -> None:
    """Refuses a manifest that is not the one its hash was made of."""
    try:
        with (folder / CHECKSUM).open("rb") as file:
            kept = file.read(100)
    except FileNotFoundError:
        return  # made by an earlier Lhydra
    except OSError as error:
        raise BundleCorrupt(complain(folder / CHECKSUM, error.strerror or str(error), "a hash")) from None
    found = hashlib.sha256(content).hexdigest()
    if kept != f"{found}  manifest.json\n".encode():
        expected = f"sha256 {one_line(kept[:12].decode(errors='replace'), 12)}… as it was sealed; {REMEDY}"
        raise BundleCorrupt(complain(folder / "manifest.json", f"sha256 {found[:12]}…", expected))


_JSON = TypedDict("_JSON", get_type_hints(Manifest))  # type: ignore[misc]  # the same fields, as JSON


_OTHERS = {"dataset.json": "a dataset", "model.json": "a model", "manifest.json": "a bundle", "world.json": "a world"}
_OWN = ("CURRENT", ".lock", "users.lmdb")  # a store of which nothing is published yet has one of the last two


def check_place(store: Path) -> None:
    """Checks that a folder may be written to as a store: it is one, or free.

    Args:
        store: the folder; it need not exist.

    Raises:
        BundleMissing: it is a file, or holds something else.
    """
    if not store.exists():
        return
    expected = "a store, an empty folder or a free path"
    if not store.is_dir():
        raise BundleMissing(complain(store, "a file", expected))
    names = sorted(path.name for path in store.iterdir() if path.name != "lost+found")  # of a volume
    if other := next((what for name, what in _OTHERS.items() if name in names), None):
        raise BundleMissing(complain(store, other, expected))
    if names and not any(name in _OWN or BUNDLE_ID.fullmatch(name) for name in names):
        raise BundleMissing(complain(store, f"a folder with other things in it ({names[0]})", expected))


def current_bundle_id(store: Path) -> str:
    """Returns the id in store/CURRENT.

    Args:
        store: the store.

    Returns:
        The id of a bundle.

    Raises:
        BundleMissing: no store, no CURRENT, or one that names no bundle.
    """
    store = Path(store)
    expected = "a store that `lhydra index rebuild` has published to"
    if not store.is_dir():
        raise BundleMissing(complain(store, "no such folder" if not store.exists() else "a file", expected))
    try:
        bundle_id = (store / "CURRENT").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        if any(BUNDLE_ID.fullmatch(entry.name) for entry in store.iterdir()):
            expected += ", or `lhydra index rollback ID` to one of its bundles"
        raise BundleMissing(complain(store, "no CURRENT", expected)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleMissing(complain(store / "CURRENT", str(error), expected)) from None
    if not BUNDLE_ID.fullmatch(bundle_id):
        raise BundleMissing(
            complain(store / "CURRENT", repr(bundle_id[:80]), "a bundle id; `lhydra index rollback ID` writes it")
        )
    return bundle_id


def current_or_none(store: Path) -> str:
    """Returns the id in CURRENT.

    Args:
        store: the store.

    Returns:
        The id, "" where there is none.
    """
    try:
        return current_bundle_id(store)
    except BundleMissing:
        return ""
