"""From a model and a dataset's tracks to the files of a catalog, shard by shard in bounded memory. No torch.

A shard is some rows of the tracks table, embedded by `embed_shard` into one file; whoever runs it returns that
file's path. Shards depend on nothing but their own rows, so they can be run by `map`, by a pool of processes, or by
another engine; `write_catalog` puts their files together in order.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lhydra import files
from lhydra.bundle import catalog as catalogs
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import CHART, Catalog, Texts
from lhydra.bundle.index import Index
from lhydra.bundle.model import Model
from lhydra.bundle.networks import ItemTower
from lhydra.data.dataset import TRAIN, Dataset
from lhydra.domain import F32, I64, track_hashes
from lhydra.errors import ModelError, complain
from lhydra.features.spec import FeatureSpec
from lhydra.timing import timed

SHARD = 65_536  # tracks in a file
BLOCK = 16_384  # tracks embedded at a time
CHART_USERS = 20  # train users of a country, for it to have a chart of its own
Work = TypeVar("Work")


class Run(Protocol):
    """How work is run: the paths of what `work` wrote, one per task and in their order. `map` is one such."""

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
    """Embeds one shard and returns its file, the arrays of `embed` in an .npz.

    Raises:
        ModelError: the item tower gave a vector that is not of unit norm.
    """
    spec, tower = _opened(shard.model, shard.model_id)
    dataset = Dataset.open(shard.dataset)
    files.write_npz(shard.out, embed(spec, tower, dataset.track_rows(shard.start, shard.stop), dataset.columns_of))
    return shard.out


def embed(
    spec: FeatureSpec, tower: ItemTower, tracks: pa.Table, columns_of: Callable[[pa.Table], dict[str, Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Returns what the catalog holds of `tracks`, n rows of a tracks table, computed from each row alone.

    vectors, history: (n, dim) float16. dense: (n, dt) float16. ids: (n, ct) int32. hashes: (n,) uint64. And for each
    of names, title_texts and artist_texts their bytes, with (n,) int64 `…_lengths`.
    """
    n = tracks.num_rows
    parts: dict[str, list[npt.NDArray[Any]]] = {"vectors": [], "history": [], "dense": [], "ids": []}
    for start in range(0, max(n, 1), BLOCK):  # nothing has its shapes, too
        encoded = spec.encode_tracks(columns_of(tracks.slice(start, BLOCK)))
        vectors, history = tower.embed(encoded)
        norms = np.linalg.norm(vectors, axis=1)
        if not np.allclose(norms, 1, atol=1e-3):
            raise ModelError(complain("item tower", f"a vector of norm {norms.min():.3g}", "vectors of unit norm"))
        halves = [part.astype(np.float16) for part in (vectors, history, encoded.dense)]
        found: list[npt.NDArray[Any]] = [*halves, encoded.ids.astype(np.int32)]
        for part, array in zip(parts.values(), found, strict=True):
            part.append(array)
    out: dict[str, npt.NDArray[Any]] = {name: np.concatenate(part) for name, part in parts.items()}
    track_ids = tracks["track_id"].to_pylist()
    out["hashes"] = track_hashes(track_ids)
    for name, column in (("names", "track_id"), ("title_texts", "name"), ("artist_texts", "artist")):
        known = column in tracks.column_names
        texts = Texts.of(text or "" for text in tracks[column].to_pylist()) if known else Texts.of([""] * n)
        out[name], out[f"{name}_lengths"] = texts.data, np.diff(texts.offsets)
    return out


@timed("embed.catalog")
def write_catalog(
    model: Model,
    dataset: Dataset,
    folder: Path,
    run: Run = map,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Catalog:
    """Writes the catalog of the dataset's tracks into `folder` and returns it opened.

    run: who embeds the shards. on_rows: told how many tracks are embedded after each shard.

    Raises:
        ModelError: the item tower gave a vector that is not of unit norm.
        DataError: two track ids share a hash.
    """
    n = dataset.n_tracks
    with tempfile.TemporaryDirectory(prefix=".shards-", dir=folder) as work:
        shards = [
            Shard(model.path, model.model_id, dataset.path, start, min(start + SHARD, n), Path(work) / f"{start}.npz")
            for start in range(0, n, SHARD)
        ]
        hashes = _put_together(run(embed_shard, shards), n, folder, on_rows)
    _write_popularity(dataset, folder)
    _write_charts(dataset, folder)
    for name in ("neighbours", "neighbour_weights"):
        files.copy(model.path / f"{name}.npy", folder / f"{name}.npy")
    np.save(folder / "removed.npy", np.empty(0, np.int64))
    names = Texts(*(np.load(folder / f"names{part}.npy", "r") for part in ("", "_offsets")))
    catalogs.write_hashes(folder, hashes, names)
    return Catalog.open(folder)


def _put_together(shards: Iterable[Path], n: int, folder: Path, on_rows: Callable[[int], None]) -> Any:
    """Appends every shard to the files of the catalog; returns the hashes, (n,) uint64."""
    hashes, done = np.empty(n, np.uint64), 0
    with Growing(folder) as growing:
        for path in shards:
            with np.load(path, allow_pickle=False) as shard:
                rows = len(shard["hashes"])
                hashes[done : done + rows] = shard["hashes"]
                for name in ("vectors", "history", "dense", "ids"):
                    growing.append(name, shard[name])
                growing.append("lines", shard["ids"][:, 0])
                for name in ("names", "title_texts", "artist_texts"):
                    growing.append(name, shard[name])
                    growing.append_lengths(f"{name}_offsets", shard[f"{name}_lengths"])
            path.unlink()
            done += rows
            on_rows(done)
    return hashes


class Growing:
    """Arrays that grow on disk, `<name>.npy` in `folder`: appended to in blocks, never in memory as a whole.

    Written with plain writes: a mapping would count as memory of the process until the end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]] = {}
        self._ends: dict[str, int] = {}

    def __enter__(self) -> "Growing":
        return self

    def __exit__(self, *error: object) -> None:
        for file, shape, dtype in self._open.values():
            with file:
                if error[0] is None:
                    file.seek(0)  # the header leaves room for any length: it is written again in its place
                    _write_header(file, shape, dtype)

    def append(self, name: str, block: npt.NDArray[Any]) -> None:
        """Appends `block` (m, ...) to the array `name`; the first block decides the rest of its shape and its type."""
        if name not in self._open:
            created = (self._folder / f"{name}.npy").open("wb")
            self._open[name] = created, (0, *block.shape[1:]), block.dtype
            _write_header(created, (0, *block.shape[1:]), block.dtype)
        file, shape, dtype = self._open[name]
        file.write(np.ascontiguousarray(block, dtype).data)
        self._open[name] = file, (shape[0] + len(block), *shape[1:]), dtype

    def append_lengths(self, name: str, lengths: I64) -> None:
        """Appends the lengths (m,) of parts to an array of offsets, which begins with 0."""
        if name not in self._ends:
            self._ends[name] = 0
            self.append(name, np.zeros(1, np.int64))
        ends = self._ends[name] + np.cumsum(lengths, dtype=np.int64)
        self._ends[name] = int(ends[-1]) if len(ends) else self._ends[name]
        self.append(name, ends)


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


@lru_cache(maxsize=1)
def _opened(model: Path, model_id: str) -> tuple[FeatureSpec, ItemTower]:
    """What embeds; the model was checked by whoever made the shards."""
    spec = FeatureSpec.from_json((model / "features.json").read_text(encoding="utf-8"))
    return spec, ItemTower(model / "item_tower.onnx")


def _write_popularity(dataset: Dataset, folder: Path) -> None:
    plays = dataset.plays
    listeners = np.bincount(plays.track[plays.fold == TRAIN], minlength=dataset.n_tracks)
    np.save(folder / "popularity.npy", popularity(listeners))
    np.save(folder / "share.npy", (listeners / max(train_users(dataset), 1)).astype(np.float32))
    np.save(folder / "popular.npy", np.argsort(-listeners, kind="stable").astype(np.int32))


def _write_charts(dataset: Dataset, folder: Path) -> None:
    """What each country plays most: of those with enough train users, where the data has countries."""
    columns, plays = dataset.user_columns(), dataset.plays
    chart_rows, chart_share = np.empty((0, CHART), np.int32), np.empty((0, CHART), np.float32)
    names: list[str] = []
    if "country" in columns:
        country_of = np.array([value if isinstance(value, str) else "" for value in columns["country"]], object)
        trained = plays.fold == TRAIN
        users, tracks = plays.user[trained], plays.track[trained]
        active = np.unique(users)
        countries, counts = np.unique(country_of[active], return_counts=True)
        for country in countries[(counts >= CHART_USERS) & (countries != "")]:
            there = country_of[users] == country
            listeners = np.bincount(tracks[there], minlength=dataset.n_tracks)
            best = np.argsort(-listeners, kind="stable")[:CHART]
            best = best[listeners[best] > 0]
            row, share = np.full((1, CHART), -1, np.int32), np.zeros((1, CHART), np.float32)
            row[0, : len(best)] = best
            share[0, : len(best)] = listeners[best] / np.count_nonzero(country_of[active] == country)
            chart_rows, chart_share = np.concatenate([chart_rows, row]), np.concatenate([chart_share, share])
            names.append(country)
    texts = Texts.of(names)
    for name, array in (("charts", texts.data), ("charts_offsets", texts.offsets)):
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "chart_rows.npy", chart_rows)
    np.save(folder / "chart_share.npy", chart_share)


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


def blocks(path: Path, rows: int = SHARD) -> Iterator[npt.NDArray[Any]]:
    """Yields the array in a .npy file, `rows` at a time, without mapping it."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        width = int(np.prod(shape[1:], dtype=np.int64))
        for start in range(0, shape[0], rows):
            size = min(rows, shape[0] - start)
            yield np.fromfile(file, dtype, size * width).reshape(size, *shape[1:])
