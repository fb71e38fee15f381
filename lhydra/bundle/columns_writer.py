"""Writes the columns that `lhydra.bundle.columns` reads: from a table of tracks, or with tracks inserted.

Both give the same bytes for the same tracks. Columns are written one after another: memory holds the rows of one
column, four bytes each, and its distinct values.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lhydra.bundle.columns import NUMBERS, WORDS, FilterColumns, Numbers, Words, file_names
from lhydra.bundle.strings import StringColumn
from lhydra.domain import I64
from lhydra.timing import timed

I32 = npt.NDArray[np.int32]
BATCH = 1 << 17  # tracks read at a time
MEMORY = 6  # measured: what is held of the widest column, in sizes of its files


@timed("filters.write")
def write_columns(folder: Path, tracks: Path, kinds: Mapping[str, str]) -> list[str]:
    """Writes the columns of a table of tracks.

    Args:
        folder: where the files are written.
        tracks: Parquet file.
        kinds: kind by column of the table; text cannot be filtered on, and is left out.

    Returns:
        The names of the files.
    """
    with pq.ParquetFile(tracks, pre_buffer=False) as file:
        n = file.metadata.num_rows
        names = written(kinds)
        for i, (name, kind) in enumerate(names.items()):
            size = max(1, BATCH // 8) if kind == "multi" else BATCH  # of several values a track
            batches = (batch[name] for batch in file.iter_batches(size, columns=[name]))
            if kind in WORDS:
                _save_words(folder, i, _group(batches, folder))
            else:
                numbers, start = np.empty(n), 0
                for batch in batches:
                    numbers[start : start + len(batch)] = _numbers(batch)
                    start += len(batch)
                _save_numbers(folder, i, numbers)
    pa.default_memory_pool().release_unused()  # what comes next needs its memory for something else
    return _finish(folder, n, names)


@timed("filters.insert")
def insert_columns(old: Path, folder: Path, tracks: pa.Table, at: I64) -> list[str]:
    """Writes columns with tracks inserted.

    Args:
        old: folder of the columns to insert into.
        folder: where the files are written.
        tracks: m rows; a column that they lack is unknown for all of them.
        at: (m,) int64, ascending, the row of `old` that each track comes before.

    Returns:
        The names of the files.
    """
    was = FilterColumns.open(old)
    n, names, columns = was.n, dict(was.names), dict(was.columns)
    del was
    rows = np.arange(n)
    moved = (rows + np.searchsorted(at, rows, side="right")).astype(np.int32)
    own = (at + np.arange(len(at))).astype(np.int32)
    for i, name in enumerate(names):
        column = columns.pop(name)  # nothing of it stays mapped when the next one is read
        values = tracks[name].combine_chunks() if name in tracks.column_names else pa.nulls(len(at))
        if isinstance(column, Numbers):
            _save_numbers(folder, i, np.insert(column.values.astype(np.float64), at, _numbers(values)))
        else:
            kept = Words(column.texts, column.offsets, moved[column.rows])
            _save_words(folder, i, _joined(kept, _group([values], folder), own))
    return _finish(folder, n + len(at), names)


def _group(batches: Iterable[pa.Array], folder: Path) -> Words:
    """Groups the rows of a column by value: values are numbered in order of arrival, and by bytes at the end."""
    known = pa.array([], pa.large_string())  # distinct values so far
    waiting: list[pa.Array] = []  # those of batches that are not yet among them
    codes: list[I32] = []  # of each batch: by its own numbers, the place of each value in `known`
    sizes: list[int] = []
    start = 0

    def learn() -> None:
        nonlocal known
        first, ends = len(known), np.cumsum([len(part) for part in waiting], dtype=np.int64)
        known = pa.concat_arrays([known, *waiting])
        waiting.clear()  # before the texts are hashed: they are many
        joined = known.dictionary_encode()  # what is known keeps its place
        known = joined.dictionary
        codes.extend(np.split(joined.indices.to_numpy()[first:].astype(np.int32), ends)[:-1])

    with tempfile.TemporaryFile(dir=folder) as spilled:
        for batch in batches:
            values, rows = values_of(batch)
            encoded = values.dictionary_encode()
            waiting.append(encoded.dictionary)
            sizes.append(len(values))
            encoded.indices.to_numpy().astype(np.int32, copy=False).tofile(spilled)
            (rows + start).astype(np.int32).tofile(spilled)
            start += len(batch)
            if sum(map(len, waiting)) >= max(len(known), BATCH):  # so rarely that the cost is one pass, not many
                learn()
        learn()
        order = pc.sort_indices(known).to_numpy()  # by bytes
        number = np.empty(len(order), np.int64)
        number[order] = np.arange(len(order))

        def entries() -> Iterator[tuple[I64, I32]]:
            spilled.seek(0)
            for code, size in zip(codes, sizes, strict=True):
                yield number[code[_back(spilled, size)]], _back(spilled, size)

        counts = np.zeros(len(order), np.int64)
        for found, _ in entries():
            counts += np.bincount(found, minlength=len(order))
        offsets = _offsets(counts)
        return Words(_texts(known.take(pa.array(order))), offsets, _by_code(entries, offsets))


def _by_code(entries: Callable[[], Iterator[tuple[I64, I32]]], offsets: I64) -> I32:
    """Returns the rows of the entries grouped by code, in order of arrival within a code."""
    out = np.empty(offsets[-1], np.int32)
    free = offsets[:-1].copy()
    for codes, rows in entries():
        order = np.argsort(codes, kind="stable")
        codes = codes[order]
        first = np.flatnonzero(np.diff(codes, prepend=-1))
        sizes = np.diff(first, append=len(codes))
        out[np.repeat(free[codes[first]] - first, sizes) + np.arange(len(codes))] = rows[order]
        free[codes[first]] += sizes
    return out


def _joined(old: Words, new: Words, own: I32) -> Words:
    """Merges two columns; row i of `new` becomes own[i], which is not in `old`."""
    words = [new.texts.data[a:b].tobytes() for a, b in zip(new.texts.offsets, new.texts.offsets[1:], strict=False)]
    places = np.array([old.texts.place(word) for word in words], np.int64).reshape(-1, 2)
    at, known = places[:, 0], places[:, 1] > 0
    fresh = at[~known]
    texts = _inserted(old.texts, fresh, [word for word, there in zip(words, known, strict=True) if not there])
    code = at + np.cumsum(~known) - ~known  # of each new word: those before it, old and fresh
    counts = np.insert(np.diff(old.offsets), fresh, 0)
    offsets = _offsets(counts)
    added = np.diff(new.offsets)
    codes, rows = np.repeat(code, added), own[new.rows]
    low, high = offsets[codes], offsets[codes + 1]
    while len(open_ := np.flatnonzero(low < high)):  # where each row belongs among those of its value
        middle = (low[open_] + high[open_]) // 2
        before = old.rows[middle] < rows[open_]
        low[open_] = np.where(before, middle + 1, low[open_])
        high[open_] = np.where(before, high[open_], middle)
    counts[code] += added
    return Words(texts, _offsets(counts), np.insert(old.rows, low, rows))


def _inserted(texts: StringColumn, at: I64, words: list[bytes]) -> StringColumn:
    """Returns `texts` with `words`, ascending, each inserted before the text `at`."""
    lengths = np.array([len(word) for word in words], np.int64)
    data = np.insert(texts.data, np.repeat(texts.offsets[at], lengths), np.frombuffer(b"".join(words), np.uint8))
    return StringColumn(data, _offsets(np.insert(np.diff(texts.offsets), at, lengths)))


def values_of(batch: pa.Array) -> tuple[pa.Array, I64]:
    """Returns the texts in a batch of a column without the missing ones.

    Args:
        batch: (n,) of texts or of lists of texts.

    Returns:
        (m,) texts, and the row of each in the batch.
    """
    rows = np.arange(len(batch))
    if pa.types.is_list(batch.type) or pa.types.is_large_list(batch.type):
        lengths = pc.list_value_length(batch).fill_null(0).to_numpy()
        rows, batch = np.repeat(rows, lengths), pc.list_flatten(batch)  # which passes over what null lists lie over
    there = batch.is_valid()
    return batch.filter(there).cast(pa.large_string()), rows[there.to_numpy(zero_copy_only=False)]


def _numbers(batch: pa.Array) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = batch.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null becomes NaN
    return numbers


def _texts(array: pa.Array) -> StringColumn:
    """Views an array of large_string without copying its bytes."""
    if not len(array):
        return StringColumn.of(())
    _, offsets, data = array.buffers()
    offsets = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return StringColumn(np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0])


def _offsets(lengths: I64) -> I64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _back(file: IO[bytes], size: int) -> I32:
    return np.frombuffer(file.read(4 * size), np.int32)


def written(kinds: Mapping[str, str]) -> dict[str, str]:
    """Tells which columns of a table are written, in the order in which their files are numbered.

    Args:
        kinds: kind by column of the table.

    Returns:
        Those that can be filtered on.
    """
    return {name: kinds[name] for name in sorted(kinds) if kinds[name] in (*WORDS, *NUMBERS)}


def _save_words(folder: Path, i: int, words: Words) -> None:
    np.save(folder / f"filter{i}_words.npy", words.texts.data)
    np.save(folder / f"filter{i}_words_offsets.npy", words.texts.offsets)
    np.save(folder / f"filter{i}_offsets.npy", words.offsets)
    np.save(folder / f"filter{i}_rows.npy", words.rows)


def _save_numbers(folder: Path, i: int, numbers: npt.NDArray[np.float64]) -> None:
    """Writes numbers as float32 where nothing is lost, as with years and durations, else as float64."""
    with np.errstate(over="ignore"):
        half = numbers.astype(np.float32)
    np.save(folder / f"filter{i}.npy", half if np.array_equal(half, numbers, equal_nan=True) else numbers)


def _finish(folder: Path, n: int, names: dict[str, str]) -> list[str]:
    document: dict[str, Any] = {"tracks": n, "columns": names}
    text = json.dumps(document, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
    (folder / "filters.json").write_text(text, encoding="utf-8")
    return file_names(folder)
