"""The losses against slow oracles, and what the logQ correction is for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lhydra.training.losses import log_q, softmax_loss


def slow(logits: list[list[float]], targets: list[list[bool]], excluded: list[list[bool]]) -> float:
    users = []
    for row, wanted, out in zip(logits, targets, excluded, strict=True):
        if any(wanted):
            total = sum(np.exp(x) for x, gone in zip(row, out, strict=True) if not gone)
            users.append(np.mean([-np.log(np.exp(x) / total) for x, hit in zip(row, wanted, strict=True) if hit]))
    return float(np.mean(users)) if users else 0.0


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    n, width = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    cells = st.lists(st.tuples(st.floats(-8, 8), st.sampled_from("twwx")), min_size=n * width, max_size=n * width)
    drawn = draw(cells)
    kinds = np.array([kind for _, kind in drawn]).reshape(n, width)
    kinds[:, 0] = np.where(kinds[:, 0] == "x", "w", kinds[:, 0])  # a candidate at least
    logits = torch.tensor([x for x, _ in drawn], dtype=torch.float64).reshape(n, width)
    return logits, torch.from_numpy(kinds == "t"), torch.from_numpy(kinds == "x")


@given(cases())
def test_softmax_loss_is_the_mean_over_users_of_the_mean_over_targets(case: tuple[Tensor, Tensor, Tensor]) -> None:
    assert softmax_loss(*case).item() == pytest.approx(slow(*(part.tolist() for part in case)), abs=1e-9)


@given(cases(), st.floats(-50, 50))
def test_excluded_tracks_do_not_matter(case: tuple[Tensor, Tensor, Tensor], value: float) -> None:
    logits, targets, excluded = case
    other = logits.masked_fill(excluded, value)
    assert softmax_loss(other, targets, excluded).item() == softmax_loss(logits, targets, excluded).item()


def test_users_without_targets_count_nothing_and_give_finite_gradients() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(3, 5, dtype=torch.bool)
    targets[0, 2] = True
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[:, 4] = True
    logits.requires_grad_()
    alone = softmax_loss(logits[:1], targets[:1], excluded[:1])
    whole = softmax_loss(logits, targets, excluded)
    assert whole.item() == pytest.approx(alone.item())
    whole.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[1:] == 0).all()
    assert (logits.grad[:, 4] == 0).all()
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    assert softmax_loss(logits, nothing, excluded).item() == 0


def test_log_q_is_the_chance_to_be_in_play() -> None:
    """A track counts once however often it is drawn; draws of several are as good as independent."""
    rng, n, steps = np.random.default_rng(0), 6, 20_000
    share = np.array([0.2, 0.15, 0.1, 0.05, 0.01, 0.0])
    drawn = (rng.poisson(3 * share, (steps, n)) + rng.poisson(0.2, (steps, n))) > 0
    chance = log_q(torch.tensor(share), 3, 0.2).exp().numpy()
    np.testing.assert_allclose(drawn.mean(0), chance, atol=5 * drawn.std(0).max() / np.sqrt(steps))


def test_log_q_makes_the_sampled_gradient_that_of_the_full_softmax() -> None:
    """Popular tracks come into a step more often: without the correction they are pushed away too much."""
    torch.manual_seed(0)
    rng, n, in_step, uniform, steps = np.random.default_rng(0), 400, 40, 0.2, 1_500
    popular = 1 / np.arange(2.0, n + 2)
    share = torch.tensor(popular / popular.sum())
    logits = torch.randn(1, n, dtype=torch.float64)
    target = 3

    def gradient(rows: np.ndarray, correction: Tensor) -> Tensor:
        at = torch.from_numpy(rows)
        given = logits[:, at].clone().requires_grad_()
        wanted = (at == target)[None]
        loss = softmax_loss(given - correction[at], wanted, torch.zeros_like(wanted))
        (grad,) = torch.autograd.grad(loss, given)
        out = torch.zeros(n, dtype=torch.float64)
        out[at] = grad[0]
        return out

    nothing = torch.zeros(n, dtype=torch.float64)
    full = gradient(np.arange(n), nothing)
    correction = log_q(share, in_step, uniform)
    sums = {"with": nothing.clone(), "without": nothing.clone()}
    for _ in range(steps):
        drawn = rng.choice(n, in_step, p=share.numpy())
        rows = np.unique(np.concatenate([[target], drawn, np.flatnonzero(rng.random(n) < uniform)]))
        sums["with"] += gradient(rows, correction) / steps
        sums["without"] += gradient(rows, nothing) / steps
    others = torch.arange(n) != target
    share_of = {name: total[others] / total[others].sum() for name, total in sums.items()}
    true = full[others] / full[others].sum()
    off = {name: (found - true).abs().sum().item() / 2 for name, found in share_of.items()}  # total variation
    assert off["without"] > 0.05
    assert off["with"] < off["without"] / 2
