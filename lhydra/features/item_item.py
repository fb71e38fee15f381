"""Co-listening: one number per candidate from a sparse item-item table, summed over what the user has played.

Track i keeps the `width` tracks whose listeners also play it and the weight of each, fitted by ridge regression
(SLIM, Ning & Karypis 2011, with the penalty of EDLAE, Steck 2020); see `lhydra.training.teachers`. The score of a
candidate is the sum of the weights of those of its neighbours that the user has played, so a new play counts at
once. It enters the head in the channels below.
"""

from collections import deque

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32

CHANNELS = ("all", "recent")  # every play by its count; the last few plays only, where times are known
RECENT = 10.0  # plays after which a play counts 1/e in the second channel

# where tracks of a history are marked, False and anything between calls; lent to one thread at a time
_lent: deque[tuple[npt.NDArray[np.bool_], npt.NDArray[np.int16]]] = deque(maxlen=4)


def channel_weights(entry: F32) -> F32:
    """Returns the weight of each history entry in each channel, (m, 2), from `histories.entry_features` (m, 3)."""
    count = np.exp(entry[:, 0])
    position = np.expm1(7 * entry[:, 2])
    return np.stack([count, count * np.exp(-position / RECENT)], 1)


def scores(
    neighbours: npt.NDArray[np.int32],
    weights: npt.NDArray[np.floating],
    played: npt.NDArray[np.integer],
    entry: F32,
    candidates: npt.NDArray[np.integer],
) -> F32:
    """Returns the co-listening scores of `candidates`, (m, 2) float32.

    neighbours, weights: (n, width) lines and weights of the table; played: (h,) lines, distinct but for line 0 where
    that stands for tracks without one; entry: (h, 3) their entry features; candidates: (m,) lines.
    """
    try:
        is_played, place = _lent.pop()
    except IndexError:
        is_played, place = np.zeros(len(neighbours), np.bool_), np.zeros(len(neighbours), np.int16)
    if len(place) < len(neighbours):
        is_played, place = np.zeros(len(neighbours), np.bool_), np.zeros(len(neighbours), np.int16)
    near = neighbours.take(candidates, 0)
    is_played[played], place[played] = True, np.arange(len(played))
    hits = np.flatnonzero(is_played.take(near, mode="clip"))  # few: most neighbours of a candidate were not played
    at = place.take(near.take(hits))  # clip, above, leaves out a check
    is_played[played] = False
    _lent.append((is_played, place))  # not after an error: it may not be blank
    owner, column = np.divmod(hits, neighbours.shape[1])
    weight = weights.ravel().take(candidates.take(owner).astype(np.intp) * weights.shape[1] + column).astype(np.float32)
    each = weight[:, None] * channel_weights(entry).take(at, 0)
    found = np.empty((len(candidates), len(CHANNELS)), np.float32)
    for channel in range(len(CHANNELS)):
        found[:, channel] = np.bincount(owner, each[:, channel], len(candidates))
    return found
