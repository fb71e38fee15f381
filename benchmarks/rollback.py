"""How long a rollback takes: `python -m benchmarks.rollback STORE --times 5 --out FILE.json`.

Serves a store of two bundles or more and goes back and forth between the two newest with `lhydra index rollback ID`. A
client asks meanwhile, every time over a connection of its own: seconds from the start of the command until it ended,
until an answer of the other bundle came, and until no answer of the former one came any more.
STORE is left with the bundle CURRENT that it had, and with what the server writes (`users.lmdb`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, versions
from lhydra.bundle.manifest import BUNDLE_ID, Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra_client import Client, ClientError

LHYDRA = (sys.executable, "-m", "lhydra.cli")
MOST_S = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    """Serves, rolls back and forth, prints the seconds and writes them.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where a call failed, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "rollbacks"))
        current = current_bundle_id(args.store)
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    *_, older, newer = sorted(path.name for path in args.store.iterdir() if BUNDLE_ID.fullmatch(path.name))
    words = [*LHYDRA, "serve", str(args.store), "--port", "0", "--workers", str(args.workers), "--log-sample", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    rounds: list[dict[str, float]] = []
    failed = 0
    try:
        assert server.stdout is not None
        address = server.stdout.readline().partition(" on ")[2].split()[0]
        for _ in range(args.times):
            wanted = older if current_bundle_id(args.store) == newer else newer
            found, errors = rollback(args.store, wanted, address)
            rounds.append(found)
            failed += errors
            print("  ".join(f"{name} {seconds:.2f} s" for name, seconds in found.items()), f" failed calls {errors}")
    finally:
        if current_bundle_id(args.store) != current:
            subprocess.run([*LHYDRA, "index", "rollback", current, "--store", str(args.store)], check=True)
        server.terminate()
        server.wait(60)
    medians = {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}
    manifest = Manifest.read(args.store / current)
    document: dict[str, Any] = {
        "benchmark": "rollback",
        "command": f"python -m benchmarks.rollback STORE --times {args.times} --workers {args.workers}",
        "tracks": manifest.n_tracks,
        "recipe": manifest.recipe,
        "bundle_bytes": sum(info["bytes"] for info in manifest.files.values()),
        "workers": args.workers,
        "machine": machine(),
        "versions": versions(),
        "failed_calls": failed,
        "median_s": medians,
        "rollbacks": [{name: round(seconds, 3) for name, seconds in one.items()} for one in rounds],
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print("median  " + "  ".join(f"{name} {seconds:.2f} s" for name, seconds in medians.items()))
    return 0 if not failed else 1


def rollback(store: Path, wanted: str, address: str) -> tuple[dict[str, float], int]:
    """Makes another bundle CURRENT and watches the answers.

    Args:
        store: that is served.
        wanted: the bundle.
        address: of the server.

    Returns:
        Seconds since the start of the command by what happened, and how many calls failed.
    """
    started = time.monotonic()
    ended: list[float] = []
    words = [*LHYDRA, "index", "rollback", wanted, "--store", str(store)]

    def run() -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        ended.append(time.monotonic() - started)

    command = threading.Thread(target=run)
    command.start()
    first, last, errors, streak = 0.0, 0.0, 0, 0
    while streak < 20 and time.monotonic() - started < MOST_S:
        try:
            with Client(address, timeout_s=5) as client:
                answered = client.recommend("nobody", k=5).bundle_id
        except ClientError:
            errors += 1
            continue
        now = time.monotonic() - started
        streak = streak + 1 if answered == wanted else 0
        first = first or (now if answered == wanted else 0.0)
        last = now if streak <= 1 else last
        time.sleep(0.01)
    command.join()
    return {"command": ended[0], "first new answer": first, "all answers new": last}, errors


if __name__ == "__main__":
    sys.exit(main())
