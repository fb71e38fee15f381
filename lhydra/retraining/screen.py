"""Leaves out plays whose time no clock of a listener could have said: `python -m lhydra.retraining.screen EXPORT OUT`.

A play in the future would be the newest of all, and so what every model is judged by. What is left becomes sources for
`lhydra prepare`: OUT/named with the plays of tracks that a table describes and that table, OUT/plain with the others,
since a source with a table of tracks has no plays of tracks that the table lacks.
"""

import argparse
import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lhydra.data.sources import EXTENSIONS
from lhydra.data.tracks import read_tracks
from lhydra.errors import DataError, LhydraError, complain
from lhydra.files import replacing_folder

NAMED, PLAIN = "named", "plain"


@dataclass(frozen=True)
class Clock:
    """What times can be. now_s: Unix seconds of this machine; oldest_s: before it nothing was played.

    ahead_s: how far a play may lie after the moment it was recorded, or after now. late_s: how long before it was
    recorded a play may lie to be told right; it is kept all the same. since_s: what was recorded before is old.
    """

    now_s: int
    oldest_s: int
    ahead_s: int
    late_s: int
    since_s: int = 0


def screen(export: Path, out: Path, clock: Clock, tracks: Path | None = None) -> dict[str, int]:
    """Writes the plays whose time can be, or is unknown.

    A play that is ahead of the clock by less counts as of when it was recorded. Else one phone that is a day fast would
    make all plays of that day older than what has been learned.

    Args:
        export: a Parquet file with the columns of plays; `recorded_ms` says when the server got each.
        out: the folder to write, as a whole.
        clock: what times can be.
        tracks: a table of tracks.

    Returns:
        Rows: plays, kept, named (kept, of tracks of the table), and of those that came since the run before: came,
        future, ancient, late, ahead (kept, at another time). left_out: future and ancient of all.

    Raises:
        DataError: a file is not what it should be.
    """
    try:
        file = pq.ParquetFile(export)
        kind = file.schema_arrow.field("timestamp").type
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(complain(export, " ".join(str(error).split()), "Parquet as `plays export` writes it")) from None
    if not pa.types.is_integer(kind):
        raise DataError(complain(f"{export}: timestamp", str(kind), "whole Unix seconds"))
    known = read_tracks(tracks, ())[0]["track_id"] if tracks is not None else pa.array([], pa.string())
    counts = dict.fromkeys(("plays", "kept", "named", "left_out", "came", "future", "ancient", "late", "ahead"), 0)
    with replacing_folder(out) as folder, ExitStack() as writers:
        parts = {}
        for batch in file.iter_batches():
            times = _numbers(batch, "timestamp")
            recorded = _numbers(batch, "recorded_ms") // 1000 if "recorded_ms" in batch.schema.names else None
            future = times > clock.now_s + clock.ahead_s
            late, came = np.zeros((2, len(times)), np.bool_)
            came[:] = True
            if recorded is not None:
                future |= times > recorded + clock.ahead_s
                late = (times > 0) & (times < recorded - clock.late_s)
                came = recorded >= clock.since_s
            ancient = (times != 0) & (times < clock.oldest_s)
            kept = ~(future | ancient)
            latest = np.full(len(times), clock.now_s) if recorded is None else recorded
            ahead = kept & (times > latest)
            if ahead.any():
                at = batch.schema.get_field_index("timestamp")
                corrected = pa.array(
                    np.where(ahead, latest, times), pa.int64(), mask=pc.is_null(batch[at]).to_numpy(False)
                )
                batch = batch.set_column(at, batch.schema.field(at), corrected.cast(kind))
            named = kept & pc.is_in(batch["track_id"].cast(pa.string()), value_set=known).to_numpy(False)
            for name, chosen in ((NAMED, named), (PLAIN, kept & ~named)):
                if chosen.any():
                    if name not in parts:
                        (folder / name).mkdir()
                        writer = pq.ParquetWriter(folder / name / "plays.parquet", file.schema_arrow)
                        parts[name] = writers.enter_context(writer)
                    parts[name].write_batch(batch.filter(pa.array(chosen)))
            counts["plays"] += len(times)
            for name, chosen in (("kept", kept), ("named", named), ("left_out", ~kept), ("came", came)):
                counts[name] += int(np.count_nonzero(chosen))
            for name, chosen in (("future", future), ("ancient", ancient), ("late", late & kept), ("ahead", ahead)):
                counts[name] += int(np.count_nonzero(chosen & came))
        if tracks is not None and NAMED in parts:
            form = next(form for form in EXTENSIONS if tracks.name.endswith(form))
            shutil.copyfile(tracks, folder / NAMED / f"tracks{form}")
    return counts


def _numbers(batch: pa.RecordBatch, name: str) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    found: np.ndarray[tuple[int], np.dtype[np.int64]] = pc.fill_null(batch[name].cast(pa.int64()), 0).to_numpy(False)
    return found


def main() -> None:
    """Screens an export, and prints what was counted as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("export", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tracks", type=Path)
    for name in ("now", "oldest", "ahead", "late", "since"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    clock = Clock(args.now, args.oldest, args.ahead, args.late, args.since)
    try:
        print(json.dumps(screen(args.export, args.out, clock, args.tracks)))
    except LhydraError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
