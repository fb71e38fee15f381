"""Kills rebuilds at random moments: `python -m benchmarks.kill MODEL DATASET STORE --times 20 --out FILE.json`.

One rebuild runs to its end, so that there is a last good bundle and a duration. Then `--times` rebuilds are killed with
SIGKILL, each at a moment drawn uniformly from that duration (again for one that had ended by then), and every time the
store must load: the bundle that was CURRENT before, or the new one where it was published already. One more rebuild
must work, and sweep what was left.
Exit code 1 when any of that fails. STORE is a store of its own: bundles are published to it.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, versions
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import BundleError, LhydraError
from lhydra.files import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Kills, counts what loads, prints it and writes it.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where a store did not load or something was left behind, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "kills"))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    place = ["--model", str(args.model), "--data", str(args.dataset), "--store", str(args.store)]
    words = [sys.executable, "-m", "lhydra.cli", "--log-level", "info", "index", "rebuild", *place]
    started = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    took_s = time.monotonic() - started
    manifest = Manifest.read(args.store / current_bundle_id(args.store))
    moments = random.Random(args.seed)
    kills: list[dict[str, Any]] = []
    ended = 0
    while len(kills) < args.times:
        found = kill(words, args.store, moments.uniform(0, took_s))
        if found:
            kills.append(found)
        else:
            ended += 1
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    Bundle.open(args.store)
    left = sorted(path.name for path in args.store.iterdir() if path.name.startswith(".") and path.name != ".lock")
    good = sum(not one["wrong"] for one in kills)
    document = {
        "benchmark": "kill",
        "command": f"python -m benchmarks.kill MODEL DATASET STORE --times {args.times} --seed {args.seed}",
        "tracks": manifest.n_tracks,
        "recipe": manifest.recipe,
        "seed": args.seed,
        "machine": machine(),
        "versions": versions(),
        "rebuild_s": round(took_s, 2),
        "times": args.times,
        "last_good_loads": good,
        "ended_before_their_moment": ended,
        "left_after_next_rebuild": left,
        "kills": kills,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(f"{good} of {args.times} last-good loads; the next rebuild left {', '.join(left) or 'nothing'} behind")
    return 0 if good == args.times and not left else 1


def kill(words: list[str], store: Path, at_s: float) -> dict[str, Any] | None:
    """Starts a rebuild and kills it.

    Args:
        words: the command.
        store: that it publishes to.
        at_s: seconds until the kill.

    Returns:
        What became of the store; None where the rebuild ended before.
    """
    before, known = current_bundle_id(store), {path.name for path in store.iterdir()}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        process.communicate(timeout=at_s)
    except subprocess.TimeoutExpired:
        process.kill()
    _, err = process.communicate()
    if process.returncode == 0:
        return None
    steps = [line.split()[-2] for line in err.splitlines() if " took_ms=" in line]
    wrong, after = "", ""
    try:
        after = Bundle.open(store).bundle_id
        if after != before and after in known:
            wrong = f"{after} is CURRENT, {before} was"
    except BundleError as error:
        wrong = str(error)
    if process.returncode != -signal.SIGKILL:
        wrong = wrong or err.strip().splitlines()[-1]
    found: dict[str, Any] = {
        "at_s": round(at_s, 2),
        "last_step_done": steps[-1] if steps else "",
        "current": "the new one" if after != before else "as before",
        "partial": sum(path.name.startswith(".staging-") for path in store.iterdir()),
        "wrong": wrong,
    }
    print(
        f"{found['at_s']:7.2f} s, after {found['last_step_done'] or 'the start':<15} "
        f"CURRENT {found['current']}: {wrong or 'loads'}"
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
