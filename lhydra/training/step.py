"""One training step of the towers: hide plays, embed the tracks in play and the users, and the two losses."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lhydra.domain import I64
from lhydra.features.histories import EncodedUsers, Histories
from lhydra.training.config import TrainSettings
from lhydra.training.data import Targets, TrainingData, hide
from lhydra.training.device import half
from lhydra.training.losses import log_q
from lhydra.training.model import Network
from lhydra.training.retrieval_loss import retrieval_losses, teacher_share
from lhydra.training.teachers import Teachers

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
        """Makes the tensors of `data`.

        Args:
            data: its arrays are shared where they can be.

        Returns:
            The tensors.
        """
        tracks, listeners = data.tracks, tensor(data.listeners).float()
        return cls(
            tensor(tracks.dense), tensor(tracks.ids), tensor(tracks.bags), listeners, listeners / listeners.sum()
        )

    def to(self, device: str) -> "Tensors":
        """Moves them.

        Args:
            device: where to.

        Returns:
            The tensors there; the same ones where they are there.
        """
        return Tensors(*(getattr(self, field.name).to(device) for field in fields(self)))

    def popularity(self, listeners: Tensor) -> Tensor:
        """The head's popularity feature, as `lhydra.bundle.catalog_writer.popularity` gives it.

        Args:
            listeners: (m,) float32, of any tracks.

        Returns:
            (m,) float32, 1 for the track with the most listeners.
        """
        return torch.log1p(listeners) / torch.log1p(self.listeners.max().clamp(min=1))


def tensor(array: npt.NDArray[Any], device: torch.device | str = "cpu") -> Tensor:
    """Wraps an array.

    Args:
        array: of any shape and dtype.
        device: where to.

    Returns:
        A tensor that shares its memory where it can.
    """
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


@dataclass(frozen=True)
class Batch:
    """What a step of B users needs beside the network.

    rows: (R,) tracks in play, ascending; at: the same, to index `Tensors` by; numbers: (r,) their track ids, each once,
    and 0. users: encoded from what is seen.
    wanted: (2, P) and heard: (2, H) users and columns. correction: (R,) logQ. share: (B, R) of the teachers, or None.
    """

    rows: I64
    at: slice | Tensor
    numbers: Tensor
    users: EncodedUsers
    wanted: Tensor
    heard: Tensor
    correction: Tensor
    share: Tensor | None

    def to(self, device: str) -> "Batch":
        """Moves its tensors.

        Args:
            device: where to.

        Returns:
            The batch there.
        """
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: part.to(device) for name, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **moved)


def prepare(
    data: TrainingData,
    tensors: Tensors,
    teachers: Teachers,
    users: I64,
    rng: np.random.Generator,
    config: TrainSettings,
) -> Batch:
    """Hides plays of a batch of users, and asks the teachers; nothing here depends on the network.

    Args:
        data: whose train plays are hidden in part.
        tensors: the tracks of `data`.
        teachers: fitted on `data`.
        users: (B,) int64, ascending positions.
        rng: of what is hidden and of the negatives.
        config: settings of the training.

    Returns:
        The batch.
    """
    seen, targets = hide(data, users, rng, config.keep, config.cold, config.longest_history)
    full = data.n_tracks <= config.full_softmax
    rows = np.arange(data.n_tracks) if full else _in_play(data, seen, targets, rng, config)
    at = slice(None) if full else tensor(rows)
    wanted, heard = _pairs(targets.offsets, targets.rows, rows), _pairs(seen.offsets, seen.rows, rows)
    correction = torch.zeros(len(rows))
    if not full:
        correction = log_q(tensors.share[at], len(targets.rows), config.uniform_negatives / data.n_tracks)
    share = None
    if config.distil:
        share = teacher_share(teachers.logits(seen, None if full else rows).sub_(correction), heard)
    encoded = data.spec.encode_users(data.profiles[users], seen, data.tracks)
    numbers = tensor(np.union1d(0, data.tracks.ids[rows, 0]))
    return Batch(rows, at, numbers, encoded, wanted, heard, correction, share)


def losses(
    network: Network,
    tensors: Tensors,
    batch: Batch,
    tables: dict[str, Tensor],
    config: TrainSettings,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Computes the towers' two losses for a batch of users.

    Args:
        network: in training mode; dropout and hidden ids draw from torch's stream.
        tensors: all tracks, where the network is.
        batch: of `prepare`, likewise.
        tables: rows `batch.numbers` of tables of track ids, by name in the item tower; {} computes with all rows.
        config: settings of the training.
        temperature: of the softmax.

    Returns:
        () float each: towards the hidden plays, and towards the teachers (0 when their weight is).
    """
    ids = tensors.ids[batch.at].clone()
    ids[torch.rand(len(ids), device=ids.device) < config.id_dropout, 0] = 0
    if tables:
        ids[:, 0] = torch.searchsorted(batch.numbers, ids[:, 0].contiguous())
    inputs = tensors.dense[batch.at], ids, tensors.bags[batch.at]
    with half(ids.device):
        vectors, history = functional_call(network.item_tower, tables, inputs)  # (R, D) each
    user = embed_users(network, batch.users, history, batch.rows) / temperature  # (B, D)
    return retrieval_losses(user, vectors, batch.correction, batch.wanted, batch.heard, batch.share)


def embed_users(network: Network, users: EncodedUsers, history: Tensor, rows: I64 | None = None) -> Tensor:
    """Embeds users, padding their histories in groups of like length.

    Args:
        network: its user tower is asked.
        users: B encoded users.
        history: (R, D) float32 history vectors.
        rows: (R,) int64, ascending tracks of `history`; None for all tracks.

    Returns:
        (B, D) float32 user vectors of unit norm.
    """
    lengths, device = np.diff(users.histories.offsets), history.device
    order = np.argsort(lengths, kind="stable")
    groups = [users.take(group) for group in np.array_split(order, min(LENGTH_GROUPS, len(order)))]
    padded = [group.padded() for group in groups]
    played = np.concatenate([tracks.ravel() for tracks, _, _ in padded])
    if rows is not None:
        real = np.concatenate([mask.ravel() for _, _, mask in padded]) > 0
        played = np.where(real, np.searchsorted(rows, played), 0)
    vectors = F.embedding(tensor(played, device), history)  # at once: its gradient is as large as all tracks in play
    ends = np.cumsum([tracks.size for tracks, _, _ in padded]).tolist()
    histories = torch.tensor_split(vectors, ends[:-1])
    parts = [
        network.user_tower(
            tensor(group.dense, device),
            tensor(group.ids, device),
            part.view(*mask.shape, -1),
            tensor(entry, device),
            tensor(mask, device),
        )
        for group, part, (_, entry, mask) in zip(groups, histories, padded, strict=True)
    ]
    return torch.cat(parts)[tensor(np.argsort(order), device)]


def _in_play(
    data: TrainingData, seen: Histories, targets: Targets, rng: np.random.Generator, config: TrainSettings
) -> I64:
    """Ascending rows of a sampled step: what the batch has seen, its targets, and uniform negatives."""
    uniform = rng.integers(0, data.n_tracks, config.uniform_negatives)
    return np.unique(np.concatenate([seen.rows, targets.rows, uniform]))


def _pairs(offsets: I64, tracks: I64, rows: I64) -> Tensor:
    """(2, m) users, and columns of their tracks among `rows`."""
    return tensor(np.stack([np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), np.searchsorted(rows, tracks)]))
