"""Short reasons for the tracks of a list, in words that a listener can read; only what the trace says."""

import numpy as np

from lhydra.domain import I64, Tier
from lhydra.explain.pulls import MOST_PLAYS, falls_of
from lhydra.explain.sources import CHART, POPULAR
from lhydra.features.histories import relative_weights_of
from lhydra.features.moment import SIGNALS
from lhydra.recommender import Recommender
from lhydra.traced import Traced

LEAST_FALL = 0.05  # of a logit, from which on a play is a reason
FEW = SIGNALS.index("few")


def reasons_of(
    recommender: Recommender, traced: Traced, sources: tuple[tuple[str, ...], ...]
) -> tuple[tuple[str, ...], ...]:
    """Tells why the tracks of an answer are in it.

    Args:
        recommender: that answered.
        traced: the request, answered.
        sources: of each track of the answer.

    Returns:
        For each track none, one or several reasons.
    """
    answer, catalog = traced.answer, recommender.catalog
    assert answer is not None
    rows = answer.rows
    reasons: list[list[str]] = [[] for _ in range(len(rows))]
    if traced.tier is Tier.POPULAR:
        country = traced.query.state.profile.get("country")
        for own, came in zip(reasons, sources, strict=True):
            own += [f"popular in {country}"] if CHART in came else []
            own += ["popular with all listeners"] if POPULAR in came else []
    elif len(rows):
        for own, row in zip(reasons, _played(recommender, traced, rows), strict=True):
            if row >= 0:
                own.append(f"because you play {_named(recommender, row)}")
    for source, (words, those) in _of_moment(traced, rows).items():
        for own, came, there in zip(reasons, sources, np.isin(rows, those).tolist(), strict=True):
            own += [words] if there and source in came else []
    for own, moved_by, artist in zip(reasons, answer.moved_by, catalog.artists(rows), strict=False):
        own += [f"new from {artist}"] if "fresh" in moved_by and artist else []
    return tuple(tuple(own) for own in reasons)


def _of_moment(traced: Traced, rows: I64) -> dict[str, tuple[str, I64]]:
    """Words for sources of a moment, and the rows that they are true of where those are candidates by them."""
    if traced.moment is None or traced.user is None or not len(rows):
        return {}
    follows = rows[traced.moment.signals(rows)[:, FEW] > 0]  # the last three plays, not one long ago
    histories = traced.user.histories
    again = histories.rows[histories.counts >= 2]  # of few plays each is a candidate: one is no coming back
    return {"following": ("often played after what you played last", follows), "own": ("you come back to it", again)}


def _played(recommender: Recommender, traced: Traced, rows: I64) -> list[int]:
    """The play that pulled each track up most, -1 where none did."""
    assert traced.user is not None
    played = traced.user.histories.rows
    if not len(played):
        return [-1] * len(rows)
    chosen = np.argsort(-relative_weights_of(traced.user.entry), kind="stable")[:MOST_PLAYS]
    falls = falls_of(recommender, traced, rows, chosen)
    falls[played[chosen][:, None] == rows] = -np.inf  # a track is no reason for itself
    best = falls.argmax(0)
    strong = falls.max(0) >= LEAST_FALL
    return [int(row) for row in np.where(strong, played[chosen[best]], -1)]


def _named(recommender: Recommender, row: int) -> str:
    catalog, one = recommender.catalog, np.array([row])
    title, artist = catalog.titles(one)[0] or catalog.track_ids(one)[0], catalog.artists(one)[0]
    return f"{title} by {artist}" if artist else title
