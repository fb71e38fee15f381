"""Content for tracks that ids do not carry: new ones, and those that few have played.

Ids learn taste from plays. Once the towers have learnt, the content part of the item tower is fitted to say from a
track's columns what its id says: by a contrast with the other tracks of a batch (InfoNCE between content vector and
vector, as in CLCRec, Wei et al. 2021). A track that nobody played then has a place beside tracks like it; one that few
have played is drawn towards that place, the more the fewer they are (shrinkage). What ids say of the others stays. How
far, and how high tracks stand that content places, the validation fold decides. The graph is the same before and after.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lhydra.domain import I64
from lhydra.timing import timed
from lhydra.training.config import TrainSettings
from lhydra.training.data import Targets, TrainingData
from lhydra.training.model import ItemTower, Network
from lhydra.training.progress import ContentFitted, Report, unreported
from lhydra.training.step import Tensors, tensor
from lhydra.training.validate import (
    TRACKS_PER_BLOCK,
    embed_shown,
    embed_tracks,
    measured,
    retrieve,
    sample,
)

Setting = TypeVar("Setting")
Tried = tuple[dict[str, float], int, int]  # metrics, hits of rare targets, hits of all
EPOCHS, BATCH = 60, 256
MOST_STEPS = 8_000  # of all epochs together
RATE, DECAY, TEMPERATURE = 3e-3, 1e-2, 0.1
RARE = 5  # listeners up to which a track counts as one that few have played
SHRINKAGES = (0.0, 3.0, 10.0)  # listeners that content counts as much as
HEIGHTS = (-0.8, -0.6, -0.5, -0.4, -0.3, -0.2)  # along the mean user, which lifts or lowers what content places
UNMEASURED = (3.0, -0.6)  # taken without validation plays
FEWEST_USERS, MOST_USERS = 100, 1_000  # that settings are measured on, and that the mean user is taken of
ROOM = 0.98  # of the best NDCG@10 and Recall@20, in the mean: among what reaches it, the most rare targets decide
PRICE = 5.0  # other targets, at most, that a rare one may cost: where hardly any target is rare, room is not spent
MEASURED_SCORES = 1 << 26  # of users and tracks, at most at a time


@dataclass(frozen=True)
class _Places:
    """Where ids and content place n tracks: (n, D) float32 each.

    vectors: of unit norm, of the towers as they came. content: what content alone adds up to, of about unit norm.
    listeners: (n,) float32. mean_user: (D,) of unit norm.
    """

    vectors: Tensor
    content: Tensor
    listeners: Tensor
    mean_user: Tensor

    def at(self, shrinkage: float, height: float) -> Tensor:
        """Vectors (n, D) of unit norm with these settings: those of ids and of content weighed by listeners."""
        own = (self.listeners / (self.listeners + shrinkage).clamp(min=1e-6))[:, None]
        placed = F.normalize(self.content + height * self.mean_user, dim=1)
        return F.normalize(own * self.vectors + (1 - own) * placed, dim=1)


@timed("train.content")
def fit(
    network: Network,
    data: TrainingData,
    tensors: Tensors,
    config: TrainSettings,
    report: Report = unreported,
) -> dict[str, float] | None:
    """Fits the content part of the item tower in place; vectors of tracks with many listeners hardly change.

    Args:
        network: towers that are finished.
        data: what they were trained on, and the validation plays that decide.
        tensors: the tracks of `data`.
        config: settings of the training.
        report: told what was chosen.

    Returns:
        REPORTED_METRICS of retrieval as it is then; None where nothing was measured. Tracks without content, and
        content that finds less than the towers as they came, leave these as they are.
    """
    tower, known = network.item_tower, tensors.listeners > 0
    if not tower.use_content or not bool(known.any()):
        return None
    network.eval()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    vectors, history = embed_tracks(network, tensors)
    sizes = _added_up(tower, tensors, tensors.ids)[0].norm(dim=1, keepdim=True)
    _align(tower, tensors, vectors, history, config.seed)
    content = _added_up(tower, tensors, _hidden(tensors.ids))[0]
    scale = content[known].norm(dim=1).mean().clamp(min=1e-6)
    targets = sample(data.valid, config.seed, max(FEWEST_USERS, min(MOST_USERS, MEASURED_SCORES // data.n_tracks)))
    some = targets.users if len(targets.users) else np.flatnonzero(np.diff(data.train.offsets) > 0)[:MOST_USERS]
    users = embed_shown(network, data, some, history)
    places = _Places(vectors, content / scale, tensors.listeners, F.normalize(users.mean(0), dim=0))
    setting: tuple[float, float] | None = UNMEASURED
    metrics = None
    if len(targets.users):
        setting, metrics = _chosen(users, places, data, targets, report)
    if setting is None:
        tower.load_state_dict(before)
    else:
        _keep(tower, tensors, places.at(*setting), history, sizes, setting[1] * places.mean_user * scale, float(scale))
    return metrics


def _chosen(
    users: Tensor, places: _Places, data: TrainingData, targets: Targets, report: Report
) -> tuple[tuple[float, float] | None, dict[str, float]]:
    """The setting that finds the most rare targets, of those that are near the best in all; and its metrics."""
    tried: dict[tuple[float, float] | None, Tried] = {}
    for setting in (None, *itertools.product(SHRINKAGES, HEIGHTS)):
        vectors = places.vectors if setting is None else places.at(*setting)
        found = retrieve(users, vectors, data, targets)
        tried[setting] = measured(found, data, targets), *hits(found, data, targets)
    best = most_rare(tried, ROOM)
    metrics, rare, _ = tried[best]
    of_rare = int((data.listeners <= RARE)[targets.rows].sum())
    report(ContentFitted(setting=best, retrieval=metrics, rare=rare, of_rare=of_rare))
    return best, metrics


def hits(found: I64, data: TrainingData, targets: Targets) -> tuple[int, int]:
    """Counts the targets that lists hold.

    Args:
        found: (B, k) rows.
        data: who has listened to what.
        targets: of the B users.

    Returns:
        How many rare ones, and how many in all.
    """
    held = (np.repeat(found, np.diff(targets.offsets), 0) == targets.rows[:, None]).any(1)
    return int((held & (data.listeners <= RARE)[targets.rows]).sum()), int(held.sum())


def most_rare(tried: Mapping[Setting, Tried], room: float) -> Setting:
    """Finds the setting that finds the most rare targets, of those that are near the best in all and worth their price.

    Args:
        tried: metrics, hits of rare targets and hits of all, by setting.
        room: how near, as a share of the best, in the mean over the metrics.

    Returns:
        The setting.
    """
    most: dict[str, float] = {}
    for metrics, _, _ in tried.values():
        most = {name: max(most.get(name, 0.0), value) for name, value in metrics.items()}
    near = {
        setting: sum(metrics[name] / (best or 1.0) for name, best in most.items()) / len(most)
        for setting, (metrics, _, _) in tried.items()
    }
    best = max(near, key=lambda setting: near[setting])
    _, least, of_all = tried[best]
    good = []
    for setting, (_, rare, _) in tried.items():
        share = near[setting] / (near[best] or 1.0)
        if share >= room and (1 - share) * of_all <= PRICE * (rare - least):
            good.append(setting)
    return max(good, key=lambda setting: (tried[setting][1], near[setting]), default=best)


def _align(tower: ItemTower, tensors: Tensors, vectors: Tensor, history: Tensor, seed: int) -> None:
    """Fits what content says, its ids hidden, to the vectors of tracks with listeners, the more the more they have."""
    rng, known = np.random.default_rng([seed, 16]), np.flatnonzero(tensors.listeners.numpy() > 0)
    torch.manual_seed(seed * 1_000_003 + 8)
    for layer in tower.content:
        if isinstance(layer, nn.Linear | nn.LayerNorm):
            layer.reset_parameters()
    tables = tower.retrieval_id.weight, tower.history_id.weight
    for table in tables:  # a gradient of all their rows in every step was nearly half of the time
        table.requires_grad_(False)
    learnt = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, weight_decay=DECAY)
    epochs = min(EPOCHS, -(-MOST_STEPS * BATCH // len(known)))
    spread = history[known].square().sum(1).mean().clamp(min=1e-6)
    tower.train()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - epoch / epochs)
        order = rng.permutation(known)
        for start in range(0, len(order), BATCH):
            at = tensor(order[start : start + BATCH])
            weight = tensors.listeners[at].sqrt()
            placed, heard = tower(tensors.dense[at], _hidden(tensors.ids[at]), tensors.bags[at])
            contrast = F.cross_entropy(placed @ vectors[at].T / TEMPERATURE, torch.arange(len(at)), reduction="none")
            apart = (heard - history[at]).square().sum(1) / spread
            loss = (weight * (contrast + apart)).sum() / weight.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    for table in tables:
        table.requires_grad_(True)
    tower.eval()


@torch.no_grad()
def _keep(
    tower: ItemTower, tensors: Tensors, vectors: Tensor, history: Tensor, sizes: Tensor, lift: Tensor, scale: float
) -> None:
    """Makes the tower give `vectors` for tracks with listeners, and for others what content says, lifted.

    Ids become what content leaves to be said, of the sizes that they had: these decide how fast a tower learns on.
    """
    known = tensors.ids[:, 0] > 0
    numbers = tensors.ids[known, 0]
    last = tower.content[-1]
    assert isinstance(last, nn.Linear)
    share, width = float(sizes[known].mean()) / scale, vectors.shape[1]
    tower.retrieval_id.weight[0] += lift
    for part in (tower.retrieval_id.weight[0], last.weight[:width], last.bias[:width]):
        part *= share
    for table in (tower.retrieval_id.weight, tower.history_id.weight):
        table[numbers] = table[0].clone()
    said, heard = _added_up(tower, tensors, tensors.ids)
    tower.retrieval_id.weight[numbers] += (vectors * sizes - said)[known]
    tower.history_id.weight[numbers] += (history - heard)[known]


@torch.no_grad()
def _added_up(tower: ItemTower, tensors: Tensors, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(n, D) float32 each: what the tower adds up before it normalises, and history vectors."""
    parts = [
        tower.added_up(tensors.dense[at], ids[at], tensors.bags[at])
        for at in (slice(start, start + TRACKS_PER_BLOCK) for start in range(0, len(ids), TRACKS_PER_BLOCK))
    ]
    added, history = zip(*parts, strict=True)
    return torch.cat(added), torch.cat(history)


def _hidden(ids: Tensor) -> Tensor:
    """The columns of ids with the track's own hidden."""
    return torch.cat([torch.zeros_like(ids[:, :1]), ids[:, 1:]], 1)
