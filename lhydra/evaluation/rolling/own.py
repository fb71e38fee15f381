"""Baselines of one's own listening: what a user has played comes again, by how often and how long ago.

A scorer takes what is known at a moment and returns distinct tracks with scores above 0; all others have none.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lhydra.domain import I64
from lhydra.evaluation.rolling.past import F64, Known, Past

Params = dict[str, Any]
Scored = tuple[I64, F64]
Scorer = Callable[[Known], Scored]
_MIN_AGE_S = 60.0


def ages(known: Known, unit: str) -> F64:
    """Tells how long ago each play was.

    Args:
        known: of a moment.
        unit: `hours`, `sessions`, or `plays`.

    Returns:
        (n,) above 0; without a time of their own, plays are as old as the oldest that have one.
    """
    if unit == "sessions":
        return known.ages
    if unit == "plays":
        return np.arange(len(known.tracks), 0, -1).astype(np.float64)
    oldest = known.times[known.times > 0].min(initial=known.now)
    return np.asarray(np.maximum(known.now - np.where(known.times > 0, known.times, oldest), _MIN_AGE_S) / 3600)


def summed(tracks: I64, weights: F64) -> Scored:
    """Adds up weights by track.

    Args:
        tracks: (n,) positions.
        weights: (n,).

    Returns:
        The distinct tracks, ascending, and the sums.
    """
    distinct, place = np.unique(tracks, return_inverse=True)
    return distinct, np.bincount(place, weights, len(distinct)).astype(np.float64)


def fit_count(past: Past, params: Params) -> Scorer:
    """Scores a track by how often the user has played it.

    Args:
        past: unused.
        params: none.

    Returns:
        The scorer.
    """
    return lambda known: summed(known.tracks, np.ones(len(known.tracks)))


def fit_recency(past: Past, params: Params) -> Scorer:
    """Scores a track by how many plays ago the user has played it last.

    Args:
        past: unused.
        params: none.

    Returns:
        The scorer.
    """

    def score(known: Known) -> Scored:
        newest_first = known.tracks[::-1]
        tracks, ago = np.unique(newest_first, return_index=True)
        return tracks, (1.0 / (1.0 + ago)).astype(np.float64)

    return score


def fit_bll(past: Past, params: Params) -> Scorer:
    """Scores a track by base-level learning (Anderson and Schooler 1991): sum of age^-d over the user's plays of it.

    Args:
        past: unused.
        params: d, and the unit of ages.

    Returns:
        The scorer.
    """
    return lambda known: summed(known.tracks, ages(known, params["unit"]) ** -params["d"])
