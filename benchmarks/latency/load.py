"""Makes load and notes what came of it: closed loop (callers that wait for answers), open loop (arrivals that do not).

In the open loop every latency counts from the moment a request was due, so a stall of the server, or of this program,
is felt by all requests that should have gone out meanwhile (no coordinated omission). One thread that never waits for
an answer; replies are kept as bytes and read later. `run_in_subprocess` does it in a process of its own.
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
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.latency.http2 import Connection, framed, header_block
from benchmarks.latency.own_server import child_environment
from benchmarks.latency.results import Run
from lhydra.errors import LhydraError

F64 = npt.NDArray[np.float64]
Arrivals = Literal["poisson", "fixed"]

RECOMMEND, RECORD_PLAYS = "/lhydra.v1.Recommender/Recommend", "/lhydra.v1.Recommender/RecordPlays"
FEEDBACK = "feedback"  # the kind of traffic that is answered by something else than tracks
MAX_KEPT_REPLIES = 20_000  # replies of a run that are kept to be read afterwards, spread over it


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
    """Returns the latencies of the calls that ended with a code.

    Args:
        calls: in any order.
        code: name of a gRPC status.

    Returns:
        (n,) float64 milliseconds from due to done, in the order of `calls`.
    """
    return np.array([call.done_s - call.due_s for call in calls if call.code == code]) * 1e3


def closed_loop(
    address: str, requests: Sequence[Request], *, concurrency: int, seconds: float, timeout_s: float
) -> Load:
    """Makes a run of callers that send their next request when the last one was answered.

    Args:
        address: HOST:PORT.
        requests: sent in turn.
        concurrency: callers, each with a connection of its own.
        seconds: after which nothing more is sent.
        timeout_s: deadline of a call.

    Returns:
        The calls; due when they were sent.
    """
    run = LoadRun(address, requests, concurrency, timeout_s)
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
    """Makes a run of requests that are sent when they are due, whether or not earlier ones were answered.

    Args:
        address: HOST:PORT.
        requests: sent in turn.
        rate: arrivals a second, for the name of the run.
        due_s: (n,) seconds since the start, ascending; one request each.
        timeout_s: deadline of a call, from when it is sent.
        channels: connections; calls go round over them.

    Returns:
        The calls, in due order.
    """
    run = LoadRun(address, requests, channels, timeout_s)
    run.keep_every = 1 + len(due_s) // MAX_KEPT_REPLIES
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
    """Draws when requests are due.

    Args:
        rate: a second, on average.
        seconds: the end.
        arrivals: "poisson" for exponential gaps, "fixed" for even ones.
        seed: of the gaps.

    Returns:
        (n,) float64 seconds from 0 to `seconds`, ascending.
    """
    if arrivals == "fixed":
        return np.arange(int(rate * seconds)) / rate
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 2) + 100)
    times = np.cumsum(gaps)
    return times[times < seconds]


def run_in_subprocess(plan: Plan) -> Run:
    """Makes a run in a process of its own, so that it shares no interpreter lock with anything else.

    Args:
        plan: the run to make.

    Returns:
        Its numbers, as `summary.summarise` gives them.

    Raises:
        LhydraError: that process failed; says its last line.
    """
    command = [sys.executable, "-m", "benchmarks.latency.generator"]
    done = subprocess.run(command, input=pickle.dumps(plan), capture_output=True, env=child_environment())
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing on stderr"]
        raise LhydraError(f"the load generator: {last[-1]}")
    numbers: Run = pickle.loads(done.stdout)
    return numbers


@dataclass
class LoadRun:
    """The calls of one run over its connections; a connection whose server leaves is replaced by another one."""

    address: str
    requests: Sequence[Request]
    channels: int
    timeout_s: float
    keep_every: int = 1
    calls: list[Call] = field(default_factory=list)
    _running: dict[int, tuple[float, float]] = field(default_factory=dict)  # token: due, sent
    _deadlines: deque[tuple[float, int]] = field(default_factory=deque)

    def __enter__(self) -> "LoadRun":
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
        """Calls that have not ended."""
        return len(self._running)

    def now(self) -> float:
        """Returns the seconds since the start."""
        return time.perf_counter() - self._start

    def send(self, due_s: float) -> None:
        """Starts the next request.

        Args:
            due_s: when it was due, seconds since the start.
        """
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
        """Waits for answers.

        Args:
            until_s: the latest end of the wait, seconds since the start.

        Returns:
            How many calls ended.
        """
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
        """Returns what the run saw, once it has ended.

        Args:
            name: of the run.
            is_open: whether requests were due at times of their own.

        Returns:
            The calls in due order.
        """
        return Load(name, sorted(self.calls, key=lambda call: call.due_s), self.wall_s, self.cpu_s, is_open)
