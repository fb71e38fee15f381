"""Where the towers are trained: the one place that decides between GPU and CPU, and what runs in bf16 there.

Towers, their optimizer and the tensors of a step live on the device. All the rest (teachers, content, head,
calibration, export) stays on the CPU, and the network comes back to it when the towers are finished.
"""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from lhydra.errors import ConfigError, complain


def choose(asked: str) -> str:
    """Decides on the device of this process. Under torchrun each process of a machine has a GPU of its own.

    Args:
        asked: `cuda`, `mps`, `cpu`, or `auto` for the first of them that is there.

    Returns:
        PyTorch's name of the device, with its number where there may be several.

    Raises:
        ConfigError: it is not there.
    """
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    have = {"cuda": gpus, "mps": int(torch.backends.mps.is_available()), "cpu": world}
    need = {"cuda": local, "mps": world, "cpu": 1}  # torch.distributed averages nothing on mps
    there = [name for name in have if have[name] >= need[name]]
    name = there[0] if asked == "auto" else asked
    if name not in there:
        found = f"{name}, of which PyTorch {torch.__version__} finds {have[name] or 'none'}"
        if need[name] > 1:
            found += f" for {need[name]} processes"
        more = f"a build of PyTorch for {name} and its driver" if not have[name] else "fewer processes"
        raise ConfigError(complain("--device", found, f"{' or '.join(there)}, or auto, or {more}"))
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name


def cores(processes: int) -> int:
    """Counts the cores for each of the processes of a training.

    Args:
        processes: all on this machine.

    Returns:
        At least 1.
    """
    return max(1, (os.cpu_count() or 2) // processes)


def half(device: torch.device) -> AbstractContextManager[object]:
    """Lets the products of matrices within it run in bf16, where a GPU has units for that; weights stay float32.

    Only the item tower is computed so. Sums over histories, norms, softmax, losses and optimizer are not: they add up
    many small numbers.

    Args:
        device: of the tensors.

    Returns:
        A context, which changes nothing on a CPU.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()
