"""Co-listening: one number per candidate from a sparse item-item table, summed over what the user has played.

Track i keeps the `width` tracks whose listeners also play it and the weight of each, fitted by ridge regression
(SLIM, Ning & Karypis 2011, with the penalty of EDLAE, Steck 2020); see `lhydra.training.teachers`. The score of a
candidate is the sum of the weights of those of its neighbours that the user has played, so a new play counts at
once. It enters the head in the channels below.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lhydra import kernels
from lhydra.domain import F32, I64
from lhydra.features import histories
from lhydra.scratch import borrowed_mask, borrowed_places

if TYPE_CHECKING:
    from lhydra.kernels.compiled import CoListeningTable

CHANNELS = ("all", "recent")  # every play by its count; the last few plays only, where times are known
RECENT_PLAYS = 10.0  # plays after which a play counts 1/e in the second channel


def channel_weights(entry: F32) -> F32:
    """Returns the weight of each history entry in each channel.

    Args:
        entry: (m, 3) float32 from `histories.entry_features`.

    Returns:
        (m, 2) float32.
    """
    found = np.empty((len(entry), len(CHANNELS)), np.float32)
    exact: Any = entry.astype(np.float64)  # and rounded then: compiled and here to the same bits
    found[:, 0] = weight = histories.relative_weights_of(exact)
    found[:, 1] = weight * np.exp(histories.positions_of(exact).astype(np.float64) / -RECENT_PLAYS)
    return found


def scores(
    neighbours: npt.NDArray[np.int32],
    weights: npt.NDArray[np.floating],
    played: npt.NDArray[np.integer],
    entry: F32,
    candidates: npt.NDArray[np.integer],
) -> F32:
    """Returns the co-listening scores of `candidates`.

    Args:
        neighbours: (n, width) int32 rows of the table.
        weights: (n, width) float16 or float32, what each neighbour counts.
        played: (h,) rows of the table, distinct but for row 0 where that stands for tracks without one.
        entry: (h, 3) float32 entry features of what was played.
        candidates: (m,) rows of the table.

    Returns:
        (m, 2) float32, a column for each of CHANNELS.

    Raises:
        IndexError: a candidate is no row of the table.
    """
    if kernels.compiled is not None and weights.dtype == np.float16:
        known, asked = played.astype(np.int64, copy=False), candidates.astype(np.int64, copy=False)
        return table_of(neighbours, weights, np.empty(0, np.int32)).scores(known, entry, asked)
    owner, at, weight = _hits(neighbours, weights, played, candidates)
    each = weight[:, None] * channel_weights(entry).take(at, 0)
    found = np.empty((len(candidates), len(CHANNELS)), np.float32)
    for channel in range(len(CHANNELS)):
        found[:, channel] = np.bincount(owner, each[:, channel], len(candidates))
    return found


def table_of(
    neighbours: npt.NDArray[np.int32], weights: npt.NDArray[np.floating], item_rows: npt.NDArray[np.int32]
) -> "CoListeningTable":
    """Returns the table as compiled loops take it.

    Args:
        neighbours: as in `scores`.
        weights: as in `scores`, float16.
        item_rows: (tracks,) where each track of a catalog stands in the table.

    Returns:
        The table.
    """
    assert kernels.compiled is not None
    halves = weights.view(np.uint16)
    return kernels.compiled.CoListeningTable(neighbours, halves, item_rows, histories.POSITION_SCALE, RECENT_PLAYS)


def scores_of_parts(
    neighbours: npt.NDArray[np.int32],
    weights: npt.NDArray[np.floating],
    played: npt.NDArray[np.integer],
    entry: F32,
    kept: npt.NDArray[np.bool_],
    candidates: npt.NDArray[np.integer],
) -> F32:
    """Returns the co-listening scores of `candidates` for users who played parts of one history.

    Args:
        neighbours: as in `scores`.
        weights: as in `scores`.
        played: (h,) rows of the table, of the whole history.
        entry: (p, h, 3) float32 entry features of each user, anything where the user has none.
        kept: (p, h) which entries each user has.
        candidates: (m,) rows of the table.

    Returns:
        (p, m, 2) float32.
    """
    owner, at, weight = _hits(neighbours, weights, played, candidates)
    p, m, channels = len(kept), len(candidates), len(CHANNELS)
    counts = channel_weights(entry.take(at, 1).reshape(-1, entry.shape[2])).reshape(p, len(at), channels)
    each = weight[:, None] * counts * kept.take(at, 1)[:, :, None]
    place = np.arange(p * channels).reshape(p, 1, channels) + owner[:, None] * (p * channels)
    found = np.bincount(place.ravel(), each.ravel(), m * p * channels)
    return np.asarray(found.reshape(m, p, channels).transpose(1, 0, 2), np.float32)


def _hits(
    neighbours: npt.NDArray[np.int32],
    weights: npt.NDArray[np.floating],
    played: npt.NDArray[np.integer],
    candidates: npt.NDArray[np.integer],
) -> tuple[I64, I64, F32]:
    """Where a neighbour of a candidate was played: which candidate, which of `played`, and the weight."""
    near = neighbours.take(candidates, 0)
    with borrowed_mask(len(neighbours)) as is_played, borrowed_places(len(neighbours)) as place:
        is_played[played], place[played] = True, np.arange(len(played))
        hits = np.flatnonzero(is_played.take(near, mode="clip"))  # few: most neighbours of a candidate were not played
        at = place.take(near.take(hits))  # mode="clip" above skips the bounds check
        is_played[played] = False
    width = neighbours.shape[1]
    owner = hits // width
    weight = weights.ravel().take(hits + (candidates.take(owner) - owner) * width).astype(np.float32)
    return owner, at.astype(np.int64), weight
