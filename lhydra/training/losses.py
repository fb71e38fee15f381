"""The losses of towers and head. Masks are dense (B, R) over the R tracks in play; see `lhydra.training.step`."""

import torch
from torch import Tensor


def softmax_loss(logits: Tensor, targets: Tensor, excluded: Tensor) -> Tensor:
    """Mean over users of the mean over their targets of -log softmax(logits)[target].

    logits: (B, R) float; targets: (B, R) bool; excluded: (B, R) bool, taken out of the denominator (what a user
    has heard is never a candidate). Users without targets count nothing.
    """
    log_share = torch.log_softmax(logits.masked_fill(excluded, float("-inf")), 1)
    wanted = targets.sum(1)
    per_user = -log_share.masked_fill(~targets, 0.0).sum(1) / wanted.clamp(min=1)
    return per_user.sum() / (wanted > 0).sum().clamp(min=1)


def log_q(share: Tensor, n_targets: int, uniform: float) -> Tensor:
    """Log of the chance that each track is in play in a step: the logQ correction (Yi et al. 2019, equation 5).

    share: (R,) each track's share of all train plays. A track comes into a step as one of `n_targets` targets, drawn
    in proportion to its plays, or as a uniform negative, of which each track expects `uniform`; it counts once.
    """
    return torch.log(-torch.expm1(-(share * n_targets + uniform)))
