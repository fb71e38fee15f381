"""What is asked when: the moments of a fold at which a list is wanted, what is known by then, and what came next.

Plays lie in order of listening, user by user, so what is known at a moment is the user's plays before one row.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lhydra.data.clock import by_session
from lhydra.data.dataset import TEST, VALID, Dataset, Events
from lhydra.domain import I64
from lhydra.errors import DataError, complain
from lhydra.features.histories import offsets_of, spans

Protocol = Literal["next-session", "next-day", "next-track"]
PROTOCOLS: tuple[Protocol, ...] = ("next-session", "next-day", "next-track")
DAY_S = 86_400
FOLDS = {"valid": VALID, "test": TEST}


@dataclass(frozen=True)
class Moments:
    """Moments at which a list is wanted, q of them, by user, and what was played next, m targets.

    user: (q,) positions in the users table, ascending. cut: (q,) rows of the events: the user's rows before it are
    known. now: (q,) Unix s, 0 where there is no clock. session: (q,) the session asked for, -1 where none is. place:
    (q,) how many of its plays are known. offsets: (q + 1,). tracks: (m,) positions in the tracks table, ascending and
    distinct within a moment. heard: (m,) bool: played by the user before.
    """

    user: I64
    cut: I64
    now: I64
    session: I64
    place: I64
    offsets: I64
    tracks: I64
    heard: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, chosen: I64) -> "Moments":
        """Takes some of the moments.

        Args:
            chosen: (c,) ascending places among the moments here.

        Returns:
            Those.
        """
        starts, ends = self.offsets[chosen], self.offsets[chosen + 1]
        own = spans(starts, ends)
        user, cut, now = self.user[chosen], self.cut[chosen], self.now[chosen]
        session, place = self.session[chosen], self.place[chosen]
        return Moments(user, cut, now, session, place, offsets_of(ends - starts), self.tracks[own], self.heard[own])

    def only(self, mask: npt.NDArray[np.bool_]) -> tuple[I64, I64]:
        """Keeps some of the targets.

        Args:
            mask: (m,) bool by target.

        Returns:
            (q + 1,) offsets and the targets kept.
        """
        return np.append(0, np.cumsum(mask, dtype=np.int64))[self.offsets], self.tracks[mask]


def find_moments(dataset: Dataset, protocol: Protocol, as_of: str, known: int = 0) -> Moments:
    """Finds what is asked when.

    Args:
        dataset: with single plays, split in time.
        protocol: `next-session`: before a session of the fold, what it holds. `next-day`: before each 24 hours of the
            fold, counted from its first play, what the user plays in them. `next-track`: before each play of such a
            session but the first, that play.
        as_of: the fold, `valid` or `test`.
        known: so many plays of the session are known, and it is asked what comes after them.

    Returns:
        The moments; a session begins in its fold, and only plays of the fold are targets.

    Raises:
        DataError: there are none, no clock where one is needed, or a split that is not in time.
    """
    events, fold = dataset.events, FOLDS[as_of]
    place = f"{dataset.path}: {as_of} fold"
    step = np.diff(events.fold.astype(np.int64))
    if ((step < 0) & (np.diff(events.user) == 0)).any():
        expected = "a split in time: `lhydra prepare` with --split next-session, temporal or global-time"
        raise DataError(complain(dataset.path, "plays of train after plays held out", expected))
    if not (events.fold == fold).any():
        raise DataError(complain(place, "no plays", "plays to ask for; try another --split of `lhydra prepare`"))
    if protocol == "next-day":
        if not (events.time[events.fold == fold] > 0).any():
            raise DataError(
                complain(place, "no times", "plays with a time; without a clock ask --protocol next-session")
            )
        found = _days(events, fold)
    else:
        found = _in_sessions(events, fold, known, every=protocol == "next-track")
    if not found:
        short = "" if known == 0 else f" of more than {known} plays"
        expected = f"a session{short} that begins in the fold; `lhydra prepare --split next-session` makes some"
        raise DataError(complain(place, "none to ask for", expected))
    found.sort(key=lambda one: (one[0], one[1]))
    begin = np.searchsorted(events.user, np.arange(events.user.max() + 2))
    wanted = [np.unique(events.track[rows]) for *_, rows in found]
    heard = [
        np.isin(tracks, events.track[begin[user] : cut]) for (user, cut, *_), tracks in zip(found, wanted, strict=True)
    ]
    users, cuts, now, session, places = (np.array(values, np.int64) for values in list(zip(*found, strict=True))[:5])
    offsets = offsets_of(np.array([len(tracks) for tracks in wanted]))
    return Moments(
        users, cuts, now, session, places, offsets, np.concatenate(wanted).astype(np.int64), np.concatenate(heard)
    )


_Found = tuple[int, int, int, int, int, I64]  # user, cut, now, session, place, rows of the targets


def _in_sessions(events: Events, fold: int, known: int, *, every: bool) -> list[_Found]:
    """Moments of the sessions that begin in the fold: one each after `known` plays, or one before every later play."""
    order, starts = by_session(events)
    sizes = np.diff(starts, append=len(order))
    first = order[starts]
    chosen = (events.fold[first] == fold) & (events.session[first] >= 0) & (sizes > known)
    found = []
    for start, size in zip(starts[chosen].tolist(), sizes[chosen].tolist(), strict=True):
        rows = order[start : start + size]
        user, session = int(events.user[rows[0]]), int(events.session[rows[0]])
        places = range(max(known, 1), size) if every else [known]
        for place in places:
            later = rows[place : place + 1] if every else rows[place:]
            later = later[events.fold[later] == fold]
            if len(later):
                found.append((user, int(rows[place]), int(events.time[rows[place]]), session, place, later))
    return found


def _days(events: Events, fold: int) -> list[_Found]:
    """Moments of the 24 hours that follow each other from the first play of the fold on."""
    rows = np.flatnonzero((events.fold == fold) & (events.time > 0))
    oldest = events.time[rows].min()
    day = (events.time[rows] - oldest) // DAY_S
    user = events.user[rows]
    new = np.flatnonzero(np.append(True, (day[1:] != day[:-1]) | (user[1:] != user[:-1])))
    found = []
    for start, own in zip(new.tolist(), np.split(rows, new[1:]), strict=True):
        now = int(oldest + day[start] * DAY_S)
        begin, end = np.searchsorted(events.user, [user[start], user[start] + 1])
        cut = int(begin + np.searchsorted(events.time[begin:end], now))
        found.append((int(user[start]), cut, now, -1, 0, own))
    return found
