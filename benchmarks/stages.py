"""What each stage of a request costs without gRPC: `python benchmarks/stages.py DATASET STORE --out FILE.json`.

One process and thread; users of the dataset in random order, by the same `Recommender` as the server's. Microseconds;
`rerank` is the head over `depth` candidates, co-listening scores included.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when the libraries are loaded
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.machine import machine, versions
from lhydra.bundle import Bundle
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.evaluation.lists import recommend_users
from lhydra.recommender import Recommender

WARM_UP = 200  # requests not counted


def main(argv: Sequence[str] | None = None) -> int:
    """Prints and writes p50 and p99 per stage; returns 0, or 1 after bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        dataset = Dataset.open(args.dataset)
        recommender = Recommender(Bundle.open(args.store))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    recommender.warm_up()
    drawn = np.random.default_rng(args.seed).integers(0, len(dataset.user_ids), args.requests + WARM_UP)
    asked = recommend_users(recommender, dataset, "test", args.k, positions=drawn)
    answers = [answer for _, _, answer in asked][WARM_UP:]
    names = list(dict.fromkeys(name for answer in answers for name in answer.stage_us))
    taken = {name: [answer.stage_us.get(name, 0) for answer in answers] for name in names}
    taken["sum"] = [sum(answer.stage_us.values()) for answer in answers]
    stages = {
        name: dict(zip(("p50", "p99"), np.percentile(us, (50, 99)).tolist(), strict=True)) for name, us in taken.items()
    }
    for name, row in stages.items():
        print(f"{name:9} p50 {row['p50']:7.0f} us   p99 {row['p99']:7.0f} us")
    document = {
        "machine": machine(),
        "versions": versions(),
        "requests": args.requests,
        "k": args.k,
        "depth": recommender.depth,
        "tracks": len(recommender.catalog),
        "stages_us": stages,
    }
    if args.out:
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
