"""Plays one by one, in order of listening: which sessions they form, and what they add up to.

The order is by user, then time; where times are equal or unknown, by session and position as far as the source has
them, then by track. The other values decide what is left, so that the order of a source's rows never counts.
"""

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lhydra.data.dataset import EVENTS_SCHEMA, Events, Plays
from lhydra.domain import I64

PAUSE_S = 1_800  # s: a session ends where nothing is played for so long
OPTIONAL = ("position", "session", "skipped", "completed", "ms_played")  # columns of `events` that a source may lack


@dataclass(frozen=True)
class Log:
    """Plays in order of listening, and the pairs of user and track that they form.

    events: n plays, their folds not decided yet. count: (n,) float64. by_pair: (n,) rows in order of user, track and
    listening. starts: (pairs,) where in `by_pair` each pair begins.
    """

    events: Events
    count: npt.NDArray[np.float64]
    by_pair: I64
    starts: I64

    @property
    def sizes(self) -> I64:
        """How many plays each pair has, (pairs,)."""
        return np.asarray(np.diff(self.starts, append=len(self.by_pair)), np.int64)

    @property
    def last(self) -> I64:
        """The row of each pair's last play, (pairs,)."""
        ends: I64 = np.append(self.starts[1:], len(self.by_pair))
        return self.by_pair[ends - 1]

    def spread(self, of_pair: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """Gives every play what its pair has.

        Args:
            of_pair: (pairs,) int8.

        Returns:
            (n,) int8.
        """
        out = np.empty(len(self.by_pair), np.int8)
        out[self.by_pair] = np.repeat(of_pair, self.sizes)
        return out


def read_log(con: duckdb.DuckDBPyConnection) -> Log:
    """Reads the table `events` in order of listening.

    Args:
        con: the connection that holds the table, as `rows.make_events` creates it.

    Returns:
        The plays.
    """
    names = {name for (name,) in con.execute("SELECT column_name FROM (DESCRIBE events)").fetchall()}
    given = "session" in names
    restarts = whole = False
    if given:
        (whole,) = con.execute("SELECT count(session) = count(TRY_CAST(session AS BIGINT)) FROM events").fetchall()[0]
    if "position" in names:  # counted anew in each session, or through
        (restarts,) = con.execute(
            "SELECT count(position) > count(DISTINCT (user, position)) FROM events WHERE position IS NOT NULL"
        ).fetchall()[0]
    # `e.`: a bare name would be that of the column shown, where what is unknown is -1 and a session its hash
    session = "TRY_CAST(e.session AS BIGINT)" if whole else "e.session"
    order = [session] * (given and (restarts or "position" not in names))
    order += [f"e.{name}" for name in ("position", "track", "count", *OPTIONAL[1:], "fold") if name in names]
    shown = ["user", "track", "count", "time", "coalesce(fold, 0) AS fold"]
    shown += [f"CAST(coalesce({name}, -1) AS {kind}) AS {name}" for name, kind in _KINDS.items() if name in names]
    shown += ["coalesce(hash(session), 0) AS session, session IS NOT NULL AS given"] * given
    found = con.execute(
        f"SELECT {', '.join(shown)} FROM events e ORDER BY e.user, e.time, {', '.join(order)}"
    ).fetchnumpy()
    arrays = {name: np.ascontiguousarray(np.ma.getdata(values)) for name, values in found.items()}
    n = len(arrays["user"])

    def optional(name: str, kind: type[np.generic]) -> npt.NDArray[Any]:
        """The column, or -1 throughout without any memory."""
        return arrays[name] if name in arrays else np.broadcast_to(kind(-1), n)

    events = Events(
        user=arrays["user"],
        track=arrays["track"],
        time=arrays["time"],
        position=optional("position", np.int64),
        count=arrays["count"].astype(np.float32),
        session=number_sessions(arrays["user"], arrays["time"], arrays.get("session"), arrays.get("given")),
        skipped=optional("skipped", np.int8),
        completed=optional("completed", np.int8),
        ms_played=optional("ms_played", np.int64),
        fold=arrays["fold"],
    )
    pair = arrays["user"].astype(np.int64) << 32 | arrays["track"]
    by_pair = np.argsort(pair, kind="stable")
    starts = np.flatnonzero(np.diff(pair[by_pair], prepend=-1))
    return Log(events, arrays["count"], by_pair, starts)


def number_sessions(
    user: npt.NDArray[np.int32],
    time: I64,
    session: npt.NDArray[np.uint64] | None = None,
    given: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int32]:
    """Numbers each user's sessions from 0, in order of their first play.

    Plays that the source gives no session form their own: one ends where the user plays nothing for PAUSE_S.

    Args:
        user: (n,) int32, in order.
        time: (n,) int64 seconds, 0 unknown, in order of listening within a user.
        session: (n,) uint64 what stands for the session given; None where the source has none.
        given: (n,) bool, where it has.

    Returns:
        (n,) int32, -1 where neither session nor time is known.
    """
    newcomer = np.diff(user, prepend=-1) != 0
    known = time > 0
    pauses = newcomer | (np.diff(time, prepend=0) >= PAUSE_S) | np.diff(known, prepend=False)
    begins = pauses
    name = np.cumsum(pauses).astype(np.uint64)
    if session is not None and given is not None:
        known, name = known | given, np.where(given, session, name)
        changes = [np.diff(values.astype(np.uint64), prepend=0) != 0 for values in (given, known, name)]
        begins = np.logical_or.reduce([newcomer, *changes])
    runs = np.flatnonzero(begins)  # stretches of one session each
    first = np.arange(len(runs))  # the first run of each run's session
    if session is not None and given is not None:  # two may be interleaved: a phone and a radio
        keys = [values[runs] for values in (name, given, user)]
        order = np.lexsort((first, *keys))
        new = np.logical_or.reduce([np.diff(key[order].astype(np.uint64), prepend=0) != 0 for key in keys])
        new[:1] = True
        first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    counts = known[runs] & (first == np.arange(len(runs)))
    number = np.cumsum(counts)
    own = np.flatnonzero(newcomer[runs])  # each user's first run
    before = np.repeat(number[own] - counts[own], np.diff(own, append=len(runs)))
    of_run = np.where(known[runs], number[first] - before - 1, -1).astype(np.int32)
    return np.repeat(of_run, np.diff(runs, append=len(user)))


def add_up(log: Log, fold: npt.NDArray[np.int8]) -> Plays:
    """Adds up the plays of each user, track and fold: counts are summed, the latest time stays.

    Args:
        log: n plays.
        fold: (n,) int8.

    Returns:
        The sums, in (user, time, track, fold) order.
    """
    rows = log.by_pair
    key = np.repeat(np.arange(len(log.starts)) << 2, log.sizes) | fold[rows]
    whole = bool((log.count == np.floor(log.count)).all())
    if not whole:  # fractions are added in one order, so that their sum does not depend on that of listening
        order = np.lexsort((log.count[rows], key))
    elif (np.diff(key) < 0).any():
        order = np.argsort(key, kind="stable")
    else:
        order = np.arange(len(key))
    rows, key = rows[order], key[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    events = log.events
    user, track = events.user[rows[starts]], events.track[rows[starts]]
    count = np.add.reduceat(log.count[rows], starts).astype(np.float32)
    time = np.maximum.reduceat(events.time[rows], starts)
    folds = fold[rows[starts]]
    ordered = np.lexsort((folds, track, time, user))
    return Plays(user[ordered], track[ordered], count[ordered], time[ordered], folds[ordered])


def to_table(events: Events, start: int = 0, stop: int | None = None) -> pa.Table:
    """Returns plays as rows of events.parquet: what is unknown is null.

    Args:
        events: the plays.
        start: the first of them.
        stop: the one after the last.

    Returns:
        The rows.
    """
    columns = []
    for name, kind in zip(EVENTS_SCHEMA.names, EVENTS_SCHEMA.types, strict=True):
        values = getattr(events, name)[start:stop]
        missing = values < 0 if name in OPTIONAL else None
        columns.append(pa.array(values.astype(kind.to_pandas_dtype(), copy=False), kind, mask=missing))
    return pa.table(columns, schema=EVENTS_SCHEMA)


_KINDS = {"position": "BIGINT", "skipped": "TINYINT", "completed": "TINYINT", "ms_played": "BIGINT"}
