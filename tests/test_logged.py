"""Logged answers as traffic: `lhydra index diff` and the gate ask what callers asked, as it was when they asked."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest

from lhydra.answers.entry import LoggedAnswer, to_line
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import current_bundle_id
from lhydra.cli import main
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import Query, UserState
from lhydra.errors import DataError
from lhydra.lists.file import RuleSets
from lhydra.recommender import Recommender
from lhydra.rules import Boost, Explore, Match, Rules
from lhydra.users.store import UserStore
from lhydra_index_builder import gate
from lhydra_index_builder.config import RebuildSettings
from lhydra_index_builder.diff import comparing
from lhydra_index_builder.held_out import UserSample
from lhydra_index_builder.logged import NO_TRAFFIC, Traffic, logged_traffic
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server import replaying
from lhydra_server.answers import AnswerSampler
from lhydra_server.interceptors import Call
from lhydra_server.outage_log import OutageLog
from lhydra_server.served import served_of
from lhydra_server.service import RecommenderService

HOME = Rules("home", caps=(("artist", 1),), boosts=(Boost(Match("genre", ("Jazz",)), 4.0),))
DRAWN = Rules("drawn", explore=Explore(3, 10))
USERS, LISTS = 15, 75


class Kept:
    """An answer log in memory."""

    def __init__(self) -> None:
        self.answers: list[LoggedAnswer] = []

    def wants(self, request_id: str) -> bool:
        return True

    def put(self, made: Any, seen_ns: int, n_bytes: int) -> None:
        self.answers.append(made())

    def close(self) -> None: ...


class Users:
    """The users of a dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self.states = dict(user_states(dataset, "now"))

    def get(self, user_id: str, deadline_s: float = 0) -> UserState | None:
        return self.states.get(user_id)


@pytest.fixture(scope="module")
def opened(tiny_store: Path) -> Bundle:
    return Bundle.open(tiny_store)


@pytest.fixture(scope="module")
def answers(opened: Bundle, tiny_dataset: Dataset) -> list[LoggedAnswer]:
    """What a service answered to requests of every kind."""
    served, kept = served_of(opened, Recommender(opened)), Kept()
    sampler = AnswerSampler(cast(Any, kept), served, 100)
    service = RecommenderService(served, cast(UserStore, Users(tiny_dataset)), max_k=100, answers=sampler)
    service.rule_sets = RuleSets({"home": HOME, "drawn": DRAWN}, HOME)
    some = opened.catalog.track_ids(np.arange(20))

    def call(name: str) -> Call:
        return Call(cast(grpc.ServicerContext, replaying._Context()), name, OutageLog())

    for i, user in enumerate(tiny_dataset.user_ids[:USERS]):
        plays = {"entries": [{"track_id": some[i]}]}
        asked: list[dict[str, Any]] = [
            {"user_id": user, "k": 10, "exclude_track_ids": some[:i]},
            {"user_id": user, "k": 5, "rules": {"off": True}, "repeat_policy": 1 + i % 4},
            {"user_id": f"nobody-{i}", "k": 10, "history": plays},
            {"user_id": user, "k": 7, "filter": {"max_year": 2015}, "rules": {"set": "drawn"}, "explain": True},
            {"user_id": user, "k": 9, "session": plays, "depth": 60},
        ]
        for number, request in enumerate(asked):
            service.Recommend(pb.RecommendRequest(**request), call(f"{i}/{number}"))
        service.SimilarTracks(pb.SimilarTracksRequest(track_ids=some[:2], k=5), call(f"{i}/similar"))
    return kept.answers


@pytest.fixture
def log(answers: list[LoggedAnswer], tmp_path: Path) -> Path:
    file = tmp_path / "answers" / "log.jsonl"
    file.parent.mkdir()
    file.write_bytes(b"".join(map(to_line, answers)))
    return file


def key(query: Query) -> Any:
    """What tells one of these queries from the others."""
    return query.k, query.seed, query.depth, query.exclude.tobytes(), query.state.heard.tobytes(), query.repeat


def traffic_of(log: Path, bundles: Sequence[Bundle], n: int = 1000) -> Traffic:
    return logged_traffic(log, bundles, n, pytest.fail)


def test_the_bundle_that_answered_answers_the_same(opened: Bundle, log: Path, answers: list[LoggedAnswer]) -> None:
    traffic = traffic_of(log, [opened])
    lists = [one for one in answers if one.method == "Recommend"]
    assert traffic.words == f"logged requests of {log} ({USERS} of SimilarTracks left out)"
    assert len(traffic.queries) == len(lists) == LISTS
    recommender = Recommender(opened)
    for query, then in zip(traffic.queries, lists, strict=True):
        found = recommender.recommend(query)
        assert tuple(opened.catalog.track_ids(found.rows)) == then.tracks
        assert tuple(found.scores.tolist()) == then.scores


def test_some_are_drawn_in_their_order(opened: Bundle, log: Path) -> None:
    every = [key(query) for query in traffic_of(log, [opened]).queries]
    places = [every.index(key(query)) for query in traffic_of(log, [opened], 20).queries]
    assert len(places) == 20
    assert places == sorted(set(places))
    assert places[-1] > 40  # not only the first


def test_what_a_bundle_cannot_be_asked_is_left_out_and_told(opened: Bundle, log: Path) -> None:
    class Lacking:
        def __init__(self, columns: dict[str, str]) -> None:
            self.filters, self.spec = type("", (), {"names": columns}), opened.spec

    columns = dict(opened.filters.names)
    lacking = cast(Bundle, Lacking({name: kind for name, kind in columns.items() if name != "year"}))
    traffic = traffic_of(log, [opened, lacking])
    left_out = f"{USERS} of SimilarTracks and {USERS} about columns that a bundle lacks left out"
    assert (len(traffic.queries), traffic.words) == (LISTS - USERS, f"logged requests of {log} ({left_out})")
    only = log.with_name("only.jsonl")
    only.write_bytes(
        b"".join(line for line in log.read_bytes().splitlines(keepends=True) if b'"SimilarTracks"' in line)
    )
    with pytest.raises(DataError) as caught:
        traffic_of(only, [opened])
    found = f"{USERS} of SimilarTracks and 0 about columns that a bundle lacks"
    assert str(caught.value) == f"{only}: found {found}, expected lists of Recommend"


def test_a_logged_request_that_is_none_is_told(opened: Bundle, log: Path, answers: list[LoggedAnswer]) -> None:
    broken = replace(answers[0], request=b"\xff\xff")
    (found,) = replaying.differences(broken, served_of(opened, Recommender(opened)))
    assert found["field"] == "answer"
    log.write_bytes(to_line(broken))
    with pytest.raises(DataError, match="no request"):
        traffic_of(log, [opened])


def test_diff_asks_them(tiny_store: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    current = current_bundle_id(tiny_store)
    found = comparing.between(tiny_store, current, current, requests=log, sample=1000).document()
    assert f"logged requests of {log} ({USERS} of SimilarTracks left out)" in found["asked"].values()
    assert LISTS in found["asked"].values()
    flags = ["--store", str(tiny_store), "--requests", str(log.parent)]
    assert main(["index", "diff", "previous", "current", *flags]) == 0
    assert f"logged requests of {log.parent}" in capsys.readouterr().out


def test_the_gate_compares_their_lists(
    tiny_store: Path, tiny_dataset: Dataset, opened: Bundle, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = UserSample([state for _, state in user_states(tiny_dataset, "now", positions=np.arange(20))])
    traffic, whole, asked = traffic_of(log, [opened], 10), Recommender.recommend, list[Query]()

    def counted(self: Recommender, query: Query, *check: Any) -> Any:
        asked.append(query)
        return whole(self, query, *check)

    def checks(traffic: Traffic) -> dict[str, gate.Check]:
        found = gate.check(tiny_store / opened.bundle_id, opened, opened, "", users, RebuildSettings(), traffic)
        return {check.name: check for check in found}

    monkeypatch.setattr(Recommender, "recommend", counted)
    with_log = checks(traffic)
    mine = [key(replace(query, k=gate.TOP_K)) for query in traffic.queries]
    counts = [sum(key(query) == one for query in asked) for one in mine]
    assert min(counts) >= 2  # by both bundles
    asked.clear()
    without = checks(NO_TRAFFIC)
    assert with_log["changed lists"].note == f"of {traffic.words} whose top 10 share nothing with before"
    assert without["changed lists"].note == "of users whose top 10 share nothing with before"
    assert {name: check.verdict for name, check in with_log.items()} == {
        name: check.verdict for name, check in without.items()
    }


def test_a_broken_answer_to_a_logged_request_is_refused(
    opened: Bundle, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic, whole = traffic_of(log, [opened]), Recommender.recommend
    wanted = key(next(query for query in traffic.queries if query.repeat == 2))

    def short(self: Recommender, query: Query, *check: Any) -> Any:
        found = whole(self, query, *check)
        return replace(found, rows=found.rows[:-1]) if key(query) == wanted else found

    assert gate.requests(Recommender(opened), [], traffic).verdict == "passed"
    monkeypatch.setattr(Recommender, "recommend", short)
    found = gate.requests(Recommender(opened), [], traffic)
    assert (found.verdict, found.note) == ("refused", "logged request: 4 tracks of 5")


def test_rebuild_refuses_what_is_no_log_before_it_works(
    tiny_store: Path, tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("what\n")
    flags = ["--store", str(tiny_store), "--model", str(tiny_model), "--data", str(tiny_dataset.path)]
    for wrong in (tmp_path / "notes", tmp_path / "none"):
        assert main(["index", "rebuild", *flags, "--requests", str(wrong)]) == 1
        said = capsys.readouterr().err
        expected = "an answer log of `lhydra serve --log-answers`: a file or its folder"
        assert said == f"lhydra index: {wrong}: found none, expected {expected}\n"


def test_rebuild_asks_the_log(
    tiny_store: Path, tiny_model: Path, tiny_dataset: Dataset, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(tiny_store, log.parent.parent / "store")
    flags = ["--store", str(store), "--model", str(tiny_model), "--data", str(tiny_dataset.path)]
    assert main(["index", "rebuild", *flags, "--requests", str(log)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"of logged requests of {log} ({USERS} of SimilarTracks left out) whose top 10 share" in said
