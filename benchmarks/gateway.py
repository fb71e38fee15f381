"""What JSON costs above gRPC: processor time of `lhydra web` per request: `python -m benchmarks.gateway STORE`.

A server of one worker and a gateway before it, each in processes of its own; one caller on one connection asks for
lists of users whom nobody knows, which the server answers from what is popular. Told is the processor time of the
gateway, all of it, HTTP, JSON and its call to the server: what a request costs above one that comes by gRPC itself.
The caller's own time is not in it. `json_format` alone, both ways, is told beside it.
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from benchmarks.latency.own_server import child_environment, serve_command, start_server
from benchmarks.machine import core_scaling, machine, versions
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError, NotReady
from lhydra.files import write_text
from lhydra_protos.v1 import recommender_pb2 as pb

TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
WARM_UP = 200
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
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for k, row in told.items():
        print(f"k = {k}: {json.dumps(row)}")
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


def _ticks(pid: int) -> int:
    """Processor time of a process, its threads and the system's work for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    sys.exit(main())
