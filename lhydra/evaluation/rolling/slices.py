"""Where lists are good: by place in the session, by how long ago a target was played last, by how much users repeat."""

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64
from lhydra.evaluation.rolling.measure import Measured
from lhydra.evaluation.rolling.moments import Moments
from lhydra.evaluation.rolling.past import F64, Past

_PLACES = (0, 1, 2, 5, 10, 20)  # plays of the session known, from which each group begins
_AGES = (1, 2, 4, 8, 16, 32)  # sessions since the last play
_Values = Mapping[str, npt.NDArray[Any]]  # by scorer
_SHARES = ("the third who repeat least", "the third between", "the third who repeat most")


class RollingSlice(TypedDict):
    """A part of the lists, targets or users, `n` of them, and by scorer a figure of `all`: `metric` says which."""

    by: str
    name: str
    n: int
    metric: str
    scorers: dict[str, float]


def slices(
    lists: Mapping[str, I64], measured: Mapping[str, Measured], moments: Moments, past: Past, repeats: F64
) -> list[RollingSlice]:
    """Divides what was measured.

    Args:
        lists: of `all`, by scorer (q, K) tracks.
        measured: of `all`, by scorer.
        moments: q of them.
        past: all plays.
        repeats: (users,) each user's share of repeats in what was played.

    Returns:
        The groups that have a member.
    """
    found: list[RollingSlice] = []

    def add(
        by: str, name: str, metric: str, inside: npt.NDArray[np.bool_], values: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        means = {scorer: float(own[inside].mean()) for scorer, own in values.items()}
        found.append({"by": by, "name": name, "n": int(inside.sum()), "metric": metric, "scorers": means})

    of_moment = {name: one.by_moment["ndcg@10"] for name, one in measured.items()}
    group = np.searchsorted(_PLACES, moments.place, side="right") - 1
    groups = np.unique(group).tolist()
    for n in groups if len(groups) > 1 else []:
        add("place", f"{_span(_PLACES, n)} plays known", "ndcg@10", group == n, of_moment)
    ages = last_ages(moments, past)
    group = np.searchsorted(_AGES, ages, side="right") - 1  # below 0 for what was not played before
    owner = np.repeat(np.arange(len(moments)), np.diff(moments.offsets))
    hits = {name: (own[owner, :10] == moments.tracks[:, None]).any(axis=1) for name, own in lists.items()}
    for n in np.unique(group[group >= 0]).tolist():
        add("age", f"{_span(_AGES, n)} sessions ago", "recall@10", group == n, hits)
    of_user = {name: one.by_user["ndcg@10"] for name, one in measured.items()}
    third = np.argsort(np.argsort(repeats, kind="stable"), kind="stable") * 3 // max(len(repeats), 1)
    for n in np.unique(third).tolist():
        add("share", _SHARES[n], "ndcg@10", third == n, of_user)
    return found


def last_ages(moments: Moments, past: Past) -> I64:
    """Tells how many sessions ago each target was played last.

    Args:
        moments: q of them, m targets.
        past: all plays.

    Returns:
        (m,) at least 1, 0 for a track not played before.
    """
    ages = np.zeros(len(moments.tracks), np.int64)
    for n in range(len(moments)):
        known = past.at(moments, n)
        own = slice(moments.offsets[n], moments.offsets[n + 1])
        tracks, at = np.unique(known.tracks[::-1], return_index=True)
        place = np.minimum(np.searchsorted(tracks, moments.tracks[own]), max(len(tracks) - 1, 0))
        heard = moments.heard[own]
        ages[own][heard] = known.ages[::-1][at[place[heard]]].astype(np.int64)
    return ages


def _span(starts: tuple[int, ...], n: int) -> str:
    """The numbers of a group in words."""
    if n == len(starts) - 1:
        return f"{starts[n]} or more"
    last = starts[n + 1] - 1
    return str(starts[n]) if last == starts[n] else f"{starts[n]} to {last}"
