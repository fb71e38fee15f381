"""Reading a source: finds its files, refuses those that are not what they claim, loads them into DuckDB.

Everything is loaded as text, so that ids survive exactly; `rows.py` checks and converts it. DuckDB reads a
CSV fast but is not its judge: whatever it stumbles over is read again by the strict reader of the standard
library, which either names the line at fault or reads what DuckDB could not.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lhydra.data.csv_text import records, scan
from lhydra.data.schema import canonical, near
from lhydra.data.table import Table, as_text, is_text
from lhydra.errors import DataError, complain
from lhydra.timing import timed

EXTENSIONS = (".csv", ".csv.gz", ".parquet")
STEMS = ("plays", "tracks", "users")
_PROSE = ("md", "txt", "rst", "html", "pdf", "png", "jpg", "svg", "yaml", "yml", "toml", "py", "ipynb", "sql", "log")
_TABLES = (
    *("csv", "csv.gz", "parquet", "tsv", "tsv.gz", "tab", "dat", "xlsx", "xls", "jsonl", "ndjson", "feather", "arrow"),
    *("csv.bz2", "csv.xz", "csv.zst", "csv.zip", "tsv.bz2", "tsv.xz", "tsv.zst", "tsv.zip", "orc", "avro", "ods"),
)


@dataclass(frozen=True)
class Source:
    """The files of a source. Where tracks or users have none of their own, it is that of the plays."""

    path: Path
    plays: Table
    tracks: Table
    users: Table
    notes: tuple[str, ...] = ()  # of files that were not read

    def beside_plays(self, side: str) -> Table | None:
        """Returns the file of one side where it is another than that of the plays.

        Args:
            side: tracks or users.

        Returns:
            The table; None when plays say what is known of the side.
        """
        table = self.tracks if side == "tracks" else self.users
        return None if table is self.plays else table


@timed("prepare.open")
def open_source(path: Path) -> Source:
    """Returns the source at `path`: a flat file, or a folder with plays.*, tracks.* and users.*.

    Args:
        path: the file or folder.

    Returns:
        Its tables, opened as far as their headers.

    Raises:
        DataError: a file is missing, ambiguous, empty, unreadable, or has no column for an id.
    """
    if path.is_file():
        plays = open_table(path, ("user_id", "track_id"))
        return Source(path, plays, plays, plays)
    if not path.exists():
        raise DataError(complain(path, "no such file or folder", "a CSV or Parquet file, or a folder with plays.*"))
    if (path / "dataset.json").exists():
        raise DataError(
            complain(path, "a dataset that is prepared already", "a source: a file or a folder with plays.*")
        )
    files = {stem: find(path, stem) for stem in STEMS}
    if files["plays"] is None:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing in it"
        raise DataError(complain(path, found, "a folder with plays.csv, plays.csv.gz or plays.parquet"))
    notes = _unread(path, [file for file in files.values() if file])
    plays = open_table(files["plays"], ("user_id", "track_id"))
    tracks = open_table(files["tracks"], ("track_id",)) if files["tracks"] else plays
    users = open_table(files["users"], ("user_id",)) if files["users"] else plays
    return Source(path, plays, tracks, users, notes)


def load(
    con: duckdb.DuckDBPyConnection,
    table: Table,
    name: str,
    wanted: Collection[str],
    folder: Path,
    limit: int = 0,
) -> Table:
    """Creates the DuckDB table `name` of the columns `wanted`; returns `table` with its rows counted.

    All is text; lists stay lists. The rowid is the row's position in the file.

    Args:
        con: the connection that holds the tables.
        table: the file.
        name: of the table to create.
        wanted: columns to read.
        folder: where a CSV that DuckDB refuses is rewritten.
        limit: rows to read at most; 0 for all.

    Returns:
        The table with its rows counted.

    Raises:
        DataError: the file cannot be read as what it claims to be, or has no row.
    """
    chosen = [column for column in table.names if column in wanted]
    every = ", ".join(f"c{i}" for i in range(len(table.names)))
    shown = ", ".join(f"{as_text(table, column)} AS {table.sql(column)}" for column in chosen)
    tail = f" LIMIT {limit}" if limit else ""

    def create(scan: str, path: Path) -> None:
        con.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT {shown} FROM {scan}{tail}", [str(path)])

    parquet = f"read_parquet(?) AS t({every})"
    if table.types:
        try:
            create(parquet, table.path)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise DataError(complain(table.path, reason, "a Parquet file that can be read to its end")) from None
    else:
        columns = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(len(table.names)))
        packed = "gzip" if table.path.name.lower().endswith(".gz") else "none"
        scan = (
            "read_csv(?, auto_detect=false, header=true, delim=',', quote='\"', escape='\"',"
            f" strict_mode=true, compression='{packed}', columns={{{columns}}})"
        )
        try:
            if table.odd:
                create(parquet, _rewritten(table, folder))
            else:
                create(scan, table.path)
        except duckdb.Error:
            create(parquet, _rewritten(table, folder))
    (total,) = con.execute(f"SELECT count(*) FROM {name}").fetchall()[0]
    if not total:
        raise DataError(complain(table.path, "a header and no rows", "at least one row"))
    return replace(table, rows=int(total))


def find(folder: Path, stem: str) -> Path | None:
    """Returns the one file of the folder that holds the table `stem`, None when there is none.

    Args:
        folder: where to look.
        stem: the name without its ending.

    Returns:
        The path; None when there is none.

    Raises:
        DataError: several files could be meant.
    """
    wanted = {stem + extension for extension in EXTENSIONS}
    found = sorted(entry for entry in folder.iterdir() if entry.name.lower() in wanted and entry.is_file())
    if len(found) > 1:
        raise DataError(complain(folder, " and ".join(file.name for file in found), f"one {stem} file"))
    return found[0] if found else None


def _unread(folder: Path, read: Sequence[Path]) -> tuple[str, ...]:
    """Returns what to say of things in a source folder that look like tables, and are not read."""
    notes = []
    for entry in sorted(folder.iterdir()):
        stem, _, ending = entry.name.lower().partition(".")
        if entry in read or entry.name.startswith((".", "_")):
            continue
        if stem in STEMS and (entry.is_dir() or ending not in _PROSE):
            notes.append(f"not read: {entry.name} (save it as {stem}.csv, {stem}.csv.gz or {stem}.parquet to use it)")
        elif ending in _TABLES and not entry.is_dir():
            notes.append(f"not read: {entry.name} (the files of a source are plays.*, tracks.* and users.*)")
    return tuple(notes)


def open_table(path: Path, required: Sequence[str]) -> Table:
    """Returns the file at `path`, opened and checked as far as its header.

    Args:
        path: the file.
        required: columns that it must have.

    Returns:
        The table, its rows not read yet.

    Raises:
        DataError: it is not a table, or lacks a required column.
    """
    lower = path.name.lower()
    if not lower.endswith(EXTENSIONS):
        raise DataError(complain(path, f"a {path.suffix or 'nameless'} file", "a .csv, .csv.gz or .parquet file"))
    if path.stat().st_size == 0:
        raise DataError(complain(path, "an empty file", "a header and rows"))
    table = _open_parquet(path) if lower.endswith(".parquet") else _open_csv(path)
    given, table = table.names, replace(table, names=tuple(map(canonical, table.names)))
    repeated = sorted({name for name in table.names if name and table.names.count(name) > 1})
    if repeated:
        which = [
            as_given for name in repeated for as_given, known in zip(given, table.names, strict=True) if known == name
        ]
        found = (
            f"the columns {' and '.join(which)}"
            if len(set(which)) > 1
            else f"more than one column {', '.join(repeated)}"
        )
        raise DataError(complain(path, found, "distinct column names (case does not count in known ones)"))
    for name in required:
        if name not in table.names:
            meant = [other for other in table.names if near(other) == name]
            hint = f"; if {' or '.join(meant)} is meant, rename it" if meant else ""
            raise DataError(complain(path, f"the columns {', '.join(table.names)}", f"a column {name}{hint}"))
        kind = table.types and table.kind(name)
        if kind and not (is_text(kind) or pa.types.is_integer(kind)):
            raise DataError(complain(f"{path}: {name}", f"a column of {kind}", "ids as text or whole numbers"))
    return table


def _open_parquet(path: Path) -> Table:
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(complain(path, " ".join(str(error).split()), "a Parquet file")) from None
    if not rows:
        raise DataError(complain(path, "no rows", "at least one row"))
    return Table(path, tuple(schema.names), tuple(schema.types))


def _open_csv(path: Path) -> Table:
    lines, odd = scan(path)
    header = next(records(path, 1, strict=True), (1, []))
    if header[0] != 1 or not any(cell.strip() for cell in header[1]):
        raise DataError(complain(f"{path}: line 1", "a blank line", "the names of the columns"))
    return Table(path, tuple(header[1]), lines=lines, odd=odd)


def _rewritten(table: Table, folder: Path) -> Path:
    """Reads a CSV with the standard library's strict reader and returns it as a Parquet file in `folder`."""
    target = folder / f"{table.path.name}.parquet"
    if target.exists():
        return target
    schema = pa.schema([(f"c{i}", pa.string()) for i in range(len(table.names))])
    lines = records(table.path, len(table.names), strict=True)
    next(lines)
    with pq.ParquetWriter(target, schema) as writer:
        batch: list[list[str]] = []
        for line, cells in lines:
            if len(cells) != len(table.names):
                expected = f"{len(table.names)}, as in the header"
                raise DataError(complain(f"{table.path}: line {line}", f"{len(cells)} cells", expected))
            batch.append(cells)
            if len(batch) == 50_000:
                writer.write_table(pa.table(list(map(list, zip(*batch, strict=True))), schema=schema))
                batch.clear()
        if batch:
            writer.write_table(pa.table(list(map(list, zip(*batch, strict=True))), schema=schema))
    return target
