"""Head and user tower as the compiled loops of a request take them: their weights, multiplied out as far as may be.

`Head.forward`, `MomentHead.forward` and `UserTower.forward` are what is computed; `lhydra.bundle.folded_head` lists the
arrays.
"""

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from lhydra.bundle.folded_head import Weights
from lhydra.features.moment import N_OWN
from lhydra.training.model import CROSS_DIM, SIGNALS, Head, UserTower
from lhydra.training.moment_network import OFFSETS, MomentHead, folded


@torch.no_grad()
def weights_of(head: Head) -> Weights:
    """Folds a head: batch norm into the first layer, strength into the last, the gap to the preference into both sides.

    Args:
        head: trained.

    Returns:
        Float32 weights and int64 columns, by name.
    """
    norm = head.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    by = norm.weight / torch.sqrt(norm.running_var + norm.eps)  # (h,)
    dim, (start, stop) = head.of_track.in_features, head.preference
    width, crossed = stop - start, CROSS_DIM * len(head.pairs)
    dense, gap, distance, crossing, signals = torch.split(head.of_pair.weight, [width] * 3 + [crossed, SIGNALS], 1)
    known = dim + head.gate.in_features
    of_user = head.of_user.weight[:, :known].clone()
    of_user[:, dim + start : dim + stop] += gap
    tables = [table.get_parameter("weight") for table in head.user_ids]
    parts = torch.split(head.of_user.weight[:, known:], [table.shape[1] for table in tables], 1)
    of_ids = [table @ part.T * by for table, part in zip(tables, parts, strict=True)]
    order = [i for members in head.by_track.values() for i in members]
    cross_user = [head.cross_user.get_submodule(f"{i}").get_parameter("weight") for i in order]
    cross_track = [
        torch.cat([head.cross_track.get_submodule(f"{i}").get_parameter("weight") for i in members], 1)
        for members in head.by_track.values()
    ]
    crossing = crossing.reshape(len(crossing), -1, CROSS_DIM)[:, order].flatten(1)
    gate_bias = head.gate.bias.clone()
    gate_bias[0] += head.scale
    second = head.rest[2]
    assert isinstance(second, nn.Linear)
    floats = {
        "of_user": (of_user * by[:, None]).T,
        "bias": (head.of_user.bias - norm.running_mean) * by + norm.bias,
        "of_user_ids": torch.cat([*of_ids, torch.zeros(0, len(by))]),
        "of_track": (head.of_track.weight * by[:, None]).T,
        "of_product": (head.of_product.weight * by[:, None]).T,
        "of_dense": ((dense - gap) * by[:, None]).T,
        "of_distance": (distance * by[:, None]).T,
        "of_signals": (signals * by[:, None]).T,
        "of_crosses": (crossing * by[:, None]).T,
        "cross_user": torch.cat([*cross_user, torch.zeros(0, CROSS_DIM)]),
        "cross_track": torch.cat([*(table.flatten() for table in cross_track), torch.zeros(0)]),
        "second": second.weight.T,
        "second_bias": second.bias,
        "out": head.out.weight[0] * head.strength,
        "gate": head.gate.weight.T,
        "gate_bias": gate_bias,
        "popularity": torch.stack([head.few.clamp(min=1e-6), head.lift]),
        "calibration": head.calibration,
    }
    integers = {
        "user_id_starts": _starts(len(table) for table in tables),
        "cross_user_columns": [head.pairs[i][0][0] for i in order],
        "cross_user_starts": _starts(len(table) for table in cross_user),
        "cross_track_columns": list(head.by_track),
        "cross_track_pairs": [len(members) for members in head.by_track.values()],
        "cross_track_starts": _starts(table.numel() for table in cross_track),
        "preference": [start],
    }
    if head.moments is not None:
        floats |= _of_moments(head.moments)
    return {
        **{name: np.ascontiguousarray(value.numpy(), np.float32) for name, value in floats.items()},
        **{name: np.array(value, np.int64) for name, value in integers.items()},
    }


@torch.no_grad()
def weights_of_tower(tower: UserTower) -> Weights:
    """Folds a user tower: the tables of ids into the first layer.

    Args:
        tower: trained.

    Returns:
        Float32 weights, by name; where the ids of each column start is told by those of the head.
    """
    first, norm, second = tower.profile[0], tower.profile[1], tower.profile[-1]
    assert isinstance(first, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(second, nn.Linear)
    tables = [table.get_parameter("weight") for table in tower.ids]
    widths = [table.shape[1] for table in tables]
    dense, *parts = torch.split(first.weight, [first.in_features - sum(widths), *widths], 1)
    of_ids = [table @ part.T for table, part in zip(tables, parts, strict=True)]
    floats = {
        "tower_weigh": tower.weigh.weight[0],
        "tower_dense": dense.T,
        "tower_ids": torch.cat([*of_ids, torch.zeros(0, first.out_features)]),
        "tower_bias": first.bias,
        "tower_scale": norm.weight,
        "tower_shift": norm.bias,
        "tower_second": second.weight.T,
        "tower_second_bias": second.bias,
    }
    return {name: np.ascontiguousarray(value.numpy(), np.float32) for name, value in floats.items()}


def _of_moments(moments: MomentHead) -> dict[str, Tensor]:
    of_pair = folded(moments.of_pair, moments.mean, moments.spread)
    linear = folded(moments.linear, moments.mean, moments.spread)
    weight, bias = (torch.cat(parts) for parts in zip(of_pair, linear, strict=True))
    n, own = len(OFFSETS) + 1 - N_OWN, N_OWN - 1
    pair, heard, of_own, strengths, logs = torch.split(weight, [moments.PAIR, 1, own, n, n], 1)
    of_context, at_context = moments.folded_context()
    rest = moments.rest[1]
    assert isinstance(rest, nn.Linear)
    return {
        "moment": torch.cat([pair, strengths, logs], 1).T,
        "moment_bias": bias + at_context,
        "moment_own": torch.cat([heard, of_own], 1).T,
        "moment_context": of_context.T,
        "moment_offsets": torch.tensor(OFFSETS),
        "moment_second": rest.weight.T,
        "moment_second_bias": rest.bias,
        "moment_out": moments.out.weight[0],
        "moment_out_bias": moments.out.bias,
        "moment_calibration": moments.calibration,
    }


def _starts(sizes: Iterable[int]) -> list[int]:
    """Where each of several tables starts, laid back to back, and where the last ends."""
    return [0, *itertools.accumulate(sizes)]
