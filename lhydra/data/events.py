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
from lhydra.data.ordering import lexsort, settle
from lhydra.data.report import Report
from lhydra.data.table import Table
from lhydra.domain import I64

_FETCH = 1 << 19  # rows handed over at once
_MEMORY = "800MB"  # DuckDB's share while its rows are taken over
AGAIN = "same user, track and second as an earlier row"
PAUSE_S = 1_800  # s: a session ends where nothing is played for so long
OPTIONAL = ("position", "session", "skipped", "completed", "ms_played")  # columns of `events` that a source may lack


@dataclass(frozen=True)
class Log:
    """Plays in order of listening, and the pairs of user and track that they form.

    events: n plays, their folds not decided yet. count: (n,) float64. row: (n,) int32 in the source. by_pair: (n,) rows
    here in order of user, track and listening. starts: (pairs,) where in `by_pair` each pair begins.
    """

    events: Events
    count: npt.NDArray[np.float64]
    row: npt.NDArray[np.int32]
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
    if given and "position" in names:  # counted through, or anew in each session
        (restarts,) = con.execute(
            """SELECT count(DISTINCT (user, session, position)) > count(DISTINCT (user, position))
                FROM events WHERE session IS NOT NULL AND position IS NOT NULL"""
        ).fetchall()[0]
    shown = ["user", "track", "count", "time", "coalesce(fold, 0) AS fold", "CAST(row AS INTEGER) AS row"]
    shown += [f"CAST(coalesce({name}, -1) AS {kind}) AS {name}" for name, kind in _KINDS.items() if name in names]
    ranked = given and (restarts or "position" not in names)
    if given:
        shown += ["coalesce(hash(session), 0) AS session", "session IS NOT NULL AS given"]
    if ranked and whole:
        shown.append("CAST(session AS BIGINT) AS rank")
    elif ranked:
        con.execute(
            """CREATE TEMP TABLE ranks AS SELECT session, row_number() OVER (ORDER BY session) AS rank
                FROM (SELECT DISTINCT session FROM events)"""
        )
        shown.append("rank")
    (n,) = con.execute("SELECT count(*) FROM events").fetchall()[0]
    # taken over piece by piece: the arrays need what DuckDB would take
    con.execute(f"SET memory_limit = '{_MEMORY}'")
    beside = " LEFT JOIN ranks USING (session)" if ranked and not whole else ""
    pieces = con.sql(f"SELECT {', '.join(shown)} FROM events{beside}").to_arrow_reader(_FETCH)
    arrays = {field.name: np.empty(n, field.type.to_pandas_dtype()) for field in pieces.schema}
    start = 0
    for piece in pieces:
        for name, values in zip(piece.schema.names, piece.columns, strict=True):
            if name == "rank":  # what is unknown comes last
                values = values.fill_null(np.iinfo(np.int64).max)
            arrays[name][start : start + len(piece)] = values.to_numpy(zero_copy_only=False)
        start += len(piece)
    order = _in_order(arrays)
    arrays.pop("rank", None)
    for name in arrays:
        arrays[name] = arrays[name][order]
    del order

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
    pair = arrays["user"].astype(np.int64)
    pair *= int(arrays["track"].max(initial=0)) + 1
    pair += arrays["track"]
    by_pair = lexsort([pair])
    pair = pair[by_pair]
    starts = np.flatnonzero(np.append(True, pair[1:] != pair[:-1]))
    return Log(events, arrays["count"], arrays["row"], by_pair, starts)


def _in_order(arrays: dict[str, npt.NDArray[Any]]) -> I64:
    """Returns the rows in order of listening, (n,): see the top of this module."""
    first = [arrays[name] for name in ("user", "time", "rank", "position", "track") if name in arrays]
    order = lexsort(first[::-1])
    same = np.zeros(len(order), bool)
    if len(order) > 1:
        same[1:] = True
        for key in first:
            sorted_ = key[order]
            same[1:] &= sorted_[1:] == sorted_[:-1]
    unknown = np.iinfo(np.int64).max  # comes last
    rest = [arrays["fold"]]
    rest += [np.where(v < 0, unknown, v) for v in (arrays[name] for name in OPTIONAL[:1:-1] if name in arrays)]
    rest += [arrays[name] for name in ("session", "count") if name in arrays]
    return settle(order, same, rest)


def drop_again(con: duckdb.DuckDBPyConnection, plays: Table, report: Report) -> None:
    """Deletes plays of the same user, track and second as an earlier row from the table `events`.

    Where the source knows days alone, that leaves one play a day, most likely not what was meant: it is told.

    Args:
        con: the connection that holds the table, as `rows.make_events` creates it.
        plays: the table that its rows come from.
        report: takes note of them.
    """
    con.execute(
        """CREATE TABLE again AS SELECT row FROM (SELECT row, min(row) OVER (PARTITION BY user, track, time) AS first
            FROM events WHERE time > 0) WHERE row > first"""
    )
    found, rows = con.execute("SELECT count(*), min(row, 3) FROM again").fetchall()[0]
    if found:
        (midnights,) = con.execute("SELECT max(time % 86400) = 0 FROM events").fetchall()[0]
        con.execute("DELETE FROM events WHERE row IN (SELECT row FROM again)")
        report.drop(plays, AGAIN, found, plays.places(rows), fault=False)
        if midnights:
            left = "--deduplicate left one play a day of each user and track; without it all count"
            report.warnings.append(f"{plays.path.name}: timestamp: every time is a midnight, so that {left}")


def again(log: Log) -> I64:
    """Finds plays of the same user, track and second as an earlier row of the source.

    Args:
        log: n plays.

    Returns:
        Their rows in the source, ascending.
    """
    time = log.events.time[log.by_pair]
    new = np.append(True, time[1:] != time[:-1]) | (time == 0)
    new[log.starts] = True
    if new.all():
        return np.empty(0, np.int64)
    rows = log.row[log.by_pair].astype(np.int64)
    begin = np.flatnonzero(new)
    sizes = np.diff(begin, append=len(rows))
    first = np.repeat(np.minimum.reduceat(rows, begin), sizes)
    return np.sort(rows[rows != first])


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
    if not whole or (key[1:] < key[:-1]).any():  # else in order already: no pair goes back to an earlier fold
        # fractions are added in one order, so that their sum does not depend on that of listening
        order = lexsort([key]) if whole else np.lexsort((log.count[rows], key))
        rows, key = rows[order], key[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    events = log.events
    user, track = events.user[rows[starts]], events.track[rows[starts]]
    count = np.add.reduceat(log.count[rows], starts).astype(np.float32)
    time = np.maximum.reduceat(events.time[rows], starts)
    folds = fold[rows[starts]]
    ordered = lexsort([time, user])  # stable, and they are in order of track and fold
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
