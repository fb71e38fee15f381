"""Which sources a track of a request came from as a candidate; it may have come from several."""

import numpy as np

from lhydra.bundle.candidates import NEAREST
from lhydra.domain import I64, Tier
from lhydra.recommender import Recommender
from lhydra.traced import NO_ROWS, Traced

PINNED, POPULAR, CHART = "pinned", "popular", "chart"  # beside those of candidates


def sources_of(recommender: Recommender, traced: Traced, rows: I64) -> tuple[tuple[str, ...], ...]:
    """Tells where candidates came from.

    Args:
        recommender: that answered.
        traced: the request, answered.
        rows: (n,) rows of candidates or of pinned tracks.

    Returns:
        For each its sources, of nearest, co-listening, own, following, together, pinned, chart, popular; one or more.
    """
    if traced.tier is Tier.POPULAR:
        charted = np.isin(rows, recommender.catalog.chart(traced.query.state.profile.get("country"))[0])
        named = {CHART: charted, POPULAR: ~charted}
    else:
        brought = {name: found for name, found in traced.brought.items() if name != NEAREST}
        near = _near(traced, np.concatenate([NO_ROWS, *brought.values()]))
        named = {name: np.isin(rows, found) for name, found in ((NEAREST, near), *brought.items())}
    if traced.made is not None and traced.made.pins:
        pinned = np.isin(rows, [row for _, row in traced.made.pins])
        came = ~pinned | np.isin(rows, traced.made.found[0])  # others are there by the pin alone
        named = {name: found & came for name, found in named.items()} | {PINNED: pinned}
    of_each = zip(*(found.tolist() for found in named.values()), strict=True)
    # rules that asked for more found the rest among the nearest
    return tuple(tuple(name for name, there in zip(named, one, strict=True) if there) or (NEAREST,) for one in of_each)


def _near(traced: Traced, brought: I64) -> I64:
    """The rows that the index found early enough for the places that other sources left."""
    nearest = traced.found_nearest
    assert traced.candidates is not None
    free = np.count_nonzero(~np.isin(traced.candidates[0], brought))
    others = ~np.isin(nearest, brought)
    return nearest[np.cumsum(others) - others < free]
