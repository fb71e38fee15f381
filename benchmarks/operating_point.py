"""What the operating point loses: `python -m benchmarks.operating_point DATASET STORE --out FILE.json`.

The CURRENT bundle as it is served, beside itself with an exact index at the same depth, and beside the head over the
whole catalogue: NDCG@10 on the test fold, the same users, paired 95 % intervals.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.machine import machine, versions
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.index import FLAT, Index
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import I64
from lhydra.errors import LhydraError
from lhydra.evaluation.bootstrap import difference
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import as_rows, find_targets
from lhydra.files import write_text
from lhydra.queries import known_user
from lhydra.recommender import Recommender

K = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Prints and writes the three figures and their differences.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--users", type=int, default=2000, help="drawn at random; the head scores everything for them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "served less"))
        dataset, bundle = Dataset.open(args.dataset), Bundle.open(args.store)
        targets = find_targets(dataset, "test").sample(args.users, args.seed)
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    manifest = bundle.manifest
    assert manifest is not None  # opened from a store
    n = len(bundle.catalog)
    exact = replace(bundle, index=Index.build(bundle.catalog.vectors, FLAT))
    asked = {
        "served": Recommender(bundle),
        "exact index": Recommender(exact, manifest.depth),
        "head over all tracks": Recommender(exact, n),
    }
    lists = {name: np.full((len(targets), K), -1, np.int64) for name in asked}
    for i, (_, state) in enumerate(user_states(dataset, "test", positions=targets.users)):
        for name, recommender in asked.items():
            rows = recommender.recommend(known_user(state, K)).rows
            lists[name][i, : len(rows)] = rows
    rows = as_rows(bundle.catalog.rows(dataset.hashes), n)[targets.tracks]
    wanted = np.concatenate([np.sort(rows[targets.of(user)]) for user in range(len(targets))])

    def ndcg(own: I64) -> np.ndarray:
        return rank_metrics(own, targets.offsets, wanted, n, (K,)).per_user[f"ndcg@{K}"]

    found = {name: ndcg(own) for name, own in lists.items()}
    means = {name: float(values.mean()) for name, values in found.items()}
    lost = {name: 1 - means["served"] / means[name] for name in list(asked)[1:]}
    document = {
        "benchmark": "operating point",
        "command": f"python -m benchmarks.operating_point DATASET STORE --users {args.users} --seed {args.seed}",
        "dataset": dataset.info.counts,
        "recipe": manifest.recipe,
        "point": manifest.point,
        "coverage": manifest.recall["coverage"],
        "depth": manifest.depth,
        "users": len(targets),
        "ndcg@10": {name: round(value, 5) for name, value in means.items()},
        "lost": {name: round(value, 5) for name, value in lost.items()},
        "served less": {name: difference(found[name], found["served"], args.seed) for name in lost},
        "machine": machine(),
        "versions": versions(),
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(f"{manifest.recipe} {manifest.point}, depth {manifest.depth}, {len(targets):,} users of the test fold")
    for name, value in means.items():
        print(f"  {name:<21} NDCG@10 {value:.4f}" + (f"  served loses {lost[name]:+.2%}" if name in lost else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
