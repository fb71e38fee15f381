"""How long callers wait for `Explain`: `python -m benchmarks.explain DATASET STORE --out FILE.json`.

One worker serves STORE with a user store of its own, in which listeners with histories of `--plays` tracks are recorded
through `RecordPlays`: tracks that the dataset's users played, in sessions of twenty, a session a day. Of each listener
`--tracks` are asked for, a third each of the first hundred of the list, of the history, and of the whole catalogue,
twice, one call at a time, in turn with a `Recommend`. With `--beside CHECKOUT` the server of another checkout answers
the same calls in turn, and the effects of plays and groups that both tell are compared.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.own_server import serve_command, start_server
from benchmarks.machine import core_scaling, machine, noise_line, versions
from benchmarks.processes import process_tree
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import track_hashes
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra_client import Client, Explanation, Play, recommend_request

SESSION, PLAY_S, DAY_S = 20, 200, 86_400
FOLDERS = ("", "client", "index_builder", "protos", "server")  # of a checkout, where its packages lie
WARM_UP, K = 10, 10


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table, and writes JSON.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--plays", default="10,500,2048", help="tracks of the histories (default: 10,500,2048)")
    parser.add_argument("--tracks", type=int, default=36, help="asked for of each listener (default: 36)")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", type=Path, help="another checkout, whose server is asked in turn")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "explain"))
        dataset, bundle_id = Dataset.open(args.dataset), current_bundle_id(args.store)
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    manifest, free = Manifest.read(args.store / bundle_id), core_scaling()
    beside = " --beside CHECKOUT" if args.beside else ""
    options = f"--plays {args.plays} --tracks {args.tracks} --depth {args.depth} --seed {args.seed}{beside}"
    document: dict[str, Any] = {
        "benchmark": "explain",
        "command": f"python -m benchmarks.explain DATASET STORE {options}",
        "tracks": manifest.n_tracks,
        "dim": manifest.dim,
        "machine": machine(),
        "versions": versions(),
        "explain": {},
    }
    with ExitStack() as stack:
        servers = {"this": stack.enter_context(served(args.store, args.depth, None))}
        if args.beside:
            servers["beside"] = stack.enter_context(served(args.store, args.depth, args.beside))
        for n in map(int, args.plays.split(",")):
            document["explain"][str(n)] = asked(servers, dataset, n, args.tracks, args.seed)
            for name, found in document["explain"][str(n)].items():
                print(
                    f"{n:>5} plays  {name:<7}", "  ".join(f"{key} {value}" for key, value in found.items()), flush=True
                )
    document["core_scaling"] = [free, core_scaling()]
    print(noise_line(*document["core_scaling"]))
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    return 0


@contextmanager
def served(store: Path, depth: int, checkout: Path | None) -> Iterator[tuple[Client, list[int]]]:
    """Serves a store with users of its own.

    Args:
        store: the bundles.
        depth: candidates to rerank.
        checkout: whose code serves; None for this one's.

    Yields:
        A client of the server, and the ids of its processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--users-create", "--log-sample", "0"]
        command = serve_command(store, 1, depth=depth, users=f"lmdb:{folder}/users.lmdb", flags=flags)
        if checkout:
            path = os.pathsep.join(str(checkout.resolve() / one) for one in FOLDERS)
            command = ["env", f"PYTHONPATH={path}", *command]
        with start_server(command) as server, Client(server.address, timeout_s=60) as client:
            yield client, process_tree(server.pid)


def asked(
    servers: dict[str, tuple[Client, list[int]]], dataset: Dataset, n: int, n_tracks: int, seed: int
) -> dict[str, Any]:
    """Records a listener with every server, and asks them in turn.

    Args:
        servers: clients and process ids by name.
        dataset: whose plays the listener gets.
        n: tracks of the history.
        n_tracks: that are asked for.
        seed: of everything drawn.

    Returns:
        Milliseconds of `Explain` and `Recommend` by name of the server; of `Explain` processor time too, which tells
        what it takes where other work has the cores.
    """
    clients = {name: client for name, (client, _) in servers.items()}
    rng, user, now = np.random.default_rng([seed, n]), f"listener-{n}", int(time.time())
    played = _played(dataset, n, rng)
    plays = [
        Play(user, track, now - (n - i) // SESSION * DAY_S - (n - i) % SESSION * PLAY_S, count=int(rng.integers(1, 6)))
        for i, track in enumerate(played)
    ]
    for client in clients.values():
        for start in range(0, n, 1_000):
            client.record_plays(plays[start : start + 1_000])
    request, first = recommend_request(user, K, now_s=now), next(iter(clients.values()))
    listed, third = [one.track_id for one in first.recommend(user, 100, now_s=now).tracks], n_tracks // 3
    ids = dataset.track_ids
    tracks = [*rng.choice(listed, third), *rng.choice(played, third), *rng.choice(ids, n_tracks - 2 * third)]
    tracks = [str(track) for track in tracks]
    explain: dict[str, list[float]] = {name: [] for name in clients}
    recommend: dict[str, list[float]] = {name: [] for name in clients}
    cpu: dict[str, list[float]] = {name: [] for name in clients}
    apart, answers = dict.fromkeys(("pull", "group"), 0.0), {}
    for track in [*tracks[:WARM_UP], *tracks, *tracks]:
        for name, client in clients.items():
            used, started = _processor_ms(servers[name][1]), time.perf_counter()
            answers[name] = client.explain(user, track, request)
            between = time.perf_counter()
            cpu[name].append(_processor_ms(servers[name][1]) - used)
            asked_again = time.perf_counter()
            client.recommend(user, K, now_s=now)
            explain[name].append(1e3 * (between - started))
            recommend[name].append(1e3 * (time.perf_counter() - asked_again))
        for kind, largest in _apart(*answers.values()).items() if len(answers) > 1 else ():
            apart[kind] = max(apart[kind], largest)
    found: dict[str, Any] = {name: _percentiles(explain[name], recommend[name], cpu[name]) for name in clients}
    if len(clients) > 1:
        found["beside"] |= {f"largest difference of a {kind}": round(largest, 7) for kind, largest in apart.items()}
    return found


def _played(dataset: Dataset, n: int, rng: np.random.Generator) -> list[str]:
    """The first n different tracks in the histories of users in random order."""
    names = dict(zip(track_hashes(dataset.track_ids).tolist(), map(str, dataset.track_ids), strict=True))
    found: dict[str, None] = {}
    for user in rng.permutation(len(dataset.user_ids)):
        for _, state in user_states(dataset, "now", positions=np.array([user])):
            found |= dict.fromkeys(names[track] for track in state.history["track"].tolist())
        if len(found) >= n:
            break
    return list(found)[:n]


def _apart(a: Explanation, b: Explanation) -> dict[str, float]:
    """The largest difference between effects that both explanations tell; infinite where the track's way differs."""
    if (a.rank, a.stopped_at, a.stopped_by, a.head_rank) != (b.rank, b.stopped_at, b.stopped_by, b.head_rank):
        return {"pull": math.inf, "group": math.inf}
    found = {}
    for kind, ours, theirs in (("pull", a.pulls, b.pulls), ("group", a.groups, b.groups)):
        effects = {one.name: one.logit for one in theirs}
        found[kind] = max([0.0, *(abs(one.logit - effects[one.name]) for one in ours if one.name in effects)])
    return found


def _processor_ms(pids: Sequence[int]) -> float:
    """What all threads of processes have used so far; Linux tells it to the nanosecond."""
    files = [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(path.read_text().split()[0]) for path in files) / 1e6


def _percentiles(explain: Sequence[float], recommend: Sequence[float], cpu: Sequence[float]) -> dict[str, float]:
    counted, beside = np.array(explain[WARM_UP:]), np.array(recommend[WARM_UP:])
    values = {"p50_ms": np.median(counted), "p95_ms": np.percentile(counted, 95), "max_ms": counted.max()}
    values |= {"processor_p50_ms": np.median(cpu[WARM_UP:]), "recommend_p50_ms": np.median(beside)}
    return {name: round(float(value), 1) for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(main())
