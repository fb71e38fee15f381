"""Calibration: the mix of a list moves towards the mix of what the user plays (Steck 2018).

A list I is chosen one track after the other to maximise (1 - λ) · mean relevance(I) - λ · KL(p || q(I)), where p is the
user's mix, q that of the list, smoothed with a little of p. As in Steck's derivation the KL term is, up to a constant,
-Σ p log Σ q, which is submodular, so that greedy is at most 1 - 1/e away from the best.
"""

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64
from lhydra.lists.labels import Labels

SMOOTHING = 0.01
F64 = npt.NDArray[np.float64]


def error(wanted: F64, shown: F64) -> float:
    """Computes the calibration error of a list: KL(wanted || shown), shown smoothed by SMOOTHING.

    Args:
        wanted: (size,) shares of the user's plays.
        shown: (size,) shares of the list.

    Returns:
        0 where they are equal; 0 where one of them says nothing.
    """
    there = wanted > 0
    if not there.any() or not shown.any():
        return 0.0
    p = wanted[there]
    return float((p * np.log(p / ((1 - SMOOTHING) * shown[there] + SMOOTHING * p))).sum())


def calibrate(relevance: F64, labels: Labels, wanted: F64, k: int, strength: float, held: F64 | None = None) -> I64:
    """Picks k of n tracks.

    Args:
        relevance: (n,) not negative, in the order that holds without calibration.
        labels: of the n tracks.
        wanted: (size,) shares of the user's plays.
        k: how many.
        strength: λ, 0 to 1.
        held: (size,) tracks that the list holds already, by value.

    Returns:
        (min(k, n),) positions in the order in which they are picked; of equals the earlier comes first.
    """
    n, size = len(relevance), labels.size
    k = min(k, n)
    picked = np.empty(k, np.int64)
    if not k:
        return picked
    usual = float(relevance[:k].mean())
    value = relevance * ((1 - strength) / (usual * k if usual > 0 else 1.0))
    have = np.zeros(size) if held is None else held.astype(np.float64)
    have += wanted * (k * SMOOTHING / (1 - SMOOTHING))
    counts = labels.counts
    widths, width = np.unique(counts[counts > 0], return_inverse=True)  # a track of w values adds 1/w to each
    added = 1 / widths if len(widths) else np.empty(0)
    entry = np.repeat(width, counts[counts > 0]) * size + labels.codes  # of each value of each track, in `table`
    table = np.zeros((len(added), size))

    def learn(codes: I64) -> None:
        """Fills in what one more track of each width would add to the objective by each of these values."""
        table[:, codes] = strength * wanted[codes] * np.log1p(added[:, None] / have[codes])

    learn(np.flatnonzero(wanted > 0))
    flat = table.reshape(-1)
    labelled = np.flatnonzero(counts > 0)
    starts = labels.offsets[:-1][labelled]
    alone = len(labels.codes) == len(labelled)  # one value each
    gain, lists = np.empty(n), labels.lists
    for t in range(k):
        gain[:] = value
        if len(labelled):
            each = flat.take(entry)
            gain[labelled] += each if alone else np.add.reduceat(each, starts)
        picked[t] = best = int(gain.argmax())
        value[best] = -np.inf
        if codes := [code for code in lists[best] if wanted[code] > 0]:
            have[codes] += 1 / counts[best]
            learn(np.array(codes))
    return picked
