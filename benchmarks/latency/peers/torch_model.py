"""The trained network in torch, as training left it: what the torch peers answer with.

The towers are those of the bundle. The head is the checkpoint's: its last fit lies only in the exported graph, so
scores differ from ours, the work does not.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lhydra.bundle.catalog import Catalog
from lhydra.domain import I64, UserState
from lhydra.features import item_item
from lhydra.features.histories import HISTORY_FEATURES, EncodedUsers, Histories
from lhydra.features.spec import FeatureSpec
from lhydra.training import checkpoint
from lhydra.training.model import Network
from lhydra.training.shape import Shape


class TorchModel:
    """Feature code, towers and head; the tracks' arrays are tensors in memory.

    Args:
        bundle: folder of the published bundle.
        model: folder of the model behind it.
    """

    def __init__(self, bundle: Path, model: Path) -> None:
        self.spec = FeatureSpec.from_json((bundle / "features.json").read_text(encoding="utf-8"))
        self.catalog = Catalog.open(bundle)
        config = json.loads((model / "model.json").read_text(encoding="utf-8"))["config"]
        shape = Shape.of(self.spec, config["dim"], config["hidden"], config["dropout"])
        self.network = Network(shape, len(HISTORY_FEATURES))
        checkpoint.load(model / "checkpoint" / "best.safetensors", self.network)
        del self.network.item_tower  # the tracks' vectors are in the bundle
        self.network.eval()
        self.vectors = _tensor(self.catalog.vectors).float()
        self.history = _tensor(self.catalog.history.at(np.arange(len(self.catalog))[None])[0]).float()
        self.dense = _tensor(self.catalog.dense).float()
        self.ids = _tensor(self.catalog.ids).long()
        self.popularity = _tensor(self.catalog.popularity)
        self.item_rows, self.neighbours = np.array(self.catalog.item_rows), np.array(self.catalog.neighbours)
        self.weights = np.array(self.catalog.neighbour_weights)

    def encode(self, state: UserState) -> EncodedUsers:
        """Encodes one user.

        Args:
            state: profile and history.

        Returns:
            The features; tracks that the catalogue lacks are left out.
        """
        history, rows = state.history, self.catalog.rows(state.history["track"])
        history, rows = history[rows >= 0], rows[rows >= 0]
        profile = self.spec.encode_profile_rows([state.profile])
        histories = Histories.one(rows, history["count"], history["time"])
        return self.spec.encode_users(profile, histories, self.catalog.tracks)

    @torch.inference_mode()
    def embed(self, user: EncodedUsers) -> Tensor:
        """Runs the user tower.

        Args:
            user: one encoded user.

        Returns:
            (1, dim) float32.
        """
        rows, entry, mask = user.padded()
        history = self.history[torch.from_numpy(rows)]
        parts = (torch.from_numpy(part) for part in (entry, mask))
        vector: Tensor = self.network.user_tower(
            torch.from_numpy(user.dense), torch.from_numpy(user.ids), history, *parts
        )
        return vector

    @torch.inference_mode()
    def score(self, vector: Tensor, user: EncodedUsers, rows: I64) -> Tensor:
        """Runs the prediction head.

        Args:
            vector: (1, dim) float32, from `embed`.
            user: one encoded user.
            rows: (n,) int64 of the candidates.

        Returns:
            (n,) float32 probabilities.
        """
        played, asked = self.item_rows[user.histories.rows], self.item_rows[rows]
        together = item_item.scores(self.neighbours, self.weights, played, user.entry, asked)
        at = torch.from_numpy(rows)
        _, probability = self.network.head(
            vector,
            torch.from_numpy(user.dense),
            torch.from_numpy(user.ids),
            self.vectors[at][None],
            self.dense[at][None],
            self.ids[at][None],
            self.popularity[at][None],
            torch.from_numpy(together)[None],
        )
        scores: Tensor = probability[0]
        return scores


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))
