"""What the event log costs: `python -m benchmarks.plays STORE [--before CHECKOUT] [--redis-port P] --out FILE.json`.

Servers of one worker side by side, each with an empty user store of its own: with the event log, twice, without it,
and of another checkout, as it is. In an order drawn anew, over and over, eight callers record plays of the same
listeners at one of them, on one connection that is kept. A repeat gives the server's processor time a call of each,
from the kernel, and its ratio to the first of that same repeat. Two processes that do the same differ by some
hundredths, so all servers are started anew every round. Told are the median ratio and the 95 % interval of the median,
by the bootstrap over rounds.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.access import ROOMS, told
from benchmarks.calling import CALLERS, Goes, cost_of_calls
from benchmarks.latency.own_server import RunningServer, serve_command, start_server
from benchmarks.machine import core_scaling, machine, noise_line, versions
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra_client import Client, ClientError, Play

KINDS = {"event log": (), "event log again": (), "no event log": ("--events", "off")}


def main(argv: Sequence[str] | None = None) -> int:
    """Serves, records in turn, prints a table and writes it.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where a call failed, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout, to compare with")
    parser.add_argument("--redis-port", type=int, metavar="P", help="users lie in databases 0 to 3, emptied first")
    parser.add_argument("--listeners", type=int, default=2000)
    parser.add_argument("--plays", type=int, default=1, help="in each call, of one listener")
    parser.add_argument("--rounds", type=int, default=12, help="with servers started anew")
    parser.add_argument("--repeats", type=int, default=5, help="of each round")
    parser.add_argument("--seconds", type=float, default=0.7, help="of each server in each repeat")
    parser.add_argument("--seed", type=int, default=0, help="of the order of listeners and tracks")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "calls"))
        manifest = Manifest.read(args.store / current_bundle_id(args.store))
        before, rounds = core_scaling(), []
        for number in range(args.rounds):
            with ExitStack() as stack:
                servers = _servers(stack, args.store.resolve(), args.before, args.redis_port)
                rounds.append(_measured(servers, args, args.seed + number))
    except (LhydraError, ClientError) as error:
        print(error, file=sys.stderr)
        return 1
    said = {"--before CHECKOUT": args.before, "--redis-port P": args.redis_port}
    document: dict[str, Any] = {
        "benchmark": "plays",
        "command": f"python -m benchmarks.plays STORE {''.join(f'{flag} ' for flag, given in said.items() if given)}"
        f"--listeners {args.listeners} --plays {args.plays} --rounds {args.rounds} --repeats {args.repeats} "
        f"--seconds {args.seconds:g} --seed {args.seed}",
        "tracks": manifest.n_tracks,
        "users": "redis" if args.redis_port else "lmdb",
        "machine": machine(),
        "core_scaling": [before, core_scaling()],
        "versions": versions(),
        "calls": told(rounds, args.seed),
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, row in document["calls"].items():
        low, high = row["ratio_interval"]
        ratio = f"{row['ratio_of']} x{row['ratio']:.3f} ({low:.3f} to {high:.3f})"
        print(f"{name:16} {row['server_us']:6.0f} us of processor a call, {ratio}")
    print(noise_line(*document["core_scaling"]))
    return 0


def _servers(stack: ExitStack, store: Path, before: Path | None, redis_port: int | None) -> dict[str, RunningServer]:
    """Starts a server of each kind, on users of its own."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    found: dict[str, RunningServer] = {}
    for number, name in enumerate([*KINDS, *(["before"] if before else [])]):
        place = ["--users", f"lmdb:{folder / str(number)}", "--users-create"]
        if redis_port:
            import redis

            place = ["--users", f"redis://127.0.0.1:{redis_port}/{number}"]
            with redis.Redis(port=redis_port, db=number) as client:
                client.flushdb()
        flags = ("--log-sample", "0", "--no-pin", *place, *KINDS.get(name, ()))
        command = serve_command(store, 1, flags=flags)
        if name == "before":
            assert before is not None
            rooms = ":".join(str((before / room).resolve()) for room in ROOMS)
            command = ["env", "-C", str(before.resolve()), f"PYTHONPATH={rooms}", *command]
        found[name] = stack.enter_context(start_server(command))
    return found


def _measured(
    servers: dict[str, RunningServer], args: argparse.Namespace, seed: int
) -> dict[str, list[dict[str, float]]]:
    """By server, for each repeat but the first: microseconds of processor a call, and calls a second."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    order = np.random.default_rng(seed)
    with ExitStack() as stack:
        clients = {name: stack.enter_context(Client(server.address, timeout_s=30)) for name, server in servers.items()}
        for repeat in range(args.repeats + 1):
            for name in order.permutation(list(servers)).tolist():  # nobody is always the first, or after another
                one = _run(clients[name], servers[name].pid, args, f"{seed}-{repeat}")
                if repeat:
                    found[name].append(one)
    return found


def _run(client: Client, pid: int, args: argparse.Namespace, run: str) -> dict[str, float]:
    def calls(number: int, goes: Goes) -> Iterator[object]:
        drawn = np.random.default_rng([number, args.seed])
        for n in takewhile(goes, count()):
            user, *tracks = drawn.integers(args.listeners, size=1 + args.plays).tolist()
            call = f"{run}-{number}-{n}"
            plays = [
                Play(f"listener-{user}", f"T{track:07}", event_id=f"{call}-{i}", request_id=f"request-{call}")
                for i, track in enumerate(tracks)
            ]
            yield client.record_plays(plays)

    return cost_of_calls(pid, CALLERS, args.seconds, calls)


if __name__ == "__main__":
    sys.exit(main())
