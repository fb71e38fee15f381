"""Training: what is hidden, the losses, exact resume, early stopping, the export, what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from lhydra.bundle.history_vectors import HistoryVectors
from lhydra.bundle.model import PARTS, Model, ModelInfo, Parents, Quality
from lhydra.cli import main
from lhydra.data.dataset import TEST, TRAIN, VALID, Dataset, Plays
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.errors import ModelError
from lhydra.features.histories import spans
from lhydra.features.spec import Encoded
from lhydra.training import export as exporting
from lhydra.training import patience, teachers
from lhydra.training.calibration import platt
from lhydra.training.checkpoint import State
from lhydra.training.config import TrainSettings
from lhydra.training.data import TrainingData, hide, load, select, targets
from lhydra.training.dropout import Dropout
from lhydra.training.losses import log_q, softmax_loss
from lhydra.training.model import ItemTower, Network
from lhydra.training.optimizer import schedule
from lhydra.training.progress import EpochDone, Progress, TemperatureTried
from lhydra.training.shape import Shape
from lhydra.training.step import Tensors
from lhydra.training.train import Run, _epoch, _fold, _new, train
from tests.conftest import TINY_TRAINING
from tests.harness import free_port
from tests.quick_export import environ

QUICK = replace(TINY_TRAINING, epochs=3, head_epochs=1, depth=60)
pytestmark = pytest.mark.usefixtures("quick_export")


@pytest.fixture(scope="module")
def data(tiny_dataset: Dataset) -> TrainingData:
    return replace(load(tiny_dataset), in_order=False)


# -- what is hidden ---------------------------------------------------------------------------------------


def test_hide_parts_each_users_train_plays(data: TrainingData) -> None:
    users = np.flatnonzero(np.diff(data.train.offsets) > 0)
    seen, hidden = hide(data, users, np.random.default_rng(1), keep=0.8, cold=0.2, longest=10**6)
    kept = []
    for i, user in enumerate(users):
        own = data.train.rows[data.train.offsets[user] : data.train.offsets[user + 1]].tolist()
        a = seen.rows[seen.offsets[i] : seen.offsets[i + 1]].tolist()
        b = hidden.rows[hidden.offsets[i] : hidden.offsets[i + 1]].tolist()
        assert len(b) >= 1
        assert sorted(a + b) == sorted(own)
        kept.append(len(a) / len(own))
    cold = np.mean(np.array(kept) == 0)
    assert 0.1 < cold < 0.35
    assert 0.7 < np.mean([share for share in kept if share]) < 0.85


def test_hide_caps_what_is_seen_and_repeats_with_its_seed(data: TrainingData) -> None:
    users = np.flatnonzero(np.diff(data.train.offsets) > 30)
    a, b = (hide(data, users, np.random.default_rng(5), 0.9, 0.0, longest=10) for _ in range(2))
    np.testing.assert_array_equal(a[0].rows, b[0].rows)
    np.testing.assert_array_equal(a[1].rows, b[1].rows)
    assert np.diff(a[0].offsets).mean() <= 10


def test_train_arrays_hold_no_held_out_play(data: TrainingData, tiny_dataset: Dataset) -> None:
    plays = tiny_dataset.plays
    train = plays.where(plays.fold == TRAIN)
    np.testing.assert_array_equal(data.train.rows, train.track)
    np.testing.assert_array_equal(data.listeners, np.bincount(train.track, minlength=data.n_tracks))
    for fold in (VALID, TEST):
        found = targets(tiny_dataset, fold)
        earlier = {(u, t) for u, t, f in zip(plays.user, plays.track, plays.fold, strict=True) if f < fold}
        wanted = {(u, t) for u, t, f in zip(plays.user, plays.track, plays.fold, strict=True) if f == fold} - earlier
        owner = np.repeat(found.users, np.diff(found.offsets))
        assert set(zip(owner.tolist(), found.rows.tolist(), strict=True)) == {(int(u), int(t)) for u, t in wanted}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=8))
def test_spans(pairs: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in pairs], np.int64)
    ends = np.array([start + length for start, length in pairs], np.int64)
    assert spans(starts, ends).tolist() == [i for start, length in pairs for i in range(start, start + length)]


# -- losses -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 4), st.integers(2, 7))
def test_softmax_loss_equals_a_slow_one(seed: int, n: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, width)) * 3
    wanted = rng.random((n, width)) < 0.4
    out = (rng.random((n, width)) < 0.3) & ~wanted
    losses = []
    for i in range(n):
        if wanted[i].any():
            total = np.log(sum(np.exp(logits[i, j]) for j in range(width) if not out[i, j]))
            losses.append(np.mean([total - logits[i, j] for j in range(width) if wanted[i, j]]))
    found = softmax_loss(torch.tensor(logits), torch.tensor(wanted), torch.tensor(out))
    assert found.item() == pytest.approx(np.mean(losses) if losses else 0.0, abs=1e-9)


def test_log_q_makes_the_sampled_softmax_see_the_full_one() -> None:
    """With the correction the sampled denominator estimates the full one; without it popular tracks distort it."""
    rng = np.random.default_rng(0)
    n, n_targets, uniform = 2_000, 400, 400
    share = 1 / np.arange(1, n + 1)
    share /= share.sum()
    logits = rng.normal(size=n) + np.log(share * n)  # popular tracks score higher, as trained towers do
    full = np.log(np.exp(logits).sum())
    correction = log_q(torch.tensor(share), n_targets, uniform / n).numpy()
    corrected, plain = [], []
    for _ in range(60):
        drawn = np.unique(np.concatenate([rng.choice(n, n_targets, p=share), rng.integers(0, n, uniform)]))
        corrected.append(np.log(np.exp(logits[drawn] - correction[drawn]).sum()))
        plain.append(np.log(np.exp(logits[drawn]).sum() * n / len(drawn)))
    assert abs(np.mean(corrected) - full) < 0.1 * abs(np.mean(plain) - full)


def test_platt_finds_the_calibration_it_was_drawn_from() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(3, 5, 40_000)
    labels = rng.random(40_000) < 1 / (1 + np.exp(-(0.7 * logits - 1.5)))
    a, b = platt(logits, labels)
    assert a == pytest.approx(0.7, rel=0.05)
    assert b == pytest.approx(-1.5, rel=0.05)
    assert platt(logits, ~labels)[0] > 0  # strictly monotone, whatever the data say


# -- the network ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(data: TrainingData) -> Network:
    users = np.flatnonzero(np.diff(data.train.offsets) > 0)
    made, _ = _new(Run(data, Tensors.of(data), teachers.fit(data, QUICK.dim, 0), QUICK, users, 64))
    torch.nn.init.normal_(made.head.out.weight)  # it starts at the retrieval order
    return made.eval()


@torch.no_grad()
def test_towers_give_unit_vectors_and_padding_changes_nothing(network: Network, data: TrainingData) -> None:
    _, user, _ = exporting._examples(network, data, 5, 4)
    vectors = network.user_tower(*user)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    dense, ids, history, entry, mask = user
    noise = torch.randn(5, 3, history.shape[2])
    longer = (
        dense,
        ids,
        torch.cat([history, noise], 1),
        torch.cat([entry, torch.randn(5, 3, 3)], 1),
        torch.cat([mask, torch.zeros(5, 3)], 1),
    )
    torch.testing.assert_close(network.user_tower(*longer), vectors)
    assert not torch.allclose(network.user_tower(dense, ids, -history, entry, mask)[1:], vectors[1:])


def test_a_bag_is_the_mean_of_its_members_however_it_is_padded() -> None:
    tower = ItemTower(Shape(8, 8, 0.0, 0, (("track_id", 4),), 12, 0, (), (0, 0)))
    last = tower.content[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight)  # it starts silent
    optimizer = torch.optim.AdamW(tower.parameters(), lr=0.1)
    bags = torch.tensor([[3, 7, 11, 0], [5, 0, 0, 0], [0, 0, 0, 0]])
    dense, ids = torch.zeros(3, 0), torch.tensor([[1], [2], [3]])
    for _ in range(3):  # padding stays 0
        optimizer.zero_grad()
        sum(part.square().sum() for part in tower(dense, ids, bags)).backward()
        optimizer.step()
    table = tower.bag.weight.detach()
    means = torch.stack([table[[3, 7, 11]].mean(0), table[5], torch.zeros(table.shape[1])])
    asked: list[Tensor] = []
    tower.content.register_forward_pre_hook(lambda _, given: asked.append(given[0].detach()))
    tower(dense, ids, bags)
    tower(dense, ids, torch.cat([torch.zeros(3, 2, dtype=torch.int64), bags], 1))
    for found in asked:
        torch.testing.assert_close(found, means)


@torch.no_grad()
def test_the_weight_of_a_play_follows_count_gap_and_position(network: Network, data: TrainingData) -> None:
    _, (dense, ids, history, entry, mask), _ = exporting._examples(network, data, 5, 4)
    network.user_tower.weigh.weight.zero_()
    for i in range(3):
        other = entry.clone()
        other[1:, 0, i] += 1
        before = network.user_tower(dense, ids, history, entry, mask)
        torch.testing.assert_close(network.user_tower(dense, ids, history, other, mask), before)  # not learnt yet
        network.user_tower.weigh.weight[0, i] = 0.7
        assert not torch.allclose(
            network.user_tower(dense, ids, history, other, mask), network.user_tower(dense, ids, history, entry, mask)
        )
        network.user_tower.weigh.weight[0, i] = 0


@torch.no_grad()
def test_every_cross_moves_the_logits_of_its_pairs_and_no_other(network: Network, data: TrainingData) -> None:
    _, _, pair = exporting._examples(network, data, 6, 40)
    head = network.head
    user_ids, track_ids = pair[2], pair[5]
    assert len(head.pairs) == 7  # the synthetic world has all of them
    before = head(*pair)[0]
    for ((u, _), (t, _)), users, tracks in zip(head.pairs, head.cross_user, head.cross_track, strict=True):
        assert isinstance(users, nn.Embedding)
        assert isinstance(tracks, nn.Embedding)
        value = int(track_ids[0, 0, t])
        kept = tracks.weight[value].clone()
        tracks.weight[value] += 3
        moved = (head(*pair)[0] - before).abs() > 1e-7
        tracks.weight[value] = kept
        assert moved.any()
        assert not moved[track_ids[:, :, t] != value].any()
        assert users.weight.shape[0] > int(user_ids[:, u].max())


@torch.no_grad()
def test_preference_differences_enter_the_head(network: Network, data: TrainingData) -> None:
    _, _, pair = exporting._examples(network, data, 6, 20)
    start, end = network.head.preference
    assert end - start == len(data.spec.track_dense)
    network.head.of_user.weight[
        :, network.item_tower.retrieval_id.embedding_dim :
    ].zero_()  # only the differences are left
    before = network.head(*pair)[0]
    dense = pair[1].clone()
    dense[:, start:end] += 1
    assert not torch.allclose(network.head(pair[0], dense, *pair[2:])[0], before)


def test_the_folded_first_layer_is_the_plain_one(data: TrainingData) -> None:
    users = np.flatnonzero(np.diff(data.train.offsets) > 0)
    network = _new(Run(data, Tensors.of(data), teachers.fit(data, QUICK.dim, 0), QUICK, users, 64))[0].eval()
    head, (u, v) = network.head, (torch.randn(3, 32), torch.randn(3, 5, 32))
    folded = v @ (head.of_track.weight + head.of_product.weight * u.unsqueeze(1)).transpose(1, 2)
    wide = torch.cat([v, u.unsqueeze(1) * v], 2)
    plain = wide @ torch.cat([head.of_track.weight, head.of_product.weight], 1).T
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=1e-4)


def test_layers_are_normalised_and_dropped_out_in_training_only(network: Network) -> None:
    kinds = [type(module).__name__ for module in network.modules()]
    assert kinds.count("LayerNorm") == 2
    assert kinds.count("BatchNorm1d") == 1
    assert kinds.count("Dropout") == 3
    drop, ones = Dropout(0.25), torch.ones(100_000)
    assert (drop.eval()(ones) == 1).all()
    dropped = drop.train()(ones)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)


# -- the run ----------------------------------------------------------------------------------------------


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("took_s", "plays_per_s")} for line in found]


def test_resume_gives_the_same_result_as_an_uninterrupted_run(small_dataset: Dataset, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(small_dataset, whole, QUICK)

    def interrupt(line: Progress) -> None:
        if isinstance(line, EpochDone) and line.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_dataset, cut, QUICK, report=interrupt)
    assert not (cut / "model.json").exists()
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "of a killed run": true}\n')
    train(small_dataset, cut, QUICK, resume=True)
    assert lines(cut) == lines(whole)
    for name in ("last", "best"):
        a, b = (load_file(folder / "checkpoint" / f"{name}.safetensors") for folder in (whole, cut))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key
    tracks = Encoded(*(getattr(load(small_dataset).tracks, part) for part in ("dense", "ids", "bags")))
    vectors = [Model.open(folder).item_tower.embed(tracks)[0] for folder in (whole, cut)]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert {path.suffix for path in (whole / "checkpoint").iterdir()} == {".safetensors", ".json"}  # no pickle


def test_resume_refuses_another_configuration(tiny_dataset: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    with pytest.raises(ModelError, match=r"last\.safetensors: found"):
        train(tiny_dataset, tmp_path / "model", replace(TINY_TRAINING, seed=9), resume=True)
    with pytest.raises(ModelError, match="found another dim, expected a run with the same config"):
        train(tiny_dataset, tmp_path / "model", replace(TINY_TRAINING, dim=16), resume=True)


def test_resume_refuses_changed_data_before_anything_is_fitted(
    tiny_dataset: Dataset, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(tiny_model, model)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("refused too late")

    monkeypatch.setattr("lhydra.training.train.load", too_late)
    monkeypatch.setattr("lhydra.training.train._train_fold", too_late)
    for table, column in (("plays", "count"), ("tracks", "duration_ms"), ("users", "age"), ("dataset", "split")):
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(tiny_dataset.path, data)
        if table == "dataset":
            document = json.loads((data / "dataset.json").read_text())
            document["split"]["hash"] = "0"
            (data / "dataset.json").write_text(json.dumps(document))
        else:
            rows = pq.read_table(data / f"{table}.parquet")
            changed = pa.array(np.asarray(rows[column]) + 1, rows[column].type)
            pq.write_table(rows.set_column(rows.column_names.index(column), column, changed), data / f"{table}.parquet")
        with pytest.raises(ModelError, match=r"last\.safetensors: found (another split|other data than in )"):
            train(Dataset.open(data), model, TINY_TRAINING, resume=True, folds=2)
        assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    with pytest.raises(AssertionError, match="too late"):
        train(tiny_dataset, model, TINY_TRAINING, resume=True)
    (model / "checkpoint" / "last.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"last\.safetensors: found .*, expected a checkpoint of a run"):
        train(tiny_dataset, model, TINY_TRAINING, resume=True)


def test_patience_ends_the_run_and_the_best_epoch_is_kept(small_dataset: Dataset, tmp_path: Path) -> None:
    hopeless = replace(QUICK, epochs=9, patience=1, learning_rate=1e-9, head_learning_rate=1e-9)
    info = train(small_dataset, tmp_path, hopeless)
    done = lines(tmp_path)
    assert len(done) < 9
    best = (
        max(range(len(done)), key=lambda i: (done[i]["retrieval"]["ndcg@10"] + done[i]["retrieval"]["recall@20"], -i))
        + 1
    )
    assert info.quality["epoch"] == best == len(done) - 1


def test_an_epoch_that_finds_more_is_better_though_its_first_ranks_waver(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(
        [
            {"ndcg@10": 0.30, "recall@20": 0.40},
            {"ndcg@10": 0.29, "recall@20": 0.42},
            {"ndcg@10": 0.31, "recall@20": 0.38},
        ]
    )
    monkeypatch.setattr("lhydra.training.train.validate", lambda *args: next(told))
    monkeypatch.setattr("lhydra.training.content.fit", lambda *args: None)
    info = train(small_dataset, tmp_path, replace(QUICK, epochs=3, moments=0))
    assert info.quality["epoch"] == 2


@pytest.mark.parametrize(
    ("users", "fold", "batch_size", "epochs"),
    [
        (1, VALID, 64, 48),
        (943, VALID, 64, 48),
        (1_885, VALID, 125, 48),
        (8_192, VALID, 256, 48),
        (8_193, VALID, 256, 16),
        (29_858, VALID, 256, 16),
        (943, TEST, 64, 16),  # without validation plays nothing would say when to stop
    ],
)
def test_few_users_take_more_epochs(users: int, fold: int, batch_size: int, epochs: int) -> None:
    # Each user has two train plays; one more, whose only play is held out, is not among them.
    user = np.r_[np.repeat(np.arange(users, dtype=np.int32), 2), np.int32(users)]
    folds = np.r_[np.full(2 * users, TRAIN, np.int8), np.int8(fold)]
    zeros = np.zeros(len(user), np.int64)
    plays = Plays(user, zeros.astype(np.int32), np.ones(len(user), np.float32), zeros, folds)
    resolved = TrainSettings().resolved(plays)
    assert (resolved.batch_size, resolved.epochs, resolved.cycle) == (batch_size, epochs, 16)
    assert resolved.resolved(plays) == resolved
    given = TrainSettings(epochs=3, batch_size=7)
    assert given.resolved(plays) == given
    assert given.cycle == 3


def test_the_learning_rate_starts_anew_with_each_cycle(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def spied(done: float) -> float:
        asked.append(done)
        return schedule(done)

    monkeypatch.setattr("lhydra.training.train.schedule", spied)
    monkeypatch.setattr("lhydra.training.config.CYCLE", 2)
    train(small_dataset, tmp_path, replace(QUICK, epochs=4, head_epochs=0))
    half = len(asked) // 2
    np.testing.assert_allclose(asked[:half], np.arange(half) / half)
    np.testing.assert_allclose(asked[half:], asked[:half], atol=1e-12)


@pytest.mark.parametrize(
    ("most", "epoch", "best", "over"),
    [
        (8, 15, 8, False),
        (8, 16, 8, True),  # a first cycle that has not got better for so long is not followed by another
        (8, 16, 9, False),
        (8, 23, 9, False),  # the rate rose again seven epochs ago
        (8, 24, 9, True),
        (8, 24, 17, False),
        (16, 31, 9, False),
        (16, 32, 9, True),  # a whole cycle brought nothing
        (16, 32, 17, False),
        (16, 47, 17, False),
    ],
)
def test_patience_begins_anew_with_each_cycle(most: int, epoch: int, best: int, over: bool) -> None:
    state = State({}, Parents(dataset="", split={}), 0.1, epoch=epoch, best=Quality(epoch=best, retrieval={}))
    config = TrainSettings(epochs=48, patience=most)
    assert patience.over(state, config) == over
    assert not patience.over(replace(state, best=None), config)


@pytest.mark.parametrize(
    ("epoch", "now", "over"),
    [
        (31, 0.4, False),  # the cycle is not over
        (32, 0.4, True),
        (32, 0.4039, True),
        (32, 0.4041, False),
        (48, 0.4039, True),
    ],
)
def test_a_later_cycle_that_gains_little_is_the_last(epoch: int, now: float, over: bool) -> None:
    retrieval = {"ndcg@10": now / 2, "recall@20": now / 2}
    best = Quality(epoch=epoch - 2, retrieval=retrieval)
    state = State({}, Parents(dataset="", split={}), 0.1, epoch=epoch, best=best, began=0.4)
    config = TrainSettings(epochs=64)
    assert patience.over(state, config) == over
    assert not patience.over(replace(state, began=0.0), config)  # the first cycle
    assert not patience.over(replace(state, best=None), config)


def test_the_schedule_warms_up_and_comes_down() -> None:
    rates = [schedule(done) for done in np.linspace(0, 1, 200)]
    top = int(np.argmax(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(1, abs=0.03)
    assert 0 < min(rates) < 0.05


def test_the_sampled_softmax_learns_too(tiny_dataset: Dataset, tmp_path: Path) -> None:
    sampled = replace(QUICK, epochs=4, full_softmax=1, uniform_negatives=100)
    info = train(tiny_dataset, tmp_path, sampled)
    assert info.quality["retrieval"]["recall@20"] > 2 * 20 / 400  # twice what a random list finds


def test_a_loss_that_is_not_finite_ends_in_one_line(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = torch.tensor(float("nan"))
    monkeypatch.setattr("lhydra.training.train.losses", lambda *args: (nan, nan))
    with pytest.raises(ModelError, match="found a loss of nan in epoch 1, expected a finite loss"):
        train(small_dataset, tmp_path / "model", QUICK)
    assert not (tmp_path / "model" / "model.json").exists()


def test_the_temperature_is_tuned_when_it_is_zero(small_dataset: Dataset, tmp_path: Path) -> None:
    reported: list[Progress] = []
    train(small_dataset, tmp_path, replace(QUICK, epochs=1, temperature=0.0), report=reported.append)
    tried = {line.temperature: line.retrieval["ndcg@10"] for line in reported if isinstance(line, TemperatureTried)}
    (epoch,) = [line for line in reported if isinstance(line, EpochDone)]
    assert epoch.temperature == max(tried, key=lambda t: tried[t])


def test_ids_alone_and_no_held_out_plays_are_enough(tmp_path: Path) -> None:
    rows = "".join(f"u{i % 9},t{(i * 7) % 13}\n" for i in range(18))
    (tmp_path / "plays.csv").write_text("user_id,track_id\n" + rows)
    prepare(tmp_path / "plays.csv", tmp_path / "dataset", PrepareSettings(valid=0, test=0))
    info = train(Dataset.open(tmp_path / "dataset"), tmp_path / "model", replace(QUICK, epochs=1))
    assert info.quality == {}
    assert Model.open(tmp_path / "model").dim == 32


# -- the export -------------------------------------------------------------------------------------------


def test_a_graph_that_disagrees_is_not_kept(
    small_dataset: Dataset, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    before = (tmp_path / "model" / "model.json").read_text()
    prove = exporting._prove

    def other(network: Network, data: TrainingData, folder: Path) -> None:
        with torch.no_grad():
            network.head.scale.add_(3)
        prove(network, data, folder)

    monkeypatch.setattr(exporting, "_prove", other)
    with pytest.raises(ModelError, match=r"head\.onnx: found .* off torch, expected at most"):
        train(small_dataset, tmp_path / "model", replace(QUICK, epochs=1))
    assert (tmp_path / "model" / "model.json").read_text() == before
    Model.open(tmp_path / "model")


def test_a_model_is_the_old_one_until_the_new_one_is_whole(
    small_dataset: Dataset, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    shutil.copytree(tiny_model, out)
    (out / "notes.txt").write_text("mine")
    before, replaced = Model.open(out).model_id, Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == "model.json":
            raise KeyboardInterrupt
        return replaced(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(small_dataset, out, replace(QUICK, epochs=1))
    assert Model.open(out).model_id == before
    info = train(small_dataset, out, replace(QUICK, epochs=1), resume=True)
    assert Model.open(out).model_id == info.model_id != before
    assert (out / "notes.txt").read_text() == "mine"
    kept = {"best.safetensors", "last.safetensors", "head.safetensors", "features.json"}
    assert {path.name for path in (out / "checkpoint").iterdir()} == kept
    assert os.listdir(tmp_path) == ["model"]


def test_graphs_hold_no_dropout_and_take_any_batch(tiny_model: Path, data: TrainingData) -> None:
    model = Model.open(tiny_model)
    for n in (1, 2, 400):
        assert model.item_tower.embed(data.tracks[:n])[0].shape == (n, 32)


@pytest.mark.parametrize("name", ["model.json", "features.json", "head.onnx", "user_tower.onnx", "item_tower.onnx"])
def test_a_damaged_model_is_refused_by_name(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    whole = (folder / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], None):
        (folder / name).unlink()
        if damaged is not None:
            (folder / name).write_bytes(damaged)
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            Model.open(folder)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"dim": "128"}, "found dim '128', expected dim of type int"),
        ({"quality": []}, "found quality [], expected quality of type dict"),
        ({"model_id": ""}, "found no model_id, expected a folder made by `lhydra train`"),
        ({"format": 2}, "found format 2, expected format 4"),
    ],
)
def test_a_model_json_with_a_part_of_another_kind_is_refused_in_one_line(
    change: dict[str, Any], found: str, tmp_path: Path
) -> None:
    whole = ModelInfo(model_id="m", dim=8, features="f", files={name: {"sha256": "", "bytes": 0} for name in PARTS})
    (tmp_path / "model.json").write_text(whole.to_json())
    assert ModelInfo.read(tmp_path) == whole
    (tmp_path / "model.json").write_text(json.dumps(json.loads(whole.to_json()) | change))
    with pytest.raises(ModelError, match=f"^{re.escape(f'{tmp_path}/model.json: {found}')}$"):
        ModelInfo.read(tmp_path)


def test_what_is_no_place_for_a_model_is_refused(
    tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    source = str(tiny_dataset.path)
    for arguments, found in (
        ([str(tmp_path / "file")], "found a file"),
        ([str(tmp_path / "folder")], "found a folder with other files"),
        ([str(tmp_path / "new"), "--resume"], "found no checkpoint"),
        ([str(tmp_path / "new"), "--epochs", "-1"], "--epochs: found -1, expected 0 or more"),
        ([str(tmp_path / "new"), "--epochs", "many"], "--epochs: found many, expected a whole number"),
    ):
        assert main(["train", source, *arguments]) == 1
        error = capsys.readouterr().err
        assert found in error
        assert error.count("\n") == 1
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "mine"


# -- more than one run ------------------------------------------------------------------------------------


def test_folds_part_train_and_validation_plays(tiny_dataset: Dataset) -> None:
    plays = tiny_dataset.plays
    parts = [_fold(plays, part, 3, seed=0) for part in range(3)]
    held = np.stack([part.fold == VALID for part in parts])
    np.testing.assert_array_equal(held.sum(0), plays.fold != TEST)  # every one in exactly one part
    for part in parts:
        np.testing.assert_array_equal(part.fold == TEST, plays.fold == TEST)
    assert held.sum(1) / (plays.fold != TEST).sum() == pytest.approx(np.full(3, 1 / 3), abs=0.02)


def test_folds_are_reported_and_kept(small_dataset: Dataset, tmp_path: Path) -> None:
    told: list[Progress] = []
    info = train(small_dataset, tmp_path, replace(QUICK, epochs=1), folds=2, report=told.append)
    assert len(info.folds) == 2
    assert info.folds[0] != info.folds[1]
    for fold in info.folds:
        assert 0 < fold["retrieval"]["ndcg@10"] < 1
    assert {line.fold for line in told} == {0, 1, None}
    assert Model.open(tmp_path).info.folds == info.folds


def test_refit_learns_the_validation_plays_and_keeps_the_head(small_dataset: Dataset, tmp_path: Path) -> None:
    info = train(small_dataset, tmp_path / "refit", QUICK, refit=True)
    train(small_dataset, tmp_path / "plain", QUICK)
    assert info.fitted_on == "train and valid"
    models = {name: Model.open(tmp_path / name) for name in ("refit", "plain")}
    known = {name: set(model.spec.track_categories[0].values) for name, model in models.items()}
    plays, ids = small_dataset.plays, np.array(small_dataset.track_ids)
    assert known["plain"] == set(ids[plays.track[plays.fold == TRAIN]])
    assert known["refit"] == set(ids[plays.track[plays.fold <= VALID]])
    heads = [onnx.load(str(tmp_path / name / "head.onnx")).graph.initializer for name in ("refit", "plain")]
    weights = [{part.name: onnx.numpy_helper.to_array(part) for part in found} for found in heads]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])
    # the towers have moved towards the validation plays of users whose train history is the same
    wanted = targets(small_dataset, VALID)
    rank = {}
    for name, model in models.items():
        tracks = model.spec.encode_tracks(small_dataset.track_columns())
        vectors, history = model.item_tower.embed(tracks)
        data = load(small_dataset)
        profiles = model.spec.encode_profiles(small_dataset.user_columns())[wanted.users]
        users = model.spec.encode_users(profiles, select(data.train, wanted.users), tracks)
        scores = model.user_tower.embed(users, HistoryVectors.of(history)) @ vectors.T
        owner = np.repeat(np.arange(len(wanted.users)), np.diff(wanted.offsets))
        rank[name] = (scores[owner] > scores[owner, wanted.rows][:, None]).sum(1).mean()
    assert rank["refit"] < rank["plain"]


def test_refit_goes_on_from_what_was_learnt(
    small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no further epoch the towers are those of the model before, for tracks without an id, too."""
    once = replace(QUICK, epochs=1, head_epochs=0)

    def still(run: Run, network: Network, optimizer: Any, epoch: int, *rest: Any) -> tuple[float, float]:
        return (0.0, 0.0) if epoch > once.epochs else _epoch(run, network, optimizer, epoch, *rest)

    monkeypatch.setattr("lhydra.training.train._epoch", still)
    vectors, known = {}, {}
    for name, refit in (("plain", False), ("refit", True)):
        train(small_dataset, tmp_path / name, once, refit=refit)
        model = Model.open(tmp_path / name)
        tracks = model.spec.encode_tracks(small_dataset.track_columns())
        vectors[name], known[name] = model.item_tower.embed(tracks), tracks.ids[:, 0] > 0
    assert (known["refit"] & ~known["plain"]).any()
    assert (~known["refit"]).any()
    for before, after in zip(vectors["plain"], vectors["refit"], strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)


LEAVES = """
import pathlib, torch
from lhydra.training import ranks
ranks.start()
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], fused=True)
weight.sum().backward()
ranks.average_gradients([weight])
optimizer.step()
ranks.end()
names = [task.joinpath("comm").read_text() for task in pathlib.Path("/proc/self/task").iterdir()]
assert not [name for name in names if "gloo" in name], names
"""


def torchrun(*command: str, quick: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs python with `command` as two processes of a group; `quick` is a folder for quick tracing of graphs."""
    here = str(Path(sys.executable).parent)
    argv = [f"{here}/torchrun", "--no-python", "--nproc-per-node", "2", "--master-port", str(free_port())]
    one = (environ(quick) if quick else os.environ) | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*argv, sys.executable, *command], capture_output=True, text=True, timeout=240, env=one)


def test_a_process_that_left_its_group_has_no_thread_of_it() -> None:
    """A thread that frees a tensor while the interpreter ends aborts the process, and torchrun then ends them all."""
    done = torchrun("-c", LEAVES)
    assert done.returncode == 0, done.stderr


def test_two_processes_learn_as_well_as_one(tiny_dataset: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    """Under torchrun each process takes half of every batch, and only the first one writes."""
    flags = ["--epochs", "4", "--dim", "32", "--hidden", "32", "--temperature", "0.15", "--threads", "1"]
    flags += ["--head-epochs", "1", "--depth", "60", "--moments", "0"]  # what is compared is retrieval
    command = "-m", "lhydra.cli", "train", str(tiny_dataset.path), str(tmp_path / "model"), *flags
    done = torchrun(*command, quick=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1
    assert len(lines(tmp_path / "model")) == 4
    one, two = (Model.open(path).info.quality["retrieval"]["ndcg@10"] for path in (tiny_model, tmp_path / "model"))
    assert two == pytest.approx(one, rel=0.25)
