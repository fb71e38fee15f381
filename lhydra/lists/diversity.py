"""Diversity: orders in which tracks are both good and unlike those before them.

Both ways pick one track after the other. The quality of a track is its score relative to the best; similarity is the
cosine of its vector. With strength s:

DPP   picks what adds most to (1 - s) · Σ log score + s · log det(V Vᵀ + RIDGE · I) of the tracks picked: greedy MAP of
      a determinantal point process in its fast form, which extends a Cholesky factor by a row (Chen, Zhang & Zhou
      2018). The ridge keeps the determinant positive when there are more tracks than dimensions.
MMR   picks the highest (1 - s) · quality - s · largest cosine with a track picked (Carbonell & Goldstein 1998); quality
      is the logarithm of the score, scaled to 0 to 1 over the candidates.
"""

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64

RIDGE = 0.1
LEAST_SCORE = 1e-12


def dpp(scores: npt.NDArray[np.float64], vectors: F32, k: int, strength: float) -> I64:
    """Picks k of n tracks by greedy DPP.

    Args:
        scores: (n,) not negative, best first: of equals the earlier is picked.
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
    top = max(float(scores.max()), LEAST_SCORE)
    # argmax of (1 - s) log score + s log d² is that of score^((1 - s) / s) · d²: no logarithm per pick
    weight = np.power(np.maximum(scores, LEAST_SCORE) / top, (1 - strength) / strength)
    basis = np.empty((n, dim + k), np.float32)  # vectors, and behind them the rows of the Cholesky factor
    basis[:, :dim] = vectors
    left = np.einsum("ij,ij->i", vectors, vectors).astype(np.float64) + RIDGE  # d²: what each would add
    picked = np.empty(k, np.int64)
    gain, probe = np.empty(n), np.empty(dim + k, np.float32)
    for t in range(k):
        np.multiply(weight, left, out=gain)
        best = int(gain.argmax())
        picked[t] = best
        if t + 1 == k:
            break
        probe[:dim] = basis[best, :dim]
        np.negative(basis[best, dim : dim + t], out=probe[dim : dim + t])
        row = basis[:, : dim + t] @ probe[: dim + t]
        row *= 1 / np.sqrt(left[best])
        basis[:, dim + t] = row
        left -= row * row.astype(np.float64)
        np.maximum(left, 0, out=left)
        left[best] = 0
        weight[best] = -1  # never again, not even where nothing is left of the others
        left[best] = 1
    return picked


def mmr(scores: npt.NDArray[np.float64], vectors: F32, k: int, strength: float) -> I64:
    """Picks k of n tracks by maximal marginal relevance.

    Args:
        scores: (n,) not negative, best first: of equals the earlier is picked.
        vectors: (n, dim) float32 of unit norm.
        k: how many.
        strength: 0 to 1.

    Returns:
        (min(k, n),) positions in the order in which they are picked.
    """
    k = min(k, len(scores))
    picked = np.empty(k, np.int64)
    if not k:
        return picked
    quality = np.log(np.maximum(scores, LEAST_SCORE))
    quality -= quality.min()
    if (span := quality.max()) > 0:
        quality /= span
    quality *= 1 - strength
    nearest = np.full(len(scores), -1.0, np.float32)
    gain = quality.copy()
    for t in range(k):
        picked[t] = best = int(gain.argmax())
        np.maximum(nearest, vectors @ vectors[best], out=nearest)
        quality[best] = -np.inf
        np.subtract(quality, strength * nearest, out=gain)
    return picked
