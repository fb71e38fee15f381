"""The calibration of the head's logits: Platt scaling, fitted on cross-fitted logits.

A sigmoid fitted on the logits of users that the head has learnt may be too sure of itself, so each user's logits come
from a head that was fitted on others (Platt 1999, section 2.1). Heads are not pooled as they are: the loss is pairwise
and blind to a constant, and a head fitted on fewer users takes fewer steps and keeps a smaller scale. So the logits of
each are first brought to the final head's scale, by least squares on users that both have learnt.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lhydra.domain import I64
from lhydra.features import item_item
from lhydra.training.data import Targets, TrainingData, select
from lhydra.training.model import Head, Network
from lhydra.training.step import Tensors, embed_users, tensor
from lhydra.training.teachers import Table
from lhydra.training.validate import embed_tracks

F64 = npt.NDArray[np.float64]
USERS_AT_ONCE = 64  # whose logits are computed
LEAST_TOLD = 0.1  # log odds


@torch.no_grad()
def fit_calibration(
    network: Network,
    data: TrainingData,
    tensors: Tensors,
    table: Table,
    targets: Targets,
    heads: Mapping[int, Head],
    part: I64,
    seed: int,
) -> tuple[float, float]:
    """Fits sigmoid(a * logit + b) of the finished head on the plays `targets` and as many random tracks.

    Args:
        network: towers and head that are finished.
        data: train plays, profiles and tracks.
        tensors: the tracks of `data`.
        table: the co-listening table that the head's signals come from.
        targets: of E users. For each play one uniformly random track is drawn that the user has not heard.
        heads: by part, a head that was fitted on the users of all other parts.
        part: (E,) of each user.
        seed: of the random tracks.

    Returns:
        (a, b), a > 0; as they are in the network's head where every user has heard the whole catalogue: there is
        nothing to tell plays from.
    """
    network.eval()
    asked = [network.head, *(head.eval() for head in heads.values())]
    logits, sizes = [], []
    for pairs, real in _pairs(network, data, tensors, table, targets, seed):
        found = torch.stack([head(*pairs)[0] for head in asked])  # (heads, B, 2 * m)
        found = found.reshape(len(asked), len(real), 2, real.shape[1]).transpose(1, 2)
        logits.append(found[:, :, real])  # (heads, 2, pairs)
        sizes.append(real.sum(1).numpy())
    final, *others = torch.cat(logits, 2).double().numpy()  # (2, pairs) each: of plays, of random tracks
    owner = np.repeat(part, np.concatenate(sizes))
    if not len(owner):
        a, b = network.head.calibration.tolist()
        return a, b
    unseen = final.copy()
    for number, logit in zip(heads, others, strict=True):
        held = owner == number
        slope, shift = _line(logit[:, ~held].ravel(), final[:, ~held].ravel())
        unseen[:, held] = slope * logit[:, held] + shift
    return platt(unseen.ravel(), np.arange(unseen.size) < len(owner))


def _pairs(
    network: Network, data: TrainingData, tensors: Tensors, table: Table, targets: Targets, seed: int
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Yields, of some users of `targets` at a time, the head's inputs for m plays and then m random tracks of each.

    Beside them which of the (B, m) are real: others of the users have fewer.
    """
    rng = np.random.default_rng([seed, 1])
    vectors, history = embed_tracks(network, tensors)
    popularity = tensors.popularity(tensors.listeners)
    for start in range(0, len(targets.users), USERS_AT_ONCE):
        users = targets.users[start : start + USERS_AT_ONCE]
        encoded = data.spec.encode_users(data.profiles[users], select(data.train, users), data.tracks)
        drawn = []
        for i, user in enumerate(users, start):
            wanted = targets.rows[targets.offsets[i] : targets.offsets[i + 1]]
            heard = data.train.rows[data.train.offsets[user] : data.train.offsets[user + 1]]
            drawn.append(plays_and_others(wanted, heard, data.n_tracks, rng))
        most = max(len(others) for _, others in drawn)
        rows, real = np.zeros((len(users), 2, most), np.int64), np.zeros((len(users), most), np.bool_)
        together = np.zeros((len(users), 2 * most, len(item_item.CHANNELS)), np.float32)
        for i, pair in enumerate(drawn):
            rows[i, :, : len(pair[0])], real[i, : len(pair[0])] = pair, True
            one = encoded.one(i)
            played = one.histories.rows, one.entry, rows[i].ravel()
            together[i] = item_item.scores(table.neighbours, table.weights, *played)
        chosen = tensor(rows.reshape(len(users), -1))
        inputs = (
            embed_users(network, encoded, history),
            tensor(encoded.dense),
            tensor(encoded.ids),
            vectors[chosen],
            tensors.dense[chosen],
            tensors.ids[chosen],
            popularity[chosen],
            tensor(together),
        )
        yield inputs, tensor(real)


def plays_and_others(wanted: I64, heard: I64, n_tracks: int, rng: np.random.Generator) -> tuple[I64, I64]:
    """Draws a random track for each play.

    Args:
        wanted: (m,) rows of played tracks, distinct.
        heard: rows of the tracks that the user knows.
        n_tracks: of the catalogue.
        rng: draws.

    Returns:
        (p,) of the plays and (p,) of tracks that are neither wanted nor heard, p <= m: as many as were found.
    """
    free = np.setdiff1d(rng.integers(0, n_tracks, 4 * len(wanted) + 16), np.union1d(heard, wanted))
    others = rng.permutation(free)[: len(wanted)]
    return wanted[: len(others)], others


def _line(x: F64, y: F64) -> tuple[float, float]:
    """(slope, shift) of the least-squares line from x to y; the shift alone where x is constant."""
    spread = float(x.std()) if len(x) else 0.0
    if spread < 1e-9:
        return 1.0, float(y.mean() - x.mean()) if len(x) else 0.0
    slope = float(((x - x.mean()) * (y - y.mean())).mean()) / spread**2
    return slope, float(y.mean()) - slope * float(x.mean())


def platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Fits the logistic regression sigmoid(a * logit + b).

    Args:
        logits: (n,) float64.
        labels: (n,) bool.

    Returns:
        (a, b), a > 0 whatever the labels say: the order of the logits stays.
    """
    a, b, _ = platt_at(logits, np.empty((len(logits), 0)), labels)
    return a, b


def platt_at(logits: np.ndarray, about: np.ndarray, labels: np.ndarray) -> tuple[float, float, F64]:
    """Fits the logistic regression sigmoid(a * (logit + about @ level) + b) by Newton's method, steps halved as needed.

    Args:
        logits: (n,) float64.
        about: (n, c) float64, what else is known, on one scale.
        labels: (n,) bool.

    Returns:
        (a, b, level), a > 0 whatever the labels say: the order of logits of which the same is known stays. level is 0
        where a standard deviation of the logits tells less than LEAST_TOLD: it would be far from 0, for nothing.
    """
    mean, scale = float(logits.mean()), float(logits.std()) or 1.0
    x = np.column_stack([(logits - mean) / scale, np.ones(len(logits)), about])
    weights = np.r_[1.0, np.zeros(1 + about.shape[1])]
    ridge = np.r_[1e-3, 1e-3, np.ones(about.shape[1])]  # a little: separable data stay finite

    def loss(weights: F64) -> float:
        logit = x @ weights
        return float(np.logaddexp(0, np.where(labels, -logit, logit)).sum() + ridge @ weights**2 / 2)

    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - labels) + ridge * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        move, before = np.linalg.solve(hessian, gradient), loss(weights)
        while np.abs(move).max() > 1e-9 and not loss(weights - move) < before:  # far from the end it leads too far
            move /= 2
        weights -= move
        if np.abs(move).max() <= 1e-9:
            break
    if about.shape[1] and weights[0] < LEAST_TOLD:
        return *platt(logits, labels), np.zeros(about.shape[1])
    a = max(float(weights[0]), 1e-3) / scale
    return a, float(weights[1]) - a * mean, weights[2:] / a
