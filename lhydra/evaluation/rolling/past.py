"""What is known at a moment: the user's own plays before it, and of everybody else what the fit may see."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.data.clock import by_session
from lhydra.data.dataset import Events
from lhydra.domain import I64
from lhydra.evaluation.rolling.moments import Moments
from lhydra.features.histories import offsets_of

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """What is known when one list is asked for: the user's plays, n of them, oldest first.

    user: position in the users table. cut: row of the events before which the user's are known. now: Unix s, 0 without
    a clock. tracks: (n,) positions in the tracks table. times: (n,) Unix s, 0 unknown. ages: (n,) sessions since, at
    least 1. current: (n,) bool: played in the session that goes on.
    """

    user: int
    cut: int
    now: int
    tracks: I64
    times: I64
    ages: F64
    current: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Which tracks a row has and which rows a track is in, p distinct pairs; a row is a user or a session.

    user: (rows,). fitted: (rows,) tracks of each that the fit may see. row, track: (p,) in order of row. event: (p,)
    the first play of each. of_row, of_track: offsets. by_track: (p,) pairs in order of track.
    """

    user: I64
    fitted: I64
    row: I64
    track: I64
    event: I64
    of_row: I64
    of_track: I64
    by_track: I64


@dataclass(frozen=True)
class Past:
    """The plays of a dataset, and how many of each user's the fit may see.

    events: n plays. n_tracks: how many tracks there are. seen: (users,) the row of the events before which each user's
    plays are fitted on.
    """

    events: Events
    n_tracks: int
    seen: I64

    @cached_property
    def fits(self) -> dict[Any, Any]:
        """What has been fitted on these plays already, for those who share it: by settings."""
        return {}

    @cached_property
    def begin(self) -> I64:
        """Where each user's plays begin, (users + 1,)."""
        return np.searchsorted(self.events.user, np.arange(len(self.seen) + 1)).astype(np.int64)

    @cached_property
    def listeners(self) -> I64:
        """How many users have played each track in what is fitted on, (tracks,)."""
        rows = self.users
        pairs = rows.event < self.seen[rows.user[rows.row]]
        return np.bincount(rows.track[pairs], minlength=self.n_tracks).astype(np.int64)

    @cached_property
    def favourites(self) -> I64:
        """All tracks, those with the most listeners first, (tracks,); equals in the order of the table."""
        return np.argsort(-self.listeners, kind="stable").astype(np.int64)

    @cached_property
    def users(self) -> Rows:
        """The tracks of each user."""
        return self._rows(np.arange(len(self.seen)), self.events.user.astype(np.int64))

    @cached_property
    def sessions(self) -> Rows:
        """The tracks of each session; plays of no session are left out."""
        order, starts = self.by_session
        number = np.empty(len(order), np.int64)
        number[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
        number[self.events.session < 0] = -1
        return self._rows(self.events.user[order[starts]].astype(np.int64), number)

    @cached_property
    def by_session(self) -> tuple[I64, I64]:
        """`by_session` of the plays."""
        return by_session(self.events)

    def _rows(self, user: I64, number: I64) -> Rows:
        """Rows numbered by play, -1 for a play of none."""
        some = np.flatnonzero(number >= 0)
        key, first = np.unique(number[some] * self.n_tracks + self.events.track[some], return_index=True)
        row, track = key // self.n_tracks, key % self.n_tracks
        event = some[first]
        fitted = np.bincount(row[event < self.seen[user[row]]], minlength=len(user)).astype(np.int64)
        of_row = offsets_of(np.bincount(row, minlength=len(user)))
        of_track = offsets_of(np.bincount(track, minlength=self.n_tracks))
        by_track = np.argsort(track, kind="stable").astype(np.int64)
        return Rows(user, fitted, row, track, event, of_row, of_track, by_track)

    def limits(self, known: Known) -> I64:
        """Tells what may be looked at.

        Args:
            known: of a moment.

        Returns:
            (users,) the row of the events before which each user's plays may be.
        """
        limits = self.seen.copy()
        limits[known.user] = known.cut
        return limits

    def at(self, moments: Moments, n: int) -> Known:
        """Looks up what is known at a moment.

        Args:
            moments: all of them.
            n: which.

        Returns:
            The user's own plays by then.
        """
        user, cut, now = int(moments.user[n]), int(moments.cut[n]), int(moments.now[n])
        own = slice(self.begin[user], cut)
        session = self.events.session[own].astype(np.int64)
        current = (session == moments.session[n]) & (session >= 0)
        coming = int(moments.session[n]) if moments.session[n] >= 0 else int(session.max(initial=-1)) + 1
        ages = np.maximum(coming - session, 1).astype(np.float64)
        tracks, times = self.events.track[own].astype(np.int64), self.events.time[own]
        return Known(user, cut, now, tracks, times, ages, current)


def fold_seen(events: Events, n_users: int, last: int) -> I64:
    """Tells what a fit may see: each user's plays up to a fold, which come first.

    Args:
        events: split in time.
        n_users: how many users there are.
        last: the last fold that is seen.

    Returns:
        (users,) the row of the events before which each user's plays are seen.
    """
    begin = np.searchsorted(events.user, np.arange(n_users)).astype(np.int64)
    return begin + np.bincount(events.user[events.fold <= last], minlength=n_users)
