"""Checking and converting the rows of a loaded source: one report of what is wrong, then clean DuckDB tables.

In: tables `raw_plays`, `raw_tracks`, `raw_users` of text (sources.py); the flat form has `raw_plays` only.
Out: `tracks`, `users` (position, id, v0, v1, ... in id order) and `events` (user, track, count, time, fold).
"""

from collections.abc import Sequence

import duckdb

from lhydra.data import lists, times
from lhydra.data.dataset import Column
from lhydra.data.only import other_events
from lhydra.data.report import Report
from lhydra.data.sources import Side, Source
from lhydra.data.table import Table
from lhydra.errors import DataError, complain
from lhydra.limits import CONTROL, LAST_S, MAX_ID_CHARS

MAX_COUNT = 1e12  # plays in one row: far above any real count, and sums of them still fit float32
NOT_A_TIME = "timestamp is neither Unix seconds nor ISO 8601"
A_YEAR = "timestamp is a year alone, which is no time"
MILLISECONDS = "timestamp looks like milliseconds, not seconds"
NO_PLAY = "playcount is 0, which is no play"
NOT_AN_ID = f"is longer than {MAX_ID_CHARS} characters or holds control characters"
_MACROS = f"""
CREATE MACRO no_id(x) AS length(x) > {MAX_ID_CHARS} OR regexp_matches(x, '{CONTROL}');
CREATE MACRO named(x) AS CASE WHEN NOT blank(x) THEN bare(x) END;
CREATE MACRO truth(x) AS CASE WHEN lower(bare(x)) IN ('true', 'yes', 'y', 't') OR number(x) = 1 THEN true
    WHEN lower(bare(x)) IN ('false', 'no', 'n', 'f') OR number(x) = 0 THEN false END;
"""
_OPTIONAL = {  # columns of single plays and the macro that reads their cells
    "session": "named",
    "position": "place",
    "skipped": "truth",
    "completed": "truth",
    "ms_played": "part",
}
_EXPECTED = {"named": "text", "place": "a whole number from 0", "part": "a number from 0", "truth": "true or false"}


def configure(con: duckdb.DuckDBPyConnection) -> None:
    """Prepares a connection for the queries of this module.

    Args:
        con: the connection.
    """
    times.configure(con)
    lists.configure(con)
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
    report.drop_broken(*dict.fromkeys((plays, source.tracks, source.users)))
    cells = [f"{plays.sql('user_id')} AS user", f"{plays.sql('track_id')} AS track"]
    harmless, cases = {NO_PLAY}, _bad_ids(con, plays)
    if plays.derived and plays.derived.left_out:
        reasons = con.execute(
            "SELECT DISTINCT left_out FROM raw_plays WHERE left_out IS NOT NULL ORDER BY 1"
        ).fetchall()
        cases = [*((f"left_out = '{reason}'", reason) for (reason,) in reasons), *cases]
        cells.append("left_out")
        harmless |= {reason for (reason,) in reasons}
    if source.only:
        others = other_events(con, plays, source.only, report)
        cells += [plays.sql(name) for name in source.only]
        cases, harmless = [*others, *cases], harmless | {reason for _, reason in others}
    if "playcount" in plays.names:
        cells.append(f"real_number({plays.sql('playcount')}) AS count")
        cases += [
            ("count IS NULL", "playcount is not a number"),
            ("NOT isfinite(count)", "playcount is NaN or infinite"),
            ("count < 0", "playcount is negative"),
            (f"count > {MAX_COUNT}", "playcount is above 1e12"),
        ]
    if "timestamp" in plays.names:
        cell = plays.sql("timestamp")
        if said := times.decide_dates(con, "raw_plays", cell, typed=plays.is_time("timestamp")):
            report.warnings.append(f"{plays.path.name}: timestamp: {said}")
        cells += [f"{cell} AS given", f"seconds({cell}) AS time"]
        cases += [
            ("time IS NULL AND is_bare_year(given)", A_YEAR),
            ("time IS NULL AND above_seconds(given)", MILLISECONDS),
            ("coalesce(time, -1) < 0", NOT_A_TIME),
            (f"time > {LAST_S}", "timestamp is of the year 2100 or later"),
        ]
    matches: list[str] = []
    tracks = source.beside_plays("tracks")
    if tracks and not tracks.derived:  # exports often describe a part of what was played
        known = f"SELECT {tracks.sql('track_id')} FROM raw_tracks WHERE {tracks.sql('track_id')} IS NOT NULL"
        if con.execute(f"SELECT 1 FROM played_tracks WHERE id NOT IN ({known}) LIMIT 1").fetchall():
            cases.append((f"track NOT IN ({known})", f"track_id is not in {tracks.path.name}"))
    for side in ("tracks", "users"):
        if table := source.beside_plays(side):
            matches.append(_match(con, plays, table, side, report))
    if "playcount" in plays.names:
        cases.append(("CAST(count AS FLOAT) = 0", NO_PLAY))
    reason = " ".join(f"WHEN {test} THEN {i}" for i, (test, _) in enumerate(cases)) or "WHEN false THEN 0"
    con.execute(
        f"""CREATE TABLE bad AS SELECT * FROM (SELECT row, CASE {reason} END AS i
            FROM (SELECT rowid AS row, {", ".join(cells)} FROM raw_plays)) WHERE i IS NOT NULL"""
    )
    con.execute(
        """CREATE VIEW good_plays AS SELECT rowid AS row, * FROM raw_plays
            WHERE rowid NOT IN (SELECT row FROM bad)"""
    )
    found = con.execute("SELECT i, count(*), min(row, 3) FROM bad GROUP BY i ORDER BY i").fetchall()
    if {cases[i][1] for i, _, _ in found} & {MILLISECONDS, NOT_A_TIME, A_YEAR}:
        _check_times(con, plays)
    for i, bad, rows in found:
        report.drop(plays, cases[i][1], bad, plays.places(rows), fault=cases[i][1] not in harmless)
    report.warnings += matches
    if sum(bad for _, bad, _ in found) == plays.rows:
        raise DataError(f"{plays.path}: found no usable row ({'; '.join(report.drops)}), expected a play")


def _bad_ids(con: duckdb.DuckDBPyConnection, plays: Table) -> list[tuple[str, str]]:
    """Creates `played_users` and `played_tracks`, the distinct ids; returns tests of rows for the faults among them."""
    cases = []
    for side in ("user", "track"):
        cell = plays.sql(f"{side}_id")
        con.execute(f"CREATE TABLE played_{side}s AS SELECT DISTINCT coalesce({cell}, '') AS id FROM raw_plays")
    for test, said in (("coalesce({}, '') = ''", "empty {}_id"), ("no_id({})", f"{{}}_id {NOT_AN_ID}")):
        for side in ("user", "track"):  # to look at every row costs more, and is seldom needed
            if con.execute(f"SELECT 1 FROM played_{side}s WHERE {test.format('id')} LIMIT 1").fetchall():
                cases.append((test.format(side), said.format(side)))
    return cases


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
    own_file = source.beside_plays(side) is not None
    key = f"{side[:-1]}_id"
    own = f"SELECT DISTINCT {table.sql(key)} AS id FROM good_{side}"
    closed = own_file and side == "tracks" and not table.derived
    if closed:
        ids = own
    else:
        ids = f"SELECT DISTINCT {source.plays.sql(key)} AS id FROM good_plays"
        if not con.execute("SELECT 1 FROM bad LIMIT 1").fetchall():
            ids = f"SELECT id FROM played_{side}"
    if own_file:
        _keep_named(con, table, side, report)
        ids = ids if closed else f"{own} UNION {ids}"
    rows = f"good_{side}" if own_file else "good_plays"
    id_column = table.sql(key)
    values = [_value(con, table, column, rows, report) for column in columns]
    again = bool(columns) and con.execute(f"SELECT count(*) > count(DISTINCT {id_column}) FROM {rows}").fetchall()[0][0]
    if again:  # of each column the first cell that says something
        cells = [(table.sql(column.name), value.format("r")) for column, value in zip(columns, values, strict=True)]
        firsts = "".join(
            f", arg_min(r.{cell}, row) FILTER (WHERE {value} IS NOT NULL) AS {cell}" for cell, value in cells
        )
        differs = " OR ".join(f"coalesce(min({value}) <> max({value}), false)" for _, value in cells)
        con.execute(
            f"""CREATE TABLE first_{side} AS SELECT {id_column}, min(row) AS row, {differs} AS differs{firsts}
                FROM {rows} r GROUP BY {id_column}"""
        )
    elif columns:  # the usual case: nothing to choose, nothing to copy
        con.execute(f"CREATE VIEW first_{side} AS SELECT * FROM {rows}")
    _note_bad_cells(con, table, rows, columns, values, report)
    if again:
        _note_conflicts(con, table, side, rows, columns, values, report)
    shown = "".join(f", {value.format('f')} AS v{i}" for i, value in enumerate(values))
    join = f"LEFT JOIN first_{side} f ON f.{id_column} = ids.id" if columns else ""
    con.execute(
        f"""CREATE TABLE {side} AS
            SELECT CAST(row_number() OVER (ORDER BY ids.id) - 1 AS INTEGER) AS position, ids.id{shown}
            FROM ({ids}) ids {join}"""
    )
    return _filled(con, side, columns, report)


def make_events(con: duckdb.DuckDBPyConnection, plays: Table, report: Report) -> None:
    """Creates `events` from the good plays: user, track (positions), count, time (0 unknown), fold (or NULL).

    Of session, position, skipped, completed and ms_played it has those that the source has, NULL where unknown.

    Args:
        con: the connection that holds the tables.
        plays: the table of plays.
        report: what was dropped before; takes notes of cells that cannot be read.
    """
    count = f"number({plays.sql('playcount')})" if "playcount" in plays.names else "1.0"
    time = f"seconds({plays.sql('timestamp')})" if "timestamp" in plays.names else "0"
    fold = "NULL"
    if "split" in plays.names:
        fold = f"CASE bare({plays.sql('split')}) WHEN 'train' THEN 0 WHEN 'valid' THEN 1 WHEN 'test' THEN 2 END"
    optional = {name: f"{macro}({plays.sql(name)})" for name, macro in _OPTIONAL.items() if name in plays.names}
    shown = "".join(f", {value} AS {name}" for name, value in optional.items())
    con.execute(
        f"""CREATE TABLE events AS SELECT u.position AS user, t.position AS track,
            CAST({count} AS DOUBLE) AS count, CAST({time} AS BIGINT) AS time, CAST({fold} AS TINYINT) AS fold,
            p.row AS row{shown}
            FROM good_plays p JOIN users u ON u.id = p.{plays.sql("user_id")}
            JOIN tracks t ON t.id = p.{plays.sql("track_id")}"""
    )
    if "timestamp" in plays.names and (doubt := times.doubt(con, plays.sql("timestamp"), plays.places)):
        report.warnings.append(f"{plays.path.name}: timestamp: {doubt}")
    for name, value in optional.items():
        cell = plays.sql(name)
        bad, example, row = con.execute(
            f"""SELECT count(*), arg_min({cell}, row), min(row, 1) FROM good_plays
                WHERE NOT blank({cell}) AND {value} IS NULL"""
        ).fetchall()[0]
        if bad:
            first = f"first {example[:40]!r}, {plays.places(row)}"
            what = _EXPECTED[_OPTIONAL[name]]
            report.warnings.append(f"{plays.path.name}: {name}: {bad:,} not {what}, taken as unknown ({first})")


def _match(con: duckdb.DuckDBPyConnection, plays: Table, table: Table, side: str, report: Report) -> str:
    """Returns how many tracks or users of the plays have a row in their table; refuses a table that fits none."""
    key = f"{side[:-1]}_id"
    own = f"SELECT DISTINCT {table.sql(key)} AS id FROM raw_{side} WHERE coalesce({table.sql(key)}, '') <> ''"
    played = f"SELECT id FROM played_{side} WHERE id <> ''"
    both, in_plays, in_table, of_plays, of_table = con.execute(
        f"""SELECT count(*) FILTER (o.id = p.id), count(p.id), count(o.id), min(p.id), min(o.id)
            FROM ({own}) o FULL JOIN ({played}) p ON o.id = p.id"""
    ).fetchall()[0]
    if in_plays and in_table and not both:
        found = f"{key} {of_table!r}, and {plays.path.name} has {of_plays!r}: no {side[:-1]} of the plays is in it"
        raise DataError(f"{table.path}: found {found}, expected the same ids in both files")
    report.matched[side] = {"ids": in_plays, "with_row": both}
    more = f"; {in_table - both:,} more rows are of {side} that no play names" if in_table > both else ""
    return (
        f"{table.path.name}: {both:,} of {in_plays:,} {side} in the plays have a row ({_percent(both, in_plays)}){more}"
    )


def _percent(part: int, whole: int) -> str:
    share = 100 * part / max(whole, 1)
    return "100%" if part == whole else f"{min(share, 99.9):.1f}%"


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
            WHERE coalesce(bare({split}), '') NOT IN ('train', 'valid', 'test')"""
    ).fetchall()[0]
    if bad[0] is not None:
        where = f"{plays.path}: split ({plays.places(bad[1])})"
        raise DataError(complain(where, repr(bad[0]), "train, valid or test"))


def _check_times(con: duckdb.DuckDBPyConnection, plays: Table) -> None:
    """Raises DataError when no timestamp at all can be read: then the column is at fault, not its rows."""
    cell = plays.sql("timestamp")
    good, others, not_years, example = con.execute(
        f"""SELECT count(*) FILTER (seconds({cell}) >= 0), count(*) FILTER (NOT is_milliseconds({cell})),
            count(*) FILTER (NOT is_bare_year({cell})), arg_min({cell}, rowid)
            FROM raw_plays WHERE NOT blank({cell})"""
    ).fetchall()[0]
    if not good:
        hint = "" if others else ", which looks like milliseconds"
        expected = "Unix seconds or ISO 8601"
        if not not_years:
            hint = ", a year alone"
            expected += "; give full dates such as 2020-06-30, or name the column otherwise to go without times"
        raise DataError(complain(f"{plays.path}: timestamp", f"{example!r}{hint}", expected))


def _keep_named(con: duckdb.DuckDBPyConnection, table: Table, side: Side, report: Report) -> None:
    """Creates the view `good_<side>` of the rows that have a good id; notes the others."""
    key = f"{side[:-1]}_id"
    empty, unusable = f"coalesce({table.sql(key)}, '') = ''", f"coalesce(no_id({table.sql(key)}), false)"
    con.execute(f"CREATE VIEW good_{side} AS SELECT rowid AS row, * FROM raw_{side} WHERE NOT ({empty} OR {unusable})")
    for test, reason in ((empty, f"empty {key}"), (unusable, f"{key} {NOT_AN_ID}")):
        bad, rows = con.execute(f"SELECT count(*), min(rowid, 3) FROM raw_{side} WHERE {test}").fetchall()[0]
        if bad:
            report.drop(table, reason, bad, table.places(rows))


def _value(con: duckdb.DuckDBPyConnection, table: Table, column: Column, rows: str, report: Report) -> str:
    """Returns the SQL of the converted column, with {0} for the alias of its row; NULL is missing."""
    cell = "{0}." + table.sql(column.name)
    if column.kind == "multi":
        pieces = cell
        if not table.is_list(column.name):
            mark, listed, said = lists.separator(con, rows, table.sql(column.name))
            if said:
                report.lists.append(f"{table.path.name}: {column.name}: {said}")
                report.warnings.append(report.lists[-1])
            pieces = lists.pieces(cell, mark, listed)
        return f"nullif([bare(x) FOR x IN {pieces} IF NOT blank(x)], [])"
    if column.kind == "numeric":
        return f"number({cell})"
    if column.kind == "year":
        return f"calendar_year({cell})"
    return f"CASE WHEN NOT blank({cell}) THEN {cell} END"


def _note_bad_cells(
    con: duckdb.DuckDBPyConnection,
    table: Table,
    rows: str,
    columns: Sequence[Column],
    values: Sequence[str],
    report: Report,
) -> None:
    for column, value in zip(columns, values, strict=True):
        if column.kind not in ("numeric", "year"):
            continue
        cell = table.sql(column.name)
        bad, example, row = con.execute(
            f"""SELECT count(*), arg_min({cell}, row), min(row, 1) FROM {rows} f
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
        f"(r.{cell} IS DISTINCT FROM f.{cell} AND {value.format('r')} <> {value.format('f')})"
        for cell, value in zip((table.sql(column.name) for column in columns), values, strict=True)
    )
    if not differs:
        return
    key = table.sql(f"{side[:-1]}_id")
    bad, places = con.execute(
        f"""SELECT count(*), min(r.row, 3) FROM {rows} r JOIN first_{side} f ON r.{key} = f.{key}
            WHERE f.differs AND ({differs})"""
    ).fetchall()[0]
    if not bad:
        return
    reason = f"{side[:-1]}_id again with different data"
    if table.derived and table.derived.key:  # ids are made of names: of the spellings of one song the first is shown
        reason = "a song of before, spelled otherwise or of another album"
    where = table.places(places)
    if side == "tracks" and rows == "good_tracks":
        report.drop(table, reason, bad, where)
    else:  # the play in the row is good
        report.note(
            table, reason, bad, where, "(the first data are kept)", fault=side == "tracks" and not table.derived
        )


def _filled(con: duckdb.DuckDBPyConnection, side: Side, columns: Sequence[Column], report: Report) -> dict[str, Column]:
    """Returns the columns with at least one value by SQL name."""
    counts = "".join(f", count(v{i})" for i in range(len(columns)))
    _, *filled = con.execute(f"SELECT count(*){counts} FROM {side}").fetchall()[0]
    for column, count in zip(columns, filled, strict=True):
        if not count:
            report.warnings.append(f"{side}: {column.name}: every cell is missing, left out")
    return {f"v{i}": column for i, column in enumerate(columns) if filled[i]}
