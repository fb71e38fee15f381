"""From the trained network to the model folder: graphs and head weights, proved equal to torch before they are kept."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from lhydra import __version__, files
from lhydra.bundle import fitted, folded_head, sequence_files
from lhydra.bundle.arrays import write_npz
from lhydra.bundle.history_vectors import HistoryVectors
from lhydra.bundle.model import OPTIONAL, PARTS, TABLE, ModelInfo
from lhydra.bundle.networks import (
    FLOAT16_INPUTS,
    HEAD_INPUTS,
    HEAD_OUTPUTS,
    ITEM_INPUTS,
    ITEM_OUTPUTS,
    MOMENT_INPUTS,
    USER_INPUTS,
    USER_OUTPUTS,
    Head,
    ItemTower,
    UserTower,
)
from lhydra.domain import F32, I64
from lhydra.errors import ModelError, complain
from lhydra.features.histories import offsets_of
from lhydra.features.item_item import CHANNELS
from lhydra.features.moment import CONTEXT, N_OWN, SIGNALS
from lhydra.features.sequences import Sequences
from lhydra.features.spec import Encoded
from lhydra.timing import timed
from lhydra.training.data import TrainingData, select
from lhydra.training.folded import weights_of, weights_of_tower
from lhydra.training.model import Network
from lhydra.training.step import Tensors, tensor
from lhydra.training.teachers import Table

TOLERANCE = 1e-4  # largest difference between torch and ONNX, relative to numbers of about 1
OPSET = 20


@timed("train.export")
def export(
    network: Network,
    data: TrainingData,
    table: Table,
    out: Path,
    info: ModelInfo,
    sequences: Sequences | None = None,
    users: Iterable[str] = (),
) -> ModelInfo:
    """Writes features.json, the three graphs, the co-listening table and model.json, checked in a staging folder first.

    The folder `out` is replaced as a whole and at the end; its other files, checkpoints say, stay.

    Args:
        network: what was trained.
        data: the tracks and users whose real inputs prove the graphs.
        table: the co-listening table.
        out: the model folder.
        info: what training knows; ids, times, format and files are filled in here.
        sequences: what goes with what in time, for a head with a part for moments.
        users: ids of those whose plays it was fitted on.

    Returns:
        What model.json says.

    Raises:
        ModelError: a graph disagrees with torch; then `out` holds what it held before.
    """
    network.eval()
    with files.replacing_folder(out.resolve()) as folder:
        (folder / "features.json").write_text(data.spec.to_json(), encoding="utf-8")
        _write_table(table, data.tracks.ids[:, 0], folder)
        if sequences is not None:
            numbers = data.tracks.ids[:, 0]
            to = np.where(numbers > 0, numbers, -1)
            sequence_files.save(folder, sequence_files.rearranged(sequences, to, 1 + int(numbers.max(initial=0))))
        fitted.save(folder, users)
        _graphs(network, data, folder)
        write_npz(folder / folded_head.FILE, weights_of(network.head) | weights_of_tower(network.user_tower))
        _prove(network, data, folder)
        now = datetime.now(UTC)
        info = replace(
            info,
            model_id=files.new_id(now),
            created=now.isoformat(timespec="seconds"),
            lhydra_version=__version__,
            dim=network.head.of_track.in_features,
            features=data.spec.fingerprint,
            files=files.seal(folder, [*PARTS, *sequence_files.names_in(folder), *OPTIONAL]),
        )
        files.write_text(folder / "model.json", info.to_json())
        files.link_missing(out, folder)
    return info


def _write_table(table: Table, numbers: I64, folder: Path) -> None:
    """Writes the table by number of the track id; numbers: (n,) of the tracks, 0 for those without train plays."""
    known = np.flatnonzero(numbers)
    width = table.neighbours.shape[1]
    neighbours, weights = (np.zeros((1 + len(known), width), kind) for kind in (np.int32, np.float16))
    near = numbers[table.neighbours[known]]
    neighbours[numbers[known]] = near
    weights[numbers[known]] = np.where(near > 0, table.weights[known], 0)
    for name, array in zip(TABLE, (neighbours, weights), strict=True):
        np.save(folder / name, array)


def _graphs(network: Network, data: TrainingData, folder: Path) -> None:
    batch, tracks, history = Dim("batch"), Dim("tracks"), Dim("history")
    item, user, head = _examples(network, data, 3, 5)
    _export(network.item_tower, item, ITEM_INPUTS, ITEM_OUTPUTS, [{0: tracks}] * 3, folder / "item_tower.onnx")
    shapes = [{0: batch}, {0: batch}, *[{0: batch, 1: history}] * 3]
    _export(network.user_tower, user, USER_INPUTS, USER_OUTPUTS, shapes, folder / "user_tower.onnx")
    per_user, names = ("user", "user_dense", "user_ids", "context"), (*HEAD_INPUTS, *MOMENT_INPUTS)[: len(head)]
    shapes = [{0: batch} if name in per_user else {0: batch, 1: tracks} for name in names]
    _export(network.head, head, names, HEAD_OUTPUTS, shapes, folder / "head.onnx")


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    shapes: list[dict[int, Any]],
    path: Path,
) -> None:
    with _quiet():
        model = _traced(module, example, inputs, outputs, shapes)
    if any(node.op_type == "Dropout" for node in model.graph.node):
        raise ModelError(complain(path.name, "a Dropout node", "a graph in evaluation mode"))
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")  # stack traces, with the paths of this machine
        part.ClearField("doc_string")
    onnx.save(model, str(path))


def _traced(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    shapes: list[dict[int, Any]],
) -> onnx.ModelProto:
    """Returns the graph of a module; tracing and optimising it takes seconds, whatever the size of the module."""
    # Columns that a data set lacks make inputs of width 0: only dimensions that vary are declared dynamic.
    program = torch.onnx.export(
        module,
        example,
        dynamo=True,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=tuple(shapes),
        opset_version=OPSET,
    )
    assert program is not None
    return program.model_proto


@torch.no_grad()
def _prove(network: Network, data: TrainingData, folder: Path) -> None:
    """Compares torch with the graphs and the compiled head, for one row and for many, with and without a history."""
    towers = ItemTower(folder / "item_tower.onnx"), UserTower(folder / "user_tower.onnx")
    head = Head(folder / "head.onnx", weights=folded_head.read(folder, OPTIONAL))
    for users, tracks in ((1, 1), (1, 300), (7, 64)):
        item, user, pair = _examples(network, data, users, tracks)
        encoded = Encoded(*(part.numpy() for part in item))
        _same("item_tower.onnx", network.item_tower(*item), towers[0].embed(encoded))
        found = towers[1].run(*(part.numpy() for part in user))
        _same("user_tower.onnx", (network.user_tower(*user),), (found,))
        shared = (*user[:2], user[2][:1], *user[3:])  # one history of which all have parts: what Explain asks
        found = towers[1].run(*(part.numpy() for part in shared))
        _same("user_tower.onnx", (network.user_tower(*shared),), (found,))
        _same("head.onnx", network.head(*pair), head.run(*(part.numpy() for part in pair)))
        if head.weights is not None:
            _same(folded_head.FILE, network.head(*pair), _compiled(head.weights, *(part.numpy() for part in pair)))
            history = HistoryVectors.of(user[2].flatten(0, 1).float().numpy())  # rounded, as a bundle keeps it
            rows = np.arange(len(history)).reshape(user[2].shape[:2])
            rounded = (*user[:2], torch.from_numpy(history.at(rows)), *user[3:])
            found = _by_loop(head.weights, history, rows, *(part.numpy() for part in (*user[:2], *user[3:])))
            _same(folded_head.FILE, (network.user_tower(*rounded),), (found,))


def _by_loop(
    weights: folded_head.Weights, history: HistoryVectors, rows: I64, dense: F32, ids: I64, entry: F32, mask: F32
) -> F32:
    """Vectors of B users by the compiled tower; inputs as those of the graph, but rows (B, H) of history vectors."""
    tower, kept = folded_head.compiled_tower(weights, history.table), mask > 0
    assert tower is not None
    return tower.embed(dense, ids, offsets_of(kept.sum(1)), rows[kept], entry[kept])


def _compiled(weights: folded_head.Weights, *inputs: npt.NDArray[Any]) -> tuple[F32, F32]:
    """Logits and probabilities of B users and N tracks by the compiled head; inputs as those of the graph."""
    found = []
    for user, dense, ids, *tracks in zip(*inputs, strict=True):
        vectors, track_dense, track_ids, popularity, together, *moment = tracks
        head = folded_head.compiled(weights, vectors, track_dense, track_ids.astype(np.int32), popularity)
        signals, context = moment or (None, None)
        found.append(head.score(user, dense, ids, np.arange(len(vectors)), together, signals, context))
    logits, probabilities = zip(*found, strict=True)
    return np.stack(logits), np.stack(probabilities)


def _same(name: str, ours: tuple[Tensor, ...], theirs: tuple[np.ndarray, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        off = float(np.abs(a.numpy() - b).max() / max(1.0, float(a.abs().max())))
        if not off <= TOLERANCE:
            raise ModelError(complain(name, f"{off:.2g} off torch", f"at most {TOLERANCE:g}"))


@torch.no_grad()
def _examples(network: Network, data: TrainingData, users: int, tracks: int) -> tuple[tuple[Tensor, ...], ...]:
    """Real inputs of item tower, user tower and head; the first user has no history."""
    tensors, rng = Tensors.of(data), np.random.default_rng(users)
    rows = rng.integers(0, data.n_tracks, tracks)
    chosen = rng.integers(0, len(data.profiles), users)
    lengths = data.train.offsets[chosen + 1] - data.train.offsets[chosen]
    played_by = np.repeat(np.arange(users), lengths)
    histories = select(data.train, chosen, (played_by > 0) | (users == 1))
    encoded = data.spec.encode_users(data.profiles[chosen], histories, data.tracks)
    at = tensor(rows)
    item = tensors.dense[at], tensors.ids[at], tensors.bags[at]
    vectors = network.item_tower(*item)[0]
    padded, entry, mask = encoded.padded()
    played = tensor(padded)
    history = network.item_tower(
        tensors.dense[played.flatten()], tensors.ids[played.flatten()], tensors.bags[played.flatten()]
    )[1]
    user = (
        tensor(encoded.dense),
        tensor(encoded.ids),
        history.reshape(*played.shape, -1),
        tensor(entry),
        tensor(mask),
    )
    user_inputs = _halved(USER_INPUTS, user)
    spread = [part.expand(users, *part.shape) for part in (vectors, item[0], item[1])]
    popularity = tensors.popularity(tensors.listeners)[at].expand(users, tracks)
    together = torch.rand(users, tracks, len(CHANNELS))
    head = (network.user_tower(*user_inputs), user[0], user[1], *spread, popularity, together)
    if network.head.moments is not None:
        head = (*head, *_moments(users, tracks))
    names = (*HEAD_INPUTS, *MOMENT_INPUTS)[: len(head)]
    return item, user_inputs, _halved(names, tuple(part.contiguous() for part in head))


def _moments(users: int, tracks: int) -> tuple[Tensor, Tensor]:
    """Signals and context as moments give them: a track is heard or not, and of others nothing is known."""
    signals, context = torch.rand(users, tracks, len(SIGNALS)), torch.rand(users, len(CONTEXT))
    heard = torch.rand(users, tracks, 1) < 0.5
    signals[..., :N_OWN] *= heard
    signals[..., :1] = heard
    if users > 1:
        context[0] = 0  # the first user has no history
    return signals, context


def _halved(names: tuple[str, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs as the graphs are fed: those named in FLOAT16_INPUTS as float16."""
    return tuple(part.half() if name in FLOAT16_INPUTS else part for name, part in zip(names, inputs, strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter, which talks about optional packages and its own future."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
