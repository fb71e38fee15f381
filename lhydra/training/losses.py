"""The losses of the head, and what the towers' needs. Masks are dense (B, R)."""

import torch
from torch import Tensor
from torch.nn import functional as F

RANK_CUTOFF = 30  # last rank that the head's loss looks at


def softmax_loss(logits: Tensor, targets: Tensor, excluded: Tensor) -> Tensor:
    """Mean over users of the mean over their targets of -log softmax(logits)[target].

    Args:
        logits: (B, R) float.
        targets: (B, R) bool. Users without any count nothing.
        excluded: (B, R) bool, taken out of the denominator: what a user has heard is never a candidate.

    Returns:
        () float.
    """
    log_share = torch.log_softmax(logits.masked_fill(excluded, float("-inf")), 1)
    wanted = targets.sum(1)
    per_user = -log_share.masked_fill(~targets, 0.0).sum(1) / wanted.clamp(min=1)
    return per_user.sum() / (wanted > 0).sum().clamp(min=1)


def lambda_loss(logits: Tensor, labels: Tensor, excluded: Tensor, wanted: Tensor) -> Tensor:
    """Mean over users of the pairwise logistic loss weighted by what swapping the pair does to NDCG.

    LambdaRank (Burges 2010) as a loss (LambdaLoss, Wang et al. 2018), with gains down to rank RANK_CUTOFF.

    Args:
        logits: (B, N) float.
        labels: (B, N) bool, the candidates that are targets.
        excluded: (B, N) bool, places that hold no candidate.
        wanted: (B,) int64 targets of each user, of which some may be no candidates.

    Returns:
        () float.
    """
    scores = logits.masked_fill(excluded, -1e4)
    order = scores.detach().argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(1, order.shape[1] + 1).expand_as(order))
    gain = torch.where(rank <= RANK_CUTOFF, 1 / torch.log2(1.0 + rank), 0.0)  # (B, N)
    ideal = torch.cumsum(1 / torch.log2(torch.arange(2.0, RANK_CUTOFF + 2)), 0)[wanted.clamp(1, RANK_CUTOFF) - 1]
    user, place = labels.nonzero(as_tuple=True)  # (P,) each: the positives, of whom most users have few
    own = gain[user, place].unsqueeze(1), scores[user, place].unsqueeze(1)
    swap = (own[0] - gain.index_select(0, user)).abs()  # (P, N)
    weight = swap * (~(labels | excluded)).index_select(0, user) / ideal[user].unsqueeze(1)
    apart = own[1] - scores.index_select(0, user)
    return (weight * F.softplus(-apart)).sum() / len(logits)


def listwise_loss(logits: Tensor, wanted: Tensor, real: Tensor) -> Tensor:
    """Mean over lists of the cross-entropy of softmax(logits) against the wanted tracks (ListNet, Cao et al. 2007).

    Args:
        logits: (B, N) float.
        wanted: (B, N) float, how much each candidate is wanted; a list without any counts nothing.
        real: (B, N) bool, places that hold a candidate.

    Returns:
        () float.
    """
    log_share = torch.log_softmax(logits.masked_fill(~real, -1e4), 1)
    total = wanted.sum(1)
    per_list = -(log_share * wanted).sum(1) / total.clamp(min=1e-6)
    return per_list.sum() / (total > 0).sum().clamp(min=1)


def log_q(share: Tensor, n_targets: int, uniform: float) -> Tensor:
    """Log of the chance that each track is in play in a step: the logQ correction (Yi et al. 2019, equation 5).

    A track comes into a step as one of the targets, drawn in proportion to its plays, or as a uniform negative; it
    counts once.

    Args:
        share: (R,) float, each track's share of all train plays.
        n_targets: targets in the step.
        uniform: how often a track is expected among the uniform negatives.

    Returns:
        (R,) float, to subtract from the logits.
    """
    return torch.log(-torch.expm1(-(share * n_targets + uniform)))
