"""iALS for rolling histories: factors of the tracks are fitted once, the user of each moment is folded in."""

import contextlib
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.evaluation.rolling.others import query
from lhydra.evaluation.rolling.own import Params, Scored, Scorer
from lhydra.evaluation.rolling.past import F64, Known, Past

_TOP = 1000  # of the tracks not heard before, so many are scored


def fit_ials(past: Past, params: Params) -> Scorer:
    """Scores a track by its factors and those that the plays so far give the user (Hu, Koren and Volinsky 2008).

    Args:
        past: what is fitted on; two users at least.
        params: factors, regularization, alpha; unit and d, how the user's plays weigh by age.

    Returns:
        The scorer.
    """
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    rows = past.users
    pairs = rows.event < past.seen[rows.user[rows.row]]
    shape = (len(rows.user), past.n_tracks)
    plays = csr_matrix((np.ones(int(pairs.sum()), np.float32), (rows.row[pairs], rows.track[pairs])), shape)
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from implicit.cpu.als import AlternatingLeastSquares

        model: Any = AlternatingLeastSquares(
            params["factors"], params["regularization"], params["alpha"], random_state=0
        )
        with contextlib.redirect_stdout(None):
            model.fit(plays, show_progress=False)
    factors = np.asarray(model.item_factors, np.float64)
    gram = factors.T @ factors + params["regularization"] * np.eye(factors.shape[1])

    def score(known: Known) -> Scored:
        tracks, weights = query(known, params)
        return _best(factors @ fold_in(factors[tracks], params["alpha"] * weights, gram), tracks)

    return score


def fold_in(factors: F64, confidence: F64, gram: F64) -> F64:
    """Solves for a user's factors.

    Args:
        factors: (n, f) of the tracks played.
        confidence: (n,) of each beyond 1.
        gram: (f, f) of all tracks, regularised.

    Returns:
        (f,) that minimise the weighted squared error.
    """
    return np.asarray(np.linalg.solve(gram + (factors.T * confidence) @ factors, factors.T @ (1 + confidence)))


def _best(scores: F64, heard: npt.NDArray[np.int64]) -> Scored:
    """What was heard, and the best of the rest; only scores above 0."""
    rest = scores.copy()
    rest[heard] = 0
    top = np.argpartition(-rest, min(_TOP, len(rest) - 1))[:_TOP]
    tracks = np.union1d(heard, top[rest[top] > 0])
    tracks = tracks[scores[tracks] > 0]
    return tracks, scores[tracks]
