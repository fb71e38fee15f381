"""Tracks on their own: a tracks file read like that of a source, for tracks that are added between rebuilds."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa

from lhydra.data import rows
from lhydra.data.dataset import Column
from lhydra.data.loading import load
from lhydra.data.report import Report
from lhydra.data.sources import Source, find, open_table
from lhydra.errors import DataError, complain
from lhydra.timing import timed


@timed("tracks.read")
def read_tracks(path: Path, columns: Sequence[Column]) -> tuple[pa.Table, list[str]]:
    """Returns the tracks in `path`, a file or a folder with tracks.*, and warnings about its rows.

    The table holds track_id, in order of its bytes and distinct, and those of `columns` that the file has, converted
    like `lhydra prepare` converts them.

    Args:
        path: the file or folder.
        columns: to read.

    Returns:
        The table, and messages.

    Raises:
        DataError: no such file, not what it claims to be, no track_id, or no usable row.
    """
    files = find(path, "tracks") if path.is_dir() else [path]
    if not files or not files[0].exists():
        expected = "a CSV, JSON or Parquet file of tracks, or a folder with tracks.*"
        raise DataError(complain(path, "no such file or folder" if files else "no tracks.* in it", expected))
    file = files[0] if len(files) == 1 else path
    with tempfile.TemporaryDirectory(prefix="lhydra-") as work, duckdb.connect() as con:
        rows.configure(con)
        table = open_table(file, files, ("track_id",), None, None, Path(work))
        known = [column for column in columns if column.name in table.names]
        for column in known:
            table.check(column.name, lists=column.kind == "multi")
        table = load(con, table, "raw_tracks", {"track_id", *(column.name for column in known)}, Path(work))
        report = Report(warnings=table.unread())
        report.drop_broken(table)
        source = Source(file, replace(table), table, table)  # only its tracks are looked at
        found = rows.describe(con, source, "tracks", known, report)
        shown = ", ".join(["id", *found])
        tracks = con.sql(f"SELECT {shown} FROM tracks ORDER BY position").to_arrow_table()
    if not tracks.num_rows:
        raise DataError(complain(file, f"no usable row ({'; '.join(report.drops)})", "a track"))
    names = {"track_id", *(column.name for column in columns)}
    if odd := [name for name in table.names if name not in names]:
        used = ", ".join(sorted(names - {"track_id"})) or "none but track_id"
        report.warnings.append(f"{file.name}: columns not used: {', '.join(odd)}; known are {used}")
    return tracks.rename_columns(["track_id", *(column.name for column in found.values())]), report.warnings
