"""Calibration: the mix of a list moves towards the mix of what the user plays (Steck 2018).

A list I is chosen one track after the other to maximise (1 - λ) · mean relevance(I) - λ · KL(p || q(I)), where p is the
user's mix, q that of the list, smoothed with a little of p. As in Steck's derivation the KL term is, up to a constant,
-Σ p log Σ q, which is submodular, so that greedy is at most 1 - 1/e away from the best.
"""

import heapq
import math

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64
from lhydra.lists.labels import Labels, Single

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
    n = len(relevance)
    k = min(k, n)
    picked = np.empty(k, np.int64)
    if not k:
        return picked
    usual = float(relevance[:k].mean())
    value: list[float] = (relevance * ((1 - strength) / (usual * k if usual > 0 else 1.0))).tolist()
    there = np.flatnonzero(wanted)  # a column may have many values, of which a user plays few
    own = wanted[there] * (k * SMOOTHING / (1 - SMOOTHING)) + (0 if held is None else held[there])
    have = dict(zip(there.tolist(), own.tolist(), strict=True))
    share = dict(zip(have, (wanted[there] * strength).tolist(), strict=True))
    kinds = []  # tracks of the same values add the same: the first of them is next
    if isinstance(labels, Single):
        of: dict[int, list[int]] = {}
        for i, code in enumerate(labels.values.tolist()):
            if code in of:
                of[code].append(i)
            else:
                of[code] = [i]
        kinds = [([code] if code in share else [], 1.0, tracks) for code, tracks in of.items()]
    else:
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, codes in enumerate(labels.lists):
            alike.setdefault(tuple(codes), []).append(i)
        kinds = [([c for c in codes if c in share], 1 / max(len(codes), 1), all_) for codes, all_ in alike.items()]

    log1p = math.log1p

    def gain(kind: int, at: int) -> float:
        """What the next track of a kind adds to the objective."""
        codes, part, tracks = kinds[kind]
        more = value[tracks[at]]
        for c in codes:
            more += share[c] * log1p(part / have[c])
        return more

    # gains only ever fall, so the largest that is up to date is the largest (lazy greedy: Minoux 1978)
    heap = [(-gain(kind, 0), kinds[kind][2][0], kind, 0) for kind in range(len(kinds))]
    heapq.heapify(heap)
    for t in range(k):
        while True:
            old, track, kind, at = heap[0]
            new = -gain(kind, at)
            if new <= old:
                break
            heapq.heapreplace(heap, (new, track, kind, at))
        picked[t] = track
        codes, part, tracks = kinds[kind]
        for c in codes:
            have[c] += part
        if at + 1 < len(tracks):
            heapq.heapreplace(heap, (-gain(kind, at + 1), tracks[at + 1], kind, at + 1))
        else:
            heapq.heappop(heap)
    return picked
