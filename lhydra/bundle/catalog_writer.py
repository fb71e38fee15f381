"""Writes the catalog of a bundle: shards joined in order, popularity, charts, the hash table."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lhydra import files
from lhydra.bundle.arrays import GrowingArrays
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import ARRAYS, CHART, PER_ROW, TEXT, Catalog, hash_shift
from lhydra.bundle.embedding import SHARD, Run, Shard, embed_shard
from lhydra.bundle.index import Index
from lhydra.bundle.model import Model
from lhydra.bundle.sequence_files import rearranged
from lhydra.bundle.strings import StringColumn
from lhydra.data.dataset import TRAIN, VALID, Dataset
from lhydra.domain import F32, I64, Hashes
from lhydra.errors import DataError, complain
from lhydra.features.co_listening import NO_CO_LISTENING, CoListening
from lhydra.features.sequences import Sequences
from lhydra.timing import timed


def write_hashes(folder: Path, hashes: Hashes, names: StringColumn) -> None:
    """Writes the table from track hash to row.

    Args:
        folder: of the catalog.
        hashes: (n,) uint64 by row.
        names: the n track ids, for the error.

    Raises:
        DataError: two track ids share a hash.
    """
    order = np.argsort(hashes)
    ordered = hashes[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        a, b = names.at(np.sort(order[same[0] : same[0] + 2]))
        raise DataError(complain("track ids", f"{a!r} and {b!r} with one hash", "a hash for each: rename one"))
    np.save(folder / "hashes.npy", ordered)
    buckets = np.arange(2 ** (64 - hash_shift(len(ordered))), dtype=np.uint64) << np.uint64(hash_shift(len(ordered)))
    np.save(folder / "hash_starts.npy", np.searchsorted(ordered, buckets).astype(np.int32))
    np.save(folder / "hash_rows.npy", order.astype(np.int32))


CHART_USERS = 20  # train users that a country needs for a chart of its own


@timed("embed.catalog")
def write_catalog(
    model: Model,
    dataset: Dataset,
    folder: Path,
    run: Run = map,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Catalog:
    """Writes the catalog of a dataset's tracks.

    Args:
        model: embeds the tracks.
        dataset: the tracks and plays.
        folder: where the files are written.
        run: runs the embedding of shards, see `Run`.
        on_rows: called after each shard with the number of tracks embedded so far.

    Returns:
        The catalog, opened.

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
    names = StringColumn(*(np.load(folder / f"names{part}.npy", "r") for part in ("", "_offsets")))
    write_hashes(folder, hashes, names)
    return Catalog.open(folder)


def _put_together(shards: Iterable[Path], n: int, folder: Path, on_rows: Callable[[int], None]) -> Hashes:
    """Appends every shard to the files of the catalog; returns the hashes, (n,) uint64."""
    hashes, done = np.empty(n, np.uint64), 0
    with GrowingArrays(folder) as growing:
        for path in shards:
            with np.load(path, allow_pickle=False) as shard:
                rows = len(shard["hashes"])
                hashes[done : done + rows] = shard["hashes"]
                for array in (array for array in ARRAYS if array.extent == PER_ROW and array.name in shard):
                    growing.append(array.stem, shard[array.name])
                    if array.dtype == TEXT:
                        growing.append_lengths(f"{array.stem}_offsets", shard[f"{array.name}_lengths"])
            path.unlink()
            done += rows
            on_rows(done)
    return hashes


def _write_popularity(dataset: Dataset, folder: Path) -> None:
    plays = dataset.plays
    listeners = np.bincount(plays.track[plays.fold == TRAIN], minlength=dataset.n_tracks)
    np.save(folder / "popularity.npy", popularity(listeners))
    np.save(folder / "share.npy", (listeners / max(train_users(dataset), 1)).astype(np.float32))
    np.save(folder / "popular.npy", np.argsort(-listeners, kind="stable").astype(np.int32))


def _write_charts(dataset: Dataset, folder: Path) -> None:
    """Writes the chart of each country with enough train users; none where the data has no countries."""
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
    texts = StringColumn.of(names)
    for name, array in (("charts", texts.data), ("charts_offsets", texts.offsets)):
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "chart_rows.npy", chart_rows)
    np.save(folder / "chart_share.npy", chart_share)


def train_users(dataset: Dataset) -> int:
    """Counts the users with train plays.

    Args:
        dataset: the plays.

    Returns:
        The number.
    """
    return len(np.unique(dataset.plays.user[dataset.plays.fold == TRAIN]))


def fitted_users(dataset: Dataset) -> list[str]:
    """Returns the users on whose plays a model is fitted: towers on the train fold, head and calibration on valid.

    Args:
        dataset: the plays.

    Returns:
        Their ids.
    """
    plays = dataset.plays
    return [dataset.user_ids[user] for user in np.unique(plays.user[plays.fold <= VALID])]


def popularity(listeners: I64) -> F32:
    """Computes the head's popularity feature.

    Args:
        listeners: (n,) integers, how many users played each track.

    Returns:
        (n,) float32, log-scaled to [0, 1].
    """
    return np.asarray(np.log1p(listeners) / np.log1p(max(listeners.max(initial=1), 1)), np.float32)


def unpublished_bundle(model: Model, dataset: Dataset, folder: Path) -> Bundle:
    """Makes a bundle with an exact index that is never published, for evaluation.

    Args:
        model: of the bundle.
        dataset: its tracks.
        folder: where the catalog is written.

    Returns:
        The bundle.
    """
    catalog = write_catalog(model, dataset, folder)
    index = Index.build(catalog.vectors, "flat")
    parts = model.spec, catalog, model.user_tower, model.head, index
    sequences, co_listening = sequences_by_row(model, catalog), co_listening_by_row(model, catalog)
    return Bundle(model.model_id, *parts, sequences=sequences, co_listening=co_listening)


def sequences_by_row(model: Model, catalog: Catalog) -> Sequences:
    """Returns the tables of what goes with what in time, by row of a catalog.

    Args:
        model: whose tables name tracks by the number of their id.
        catalog: the rows.

    Returns:
        The tables, empty ones where the model has none.
    """
    if not len(model.sequences):
        return model.sequences
    return rearranged(model.sequences, _rows_of_numbers(catalog, len(model.sequences)), len(catalog))


def co_listening_by_row(model: Model, catalog: Catalog) -> CoListening:
    """Makes what a model brings to a catalog.

    Args:
        model: its share tells whether co-listening is a source; with a head for moments those have the depth.
        catalog: the rows, with the model's table.

    Returns:
        What was played to candidates, by row; nothing where it is no source.
    """
    share = co_listening_share(model)
    if not share:
        return NO_CO_LISTENING
    to = _rows_of_numbers(catalog, len(catalog.neighbours))
    return CoListening.of(catalog.neighbours, catalog.neighbour_weights, share).rearranged(to, len(catalog))


def co_listening_share(model: Model) -> float:
    """Tells whether a model brings candidates by co-listening.

    Args:
        model: with a head for moments those bring them.

    Returns:
        Their share of the depth, 0 where co-listening is no source.
    """
    if model.head.knows_moments or not model.info.chosen:
        return 0.0
    return model.info.chosen.get("co-listening share", 0.0)


def _rows_of_numbers(catalog: Catalog, n: int) -> I64:
    """The row of each of the n numbers that training gave to track ids, -1 where the catalog has no such track."""
    rows = np.full(n, -1)
    rows[catalog.item_rows] = np.arange(len(catalog))
    rows[0] = -1  # stands for every track that training did not know
    return rows
