"""The exported networks: item tower, user tower and head as ONNX graphs. The only file that imports onnxruntime.

ONNX Runtime accepts ids of -1 and not-a-number inputs without a word, so what goes in comes from
`lhydra.features.spec`, which never makes them, and what comes out is checked to be finite.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from lhydra.domain import F16, F32, I64
from lhydra.errors import ModelError, complain
from lhydra.features.histories import EncodedUsers
from lhydra.features.spec import Encoded

# Input and output names of the graphs: what export writes and this module feeds.
ITEM_INPUTS, ITEM_OUTPUTS = ("dense", "ids", "bags"), ("vector", "history")
USER_INPUTS, USER_OUTPUTS = ("dense", "ids", "history", "entry", "mask"), ("vector",)
HEAD_INPUTS = (
    "user",
    "user_dense",
    "user_ids",
    "vectors",
    "track_dense",
    "track_ids",
    "popularity",
    "colisten",
)
HALVES = frozenset(("history", "vectors", "track_dense"))  # a bundle keeps these as float16: the graphs widen them
HEAD_OUTPUTS = ("logit", "probability")


class _Graph:
    """One ONNX graph; `run` takes inputs by name and returns the outputs in order."""

    def __init__(self, path: Path, outputs: tuple[str, ...], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # one large batch would keep its memory for good
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises types of its own for every kind of bad file
            raise ModelError(complain(path, " ".join(str(error).split()), "an ONNX graph")) from None
        self._path = path
        self._outputs = outputs
        self._inputs = {node.name for node in self._session.get_inputs()}
        found = tuple(node.name for node in self._session.get_outputs())
        if found != outputs:
            raise ModelError(complain(path, f"outputs {', '.join(found)}", f"outputs {', '.join(outputs)}"))

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[F32]:
        # A graph whose data set lacks a feature group may have lost that input: feed what it still declares.
        fed = {name: value for name, value in inputs.items() if name in self._inputs}
        outputs: list[F32] = self._session.run(list(self._outputs), fed)
        if not all(np.isfinite(output).all() for output in outputs):
            raise ModelError(complain(self._path.name, "an output that is not finite", "finite numbers"))
        return outputs


class ItemTower:
    """Encoded tracks -> retrieval vectors and history vectors."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._graph = _Graph(path, ITEM_OUTPUTS, threads)

    def embed(self, tracks: Encoded) -> tuple[F32, F32]:
        """Returns retrieval vectors (n, dim), unit norm, and history vectors (n, dim)."""
        vector, history = self._graph.run({"dense": tracks.dense, "ids": tracks.ids, "bags": tracks.bags})
        return vector, history


class UserTower:
    """Encoded users and the history vectors of what they played -> user vectors.

    path: where the graph lies; its model or bundle is the folder around it.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path: Path = Path(path)
        self._graph = _Graph(path, USER_OUTPUTS, threads)

    def embed(self, users: EncodedUsers, history: F16 | F32) -> F32:
        """Returns user vectors (n, dim), unit norm.

        history: (n tracks, dim) history vectors of the tracks that `users.histories.rows` points into, as halves or
        to be rounded to them: that is what the graph takes.
        """
        rows, entry, mask = users.padded()
        gathered = history.take(rows, 0) if len(history) else np.zeros((*rows.shape, history.shape[1]), np.float16)
        return self.run(users.dense, users.ids, gathered, entry, mask)

    def run(self, *inputs: npt.NDArray[Any]) -> F32:
        """Runs the graph on raw inputs in the order of USER_INPUTS."""
        return self._graph.run(_halved(USER_INPUTS, inputs))[0]


class Head:
    """The prediction head for one user and n tracks."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._graph = _Graph(path, HEAD_OUTPUTS, threads)

    def score(
        self, vector: F32, user: EncodedUsers, vectors: F16, dense: F16, ids: I64, popularity: F32, item_item: F32
    ) -> tuple[F32, F32]:
        """Returns raw logits (n,) and calibrated probabilities (n,).

        vector: (1, dim) of the one encoded `user`; vectors (n, dim) and dense (n, dt) as halves, ids (n, ct),
        popularity (n,) and co-listening scores (n, 2) of the tracks.
        """
        tracks = (vectors, dense, ids, popularity, item_item)
        logit, probability = self.run(vector, user.dense, user.ids, *(part[None] for part in tracks))
        return logit[0], probability[0]

    def run(self, *inputs: npt.NDArray[Any]) -> tuple[F32, F32]:
        """Runs the graph on raw inputs in the order of HEAD_INPUTS; logits and probabilities (B, N)."""
        logit, probability = self._graph.run(_halved(HEAD_INPUTS, inputs))
        return logit, probability


def _halved(names: tuple[str, ...], inputs: tuple[npt.NDArray[Any], ...]) -> dict[str, npt.NDArray[Any]]:
    """Inputs by name, those of a catalog as halves: rounded once, wherever they come from."""
    return {
        name: part.astype(np.float16) if name in HALVES and part.dtype != np.float16 else part
        for name, part in zip(names, inputs, strict=True)
    }
