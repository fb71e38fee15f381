"""What callers feel of overload, deadlines and killed workers: `python -m benchmarks.faults STORE DATASET --out FILE`.

Overload: twice what 32 callers get answered for `--seconds`, then ten times as much for one second: what is answered,
how fast the rest is refused, and how long until a caller waits no longer than before. Deadlines: bursts of calls that
the generator does not give up itself. Kills: workers killed with SIGKILL while callers of our client ask, one at a
time, then all at once. Exit code 1 when a bound is missed. STORE is served, and its users are read.
"""

import argparse
import json
import os
import random
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import traffic
from benchmarks.latency.http2 import Connection, framed, header_block
from benchmarks.latency.load import RECOMMEND, Load, Plan, Request, latencies_ms
from benchmarks.latency.own_server import RunningServer, serve_command, start_server
from benchmarks.latency.summary import REFUSED
from benchmarks.machine import machine, versions
from benchmarks.processes import process_tree
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra.lines import say
from lhydra_client import Client, ClientError

K, DEPTH, WORKERS, CALLERS = 100, 300, 2, 32
AGE = ("--connection-age-s", "5")  # the server's own default, not the one of benchmarks
DEADLINES_MS, LATE_MS = (1, 5, 20, 100), 10.0
BURSTS, BURST = 40, 16
RECOVERY_S, SERVING_S, REFUSAL_MS, GOODPUT = 2.0, 2.0, 15.0, 0.9
KILL_CALLERS, KILL_TIMEOUT_S = 8, 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where a bound was missed, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--parts", default="overload,deadlines,kills", help="of overload, deadlines, kills")
    parser.add_argument("--seconds", type=float, default=30.0, help="of overload (default: 30)")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--calls", type=int, default=10_000, help="at least, while workers are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "machine", "versions"))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    users, _ = traffic.user_ids(args.dataset, None)
    users = [users[i] for i in np.random.default_rng(args.seed).permutation(len(users))]
    parts: dict[str, Callable[[RunningServer], dict[str, Any]]] = {
        "overload": lambda server: overload(server, traffic.known_users(users, K), args.seconds),
        "deadlines": lambda server: deadlines(server, traffic.known_users(users, K)),
        "kills": lambda server: kills(server, users, args.kills, args.calls, random.Random(args.seed)),
    }
    found: dict[str, Any] = {"machine": machine(), "versions": versions()}
    for name in args.parts.split(","):
        with start_server(serve_command(args.store, WORKERS, depth=DEPTH, flags=AGE)) as server:
            found[name] = parts[name](server)
        say(f"{name}: {json.dumps(found[name])}")
    missed = [f"{name}: {what}" for name in args.parts.split(",") for what in found[name]["missed"]]
    if args.out:
        write_text(args.out, json.dumps({"benchmark": "faults", **found}, indent=1) + "\n")
    say("\n".join(f"MISSED {one}" for one in missed) or "every bound held")
    return 1 if missed else 0


def overload(server: RunningServer, requests: Sequence[Request], seconds: float) -> dict[str, Any]:
    """Asks for too much.

    Args:
        server: to ask.
        requests: in turn.
        seconds: of twice the peak.

    Returns:
        The figures, and what was missed.
    """

    def asked(rate: float = 0.0, concurrency: int = 0, seconds: float = 5.0) -> Load:
        return Plan(server.address, requests, seconds, 1.0, 8, rate, concurrency).run()

    asked(concurrency=CALLERS, seconds=2.0)
    peak = max(_answered_per_s(asked(concurrency=CALLERS)) for _ in range(2))
    alone_ms = float(np.percentile(latencies_ms(asked(concurrency=1, seconds=2.0).calls), 99))
    missed, figures = [], dict[str, Any](peak_per_s=round(peak), p99_alone_ms=round(alone_ms, 2))
    for times, length in ((2, seconds), (10, 1.0)):
        load = asked(rate=times * peak, seconds=length)
        calm_s = _recovery_s(lambda: asked(concurrency=1, seconds=0.1), 2 * alone_ms)
        refused_ms = latencies_ms(load.calls, REFUSED)
        row: dict[str, Any] = {
            "goodput_of_peak": round(_answered_per_s(load) / peak, 3),
            "codes": dict(Counter(call.code for call in load.calls)),
            "answered_p99_ms": round(float(np.percentile(latencies_ms(load.calls), 99)), 1),
            "refused_p99_ms": round(float(np.percentile(refused_ms, 99)), 1) if len(refused_ms) else None,
            "generator_late_p99_ms": round(float(np.percentile(load.late_ms, 99)), 1),
            "recovered_s": round(calm_s, 2),
        }
        figures[f"{times} times"] = row
        if times == 2 and row["goodput_of_peak"] < GOODPUT:
            missed.append(f"goodput of {times} times the peak: {row['goodput_of_peak']}")
        if times == 2 and (row["refused_p99_ms"] or 0.0) > REFUSAL_MS:
            missed.append(f"refusals at {times} times the peak: {row['refused_p99_ms']} ms")
        if calm_s > RECOVERY_S:
            missed.append(f"recovery from {times} times the peak: {calm_s:.2f} s")
    return figures | {"missed": missed}


def _answered_per_s(load: Load) -> float:
    return sum(call.code == "OK" for call in load.calls) / load.wall_s


def _recovery_s(ask: Callable[[], Load], bound_ms: float) -> float:
    """Seconds until the calls of a tenth of a second all take no longer than `bound_ms`, in the median."""
    started_s = time.monotonic()
    while (so_far_s := time.monotonic() - started_s) < 30:
        took_ms = latencies_ms(ask().calls)
        if len(took_ms) and float(np.median(took_ms)) <= bound_ms:
            break
    return so_far_s


def deadlines(server: RunningServer, requests: Sequence[Request]) -> dict[str, Any]:
    """Sends bursts of calls and waits for the server's answer to each, past its deadline.

    Args:
        server: to ask.
        requests: in turn.

    Returns:
        The codes by deadline, how many came later than LATE_MS after it, and what was missed.
    """
    Plan(server.address, requests, 2.0, 1.0, 8, 0.0, 8).run()
    bodies, missed, figures = [framed(one.message) for one in requests], [], dict[str, Any]()
    for deadline_ms in DEADLINES_MS:
        block = header_block(RECOMMEND, server.address, deadline_ms / 1e3)
        codes, late, worst_ms = Counter[str](), 0, 0.0
        for burst in range(BURSTS):
            connections = [Connection(server.address) for _ in range(4)]
            for one in connections:
                one.flush()
            started_s = time.perf_counter()
            for i in range(BURST):
                connections[i % 4].call(i, block, bodies[(burst * BURST + i) % len(bodies)])
            ended = _ended(connections, started_s + deadline_ms / 1e3 + 1.0)
            for code, at_s in ended:
                beyond_ms = 1e3 * (at_s - started_s) - deadline_ms
                codes[code] += 1
                late += beyond_ms > LATE_MS and code == "OK"
                codes[f"{code}, late"] += beyond_ms > LATE_MS
                worst_ms = max(worst_ms, beyond_ms)
            codes["nothing"] += BURST - len(ended)
            for one in connections:
                one.close()
        figures[f"{deadline_ms} ms"] = {
            "codes": {code: n for code, n in codes.items() if n},
            "late": late,
            "worst_beyond_ms": round(worst_ms, 1),
        }
        if late or codes["nothing"]:
            missed.append(f"{deadline_ms} ms: {late} answers late, {codes['nothing']} calls without an end")
    return figures | {"missed": missed}


def _ended(connections: Sequence[Connection], last_s: float) -> list[tuple[str, float]]:
    """(code, time) of every call that ended by then."""
    ended: list[tuple[str, float]] = []
    while any(one.in_flight for one in connections) and time.perf_counter() < last_s:
        for one in connections:
            one.flush()
        ready, _, _ = select.select([one.socket for one in connections if not one.closed], [], [], 0.05)
        now_s = time.perf_counter()
        for one in connections:
            if not one.closed and one.socket in ready:
                one.receive()
            ended += [(code, now_s) for _, code, _ in one.done]
            one.done.clear()
    return ended


def kills(
    server: RunningServer, users: Sequence[str], times: int, calls: int, moments: random.Random
) -> dict[str, Any]:
    """Kills workers while callers of our client ask.

    Args:
        server: its process is the supervisor.
        users: to ask for, in turn.
        times: how often one worker is killed; after that all are, once.
        calls: how many are made at least.
        moments: which worker, and how long after the last.

    Returns:
        Calls that failed, seconds to all workers, and what was missed.
    """
    codes, stop, lock = Counter[str](), threading.Event(), threading.Lock()

    def ask(caller: int) -> None:
        with Client(server.address, timeout_s=KILL_TIMEOUT_S) as client:
            at = caller
            while not stop.is_set():
                try:
                    client.recommend(users[at % len(users)], k=K)
                    outcome = "OK"
                except ClientError as error:
                    outcome = f"{type(error).__name__}: {error}"[:160]
                with lock:
                    codes[outcome] += 1
                at += KILL_CALLERS

    callers = [threading.Thread(target=ask, args=(i,)) for i in range(KILL_CALLERS)]
    for caller in callers:
        caller.start()
    serving_s = []
    for _ in range(times):
        time.sleep(moments.uniform(0.5, 1.5))
        os.kill(moments.choice(_workers(server)), signal.SIGKILL)
        serving_s.append(_serving_again_s(server, users[0]))
    while sum(codes.values()) < calls:
        time.sleep(0.1)
    with lock:
        one_by_one = dict(codes)
        codes.clear()
    for pid in _workers(server):
        os.kill(pid, signal.SIGKILL)
    all_s = _serving_again_s(server, users[0])
    time.sleep(2.0)
    stop.set()
    for caller in callers:
        caller.join()
    failed = sum(n for code, n in one_by_one.items() if code != "OK")
    missed = [f"{failed} calls failed"] if failed else []
    missed += [f"{what}: {s:.2f} s" for what, s in (("serving", max(serving_s)), ("all", all_s)) if s > SERVING_S]
    return {
        "calls": one_by_one,
        "serving_again_s": [round(one, 2) for one in serving_s],
        "all_at_once": {"calls": dict(codes), "serving_again_s": round(all_s, 2)},
        "missed": missed,
    }


def _workers(server: RunningServer) -> list[int]:
    """The processes that open bundles, without helpers that live for a moment."""
    return [pid for pid in process_tree(server.pid) if b"lhydra_server.start" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _serving_again_s(server: RunningServer, user: str) -> float:
    """Seconds until all workers serve again and a new client is answered."""
    started_s = time.monotonic()
    while time.monotonic() - started_s < 60:
        time.sleep(0.02)
        try:
            with Client(server.address, timeout_s=1.0) as client:
                if client.status().workers == WORKERS and len(_workers(server)) == WORKERS:
                    client.recommend(user, k=K)
                    break
        except ClientError:
            continue
    return time.monotonic() - started_s


if __name__ == "__main__":
    sys.exit(main())
