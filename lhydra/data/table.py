"""One file of a source: its columns, their types, and how each is read as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from lhydra.data.csv_text import records
from lhydra.data.schema import PLAY_COLUMNS
from lhydra.errors import DataError, complain


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
        return bool(self.types) and _is_list(self.kind(name))

    def is_time(self, name: str) -> bool:
        """Whether the column `name` holds dates or timestamps (Parquet only).

        Args:
            name: of the column.

        Returns:
            True for a column of times of Parquet.
        """
        return bool(self.types) and _is_time(self.kind(name))

    def check(self, name: str, *, lists: bool = False) -> None:
        """Checks that the column `name` has a type that can be used, before its rows are read.

        Args:
            name: of the column.
            lists: whether it may hold lists.

        Raises:
            DataError: the type cannot be used.
        """
        if not self.types or (self.readable(name) and (lists or not self.is_list(name))):
            return
        expected = "kind: multi" if self.readable(name) and name not in PLAY_COLUMNS else _expected(name)
        raise DataError(complain(f"{self.path}: {name}", f"a column of {self.kind(name)}", expected))

    def readable(self, name: str) -> bool:
        """Whether the column `name` has a type that can be read as text, or as lists of text.

        Args:
            name: of the column.

        Returns:
            True for a column of a CSV, and of the Parquet types that the documentation lists.
        """
        if not self.types:
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
            for row, (line, _) in enumerate(records(self.path, len(self.names), strict=False), start=-1):
                if row in wanted:
                    numbers.append(line)
                if len(numbers) == len(wanted):
                    break
        return f"{word}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def as_text(table: Table, name: str) -> str:
    """Returns the SQL that gives a column as text, or as a list of text.

    Args:
        table: the file.
        name: of the column.

    Returns:
        An SQL expression.

    Raises:
        DataError: the type of the column cannot be used.
    """
    column = table.sql(name)
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
