"""What content says of tracks that ids do not carry: known answers, and what must not change."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lhydra.data.dataset import TEST, Dataset
from lhydra.features.histories import HISTORY_FEATURES
from lhydra.training import checkpoint, content
from lhydra.training.config import TrainSettings
from lhydra.training.content import hits, most_rare
from lhydra.training.data import Targets, TrainingData, load, targets
from lhydra.training.model import Network
from lhydra.training.progress import ContentFitted, Progress
from lhydra.training.shape import Shape
from lhydra.training.step import Tensors
from lhydra.training.validate import embed_shown, embed_tracks, measured, retrieve

CONFIG = TrainSettings(dim=32, hidden=32, threads=1)


@pytest.fixture(scope="module")
def data(tiny_dataset: Dataset) -> TrainingData:
    return load(tiny_dataset)


def by_genre(data: TrainingData) -> tuple[Network, Tensor]:
    """Towers whose ids stand for genres alone, a direction of the vectors each, and every track's genre."""
    torch.manual_seed(0)
    network = Network(Shape.of(data.spec, CONFIG.dim, CONFIG.hidden, CONFIG.dropout), len(HISTORY_FEATURES))
    column = next(i for i, (name, _) in enumerate(data.spec.track_ids) if name == "genre")
    genre = torch.from_numpy(data.tracks.ids[:, column]).long()
    tower, numbers = network.item_tower, torch.from_numpy(data.tracks.ids[:, 0]).long()
    with torch.no_grad():
        for table in (tower.retrieval_id, tower.history_id):
            table.weight.copy_(0.01 * torch.randn(table.weight.shape))
            table.weight[numbers[numbers > 0]] += F.one_hot(genre, CONFIG.dim).float()[numbers > 0]
    return network.eval(), genre


@pytest.fixture
def network(data: TrainingData, tiny_model: Path) -> Network:
    """The towers of a training, as they were before content was fitted."""
    network = Network(Shape.of(data.spec, CONFIG.dim, CONFIG.hidden, CONFIG.dropout), len(HISTORY_FEATURES))
    checkpoint.load(tiny_model / "checkpoint" / "best.safetensors", network)
    return network.eval()


def without_validation(data: TrainingData) -> TrainingData:
    nobody = np.zeros(0, np.int64)
    return replace(data, valid=Targets(nobody, np.zeros(1, np.int64), nobody))


def test_a_new_track_is_placed_beside_tracks_of_its_kind(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    network, genre = by_genre(data)
    monkeypatch.setattr(content, "UNMEASURED", (3.0, 0.0))
    assert content.fit(network, without_validation(data), Tensors.of(data), CONFIG) is None
    vectors, history = embed_tracks(network, Tensors.of(data))
    new = torch.from_numpy(data.listeners == 0) & (genre > 0)
    assert new.sum() >= 10
    assert (vectors[new].argmax(1) == genre[new]).float().mean() > 0.8  # there are eleven
    assert (history[new].argmax(1) == genre[new]).float().mean() > 0.8
    assert all(parameter.requires_grad for parameter in network.parameters())  # to be refitted


@pytest.mark.parametrize("setting", [(0.0, -0.5), (10.0, 0.2)])
def test_the_tower_gives_what_was_chosen_and_heard_tracks_mean_the_same(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch, setting: tuple[float, float]
) -> None:
    """Vectors as they were judged, for tracks known and new; known tracks keep their history vectors."""
    network, _ = by_genre(data)
    tensors, kept = Tensors.of(data), []
    before, history = embed_tracks(network, tensors)
    monkeypatch.setattr(content, "UNMEASURED", setting)
    keep = content._keep

    def watched(*given: Any) -> None:
        kept.append(given[2])
        keep(*given)

    monkeypatch.setattr(content, "_keep", watched)
    content.fit(network, without_validation(data), tensors, CONFIG)
    vectors, heard = embed_tracks(network, tensors)
    torch.testing.assert_close(vectors, kept[0], atol=1e-5, rtol=0)
    known = tensors.listeners > 0
    torch.testing.assert_close(heard[known], history[known], atol=1e-5, rtol=0)
    if not setting[0]:
        torch.testing.assert_close(vectors[known], before[known], atol=1e-5, rtol=0)
    else:
        close, listeners = (vectors * before).sum(1)[known], tensors.listeners[known]
        assert close[listeners >= 40].min() > close[listeners <= 2].mean()


def test_settings_that_find_less_leave_the_towers_as_they_came(
    network: Network, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Progress] = []
    before = {name: value.clone() for name, value in network.state_dict().items()}
    monkeypatch.setattr(content, "HEIGHTS", (50.0,))  # all that few have played stands above all else
    metrics = content.fit(network, data, Tensors.of(data), CONFIG, told.append)
    assert isinstance(told[0], ContentFitted)
    assert (told[0].setting, told[0].retrieval) == (None, metrics)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_choice_finds_the_most_rare_targets_among_what_is_near_the_best(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, _ = by_genre(data)
    tensors, tried = Tensors.of(data), []
    at = content._Places.at

    def watched(places: content._Places, shrinkage: float, height: float) -> Tensor:
        tried.append(((shrinkage, height), at(places, shrinkage, height)))
        return tried[-1][1]

    monkeypatch.setattr(content._Places, "at", watched)
    told: list[Progress] = []
    came = embed_tracks(network, tensors)
    metrics = content.fit(network, data, tensors, CONFIG, told.append)
    wanted, (chosen,) = data.valid, told
    assert isinstance(chosen, ContentFitted)
    users = embed_shown(network, data, wanted.users, came[1])
    judged = {}
    for setting, vectors in [(None, came[0]), *tried[: len(content.SHRINKAGES) * len(content.HEIGHTS)]]:
        found, rare, held = retrieve(users, vectors, data, wanted), 0, 0
        for user, listed in enumerate(found):
            own = wanted.rows[wanted.offsets[user] : wanted.offsets[user + 1]]
            rare += sum(data.listeners[row] <= content.RARE and row in listed for row in own)
            held += sum(row in listed for row in own)
        judged[setting] = measured(found, data, wanted), rare, held
    best = [max(metrics[name] for metrics, _, _ in judged.values()) for name in ("ndcg@10", "recall@20")]
    worth = {
        setting: np.mean([metrics["ndcg@10"] / best[0], metrics["recall@20"] / best[1]])
        for setting, (metrics, _, _) in judged.items()
    }
    first = max(worth, key=worth.__getitem__)
    near = {
        setting: judged[setting][1]
        for setting, share in worth.items()
        if share >= content.ROOM * worth[first]
        and (1 - share / worth[first]) * judged[first][2] <= content.PRICE * (judged[setting][1] - judged[first][1])
    }
    assert chosen.rare == max(near.values()) == near[chosen.setting]
    assert metrics == chosen.retrieval
    assert judged[chosen.setting][0]["ndcg@10"] == pytest.approx(metrics["ndcg@10"], abs=2e-3)


def test_tracks_without_content_are_left_alone(data: TrainingData) -> None:
    network, _ = by_genre(data)
    network.item_tower.use_content = False
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert content.fit(network, data, Tensors.of(data), CONFIG) is None
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_rare_tracks_are_told_apart_by_who_plays_them(
    network: Network, data: TrainingData, tiny_dataset: Dataset
) -> None:
    """Of the tracks that few had played, those that a user goes on to play stand above the others."""
    later, rare = targets(tiny_dataset, TEST), np.flatnonzero(data.listeners <= content.RARE)
    content.fit(network, data, Tensors.of(data), CONFIG)
    vectors, history = embed_tracks(network, Tensors.of(data))
    cosines = (embed_shown(network, data, later.users, history) @ vectors[rare].T).numpy()
    above = [
        (cosines[user, rare == row] > cosines[user]).mean()
        for user in range(len(later.users))
        for row in later.rows[later.offsets[user] : later.offsets[user + 1]]
        if row in rare
    ]
    assert len(above) > 50
    assert np.mean(above) > 0.55


def test_hits_are_the_targets_that_lists_hold_and_those_of_few_listeners() -> None:
    data = cast(TrainingData, SimpleNamespace(listeners=np.array([5, 6, 0, 9])))
    targets = Targets(np.array([3, 4]), np.array([0, 3, 5]), np.array([0, 1, 2, 0, 3]))
    assert hits(np.array([[2, 1, -1], [3, 2, 1]]), data, targets) == (1, 3)
    assert hits(np.array([[0, 2, 3], [0, 3, -1]]), data, targets) == (3, 4)


def test_the_most_rare_targets_decide_among_what_is_near_the_best() -> None:
    tried = {
        "best": ({"a": 1.0, "b": 0.5}, 4, 100),
        "near": ({"a": 0.96, "b": 0.5}, 6, 98),
        "as rare": ({"a": 0.97, "b": 0.49}, 6, 97),
        "far": ({"a": 0.5, "b": 0.5}, 9, 75),
    }
    assert most_rare(tried, 0.9) == "near"
    assert most_rare(tried, 1.0) == "best"
    assert most_rare(tried, 0.5) == "far"


@pytest.mark.parametrize(("more", "chosen"), [(3, "best"), (4, "near")])
def test_a_rare_target_costs_no_more_than_its_price_of_others(more: int, chosen: str) -> None:
    """Of 1,000 targets that the best setting finds, 2 % may go for four rare ones more, not for three."""
    tried = {"best": ({"a": 0.5}, 0, 1_000), "near": ({"a": 0.4901}, more, 980)}
    assert most_rare(tried, 0.98) == chosen
    assert most_rare({name: ({"a": 0.0}, 0, 0) for name in tried}, 0.98) == "best"
