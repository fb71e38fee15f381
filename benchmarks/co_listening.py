"""What the co-listening table of a large catalogue costs: the teachers' own function, alone in a process of its own.

    python -m benchmarks.co_listening DATASET --threads 2 --out FILE.json
    python -m benchmarks.co_listening DATASET --threads 2 --before CHECKOUT --out FILE.json

With `--before` a working tree of an earlier revision is asked for the same, by turns, `--rounds` times. What counts on
cores that others use is processor time: on as many free ones as threads, the table takes about that by the threads.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.environment import untuned_blas
from benchmarks.machine import core_scaling, machine, noise_line, versions
from benchmarks.training import HERE, asked, revision
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.files import write_text

CHILD = """
import json, resource, sys, time
from pathlib import Path
import numpy as np, torch
from threadpoolctl import threadpool_limits
from lhydra.data.dataset import Dataset
from lhydra.training import teachers
from lhydra.training.data import load
torch.set_num_threads(int(sys.argv[2]))
data = load(Dataset.open(Path(sys.argv[1])))
users = np.flatnonzero(np.diff(data.train.offsets) > 0)
plays = teachers._thinned(teachers.select(data.train, users), np.random.default_rng([0, 2]), data.n_tracks)
def peak_mib(): return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
loaded = peak_mib()
began = time.monotonic(), time.process_time()
with threadpool_limits(limits=1, user_api="blas"):
    (table,) = teachers._tables(plays, teachers.TABLE_PENALTIES[:1])
print(json.dumps({
    "seconds": time.monotonic() - began[0], "cpu_s": time.process_time() - began[1], "loaded_peak_mib": loaded,
    "peak_mib": peak_mib(), "tracks": data.n_tracks, "played": int((data.listeners > 0).sum()), "plays": plays.nnz,
    "weights": int(table.matrix.nnz), "sum": float(table.matrix.data.sum(dtype=np.float64)),
}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line a round and revision, and writes the JSON.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 when a process failed, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, metavar="DATASET")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="an earlier revision")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    untuned_blas()
    free, rows = core_scaling(), []
    checkouts = ({"before": args.before.resolve()} if args.before else {}) | {"after": HERE}
    words = [str(args.dataset.resolve()), str(args.threads)]
    try:
        check_output("--out", args.out, is_json_with("benchmark", "rows"))
        source = Path(Dataset.open(args.dataset).info.source).name
        for _ in range(args.rounds):
            for name, checkout in checkouts.items():
                rows.append({"revision": name} | asked(CHILD, words, checkout))
                print(f"{source}: {rows[-1]}", flush=True)
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"a process failed: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    noise = noise_line(free, core_scaling())
    flags = f"--rounds {args.rounds} --threads {args.threads}{' --before CHECKOUT' if args.before else ''}"
    document = {
        "benchmark": "co-listening",
        "command": f"python -m benchmarks.co_listening {source} {flags}",
        "revisions": {name: revision(checkout) for name, checkout in checkouts.items()},
        "machine": machine(),
        "noise": noise,
        "versions": versions() | {name: version(name) for name in ("torch", "scipy")},
        "rows": rows,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(noise)
    return 0


if __name__ == "__main__":
    sys.exit(main())
