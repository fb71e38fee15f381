"""Lists of Lhydra against the tuned baselines, user by user over several splits.

    python -m benchmarks.paired --out results.json DATASET=LISTS.csv [DATASET=LISTS.csv ...]

Each LISTS.csv is what `lhydra recommend DATASET STORE --users all --k 20` wrote. Baselines are tuned on each dataset's
validation fold and cached beside it, as `lhydra evaluate` does. The users of all splits are taken together: the
intervals are of the mean over users and splits. Users whom a system has no list for count 0.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.machine import machine, versions
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.errors import DataError, LhydraError, complain
from lhydra.evaluation import baselines
from lhydra.evaluation.bootstrap import difference
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Targets, find_targets
from lhydra.files import write_text

METRICS = ("ndcg@10", "recall@20", "ndcg@20")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, writes JSON.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="DATASET=LISTS.csv")
    parser.add_argument("--baselines", default="popular,itemknn,rp3beta,ials,ease,dlae")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    values: dict[str, dict[str, list[Any]]] = {}
    try:
        check_output("--out", args.out, is_json_with("versions", "systems"))
        for run in args.runs:
            folder, _, lists = run.partition("=")
            for system, metrics in measured(Dataset.open(Path(folder)), Path(lists), args.baselines.split(",")).items():
                for name in METRICS:
                    values.setdefault(system, {}).setdefault(name, []).append(metrics[name])
    except (LhydraError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    systems = compared(values)
    document = {"machine": machine(), "versions": versions(), "runs": len(args.runs), "systems": systems}
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for system, row in systems.items():
        print(f"{system:10}", *(f"{name} {_words(row[name])}" for name in METRICS), sep="  ")
    return 0


def measured(dataset: Dataset, lists: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Measures our lists and the baselines on one dataset.

    Args:
        dataset: with its test fold.
        lists: CSV of `lhydra recommend`.
        names: baselines.

    Returns:
        By system and metric the values of all users with targets, (n,) float64.
    """
    targets = find_targets(dataset, "test")
    known = np.bincount(dataset.plays.track[dataset.plays.fold == 0], minlength=len(dataset.track_ids)) > 0
    found = {"lhydra": read_lists(dataset, lists, targets)}
    for name, baseline in baselines.measure(dataset, names, targets, known, as_of="test", k=20, seed=0).items():
        if baseline.lists is not None:
            found[name] = baseline.lists
    out: dict[str, dict[str, Any]] = {}
    for system, ranked in found.items():
        metrics = rank_metrics(ranked, targets.offsets, targets.tracks, len(dataset.track_ids))
        out[system] = {name: np.nan_to_num(metrics.per_user[name]) for name in METRICS}
    return out


def compared(values: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    """Compares all systems with ours, over the users of all datasets.

    Args:
        values: by system and metric, (n,) float64 of each dataset.

    Returns:
        By system and metric its mean, and how far `lhydra` lies above it with a paired interval; without systems that
        were skipped on some dataset.
    """
    return {
        system: {
            name: {
                "mean": float(np.concatenate(parts).mean()),
                "lhydra_above_by": difference(np.concatenate(parts), np.concatenate(values["lhydra"][name]), 0),
            }
            for name, parts in metrics.items()
        }
        for system, metrics in values.items()
        if len(metrics[METRICS[0]]) == len(values["lhydra"][METRICS[0]])
    }


def read_lists(dataset: Dataset, lists: Path, targets: Targets) -> Any:
    """Reads lists.

    Args:
        dataset: whose users and tracks they are.
        lists: CSV of `lhydra recommend`.
        targets: whose users are asked for.

    Returns:
        (n, 20) int64 positions in the tracks table, best first, -1 padded.

    Raises:
        DataError: it holds no lists, or those of other tracks.
    """
    table = pd.read_csv(lists, dtype={"user_id": str, "track_id": str})
    missing = {"user_id", "rank", "track_id"} - set(table.columns)
    if missing:
        raise DataError(complain(lists, f"no column {min(missing)}", "lists of `lhydra recommend`"))
    user = pd.Index(np.asarray(dataset.user_ids)[targets.users]).get_indexer(
        table.user_id
    )  # -1 where it has no targets
    track = pd.Index(dataset.track_ids).get_indexer(pd.Index(table.track_id))
    if (track < 0).any():
        unknown = table.track_id[track < 0].iloc[0]
        raise DataError(complain(lists, f"track {unknown}", f"tracks of {dataset.path}"))
    rank = table["rank"].to_numpy(np.int64)
    kept = (user >= 0) & (rank <= 20)
    ranked = np.full((len(targets), 20), -1, np.int64)
    ranked[user[kept], rank[kept] - 1] = track[kept]
    return ranked


def _words(cell: dict[str, Any]) -> str:
    above = cell["lhydra_above_by"]
    return f"{cell['mean']:.4f} ({above['difference']:+.4f}, {above['low']:+.4f} to {above['high']:+.4f})"


if __name__ == "__main__":
    sys.exit(main())
