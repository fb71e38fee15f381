"""A blend of scorers: a weighted sum of their scores, the weights those with the best NDCG on the valid fold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64
from lhydra.evaluation.rolling.own import Scored
from lhydra.evaluation.rolling.past import F64

_CANDIDATES = 200  # of each scorer
_WEIGHTS = (0.0, 0.03, 0.06, 0.12, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_ROUNDS = 5


@dataclass(frozen=True)
class Candidates:
    """What the scorers put first at a moment: tracks (c,), ascending, and features (c, scorers), the best of each 1."""

    tracks: I64
    features: F32


def candidates(scored: Sequence[Scored]) -> Candidates:
    """Brings scores of several scorers together.

    Args:
        scored: of each scorer, distinct tracks and scores above 0; only tracks that the list may hold.

    Returns:
        The first tracks of each, with what every scorer says of them; 0 where one says nothing.
    """
    first = []
    for tracks, scores in scored:
        if len(tracks) > _CANDIDATES:
            tracks = tracks[np.argpartition(-scores, _CANDIDATES)[:_CANDIDATES]]
        first.append(tracks)
    union = np.unique(np.concatenate(first)) if first else np.empty(0, np.int64)
    features = np.zeros((len(union), len(scored)), np.float32)
    for column, (tracks, scores) in enumerate(scored):
        if len(tracks):
            place = np.minimum(np.searchsorted(union, tracks), len(union) - 1)
            inside = union[place] == tracks
            features[place[inside], column] = scores[inside] / scores.max()
    return Candidates(union, features)


def blended(found: Candidates, weights: F64) -> Scored:
    """Scores candidates.

    Args:
        found: of a moment.
        weights: (scorers,) at least 0.

    Returns:
        The tracks with a score above 0, and the scores.
    """
    scores = found.features.astype(np.float64) @ weights
    some = scores > 0
    return found.tracks[some], scores[some]


def fit_weights(
    found: Sequence[Candidates], wanted: Sequence[I64], users: I64, start: F64, k: int = 10
) -> tuple[F64, float]:
    """Chooses weights, one scorer after the other, as long as NDCG@k grows.

    Args:
        found: the candidates of q moments.
        wanted: the targets of each.
        users: (q,) whose moment it is.
        start: (scorers,) weights to start from; the outcome is at least as good.
        k: places that count.

    Returns:
        (scorers,) weights and their NDCG@k, mean over users.
    """
    asked = [n for n, targets in enumerate(wanted) if len(targets)]
    if not asked:
        return start, 0.0
    width = max(k + 1, *(len(found[n].tracks) for n in asked))
    features = np.zeros((len(start), len(asked), width), np.float32)
    relevant = np.zeros((len(asked), width), np.bool_)
    for row, n in enumerate(asked):
        features[:, row, : len(found[n].tracks)] = found[n].features.T
        relevant[row, : len(found[n].tracks)] = np.isin(found[n].tracks, wanted[n])
    sizes = np.array([len(wanted[n]) for n in asked])
    _, place = np.unique(users[asked], return_inverse=True)
    count = np.bincount(place)

    def ndcg(scores: F32) -> float:
        return float((np.bincount(place, ndcg_of(scores, relevant, sizes, k)) / count).mean())

    weights = start.copy()
    total = np.tensordot(weights.astype(np.float32), features, 1)
    best = ndcg(total)
    for _ in range(_ROUNDS):
        before = best
        for scorer in range(len(weights)):
            rest = total - np.float32(weights[scorer]) * features[scorer]
            for weight in _WEIGHTS:
                tried = ndcg(rest + np.float32(weight) * features[scorer])
                if tried > best:
                    best, weights[scorer] = tried, weight
            total = rest + np.float32(weights[scorer]) * features[scorer]
        if best <= before:
            break
    return weights, best


def ndcg_of(scores: F32, relevant: npt.NDArray[np.bool_], sizes: I64, k: int) -> F64:
    """Computes NDCG@k of scored candidates.

    Args:
        scores: (q, c), c more than k.
        relevant: (q, c) bool.
        sizes: (q,) how many targets there are, candidates or not.
        k: places that count.

    Returns:
        (q,).
    """
    top = np.argpartition(-scores, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable")
    hits = np.take_along_axis(relevant, np.take_along_axis(top, order, 1), 1)
    gain = 1 / np.log2(np.arange(2, k + 2))
    return np.asarray((hits * gain).sum(axis=1) / np.cumsum(gain)[np.minimum(sizes, k) - 1])
