"""Embeds a dataset's tracks by a model, shard by shard in bounded memory. No torch.

A shard is some rows of the tracks table; `embed_shard` embeds it into one file and returns the path. Shards depend on
nothing but their own rows, so `map`, a pool of processes or another engine can run them; `write_catalog` joins their
files in order.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lhydra.bundle.arrays import write_npz
from lhydra.bundle.history_vectors import HistoryVectors
from lhydra.bundle.networks import ItemTower
from lhydra.bundle.strings import StringColumn
from lhydra.data.dataset import Dataset
from lhydra.domain import F16, F32, track_hashes
from lhydra.errors import ModelError, complain
from lhydra.features.spec import FeatureSpec

SHARD = 65_536  # tracks in a file
BLOCK = 16_384  # tracks embedded at a time
MAX_NORM_ERROR = 1e-3  # largest distance of a retrieval vector's norm from 1
Work = TypeVar("Work")


class Run(Protocol):
    """A parallel map, such as `map` itself: yields the path that `work` wrote for each task, in order."""

    def __call__(self, work: Callable[[Work], Path], tasks: Iterable[Work], /) -> Iterable[Path]:
        """Runs `work` on every task."""


@dataclass(frozen=True)
class Shard:
    """Tracks `start` to `stop` of a dataset, to be embedded into the file `out`; travels to other processes."""

    model: Path
    model_id: str
    dataset: Path
    start: int
    stop: int
    out: Path


def embed_shard(shard: Shard) -> Path:
    """Embeds one shard into its file, an .npz of the arrays of `embed`.

    Args:
        shard: what to embed, and where to.

    Returns:
        The file.

    Raises:
        ModelError: the item tower gave a vector that is not of unit norm.
    """
    spec, tower = _opened(shard.model, shard.model_id)
    dataset = Dataset.open(shard.dataset)
    write_npz(shard.out, embed(spec, tower, dataset.track_rows(shard.start, shard.stop), dataset.columns_of))
    return shard.out


def embed(
    spec: FeatureSpec, tower: ItemTower, tracks: pa.Table, columns_of: Callable[[pa.Table], dict[str, Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Returns what the catalog holds of some tracks, computed from each row alone.

    Args:
        spec: the fitted features.
        tower: the item tower.
        tracks: n rows of a tracks table.
        columns_of: gives the raw columns of such a table.

    Returns:
        By name: vectors (n, dim) float16; history, a table of `HistoryVectors`; dense (n, dt) float16;
        ids (n, ct) int32; item_rows (n,) int32; hashes (n,) uint64; and for each of names, title_texts and artist_texts
        its bytes, with (n,) int64 `…_lengths`.

    Raises:
        ModelError: the item tower gave a vector that is not of unit norm.
    """
    n = tracks.num_rows
    parts: dict[str, list[npt.NDArray[Any]]] = {"vectors": [], "history": [], "dense": [], "ids": []}
    for start in range(0, max(n, 1), BLOCK):  # one empty block gives no tracks their shapes
        encoded = spec.encode_tracks(columns_of(tracks.slice(start, BLOCK)))
        vectors, history = tower.embed(encoded)
        if (off := norm_error(vectors)) > MAX_NORM_ERROR:
            raise ModelError(complain("item tower", f"a norm {off:.3g} off 1", "vectors of unit norm"))
        halves, dense = vectors.astype(np.float16), encoded.dense.astype(np.float16)
        found: list[npt.NDArray[Any]] = [halves, HistoryVectors.of(history).table, dense, encoded.ids.astype(np.int32)]
        for part, array in zip(parts.values(), found, strict=True):
            part.append(array)
    out: dict[str, npt.NDArray[Any]] = {name: np.concatenate(part) for name, part in parts.items()}
    track_ids = tracks["track_id"].to_pylist()
    out["hashes"], out["item_rows"] = track_hashes(track_ids), out["ids"][:, 0]
    for name, column in (("names", "track_id"), ("title_texts", "name"), ("artist_texts", "artist")):
        known = column in tracks.column_names
        texts = (
            StringColumn.of(text or "" for text in tracks[column].to_pylist()) if known else StringColumn.of([""] * n)
        )
        out[name], out[f"{name}_lengths"] = texts.data, np.diff(texts.offsets)
    return out


def norm_error(vectors: F16 | F32) -> float:
    """Returns how far the worst norm is from 1; infinite where a number is not finite.

    It is computed in float32: halves near 1 are .001 apart, so a norm computed in them is right by chance only.

    Args:
        vectors: (n, dim).

    Returns:
        The largest distance, 0 for no vectors.
    """
    off = np.abs(np.linalg.norm(vectors.astype(np.float32, copy=False), axis=1) - 1)
    return float(off.max(initial=0)) if np.isfinite(off).all() else np.inf


@lru_cache(maxsize=1)
def _opened(model: Path, model_id: str) -> tuple[FeatureSpec, ItemTower]:
    """Opens spec and tower; the caller that made the shards has checked the model."""
    spec = FeatureSpec.from_json((model / "features.json").read_text(encoding="utf-8"))
    return spec, ItemTower(model / "item_tower.onnx")
