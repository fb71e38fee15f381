"""What was found wrong with the rows of a source, told all together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhydra.data.table import Table
from lhydra.errors import DataError, complain


@dataclass
class Report:
    """What was found wrong, collected over all checks."""

    dropped: dict[str, int] = field(default_factory=dict)  # rows by reason
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # what --strict refuses
    drops: list[str] = field(default_factory=list)  # those of the warnings that tell of dropped rows
    unused: list[str] = field(default_factory=list)  # those that tell of columns
    lists: list[str] = field(default_factory=list)  # those that tell how cells of several values were read
    rows: dict[str, int] = field(default_factory=dict)  # read, by table
    matched: dict[str, dict[str, int]] = field(default_factory=dict)  # by side: ids of the plays, those with a row
    again: int = 0  # rows of the same user, track and second as an earlier one
    named: int = 0  # rows of plays of which the source says the session

    def told(self) -> dict[str, Any]:
        """Returns what the summary of a dataset says of its source, which single plays do not tell."""
        return {
            "rows": self.rows,
            "matched": self.matched,
            "again": self.again,
            "dropped": self.drops,
            "columns": self.unused,
            "lists": self.lists,
        }

    def left(self, path: Path, left: str, expected: str) -> DataError:
        """Returns the refusal of what is left; where rows were dropped, that is named first.

        Args:
            path: of the plays.
            left: what was found at last.
            expected: what would be right.

        Returns:
            The error to raise.
        """
        if not self.dropped:
            return DataError(complain(path, left, expected))
        return DataError(f"{path}: found {'; '.join(self.drops)}; {left} left, expected {expected}")

    def refuse_faults(self, path: Path) -> None:
        """Refuses a source with bad rows, as `--strict` wants it.

        Args:
            path: of the source.

        Raises:
            DataError: there is a bad row.
        """
        if self.faults:
            raise DataError(f"{path}: found {'; '.join(self.faults)}, expected no bad row (strict)")

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
        self.drops.append(self.warnings[-1])

    def drop_broken(self, *tables: Table) -> None:
        """Notes lines that are no JSON.

        Args:
            tables: of files that may have some.
        """
        for table in tables:
            count, places = table.broken
            if count:
                self.drop(table, "no JSON", count, places)

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
