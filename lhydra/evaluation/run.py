"""One pass over the users of a dataset: what they went on to play, what they were recommended, how good it was."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from lhydra.console import with_progress
from lhydra.data.dataset import TEST, VALID, Dataset, Mask
from lhydra.domain import F32, I64
from lhydra.errors import DataError, complain
from lhydra.evaluation.lists import Recommends, recommend_users
from lhydra.evaluation.metrics import MRR_DEPTH, RankMetrics, rank_metrics
from lhydra.evaluation.sources import Tally
from lhydra.evaluation.sources import note as note_sources
from lhydra.evaluation.ties import Ties, none_yet, note

Moment = Literal["test", "valid"]
FOLD = {"test": TEST, "valid": VALID}


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

    def __len__(self) -> int:
        return len(self.users)

    def of(self, n: int) -> slice:
        """Finds the targets of a user.

        Args:
            n: place of the user.

        Returns:
            Where in `tracks` they are.
        """
        return slice(self.offsets[n], self.offsets[n + 1])

    def sample(self, n: int, seed: int) -> "Targets":
        """Draws users at random.

        Args:
            n: how many at most.
            seed: of the draw.

        Returns:
            Their targets.
        """
        drawn = np.random.default_rng(seed).permutation(len(self.users))[:n]
        return self.take(np.sort(drawn))

    def only(self, mask: npt.NDArray[np.bool_]) -> "Targets":
        """Keeps some of the targets.

        Args:
            mask: (m,) bool by target.

        Returns:
            Those, of the users who have any.
        """
        sizes = np.add.reduceat(mask, self.offsets[:-1], dtype=np.int64) if len(self) else np.empty(0, np.int64)
        kept = sizes > 0
        offsets = np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.int64)
        return Targets(self.users[kept], offsets, self.tracks[mask], self.heard_before)

    def take(self, chosen: I64) -> "Targets":
        """Takes some of the users.

        Args:
            chosen: (c,) ascending places among the users here.

        Returns:
            Their targets.
        """
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[chosen])]).astype(np.int64)
        tracks = np.concatenate([np.empty(0, np.int64), *(self.tracks[self.of(user)] for user in chosen)])
        return Targets(self.users[chosen], offsets, tracks, self.heard_before)


@dataclass(frozen=True)
class Run:
    """What came of asking a recommender for every user with targets, n of them, once.

    rows: (tracks,) catalog row of each track of the dataset, -1 where the catalog lacks it.
    wanted: (m,) catalog rows of the targets, ascending within a user (user u: targets.of(u)); a track that the
    catalog lacks has a number from catalogue_size on: a target that no list can hit.
    lists: stage -> (n, K) catalog rows, best first, -1 padded; `cascade`, `retrieval`, later `head` and baselines.
    candidates: (n, depth) int32 catalog rows that the cascade reranked, in retrieval order, -1 padded.
    tiers: (n,) int8 values of `Tier`.
    metrics: stage -> its metrics by user; a user whose list was not asked for (head alone, a sample) has NaN.
    labels, probabilities: (pairs,) what the head says of the targets and of one drawn negative each.
    ties: of the cascade, the users' lists in other orders of equal scores.
    found_by: what the sources of candidates brought.
    """

    as_of: Moment
    targets: Targets
    rows: I64
    wanted: I64
    catalogue_size: int
    lists: dict[str, I64]
    candidates: npt.NDArray[np.int32]
    tiers: npt.NDArray[np.int8]
    metrics: dict[str, RankMetrics]
    labels: npt.NDArray[np.bool_]
    probabilities: F32
    ties: Ties
    mask: Mask = "seen"
    found_by: Tally = field(default_factory=dict)


def find_targets(dataset: Dataset, as_of: Moment, mask: Mask = "seen") -> Targets:
    """Finds what users went on to play for the first time.

    Args:
        dataset: a prepared dataset.
        as_of: the fold whose plays are asked for.
        mask: whether tracks of any earlier fold are no targets, or of train alone.

    Returns:
        The targets of every user who has one.

    Raises:
        DataError: nobody has one.
    """
    plays, n_tracks = dataset.plays, dataset.n_tracks
    keys = plays.user.astype(np.int64) * n_tracks + plays.track
    later = np.unique(keys[plays.fold == FOLD[as_of]])
    place = f"{dataset.path}: {as_of} fold"
    if len(later) == 0:
        raise DataError(complain(place, "no plays", "plays to rank for; try another --split of `lhydra prepare`"))
    new = later[~np.isin(later, keys[plays.fold < masked_from(as_of, mask)])]
    if len(new) == 0:
        raise DataError(complain(place, "only tracks heard before", "tracks new to their users"))
    users, counts = np.unique(new // n_tracks, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Targets(users, offsets, new % n_tracks, len(later) - len(new))


def masked_from(as_of: Moment, mask: Mask) -> int:
    """Finds what is left out of lists.

    Args:
        as_of: the fold that is predicted.
        mask: all folds before it, or train alone.

    Returns:
        The first fold that is not left out.
    """
    return VALID if mask == "train" else FOLD[as_of]


def draw_negatives(dataset: Dataset, targets: Targets, known: npt.NDArray[np.bool_], as_of: Moment, seed: int) -> I64:
    """Draws one negative per target, uniformly over the tracks that the user did not play up to and with the fold.

    The draw depends on seed, user and catalogue alone, so that every model meets the same negatives.

    Args:
        dataset: a prepared dataset.
        targets: what each user went on to play.
        known: (tracks,) bool, what may be drawn.
        as_of: the fold that is predicted.
        seed: of the draw.

    Returns:
        (m,) positions in the tracks table, -1 where the user played everything.
    """
    plays = dataset.plays
    starts = np.searchsorted(plays.user, np.arange(len(dataset.user_ids) + 1))
    pool = np.flatnonzero(known)
    in_pool = np.cumsum(known) - 1
    negatives = np.full(len(targets.tracks), -1, np.int64)
    for n, user in enumerate(targets.users):
        own = slice(starts[user], starts[user + 1])
        played = np.unique(plays.track[own][plays.fold[own] <= FOLD[as_of]])
        taken = in_pool[played[known[played]]]
        if len(taken) < len(pool):
            span = targets.of(n)
            drawn = np.random.default_rng([seed, user]).integers(len(pool) - len(taken), size=span.stop - span.start)
            # the d-th free track comes after every taken one with at most d free tracks before it
            skipped = np.searchsorted(taken - np.arange(len(taken)), drawn, side="right")
            negatives[span] = pool[drawn + skipped]
    return negatives


def ask(
    recommender: Recommends,
    dataset: Dataset,
    targets: Targets,
    *,
    as_of: Moment,
    ks: Sequence[int],
    seed: int,
    mask: Mask = "seen",
) -> Run:
    """Asks a recommender for every user with targets.

    Args:
        recommender: what is evaluated.
        dataset: whose users are asked for.
        targets: what each of them went on to play.
        as_of: the fold of the targets.
        ks: list lengths at which metrics are computed.
        seed: of the negatives.
        mask: what is left out of the lists.

    Returns:
        The answers, with metrics.

    Raises:
        DataError: none of the dataset's tracks is in the recommender's catalog.
    """
    catalog, n = recommender.catalog, len(targets)
    rows = catalog.rows(dataset.hashes)
    if not (rows >= 0).any():
        raise DataError(complain(dataset.path, "no track of the catalogue", "the dataset that was trained on"))
    negatives = draw_negatives(dataset, targets, rows >= 0, as_of, seed)
    k = max(*ks, MRR_DEPTH)
    lists = {stage: np.full((n, k), -1, np.int64) for stage in ("cascade", "retrieval")}
    candidates, tiers = [], np.zeros(n, np.int8)
    labels, probabilities = [np.empty(0, np.bool_)], [np.empty(0, np.float32)]
    ties, found_by = none_yet(n), Tally()
    answers = recommend_users(recommender, dataset, as_of, k, positions=targets.users, mask=mask)
    for place, (_, state, answer) in enumerate(with_progress(answers, n, "evaluating users")):
        lists["cascade"][place, : len(answer.rows)] = answer.rows
        lists["retrieval"][place, : len(answer.candidates[:k])] = answer.candidates[:k]
        candidates.append(answer.candidates.astype(np.int32))
        tiers[place] = answer.tier
        note(ties, place, recommender, state, answer, rows[targets.tracks[targets.of(place)]])
        positive, negative = rows[targets.tracks[targets.of(place)]], negatives[targets.of(place)]
        negative = rows[negative[(positive >= 0) & (negative >= 0)]]
        positive = positive[positive >= 0]
        note_sources(found_by, answer, positive)
        if len(positive):
            probabilities.append(recommender.score(state, np.concatenate([positive, negative]))[1])
            labels.append(np.arange(len(positive) + len(negative)) < len(positive))
    wanted = as_rows(rows, len(catalog))[targets.tracks]
    wanted = wanted[np.lexsort((wanted, np.repeat(targets.users, np.diff(targets.offsets))))]
    return Run(
        as_of=as_of,
        mask=mask,
        targets=targets,
        rows=rows,
        wanted=wanted,
        catalogue_size=len(catalog),
        lists=lists,
        candidates=packed(candidates),
        tiers=tiers,
        metrics={
            stage: rank_metrics(found, targets.offsets, wanted, len(catalog), ks) for stage, found in lists.items()
        },
        labels=np.concatenate(labels),
        probabilities=np.concatenate(probabilities),
        ties=ties,
        found_by=found_by,
    )


def as_rows(rows: I64, catalogue_size: int) -> I64:
    """Numbers tracks.

    Args:
        rows: (tracks,) catalog rows, -1 where a track has none.
        catalogue_size: how many rows there are.

    Returns:
        (tracks,) distinct: the catalog row, or one beyond the catalogue.
    """
    return np.where(rows >= 0, rows, catalogue_size + np.arange(len(rows)))


def packed(lists: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Packs lists into an array.

    Args:
        lists: n lists of rows.

    Returns:
        (n, longest) rows, -1 padded.
    """
    out = np.full((len(lists), max((len(own) for own in lists), default=0)), -1, np.int32)
    for n, own in enumerate(lists):
        out[n, : len(own)] = own
    return out


def some_users(run: Run, chosen: I64, found: I64, ks: Sequence[int]) -> tuple[I64, RankMetrics]:
    """Spreads lists of some users over all n.

    Args:
        run: of all users.
        chosen: (c,) ascending places of those with a list.
        found: (c, K) their lists, rows.
        ks: list lengths at which metrics are computed.

    Returns:
        (n, K) lists and their metrics; the lists of the others are empty, their metrics NaN.
    """
    lists = np.full((len(run.targets), found.shape[1]), -1, np.int64)
    lists[chosen] = found
    wanted = np.concatenate([run.wanted[run.targets.of(n)] for n in chosen])
    measured = rank_metrics(found, run.targets.take(chosen).offsets, wanted, run.catalogue_size, ks)
    per_user = {name: np.full(len(run.targets), np.nan) for name in measured.per_user}
    for name, values in measured.per_user.items():
        per_user[name][chosen] = values
    return lists, RankMetrics(per_user, measured.coverage)
