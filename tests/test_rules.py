"""Rules on a real bundle, in process and through a real server: what a list may hold, whoever asks."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import current_bundle_id
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import F32, I64, Query, Recommendation, Repeat, UserState
from lhydra.features.histories import EncodedUsers
from lhydra.features.moment import Moment
from lhydra.lists.calibration import error
from lhydra.lists.file import RuleSets
from lhydra.recommender import Recommender
from lhydra.rules import (
    Boost,
    Calibration,
    Collapse,
    Diversity,
    Explore,
    Fresh,
    Match,
    Pin,
    Rules,
)
from lhydra.users.store import open_users
from lhydra_client import Boost as AskedBoost
from lhydra_client import Client, InvalidRequest
from lhydra_client import Rules as AskedRules
from lhydra_server.app import Listener
from lhydra_server.config import WorkerSettings
from lhydra_server.served import open_served
from lhydra_server.service import RecommenderService

NOW = 1_700_000_000
EVERYTHING = Rules(
    "everything",
    caps=(("artist", 1), ("genre", 4)),
    collapse=Collapse(),
    diversity=Diversity(0.4),
    calibration=Calibration("genre", 0.5),
    boosts=(Boost(Match("genre", ("rock", "jazz")), 2.0),),
    fresh=Fresh(2, within=30),
    explore=Explore(2, pool=8),
)


@pytest.fixture(scope="module")
def opened(tiny_store: Path) -> tuple[Bundle, Recommender]:
    bundle = Bundle.open(tiny_store)
    return bundle, Recommender(bundle)


@pytest.fixture(scope="module")
def states(tiny_dataset: Dataset) -> list[UserState]:
    some = np.arange(0, len(tiny_dataset.user_ids), 25)
    return [*(state for _, state in user_states(tiny_dataset, "now", positions=some)), UserState()]


def ask(recommender: Recommender, state: UserState, k: int, rules: Rules | None, **more: object) -> Recommendation:
    query = Query(k, state, True, repeat=Repeat.EXCLUDE, now=NOW, rules=rules)
    return recommender.recommend(replace(query, **more))  # type: ignore[arg-type]


def artists(bundle: Bundle, found: Recommendation) -> list[str]:
    return bundle.catalog.artists(found.rows)


def test_a_rule_set_that_says_nothing_changes_nothing(
    opened: tuple[Bundle, Recommender], states: list[UserState]
) -> None:
    for state in states:
        plain, ruled = (ask(opened[1], state, 20, rules) for rules in (None, Rules()))
        assert ruled.rows.tolist() == plain.rows.tolist()
        assert ruled.scores == pytest.approx(plain.scores, abs=1e-6)
        assert ruled.applied == ()


@pytest.mark.parametrize("depth", [0, 20])
def test_caps_hold_while_the_catalogue_allows(
    opened: tuple[Bundle, Recommender], states: list[UserState], depth: int
) -> None:
    bundle, recommender = opened
    n_artists = len(set(bundle.catalog.artists(np.arange(len(bundle.catalog)))))
    for state in states:
        found = ask(recommender, state, 30, Rules(caps=(("artist", 1),)), depth=depth)
        assert len(found.rows) == 30
        assert max(Counter(artists(bundle, found)).values()) == 1
        assert not any(one.gave_way for one in found.applied)
    found = ask(recommender, UserState(), n_artists + 5, Rules(caps=(("artist", 1),)))
    assert len(set(found.rows.tolist())) == n_artists + 5
    assert len(set(artists(bundle, found))) == n_artists  # filled up only when every artist is there
    assert [one.gave_way for one in found.applied] == ["5 tracks pass it: no other candidate was left"]


@pytest.mark.parametrize(
    ("caps", "searches"),
    [
        ((("artist", 1),), 3),
        ((("genre", 1),), 2),
        ((("year", 1), ("genre", 2)), 3),
        ((("explicit", 1),), 1),
        ((("artist", 1), ("tags", 1)), 3),
    ],
)
def test_no_cap_makes_a_request_cost_without_bound(
    opened: tuple[Bundle, Recommender],
    states: list[UserState],
    monkeypatch: pytest.MonkeyPatch,
    caps: tuple[tuple[str, int], ...],
    searches: int,
) -> None:
    _, recommender = opened
    real, sizes = Bundle.score, list[int]()

    def counted(self: Bundle, vector: F32, user: EncodedUsers, rows: I64, moment: Moment | None) -> tuple[F32, F32]:
        sizes.append(len(rows))
        return real(self, vector, user, rows, moment)

    monkeypatch.setattr(Bundle, "score", counted)
    for state in states[:-1]:
        sizes.clear()
        found = ask(recommender, state, 40, Rules(caps=caps), depth=10)
        assert len(set(found.rows.tolist())) == 40
        assert max(sizes) <= 120  # three for each place
        assert len(sizes) <= 1 + searches


def test_other_candidates_are_looked_for_without_what_is_full(
    opened: tuple[Bundle, Recommender], states: list[UserState]
) -> None:
    bundle, recommender = opened
    columns, rows = recommender._ruled.columns, np.arange(len(bundle.catalog))
    listed = np.random.default_rng(0).permutation(rows)[:60]
    for column in ("artist", "genre", "tags", "year"):
        labels = columns.labels(column, rows)
        counts = np.bincount(columns.labels(column, rows).take(listed).codes, minlength=labels.size)
        expected = {row for row, codes in enumerate(labels.lists) if any(counts[code] >= 2 for code in codes)}
        assert set(columns.full(column, listed, 2).tolist()) == expected


def test_with_every_rule_there_are_exactly_k(opened: tuple[Bundle, Recommender], states: list[UserState]) -> None:
    bundle, recommender = opened
    for state in states:
        for k in (1, 10, 50):
            found = ask(recommender, state, k, EVERYTHING, seed=7)
            assert len(set(found.rows.tolist())) == k
            assert found.rows.tolist() == ask(recommender, state, k, EVERYTHING, seed=7).rows.tolist()
        all_of_them = ask(recommender, state, 1000, EVERYTHING)
        heard = len(bundle.catalog.rows(state.heard))
        assert len(set(all_of_them.rows.tolist())) == bundle.catalog.n_eligible - heard


def test_blocked_is_never_shown_and_pinned_always(opened: tuple[Bundle, Recommender], states: list[UserState]) -> None:
    bundle, recommender = opened
    ids = bundle.catalog.track_ids(np.arange(len(bundle.catalog)))
    for i, state in enumerate(states):
        best = ask(recommender, state, 10, None)
        away = (artists(bundle, best)[0],)
        gone = bundle.catalog.track_ids(best.rows[1:2])[0]
        rows = np.random.default_rng(i).permutation(len(ids))[:3]
        kept = [
            row for row in rows.tolist() if bundle.catalog.artists(np.array([row]))[0] not in away and ids[row] != gone
        ]
        rules = replace(
            EVERYTHING,
            blocks=(Match("artist", away), Match(tracks=(gone,))),
            pins=tuple(
                Pin(Match(tracks=(ids[row],)), place) for row, place in zip(rows.tolist(), (1, 5, 40), strict=True)
            ),
        )
        found = ask(recommender, state, 10, rules, seed=i)
        assert not set(away) & set(artists(bundle, found))
        assert gone not in bundle.catalog.track_ids(found.rows)
        assert set(kept) <= set(found.rows.tolist())
        if int(rows[0]) in kept:
            assert found.rows[0] == rows[0]
        assert len(found.rows) == 10


def test_a_pin_obeys_exclusions_filters_and_its_dates(
    opened: tuple[Bundle, Recommender], states: list[UserState]
) -> None:
    bundle, recommender = opened
    row = int(ask(recommender, states[0], 50, None).rows[49])
    track = bundle.catalog.track_ids(np.array([row]))[0]

    def listed(rules: Rules, **more: object) -> list[int]:
        return [int(one) for one in ask(recommender, states[0], 10, rules, **more).rows]

    pinned = Rules(pins=(Pin(Match(tracks=(track,)), 3),))
    assert listed(pinned)[2] == row
    found = ask(recommender, states[0], 10, pinned, exclude=bundle.catalog.hashes[bundle.catalog.hash_rows == row])
    assert row not in found.rows
    assert [one.gave_way for one in found.applied] == ["1 pinned tracks are unknown, blocked, excluded or filtered out"]
    for since, until, shown in ((0, NOW, False), (0, NOW + 1, True), (NOW + 1, 0, False), (NOW, 0, True)):
        dated = Rules(pins=(Pin(Match(tracks=(track,), since=since, until=until), 3),))
        assert (row in listed(dated)) is shown
    unknown = ask(recommender, states[0], 10, Rules(pins=(Pin(Match(tracks=("no such",)), 1),)))
    assert unknown.applied[0].gave_way.startswith("1 pinned tracks are unknown")


def test_boosted_tracks_rise_and_buried_ones_fall(opened: tuple[Bundle, Recommender], states: list[UserState]) -> None:
    bundle, recommender = opened
    plain = ask(recommender, states[0], 50, None)
    artist = artists(bundle, plain)[10]

    def places(factor: float) -> list[int]:
        rules = Rules(boosts=(Boost(Match("artist", (artist,)), factor),))
        return [i for i, one in enumerate(artists(bundle, ask(recommender, states[0], 50, rules))) if one == artist]

    assert places(1e6)[0] == 0
    assert places(1)[0] <= 10
    assert places(1e-6) == []


def test_calibration_error_never_rises_on_a_model(opened: tuple[Bundle, Recommender], states: list[UserState]) -> None:
    bundle, recommender = opened
    columns = recommender._ruled.columns
    errors = []
    for state in states[:-1]:
        own = columns.labels("genre", np.setdiff1d(bundle.catalog.rows(state.history["track"]), [-1])).shares()
        lists = (
            ask(recommender, state, 20, Rules(calibration=Calibration("genre", strength) if strength else None))
            for strength in (0, 0.5, 0.99)
        )
        errors.append([error(own, columns.labels("genre", one.rows).shares()) for one in lists])
    for before, after, most in errors:
        assert after <= before + 1e-9
        assert most <= before + 1e-9
    assert np.mean(errors, axis=0)[2] < 0.5 * np.mean(errors, axis=0)[0]


def test_new_tracks_have_their_places(opened: tuple[Bundle, Recommender], states: list[UserState]) -> None:
    bundle, recommender = opened
    years = recommender._ruled.columns.numbers("year", np.arange(len(bundle.catalog)))
    assert years is not None
    since = float(np.sort(years[~np.isnan(years)])[-40])
    for state in states:
        found = ask(recommender, state, 10, Rules(fresh=Fresh(3, since=since)))
        assert int((years[found.rows] >= since).sum()) >= 3 or any(one.gave_way for one in found.applied)


# -- through a server ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    users = open_users(None, tiny_store, create=False)
    served = open_served(WorkerSettings(str(tiny_store), current_bundle_id(tiny_store), ""))
    service = RecommenderService(served, users, max_k=500)
    service.rule_sets = RuleSets({"radio": Rules("radio", caps=(("artist", 1),)), "loose": Rules("loose")})
    listener = Listener(service, "127.0.0.1:0", max_in_flight=32, connection_age_s=600)
    listener.start()
    with Client(f"127.0.0.1:{listener.port}", timeout_s=30) as client:
        yield client
    listener.stop(0)
    users.close()


def test_a_request_names_a_set_and_says_what_differs(client: Client) -> None:
    def most(**asked: object) -> int:
        answer = client.recommend("u0000001", 30, **asked)  # type: ignore[arg-type]
        return max(Counter(track.artist for track in answer.tracks).values())

    assert most() > 2
    assert most(rules="radio") == 1
    assert most(max_per_artist=2) == 2
    assert most(rules="radio", max_per_artist=2) == 1  # the smaller holds
    assert most(rules=AskedRules(set="radio", caps={"artist": 2})) == 2
    assert most(rules=AskedRules(set="radio", caps={"artist": 0})) == most()
    assert most(rules=AskedRules(caps={"artist": 3}), max_per_artist=2) == 2


def test_the_answer_tells_what_rules_did(client: Client) -> None:
    plain = client.recommend("u0000001", 30)
    answer = client.recommend("u0000001", 30, rules="radio")
    assert plain.rules_applied == ()
    assert not any(track.moved_by or track.propensity for track in plain.tracks)
    (cap,) = answer.rules_applied
    before = {track.track_id for track in plain.tracks}
    new = [track for track in answer.tracks if track.track_id not in before]
    assert (cap.rule, cap.moved, cap.gave_way) == ("cap artist", len(new), "")
    assert all(track.moved_by == ("cap artist",) for track in new)
    assert all(track.title and track.artist and track.score > 0 for track in answer.tracks)


def test_exploration_is_drawn_by_the_seed(client: Client) -> None:
    rules = AskedRules(explore_slots=3)
    lists = [
        [track.track_id for track in client.recommend("u0000001", 10, rules=rules, seed=seed).tracks]
        for seed in (5, 5, *range(10, 30))
    ]
    assert lists[0] == lists[1]
    assert len({tuple(one) for one in lists}) > 10
    chances = [track.propensity for track in client.recommend("u0000001", 10, rules=rules, seed=5).tracks]
    assert sum(0 < chance < 1 for chance in chances) == 3
    assert sum(chance == 1 for chance in chances) == 7


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rules": "rodio"}, "rules.set: found 'rodio', expected the name of a rule set (radio, loose)"),
        ({"rules": AskedRules(set="radio", off=True)}, "rules.off: found true beside set 'radio'"),
        ({"rules": AskedRules(caps={"mood": 2})}, "rules.caps: found 'mood', expected a column of the bundle"),
        ({"rules": AskedRules(caps={"artist": 2**32 - 1})}, "rules.caps['artist']: found 4.29497e+09"),
        ({"rules": AskedRules(calibrate="mood")}, "rules.calibration.column: found 'mood'"),
        ({"rules": AskedRules(calibrate="year")}, "rules.calibration.column: found year, which is year"),
        ({"rules": AskedRules(calibrate="genre", calibration=2)}, "rules.calibration.strength: found 2"),
        ({"rules": AskedRules(boosts=[AskedBoost("genre", ["rock"], 0)])}, "rules.boosts[0].factor: found 0"),
        ({"rules": AskedRules(boosts=[AskedBoost("genre", [], 2)])}, "rules.boosts[0].values: found 0 values"),
        ({"rules": AskedRules(block={"": ["x"]})}, "rules.blocks[0].column: found 0 characters"),
        ({"rules": AskedRules(block={"year": ["soon"]})}, "rules.blocks: found 'soon', expected numbers"),
        ({"rules": AskedRules(explore_slots=2**31)}, "rules.explore_slots: found 2.14748e+09"),
        ({"diversity": 1.5}, "diversity.strength: found 1.5, expected 0 to 1"),
        ({"diversity": float("nan")}, "diversity.strength: found nan"),
        ({"max_per_artist": 2**32 - 1}, "diversity.max_per_artist: found 4.29497e+09"),
    ],
)
def test_bad_rules_are_refused_by_name(client: Client, asked: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.recommend("u0000001", 10, **asked)  # type: ignore[arg-type]
    assert message in str(refused.value)


def test_the_times_of_the_stages_are_parts_of_the_whole(
    opened: tuple[Bundle, Recommender], states: list[UserState]
) -> None:
    """No stage is timed twice, with rules or without, known to us or not."""
    for state in (UserState(), states[0]):
        for rules in (None, EVERYTHING):
            started_ns = time.perf_counter_ns()
            found = ask(opened[1], state, 20, rules)
            assert 0 < sum(found.stage_us.values()) <= (time.perf_counter_ns() - started_ns) / 1000
