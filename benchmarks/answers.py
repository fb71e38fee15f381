"""What the answer log costs: `python -m benchmarks.answers STORE DATASET [--before CHECKOUT] --out FILE.json`.

As `benchmarks.access` measures: servers of one worker side by side, started anew every round, asked in turn by eight
callers, paired within a repeat. They log no answer (twice), one in a hundred, and all; one more is of another
checkout, which knows no log. Told are the median ratio of the server's processor time a request to that of the first,
and its 95 % interval by the bootstrap over rounds.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.access import ROOMS, Clients, measured, told
from benchmarks.latency.own_server import serve_command, start_server
from benchmarks.machine import core_scaling, machine, noise_line, versions
from lhydra.answers import folder as folders
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra_client import ClientError

SHARES = {"no log": 0.0, "no log again": 0.0, "1 % logged": 0.01, "all logged": 1.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Serves, measures in turn, prints a table and writes it.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where a request failed, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("dataset", type=Path, help="whose users are asked for")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout, to compare with")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=16, help="with servers started anew")
    parser.add_argument("--repeats", type=int, default=5, help="of each round")
    parser.add_argument("--seconds", type=float, default=0.7, help="of each server in each repeat")
    parser.add_argument("--seed", type=int, default=0, help="of the order of users")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "entry_bytes"))
        manifest = Manifest.read(args.store / current_bundle_id(args.store))
        users = np.random.default_rng(args.seed).permutation(np.asarray(Dataset.open(args.dataset).user_ids)).tolist()
        before = core_scaling()
        rounds: list[dict[str, list[dict[str, float]]]] = []
        sizes: dict[str, Any] = {}
        for number in range(args.rounds):
            with ExitStack() as stack:
                logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                with ExitStack() as servers:
                    clients = _clients(servers, args.store.resolve(), args.before, logs)
                    rounds.append(measured(clients, users, args.k, args.seconds, args.repeats, args.seed + number))
                sizes = _sizes(logs / "all logged")
    except (LhydraError, ClientError) as error:
        print(error, file=sys.stderr)
        return 1
    document: dict[str, Any] = {
        "benchmark": "answers",
        "command": f"python -m benchmarks.answers STORE DATASET {'--before CHECKOUT ' * bool(args.before)}--k {args.k} "
        f"--rounds {args.rounds} --repeats {args.repeats} --seconds {args.seconds:g} --seed {args.seed}",
        "tracks": manifest.n_tracks,
        "users": len(users),
        "machine": machine(),
        "core_scaling": [before, core_scaling()],
        "versions": versions(),
        "requests": told(rounds, args.seed),
        "entry_bytes": sizes,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, row in document["requests"].items():
        low, high = row["ratio_interval"]
        print(f"{name:16} {row['server_us']:6.0f} us of processor, x{row['ratio']:.3f} ({low:.3f} to {high:.3f})")
    print(f"{sizes['entries']:,} entries: {sizes['plain']:,} bytes each, {sizes['compressed']:,} compressed")
    print(noise_line(*document["core_scaling"]))
    return 0


def _clients(stack: ExitStack, store: Path, before: Path | None, logs: Path) -> Clients:
    """Starts a server of each kind: it, and what a client of it is given."""
    found: Clients = {}
    for name, share in SHARES.items():
        flags = ("--log-sample", "0", "--no-pin", "--log-answers", f"{share:g}", "--answers", str(logs / name))
        found[name] = stack.enter_context(start_server(serve_command(store, 1, flags=flags))), {}
    if before is not None:
        rooms = ":".join(str((before / room).resolve()) for room in ROOMS)
        command = serve_command(store, 1, flags=("--log-sample", "0", "--no-pin"))
        command = ["env", "-C", str(before.resolve()), f"PYTHONPATH={rooms}", *command]
        found["before"] = stack.enter_context(start_server(command)), {}
    return found


def _sizes(log: Path) -> dict[str, int]:
    """How many entries a log holds, and their mean length in bytes, as written and in compressed files."""
    entries = plain = packed = 0
    for path in folders.files(log):
        lengths = [len(line) for line in folders.lines(path)]
        entries, plain, packed = entries + len(lengths), plain + sum(lengths), packed + path.stat().st_size
    return {"entries": entries, "plain": round(plain / max(1, entries)), "compressed": round(packed / max(1, entries))}


if __name__ == "__main__":
    sys.exit(main())
