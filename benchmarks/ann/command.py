"""Our index against other libraries on real vectors: `python -m benchmarks.ann STORE DATASET --out FILE.json`.

Tracks: all of the bundle that STORE names CURRENT. Queries: vectors of users of DATASET, drawn at random. Everybody
fetches FETCH rows, whatever the bundle's depth, with the least effort whose coverage, the share of the exact nearest
100 among them, reaches TARGET for one half of the users; what the table says was measured on the other half. `ours` is
the published operating point, through the call the server makes, ties put in order; `ours, least` the least that
does. The other libraries are called bare. One query per call; rounds go over all in turn, medians with min..max.
Libraries that are not installed (dependency group `bench`) are skipped, and said to be.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.ann.libraries import FETCH, LIBRARIES
from benchmarks.ann.measure import (
    OURS,
    TARGET,
    entrant_of,
    half_of,
    load,
    measure,
    own_entrants,
    queries_of,
    truth_of,
    vectors_of,
)
from benchmarks.ann.report import ratios, report, row_of
from benchmarks.machine import core_scaling, machine, versions
from lhydra.bundle.bundle import Bundle
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra.lines import say
from lhydra_index_builder.sweep import NEIGHBOURS

SPIN_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and writes the JSON.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--queries", type=int, default=400, help="users, half of them to choose the effort by")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--libraries", default=",".join((OURS, *LIBRARIES)))
    parser.add_argument("--build-threads", type=int, default=os.cpu_count(), help="cores to build with")
    parser.add_argument("--seed", type=int, default=1, help="draws the users; a rebuild draws with 0")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    names = list(dict.fromkeys(name for name in args.libraries.split(",") if name != OURS))
    if unknown := [name for name in names if name not in LIBRARIES]:
        parser.error(f"--libraries: unknown {unknown[0]}, expected some of {','.join((OURS, *LIBRARIES))}")
    if args.queries < 2 or args.repeats < 1 or args.build_threads < 1:
        parser.error("--queries: at least 2; --repeats and --build-threads: at least 1")
    try:
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
        check_output("--out", args.out, is_json_with("benchmark", "spinners"))
        at_start, spinners = machine(), {"before": core_scaling(SPIN_S)}
        bundle, dataset = Bundle.open(args.store), Dataset.open(args.dataset)
        vectors = vectors_of(bundle)
        truth = truth_of(vectors, queries_of(bundle, dataset, args.queries, args.seed))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    near = np.einsum("ud,umd->um", truth.queries, vectors[truth.nearest]).mean(0)
    say(
        f"{len(vectors):,} tracks of {vectors.shape[1]} numbers, {len(truth.queries)} users; inner product with the"
        f" nearest {near[0]:.2f}, with the last of the nearest {NEIGHBOURS} {near[-1]:.2f}"
    )
    entrants = own_entrants(bundle, vectors, half_of(truth, 0))
    skipped: dict[str, str] = {}
    for name in names:
        module = load(name, LIBRARIES[name], skipped)
        if module is not None:
            entrants.append(entrant_of(name, LIBRARIES[name], module, vectors, half_of(truth, 0), args.build_threads))
    packages = [LIBRARIES[name].package for name in names if name not in skipped]
    rounds = measure(entrants, truth, args.repeats)
    rows = [row_of(entrant, rounds[entrant.name], half_of(truth, 1), len(vectors)) for entrant in entrants]
    for row in rows:
        row["to_ours"] = ratios(row, rows[0])
    spinners["after"] = core_scaling(SPIN_S)
    document = {
        "benchmark": "ann",
        "command": f"python -m benchmarks.ann STORE DATASET --queries {args.queries} --repeats {args.repeats}"
        f" --libraries {args.libraries} --build-threads {args.build_threads} --seed {args.seed}",
        "seed": args.seed,
        "machine": at_start,
        "versions": versions() | {package: version(package) for package in packages},
        "spinners": spinners,
        "tracks": len(vectors),
        "dim": vectors.shape[1],
        "inner_product_of_nearest": {"first": round(float(near[0]), 4), "last": round(float(near[-1]), 4)},
        "fetch": FETCH,
        "target": TARGET,
        "depth_of_bundle": bundle.manifest.depth if bundle.manifest else None,
        "build_threads": args.build_threads,
        "skipped": skipped,
        "rows": rows,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    say(report(rows))
    say(f"two spinning processes do x{spinners['before']:.2f} (before) and x{spinners['after']:.2f} (after) of one")
    return 0
