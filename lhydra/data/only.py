"""Which rows of a log are plays, where it has events of other kinds too."""

import duckdb

from lhydra.data.report import Report
from lhydra.data.schema import canonical
from lhydra.data.settings import ReadSettings
from lhydra.data.table import Table
from lhydra.errors import DataError, complain

_SHOWN = 6


def kept_by_column(plays: Table, read: ReadSettings) -> dict[str, tuple[str, ...]]:
    """Finds the columns that `--only` names; case does not count.

    Args:
        plays: opened.
        read: the settings.

    Returns:
        By the name of the column in the table, the values of which a row has one to be a play.

    Raises:
        DataError: there is no such column.
    """
    folded = {name.casefold(): name for name in reversed(plays.names)}
    found: dict[str, tuple[str, ...]] = {}
    for name, values in read.kept().items():
        column = folded.get(canonical(name).casefold())
        if column is None:
            here = ", ".join(plays.names)
            raise DataError(complain(f"--only {name}", f"the columns {here} in {plays.path}", "one of them"))
        found[column] = (*found.get(column, ()), *values)
    return found


def other_events(
    con: duckdb.DuckDBPyConnection, plays: Table, only: dict[str, tuple[str, ...]], report: Report
) -> list[tuple[str, str]]:
    """Returns SQL tests of the rows of `raw_plays` that are no plays, and what is said of them.

    Args:
        con: the connection that holds the table.
        plays: the table.
        only: from `kept_by_column`.
        report: takes notes of values that no row has.

    Returns:
        The tests and reasons.

    Raises:
        DataError: no row has any of the values.
    """
    cases = []
    for name, values in only.items():
        cell = f"coalesce(lower(bare({plays.sql(name)})), '')"
        found = con.execute(f"SELECT {cell}, count(*) FROM raw_plays GROUP BY 1 ORDER BY 2 DESC, 1").fetchall()
        here = ", ".join(f"{value or 'nothing'} ({rows:,})" for value, rows in found[:_SHOWN])
        here += ", ..." * (len(found) > _SHOWN)
        missing = [value for value in values if value.lower() not in dict(found)]
        if len(missing) == len(values):
            raise DataError(
                complain(f"--only {name}={','.join(values)}", f"{here} in {plays.path.name}", "one of them")
            )
        if missing:
            report.warnings.append(f"{plays.path.name}: {name}: no row is {' or '.join(missing)}: {here}")
        listed = ", ".join("'" + value.lower().replace("'", "''") + "'" for value in values)
        cases.append((f"{cell} NOT IN ({listed})", f"{name} is not {' or '.join(values)}"))
    return cases
