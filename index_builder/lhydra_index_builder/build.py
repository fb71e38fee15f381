"""Rebuild: embed every track, build the index, measure it, seal the bundle, prove it from disk, publish it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lhydra import __version__, files
from lhydra import catalog as catalogs
from lhydra.bundle import PARTS, Bundle, Manifest
from lhydra.data.dataset import Dataset, user_states
from lhydra.embedding import train_users, write_catalog
from lhydra.histories import EncodedUsers, Histories
from lhydra.index import Index, nearest
from lhydra.model import GRAPHS, Model
from lhydra.recommender import Recommender
from lhydra.timing import timed
from lhydra_index_builder.config import RebuildConfig
from lhydra_index_builder.store import publish, staging

RECALL_AT = (10, 100)
GOLDEN_USERS, GOLDEN_TRACKS = 8, 64


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild published."""

    bundle_id: str
    manifest: Manifest


@timed("rebuild")
def rebuild(
    model_path: Path,
    dataset: Dataset,
    store: Path,
    config: RebuildConfig,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Rebuilt:
    """Builds a bundle from model and dataset and makes it CURRENT; a failure leaves the store as it was.

    Raises:
        ModelError: no sound model, or its vectors are not of unit norm.
        ConfigError: the recipe is unknown or does not fit.
        BundleError: the finished bundle does not open from disk.
    """
    model = Model.open(model_path, threads=config.threads or os.cpu_count() or 1)
    with staging(store) as folder:
        for name in ("features.json", *GRAPHS):
            shutil.copyfile(model_path / name, folder / name)
        catalog = write_catalog(model, dataset, folder, on_rows)
        pq.write_table(dataset.tracks, folder / "catalog.parquet")
        with timed("rebuild.index"):
            index = Index.build(catalog.vectors, config.recipe, config.seed)
            index.write(folder / "index.faiss")
        now = datetime.now(UTC)
        bundle_id = files.new_id(now)
        bundle = Bundle(bundle_id, model.spec, catalog, model.user_tower, model.head, index)
        users = _some_users(bundle, dataset, config)
        _write_golden(bundle, users, folder, config.seed)
        manifest = Manifest(
            bundle_id=bundle_id,
            model_id=model.model_id,
            created=now.isoformat(timespec="seconds"),
            lhydra_version=__version__,
            dim=model.dim,
            n_tracks=len(catalog),
            n_users=train_users(dataset),
            features=model.spec.fingerprint,
            recipe=config.recipe,
            recall=_recall(bundle, users),
            quality=_quality(model.info),
            parents={
                "dataset": dataset.info.source,
                "split": dataset.info.split,
                "model": model.model_id,
                "fitted_on": model.info.get("fitted_on", "train"),
            },
            files=files.seal(folder, [*PARTS, "golden.npz", *catalogs.file_names()]),
        )
        files.write_text(folder / "manifest.json", manifest.to_json())
        with timed("rebuild.prove"):
            Recommender(Bundle.open_folder(folder)).warm_up()
        publish(folder, store, bundle_id)
    return Rebuilt(bundle_id, manifest)


def _some_users(bundle: Bundle, dataset: Dataset, config: RebuildConfig) -> list[EncodedUsers]:
    """Encoded users of the dataset, drawn at random, with their train histories."""
    n = len(dataset.user_ids)
    drawn = np.sort(np.random.default_rng(config.seed).permutation(n)[: config.recall_users])
    encode = Recommender(bundle).encode
    return [encode(state) for _, state in user_states(dataset, "test", positions=drawn)]


@timed("rebuild.recall")
def _recall(bundle: Bundle, users: list[EncodedUsers]) -> dict[str, float]:
    """Share of the exact nearest tracks that the index finds, mean over users' own vectors."""
    nothing = np.empty(0, np.int64)
    found: dict[str, list[float]] = {f"recall@{k}": [] for k in RECALL_AT}
    for user in users:
        vector = bundle.user_tower.embed(user, bundle.catalog.history)
        for k in RECALL_AT:
            exact, _ = nearest(bundle.catalog.vectors, vector, k, nothing)
            rows, _ = bundle.index.search(vector, k)
            found[f"recall@{k}"].append(len(np.intersect1d(exact, rows)) / max(1, len(exact)))
    return {name: round(float(np.mean(values)), 6) for name, values in found.items() if values}


def _write_golden(bundle: Bundle, users: list[EncodedUsers], folder: Path, seed: int) -> None:
    few = join_users(users[:GOLDEN_USERS])
    rows = np.sort(np.random.default_rng(seed).permutation(len(bundle.catalog))[:GOLDEN_TRACKS])
    bundle.golden(few, rows).save(folder / "golden.npz")


def join_users(users: list[EncodedUsers]) -> EncodedUsers:
    """Returns the encoded users of several batches as one."""
    parts = [user.histories for user in users]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    histories = Histories(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.times for part in parts]),
    )
    dense, ids, entry = (np.concatenate([getattr(user, name) for user in users]) for name in ("dense", "ids", "entry"))
    return EncodedUsers(dense, ids, histories, entry)


def _quality(info: dict[str, Any]) -> dict[str, float]:
    quality = info.get("quality") or {}
    return {
        f"{stage} {name}": value for stage in ("retrieval", "cascade") for name, value in quality.get(stage, {}).items()
    }
