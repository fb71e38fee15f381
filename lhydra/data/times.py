"""What a cell says as a number and as a time: SQL macros with a grammar of their own.

DuckDB's casts also take underscores, hexadecimal digits, zone names and whatever a later version adds; here each
spelling is decided on, and `docs/data-format.md` lists them.
"""

from collections.abc import Callable, Sequence

import duckdb

_SPACE = " \t\n\v\f\r\u00a0"
_TIME_LIMIT = 100_000_000_000  # seconds, year 5138: a number above it is taken for milliseconds
_DIGITS = r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?"
_ZONE = r"( ?([Zz]|UTC|[+-][0-9]{2}(:?[0-9]{2})?))?"
_ISO = rf"[0-9]{{4}}-[0-9]{{1,2}}-[0-9]{{1,2}}([Tt ][0-9]{{1,2}}:[0-9]{{2}}(:[0-9]{{2}}([.,][0-9]+)?)?{_ZONE})?"
# A macro is pasted in wherever it is named, and each parameter wherever the macro names it: what names its own many
# times is given a name instead, by a list of one, or every query would be planned for longer than a small file is read.
# What most files hold is recognised by these, which cost least; years are near enough for whole seconds in a double.
_FEW_DIGITS = "[0-9]{1,15}(?:[.][0-9]{1,15})?"
_PLAIN = (
    "(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}"
    "(?:[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:[.][0-9]{1,6})?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
SMALL = 100_000_000  # seconds, March 1973: below it a number may be a date, and a time is hardly that of a play
_MACROS = rf"""
CREATE MACRO bare(x) AS trim(x, '{_SPACE}');
CREATE MACRO blank(x) AS x IS NULL OR x = '' OR (x < '!' OR left(x, 1) = '{_SPACE[-1]}') AND bare(x) = '';
CREATE MACRO real_number(x) AS
    CASE WHEN regexp_full_match(x, '{_FEW_DIGITS}') THEN CAST(x AS DOUBLE)
    WHEN regexp_full_match(bare(x), '{_DIGITS}|[+-]?(?i:nan|inf|infinity)') THEN TRY_CAST(bare(x) AS DOUBLE) END;
CREATE MACRO number(x) AS
    CASE WHEN regexp_full_match(x, '{_FEW_DIGITS}') THEN CAST(x AS DOUBLE)
    WHEN abs(real_number(x)) <= 3.4e38 THEN real_number(x) END;
CREATE MACRO part(x) AS
    CASE WHEN regexp_full_match(bare(x), '[+]?[0-9]{{1,18}}') THEN CAST(bare(x) AS BIGINT)
    WHEN number(x) >= 0 AND number(x) < 1e18 THEN CAST(floor(number(x)) AS BIGINT) END;
CREATE MACRO place(x) AS CASE WHEN number(x) = floor(number(x)) THEN part(x) END;
CREATE MACRO year_of(x) AS CASE WHEN regexp_matches(bare(x), '^[0-9]{{4}}-') THEN left(bare(x), 4) ELSE x END;
CREATE MACRO calendar_year(x) AS
    CASE WHEN number(year_of(x)) BETWEEN 1000 AND 2999 THEN number(year_of(x)) END;
CREATE MACRO floored(v, unit) AS (v - CASE WHEN v < 0 THEN unit - 1 ELSE 0 END) // unit;
CREATE MACRO with_dates() AS true;
CREATE MACRO is_date(v) AS v BETWEEN 19000000 AND 20999999 AND v = floor(v);
CREATE MACRO is_year(v) AS v BETWEEN 1900 AND 2099 AND v = floor(v);
CREATE MACRO basic(v, form) AS floored(epoch_us(try_strptime(CAST(CAST(v AS BIGINT) AS VARCHAR), form)), 1000000);
CREATE MACRO seconds_of_number(v) AS CASE
    WHEN with_dates() AND is_date(v) THEN basic(v, '%Y%m%d')
    WHEN with_dates() AND is_year(v) THEN NULL
    WHEN abs(v) < {_TIME_LIMIT} THEN CAST(floor(v) AS BIGINT)
    WHEN v BETWEEN 19000101000000 AND 20991231235959 AND v = floor(v) THEN basic(v, '%Y%m%d%H%M%S') END;
CREATE MACRO extended(x) AS regexp_replace(regexp_replace(regexp_replace(x,
    '^([0-9]{{4}})([0-9]{{2}})([0-9]{{2}})([Tt ]|$)', '\1-\2-\3\4'),
    '^([0-9-]+[Tt ][0-9]{{2}})([0-9]{{2}})', '\1:\2'),
    '^([0-9-]+[Tt ][0-9]{{2}}:[0-9]{{2}})([0-9]{{2}})', '\1:\2');
CREATE MACRO plain_zone(x) AS regexp_replace(regexp_replace(upper(x), ' ?(Z|UTC)$', '+00'), ' ([+-])', '\1');
CREATE MACRO seconds_of_text(x) AS CASE WHEN regexp_full_match(x, '{_ISO}')
    THEN floored(epoch_us(TRY_CAST(plain_zone(regexp_replace(x, '[.,][0-9]+', '')) AS TIMESTAMPTZ)), 1000000) END;
CREATE MACRO seconds(x) AS CASE
    WHEN regexp_full_match(x, '[0-9]{{9,11}}') THEN CAST(x AS BIGINT)
    WHEN blank(x) THEN 0
    WHEN regexp_full_match(x, '{_PLAIN}') THEN CAST(floor(epoch(TRY_CAST(x AS TIMESTAMPTZ))) AS BIGINT)
    WHEN number(x) IS NOT NULL THEN [seconds_of_number(v) FOR v IN [number(x)]][1]
    ELSE seconds_of_text(extended(bare(x))) END;
CREATE MACRO above_seconds(x) AS coalesce(number(x) >= {_TIME_LIMIT}, false);
CREATE MACRO is_milliseconds(x) AS seconds(x) IS NULL AND above_seconds(x);
CREATE MACRO is_bare_year(x) AS with_dates() AND coalesce(is_year(number(x)), false);
"""


def configure(con: duckdb.DuckDBPyConnection) -> None:
    """Gives a connection the macros of cells: `blank`, `number`, `calendar_year`, `seconds` and their kin.

    Args:
        con: the connection.
    """
    con.execute("SET TimeZone = 'UTC'")  # a time without an offset is UTC, on every machine
    con.execute(_MACROS)


def seconds_of(text: str) -> int | None:
    """Reads one time, by the grammar of cells.

    Args:
        text: Unix seconds, or ISO 8601; UTC where it names no offset.

    Returns:
        Unix seconds, None for anything else.
    """
    with duckdb.connect() as con:
        configure(con)
        ((found,),) = con.execute("SELECT CASE WHEN NOT blank($1) THEN seconds($1) END", [text]).fetchall()
    return None if found is None else int(found)


def decide_dates(con: duckdb.DuckDBPyConnection, table: str, cell: str, *, typed: bool) -> str:
    """Decides for a column of times whether `20200101` is a date and `2020` a year, or both are seconds of 1970.

    They are seconds where most small numbers of the column look like neither.

    Args:
        con: the connection; its macro `seconds` follows the decision.
        table: that holds the column.
        cell: the SQL name of the column.
        typed: whether the file has real times, of which nothing needs guessing.

    Returns:
        What to say of it, '' where no such number is met.
    """
    if typed:
        con.execute("CREATE OR REPLACE MACRO with_dates() AS false")
        return ""
    dates, years, others, example = con.execute(
        f"""SELECT count(*) FILTER (is_date(v)), count(*) FILTER (is_year(v)),
            count(*) FILTER (NOT is_date(v) AND NOT is_year(v)), arg_min(x, r) FILTER (is_date(v) OR is_year(v))
            FROM (SELECT {cell} AS x, number({cell}) AS v, rowid AS r FROM {table}
                WHERE TRY_CAST({cell} AS DOUBLE) < {SMALL}) WHERE v > 0"""
    ).fetchall()[0]
    if others > dates + years:
        con.execute("CREATE OR REPLACE MACRO with_dates() AS false")
        if few := dates + years:
            read = "cell like {!r} is" if few == 1 else "cells like {!r} are"
            return f"{few:,} {read.format(example)} read as seconds of 1970, as most small numbers here are"
    elif dates:
        read = "cell of 8 digits is read as a date" if dates == 1 else "cells of 8 digits are read as dates"
        return f"{dates:,} {read} (YYYYMMDD), not as seconds of 1970"
    return ""


def doubt(con: duckdb.DuckDBPyConnection, cell: str, places: Callable[[Sequence[int]], str]) -> str:
    """Doubts times that mostly lie in the first years after 1970: months, days or a wrong unit, read as seconds.

    Args:
        con: the connection that holds `events` and `good_plays`.
        cell: the SQL name of the column.
        places: says where rows are.

    Returns:
        What to say of it, '' where at least half of the known times are later.
    """
    known, old, row = con.execute(
        f"""SELECT count(*) FILTER (time > 0), count(*) FILTER (time > 0 AND time < {SMALL}),
            min(row) FILTER (time > 0 AND time < {SMALL}) FROM events"""
    ).fetchall()[0]
    if 2 * old <= known:
        return ""
    example, read = con.execute(
        f"SELECT {cell}, CAST(make_timestamp(seconds({cell}) * 1000000) AS VARCHAR) FROM good_plays WHERE row = {row}"
    ).fetchall()[0]
    first = f"the first, {example[:40]!r}, {places([row])}, is read as {read}"
    return (
        f"{old:,} of {known:,} known times lie before March 1973 ({first}); if they do not, give Unix seconds or "
        "full dates such as 2020-06-30, or name the column otherwise to go without times"
    )
