"""What JSON costs above gRPC: processor time of `lhydra web` per request: `python -m benchmarks.gateway STORE`.

A server of one worker and a gateway before it, each in processes of its own; one caller on one connection asks for
lists of users whom nobody knows, which the server answers from what is popular. Told is the processor time of the
gateway, all of it, HTTP, JSON and its call to the server: what a request costs above one that comes by gRPC itself.
The caller's own time is not in it. `json_format` alone, both ways, is told beside it. Then eight callers ask at
once, in turns by gRPC and by JSON: threads of one process, which shares the machine's cores with server and gateway.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from benchmarks.latency.own_server import child_environment, serve_command, start_server
from benchmarks.machine import core_scaling, machine, versions
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError, NotReady
from lhydra.files import write_text
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub

TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
WARM_UP = 200
CALLERS, K_AT_ONCE = 8, 10
PATH = "/lhydra.v1.Recommender/Recommend"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a line for each k.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--requests", type=int, default=3_000, help="of each k")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "k"))
        tracks = Manifest.read(args.store / current_bundle_id(args.store)).n_tracks
        before = core_scaling()
        with start_server(serve_command(args.store, 1)) as server, gateway(server.address) as (port, pid):
            told = {str(k): measured(port, pid, k, args.requests, args.repeats) for k in (10, 100)}
            at_once = throughput(server.address, port, args.requests, args.repeats)
    except (LhydraError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    document: dict[str, Any] = {
        "benchmark": "gateway",
        "command": f"python -m benchmarks.gateway STORE --requests {args.requests} --repeats {args.repeats}",
        "tracks": tracks,
        "machine": machine() | {"core_scaling": [before, core_scaling()]},
        "versions": versions(),
        "k": told,
        "at_once": at_once,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for k, row in told.items():
        print(f"k = {k}: {json.dumps(row)}")
    print(f"{CALLERS} callers, k = {K_AT_ONCE}: {json.dumps(at_once)}")
    return 0


@contextmanager
def gateway(address: str) -> Iterator[tuple[int, int]]:
    """Runs `lhydra web` until the block ends.

    Args:
        address: of the server.

    Yields:
        Its port and process id.

    Raises:
        NotReady: it did not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lhydra.cli", "web", "--address", address, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=child_environment()) as process:
        try:
            last_s = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < last_s:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            else:
                raise NotReady("lhydra web did not start")
            yield port, process.pid
        finally:
            process.terminate()


def measured(port: int, pid: int, k: int, requests: int, repeats: int) -> dict[str, Any]:
    """Asks for lists.

    Args:
        port: of the gateway.
        pid: of its process.
        k: tracks of a list.
        requests: how many of one repeat.
        repeats: how often.

    Returns:
        Microseconds of processor a request: the median repeat, the least, the most, and those of `json_format`.
    """
    gateway_us: list[float] = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:

        def ask(number: int) -> bytes:
            body = json.dumps({"userId": f"user-{number}", "k": k})
            connection.request("POST", PATH, body, {"content-type": "application/json"})
            reply = connection.getresponse()
            said = reply.read()
            assert reply.status == 200, said
            return said

        for number in range(WARM_UP):
            ask(number)
        for _ in range(repeats):
            began = _ticks(pid)
            for number in range(requests):
                said = ask(number)
            gateway_us.append((_ticks(pid) - began) * TICK_US / requests)
    message = json_format.Parse(said, pb.RecommendResponse())
    assert len(message.tracks) == k
    began_ns = time.process_time_ns()
    for _ in range(WARM_UP):
        json_format.Parse('{"userId": "user-1", "k": 10}', pb.RecommendRequest())
        json_format.MessageToJson(message, indent=None, ensure_ascii=False)
    alone_us = (time.process_time_ns() - began_ns) / 1000 / WARM_UP
    low, middle, high = sorted(gateway_us)[0], sorted(gateway_us)[len(gateway_us) // 2], sorted(gateway_us)[-1]
    return {
        "gateway_us": round(middle),
        "least_us": round(low),
        "most_us": round(high),
        "json_format_us": round(alone_us),
        "reply_bytes": len(said),
    }


def throughput(address: str, port: int, requests: int, repeats: int) -> dict[str, Any]:
    """Lets CALLERS ask at once, each on a connection of its own.

    Args:
        address: of the server.
        port: of the gateway.
        requests: how many of one repeat, of all callers together.
        repeats: how often; each asks by gRPC and then by JSON.

    Returns:
        Requests a second by gRPC and by JSON, medians; JSON's share of gRPC's: median, least and most.
    """
    rates: dict[str, list[float]] = {"grpc": [], "json": []}
    with ThreadPoolExecutor(CALLERS) as pool:
        for _ in range(repeats):
            for name, asking, where in (("grpc", _by_grpc, address), ("json", _by_json, port)):
                began_s = time.perf_counter()
                list(pool.map(asking, [where] * CALLERS, [requests // CALLERS] * CALLERS))
                rates[name].append(requests / (time.perf_counter() - began_s))
    shares = sorted(json_s / grpc_s for json_s, grpc_s in zip(rates["json"], rates["grpc"], strict=True))
    return {
        "grpc_per_s": round(statistics.median(rates["grpc"])),
        "json_per_s": round(statistics.median(rates["json"])),
        "share": round(statistics.median(shares), 3),
        "least": round(shares[0], 3),
        "most": round(shares[-1], 3),
    }


def _by_grpc(address: str, requests: int) -> None:
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = RecommenderStub(channel)
        for number in range(requests):
            stub.Recommend(pb.RecommendRequest(user_id=f"user-{number}", k=K_AT_ONCE), timeout=30)


def _by_json(port: int, requests: int) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        for number in range(requests):
            body = json.dumps({"userId": f"user-{number}", "k": K_AT_ONCE})
            connection.request("POST", PATH, body, {"content-type": "application/json"})
            reply = connection.getresponse()
            said = reply.read()
            assert reply.status == 200, said
            json.loads(said)


def _ticks(pid: int) -> int:
    """Processor time of a process, its threads and the system's work for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    sys.exit(main())
