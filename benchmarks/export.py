"""How fast the event log goes out: `python -m benchmarks.export WORK --plays 1000000 --repeats 5 --out FILE.json`.

Records plays of a synthetic log into an LMDB user store below WORK, which is kept for the next run, and exports them by
`lhydra plays export` again and again, each time in a process of its own: plays per second of the whole
command.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.machine import machine, versions
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.domain import Play
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra.users.lmdb_store import LmdbUsers

_TOGETHER = 1000  # plays recorded at a time


def main(argv: Sequence[str] | None = None) -> int:
    """Records, exports, prints the rates and writes them.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--plays", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "plays_per_s"))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    store = args.work / f"export-{args.plays}-{args.seed}"
    if not (store / "users.lmdb").exists():
        record(store, args.plays, args.seed)
    out, rates = args.work / "export.parquet", list[float]()
    for _ in range(args.repeats):
        started = time.perf_counter()
        words = ["plays", "export", "--store", str(store), str(out), "--json"]
        said = subprocess.run([sys.executable, "-m", "lhydra.cli", *words], check=True, stdout=subprocess.PIPE)
        took_s = time.perf_counter() - started
        assert json.loads(said.stdout)["plays"] == args.plays
        rates.append(args.plays / took_s)
        print(f"{rates[-1]:,.0f} plays/s, {took_s:.2f} s, {out.stat().st_size:,} bytes")
    document = {
        "benchmark": "export",
        "command": f"python -m benchmarks.export WORK --plays {args.plays} --repeats {args.repeats} --seed {args.seed}",
        "machine": machine(),
        "versions": versions(),
        "log_bytes": (store / "users.lmdb" / "data.mdb").stat().st_size,
        "export_bytes": out.stat().st_size,
        "median_plays_per_s": round(statistics.median(rates)),
        "plays_per_s": [round(rate) for rate in rates],
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(f"median {statistics.median(rates):,.0f} plays/s of the whole command")
    return 0


def record(store: Path, n_plays: int, seed: int) -> None:
    """Records plays as servers would, many users' at a time.

    Args:
        store: the bundle store, made where there is none.
        n_plays: how many.
        seed: of users, tracks and ids.
    """
    store.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    users = LmdbUsers(store / "users.lmdb", sync_s=5)
    try:
        for first in range(0, n_plays, _TOGETHER):
            n = min(_TOGETHER, n_plays - first)
            who, what = rng.integers(0, 100_000, n).tolist(), (50_000 * rng.random(n) ** 3).astype(int).tolist()
            users.record(
                [
                    Play(
                        f"{first + i:016x}", f"user-{who[i]:06}", f"track-{what[i]:07}", 1_700_000_000 + first + i,
                        1.0, True, False, f"{who[i]:08x}-{first + i:08x}", "", 180_000,
                    )
                    for i in range(n)
                ]
            )  # fmt: skip
    finally:
        users.close()


if __name__ == "__main__":
    sys.exit(main())
