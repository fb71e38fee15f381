"""Arrays to train on: encoded tracks and profiles, train plays by user, held-out targets, and how plays are hidden."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lhydra.data.dataset import TRAIN, VALID, Dataset
from lhydra.domain import I64, MAX_HISTORY
from lhydra.errors import DataError, complain
from lhydra.features import Encoded, FeatureSpec
from lhydra.histories import Histories, offsets_of, spans
from lhydra.timing import timed


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

    @property
    def n_tracks(self) -> int:
        """Tracks in the dataset."""
        return len(self.tracks)


@timed("train.load")
def load(dataset: Dataset) -> TrainingData:
    """Returns the training arrays of `dataset`, features fitted on its train fold.

    Raises:
        DataError: there are no train plays.
    """
    plays = dataset.plays.where(dataset.plays.fold == TRAIN)
    if not len(plays):
        raise DataError(complain(dataset.path, "no train plays", "a dataset with plays in the train fold"))
    n_users, n_tracks = len(dataset.user_ids), len(dataset.track_ids)
    listeners = np.bincount(plays.track, minlength=n_tracks)
    tracks, users = dataset.track_columns(), dataset.user_columns()
    kinds = {c.name: c.kind for c in dataset.info.track_columns}, {c.name: c.kind for c in dataset.info.user_columns}
    spec = FeatureSpec.fit(tracks, users, *kinds, listeners > 0)
    offsets = np.searchsorted(plays.user, np.arange(n_users + 1)).astype(np.int64)
    train = Histories(offsets, plays.track.astype(np.int64), plays.count, plays.time)
    return TrainingData(
        spec,
        spec.encode_tracks(tracks),
        spec.encode_profiles(users),
        train,
        targets(dataset, VALID),
        listeners,
    )


def targets(dataset: Dataset, fold: int) -> Targets:
    """Returns, per user with any, the tracks of `fold` that the user has not heard in an earlier fold."""
    plays, n = dataset.plays, len(dataset.track_ids)
    key = plays.user.astype(np.int64) * n + plays.track
    wanted = np.setdiff1d(key[plays.fold == fold], key[plays.fold < fold])
    users, counts = np.unique(wanted // n, return_counts=True)
    return Targets(users, offsets_of(counts), wanted % n)


def select(histories: Histories, users: I64, keep: npt.NDArray[np.bool_] | None = None) -> Histories:
    """Returns the histories of `users`, at most MAX_HISTORY newest each, of the entries where `keep` (m,) is true.

    `keep` runs over the concatenated entries of `users`, oldest first.
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
    """
    lengths = data.train.offsets[users + 1] - data.train.offsets[users]
    owner = np.repeat(np.arange(len(users)), lengths)
    draw = rng.random(len(owner))
    chance = np.where(rng.random(len(users)) < cold, 0.0, keep)
    seen = draw < chance[owner]
    largest = np.maximum.reduceat(draw, np.cumsum(lengths) - lengths)  # its owner always stays a target
    seen &= draw < largest[owner]
    hidden = Targets(users, *_rows_of(data, users, ~seen, owner))
    seen &= rng.random(len(owner)) < (longest / np.maximum(lengths, 1))[owner]
    return select(data.train, users, seen), hidden


def _rows_of(data: TrainingData, users: I64, chosen: npt.NDArray[np.bool_], owner: I64) -> tuple[I64, I64]:
    at = spans(data.train.offsets[users], data.train.offsets[users + 1])[chosen]
    counts = np.bincount(owner[chosen], minlength=len(users))
    offsets = offsets_of(counts)
    return offsets, data.train.rows[at]
