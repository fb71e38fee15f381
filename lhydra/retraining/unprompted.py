"""Leaves plays that came from a list out of what judges: `python -m lhydra.retraining.unprompted SCREENED OUT`.

What the served bundle puts first is seen first and played more, whatever another bundle would have shown there. Plays
from its lists are learned from; but a candidate is held to what listeners chose without any list, like what is served.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lhydra.domain import I64
from lhydra.files import replacing_folder

LEAST = 100  # plays that judge: with fewer without a list, those from lists judge too


def leave_out(screened: Path, out: Path, learned_s: int, holdout: float) -> dict[str, int]:
    """Writes plays without those from lists that are as new as the ones that judge.

    Args:
        screened: what `lhydra.retraining.screen` wrote; `request_id` names the answer that a play came from.
        out: the folder to write, with the same parts.
        learned_s: Unix seconds; what is later is new.
        holdout: share of the new plays without a list, the newest, that judges.

    Returns:
        judges: how many plays that is; 0 where they are too few: then nothing is left out, and plays from lists judge
        too. listed: new plays from lists; left_out: those of them that are as new as the ones that judge.
    """
    parts = sorted(path.name for path in screened.iterdir())
    own, from_lists = [], 0
    for part in parts:
        for batch in pq.ParquetFile(screened / part / "plays.parquet").iter_batches():
            times, listed = _columns(batch)
            own.append(times[(times > learned_s) & ~listed])
            from_lists += int(np.count_nonzero((times > learned_s) & listed))
    alone = np.sort(np.concatenate(own)) if own else np.empty(0, np.int64)
    judges = round(holdout * len(alone))
    judges = judges if judges >= LEAST else 0
    first_s = int(alone[-judges]) if judges else np.iinfo(np.int64).max
    left_out = 0
    with replacing_folder(out) as folder:
        for part in parts:
            shutil.copytree(screened / part, folder / part, ignore=shutil.ignore_patterns("plays.parquet"))
            file, kept_any = pq.ParquetFile(screened / part / "plays.parquet"), False
            with pq.ParquetWriter(folder / part / "plays.parquet", file.schema_arrow) as writer:
                for batch in file.iter_batches():
                    times, listed = _columns(batch)
                    kept = ~(listed & (times >= first_s))
                    writer.write_batch(batch.filter(pa.array(kept)))
                    left_out, kept_any = left_out + int(np.count_nonzero(~kept)), kept_any or bool(kept.any())
            if not kept_any:
                shutil.rmtree(folder / part)
    return {"judges": judges, "listed": from_lists, "left_out": left_out}


def _columns(plays: pa.RecordBatch) -> tuple[I64, npt.NDArray[np.bool_]]:
    """The time of each play, and whether it came from a list."""
    times = pc.fill_null(plays["timestamp"].cast(pa.int64()), 0).to_numpy(False)
    if "request_id" not in plays.schema.names:
        return times, np.zeros(len(times), np.bool_)
    return times, pc.not_equal(pc.fill_null(plays["request_id"], ""), "").to_numpy(False)


def main() -> None:
    """Leaves plays out, and prints what was counted as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("screened", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--learned", type=int, required=True)
    parser.add_argument("--holdout", type=float, required=True)
    args = parser.parse_args()
    print(json.dumps(leave_out(args.screened, args.out, args.learned, args.holdout)))


if __name__ == "__main__":
    main()
