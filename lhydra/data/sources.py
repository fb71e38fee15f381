"""Reading a source: finds its files, refuses those that are not what they claim, loads them into DuckDB.

Everything is loaded as text, so that ids survive exactly; `rows.py` checks and converts it. DuckDB reads a
CSV fast but is not its judge: whatever it stumbles over is read again by the strict reader of the standard
library, which either names the line at fault or reads what DuckDB could not.
"""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lhydra.errors import DataError, complain
from lhydra.timing import timed

EXTENSIONS = (".csv", ".csv.gz", ".parquet")
_CHUNK = 1 << 24  # bytes
_ODD_SPACE = re.compile(rb'[,\r\n] +"|" +[,\r\n"]')  # spaces beside quotes: DuckDB would silently drop them
_CSV_ERRORS = {
    "unexpected end of data": "a quote that is never closed",
    "',' expected after '\"'": "text after a closing quote",
    "field larger than field limit (131072)": "a cell above 131,072 characters (an open quote?)",
}


@dataclass(frozen=True)
class Table:
    """One file of a source, opened and checked as far as its header; column i is `c<i>` in SQL."""

    path: Path
    names: tuple[str, ...]
    types: tuple[pa.DataType, ...] = ()  # of a Parquet file; a CSV is text
    lines: int = 0  # of a CSV
    odd: bool = False  # a CSV with spaces beside quotes
    rows: int = 0  # once loaded

    def sql(self, name: str) -> str:
        """Returns the SQL name of the column `name`.

        Args:
            name: of the column, as the file has it.

        Returns:
            The name, quoted.
        """
        return f"c{self.names.index(name)}"

    def is_list(self, name: str) -> bool:
        """Whether the column `name` holds lists (Parquet only).

        Args:
            name: of the column.

        Returns:
            True for a list column of Parquet.
        """
        return bool(self.types) and _is_list(self.types[self.names.index(name)])

    def places(self, rows: Sequence[int]) -> str:
        """Returns where rows (0-based) are in the file, once loaded: `lines 3, 17`, or `row 4` in Parquet.

        Args:
            rows: positions from 0.

        Returns:
            The words.
        """
        word = "row" if self.types else "line"
        if self.types:
            numbers = [row + 1 for row in rows]
        elif self.lines == self.rows + 1:
            numbers = [row + 2 for row in rows]
        else:  # blank lines or line breaks inside cells: the file itself knows
            numbers, wanted = [], set(rows)
            for row, (line, _) in enumerate(_records(self.path, len(self.names), strict=False), start=-1):
                if row in wanted:
                    numbers.append(line)
                if len(numbers) == len(wanted):
                    break
        return f"{word}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


@dataclass(frozen=True)
class Source:
    """The files of a source. In the flat form all three are the one file."""

    path: Path
    plays: Table
    tracks: Table | None
    users: Table | None

    @property
    def flat(self) -> bool:
        """Whether one file holds plays, tracks and users side by side."""
        return self.tracks is self.plays


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
    files = {stem: find(path, stem) for stem in ("plays", "tracks", "users")}
    if files["plays"] is None:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing in it"
        raise DataError(complain(path, found, "a folder with plays.csv, plays.csv.gz or plays.parquet"))
    plays = open_table(files["plays"], ("user_id", "track_id"))
    tracks = open_table(files["tracks"], ("track_id",)) if files["tracks"] else None
    users = open_table(files["users"], ("user_id",)) if files["users"] else None
    return Source(path, plays, tracks, users)


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
    shown = ", ".join(f"{_as_text(table, column)} AS {table.sql(column)}" for column in chosen)
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
    found = [folder / (stem + extension) for extension in EXTENSIONS if (folder / (stem + extension)).is_file()]
    if len(found) > 1:
        raise DataError(complain(folder, " and ".join(file.name for file in found), f"one {stem} file"))
    return found[0] if found else None


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
    repeated = sorted({name for name in table.names if name and table.names.count(name) > 1})
    if repeated:
        raise DataError(complain(path, f"more than one column {', '.join(repeated)}", "distinct column names"))
    for name in required:
        if name not in table.names:
            raise DataError(complain(path, f"the columns {', '.join(table.names)}", f"a column {name}"))
    for name, kind in zip(table.names, table.types, strict=False):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if name in ("user_id", "track_id") and not (_is_text(kind) or pa.types.is_integer(kind)):
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
    return Table(path, tuple(name.strip() for name in schema.names), tuple(schema.types))


def _open_csv(path: Path) -> Table:
    lines, odd = _scan(path)
    header = next(_records(path, 1, strict=True), (1, []))
    if header[0] != 1 or not any(cell.strip() for cell in header[1]):
        raise DataError(complain(f"{path}: line 1", "a blank line", "the names of the columns"))
    return Table(path, tuple(name.strip() for name in header[1]), lines=lines, odd=odd)


def _scan(path: Path) -> tuple[int, bool]:
    """Returns (lines, whether a space stands beside a quote); refuses NUL, bad UTF-8 and broken gzip."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, odd, tail = 0, False, b""
    try:
        with _bytes(path) as file:
            while chunk := file.read(_CHUNK):
                nul = chunk.find(0)
                decoder.decode(chunk[:nul] if nul >= 0 else chunk)  # whichever is wrong first is named
                if nul >= 0:
                    line = lines + chunk.count(b"\n", 0, nul) + 1
                    raise DataError(complain(f"{path}: line {line}", "a NUL byte", "UTF-8 text"))
                lines += chunk.count(b"\n")
                seam = tail + chunk
                if not odd and (b'" ' in seam or b' "' in seam):  # the search is slow, and seldom needed
                    odd = _ODD_SPACE.search(seam) is not None
                tail = chunk[-64:]
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line = lines + error.object[: error.start].count(b"\n") + 1
        found = f"the byte 0x{error.object[error.start]:02x}, which is not UTF-8"
        raise DataError(complain(f"{path}: line {line}", found, "UTF-8 text")) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(complain(path, f"broken gzip data ({error})", "a gzip file")) from None
    return lines + (not tail.endswith(b"\n")), odd


def _rewritten(table: Table, folder: Path) -> Path:
    """Reads a CSV with the standard library's strict reader and returns it as a Parquet file in `folder`."""
    target = folder / f"{table.path.name}.parquet"
    if target.exists():
        return target
    schema = pa.schema([(f"c{i}", pa.string()) for i in range(len(table.names))])
    records = _records(table.path, len(table.names), strict=True)
    next(records)
    with pq.ParquetWriter(target, schema) as writer:
        batch: list[list[str]] = []
        for line, cells in records:
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


def _records(path: Path, width: int, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """Yields (first line, cells) of every record, the header first; a blank line is one of width 1 only."""
    with io.TextIOWrapper(_bytes(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=strict)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                found = _CSV_ERRORS.get(str(error), str(error))
                raise DataError(complain(f"{path}: line {line}", found, "well-formed CSV")) from None
            if cells or width == 1:
                yield line, cells or [""]


def _bytes(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _as_text(table: Table, name: str) -> str:
    """Returns the SQL that gives the column as text, or as a list of text."""
    column = table.sql(name)
    if not table.types:
        return column
    kind = table.types[table.names.index(name)]
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if name == "timestamp" and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        return f"CAST(epoch_us({column}) // 1000000 AS VARCHAR)"
    if _is_list(kind) and name not in ("playcount", "timestamp", "split"):
        return f"CAST({column} AS VARCHAR[])"
    if _is_text(kind) or pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return f"CAST({column} AS VARCHAR)"
    raise DataError(complain(f"{table.path}: {name}", f"a column of {kind}", "another type"))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
