"""Checkpoints: one safetensors file with network, optimizer and training state; no pickle, replaced atomically."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lhydra import files
from lhydra.errors import ModelError, complain
from lhydra.training.model import Network


def save(path: Path, network: Network, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Writes everything that `load` needs to continue exactly here; `state` is plain data."""
    tensors: dict[str, Tensor] = {f"network.{name}": value for name, value in network.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    copies = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    with files.replacing_file(path) as new:
        save_file(copies, new, metadata={"state": json.dumps(state)})


def load(path: Path, network: Network, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fills network and optimizer from `path` and returns the state. Raises ModelError when it does not fit."""
    try:
        with safe_open(path, "pt") as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network.load_state_dict(_below("network.", tensors))
        if optimizer is not None:
            whole = optimizer.state_dict()
            whole["state"] = {}
            for name, value in _below("optimizer.", tensors).items():
                number, _, key = name.partition(".")
                whole["state"].setdefault(int(number), {})[key] = value
            optimizer.load_state_dict(whole)
    except FileNotFoundError:
        raise ModelError(complain(path, "no such file", "a checkpoint to resume from")) from None
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        found = " ".join(str(error).split())
        raise ModelError(complain(path, found, "a checkpoint of this dataset and configuration")) from None
    return state


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
