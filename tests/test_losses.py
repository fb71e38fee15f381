"""The losses against slow oracles, and what the logQ correction is for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lhydra.training.losses import RANK_CUTOFF, lambda_loss, log_q, softmax_loss
from lhydra.training.retrieval_loss import retrieval_losses, teacher_share


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


# -- both losses of the towers, and distillation ----------------------------------------------------------


def both(
    logits: Tensor, targets: Tensor, excluded: Tensor, teacher: Tensor | None, correction: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The losses of a step whose users are logits and whose tracks are the unit vectors."""
    heard = excluded.nonzero().T
    share = None if teacher is None else teacher_share(teacher.detach().clone(), heard)
    unit, nothing = torch.eye(logits.shape[1], dtype=logits.dtype), torch.zeros(logits.shape[1], dtype=logits.dtype)
    correction = nothing if correction is None else correction
    return retrieval_losses(logits, unit, correction, targets.nonzero().T, heard, share)


def distillation_loss(logits: Tensor, teacher: Tensor, excluded: Tensor) -> Tensor:
    return both(logits, torch.zeros_like(excluded), excluded, teacher)[1]


@given(cases(), st.integers(0, 2**16), st.booleans())
def test_both_losses_and_their_gradients_are_those_of_the_definitions(
    case: tuple[Tensor, Tensor, Tensor], seed: int, distil: bool
) -> None:
    """Written out by hand there, by autograd here, also through users and tracks."""
    logits, targets, excluded = case
    rng = np.random.default_rng(seed)
    user, vectors = (torch.from_numpy(rng.normal(size=(n, 3))) for n in logits.shape)
    correction, teacher = torch.from_numpy(rng.normal(size=logits.shape[1])), logits if distil else None
    heard = excluded.nonzero().T
    share = None if teacher is None else teacher_share(teacher.clone(), heard)

    def graded(by_hand: bool) -> list[Tensor | None]:
        u, v = user.clone().requires_grad_(), vectors.clone().requires_grad_()
        if by_hand:
            first, second = retrieval_losses(u, v, correction, targets.nonzero().T, heard, share)
        else:
            first, second = slow_losses(u @ v.T - correction, targets, excluded, teacher)
        (0.7 * first + 0.3 * second).backward()  # type: ignore[no-untyped-call]
        return [first, second, u.grad, v.grad]

    for a, b in zip(graded(True), graded(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def slow_losses(logits: Tensor, targets: Tensor, excluded: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
    out = logits.masked_fill(excluded, float("-inf"))
    if teacher is None:
        return softmax_loss(logits, targets, excluded), torch.zeros((), dtype=logits.dtype)
    share = torch.softmax(teacher.masked_fill(excluded, float("-inf")), 1)
    log_share = torch.log_softmax(out, 1).masked_fill(excluded, 0.0)
    return softmax_loss(logits, targets, excluded), -(share * log_share).sum(1).mean()


def slow_distillation(logits: list[list[float]], teacher: list[list[float]], excluded: list[list[bool]]) -> float:
    users = []
    for ours, theirs, out in zip(logits, teacher, excluded, strict=True):
        left = [i for i, gone in enumerate(out) if not gone]
        total, whole = sum(math.exp(ours[i]) for i in left), sum(math.exp(theirs[i]) for i in left)
        users.append(-sum(math.exp(theirs[i]) / whole * math.log(math.exp(ours[i]) / total) for i in left))
    return sum(users) / len(users)


@given(cases(), st.integers(0, 2**16))
def test_distillation_loss_is_the_cross_entropy_of_the_shares(case: tuple[Tensor, Tensor, Tensor], seed: int) -> None:
    logits, _, excluded = case
    teacher = torch.from_numpy(np.random.default_rng(seed).normal(size=logits.shape) * 3)
    expected = slow_distillation(logits.tolist(), teacher.tolist(), excluded.tolist())
    assert distillation_loss(logits, teacher, excluded).item() == pytest.approx(expected, abs=1e-9)


@given(cases(), st.integers(0, 2**16))
def test_distillation_is_least_where_student_and_teacher_agree(case: tuple[Tensor, Tensor, Tensor], seed: int) -> None:
    """Also up to a constant per user; the gradient there is 0; any other student is worse."""
    rng = np.random.default_rng(seed)
    teacher, _, excluded = case
    constant = torch.from_numpy(rng.normal(size=(len(teacher), 1)))
    student = (teacher + constant).requires_grad_()
    least = distillation_loss(student, teacher, excluded)
    least.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.abs().max().item() < 1e-12
    other = teacher + torch.from_numpy(rng.normal(size=teacher.shape))
    assert distillation_loss(other, teacher, excluded).item() >= least.item() - 1e-12


@given(cases(), st.floats(-50, 50), st.floats(-50, 50))
def test_excluded_tracks_do_not_matter_to_distillation(
    case: tuple[Tensor, Tensor, Tensor], ours: float, theirs: float
) -> None:
    logits, _, excluded = case
    teacher = -logits
    found = distillation_loss(logits.masked_fill(excluded, ours), teacher.masked_fill(excluded, theirs), excluded)
    assert found.item() == distillation_loss(logits, teacher, excluded).item()


def test_a_user_who_has_heard_everything_leaves_distillation_finite() -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    excluded = torch.tensor([[True] * 4, [False] * 4])
    distillation_loss(logits, logits.detach() * 2, excluded).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[0] == 0).all()


# -- LambdaLoss -------------------------------------------------------------------------------------------


def gain_at(rank: int) -> float:
    return 1 / math.log2(1 + rank) if rank <= RANK_CUTOFF else 0.0


def slow_lambda(
    logits: list[list[float]], labels: list[list[bool]], excluded: list[list[bool]], wanted: list[int]
) -> float:
    """For every target and every other candidate: what swapping them does to NDCG, times the logistic loss."""
    total = 0.0
    for row, hits, out, n in zip(logits, labels, excluded, wanted, strict=True):
        left = [i for i, gone in enumerate(out) if not gone]
        order = sorted(left, key=lambda i, row=row: (-row[i], i))  # type: ignore[misc]
        rank = {i: place for place, i in enumerate(order, 1)}
        ideal = sum(gain_at(place) for place in range(1, min(max(n, 1), RANK_CUTOFF) + 1))
        for i in left:
            for j in left:
                if hits[i] and not hits[j]:
                    swap = abs(gain_at(rank[i]) - gain_at(rank[j])) / ideal
                    total += swap * math.log1p(math.exp(row[j] - row[i]))
    return total / len(logits)


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users with ties, excluded places, no positive at all, and targets that are no candidates."""
    n, width = (
        draw(st.integers(1, 4)),
        draw(st.one_of(st.integers(1, 8), st.integers(RANK_CUTOFF - 1, RANK_CUTOFF + 9))),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    logits = rng.normal(size=(n, width)) * draw(st.sampled_from([0, 1, 5]))
    if draw(st.booleans()):
        logits = logits.round()  # ties: the first place comes first
    excluded = rng.random((n, width)) < draw(st.sampled_from([0, 0.3, 0.8]))
    labels = (rng.random((n, width)) < draw(st.sampled_from([0, 0.2, 0.6]))) & ~excluded
    wanted = labels.sum(1) + rng.integers(0, draw(st.sampled_from([1, 5, 80])), n)
    return torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(excluded), torch.from_numpy(wanted)


@settings(deadline=None)
@given(rankings())
def test_lambda_loss_equals_a_slow_one(case: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    logits, labels, excluded, wanted = case
    expected = slow_lambda(*(part.tolist() for part in case))
    assert lambda_loss(logits, labels, excluded, wanted).item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@settings(deadline=None)
@given(rankings(), st.floats(-50, 50))
def test_excluded_places_do_not_matter_to_the_lambda_loss(
    case: tuple[Tensor, Tensor, Tensor, Tensor], value: float
) -> None:
    logits, labels, excluded, wanted = case
    other = logits.masked_fill(excluded, value).requires_grad_()
    found = lambda_loss(other, labels, excluded, wanted)
    assert found.item() == lambda_loss(logits, labels, excluded, wanted).item()
    found.backward()  # type: ignore[no-untyped-call]
    assert other.grad is not None
    assert other.grad.isfinite().all()
    assert (other.grad[excluded] == 0).all()
    assert (other.grad[labels] <= 0).all()  # a target is only ever pulled up
    assert (other.grad[~labels] >= 0).all()  # and everything else pushed down
    assert (other.grad[~labels.any(1)] == 0).all()  # a user without positives says nothing


def test_what_matters_most_is_at_the_top() -> None:
    """The same two tracks the wrong way round: a lot at the top, less further down, nothing below the cut-off."""
    width = RANK_CUTOFF + 10
    logits = -torch.arange(width, dtype=torch.float64)[None]
    nothing = torch.zeros(1, width, dtype=torch.bool)

    def pull(place: int) -> float:
        given = logits.clone().requires_grad_()
        labels = nothing.clone()
        labels[0, place] = True
        (grad,) = torch.autograd.grad(lambda_loss(given, labels, nothing, torch.tensor([1])), given)
        return float(grad[0, place - 1])

    pulls = [pull(place) for place in range(1, width)]
    assert pulls[: RANK_CUTOFF - 1] == sorted(pulls[: RANK_CUTOFF - 1], reverse=True)
    assert pulls[0] > 2 * pulls[3] > 0
    assert pulls[RANK_CUTOFF + 2] == 0
