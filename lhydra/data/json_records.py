"""Files of JSON records as a table of ours: a column for each key, `user.id` for the key of an object within."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import duckdb

from lhydra.data import json_text
from lhydra.data.csv_text import literal
from lhydra.data.table import Derived, Part, Table
from lhydra.errors import DataError, complain

if TYPE_CHECKING:
    from _duckdb._sqltypes import DuckDBPyType

ENDINGS = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json", ".json.gz")
_WITHIN = ("struct", "list", "map", "union", "array")  # types of what is no single value


def open_records(path: Path, files: Sequence[Path]) -> Table:
    """Reads files of JSON through once, for the keys of all records.

    Args:
        path: what messages call the table.
        files: each an array of records, or a record a line.

    Returns:
        The table, all its cells text, or lists of text. What is neither is among what is not read.

    Raises:
        DataError: a file is empty, cut short or no JSON, or holds what is no record.
    """
    with TemporaryDirectory(prefix="lhydra-") as folder, duckdb.connect() as con:
        paths = [literal(json_text.checked(file, Path(folder))[0]) for file in files]
        scan = "FROM read_json(?, sample_size=-1, maximum_depth=-1, union_by_name=true, records='true')"
        try:
            found = con.sql(scan, params=[paths])
        except duckdb.Error as error:
            if "non-record" in str(error):
                raise DataError(complain(path, "JSON that is no object with a key", "a record a line")) from None
            raise DataError(complain(path, json_text.reason(error), json_text.AGAIN)) from None
        keys = list(zip(found.columns, found.types, strict=True))
    folded = {name.casefold(): name for name, _ in keys}
    for name, _ in keys:  # of two that differ in case DuckDB numbers the second, and finds none of its values
        base = re.sub(r"_[0-9]+$", "", name)
        if base != name and folded.get(base.casefold(), base) != base:
            found_keys = f"the keys {folded[base.casefold()]} and {base}"
            raise DataError(complain(path, found_keys, "keys that differ in more than case"))
    leaves = [leaf for name, kind in keys for leaf in _leaves(name, _quoted(name), kind)]
    types = ", ".join(f"{_string(name)}: {_string(_type(kind))}" for name, kind in keys)
    columns = tuple((name, sql) for name, sql, _ in leaves)
    lists = tuple(name for name, _, is_list in leaves if is_list)
    derived = Derived(tuple(name for name, _ in keys), columns, json=f"{{{types}}}", lists=lists, foreign=False)
    return Table(path, tuple(name for name, _ in columns), tuple(map(Part, files)), derived=derived)


def first_keys(text: str) -> list[str]:
    """Returns the keys of the first record of JSON.

    Args:
        text: the beginning of a file, which may be cut anywhere.

    Returns:
        The keys of its columns; [] where there is no whole record.
    """
    try:
        record, _ = json.JSONDecoder().raw_decode(text.lstrip().removeprefix("[").lstrip())
    except (ValueError, RecursionError):
        return []
    return list(_named(record)) if isinstance(record, dict) else []


def _named(record: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _named(value, f"{before}{key}.")
        else:
            yield before + key


def _leaves(name: str, sql: str, kind: "DuckDBPyType") -> Iterator[tuple[str, str, bool]]:
    """Yields the columns that a key gives: their names, their SQL, and whether they hold lists."""
    if kind.id == "struct":
        for key, within in _within(kind):
            yield from _leaves(f"{name}.{key}", f"struct_extract({sql}, {_string(key)})", within)
    elif _type(kind) != "JSON":
        yield name, sql, kind.id == "list"


def _type(kind: "DuckDBPyType") -> str:
    """The type in which DuckDB reads a value as the file writes it."""
    if kind.id == "struct":
        return f"STRUCT({', '.join(f'{_quoted(key)} {_type(within)}' for key, within in _within(kind))})"
    if kind.id == "list" and _within(kind)[0][1].id not in _WITHIN:
        return "VARCHAR[]"
    return "JSON" if kind.id in _WITHIN else "VARCHAR"


def _within(kind: "DuckDBPyType") -> list[tuple[str, "DuckDBPyType"]]:
    return cast('list[tuple[str, "DuckDBPyType"]]', kind.children)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
