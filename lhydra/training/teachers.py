"""Teachers for knowledge distillation (Hinton et al. 2015): two closed-form recommenders, fitted in seconds.

The towers start from them and learn from them, beside the plays. Both are fitted on the train fold.

- `Factors`: iALS (Hu, Koren & Volinsky 2008; regularised and tuned as in Rendle et al. 2021), through `implicit`.
  Its item factors, and a linear map from history sums to user factors, are what the towers start as.
- the co-listening table: for each track, ridge regression of its plays on those of its `width` nearest tracks by
  cosine (SLIM, Ning & Karypis 2011) with the count-proportional penalty of EDLAE (Steck 2020). No n x n inverse.

Both score a user from the plays that are shown, never from the hidden ones. Their mixture, weighted by likelihood on
the validation fold, is the teacher of the retrieval softmax. Only the table is served, in the bundle.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from lhydra.bundle.model import Chosen
from lhydra.domain import F32, I64
from lhydra.evaluation.metrics import rank_metrics
from lhydra.features.histories import Histories, offsets_of, play_weights, relative_weights, spans
from lhydra.timing import timed
from lhydra.training import ridge
from lhydra.training.data import Targets, TrainingData, select
from lhydra.training.losses import softmax_loss
from lhydra.training.progress import Report, TeacherTried, unreported

# (width, reg, alpha) tried
IALS_SETTINGS = ((32, 20.0, 4.0), (64, 20.0, 4.0), (64, 40.0, 10.0), (128, 60.0, 8.0), (128, 40.0, 40.0))
IALS_SMOOTH = (128, 100.0, 20.0)  # tried too, and taken where it is better by WORTH: towers learn less from its start
WORTH = 1.02
TABLE_PENALTIES = ((50.0, 0.5), (300.0, 0.0))  # (constant, share of the track's own weight) tried
NEIGHBOURS, NEIGHBOURS_LARGE = 128, 64  # neighbours per track, up to and beyond LARGE_CATALOGUE tracks
LARGE_CATALOGUE = 50_000
MAX_TUNED_PLAYS = 2_000_000  # beyond, the first setting of each grid but one is taken unmeasured
TUNING_USERS, TUNING_TRACKS = 1_000, 10_000
MIX_SHARES, MIX_SCALES = (0.0, 0.25, 0.5, 0.75), (8.0, 12.0, 16.0, 24.0)  # of the mixture
SHARPENING = 1.75  # than the likelihood says: the top of the teachers' lists is what is worth learning
UNMEASURED_MIX = (8.0, 8.0)
MAX_PLAYS_PER_USER = 500  # plays of a user that the table is fitted on, drawn at random from more


@dataclass(frozen=True)
class Factors:
    """iALS. item: (n, f); gram: (f, f) item.T @ item + reg; user_map: (f, f) from weighted history sums to users."""

    item: F32
    gram: F32
    alpha: float
    user_map: F32

    def users(self, plays: sp.csr_matrix) -> F32:
        """Solves for user factors exactly (Hu, Koren & Volinsky 2008, equation 4).

        Args:
            plays: (B, n) weights.

        Returns:
            (B, f) float32.
        """
        item, gram = torch.from_numpy(self.item), torch.from_numpy(self.gram)
        left, right = gram.repeat(plays.shape[0], 1, 1), torch.zeros(plays.shape[0], len(gram))
        for i, (start, end) in enumerate(pairwise(plays.indptr)):
            played = item[torch.from_numpy(plays.indices[start:end].astype(np.int64))]  # (m, f)
            confidence = torch.from_numpy((plays.data[start:end] * self.alpha).astype(np.float32))[:, None]
            left[i].addmm_(played.T, (confidence - 1) * played)
            right[i] = (confidence * played).sum(0)
        return np.asarray(torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky(left))[:, :, 0].numpy())

    def start(self, plays: sp.csr_matrix) -> tuple[F32, F32, F32]:
        """Makes what the towers start from.

        Args:
            plays: (B, n) weights, of all users.

        Returns:
            Item vectors (n, f), history vectors (n, f) whose weighted sums are user vectors of about unit length, and
            the mean user (f,); float32 each.
        """
        history = self.item @ self.user_map
        size = np.sqrt(np.maximum(np.asarray(plays.multiply(plays).sum(1)), 1e-9))
        users = np.asarray(plays @ history) / size
        length = float(np.linalg.norm(users, axis=1).mean())
        mean = users.mean(0) / max(float(np.linalg.norm(users.mean(0))), 1e-9)
        return self.item, history / max(length, 1e-9), mean.astype(np.float32)


@dataclass(frozen=True)
class Table:
    """Co-listening. neighbours, weights: (n, width); matrix: the same, (n, n), from heard to candidate."""

    neighbours: npt.NDArray[np.int32]
    weights: F32
    matrix: sp.csr_matrix

    @classmethod
    def of(cls, neighbours: npt.NDArray[np.int32], weights: F32) -> "Table":
        """Makes a table.

        Args:
            neighbours: (n, width) int32 rows.
            weights: (n, width) float32, rounded to float16 as the bundle keeps them.

        Returns:
            The table.
        """
        n = len(neighbours)
        weights = weights.astype(np.float16).astype(np.float32)
        to, place = np.nonzero(weights)  # most tracks of a large catalogue have no neighbours
        matrix = sp.csr_matrix((weights[to, place], (neighbours[to, place], to)), shape=(n, n))
        return cls(neighbours, weights, matrix)


@dataclass(frozen=True)
class Teachers:
    """The fitted teachers of a dataset of n tracks.

    mix: weights of table and factors in the teacher's logits. start: what the towers start as, see `Factors.start`.
    ials, penalty: the settings of factors and table, of IALS_SETTINGS and TABLE_PENALTIES.
    """

    table: Table
    factors: Factors
    mix: tuple[float, float]
    start: tuple[F32, F32, F32]
    ials: tuple[float, ...]
    penalty: tuple[float, ...]

    def logits(self, seen: Histories, rows: I64 | None = None) -> Tensor:
        """Scores tracks for users.

        Args:
            seen: what B users have played.
            rows: (R,) int64 tracks; None for all.

        Returns:
            (B, R) float32 logits of the mixture.
        """
        plays = matrix(seen, len(self.factors.item))
        item = self.factors.item if rows is None else self.factors.item[rows]
        scores = (self.mix[1] * self.factors.users(plays)) @ item.T
        together = plays @ self.table.matrix
        user = np.repeat(np.arange(len(scores)), np.diff(together.indptr))
        column, weight = together.indices, together.data
        if rows is not None:  # to look up where each track went is faster than to cut columns out of a sparse matrix
            place = np.full(len(self.factors.item), -1, np.int32)
            place[rows] = np.arange(len(rows))
            column = place.take(column)
            known = np.flatnonzero(column >= 0)  # a tenth of them
            user, column, weight = (part.take(known) for part in (user, column, weight))
        scores[user, column] += self.mix[0] * weight
        return torch.from_numpy(scores)


def parts(table: Table, factors: Factors, seen: Histories, rows: I64) -> tuple[F32, F32]:
    """Scores tracks for users by each of the two.

    Args:
        table: the co-listening table.
        factors: iALS.
        seen: what B users have played.
        rows: (R,) int64 tracks.

    Returns:
        (B, R) float32 scores of the table, and of the factors.
    """
    plays = matrix(seen, len(factors.item))
    return (plays @ table.matrix)[:, rows].toarray(), factors.users(plays) @ factors.item[rows].T


def matrix(histories: Histories, n_tracks: int) -> sp.csr_matrix:
    """Makes a sparse matrix of plays.

    Args:
        histories: of B users.
        n_tracks: columns.

    Returns:
        (B, n) float32 relative weights of the plays.
    """
    weight, n = relative_weights(play_weights(histories.counts), histories.offsets), len(histories.offsets) - 1
    return sp.csr_matrix((weight, histories.rows, histories.offsets), shape=(n, n_tracks))


@timed("train.teachers")
def fit(
    data: TrainingData,
    dim: int,
    seed: int,
    report: Report = unreported,
    like: Chosen | None = None,
    threads: int = 0,
) -> Teachers:
    """Fits both teachers on the train fold, their settings chosen by NDCG@10 on the validation fold.

    Args:
        data: train plays to fit on, validation plays to choose by.
        dim: of the vectors that are to start from the factors, which are narrower.
        seed: of everything random.
        report: told about every setting.
        like: settings and mixture of a training before, to take instead of choosing.
        threads: that fit; they decide nothing but the time. 0 takes as many as torch has.

    Returns:
        The teachers. Without validation plays, and beyond MAX_TUNED_PLAYS train plays, one setting of each is taken
        unmeasured.
    """
    with threadpool_limits(limits=1, user_api="blas"):  # many small systems: threads would only wait for each other
        return _fit(data, dim, seed, report, like, threads)


def _fit(data: TrainingData, dim: int, seed: int, report: Report, like: Chosen | None, threads: int) -> Teachers:
    users = np.flatnonzero(np.diff(data.train.offsets) > 0)
    train = select(data.train, users)
    plays = matrix(train, data.n_tracks)
    valid = _sample(data.valid, seed)
    shown = select(data.train, valid.users)
    tuned = like is None and len(valid.users) > 0 and plays.nnz <= MAX_TUNED_PLAYS
    grid: Sequence[tuple[float, ...]] = (*IALS_SETTINGS, IALS_SMOOTH) if tuned else IALS_SETTINGS[2:3]
    penalties: Sequence[tuple[float, ...]] = TABLE_PENALTIES if tuned else TABLE_PENALTIES[:1]
    if like is not None:
        grid, penalties = (tuple(like["ials"]),), (tuple(like["co-listening"]),)

    def measured(scores: Callable[[sp.csr_matrix], F32]) -> float:
        return _ndcg(scores, shown, valid, data.n_tracks) if tuned else 0.0

    tried: list[tuple[float, Factors, tuple[float, ...]]] = []
    for width, reg, alpha in dict.fromkeys((min(int(width), dim - 1), reg, alpha) for width, reg, alpha in grid):
        factors = _factors(plays, width, reg, alpha, seed, threads)
        quality = measured(lambda block, f=factors: _mapped(f, block) @ f.item.T)  # type: ignore[misc]
        tried.append((quality, factors, (width, reg, alpha)))
        report(TeacherTried(teacher="ials", setting=(width, reg, alpha), ndcg=quality))
    _, factors, ials = max(tried, key=lambda one: one[0] / (WORTH if one[2][1:] == IALS_SMOOTH[1:] else 1.0))

    thinned = _thinned(train, np.random.default_rng([seed, 2]), data.n_tracks)
    tables: list[tuple[float, Table, tuple[float, ...]]] = []
    for penalty, table in zip(penalties, _tables(thinned, penalties, threads), strict=True):
        quality = measured(lambda block, t=table: (block @ t.matrix).toarray())  # type: ignore[misc]
        tables.append((quality, table, penalty))
        report(TeacherTried(teacher="co-listening", setting=penalty, ndcg=quality))
    _, table, penalty = max(tables, key=lambda one: one[0])

    mix = UNMEASURED_MIX if like is None else (like["mix"][0], like["mix"][1])
    if len(valid.users) and like is None:
        mix = _mixture(table, factors, shown, valid, seed)
    report(TeacherTried(teacher="mixture", setting=mix))
    return Teachers(table, factors, mix, factors.start(plays), ials, penalty)


def _ndcg(scores: Callable[[sp.csr_matrix], F32], shown: Histories, valid: Targets, n_tracks: int) -> float:
    """NDCG@10 of the plays `valid` of users who played `shown`; scores: from plays (B, n) to tracks (B, n)."""
    found = np.full((len(valid.users), 20), -1, np.int64)
    for start in range(0, len(found), 256):
        block = matrix(Histories(*_slice(shown, start, start + 256)), n_tracks)
        score = scores(block)
        score[block.nonzero()] = -np.inf
        best = np.argsort(-score, 1, kind="stable")[:, :20] if score.shape[1] <= 20 else _top(score, 20)
        found[start : start + 256, : best.shape[1]] = best
    return rank_metrics(found, valid.offsets, valid.rows, n_tracks).means()["ndcg@10"]


def _mapped(factors: Factors, plays: sp.csr_matrix) -> F32:
    """User factors by the linear map: what an untrained user tower gives."""
    size = np.sqrt(np.maximum(plays.multiply(plays).sum(1), 1e-9))
    return np.asarray(np.asarray(plays @ factors.item) / np.asarray(size) @ factors.user_map)


def _factors(plays: sp.csr_matrix, width: int, reg: float, alpha: float, seed: int, threads: int = 0) -> Factors:
    with warnings.catch_warnings():  # about the threads of OpenBLAS
        warnings.simplefilter("ignore")
        from implicit.als import AlternatingLeastSquares

        logging.getLogger("implicit").setLevel(logging.ERROR)
        threads = threads or torch.get_num_threads()
        model = AlternatingLeastSquares(
            factors=width, regularization=reg, alpha=alpha, iterations=15, random_state=seed, num_threads=threads
        )
        model.fit(plays, show_progress=False)
    item, users = np.asarray(model.item_factors), np.asarray(model.user_factors)
    gram = item.T @ item + reg * np.eye(width, dtype=np.float32)
    size = np.sqrt(np.maximum(np.asarray(plays.multiply(plays).sum(1)), 1e-9))
    length = np.maximum(np.linalg.norm(users, axis=1, keepdims=True), 1e-6)  # every user counts the same
    sums = np.asarray(plays @ item) / size
    user_map = np.linalg.lstsq(sums / length, users / length, rcond=None)[0]
    return Factors(item, gram.astype(np.float32), alpha, user_map.astype(np.float32))


def _tables(plays: sp.csr_matrix, penalties: Sequence[tuple[float, ...]], threads: int = 0) -> list[Table]:
    """The co-listening table of plays (users, n), for each (constant, share) of the penalty."""
    n, threads = plays.shape[1], threads or torch.get_num_threads()
    width = max(min(NEIGHBOURS if n <= LARGE_CATALOGUE else NEIGHBOURS_LARGE, n - 1), 0)
    found = ridge.nearest(plays, width, threads)
    return [Table.of(found.neighbours, weights) for weights in ridge.regressed(found, penalties, threads)]


def _thinned(train: Histories, rng: np.random.Generator, n_tracks: int) -> sp.csr_matrix:
    """Plays (users, n), of a user with more than MAX_PLAYS_PER_USER a random choice."""
    lengths = np.diff(train.offsets)
    keep = rng.random(len(train.rows)) < np.repeat(MAX_PLAYS_PER_USER / np.maximum(lengths, 1), lengths)
    return matrix(select(train, np.arange(len(lengths)), keep), n_tracks)


@timed("train.mixture")
def _mixture(table: Table, factors: Factors, shown: Histories, valid: Targets, seed: int) -> tuple[float, float]:
    """Weights (table, factors): the share by NDCG@10 of the validation plays, then the scale by their likelihood.

    Likelihood alone, which the far tail decides, would leave out the table.
    """
    n = len(factors.item)
    drawn = np.random.default_rng([seed, 3]).permutation(n)[:TUNING_TRACKS]
    rows = np.union1d(drawn, valid.rows)
    together, factored = parts(table, factors, shown, rows)
    wanted = np.zeros(together.shape, np.bool_)
    targets = np.searchsorted(rows, valid.rows)
    wanted[np.repeat(np.arange(len(valid.users)), np.diff(valid.offsets)), targets] = True
    at = np.minimum(np.searchsorted(rows, shown.rows), len(rows) - 1)
    known = rows[at] == shown.rows
    player = np.repeat(np.arange(len(valid.users)), np.diff(shown.offsets))
    together[player[known], at[known]] = factored[player[known], at[known]] = -1e3
    by_share: dict[float, float] = {}
    for share in MIX_SHARES:
        best = _top(share * together + (1 - share) * factored, min(20, len(rows) - 1))
        by_share[share] = rank_metrics(best, valid.offsets, targets, len(rows)).means()["ndcg@10"]
    share = max(by_share, key=lambda value: by_share[value])
    mixed = torch.from_numpy(share * together + (1 - share) * factored)
    labels, nothing = torch.from_numpy(wanted), torch.zeros(wanted.shape, dtype=torch.bool)
    scale = min(MIX_SCALES, key=lambda value: softmax_loss(value * mixed, labels, nothing).item())
    scale *= SHARPENING
    return scale * share, scale * (1 - share)


def _sample(targets: Targets, seed: int) -> Targets:
    """The targets of at most TUNING_USERS users."""
    chosen = np.sort(np.random.default_rng([seed, 4]).permutation(len(targets.users))[:TUNING_USERS])
    starts, ends = targets.offsets[chosen], targets.offsets[chosen + 1]
    return Targets(targets.users[chosen], offsets_of(ends - starts), targets.rows[spans(starts, ends)])


def _slice(histories: Histories, start: int, end: int) -> tuple[I64, I64, F32, I64]:
    offsets = histories.offsets[start : end + 1]
    at = slice(offsets[0], offsets[-1])
    return offsets - offsets[0], histories.rows[at], histories.counts[at], histories.times[at]


def _top(score: F32, k: int) -> I64:
    """The k best columns of each row, best first, equal scores in the order of the columns."""
    some = np.sort(np.argpartition(-score, k, 1)[:, :k], 1)
    least = np.take_along_axis(score, some, 1).min(1, keepdims=True)
    for row in np.flatnonzero((score >= least).sum(1) > k):  # more share the last score than there is room for
        some[row] = np.sort(np.argsort(-score[row], kind="stable")[:k])
    return np.take_along_axis(some, np.argsort(-np.take_along_axis(score, some, 1), 1, kind="stable"), 1)
