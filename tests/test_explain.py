"""Explain: the way of one track through one request, held to the list that is served and to a brute-force oracle."""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import current_bundle_id
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import Condition, Query, Recommendation, Repeat, UserState, no_hashes, track_hashes
from lhydra.explain.explainer import Explainer
from lhydra.explain.path import path_of
from lhydra.explain.pulls import groups_of, plays_of
from lhydra.explain.reasons import reasons_of
from lhydra.recommender import Recommender
from lhydra.repeats import repeats_of
from lhydra.rules import Boost, Calibration, Collapse, Diversity, Explore, Fresh, Match, Pin, Rules
from lhydra.traced import no_check
from lhydra.users.store import open_users
from lhydra_client import Client, Filter, InvalidRequest, recommend_request
from lhydra_client import Condition as Condition_
from lhydra_client import Rules as AskedRules
from lhydra_client.command import configure, run
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.app import Listener
from lhydra_server.config import WorkerSettings
from lhydra_server.served import open_served
from lhydra_server.service import RecommenderService

NOW = 1_700_000_000
ONE_BY_ONE = {
    "none": None,
    "cap": Rules(caps=(("artist", 1), ("genre", 4))),
    "collapse": Rules(collapse=Collapse()),
    "dpp": Rules(diversity=Diversity(0.4)),
    "mmr": Rules(diversity=Diversity(0.6, "mmr")),
    "calibration": Rules(calibration=Calibration("genre", 0.7)),
    "boost": Rules(boosts=(Boost(Match("genre", ("rock", "jazz", "pop")), 3.0),)),
    "fresh": Rules(fresh=Fresh(3, within=30)),
    "explore": Rules(explore=Explore(3, pool=9)),
    "block": Rules(blocks=(Match("genre", ("rock",)), Match(tracks=("t00007",)))),
    "pin": Rules(pins=(Pin(Match(tracks=("t00003",)), 2),)),
}
FILTERS = ((), (Condition("year", min=2000, where="filter.min_year"),))


@pytest.fixture(scope="module")
def recommender(tiny_store: Path) -> Recommender:
    return Recommender(Bundle.open(tiny_store), 60)


@pytest.fixture(scope="module")
def states(tiny_dataset: Dataset) -> list[UserState]:
    some = np.arange(0, len(tiny_dataset.user_ids), 60)
    return [*(state for _, state in user_states(tiny_dataset, "now", positions=some)), UserState({"country": "Chile"})]


def rules_of(recommender: Recommender, name: str) -> Rules | None:
    """The rule set of that name, with tracks of this catalog in place of those it names."""
    rules = ONE_BY_ONE[name]
    ids = recommender.catalog.track_ids(np.array([7, 3]))
    if name == "pin":
        return Rules(pins=(Pin(Match(tracks=(ids[1],)), 2), Pin(Match(tracks=(ids[0],)), 9)))
    if name == "block":
        assert rules is not None
        return replace(rules, blocks=(rules.blocks[0], Match(tracks=(ids[0],))))
    return rules


@pytest.mark.parametrize("name", ONE_BY_ONE)
@pytest.mark.parametrize("repeat", list(Repeat))
@pytest.mark.parametrize("conditions", FILTERS)
def test_the_place_is_the_real_one_for_every_track(
    recommender: Recommender, states: list[UserState], name: str, repeat: Repeat, conditions: tuple[Condition, ...]
) -> None:
    catalog, explainer = recommender.catalog, Explainer(recommender)
    k, turn = 10, list(ONE_BY_ONE).index(name) + int(repeat) + len(conditions)
    for state in (states[turn % (len(states) - 1)], *(states[-1:] if repeat is Repeat.EXCLUDE else ())):
        query = Query(k, state, True, repeat=repeat, now=NOW, rules=rules_of(recommender, name), seed=5)
        query = replace(query, filter=conditions, exclude=catalog.hashes[:2])
        served = recommender.recommend(query)
        places = {row: place for place, row in enumerate(served.rows.tolist(), 1)}
        traced = explainer.trace(query, no_check)
        for row in range(len(catalog)):
            path = path_of(recommender, traced, row)
            assert path.place == places.get(row, 0)
            assert (path.stopped_at == "") == (row in places)
            assert (path.stopped_by == "") == (row in places)
            if row in places:
                assert path.is_candidate
                assert path.sources
                assert path.score == pytest.approx(float(served.scores[path.place - 1]), abs=1e-6)
                if path.steps:
                    last = path.steps[-1]
                    assert last.after == path.place or name == "pin" or "pin" in served.moved_by[path.place - 1]


def columns(dataset: Dataset, bundle: Bundle) -> list[dict[str, Any]]:
    table = dataset.tracks.to_pylist() if hasattr(dataset.tracks, "to_pylist") else []
    by_id = {one["track_id"]: one for one in table}
    return [by_id[name] for name in bundle.catalog.track_ids(np.arange(len(bundle.catalog)))]


def oracle(recommender: Recommender, query: Query, row: int, tracks: list[dict[str, Any]]) -> tuple[str, str]:
    """Where a track stops in a request without rules, and by what: by plain Python over plain values."""
    catalog = recommender.catalog
    own = track_hashes(catalog.track_ids(np.array([row])))[0]
    track, wanted = tracks[row], []
    if own in query.exclude:
        wanted.append("exclude_track_ids")
    for one in query.filter:
        said = track[one.column]
        if one.min is not None and not (said is not None and said >= one.min):
            wanted.append(one.where)
        if one.any_of and said not in one.any_of:
            wanted.append(one.where)
    if query.repeat is not Repeat.ALLOW and own in query.state.heard:
        last = dict(zip(query.state.history["track"].tolist(), query.state.history["time"].tolist(), strict=True))
        days = (query.now - last.get(int(own), 0)) / 86_400
        if query.repeat is not Repeat.DECAY or last.get(int(own), 0) <= 0 or days < 7:
            wanted.append("heard")
    if wanted:
        return "exclude", ",".join(sorted(wanted))
    served = recommender.recommend(query)
    if row in served.rows:
        return "", ""
    if len(served.rows) < query.k:
        raise AssertionError("fewer than k and still not listed")
    if served.tier.label != "popular" and row not in served.candidates:
        return "retrieve", ""
    return ("select" if served.tier.label == "popular" else "rerank"), ""


def test_why_not_is_right_for_a_thousand_random_pairs(
    recommender: Recommender, states: list[UserState], tiny_dataset: Dataset
) -> None:
    rng, bundle = random.Random(16), recommender.bundle
    tracks = columns(tiny_dataset, bundle)
    genres = sorted({one["genre"] for one in tracks if one["genre"]})
    seen = set()
    for _ in range(50):
        conditions = []
        if rng.random() < 0.4:
            conditions.append(Condition("year", min=float(rng.randint(1980, 2015)), where="filter.min_year"))
        if rng.random() < 0.4:
            conditions.append(Condition("genre", any_of=tuple(rng.sample(genres, 3)), where="filter.genres"))
        exclude = bundle.catalog.hashes[rng.sample(range(400), 40)] if rng.random() < 0.5 else no_hashes()
        query = Query(
            *(rng.choice([1, 10, 40]), rng.choice(states), True, exclude, rng.choice([0, 20, 100])),
            *(rng.choice([Repeat.EXCLUDE, Repeat.ALLOW, Repeat.DECAY]), tuple(conditions), NOW),
        )
        traced = Explainer(recommender).trace(query, no_check)
        for row in rng.sample(range(len(bundle.catalog)), 20):
            path = path_of(recommender, traced, row)
            expected, by = oracle(recommender, query, row, tracks)
            assert (path.stopped_at, ",".join(sorted(path.dropped_by))) == (expected, by)
            seen.add(expected)
            if path.exact_rank and not path.dropped_by:
                vectors = np.asarray(bundle.catalog.vectors, np.float32)
                assert traced.vector is not None
                near = vectors @ traced.vector[0]
                out = set(traced.excluded.tolist()) | set(bundle.catalog.removed.tolist())
                mask = traced.eligible.mask if traced.eligible else np.ones(len(near), bool)
                better = [i for i in range(len(near)) if mask[i] and i not in out and near[i] > near[row] + 1e-6]
                nearly = [i for i in range(len(near)) if mask[i] and i not in out and near[i] > near[row] - 1e-6]
                assert len(better) < path.exact_rank <= len(nearly)
    assert seen == {"", "exclude", "retrieve", "rerank", "select"}


def test_a_track_that_the_catalogue_lacks_is_told(recommender: Recommender, states: list[UserState]) -> None:
    explainer = Explainer(recommender)
    traced = explainer.trace(Query(10, states[0], True, now=NOW), no_check)
    found = explainer.explain(traced, "no such track", 100, lambda tries: [None] * len(tries))
    assert (found.path.stopped_at, found.path.stopped_by, found.path.place) == ("catalogue", "unknown", 0)


@pytest.fixture(scope="module")
def client(tiny_store: Path) -> Iterator[Client]:
    users = open_users(None, tiny_store, create=False)
    served = open_served(WorkerSettings(str(tiny_store), current_bundle_id(tiny_store), ""))
    service = RecommenderService(served, users, max_k=500)
    listener = Listener(service, "127.0.0.1:0", max_in_flight=32, connection_age_s=600)
    listener.start()
    with Client(f"127.0.0.1:{listener.port}", timeout_s=30) as client:
        yield client
    listener.stop(0)
    users.close()


@pytest.fixture(scope="module")
def user(tiny_dataset: Dataset) -> str:
    return str(next(name for name, state in user_states(tiny_dataset, "now") if len(state.history) > 20))


ASKED: list[dict[str, Any]] = [
    {},
    {"max_per_artist": 1, "repeat": "allow"},
    {"rules": AskedRules(explore_slots=3, calibrate="genre"), "seed": 9, "depth": 40},
    {"profile": {"country": "Chile"}, "history": ["t00001", "t00017"]},
]


@pytest.mark.parametrize("asked", ASKED)
def test_a_server_explains_the_list_that_it_gives(client: Client, user: str, asked: dict[str, Any]) -> None:
    for name in (user, "nobody"):
        listed = {track.track_id: place for place, track in enumerate(client.recommend(name, 12, **asked).tracks, 1)}
        request = recommend_request(name, 12, **asked)
        for track in [*listed, *(f"t{n:05}" for n in range(1, 400, 23)), "no such track"]:
            found = client.explain(name, track, request)
            assert (found.rank, found.recommended) == (listed.get(track, 0), track in listed)
            assert found.k == 12
            assert bool(found.stopped_at) == (track not in listed)


def test_the_short_form_asks_for_ten(client: Client, user: str) -> None:
    tracks = client.recommend(user).tracks
    assert [client.explain(user, track.track_id).rank for track in tracks] == list(range(1, 11))
    found = client.explain(user, tracks[3].track_id)
    assert (found.title, found.artist, found.tier, found.k) == (tracks[3].title, tracks[3].artist, "personal", 10)
    assert found.score == pytest.approx(tracks[3].score, abs=1e-6)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.ExplainRequest(user_id="ann"), "track_id: found 0 characters"),
        (pb.ExplainRequest(track_id="t1"), "user_id: found 0 characters"),
        (
            pb.ExplainRequest(user_id="ann", track_id="t1", request=pb.RecommendRequest(user_id="bob")),
            "user_id: found 'ann' beside request.user_id 'bob', expected one user",
        ),
        (
            pb.ExplainRequest(user_id="ann", track_id="t1", request=pb.RecommendRequest(k=501)),
            "k: found 501, expected 1 to 500",
        ),
    ],
)
def test_bad_requests_are_refused_by_name(client: Client, request_: pb.ExplainRequest, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client._call(client._stub.Explain, request_, None)
    assert message in str(refused.value)


def test_query_explain_reads_well(client: Client, user: str, capsys: pytest.CaptureFixture[str]) -> None:
    address = client._server
    parser = argparse.ArgumentParser()
    configure(parser)

    def said(*argv: str) -> str:
        assert run(parser.parse_args(["explain", *argv, "--address", address])) == 0
        return capsys.readouterr().out

    track = client.recommend(user, 5).tracks[1].track_id
    lines = said(user, track, "--k", "5").splitlines()
    assert f"({track}) for user {user}: place 2 of 5 · tier personal · bundle " in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["exclude", "retrieve", "rerank"]
    assert "exclude    the request excludes it" in said(user, track, "--exclude", track).splitlines()
    assert "the bundle being served does not hold this track" in said(user, "nothing")
    assert json.loads(said(user, track, "--json"))["rank"] == 2


def test_a_pull_is_what_the_track_loses_without_the_play(recommender: Recommender, states: list[UserState]) -> None:
    explainer = Explainer(recommender)
    for state in (one for one in states if len(one.history) > 3):
        traced = explainer.trace(Query(10, state, True, repeat=Repeat.ALLOW, now=NOW), no_check)
        assert traced.answer is not None
        for row in traced.answer.rows[:3].tolist():
            pulls = plays_of(recommender, traced, row)
            rows = recommender.catalog.rows(state.history["track"])
            assert {one.row for one in pulls} <= set(rows.tolist()) - {row}
            assert len(pulls) == min(64, len(rows) - int(row in rows))
            assert [one.logit for one in pulls] == sorted((one.logit for one in pulls), reverse=True)
            asked = np.array([row])
            full = float(recommender.score(state, asked, NOW)[0][0])
            for one in pulls:
                kept = rows != one.row
                recent = state.recent[recommender.catalog.rows(state.recent["track"]) != one.row]
                less = replace(state, history=state.history[kept], repeats=repeats_of(state)[kept], recent=recent)
                without = float(recommender.score(less, asked, NOW)[0][0])
                assert one.logit == pytest.approx(full - without, abs=2e-5)
            groups = {one.name: one.logit for one in groups_of(recommender, traced, row)}
            assert {"history", "ids", "genre and tags", "content numbers", "popularity", "co-listening"} <= set(groups)
            nobody = recommender.score(UserState(state.profile), asked, NOW)[0]
            assert groups["history"] == pytest.approx(full - float(nobody[0]), abs=1e-4)


BROUGHT: list[dict[str, Any]] = [
    *ASKED,
    {"depth": 12},
    {"filter": Filter(min_year=2005, conditions=[Condition_("genre", none_of=["rock"]), Condition_("year", max=2015)])},
    {"max_per_artist": 1, "rules": AskedRules(block={"genre": ["pop"]}), "depth": 60},
]


@pytest.mark.parametrize("asked", BROUGHT)
def test_what_would_bring_it_in_does_when_it_is_served(client: Client, user: str, asked: dict[str, Any]) -> None:
    some = [track.track_id for track in client.recommend(user, 60, depth=300, repeat="allow").tracks[::6]]
    some += [f"t{n:05}" for n in range(1, 400, 37)]
    request = recommend_request(user, 10, exclude=some[:2], **asked)
    brought = 0
    for track in some:
        found = client.explain(user, track, request)
        assert not (found.recommended and found.would_bring_in)
        for one in found.would_bring_in:
            served = client._call(client._stub.Recommend, one.request, None)
            listed = [scored.track_id for scored in served.tracks]
            assert listed.index(track) + 1 == one.place
            assert one.changes
            brought += 1
        if "heard" in found.dropped_by and found.would_bring_in:
            assert all("repeats allowed" in one.changes for one in found.would_bring_in)
    assert brought > 5


def test_reasons_are_given_only_where_the_trace_says_so(client: Client, user: str) -> None:
    fresh = AskedRules()
    asked: list[tuple[str, dict[str, Any]]] = [
        (user, {}),
        (user, {"max_per_artist": 1, "rules": fresh, "repeat": "allow"}),
        ("nobody", {}),
        ("nobody", {"profile": {"country": "Chile"}}),
    ]
    said = set()
    for name, more in asked:
        plain, told = (client.recommend(name, 12, explain=explain, **more).tracks for explain in (False, True))
        assert [replace(one, sources=(), reasons=()) for one in told] == list(plain)
        for one in told:
            found = client.explain(name, one.track_id, recommend_request(name, 12, **more))
            assert one.sources == found.sources
            pulls = [f"because you play {pull.title} by {pull.artist}" for pull in found.pulls]
            for reason in one.reasons:
                said.add(reason.split()[0])
                if reason.startswith("because you play "):
                    assert reason == pulls[0]
                elif reason.startswith("popular"):
                    assert ("in Chile" in reason) == ("chart" in found.sources)
                    assert found.tier == "popular"
                else:
                    raise AssertionError(reason)
            assert bool(one.reasons) == bool(found.tier == "popular" or (found.pulls and found.pulls[0].logit >= 0.05))
    assert said == {"because", "popular"}


@pytest.mark.parametrize("known", [True, False])
def test_a_track_that_only_a_pin_brought_is_told_as_pinned(
    recommender: Recommender, states: list[UserState], known: bool
) -> None:
    state, catalog = (states[0] if known else UserState()), recommender.catalog
    plain = recommender.recommend(Query(5, state, known, now=NOW))
    heard = catalog.rows(state.heard)
    rarest = np.argsort(catalog.share, kind="stable")
    rarest = rarest[~np.isin(rarest, np.concatenate([plain.candidates, plain.rows, heard]))]
    for row, alone in ((rarest[0], True), (plain.rows[4], False)):
        pin = Rules(pins=(Pin(Match(tracks=tuple(catalog.track_ids(np.array([row])))), 1),))
        query = Query(5, state, known, now=NOW, rules=pin, explain=True)
        (found,) = Explainer(recommender).recommend_many([(query, no_check)])
        assert not isinstance(found, Exception)
        assert found.rows[0] == row
        assert (found.sources[0] == ("pinned",)) == alone
        assert "pinned" in found.sources[0]
        if not known:
            assert any("popular" in reason for reason in found.reasons[0]) != alone
            assert all(any("popular" in reason for reason in reasons) for reasons in found.reasons[1:])


def test_a_new_track_is_told_as_new_only_where_a_place_was_kept_for_it(
    recommender: Recommender, states: list[UserState]
) -> None:
    query = Query(20, states[0], True, now=NOW, rules=rules_of(recommender, "fresh"), explain=True)
    (found,) = Explainer(recommender).recommend_many([(query, no_check)])
    assert not isinstance(found, Exception)
    artists = recommender.catalog.artists(found.rows)
    new = [f"new from {artist}" in reasons for artist, reasons in zip(artists, found.reasons, strict=True)]
    assert new == ["fresh" in moved_by for moved_by in found.moved_by]
    assert recommender.recommend(query).reasons == ()


def test_the_time_of_reasons_is_no_waiting(
    recommender: Recommender, states: list[UserState], monkeypatch: pytest.MonkeyPatch
) -> None:
    took_ns, clock = 0, time.perf_counter_ns

    def slow(*given: Any) -> Any:
        nonlocal took_ns
        took_ns += 3_600 * 10**9
        return reasons_of(*given)

    monkeypatch.setattr("lhydra.explain.explainer.reasons_of", slow)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock() + took_ns)
    (found,) = Explainer(recommender).recommend_many([(Query(5, states[0], True, now=NOW, explain=True), no_check)])
    assert isinstance(found, Recommendation)
    assert found.stage_us["select"] >= 3_600 * 10**6
