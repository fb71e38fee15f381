"""What training costs where the catalogue is large: teachers and steps of the towers, before and after a change.

    python -m benchmarks.training DATASET [DATASET ...] --before CHECKOUT --steps 40 --rounds 2 --out FILE.json

CHECKOUT is a working tree of an earlier revision. Both are asked for the same, in processes of their own and by turns:
to fit the teachers (one setting of each), and to make `--steps` steps of 256 users. Ratios are of one round, so that
what else the machine did hits both; the median of the rounds is what counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.environment import untuned_blas
from benchmarks.machine import core_scaling, machine, noise_line, versions
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.files import write_text

HERE = Path(__file__).resolve().parents[1]
MEASURED = ("teachers_s", "teachers_cpu_s", "steps_s", "steps_cpu_s")
CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
from lhydra.data.dataset import Dataset
from lhydra.training import teachers
from lhydra.training.config import TrainSettings
from lhydra.training.data import load
from lhydra.training.step import Tensors
from lhydra.training.train import Run, _epoch, _new
path, steps, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
teachers.MAX_TUNED_PLAYS = 0  # one setting of each
data = load(Dataset.open(path))
began = time.monotonic(), time.process_time()
fitted = teachers.fit(data, 128, 0)
then = time.monotonic(), time.process_time()
users = np.flatnonzero(np.diff(data.train.offsets) > 0)
users = np.sort(np.random.default_rng(0).permutation(users)[: 256 * steps])
run = Run(data, Tensors.of(data), fitted, TrainSettings(), users, 256)
network, optimizer = _new(run)
started = time.monotonic(), time.process_time()
loss = _epoch(run, network, optimizer, 1, 16, 0.1)
ended = time.monotonic(), time.process_time()
print(json.dumps({
    "teachers_s": then[0] - began[0], "teachers_cpu_s": then[1] - began[1],
    "steps_s": ended[0] - started[0], "steps_cpu_s": ended[1] - started[1],
    "plays": int(np.diff(data.train.offsets)[users].sum()), "steps": run.steps, "loss": [float(one) for one in loss],
    "tracks": data.n_tracks, "played": int((data.listeners > 0).sum()), "train_plays": len(data.train.rows),
}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line a round and writes the JSON.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 when a process failed, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT", help="an earlier revision")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    untuned_blas()
    before, rows = core_scaling(), []
    try:
        check_output("--out", args.out, is_json_with("benchmark", "rows"))
        for path in args.datasets:
            dataset = Path(Dataset.open(path).info.source).name
            rows += [{"dataset": dataset, **one_round(path, args, number)} for number in range(args.rounds)]
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"a process failed: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    flags = f"--steps {args.steps} --rounds {args.rounds} --threads {args.threads}"
    medians = {
        name: {one: round(statistics.median(row["ratio"][one] for row in rows if row["dataset"] == name), 2)
               for one in MEASURED}
        for name in dict.fromkeys(row["dataset"] for row in rows)
    }  # fmt: skip
    noise = noise_line(before, core_scaling())
    document = {
        "benchmark": "training",
        "command": f"python -m benchmarks.training {' '.join(medians)} --before CHECKOUT {flags}",
        "revisions": {"before": revision(args.before), "after": revision(HERE)},
        "machine": machine(),
        "noise": noise,
        "versions": versions() | {name: version(name) for name in ("torch", "scipy", "implicit")},
        "before_to_after": medians,
        "rows": rows,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(noise)
    return 0


def one_round(path: Path, args: argparse.Namespace, number: int) -> dict[str, Any]:
    """Measures both revisions once.

    Args:
        path: the dataset.
        args: of the command line.
        number: of the round; which comes first changes from one to the next.

    Returns:
        What each took, and ratios of before to after: above 1, the change is faster.
    """
    checkouts = {"before": args.before.resolve(), "after": HERE}
    words = [str(path.resolve()), str(args.steps), str(args.threads)]
    took = {name: asked(CHILD, words, checkouts[name]) for name in sorted(checkouts, reverse=number % 2 == 0)}
    ratio = {name: round(took["before"][name] / took["after"][name], 3) for name in MEASURED}
    rates = {name: round(one["plays"] / one["steps_s"]) for name, one in took.items()}
    print(f"{path.name}: before to after {ratio}, plays/s {rates}", flush=True)
    return {"ratio": ratio, "plays_per_s": rates, **took}


def asked(child: str, words: Sequence[str], checkout: Path) -> dict[str, Any]:
    """Runs a program in a process of its own.

    Args:
        child: Python that prints JSON.
        words: its arguments.
        checkout: whose code it imports.

    Returns:
        What it printed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    own = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", child, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=own, cwd=checkout)
    return {name: round(one, 3) if isinstance(one, float) else one for name, one in json.loads(done.stdout).items()}


def revision(checkout: Path) -> str:
    """Returns the commit of a working tree, or nothing where there is none.

    Args:
        checkout: its folder.

    Returns:
        Its short name.
    """
    words = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, check=False, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
