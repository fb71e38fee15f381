"""The exported networks: item tower, user tower and head as ONNX graphs. The only file that imports onnxruntime.

ONNX Runtime silently accepts ids of -1 and NaN inputs, so inputs come from `lhydra.features.spec`, which never makes
them, and outputs are checked to be finite.
"""

import os
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Else it writes an id of the machine into the home folder, for reports to its makers; it asks this while it is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

from lhydra.bundle.arrays import is_finite
from lhydra.bundle.folded_head import Weights
from lhydra.bundle.history_vectors import HistoryVectors
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
MOMENT_INPUTS = ("signals", "context")  # of a head that knows what comes next, beside HEAD_INPUTS
FLOAT16_INPUTS = frozenset(("history", "vectors", "track_dense"))  # the graphs widen them
HEAD_OUTPUTS = ("logit", "probability")
_HALF = np.dtype(np.float16)


class _Graph:
    """One ONNX graph; `run` takes inputs by name and returns the outputs in order."""

    def __init__(self, path: Path, outputs: tuple[str, ...], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # the arena would never release the memory of one large batch
        options.log_severity_level = 3
        try:
            graph = path.read_bytes()  # as bytes it can have no weights in other files, which nobody has hashed
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has an exception type for every kind of bad file
            raise ModelError(complain(path, " ".join(str(error).split()), "an ONNX graph")) from None
        self._path = path
        self._outputs = list(outputs)
        self._inputs = {node.name for node in self._session.get_inputs()}
        found = tuple(node.name for node in self._session.get_outputs())
        if found != outputs:
            raise ModelError(complain(path, f"outputs {', '.join(found)}", f"outputs {', '.join(outputs)}"))

    def takes(self, names: tuple[str, ...]) -> bool:
        return self._inputs.issuperset(names)

    def run(self, names: tuple[str, ...], parts: tuple[npt.NDArray[Any], ...]) -> list[F32]:
        """Runs it on inputs by name, FLOAT16_INPUTS rounded to float16, so that every caller rounds alike."""
        # A graph whose data set lacks a feature group may have lost that input: feed what it still declares.
        fed = {
            name: part.astype(_HALF) if name in FLOAT16_INPUTS and part.dtype != _HALF else part
            for name, part in zip(names, parts, strict=True)
            if name in self._inputs
        }
        outputs: list[F32] = self._session.run(self._outputs, fed)
        if not all(map(is_finite, outputs)):
            raise ModelError(complain(self._path.name, "an output that is not finite", "finite numbers"))
        return outputs


class ItemTower:
    """Encoded tracks -> retrieval vectors and history vectors.

    Args:
        path: ONNX file.
        threads: for one run.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._graph = _Graph(path, ITEM_OUTPUTS, threads)

    def embed(self, tracks: Encoded) -> tuple[F32, F32]:
        """Embeds tracks.

        Args:
            tracks: n encoded tracks.

        Returns:
            (n, dim) float32 retrieval vectors of unit norm, and (n, dim) float32 history vectors.
        """
        vector, history = self._graph.run(ITEM_INPUTS, (tracks.dense, tracks.ids, tracks.bags))
        return vector, history


class UserTower:
    """Encoded users and the history vectors of what they played -> user vectors.

    Args:
        path: ONNX file in the folder of its model or bundle.
        threads: for one run.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path: Path = Path(path)
        self._graph = _Graph(path, USER_OUTPUTS, threads)

    def embed(self, users: EncodedUsers, history: HistoryVectors) -> F32:
        """Embeds users.

        Args:
            users: n encoded users.
            history: of the tracks that `users.histories.rows` points into.

        Returns:
            (n, dim) float32, unit norm.
        """
        rows, entry, mask = users.padded()
        return self.run(users.dense, users.ids, history.at(rows), entry, mask)

    def embed_parts(self, users: EncodedUsers, history: F16 | F32, entry: F32, kept: npt.NDArray[np.bool_]) -> F32:
        """Embeds users whose histories are parts of one, which the graph reads once for all of them.

        Args:
            users: n encoded users.
            history: (h, dim) float16 history vectors of the whole history; float32 is rounded.
            entry: (n, h, 3) float32 entry features of each user, finite where the user has none.
            kept: (n, h) which entries each user has.

        Returns:
            (n, dim) float32, unit norm.
        """
        return self.run(users.dense, users.ids, history[None], entry, kept.astype(np.float32))

    def run(self, *inputs: npt.NDArray[Any]) -> F32:
        """Runs the graph on raw inputs.

        Args:
            inputs: in the order of USER_INPUTS; the history vectors of one user stand for all.

        Returns:
            (n, dim) float32, unit norm.
        """
        return self._graph.run(USER_INPUTS, inputs)[0]


class Head:
    """The prediction head for one user and n tracks.

    Args:
        path: ONNX file.
        threads: for one run.
        weights: what the compiled head of a bundle is made of, if anything.
    """

    def __init__(self, path: Path, threads: int = 1, weights: Weights | None = None) -> None:
        self._graph = _Graph(path, HEAD_OUTPUTS, threads)
        self.weights = weights
        self.knows_moments = self._graph.takes(MOMENT_INPUTS)

    def by_graph(self) -> "Head":
        """Returns the same head without weights for a compiled one: the graph answers."""
        alone = copy(self)
        alone.weights = None
        return alone

    def score(
        self,
        vector: F32,
        user: EncodedUsers,
        vectors: F16,
        dense: F16,
        ids: I64,
        popularity: F32,
        item_item: F32,
        moment: tuple[F32, F32] | None = None,
    ) -> tuple[F32, F32]:
        """Scores tracks for one user.

        Args:
            vector: (1, dim) float32 of the user.
            user: one encoded user.
            vectors: (n, dim) float16 retrieval vectors of the tracks.
            dense: (n, dt) float16 features of the tracks.
            ids: (n, ct) ids of the tracks.
            popularity: (n,) float32.
            item_item: (n, 2) float32 co-listening scores.
            moment: (n, s) float32 signals and (c,) float32 context, for a head that `knows_moments`.

        Returns:
            (n,) float32 raw logits and (n,) float32 calibrated probabilities.
        """
        tracks = (vectors, dense, ids, popularity, item_item)
        more = () if moment is None else (part[None] for part in moment)
        logit, probability = self.run(vector, user.dense, user.ids, *(part[None] for part in tracks), *more)
        return logit[0], probability[0]

    def run(self, *inputs: npt.NDArray[Any]) -> tuple[F32, F32]:
        """Runs the graph on raw inputs.

        Args:
            inputs: in the order of HEAD_INPUTS and MOMENT_INPUTS, of B users and N tracks each.

        Returns:
            (B, N) float32 logits and (B, N) float32 probabilities.
        """
        names = (*HEAD_INPUTS, *MOMENT_INPUTS)[: len(inputs)]
        logit, probability = self._graph.run(names, inputs)
        return logit, probability
