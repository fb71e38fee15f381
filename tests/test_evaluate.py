"""`lhydra evaluate`: targets, negatives and numbers against brute force and the shared tool; bad input.

Also the small dataset and the deterministic recommender that `test_recommend` uses.
"""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra import console
from lhydra.bundle import catalog_writer
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.model import ModelInfo
from lhydra.cli import main
from lhydra.data.dataset import TEST, TRAIN, VALID, Dataset, DatasetInfo
from lhydra.domain import F32, I64, Hashes, Query, Recommendation, Repeat, Tier, UserState, track_hashes
from lhydra.errors import DataError
from lhydra.evaluation import baselines
from lhydra.evaluation.baselines import NAMES
from lhydra.evaluation.classification import classify
from lhydra.evaluation.evaluate import evaluate, protocol_hash
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import ask, draw_negatives, find_targets

Play = tuple[int, int, int]  # user, track, fold


def write_dataset(path: Path, user_ids: Sequence[str], track_ids: Sequence[str], plays: Sequence[Play]) -> Dataset:
    path.mkdir()
    counts = {"tracks": len(track_ids), "users": len(user_ids), "plays": len(plays)}
    info = DatasetInfo("test", (), (), counts, SPLIT, timed=False)
    (path / "dataset.json").write_text(info.to_json())
    pq.write_table(pa.table({"user_id": pa.array(user_ids, pa.string())}), path / "users.parquet")
    pq.write_table(pa.table({"track_id": pa.array(track_ids, pa.string())}), path / "tracks.parquet")
    user, track, fold = np.array(sorted(plays), np.int64).reshape(-1, 3).T
    table = {
        "user": user.astype(np.int32),
        "track": track.astype(np.int32),
        "count": np.ones(len(plays), np.float32),
        "time": np.zeros(len(plays), np.int64),
        "fold": fold.astype(np.int8),
    }
    pq.write_table(pa.table(table), path / "plays.parquet")
    return Dataset.open(path)


def random_plays(seed: int, n_users: int, n_tracks: int, per_user: int = 15) -> list[Play]:
    """Every (user, track) in one fold only, as a split made by row has it."""
    rng = np.random.default_rng(seed)
    pairs = rng.choice(n_users * n_tracks, n_users * per_user, replace=False)
    folds = rng.choice(3, len(pairs), p=[0.6, 0.2, 0.2])
    return [(int(pair) // n_tracks, int(pair) % n_tracks, int(fold)) for pair, fold in zip(pairs, folds, strict=True)]


def left_out(query: Query) -> Hashes:
    """The tracks that may not be returned: excluded, or heard where that counts."""
    return query.exclude if query.repeat is Repeat.ALLOW else np.union1d(query.exclude, query.state.heard)


class FakeCatalog:
    """Rows in the order of the ids given."""

    def __init__(self, track_ids: Sequence[str]) -> None:
        self.ids = list(track_ids)
        self.hashes = track_hashes(self.ids)
        self._rows = {int(value): row for row, value in enumerate(self.hashes)}

    removed = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def track_ids(self, rows: I64) -> list[str]:
        return [self.ids[row] for row in rows]

    def rows(self, hashes: Hashes) -> I64:
        return np.array([self._rows.get(int(value), -1) for value in hashes], np.int64)


@dataclass
class FakeRecommender:
    """A cascade whose scores depend on the history alone, drawn from a generator that the history seeds."""

    catalog: FakeCatalog
    depth: int = 50
    bundle_id: str = "fake-1"
    knows_repeats: bool = False
    queries: list[Query] = field(default_factory=list)

    def scores(self, state: UserState) -> tuple[F32, F32]:
        """(retrieval scores, logits) of all tracks."""
        rng = np.random.default_rng([1, *map(int, state.history["track"])])
        return tuple(rng.standard_normal((2, len(self.catalog)), np.float32))

    def recommend(self, query: Query) -> Recommendation:
        self.queries.append(query)
        retrieval, logits = self.scores(query.state)
        eligible = np.flatnonzero(~np.isin(self.catalog.hashes, left_out(query)))
        candidates = eligible[np.argsort(-retrieval[eligible])][: max(query.k, query.depth or self.depth)]
        rows = candidates[np.argsort(-logits[candidates])][: query.k]
        scores = self.score(query.state, rows)[1]
        return Recommendation(
            rows, scores, logits[rows], retrieval[rows], candidates, retrieval[candidates], Tier.PERSONAL, {}
        )

    def score(self, state: UserState, rows: I64, now: int = 0) -> tuple[F32, F32]:
        logits = self.scores(state)[1][rows]
        return logits, np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def names(letter: str, n: int) -> list[str]:
    return [f"{letter}{number:03}" for number in range(n)]


@pytest.fixture
def world(tmp_path: Path) -> tuple[Dataset, FakeRecommender]:
    """30 users, 80 tracks; user 0 has train plays only. The catalog has another order than the tracks table."""
    plays = [(user, track, fold if user else TRAIN) for user, track, fold in random_plays(0, 30, 80)]
    dataset = write_dataset(tmp_path / "dataset", names("u", 30), names("t", 80), plays)
    return dataset, FakeRecommender(FakeCatalog(names("t", 80)[::-1]))


Fake = Callable[[FakeRecommender], None]


MODEL_INFO = {"fitted_on": "train"}  # of a model.json
SPLIT = {"protocol": "column", "hash": "0"}  # of every dataset here, and so of the model


def model_info() -> ModelInfo:
    return ModelInfo(fitted_on=MODEL_INFO["fitted_on"], parents={"dataset": "test", "split": SPLIT})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a fake recommender where the commands look for the real one."""

    def install(recommender: FakeRecommender) -> None:
        def bundle(store: Path, bundle_id: str | None = None) -> SimpleNamespace:
            recommender.bundle_id = bundle_id or recommender.bundle_id
            return SimpleNamespace(
                bundle_id=recommender.bundle_id, manifest=SimpleNamespace(model_id="model-1", parents={"split": SPLIT})
            )

        def unpublished(model: SimpleNamespace, dataset: Dataset, folder: Path) -> SimpleNamespace:
            return SimpleNamespace(bundle_id=model.name, manifest=None)

        def served(bundle: SimpleNamespace, depth: int = 0) -> FakeRecommender:
            recommender.depth = depth or recommender.depth
            return recommender

        monkeypatch.setattr("lhydra.bundle.bundle.Bundle.open", bundle)
        monkeypatch.setattr(
            "lhydra.bundle.model.Model.open",
            lambda path: SimpleNamespace(name=path.name, info=model_info()),
        )
        monkeypatch.setattr("lhydra.bundle.catalog_writer.unpublished_bundle", unpublished)
        monkeypatch.setattr("lhydra.recommender.Recommender", served)
        # what they find is tested with them; a fake knows too little
        analyse, measure = SimpleNamespace(analyse=lambda *_: {"users": []}), SimpleNamespace(measure=lambda *_: {})
        monkeypatch.setitem(sys.modules, "lhydra.evaluation.mistakes", analyse)
        monkeypatch.setitem(sys.modules, "lhydra.evaluation.importance", measure)

    return install


plays_with_repeats = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 7), st.sampled_from([TRAIN, VALID, TEST])), min_size=1, unique=True
)


@settings(deadline=None)  # the machine may be busy
@given(plays_with_repeats, st.sampled_from(["test", "valid"]))
def test_targets_are_the_new_tracks_of_the_fold(
    tmp_path_factory: pytest.TempPathFactory, plays: list[Play], as_of: Any
) -> None:
    dataset = write_dataset(tmp_path_factory.mktemp("d") / "d", names("u", 4), names("t", 8), plays)
    fold = {"test": TEST, "valid": VALID}[as_of]
    expected = {
        user: {track for u, track, f in plays if u == user and f == fold}
        - {track for u, track, f in plays if u == user and f < fold}
        for user in range(4)
    }
    expected = {user: tracks for user, tracks in expected.items() if tracks}
    if not expected:
        with pytest.raises(DataError, match=f"{as_of} fold: found"):
            find_targets(dataset, as_of)
        return
    targets = find_targets(dataset, as_of)
    found = {int(user): targets.tracks[targets.of(n)].tolist() for n, user in enumerate(targets.users)}
    assert found == {user: sorted(tracks) for user, tracks in sorted(expected.items())}
    assert targets.heard_before == sum(f == fold for *_, f in plays) - len(targets.tracks)


@settings(deadline=None, max_examples=30)  # the machine may be busy
@given(plays_with_repeats)
def test_with_the_mask_train_the_valid_fold_is_neither_left_out_nor_spared(
    tmp_path_factory: pytest.TempPathFactory, plays: list[Play]
) -> None:
    plays = list({*plays, (0, 0, VALID), (0, 0, TEST)} - {(0, 0, TRAIN)})
    dataset = write_dataset(tmp_path_factory.mktemp("d") / "d", names("u", 4), names("t", 8), plays)
    recommender = FakeRecommender(FakeCatalog(names("t", 8)))
    found = evaluate(recommender, dataset, mask="train", fitted=SPLIT)
    train, valid, test = ({(u, t) for u, t, own in plays if own == fold} for fold in (TRAIN, VALID, TEST))
    assert found["counts"]["targets"] == len(test - train)
    assert found["protocol"]["seen"]["targets"] == len((test - train) & valid)  # the head has learned from these
    hashes = track_hashes(dataset.track_ids)
    users = sorted({user for user, _ in test - train})
    for query, user in zip(recommender.queries, users * 2, strict=True):
        assert set(left_out(query)) == {hashes[track] for own, track in train if own == user}
    targets = find_targets(dataset, "test", "train")
    log, known = baselines.Log.of(dataset), np.ones(8, np.bool_)
    lists = baselines.ranked(
        lambda asked: np.ones((len(asked), 8), np.float32), log, dataset, targets, known, "test", 8, "train"
    )
    for user, own in zip(users, lists, strict=True):
        assert set(own[own >= 0]) == set(range(8)) - {track for one, track in train if one == user}


@settings(deadline=None)  # the machine may be busy
@given(plays_with_repeats, st.sets(st.integers(0, 7)), st.integers(0, 99))
def test_negatives_are_known_tracks_without_a_play(
    tmp_path_factory: pytest.TempPathFactory, plays: list[Play], unknown: set[int], seed: int
) -> None:
    plays = list({*plays, (0, 0, VALID), (0, 1, TEST)} - {(0, 0, TRAIN)})
    dataset = write_dataset(tmp_path_factory.mktemp("d") / "d", names("u", 4), names("t", 8), plays)
    known = np.array([track not in unknown for track in range(8)])
    targets = find_targets(dataset, "valid")
    negatives = draw_negatives(dataset, targets, known, "valid", seed)
    for n, user in enumerate(targets.users):
        free = {t for t in range(8) if known[t]} - {t for u, t, f in plays if u == user and f <= VALID}
        assert set(negatives[targets.of(n)].tolist()) <= (free or {-1})


def test_every_free_track_is_as_likely_a_negative(tmp_path: Path) -> None:
    n_users = 3000
    plays = [(user, track, fold) for user in range(n_users) for track, fold in ((1, TRAIN), (4, VALID), (5, TEST))]
    dataset = write_dataset(tmp_path / "d", names("u", n_users), names("t", 8), plays)
    known = np.array([True] * 7 + [False])
    drawn = draw_negatives(dataset, find_targets(dataset, "test"), known, "test", 3)
    counts = np.bincount(drawn, minlength=8)
    assert counts[[1, 4, 5, 7]].tolist() == [0, 0, 0, 0]
    expected = n_users / 4
    assert np.abs(counts[[0, 2, 3, 6]] - expected).max() < 5 * np.sqrt(expected)


def test_negatives_do_not_depend_on_who_else_is_evaluated(world: tuple[Dataset, FakeRecommender]) -> None:
    dataset, _ = world
    targets, known = find_targets(dataset, "test"), np.ones(80, np.bool_)
    everybody = draw_negatives(dataset, targets, known, "test", 7)
    some = targets.sample(9, 1)
    drawn = draw_negatives(dataset, some, known, "test", 7)
    for n, user in enumerate(some.users):
        there = targets.of(int(np.searchsorted(targets.users, user)))
        assert targets.tracks[there].tolist() == some.tracks[some.of(n)].tolist()
        assert drawn[some.of(n)].tolist() == everybody[there].tolist()
    assert (draw_negatives(dataset, targets, known, "test", 8) != everybody).any()


@pytest.mark.parametrize(("as_of", "fed", "heard"), [("test", TRAIN, VALID), ("valid", TRAIN, TRAIN)])
def test_the_recommender_sees_nothing_of_the_predicted_fold(
    world: tuple[Dataset, FakeRecommender], as_of: Any, fed: int, heard: int
) -> None:
    dataset, recommender = world
    evaluate(recommender, dataset, as_of=as_of)
    hashes, plays = track_hashes(dataset.track_ids), dataset.plays
    users = find_targets(dataset, as_of).users.tolist()
    for query, user in zip(recommender.queries, users * 2, strict=True):  # as served, then deeper
        own = plays.where(plays.user == user)
        assert set(query.state.history["track"]) == set(hashes[own.track[own.fold <= fed]])
        assert set(left_out(query)) == set(hashes[own.track[own.fold <= heard]])
        assert query.known


def test_a_track_that_the_catalogue_lacks_is_a_missed_target(tmp_path: Path) -> None:
    plays = [(0, 0, TRAIN), (0, 1, TEST), (0, 2, TEST)]
    dataset = write_dataset(tmp_path / "d", ["u"], names("t", 3), plays)
    found = evaluate(FakeRecommender(FakeCatalog(["t000", "t002"])), dataset, ks=(5,))
    assert found["counts"]["targets_not_in_catalogue"] == 1
    assert found["ranking"]["cascade"]["recall@5"]["mean"] == 0.5  # t002 is all that can be recommended
    assert found["ranking"]["cascade"]["coverage@5"]["mean"] == 0.5
    assert found["classification"]["positives"] == 1  # only what can be scored


def test_the_head_is_judged_on_one_negative_per_play(world: tuple[Dataset, FakeRecommender]) -> None:
    dataset, recommender = world
    targets = find_targets(dataset, "test")
    liked = set(zip(np.repeat(targets.users, np.diff(targets.offsets)).tolist(), targets.tracks.tolist(), strict=True))
    users = iter(targets.users.tolist())
    place = {track_id: position for position, track_id in enumerate(dataset.track_ids)}

    def oracle(state: UserState, rows: I64, now: int = 0) -> tuple[F32, F32]:
        user = next(users)
        tracks = recommender.catalog.track_ids(rows)
        p = np.array([0.9 if (user, place[track_id]) in liked else 0.2 for track_id in tracks], np.float32)
        return p, p

    recommender.recommend = Recorded(recommender).recommend  # type: ignore[method-assign]
    recommender.score = oracle  # type: ignore[method-assign]
    run = ask(recommender, dataset, targets, as_of="test", ks=(10,), seed=0)
    head = classify(run.labels, run.probabilities)
    assert (head.positives, head.pairs) == (len(liked), 2 * len(liked))
    assert (head.accuracy, head.precision, head.recall, head.f1, head.auc, head.pr_auc) == (1, 1, 1, 1, 1, 1)
    assert head.log_loss == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2, rel=1e-6)
    assert head.ece == pytest.approx((0.1 + 0.2) / 2, rel=1e-6)


class Recorded:
    """Lists without scores: for tests that replace `score`."""

    def __init__(self, recommender: FakeRecommender) -> None:
        self._rows = np.arange(len(recommender.catalog))

    def recommend(self, query: Query) -> Recommendation:
        rows, none = self._rows[: query.k], np.zeros(query.k, np.float32)
        return Recommendation(rows, none, none, none, rows, none, Tier.PERSONAL, {})


def test_a_sample_of_users_is_seeded_and_its_numbers_are_theirs(world: tuple[Dataset, FakeRecommender]) -> None:
    dataset, recommender = world
    first = evaluate(recommender, dataset, users=7, seed=5)
    again = evaluate(recommender, dataset, users=7, seed=5)
    other = evaluate(recommender, dataset, users=7, seed=6)
    assert first == again != other
    assert first["counts"]["users"] == 7
    sample = find_targets(dataset, "test").sample(7, 5)
    served = np.stack([recommender.recommend(query).rows for query in recommender.queries[:7]])
    hashes = track_hashes(dataset.track_ids)
    wanted = np.concatenate([np.sort(recommender.catalog.rows(hashes[sample.tracks[sample.of(n)]])) for n in range(7)])
    expected = rank_metrics(served, sample.offsets, wanted, 80)
    assert means({**first}, "cascade") == pytest.approx(expected.means(), abs=1e-12)
    assert first["per_user"]["users"] == [dataset.user_ids[user] for user in sample.users]
    kept = first["per_user"]["stages"]["cascade"]["ndcg@10"]
    assert kept == pytest.approx(expected.per_user["ndcg@10"].tolist(), abs=1e-6)
    everybody = evaluate(recommender, dataset, users=1000)
    assert everybody == evaluate(recommender, dataset)


def means(document: dict[str, Any], stage: str) -> dict[str, float]:
    return {name: found["mean"] for name, found in document["ranking"][stage].items()}


def test_prints_every_stage_and_writes_every_number(
    world: tuple[Dataset, FakeRecommender], installed: Fake, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dataset, recommender = world
    installed(recommender)
    out = tmp_path / "e.json"
    flags = ["--k", "5,20", "--seed", "4", "--baselines", "popular,ease", "--json", str(out)]
    assert main(["evaluate", str(dataset.path), "--store", "s", *flags]) == 0
    printed = capsys.readouterr().out
    document = json.loads(out.read_text())
    expected = evaluate(recommender, dataset, ks=(5, 20), seed=4, baselines=("popular", "ease"))
    assert list(document["ranking"]) == ["cascade", "retrieval", "head", "popular", "ease"]
    for part in ("ranking", "counts", "paired", "classification", "cascade_loss", "cohorts", "slices", "per_user"):
        assert document[part] == expected[part]
    assert {one["cached"] for one in expected["baselines"].values()} == {True}  # kept by the first
    protocol = document["protocol"]
    assert (protocol["as_of"], protocol["ks"], protocol["seed"], protocol["users"]) == ("test", [5, 20], 4, "all")
    assert (protocol["bundle_id"], protocol["model_id"]) == ("fake-1", "model-1")
    assert protocol["split"] == dataset.info.split
    for text in ("retrieval", "cascade", "Recall@5", "NDCG@20", "MAP@5", "HitRate@20", "MRR@20", "Coverage@20"):
        assert text in printed
    assert f"{expected['ranking']['cascade']['ndcg@20']['mean']:.4f}" in printed
    assert "one uniformly random unheard track per test play, seed 4" in printed
    assert printed.index("Secondary") > printed.index("Ranking")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "e.json"]


def test_files_are_written_before_anybody_can_stop_reading(
    world: tuple[Dataset, FakeRecommender], installed: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, recommender = world
    installed(recommender)
    monkeypatch.setattr("lhydra.evaluation.report.page.render", lambda document: "<html>")
    read, end = os.pipe()
    os.close(read)
    with os.fdopen(end, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        files = [tmp_path / "e.json", tmp_path / "e.html"]
        flags = ["--baselines", "none", "--json", str(files[0]), "--report", str(files[1])]
        assert main(["evaluate", str(dataset.path), "--store", "s", *flags]) == 1
        monkeypatch.undo()
    assert json.loads(files[0].read_text())["ranking"]
    assert files[1].read_text() == "<html>"


class Ranked(FakeRecommender):
    """Answers with the same order of the catalogue for everybody, best first: as good or bad as a test needs."""

    def scores(self, state: UserState) -> tuple[F32, F32]:
        order = -np.arange(len(self.catalog), dtype=np.float32)
        return order, order


@pytest.mark.parametrize(("wanted", "word"), [(39, "beats"), (0, "LOSES to")])
def test_the_first_line_says_whether_a_baseline_is_better(
    tmp_path: Path, installed: Fake, capsys: pytest.CaptureFixture[str], wanted: int, word: str
) -> None:
    """20 users, 40 tracks; half of them want t000, the most popular, or t039, which nobody played."""
    plays = [(user, user % 7 + 1, TRAIN) for user in range(20)] + [(user, 0, TRAIN) for user in range(1, 20, 2)]
    plays += [(user, wanted, TEST) for user in range(0, 20, 2)]
    dataset = write_dataset(tmp_path / "d", names("u", 20), names("t", 40), plays)
    installed(Ranked(FakeCatalog(names("t", 40)[::-1])))
    assert main(["evaluate", str(dataset.path), "--store", "s", "--baselines", "popular"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert f"{word} the best baseline popular" in first
    assert any("two users have" in line for line in rest[:3])
    assert any("no valid fold: usual values" in line for line in rest)


def test_a_refitted_model_is_measured_on_the_test_fold_only_and_said_to_be_one(
    world: tuple[Dataset, FakeRecommender],
    installed: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, recommender = world
    installed(recommender)
    asked = ["evaluate", str(dataset.path), "--model", "m", "--baselines", "popular"]
    assert main([*asked, "--as-of", "valid"]) == 0
    monkeypatch.setitem(MODEL_INFO, "fitted_on", "train and valid")
    embed: Any = catalog_writer.unpublished_bundle
    embedded: list[object] = []

    def watched(*given: Any) -> Any:
        embedded.append(given)
        return embed(*given)

    monkeypatch.setattr(catalog_writer, "unpublished_bundle", watched)
    capsys.readouterr()
    recommender.queries.clear()
    assert main([*asked, "--as-of", "valid"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, recommender.queries) == ("", [])
    assert embedded == []
    expected = "--as-of: found valid, from which m has learned (--refit), expected test"
    assert captured.err == f"lhydra evaluate: {expected}\n"
    assert main(asked) == 0
    second = capsys.readouterr().out.splitlines()[1]
    assert second == "the model learned from the valid fold too (--refit), the baselines did not"


@pytest.mark.parametrize("mask", ["seen", "train"])
def test_a_fold_with_nothing_to_predict_is_refused_before_anything_is_opened(
    tmp_path: Path, installed: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mask: str
) -> None:
    plays = [(user, user % 3, fold) for user in range(6) for fold in (TRAIN, TEST)]
    dataset = write_dataset(tmp_path / "d", names("u", 6), names("t", 4), plays)
    installed(FakeRecommender(FakeCatalog(names("t", 4))))
    monkeypatch.setattr("lhydra.bundle.model.Model.open", lambda path: pytest.fail("the model was opened"))
    asked = ["evaluate", str(dataset.path), "--model", "m", "--baselines", "none", "--mask", mask]
    for fold, found in (("test", "only tracks heard before"), ("valid", "no plays")):
        assert main([*asked, "--as-of", fold]) == 1
        assert f"{fold} fold: found {found}" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "module"), [([], "implicit"), (["--report", "r.html"], "plotly")])
def test_what_is_not_installed_is_said_before_anything_is_done(
    world: tuple[Dataset, FakeRecommender],
    installed: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    module: str,
) -> None:
    dataset, recommender = world
    installed(recommender)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else found(name))
    assert main(["evaluate", str(dataset.path), "--store", "s", *flags]) == 1
    captured = capsys.readouterr()
    assert (captured.out, recommender.queries) == ("", [])
    assert captured.err == (f"lhydra evaluate: this command needs {module}; install with: pip install 'lhydra[eval]'\n")
    assert main(["evaluate", str(dataset.path), "--store", "s", "--baselines", "none"]) == 0


@pytest.mark.parametrize(
    ("plays", "n_users", "n_tracks", "as_of"),
    [
        ([(user, track, TEST) for user in range(5) for track in range(3)], 5, 6, "test"),  # nobody played before
        ([(0, 0, TEST)], 1, 1, "test"),
        ([(0, 0, TRAIN), (0, 1, TEST)], 1, 2, "test"),
        ([(0, 0, TRAIN), (0, 1, VALID), (1, 1, TEST)], 2, 2, "test"),
        ([(0, 0, TRAIN), (0, 1, VALID), (1, 1, TEST)], 2, 2, "valid"),
    ],
)
def test_the_smallest_worlds_have_a_document_without_nan(
    tmp_path: Path, plays: list[Play], n_users: int, n_tracks: int, as_of: Any
) -> None:
    dataset = write_dataset(tmp_path / "d", names("u", n_users), names("t", n_tracks), plays)
    recommender = FakeRecommender(FakeCatalog(names("t", n_tracks)))
    found = evaluate(recommender, dataset, as_of=as_of, baselines=NAMES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert any(line.startswith("only ") for line in found["summary"])


def test_a_hash_names_the_protocol_and_not_the_model(world: tuple[Dataset, FakeRecommender]) -> None:
    dataset, recommender = world
    other = FakeRecommender(FakeCatalog(names("t", 80)), bundle_id="other")
    first = evaluate(recommender, dataset, users=5)["protocol"]
    assert evaluate(other, dataset, users=5)["protocol"] == first
    for change in ({"users": 6}, {"users": 5, "seed": 1}, {"users": 5, "ks": (5,)}, {"users": 5, "as_of": "valid"}):
        assert evaluate(recommender, dataset, **change)["protocol"]["hash"] != first["hash"]
    assert protocol_hash(dataset, first | {"split": {"hash": "1"}}) != first["hash"]


def test_a_terminal_shows_the_same_numbers(
    world: tuple[Dataset, FakeRecommender],
    installed: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, recommender = world
    installed(recommender)
    command = ["evaluate", str(dataset.path), "--store", "s", "--baselines", "popular"]
    assert main(command) == 0
    assert main(command) == 0  # from here the baseline is kept
    capsys.readouterr()
    assert main(command) == 0
    plain = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(command) == 0
    shown = capsys.readouterr()
    assert re.findall(r"\d\.\d{4}", shown.out) == re.findall(r"\d\.\d{4}", plain)
    assert "evaluating users" in shown.err


def test_without_a_terminal_progress_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_REPORT_EVERY_S", 0.0)
    assert list(console.with_progress(range(1200), 1200, "counting")) == list(range(1200))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"counting: 1,200 of 1,200, [\d,]+/s, 0 s left", printed.err.splitlines()[-1])


def test_a_model_is_evaluated_without_a_store(
    world: tuple[Dataset, FakeRecommender], installed: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, recommender = world
    installed(recommender)
    command = ["evaluate", str(dataset.path), "--model", "some/m-7", "--as-of", "valid", "--baselines", "none"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("cascade NDCG@10 0.")
    assert "; measured without baselines\n" in printed
    assert "\nm-7 on the valid fold: " in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model, --store: found neither, expected one of the two"),
        (["--model", "m", "--store", "s"], "--model, --store: found both, expected one of the two"),
        (["--store", "s", "--k", "0"], "--k: found 0, expected numbers from 1 to 1000"),
        (["--store", "s", "--k", "1000000000"], "--k: found 1000000000, expected numbers from 1 to 1000"),
        (["--store", "s", "--k", "10,ten"], "--k: found 10,ten, expected numbers"),
        (["--store", "s", "--users", "-3"], "--users: found -3, expected 0 or more"),
        (["--store", "s", "--users", "few"], "--users: found few, expected a whole number"),
        (
            ["--store", "s", "--json", "nowhere/e.json"],
            "--json: found no folder nowhere, expected one that exists: mkdir -p nowhere",
        ),
        (
            ["--store", "s", "--report", "nowhere/e.html"],
            "--report: found no folder nowhere, expected one that exists: mkdir -p nowhere",
        ),
        (["--store", "s", "--baselines", "als"], "--baselines: found als, expected all, none, or some of popular,"),
    ],
)
def test_bad_flags_are_one_line(
    world: tuple[Dataset, FakeRecommender],
    installed: Fake,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    installed(world[1])
    code = 2 if message.endswith("expected one of the two") else 1
    assert main(["evaluate", str(world[0].path), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"lhydra evaluate: {message}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("plays", "catalogue", "message"),
    [
        ([(0, 0, TRAIN)], ["t000"], "test fold: found no plays, expected plays to rank for"),
        ([(0, 0, TRAIN), (0, 0, TEST)], ["t000"], "test fold: found only tracks heard before, expected tracks new"),
        ([(0, 0, TRAIN), (0, 1, TEST)], ["x"], "found no track of the catalogue, expected the dataset"),
    ],
)
def test_nothing_to_measure_is_one_line(
    tmp_path: Path,
    installed: Fake,
    capsys: pytest.CaptureFixture[str],
    plays: list[Play],
    catalogue: list[str],
    message: str,
) -> None:
    write_dataset(tmp_path / "d", ["u"], names("t", 2), plays)
    installed(FakeRecommender(FakeCatalog(catalogue)))
    out = tmp_path / "e.json"
    assert main(["evaluate", str(tmp_path / "d"), "--store", "s", "--json", str(out)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_is_no_dataset_is_one_line(
    tmp_path: Path, installed: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(FakeRecommender(FakeCatalog(["t"])))
    assert main(["evaluate", str(tmp_path), "--store", "s"]) == 1
    assert capsys.readouterr().err == (
        f"lhydra evaluate: {tmp_path}: found no dataset.json, expected a folder made by `lhydra prepare`\n"
    )


@pytest.mark.parametrize("flag", ["--store", "--model"])
def test_an_empty_folder_as_store_or_model_is_one_line(
    world: tuple[Dataset, FakeRecommender], tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["evaluate", str(world[0].path), flag, str(empty)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"lhydra evaluate: {empty}")
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_a_trained_store_and_its_model_rank_alike(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Bundle.open(tiny_store).manifest
    assert manifest is not None
    monkeypatch.setattr("lhydra.recommender.DEFAULT_DEPTH", manifest.depth)  # a model alone has measured none
    documents = []
    for n, source in enumerate((["--store", tiny_store], ["--model", tiny_store.parent / "model"])):
        out = tmp_path / f"{n}.json"
        dataset = tiny_store.parent / "dataset"
        words = [*map(str, source), "--users", "100", "--baselines", "none", "--json", str(out)]
        assert main(["evaluate", str(dataset), *words]) == 0
        documents.append(json.loads(out.read_text()))
    store, model = documents
    assert store["counts"] == model["counts"]
    assert store["protocol"]["hash"] == model["protocol"]["hash"]
    for stage in store["ranking"]:
        assert all(0 <= value <= 1 for value in means(store, stage).values())
        # the store's index is exact too
        assert means(store, stage) == pytest.approx(means(model, stage), abs=1e-9)
    assert store["classification"]["auc"] > 0.5
