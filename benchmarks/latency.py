"""The latency benchmark of `Recommend`: `python benchmarks/latency.py --store STORE | --address H:P`.

Closed loop at given concurrencies, then open loop at given rates, against a server of its own or a running one.
Prints tables, writes JSON; ends with exit code 1 when any request failed. benchmarks/README.md explains the numbers.
"""

import argparse
import csv
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.load import Load, arrival_times, closed_loop, open_channels, open_loop
from benchmarks.machine import machine, versions
from benchmarks.own_server import serve_command, started
from benchmarks.summary import report, summarise
from lhydra.errors import DataError, LhydraError, complain
from lhydra_client import Client, ClientError
from lhydra_protos.v1 import recommender_pb2 as pb

RESULTS = Path(__file__).resolve().parent / "results" / "latency.json"
MOST_USERS = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    try:
        users, origin = user_ids(args)
        serving = nullcontext(args.address) if args.address else started(serve_command(args.store, args.workers))
        before = machine()
        with serving as address:
            with Client(address, timeout_s=10.0) as client:
                status = client.status()
            print(
                f"Recommend(k={args.k}) · bundle {status.bundle_id} · {status.tracks} tracks, {status.workers} workers"
                f" · {args.channels} channels\n{before['cores']} cores, {before['processor']},"
                f" {before['memory_gib']} GiB, load {before['load_before']} before\nusers: {origin}\n",
                flush=True,
            )
            runs = [summarise(load) for load in measure(address, users, args)]
    except (LhydraError, ClientError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    print(report(runs))
    document = {
        "format": 1,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", "benchmarks/latency.py", *argv],
        "settings": {name: _plain(value) for name, value in sorted(vars(args).items())},
        "users": {"count": len(users), "origin": origin},
        "bundle_id": status.bundle_id,
        "server": dataclasses.asdict(status),
        "versions": versions(),
        "machine": before,
        "runs": runs,
    }
    write_json(args.json, document)
    print(f"\nwritten: {args.json}")
    errors = sum(sum(run["errors"].values()) for run in runs)
    answered = sum(run["answered"] for run in runs)
    return 0 if answered and (args.allow_errors or not errors) else 1


def measure(address: str, users: Sequence[str], args: argparse.Namespace) -> list[Load]:
    """Returns all runs, in the order closed, open; every channel is connected and warm before the first."""
    order = np.random.default_rng(args.seed).permutation(len(users))[:MOST_USERS]
    requests = [pb.RecommendRequest(user_id=users[i], k=args.k).SerializeToString() for i in order]
    loads = []
    with open_channels(address, args.channels) as channels:
        closed_loop(channels, requests, concurrency=args.channels, seconds=args.warmup_s, timeout_s=args.timeout_s)
        for concurrency in args.concurrency:
            loads.append(
                closed_loop(
                    channels,
                    requests,
                    concurrency=concurrency,
                    seconds=args.seconds,
                    timeout_s=args.timeout_s,
                )
            )
        for rate in args.rates:
            due_s = arrival_times(rate, args.seconds, args.arrivals, args.seed)
            loads.append(open_loop(channels, requests, rate=rate, due_s=due_s, timeout_s=args.timeout_s))
    return loads


def user_ids(args: argparse.Namespace) -> tuple[list[str], str]:
    """Returns the ids to ask for and where they come from. Raises DataError for a file without any."""
    if args.dataset is not None:
        from lhydra.data.dataset import Dataset

        ids, origin = Dataset.open(args.dataset).user_ids, f"the users of {args.dataset}"
    elif args.user_ids is not None:
        ids, origin = _read_ids(args.user_ids), f"the ids in {args.user_ids}"
    else:
        ids, origin = [f"bench-{n}" for n in range(1000)], "made-up ids, so the server knows nobody"
    if not ids:
        raise DataError(complain(args.dataset or args.user_ids, "no user id", "at least one"))
    return ids, f"{len(ids)}, {origin}"


def _read_ids(path: Path) -> list[str]:
    """Returns the distinct ids of a CSV with a column user_id, or of a file with one id a line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if "user_id" in header:
                column = header.index("user_id")
                ids = [row[column] for row in rows if len(row) > column]
            else:
                file.seek(0)
                ids = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(complain(path, str(error), "ids, one a line, or a CSV with user_id")) from None
    return list(dict.fromkeys(name for name in ids if name))


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes `document` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    staged.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latency.py", description="Latency of Recommend: closed and open loop.")
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--store", type=Path, help="start a server of its own on this store")
    server.add_argument("--address", metavar="H:P", help="measure a server that runs already")
    users = parser.add_mutually_exclusive_group()
    users.add_argument("--dataset", type=Path, help="ask for the users of this dataset")
    users.add_argument("--user-ids", type=Path, metavar="FILE", help="ids, one a line, or a CSV with user_id")
    parser.add_argument("--workers", type=int, help="workers of the own server (default: the server's)")
    parser.add_argument("--k", type=int, default=20, help="tracks per answer (default: 20)")
    parser.add_argument(
        "--concurrency", type=_many(int), default=[1, 8], metavar="N,...", help="closed loop (default: 1,8)"
    )
    parser.add_argument(
        "--rates", type=_many(float), default=[200.0], metavar="N,...", help="open loop, a second (default: 200)"
    )
    parser.add_argument("--arrivals", choices=("poisson", "fixed"), default="poisson", help="default: poisson")
    parser.add_argument("--seconds", type=_positive(float), default=8.0, help="per run (default: 8)")
    parser.add_argument("--warmup-s", type=_positive(float), default=2.0, help="default: 2")
    parser.add_argument("--timeout-s", type=_positive(float), default=5.0, help="deadline (default: 5)")
    parser.add_argument("--channels", type=_positive(int), default=8, help="connections (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="order of users, arrivals (default: 0)")
    parser.add_argument("--allow-errors", action="store_true", help="exit 0 though requests failed")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="default: results/latency.json")
    return parser


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    number.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return number


def _many(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    one = _positive(kind)

    def numbers(text: str) -> list[Any]:
        return [one(part) for part in text.split(",") if part]

    numbers.__name__ = f"list of {one.__name__}"
    return numbers


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
