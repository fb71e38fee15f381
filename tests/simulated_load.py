"""A load test without a clock: a queue in front of a few places, simulated, in place of the load generator."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.latency.load import FEEDBACK, Call, Load, Plan, arrival_times
from benchmarks.latency.results import Run
from benchmarks.latency.summary import summarise
from lhydra_protos.v1 import recommender_pb2 as pb
from tests.fake_recommender import reply

REFUSED_S = 0.0005


@dataclass(frozen=True)
class SimulatedServer:
    """Serves `places` requests at once, each for `service_s`; refuses what comes while `most` are inside.

    code: what a served request ends with.
    """

    places: int = 4
    service_s: float = 0.02
    most: int = 24
    code: str = "OK"
    sent: Callable[[Plan], None] = lambda plan: None

    @property
    def capacity_per_s(self) -> float:
        return self.places / self.service_s

    def run(self, plan: Plan) -> Run:
        """Stands in for `load.run_in_subprocess`."""
        self.sent(plan)
        is_open = bool(plan.rate)
        due = arrival_times(plan.rate, plan.seconds, plan.arrivals, plan.seed).tolist() if is_open else []
        waiting = due or [0.0] * plan.concurrency  # a heap: the next arrivals
        free, inside, calls = [0.0] * self.places, list[float](), list[Call]()
        while waiting:
            at = heapq.heappop(waiting)
            while inside and inside[0] <= at:
                heapq.heappop(inside)
            request = plan.requests[len(calls) % len(plan.requests)]
            if len(inside) >= self.most:
                done, code = at + REFUSED_S, "RESOURCE_EXHAUSTED"
            else:
                done, code = max(at, heapq.heappop(free)) + self.service_s, self.code
                heapq.heappush(free, done)
                heapq.heappush(inside, done)
            body = pb.RecordPlaysResponse(recorded=1) if request.kind == FEEDBACK else reply()
            calls.append(Call(at, at, done, code, body.SerializeToString() if code == "OK" else None, request.kind))
            if not is_open and done < plan.seconds:
                heapq.heappush(waiting, done)
        name = f"open, {plan.rate:g}/s" if is_open else f"closed, {plan.concurrency}"
        wall_s = max((call.done_s for call in calls), default=plan.seconds)
        return summarise(Load(name, calls, wall_s, 0.01, is_open))
