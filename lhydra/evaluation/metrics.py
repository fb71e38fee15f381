"""Ranking metrics over whole lists, numpy only: full catalogue, binary relevance, no sampled negatives.

Definitions, for a user with target set T and a list of distinct tracks, best first:

    recall@k    hits in the top k / |T|
    ndcg@k      gain 1 / log2(rank + 1) per hit in the top k, over the gain of min(k, |T|) leading hits
    map@k       sum of precision at each hit in the top k / min(k, |T|)  (trec_eval's map_cut divides by |T|)
    hr@k        1 when the top k holds a hit, else 0
    mrr         1 / rank of the first hit in the top MRR_DEPTH, else 0: the same number whatever k is asked for
    coverage@k  distinct tracks in the top k of all users together / size of the catalogue

Means, and coverage, are over the users with at least one target; such a user without a list scores 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64

F64 = npt.NDArray[np.float64]
MRR_DEPTH = 20


@dataclass(frozen=True)
class RankMetrics:
    """per_user: metric name -> (n,) float64, NaN where the user has no target; coverage: `coverage@k` -> share."""

    per_user: dict[str, F64]
    coverage: dict[str, float]

    def means(self) -> dict[str, float]:
        """Returns every metric by name: the mean over users with a target, then coverage."""
        return {name: float(np.nanmean(values)) for name, values in self.per_user.items()} | self.coverage


def rank_metrics(
    lists: I64, offsets: I64, targets: I64, catalogue_size: int, ks: Sequence[int] = (10, 20)
) -> RankMetrics:
    """Computes the metrics of lists against the targets of the same users.

    Args:
        lists: (n, K) rows, best first, distinct within a user, padded at the end with -1. K below a k counts as
            padding; what lies beyond the largest k and MRR_DEPTH is not looked at.
        offsets: (n + 1,) int64; user u wants rows `targets[offsets[u]:offsets[u + 1]]`.
        targets: (offsets[-1],) int64 rows, ascending and distinct within a user. A row outside the catalogue is a
            target that no list can hit.
        catalogue_size: how many tracks there are.
        ks: list lengths.

    Returns:
        The metrics.

    Raises:
        ValueError: shapes, padding or order are not as above, or no user has a target.
    """
    if lists.ndim != 2 or offsets.shape != (len(lists) + 1,) or len(targets) != offsets[-1]:
        raise ValueError(f"lists {lists.shape}, offsets {offsets.shape}, targets {targets.shape} do not match")
    wanted = np.diff(offsets)
    evaluated = wanted > 0
    if not evaluated.any():
        raise ValueError("no user has a target")
    width = max(MRR_DEPTH, *ks)
    top = np.full((int(evaluated.sum()), width), -1, np.int64)
    top[:, : lists.shape[1]] = lists[evaluated, :width]
    hits = _hits(top, wanted[evaluated], targets)

    wanted = wanted[evaluated]
    gain = 1 / np.log2(np.arange(2, width + 2))
    ideal = np.concatenate([[0.0], np.cumsum(gain)])
    precision = np.cumsum(hits, axis=1) / np.arange(1, width + 1)
    found: dict[str, F64] = {}
    coverage: dict[str, float] = {}
    for k in ks:
        best = np.minimum(wanted, k)
        found[f"recall@{k}"] = hits[:, :k].sum(axis=1) / wanted
        found[f"ndcg@{k}"] = (hits[:, :k] * gain[:k]).sum(axis=1) / ideal[best]
        found[f"map@{k}"] = (precision * hits)[:, :k].sum(axis=1) / best
        found[f"hr@{k}"] = (hits[:, :k].sum(axis=1) > 0).astype(np.float64)
        shown = top[:, :k]
        coverage[f"coverage@{k}"] = len(np.unique(shown[shown >= 0])) / catalogue_size
    early = hits[:, :MRR_DEPTH]
    found["mrr"] = np.where(early.any(axis=1), 1 / (early.argmax(axis=1) + 1), 0.0)

    per_user = {name: np.full(len(lists), np.nan) for name in found}
    for name, values in found.items():
        per_user[name][evaluated] = values
    return RankMetrics(per_user, coverage)


def _hits(top: I64, wanted: I64, targets: I64) -> npt.NDArray[np.bool_]:
    """(n, width) bool: is this place of the list one of the user's targets."""
    pad = top < 0
    ordered = np.sort(top, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ValueError("a list holds the same track twice")
    if (pad[:, :-1] & ~pad[:, 1:]).any():
        raise ValueError("a list has padding before its end")
    stride = 1 + max(int(top.max()), int(targets.max()))
    users = np.arange(len(top))
    keys = np.repeat(users, wanted) * stride + targets  # (user, row) pairs as one number each
    if (targets < 0).any() or (np.diff(keys) <= 0).any():
        raise ValueError("targets are not ascending and distinct within each user")
    asked = users[:, None] * stride + top
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.asarray(~pad & (keys[place] == asked))
