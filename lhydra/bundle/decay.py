"""Repeat.DECAY: heard tracks return after a while, the likelier the longer ago they were played."""

import numpy as np
import numpy.typing as npt

from lhydra.bundle.catalog import Catalog
from lhydra.domain import F32, I64, Query

REPEAT_AFTER_S, REPEAT_SCALE_S = 7 * 86_400, 30 * 86_400  # the shortest gap, and the time constant


def repeatable(catalog: Catalog, query: Query) -> tuple[I64, npt.NDArray[np.float64]]:
    """Finds the heard tracks that may return.

    Args:
        catalog: the tracks.
        query: whose history and clock count.

    Returns:
        (n,) rows, and (n,) the probability that each is wanted again: 1 - exp(-days since the last play / 30).
    """
    history = query.state.history
    gap = np.maximum(query.now - history["time"], 0)
    returns = (history["time"] > 0) & (gap >= REPEAT_AFTER_S)
    rows = catalog.rows(history["track"][returns])
    chance = -np.expm1(-gap[returns] / REPEAT_SCALE_S)
    return rows[rows >= 0], chance[rows >= 0]


def decayed_scores(catalog: Catalog, query: Query, rows: I64, scores: F32) -> F32:
    """Multiplies the scores of heard tracks by the probability that they are wanted again.

    Args:
        catalog: the tracks.
        query: whose history and clock count.
        rows: (n,) candidates.
        scores: (n,) of them.

    Returns:
        (n,) scores.
    """
    own, chance = repeatable(catalog, query)
    if not len(own):
        return scores
    order = np.argsort(own)
    own, chance = own[order], chance[order]
    at = np.minimum(np.searchsorted(own, rows), len(own) - 1)
    return np.where(own[at] == rows, scores * chance[at], scores).astype(np.float32)
