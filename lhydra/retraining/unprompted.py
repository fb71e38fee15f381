"""Leaves plays that came from a list out of what judges: `python -m lhydra.retraining.unprompted PLAYS OUT`.

What the served bundle puts first is seen first and played more, whatever another bundle would have shown there. Plays
from its lists are learned from; but a candidate is held to what listeners chose without any list, like what is served.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lhydra.files import replacing_file


def leave_out(plays: Path, out: Path, learned_s: int, holdout: float) -> dict[str, int]:
    """Writes plays without those from lists that are as new as the ones that judge.

    Args:
        plays: a Parquet file with the columns of plays; `request_id` names the answer that a play came from.
        out: the Parquet file to write, with the same columns.
        learned_s: Unix seconds; what is later is new.
        holdout: share of the new plays without a list, the newest, that judges.

    Returns:
        judges: how many plays that is, 0 where no new play came without a list: then nothing is left out. left_out:
        how many plays from lists are as new.
    """
    file = pq.ParquetFile(plays)
    times, listed = _columns(
        file.read([name for name in ("timestamp", "request_id") if name in file.schema_arrow.names])
    )
    own = np.sort(times[(times > learned_s) & ~listed])
    judges = round(holdout * len(own))
    first_s = own[-judges] if judges else np.iinfo(np.int64).max
    left_out = 0
    with replacing_file(out) as new, pq.ParquetWriter(new, file.schema_arrow) as writer:
        for batch in file.iter_batches():
            times, listed = _columns(pa.Table.from_batches([batch]))
            kept = ~(listed & (times >= first_s))
            writer.write_batch(batch.filter(pa.array(kept)))
            left_out += int(np.count_nonzero(~kept))
    return {"judges": judges, "left_out": left_out}


def _columns(plays: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The time of each play, and whether it came from a list."""
    times = pc.fill_null(plays["timestamp"].cast(pa.int64()), 0).to_numpy()
    if "request_id" not in plays.column_names:
        return times, np.zeros(len(times), np.bool_)
    return times, pc.not_equal(pc.fill_null(plays["request_id"], ""), "").to_numpy()


def main() -> None:
    """Leaves plays out, and prints what was counted as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("plays", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--learned", type=int, required=True)
    parser.add_argument("--holdout", type=float, required=True)
    args = parser.parse_args()
    print(json.dumps(leave_out(args.plays, args.out, args.learned, args.holdout)))


if __name__ == "__main__":
    main()
