"""One table of a source: its files, its columns, their types, and how each is read as text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pyarrow as pa

from lhydra.data.csv_text import CSV, Dialect, records
from lhydra.data.dataset import Column
from lhydra.data.schema import PLAY_COLUMNS, declaration
from lhydra.errors import DataError, complain


@dataclass(frozen=True)
class Part:
    """One file of a table."""

    path: Path
    order: tuple[int, ...] = ()  # where the table's columns stand in this file, if not in the same order
    lines: int = 0  # of text
    odd: bool = False  # text with spaces beside quotes
    person: str = ""  # whose listening it is, where the file does not say
    rows: int = 0  # once loaded


@dataclass(frozen=True)
class Derived:
    """How the rows of a foreign file become the columns of a table.

    file: names of the file's columns, by which the expressions know them. columns: an SQL expression for each column
    of the table; `$person` stands for the person of the file. rows: SQL of what is read, where `$file` stands for the
    file as DuckDB reads it. json: types of the fields of JSON records, as `read_json` takes them. left_out: SQL of the
    reason for which a row is no play of a track, NULL for a play. key: SQL of the id that is made for a track without
    one; other rows with the same key lend theirs. lists: columns that hold lists of text.
    """

    file: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: str = "$file"
    json: str = ""
    left_out: str = ""
    key: str = ""
    lists: tuple[str, ...] = ()

    def unread(self) -> list[str]:
        """Returns the columns of the file that nothing is made of."""
        sql = " ".join([*(sql for _, sql in self.columns), self.left_out, self.key, self.rows])
        words = set(re.findall(r"\w+", sql.casefold()))
        return [name for name in self.file if not set(re.findall(r"\w+", name.casefold())) <= words]


@dataclass(frozen=True, eq=False)
class Table:
    """One table of a source, opened and checked as far as its header; column i is `c<i>` in SQL."""

    path: Path
    names: tuple[str, ...]
    parts: tuple[Part, ...]
    types: tuple[pa.DataType, ...] = ()  # of Parquet, and of JSON, which is written as such; a CSV is text
    dialect: Dialect = CSV
    derived: Derived | None = None  # of a foreign format
    left: tuple[str, ...] = ()  # keys of JSON that are no columns
    broken: tuple[int, str] = (0, "")  # lines that are no JSON: how many, and the first of them

    @property
    def rows(self) -> int:
        """How many rows there are, once loaded."""
        return sum(part.rows for part in self.parts)

    @property
    def of_one_person(self) -> bool:
        """Whether the files do not say whose plays they are."""
        return self.derived is not None and any("$person" in sql for _, sql in self.derived.columns)

    def unread(self) -> list[str]:
        """Returns what to say of columns of its files that nothing is made of: a note, or none."""
        names = self.derived.unread() if self.derived else list(self.left)
        return [f"columns of {self.path.name} that are not read: {', '.join(names)}"] if names else []

    def sql(self, name: str) -> str:
        """Returns the SQL name of the column `name`.

        Args:
            name: of the column, as the file has it.

        Returns:
            The name, quoted.
        """
        return f"c{self.names.index(name)}"

    def is_list(self, name: str) -> bool:
        """Whether the column `name` holds lists (Parquet, and foreign formats that have them).

        Args:
            name: of the column.

        Returns:
            True for a column of lists.
        """
        if self.derived:
            return name in self.derived.lists
        return bool(self.types) and _is_list(self.kind(name))

    def is_time(self, name: str) -> bool:
        """Whether the column `name` holds dates or timestamps, of which nothing needs guessing.

        Args:
            name: of the column.

        Returns:
            True for a column of times of Parquet, and of a foreign format.
        """
        return self.derived is not None or (bool(self.types) and _is_time(self.kind(name)))

    def check(self, name: str, *, lists: bool = False, side: str = "") -> None:
        """Checks that the column `name` has a type that can be used, before its rows are read.

        Args:
            name: of the column.
            lists: whether it may hold lists.
            side: of the section `columns` of a configuration that could declare lists, '' where none is read.

        Raises:
            DataError: the type cannot be used.
        """
        if (not self.types and not self.is_list(name)) or (self.readable(name) and (lists or not self.is_list(name))):
            return
        expected = _expected(name)
        if self.readable(name) and name not in PLAY_COLUMNS:  # a list where one value is wanted
            expected = "one text or number per cell"
            if side:
                line = declaration(side, Column(name, "multi"))
                expected += f"; to use its lists, put the line `{line}` into a YAML file and add --config FILE"
        found = "a column of lists" if self.derived else f"a column of {self.kind(name)}"
        raise DataError(complain(f"{self.path}: {name}", found, expected))

    def readable(self, name: str) -> bool:
        """Whether the column `name` has a type that can be read as text, or as lists of text.

        Args:
            name: of the column.

        Returns:
            True for a column of a CSV, and of the Parquet types that the documentation lists.
        """
        if not self.types or self.derived:
            return True
        kind = self.kind(name)
        if _is_list(kind):
            return _is_plain(kind.value_type)
        if name == "timestamp":
            return _is_plain(kind) and not (pa.types.is_time(kind) or pa.types.is_boolean(kind))
        return _is_plain(kind)

    def kind(self, name: str) -> pa.DataType:
        """Returns the type of the column `name` (Parquet only), that of its values where it is dictionary-encoded.

        Args:
            name: of the column.

        Returns:
            The type.
        """
        kind = self.types[self.names.index(name)]
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def places(self, rows: Sequence[int]) -> str:
        """Returns where rows (0-based) are, once loaded: `lines 3, 17`, `row 4` in Parquet, `b.csv line 3` of several.

        Args:
            rows: positions from 0, ascending.

        Returns:
            The words.
        """
        ends = list(accumulate(part.rows for part in self.parts))
        told = []
        for part, end in zip(self.parts, ends, strict=True):
            within = [row - end + part.rows for row in rows if end - part.rows <= row < end]
            if within:
                numbers, word = self._numbers(part, within), self._word()
                file = f"{part.path.name} " if len(self.parts) > 1 else ""
                told.append(f"{file}{word}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}")
        return ", ".join(told)

    def _word(self) -> str:
        if self.derived and self.derived.json:
            return "record"
        return "row" if self.types else "line"

    def _numbers(self, part: Part, rows: Sequence[int]) -> list[int]:
        """Returns the lines, or the rows counted from 1, of rows of one file."""
        first = int(self.dialect.header)
        if self._word() != "line":
            return [row + 1 for row in rows]
        if part.lines == part.rows + first:
            return [row + 1 + first for row in rows]
        numbers, wanted = [], set(rows)  # blank lines or line breaks inside cells: the file itself knows
        width = len(self.derived.file if self.derived else self.names)
        for row, (line, _) in enumerate(records(part.path, width, self.dialect, strict=False), start=-first):
            if row in wanted:
                numbers.append(line)
            if len(numbers) == len(wanted):
                break
        return numbers


def as_text(table: Table, name: str, part: Part) -> str:
    """Returns the SQL that gives a column as text, or as a list of text.

    Args:
        table: the table.
        name: of the column.
        part: the file that it is read from.

    Returns:
        An SQL expression over the columns of the file.

    Raises:
        DataError: the type of the column cannot be used.
    """
    if table.derived:
        person = "'" + part.person.replace("'", "''") + "'"
        expression = dict(table.derived.columns)[name].replace("$person", person)
        return f"CAST({expression} AS VARCHAR{'[]' if table.is_list(name) else ''})"
    column = f"c{part.order[table.names.index(name)]}" if part.order else table.sql(name)
    if not table.types:
        return column
    table.check(name, lists=name not in PLAY_COLUMNS)
    if name == "timestamp" and table.is_time(name):
        kind = table.kind(name)
        fine = pa.types.is_timestamp(kind) and kind.unit == "ns"  # a cast would round
        parts, unit = (f"epoch_ns({column})", 1_000_000_000) if fine else (f"epoch_us({column})", 1_000_000)
        return f"CAST(({parts} - CASE WHEN {parts} < 0 THEN {unit - 1} ELSE 0 END) // {unit} AS VARCHAR)"
    return f"CAST({column} AS VARCHAR{'[]' if table.is_list(name) else ''})"


def _is_plain(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    plain = pa.types.is_primitive(kind) and not (pa.types.is_duration(kind) or pa.types.is_interval(kind))
    return bool(is_text(kind) or plain or pa.types.is_decimal(kind) or pa.types.is_null(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _expected(name: str) -> str:
    """Returns what a column of an unusable type should be."""
    if name in ("user_id", "track_id"):
        return "ids as text or whole numbers"
    return "times, numbers or text" if name == "timestamp" else "numbers or text, or lists of them for kind multi"


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text.

    Args:
        kind: the type.

    Returns:
        True for every type of text.
    """
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
