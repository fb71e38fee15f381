"""Measuring retrieval on the validation fold, epoch by epoch."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lhydra.domain import I64
from lhydra.evaluation.metrics import rank_metrics
from lhydra.features.histories import offsets_of, spans
from lhydra.training.data import Targets, TrainingData, select
from lhydra.training.model import Network
from lhydra.training.step import Tensors, embed_users, tensor

MAX_VALIDATED_USERS = 2_000  # validated in an epoch; a fixed random choice of more
TRACKS_PER_BLOCK = 16_384
REPORTED_METRICS = ("ndcg@10", "recall@20")


def sample(targets: Targets, seed: int, at_most: int = MAX_VALIDATED_USERS) -> Targets:
    """Draws users.

    Args:
        targets: of n users.
        seed: the same one draws the same users.
        at_most: how many users.

    Returns:
        Targets of min(n, at_most) users, in their order.
    """
    if len(targets.users) <= at_most:
        return targets
    chosen = np.sort(np.random.default_rng(seed).permutation(len(targets.users))[:at_most])
    starts, ends = targets.offsets[chosen], targets.offsets[chosen + 1]
    return Targets(targets.users[chosen], offsets_of(ends - starts), targets.rows[spans(starts, ends)])


@torch.no_grad()
def validate(network: Network, data: TrainingData, tensors: Tensors, targets: Targets) -> dict[str, float]:
    """Ranks the whole catalogue by cosine for the users of `targets`, their train tracks left out, and measures.

    Args:
        network: left in training mode.
        data: train plays and profiles.
        tensors: the tracks of `data`.
        targets: validation plays.

    Returns:
        REPORTED_METRICS by name.
    """
    network.eval()
    vectors, history = embed_tracks(network, tensors)
    found = retrieve(embed_shown(network, data, targets.users, history), vectors, data, targets)
    network.train()
    return measured(found, data, targets)


@torch.no_grad()
def embed_shown(network: Network, data: TrainingData, users: I64, history: Tensor) -> Tensor:
    """Embeds users by their train plays.

    Args:
        network: in evaluation mode.
        data: train plays and profiles.
        users: (B,) int64 positions.
        history: (n, D) float32 history vectors of all tracks.

    Returns:
        (B, D) float32 user vectors of unit norm.
    """
    parts = [history.new_zeros(0, history.shape[1])]
    for start in range(0, len(users), 256):
        some = users[start : start + 256]
        encoded = data.spec.encode_users(data.profiles[some], select(data.train, some), data.tracks)
        parts.append(embed_users(network, encoded, history))
    return torch.cat(parts)


def retrieve(users: Tensor, vectors: Tensor, data: TrainingData, targets: Targets) -> I64:
    """Ranks the whole catalogue by cosine, without what the users played in train.

    Args:
        users: (B, D) float32 vectors of `targets.users`.
        vectors: (n, D) float32 of all tracks.
        data: train plays.
        targets: whose users they are.

    Returns:
        (B, min(20, n)) rows, best first, -1 where a list ends.
    """
    found: list[I64] = []
    depth = min(20, data.n_tracks)
    for start in range(0, len(users), 256):
        own = targets.users[start : start + 256]
        heard = data.train.offsets[own], data.train.offsets[own + 1]
        cosines = users[start : start + 256] @ vectors.T
        owner = np.repeat(np.arange(len(own)), heard[1] - heard[0])
        cosines[tensor(owner, users.device), tensor(data.train.rows[spans(*heard)], users.device)] = -2.0
        best, rows = best_first(cosines, depth)
        found.append(rows.masked_fill(best < -1.5, -1).cpu().numpy())  # a catalogue smaller than depth runs out
    return np.concatenate(found)


def worth(metrics: Mapping[str, float]) -> float:
    """Says what epochs and heads are chosen by: late ones go on finding more when the top of the list only wavers.

    Args:
        metrics: REPORTED_METRICS by name.

    Returns:
        NDCG@10 + Recall@20.
    """
    return sum(metrics[name] for name in REPORTED_METRICS)


def measured(found: I64, data: TrainingData, targets: Targets) -> dict[str, float]:
    """Measures lists.

    Args:
        found: (B, k) rows, as of `retrieve`.
        data: its catalogue.
        targets: of the B users.

    Returns:
        REPORTED_METRICS by name.
    """
    mean = rank_metrics(found, targets.offsets, targets.rows, data.n_tracks).means()
    return {name: round(mean[name], 6) for name in REPORTED_METRICS}


def best_first(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Finds the k best columns of each row, equal scores in the order of the columns, as lists are served.

    Args:
        scores: (B, n), n >= k.
        k: how many.

    Returns:
        (B, k) scores, best first, and (B, k) columns.
    """
    best, columns = scores.topk(min(k + 1, scores.shape[1]), 1)  # any of equal scores, in any order
    tied = (best[:, 1:] == best[:, :-1]).any(1)  # the one beyond the list too
    best, columns = best[:, :k], columns[:, :k]
    if tied.any():
        whole = scores[tied].sort(dim=1, descending=True, stable=True)
        best[tied], columns[tied] = whole.values[:, :k], whole.indices[:, :k]
    return best, columns


@torch.no_grad()
def embed_tracks(network: Network, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Embeds all tracks, in blocks.

    Args:
        network: in evaluation mode.
        tensors: of n tracks.

    Returns:
        (n, D) float32 retrieval vectors of unit norm, and (n, D) float32 history vectors.
    """
    blocks = [
        network.item_tower(tensors.dense[at], tensors.ids[at], tensors.bags[at])
        for at in (slice(start, start + TRACKS_PER_BLOCK) for start in range(0, len(tensors.ids), TRACKS_PER_BLOCK))
    ]
    vectors, history = zip(*blocks, strict=True)
    return torch.cat(vectors), torch.cat(history)
