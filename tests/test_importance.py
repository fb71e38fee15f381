"""Permutation importance: shuffling encoded columns is shuffling raw ones; drops are those of the served lists."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lhydra.bundle.bundle import Bundle
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import Query, track_hashes
from lhydra.evaluation import importance
from lhydra.evaluation.importance import METRIC, STAGES, K, measure, shuffle_columns
from lhydra.evaluation.run import find_targets
from lhydra.recommender import Recommender

COLUMNS = [
    *(["energy"], ["valence"], ["energy", "valence"], ["year"], ["tempo", "year"]),
    *(["track_id"], ["artist"], ["genre"], ["tags"], ["genre", "tags", "artist"]),
]
OF_TRACKS = ("ids", "genre and tags", "content numbers", "popularity", "co-listening")


@pytest.fixture(scope="module")
def found(tiny_bundle: Bundle, tiny_dataset: Dataset) -> dict[str, Any]:
    targets = find_targets(tiny_dataset, "test")
    return {**measure(Recommender(tiny_bundle), tiny_dataset, targets, "test", 60, seed=0)}


@pytest.mark.parametrize("names", COLUMNS, ids="-".join)
def test_shuffled_encodings_are_encoded_shuffles(names: list[str], tiny_bundle: Bundle, tiny_dataset: Dataset) -> None:
    spec = tiny_bundle.spec
    known = {*(n.name for n in spec.track_numbers), *(c.name for c in spec.track_categories)}
    assert set(names) <= known | {bag.name for bag in spec.track_bags}
    raw = tiny_dataset.track_columns()
    source = np.random.default_rng(0).permutation(len(tiny_dataset.track_ids))
    mixed = {name: [column[i] for i in source] if name in names else column for name, column in raw.items()}
    got, expected = shuffle_columns(spec, spec.encode_tracks(raw), names, source), spec.encode_tracks(mixed)
    np.testing.assert_array_equal(got.dense, expected.dense)
    np.testing.assert_array_equal(got.ids, expected.ids)
    np.testing.assert_array_equal(got.bags, expected.bags)


def test_nobody_stays_in_place() -> None:
    for n in (2, 3, 10, 1000):
        source = importance._elsewhere(n, np.random.default_rng(n))
        assert sorted(source) == list(range(n))
        assert (source != np.arange(n)).all()


def test_every_input_is_measured_for_both_stages(found: dict[str, Any], tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.spec
    groups = {row["group"] for row in found["groups"]}
    assert groups == {"history", "demographics", *OF_TRACKS}
    parts = (spec.track_numbers, spec.track_categories, spec.track_bags, spec.user_numbers, spec.user_categories)
    assert {column.name for part in parts for column in part} <= {row["feature"] for row in found["features"]}
    for key in ("groups", "features"):
        pairs = [(row[key[:-1]], row["stage"]) for row in found[key]]
        assert len(set(pairs)) == len(pairs) == 2 * len({name for name, _ in pairs})
        for row in found[key]:
            assert row["low"] <= row["drop"] <= row["high"]
    assert found["metric"] == METRIC
    assert found["users"] == 60
    assert found["notes"] == []


def test_the_history_matters_most(found: dict[str, Any]) -> None:
    for stage in STAGES:
        drops = {row["group"]: row for row in found["groups"] if row["stage"] == stage}
        assert drops["history"]["drop"] > 0
        assert drops["history"]["drop"] > drops["demographics"]["drop"]
    retrieval = {row["group"]: row for row in found["groups"] if row["stage"] == "retrieval"}
    for key in ("drop", "low", "high"):
        for group in ("popularity", "co-listening"):  # which the head alone is given
            assert retrieval[group][key] == 0


def test_base_is_what_is_served(found: dict[str, Any], tiny_bundle: Bundle, tiny_dataset: Dataset) -> None:
    recommender = Recommender(tiny_bundle)
    targets = find_targets(tiny_dataset, "test").sample(60, 0)
    scores = []
    states = user_states(tiny_dataset, "test", positions=targets.users)
    for n, (_, state) in enumerate(states):
        rows = recommender.recommend(Query(k=K, state=state, known=True, exclude=state.heard)).rows
        wanted = tiny_bundle.catalog.rows(
            track_hashes([tiny_dataset.track_ids[t] for t in targets.tracks[targets.of(n)]])
        )
        gains = [1 / np.log2(place + 2) for place, row in enumerate(rows) if row in wanted]
        scores.append(sum(gains) / sum(1 / np.log2(place + 2) for place in range(min(K, len(wanted)))))
    assert found["base"] == pytest.approx(np.mean(scores))


def test_the_same_seed_gives_the_same_numbers(tiny_bundle: Bundle, tiny_dataset: Dataset) -> None:
    targets = find_targets(tiny_dataset, "valid")
    once, twice, other = (
        measure(Recommender(tiny_bundle), tiny_dataset, targets, "valid", 12, seed=seed) for seed in (3, 3, 4)
    )
    assert once == twice
    assert once != other


def test_an_input_left_as_it_is_drops_nothing(
    tiny_bundle: Bundle, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "_elsewhere", lambda n, rng: np.arange(n))
    monkeypatch.setattr(importance, "_mixed", lambda state, field, rng: state)
    targets = find_targets(tiny_dataset, "test")
    found = measure(Recommender(tiny_bundle), tiny_dataset, targets, "test", 15, seed=0)
    for row in found["groups"] + found["features"]:
        assert row["drop"] == pytest.approx(0, abs=1e-9), row


def test_a_shuffled_history_keeps_its_entries(tiny_dataset: Dataset) -> None:
    rng = np.random.default_rng(0)
    state = next(state for _, state in user_states(tiny_dataset, "test") if len(state.history) > 5)
    for field in ("track", "count"):
        mixed = importance._mixed(state, field, rng).history
        np.testing.assert_array_equal(mixed["time"], state.history["time"])
        assert sorted(mixed["count"]) == sorted(state.history["count"])
        assert sorted(mixed["track"]) == sorted(state.history["track"])
        assert (mixed[field] != state.history[field]).any()
    mixed = importance._mixed(state, "track", rng).history
    counts = dict(zip(state.history["track"].tolist(), state.history["count"].tolist(), strict=True))
    assert [counts[track] for track in mixed["track"].tolist()] == mixed["count"].tolist()


def test_without_the_item_tower_users_alone_are_measured(
    tiny_bundle: Bundle, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "_item_tower", lambda bundle: None)
    targets = find_targets(tiny_dataset, "test")
    found = measure(Recommender(tiny_bundle), tiny_dataset, targets, "test", 5, seed=0)
    assert {row["group"] for row in found["groups"]} == {"history", "demographics"}
    assert "item tower" in found["notes"][0]


def test_other_tracks_than_the_datasets(tiny_bundle: Bundle, tiny_dataset: Dataset) -> None:
    catalog = tiny_bundle.catalog
    other = replace(tiny_bundle, catalog=replace(catalog, dense=np.asarray(catalog.dense) + 1))
    targets = find_targets(tiny_dataset, "test")
    found = measure(Recommender(other), tiny_dataset, targets, "test", 5, seed=0)
    assert {row["group"] for row in found["groups"]} == {"history", "demographics"}
    assert "other tracks" in found["notes"][0]


def test_a_store_is_measured_too(tiny_store: Path, tiny_dataset: Dataset) -> None:
    targets = find_targets(tiny_dataset, "test")
    found = measure(Recommender(Bundle.open(tiny_store)), tiny_dataset, targets, "test", 5, seed=0)
    assert found["notes"] == []
    assert len(found["groups"]) == 14


def test_what_has_no_bundle_is_not_measured(tiny_dataset: Dataset) -> None:
    targets = find_targets(tiny_dataset, "test")
    fake: Any = SimpleNamespace(catalog=None)
    found = measure(fake, tiny_dataset, targets, "test", 5, seed=0)
    assert (found["groups"], found["features"]) == ([], [])
    assert found["base"] is None
    assert found["notes"]
