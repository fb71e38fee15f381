"""Both losses of the towers in one pass: towards hidden plays, and towards the teachers.

A step of a large catalogue holds a row of some ten thousand logits for each of its users, and reading them over and
over was most of its time. The gradient of a softmax is written out here, so that they are read a few times only.
"""

from typing import Any

import torch
from torch import Tensor

_LOWEST = -1e4  # finite: a share of 0 times a log share of it is 0


class _Losses(torch.autograd.Function):
    """See `retrieval_losses`."""

    @staticmethod
    def forward(
        ctx: Any, user: Tensor, vectors: Tensor, correction: Tensor, wanted: Tensor, heard: Tensor, share: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = torch.addmm(-correction, user, vectors.T)
        logits[heard[0], heard[1]] = _LOWEST
        log_share = torch.log_softmax(logits, 1)
        targets = torch.bincount(wanted[0], minlength=len(user)).to(user.dtype)
        per_target = (1 / targets / (targets > 0).sum())[wanted[0]]
        retrieval = -(log_share[wanted[0], wanted[1]] * per_target).sum()
        distillation = retrieval.new_zeros(())
        if share is not None:
            distillation = -torch.dot(share.flatten(), log_share.flatten()) / len(user)
        ctx.save_for_backward(user, vectors, wanted, targets, per_target, log_share, share)
        return retrieval, distillation

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        user, vectors, wanted, targets, per_target, log_share, share = ctx.saved_tensors
        weight = grads[0] * (targets > 0) / (targets > 0).sum().clamp(min=1)  # (B,) of each user's softmax
        if share is not None:
            weight = weight + grads[1] / len(user)
        of_logits = log_share.exp().mul_(weight.unsqueeze(1))  # 0 where a track was heard
        if share is not None:
            of_logits.addcmul_(share, (-grads[1] / len(user)).expand(1, 1))
        of_logits[wanted[0], wanted[1]] -= grads[0] * per_target
        return of_logits @ vectors, of_logits.T @ user, None, None, None, None


def retrieval_losses(
    user: Tensor, vectors: Tensor, correction: Tensor, wanted: Tensor, heard: Tensor, share: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Computes the softmax loss towards targets, and the cross-entropy against the teachers (Hinton et al. 2015).

    The first is the mean over users of the mean over their targets of -log softmax(logits)[target]; users without any
    count nothing. The second is the mean over users of -sum(share * log softmax(logits)).

    Args:
        user: (B, D) float, divided by the temperature.
        vectors: (R, D) float; logits are user . vector - correction.
        correction: (R,) float.
        wanted: (2, P) int64, users and columns of the targets, each once.
        heard: (2, H) int64, likewise what users have heard, which is in no denominator.
        share: (B, R) float softmax of the teachers, see `teacher_share`; None without teachers.

    Returns:
        () float each; the second is 0 without teachers.
    """
    retrieval, distillation = _Losses.apply(user, vectors, correction, wanted, heard, share)  # type: ignore[no-untyped-call]
    return retrieval, distillation


def teacher_share(logits: Tensor, heard: Tensor) -> Tensor:
    """Makes what `retrieval_losses` learns from.

    Args:
        logits: (B, R) float of the teachers; overwritten.
        heard: (2, H) int64, users and columns that get nothing.

    Returns:
        (B, R) float, rows that sum to 1.
    """
    logits[heard[0], heard[1]] = _LOWEST
    return torch.softmax(logits, 1)
