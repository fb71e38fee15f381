"""The closed-form teachers against their definitions: ridge, iALS, and what the towers start as."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.data.dataset import Dataset
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.evaluation.metrics import rank_metrics
from lhydra.features.histories import HISTORY_FEATURES, Histories, offsets_of
from lhydra.training import ridge, step, teachers
from lhydra.training.data import Targets, TrainingData, hide, load, select
from lhydra.training.model import Network
from lhydra.training.shape import Shape
from lhydra.training.step import Tensors, embed_users, tensor
from lhydra.training.teachers import Factors, Table, Teachers
from lhydra.training.validate import embed_tracks
from tests.conftest import TINY_TRAINING


@pytest.fixture(scope="module")
def data(tiny_dataset: Dataset) -> TrainingData:
    return load(tiny_dataset)


@pytest.fixture(scope="module")
def listeners(data: TrainingData) -> np.ndarray:
    return np.flatnonzero(np.diff(data.train.offsets) > 0)


@pytest.fixture(scope="module")
def plays(data: TrainingData, listeners: np.ndarray) -> sp.csr_matrix:
    return teachers.matrix(select(data.train, listeners), data.n_tracks)


@pytest.fixture(scope="module")
def reports() -> list[Any]:
    return []


@pytest.fixture(scope="module")
def fitted(data: TrainingData, reports: list[Any]) -> Teachers:
    return teachers.fit(data, TINY_TRAINING.dim, 0, reports.append)


# -- co-listening -----------------------------------------------------------------------------------------


def neighbours_of(table: Table, track: int) -> list[int]:
    """The real neighbours; places that hold none repeat row 0 with weight 0."""
    some = table.weights[track] != 0
    return [int(row) for row in table.neighbours[track][some]]


@pytest.mark.parametrize("dense", [6_000, 1], ids=["dense", "sparse"])
@pytest.mark.parametrize(("constant", "share"), [(50.0, 0.5), (300.0, 0.0), (1.0, 2.0)])
def test_weights_solve_the_normal_equations(
    plays: sp.csr_matrix, dense: int, constant: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "MAX_DENSE_TRACKS", dense)
    monkeypatch.setattr(teachers, "NEIGHBOURS", 40)
    (table,) = teachers._tables(plays, [(constant, share)])
    together = plays.astype(np.float64).toarray()
    for track in range(0, plays.shape[1], 7):
        near = neighbours_of(table, track)
        x, y = together[:, near], together[:, track]
        left = x.T @ x + np.diag(constant + share * (x * x).sum(0))
        expected = np.linalg.solve(left, x.T @ y)
        found = table.weights[track][table.weights[track] != 0]
        np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-3)  # kept in 16 bits
        assert track not in near
        assert len(set(near)) == len(near)


@pytest.mark.parametrize("dense", [6_000, 1], ids=["dense", "sparse"])
def test_neighbours_are_the_nearest_by_shrunk_cosine(
    plays: sp.csr_matrix, dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "MAX_DENSE_TRACKS", dense)
    monkeypatch.setattr(teachers, "NEIGHBOURS", 12)
    (table,) = teachers._tables(plays, [(50.0, 0.5)])
    x = plays.astype(np.float64).toarray()
    gram = x.T @ x
    cosine = gram / np.sqrt(np.outer(np.diag(gram) + ridge.COSINE_SHRINKAGE, np.diag(gram) + ridge.COSINE_SHRINKAGE))
    np.fill_diagonal(cosine, 0)
    assert table.neighbours.shape == (plays.shape[1], 12)
    for track in range(plays.shape[1]):
        near = neighbours_of(table, track)
        assert len(near) == min(12, int((gram[track] > 0).sum() - (gram[track, track] > 0)))
        left_out = np.delete(cosine[track], near)
        assert min(cosine[track, near], default=1) >= left_out.max() - 1e-6


def test_the_matrix_of_the_table_goes_from_heard_to_candidate(fitted: Teachers, data: TrainingData) -> None:
    table, dense = fitted.table, fitted.table.matrix.toarray()
    for track in range(0, data.n_tracks, 31):
        expected = np.zeros(data.n_tracks)
        np.add.at(expected, table.neighbours[track], table.weights[track])
        np.testing.assert_array_equal(dense[:, track], expected.astype(np.float32))
    assert (dense.diagonal() == 0).all()


@given(st.lists(st.lists(st.floats(1, 1e4), max_size=6), max_size=5))
def test_plays_weigh_as_the_features_of_a_history(counts: list[list[float]]) -> None:
    """What the teachers see of a play is what exp(entry[:, 0]) says in the user tower and in co-listening."""
    lengths = np.array([len(own) for own in counts], np.int64)
    flat = np.array([count for own in counts for count in own], np.float32)
    rows = np.concatenate([np.arange(length) for length in lengths]) if len(counts) else np.empty(0, np.int64)
    histories = Histories(offsets_of(lengths), rows.astype(np.int64), flat, np.zeros(len(flat), np.int64))
    found = teachers.matrix(histories, 6)
    for user, own in enumerate(counts):
        weight = np.log1p(np.array(own))
        if own:
            expected = np.clip(weight / weight.mean(), 0.05, 20)
            np.testing.assert_allclose(found[[user], : len(own)].toarray()[0], expected, rtol=1e-4)


# -- iALS -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(2, 15), st.integers(1, 5), st.floats(1, 60))
def test_user_factors_minimise_the_objective(seed: int, users: int, n: int, width: int, alpha: float) -> None:
    """Sum over all tracks of c (1 - u.v)^2 or (u.v)^2, plus reg |u|^2; c is alpha times the play's weight."""
    rng = np.random.default_rng(seed)
    item, reg = rng.normal(size=(n, width)), 1.7
    weight = np.where(rng.random((users, n)) < 0.4, rng.uniform(0.1, 3, (users, n)), 0)
    gram = item.T @ item + reg * np.eye(width)
    map_ = np.eye(width, dtype=np.float32)
    factors = Factors(item.astype(np.float32), gram.astype(np.float32), alpha, map_)
    found = factors.users(sp.csr_matrix(weight.astype(np.float32)))
    confidence = np.where(weight > 0, alpha * weight, 1.0)
    for user, c in enumerate(confidence):
        left = (item * c[:, None]).T @ item + reg * np.eye(width)
        expected = np.linalg.solve(left, item.T @ (c * (weight[user] > 0)))
        np.testing.assert_allclose(found[user], expected, atol=2e-3 * max(1.0, np.abs(expected).max()))

        def objective(u: np.ndarray, user: int = user, c: np.ndarray = c) -> float:
            return float((c * ((weight[user] > 0) - item @ u) ** 2).sum() + reg * (u @ u))

        least = objective(expected)
        assert objective(found[user]) <= least * (1 + 1e-4) + 1e-4
        assert objective(expected + 0.1 * rng.normal(size=width)) >= least


def test_the_fitted_user_factors_are_those_that_implicit_ends_with(plays: sp.csr_matrix) -> None:
    """One half-step of iALS from the fitted items: gradient zero under the items' own reg and alpha."""
    reg, alpha = 20.0, 4.0
    factors = teachers._factors(plays, 16, reg, alpha, seed=0)
    item = factors.item.astype(np.float64)
    np.testing.assert_allclose(factors.gram, item.T @ item + reg * np.eye(16), rtol=1e-3, atol=1e-3)
    users = factors.users(plays).astype(np.float64)
    weight = plays.astype(np.float64).toarray() * alpha
    confidence = np.where(weight > 0, weight, 1.0)
    error = users @ item.T - (weight > 0)
    gradient = (confidence * error) @ item + reg * users
    assert np.abs(gradient).max() < 1e-3 * np.abs((confidence * (weight > 0)) @ item).max()


def test_factors_order_what_was_played_first(plays: sp.csr_matrix, fitted: Teachers) -> None:
    scores = fitted.factors.users(plays) @ fitted.factors.item.T
    heard = plays.toarray() > 0
    for row, own in zip(scores, heard, strict=True):
        if 0 < own.sum() < len(own):
            assert row[own].mean() > row[~own].mean()


# -- the start of the towers ------------------------------------------------------------------------------


@torch.no_grad()
def started(data: TrainingData, fitted: Teachers, noise: bool) -> tuple[np.ndarray, np.ndarray, Network]:
    """(users, tracks, network) of towers before any training; without noise exactly what they start from."""
    network = Network(Shape.of(data.spec, TINY_TRAINING.dim, 16, 0.2), len(HISTORY_FEATURES)).eval()
    if not noise:
        network.item_tower.retrieval_id.weight.zero_()
        network.item_tower.history_id.weight.zero_()
    item, history, user = (tensor(part) for part in fitted.start)
    tensors = Tensors.of(data)
    network.start_from(tensors.ids[:, 0], item, history, user if noise else torch.zeros_like(user))
    vectors, played = embed_tracks(network, tensors)
    users = np.arange(len(data.profiles))
    encoded = data.spec.encode_users(data.profiles[users], select(data.train, users), data.tracks)
    return embed_users(network, encoded, played).numpy(), vectors.numpy(), network


def test_cosines_order_tracks_as_the_factor_model_does(
    data: TrainingData, listeners: np.ndarray, plays: sp.csr_matrix, fitted: Teachers
) -> None:
    users, tracks, _ = started(data, fitted, noise=False)
    np.testing.assert_allclose(np.linalg.norm(tracks[data.listeners > 0], axis=1), 1, atol=1e-5)
    factors = fitted.factors
    mapped = np.asarray(plays @ factors.item) @ factors.user_map  # the linear factor model, up to a length per user
    known = np.flatnonzero(data.listeners)
    expected = mapped @ factors.item[known].T
    found = users[listeners] @ tracks[known].T
    for a, b in zip(found, expected, strict=True):
        scale = (a @ b) / (b @ b)
        assert scale > 0
        np.testing.assert_allclose(a, scale * b, atol=1e-4)  # one positive factor: the same order


def test_the_factor_model_is_near_the_exact_users(
    data: TrainingData, listeners: np.ndarray, plays: sp.csr_matrix, fitted: Teachers
) -> None:
    """The linear map stands for the least-squares solution well enough to start from."""
    mapped, exact = teachers._mapped(fitted.factors, plays), fitted.factors.users(plays)
    cosine = (mapped * exact).sum(1) / np.linalg.norm(mapped, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.median(cosine) > 0.8
    best = np.argsort(-(started(data, fitted, noise=True)[0][listeners] @ started(data, fitted, True)[1].T), 1)
    known = plays.toarray() > 0
    hits = np.take_along_axis(known, best[:, :10], 1).mean()
    assert hits > 3 * known.mean()  # also with the noise that training starts from


def test_users_without_a_history_start_as_the_mean_user(data: TrainingData, fitted: Teachers) -> None:
    users, _, _ = started(data, fitted, noise=True)
    cold = np.flatnonzero(np.diff(data.train.offsets) == 0)
    assert len(cold)
    width = len(fitted.start[2])
    for user in cold:
        np.testing.assert_allclose(users[user, :width], fitted.start[2], atol=1e-3)
    assert np.linalg.norm(fitted.start[2]) == pytest.approx(1, abs=1e-4)


# -- what the teachers see --------------------------------------------------------------------------------


def test_logits_are_the_mixture_of_both_scores(data: TrainingData, listeners: np.ndarray, fitted: Teachers) -> None:
    seen = select(data.train, listeners[:30])
    block = teachers.matrix(seen, data.n_tracks)
    expected = fitted.mix[0] * (block @ fitted.table.matrix).toarray()
    expected = expected + fitted.mix[1] * fitted.factors.users(block) @ fitted.factors.item.T
    np.testing.assert_allclose(fitted.logits(seen).numpy(), expected, atol=1e-3)
    rows = np.arange(5, data.n_tracks, 3)
    np.testing.assert_allclose(fitted.logits(seen, rows).numpy(), expected[:, rows], atol=1e-3)


@pytest.mark.parametrize("full_softmax", [20_000, 1], ids=["full", "sampled"])
def test_hidden_plays_never_enter_the_scores(
    data: TrainingData,
    listeners: np.ndarray,
    fitted: Teachers,
    full_softmax: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a step the teacher is asked with what the towers see, and with nothing that they are to predict."""
    shown: list[Histories] = []
    hidden: list[tuple[Histories, Targets]] = []
    logits = Teachers.logits

    def asked(self: Teachers, seen: Histories, *args: Any, **kwargs: Any) -> torch.Tensor:
        shown.append(seen)
        return logits(self, seen, *args, **kwargs)

    def parted(*args: Any, **kwargs: Any) -> tuple[Histories, Targets]:
        hidden.append(hide(*args, **kwargs))
        return hidden[-1]

    monkeypatch.setattr(Teachers, "logits", asked)
    monkeypatch.setattr(step, "hide", parted)
    config = replace(TINY_TRAINING, full_softmax=full_softmax, uniform_negatives=50)
    users = listeners[:64]
    step.prepare(data, Tensors.of(data), fitted, users, np.random.default_rng(0), config)
    (seen,), ((towers_see, wanted),) = shown, hidden
    assert len(wanted.rows) >= len(users)
    for i in range(len(users)):
        own = seen.rows[seen.offsets[i] : seen.offsets[i + 1]]
        assert own.tolist() == towers_see.rows[towers_see.offsets[i] : towers_see.offsets[i + 1]].tolist()
        assert not np.isin(own, wanted.rows[wanted.offsets[i] : wanted.offsets[i + 1]]).any()


def test_a_play_that_is_not_shown_changes_no_score(data: TrainingData, listeners: np.ndarray, fitted: Teachers) -> None:
    """The scores of one user depend on the plays given of that user, and on no other user of the batch."""
    few = select(data.train, listeners[:8])
    alone = [fitted.logits(select(data.train, listeners[i : i + 1])).numpy()[0] for i in range(8)]
    np.testing.assert_allclose(fitted.logits(few).numpy(), np.stack(alone), atol=2e-3)


# -- tuning -----------------------------------------------------------------------------------------------


def test_settings_are_chosen_on_the_validation_fold(fitted: Teachers, reports: list[Any], data: TrainingData) -> None:
    for name in ("ials", "co-listening"):
        tried = [line for line in reports if line.teacher == name]
        settings = (*teachers.IALS_SETTINGS, teachers.IALS_SMOOTH)
        widths = {(min(width, TINY_TRAINING.dim - 1), *rest) for width, *rest in settings}
        assert len(tried) == len({"ials": widths, "co-listening": teachers.TABLE_PENALTIES}[name])
        best = max(tried, key=lambda line: line.ndcg / (1.02 if line.setting[1:] == (100.0, 20.0) else 1))
        assert {"ials": fitted.ials, "co-listening": fitted.penalty}[name] == best.setting
    # what is reported is the NDCG of the chosen table on the validation plays, train plays left out
    shown = select(data.train, data.valid.users)
    block = teachers.matrix(shown, data.n_tracks)
    scores = (block @ fitted.table.matrix).toarray()
    scores[block.nonzero()] = -np.inf
    lists = np.argsort(-scores, 1)[:, :20]
    best = max(line.ndcg for line in reports if line.teacher == "co-listening")
    found = rank_metrics(lists, data.valid.offsets, data.valid.rows, data.n_tracks).means()["ndcg@10"]
    assert found == pytest.approx(best, abs=1e-3)  # but for ties


@pytest.mark.parametrize(("quality", "taken"), [(0.1019, False), (0.1021, True)])
def test_strong_regularisation_must_be_worth_two_percent(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch, quality: float, taken: bool
) -> None:
    told = iter([*[0.09] * 4, 0.1, quality, 0.1, 0.1])
    monkeypatch.setattr(teachers, "_ndcg", lambda *args: next(told))
    assert teachers.fit(data, 129, 0).ials == ((128, 100.0, 20.0) if taken else (128, 40.0, 40.0))


def test_the_validation_fold_decides(data: TrainingData) -> None:
    """Other validation plays, same train plays: the same candidates, measured anew."""
    rng = np.random.default_rng(0)
    other = np.concatenate(
        [
            np.sort(rng.permutation(data.n_tracks)[: data.valid.offsets[i + 1] - data.valid.offsets[i]])
            for i in range(len(data.valid.users))
        ]
    )
    reports: list[Any] = []
    teachers.fit(replace(data, valid=replace(data.valid, rows=other)), TINY_TRAINING.dim, 0, reports.append)
    assert max(line.ndcg for line in reports) < 0.06  # nothing predicts random plays


def test_the_same_seed_gives_the_same_teachers_in_any_number_of_threads(data: TrainingData, fitted: Teachers) -> None:
    again = teachers.fit(data, TINY_TRAINING.dim, 0, threads=3)
    np.testing.assert_array_equal(again.table.weights, fitted.table.weights)
    np.testing.assert_array_equal(again.factors.item, fitted.factors.item)
    assert (again.mix, again.ials, again.penalty) == (fitted.mix, fitted.ials, fitted.penalty)


SMALL: dict[str, list[tuple[str, str, str]]] = {
    "one listener, three tracks": [("u", "a", "train"), ("u", "b", "train"), ("u", "c", "train"), ("v", "a", "test")],
    "one listener, one track": [("u", "a", "train"), ("v", "a", "test")],
    "each track once": [(f"u{i}", f"t{i}", "train") for i in range(9)],
    "everybody plays everything": [(f"u{i}", f"t{j}", "train") for i in range(6) for j in range(5)],
    "one validation play": [
        *((f"u{i}", f"t{j}", "train") for i in range(8) for j in range(i % 4 + 1)),
        ("u0", "t3", "valid"),
    ],
    "three tracks, valid": [(f"u{i}", f"t{(i + j) % 3}", ("train", "valid")[j]) for i in range(30) for j in range(2)],
    "nothing but new users in valid": [
        ("u", "a", "train"),
        ("u", "b", "train"),
        ("v", "a", "valid"),
        ("v", "c", "valid"),
    ],
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dim", [8, 2])
def test_very_little_data_is_enough(name: str, dim: int, tmp_path: Path) -> None:
    rows = "".join(",".join(row) + "\n" for row in SMALL[name])
    (tmp_path / "plays.csv").write_text(f"user_id,track_id,split\n{rows}")
    prepare(tmp_path / "plays.csv", tmp_path / "dataset", PrepareSettings())
    small = load(Dataset.open(tmp_path / "dataset"))
    found = teachers.fit(small, dim, 0)
    n = small.n_tracks
    assert found.table.neighbours.shape == found.table.weights.shape
    assert len(found.table.neighbours) == n
    item, history, mean = found.start
    assert item.shape == history.shape == (n, len(mean))
    assert item.shape[1] < dim
    for part in (*found.start, found.table.weights, found.factors.gram, np.array(found.mix)):
        assert np.isfinite(part).all()
    everybody = np.arange(len(small.profiles))
    logits = found.logits(select(small.train, everybody))
    assert logits.shape == (len(everybody), n)
    assert logits.isfinite().all()
