"""Files of JSON records as a table of text: a column for each key, `user.id` for the key of an object within.

Every cell is what the file says: numbers are not parsed, so that ids stay exact. A column that holds a list in any
record holds lists in all.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from lhydra.data.csv_text import open_bytes, scan
from lhydra.data.table import Part, Table
from lhydra.errors import DataError, complain

ENDINGS = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json", ".json.gz")
RECORDS = "a record a line, or an array of records"
_BATCH = 50_000  # records held at once
_SPACE = re.compile(r"[ \t\r\n]*").match  # that JSON allows between values
Cells = dict[str, Any]  # text, a list of text or None by column; a column that a record lacks is empty


@dataclass
class _Unread:
    """What is left out: keys of lists of objects or of lists, in order, and lines that are no JSON, by file."""

    keys: dict[str, None] = field(default_factory=dict)
    lines: dict[Path, list[int]] = field(default_factory=dict)

    def broken(self) -> tuple[int, str]:
        """Returns how many lines are no JSON, and where the first of them are."""
        count, places = sum(map(len, self.lines.values())), []
        for file, lines in self.lines.items():
            word = "lines" if len(lines) > 1 else "line"
            places.append(f"{f'{file.name} ' * (len(self.lines) > 1)}{word} {', '.join(map(str, lines[:3]))}")
        return count, "; ".join(places[:3])


def is_json(path: Path) -> bool:
    """Says whether a file is JSON by its name.

    Args:
        path: the file.

    Returns:
        True where it ends as one.
    """
    return path.name.lower().endswith(ENDINGS)


def first_keys(text: str) -> list[str]:
    """Returns the keys of the first record of JSON.

    Args:
        text: the beginning of a file, which may be cut anywhere.

    Returns:
        Its keys; [] where there is no whole record.
    """
    try:
        record, _ = json.JSONDecoder().raw_decode(text.lstrip().removeprefix("[").lstrip())
    except (ValueError, RecursionError):
        return []
    return list(record) if isinstance(record, dict) else []


def open_records(path: Path, files: Sequence[Path], folder: Path) -> Table:
    """Reads files of JSON through, and writes each as Parquet of the columns of all.

    Args:
        path: what messages call the table.
        files: of any keys.
        folder: where the Parquet files lie until the table is loaded.

    Returns:
        The table.

    Raises:
        DataError: a file is no JSON, or holds what is no record, or there is no column.
    """
    kinds, unread = dict[str, pa.DataType](), _Unread()
    written: list[tuple[Path, list[int]]] = []  # a folder for each file, and the records of its pieces
    for file in files:
        within = folder / f"json-{len(list(folder.glob('json-*')))}"
        within.mkdir()
        sizes: list[int] = []
        for batch in _batches(file, unread):
            names = dict.fromkeys(name for cells in batch for name in cells)
            lists = {name for name in names if any(isinstance(cells.get(name), list) for cells in batch)}
            kinds |= {name: _LIST if name in lists else kinds.get(name, _TEXT) for name in names}
            columns = {name: _column([cells.get(name) for cells in batch], name in lists) for name in names}
            pq.write_table(pa.table(columns), within / f"{len(sizes)}.parquet")
            sizes.append(len(batch))
        if not sizes:
            raise DataError(complain(file, "no record", RECORDS))
        written.append((within, sizes))
    if not kinds:
        found = f"nothing but lists of objects: {', '.join(unread.keys)}" if unread.keys else "records without a key"
        raise DataError(complain(path, found, RECORDS))
    schema = pa.schema(list(kinds.items()))
    parts = []
    for file, (within, sizes) in zip(files, written, strict=True):
        with pq.ParquetWriter(within / file.name, schema) as writer:  # by its own name, for messages
            for i, size in enumerate(sizes):
                writer.write_table(_widened(pq.read_table(within / f"{i}.parquet"), size, schema))
        parts.append(Part(within / file.name))
    left, broken = tuple(unread.keys), unread.broken()
    return Table(path, tuple(kinds), tuple(parts), tuple(schema.types), left=left, broken=broken)


_TEXT, _LIST = pa.string(), pa.list_(pa.string())


def _column(cells: list[Any], is_list: bool) -> pa.Array:
    if is_list:
        cells = [cell if cell is None or isinstance(cell, list) else [cell] for cell in cells]
    return pa.array(cells, _LIST if is_list else _TEXT)


def _widened(table: pa.Table, size: int, schema: pa.Schema) -> pa.Table:
    """A piece with all columns; where others hold lists, its text becomes lists of one."""
    columns = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        if name not in table.column_names:
            columns.append(pa.nulls(size, kind))
        elif table.schema.field(name).type == kind:
            columns.append(table[name])
        else:
            columns.append(_column(table[name].to_pylist(), is_list=True))
    return pa.table(columns, schema=schema)


def _batches(file: Path, unread: _Unread) -> Iterator[list[Cells]]:
    batch: list[Cells] = []
    for line, record in _records(file, unread):
        cells: Cells = {}
        _flatten(record, "", cells, unread, f"{file}: line {line}")
        batch.append(cells)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _flatten(record: dict[str, Any], before: str, cells: Cells, unread: _Unread, place: str) -> None:
    for key, value in record.items():
        name = before + key
        if isinstance(value, dict):
            _flatten(value, f"{name}.", cells, unread, place)
        elif isinstance(value, list) and any(isinstance(one, list | dict) for one in value):
            unread.keys[name] = None
        elif name in cells:
            raise DataError(complain(place, f"the key {name} twice, once by dots", "each key once"))
        else:
            cells[name] = list(map(_text, value)) if isinstance(value, list) else _text(value)


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _records(file: Path, unread: _Unread) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the records and the lines where they begin; a line that is no JSON is noted where others are records."""
    scan(file)  # broken gzip, NUL bytes and what is not UTF-8
    with io.TextIOWrapper(open_bytes(file), encoding="utf-8-sig", newline="\n") as lines:
        by_line = False
        for number, line in enumerate(lines, start=1):
            if not line.strip(" \t\r\n"):
                continue
            try:
                record = _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                if not by_line:  # an array, or a record in several lines
                    yield from _whole(file, number, line + lines.read())
                    return
                if isinstance(error, _Twice):
                    raise DataError(complain(f"{file}: line {number}", f"the key {error} twice", "each once")) from None
                unread.lines.setdefault(file, []).append(number)
                continue
            if not by_line and isinstance(record, list):
                yield from _whole(file, number, line + lines.read())
                return
            by_line = True
            if not isinstance(record, dict):
                raise DataError(complain(f"{file}: line {number}", f"{line.strip()[:40]}, which is no record", RECORDS))
            yield number, record


def _whole(file: Path, first: int, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the records of an array, or of records one after the other in any layout."""
    at = _SPACE(text, 0).end()  # type: ignore[union-attr]
    array = text[at] == "["
    at, line, counted = at + array, first, 0
    more = not array  # whether a record must follow
    while True:
        at = _SPACE(text, at).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, at), at
        if array and text[at : at + 1] == "]" and not more:
            if text[at + 1 :].strip(" \t\r\n"):
                raise DataError(complain(f"{file}: line {line}", "more after the end of the array", RECORDS))
            return
        if at == len(text) and not array:
            return
        try:
            record, at = _DECODER.raw_decode(text, at)
        except _Twice as error:
            raise DataError(complain(f"{file}: line {line}", f"the key {error} twice", "each once")) from None
        except RecursionError:
            raise DataError(complain(f"{file}: line {line}", "objects nested too deep", RECORDS)) from None
        except ValueError as error:
            place = line + text.count("\n", counted, getattr(error, "pos", at))
            found = "a record that is cut short" if at == len(text) or _is_cut(error, text) else "what is no JSON"
            raise DataError(complain(f"{file}: line {place}", found, RECORDS)) from None
        if not isinstance(record, dict):
            raise DataError(complain(f"{file}: line {line}", "what is no record", RECORDS))
        yield line, record
        at = _SPACE(text, at).end()  # type: ignore[union-attr]
        more = False
        if array and text[at : at + 1] == ",":
            at, more = at + 1, True
        elif array and text[at : at + 1] != "]":
            place = line + text.count("\n", counted, at)
            found = "an array that does not end" if at == len(text) else "no comma between records"
            raise DataError(complain(f"{file}: line {place}", found, RECORDS))


def _is_cut(error: ValueError, text: str) -> bool:
    return isinstance(error, json.JSONDecodeError) and (error.pos >= len(text.rstrip()) or "Unterminated" in error.msg)


class _Twice(ValueError):
    """A key that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)  # NaN and Infinity are no JSON


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_float=str, parse_int=str, parse_constant=_no_number)
