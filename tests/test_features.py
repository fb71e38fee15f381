"""The one definition of features: batch and single agree, every feature group has its effect, nothing leaks."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lhydra.errors import FeatureError
from lhydra.features.fit import fit_features
from lhydra.features.histories import Histories
from lhydra.features.spec import Encoded, FeatureSpec

AUDIO = ("danceability", "energy", "loudness", "valence", "tempo")
TRACK_KINDS = {
    "artist": "categorical", "genre": "categorical", "tags": "multi", "year": "year", "duration_ms": "numeric",
    **dict.fromkeys(AUDIO, "numeric"),
}  # fmt: skip
USER_KINDS = {"age": "numeric", "gender": "categorical", "region": "categorical", "country": "categorical"}
N = 40


def world() -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(3)
    tracks: dict[str, Any] = {
        "track_id": [f"t{i:02}" for i in range(N)],
        "artist": [f"artist {i % 5}" for i in range(N)],
        "genre": [("rock", "jazz", "folk")[i % 3] for i in range(N)],
        "tags": [["loud", "slow"][: 1 + i % 2] for i in range(N)],
        "year": [1990.0 + i % 30 for i in range(N)],
        "duration_ms": rng.uniform(1e5, 4e5, N).tolist(),
    } | {name: rng.random(N).tolist() for name in AUDIO}
    users = {
        "user_id": [f"u{i}" for i in range(10)],
        "age": [15.0 + 6 * i for i in range(10)],
        "gender": ["f", "m"] * 5,
        "region": ["north", "south"] * 5,
        "country": ["Chile", "Chad"] * 5,
    }
    return tracks, users


TRACKS, USERS = world()
SPEC = fit_features(TRACKS, USERS, TRACK_KINDS, USER_KINDS, np.arange(N) < 35)
ENCODED = SPEC.encode_tracks(TRACKS)

maybe_number = st.none() | st.floats(-1e6, 1e6) | st.just(float("nan"))
raw_track = st.fixed_dictionaries(
    {
        "track_id": st.sampled_from([*TRACKS["track_id"], "new"]),
        "artist": st.sampled_from(["artist 1", "nobody", None]),
        "genre": st.sampled_from(["rock", "polka", None]),
        "tags": st.none() | st.lists(st.sampled_from(["loud", "slow", "odd"]), max_size=4),
        "year": st.none() | st.floats(1900, 2030),
        "duration_ms": st.none() | st.floats(0, 1e7),
        **dict.fromkeys(AUDIO, maybe_number),
    }
)
entry = st.tuples(st.integers(0, N - 1), st.floats(1, 100), st.integers(0, 10**9))


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def histories(plays: list[list[tuple[int, float, int]]]) -> Histories:
    flat = [play for own in plays for play in own]
    offsets = np.cumsum([0, *map(len, plays)]).astype(np.int64)
    rows, counts, times = (np.array([play[i] for play in flat]) for i in range(3))
    return Histories(offsets, rows.astype(np.int64), counts.astype(np.float32), times.astype(np.int64))


def same(a: Encoded, b: Encoded) -> None:
    for name in ("dense", "ids", "bags"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@given(st.lists(raw_track, min_size=1, max_size=6))
def test_a_track_is_encoded_the_same_alone_and_in_a_batch(rows: list[dict[str, Any]]) -> None:
    whole = SPEC.encode_tracks(columns(rows))
    for i, row in enumerate(rows):
        same(whole[[i]], SPEC.encode_tracks(columns([row])))


@settings(deadline=None)
@given(st.lists(st.lists(entry, max_size=8), min_size=1, max_size=5))
def test_a_user_is_encoded_the_same_alone_and_in_a_batch(plays: list[list[tuple[int, float, int]]]) -> None:
    profiles = SPEC.encode_profiles(USERS)[: len(plays)]
    whole = SPEC.encode_users(profiles, histories(plays), ENCODED)
    for i, own in enumerate(plays):
        alone = SPEC.encode_users(profiles[[i]], histories([own]), ENCODED)
        taken = whole.take(np.array([i]))
        np.testing.assert_array_equal(taken.ids, alone.ids)
        np.testing.assert_allclose(taken.dense, alone.dense, atol=1e-6)
        np.testing.assert_allclose(taken.entry, alone.entry, atol=1e-6)
        assert np.isfinite(alone.dense).all()


def changed(before: Encoded, after: Encoded, names: tuple[str, ...], ids: tuple[str, ...]) -> set[str]:
    """Names of the encoded columns that differ."""
    found = {name for i, name in enumerate(names) if (before.dense[:, i] != after.dense[:, i]).any()}
    found |= {name for i, name in enumerate(ids) if (before.ids[:, i] != after.ids[:, i]).any()}
    return found | ({"bags"} if (before.bags != after.bags).any() else set())


@pytest.mark.parametrize(
    ("column", "value", "effect"),
    [
        ("artist", "artist 4", {"artist"}),
        ("genre", "jazz", {"genre", "genre*"}),
        ("tags", ["slow"], {"bags"}),
        ("year", 2019.0, {"year", "recency"}),
        ("duration_ms", 9e5, {"duration_ms"}),
        ("tempo", 0.99, {"tempo"}),
        ("danceability", 0.01, {"danceability"}),
        ("track_id", "t07", {"track_id"}),
    ],
)
def test_each_track_feature_changes_its_columns_and_no_other(column: str, value: Any, effect: set[str]) -> None:
    row = {name: [values[0]] for name, values in TRACKS.items()}
    ids = tuple(name for name, _ in SPEC.track_ids)
    before, after = SPEC.encode_tracks(row), SPEC.encode_tracks(row | {column: [value]})
    assert changed(before, after, SPEC.track_dense, ids) == effect


def test_the_mood_quadrant_follows_energy_and_valence() -> None:
    row = {name: [values[0]] * 5 for name, values in TRACKS.items()}
    row |= {"energy": [0.2, 0.2, 0.8, 0.8, None], "valence": [0.2, 0.8, 0.2, 0.8, 0.5]}
    at = [name for name, _ in SPEC.track_ids].index("quadrant")
    assert SPEC.encode_tracks(row).ids[:, at].tolist() == [1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("column", "value", "effect"),
    [
        ("age", 70.0, {"age", "age_group"}),
        ("age", None, {"age", "has_age", "age_group"}),
        ("gender", "m", {"gender"}),
        ("region", "south", {"region"}),
        ("country", "Chad", {"country"}),
    ],
)
def test_each_profile_feature_changes_its_columns_and_no_other(column: str, value: Any, effect: set[str]) -> None:
    row = {name: [values[0]] for name, values in USERS.items()}
    numbers = [name for number in SPEC.user_numbers for name in (number.name, f"has_{number.name}")]
    ids = tuple(name for name, _ in SPEC.user_ids)[: SPEC.encode_profiles(row).ids.shape[1]]
    before, after = SPEC.encode_profiles(row), SPEC.encode_profiles(row | {column: [value]})
    assert changed(before, after, tuple(numbers), ids) == effect


def test_preference_profile_and_patterns_are_those_of_the_history() -> None:
    profiles = SPEC.encode_profiles(USERS)[:1]
    plays = [(0, 1.0, 100), (3, 1.0, 200), (6, 1.0, 300)]  # all rock
    user = SPEC.encode_users(profiles, histories([plays]), ENCODED)
    column = {name: user.dense[0, i] for i, name in enumerate(SPEC.user_dense)}
    np.testing.assert_allclose(user.dense[0, SPEC.preference], ENCODED.dense[[0, 3, 6]].mean(0), atol=1e-6)
    assert column["genre_diversity"] == 0
    assert column["genre_focus"] == 1
    assert column["artist_diversity"] == 1
    assert column["tracks"] == pytest.approx(np.log1p(3) / 4)
    assert column["plays"] == pytest.approx(np.log1p(3) / 6)
    assert column["hours"] > 0
    ids = dict(zip((name for name, _ in SPEC.user_ids), user.ids[0], strict=True))
    genre = [name for name, _ in SPEC.track_ids].index("genre*")
    assert ids["top_genre"] == ENCODED.ids[0, genre]


@settings(deadline=None)
@given(st.lists(entry, min_size=1, max_size=8, unique_by=lambda play: play[0]), st.data())
def test_a_hidden_play_is_hidden_from_everything(plays: list[tuple[int, float, int]], data: st.DataObject) -> None:
    hidden = data.draw(st.integers(0, len(plays) - 1))
    profiles = SPEC.encode_profiles(USERS)[:2]
    without = [play for i, play in enumerate(plays) if i != hidden]
    pair = SPEC.encode_users(profiles, histories([without, plays]), ENCODED)
    alone = SPEC.encode_users(profiles[[0]], histories([without]), ENCODED)
    np.testing.assert_allclose(pair.take(np.array([0])).dense, alone.dense, atol=1e-6)
    np.testing.assert_array_equal(pair.take(np.array([0])).ids, alone.ids)


def test_entries_tell_count_gap_and_position() -> None:
    user = SPEC.encode_users(
        SPEC.encode_profiles(USERS)[:1], histories([[(0, 1.0, 10**6), (1, 9.0, 10**7), (2, 1.0, 2 * 10**7)]]), ENCODED
    )
    count, gap, position = user.entry.T
    assert count[1] > count[0] == count[2]
    assert gap[0] > gap[1] > gap[2] == 0
    assert position[0] > position[1] > position[2] == 0


def test_a_history_without_times_has_no_order() -> None:
    user = SPEC.encode_users(SPEC.encode_profiles(USERS)[:1], histories([[(0, 1.0, 0), (1, 2.0, 0)]]), ENCODED)
    assert not user.entry[:, 1:].any()


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_numbers_are_refused_by_name(value: float) -> None:
    with pytest.raises(FeatureError, match="tempo: found an infinite number, expected finite numbers"):
        SPEC.encode_tracks({"tempo": [value]})
    with pytest.raises(FeatureError, match="age"):
        SPEC.encode_profiles({"age": [value]})


def test_missing_and_unknown_values_are_the_default() -> None:
    nothing = SPEC.encode_tracks({"track_id": ["new"], "tempo": [None], "artist": ["nobody"]})
    assert not nothing.dense.any()
    assert not nothing.ids.any()
    assert not nothing.bags.any()
    same(nothing, SPEC.encode_tracks({"track_id": ["newer"], "tempo": ["abc"]}))
    same(nothing, SPEC.encode_tracks({"track_id": ["newer"], "tempo": ["inf"]}))


def test_only_trained_tracks_have_an_id() -> None:
    assert (ENCODED.ids[:35, 0] > 0).all()
    assert not ENCODED.ids[35:, 0].any()


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(FeatureError, match="lengths"):
        SPEC.encode_tracks({"track_id": ["a", "b"], "tempo": [1.0]})


def test_json_round_trip_and_fingerprint() -> None:
    again = FeatureSpec.from_json(SPEC.to_json())
    assert again == SPEC
    assert again.fingerprint == SPEC.fingerprint
    assert dataclasses.replace(SPEC, reference_year=1.0).fingerprint != SPEC.fingerprint
    same(again.encode_tracks(TRACKS), ENCODED)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 2}', SPEC.to_json()[:-30]])
def test_what_is_not_features_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(FeatureError, match=r"^features.json: found .*, expected features of format 2$"):
        FeatureSpec.from_json(text)


@pytest.mark.parametrize(("name", "value"), [("std", 0), ("std", -1.0), ("std", math.inf), ("mean", math.nan)])
def test_numbers_that_cannot_be_scaled_are_refused(name: str, value: float) -> None:
    raw = json.loads(SPEC.to_json())
    raw["user_numbers"][0][name] = value
    with pytest.raises(FeatureError, match=r"^features.json: found \w+ of mean .* and deviation .*, expected features"):
        FeatureSpec.from_json(json.dumps(raw))


@given(st.lists(st.floats(-1.7e308, 1.7e308), min_size=1, max_size=20), st.sampled_from([1.0, 1e-200, 1e-310]))
@example([1.7e308, -1.7e308], 1.0)
@example([1e200, 2e200, 3e200], 1.0)
@example([1.0, 2.0, 3.0], 1e-12)
@example([1.0, 2.0, 3.0], 1e-200)
def test_numbers_of_any_size_are_scaled(values: list[float], unit: float) -> None:
    values = [value * unit for value in values]
    tracks: dict[str, list[Any]] = {"track_id": [str(i) for i in range(len(values))], "size": [*values]}
    spec = fit_features(tracks, {}, {"size": "numeric"}, {}, np.ones(len(values), np.bool_))
    scaled = spec.encode_tracks(tracks).dense[:, 0].astype(np.float64)
    assert np.isfinite(scaled).all()
    assert (np.diff(scaled[np.argsort(values, kind="stable")]) >= 0).all(), "larger numbers stay no smaller"
    largest = max(map(abs, values))
    if largest > 1e-300 and max(values) / largest - min(values) / largest > 1e-6:
        assert scaled.max() > scaled.min()
