"""Arrays to train on: encoded tracks and profiles, train plays by user, held-out targets, and how plays are hidden."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lhydra.data.dataset import TRAIN, VALID, Dataset, Plays
from lhydra.domain import I64, MAX_HISTORY, Hashes, history_order
from lhydra.errors import DataError, complain
from lhydra.features.fit import fit_features
from lhydra.features.histories import Histories, offsets_of, spans
from lhydra.features.spec import Encoded, FeatureSpec
from lhydra.timing import timed

NEXT_PLAYS = 5  # plays to predict after a cut in time


@dataclass(frozen=True)
class Targets:
    """What is to be predicted for some users, back to back: rows[offsets[i]:offsets[i + 1]] are sorted."""

    users: I64  # (n,) positions
    offsets: I64  # (n + 1,)
    rows: I64  # (m,)


@dataclass(frozen=True)
class TrainingData:
    """Everything training reads, encoded once."""

    spec: FeatureSpec
    tracks: Encoded
    profiles: Encoded
    train: Histories  # of all users, train plays only
    valid: Targets
    listeners: I64  # (n tracks,) users with a train play
    in_order: bool  # validation plays come after the train plays: what is to be predicted is what comes next

    @property
    def n_tracks(self) -> int:
        """Tracks in the dataset."""
        return len(self.tracks)


@timed("train.load")
def load(
    dataset: Dataset, plays: Plays | None = None, upto: int = TRAIN, like: FeatureSpec | None = None
) -> TrainingData:
    """Encodes a dataset once, features fitted on its train fold.

    Args:
        dataset: what to load.
        plays: other folds than the dataset's own.
        upto: VALID takes the validation plays for train plays too; then nothing is left to validate on.
        like: features of the same columns whose scale of numbers to keep.

    Returns:
        The training arrays.

    Raises:
        DataError: there are no train plays.
    """
    plays = dataset.plays if plays is None else plays
    fed = plays.where(plays.fold <= upto)
    if not len(fed):
        raise DataError(complain(dataset.path, "no train plays", "a dataset with plays in the train fold"))
    n_users, n_tracks = len(dataset.user_ids), len(dataset.track_ids)
    pairs = np.unique(fed.user.astype(np.int64) * n_tracks + fed.track)  # heard in two folds is heard once
    listeners = np.bincount(pairs % n_tracks, minlength=n_tracks)
    tracks, users = dataset.track_columns(), dataset.user_columns()
    kinds = {c.name: c.kind for c in dataset.info.track_columns}, {c.name: c.kind for c in dataset.info.user_columns}
    spec = fit_features(tracks, users, *kinds, listeners > 0)
    if like is not None:
        spec = replace(spec, track_numbers=like.track_numbers, user_numbers=like.user_numbers)
        spec = replace(spec, reference_year=like.reference_year)
    train = _histories(fed, n_users, dataset.hashes)
    valid = _targets(plays, n_tracks, VALID) if upto < VALID else _targets(plays.where(plays.fold < TRAIN), 1, VALID)
    return TrainingData(
        spec,
        spec.encode_tracks(tracks),
        spec.encode_profiles(users),
        train,
        valid,
        listeners,
        _in_order(plays, n_users),
    )


def _histories(plays: Plays, n_users: int, hashes: Hashes) -> Histories:
    """Histories of all users as `make_history` makes them, uncut: one entry per track, counts added, latest time."""
    key = np.lexsort((plays.track, plays.user))
    user, track = plays.user[key].astype(np.int64), plays.track[key].astype(np.int64)
    first = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (track[1:] != track[:-1])])
    entry = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(plays)]))
    count = np.bincount(entry, plays.count[key], len(first)).astype(np.float32)
    time = np.maximum(np.maximum.reduceat(plays.time[key], first), 0)
    user, track = user[first], track[first]
    order = history_order(hashes[track], count, time, user)
    user, track, count, time = user[order], track[order], count[order], time[order]
    offsets = np.searchsorted(user, np.arange(n_users + 1)).astype(np.int64)
    return Histories(offsets, track, count, time)


def _in_order(plays: Plays, n_users: int) -> bool:
    """Whether, of the users with train and timed validation plays, nine in ten validate on what came later."""
    newest, oldest = np.zeros(n_users, np.int64), np.full(n_users, np.iinfo(np.int64).max)
    train, valid = plays.fold == TRAIN, (plays.fold == VALID) & (plays.time > 0)
    np.maximum.at(newest, plays.user[train], plays.time[train])
    np.minimum.at(oldest, plays.user[valid], plays.time[valid])
    both = (newest > 0) & (oldest < np.iinfo(np.int64).max)
    return bool(both.any() and (oldest >= newest)[both].mean() >= 0.9)


def targets(dataset: Dataset, fold: int) -> Targets:
    """Finds what is to be predicted in a fold.

    Args:
        dataset: its tracks table gives the rows.
        fold: VALID or TEST.

    Returns:
        Per user with any, the tracks of the fold that the user has not heard in an earlier one.
    """
    return _targets(dataset.plays, len(dataset.track_ids), fold)


def _targets(plays: Plays, n: int, fold: int) -> Targets:
    key = plays.user.astype(np.int64) * n + plays.track
    wanted = np.setdiff1d(key[plays.fold == fold], key[plays.fold < fold])
    users, counts = np.unique(wanted // n, return_counts=True)
    return Targets(users, offsets_of(counts), wanted % n)


def select(histories: Histories, users: I64, keep: npt.NDArray[np.bool_] | None = None) -> Histories:
    """Selects histories, whole or in part.

    Args:
        histories: of all users.
        users: (n,) int64 positions.
        keep: (m,) bool over the concatenated entries of `users`, oldest first; None keeps the MAX_HISTORY newest.

    Returns:
        Histories of the n users.
    """
    starts, ends = histories.offsets[users], histories.offsets[users + 1]
    if keep is None:
        starts = np.maximum(starts, ends - MAX_HISTORY)
    at = spans(starts, ends)
    lengths = ends - starts
    if keep is not None:
        lengths = np.bincount(np.repeat(np.arange(len(users)), lengths)[keep], minlength=len(users))
        at = at[keep]
    offsets = offsets_of(lengths)
    return Histories(offsets, histories.rows[at], histories.counts[at], histories.times[at])


def hide(
    data: TrainingData, users: I64, rng: np.random.Generator, keep: float, cold: float, longest: int
) -> tuple[Histories, Targets]:
    """Splits the train plays of `users` at random into what the model sees and what it must predict.

    Every play is seen with probability `keep`; of a share `cold` of the users nothing is seen, so that the towers
    learn to answer for users without a history. Each user has at least one target. At most about `longest`
    plays are seen, a random choice of a longer history.

    Where the task is to predict what comes next (`data.in_order`), half of the users are cut in time instead: what
    lies before a random play is seen, that play and the next few are to be predicted, the rest is left out.

    Args:
        data: whose train plays are split.
        users: (B,) int64 positions, each with at least one train play.
        rng: of everything drawn.
        keep: chance that a play is seen.
        cold: share of users of whom nothing is seen.
        longest: plays of a history that are seen, at most about.

    Returns:
        The histories seen, and the plays to predict.
    """
    lengths = data.train.offsets[users + 1] - data.train.offsets[users]
    owner = np.repeat(np.arange(len(users)), lengths)
    draw = rng.random(len(owner))
    chance = np.where(rng.random(len(users)) < cold, 0.0, keep)
    seen = draw < chance[owner]
    largest = np.maximum.reduceat(draw, np.cumsum(lengths) - lengths)  # its owner always stays a target
    seen &= draw < largest[owner]
    wanted = ~seen
    if data.in_order:
        before = np.repeat(np.cumsum(lengths) - lengths, lengths)
        place = np.arange(len(owner)) - before
        cut = np.floor(rng.random(len(users)) * lengths)[owner]
        timely = (rng.random(len(users)) < 0.5)[owner]
        seen = np.where(timely & (chance[owner] > 0), place < cut, seen)
        wanted = np.where(timely, (place >= cut) & (place < cut + NEXT_PLAYS), wanted) & ~seen
    hidden = Targets(users, *_rows_of(data, users, wanted, owner))
    seen &= rng.random(len(owner)) < (longest / np.maximum(lengths, 1))[owner]
    return select(data.train, users, seen), hidden


def _rows_of(data: TrainingData, users: I64, chosen: npt.NDArray[np.bool_], owner: I64) -> tuple[I64, I64]:
    at = spans(data.train.offsets[users], data.train.offsets[users + 1])[chosen]
    counts = np.bincount(owner[chosen], minlength=len(users))
    offsets = offsets_of(counts)
    return offsets, data.train.rows[at]
