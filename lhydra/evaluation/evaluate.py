"""One evaluation: full-catalogue ranking of retrieval and of the served cascade, and the head as a classifier."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lhydra import __version__
from lhydra.data.dataset import TEST, VALID, Dataset
from lhydra.domain import F32, I64, track_hashes
from lhydra.errors import DataError, complain
from lhydra.evaluation.classification import Classification, classify
from lhydra.evaluation.lists import Recommends, recommend_users
from lhydra.evaluation.metrics import MRR_DEPTH, rank_metrics
from lhydra.progress import with_progress
from lhydra.timing import timed

Moment = Literal["test", "valid"]
_FOLD = {"test": TEST, "valid": VALID}


@dataclass(frozen=True)
class Targets:
    """What each evaluated user went on to play for the first time.

    users: (n,) positions in the users table, ascending. offsets: (n + 1,). tracks: (m,) positions in the tracks
    table, ascending within a user. heard_before: plays of the fold that are no targets: the track was not new.
    """

    users: I64
    offsets: I64
    tracks: I64
    heard_before: int

    def of(self, n: int) -> slice:
        """Returns where in `tracks` the targets of the n-th user are."""
        return slice(self.offsets[n], self.offsets[n + 1])

    def sample(self, n: int, seed: int) -> "Targets":
        """Returns the targets of n users drawn at random; of all when there are no more than n."""
        drawn = np.random.default_rng(seed).permutation(len(self.users))[:n]
        drawn.sort()
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[drawn])]).astype(np.int64)
        tracks = np.concatenate([self.tracks[self.of(user)] for user in drawn])
        return Targets(self.users[drawn], offsets, tracks, self.heard_before)


@dataclass(frozen=True)
class Evaluation:
    """Every number of one evaluation, and the protocol it was measured under."""

    protocol: dict[str, Any]
    counts: dict[str, int]
    ranking: dict[str, dict[str, float]]  # stage (retrieval, cascade) -> metric -> mean over users
    head: Classification

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; an undefined number is null."""
        return asdict(self)


def find_targets(dataset: Dataset, as_of: Moment) -> Targets:
    """Returns the targets of every user who has one. Raises DataError when nobody has."""
    plays, n_tracks = dataset.plays, len(dataset.track_ids)
    keys = plays.user.astype(np.int64) * n_tracks + plays.track
    later = np.unique(keys[plays.fold == _FOLD[as_of]])
    place = f"{dataset.path}: {as_of} fold"
    if len(later) == 0:
        raise DataError(complain(place, "no plays", "plays to rank for; try another --split of `lhydra prepare`"))
    new = later[~np.isin(later, keys[plays.fold < _FOLD[as_of]])]
    if len(new) == 0:
        raise DataError(complain(place, "only tracks heard before", "tracks new to their users"))
    users, counts = np.unique(new // n_tracks, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Targets(users, offsets, new % n_tracks, len(later) - len(new))


def draw_negatives(dataset: Dataset, targets: Targets, known: npt.NDArray[np.bool_], as_of: Moment, seed: int) -> I64:
    """Returns one negative per target, (m,) positions in the tracks table, -1 where the user played everything.

    Uniform over the `known` tracks, (tracks,) bool, that the user did not play up to and including the fold that
    is predicted. The draw depends on seed, user and catalogue alone, so that every model meets the same negatives.
    """
    plays = dataset.plays
    starts = np.searchsorted(plays.user, np.arange(len(dataset.user_ids) + 1))
    pool = np.flatnonzero(known)
    in_pool = np.cumsum(known) - 1
    negatives = np.full(len(targets.tracks), -1, np.int64)
    for n, user in enumerate(targets.users):
        own = slice(starts[user], starts[user + 1])
        played = np.unique(plays.track[own][plays.fold[own] <= _FOLD[as_of]])
        taken = in_pool[played[known[played]]]
        if len(taken) < len(pool):
            span = targets.of(n)
            drawn = np.random.default_rng([seed, user]).integers(len(pool) - len(taken), size=span.stop - span.start)
            # the d-th free track comes after every taken one with at most d free tracks before it
            skipped = np.searchsorted(taken - np.arange(len(taken)), drawn, side="right")
            negatives[span] = pool[drawn + skipped]
    return negatives


@timed("evaluate")
def evaluate(
    recommender: Recommends,
    dataset: Dataset,
    *,
    as_of: Moment = "test",
    ks: Sequence[int] = (10, 20),
    users: int = 0,
    seed: int = 0,
) -> Evaluation:
    """Returns the evaluation of `recommender` on the users with targets, or on `users` of them drawn by `seed`.

    Raises:
        DataError: nobody has a target, or none of the dataset's tracks is in the recommender's catalog.
    """
    targets = find_targets(dataset, as_of)
    if users:
        targets = targets.sample(users, seed)
    catalog = recommender.catalog
    rows = catalog.rows(track_hashes(dataset.track_ids))
    if not (rows >= 0).any():
        raise DataError(complain(dataset.path, "no track of the catalogue", "the dataset that was trained on"))
    lists, labels, probabilities = _run(recommender, dataset, targets, rows, as_of, max(*ks, MRR_DEPTH), seed)

    # a track that the catalogue lacks gets a number beyond it: a target that no list can hit
    wanted = np.where(rows >= 0, rows, len(catalog) + np.arange(len(rows)))[targets.tracks]
    wanted = wanted[np.lexsort((wanted, np.repeat(targets.users, np.diff(targets.offsets))))]
    ranking = {
        stage: rank_metrics(found, targets.offsets, wanted, len(catalog), ks).means() for stage, found in lists.items()
    }
    return Evaluation(
        protocol={
            "split": dataset.info.split,
            "as_of": as_of,
            "ks": list(ks),
            "mrr_depth": MRR_DEPTH,
            "users": users or "all",
            "seed": seed,
            "ranked": "the whole catalogue without what the user heard",
            "targets": f"tracks of the {as_of} fold that the user had not heard",
            "negatives": f"one uniformly random unheard track per {as_of} play, seed {seed}",
            "lhydra_version": __version__,
        },
        counts={
            "users": len(targets.users),
            "users_without_list": int((lists["cascade"][:, 0] < 0).sum()),
            "targets": len(wanted),
            "targets_not_in_catalogue": int((wanted >= len(catalog)).sum()),
            "heard_before": targets.heard_before,
            "catalogue": len(catalog),
        },
        ranking=ranking,
        head=classify(labels, probabilities),
    )


def _run(
    recommender: Recommends, dataset: Dataset, targets: Targets, rows: I64, as_of: Moment, k: int, seed: int
) -> tuple[dict[str, I64], npt.NDArray[np.bool_], F32]:
    """(lists (n, k) by stage, labels, probabilities) of one pass over the users; rows: of the dataset's tracks."""
    negatives = draw_negatives(dataset, targets, rows >= 0, as_of, seed)
    lists = {stage: np.full((len(targets.users), k), -1, np.int64) for stage in ("retrieval", "cascade")}
    labels, probabilities = [np.empty(0, np.bool_)], [np.empty(0, np.float32)]
    answers = recommend_users(recommender, dataset, as_of, k, positions=targets.users)
    for n, (_, state, answer) in enumerate(with_progress(answers, len(targets.users), "evaluating users")):
        lists["retrieval"][n, : len(answer.candidates[:k])] = answer.candidates[:k]
        lists["cascade"][n, : len(answer.rows)] = answer.rows
        positive, negative = rows[targets.tracks[targets.of(n)]], negatives[targets.of(n)]
        negative = rows[negative[(positive >= 0) & (negative >= 0)]]
        positive = positive[positive >= 0]
        if len(positive):
            probabilities.append(recommender.score(state, np.concatenate([positive, negative])))
            labels.append(np.arange(len(positive) + len(negative)) < len(positive))
    return lists, np.concatenate(labels), np.concatenate(probabilities)
