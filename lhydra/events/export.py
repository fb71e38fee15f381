"""The event log out of the service: Parquet in the shape of a *tables* source, and a cursor to go on from."""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lhydra import files
from lhydra.errors import ConfigError, complain, quoted
from lhydra.events.event import COMPLETED, MS_PLAYED, SKIPPED, START, check
from lhydra.events.log import place

FORMAT = 1  # of the cursor
_FIELDS = (
    ("user_id", pa.string()),
    ("track_id", pa.string()),
    ("playcount", pa.float64()),
    ("timestamp", pa.int64()),  # Unix s
    ("position", pa.int64()),  # order of recording, which tells plays of one second apart
    ("session", pa.string()),
    ("skipped", pa.bool_()),
    ("completed", pa.bool_()),
    ("ms_played", pa.int64()),
    ("event_id", pa.string()),
    ("request_id", pa.string()),  # of the answer that the play came from
    ("recorded_ms", pa.int64()),  # Unix ms, by the clock of the server that recorded it
)
SCHEMA = pa.schema(_FIELDS)
_STORE, _BEGIN, _END = b"lhydra.store", b"lhydra.begin", b"lhydra.end"  # metadata of an export
_BITS = 12  # Redis counts fewer plays in a millisecond
_ROWS = 100_000  # of a table that is written at once
_FIXED = np.dtype(  # of an entry up to its texts, as `lhydra.events.event` packs it
    [
        ("head", "V8"),
        ("recorded_ms", "<u8"),
        ("time", "<i8"),
        ("count", "<f8"),
        ("ms_played", "<u4"),
        ("flags", "u1"),
        ("pad", "u1"),
        ("lengths", "<u2", 5),
    ]
)
Entries = Sequence[tuple[str, bytes]]  # positions and packed events
NameOf = Callable[[str], str]


@dataclass(frozen=True)
class Span:
    """Which part of a log an export holds: what comes after `begin`, up to and with `end`.

    store: the id of the user store. begin, end: positions in its log; an empty begin is that of the log.
    """

    store: str
    begin: str
    end: str


@dataclass(frozen=True)
class Cursor:
    """How far a log was exported. writing: the file that is being written with what comes next, "" for none."""

    store: str
    position: str = ""
    writing: str = ""
    format: int = FORMAT


def write(
    out: Path, store: str, begin: str, chunks: Iterable[Entries], name_of: NameOf | None = None
) -> tuple[int, Span]:
    """Writes plays of the event log to a Parquet file, as a whole or not at all; in bounded memory.

    Args:
        out: the file, replaced at the end.
        store: the id of the user store.
        begin: the position after which the plays come.
        chunks: the entries of the log, in order.
        name_of: what stands for a user id in the export; None for the id.

    Returns:
        How many plays, and which part of the log that is.

    Raises:
        UserStoreError: an entry is damaged; names its position.
    """
    n_plays, end, kept = 0, begin, list[pa.Table]()
    with files.replacing_file(out) as path, pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for chunk in filter(None, chunks):
            n_plays, end = n_plays + len(chunk), chunk[-1][0]
            kept.append(_table(chunk, name_of))
            if sum(map(len, kept)) >= _ROWS:
                writer.write_table(pa.concat_tables(kept))
                kept.clear()
        writer.write_table(pa.concat_tables([*kept, SCHEMA.empty_table()]))
        writer.add_key_value_metadata({_STORE: store.encode(), _BEGIN: begin.encode(), _END: end.encode()})
    return n_plays, Span(store, begin, end)


def span_of(path: Path) -> Span | None:
    """Returns which part of a log an export holds.

    Args:
        path: any file.

    Returns:
        The part, None for a file that is no whole export.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return Span(*(metadata[key].decode() for key in (_STORE, _BEGIN, _END)))
    except (OSError, KeyError, UnicodeDecodeError, pa.ArrowException):
        return None


def is_export(content: bytes) -> bool:
    """Tells whether bytes are an export.

    Args:
        content: of a file.

    Returns:
        True for what `write` wrote.
    """
    try:
        metadata = pq.read_metadata(pa.BufferReader(content)).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return _STORE in metadata


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other export goes on from a cursor: two at once would write the same plays.

    The lock is that of the folder: a cursor is replaced as a whole, so it cannot be locked itself.

    Args:
        path: of the cursor.

    Yields:
        Nothing, while the lock is held.
    """
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_cursor(path: Path, store: str) -> Cursor:
    """Reads how far a log was exported.

    Args:
        path: of the cursor; a free path begins with the log.
        store: the id of the user store that it must be of.

    Returns:
        The cursor.

    Raises:
        ConfigError: it is the cursor of another store, or none.
    """
    if not path.exists():
        return Cursor(store)
    expected = "a free path, or the cursor of an earlier export"
    raw: dict[str, Any] = files.read_json(path, ConfigError, expected)
    texts = [raw.get(name) for name in ("store", "position", "writing")]
    if raw.get("format") != FORMAT or not all(isinstance(text, str) for text in texts):
        raise ConfigError(complain(f"--cursor {path}", "no cursor of this format", expected))
    cursor = Cursor(str(texts[0]), str(texts[1]), str(texts[2]))
    if cursor.store != store:
        found, expected = f"the cursor of store {quoted(cursor.store)}", f"one of store {store}, or a free path"
        raise ConfigError(complain(f"--cursor {path}", found, f"{expected} to begin anew"))
    return cursor


def advance(path: Path, cursor: Cursor) -> None:
    """Writes a cursor, which is on disk before this returns.

    Args:
        path: where.
        cursor: how far the log was exported.
    """
    files.write_text(path, json.dumps(asdict(cursor), indent=1) + "\n")


def _number(position: str) -> int:
    """A position as one number that orders alike."""
    first, second = place(position)
    return (first << _BITS) + second if "-" in position else first


def _table(chunk: Entries, name_of: NameOf | None) -> pa.Table:
    """The rows of a chunk: column by column, which is several times faster than event by event."""
    for position, packed in chunk:
        check(packed, position)
    fixed = np.frombuffer(b"".join([packed[:START] for _, packed in chunk]), _FIXED)
    flags = fixed["flags"]
    event_id, user_id, track_id, request_id, session = _texts(chunk, fixed["lengths"])
    if name_of is not None:
        user_id = pa.array([name_of(one) for one in user_id.to_pylist()], pa.string())
    columns = {
        "user_id": user_id,
        "track_id": track_id,
        "playcount": fixed["count"],
        "timestamp": fixed["time"],
        "position": np.array([_number(position) for position, _ in chunk]),
        "session": _or_null(session),
        "skipped": _truth(flags, SKIPPED),
        "completed": _truth(flags, COMPLETED),
        "ms_played": pa.array(fixed["ms_played"].astype(np.int64), mask=flags & MS_PLAYED == 0),
        "event_id": event_id,
        "request_id": _or_null(request_id),
        "recorded_ms": fixed["recorded_ms"].astype(np.int64),
    }
    return pa.table(columns, schema=SCHEMA)


def _texts(chunk: Entries, lengths: npt.NDArray[np.uint16]) -> list[pa.Array]:
    """The columns of texts. They follow each other in the entries, so one array over all their bytes holds them."""
    texts = [packed[START:] for _, packed in chunk]
    data = b"".join(texts)
    if not data.isascii():  # lengths are in characters
        parts = [_cut(text.decode(), own) for text, own in zip(texts, lengths.tolist(), strict=True)]
        return [pa.array(column, pa.string()) for column in zip(*parts, strict=True)]
    n_fields = lengths.shape[1]
    offsets = np.concatenate([[0], np.cumsum(lengths.reshape(-1), dtype=np.int64)]).astype(np.int32)
    every = pa.StringArray.from_buffers(lengths.size, pa.py_buffer(offsets), pa.py_buffer(data))
    return [every.take(pa.array(np.arange(field, lengths.size, n_fields))) for field in range(n_fields)]


def _cut(text: str, lengths: list[int]) -> list[str]:
    ends = list(accumulate(lengths))
    return [text[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _or_null(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _truth(flags: npt.NDArray[np.uint8], known: int) -> pa.Array:
    """What is known of a yes or no: its bit says that it is known, the next one what it is."""
    return pa.array(flags & 2 * known != 0, mask=flags & known == 0)
