"""AdamW that touches only the rows in play of large tables of embeddings, and the schedule of its rate.

A step of a large catalogue has a gradient for a few thousand of its tracks. AdamW (Loshchilov & Hutter 2019) would move
all others too, by what is left of their earlier gradients. That movement is known in advance: a row is brought up to
date when it comes into play again, and all of them at the end of an epoch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

ROWS_AT_ONCE = 65_536
WARM_UP, LAST_RATE = 0.02, 0.02  # shares of the schedule and of the peak learning rate
_WINDOW = 400  # steps after which what is left of a gradient moves nothing: (.9 / .999 ** .5) ** 400 is 5e-19


@dataclass
class _Lag:
    """Which step each row of a table has seen, counted since all had seen the same.

    moved: for each such step, what a row last in play then would have moved since, in units of its mean gradient over
    the root of its mean square. kept: what weight decay has left, of what there was at first.
    """

    last: Tensor
    moved: list[float]
    kept: list[float]


@dataclass
class _InPlay:
    """Rows taken out of a table for a step: their weights, a leaf of the graph, and both means of their gradients."""

    rows: Tensor
    weight: Tensor
    mean: Tensor
    square: Tensor


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW; of some tables only the rows that were taken are updated in a step.

    Args:
        group: parameters, the tables among them, and settings.
        tables: by name; none are updated whole.
    """

    def __init__(self, group: dict[str, Any], tables: Mapping[str, Tensor]) -> None:
        super().__init__([group], lr=group["peak"], fused=True)
        self.tables = dict(tables)
        self._lags: dict[str, _Lag] = {}
        self._in_play: dict[str, _InPlay] = {}

    @torch.no_grad()
    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Takes rows out of every table for a step, up to date.

        Args:
            rows: (r,) int64, each once.

        Returns:
            By name of the table (r, D) weights, to compute the step with in its place; {} without tables.
        """
        for name, table in self.tables.items():
            state = self.state[table]
            if not state:
                state["step"] = torch.zeros((), device=table.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
            if name not in self._lags:
                last = torch.zeros(len(table), dtype=torch.int64, device=table.device)
                self._lags[name] = _Lag(last, [0.0], [1.0])
            weight, mean, square = self._current(name, rows)
            self._in_play[name] = _InPlay(rows, weight.requires_grad_(), mean, square)
        return {name: taken.weight for name, taken in self._in_play.items()}

    @torch.no_grad()
    def clip(self, most: float) -> None:
        """Scales all gradients down to a norm.

        Args:
            most: the norm of all of them together.
        """
        leaves = [*self.param_groups[0]["params"], *(taken.weight for taken in self._in_play.values())]
        torch.nn.utils.clip_grad_norm_(leaves, most)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Makes one step, and puts back the rows that were taken.

        Args:
            closure: none.
        """
        super().step(closure)
        for name, taken in self._in_play.items():
            self._put_back(name, taken)
        self._in_play.clear()

    @torch.no_grad()
    def catch_up(self) -> None:
        """Brings every row up to date: before tables are read, and before a checkpoint."""
        for name in self._lags:
            table = self.tables[name]
            for start in range(0, len(table), ROWS_AT_ONCE):
                rows = torch.arange(start, min(start + ROWS_AT_ONCE, len(table)), device=table.device)
                self._write(name, rows, *self._current(name, rows))
        self._lags.clear()

    def _current(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, mean gradients and mean squares of rows, as if they had been moved in every step.

        But for two things that are small: eps counts as it does now, and what moved since is not decayed.
        """
        table, lag, (fade, fade_square) = self.tables[name], self._lags[name], self.param_groups[0]["betas"]
        state, last = self.state[table], lag.last[rows]
        wholes = table, state["exp_avg"], state["exp_avg_sq"]
        weight, mean, square = (whole.index_select(0, rows) for whole in wholes)
        moved, kept = (torch.tensor(part, dtype=table.dtype).to(table.device) for part in (lag.moved, lag.kept))
        steps = (len(lag.moved) - 1 - last).to(table.dtype).unsqueeze(1)
        eps = self.param_groups[0]["eps"] * math.sqrt(1 - fade_square ** max(1, int(state["step"])))
        root = square.sqrt().add_(eps)
        weight.mul_((kept[-1] / kept[last]).unsqueeze(1)).addcdiv_(mean * moved[last].unsqueeze(1), root, value=-1)
        return weight, mean.mul_(fade**steps), square.mul_(fade_square**steps)

    def _put_back(self, name: str, taken: _InPlay) -> None:
        table, lag, group = self.tables[name], self._lags[name], self.param_groups[0]
        state, (beta1, beta2) = self.state[table], self.param_groups[0]["betas"]
        assert taken.weight.grad is not None
        weight = taken.weight.detach()
        adamw(
            [weight],
            [taken.weight.grad],
            [taken.mean],
            [taken.square],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )
        self._write(name, taken.rows, weight, taken.mean, taken.square)
        step = int(state["step"])
        rate = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        lag.last[taken.rows] = len(lag.moved)
        first = max(0, len(lag.moved) - _WINDOW)
        since = np.arange(len(lag.moved) - first, 0, -1)
        lag.moved[first:] = (np.array(lag.moved[first:]) + rate * (beta1 / math.sqrt(beta2)) ** since).tolist()
        lag.moved.append(0.0)
        lag.kept.append(lag.kept[-1] * (1 - group["lr"] * group["weight_decay"]))

    def _write(self, name: str, rows: Tensor, *parts: Tensor) -> None:
        table = self.tables[name]
        for whole, part in zip(
            (table, *(self.state[table][key] for key in ("exp_avg", "exp_avg_sq"))), parts, strict=True
        ):
            whole.index_copy_(0, rows, part)


def schedule(done: float) -> float:
    """Computes the learning rate: linear warm-up, then half a cosine.

    Args:
        done: share of the schedule that is over, 0 to 1.

    Returns:
        Share of the peak rate.
    """
    if done < WARM_UP:
        return max(done / WARM_UP, LAST_RATE)
    return LAST_RATE + (1 - LAST_RATE) / 2 * (1 + math.cos(math.pi * done))
