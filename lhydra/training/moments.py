"""Moments of the validation fold, and what was known by then: what comes next is learnt from them.

A moment is the begin of a session of the fold, or a place inside one. The user's plays before it are known; what is
played later in the session is what should come first in a list.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lhydra.data.clock import play_times
from lhydra.data.dataset import VALID, Dataset, Events
from lhydra.data.plays import in_time
from lhydra.domain import COMPLETED, I64, MAX_RECENT, SKIPPED
from lhydra.features.listening import Listening
from lhydra.features.sequences import PER_TRACK, PER_TRACK_JOINED, Sequences, fit_sequences
from lhydra.repeats import add_up, at_once, single_plays
from lhydra.training.data import TrainingData

MIN_MOMENTS = 30  # with fewer there is no part, and what fewer tell apart counts nothing
INSIDE = 2  # places inside each session that are asked for at least, beside its begin; more of few sessions


@dataclass(frozen=True)
class Asked:
    """Moments, q of them: whose (q,), the row of the events before which plays are known (q,), and when (q,).

    targets: of each, what is played later, in order; skipped plays are left out.
    """

    user: I64
    cut: I64
    now: I64
    targets: tuple[I64, ...]

    def __len__(self) -> int:
        return len(self.user)


def sequences_of(dataset: Dataset, data: TrainingData, upto: int, joined: bool = False) -> Sequences:
    """Fits the tables of what goes with what in time.

    Args:
        dataset: whose single plays count.
        data: the listeners of its tracks.
        upto: the last fold to learn from.
        joined: take all sessions of a user as one: what is played next may follow from the session before.

    Returns:
        The tables.
    """
    events = dataset.events
    kept = (events.fold <= upto) & (events.session >= 0)
    rows = np.flatnonzero(kept)
    rows = rows[np.lexsort((events.session[rows], events.user[rows]))]  # stable: sessions that interleave come apart
    user, session = events.user[rows].astype(np.int64), events.session[rows].astype(np.int64)
    number = user if joined else user * (int(session.max(initial=0)) + 1) + session
    per_track = PER_TRACK_JOINED if joined else PER_TRACK
    return fit_sequences(events.track[rows].astype(np.int64), number, data.listeners, per_track)


def refitted(sequences: Sequences, dataset: Dataset, data: TrainingData, joined: bool) -> Sequences:
    """Fits the tables again, on the validation plays too.

    Args:
        sequences: of the train plays.
        dataset: whose single plays count.
        data: the listeners of both folds.
        joined: as in `sequences_of`.

    Returns:
        The tables, the depth shared out as before.
    """
    return replace(sequences_of(dataset, data, VALID, joined), shares=sequences.shares)


def find(dataset: Dataset, at_most: int, seed: int) -> Asked | None:
    """Finds the moments of the validation fold.

    Args:
        dataset: with single plays.
        at_most: how many; a random choice of more, and more places inside each session where there are few.
        seed: of the places inside sessions, and of the draw from too many.

    Returns:
        The moments; None where plays are not kept one by one, have no sessions, or the fold is not later than train.
    """
    if not at_most or not in_time(dataset):
        return None
    events = dataset.events
    rows = np.flatnonzero((events.fold == VALID) & (events.session >= 0))
    if not len(rows):
        return None
    rows = rows[np.lexsort((events.session[rows], events.user[rows]))]
    user, session = events.user[rows], events.session[rows]
    starts = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (session[1:] != session[:-1])])
    rng, times = np.random.default_rng([seed, 11]), play_times(events)
    places = max(INSIDE, at_most // len(starts) - 1)
    found: list[tuple[int, int, int, I64]] = []
    for own in np.split(rows, starts[1:]):
        inside = rng.permutation(np.arange(1, len(own)))[:places].tolist()
        for place in (0, *sorted(inside)):
            later = own[place:]
            later = later[events.skipped[later] != 1]
            if len(later):
                cut = int(own[place])
                found.append((int(events.user[cut]), cut, int(times[cut]), _distinct(events.track[later])))
    if len(found) < MIN_MOMENTS:
        return None
    chosen = sorted(rng.permutation(len(found))[:at_most].tolist())
    users, cuts, now = (np.array([found[i][part] for i in chosen], np.int64) for part in range(3))
    return Asked(users, cuts, now, tuple(found[i][3] for i in chosen))


def _distinct(tracks: npt.NDArray[np.integer]) -> I64:
    """The distinct tracks in the order in which they come first."""
    distinct, first = np.unique(tracks, return_index=True)
    return np.asarray(distinct[np.argsort(first)], np.int64)


def listenings(dataset: Dataset, asked: Asked) -> list[Listening]:
    """Returns what was known at each moment, as a user store would hold it.

    Args:
        dataset: whose single plays count.
        asked: the moments.

    Returns:
        One for each, by position in the tracks table.
    """
    events, times = dataset.events, play_times(dataset.events)
    begins = np.searchsorted(events.user, asked.user)
    return [
        _listening(events, times, slice(begin, cut), dataset.n_tracks, now)
        for begin, cut, now in zip(begins.tolist(), asked.cut.tolist(), asked.now.tolist(), strict=True)
    ]


def _listening(events: Events, times: I64, known: slice, n: int, now: int) -> Listening:
    tracks = events.track[known].astype(np.uint64)  # positions in the place of hashes: only the order of ties differs
    plays = single_plays(tracks, events.count[known], times[known])
    history, repeats = add_up(plays, at_once(plays))
    last = known.start + np.flatnonzero(times[known] > 0)[-MAX_RECENT:]  # plays of unknown time have no place
    flags = SKIPPED * (events.skipped[last] == 1) + COMPLETED * (events.completed[last] == 1)
    return Listening(
        n,
        history["track"].astype(np.int64),
        history["count"].copy(),
        history["time"].copy(),
        repeats["first"].astype(np.int64),
        repeats["decayed"].copy(),
        events.track[last].astype(np.int64),
        times[last],
        flags.astype(np.int64),
        now,
    )
