"""Between rebuilds: tracks are added and removed without training and without building anything again.

Both make a new bundle from the current one and publish it like a rebuild. Files that stay the same are the same
files, by hard link. Rows of a catalog are in track-id order, so added tracks move the rows of others; what
FAISS holds stays where it is, and the map from its positions to rows moves instead. A removed track keeps its row:
it goes on to count in the histories of those who played it, and is never returned.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lhydra import __version__, files
from lhydra.bundle import catalog_writer, co_listening_files, columns_writer, sequence_files, title_words
from lhydra.bundle.arrays import GrowingArrays, blocks
from lhydra.bundle.bundle import Bundle, Golden, open_index
from lhydra.bundle.catalog import ARRAYS, PER_ROW, TEXT, Catalog
from lhydra.bundle.embedding import SHARD, embed
from lhydra.bundle.exact import nearest_of_many
from lhydra.bundle.history_vectors import HistoryVectors
from lhydra.bundle.index import Index
from lhydra.bundle.manifest import Manifest
from lhydra.bundle.model import GRAPHS, OPTIONAL, TABLE
from lhydra.bundle.networks import ItemTower
from lhydra.bundle.strings import StringColumn
from lhydra.bundle.title_words import TitleWords
from lhydra.data.dataset import Column, track_columns
from lhydra.data.tracks import read_tracks
from lhydra.domain import I64, UserState, track_hashes
from lhydra.errors import DataError, complain
from lhydra.features.histories import offsets_of
from lhydra.recommender import Recommender
from lhydra.timing import timed
from lhydra.users.store import open_users
from lhydra_index_builder import plan, projection, store, sweep
from lhydra_index_builder.build import Built, Log, finish, no_log
from lhydra_index_builder.config import RebuildSettings
from lhydra_index_builder.held_out import UserSample
from lhydra_index_builder.replies import REPLIES, packed
from lhydra_index_builder.sizes import MARGIN

MAX_CHANGED_SHARE = 0.05  # of the tracks of the last full build: beyond it a rebuild is due
KEPT = ("features.json", *GRAPHS, *TABLE, "catalog.parquet", *OPTIONAL)  # files that added tracks leave as they are
ADD_BYTES = 300 << 20  # of memory: libraries, the users whom the gate asks
TEXTS = tuple(array.stem for array in ARRAYS if array.extent == PER_ROW and array.dtype == TEXT)


@dataclass(frozen=True)
class CurrentBundle:
    """CURRENT, opened, and states of users to ask for."""

    bundle: Bundle
    manifest: Manifest
    folder: Path
    states: Sequence[UserState]

    @classmethod
    def open(cls, path: Path, users: str | None, config: RebuildSettings) -> "CurrentBundle":
        """Opens CURRENT, and reads users of the user store, where there is one.

        Args:
            path: the store.
            users: URL of the user store; None takes the one inside the store.
            config: how many users.

        Returns:
            The bundle and the users.

        Raises:
            BundleError: there is no sound current bundle.
        """
        bundle = Bundle.open(path)
        assert bundle.manifest is not None  # opened from a store
        return cls(bundle, bundle.manifest, path / bundle.bundle_id, some_users(path, users, config.gate_users))

    def draw_users(self, current: Bundle | None) -> UserSample:
        """Returns the users whose lists the gate compares.

        Args:
            current: what is CURRENT; the users are the same whatever it is.

        Returns:
            The users, nothing of them held out.
        """
        return UserSample(self.states)


def some_users(path: Path, users: str | None, n: int) -> list[UserState]:
    """Returns the states of users drawn at random from a user store.

    Args:
        path: the store of bundles.
        users: URL of the user store; None takes the one inside the store of bundles.
        n: users at most.

    Returns:
        The states, none where there is no user store.
    """
    if users is None and not (path / "users.lmdb").exists():
        return []
    opened = open_users(users, path)
    try:
        return opened.sample(n)
    finally:
        opened.close()


@timed("add")
def add(
    tracks: Path, path: Path, config: RebuildSettings, users: str | None = None, log: Log = no_log
) -> tuple[Built, int, int]:
    """Publishes the current bundle with the tracks in a file added.

    Added tracks are embedded by the item tower from their content, with the id unknown. A track that was removed
    comes back as it was.

    Args:
        tracks: a CSV, JSON or Parquet file with `track_id` and what else is known.
        path: the store.
        config: what the gate lets through, and limits of the machine.
        users: URL of the user store whose users the gate asks; None takes the one inside the store.
        log: told what happens.

    Returns:
        What was published, how many tracks were added, and how many removed ones came back.

    Raises:
        DataError: the file cannot be read, or names a track that the catalogue has.
        ConfigError: the columns do not fit the features.
        BundleError: no sound current bundle, or the gate refused the new one.
        StoreLocked: another process is building in the store.
    """
    with store.building(path, "lhydra index add") as folder:
        source = CurrentBundle.open(path, users, config)
        catalog, manifest = source.bundle.catalog, source.manifest
        columns = tuple(Column(name, kind) for name, kind in manifest.columns.items())  # type: ignore[arg-type]
        table, warnings = read_tracks(tracks, columns)
        for warning in warnings:
            log(f"warning: {warning}")
        given = catalog.rows(track_hashes(table["track_id"].to_pylist()))
        restored = given[given >= 0]
        if len(there := np.setdiff1d(restored, catalog.removed)):
            some = ", ".join(catalog.track_ids(there[:3])) + (", …" if len(there) > 3 else "")
            raise DataError(complain(tracks, f"{len(there):,} tracks of the catalogue ({some})", "new tracks"))
        table = table.filter(pa.array(given < 0))
        used = tuple(column for column in columns if column.name in table.column_names)
        plan.check(_estimate(source, table), path, config.max_memory_gib)
        log(f"embedding {table.num_rows:,} tracks" + (f", {len(restored):,} come back" if len(restored) else ""))
        tower = ItemTower(source.folder / "item_tower.onnx", plan.cores(config.threads))
        new = embed(source.bundle.spec, tower, table, lambda rows: track_columns(rows, used))
        if catalog.history.table.itemsize != 1:  # a bundle of before goes on as it is
            new["history"] = HistoryVectors(new["history"]).at(np.arange(table.num_rows)[None])[0]
        at = _places(catalog.names, table["track_id"].to_pylist())
        moved = (np.arange(len(catalog)) + np.searchsorted(at, np.arange(len(catalog)), side="right")).astype(np.int64)
        own = at + np.arange(len(at))

        known = _link(source, folder, [name for name in KEPT if name in manifest.files])
        with timed("add.merge"):
            _merge(source.folder, folder, catalog, new | packed(*(_texts(new, name) for name in TEXTS)), at)
            columns_writer.insert_columns(source.folder, folder, table, at)
            _move_charts(source.folder, folder, moved)
            if len(sequences := source.bundle.sequences):
                sequence_files.save(folder, sequence_files.rearranged(sequences, moved, len(catalog) + len(at)))
            if len(together := source.bundle.co_listening):
                co_listening_files.save(folder, together.rearranged(moved, len(catalog) + len(at)))
        removed = np.setdiff1d(moved[catalog.removed], moved[restored])
        np.save(folder / "removed.npy", removed)
        added = pq.read_table(source.folder / "added.parquet")
        pq.write_table(pa.concat_tables([added, _like(table, added.schema)]), folder / "added.parquet")
        _move_golden(source.folder, folder, moved)
        with timed("add.index"):
            index = Index.open(source.folder / "index.faiss", manifest.recipe, mapped=False)
            index.add(new["vectors"])
            index.write(folder / "index.faiss")
        was = np.load(source.folder / "index_rows.npy")
        rows = moved[was] if len(was) else moved
        np.save(folder / "index_rows.npy", np.concatenate([rows, own]).astype(np.int32))
        _add_words(source.bundle, folder, new, moved, own)
        if source.bundle.map is not None and source.bundle.map.projection == projection.UMAP:
            log("the map is left out: UMAP places no single tracks; `lhydra index rebuild` makes one")
        elif source.bundle.map is not None:
            projection.write(folder, projection.PCA, 0)
        changed = _manifest(source, len(catalog) + len(at), added=len(at), removed=len(removed))
        built = finish(folder, path, _measured(changed, folder, source, config), source.draw_users, config, log, known)
        return built, len(at), len(restored)


@timed("remove")
def remove(
    track_ids: Iterable[str], path: Path, config: RebuildSettings, users: str | None = None, log: Log = no_log
) -> tuple[Built, int]:
    """Publishes the current bundle with some tracks never returned.

    Args:
        track_ids: the tracks.
        path: the store.
        config: what the gate lets through, and limits of the machine.
        users: URL of the user store whose users the gate asks; None takes the one inside the store.
        log: told what happens.

    Returns:
        What was published, and how many of the tracks were not removed before.

    Raises:
        DataError: an id that the catalogue does not have, or nothing to remove.
        BundleError: no sound current bundle, or the gate refused the new one.
        StoreLocked: another process is building in the store.
    """
    with store.building(path, "lhydra index remove") as folder:
        source = CurrentBundle.open(path, users, config)
        catalog = source.bundle.catalog
        asked = list(dict.fromkeys(track_ids))
        rows = catalog.rows(track_hashes(asked))
        if len(unknown := np.flatnonzero(rows < 0)):
            some = ", ".join(repr(asked[i]) for i in unknown[:3]) + (", …" if len(unknown) > 3 else "")
            raise DataError(complain("track ids", f"{len(unknown):,} unknown ({some})", "tracks of the catalogue"))
        fresh = np.setdiff1d(rows, catalog.removed)
        if not len(fresh):
            raise DataError(complain("track ids", "nothing that is not removed already", "tracks of the catalogue"))
        removed = np.union1d(catalog.removed, fresh)
        known = _link(source, folder, [name for name in source.manifest.files if name != "removed.npy"])
        np.save(folder / "removed.npy", removed)
        _write_words(folder)
        changed = _manifest(source, len(catalog), added=0, removed=len(removed))
        built = finish(folder, path, _measured(changed, folder, source, config), source.draw_users, config, log, known)
        return built, len(fresh)


def _link(source: CurrentBundle, folder: Path, names: Iterable[str]) -> dict[str, files.FileInfo]:
    """Makes files of the current bundle files of the new one; returns how they were sealed."""
    known = {}
    for name in names:
        files.link(source.folder / name, folder / name)
        known[name] = source.manifest.files[name]
    return known


def _places(names: StringColumn, track_ids: Sequence[str]) -> I64:
    """(m,) how many of `names`, which are in order, come before each of the `track_ids`, which are too."""
    found, low = np.empty(len(track_ids), np.int64), 0
    for i, track_id in enumerate(track_ids):
        found[i] = low = names.place(track_id, low)[0]
    return found


def _merge(old: Path, folder: Path, catalog: Catalog, new: dict[str, npt.NDArray[Any]], at: I64) -> None:
    """Writes the arrays of the catalog with the `new` tracks before the old rows `at` (m,), block by block."""
    m = len(at)
    with GrowingArrays(folder) as growing:
        for array in (array for array in ARRAYS if array.extent == PER_ROW and array.dtype != TEXT):
            start, fresh = 0, new.get(array.name, np.zeros(m, array.dtype))  # nobody has played what is new
            for block in blocks(old / f"{array.stem}.npy", SHARD):
                last = start + len(block) == len(catalog)
                here = slice(*np.searchsorted(at, (start, start + len(block) + last)))
                growing.append(array.stem, np.insert(block, at[here] - start, fresh[here], axis=0))
                start += len(block)
        for name in (*TEXTS, REPLIES):
            texts = StringColumn.open(old, name)
            lengths = new[f"{name}_lengths"]
            ends = np.cumsum(lengths)
            cuts = texts.offsets[at]
            for i in range(m):
                growing.append(name, np.asarray(texts.data[cuts[i - 1] if i else 0 : cuts[i]]))
                growing.append(name, new[name][ends[i] - lengths[i] : ends[i]])
            growing.append(name, np.asarray(texts.data[cuts[-1] if m else 0 :]))
            growing.append_lengths(f"{name}_offsets", np.insert(np.diff(texts.offsets), at, lengths))
    share = np.load(folder / "share.npy", "r")
    np.save(folder / "popular.npy", np.argsort(-share, kind="stable").astype(np.int32))
    hashes = np.empty(len(catalog), np.uint64)
    hashes[catalog.hash_rows] = catalog.hashes
    names = StringColumn(*(np.load(folder / f"names{part}.npy", "r") for part in ("", "_offsets")))
    catalog_writer.write_hashes(folder, np.insert(hashes, at, new["hashes"]), names)


def _texts(new: dict[str, npt.NDArray[Any]], name: str) -> StringColumn:
    return StringColumn(new[name], offsets_of(new[f"{name}_lengths"]))


def _move_charts(old: Path, folder: Path, moved: I64) -> None:
    """Writes the charts of countries with their rows where those went; nobody has played what is new."""
    rows = np.load(old / "chart_rows.npy")
    np.save(folder / "chart_rows.npy", np.where(rows >= 0, moved[rows], -1).astype(np.int32))
    for name in ("charts", "charts_offsets", "chart_share"):
        files.link(old / f"{name}.npy", folder / f"{name}.npy")


@timed("change.words")
def _add_words(source: Bundle, folder: Path, new: dict[str, npt.NDArray[Any]], moved: I64, own: I64) -> None:
    """Writes the words to search by, those of the `new` tracks among those of before."""
    if source.words is None:
        _write_words(folder)
    else:
        fresh = TitleWords.of(_texts(new, "title_texts"), _texts(new, "artist_texts"))
        source.words.with_tracks(fresh, moved, own).save(folder)


def _write_words(folder: Path) -> None:
    """Writes the words to search by, where they did not come along: else every worker would make them."""
    if not title_words.names_in(folder):
        catalog = Catalog.open(folder)
        TitleWords.of(catalog.title_texts, catalog.artist_texts).save(folder)


def _move_golden(old: Path, folder: Path, moved: I64) -> None:
    """Writes the golden users with their tracks at the rows where those went."""
    golden = Golden.open(old / "golden.npz")
    histories = replace(golden.users.histories, rows=moved[golden.users.histories.rows])
    users = replace(golden.users, histories=histories)
    replace(golden, users=users, rows=moved[golden.rows]).save(folder / "golden.npz")


def _like(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns of `schema`: nothing played, and null where the file had no such column."""
    columns = []
    for field in schema:
        if field.name in table.column_names:
            columns.append(table[field.name].cast(field.type))
        elif field.name in ("train_plays", "train_listeners"):
            columns.append(pa.array(np.zeros(table.num_rows), field.type))
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _estimate(source: CurrentBundle, tracks: pa.Table) -> plan.ResourceEstimate:
    """What adding `tracks` needs: files of the catalog are written again, and the gate has two bundles open."""
    size = {name: info["bytes"] for name, info in source.manifest.files.items()}
    growth = 1 + tracks.num_rows / max(1, source.manifest.n_tracks)
    columns = (f"filter{i}_" for i in range(len(source.manifest.columns)))
    widest = max((sum(size[name] for name in size if name.startswith(column)) for column in columns), default=0)
    opened = 2 * (size["index.faiss"] + plan.mapped_bytes(size))
    memory = ADD_BYTES + plan.vocabulary_bytes(size) + growth * max(opened, columns_writer.MEMORY * widest)
    disk = MARGIN * growth * sum(size[name] for name in size if name not in KEPT) + 2 * tracks.nbytes
    return plan.ResourceEstimate(int(memory + 4 * tracks.nbytes), int(disk))


def _manifest(source: CurrentBundle, n_tracks: int, *, added: int, removed: int) -> Manifest:
    """The manifest of the changed bundle, as far as it is known before it is sealed."""
    was = source.manifest
    base = was.changes["base"] or was.bundle_id
    added += was.changes["added"]
    share = (added + removed) / max(1, n_tracks - added)
    due = f"{share:.0%} of the tracks were added or removed since {base}" if share > MAX_CHANGED_SHARE else ""
    return replace(
        was,
        lhydra_version=__version__,
        n_tracks=n_tracks,
        changes={"base": base, "added": added, "removed": removed, "due": due},
        parents={**was.parents, "bundle": was.bundle_id},
    )


@timed("change.recall")
def _measured(manifest: Manifest, folder: Path, source: CurrentBundle, config: RebuildSettings) -> Manifest:
    """`manifest` with the recall of the changed index, for the golden users and real ones."""
    catalog, bundle = Catalog.open(folder), source.bundle
    index = open_index(folder, manifest, catalog)
    queries = [Golden.open(folder / "golden.npz").vectors]
    recommender = Recommender(bundle)
    for state in source.states[: config.recall_users]:
        queries.append(bundle.embed(recommender.encode(state)))
    vectors = np.concatenate(queries)
    rows, _ = nearest_of_many(blocks(folder / "vectors.npy"), vectors, sweep.NEIGHBOURS, catalog.removed)
    found = sweep.measure(index, sweep.Truth(vectors, rows), manifest.depth, 0, 0)
    due = manifest.changes["due"]
    if not due and found.coverage + sweep.noise_of(found.recall) < manifest.index["target"] - config.max_recall_miss:
        due = f"coverage fell to {found.coverage:.4f}"
    return replace(manifest, recall=found.recall, changes={**manifest.changes, "due": due})
