"""Leaves out plays whose time no clock of a listener could have said: `python -m lhydra.retraining.screen IN OUT`.

A play in the future would be the newest of all, and so what every model is judged by.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lhydra.errors import DataError, LhydraError, complain
from lhydra.files import replacing_file


def screen(source: Path, out: Path, oldest_s: int, newest_s: int) -> dict[str, Any]:
    """Writes the plays whose time can be, or is unknown.

    Args:
        source: a Parquet file with the columns of plays.
        out: the Parquet file to write, with the same columns.
        oldest_s: Unix seconds; earlier is too early.
        newest_s: Unix seconds; later is too late.

    Returns:
        Rows: plays, kept, future, ancient, untimed.

    Raises:
        DataError: `source` is no such file.
    """
    try:
        file = pq.ParquetFile(source)
        kind = file.schema_arrow.field("timestamp").type
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(complain(source, " ".join(str(error).split()), "Parquet as `plays export` writes it")) from None
    if not pa.types.is_integer(kind):
        raise DataError(complain(f"{source}: timestamp", str(kind), "whole Unix seconds"))
    counts = dict.fromkeys(("plays", "kept", "future", "ancient", "untimed"), 0)
    with replacing_file(out) as new, pq.ParquetWriter(new, file.schema_arrow) as writer:
        for batch in file.iter_batches():
            times = pc.fill_null(batch["timestamp"].cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
            future, ancient = times > newest_s, (times != 0) & (times < oldest_s)
            kept = ~(future | ancient)
            writer.write_batch(batch.filter(pa.array(kept)))
            for name, of_kind in (("kept", kept), ("future", future), ("ancient", ancient), ("untimed", times == 0)):
                counts[name] += int(np.count_nonzero(of_kind))
            counts["plays"] += len(times)
    return counts


def main() -> None:
    """Screens a file, and prints what was counted as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--oldest", type=int, required=True)
    parser.add_argument("--newest", type=int, required=True)
    args = parser.parse_args()
    try:
        print(json.dumps(screen(args.source, args.out, args.oldest, args.newest)))
    except LhydraError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
