"""What of a bundle lies in memory: `python -m benchmarks.resident STORE DATASET [--before CHECKOUT] --out FILE.json`.

A server with one worker maps the files of a bundle; workers share what is in memory of them. Told are the bytes per
track of each file that are in memory of a worker when it begins to serve, and after an answer to each of some users.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.access import ROOMS
from benchmarks.machine import machine, versions
from benchmarks.processes import process_tree
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra_client import Client

HERE = Path(__file__).resolve().parents[1]
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")
STOP_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Asks a server for users, prints what is in memory and writes it.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where the store or the dataset cannot be read, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout, to compare with")
    parser.add_argument("--users", type=int, default=2_000, help="asked for, the first of the dataset")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "resident"))
        user_ids = [str(user_id) for user_id in Dataset.open(args.dataset).user_ids[: args.users]]
        bundle = args.store.resolve() / current_bundle_id(args.store)
        n = Manifest.read(bundle).n_tracks
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    checkouts = ({"before": args.before.resolve()} if args.before else {}) | {"now": HERE}
    found = {name: measured(checkout, bundle, user_ids, args.k) for name, checkout in checkouts.items()}
    document: dict[str, Any] = {
        "benchmark": "resident",
        "command": f"python -m benchmarks.resident STORE DATASET {'--before CHECKOUT ' * bool(args.before)}"
        f"--users {args.users} --k {args.k}",
        "tracks": n,
        "machine": machine(),
        "versions": versions(),
        "bytes_per_track": {
            name: {when: round(sum(files.values()) / n, 1) for when, files in sides.items()}
            for name, sides in found.items()
        },
        "resident": {
            name: {when: {file: round(size / n, 2) for file, size in files.items()} for when, files in sides.items()}
            for name, sides in found.items()
        },
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, sums in document["bytes_per_track"].items():
        print(f"{name:6}  " + "  ".join(f"{when} {size:.1f} bytes per track" for when, size in sums.items()))
    for file, size in document["resident"]["now"]["asked"].items():
        print(f"{file:28} {size:7.2f}")
    return 0


def measured(checkout: Path, bundle: Path, user_ids: Iterable[str], k: int) -> dict[str, dict[str, int]]:
    """Measures one server.

    Args:
        checkout: whose.
        bundle: folder of the CURRENT bundle of a store.
        user_ids: to ask for.
        k: tracks of each answer.

    Returns:
        By file of the bundle the bytes in memory when the worker serves (`serves`) and after the answers (`asked`),
        largest first.
    """
    environment = os.environ | {"PYTHONPATH": ":".join(str(checkout / room) for room in ROOMS)}
    words = [sys.executable, "-m", "lhydra.cli", "serve", str(bundle.parent), "--port", "0", "--workers", "1"]
    server = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=checkout
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().partition(" on ")[2].split()[0]
        (worker,) = set(process_tree(server.pid)) - {server.pid}
        serves = resident(Path(f"/proc/{worker}/smaps").read_text(encoding="utf-8"), bundle)
        with Client(address, timeout_s=30) as client:
            for user_id in user_ids:
                client.recommend(user_id, k=k)
        return {"serves": serves, "asked": resident(Path(f"/proc/{worker}/smaps").read_text(encoding="utf-8"), bundle)}
    finally:
        server.terminate()
        server.wait(STOP_S)


def resident(smaps: str, folder: Path) -> dict[str, int]:
    """Reads what is in memory of the files of a folder.

    Args:
        smaps: what the kernel says of the mappings of a process.
        folder: of the files.

    Returns:
        Bytes by name, largest first; files of which nothing is in memory are left out.
    """
    found: dict[str, int] = {}
    path = Path()
    for line in smaps.splitlines():
        if mapping := MAPPING.fullmatch(line):
            path = Path(mapping[1])
        elif line.startswith("Rss:") and path.parent == folder:
            found[path.name] = found.get(path.name, 0) + 1024 * int(line.split()[1])
    return {name: size for name, size in sorted(found.items(), key=lambda one: -one[1]) if size}


if __name__ == "__main__":
    sys.exit(main())
