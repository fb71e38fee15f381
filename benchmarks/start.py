"""How long a server takes to start: `python -m benchmarks.start STORE ... [--before CHECKOUT] --out FILE.json`.

From the start of the process `lhydra serve STORE` to its line on stdout, to the first answer to a client that connects
then, and to the second. Stores, and the server of another checkout, take turns. The first start of each is not kept: it
hashes the bundle, which happens once a boot, and writes bytecode, as pip does where it installs a wheel.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.access import ROOMS
from benchmarks.machine import core_scaling, machine, noise_line, versions
from benchmarks.processes import cpu_times, process_tree
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra_client import Client

HERE = Path(__file__).resolve().parents[1]
STOP_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Starts servers in turn, prints the seconds and writes them.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where a store cannot be read, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+", metavar="STORE")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout, to compare with")
    parser.add_argument("--user", default="nobody", help="whom the first answer is for")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "starts"))
        manifests = [Manifest.read(store / current_bundle_id(store)) for store in args.stores]
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    checkouts = {"now": HERE} | ({"before": args.before.resolve()} if args.before else {})
    free = core_scaling()
    kept: dict[tuple[int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as bytecode:
        for repeat in range(-1, args.repeats):
            for name, checkout in checkouts.items():
                for number, store in enumerate(args.stores):
                    found = started(checkout, store.resolve(), args.workers, args.user, args.k, Path(bytecode, name))
                    if repeat >= 0:
                        kept.setdefault((number, name), []).append(found)
    starts: list[dict[str, Any]] = [
        {"tracks": manifests[number].n_tracks, "server": name, "median": medians(rounds), "rounds": rounds}
        for (number, name), rounds in kept.items()
    ]
    ratios = [ratio(kept[number, "now"], kept[number, "before"]) for number in range(len(args.stores)) if args.before]
    document: dict[str, Any] = {
        "benchmark": "start",
        "command": f"python -m benchmarks.start {'STORE ' * len(args.stores)}{'--before CHECKOUT ' * bool(args.before)}"
        f"--user ID --k {args.k} --workers {args.workers} --repeats {args.repeats}",
        "core_scaling": [free, core_scaling()],
        "machine": machine(),
        "versions": versions(),
        "now_to_before": ratios,
        "starts": starts,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for start in starts:
        shown = "  ".join(f"{name} {value:.3f}" for name, value in start["median"].items())
        print(f"{start['tracks']:>9,} tracks  {start['server']:6}  {shown}")
    for manifest, left in zip(manifests, ratios, strict=False):
        print(f"{manifest.n_tracks:>9,} tracks  now to before x{left:.2f}, the median of the rounds' ratios")
    print(noise_line(*document["core_scaling"]))
    return 0


def started(checkout: Path, store: Path, workers: int, user: str, k: int, bytecode: Path) -> dict[str, float]:
    """Starts a server, asks it twice and stops it.

    Args:
        checkout: whose server.
        store: to serve.
        workers: of the server.
        user: whom to ask for.
        k: tracks of each answer.
        bytecode: folder that keeps what Python compiled.

    Returns:
        Seconds from the start to the server's line and to the first answer, seconds that the second answer took by
        itself, and processor seconds of all the server's processes until then.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = ":".join(str(checkout / room) for room in ROOMS)
    environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    words = [sys.executable, "-m", "lhydra.cli", "serve", str(store), "--port", "0", "--workers", str(workers)]
    began = time.perf_counter()
    server = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=checkout
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().partition(" on ")[2].split()[0]
        said = time.perf_counter()
        with Client(address) as client:
            client.recommend(user, k=k)
            first = time.perf_counter()
            client.recommend(user, k=k)
            second = time.perf_counter()
        used = sum(cpu_times(process_tree(server.pid)).seconds.values())
    finally:
        server.terminate()
        server.wait(STOP_S)
    return {
        "said_s": round(said - began, 4),
        "answered_s": round(first - began, 4),
        "second_answer_s": round(second - first, 4),
        "processor_s": round(used, 3),
    }


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the median of each figure.

    Args:
        rounds: of one server.

    Returns:
        By the same names.
    """
    return {name: round(statistics.median(one[name] for one in rounds), 4) for name in rounds[0]}


def ratio(now: Sequence[dict[str, float]], before: Sequence[dict[str, float]]) -> float:
    """Returns how much of the earlier time to the first answer is left.

    Args:
        now: rounds of this server.
        before: the rounds of the earlier one beside them.

    Returns:
        The median of the rounds' ratios: what slowed a round slowed both.
    """
    pairs = zip(now, before, strict=True)
    return round(statistics.median(a["answered_s"] / b["answered_s"] for a, b in pairs), 3)


if __name__ == "__main__":
    sys.exit(main())
