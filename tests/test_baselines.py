"""Each baseline against its definition on tiny data; tuning, masks and what is kept; known figures on real data."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from lhydra.data.dataset import TEST, TRAIN, VALID, Dataset
from lhydra.domain import I64
from lhydra.evaluation import baseline_fits, baselines
from lhydra.evaluation.baseline_fits import FITS, fit_dlae, fit_ease, fit_ials, fit_itemknn, fit_rp3beta
from lhydra.evaluation.baselines import NAMES, Baseline, Log, measure, ranked
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Targets, find_targets
from tests.realdata import real_data
from tests.test_evaluate import names, random_plays, write_dataset

EVERYBODY = np.arange(12)
Dense = Any


def plays_matrix(shape: tuple[int, int] = (12, 9), seed: int = 0) -> Dense:
    rng = np.random.default_rng(seed)
    counts: Dense = rng.integers(1, 6, shape) * (rng.random(shape) < 0.4)
    counts[:, 0] = 1  # nothing empty
    counts[0] = 1
    return counts.astype(np.float32)


@pytest.mark.parametrize("kind", ["cosine", "tfidf", "bm25"])
@pytest.mark.parametrize("neighbours", [3, 1000])
def test_itemknn_adds_up_similarities(kind: str, neighbours: int) -> None:
    binary = (plays_matrix() > 0).astype(np.float64)
    n_tracks = binary.shape[1]
    played, listeners = binary.sum(axis=1), binary.sum(axis=0)
    by_track = binary.T  # a track is a document, its listeners are the words
    rarity = np.log(n_tracks) - np.log1p(played)
    if kind == "tfidf":
        by_track = by_track * rarity
    if kind == "bm25":
        length = (1 - 0.75) + 0.75 * listeners / listeners.mean()
        by_track = by_track * rarity * (1.2 + 1) / (1.2 * length[:, None] + by_track)
    else:
        by_track = by_track / np.linalg.norm(by_track, axis=1, keepdims=True)
    similar = by_track @ by_track.T
    kept = np.zeros_like(similar)
    for row in range(n_tracks):  # the track itself and its nearest
        best = np.argsort(-similar[row], kind="stable")[: neighbours + 1]
        kept[row, best] = similar[row, best]
    found = fit_itemknn(csr_matrix(plays_matrix()))({"kind": kind, "neighbours": neighbours})(EVERYBODY)
    np.testing.assert_allclose(found, binary @ kept, atol=1e-5)


@pytest.mark.parametrize("weight", ["one", "log"])
def test_ials_reaches_the_optimum(weight: str) -> None:
    """With as many factors as tracks the best scores are unique: exact least squares from elsewhere end there too."""
    counts = plays_matrix()
    alpha, regularization = 2.0, 1.5
    confidence = np.where(counts > 0, alpha * (np.log1p(counts) if weight == "log" else 1.0), 1.0)
    liked = (counts > 0).astype(np.float64)
    rng = np.random.default_rng(3)
    users, tracks = rng.random((12, 9)), rng.random((9, 9))
    for _ in range(300):
        for n, own in enumerate(confidence):
            left = (tracks.T * own) @ tracks + regularization * np.eye(9)
            users[n] = np.linalg.solve(left, (tracks.T * own) @ liked[n])
        for n, own in enumerate(confidence.T):
            left = (users.T * own) @ users + regularization * np.eye(9)
            tracks[n] = np.linalg.solve(left, (users.T * own) @ liked[:, n])
    params = {"factors": 9, "regularization": regularization, "alpha": alpha, "weight": weight}
    found = fit_ials(csr_matrix(counts))(params)(EVERYBODY)
    np.testing.assert_allclose(found, users @ tracks.T, atol=0.03)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (12, 12)])
@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_ease_is_a_ridge_regression_of_each_track_on_the_others(shape: tuple[int, int], strength: float) -> None:
    binary = (plays_matrix(shape) > 0).astype(np.float64)
    expected = np.empty(shape)
    for track in range(shape[1]):
        others = np.delete(binary, track, axis=1)
        left = others.T @ others + strength * np.eye(shape[1] - 1)
        expected[:, track] = others @ np.linalg.solve(left, others.T @ binary[:, track])
    some = np.array([3, 0, 5])
    found = fit_ease(csr_matrix(plays_matrix(shape)))({"lambda": strength})(some)
    np.testing.assert_allclose(found, expected[some], atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
@pytest.mark.parametrize("strength", [0.5, 20.0])
@pytest.mark.parametrize("dropout", [0.25, 0.66])
def test_dlae_gives_back_what_dropout_took_in_expectation(
    shape: tuple[int, int], strength: float, dropout: float
) -> None:
    """Ridge regression of all plays on every way to drop some, each weighted by its probability: nothing is drawn."""
    binary = (plays_matrix(shape) > 0).astype(np.float64)
    corrupted, complete = [], []
    for own in binary:
        played = np.flatnonzero(own)
        for kept in itertools.product((0, 1), repeat=len(played)):
            probability = (1 - dropout) ** sum(kept) * dropout ** (len(kept) - sum(kept))
            left = np.zeros_like(own)
            left[played] = np.array(kept) / (1 - dropout)  # what is kept is scaled up, as in training networks
            corrupted.append(np.sqrt(probability) * left)
            complete.append(np.sqrt(probability) * own)
    inputs, outputs = np.array(corrupted), np.array(complete)
    weights = np.linalg.solve(inputs.T @ inputs + strength * np.eye(shape[1]), inputs.T @ outputs)
    some = np.array([3, 0, 4])
    found = fit_dlae(csr_matrix(plays_matrix(shape)))({"dropout": dropout, "lambda": strength})(some)
    np.testing.assert_allclose(found, (binary @ weights)[some], atol=1e-5)


def test_dlae_over_users_is_dlae_over_tracks() -> None:
    """The same users among more tracks that nobody played are fewer than tracks: the other matrix is inverted."""
    plays, params = plays_matrix((12, 9)), {"dropout": 0.4, "lambda": 3.0}
    wide = np.concatenate([plays, np.zeros((12, 5), np.float32)], axis=1)
    by_track, by_user = fit_dlae(csr_matrix(plays))(params)(EVERYBODY), fit_dlae(csr_matrix(wide))(params)(EVERYBODY)
    np.testing.assert_allclose(by_user[:, :9], by_track, atol=1e-5)
    np.testing.assert_array_equal(by_user[:, 9:], 0)


@pytest.mark.parametrize("neighbours", [3, 1000])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.7, 0.4), (1.3, 0.8)])
def test_rp3beta_is_a_walk_of_three_steps(
    neighbours: int, alpha: float, beta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline_fits, "MAX_SCORES", 18)  # blocks of two tracks
    binary = (plays_matrix((60, 9), 5) > 0).astype(np.float64)
    binary[3], binary[:, 8] = 0, 0  # nobody, and a track without listeners
    n_users, n_tracks = binary.shape
    played, listeners = binary.sum(axis=1), binary.sum(axis=0)
    walks = np.zeros((n_tracks, n_tracks))  # from a track to a listener of it, to another track of theirs
    for start, user, end in itertools.product(range(n_tracks), range(n_users), range(n_tracks)):
        if binary[user, start] and binary[user, end] and start != end:
            step = (1 / listeners[start]) ** alpha * (1 / played[user]) ** alpha
            walks[start, end] += step / listeners[end] ** beta
    for row in walks:
        best = np.sort(row)[::-1]
        if len(best) > neighbours:
            assert best[neighbours - 1] > best[neighbours] + 1e-9 or best[neighbours - 1] == 0  # no tie to break
        row[row < best[min(neighbours, n_tracks) - 1]] = 0
    expected = np.zeros_like(binary)
    for user, track in np.argwhere(binary):  # the first step
        expected[user] += (1 / played[user]) ** alpha * walks[track]
    counts = csr_matrix((plays_matrix((60, 9), 5) * binary).astype(np.float32))
    found = fit_rp3beta(counts)({"alpha": alpha, "beta": beta, "neighbours": neighbours})(np.arange(60))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_walk_without_powers_keeps_its_probability() -> None:
    """Three random steps end somewhere: with what went back to its track, the scores of a user add up to one."""
    binary = (plays_matrix() > 0).astype(np.float64)
    to_tracks, to_users = binary / binary.sum(axis=1, keepdims=True), (binary / binary.sum(axis=0)).T
    back = to_tracks @ np.diag(np.diag(to_users @ to_tracks))
    walked = {"alpha": 1.0, "beta": 0.0, "neighbours": 1000}
    found = fit_rp3beta(csr_matrix(plays_matrix()))(walked)(EVERYBODY)
    np.testing.assert_allclose(found.sum(axis=1) + back.sum(axis=1), 1, atol=1e-6)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """40 users, 30 tracks; user 0 has no train play, track 29 none."""
    plays = [play for play in random_plays(1, 40, 30, 9) if play[2] != TRAIN or (play[0] != 0 and play[1] != 29)]
    return write_dataset(tmp_path / "dataset", names("u", 40), names("t", 30), plays)


def known(dataset: Dataset) -> Any:
    return np.ones(len(dataset.track_ids), np.bool_)


@pytest.mark.parametrize("as_of", ["test", "valid"])
@pytest.mark.parametrize("k", [5, 40])
@pytest.mark.parametrize("name", NAMES)
def test_lists_are_the_best_unheard_known_tracks_ties_by_popularity(
    dataset: Dataset, as_of: Any, k: int, name: str
) -> None:
    targets, log = find_targets(dataset, as_of), Log.of(dataset)
    usual = baselines._grids(name, log.train)[0]
    scores = np.round(FITS[name](log.train, 0)(usual)(np.arange(40)), 2)  # rounded: ties
    can = np.arange(30) % 7 != 3
    found = ranked(lambda users: scores[users].copy(), log, dataset, targets, can, as_of, k)
    plays = dataset.plays
    popularity = np.bincount(plays.track[plays.fold == TRAIN], minlength=30)
    column = {int(track): place for place, track in enumerate(log.order)}
    for n, user in enumerate(targets.users):
        heard = set(plays.track[(plays.user == user) & (plays.fold < {"test": TEST, "valid": VALID}[as_of])].tolist())
        free = [track for track in range(30) if can[track] and track not in heard]
        best = sorted(free, key=lambda track: (-scores[user, column[track]], -popularity[track], track))
        assert found[n].tolist() == (best + [-1] * k)[:k]


def test_a_user_without_train_plays_gets_what_is_popular(dataset: Dataset) -> None:
    targets = find_targets(dataset, "valid")
    assert targets.users[0] == 0
    found = measure(dataset, NAMES, targets, known(dataset), as_of="valid", k=10, seed=0)
    popular = found["popular"].lists
    assert popular is not None
    for one in found.values():
        assert one.lists is not None
        assert one.lists[0].tolist() == popular[0].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_best_of_the_grid_on_the_valid_fold_is_taken(dataset: Dataset, name: str) -> None:
    targets, valid, log = find_targets(dataset, "test"), find_targets(dataset, "valid"), Log.of(dataset)
    found = measure(dataset, [name], targets, known(dataset), as_of="test", k=10, seed=0)[name]

    def quality(params: dict[str, Any]) -> float:
        lists = ranked(FITS[name](log.train, 0)(params), log, dataset, valid, known(dataset), "valid", 10)
        return rank_metrics(lists, valid.offsets, valid.tracks, 30, (10,)).means()["ndcg@10"]

    usual, *rounds = baselines._grids(name, log.train)
    assert found.valid_ndcg == pytest.approx(quality(found.chosen))
    tried = [quality(params) for params in baselines._combinations(usual, rounds[0])] if rounds else [quality({})]
    assert found.valid_ndcg is not None
    assert found.valid_ndcg >= max(tried) - 1e-9
    assert found.tried >= len(tried)


def test_without_a_valid_fold_the_usual_values_are_taken_and_it_shows(tmp_path: Path) -> None:
    plays = [(u, t, TEST if f == VALID else f) for u, t, f in random_plays(1, 20, 30, 9)]
    dataset = write_dataset(tmp_path / "d", names("u", 20), names("t", 30), plays)
    found = measure(dataset, NAMES, find_targets(dataset, "test"), known(dataset), as_of="test", k=10, seed=0)
    for name, one in found.items():
        assert one.chosen == baselines._grids(name, Log.of(dataset).train)[0]
        assert (one.tried, one.valid_ndcg) == (0, None)


def both(dataset: Dataset, targets: Targets, **changes: Any) -> Baseline:
    settings: dict[str, Any] = {"as_of": "test", "k": 10, "seed": 0} | changes
    return measure(dataset, ["ease"], targets, known(dataset), **settings)["ease"]


def test_what_was_measured_is_kept_and_read_back(dataset: Dataset) -> None:
    targets = find_targets(dataset, "test")
    first, again = both(dataset, targets), both(dataset, targets)
    assert (first.cached, again.cached) == (False, True)
    assert first.lists is not None
    np.testing.assert_array_equal(first.lists, again.lists)
    assert first.to_json() | {"cached": True} == again.to_json()
    folder = dataset.path / "baselines"
    kept = [path.name for path in folder.iterdir()]
    assert len(kept) == 1
    assert kept[0].startswith("ease-")
    assert Dataset.open(dataset.path).info == dataset.info
    for change in ({"seed": 1}, {"k": 11}):
        assert not both(dataset, targets, **change).cached
    assert not both(dataset, targets.sample(5, 0)).cached


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_damaged_file_is_made_again(dataset: Dataset, content: bytes) -> None:
    targets = find_targets(dataset, "test")
    first = both(dataset, targets)
    (kept,) = (dataset.path / "baselines").iterdir()
    kept.write_bytes(content)
    again = both(dataset, targets)
    assert not again.cached
    np.testing.assert_array_equal(first.lists, again.lists)
    assert both(dataset, targets).cached


@pytest.mark.parametrize("name", ["ease", "dlae"])
def test_what_inverts_says_why_it_was_skipped(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(baselines, "INVERTED_LIMIT", 29)
    targets = find_targets(dataset, "test")
    found = measure(dataset, [name], targets, known(dataset), as_of="test", k=10, seed=0)[name]
    assert found.lists is None
    reason = f"{name.upper()} inverts a matrix over users or tracks: 30 of the fewer, at most 29"
    assert found.to_json()["skipped"] == reason


def real_dataset(folder: Path, name: str) -> Dataset:
    split = np.load(real_data(name) / "splits" / "random_seed0.npz", allow_pickle=False)
    plays = np.stack([split["u"], split["i"], split["fold"]], axis=1).tolist()
    ids: Sequence[str] = split["user_ids"].astype(str).tolist()
    return write_dataset(folder / "dataset", ids, split["item_ids"].astype(str).tolist(), plays)


@pytest.mark.real_data
def test_figures_on_movielens_are_those_of_other_implementations(tmp_path: Path) -> None:
    dataset = real_dataset(tmp_path, "movielens-100k")
    targets = find_targets(dataset, "test")
    expected = {
        "popular": (0.1405, 0.1778),
        "itemknn": (0.2795, 0.3357),
        "ials": (0.3248, 0.4022),
        "ease": (0.3319, 0.3963),
        "dlae": (0.3351, 0.4019),
    }
    found = measure(dataset, tuple(expected), targets, known(dataset), as_of="test", k=20, seed=0)

    def quality(lists: I64 | None) -> tuple[float, float]:
        assert lists is not None
        means = rank_metrics(lists, targets.offsets, targets.tracks, len(dataset.track_ids)).means()
        return means["ndcg@10"], means["recall@20"]

    for name, figures in expected.items():
        assert quality(found[name].lists) == pytest.approx(figures, abs=0.02), name
