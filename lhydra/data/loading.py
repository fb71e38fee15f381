"""Loads the tables of a source into DuckDB, everything as text, so that ids survive exactly; `rows.py` converts it.

DuckDB reads a CSV fast but is not its judge: whatever it stumbles over is read again by the strict reader of the
standard library, which either names the line at fault or reads what DuckDB could not.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lhydra.data import json_text, songs
from lhydra.data.csv_text import literal, records
from lhydra.data.dataset import Column, Kind
from lhydra.data.schema import PLAY_COLUMNS, TRACK_COLUMNS, USER_COLUMNS, DeclaredColumns, used_columns
from lhydra.data.sources import Side, Source
from lhydra.data.table import Part, Table, as_text
from lhydra.errors import DataError, complain
from lhydra.timing import timed

_BATCH = 50_000  # records rewritten at once
_ALONE = "hive_partitioning=false"  # a folder `artist=A` would name a column otherwise
_PARQUET = f"read_parquet(?, {_ALONE})"


def choose_columns(source: Source, declared: DeclaredColumns) -> dict[Side, tuple[Column, ...]]:
    """Returns the columns of tracks and users to use; the types of all that are used are checked, those of plays too.

    Args:
        source: opened.
        declared: columns beyond the known ones.

    Returns:
        The columns by table.

    Raises:
        DataError: the source lacks a declared column, or one has a type that cannot be used.
    """
    sides: tuple[tuple[Side, Table, Mapping[str, Kind], Sequence[Column]], ...] = (
        ("tracks", source.tracks, TRACK_COLUMNS, declared.tracks),
        ("users", source.users, USER_COLUMNS, declared.users),
    )
    chosen: dict[Side, tuple[Column, ...]] = {}
    for side, table, known, columns in sides:
        for column in columns:
            if column.name not in table.names:
                found = f"no such column in {table.path}"
                raise DataError(complain(f"columns.{side}.{column.name}", found, "a column of the source"))
        chosen[side] = used_columns(table.names, known, columns)
        for column in chosen[side]:
            table.check(column.name, lists=column.kind == "multi", side=side)
    for name in source.plays.names:
        if name in PLAY_COLUMNS or name in source.only:
            source.plays.check(name)
    return chosen


@timed("prepare.read")
def load_source(
    con: duckdb.DuckDBPyConnection, source: Source, used: Mapping[Side, Sequence[Column]], work: Path
) -> Source:
    """Loads every table of the source into DuckDB: `raw_plays`, and `raw_tracks` and `raw_users` where they are apart.

    Args:
        con: the connection that holds the tables.
        source: opened.
        used: columns of tracks and users to read.
        work: for temporary files.

    Returns:
        The source with its rows counted.

    Raises:
        DataError: a file cannot be read as what it claims to be.
    """
    wanted = {side: {f"{side[:-1]}_id", *(column.name for column in used[side])} for side in used}
    own = {side: table for side in wanted if (table := source.beside_plays(side))}
    with_plays = {name for side in wanted if side not in own for name in wanted[side]}
    plays = load(con, source.plays, "raw_plays", {*PLAY_COLUMNS, *source.only, *with_plays}, work)
    loaded = {side: load(con, table, f"raw_{side}", wanted[side], work) for side, table in own.items()}
    return replace(source, plays=plays, tracks=loaded.get("tracks", plays), users=loaded.get("users", plays))


def load(
    con: duckdb.DuckDBPyConnection,
    table: Table,
    name: str,
    wanted: Collection[str],
    folder: Path,
    limit: int = 0,
) -> Table:
    """Creates the DuckDB table `name` of the columns `wanted`; returns `table` with its rows counted.

    All is text; lists stay lists. The rowid is the row's position in the table, its files one after the other.

    Args:
        con: the connection that holds the tables.
        table: what to read.
        name: of the table to create.
        wanted: columns to read.
        folder: where a CSV that DuckDB refuses is rewritten.
        limit: rows to read at most; 0 for all.

    Returns:
        The table with its rows counted.

    Raises:
        DataError: a file cannot be read as what it claims to be, or there is no row.
    """
    if table.derived and table.derived.key:
        songs.configure(con)  # only here: its macros take longer than a small file
    chosen = [column for column in table.names if column in wanted]
    parts: list[Part] = []
    before = 0
    for part in table.parts:
        shown = ", ".join(f"{as_text(table, column, part)} AS {table.sql(column)}" for column in chosen)
        for hidden in ("left_out", "key"):
            if table.derived and getattr(table.derived, hidden):
                shown += f", {getattr(table.derived, hidden)} AS {hidden}"
        tail = f" LIMIT {limit - before}" if limit else ""
        into = f"INSERT INTO {name}" if parts else f"CREATE OR REPLACE TABLE {name} AS"
        _read(con, table, part, f"{into} SELECT {shown} FROM", tail, folder)
        (total,) = con.execute(f"SELECT count(*) FROM {name}").fetchall()[0]
        parts.append(replace(part, rows=int(total) - before))
        before = int(total)
        if limit and before >= limit:
            break
    if not before:
        found = "a header and no rows" if table.dialect.header and not table.derived else "no rows"
        raise DataError(complain(table.path, found, "at least one row"))
    if table.derived and table.derived.key:
        _name_tracks(con, name, table.sql("track_id"))
    return replace(table, parts=tuple(parts))


def _name_tracks(con: duckdb.DuckDBPyConnection, name: str, track: str) -> None:
    """Gives rows without a track id that of a row with the same key, else the key itself."""
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE lent AS SELECT key, min({track}) AS id FROM {name}
            WHERE {track} IS NOT NULL AND key IS NOT NULL GROUP BY key"""
    )
    con.execute(f"UPDATE {name} SET {track} = lent.id FROM lent WHERE {name}.key = lent.key AND {track} IS NULL")
    con.execute(f"UPDATE {name} SET {track} = key WHERE {track} IS NULL")
    con.execute(f"DROP TABLE lent; ALTER TABLE {name} DROP COLUMN key")


def _read(con: duckdb.DuckDBPyConnection, table: Table, part: Part, select: str, tail: str, folder: Path) -> None:
    """Runs `select` over the rows of one file."""

    def run(scan: str, path: Path) -> None:
        rows = f"{scan} AS t({', '.join(names)})"
        if table.derived:
            rows = table.derived.rows.replace("$file", f"(FROM {rows})")
        con.execute(f"{select} {rows}{tail}", [literal(path)])

    names = (
        ['"' + name.replace('"', '""') + '"' for name in table.derived.file]
        if table.derived
        else [f"c{i}" for i in range(len(table.names))]
    )
    if table.derived and table.derived.json:
        path, size = json_text.checked(part.path, folder)
        longest = f", maximum_object_size={size}" if "unnest(" in table.derived.rows else ""
        packed = "gzip" if path.name.lower().endswith(".gz") else "none"
        try:
            run(f"read_json(?, columns={table.derived.json}, compression='{packed}', {_ALONE}{longest})", path)
        except duckdb.Error as error:
            raise DataError(complain(part.path, json_text.reason(error), json_text.AGAIN)) from None
        return
    if table.types:
        try:
            run(_PARQUET, part.path)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0].replace(literal(part.path), part.path.name)
            raise DataError(complain(part.path, reason, "a Parquet file that can be read to its end")) from None
        return
    scan = _scan_csv(table, part, names)
    try:
        if part.odd or not table.dialect.plain:
            run(_PARQUET, _rewritten(table, part, len(names), folder))
        else:
            run(scan, part.path)
    except duckdb.Error:
        try:
            run(_PARQUET, _rewritten(table, part, len(names), folder))
        except (duckdb.ProgrammingError, duckdb.DataError) as error:
            if not table.derived:
                raise
            raise DataError(complain(part.path, str(error).splitlines()[0], "rows that the format allows")) from None


def _scan_csv(table: Table, part: Part, names: list[str]) -> str:
    dialect = table.dialect
    columns = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(len(names)))
    packed = "gzip" if part.path.name.lower().endswith(".gz") else "none"
    sep, quote = dialect.sep.replace("'", "''"), '"' if dialect.quote else ""
    return (
        f"read_csv(?, auto_detect=false, header={str(dialect.header).lower()}, delim='{sep}', quote='{quote}',"
        f" escape='{quote}', strict_mode=true, compression='{packed}', {_ALONE}, columns={{{columns}}})"
    )


def _rewritten(table: Table, part: Part, width: int, folder: Path) -> Path:
    """Reads a file with the strict reader and returns it as a Parquet file in `folder`."""
    plain = re.sub(r"[*?\[\\]", "_", part.path.name)  # DuckDB takes no backslash beside a pattern
    target = folder / f"{table.parts.index(part)}-{plain}.parquet"
    if target.exists():
        return target
    schema = pa.schema([(f"c{i}", pa.string()) for i in range(width)])
    lines = records(part.path, width, table.dialect, strict=True)
    if table.dialect.header:
        next(lines)
    with pq.ParquetWriter(target, schema) as writer:
        batch: list[list[str]] = []
        for line, cells in lines:
            if len(cells) != width:
                if not table.dialect.ragged:
                    expected = f"{width}, as in the header" if table.dialect.header else f"{width}"
                    raise DataError(complain(f"{part.path}: line {line}", f"{len(cells)} cells", expected))
                cells = cells[:width] + [""] * (width - len(cells))
            batch.append(cells)
            if len(batch) == _BATCH:
                writer.write_table(pa.table(list(map(list, zip(*batch, strict=True))), schema=schema))
                batch.clear()
        if batch:
            writer.write_table(pa.table(list(map(list, zip(*batch, strict=True))), schema=schema))
    return target
