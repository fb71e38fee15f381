"""From a model and a dataset's tracks to the files of a catalog, block by block in bounded memory. No torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lhydra import catalog as catalogs
from lhydra.bundle import Bundle
from lhydra.catalog import Catalog
from lhydra.data.dataset import TRAIN, Dataset
from lhydra.domain import F32, I64
from lhydra.errors import ModelError, complain
from lhydra.index import Index
from lhydra.model import Model
from lhydra.timing import timed

BLOCK = 16_384  # tracks embedded at a time


@timed("embed.catalog")
def write_catalog(
    model: Model, dataset: Dataset, folder: Path, on_rows: Callable[[int], None] = lambda rows: None
) -> Catalog:
    """Writes the catalog of the dataset's tracks into `folder` and returns it opened.

    on_rows: told how many tracks are embedded after each block.

    Raises:
        ModelError: the item tower gave a vector that is not of unit norm.
        DataError: two track ids share a hash.
    """
    n = len(dataset.track_ids)
    wide = {"dense": len(model.spec.track_dense), "ids": len(model.spec.track_ids)}
    wide |= {"vectors": model.dim, "history": model.dim}
    out = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", "w+", np.int64 if name == "ids" else np.float32, (n, width)
        )
        for name, width in wide.items()
    }
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        tracks = model.spec.encode_tracks(dataset.track_columns(start, rows.stop - start))
        vectors, history = model.item_tower.embed(tracks)
        norms = np.linalg.norm(vectors, axis=1)
        if not np.allclose(norms, 1, atol=1e-3):
            raise ModelError(complain("item tower", f"a vector of norm {norms.min():.3g}", "vectors of unit norm"))
        out["vectors"][rows], out["history"][rows] = vectors, history
        out["dense"][rows], out["ids"][rows] = tracks.dense, tracks.ids
        on_rows(rows.stop)
    for array in out.values():
        array.flush()
    _write_popularity(dataset, folder)
    _write_neighbours(model, np.asarray(out["ids"][:, 0]), folder)
    catalogs.write_hashes(folder, dataset.track_ids)
    catalogs.write_texts(folder, "names", dataset.track_ids)
    for name, column in (("title_texts", "name"), ("artist_texts", "artist")):
        known = column in dataset.tracks.column_names
        catalogs.write_texts(folder, name, (v or "" for v in dataset.tracks[column].to_pylist()) if known else [""] * n)
    return Catalog.open(folder)


def _write_popularity(dataset: Dataset, folder: Path) -> None:
    plays = dataset.plays.where(dataset.plays.fold == TRAIN)
    listeners = np.bincount(plays.track, minlength=len(dataset.track_ids))
    np.save(folder / "popularity.npy", popularity(listeners))
    np.save(folder / "share.npy", (listeners / max(train_users(dataset), 1)).astype(np.float32))
    np.save(folder / "popular.npy", np.lexsort((np.arange(len(listeners)), -listeners)))


def _write_neighbours(model: Model, numbers: I64, folder: Path) -> None:
    """Writes the model's co-listening table by row; numbers: (n,) of the catalog's track ids, 0 unknown to training."""
    width = model.neighbours.shape[1]
    row_of = np.full(len(model.neighbours), -1, np.int32)
    row_of[numbers] = np.arange(len(numbers))
    row_of[0] = -1
    table = {
        "neighbours": np.lib.format.open_memmap(folder / "neighbours.npy", "w+", np.int32, (len(numbers), width)),
        "neighbour_weights": np.lib.format.open_memmap(
            folder / "neighbour_weights.npy", "w+", np.float16, (len(numbers), width)
        ),
    }
    for start in range(0, len(numbers), BLOCK):
        at = numbers[start : start + BLOCK]
        rows = row_of[model.neighbours[at]]  # a neighbour that this catalog lacks counts nothing
        table["neighbours"][start : start + BLOCK] = np.maximum(rows, 0)
        table["neighbour_weights"][start : start + BLOCK] = np.where(rows >= 0, model.neighbour_weights[at], 0)
    for array in table.values():
        array.flush()


def train_users(dataset: Dataset) -> int:
    """Returns how many users have train plays."""
    return len(np.unique(dataset.plays.user[dataset.plays.fold == TRAIN]))


def popularity(listeners: I64) -> F32:
    """Returns the head's popularity feature from listener counts: log-scaled to [0, 1], (n,) float32."""
    return np.asarray(np.log1p(listeners) / np.log1p(max(listeners.max(initial=1), 1)), np.float32)


def unpublished_bundle(model: Model, dataset: Dataset, folder: Path) -> Bundle:
    """Returns a bundle of `model` over the dataset's tracks with an exact index, its catalog written to `folder`."""
    catalog = write_catalog(model, dataset, folder)
    index = Index.build(catalog.vectors, "flat")
    return Bundle(model.model_id, model.spec, catalog, model.user_tower, model.head, index)
