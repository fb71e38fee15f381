"""Explain with a model that knows what comes next: its places, sources, pulls and words, held to what is served."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest

from lhydra.bundle import folded_head
from lhydra.bundle.arrays import write_npz
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.candidates import moment_of
from lhydra.bundle.manifest import current_bundle_id
from lhydra.data.dataset import Dataset, user_states
from lhydra.data.plays import with_plays
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.data.synth import write_world
from lhydra.domain import I64, Condition, Query, Repeat, UserState, track_hashes
from lhydra.errors import BundleMismatch
from lhydra.evaluation.lists import write_lists
from lhydra.explain.explainer import Explainer
from lhydra.explain.path import path_of
from lhydra.explain.pulls import falls_of, groups_of, plays_of
from lhydra.features.moment import SIGNALS
from lhydra.queries import Request, known_user, to_query
from lhydra.recommender import Recommender
from lhydra.repeats import repeats_of
from lhydra.rules import Diversity, Rules
from lhydra.traced import Traced, no_check
from lhydra.training.config import TrainSettings
from lhydra.training.train import train
from lhydra.users.store import open_users
from lhydra_client import Client, SessionEntry, recommend_request
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings
from lhydra_server.app import Listener
from lhydra_server.config import WorkerSettings
from lhydra_server.served import open_served
from lhydra_server.service import RecommenderService
from tests.compiled_kernels import where_a_compiler_is
from tests.quick_export import quickly
from tests.test_bundle import reseal

DEPTH, K = 40, 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sessions with repeats: what the synthetic world is made of."""
    folder = tmp_path_factory.mktemp("explain")
    write_world(folder / "source", users=120, tracks=200, plays=8_000, seed=3)
    prepare(folder / "source", folder / "dataset", PrepareSettings())
    return Dataset.open(folder / "dataset")


@pytest.fixture(scope="module")
def store(dataset: Dataset) -> Path:
    """A store with a bundle that knows moments, and the users."""
    folder = dataset.path.parent
    settings = TrainSettings(epochs=1, dim=16, hidden=16, head_epochs=1, temperature=0.15, depth=DEPTH, threads=1)
    with quickly():
        train(dataset, folder / "model", settings)
    rebuild(folder / "model", dataset, folder / "store", RebuildSettings(recall_users=20, gate_users=20))
    users = open_users(None, folder / "store")
    users.load(with_plays(dataset, "now", user_states(dataset, "now")))
    users.close()
    return folder / "store"


@pytest.fixture(scope="module")
def recommender(store: Path) -> Recommender:
    found = Recommender(Bundle.open(store), DEPTH)
    assert found.knows_repeats
    assert all(share > 0 for share in found.bundle.sequences.shares.tolist())
    return found


@pytest.fixture(scope="module")
def now(dataset: Dataset) -> int:
    return max(int(state.history["time"].max()) for _, state in user_states(dataset, "now")) + 3_600


@pytest.fixture(scope="module")
def states(dataset: Dataset, now: int) -> list[UserState]:
    """Users long away, one in a session with a skip, one who played a single track, one of whom nothing is known."""

    class Entry:
        def __init__(self, track_id: str, skipped: bool = False) -> None:
            self.track_id, self.timestamp_s, self.skipped, self.completed = track_id, 0, skipped, None

    everybody = [state for _, state in with_plays(dataset, "now", user_states(dataset, "now"))]
    away = [everybody[i] for i in (0, 12, 15, 19, 80)]
    assert all(len(state.recent) > len(state.history) for state in away)
    ids = [str(name) for name in dataset.track_ids[:6]]
    played = [*(Entry(name) for name in ids[:5]), Entry(ids[5], skipped=True)]
    session = to_query(Request("u", K, session=played, now=now), away[1], now).state
    single = to_query(Request("u", K, session=[Entry(ids[2])], now=now), None, now).state
    return [*away, session, single, UserState({"country": "Chile"})]


@pytest.mark.parametrize("repeat", list(Repeat))
def test_batch_lists_are_those_of_the_users_in_the_store(
    recommender: Recommender, dataset: Dataset, store: Path, now: int, tmp_path: Path, repeat: Repeat
) -> None:
    positions, out = np.array([17, 0, 80, 12, 119]), tmp_path / "lists.parquet"
    write_lists(recommender, dataset, out, k=K, stage="final", as_of="now", positions=positions, repeat=repeat, now=now)
    found = pq.read_table(out).to_pylist()
    users = open_users(None, store)
    wanted = []
    for position in positions.tolist():
        user = dataset.user_ids[position]
        state = users.get(user)
        assert state is not None
        answer = recommender.recommend(known_user(state, K, repeat=repeat, now=now))
        tracks = recommender.catalog.track_ids(answer.rows)
        wanted += [(user, track, score) for track, score in zip(tracks, answer.scores.tolist(), strict=True)]
    users.close()
    assert [(row["user_id"], row["track_id"], row["score"]) for row in found] == wanted


def shortened(recommender: Recommender, state: UserState, row: int) -> UserState:
    """The user had one track never been played."""
    rows, recent = recommender.catalog.rows(state.history["track"]), recommender.catalog.rows(state.recent["track"])
    history, repeats = state.history[rows != row], repeats_of(state)[rows != row]
    return replace(state, history=history, repeats=repeats, recent=state.recent[recent != row])


def traces(
    recommender: Recommender, states: list[UserState], now: int, repeats: tuple[Repeat, ...] = tuple(Repeat)
) -> list[Traced]:
    explainer = Explainer(recommender)
    return [
        explainer.trace(Query(K, state, True, repeat=repeat, now=now), no_check)
        for state in states
        for repeat in repeats
    ]


@pytest.mark.parametrize("repeat", list(Repeat))
@pytest.mark.parametrize("rules", [None, Rules(caps=(("artist", 1),)), Rules(diversity=Diversity(0.4))])
def test_the_place_is_the_real_one_for_every_track(
    recommender: Recommender, states: list[UserState], now: int, repeat: Repeat, rules: Rules | None
) -> None:
    seen = set()
    for n, state in enumerate(states):
        query = Query(K, state, True, repeat=repeat, now=now, rules=rules)
        query = replace(query, filter=(Condition("year", min=1980, where="filter.min_year"),) if n % 2 else ())
        served = recommender.recommend(query)
        places = {row: place for place, row in enumerate(served.rows.tolist(), 1)}
        traced = Explainer(recommender).trace(query, no_check)
        for row in range(len(recommender.catalog)):
            path = path_of(recommender, traced, row)
            assert path.place == places.get(row, 0)
            assert (path.stopped_at == "") == (row in places)
            assert path.is_candidate == (row in served.candidates)
            assert bool(path.sources) == path.is_candidate
            if row in places:
                assert path.score == pytest.approx(float(served.scores[path.place - 1]), abs=1e-6)
                assert path.logit == pytest.approx(float(served.logits[path.place - 1]), abs=1e-5)
            seen.add((path.stopped_at, path.stopped_by))
    assert {("retrieve", "depth"), ("rerank", "score")} <= seen
    assert ("retrieve", "index") not in seen  # the index of so few tracks is exact


def test_sources_are_those_that_gave_the_track(recommender: Recommender, states: list[UserState], now: int) -> None:
    """Of each source alone: the candidates that a request has without the others."""
    shares, seen = recommender.bundle.sequences.told_shares, set()
    for traced in traces(recommender, states[:-1], now):
        query, vectors = traced.query, recommender.catalog.vectors.astype(np.float32)
        assert traced.vector is not None
        moment = moment_of(recommender.bundle, query.state, recommender.encode(query.state), query.now)
        assert moment is not None
        repeats = query.repeat is not Repeat.EXCLUDE
        given = dict(
            zip(("own", "following", "together"), moment.candidates(shares, DEPTH, repeats=repeats), strict=True)
        )
        named = np.unique(np.concatenate(list(given.values())))
        allowed = np.setdiff1d(np.arange(len(vectors)), traced.excluded)
        order = allowed[np.argsort(-(vectors @ traced.vector[0])[allowed], kind="stable")]
        others = order[~np.isin(order, named)]
        free = DEPTH - np.count_nonzero(np.isin(named, allowed))
        near = set(order[: order.tolist().index(others[free - 1]) + 1].tolist()) if free else set()
        assert traced.candidates is not None
        for row in traced.candidates[0].tolist():
            expected = {name for name, rows in given.items() if row in rows} | ({"nearest"} if row in near else set())
            assert set(path_of(recommender, traced, row).sources) == expected
            seen |= expected
    assert seen == {"nearest", "own", "following", "together"}


@dataclass(frozen=True)
class Like:
    """A moment with the signals of one, that is like another; without the former it has no signals."""

    about: Any
    of: Any = None

    def signals(self, rows: I64) -> Any:
        return np.zeros((len(rows), len(SIGNALS)), np.float32) if self.of is None else self.of.signals(rows)

    def context(self) -> Any:
        return self.about.context()


def test_a_pull_is_what_the_track_loses_when_it_is_served_without_the_play(
    recommender: Recommender, states: list[UserState], now: int
) -> None:
    """All plays of all histories, one by one, for tracks that were heard and for others."""
    rng = np.random.default_rng(0)
    bundle = replace(recommender.bundle, head=recommender.bundle.head.by_graph())  # takes signals as told
    for traced in traces(recommender, states[:-1], now, (Repeat.ALLOW, Repeat.EXCLUDE)):
        assert traced.user is not None
        assert traced.candidates is not None
        state, played = traced.query.state, traced.user.histories.rows
        rows = np.unique(np.concatenate([rng.choice(traced.candidates[0], 5), rng.choice(played, 2)]))
        falls = falls_of(recommender, traced, rows, np.arange(len(played)))
        full = recommender.score(state, rows, now)[0]
        for play, fall in zip(played.tolist(), falls, strict=True):
            less = shortened(recommender, state, play)
            if len(less.history):  # else another part of the head would answer
                user = recommender.encode(less)
                vector = recommender.moved_away(bundle.embed(user), less)
                moment: Any = Like(traced.moment, moment_of(bundle, less, user, now))
                assert fall == pytest.approx(full - bundle.score(vector, user, rows, moment)[0], abs=2e-4)
        if len(played) == 1:
            groups = {one.name: one.logit for one in groups_of(recommender, traced, int(rows[0]))}
            assert falls[0, 0] == pytest.approx(groups["history"], abs=1e-4)
        pulls = plays_of(recommender, traced, int(rows[0]))
        by_play = dict(zip(played.tolist(), falls[:, 0].tolist(), strict=True))
        assert {one.row for one in pulls} <= set(played.tolist()) - {int(rows[0])}
        assert [one.logit for one in pulls] == pytest.approx([by_play[one.row] for one in pulls], abs=1e-4)


def test_a_moment_without_a_track_is_that_of_plays_without_it(
    recommender: Recommender, states: list[UserState], now: int
) -> None:
    """To the bit, whatever the clock: without the newest play of who was long away ages count from another time."""
    for state in states[:-1]:
        for clock in (0, now, now + 90 * 86_400):
            moment = moment_of(recommender.bundle, state, recommender.encode(state), clock)
            assert moment is not None
            tracks = np.union1d(state.history["track"], state.recent["track"])
            for row in recommender.catalog.rows(tracks).tolist():
                shorter = shortened(recommender, state, row)
                less = moment_of(recommender.bundle, shorter, recommender.encode(shorter), clock)
                assert less is not None
                every = np.arange(len(recommender.catalog))
                np.testing.assert_array_equal(moment.without(row).signals(every), less.signals(every))
                np.testing.assert_array_equal(moment.without(row).context(), less.context())


def test_groups_are_hidden_from_the_part_that_answers(
    recommender: Recommender, states: list[UserState], now: int
) -> None:
    bundle = replace(recommender.bundle, head=recommender.bundle.head.by_graph())  # takes signals as told
    for traced in traces(recommender, states[:-1], now, (Repeat.ALLOW,)):
        assert traced.candidates is not None
        assert traced.user is not None
        assert traced.moment is not None
        row = traced.candidates[0][:1]
        groups = {one.name: one.logit for one in groups_of(recommender, traced, int(row[0]))}
        expected = {"history", "ids", "genre and tags", "content numbers", "popularity", "co-listening", "moment"}
        assert set(groups) - {"profile"} == expected
        full = float(recommender.scored(traced, row)[0][0])

        unmoved: Any = Like(traced.moment)
        assert traced.vector is not None
        without = bundle.score(traced.vector, traced.user, row, unmoved)[0]
        assert groups["moment"] == pytest.approx(full - float(without[0]), abs=1e-4)
        nobody = UserState(traced.query.state.profile)
        user = recommender.encode(nobody)
        vector = bundle.embed(user)
        without = bundle.score(vector, user, row, unmoved)[0]
        assert groups["history"] == pytest.approx(full - float(without[0]), abs=1e-4)


def test_reasons_of_a_moment_are_true(recommender: Recommender, states: list[UserState], now: int) -> None:
    """Coming back takes two plays; what follows does so after one of the last three, by somebody's plays."""
    said: set[str] = set()
    for traced in traces(recommender, states, now):
        query = replace(traced.query, explain=True, k=30)
        (found,) = Explainer(recommender).recommend_many([(query, no_check)])
        assert not isinstance(found, Exception)
        state, catalog, tables = query.state, recommender.catalog, recommender.bundle.sequences
        asked = Explainer(recommender).trace(query, no_check)
        sources, names = asked.brought, catalog.track_ids(found.rows)
        counts = dict(zip(state.history["track"].tolist(), state.history["count"].tolist(), strict=True))
        recent = [int(one) for one in catalog.rows(state.recent["track"])]
        last = list(dict.fromkeys(recent[::-1]))
        last = [one for one in last if recent[::-1].index(one) < 3]
        after = {int(one) for track in last for one in tables.rows[tables.offsets[track] : tables.offsets[track + 1]]}
        after |= {later for i, one in enumerate(recent) if one in last for later in recent[i + 1 : i + 11]}
        for row, name, reasons in zip(found.rows.tolist(), names, found.reasons, strict=True):
            said.update(reason.split()[0] for reason in reasons)
            if "you come back to it" in reasons:
                assert counts[int(track_hashes([name])[0])] >= 2
                assert query.repeat is not Repeat.EXCLUDE
                assert row in sources["own"]
            if "often played after what you played last" in reasons:
                assert row in after
                assert row in sources["following"]
    assert {"because", "popular", "you", "often"} <= said


@pytest.fixture(scope="module")
def client(store: Path) -> Any:
    users = open_users(None, store, create=False)
    served = open_served(WorkerSettings(str(store), current_bundle_id(store), "", depth=DEPTH))
    service = RecommenderService(served, users, max_k=150)
    listener = Listener(service, "127.0.0.1:0", max_in_flight=32, connection_age_s=600)
    listener.start()
    with Client(f"127.0.0.1:{listener.port}", timeout_s=30) as client:
        yield client
    listener.stop(0)
    users.close()


@pytest.mark.parametrize("repeat", ["exclude", "learnt"])
def test_what_would_bring_it_in_does_when_it_is_served(
    client: Client, dataset: Dataset, now: int, repeat: Literal["exclude", "learnt"]
) -> None:
    ids, names = [str(name) for name in dataset.track_ids], [str(name) for name in dataset.user_ids]
    session: list[str | SessionEntry] = [ids[3], SessionEntry(ids[4], skipped=True), ids[5]]
    kinds: dict[str, int] = {}
    for user in (names[0], names[40], "nobody"):
        request = recommend_request(user, K, repeat=repeat, session=session, now_s=now)
        listed = [one.track_id for one in client._call(client._stub.Recommend, request, None).tracks]
        for track in ids[::9]:
            found = client.explain(user, track, request)
            assert found.rank == (listed.index(track) + 1 if track in listed else 0)
            for one in found.would_bring_in:
                served = client._call(client._stub.Recommend, one.request, None)
                assert [scored.track_id for scored in served.tracks].index(track) + 1 == one.place
                kind = one.changes[-1].split()[0]
                kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds.get("depth", 0) + kinds.get("a", 0) > 5


@where_a_compiler_is
def test_weights_without_the_part_for_moments_that_the_graph_has_are_refused(store: Path, tmp_path: Path) -> None:
    bundle_id = current_bundle_id(store)
    (tmp_path / "CURRENT").write_text(f"{bundle_id}\n")
    folder = Path(shutil.copytree(store / bundle_id, tmp_path / bundle_id))
    weights = folded_head.read(folder, [folded_head.FILE])
    assert weights
    assert "moment" in weights
    write_npz(folder / folded_head.FILE, {name: one for name, one in weights.items() if not name.startswith("moment")})
    reseal(folder)
    with pytest.raises(BundleMismatch, match="golden scores"):
        Bundle.open(folder.parent)
