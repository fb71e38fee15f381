"""Columns of a source that nothing declares: named, with the YAML lines that would use them."""

from pathlib import Path

import duckdb

from lhydra.data.dataset import Column, Kind
from lhydra.data.lists import read_list
from lhydra.data.loading import load
from lhydra.data.schema import (
    IGNORED,
    PLAY_COLUMNS,
    RESERVED,
    TRACK_COLUMNS,
    USER_COLUMNS,
    DeclaredColumns,
    leaks,
    near,
    yaml_lines,
)
from lhydra.data.sources import Source
from lhydra.data.table import Table

_KINDS = (  # columns that tell plays from events of other kinds, without case
    *("event", "event_type", "eventtype", "event_name", "eventname", "event type", "event name"),
    *("action", "action_type", "activity", "interaction", "interaction_type", "type", "behavior", "behaviour"),
)
_SAMPLE = 10_000  # rows that the suggested kind and table are read from


def column_warnings(
    con: duckdb.DuckDBPyConnection, source: Source, declared: DeclaredColumns, folder: Path
) -> list[str]:
    """Returns what to say of columns: aggregates that leak, names kept by Lhydra, what nobody declared.

    Args:
        con: the connection that holds the tables.
        source: the files.
        declared: columns that a configuration declares.
        folder: for temporary files.

    Returns:
        A message each.
    """
    tables = list(dict.fromkeys((source.plays, source.tracks, source.users)))
    every = list(dict.fromkeys(name for table in tables for name in table.names))
    used = {column.name for column in (*declared.tracks, *declared.users)}
    aggregates = [name for name in source.users.names if leaks(name)]
    warnings = []
    if kept := [name for name in every if name in RESERVED]:
        warnings.append(f"not used: {', '.join(kept)} (Lhydra computes columns of these names itself)")
    if left := [name for name in aggregates if name not in used]:
        warnings.append(f"not used: {', '.join(left)} (aggregates over plays held out here; Lhydra makes its own)")
    if leaking := [column.name for column in declared.users if leaks(column.name)]:
        warnings.append(f"declared and used: {', '.join(leaking)}: they leak held-out plays, measures will flatter")
    if ignored := [name for name in every if name in IGNORED and name not in used]:
        warnings.append(f"not used: {', '.join(ignored)} (for people, no features)")
    suggested: dict[str, list[Column]] = {"tracks": [], "users": []}
    lost: list[str] = []
    proposed: dict[str, str] = {}
    own = {
        "tracks": {"track_id", *TRACK_COLUMNS, *(column.name for column in declared.tracks)},
        "users": {"user_id", *USER_COLUMNS, *aggregates, *(column.name for column in declared.users)},
    }
    for table in tables:
        sides = [side for side, of in (("tracks", source.tracks), ("users", source.users)) if of is table]
        known = {name for side in sides for name in own[side]}
        known |= {*PLAY_COLUMNS, *source.only} if table is source.plays else set()
        within = [*known, *(PLAY_COLUMNS if table is source.plays else ())]
        unknown = [name for name in table.names if name and name not in {*known, *IGNORED, *RESERVED}]
        for name in unknown:
            meant = near(name)
            if meant == "duration_ms" and "sec" in name.casefold():  # of another unit, by its own word
                meant = None
            if meant and meant in within and meant not in table.names:
                proposed[name] = meant
        of_plays = [name for name in unknown if name in PLAY_COLUMNS or near(name) in PLAY_COLUMNS]
        of_plays += [name for name in unknown if table is source.plays and name in (*TRACK_COLUMNS, *USER_COLUMNS)]
        unreadable = [name for name in unknown if not table.readable(name)]
        warnings += [f"not used: {name} (a column of {table.kind(name)})" for name in unreadable]
        lost += [name for name in of_plays if name not in unreadable]
        rest = {*known, *of_plays, *unreadable}
        if not sides:
            lost += _others(table, rest)
            continue
        for name, (kind, side) in _look(con, table, rest, folder).items():
            if side not in sides and table is source.plays:
                lost.append(name)
            else:
                suggested[sides[0] if len(sides) == 1 else str(side)].append(Column(name, kind))
    if proposed:
        listed = ", ".join(f"{name} ({meant}?)" for name, meant in proposed.items())
        pairs = ",".join(f"{meant}={name}" for name, meant in proposed.items() if "," not in name)
        warnings.append(
            f"not used: {listed}: rename a column to the name in brackets to use it, or have {pairs} in --columns"
        )
    if lost := [name for name in lost if name not in proposed]:
        warnings.append(f"not used: {', '.join(lost)} (describe single plays, neither tracks nor users)")
    if not source.only and (kinds := [name for name in source.plays.names if name.casefold() in _KINDS]):
        name = kinds[0]
        warnings.append(
            f"every row is a play, whatever its {name}: if some are none, --only {name}=VALUE keeps the others"
        )
    if any(suggested.values()):
        listed = ", ".join(column.name for columns in suggested.values() for column in columns)
        lines = yaml_lines(suggested["tracks"], suggested["users"])
        warnings.append("\n".join([f"not used, not declared: {listed}; the lines for --config that use them:", *lines]))
    return warnings


def _others(table: Table, known: set[str]) -> list[str]:
    return [name for name in table.names if name and name not in {*known, *IGNORED, *RESERVED}]


def _look(
    con: duckdb.DuckDBPyConnection, table: Table, known: set[str], folder: Path
) -> dict[str, tuple[Kind, str | None]]:
    """Returns for each column not in `known`, judged by a sample: (kind, the table it describes or None)."""
    names = _others(table, known)
    if not names:
        return {}
    keys = [(key, side) for key, side in (("track_id", "tracks"), ("user_id", "users")) if key in table.names]
    load(con, table, "sample", [*(key for key, _ in keys), *names], folder, limit=_SAMPLE)
    looked: dict[str, tuple[Kind, str | None]] = {}
    for name in names:
        column = table.sql(name)
        kind: Kind = "multi" if table.is_list(name) else _kind(con, column)
        describes = None
        for key, side in reversed(keys):
            varied = con.execute(
                f"""SELECT 1 FROM sample GROUP BY {table.sql(key)}
                    HAVING count(DISTINCT coalesce(CAST({column} AS VARCHAR), '')) > 1 LIMIT 1"""
            ).fetchall()
            describes = describes if varied else side
        looked[name] = (kind, describes)
    con.execute("DROP TABLE sample")
    return looked


def _kind(con: duckdb.DuckDBPyConnection, column: str) -> Kind:
    """Returns the kind that a column of the sample looks like: a number is what a numeric column would read as one."""
    found = con.execute(f"SELECT DISTINCT {column}, number({column}) FROM sample WHERE NOT blank({column})").fetchall()
    if found and all(number is not None for _, number in found):
        return "numeric"
    cells = [cell for cell, _ in found]
    listed = sum(read_list(cell) is not None for cell in cells)
    return "multi" if 2 * listed > len(cells) or any("|" in cell for cell in cells) else "categorical"
