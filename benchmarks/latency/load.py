"""Makes load and notes what came of it: closed loop (callers that wait for answers), open loop (arrivals that do not).

In the open loop every latency counts from the moment a request was due, so a stall of the server, or of this program,
is felt by all requests that should have gone out meanwhile (no coordinated omission). One thread that never waits for
an answer; replies are kept as bytes and read later. `run_apart` does it in a process of its own.
"""

import gc
import itertools
import pickle
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.latency.http2 import Connection, framed, header_block
from benchmarks.latency.own_server import child_environment
from lhydra.errors import LhydraError

F64 = npt.NDArray[np.float64]
Arrivals = Literal["poisson", "fixed"]

RECOMMEND, RECORD_PLAYS = "/lhydra.v1.Recommender/Recommend", "/lhydra.v1.Recommender/RecordPlays"
FEEDBACK = "feedback"  # the kind of traffic that is answered by something else than tracks
KEPT = 20_000  # replies of a run that are kept to be read afterwards, spread over it


class Request(NamedTuple):
    """What to send: a message as bytes, the kind of traffic it is, and its method."""

    message: bytes
    kind: str = "warm"
    method: str = RECOMMEND


class Call(NamedTuple):
    """One request: when it was due, sent and done (seconds since the start), its status code, its reply, its kind.

    reply: None where it was not kept.
    """

    due_s: float
    sent_s: float
    done_s: float
    code: str
    reply: bytes | None
    kind: str = "warm"


@dataclass(frozen=True)
class Load:
    """What one run saw: its calls in due order, its duration, and the processor seconds of this process."""

    name: str
    calls: list[Call]
    wall_s: float
    cpu_s: float
    is_open: bool

    @property
    def latency_ms(self) -> F64:
        """Milliseconds from due to done of the calls that were answered, (n,) in due order."""
        return latencies_ms(self.calls)

    @property
    def late_ms(self) -> F64:
        """Milliseconds from due to sent of every call, (n,): what the generator itself was late."""
        return np.array([call.sent_s - call.due_s for call in self.calls]) * 1e3


@dataclass(frozen=True)
class Plan:
    """A run to make: `rate` arrivals a second, or `concurrency` callers where that is 0, for `seconds`.

    requests: sent in turn. channels: connections, calls go round over them.
    """

    address: str
    requests: Sequence[Request]
    seconds: float
    timeout_s: float
    channels: int
    rate: float = 0.0
    concurrency: int = 0
    arrivals: Arrivals = "poisson"
    seed: int = 0

    def run(self) -> Load:
        """Makes the run."""
        if self.rate:
            due_s = arrival_times(self.rate, self.seconds, self.arrivals, self.seed)
            return open_loop(
                self.address,
                self.requests,
                rate=self.rate,
                due_s=due_s,
                timeout_s=self.timeout_s,
                channels=self.channels,
            )
        return closed_loop(
            self.address,
            self.requests,
            concurrency=self.concurrency,
            seconds=self.seconds,
            timeout_s=self.timeout_s,
        )


def latencies_ms(calls: Sequence[Call], code: str = "OK") -> F64:
    """Milliseconds from due to done of the `calls` that ended with `code`, (n,)."""
    return np.array([call.done_s - call.due_s for call in calls if call.code == code]) * 1e3


def closed_loop(
    address: str, requests: Sequence[Request], *, concurrency: int, seconds: float, timeout_s: float
) -> Load:
    """Returns the run of `concurrency` callers, each with a connection, sending its next request when answered."""
    run = _Run(address, requests, concurrency, timeout_s)
    run.keep_every = 1
    with run:
        for _ in range(concurrency):
            run.send(run.now())
        while run.in_flight:
            for _ in range(run.wait(run.now() + 1.0)):
                if (now := run.now()) < seconds:
                    run.send(now)
    return run.load(f"closed, {concurrency}", is_open=False)


def open_loop(
    address: str, requests: Sequence[Request], *, rate: float, due_s: F64, timeout_s: float, channels: int = 8
) -> Load:
    """Returns the run of one request per entry of `due_s`, (n,) seconds since the start, ascending."""
    run = _Run(address, requests, channels, timeout_s)
    run.keep_every = 1 + len(due_s) // KEPT
    with run:
        due, n, at = [*due_s.tolist(), float("inf")], len(due_s), 0
        while at < n or run.in_flight:
            now = run.now()
            while due[at] <= now:
                run.send(due[at])
                at += 1
            run.wait(due[at] if at < n else run.now() + 1.0)
    return run.load(f"open, {rate:g}/s", is_open=True)


def arrival_times(rate: float, seconds: float, arrivals: Arrivals, seed: int) -> F64:
    """Returns when requests are due, (n,) ascending, from 0 to `seconds`, `rate` a second on average."""
    if arrivals == "fixed":
        return np.arange(int(rate * seconds)) / rate
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 2) + 100)
    times = np.cumsum(gaps)
    return times[times < seconds]


def run_apart(plan: Plan) -> dict[str, Any]:
    """Makes a run in a process of its own and returns its numbers, as `summary.summarise` gives them.

    Raises LhydraError when that process fails.
    """
    command = [sys.executable, "-m", "benchmarks.latency.generator"]
    done = subprocess.run(command, input=pickle.dumps(plan), capture_output=True, env=child_environment())
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing on stderr"]
        raise LhydraError(f"the load generator: {last[-1]}")
    numbers: dict[str, Any] = pickle.loads(done.stdout)
    return numbers


@dataclass
class _Run:
    """The calls of one run over its connections; a connection whose server leaves is replaced by another one."""

    address: str
    requests: Sequence[Request]
    channels: int
    timeout_s: float
    keep_every: int = 1
    calls: list[Call] = field(default_factory=list)
    _running: dict[int, tuple[float, float]] = field(default_factory=dict)  # token: due, sent
    _deadlines: deque[tuple[float, int]] = field(default_factory=deque)

    def __enter__(self) -> "_Run":
        blocks = {method: header_block(method, self.address, self.timeout_s) for method in (RECOMMEND, RECORD_PLAYS)}
        self._wire = [(blocks[request.method], framed(request.message)) for request in self.requests]
        self._connections = [Connection(self.address) for _ in range(self.channels)]
        self._leaving: list[Connection] = []
        self._token = itertools.count()
        self._unsent = 0
        gc.collect()
        gc.disable()  # a collection over all the kept replies would be counted as the server's time
        self._start, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s, self.cpu_s = self.now(), time.process_time() - self._cpu
        gc.enable()
        for connection in (*self._connections, *self._leaving):
            connection.close()

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def now(self) -> float:
        return time.perf_counter() - self._start

    def send(self, due_s: float) -> None:
        """Starts the next request, due at `due_s`."""
        token = next(self._token)
        now = self.now()
        self._running[token] = (due_s, now)
        self._deadlines.append((now + self.timeout_s, token))
        self._place(token)

    def _place(self, token: int) -> None:
        at = token % self.channels
        if self._connections[at].leaving:
            if not self._connections[at].closed:
                self._leaving.append(self._connections[at])
            try:
                self._connections[at] = Connection(self.address)
            except OSError:
                self._finish(token, "UNAVAILABLE", b"", self.now())
                self._unsent += 1
                return
        self._connections[at].call(token, *self._wire[token % len(self._wire)])

    def wait(self, until_s: float) -> int:
        """Waits for answers, until `until_s` at the latest; returns how many calls ended."""
        open_ones = [one for one in (*self._connections, *self._leaving) if not one.closed]
        for one in open_ones:
            if one.wants_to_write:
                one.flush()
        until_s = min(until_s, self._deadlines[0][0]) if self._deadlines else until_s
        by_socket = {one.socket: one for one in open_ones if not one.closed}
        writing = [one.socket for one in by_socket.values() if one.wants_to_write]
        timeout_s = max(0.0, until_s - self.now())
        readable, writable, _ = select.select(list(by_socket), writing, [], timeout_s)
        for ready in writable:
            by_socket[ready].flush()
        for ready in readable:
            by_socket[ready].receive()
        now, ended = self.now(), self._unsent
        self._unsent = 0
        for one in open_ones:
            for token, code, reply in one.done:
                self._finish(token, code, reply, now)
            ended += len(one.done)
            one.done.clear()
            again, one.unsent = one.unsent, []
            for token in again:  # the server never took them: they go to another connection, as gRPC's own would
                self._place(token)
        self._leaving = [one for one in self._leaving if not one.closed]
        while self._deadlines and (self._deadlines[0][1] not in self._running or self._deadlines[0][0] <= now):
            _, token = self._deadlines.popleft()
            if token in self._running:
                for one in (*self._connections, *self._leaving):
                    one.cancel(token)
                self._finish(token, "DEADLINE_EXCEEDED", b"", now)
                ended += 1
        return ended

    def _finish(self, token: int, code: str, reply: bytes, now: float) -> None:
        due_s, sent_s = self._running.pop(token)
        kind = self.requests[token % len(self.requests)].kind
        kept = reply if token % self.keep_every == 0 and code == "OK" else None
        self.calls.append(Call(due_s, sent_s, now, code, kept, kind))

    def load(self, name: str, *, is_open: bool) -> Load:
        return Load(name, sorted(self.calls, key=lambda call: call.due_s), self.wall_s, self.cpu_s, is_open)
