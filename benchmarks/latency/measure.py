"""Measures one server that runs: the same load for ours (gRPC) and for its peers (JSON over HTTP/1.1)."""

import http.client
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import grpc
import numpy as np

from benchmarks.latency import h2load
from benchmarks.latency.http2 import framed
from benchmarks.latency.knee import find_knee, sustained
from benchmarks.latency.load import RECOMMEND, Arrivals, Plan, Request, run_in_subprocess
from benchmarks.latency.own_server import RunningServer
from benchmarks.latency.results import Run, ServerCost
from benchmarks.latency.summary import LAST_BIT, PERCENTILES, in_order, percentiles
from benchmarks.processes import CpuTimes, cpu_times, memory_mib, process_tree
from lhydra_client.results import tier_name
from lhydra_protos.v1 import recommender_pb2 as pb

DIRECT = (("grpc.enable_http_proxy", 0),)  # the server is on this machine, whatever the environment says of proxies
CHECKED_USERS = 50  # users whose replies are read before and after a server's runs
MAX_SHORTFALL = 0.1  # a mean reply so much smaller than the checked ones means that not all were answers


@dataclass(frozen=True)
class Check:
    """What `CHECKED_USERS` users were answered.

    reply_bytes: of a reply as it travels, on average. tracks: ids that were seen. faults: what is wrong, in words.
    """

    reply_bytes: float
    tracks: list[str]
    tiers: dict[str, int]
    faults: list[str]


@dataclass
class LoadTest:
    """One start of one server under load; `runs` grows.

    http1: whether it speaks JSON over HTTP/1.1. requests: one per user of `users`. k: tracks to ask for. seconds: of a
    run. channels: connections of the open loop. log: takes a line after every run.
    """

    server: RunningServer
    name: str
    http1: bool
    repeat: int
    users: Sequence[str]
    requests: Sequence[Request]
    k: int
    seconds: float
    timeout_s: float
    channels: int
    seed: int
    arrivals: Arrivals = "poisson"
    runs: list[Run] = field(default_factory=list)
    log: Callable[[str], None] = print

    # -- the kinds of runs ------------------------------------------------------------------------------------

    def closed(self, concurrency: int, *, by_h2load: bool, reply_bytes: float) -> None:
        """Measures callers that wait for their answers.

        Args:
            concurrency: how many.
            by_h2load: rather than by our generator.
            reply_bytes: of a checked reply on average; h2load sees only sizes.
        """
        if by_h2load:
            self._record("closed", lambda: self._h2load(concurrency, reply_bytes))
        else:
            self._record("closed", lambda: run_in_subprocess(self._plan(concurrency=concurrency)))

    def open(self, mode: str, rate: float, *, seconds: float = 0, requests: Sequence[Request] = ()) -> Run:
        """Measures arrivals that are due whether or not the server keeps up.

        Args:
            mode: the name of the mode.
            rate: arrivals a second.
            seconds: duration; 0 for that of all runs.
            requests: sent in turn; empty for those of all runs.

        Returns:
            The run.
        """
        plan = self._plan(rate=rate)
        plan = replace(plan, seconds=seconds or self.seconds, requests=requests or self.requests)
        run = self._record(mode, lambda: run_in_subprocess(plan))
        run["offered_per_s"] = rate
        # An answer after the end counts for the time it took: what piled up is no goodput of these seconds.
        run["goodput_per_s"] = run["answered"] / max(plan.seconds, run["seconds"])
        return run

    def cases(self, requests: Sequence[Request]) -> Run:
        """Measures one caller.

        Args:
            requests: sent in turn.

        Returns:
            The run.
        """
        plan = replace(self._plan(concurrency=1), requests=requests)
        run = self._record("cases", lambda: run_in_subprocess(plan))
        run["name"] = "cases, 1"
        return run

    def code_of(self, request: Request) -> str:
        """Sends one request that is not counted.

        Args:
            request: to send.

        Returns:
            The name of the status that it is answered with.
        """
        with grpc.insecure_channel(self.server.address, DIRECT) as channel:
            ask: Callable[..., bytes] = channel.unary_unary(request.method)
            try:
                ask(request.message, timeout=self.timeout_s)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

    def ramp(self, start: float, p99_ms: float) -> float:
        """Searches for the saturation knee, a run for every rate that is tried.

        Args:
            start: the first rate, requests a second.
            p99_ms: bound of a sustained rate.

        Returns:
            The knee, requests a second; 0 where there is none.
        """

        def sustains(rate: float) -> bool:
            run = self.open("ramp", rate)
            run["sustained"] = sustained(run, p99_ms)
            return run["sustained"]

        return find_knee(sustains, start)

    def warm_up(self, seconds: float, concurrency: int) -> None:
        """Asks for a while without counting.

        Args:
            seconds: how long.
            concurrency: callers.
        """
        if self.http1:
            h2load.run(self._target(), concurrency, seconds)
        else:
            run_in_subprocess(replace(self._plan(concurrency=concurrency), seconds=seconds))

    def check(self, wanted: int) -> Check:
        """Asks for CHECKED_USERS users one by one and reads the replies.

        Args:
            wanted: tracks that each reply must hold; 0 for any number.

        Returns:
            What was found.
        """
        users = [str(user) for user in np.random.default_rng(self.seed).permutation(list(self.users))[:CHECKED_USERS]]
        faults, tracks, sizes, tiers = [], dict[str, None](), [], dict[str, int]()
        channel = grpc.insecure_channel(self.server.address, DIRECT)  # connects when it is used
        for user in users:
            try:
                size, found, tier, ordered = self._answer_of_peer(user) if self.http1 else self._answer(channel, user)
            except (grpc.RpcError, OSError, http.client.HTTPException, ValueError, KeyError) as error:
                why = error.code().name if isinstance(error, grpc.RpcError) else f"{type(error).__name__}: {error}"
                faults.append(f"NO REPLY of {self.name} for {user}: {why}")
                continue
            if (wanted and len(found) != wanted) or not ordered or len(set(found)) != len(found):
                order = "" if ordered else ", out of order"
                expected = f"{wanted or 'some'} different ones, best first"
                faults.append(f"WRONG REPLY of {self.name} for {user}: {len(found)} tracks{order}, expected {expected}")
            tracks |= dict.fromkeys(found)
            sizes.append(size)
            tiers[tier] = tiers.get(tier, 0) + 1
        channel.close()
        return Check(float(np.mean(sizes)) if sizes else 0.0, list(tracks), tiers, faults)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _plan(self, *, rate: float = 0.0, concurrency: int = 0) -> Plan:
        return Plan(
            self.server.address,
            self.requests,
            self.seconds,
            self.timeout_s,
            self.channels,
            rate,
            concurrency,
            self.arrivals,
            self.seed + 1_000 * self.repeat + len(self.runs),
        )

    def _record(self, mode: str, work: Callable[[], Run]) -> Run:
        pids = process_tree(self.server.pid) if self.server.pid else []
        before = cpu_times(pids)
        run = work()
        if pids:
            run["server_cost"] = self._cost(pids, before, run["answered"])
        run |= {"server": self.name, "repeat": self.repeat, "mode": mode}
        self.runs.append(run)
        self.log(progress(run))
        return run

    def _cost(self, pids: Sequence[int], before: CpuTimes, answered: int) -> ServerCost:
        after, memory = cpu_times(process_tree(self.server.pid)), memory_mib(pids)
        used = after.since(before)
        return {
            "cpu_s": round(used, 3),
            "cpu_us_per_request": 1e6 * used / max(1, answered),
            "cpu_by_process_s": after.shares(before),
            "processes": len(pids),
            "pss_mib": memory["pss"],
            "private_mib": memory["private"],
            "rss_mib": memory["rss"],
            "private_mib_largest": max(memory_mib([pid])["private"] for pid in pids),
        }

    def _target(self) -> h2load.Target:
        if self.http1:
            bodies = [json.dumps({"user_id": user, "k": self.k}).encode() for user in self.users]
            return h2load.Target(f"http://{self.server.address}/recommend", True, h2load.same_length(bodies))
        bodies = [framed(request.message) for request in self.requests]
        return h2load.Target(f"http://{self.server.address}{RECOMMEND}", False, h2load.same_length(bodies))

    def _h2load(self, concurrency: int, reply_bytes: float) -> Run:
        found = h2load.run(self._target(), concurrency, self.seconds)
        mean = found.data_bytes / found.answered
        errors = {f"HTTP {status}": n for status, n in found.statuses.items() if status != "200"}
        if mean < (1 - MAX_SHORTFALL) * reply_bytes:
            errors["REPLIES TOO SHORT"] = round(found.answered * (1 - mean / reply_bytes))
        return {
            "name": f"closed, {concurrency}",
            "loop": "closed",
            "requests": sum(found.statuses.values()),
            "answered": found.answered,
            "errors": errors,
            "seconds": found.seconds,
            "throughput_per_s": found.answered / found.seconds,
            "latency_ms": percentiles(found.latency_ms, PERCENTILES),
            "stages_us": {},
            "reply_bytes": {"mean": mean, "checked": reply_bytes},
            "generator": {
                "by": "h2load",
                "cpu_share": found.cpu_s / found.seconds,
                "cpu_us_per_request": 1e6 * found.cpu_s / found.answered,
                "late_share": None,
            },
        }

    def _answer(self, channel: grpc.Channel, user: str) -> tuple[int, list[str], str, bool]:
        """(bytes, track ids, tier, whether in order) of a user's reply."""
        ask: Callable[..., bytes] = channel.unary_unary(RECOMMEND)
        packed = ask(pb.RecommendRequest(user_id=user, k=self.k).SerializeToString(), timeout=self.timeout_s)
        reply = pb.RecommendResponse.FromString(packed)
        ids = [track.track_id for track in reply.tracks]
        return len(framed(packed)), ids, tier_name(reply.tier), in_order(reply)

    def _answer_of_peer(self, user: str) -> tuple[int, list[str], str, bool]:
        host, _, port = self.server.address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=self.timeout_s)
        try:
            body = json.dumps({"user_id": user, "k": self.k})
            connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            read = reply.read()
        finally:
            connection.close()
        if reply.status != 200:
            raise ValueError(f"status {reply.status}")
        tracks = json.loads(read)["tracks"]
        ordered = all(a["score"] >= b["score"] - LAST_BIT for a, b in itertools.pairwise(tracks))
        return len(read), [track["track_id"] for track in tracks], "?", ordered


def progress(run: Run) -> str:
    """Returns one line about a run, for people who wait.

    Args:
        run: with its server, repeat and mode.

    Returns:
        The line.
    """
    p50, p99 = (run["latency_ms"][name] for name in ("p50", "p99"))
    times = "no answer" if p50 is None else f"p50 {p50:.2f} p99 {p99:.2f} ms"
    errors = ", ".join(f"{n} {code}" for code, n in run["errors"].items())
    spent = run.get("server_cost", {}).get("cpu_us_per_request")
    cost = "" if spent is None else f", {spent:.0f} us of CPU each"
    return (
        f"  {run['server']} {run['repeat'] + 1}: {run['mode']}: {run['name']}: {times},"
        f" {run['throughput_per_s']:.0f}/s{cost}{', ' if errors else ''}{errors}"
    )
