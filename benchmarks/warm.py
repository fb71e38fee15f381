"""Training that goes on (`--warm`) against training from the start: time and quality, on plays as they come.

    python -m benchmarks.warm DATASET WORK --steps 1 --seeds 0,1,2 --out FILE.json

The plays of DATASET, which have times, are cut at moments: up to the first is what a service began with, each later one
takes in five per cent more, the last has all. Each is prepared with a split by time of its own. Of each seed one model
is trained from the start on the first. Then, moment by moment, one from the start and one from the last warm model, one
after the other, by turns; both are measured on the same test plays by `lhydra evaluate` and compared by `lhydra
compare`. What is done lies in WORK: the same command goes on where it was stopped.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.environment import untuned_blas
from benchmarks.machine import machine, versions
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.files import write_text

GROWTH = 1.05  # plays at a moment, to those at the moment before
METRICS = ("ndcg@10", "recall@20")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line a comparison and writes the JSON.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 when a command failed, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("work", type=Path, help="folder for datasets and models")
    parser.add_argument("--steps", type=int, default=1, help="times that plays come")
    parser.add_argument("--seeds", default="0,1,2", help="repeats, each with a seed of its own")
    parser.add_argument("--train", default="", help="more flags of `lhydra train`")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    untuned_blas()
    rows = []
    try:
        check_output("--out", args.out, is_json_with("benchmark", "rows"))
        datasets = prepared(Dataset.open(args.dataset), args.work, args.steps)
        for seed in map(int, args.seeds.split(",")):
            flags = ["--threads", "1", "--seed", str(seed), *args.train.split()]
            warm = trained(datasets[0], args.work / f"seed{seed}" / "cold0", flags)[0]
            for step, dataset in enumerate(datasets[1:], 1):
                row, warm = compared(dataset, args.work / f"seed{seed}", step, warm, flags, cold_first=seed % 2 == 0)
                rows.append({"seed": seed, "step": step, **row})
                show(rows[-1])
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd[3:5])} failed: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    more = f' --train "{args.train}"' if args.train else ""
    document = {
        "benchmark": "warm",
        "command": f"python -m benchmarks.warm DATASET WORK --steps {args.steps} --seeds {args.seeds}{more}",
        "dataset": Path(Dataset.open(args.dataset).info.source).name,
        "plays": [len(Dataset.open(dataset).events) for dataset in datasets],
        "machine": machine(),
        "versions": versions(),
        "ratio": {name: float(np.median([row["ratio"][name] for row in rows])) for name in ("wall_s", "cpu_s")},
        "rows": rows,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(f"median of warm to cold: {document['ratio']}")
    return 0


def prepared(whole: Dataset, work: Path, steps: int) -> list[Path]:
    """Makes the datasets at the moments.

    Args:
        whole: all plays.
        work: where they are written.
        steps: how many come after the first.

    Returns:
        Their folders, the one with the fewest plays first.
    """
    events, folders = whole.events, []
    order = np.sort(events.time)
    for step in range(steps + 1):
        source, folder = work / f"source{step}", work / f"data{step}"
        folders.append(folder)
        if (folder / "dataset.json").exists():
            continue
        source.mkdir(parents=True, exist_ok=True)
        last = order[min(len(order), round(len(order) / GROWTH ** (steps - step))) - 1]
        then = events.where(events.time <= last)
        ids = {"user_id": np.array(whole.user_ids)[then.user], "track_id": np.array(whole.track_ids)[then.track]}
        plays = {**ids, "timestamp": then.time, "playcount": then.count}
        for name in ("skipped", "completed", "ms_played"):
            if (known := getattr(then, name) >= 0).any():
                values = getattr(then, name)
                plays[name] = pa.array(values.astype(np.bool_) if name != "ms_played" else values, mask=~known)
        pq.write_table(pa.table(plays), source / "plays.parquet")
        for name, table, rows in (("tracks", whole.tracks, then.track), ("users", whole.users, then.user)):
            kept = table.take(pa.array(np.unique(rows)))
            own = [one for one in kept.column_names if not one.startswith("train_")]
            pq.write_table(kept.select(own), source / f"{name}.parquet")
        lhydra(["prepare", str(source), str(folder), "--split", "temporal"])
    return folders


def trained(dataset: Path, model: Path, flags: list[str]) -> tuple[Path, dict[str, float]]:
    """Trains a model, where it is not there yet.

    Args:
        dataset: to train on.
        model: folder to write.
        flags: of `lhydra train`.

    Returns:
        The folder, and the seconds that it took, by the clock and of the processor.
    """
    took = model / "took.json"
    if not took.exists():
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        lhydra(["train", str(dataset), str(model), *flags])
        wall_s, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        write_text(took, json.dumps({"wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2)}))
    return model, json.loads(took.read_text())


def compared(
    dataset: Path, work: Path, step: int, parent: Path, flags: list[str], cold_first: bool
) -> tuple[dict[str, Any], Path]:
    """Trains from the start and from the parent, and compares.

    Args:
        dataset: at this moment.
        work: where models are written.
        step: number of the moment.
        parent: the model before.
        flags: of `lhydra train`.
        cold_first: which of the two comes first; the other way around at the next moment.

    Returns:
        Seconds, qualities and differences (warm less cold), and the warm model.
    """
    warm_flags = [*flags, "--warm", str(parent)]
    runs = [("cold", flags), ("warm", warm_flags)]
    if cold_first != (step % 2 == 1):
        runs.reverse()
    took, documents = {}, {}
    for name, own in runs:
        model, took[name] = trained(dataset, work / f"{name}{step}", own)
        documents[name] = model / "evaluation.json"
        if not documents[name].exists():
            lhydra(
                ["evaluate", str(dataset), "--model", str(model), "--baselines", "none", "--json", str(documents[name])]
            )
    out = work / f"compared{step}.json"
    lhydra(["compare", str(documents["cold"]), str(documents["warm"]), "--json", str(out)])
    stages = json.loads(out.read_text())["stages"]
    return {
        "took": took,
        "ratio": {name: round(took["warm"][name] / took["cold"][name], 3) for name in ("wall_s", "cpu_s")},
        "users": len(json.loads(documents["cold"].read_text())["per_user"]["users"]),
        "stages": {stage: {metric: stages[stage][metric] for metric in METRICS} for stage in stages},
    }, work / f"warm{step}"


def show(row: dict[str, Any]) -> None:
    """Prints a comparison.

    Args:
        row: of `compared`, with seed and step.
    """
    print(f"seed {row['seed']} step {row['step']}: warm {row['ratio']} of cold, {row['users']} users")
    for stage, metrics in row["stages"].items():
        for metric, one in metrics.items():
            interval = f"{one['difference']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})"
            print(f"  {stage:10} {metric:10} cold {one['a']:.4f} warm {one['b']:.4f}  {interval}", flush=True)


def lhydra(words: list[str]) -> None:
    """Runs a command.

    Args:
        words: after `lhydra`.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, "-m", "lhydra.cli", *words], check=True, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())
