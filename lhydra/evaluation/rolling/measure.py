"""How good lists are at all moments, by user: a user's mean over the own moments, then the mean over users."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lhydra.domain import I64
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.rolling.lists import Figure, belongs
from lhydra.evaluation.rolling.moments import Moments
from lhydra.evaluation.rolling.past import F64

KS = (10, 20, 100)
METRICS = ("ndcg@10", "recall@10", "hr@10", "ndcg@20", "recall@20", "hr@20", "ndcg@100", "recall@100", "hr@100", "mrr")


@dataclass(frozen=True)
class Measured:
    """Metrics of one scorer, by metric: (q,) by moment, and (users,) the mean of each user's moments.

    Both have NaN where there is no target of the figure. users: (users,) positions of the users asked for.
    """

    by_moment: Mapping[str, F64]
    by_user: Mapping[str, F64]
    users: I64


def measure(lists: I64, moments: Moments, figure: Figure, n_tracks: int, ks: Sequence[int] = KS) -> Measured:
    """Measures one list per moment.

    Args:
        lists: (q, K) tracks, best first, -1 padded.
        moments: q of them.
        figure: which targets count.
        n_tracks: how many tracks there are.
        ks: list lengths.

    Returns:
        The metrics.
    """
    users, place = np.unique(moments.user, return_inverse=True)
    offsets, targets = moments.only(belongs(figure, moments.heard))
    if not len(targets):
        names = [name for name in METRICS if name == "mrr" or int(name.split("@")[1]) in ks]
        return Measured(
            {name: np.full(len(moments), np.nan) for name in names},
            {name: np.full(len(users), np.nan) for name in names},
            users,
        )
    found = rank_metrics(lists, offsets, targets, n_tracks, ks).per_user
    by_moment = {name: found[name] for name in METRICS if name in found}
    return Measured(by_moment, {name: _means(values, place, len(users)) for name, values in by_moment.items()}, users)


def mean_over_users(found: Measured, metric: str) -> float:
    """Averages a metric over users.

    Args:
        found: of a scorer.
        metric: its name.

    Returns:
        The mean of those who have a target, 0 where nobody has.
    """
    values = found.by_user[metric]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else 0.0


def heard_share(lists: I64, moments: Moments, known: Sequence[I64], k: int = 10) -> F64:
    """Tells how much of the lists the users had heard.

    Args:
        lists: (q, K) tracks, -1 padded.
        moments: q of them.
        known: q arrays of the tracks heard by then.
        k: so many places are looked at.

    Returns:
        (users,) mean shares of each user's moments.
    """
    shares = np.array(
        [
            np.isin(own[own >= 0], past).mean() if own[0] >= 0 else 0.0
            for own, past in zip(lists[:, :k], known, strict=True)
        ]
    )
    users, place = np.unique(moments.user, return_inverse=True)
    return _means(shares, place, len(users))


def _means(values: F64, place: I64, n: int) -> F64:
    """(n,) means of the values at each place, NaN where there is none."""
    known = ~np.isnan(values)
    count = np.bincount(place[known], minlength=n)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.bincount(place[known], values[known], n) / count)
