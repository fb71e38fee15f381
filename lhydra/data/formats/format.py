"""What a format of another program is: how its files are recognised, and how its rows become those of our tables."""

import csv
import glob
import io
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lhydra.data.csv_text import CSV, Dialect, records, scan
from lhydra.data.table import Derived, Part, Table
from lhydra.errors import DataError, complain

_HEAD = 1 << 16  # bytes of a file that tell what it is
SKIPPED_MS = 30_000  # listened to for less, a play counts as skipped
TABS = replace(CSV, sep="\t")
BARE_TABS = Dialect("\t", header=False, quote=False)


@dataclass(frozen=True)
class Sample:
    """One file of an export: its name in lower case without `.gz`, and how it begins."""

    path: Path
    name: str
    head: str

    @classmethod
    def of(cls, path: Path) -> "Sample | None":
        """Reads the beginning of a file.

        Args:
            path: the file.

        Returns:
            The sample; None where there is nothing to read.
        """
        name = path.name.lower()
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
            if name.endswith(".gz"):  # one that is cut short has a beginning all the same
                head = zlib.decompressobj(wbits=31).decompress(head, _HEAD)
        except (OSError, zlib.error):
            return None
        text = head.decode("utf-8-sig", errors="replace")
        return cls(path, name.removesuffix(".gz"), text) if head.strip() else None

    @property
    def first_line(self) -> str:
        """The first line, without its end."""
        return re.split(r"[\r\n]", self.head, maxsplit=1)[0]

    def lines(self, most: int = 20) -> list[str]:
        """Returns the first whole lines.

        Args:
            most: how many at most.

        Returns:
            The lines that are not blank, without their ends.
        """
        whole = self.head.splitlines()
        whole = whole[:-1] if len(self.head) >= _HEAD - 4 and len(whole) > 1 else whole
        return [line for line in whole if line.strip()][:most]

    def named(self, pattern: str) -> bool:
        """Whether the name is that of a file of JSON of this pattern: one that is broken at once is known by it.

        Args:
            pattern: a regular expression of the name without its ending.

        Returns:
            True where it matches.
        """
        return re.fullmatch(rf"{pattern}[.]json", self.name) is not None

    def rows(self, most: int = 100) -> list[list[str]]:
        """Returns the first whole rows of CSV.

        Args:
            most: how many at most.

        Returns:
            The cells of the rows that are not blank, up to what is no CSV.
        """
        found = []
        try:
            for row in csv.reader(io.StringIO(self.head, newline="")):
                found += [row] if row else []
                if len(found) > most:
                    break
        except csv.Error:  # any file may be looked at
            pass
        return found[:most] if len(found) > most or len(self.head) < _HEAD - 4 else found[:-1]

    def mostly(self, sep: str, test: Callable[[list[str]], bool]) -> bool:
        """Whether most of the first lines are of a form; a fault in one is named with its line later.

        Args:
            sep: what separates cells.
            test: tells a row of the form.

        Returns:
            True where more than half of the lines pass.
        """
        passed = [test(line.split(sep)) for line in self.lines()]
        return 2 * sum(passed) > len(passed)

    def has(self, *keys: str) -> bool:
        """Whether the beginning holds all of these keys of JSON objects.

        Args:
            keys: their names.

        Returns:
            True where each is there.
        """
        json = self.head.lstrip()[:1] in ("{", "[")  # an archive of such files is none
        return json and all(re.search(rf'"{key}"\s*:', self.head) for key in keys)

    def header(self, sep: str = ",") -> list[str]:
        """Returns the names in the first line, in lower case, without quotes and the space around them.

        Args:
            sep: what separates them.

        Returns:
            The names.
        """
        return [name.strip().strip('"').strip().casefold() for name in self.first_line.split(sep)]


@dataclass(frozen=True)
class Export:
    """The files of an export, and whose it is, if that was said."""

    path: Path
    samples: tuple[Sample, ...]
    user: str | None = None

    def person(self, sample: Sample | None = None) -> str:
        """Returns whose listening it is where the files do not say.

        Args:
            sample: the file of one person; None where the whole export is one person's.

        Returns:
            What was said, else the name of the file or of the export, without its ending.
        """
        if self.user is not None:
            return self.user
        path = sample.path if sample else self.path.resolve()
        return path.name.partition(".")[0] or path.name


@dataclass(frozen=True)
class Tables:
    """The tables of an export, and what is to be said of how they are read."""

    plays: Table
    tracks: Table | None = None
    users: Table | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A format of another program.

    name: for `--format`. title: for people. expects: the files that it looks for. open: returns the tables of an
    export, None where it is not of this format; it reads no more than the beginning of files.
    """

    name: str
    title: str
    expects: str
    open: Callable[[Export], Tables | None]


def not_read(export: Export, read: Sequence[Sample], why: str = "") -> tuple[str, ...]:
    """Returns the note of the files of an export that a format does not read.

    Args:
        export: its files.
        read: those that it reads.
        why: what they are.

    Returns:
        The note; none where all are read.
    """
    left = sorted({sample.path.name for sample in export.samples if sample not in read})
    more = f" and {len(left) - 5:,} more" if len(left) > 5 else ""
    return (f"not read: {', '.join(left[:5])}{more}{why}",) if left else ()


def one_of(export: Export, found: Sequence[Sample], what: str) -> list[Sample]:
    """Returns the file that is meant, where a format has one of a kind; several would be several data sets.

    Args:
        export: its files.
        found: those of the kind.
        what: they are.

    Returns:
        The one file, [] where there is none.

    Raises:
        DataError: there are several.
    """
    if len(found) > 1:
        names = ", ".join(
            str(sample.path.relative_to(export.path)) if export.path in sample.path.parents else sample.path.name
            for sample in found[:5]
        )
        raise DataError(complain(export.path, f"{len(found)} files of {what} ({names})", "one; give it, or its folder"))
    return list(found)


def by_folder(export: Export, folders: Sequence[Path]) -> list[str]:
    """Returns whose listening lies in each folder, where a folder is a person's as the files do not say.

    Args:
        export: its files.
        folders: of some of them.

    Returns:
        What was said; the name of the export where there is one folder; else those by which the folders differ.
    """
    found = [folder.resolve() for folder in folders]
    common = Path(os.path.commonpath(found)) if found else Path()
    if export.user is not None or len(set(found)) == 1:
        here, alone = export.path.resolve(), export.path.is_file() or glob.has_magic(str(export.path))
        beside = export.user is None and alone and not here.name.lower().endswith(".zip") and str(export.path) != "-"
        return [common.name if beside else export.person()] * len(found)
    parts = [folder.relative_to(common).parts for folder in found]
    return [within[0] if within else export.person() for within in parts]


def milliseconds(seconds: str) -> str:
    """Returns the SQL of a length in whole milliseconds.

    Args:
        seconds: SQL of the seconds; what cannot be read stays as it is.

    Returns:
        An SQL expression.
    """
    return f"coalesce(CAST(TRY_CAST(round(number({seconds}) * 1000) AS BIGINT) AS VARCHAR), {seconds})"


def skip(ms: str, given: str = "NULL") -> str:
    """Returns the SQL of whether a play was a skip: said to be one, or listened to for less than SKIPPED_MS.

    Args:
        ms: SQL of the milliseconds listened to.
        given: SQL of what the file says; what cannot be read stays as it is.

    Returns:
        An SQL expression: true, false, or NULL where neither is known.
    """
    return f"""CASE WHEN NOT blank({given}) AND truth({given}) IS NULL THEN {given}
        WHEN truth({given}) OR part({ms}) < {SKIPPED_MS} THEN 'true'
        WHEN NOT truth({given}) OR part({ms}) IS NOT NULL THEN 'false' END"""


def start(end: str, ms: str) -> str:
    """Returns the SQL of when a play began that ended at `end`, in whole seconds.

    Args:
        end: SQL of the end; what cannot be read stays as it is.
        ms: SQL of the milliseconds listened to; where it is unknown, the end stands.

    Returns:
        An SQL expression.
    """
    fraction = rf"CAST(rpad(regexp_extract({end}, '[.]([0-9]{{1,3}})', 1), 3, '0') AS BIGINT)"
    return f"""CASE WHEN blank({end}) OR seconds({end}) IS NULL THEN {end}
        ELSE CAST(floored(seconds({end}) * 1000 + {fraction} - coalesce(part({ms}), 0), 1000) AS VARCHAR) END"""


def text_table(
    path: Path,
    samples: Sequence[tuple[Sample, str]],
    dialect: Dialect,
    columns: dict[str, str],
    *,
    names: Sequence[str] = (),
    left_out: str = "",
    key: str = "",
    lists: Sequence[str] = (),
) -> Table:
    """Returns a table of files of separated text.

    Args:
        path: what messages call it.
        samples: the files, all with the same columns, and whose listening each is.
        dialect: how they are written.
        columns: an SQL expression over the file's columns for each column of the table.
        names: of the file's columns; those of the header, in lower case, where none are given.
        left_out: SQL of the reason for which a row is no play.
        key: SQL of the id that is made for a track without one.
        lists: columns of the table that hold lists.

    Returns:
        The table.

    Raises:
        DataError: the text is not UTF-8, or broken.
    """
    parts = []
    for sample, person in samples:
        lines, odd = scan(sample.path, dialect)
        parts.append(Part(sample.path, lines=lines, odd=odd, person=person))
    if not names:
        _, header = next(records(samples[0][0].path, 1, dialect, strict=True))
        found = [name.strip().casefold() for name in header]
        names = [name if name and found.index(name) == i else f"column {i + 1}" for i, name in enumerate(found)]
        for sample, _ in samples[1:]:
            _, other = next(records(sample.path, 1, dialect, strict=True))
            if [name.strip().casefold() for name in other] != found:
                said = ", ".join(header)
                raise DataError(complain(sample.path, f"the columns {', '.join(other)}", f"{said}, as in the others"))
    derived = Derived(tuple(names), tuple(columns.items()), left_out=left_out, key=key, lists=tuple(lists))
    return Table(path, tuple(columns), tuple(parts), dialect=dialect, derived=derived)


def json_table(
    path: Path,
    samples: Sequence[tuple[Sample, str]],
    fields: dict[str, str],
    columns: dict[str, str],
    *,
    rows: str = "$file",
    left_out: str = "",
    key: str = "",
) -> Table:
    """Returns a table of files of JSON: an array of records, or a record a line.

    Args:
        path: what messages call it.
        samples: the files, and whose listening each is.
        fields: the DuckDB type of each field of a record; one that a record lacks is NULL.
        columns: an SQL expression over the fields for each column of the table.
        rows: SQL of the rows, where they are not the records themselves.
        left_out: SQL of the reason for which a row is no play.
        key: SQL of the id that is made for a track without one.

    Returns:
        The table.
    """
    parts = tuple(Part(sample.path, person=person) for sample, person in samples)
    json = ", ".join(f"'{name}': '{kind}'" for name, kind in fields.items())
    derived = Derived(tuple(fields), tuple(columns.items()), rows, f"{{{json}}}", left_out, key)
    return Table(path, tuple(columns), parts, derived=derived)
