"""Training by several processes under `torchrun`: each takes its share of every batch, gradients are averaged.

Alone, every function here does nothing. Rank 0 validates, writes and reports; the others follow. What lies on a CPU
goes over gloo, what lies on a GPU over NCCL.
"""

import importlib
import os
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def start(device: str = "cpu") -> tuple[int, int]:
    """Joins the group that torchrun started, if it did.

    Args:
        device: of the gradients.

    Returns:
        (rank, processes); (0, 1) alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # Its functions hold the group there is at import as their default, and the optimizer imports it. A group that
        # is held outlives end(), and its threads abort the process where they meet the interpreter's end.
        importlib.import_module("torch.distributed.nn.functional")
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl")  # objects and barriers go by the first
        else:
            dist.init_process_group("gloo")
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def end() -> None:
    """Leaves the group, once everybody has come here."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@torch.no_grad()
def same(tensors: Iterable[Tensor]) -> None:
    """Gives every process what rank 0 holds.

    Args:
        tensors: of the same shapes in every process; filled in place.
    """
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def agreed(value: T) -> T:
    """Broadcasts an object.

    Args:
        value: rank 0's is kept; it must pickle.

    Returns:
        Rank 0's value, in every process.
    """
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces every gradient by its mean over the processes; one without a gradient counts as 0.

    Args:
        parameters: the same ones in the same order in every process.
    """
    if not dist.is_initialized():
        return
    given = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in given])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for parameter in given:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
