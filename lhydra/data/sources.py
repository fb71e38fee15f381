"""Finds the tables of a source and opens each as far as its header; refuses those that are not what they claim to be.

A source is what Lhydra calls tables (a flat file, or plays.*, tracks.* and users.* in a folder), or an export of
another program, which `formats` knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lhydra import config
from lhydra.data import formats
from lhydra.data.csv_text import CSV, SEPARATORS, Dialect, records, scan
from lhydra.data.formats.format import Export, Sample, Tables
from lhydra.data.hints import lacks, separator, within
from lhydra.data.json_records import ENDINGS, first_keys, is_json, open_records
from lhydra.data.only import kept_by_column
from lhydra.data.schema import PLAY_COLUMNS, TRACK_COLUMNS, USER_COLUMNS, canonical
from lhydra.data.settings import ALIASES, ReadSettings
from lhydra.data.table import Part, Table, is_text
from lhydra.data.unpacking import unpacked
from lhydra.errors import ConfigError, DataError, complain
from lhydra.timing import timed

TEXT = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
EXTENSIONS = (*TEXT, ".parquet", *ENDINGS)
STEMS = ("plays", "tracks", "users")
Side = Literal["tracks", "users"]
_IDS = ("user_id", "track_id")
_PROSE = ("md", "txt", "rst", "html", "pdf", "png", "jpg", "svg", "yaml", "yml", "toml", "py", "ipynb", "sql", "log")
_TABLES = (
    *("csv", "csv.gz", "parquet", "tsv", "tsv.gz", "tab", "dat", "xlsx", "xls", "jsonl", "ndjson", "feather", "arrow"),
    *("csv.bz2", "csv.xz", "csv.zst", "csv.zip", "tsv.bz2", "tsv.xz", "tsv.zst", "tsv.zip", "orc", "avro", "ods"),
)


@dataclass(frozen=True)
class Source:
    """The tables of a source. Where tracks or users have none of their own, it is that of the plays."""

    path: Path
    plays: Table
    tracks: Table
    users: Table
    notes: tuple[str, ...] = ()  # of files that were not read, and what the source was taken for
    format: str = "tables"
    only: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # by column of the plays: values of which a row has one

    def beside_plays(self, side: str) -> Table | None:
        """Returns the table of one side where it is another than that of the plays.

        Args:
            side: tracks or users.

        Returns:
            The table; None when plays say what is known of the side.
        """
        table = self.tracks if side == "tracks" else self.users
        return None if table is self.plays else table


@dataclass
class _Mapping:
    """What `--columns` says, and which parts of it were met."""

    given: dict[str, str]  # name in the file by known name
    met: set[str] = field(default_factory=set)

    def apply(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names to go by; a column that has a known name already gives way to the one that is mapped."""
        folded = {name.strip().casefold(): name for name in reversed(names)}
        here = {
            known: name if name in names else folded[name.strip().casefold()]
            for known, name in self.given.items()
            if name in names or name.strip().casefold() in folded
        }
        self.met |= set(here)
        back = {name: known for known, name in here.items()}
        return tuple(back.get(name, f"{name} of the file" if canonical(name) in here else name) for name in names)


@timed("prepare.open")
def open_source(
    path: Path,
    read: ReadSettings = ReadSettings(),  # noqa: B008 - frozen
    work: Path | None = None,
) -> Source:
    """Returns the source at `path`, as tables or as an export of another program.

    Args:
        path: a file, a folder, a pattern such as `plays-*.csv.gz`, a zip, or `-` for standard input.
        read: what is said of its form.
        work: a folder for what is unpacked, and for standard input.

    Returns:
        Its tables, opened as far as their headers.

    Raises:
        DataError: a file is missing, ambiguous, empty, unreadable, or has no column for an id.
    """
    found = unpacked(path, work)
    if not isinstance(found, list) and not found.exists():
        raise DataError(
            complain(path, "no such file or folder", "a CSV, JSON or Parquet file, or a folder with plays.*")
        )
    if not isinstance(found, list) and (found / "dataset.json").exists():
        raise DataError(
            complain(path, "a dataset that is prepared already", "a source: a file or a folder with plays.*")
        )
    mapping = _Mapping(read.mapping())
    names = (*PLAY_COLUMNS, *TRACK_COLUMNS, *USER_COLUMNS)
    if strange := [name for name in mapping.given if name not in names]:
        raise ConfigError(config.unknown("--columns", strange[0], (*ALIASES, *names)))
    plain = bool(mapping.given or read.only) or read.sep is not None or not read.header
    if plain and read.format not in ("auto", "tables"):
        both = "it with --columns, --sep, --no-header or --only"
        raise DataError(complain(f"--format {read.format}", both, "it alone: a format says itself how it is read"))
    if read.format == "tables" or plain or (read.format == "auto" and _is_tables(found)):
        source = _open_tables(path, found, read, mapping, work)
        if read.user is not None:
            raise _named_already(path, read.user)
        if missed := sorted(set(mapping.given) - mapping.met):
            name = mapping.given[missed[0]]
            here = ", ".join(source.plays.names)
            raise DataError(complain(f"--columns {missed[0]}={name}", f"the columns {here} in {path}", "one of them"))
        return replace(source, only=kept_by_column(source.plays, read))
    samples = {file: Sample.of(file) for file in (found if isinstance(found, list) else _files_of(found))}
    export = Export(path, tuple(sample for sample in samples.values() if sample), read.user)
    known, tables = formats.open_export(export, read.format)
    if known is None or tables is None:
        return _open_tables(path, found, read, mapping, work)
    if read.user is not None and not tables.plays.of_one_person:
        raise _named_already(path, read.user)
    return _exported(path, known.name, known.title, tables, [file for file, sample in samples.items() if not sample])


def _named_already(path: Path, user: str) -> DataError:
    return DataError(
        complain(f"--user {user}", f"{path}, which names its users", "an export of one person, without a user")
    )


def _exported(path: Path, name: str, title: str, tables: Tables, blank: Sequence[Path]) -> Source:
    plays = tables.plays
    notes = [f"{path.name or path}: taken for {title} (--format {name})", *tables.notes]
    notes += [f"not read: {file.name} (empty, or broken)" for file in blank]
    notes += [note for table in filter(None, (plays, tables.tracks, tables.users)) for note in table.unread()]
    return Source(path, plays, tables.tracks or plays, tables.users or plays, tuple(notes), name)


def _files_of(path: Path) -> list[Path]:
    """Returns the files of an export: the file, or those in the folder and the folders within it."""
    if path.is_file():
        return [path]
    found = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return [entry for entry in found if not any(part.startswith((".", "__")) for part in entry.relative_to(path).parts)]


def _is_tables(found: Path | list[Path]) -> bool:
    """Whether what was found is in Lhydra's own form: plays.* in a folder, or a flat file with both ids."""
    if isinstance(found, Path) and found.is_dir():
        parts = _parts_of(found, "plays")
        if parts and is_json(parts[0]):  # else it may be an export whose files have such names
            return _has_ids(parts[0], _IDS)
        return bool(parts) or _parquet_of(found) != []
    files = found if isinstance(found, list) else [found]
    if not files[0].name.lower().endswith(EXTENSIONS) or not files[0].stat().st_size:
        return False
    if files[0].name.lower().endswith(".parquet"):
        try:
            return set(_IDS) <= set(map(canonical, _open_parquet(files[0])[0]))
        except DataError:
            return False
    if is_json(files[0]):
        return _has_ids(files[0], _IDS)
    sample = Sample.of(files[0])
    return sample is not None and set(_IDS) <= set(
        map(canonical, sample.header(_dialect(files[0], ReadSettings()).sep))
    )


def _open_tables(
    path: Path, found: Path | list[Path], read: ReadSettings, mapping: _Mapping, work: Path | None
) -> Source:
    """Opens a source in Lhydra's own form."""
    if isinstance(found, list) or found.is_file():
        plays = open_table(path, found if isinstance(found, list) else [found], _IDS, read, mapping, work)
        return Source(path, plays, plays, plays, tuple(plays.unread()))
    files = {stem: find(found, stem, mapping) for stem in STEMS}
    if not files["plays"] and (pieces := _parquet_of(found)):
        plays = open_table(path, pieces, _IDS, read, mapping)
        return Source(path, plays, plays, plays)
    if not files["plays"]:
        names = ", ".join(sorted(entry.name for entry in found.iterdir())) or "nothing in it"
        expected = f"a folder with plays.csv, plays.jsonl or plays.parquet, or an export ({formats.listed()})"
        seen = [entry for entry in sorted(found.iterdir()) if entry.is_file() and not entry.name.startswith((".", "_"))]
        expected += within(list(filter(_is_tables, seen)), seen, EXTENSIONS)
        raise DataError(complain(path, names, expected))
    notes = _unread(found, [file for part in files.values() for file in part])
    tables = {
        stem: open_table(parts[0].parent if len(parts) > 1 else parts[0], parts, required, read, mapping, work)
        for (stem, parts), required in zip(files.items(), (_IDS, _IDS[1:], _IDS[:1]), strict=True)
        if parts
    }
    plays = tables["plays"]
    notes = (*notes, *(note for table in tables.values() for note in table.unread()))
    return Source(path, plays, tables.get("tracks", plays), tables.get("users", plays), notes)


def find(folder: Path, stem: str, mapping: _Mapping | None = None) -> list[Path]:
    """Returns the files of the folder that hold the table `stem`.

    They are `plays.csv`, or `plays-1.csv`, `plays-2.csv` and so on, or the Parquet files in a folder `plays`. JSON of
    tracks and users is one only where its records have the id.

    Args:
        folder: where to look.
        stem: the name without its ending.
        mapping: of names.

    Returns:
        The paths in order of their names; [] when there is none.

    Raises:
        DataError: several files could be meant.
    """
    found = _parts_of(folder, stem)
    if found and is_json(found[0]) and stem != "plays" and not _has_ids(found[0], (f"{stem[:-1]}_id",), mapping):
        return []
    alone = [file for file in found if _stem(file) == stem]
    if len(alone) > 1 or (alone and len(found) > 1):
        names = " and ".join(file.name for file in found)
        raise DataError(complain(folder, names, f"one {stem} file, or {stem}-1.*, {stem}-2.* and so on"))
    if len({_ending(file) for file in found}) > 1:
        raise DataError(complain(folder, " and ".join(file.name for file in found), f"{stem} files of one kind"))
    return found


def _stem(file: Path) -> str:
    return file.name.lower().partition(".")[0]


def _ending(file: Path) -> str:
    return file.name.lower().removesuffix(".gz").rpartition(".")[2]


def _parts_of(folder: Path, stem: str) -> list[Path]:
    within = folder / stem
    if within.is_dir() and (pieces := _parquet_of(within)):
        return pieces
    files = [entry for entry in folder.iterdir() if entry.name.lower().endswith(EXTENSIONS) and entry.is_file()]
    named = [file for file in files if _stem(file) == stem or _stem(file).startswith((f"{stem}-", f"{stem}_"))]
    return sorted([file for file in named if not is_json(file)] or named)  # JSON beside a table may be anything


def _has_ids(file: Path, ids: Sequence[str], mapping: _Mapping | None = None) -> bool:
    """Whether the first record of a file of JSON has these ids."""
    sample = Sample.of(file)
    keys = tuple(first_keys(sample.head)) if sample else ()
    return set(ids) <= set(map(canonical, mapping.apply(keys) if mapping else keys))


def _parquet_of(folder: Path) -> list[Path]:
    """Returns the Parquet files of a folder that holds nothing but one table's, [] where it holds anything else."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "_"))]
    parts = [entry for entry in entries if entry.name.lower().endswith(".parquet") and entry.is_file()]
    same = parts and len(parts) == len(entries) and not any(_stem(part) in STEMS for part in parts)
    return parts if same and set(_IDS) <= set(map(canonical, _open_parquet(parts[0])[0])) else []


def _unread(folder: Path, read: Sequence[Path]) -> tuple[str, ...]:
    """Returns what to say of things in a source folder that look like tables, and are not read."""
    notes = []
    for entry in sorted(folder.iterdir()):
        stem, _, ending = entry.name.lower().partition(".")
        if entry in read or entry in {file.parent for file in read} or entry.name.startswith((".", "_")):
            continue
        if stem in STEMS and (entry.is_dir() or ending not in _PROSE):
            notes.append(f"not read: {entry.name} (save it as {stem}.csv, {stem}.csv.gz or {stem}.parquet to use it)")
        elif ending in _TABLES and not entry.is_dir():
            notes.append(f"not read: {entry.name} (the files of a source are plays.*, tracks.* and users.*)")
    return tuple(notes)


def open_table(
    path: Path,
    files: Sequence[Path],
    required: Sequence[str],
    read: ReadSettings | None = ReadSettings(),  # noqa: B008 - frozen
    mapping: _Mapping | None = None,
    work: Path | None = None,
) -> Table:
    """Returns the table in `files`, opened and checked as far as the headers.

    Args:
        path: what messages call it.
        files: at least one, with the same columns; JSON may have other keys in each.
        required: columns that it must have.
        read: what is said of its form; None where the command has no flags for it.
        mapping: of names.
        work: a folder for what JSON is written to; only JSON needs one.

    Returns:
        The table, its rows not read yet.

    Raises:
        DataError: it is not a table, or lacks a required column.
    """
    records = list(filter(is_json, files))
    if records and len(records) < len(files):
        raise DataError(complain(path, f"{records[0].name} beside files of another kind", "files of one kind"))
    if records and read and (read.sep is not None or not read.header):
        said = "--no-header" if read.sep is None else f"--sep {read.sep}"
        raise DataError(complain(said, f"{records[0].name}, which is JSON", "a file of separated text"))
    if records:
        assert work is not None  # of every command that reads a source
        opened = [open_records(path, files, work)]
    else:
        opened = [_open_file(file, read or ReadSettings()) for file in files]
    first = opened[0]
    parts = []
    for table in opened:
        if sorted(table.names) != sorted(first.names) or bool(table.types) != bool(first.types):
            found = f"the columns {', '.join(table.names)}"
            raise DataError(complain(table.path, found, f"those of {first.path.name}: {', '.join(first.names)}"))
        order = tuple(table.names.index(name) for name in first.names) if table.names != first.names else ()
        parts += [replace(part, order=order) for part in table.parts]
    names = mapping.apply(first.names) if mapping else first.names
    given, table = first.names, replace(first, path=path, names=tuple(map(canonical, names)), parts=tuple(parts))
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
            raise lacks(table, name, required, read)
        kind = table.types and table.kind(name)
        if kind and not (is_text(kind) or pa.types.is_integer(kind)):
            raise DataError(complain(f"{path}: {name}", f"a column of {kind}", "ids as text or whole numbers"))
    return table


def _dialect(file: Path, read: ReadSettings) -> Dialect:
    tabs = file.name.lower().endswith((".tsv", ".tsv.gz"))
    sep = ("\t" if tabs else ",") if read.sep is None else SEPARATORS.get(read.sep, read.sep)
    return replace(CSV, sep=sep, header=read.header)


def _open_file(path: Path, read: ReadSettings) -> Table:
    """Returns a table of one file, with the names that the file has."""
    lower, dialect = path.name.lower(), _dialect(path, read)
    said = read.sep is not None or not read.header  # then whoever says so knows that it is text
    if not lower.endswith(EXTENSIONS) and (not said or path.is_dir()):
        sample = None if path.is_dir() else Sample.of(path)
        word = separator(sample.first_line) if sample else ""
        said_by = f"--sep {word}, if a {word} separates its cells" if word else "--sep"
        files = f"a .csv, .csv.gz, .tsv, .jsonl or .parquet file (of another name: {said_by})"
        expected = f"{files}, or an export ({formats.listed()})"
        raise DataError(complain(path, f"a {path.suffix or 'nameless'} file", expected))
    if path.stat().st_size == 0:
        raise DataError(complain(path, "an empty file", "a header and rows" if dialect.header else "rows"))
    if lower.endswith(".parquet"):
        names, types = _open_parquet(path)
        return Table(path, names, (Part(path),), types)
    lines, odd = scan(path, dialect)
    line, cells = next(records(path, 1, dialect, strict=True), (1, []))
    if not dialect.header:
        names = tuple(str(number) for number in range(1, len(cells) + 1))
    elif line != 1 or not any(cell.strip() for cell in cells):
        raise DataError(complain(f"{path}: line 1", "a blank line", "the names of the columns"))
    else:
        names = tuple(cells)
    return Table(path, names, (Part(path, lines=lines, odd=odd),), dialect=dialect)


def _open_parquet(path: Path) -> tuple[tuple[str, ...], tuple[pa.DataType, ...]]:
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise DataError(complain(path, " ".join(str(error).split()), "a Parquet file")) from None
    if not rows:
        raise DataError(complain(path, "no rows", "at least one row"))
    return tuple(schema.names), tuple(schema.types)
