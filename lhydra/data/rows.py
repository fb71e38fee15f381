"""Checking and converting the rows of a loaded source: one report of what is wrong, then clean DuckDB tables.

In: tables `raw_plays`, `raw_tracks`, `raw_users` of text (sources.py); the flat form has `raw_plays` only.
Out: `tracks`, `users` (position, id, v0, v1, ... in id order) and `events` (user, track, count, time, fold).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import duckdb

from lhydra.data.dataset import Column
from lhydra.data.sources import Source, Table
from lhydra.errors import DataError, complain
from lhydra.limits import CONTROL, MAX_ID_CHARS

MAX_COUNT = 1e12  # plays in one row: far above any real count, and sums of them still fit float32
_TIME_LIMIT = 100_000_000_000  # seconds, year 5138: a number above it is taken for milliseconds
NOT_A_TIME = "timestamp is neither Unix seconds nor ISO 8601"
MILLISECONDS = "timestamp looks like milliseconds, not seconds"
NO_PLAY = "playcount is 0, which is no play"
NOT_AN_ID = f"is longer than {MAX_ID_CHARS} characters or holds control characters"
_MACROS = f"""
CREATE MACRO no_id(x) AS length(x) > {MAX_ID_CHARS} OR regexp_matches(x, '{CONTROL}');
CREATE MACRO blank(x) AS x IS NULL OR trim(x) = '';
CREATE MACRO number(x) AS CASE WHEN abs(TRY_CAST(x AS DOUBLE)) <= 3.4e38 THEN TRY_CAST(x AS DOUBLE) END;
CREATE MACRO year_of(x) AS CASE WHEN regexp_matches(x, '^ *[0-9]{{4}}-') THEN left(trim(x), 4) ELSE x END;
CREATE MACRO calendar_year(x) AS
    CASE WHEN number(year_of(x)) BETWEEN 1000 AND 2999 THEN number(year_of(x)) END;
CREATE MACRO seconds(x) AS CASE
    WHEN NOT contains(x, '.') AND TRY_CAST(x AS BIGINT) BETWEEN 0 AND {_TIME_LIMIT - 1}
    THEN TRY_CAST(x AS BIGINT)
    WHEN blank(x) THEN 0
    WHEN regexp_matches(x, '^ *[0-9]{{4}}-') THEN epoch_us(TRY_CAST(x AS TIMESTAMPTZ)) // 1000000
    WHEN abs(number(x)) < {_TIME_LIMIT} THEN TRY_CAST(floor(number(x)) AS BIGINT) END;
"""
Side = Literal["tracks", "users"]


@dataclass
class Report:
    """What was found wrong, collected over all checks."""

    dropped: dict[str, int] = field(default_factory=dict)  # rows by reason
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # what --strict refuses

    def drop(self, table: Table, reason: str, count: int, places: str, *, fault: bool = True) -> None:
        """Notes rows that are left out.

        Args:
            table: where they are.
            reason: why.
            count: how many.
            places: the first of them, for people.
            fault: whether they count as bad rows.
        """
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.note(table, reason, count, places, "dropped", fault=fault)

    def note(self, table: Table, reason: str, count: int, places: str, fate: str, *, fault: bool) -> None:
        """Notes rows that are wrong.

        Args:
            table: where they are.
            reason: why.
            count: how many.
            places: the first of them, for people.
            fate: what becomes of them.
            fault: whether they count as bad rows.
        """
        places += ", ..." if count > 3 else ""
        rows = f"{count:,} row{'s' if count > 1 else ''}"
        self.warnings.append(f"{table.path.name}: {rows} {fate}: {reason} ({places})")
        if fault:
            self.faults.append(f"{table.path.name}: {rows}: {reason} ({places})")


def configure(con: duckdb.DuckDBPyConnection) -> None:
    """Prepares a connection for the queries of this module.

    Args:
        con: the connection.
    """
    con.execute("SET TimeZone = 'UTC'")  # a time without an offset is UTC, on every machine
    con.execute(_MACROS)


def check_plays(con: duckdb.DuckDBPyConnection, source: Source, report: Report) -> None:
    """Creates `good_plays`, the rows of `raw_plays` without a fault, as they are; notes the others.

    Args:
        con: the connection that holds the tables.
        source: where the rows come from.
        report: takes notes of what is left out.

    Raises:
        DataError: no row is left, no timestamp can be read, or all are milliseconds.
    """
    plays = source.plays
    cells = [f"{plays.sql('user_id')} AS user", f"{plays.sql('track_id')} AS track"]
    cases = [("coalesce(user, '') = ''", "empty user_id"), ("coalesce(track, '') = ''", "empty track_id")]
    cases += [(f"no_id({side})", f"{side}_id {NOT_AN_ID}") for side in ("user", "track")]
    if "playcount" in plays.names:
        cells.append(f"TRY_CAST({plays.sql('playcount')} AS DOUBLE) AS count")
        cases += [
            ("count IS NULL", "playcount is not a number"),
            ("NOT isfinite(count)", "playcount is NaN or infinite"),
            ("count < 0", "playcount is negative"),
            (f"count > {MAX_COUNT}", "playcount is above 1e12"),
        ]
    if "timestamp" in plays.names:
        cells += [f"{plays.sql('timestamp')} AS given", f"seconds({plays.sql('timestamp')}) AS time"]
        cases += [
            (f"time IS NULL AND number(given) >= {_TIME_LIMIT}", MILLISECONDS),
            ("coalesce(time, -1) < 0", NOT_A_TIME),
        ]
    if source.tracks and not source.flat:
        key = source.tracks.sql("track_id")
        known = f"SELECT {key} FROM raw_tracks WHERE {key} IS NOT NULL"
        cases.append((f"track NOT IN ({known})", f"track_id is not in {source.tracks.path.name}"))
    if "playcount" in plays.names:
        cases.append(("CAST(count AS FLOAT) = 0", NO_PLAY))
    reason = " ".join(f"WHEN {test} THEN {i}" for i, (test, _) in enumerate(cases))
    con.execute(
        f"""CREATE TABLE bad AS SELECT * FROM (SELECT row, CASE {reason} END AS i
            FROM (SELECT rowid AS row, {", ".join(cells)} FROM raw_plays)) WHERE i IS NOT NULL"""
    )
    con.execute(
        """CREATE VIEW good_plays AS SELECT rowid AS row, * FROM raw_plays
            WHERE rowid NOT IN (SELECT row FROM bad)"""
    )
    found = con.execute("SELECT i, count(*), min(row, 3) FROM bad GROUP BY i ORDER BY i").fetchall()
    if {cases[i][1] for i, _, _ in found} & {MILLISECONDS, NOT_A_TIME}:
        _check_times(con, plays)
    for i, bad, rows in found:
        report.drop(plays, cases[i][1], bad, plays.places(rows), fault=cases[i][1] != NO_PLAY)
    if sum(bad for _, bad, _ in found) == plays.rows:
        raise DataError(f"{plays.path}: found no usable row ({'; '.join(report.warnings)}), expected a play")


def describe(
    con: duckdb.DuckDBPyConnection, source: Source, side: Side, columns: Sequence[Column], report: Report
) -> dict[str, Column]:
    """Creates the table `side`: position, id and v<i> per column; returns by v<i> those that hold anything.

    An id with several rows keeps the first; rows that say something else are noted (for tracks, as faults).

    Args:
        con: the connection that holds the tables.
        source: where the rows come from.
        side: which table.
        columns: to read.
        report: takes notes of rows that contradict.

    Returns:
        The columns that hold anything, by their names in the table.
    """
    table = source.tracks if side == "tracks" else source.users
    key = f"{side[:-1]}_id"
    from_plays = f"SELECT DISTINCT {source.plays.sql(key)} AS id FROM good_plays"
    ids = from_plays
    if table is not None and not source.flat:
        own = f"SELECT DISTINCT {table.sql(key)} AS id FROM good_{side}"
        ids = own if side == "tracks" else f"{own} UNION {from_plays}"
        _keep_named(con, table, side, report)
    rows = "good_plays" if source.flat else f"good_{side}"
    values = []
    if table is not None:
        id_column = table.sql(key)
        again = con.execute(f"SELECT count(*) > count(DISTINCT {id_column}) FROM {rows}").fetchall()[0][0]
        if again:
            con.execute(
                f"""CREATE TABLE first_{side} AS SELECT * FROM {rows}
                    WHERE row IN (SELECT min(row) FROM {rows} GROUP BY {id_column})"""
            )
        else:  # the usual case: nothing to choose, nothing to copy
            con.execute(f"CREATE VIEW first_{side} AS SELECT * FROM {rows}")
        values = [_value(con, table, column, f"first_{side}") for column in columns]
        _note_bad_cells(con, table, side, columns, values, report)
        if again:
            _note_conflicts(con, table, side, rows, columns, values, report)
    shown = "".join(f", {value.format('f')} AS v{i}" for i, value in enumerate(values))
    join = f"LEFT JOIN first_{side} f ON f.{table.sql(key)} = ids.id" if table is not None else ""
    con.execute(
        f"""CREATE TABLE {side} AS
            SELECT CAST(row_number() OVER (ORDER BY ids.id) - 1 AS INTEGER) AS position, ids.id{shown}
            FROM ({ids}) ids {join}"""
    )
    return _filled(con, side, columns, report)


def make_events(con: duckdb.DuckDBPyConnection, plays: Table) -> None:
    """Creates `events` from the good plays: user, track (positions), count, time (0 unknown), fold (or NULL).

    Args:
        con: the connection that holds the tables.
        plays: the table of plays.

    Raises:
        DataError: all plays are of one user.
    """
    count = f"number({plays.sql('playcount')})" if "playcount" in plays.names else "1.0"
    time = f"seconds({plays.sql('timestamp')})" if "timestamp" in plays.names else "0"
    fold = "NULL"
    if "split" in plays.names:
        fold = f"CASE trim({plays.sql('split')}) WHEN 'train' THEN 0 WHEN 'valid' THEN 1 WHEN 'test' THEN 2 END"
    con.execute(
        f"""CREATE TABLE events AS SELECT u.position AS user, t.position AS track,
            CAST({count} AS DOUBLE) AS count, CAST({time} AS BIGINT) AS time, CAST({fold} AS TINYINT) AS fold
            FROM good_plays p JOIN users u ON u.id = p.{plays.sql("user_id")}
            JOIN tracks t ON t.id = p.{plays.sql("track_id")}"""
    )
    (users,) = con.execute("SELECT count(DISTINCT user) FROM events").fetchall()[0]
    if users < 2:
        raise DataError(complain(plays.path, "plays of 1 user", "plays of at least 2 users"))


def check_split_values(con: duckdb.DuckDBPyConnection, plays: Table) -> None:
    """Checks the column that names the fold of each play.

    Args:
        con: the connection that holds the tables.
        plays: the table of plays.

    Raises:
        DataError: the column split holds anything but train, valid and test.
    """
    split = plays.sql("split")
    bad = con.execute(
        f"""SELECT arg_min(coalesce({split}, ''), rowid), min(rowid, 1) FROM raw_plays
            WHERE coalesce(trim({split}), '') NOT IN ('train', 'valid', 'test')"""
    ).fetchall()[0]
    if bad[0] is not None:
        where = f"{plays.path}: split ({plays.places(bad[1])})"
        raise DataError(complain(where, repr(bad[0]), "train, valid or test"))


def _check_times(con: duckdb.DuckDBPyConnection, plays: Table) -> None:
    """Raises DataError when no timestamp at all can be read: then the column is at fault, not its rows."""
    cell = plays.sql("timestamp")
    good, in_seconds, example = con.execute(
        f"""SELECT count(*) FILTER (seconds({cell}) >= 0),
            count(*) FILTER (coalesce(number({cell}), 0) < {_TIME_LIMIT}),
            arg_min({cell}, rowid) FROM raw_plays WHERE NOT blank({cell})"""
    ).fetchall()[0]
    if not good:
        hint = ", which looks like milliseconds" if not in_seconds else ""
        raise DataError(complain(f"{plays.path}: timestamp", f"{example!r}{hint}", "Unix seconds or ISO 8601"))


def _keep_named(con: duckdb.DuckDBPyConnection, table: Table, side: Side, report: Report) -> None:
    """Creates the view `good_<side>` of the rows that have a good id; notes the others."""
    key = f"{side[:-1]}_id"
    empty, unusable = f"coalesce({table.sql(key)}, '') = ''", f"coalesce(no_id({table.sql(key)}), false)"
    con.execute(f"CREATE VIEW good_{side} AS SELECT rowid AS row, * FROM raw_{side} WHERE NOT ({empty} OR {unusable})")
    for test, reason in ((empty, f"empty {key}"), (unusable, f"{key} {NOT_AN_ID}")):
        bad, rows = con.execute(f"SELECT count(*), min(rowid, 3) FROM raw_{side} WHERE {test}").fetchall()[0]
        if bad:
            report.drop(table, reason, bad, table.places(rows))


def _value(con: duckdb.DuckDBPyConnection, table: Table, column: Column, rows: str) -> str:
    """Returns the SQL of the converted column, with {0} for the alias of its row; NULL is missing."""
    cell = "{0}." + table.sql(column.name)
    if column.kind == "multi":
        pieces = cell
        if not table.is_list(column.name):
            bar = con.execute(f"SELECT count(*) FROM {rows} WHERE contains({table.sql(column.name)}, '|')").fetchall()
            pieces = f"string_split({cell}, '{'|' if bar[0][0] else ','}')"
        return f"nullif([trim(x) FOR x IN {pieces} IF coalesce(trim(x), '') <> ''], [])"
    if table.is_list(column.name):
        raise DataError(complain(f"{table.path}: {column.name}", f"lists for kind {column.kind}", "kind: multi"))
    if column.kind == "numeric":
        return f"number({cell})"
    if column.kind == "year":
        return f"calendar_year({cell})"
    return f"CASE WHEN NOT blank({cell}) THEN {cell} END"


def _note_bad_cells(
    con: duckdb.DuckDBPyConnection,
    table: Table,
    side: Side,
    columns: Sequence[Column],
    values: Sequence[str],
    report: Report,
) -> None:
    for column, value in zip(columns, values, strict=True):
        if column.kind not in ("numeric", "year"):
            continue
        cell = table.sql(column.name)
        bad, example, row = con.execute(
            f"""SELECT count(*), arg_min({cell}, row), min(row, 1) FROM first_{side} f
                WHERE NOT blank({cell}) AND {value.format("f")} IS NULL"""
        ).fetchall()[0]
        if bad:
            what = "number" if column.kind == "numeric" else "year"
            first = f"first {example[:40]!r}, {table.places(row)}"
            report.warnings.append(
                f"{table.path.name}: {column.name}: {bad:,} not a {what}, taken as missing ({first})"
            )


def _note_conflicts(
    con: duckdb.DuckDBPyConnection,
    table: Table,
    side: Side,
    rows: str,
    columns: Sequence[Column],
    values: Sequence[str],
    report: Report,
) -> None:
    differs = " OR ".join(
        f"(r.{cell} IS DISTINCT FROM f.{cell} AND {value.format('r')} IS DISTINCT FROM {value.format('f')})"
        for cell, value in zip((table.sql(column.name) for column in columns), values, strict=True)
    )
    if not differs:
        return
    key = table.sql(f"{side[:-1]}_id")
    bad, places = con.execute(
        f"""SELECT count(*), min(r.row, 3) FROM {rows} r JOIN first_{side} f ON r.{key} = f.{key}
            WHERE {differs}"""
    ).fetchall()[0]
    if not bad:
        return
    reason = f"{side[:-1]}_id again with different data"
    where = table.places(places)
    if side == "tracks" and rows == "good_tracks":
        report.drop(table, reason, bad, where)
    else:  # the play in the row is good
        report.note(table, reason, bad, where, "(the first data are kept)", fault=side == "tracks")


def _filled(con: duckdb.DuckDBPyConnection, side: Side, columns: Sequence[Column], report: Report) -> dict[str, Column]:
    """Returns the columns with at least one value by SQL name."""
    counts = "".join(f", count(v{i})" for i in range(len(columns)))
    _, *filled = con.execute(f"SELECT count(*){counts} FROM {side}").fetchall()[0]
    for column, count in zip(columns, filled, strict=True):
        if not count:
            report.warnings.append(f"{side}: {column.name}: every cell is missing, left out")
    return {f"v{i}": column for i, column in enumerate(columns) if filled[i]}
