"""Co-listening: one number per candidate from a sparse item-item table, summed over what the user has played.

Track i keeps the `width` tracks whose listeners also play it and the weight of each, fitted by ridge regression
(SLIM, Ning & Karypis 2011, with the penalty of EDLAE, Steck 2020); see `lhydra.training.teachers`. The score of a
candidate is the sum of the weights of those of its neighbours that the user has played, so a new play counts at
once. It enters the head in the channels below.
"""

import threading

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32

CHANNELS = ("all", "recent")  # every play by its count; the last few plays only, where times are known
RECENT = 10.0  # plays after which a play counts 1/e in the second channel

_local = threading.local()


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
    place: npt.NDArray[np.int16] | None = getattr(_local, "place", None)
    if place is None or len(place) < len(neighbours):  # one per thread, all zero between calls
        place = _local.place = np.zeros(len(neighbours), np.int16)
    place[played] = np.arange(1, len(played) + 1)
    try:
        at = place.take(neighbours.take(candidates, 0), mode="clip").ravel()  # clip: unchecked
    finally:
        place[played] = 0
    hits = np.flatnonzero(at)  # few: most neighbours of a candidate were not played
    owner, column = np.divmod(hits, neighbours.shape[1])
    weight = weights[candidates[owner], column].astype(np.float32)
    each = weight[:, None] * channel_weights(entry)[at[hits] - 1]
    found = np.empty((len(candidates), len(CHANNELS)), np.float32)
    for channel in range(len(CHANNELS)):
        found[:, channel] = np.bincount(owner, each[:, channel], len(candidates))
    return found
