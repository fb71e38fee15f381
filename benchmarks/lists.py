"""What rules add to a request: `python -m benchmarks.lists DATASET STORE --out FILE.json`.

One process and thread, without gRPC: users of the dataset in random order, each asked for without rules and with every
rule set, in a random order of its own. What a rule set adds is the median over the requests of how much longer its list
took than the same user's without rules. `no rules, again` is what that comes to where nothing differs: the noise.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.environment import one_thread_per_library

if __name__ == "__main__":  # before the libraries are loaded
    one_thread_per_library()

import numpy as np
import numpy.typing as npt

from benchmarks.machine import machine, versions
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.index import one_thread
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import Query
from lhydra.errors import ConfigError, LhydraError, complain
from lhydra.files import write_text
from lhydra.recommender import Recommender
from lhydra.rules import Calibration, Diversity, Rules

WARM_UP_USERS = 50  # not counted
RESAMPLES = 1000
PLAIN = "no rules"
F64 = npt.NDArray[np.float64]


def rule_sets(capped: str, calibrated: str) -> dict[str, Rules | None]:
    """Returns what is measured, by name.

    Args:
        capped: column of the cap.
        calibrated: column of the calibration.

    Returns:
        Rule sets; None twice.
    """
    caps, diversity, calibration = ((capped, 2),), Diversity(0.3), Calibration(calibrated, 0.5)
    return {
        PLAIN: None,
        f"{PLAIN}, again": None,
        f"cap {capped}": Rules("cap", caps),
        "diversity": Rules("diversity", diversity=diversity),
        f"calibration {calibrated}": Rules("calibration", calibration=calibration),
        "all three": Rules("all", caps, None, diversity, calibration),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints and writes what rule sets add.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--depth", type=int, default=300, help="candidates to rerank")
    parser.add_argument("--cap", default="artist", help="column of the cap, 2 tracks a value")
    parser.add_argument("--calibrate", default="genre", help="column of the calibration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    one_thread()
    try:
        check_output("--out", args.out, is_json_with("versions", "rule_sets"))
        dataset = Dataset.open(args.dataset)
        recommender = Recommender(Bundle.open(args.store), args.depth)
        _check_column(recommender.bundle, "--cap", args.cap)
        _check_column(recommender.bundle, "--calibrate", args.calibrate)
        sets = rule_sets(args.cap, args.calibrate)
        rng = np.random.default_rng(args.seed)
        drawn = rng.integers(0, len(dataset.user_ids), args.users + WARM_UP_USERS)
        states = [state for _, state in user_states(dataset, "test", positions=drawn)]
        queries = [Query(args.k, state, known=True, now=int(time.time())) for state in states]
        taken = measured(recommender, queries, sets, rng)[WARM_UP_USERS:]
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    found = {name: added(taken[:, i], taken[:, 0], args.seed) for i, name in enumerate(sets)}
    flags = {name: getattr(args, name) for name in ("users", "k", "depth", "cap", "calibrate", "seed")}
    document = {
        "machine": machine(),
        "versions": versions(),
        **flags,
        "tracks": len(recommender.catalog),
        "dim": recommender.catalog.vectors.shape[1],
        "rule_sets": found,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, row in found.items():
        print(
            f"{name:20} {row['median_us']:6.0f} us   adds {row['adds_us']:5.0f} us "
            f"({row['adds_low_us']:.0f} to {row['adds_high_us']:.0f})   x{row['ratio']:.2f}"
        )
    return 0


def measured(
    recommender: Recommender, queries: Sequence[Query], sets: dict[str, Rules | None], rng: np.random.Generator
) -> F64:
    """Times all queries with all rule sets, those of one query one after the other in a random order.

    Args:
        recommender: who answers.
        queries: without rules.
        sets: rule sets by name.
        rng: of the order.

    Returns:
        (queries, sets) microseconds.
    """
    taken = np.empty((len(queries), len(sets)))
    rules = list(sets.values())
    for row, query in zip(taken, queries, strict=True):
        for i in rng.permutation(len(rules)):
            asked = replace(query, rules=rules[i])
            started_ns = time.perf_counter_ns()
            recommender.recommend(asked)
            row[i] = (time.perf_counter_ns() - started_ns) / 1000
    return taken


def added(taken: F64, plain: F64, seed: int) -> dict[str, Any]:
    """Computes what a rule set adds.

    Args:
        taken: (n,) microseconds of requests with it.
        plain: (n,) of the same without rules.
        seed: of the bootstrap over requests.

    Returns:
        The median, how much is added with its 95 % interval, and the median of the ratios.
    """
    more = taken - plain
    again = np.random.default_rng(seed).integers(0, len(more), (RESAMPLES, len(more)))
    low, high = np.quantile(np.median(more[again], axis=1), (0.025, 0.975)).tolist()
    return {
        "median_us": float(np.median(taken)),
        "adds_us": float(np.median(more)),
        "adds_low_us": low,
        "adds_high_us": high,
        "ratio": float(np.median(taken / plain)),
    }


def _check_column(bundle: Bundle, flag: str, column: str) -> None:
    if column != "artist" and column not in bundle.filters.names:
        raise ConfigError(complain(flag, column, "a column of the bundle"))


if __name__ == "__main__":
    sys.exit(main())
