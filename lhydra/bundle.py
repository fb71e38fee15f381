"""Bundles and the store: a bundle is a sealed, self-contained, servable folder; the store names the current one.

    store/CURRENT                one line, the bundle id; replaced atomically
    store/<bundle_id>/manifest.json   Manifest: sha256 and size of every other file
                      features.json  user_tower.onnx  item_tower.onnx  head.onnx
                      catalog.parquet  index.faiss  golden.npz  and the flat files of `lhydra.catalog`

A bundle is immutable once published: mapped files are never rewritten. Nothing here writes; see the index builder.
"""

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lhydra import catalog as catalogs
from lhydra import colisten, files
from lhydra.catalog import Catalog
from lhydra.domain import F32, I64
from lhydra.errors import BundleCorrupt, BundleMismatch, BundleMissing, complain
from lhydra.features import FeatureSpec
from lhydra.histories import EncodedUsers, Histories
from lhydra.index import Index
from lhydra.networks import Head, UserTower

FORMAT = 2
PARTS = ("features.json", "item_tower.onnx", "user_tower.onnx", "head.onnx", "catalog.parquet", "index.faiss")
VECTOR_TOLERANCE, SCORE_TOLERANCE = 1e-4, 1e-3
BUNDLE_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{8}")


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
    recipe: str
    recall: dict[str, float]  # measured against exact search, by `recall@100` and the like
    quality: dict[str, float]  # of the model, on the validation fold
    parents: dict[str, Any]  # dataset and split that it was made from
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


@dataclass(frozen=True)
class Golden:
    """Encoded users with the vectors and logits they had when the bundle was made; see `Bundle.open`."""

    users: EncodedUsers
    vectors: F32  # (n, dim)
    rows: I64  # (m,) tracks scored for every one of them
    logits: F32  # (n, m)

    def save(self, path: Path) -> None:
        """Writes golden.npz."""
        users, histories = self.users, self.users.histories
        np.savez(
            path,
            dense=users.dense,
            ids=users.ids,
            entry=users.entry,
            offsets=histories.offsets,
            history=histories.rows,
            counts=histories.counts,
            times=histories.times,
            vectors=self.vectors,
            rows=self.rows,
            logits=self.logits,
        )

    @classmethod
    def open(cls, path: Path) -> "Golden":
        """Reads golden.npz. Raises BundleCorrupt when it is not one."""
        try:
            with np.load(path, allow_pickle=False) as z:
                histories = Histories(z["offsets"], z["history"], z["counts"], z["times"])
                users = EncodedUsers(z["dense"], z["ids"], histories, z["entry"])
                return cls(users, z["vectors"], z["rows"], z["logits"])
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise BundleCorrupt(complain(path, str(error), "golden vectors")) from None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the parts that a `lhydra.recommender.Recommender` works with."""

    bundle_id: str
    spec: FeatureSpec
    catalog: Catalog
    user_tower: UserTower
    head: Head
    index: Index
    manifest: Manifest | None = None  # None for a model that was never published

    @classmethod
    def open(cls, store: Path, bundle_id: str | None = None) -> "Bundle":
        """Opens a bundle of `store`, CURRENT by default, checks every file and re-runs the golden users.

        Raises:
            BundleMissing: no such bundle, or a store without CURRENT.
            BundleCorrupt: a file is missing or differs from the manifest.
            BundleMismatch: unknown format, parts that disagree, or other answers than when it was made.
        """
        bundle_id = current_bundle_id(store) if bundle_id is None else bundle_id
        folder = Path(store) / bundle_id
        if not folder.is_dir():
            raise BundleMissing(complain(folder, "no such bundle", "one that `lhydra index list` names"))
        return cls.open_folder(folder)

    @classmethod
    def open_folder(cls, folder: Path) -> "Bundle":
        """Opens the bundle in `folder`, published or still staged."""
        manifest = Manifest.read(folder)
        if missing := {*PARTS, "golden.npz", *catalogs.file_names()} - set(manifest.files):
            raise BundleCorrupt(complain(folder / "manifest.json", f"no {sorted(missing)[0]}", "every file named"))
        files.check(folder, manifest.files, BundleCorrupt)
        spec = FeatureSpec.from_json((folder / "features.json").read_text(encoding="utf-8"))
        catalog = Catalog.open(folder)
        index = Index.open(folder / "index.faiss", manifest.recipe)
        for thing, found, expected in (
            ("features.json", spec.fingerprint, manifest.features),
            ("catalog tracks", len(catalog), manifest.n_tracks),
            ("index tracks", len(index), manifest.n_tracks),
            ("vector width", catalog.vectors.shape[1], manifest.dim),
            ("index width", index.dim, manifest.dim),
            ("encoded track columns", catalog.dense.shape[1], len(spec.track_dense)),
        ):
            if found != expected:
                raise BundleMismatch(complain(f"{folder}: {thing}", str(found), f"{expected} as in the manifest"))
        towers = UserTower(folder / "user_tower.onnx"), Head(folder / "head.onnx")
        bundle = cls(manifest.bundle_id, spec, catalog, *towers, index, manifest)
        bundle._check_golden(folder)
        return bundle

    def golden(self, users: EncodedUsers, rows: I64) -> Golden:
        """Returns what these users and tracks give now."""
        vectors = self.user_tower.embed(users, self.catalog.history)
        logits = []
        for i in range(len(vectors)):
            logits.append(self.score(vectors[i : i + 1], users.take(np.array([i])), rows)[0])
        return Golden(users, vectors, rows, np.stack(logits))

    def score(self, vector: F32, user: EncodedUsers, rows: I64) -> tuple[F32, F32]:
        """Returns the head's logits (n,) and calibrated probabilities (n,) of `rows` for one encoded user."""
        tracks, played = self.catalog, user.histories.rows
        together = colisten.scores(tracks.neighbours, tracks.neighbour_weights, played, user.entry, rows)
        return self.head.score(
            vector, user, tracks.vectors[rows], tracks.dense[rows], tracks.ids[rows], tracks.popularity[rows], together
        )

    def _check_golden(self, folder: Path) -> None:
        then = Golden.open(folder / "golden.npz")
        now = self.golden(then.users, then.rows)
        for thing, a, b, tolerance in (
            ("vectors", now.vectors, then.vectors, VECTOR_TOLERANCE),
            ("scores", now.logits, then.logits, SCORE_TOLERANCE),
        ):
            off = float(np.abs(a - b).max(initial=0))
            if not off <= tolerance:
                raise BundleMismatch(complain(f"{folder}: golden {thing}", f"{off:.2g} off", f"at most {tolerance:g}"))


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
