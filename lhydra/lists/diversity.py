"""Diversity: orders in which tracks are both good and unlike those before them.

Both ways pick one track after the other, by quality and by the cosine of vectors. Quality is the logarithm of the odds
of a play, score / (1 - score): it tells the best tracks apart, whose scores are all near 1. With strength s:

DPP   picks what adds most to (1 - s) · Σ log odds + s · log det(V Vᵀ + RIDGE · I) of the tracks picked: greedy MAP of
      a determinantal point process in its fast form, which extends a Cholesky factor (here L D Lᵀ) by a row (Chen,
      Zhang & Zhou 2018). The ridge keeps the determinant positive when there are more tracks than dimensions.
MMR   picks the highest (1 - s) · quality - s · largest cosine with a track picked (Carbonell & Goldstein 1998), quality
      scaled to 0 to 1 over the candidates.
"""

import math
import sys

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64

RIDGE = 0.1
LEAST_ODDS = 1e-12
_MOST, _LEAST = 2.0**100, 2.0**-60  # weights in float32: between these, whoever may be next has all digits


def contenders(odds: npt.NDArray[np.float64], k: int, strength: float) -> I64:
    """Finds whom `dpp` can pick: what a track adds lies between RIDGE and 1 + RIDGE times a weight that its odds give.

    So whoever has less than RIDGE / (1 + RIDGE) of the weight of the best k is never next, and needs no vector.

    Args:
        odds: (n,) not negative.
        k: how many will be picked.
        strength: above 0, at most 1.

    Returns:
        Positions, ascending, at least min(k, n).
    """
    if not 0 < k < len(odds):
        return np.arange(len(odds))
    logs = np.log(np.maximum(odds, LEAST_ODDS))
    reach = math.log((1 + RIDGE) / RIDGE) + 0.02  # norms are rounded
    least = np.partition(logs, len(logs) - k)[len(logs) - k] - reach * strength / max(1 - strength, 1e-9)
    return np.flatnonzero(logs >= least)


def dpp(odds: npt.NDArray[np.float64], vectors: F32, k: int, strength: float) -> I64:
    """Picks k of n tracks by greedy DPP.

    Args:
        odds: (n,) not negative, best first: of equals the earlier is picked.
        vectors: (n, dim) float32 of unit norm.
        k: how many.
        strength: above 0, at most 1.

    Returns:
        (min(k, n),) positions in the order in which they are picked.
    """
    n, dim = vectors.shape
    k = min(k, n)
    if not k:
        return np.empty(0, np.int64)
    # argmax of (1 - s) log odds + s log d² is that of odds^((1 - s) / s) · d²: no logarithm per pick
    odds, power = np.maximum(odds, LEAST_ODDS), min((1 - strength) / strength, sys.float_info.max)
    weight = np.zeros(n, np.float32)
    basis = np.empty((dim + k, n), np.float32)  # vectors, and below them what each pick shares with the others
    basis[:dim] = vectors.T
    counted = basis.copy()  # the same, what is of a pick divided by its -d²: what two tracks share besides all picks
    left = np.einsum("ij,ij->i", vectors, vectors) + np.float32(RIDGE)  # d²: what each would add, never below RIDGE
    gain, picked = np.empty(n, np.float32), np.empty(k, np.int64)
    for t, at in enumerate(range(dim, dim + k)):  # six calls of numpy a pick: on short arrays calls cost most
        best = np.multiply(weight, left, gain).argmax()
        if gain.item(best) < _LEAST:  # as at first: weighed beside the best odds left, others count as 0
            others = np.flatnonzero(weight >= 0)
            weight[others] = (odds[others] / odds[others].max()) ** power * _MOST
            best = np.multiply(weight, left, gain).argmax()
        picked[t] = best
        weight[best] = -1  # never again
        row = counted[:at, best].dot(basis[:at], basis[at])
        own = np.multiply(row, -1 / left.item(best), counted[at])
        np.add(left, np.multiply(row, own, gain), left)
    return picked


def mmr(odds: npt.NDArray[np.float64], vectors: F32, k: int, strength: float) -> I64:
    """Picks k of n tracks by maximal marginal relevance.

    Args:
        odds: (n,) not negative, best first: of equals the earlier is picked.
        vectors: (n, dim) float32 of unit norm.
        k: how many.
        strength: 0 to 1.

    Returns:
        (min(k, n),) positions in the order in which they are picked.
    """
    k = min(k, len(odds))
    picked = np.empty(k, np.int64)
    if not k:
        return picked
    quality = np.log(np.maximum(odds, LEAST_ODDS))
    quality -= quality.min()
    if (span := quality.max()) > 0:
        quality /= span
    quality *= 1 - strength
    nearest = np.full(len(odds), -1.0, np.float32)
    gain = quality.copy()
    for t in range(k):
        picked[t] = best = int(gain.argmax())
        np.maximum(nearest, vectors @ vectors[best], out=nearest)
        quality[best] = -np.inf
        np.subtract(quality, strength * nearest, out=gain)
    return picked
