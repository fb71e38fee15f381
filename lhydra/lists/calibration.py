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


def _of_several(gain: F64, labels: Several, share: F64, have: F64, k: int) -> I64:
    """The first k picks of greedy: after each, what tracks of its values would add is computed anew, and no other."""
    counts = np.diff(labels.offsets)
    of = np.repeat(np.arange(len(labels)), counts)
    wanted = np.flatnonzero(share[labels.codes])
    wanted = wanted[np.argsort(labels.codes[wanted], kind="stable")]
    tracks, codes = of[wanted], labels.codes[wanted]
    parts, shares = 1 / counts[tracks], share[codes]
    adds = shares * np.log1p(parts / have[codes])
    gain += np.bincount(tracks, adds, len(labels))
    starts = np.flatnonzero(np.diff(codes, prepend=-1)).tolist()
    runs: dict[int, slice] = {
        int(codes[start]): slice(start, end) for start, end in zip(starts, [*starts[1:], len(codes)], strict=False)
    }
    picked = np.empty(k, np.int64)
    for t in range(k):
        picked[t] = best = int(gain.argmax())
        gain[best] = -np.inf
        for code in labels.lists[best]:
            if (run := runs.get(code)) is not None:
                have[code] += 1 / counts[best]
                after = np.log1p(parts[run] / have[code])
                after *= share[code]
                gain[tracks[run]] += after - adds[run]
                adds[run] = after
    return picked
