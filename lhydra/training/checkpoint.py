"""Checkpoints: one safetensors file with network, optimizer and training state; no pickle, replaced atomically."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lhydra import files
from lhydra.bundle.model import Parents, Quality
from lhydra.errors import ModelError, complain
from lhydra.json_text import parse_json
from lhydra.training.model import Head, Network


@dataclass(frozen=True)
class State:
    """Where the training of the towers stands, beside their tensors.

    best: epoch and retrieval metrics of the best epoch so far, None before the first and without a validation fold.
    began: its worth when this cycle of the learning rate began, 0 in the first cycle.
    """

    config: dict[str, float]  # fields of `TrainSettings`
    parents: Parents
    temperature: float
    epoch: int = 0  # finished
    best: Quality | None = None
    data: tuple[str, ...] = ()  # SHA-256 of the dataset's tables; not in checkpoints of before
    warm_from: str = ""  # model_id of the model that it went on from, with --warm
    features: str = ""  # fingerprint of the features that the towers know; not in checkpoints of before
    began: float = 0.0


def claim(out: Path, resume: bool) -> None:
    """Makes the folder of a training.

    Args:
        out: the model folder.
        resume: whether a run in it goes on.

    Raises:
        ModelError: it holds something that is not ours to replace, or no run to go on with.
    """
    files.recover(out.resolve())
    expected = "a new folder, or one made by `lhydra train`"
    if out.exists() and not out.is_dir():
        raise ModelError(complain(out, "a file", expected))
    if (out / "dataset.json").exists():
        raise ModelError(complain(out, "a dataset", expected))
    ours = (out / "model.json").exists() or (out / "checkpoint").is_dir()
    if out.is_dir() and any(out.iterdir()) and not ours:
        raise ModelError(complain(out, "a folder with other files", expected))
    if resume and not (out / "checkpoint" / "last.safetensors").exists():
        raise ModelError(complain(out, "no checkpoint", "a folder with a run to resume"))
    (out / "checkpoint").mkdir(parents=True, exist_ok=True)


def keep_lines(path: Path, count: int) -> None:
    """Cuts metrics.jsonl to the epochs that the checkpoint holds.

    Args:
        path: the file; there may be none.
        count: lines to keep.
    """
    lines = path.read_text(encoding="utf-8").splitlines()[:count] if path.exists() else []
    files.write_text(path, "".join(f"{line}\n" for line in lines))


def save(path: Path, network: Network, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Writes everything that `load` needs to continue exactly here.

    Args:
        path: file to replace.
        network: all of its parameters and buffers are written.
        optimizer: its moments and steps are written.
        state: written as JSON into the file's metadata.
    """
    tensors: dict[str, Tensor] = {f"network.{name}": value for name, value in network.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    with files.replacing_file(path) as new:
        save_file(copies, new, metadata={"state": json.dumps(asdict(state))})


def save_head(path: Path, head: Head) -> None:
    """Writes a finished head, which a later training may go on from.

    Args:
        path: file to replace.
        head: all of its parameters and buffers are written.
    """
    with files.replacing_file(path) as new:
        save_file({name: value.detach().clone().contiguous() for name, value in head.state_dict().items()}, new)


def read_head(path: Path) -> dict[str, Tensor]:
    """Reads what `save_head` wrote.

    Args:
        path: the file.

    Returns:
        Parameters and buffers by name; {} where there is no file.

    Raises:
        ModelError: it is something else.
    """
    return _tensors(path) if path.exists() else {}


def read_state(path: Path) -> State:
    """Reads where a run stood, without its tensors: whether it can go on is known before anything is fitted.

    Args:
        path: file that `save` wrote.

    Returns:
        Where the training stood.

    Raises:
        ModelError: there is no such file, or it is no checkpoint.
    """
    try:
        with safe_open(path, "pt") as file:
            raw = parse_json((file.metadata() or {})["state"])
            return State(**raw | {"data": tuple(raw.get("data", ()))})
    except FileNotFoundError:
        raise ModelError(complain(path, "no such file", "a checkpoint to resume from")) from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(complain(path, " ".join(str(error).split()), "a checkpoint of a run")) from None


def check_same(path: Path, wanted: State, dataset: Path) -> None:
    """Checks that a run had the same settings and data; at once, since teachers take their time.

    Args:
        path: file that `save` wrote.
        wanted: of a run that begins.
        dataset: its name in messages.

    Raises:
        ModelError: it differs, by name.
    """
    state = read_state(path)
    pairs: tuple[tuple[str, Any, Any], ...] = (
        ("config", state.config, wanted.config),
        ("parents", state.parents, wanted.parents),
    )
    for name, found, ours in pairs:
        expected = json.loads(json.dumps(ours))
        if found != expected:
            differs = next((key for key in expected if found.get(key) != expected[key]), name)
            raise ModelError(complain(path, f"another {differs}", f"a run with the same {name}"))
    if state.warm_from != wanted.warm_from:
        from_, to = (one.warm_from or "no other model" for one in (state, wanted))
        raise ModelError(complain(path, f"a run that went on from {from_}", f"one from {to}"))
    if state.data and state.data != wanted.data:
        raise ModelError(complain(path, f"other data than in {dataset}", "a run on the same dataset"))


def load(path: Path, network: Network, optimizer: torch.optim.Optimizer | None = None) -> State:
    """Fills network and optimizer from a checkpoint.

    Args:
        path: file that `save` wrote.
        network: of the same shape.
        optimizer: of the same parameters; None where training does not go on.

    Returns:
        Where the training stood.

    Raises:
        ModelError: there is no such file, or it does not fit.
    """
    state, tensors = read_state(path), _tensors(path)
    try:
        network.load_state_dict(_below("network.", tensors))
        if optimizer is not None:
            whole = optimizer.state_dict()
            whole["state"] = {}
            for name, value in _below("optimizer.", tensors).items():
                number, _, key = name.partition(".")
                whole["state"].setdefault(int(number), {})[key] = value
            optimizer.load_state_dict(whole)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        found = " ".join(str(error).split())
        raise ModelError(complain(path, found, "a checkpoint of this dataset and configuration")) from None
    return state


def read(path: Path) -> tuple[State, dict[str, Tensor]]:
    """Reads a checkpoint without a network to fill.

    Args:
        path: file that `save` wrote.

    Returns:
        Where the training stood, and the parameters and buffers of its network by name.

    Raises:
        ModelError: there is no such file, or it is no checkpoint.
    """
    return read_state(path), _below("network.", _tensors(path))


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(complain(path, " ".join(str(error).split()), "a checkpoint of a run")) from None


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
