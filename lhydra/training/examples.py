"""What the head is fitted on: users with held-out plays, and the candidates that the towers retrieve for them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lhydra.features import item_item
from lhydra.features.co_listening import CoListening
from lhydra.features.histories import Histories
from lhydra.training.candidates import retrieve
from lhydra.training.config import TrainSettings
from lhydra.training.data import Targets, TrainingData, hide, select
from lhydra.training.model import Network
from lhydra.training.step import Tensors, tensor
from lhydra.training.teachers import Table
from lhydra.training.validate import embed_tracks, sample

MAX_HEAD_USERS = 5_000  # drawn at random from more
RANDOM_TRACKS = 16  # tracks beside the retrieved candidates


@dataclass(frozen=True)
class Examples:
    """E users with N candidates each, the retrieved ones first, best first.

    rows: (E, N) tracks; labels: (E, N) is a target; excluded: (E, N) places that hold nothing; retrieved: how many
    columns are what retrieval gave. signals: (E, N, 4) as the head sees them. wanted: (E,) targets
    of each user. targets: what ranking is judged by.
    """

    user: Tensor
    dense: Tensor
    ids: Tensor
    rows: Tensor
    labels: Tensor
    excluded: Tensor
    signals: Tensor
    retrieved: int
    wanted: Tensor
    targets: Targets

    def __len__(self) -> int:
        return len(self.rows)


def held_out(data: TrainingData, config: TrainSettings, rng: np.random.Generator) -> tuple[Targets, Histories]:
    """Says what the head learns to rank.

    Args:
        data: train and validation plays.
        config: settings of the training.
        rng: hides train plays where there are no validation plays.

    Returns:
        The targets of at most MAX_HEAD_USERS users: their validation plays, or hidden train plays; and the histories
        that they are shown with.
    """
    if len(data.valid.users):
        targets = sample(data.valid, config.seed, MAX_HEAD_USERS)
        return targets, select(data.train, targets.users)
    users = np.flatnonzero(np.diff(data.train.offsets) > 0)
    users = np.sort(rng.permutation(users)[:MAX_HEAD_USERS])
    shown, hidden = hide(data, users, rng, config.keep, config.cold, config.longest_history)
    order = np.lexsort((hidden.rows, np.repeat(np.arange(len(users)), np.diff(hidden.offsets))))
    return Targets(users, hidden.offsets, hidden.rows[order]), shown


@torch.no_grad()
def gather(
    network: Network,
    data: TrainingData,
    tensors: Tensors,
    table: Table,
    together: CoListening,
    targets: Targets,
    shown: Histories,
    depth: int,
    rng: np.random.Generator,
) -> Examples:
    """Retrieves the candidates that the head learns to rank.

    Args:
        network: towers that are finished; left in evaluation mode.
        data: profiles and tracks.
        tensors: the tracks of `data`.
        table: the co-listening table that the signals come from.
        together: the same turned round, as a source of candidates.
        targets: what E users are to be recommended.
        shown: the histories that the E users are encoded from, none of their targets among them.
        depth: tracks retrieved for each user.
        rng: of the random tracks.

    Returns:
        E users with depth + RANDOM_TRACKS candidates each.
    """
    network.eval()
    embedded = embed_tracks(network, tensors)
    vectors, n, depth = embedded[0], data.n_tracks, min(depth, data.n_tracks)
    popularity = tensors.popularity(tensors.listeners).numpy()
    retrieved = retrieve(network, data, embedded, together, targets.users, shown, depth)
    user, encoded = retrieved.user, retrieved.encoded
    width = depth + RANDOM_TRACKS
    rows = np.zeros((len(user), width), np.int64)
    labels, excluded = np.zeros(rows.shape, np.bool_), np.ones(rows.shape, np.bool_)
    scores = np.zeros((*rows.shape, len(item_item.CHANNELS)), np.float32)
    for i in range(len(user)):
        wanted = targets.rows[targets.offsets[i] : targets.offsets[i + 1]]
        own = slice(shown.offsets[i], shown.offsets[i + 1])
        found = retrieved.rows[i][retrieved.real[i]]
        drawn = np.unique(rng.integers(0, n, RANDOM_TRACKS))
        extra = drawn[~np.isin(drawn, np.concatenate([found, wanted, shown.rows[own]]))]
        rows[i, : len(found)] = found
        rows[i, depth : depth + len(extra)] = extra
        excluded[i, : len(found)] = excluded[i, depth : depth + len(extra)] = False
        labels[i] = np.isin(rows[i], wanted) & ~excluded[i]
        scores[i] = item_item.scores(table.neighbours, table.weights, shown.rows[own], encoded.entry[own], rows[i])
    at = tensor(rows)
    cosine = torch.stack([vectors[at[i]] @ user[i] for i in range(len(user))])
    signals = torch.cat([torch.stack([cosine, tensor(popularity)[at]], 2), tensor(scores)], 2)
    return Examples(
        user,
        tensor(encoded.dense),
        tensor(encoded.ids),
        at,
        tensor(labels),
        tensor(excluded),
        signals,
        depth,
        tensor(np.diff(targets.offsets)),
        targets,
    )
