"""Beyond accuracy: what the served top 10 show of the catalogue, how alike they are, how popular and how varied.

popularity lift   mean train listeners of a list over those of its user's history, mean over users; 1: no lift
overlap           share in common of the top 10 of two users drawn at random
diversity         1 - mean cosine of the retrieval vectors of two tracks of a list (Ziegler et al. 2005)
novelty           mean -log2 of the share of train users who played the track, one at least (Vargas 2011)
calibration       KL of the genres of a history from those of the list, smoothed by 0.01 (Steck 2018); 0: equal
"""

from typing import Any

import numpy as np

from lhydra.data.dataset import TRAIN, Dataset
from lhydra.domain import F32, I64
from lhydra.evaluation.cohorts import genre_shares, genres, train_counts
from lhydra.evaluation.document import BeyondAccuracy
from lhydra.evaluation.run import Run

K = 10
SAME_LISTS = 0.6  # overlap from which the lists hardly depend on the user
_PAIRS = 10_000
_SMOOTHING = 0.01
_USERS = 2000  # at most, drawn at random, whose genres and vectors are looked at
_MAX_SHARES = 1 << 24  # genre shares held at a time


def beyond_accuracy(dataset: Dataset, run: Run, vectors: F32 | None, seed: int) -> BeyondAccuracy:
    """Computes `beyond_accuracy` of the document for the cascade.

    Args:
        dataset: whose plays tell popularity and genres.
        run: its served lists.
        vectors: (catalogue, dim) of unit norm, None when the catalog has none: diversity is then null.
        seed: of the pairs and users drawn.

    Returns:
        The figures, and alarms where two users' lists are nearly the same.
    """
    top = run.lists["cascade"][:, :K]
    listeners, _ = train_counts(dataset)
    by_row = np.zeros(run.catalogue_size, np.int64)
    by_row[run.rows[run.rows >= 0]] = listeners[run.rows >= 0]
    plays = dataset.plays
    train_users = max(1, len(np.unique(plays.user[plays.fold == TRAIN])))
    overlap = inter_user_overlap(top, seed)
    shown = top[top >= 0]
    alarms = []
    if overlap is not None and overlap >= SAME_LISTS:
        alarms.append(
            f"two users have {overlap:.0%} of their top {K} in common: the lists hardly depend on who is asking"
        )
    return {
        "coverage@10": len(np.unique(shown)) / run.catalogue_size,
        "popularity_lift": _popularity_lift(dataset, run, listeners, by_row),
        "inter_user_overlap": overlap,
        "intra_list_diversity": None
        if vectors is None
        else intra_list_diversity(top[_some(len(top), _USERS, seed)], vectors),
        "novelty": float(-np.log2(np.maximum(by_row[shown], 1) / train_users).mean()) if len(shown) else None,
        "genre_calibration": _genre_calibration(dataset, run, seed),
        "alarms": alarms,
    }


def inter_user_overlap(top: I64, seed: int) -> float | None:
    """Computes the mean share in common of two users' lists.

    Args:
        top: (n, k) rows, -1 padded.
        seed: of the pairs of users with a list.

    Returns:
        0 to 1; None with fewer than two lists.
    """
    top = top[(top >= 0).any(axis=1)]
    if len(top) < 2:
        return None
    rng = np.random.default_rng(seed)
    a = rng.integers(len(top), size=_PAIRS)
    b = (a + rng.integers(1, len(top), size=_PAIRS)) % len(top)  # never the same user
    common = ((top[a][:, :, None] == top[b][:, None, :]) & (top[a] >= 0)[:, :, None]).sum(axis=(1, 2))
    shorter = np.minimum((top[a] >= 0).sum(axis=1), (top[b] >= 0).sum(axis=1))
    return float((common / shorter).mean())


def intra_list_diversity(top: I64, vectors: F32) -> float | None:
    """Computes 1 - the mean cosine of two different tracks of a list.

    Args:
        top: (n, k) rows, -1 padded.
        vectors: (catalogue, dim) of unit norm.

    Returns:
        The mean over lists of 2 tracks or more; None without any.
    """
    sizes = (top >= 0).sum(axis=1)
    top, sizes = top[sizes >= 2], sizes[sizes >= 2]
    if not len(top):
        return None
    total = np.empty(len(top))
    for start in range(0, len(top), 256):
        some = top[start : start + 256]
        summed = (vectors[np.maximum(some, 0)].astype(np.float64) * (some >= 0)[:, :, None]).sum(axis=1)
        total[start : start + 256] = (summed**2).sum(axis=1)  # of all pairs, each track with itself among them
    return float(1 - ((total - sizes) / (sizes * (sizes - 1))).mean())


def kl_calibration(history: Any, shown: Any) -> float | None:
    """Computes the mean KL divergence of the genres of lists from those of histories (Steck 2018).

    Args:
        history: (n, genres) shares; a row of a user without genres is 0.
        shown: (n, genres) shares of the same users' lists.

    Returns:
        The mean over users with both; None without any.
    """
    both = history.any(axis=1) & shown.any(axis=1)
    p, q = history[both], (1 - _SMOOTHING) * shown[both] + _SMOOTHING * history[both]
    if not len(p):
        return None
    terms = np.zeros_like(p)
    np.divide(p, q, out=terms, where=p > 0)
    np.log(terms, out=terms, where=p > 0)
    return float((p * terms).sum(axis=1).mean())


def _some(n: int, most: int, seed: int) -> I64:
    """At most `most` of n users, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


def _popularity_lift(dataset: Dataset, run: Run, listeners: I64, by_row: I64) -> float | None:
    users, top = run.targets.users, run.lists["cascade"][:, :K]
    fed = dataset.plays.fold == TRAIN
    own, track = dataset.plays.user[fed], dataset.plays.track[fed]
    n = len(dataset.user_ids)
    played = np.bincount(own, minlength=n)[users]
    in_history = np.bincount(own, listeners[track], n)[users] / np.maximum(played, 1)
    sizes = (top >= 0).sum(axis=1)
    in_list = (by_row[np.maximum(top, 0)] * (top >= 0)).sum(axis=1) / np.maximum(sizes, 1)
    both = (played > 0) & (sizes > 0)
    return float((in_list[both] / in_history[both]).mean()) if both.any() else None


def _genre_calibration(dataset: Dataset, run: Run, seed: int) -> float | None:
    found = genres(dataset)
    if found is None or not len(found[0]):
        return None
    names, offsets, held = found
    some = _some(len(run.targets), min(_USERS, max(1, _MAX_SHARES // len(names))), seed)
    users, top, n = run.targets.users[some], run.lists["cascade"][some, :K], len(some)
    plays = dataset.plays
    fed = (plays.fold == TRAIN) & np.isin(plays.user, users)
    history = genre_shares(np.searchsorted(users, plays.user[fed]), plays.track[fed], n, offsets, held, len(names))
    track_of = np.full(run.catalogue_size, -1, np.int64)
    track_of[run.rows[run.rows >= 0]] = np.flatnonzero(run.rows >= 0)
    tracks = np.where(top >= 0, track_of[np.maximum(top, 0)], -1)
    place, _ = np.nonzero(tracks >= 0)
    shown = genre_shares(place, tracks[tracks >= 0], n, offsets, held, len(names))
    return kl_calibration(history, shown)
