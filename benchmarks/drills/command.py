"""`python -m benchmarks.drills WORK --out FILE.json`: one table of promise, target, measured figure and verdict.

WORK is a folder for what is served; the first time it is filled, in some three minutes (`lhydra demo`, and a second
bundle of another model). Everything runs on this machine and binds to loopback. Drills that need what is not here
(Redis, mounts, a C compiler, atheris) are told as not run. Exit code 1 when a promise was not kept.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.drills import clock, fuzz, network, service, stores, world
from benchmarks.drills.verdict import Verdict
from benchmarks.machine import machine, versions
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra.lines import say
from lhydra_client import ClientError

WORDS = {True: "kept", False: "NOT KEPT", None: "not run"}

PARTS = "swaps,restarts,same,redis,full,read_only,stalled,clock,idle,pings,noise,fuzz"
Drill = Callable[[world.World], list[Verdict]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the drills, prints their table and writes it.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where a promise was not kept, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument(
        "--parts", default="swaps,restarts,redis,disks,clock,idle,pings,noise,fuzz", help="of these and soak"
    )
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--messages", type=int, default=10_000, help="of noise")
    parser.add_argument("--seconds", type=float, default=600.0, help="of soak")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    drills: dict[str, Drill] = {
        "swaps": lambda made: service.swaps(made, args.swaps),
        "restarts": lambda made: service.restarts(made, args.restarts),
        "same": service.same,
        "redis": stores.redis,
        "full": stores.full,
        "read_only": stores.read_only,
        "stalled": stores.stalled,
        "clock": clock.jumps,
        "idle": network.idle,
        "pings": network.pings,
        "noise": lambda made: network.noise(made, args.messages),
        "fuzz": fuzz.fuzz,
        "soak": lambda made: service.soak(made, args.seconds),
    }
    chosen = args.parts.split(",")
    if unknown := [name for name in chosen if name not in drills]:
        parser.error(f"--parts: found {unknown[0]}, expected some of {', '.join(drills)}")
    try:
        check_output("--out", args.out, is_json_with("benchmark", "rows"))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    made = world.make(args.work)
    rows, started = [], time.monotonic()
    for name in chosen:
        try:
            found = drills[name](made)
        except (TimeoutError, RuntimeError, ClientError) as error:  # a server that hangs, or is none, keeps no promise
            found = [Verdict(name, "it ends", str(error), False)]
        rows += found
        for row in found:
            say(f"{_word(row):8} {row.promise} | {row.target} | {row.measured}")
    kept = all(row.met is not False for row in rows)
    counts = {word: sum(_word(row) == word for row in rows) for word in WORDS.values()}
    say(", ".join(f"{n} {word}" for word, n in counts.items()) + f", in {time.monotonic() - started:.0f} s")
    if args.out:
        sizes = f"--swaps {args.swaps} --restarts {args.restarts} --messages {args.messages} --seconds {args.seconds:g}"
        document = {
            "benchmark": "drills",
            "command": f"python -m benchmarks.drills WORK --parts {args.parts} {sizes} --out FILE.json",
            "machine": machine(),
            "versions": versions(),
            "rows": [asdict(row) for row in rows],
        }
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    return 0 if kept else 1


def _word(row: Verdict) -> str:
    return WORDS[row.met]
