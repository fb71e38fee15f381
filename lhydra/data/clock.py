"""A clock for plays that have none: features of age and the order of the last plays need times.

A log may know no more of its plays than their sessions and their order. A session a day makes ages count sessions, and
a play every 200 seconds, about a song, keeps the order within one.
"""

import numpy as np

from lhydra.data.dataset import Events
from lhydra.domain import I64

BEGIN_S, DAY_S, PLAY_S = 1_000_000_000, 86_400, 200


def by_session(events: Events) -> tuple[I64, I64]:
    """Puts plays session by session: two of a user that interleave lie one after the other.

    Args:
        events: n plays.

    Returns:
        (n,) rows by user, session and order of listening, and where in them each session begins, (sessions,); plays of
        no session are one, the user's first.
    """
    order = np.lexsort((events.session, events.user)).astype(np.int64)  # stable: rows stay in order
    user, session = events.user[order], events.session[order]
    new = np.append(True, (user[1:] != user[:-1]) | (session[1:] != session[:-1]))[: len(order)]
    return order, np.flatnonzero(new)


def play_times(events: Events) -> I64:
    """Gives every play a time.

    Args:
        events: n plays.

    Returns:
        (n,) Unix s. Users of whom no play has a time: BEGIN_S, a day for each session before, PLAY_S for each play of
        the session before; 0 where the session is unknown too. All others: the times of the log.
    """
    order, starts = by_session(events)
    session = events.session[order].astype(np.int64)
    position = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    made = np.empty(len(order), np.int64)
    made[order] = np.where(session >= 0, BEGIN_S + session * DAY_S + position * PLAY_S, 0)
    dated = np.bincount(events.user, events.time > 0) > 0
    return np.where(dated[events.user], events.time, made)
