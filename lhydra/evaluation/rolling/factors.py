"""iALS for rolling histories: factors of the tracks are fitted once, the user of each moment is folded in."""

import contextlib
import warnings
from typing import Any

import numpy as np

from lhydra.domain import F32, I64
from lhydra.evaluation.rolling.others import question
from lhydra.evaluation.rolling.own import Params, Scored, Scorer
from lhydra.evaluation.rolling.past import Known, Past

_TOP = 1000  # of the tracks not heard before, so many are scored


def fit_ials(past: Past, params: Params) -> Scorer:
    """Scores a track by its factors and those that the plays so far give the user (Hu, Koren and Volinsky 2008).

    Args:
        past: what is fitted on; two users at least.
        params: factors, regularization, alpha; unit and d, how the user's plays weigh by age.

    Returns:
        The scorer.
    """
    from threadpoolctl import ThreadpoolController

    wanted = (params["factors"], params["regularization"], params["alpha"])
    if wanted not in past.fits:  # ages weigh the user's plays alone, so settings of them share the factors
        past.fits[wanted] = _fitted(past, *wanted)
    factors, gram = past.fits[wanted]
    threads = ThreadpoolController()

    def score(known: Known) -> Scored:
        tracks, weights = question(known, params)
        with threads.limit(limits=1, user_api="blas"):  # products this small take longer on two cores than on one
            user = fold_in(factors[tracks], np.float32(params["alpha"]) * weights.astype(np.float32), gram)
            scores = factors @ user
        return _best(scores, tracks)

    return score


def _fitted(past: Past, factors: int, regularization: float, alpha: float) -> tuple[F32, F32]:
    """Factors of the tracks, and the regularised gram matrix of all of them."""
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    rows = past.users
    pairs = rows.event < past.seen[rows.user[rows.row]]
    shape = (len(rows.user), past.n_tracks)
    plays = csr_matrix((np.ones(int(pairs.sum()), np.float32), (rows.row[pairs], rows.track[pairs])), shape)
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from implicit.cpu.als import AlternatingLeastSquares

        model: Any = AlternatingLeastSquares(factors, regularization, alpha, random_state=0)
        with contextlib.redirect_stdout(None):
            model.fit(plays, show_progress=False)
    found = np.ascontiguousarray(model.item_factors, np.float32)
    return found, found.T @ found + np.float32(regularization) * np.eye(factors, dtype=np.float32)


def fold_in(factors: F32, confidence: F32, gram: F32) -> F32:
    """Solves for a user's factors.

    Args:
        factors: (n, f) of the tracks played.
        confidence: (n,) of each beyond 1.
        gram: (f, f) of all tracks, regularised.

    Returns:
        (f,) that minimise the weighted squared error.
    """
    scaled = factors * np.sqrt(confidence)[:, None]
    return np.asarray(np.linalg.solve(gram + scaled.T @ scaled, (1 + confidence) @ factors))


def _best(scores: F32, heard: I64) -> Scored:
    """What was heard, and the best of the rest; only scores above 0."""
    rest = scores.copy()
    rest[heard] = 0
    least = np.partition(rest, max(len(rest) - _TOP, 0))[max(len(rest) - _TOP, 0)]
    tracks = np.concatenate([heard[scores[heard] > 0], np.flatnonzero((rest >= least) & (rest > 0))])
    return tracks, scores[tracks].astype(np.float64)
