"""One training step: hide plays, run the towers over the tracks in play, and the losses of towers and head."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lhydra.domain import I64
from lhydra.histories import EncodedUsers, Histories
from lhydra.training.config import TrainConfig
from lhydra.training.data import Targets, TrainingData, hide
from lhydra.training.losses import log_q, softmax_loss
from lhydra.training.model import Network

MAX_TARGETS, HARD, RANDOM = 8, 40, 16  # candidates of the head, per user and step
LENGTH_GROUPS = 4  # a batch is padded in groups of like history length


@dataclass(frozen=True)
class Tensors:
    """The tracks of `TrainingData` as tensors, all of them; share: (n,) of all train plays."""

    dense: Tensor
    ids: Tensor
    bags: Tensor
    listeners: Tensor
    share: Tensor

    @classmethod
    def of(cls, data: TrainingData) -> "Tensors":
        """Returns the tensors of `data`."""
        tracks, listeners = data.tracks, tensor(data.listeners).float()
        return cls(
            tensor(tracks.dense), tensor(tracks.ids), tensor(tracks.bags), listeners, listeners / listeners.sum()
        )

    def popularity(self, listeners: Tensor) -> Tensor:
        """The head's popularity feature, as `lhydra.embedding.popularity` gives it."""
        return torch.log1p(listeners) / torch.log1p(self.listeners.max().clamp(min=1))


def tensor(array: npt.NDArray[Any]) -> Tensor:
    """Returns a tensor that shares the array's memory where it can."""
    return torch.from_numpy(np.ascontiguousarray(array))


def losses(
    network: Network,
    data: TrainingData,
    tensors: Tensors,
    users: I64,
    rng: np.random.Generator,
    config: TrainConfig,
    temperature: float,
    with_head: bool = True,
) -> tuple[Tensor, Tensor]:
    """Returns the retrieval loss and the head's loss for a batch of users; the towers learn from the first only."""
    seen, targets = hide(data, users, rng, config.keep, config.cold, config.longest_history)
    full = data.n_tracks <= config.full_softmax
    rows = np.arange(data.n_tracks) if full else _in_play(data, seen, targets, rng, config)
    at = slice(None) if full else tensor(rows)
    ids = tensors.ids[at].clone()
    ids[torch.rand(len(rows)) < config.id_dropout, 0] = 0
    vectors, history = network.item_tower(tensors.dense[at], ids, tensors.bags[at])  # (R, D) each
    encoded = data.spec.encode_users(data.profiles[users], seen, data.tracks)
    user = embed_users(network, encoded, history, rows)  # (B, D)

    wanted = _mask(targets.offsets, np.searchsorted(rows, targets.rows), len(users), len(rows))
    heard = _mask(seen.offsets, np.searchsorted(rows, seen.rows), len(users), len(rows))
    cosines = user @ vectors.T  # (B, R)
    logits = cosines / temperature
    if not full:
        logits = logits - log_q(tensors.share[at], len(targets.rows), config.uniform_negatives / data.n_tracks)
    retrieval = softmax_loss(logits, wanted, heard)
    if not with_head:
        return retrieval, torch.zeros(())

    chosen, labels, excluded = _candidates(cosines.detach(), wanted, heard, config.depth)
    # A target's own listener must not count towards its popularity: that play is hidden.
    popularity = tensors.popularity((tensors.listeners[at][chosen] - labels.float()).clamp(min=0))
    base, extra = network.head.parts(
        user.detach(),
        tensor(encoded.dense),
        tensor(encoded.ids),
        vectors.detach()[chosen],
        tensors.dense[at][chosen],
        tensors.ids[at][chosen],
        popularity,
    )
    return retrieval, softmax_loss(base + extra, labels, excluded)


def embed_users(network: Network, users: EncodedUsers, history: Tensor, rows: I64 | None = None) -> Tensor:
    """Returns user vectors (B, D), padding the histories in groups of like length.

    history: (R, D) history vectors of the tracks `rows` (ascending); of all tracks when rows is None.
    """
    lengths = np.diff(users.histories.offsets)
    order = np.argsort(lengths, kind="stable")
    parts = []
    for group in np.array_split(order, min(LENGTH_GROUPS, len(order))):
        chosen = users.take(group)
        padded, entry, mask = chosen.padded()
        if rows is not None:
            padded = np.where(mask > 0, np.searchsorted(rows, padded), 0)
        parts.append(
            network.user_tower(
                tensor(chosen.dense),
                tensor(chosen.ids),
                F.embedding(tensor(padded), history),
                tensor(entry),
                tensor(mask),
            )
        )
    return torch.cat(parts)[tensor(np.argsort(order))]


def _in_play(
    data: TrainingData, seen: Histories, targets: Targets, rng: np.random.Generator, config: TrainConfig
) -> I64:
    """Ascending rows of a sampled step: what the batch has seen, its targets, and uniform negatives."""
    uniform = rng.integers(0, data.n_tracks, config.uniform_negatives)
    return np.unique(np.concatenate([seen.rows, targets.rows, uniform]))


def _mask(offsets: I64, columns: I64, n: int, width: int) -> Tensor:
    mask = torch.zeros(n, width, dtype=torch.bool)
    mask[tensor(np.repeat(np.arange(n), np.diff(offsets))), tensor(columns)] = True
    return mask


def _candidates(cosines: Tensor, wanted: Tensor, heard: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates (B, N) of the head with labels and what to leave out: targets, retrieved and random tracks."""
    n, width = cosines.shape
    drawn = torch.rand(n, width) * wanted
    strength, positives = drawn.topk(min(MAX_TARGETS, width), 1)
    top = cosines.masked_fill(heard, -2.0).topk(min(depth, width), 1).indices
    pick = torch.rand(top.shape).topk(min(HARD, top.shape[1]), 1).indices
    chosen = torch.cat([positives, top.gather(1, pick), torch.randint(width, (n, RANDOM))], 1)
    labels, excluded = wanted.gather(1, chosen), heard.gather(1, chosen)
    excluded[:, : positives.shape[1]] |= strength <= 0  # fewer targets than places
    excluded[:, positives.shape[1] :] |= labels[:, positives.shape[1] :]  # a target counts once
    return chosen, labels & ~excluded, excluded
