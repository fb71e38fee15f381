"""Calibration: the mix of a list moves towards the mix of what the user plays (Steck 2018).

A list I is chosen one track after the other to maximise (1 - λ) · mean relevance(I) - λ · KL(p || q(I)), where p is the
user's mix, q that of the list, smoothed with a little of p. As in Steck's derivation the KL term is, up to a constant,
-Σ p log Σ q, which is submodular, so that greedy is at most 1 - 1/e away from the best.
"""

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64
from lhydra.lists.labels import Labels, Several, Single, earlier

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
        relevance: (n,) not negative, descending: the order that holds without calibration.
        labels: of the n tracks.
        wanted: (size,) shares of the user's plays.
        k: how many.
        strength: λ, 0 to 1.
        held: (size,) tracks that the list holds already, by value.

    Returns:
        (min(k, n),) positions in the order in which they are picked; of equals the earlier comes first.
    """
    k = min(k, len(relevance))
    if not k:
        return np.empty(0, np.int64)
    usual = float(relevance[:k].mean())
    value = relevance * ((1 - strength) / (usual * k if usual > 0 else 1.0))
    have = wanted * (k * SMOOTHING / (1 - SMOOTHING))
    have = have if held is None else have + held
    if isinstance(labels, Single):
        return _of_one_value(value, labels, wanted * strength, have)[:k]
    return _of_several(value, labels, wanted * strength, have, k)


def _of_one_value(value: F64, labels: Single, share: F64, have: F64) -> I64:
    """The order of greedy where no track has two values: what one adds depends on those of its value before it alone.

    Of a value the better track is picked first and adds more, so greedy is the order of what the tracks add.
    """
    at = np.flatnonzero(labels.values >= 0)
    codes = labels.values[at]
    shares = share[codes]
    wanted = shares > 0  # the others add nothing, and may be divided by 0
    at, codes, shares = at[wanted], codes[wanted], shares[wanted]
    value[at] += shares * np.log1p(1 / (have[codes] + earlier(codes)))
    return np.argsort(-value, kind="stable")


def _of_several(value: F64, labels: Several, share: F64, have: F64, k: int) -> I64:
    """The first k picks of greedy: what a value adds depends on it and on how many a track has, so there is a table."""
    counts = np.diff(labels.offsets)
    lengths, kind = np.unique(np.maximum(counts, 1), return_inverse=True)
    parts = 1 / lengths
    wanted = share[labels.codes] > 0  # the others add nothing, and may be divided by 0
    known, codes = np.unique(labels.codes[wanted], return_inverse=True)
    share, have = np.append(share[known], 0), np.append(have[known], 1)
    own = np.bincount(np.repeat(np.arange(len(labels)), counts)[wanted], minlength=len(labels))
    firsts = np.cumsum(own) - own
    codes = np.insert(codes, firsts, len(known))  # a value that adds nothing, so that every track has one
    starts = firsts + np.arange(len(labels))
    places = codes * len(parts) + np.repeat(kind, own + 1)
    adds = share[:, None] * np.log1p(parts / have[:, None])
    picked = np.empty(k, np.int64)
    for t in range(k):
        gain = np.add.reduceat(adds.take(places), starts)
        gain += value
        picked[t] = best = int(gain.argmax())
        value[best] = -np.inf
        moved = codes[starts[best] : starts[best] + own[best] + 1]
        have[moved] += parts[kind[best]]
        adds[moved] = share[moved, None] * np.log1p(parts / have[moved, None])
    return picked
