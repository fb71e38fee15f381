"""Co-listening scores against a double loop, and the table on its way from training to the bundle."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle import catalog_writer
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import Catalog
from lhydra.bundle.model import Model
from lhydra.data.dataset import Dataset
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.domain import F32, I64
from lhydra.features import histories as features
from lhydra.features import item_item
from lhydra.features.histories import (
    Histories,
    entry_features,
    play_weights,
    positions_of,
    relative_weights,
    relative_weights_of,
)
from lhydra.features.item_item import RECENT_PLAYS, channel_weights
from lhydra.training import teachers
from lhydra.training.data import TrainingData, load
from tests.conftest import TINY_TRAINING

Case = tuple[np.ndarray, np.ndarray, I64, F32, I64]


@settings(deadline=None)
@given(st.lists(st.floats(1, 500, width=32), min_size=1, max_size=2048), st.sampled_from((3, 7, 11)))
def test_positions_and_weights_come_back_from_the_features_that_keep_them(counts: list[float], scale: int) -> None:
    """One definition: another scale changes both ways alike."""
    n = len(counts)
    rows, weighed = np.arange(n), play_weights(np.array(counts, np.float32))
    relative = relative_weights(weighed, np.array([0, n]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "POSITION_SCALE", scale)
        entry, _ = entry_features(Histories.one(rows, np.array(counts, np.float32), rows + 1), relative)
        np.testing.assert_allclose(positions_of(entry), n - 1 - rows, rtol=1e-4, atol=1e-4)
        recent = channel_weights(entry)[:, 1]
    np.testing.assert_allclose(relative_weights_of(entry), relative, rtol=1e-5)
    np.testing.assert_allclose(recent, relative * np.exp(-(n - 1 - rows) / RECENT_PLAYS), rtol=1e-3, atol=1e-6)


def made(seed: int, n: int, width: int, heard: int, wanted: int) -> Case:
    """A table of n tracks, `heard` of them played, `wanted` candidates (repeats and played ones allowed)."""
    rng = np.random.default_rng(seed)
    neighbours = rng.integers(0, n, (n, width)).astype(np.int32)
    weights = (rng.normal(size=(n, width)) * (rng.random((n, width)) < 0.8)).astype(np.float16)
    played = rng.permutation(n)[:heard].astype(np.int64)
    times = np.sort(rng.integers(1, 10**6, len(played))) if seed % 2 else np.zeros(len(played), np.int64)
    counts = rng.integers(1, 30, len(played)).astype(np.float32)
    histories = Histories.one(played, counts, times)
    entry, _ = entry_features(histories, relative_weights(play_weights(counts), histories.offsets))
    return neighbours, weights, played, entry, rng.integers(0, n, wanted)


def slow(neighbours: np.ndarray, weights: np.ndarray, played: I64, entry: F32, candidates: I64) -> list[list[float]]:
    """The definition: for every candidate, every neighbour, is it among what was played?"""
    found = []
    for track in candidates:
        every = recent = 0.0
        for neighbour, weight in zip(neighbours[track], weights[track], strict=True):
            for row, (count, _, position) in zip(played, entry, strict=True):
                if row == neighbour:
                    times = float(weight) * np.exp(float(count))
                    every += times
                    recent += times * np.exp(-(np.exp(7 * float(position)) - 1) / 10)
        found.append([every, recent])
    return found


@settings(deadline=None)
@given(
    st.integers(0, 2**16), st.integers(1, 12), st.integers(0, 6), st.integers(0, 12), st.integers(0, 8), st.booleans()
)
def test_scores_equal_a_double_loop(seed: int, n: int, width: int, heard: int, wanted: int, exact: bool) -> None:
    neighbours, weights, played, entry, candidates = made(seed, n, width, heard, wanted)
    kept = weights.astype(np.float32) if exact else weights  # training has float32, a bundle float16
    found = item_item.scores(neighbours, kept, played, entry, candidates)
    assert found.dtype == np.float32
    expected = np.array(slow(neighbours, weights, played, entry, candidates)).reshape(-1, 2)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_nothing_of_a_call_is_left_for_the_next() -> None:
    """Large, small, large: every catalogue shares one scratch per thread, and finds it empty."""
    cases = [made(seed, n, 4, n // 2, 20) for seed, n in enumerate((50, 3, 400, 10, 50, 400, 1))]
    alone = [np.array(slow(*case)) for case in cases]
    for case, expected in zip(cases * 2, alone * 2, strict=True):
        np.testing.assert_allclose(item_item.scores(*case), expected, atol=1e-4)
        nobody = item_item.scores(case[0], case[1], np.empty(0, np.int64), np.zeros((0, 3), np.float32), case[4])
        assert (nobody == 0).all()


def test_threads_do_not_meet() -> None:
    cases = [made(seed, 10 + 60 * (seed % 7), 8, 5 + seed % 20, 300) for seed in range(40)] * 5
    alone = [item_item.scores(*case) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda case: item_item.scores(*case), cases))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    neighbours, weights, played, entry, _ = made(1, 30, 4, 15, 1)
    with pytest.raises(IndexError):
        item_item.scores(neighbours, weights, played, entry, np.array([30]))
    nobody = np.empty(0, np.int64), np.zeros((0, 3), np.float32)
    assert (item_item.scores(neighbours, weights, *nobody, np.arange(30)) == 0).all()


def test_plays_weigh_by_count_and_the_second_channel_forgets() -> None:
    counts, m = np.array([1, 1, 6, 1, 1] * 6, np.float32), 30
    weight = np.log1p(counts)
    for times in (np.arange(1, m + 1) * 86_400, np.zeros(m, np.int64)):
        histories = Histories.one(np.arange(m), counts, times)
        found = channel_weights(entry_features(histories, relative_weights(play_weights(counts), histories.offsets))[0])
        np.testing.assert_allclose(found[:, 0], weight / weight.mean(), rtol=1e-5)
        ago = np.arange(m)[::-1] if times.any() else np.zeros(m)  # without times the order means nothing
        np.testing.assert_allclose(found[:, 1], found[:, 0] * np.exp(-ago / RECENT_PLAYS), rtol=1e-4)


# -- from training to the bundle --------------------------------------------------------------------------


def by_id(ids: list[str], neighbours: np.ndarray, weights: np.ndarray) -> dict[tuple[str, str], float]:
    """(track, neighbour) -> weight, zeros left out; ids: by what `neighbours` counts in."""
    found: dict[tuple[str, str], float] = {}
    for at, (near, own) in enumerate(zip(neighbours.tolist(), weights.tolist(), strict=True)):
        for other, weight in zip(near, own, strict=True):
            if weight:
                key = (ids[at], ids[other])
                assert key not in found
                found[key] = weight
    return found


@pytest.fixture(scope="module")
def data(tiny_dataset: Dataset) -> TrainingData:
    return load(tiny_dataset)


@pytest.fixture(scope="module")
def of_model(tiny_model: Path) -> dict[tuple[str, str], float]:
    model = Model.open(tiny_model)
    known = ["", *model.spec.track_categories[0].values]
    assert len(model.neighbours) == len(model.neighbour_weights) == len(known)
    assert not model.neighbour_weights[0].any()  # what stands for every track unknown to training
    return by_id(known, model.neighbours, model.neighbour_weights)


def test_the_model_carries_the_table_that_was_fitted(
    of_model: dict[tuple[str, str], float], tiny_dataset: Dataset, data: TrainingData
) -> None:
    table = teachers.fit(data, TINY_TRAINING.dim, TINY_TRAINING.seed).table
    fitted = by_id(list(tiny_dataset.track_ids), table.neighbours, table.weights)
    assert fitted == pytest.approx(of_model)
    assert len(fitted) > 10 * data.n_tracks


def test_the_bundle_carries_the_table_of_the_model(
    of_model: dict[tuple[str, str], float], tiny_bundle: Bundle, tiny_dataset: Dataset
) -> None:
    assert by_track(tiny_bundle.catalog, list(tiny_dataset.track_ids)) == of_model


def by_track(catalog: Catalog, ids: list[str]) -> dict[tuple[str, str], float]:
    """(track, neighbour) -> weight, of the tracks of a catalog whose rows are `ids`."""
    named = [f"?{line}" for line in range(len(catalog.neighbours))]
    for line, track in zip(catalog.item_rows.tolist(), ids, strict=True):
        if line:
            named[line] = track
    pairs = by_id(named, catalog.neighbours, catalog.neighbour_weights)
    return {pair: weight for pair, weight in pairs.items() if "?" not in pair[0] + pair[1]}


def other_catalogue(dataset: Dataset, folder: Path, gone: set[str], new: int) -> Dataset:
    """A dataset over the same tracks without those `gone` and with `new` ones, whose ids change all the rows."""
    kept = [track for track in dataset.track_ids if track not in gone]
    names = sorted([*kept, *(f"{'A' if i % 2 else 'Z'}new{i}" for i in range(new))])
    folder.mkdir()
    (folder / "plays.csv").write_text("user_id,track_id\n" + "".join(f"u{i % 7},{t}\n" for i, t in enumerate(names)))
    prepare(folder / "plays.csv", folder / "dataset", PrepareSettings(valid=0, test=0))
    return Dataset.open(folder / "dataset")


def test_a_catalogue_with_other_tracks_keeps_what_it_can(
    of_model: dict[tuple[str, str], float], tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    gone = set(tiny_dataset.track_ids[::3])
    changed = other_catalogue(tiny_dataset, tmp_path / "other", gone, 9)
    (tmp_path / "catalog").mkdir()
    catalog = catalog_writer.write_catalog(Model.open(tiny_model), changed, tmp_path / "catalog")
    expected = {pair: weight for pair, weight in of_model.items() if not gone & set(pair)}
    assert len(expected) < len(of_model)
    assert by_track(catalog, list(changed.track_ids)) == expected
    new = [row for row, track in enumerate(changed.track_ids) if "new" in track]
    assert len(new) == 9
    assert not catalog.item_rows[new].any()
    assert not catalog.neighbour_weights[0].any()
    # having played only what is new counts nothing for anything
    heard = catalog.item_rows[new]
    entry = np.zeros((len(heard), 3), np.float32)
    assert (item_item.scores(catalog.neighbours, catalog.neighbour_weights, heard, entry, catalog.item_rows) == 0).all()


def test_what_is_served_is_what_training_saw(tiny_bundle: Bundle, data: TrainingData) -> None:
    """Channel "all" of the bundle is the teacher's score of the same plays."""
    table = teachers.fit(data, TINY_TRAINING.dim, TINY_TRAINING.seed).table
    catalog = tiny_bundle.catalog
    users = np.flatnonzero(np.diff(data.train.offsets) > 0)[:20]
    for user in users:
        at = slice(data.train.offsets[user], data.train.offsets[user + 1])
        own = Histories.one(data.train.rows[at], data.train.counts[at], data.train.times[at])
        entry = data.spec.encode_users(data.profiles[[user]], own, data.tracks).entry
        played = catalog.item_rows[own.rows]
        served = item_item.scores(catalog.neighbours, catalog.neighbour_weights, played, entry, catalog.item_rows)
        taught = (teachers.matrix(own, data.n_tracks) @ table.matrix).toarray()[0]
        np.testing.assert_allclose(served[:, 0], taught, atol=1e-4)


def test_the_head_is_given_the_scores(tiny_bundle: Bundle) -> None:
    """Without the table the same user and tracks have other logits."""
    silent = dataclasses.replace(
        tiny_bundle.catalog, neighbour_weights=np.zeros_like(tiny_bundle.catalog.neighbour_weights)
    )
    bare = dataclasses.replace(tiny_bundle, catalog=silent)
    rows = np.arange(100)
    histories = Histories.one(np.arange(100, 130), np.ones(30, np.float32), np.arange(1, 31))
    names = [number.name for number in tiny_bundle.spec.user_numbers]
    names += [category.name for category in tiny_bundle.spec.user_categories]
    profile = tiny_bundle.spec.encode_profiles({name: [None] for name in names})
    encoded = tiny_bundle.spec.encode_users(profile, histories, tiny_bundle.catalog.tracks)
    vector = tiny_bundle.embed(encoded)
    assert np.abs(tiny_bundle.score(vector, encoded, rows)[0] - bare.score(vector, encoded, rows)[0]).max() > 1e-3
