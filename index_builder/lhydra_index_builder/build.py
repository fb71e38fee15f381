"""Rebuild: embed every track, choose depth and index, seal the bundle, prove it from disk, let its gate decide.

The steps of `rebuild` are the order to read this package in: plan, store.building, embedding, depth, recipe, seal,
gate, store.set_current, store.retain. `add` and `remove` (in `changes`) share everything from `seal` on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow.parquet as pq

from lhydra import __version__, files
from lhydra.bundle import catalog as catalogs
from lhydra.bundle import (
    co_listening_files,
    columns,
    fitted,
    folded_head,
    sequence_files,
    signature,
    title_words,
    track_map,
)
from lhydra.bundle.arrays import blocks
from lhydra.bundle.bundle import PARTS, Bundle
from lhydra.bundle.catalog import Catalog
from lhydra.bundle.catalog_writer import co_listening_by_row, fitted_users, sequences_by_row, train_users, write_catalog
from lhydra.bundle.columns_writer import write_columns
from lhydra.bundle.embedding import SHARD
from lhydra.bundle.exact import nearest_of_many
from lhydra.bundle.index import FLAT, Index, use_threads
from lhydra.bundle.listed import REFUSED
from lhydra.bundle.manifest import Manifest, current_bundle_id, current_or_none
from lhydra.bundle.model import GRAPHS, REFITTED, Model, ModelInfo, Quality
from lhydra.bundle.title_words import TitleWords
from lhydra.bundle.verified import VerifiedFiles
from lhydra.console import progress
from lhydra.data.dataset import AsOf, Dataset, user_states
from lhydra.domain import F32, I64
from lhydra.errors import BundleError, BundleRefused
from lhydra.features.histories import EncodedUsers, Histories, offsets_of
from lhydra.recommender import Recommender
from lhydra.timing import timed
from lhydra_index_builder import depth as depths
from lhydra_index_builder import gate, held_out, plan, pool, projection, recipe, replies, store
from lhydra_index_builder.config import RebuildSettings
from lhydra_index_builder.index_parts import VectorFile
from lhydra_index_builder.logged import NO_TRAFFIC, logged_traffic
from lhydra_index_builder.sweep import NEIGHBOURS, MeasuredPoint, Truth

GOLDEN_USERS, GOLDEN_TRACKS = 8, 64
TIMES = ("p50_us", "p99_us", "build_s")  # of the curve: what differs between two builds of the same content
Log = Callable[[str], None]  # told what happens, a line at a time
DrawUsers = Callable[[Bundle | None], held_out.UserSample]  # CURRENT -> whom the gate asks


@dataclass(frozen=True)
class Built:
    """What a build made: its id and manifest; `deleted`: bundles that `keep` let go."""

    bundle_id: str
    manifest: Manifest
    deleted: tuple[str, ...] = ()


def no_log(line: str) -> None:
    """Drops a line.

    Args:
        line: what happened.
    """


@timed("rebuild")
def rebuild(model_path: Path, dataset: Dataset, path: Path, config: RebuildSettings, log: Log = no_log) -> Built:
    """Builds a bundle from model and dataset, and makes it CURRENT when its gate lets it.

    Whatever else happens leaves CURRENT as it was: a failure leaves nothing, a refusal leaves the bundle, refused.

    Args:
        model_path: folder made by `lhydra train`.
        dataset: whose tracks are embedded.
        path: the store to publish in.
        config: how to build, and what the gate lets through.
        log: told what happens.

    Returns:
        What was published.

    Raises:
        ModelError: no sound model, or its vectors are not of unit norm.
        ConfigError: the recipe is unknown or does not fit, or the machine is too small.
        StoreLocked: another process is building in the store.
        BundleError: the finished bundle does not open from disk, or (BundleRefused) its gate refused it.
    """
    store.check_free(path)
    recipe.check(config.recipe, dataset.n_tracks, ModelInfo.read(model_path).dim, config.max_bytes_per_track)
    projection.check(config.map)
    threads = plan.cores(config.threads)
    model = Model.open(model_path)
    processes = threads if dataset.n_tracks > 2 * SHARD else 1
    estimate = plan.predict(model, dataset, config.recipe, config.max_bytes_per_track, processes)
    log(f"{dataset.n_tracks:,} tracks of {model.dim} numbers: needs about {estimate}")
    plan.check(estimate, path, config.max_memory_gib)
    with store.building(path, "lhydra index rebuild") as folder, pool.processes(processes) as run:
        for name in ("features.json", *GRAPHS, *({folded_head.FILE} & model.info.files.keys())):
            files.copy(model_path / name, folder / name)
        files.copy(dataset.path / "tracks.parquet", folder / "catalog.parquet")
        with progress(dataset.n_tracks, "embedding tracks") as show:
            catalog = write_catalog(model, dataset, folder, run, show)
        TitleWords.of(catalog.title_texts, catalog.artist_texts).save(folder)
        projection.write(folder, config.map, config.seed)
        replies.write(catalog.names, catalog.title_texts, catalog.artist_texts, folder)
        columns: dict[str, str] = {column.name: column.kind for column in dataset.info.track_columns}
        write_columns(folder, folder / "catalog.parquet", columns)
        pq.write_table(dataset.track_rows(0, 0), folder / "added.parquet")
        np.save(folder / "index_rows.npy", np.empty(0, np.int32))
        if fitted.FILE in model.info.files:
            fitted.save(folder, fitted_users(dataset), model_path)
        if len(removed := _still_removed(path, catalog)):
            log(f"{len(removed):,} tracks that were removed stay removed; `lhydra index add` brings them back")
            np.save(folder / "removed.npy", removed)
            catalog = Catalog.open(folder)
        unindexed = Index.empty(model.dim, FLAT, np.empty((0, model.dim), np.float32), 0)
        sequences = sequences_by_row(model, catalog)
        if len(sequences):
            sequence_files.save(folder, sequences)
        co_listening_files.save(folder, co_listening_by_row(model, catalog))
        parts = model.spec, catalog, model.user_tower, model.head, unindexed
        together = co_listening_files.open_co_listening(folder, co_listening_files.names_in(folder))
        bundle = Bundle("", *parts, sequences=sequences, co_listening=together)
        as_of, targets = held_out.for_depth(dataset, model.info.fitted_on)

        log("measuring how many candidates the head needs")
        cascade = depths.measure(Recommender(bundle), dataset, as_of, targets, threads=threads, seed=config.seed)
        depth = config.depth or depths.choose(cascade)
        catalog = Catalog.open(folder)  # anew: the pages that were scanned need not stay
        bundle = replace(bundle, catalog=catalog)
        users = _some_users(bundle, dataset, as_of, config)
        truth = _truth(bundle, folder / "vectors.npy", users, threads)
        vectors = VectorFile(folder / "vectors.npy", len(catalog), model.dim)
        with progress(dataset.n_tracks, "building the index") as show:
            choice = recipe.choose(
                vectors,
                truth,
                recipe=config.recipe,
                target=config.recall,
                depth=depth,
                max_bytes=config.max_bytes_per_track,
                seed=config.seed,
                run=run,
                threads=threads,
                folder=folder,
                on_rows=show,
            )
        choice.path.rename(folder / "index.faiss")
        chosen = choice.measured
        log(f"recipe {chosen.recipe}, {_point(chosen)}: coverage {chosen.coverage:.4f}; depth {depth:,}")
        _write_golden(bundle, users, folder, config.seed)
        manifest = Manifest(
            bundle_id="",
            model_id=model.model_id,
            created="",
            lhydra_version=__version__,
            dim=model.dim,
            n_tracks=len(catalog),
            n_users=train_users(dataset),
            features=model.spec.fingerprint,
            recipe=chosen.recipe,
            point={"effort": chosen.effort, "refine": chosen.refine},
            recall=chosen.recall,
            index=recipe.document(choice, config.recall, len(truth.queries)),
            depth=depth,
            cascade=cascade,
            quality=_quality(model.info.quality),
            changes={"base": "", "added": 0, "removed": len(removed), "due": ""},
            gate={"verdict": "", "checks": []},
            columns=columns,
            parents={
                "dataset": dataset.info.source,
                "split": dataset.info.split,
                "model": model.model_id,
                "fitted_on": model.info.fitted_on,
                "bundle": "",
                "valid": str((model.info.parents or {"split": {}})["split"].get("hash", "")),
            },
            content="",
            files={},
        )

        def draw(current: Bundle | None) -> held_out.UserSample:
            fitted = {"the new model": model.info.parents["split"] if model.info.parents else {}}
            if current and current.manifest:
                fitted["the model of CURRENT"] = current.manifest.parents["split"]
            judged, why_none = held_out.for_gate(dataset, fitted)
            seen: AsOf = "refit" if model.info.fitted_on == REFITTED else "test"
            return held_out.draw_users(dataset, seen, judged, config.gate_users, config.seed, why_none)

        return finish(folder, path, manifest, draw, config, log)


def finish(
    folder: Path,
    path: Path,
    manifest: Manifest,
    draw: DrawUsers,
    config: RebuildSettings,
    log: Log,
    known: Mapping[str, files.FileInfo] = MappingProxyType({}),
) -> Built:
    """Seals a bundle, proves it from disk, asks its gate, and publishes it or keeps it as refused.

    Args:
        folder: where its files lie, in the store.
        path: the store.
        manifest: what is known of the bundle before it is sealed.
        draw: gives the users whose lists the gate compares.
        config: what the gate lets through.
        log: told what happens.
        known: files that are those of another bundle, as sealed there.

    Returns:
        What was published.

    Raises:
        BundleError: it does not open from disk, or (BundleRefused) its gate refused it.
    """
    now = datetime.now(UTC)
    names = [*PARTS, "golden.npz", *catalogs.file_names(), *columns.file_names(folder)]
    for optional in (sequence_files, co_listening_files, fitted, folded_head, title_words, track_map):
        names += optional.names_in(folder)
    with timed("rebuild.seal"):
        sealed = dict(known) | files.seal(folder, [name for name in names if name not in known])
    manifest = replace(
        manifest,
        bundle_id=files.new_id(now),
        created=now.isoformat(timespec="seconds"),
        files={name: sealed[name] for name in names},
    )
    manifest = replace(manifest, content=content(manifest))
    _write(folder, manifest, config)
    with timed("rebuild.prove"):
        bundle = Bundle.open_folder(folder, verified=VerifiedFiles(path))
        Recommender(bundle).warm_up()
    log(f"sealed {manifest.bundle_id} and opened it again from disk; asking its gate")
    while True:
        against = current_or_none(path)
        current, why_none = None, "nothing published before"
        if against:
            try:
                current = Bundle.open(path, against)
            except BundleError as error:
                why_none = f"CURRENT does not open: {error}"
        traffic = NO_TRAFFIC
        if config.requests is not None:
            traffic = logged_traffic(config.requests, [one for one in (bundle, current) if one], config.gate_users, log)
        checks = gate.check(folder, bundle, current, why_none, draw(current), config, traffic)
        verdict = gate.verdict(checks, config.force)
        manifest = replace(manifest, gate=gate.document(checks, against, verdict))
        _write(folder, manifest, config)
        if folder.parent != path or folder.name != manifest.bundle_id:
            with timed("rebuild.sync"):
                store.add(folder, path, manifest.bundle_id)
            folder = path / manifest.bundle_id
        if verdict == REFUSED:
            why = "; ".join(check.line for check in checks if check.verdict == REFUSED)
            raise BundleRefused(f"{manifest.bundle_id} refused: {why}; it stays in the store, --force publishes it")
        if store.set_current(path, manifest.bundle_id, expected=against):
            break  # else another process rolled back meanwhile: compare with that
    del current  # and its lease
    deleted = store.retain(path, config.keep) if config.keep else []
    return Built(manifest.bundle_id, manifest, tuple(deleted))


def _still_removed(path: Path, catalog: Catalog) -> I64:
    """Rows, ascending, of what was removed from the current bundle: a rebuild must not bring it back unasked."""
    try:
        folder = path / current_bundle_id(path)
        ordered, rows_of, removed = (np.load(folder / f"{name}.npy") for name in ("hashes", "hash_rows", "removed"))
    except (BundleError, OSError, ValueError):  # nothing published, or nothing that knows of removed tracks
        return np.empty(0, np.int64)
    hashes = np.empty(len(ordered), np.uint64)  # read file by file: they are the same in formats that do not open
    hashes[rows_of] = ordered
    rows = catalog.rows(hashes[removed])
    return np.sort(rows[rows >= 0])


def content(manifest: Manifest) -> str:
    """Returns a hash that is the same for the same content.

    Args:
        manifest: of the bundle.

    Returns:
        SHA-256, in hex, of everything but names, times and the gate.
    """
    said = {
        name: value for name, value in vars(manifest).items() if name not in ("bundle_id", "created", "gate", "content")
    }
    curve = [{key: value for key, value in at.items() if key not in TIMES} for at in manifest.index["curve"]]
    said["index"] = {**manifest.index, "curve": curve}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, manifest: Manifest, config: RebuildSettings) -> None:
    manifest.write(folder)
    if config.sign_key is not None:
        signature.sign(folder, config.sign_key)


def _point(chosen: MeasuredPoint) -> str:
    return f"effort {chosen.effort}" + (f", refine {chosen.refine}" if chosen.refine > 1 else "")


def _some_users(bundle: Bundle, dataset: Dataset, as_of: AsOf, config: RebuildSettings) -> EncodedUsers:
    """Encoded users of the dataset, drawn at random, with their histories."""
    n = len(dataset.user_ids)
    drawn = np.sort(np.random.default_rng(config.seed).permutation(n)[: config.recall_users])
    encode = Recommender(bundle).encode
    return join_users([encode(state) for _, state in user_states(dataset, as_of, positions=drawn)])


@timed("rebuild.truth")
def _truth(bundle: Bundle, vectors: Path, users: EncodedUsers, threads: int) -> Truth:
    """What exact search finds for each user."""
    use_threads(threads)
    queries = np.concatenate([_vector(bundle, users.take(np.array([i]))) for i in range(len(users.dense))])
    rows, _ = nearest_of_many(blocks(vectors), queries, NEIGHBOURS, np.empty(0, np.int64))
    return Truth(queries, rows)


def _vector(bundle: Bundle, user: EncodedUsers) -> F32:
    return bundle.embed(user)


def _write_golden(bundle: Bundle, users: EncodedUsers, folder: Path, seed: int) -> None:
    few = users.take(np.arange(min(GOLDEN_USERS, len(users.dense))))
    bundle.golden(few, golden_rows(bundle, seed)).save(folder / "golden.npz")


def golden_rows(bundle: Bundle, seed: int) -> I64:
    """Returns the rows whose scores are kept to be compared at every load.

    Args:
        bundle: whose tracks.
        seed: of the drawing.

    Returns:
        (min(GOLDEN_TRACKS, n),) int64, ascending.
    """
    n = len(bundle.catalog)
    return np.sort(np.random.default_rng(seed).choice(n, min(GOLDEN_TRACKS, n), replace=False))


def join_users(users: Sequence[EncodedUsers]) -> EncodedUsers:
    """Returns the encoded users of several batches as one.

    Args:
        users: the batches.

    Returns:
        All users, in order.
    """
    parts = [user.histories for user in users]
    histories = Histories(
        offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.times for part in parts]),
    )
    dense, ids, entry = (np.concatenate([getattr(user, name) for user in users]) for name in ("dense", "ids", "entry"))
    return EncodedUsers(dense, ids, histories, entry)


def _quality(quality: Quality) -> dict[str, float]:
    stages = {"retrieval": quality.get("retrieval", {}), "cascade": quality.get("cascade", {})}
    return {f"{stage} {name}": value for stage, metrics in stages.items() for name, value in metrics.items()}
