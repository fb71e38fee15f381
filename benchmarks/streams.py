"""What streams get done beside calls: `python -m benchmarks.streams STORE DATASET --out FILE.json`.

One server process with one worker, and one client process, both Lhydra's own. In turn, over and over: eight threads
that each call `recommend` and wait for the answer; one thread that reads one `recommend_many`; eight threads that each
read one of their own. All ask for the same users in the same order. A repeat gives answers a second of each, and the
ratio of the streams to the calls of that same repeat; told are the median ratio and the 95 % interval of the median, by
the bootstrap over repeats. Threads of one client share its connection, so all of them ask one worker.
STORE's users should be loaded, or every answer is a list of popular tracks.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calling import CALLERS, Goes, cost_of_calls, users_of
from benchmarks.latency.own_server import RunningServer, serve_command, start_server
from benchmarks.machine import core_scaling, machine, noise_line, versions
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra_client import Client, ClientError

RESAMPLES = 2000


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
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--depth", type=int, default=0, help="candidates to rerank; 0 for the bundle's")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each way in each repeat")
    parser.add_argument("--seed", type=int, default=0, help="of the order of users")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "streams"))
        manifest = Manifest.read(args.store / current_bundle_id(args.store))
        users = np.random.default_rng(args.seed).permutation(np.asarray(Dataset.open(args.dataset).user_ids)).tolist()
        before = core_scaling()
        with start_server(serve_command(args.store, 1, depth=args.depth, flags=("--log-sample", "0"))) as server:
            found = measured(server, users, args.k, args.seconds, args.repeats)
    except (LhydraError, ClientError) as error:
        print(error, file=sys.stderr)
        return 1
    document: dict[str, Any] = {
        "benchmark": "streams",
        "command": f"python -m benchmarks.streams STORE DATASET --k {args.k} --depth {args.depth} "
        f"--repeats {args.repeats} --seconds {args.seconds:g} --seed {args.seed}",
        "tracks": manifest.n_tracks,
        "recipe": manifest.recipe,
        "users": len(users),
        "machine": machine(),
        "core_scaling": [before, core_scaling()],
        "versions": versions(),
        "streams": told(found, args.seed),
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, row in document["streams"].items():
        low, high = row["ratio_interval"]
        print(
            f"{name:14} {row['per_s']:7.0f} /s   x{row['ratio']:.2f} ({low:.2f} to {high:.2f}) of the calls"
            f"   server {row['server_us']:5.0f} us, client {row['client_us']:5.0f} us of processor a request"
        )
    print(noise_line(*document["core_scaling"]))
    return 0


def measured(
    server: RunningServer, users: Sequence[str], k: int, seconds: float, repeats: int
) -> dict[str, list[dict[str, float]]]:
    """Measures all ways in turn.

    Args:
        server: that runs.
        users: to ask for, in this order, again and again.
        k: tracks of each answer.
        seconds: of each way in each repeat.
        repeats: after one that is not kept.

    Returns:
        By way, for each repeat: answers a second, and microseconds of processor an answer of server and client.

    Raises:
        ClientError: a request failed.
    """
    ways: dict[str, Callable[[Client, Iterator[str]], Iterator[Any]]] = {
        "calls x8": lambda client, asked: (client.recommend(user, k) for user in asked),
        "1 stream": lambda client, asked: client.recommend_many(asked, k),
        "8 streams": lambda client, asked: client.recommend_many(asked, k),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    names = list(ways)

    def run(client: Client, name: str) -> dict[str, float]:
        threads = 1 if name == "1 stream" else CALLERS

        def calls(number: int, goes: Goes) -> Iterator[object]:
            return ways[name](client, users_of(users, number, threads, goes))

        return cost_of_calls(server.pid, threads, seconds, calls)

    with Client(server.address, timeout_s=30) as client:
        for repeat in range(repeats + 1):
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:  # nobody is always the first
                one = run(client, name)
                if repeat:
                    found[name].append(one)
    return found


def told(found: dict[str, list[dict[str, float]]], seed: int) -> dict[str, dict[str, Any]]:
    """Makes the figures to tell.

    Args:
        found: from `measured`, the calls first.
        seed: of the bootstrap.

    Returns:
        By way the medians, the median ratio to the calls with its interval, and every repeat.
    """
    calls = np.array([one["per_s"] for one in next(iter(found.values()))])
    drawn = np.random.default_rng(seed).integers(len(calls), size=(RESAMPLES, len(calls)))
    out: dict[str, dict[str, Any]] = {}
    for name, repeats in found.items():
        ratios = np.array([one["per_s"] for one in repeats]) / calls
        low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975)).tolist()
        medians = {key: round(float(np.median([one[key] for one in repeats])), 1) for key in repeats[0]}
        out[name] = medians | {
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_interval": [round(low, 3), round(high, 3)],
            "repeats": [{key: round(value, 1) for key, value in one.items()} for one in repeats],
        }
    return out


if __name__ == "__main__":
    sys.exit(main())
