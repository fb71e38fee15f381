"""Writes the tables of a dataset as Parquet, a few rows at a time: DuckDB has a limit to its memory."""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lhydra.data import split
from lhydra.data.dataset import EVENTS_SCHEMA, TRAIN, Column, Events, Plays
from lhydra.data.events import to_table
from lhydra.data.sources import Side
from lhydra.timing import timed

_FETCH = 1 << 19  # rows of a table handed over at once
_ROW_GROUP = 1 << 20
_TRACK_ROW_GROUP = 1 << 16  # small, so that a catalogue far larger than its plays can be read piece by piece


@timed("prepare.write")
def write_tables(
    con: duckdb.DuckDBPyConnection,
    folder: Path,
    tracks: Mapping[str, Column],
    users: Mapping[str, Column],
    plays: Plays,
) -> tuple[int, int, str]:
    """Writes the three tables that plays add up to.

    Args:
        con: the connection that holds `tracks` and `users`, as `rows.describe` makes them.
        folder: where to write.
        tracks: the columns of tracks by their names in the table.
        users: likewise.
        plays: what the plays add up to.

    Returns:
        How many tracks and users there are, and the hash of the split.
    """
    train = plays.where(plays.fold == TRAIN)
    n_tracks, n_users = (con.sql(f"SELECT count(*) FROM {side}").fetchall()[0][0] for side in ("tracks", "users"))
    own: dict[str, pa.Array] = {
        "train_plays": pa.array(np.bincount(train.track, train.count, n_tracks)),
        "train_listeners": pa.array(np.bincount(train.track, minlength=n_tracks)),
    }
    pieces = _pieces(con, "tracks", tracks, own, n_tracks, _TRACK_ROW_GROUP)
    track_ids = _save(pieces, folder / "tracks.parquet", _TRACK_ROW_GROUP)
    own = {
        "train_plays": pa.array(np.bincount(train.user, train.count, n_users)),
        "train_tracks": pa.array(np.bincount(train.user, minlength=n_users)),
        "train_top_genre": _top_genres(con, tracks, train, n_users),
    }
    user_ids = _save(_pieces(con, "users", users, own, n_users, _ROW_GROUP), folder / "users.parquet", _ROW_GROUP)
    names = ("user", "track", "count", "time", "fold")
    table = pa.table({name: getattr(plays, name) for name in names})
    pq.write_table(table, folder / "plays.parquet", compression="zstd", row_group_size=_ROW_GROUP)
    return n_tracks, n_users, split.split_hash(plays.user, plays.track, plays.fold, user_ids, track_ids)


def write_events(events: Events, folder: Path) -> None:
    """Writes plays one by one, a few at a time.

    Args:
        events: in order of listening.
        folder: where to write.
    """
    with pq.ParquetWriter(folder / "events.parquet", EVENTS_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(events), _ROW_GROUP):
            writer.write_table(to_table(events, start, start + _ROW_GROUP), row_group_size=_ROW_GROUP)


def _save(pieces: Iterator[pa.Table], path: Path, group: int) -> pa.Array:
    """Writes the pieces of a table, at least one, in row groups of `group` rows; returns its first column, the ids."""
    first = next(pieces)
    key = first.column_names[0]
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for piece in chain((first,), pieces):
            writer.write_table(piece, row_group_size=group)
    return pq.read_table(path, columns=[key])[key].combine_chunks()  # a column kept of a piece would keep all of it


def _pieces(
    con: duckdb.DuckDBPyConnection,
    side: Side,
    columns: Mapping[str, Column],
    own: Mapping[str, pa.Array],
    n: int,
    group: int,
) -> Iterator[pa.Table]:
    """Yields the table `side` of `n` rows with the columns `own` (n,): ids first, a few whole row groups at a time.

    DuckDB has a limit to its memory; what it hands over has none.
    """
    shown = ", ".join(["id", *columns])
    step = group * max(_FETCH // group, 1)
    for start in range(0, n, step):
        piece = con.sql(
            f"SELECT {shown} FROM {side} WHERE position >= {start} AND position < {start + step} ORDER BY position"
        ).to_arrow_table()
        piece = piece.rename_columns([f"{side[:-1]}_id", *(column.name for column in columns.values())])
        for name, values in own.items():
            piece = piece.append_column(name, values.slice(start, step))
        yield piece


def _top_genres(con: duckdb.DuckDBPyConnection, tracks: Mapping[str, Column], train: Plays, n_users: int) -> pa.Array:
    """Returns each user's most played genre in train, (n_users,) text, null when unknown; ties by name."""
    by_name = {column.name: (name, column.kind) for name, column in tracks.items()}
    genres = [by_name[name] for name in ("main_genre", "genre") if name in by_name]
    texts = [f"{name}[1]" if kind == "multi" else f"CAST({name} AS VARCHAR)" for name, kind in genres]
    top: list[str | None] = [None] * n_users
    if texts:
        con.register("train", pa.table({"user": train.user, "track": train.track, "count": train.count}))
        found = con.execute(
            f"""SELECT user, first(genre ORDER BY plays DESC, genre) FROM (
                SELECT p.user, coalesce({", ".join(texts)}) AS genre, sum(p.count) AS plays
                FROM train p JOIN tracks t ON t.position = p.track GROUP BY ALL)
                WHERE genre IS NOT NULL GROUP BY user"""
        ).fetchnumpy()
        for user, genre in zip(found["user"].tolist(), found[list(found)[1]].tolist(), strict=True):
            top[user] = genre
        con.unregister("train")
    return pa.array(top, pa.string())
