"""Whether logged answers are given again equal: `python -m benchmarks.replay STORE DATASET --out FILE.json`.

A server of two workers, of a copy of STORE, logs answers of every kind, with plays recorded between them; `lhydra query
replay` gives them again, ids and scores to the float.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.own_server import child_environment, serve_command, start_server
from benchmarks.machine import machine, versions
from lhydra.answers import folder as folders
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra_client import Client, ClientError, Filter, Play, Rules


def main(argv: Sequence[str] | None = None) -> int:
    """Serves, asks, answers again, and writes how many were equal.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0; 1 where an answer differs, a request failed, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("dataset", type=Path, help="whose users are asked for")
    parser.add_argument("--lists", type=int, default=1_000, help="how many answers")
    parser.add_argument("--seed", type=int, default=0, help="of who asks for what")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "equal"))
        manifest = Manifest.read(args.store / current_bundle_id(args.store))
        users = Dataset.open(args.dataset).user_ids
        found = replayed(args.store, users, args.lists, args.seed)
    except (LhydraError, ClientError) as error:
        print(error, file=sys.stderr)
        return 1
    document = {
        "benchmark": "replay",
        "command": f"python -m benchmarks.replay STORE DATASET --lists {args.lists} --seed {args.seed}",
        "tracks": manifest.n_tracks,
        "users": len(users),
        "machine": machine(),
        "versions": versions(),
        **found,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(f"{found['answers']:,} answers given again: {found['equal']:,} equal; {found['kinds']}")
    return int(found["equal"] < found["answers"])


def replayed(store: Path, users: Sequence[str], n: int, seed: int) -> dict[str, Any]:
    """Logs answers of every kind, and gives them again.

    Args:
        store: what is served; a copy of it, as plays are recorded.
        users: to ask for.
        n: answers.
        seed: of who asks for what.

    Returns:
        How many answers were logged, of which kinds, and how many were equal when they were given again.

    Raises:
        ClientError: a request failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(store, Path(folder) / "store", ignore=shutil.ignore_patterns(folders.NAME))
        flags = ("--log-sample", "0", "--log-answers", "1")
        with (
            start_server(serve_command(copy, 2, flags=flags)) as server,
            Client(server.address, timeout_s=30) as client,
        ):
            _ask(client, np.random.default_rng(seed), users, n)
        place: list[str | Path] = [copy / folders.NAME, "--store", copy, "--json"]
        command = [sys.executable, "-m", "lhydra.cli", "query", "replay", *place]
        found = subprocess.run(command, env=child_environment(), stdout=subprocess.PIPE, check=False, text=True)
        told = json.loads(found.stdout)
        kinds: Counter[str] = Counter()
        for answer in folders.read(copy / folders.NAME, print):
            kinds[f"{answer.method}, {answer.tier}"] += 1
        return {"answers": told["answers"], "equal": told["equal"], "differ": told["differ"], "kinds": dict(kinds)}


def _ask(client: Client, chance: np.random.Generator, users: Sequence[str], n: int) -> None:
    """Asks for n lists of every kind, a new session or a new play each time."""
    seen = [track.track_id for track in client.recommend(users[0], 20, repeat="allow").tracks]
    for number in range(1, n):
        user, some = users[int(chance.integers(len(users)))], chance.permutation(seen)[:5].tolist()
        kind, k = number % 10, int(chance.integers(1, 60))
        if kind == 0:
            client.similar(some[:2], k, user_id=user if number % 20 else "", dislike=some[2:3])
        elif kind == 1:
            client.recommend(f"nobody-{number}", k, history=some, profile={"age": 30})
        elif kind == 2:
            list(client.recommend_many([user], k))
        elif kind == 3:
            client.recommend(user, k, rules=Rules(explore_slots=3), max_per_artist=1)
        elif kind == 4:
            client.recommend(user, k, filter=Filter(min_year=1990), diversity=0.5)
        else:
            repeat: Any = ("exclude", "allow", "decay", "learnt")[number % 4]
            client.recommend(user, k, repeat=repeat, session=some[: number % 3], exclude=some[3:], explain=kind == 9)
        if number % 3 == 0:
            client.record_plays([Play(user, some[0])])


if __name__ == "__main__":
    sys.exit(main())
