"""What TLS and tokens cost: `python -m benchmarks.access STORE DATASET [--before CHECKOUT] --out FILE.json`.

Servers of one worker side by side: in the clear, twice, with TLS, with client certificates and a token, and, of
another checkout, in the clear. In an order drawn anew, over and over, eight callers of `recommend` ask one of them for
the same users, on one connection that is kept. A repeat gives the server's processor time a request of each, from the
kernel, and its ratio to the first of that same repeat. Two processes that do the same differ by some hundredths, so
all servers are started anew every round. Told are the median ratio and the 95 % interval of the median, by the
bootstrap over rounds. New connections are measured apart: a client connects, asks once and leaves.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import trustme

from benchmarks.calling import CALLERS, Goes, cost_of_calls, users_of
from benchmarks.latency.own_server import RunningServer, serve_command, start_server
from benchmarks.machine import core_scaling, machine, noise_line, versions
from benchmarks.processes import cpu_times, process_tree
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra_client import Client, ClientError

CONNECTIONS = 100  # of a turn that measures new ones
RESAMPLES = 2000
TOKEN = "t" * 48
ROOMS = (".", "protos", "index_builder", "server", "client")  # of a checkout, where its packages lie


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
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout, to compare with")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=16, help="with servers started anew")
    parser.add_argument("--repeats", type=int, default=5, help="of each round")
    parser.add_argument("--seconds", type=float, default=0.7, help="of each server in each repeat")
    parser.add_argument("--seed", type=int, default=0, help="of the order of users")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "connection_us"))
        manifest = Manifest.read(args.store / current_bundle_id(args.store))
        users = np.random.default_rng(args.seed).permutation(np.asarray(Dataset.open(args.dataset).user_ids)).tolist()
        before = core_scaling()
        rounds, connections = [], {}
        for number in range(args.rounds):
            with ExitStack() as stack:
                clients = _clients(stack, args.store.resolve(), args.before)
                rounds.append(measured(clients, users, args.k, args.seconds, args.repeats, args.seed + number))
                if number == args.rounds - 1:
                    connections = {name: connected(server, access) for name, (server, access) in clients.items()}
    except (LhydraError, ClientError) as error:
        print(error, file=sys.stderr)
        return 1
    document: dict[str, Any] = {
        "benchmark": "access",
        "command": f"python -m benchmarks.access STORE DATASET {'--before CHECKOUT ' * bool(args.before)}--k {args.k} "
        f"--rounds {args.rounds} --repeats {args.repeats} --seconds {args.seconds:g} --seed {args.seed}",
        "tracks": manifest.n_tracks,
        "users": len(users),
        "machine": machine(),
        "core_scaling": [before, core_scaling()],
        "versions": versions(),
        "requests": told(rounds, args.seed),
        "connection_us": connections,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, row in document["requests"].items():
        low, high = row["ratio_interval"]
        print(
            f"{name:16} {row['server_us']:6.0f} us of processor, x{row['ratio']:.3f} ({low:.3f} to {high:.3f})"
            f", {connections[name]:6.0f} us a connection with one request"
        )
    print(noise_line(*document["core_scaling"]))
    return 0


Clients = dict[str, tuple[RunningServer, dict[str, Any]]]


def _clients(stack: ExitStack, store: Path, before: Path | None) -> Clients:
    """Starts a server of each kind: it, and what a client of it is given."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    cert, key, ca, tokens = (folder / name for name in ("cert.pem", "key.pem", "ca.pem", "tokens"))
    cert.write_bytes(made.cert_chain_pems[0].bytes())
    key.write_bytes(made.private_key_pem.bytes())
    key.chmod(0o600)
    ca.write_bytes(authority.cert_pem.bytes())
    tokens.write_text(f"{TOKEN} read benchmark\n")
    tokens.chmod(0o600)
    tls = ["--tls-cert", str(cert), "--tls-key", str(key)]
    kinds: dict[str, tuple[list[str], dict[str, Any]]] = {
        "plain": ([], {}),
        "plain again": ([], {}),
        "tls": (tls, {"tls_ca": ca}),
        "mtls and token": (
            [*tls, "--tls-client-ca", str(ca), "--token-file", str(tokens)],
            {"tls_ca": ca, "tls_cert": cert, "tls_key": key, "token": TOKEN},
        ),
    }
    found: Clients = {}
    for name, (flags, access) in kinds.items():
        command = serve_command(store, 1, flags=("--log-sample", "0", "--no-pin", *flags))
        found[name] = stack.enter_context(start_server(command)), access
    if before is not None:
        rooms = ":".join(str((before / room).resolve()) for room in ROOMS)
        command = serve_command(store, 1, flags=("--log-sample", "0", "--no-pin"))
        command = ["env", "-C", str(before.resolve()), f"PYTHONPATH={rooms}", *command]
        found["before, plain"] = stack.enter_context(start_server(command)), {}
    return found


def measured(
    clients: Clients, users: Sequence[str], k: int, seconds: float, repeats: int, seed: int
) -> dict[str, list[dict[str, float]]]:
    """Measures all servers in turn.

    Args:
        clients: the servers, and how each is asked.
        users: to ask for, in this order, again and again.
        k: tracks of each answer.
        seconds: of each server in each repeat.
        repeats: after one that is not kept.
        seed: of the order of servers in each repeat.

    Returns:
        By server, for each repeat: microseconds of processor a request, and requests a second.

    Raises:
        ClientError: a request failed.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    order = np.random.default_rng(seed)
    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(Client(server.address, timeout_s=30, **access))
            for name, (server, access) in clients.items()
        }
        for repeat in range(repeats + 1):
            for name in order.permutation(list(clients)).tolist():  # nobody is always the first, or after another
                one = _run(opened[name], users, k, seconds, clients[name][0].pid)
                if repeat:
                    found[name].append(one)
    return found


def connected(server: RunningServer, access: dict[str, Any]) -> float:
    """Measures new connections.

    Args:
        server: that runs.
        access: what its client is given.

    Returns:
        Microseconds of the server's processor for a connection with one request on it.

    Raises:
        ClientError: a request failed.
    """
    tree = process_tree(server.pid)
    used = cpu_times(tree)
    for _ in range(CONNECTIONS):
        with Client(server.address, timeout_s=30, **access) as client:
            client.status()
    return round(1e6 * cpu_times(tree).since(used) / CONNECTIONS)


def told(rounds: Sequence[dict[str, list[dict[str, float]]]], seed: int) -> dict[str, dict[str, Any]]:
    """Makes the figures to tell.

    Args:
        rounds: each from `measured`, in the clear first; another checkout is what that is compared with.
        seed: of the bootstrap.

    Returns:
        By server the medians, the median ratio with its interval, and every repeat of every round.
    """
    plain = next(iter(rounds[0]))
    drawn = np.random.default_rng(seed).integers(len(rounds), size=(RESAMPLES, len(rounds)))
    out: dict[str, dict[str, Any]] = {}
    for name in rounds[0]:
        ours, theirs = (_costs(rounds, kind) for kind in (name, plain))
        other = name.startswith("before")
        ratios = theirs / ours if other else ours / theirs  # (rounds, repeats)
        medians = np.median(ratios[drawn].reshape(RESAMPLES, -1), axis=1)
        low, high = np.quantile(medians, (0.025, 0.975)).tolist()
        repeats = [one for found in rounds for one in found[name]]
        out[name] = {key: round(float(np.median([one[key] for one in repeats])), 1) for key in repeats[0]} | {
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_interval": [round(low, 3), round(high, 3)],
            "ratio_of": "plain to this" if other else "this to plain",
            "rounds": [[round(one["server_us"], 1) for one in found[name]] for found in rounds],
        }
    return out


def _costs(rounds: Sequence[dict[str, list[dict[str, float]]]], name: str) -> "np.ndarray[Any, Any]":
    """(rounds, repeats) microseconds of processor a request."""
    return np.array([[one["server_us"] for one in found[name]] for found in rounds])


def _run(client: Client, users: Sequence[str], k: int, seconds: float, pid: int) -> dict[str, float]:
    def calls(number: int, goes: Goes) -> Iterator[object]:
        return (client.recommend(user, k) for user in users_of(users, number, CALLERS, goes))

    return cost_of_calls(pid, CALLERS, seconds, calls)


if __name__ == "__main__":
    sys.exit(main())
