"""The calibration of the head's logits: Platt scaling, fitted on cross-fitted logits.

A sigmoid fitted on the logits of users that the head has learnt is too sure of itself (Platt 1999, section 2.1). So
each user's logits come from a head that was fitted on others, and the logits of all are pooled, as Platt does it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lhydra.features import item_item
from lhydra.training.data import Targets, TrainingData, select
from lhydra.training.model import Head, Network
from lhydra.training.step import Tensors, embed_users, tensor
from lhydra.training.teachers import Table
from lhydra.training.validate import embed_tracks


@torch.no_grad()
def fit_calibration(
    network: Network,
    data: TrainingData,
    tensors: Tensors,
    table: Table,
    targets: Targets,
    heads: Sequence[Head],
    seed: int,
) -> tuple[float, float]:
    """Returns (a, b) of sigmoid(a * logit + b), fitted on the plays `targets` and as many random tracks.

    Args:
        network: towers that are finished. Its own head is not asked, and its calibration is what is returned where
            every user has heard the whole catalogue: there is nothing to tell plays from.
        data: train plays, profiles and tracks.
        tensors: the tracks of `data`.
        table: the co-listening table that the head's signals come from.
        targets: of E users. For each play one uniformly random track is drawn that the user has not heard.
        heads: E heads, of each user one that was not fitted on that user.
        seed: of the random tracks.
    """
    network.eval()
    rng = np.random.default_rng([seed, 1])
    vectors, history = embed_tracks(network, tensors)
    popularity = tensors.popularity(tensors.listeners)
    logits: list[Tensor] = []
    for i, (user, head) in enumerate(zip(targets.users, heads, strict=True)):
        wanted = targets.rows[targets.offsets[i] : targets.offsets[i + 1]]
        heard = data.train.rows[data.train.offsets[user] : data.train.offsets[user + 1]]
        free = np.setdiff1d(rng.integers(0, data.n_tracks, 4 * len(wanted) + 16), np.union1d(heard, wanted))
        others = rng.permutation(free)[: len(wanted)]
        rows = np.concatenate([wanted[: len(others)], others])
        chosen = tensor(rows)[None]
        encoded = data.spec.encode_users(data.profiles[[user]], select(data.train, np.array([user])), data.tracks)
        together = item_item.scores(table.neighbours, table.weights, encoded.histories.rows, encoded.entry, rows)
        logit, _ = head.eval()(
            embed_users(network, encoded, history),
            tensor(encoded.dense),
            tensor(encoded.ids),
            vectors[chosen],
            tensors.dense[chosen],
            tensors.ids[chosen],
            popularity[chosen],
            tensor(together)[None],
        )
        logits.append(logit[0].reshape(2, -1))
    positive, negative = torch.cat(logits, 1).double().numpy()
    if not len(positive):
        a, b = network.head.calibration.tolist()
        return a, b
    return platt(np.concatenate([positive, negative]), np.arange(2 * len(positive)) < len(positive))


def platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns (a, b), a > 0, of the logistic regression sigmoid(a * logit + b), by Newton's method."""
    mean, scale = float(logits.mean()), float(logits.std()) or 1.0
    x = np.stack([(logits - mean) / scale, np.ones(len(logits))], 1)
    weights = np.array([1.0, 0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - labels) + 1e-3 * weights  # a little ridge: separable data stay finite
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(2)
        move = np.linalg.solve(hessian, gradient)
        weights -= move
        if np.abs(move).max() < 1e-9:
            break
    a = max(float(weights[0]), 1e-3) / scale
    return a, float(weights[1]) - a * mean
