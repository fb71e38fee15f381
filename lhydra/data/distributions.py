"""What the page of a dataset draws: plays by time, by how much users, tracks and sessions have, and by what returns."""

from dataclasses import dataclass

import numpy as np

from lhydra.data.dataset import Events
from lhydra.data.summary import F64
from lhydra.domain import I64

MOST_STEPS = 200  # of a log: as many bars as a page has room for
YOUNGEST_S = 60  # s: what returns sooner is no matter of memory
FEWEST_RETURNS = 5  # of an age that says something
_HOUR, _DAY, _YEAR = 3_600, 86_400, 31_536_000
# s: ages about twice as old from one to the next, as people count them
_AGES = np.array(
    [
        *(YOUNGEST_S * n for n in (1, 2, 4, 8, 15, 30)),
        *(_HOUR * n for n in (1, 2, 4, 8, 16)),
        *(_DAY * n for n in (1, 2, 4, 7, 14, 30, 60, 120, 240)),
        *(_YEAR << n for n in range(13)),
    ],
    np.int64,
)
# name, numpy's unit, how many of them, and the first: 1970 began on a Thursday, weeks begin on Monday
_STEPS = (("minute", "m", 1, 0), ("hour", "h", 1, 0), ("day", "D", 1, 0), ("week", "D", 7, 4), ("month", "M", 1, 0))
_LAST_STEP = ("year", "Y", 1, 0)


@dataclass(frozen=True)
class OverTime:
    """Plays by time, (steps,): `step` is the name of the unit, `starts` are moments in UTC as ISO 8601."""

    step: str
    starts: list[str]
    plays: F64


@dataclass(frozen=True)
class Returns:
    """How soon tracks come back, by age since their last play: ages about double from one to the next, (ages,).

    oldest, youngest: of each age, in seconds. returns: plays of that age. exposure: seconds for which tracks had that
    age, until they were played again or their user was heard of last.
    """

    youngest: I64
    oldest: I64
    returns: I64
    exposure: F64

    @property
    def per_day(self) -> F64:
        """How often a track of each age is played again in a day, (ages,); NaN where too few were."""
        enough = (self.returns >= FEWEST_RETURNS) & (self.exposure > 0)
        rate: F64 = np.full(len(self.returns), np.nan)
        np.divide(self.returns * _DAY, self.exposure, out=rate, where=enough)
        return rate


def over_time(events: Events) -> OverTime | None:
    """Counts plays by the shortest step (minute, hour, day, week, month, year) of which MOST_STEPS span the log.

    Args:
        events: n plays.

    Returns:
        The plays of each step, those without any too; None where no time is known.
    """
    known = events.time > 0
    if not known.any():
        return None
    time = events.time[known].astype("datetime64[s]")
    for step in (*_STEPS, _LAST_STEP):
        name, unit, length, first = step
        oldest, newest = ((end.astype(f"M8[{unit}]").astype(int) - first) // length for end in (time.min(), time.max()))
        if newest - oldest < MOST_STEPS:
            break
    number = (time.astype(f"M8[{unit}]").astype(np.int64) - first) // length - oldest
    plays: F64 = np.bincount(number, events.count[known]).astype(np.float64)
    starts = ((np.arange(len(plays)) + oldest) * length + first).astype(f"M8[{unit}]")
    return OverTime(name, np.datetime_as_string(starts, "m" if unit in "mh" else "D").tolist(), plays)


def doubling(values: F64) -> I64:
    """Counts values from 1, from 2, from 4 and so on, each below the next.

    Args:
        values: above 0; those below 1 count with those from 1.

    Returns:
        (bins,) as many as the greatest needs.
    """
    return np.bincount(np.log2(np.maximum(values, 1)).astype(np.int64))


def returns(events: Events) -> Returns | None:
    """Counts how often tracks are played again, by the time since their last play.

    It is a life table: a track that never comes back counts for as long as its user went on listening.

    Args:
        events: n plays in order of listening.

    Returns:
        The ages from YOUNGEST_S to the oldest; None where no track is known to have been there for so long.
    """
    known = events.time > 0
    user, track, time = (values[known] for values in (events.user, events.track, events.time))
    if not len(user):
        return None
    ends = np.flatnonzero(np.append(user[1:] != user[:-1], True))
    last = np.repeat(time[ends], np.diff(ends, prepend=-1))  # when the user was heard of last
    order = np.argsort(user.astype(np.int64) << 32 | track, kind="stable")  # by time within a pair
    user, track, time, last = user[order], track[order], time[order], last[order]
    again = np.append((user[1:] == user[:-1]) & (track[1:] == track[:-1]), False)
    age = np.where(again, np.append(time[1:], 0), last) - time
    if age.max() <= YOUNGEST_S:
        return None
    edges = _AGES[: int(np.searchsorted(_AGES, age.max(), side="right")) + 1]
    youngest, oldest = edges[:-1], edges[1:]
    place = np.searchsorted(edges, age, side="right") - 1
    within = place >= 0
    n, spent, came = (
        np.bincount(place[chosen], weights, len(edges))[:-1]
        for chosen, weights in ((within, None), (within, age[within]), (within & again, None))
    )
    older = n[::-1].cumsum()[::-1] - n  # had that age through
    exposure: F64 = spent - n * youngest + older * (oldest - youngest).astype(np.float64)
    return Returns(youngest, oldest, came, exposure)
