"""Makes load and notes what came of it: closed loop (callers that wait for answers), open loop (arrivals that do not).

In the open loop every latency counts from the moment the request was due, so a stall of the server is felt by all
requests that should have gone out meanwhile (no coordinated omission). Replies are kept as bytes and read later.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import grpc
import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Arrivals = Literal["poisson", "fixed"]

METHOD = "/lhydra.v1.Recommender/Recommend"
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: a channel stays on one worker
    ("grpc.enable_retries", 0),  # a failed request is counted, not hidden
)
SENDERS = 128  # threads of the open loop: more requests than this in flight are sent late, and reported so


class Call(NamedTuple):
    """One request: when it was due, sent and done (seconds since the start), its status code, its reply."""

    due_s: float
    sent_s: float
    done_s: float
    code: str
    reply: bytes


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
        return np.array([call.done_s - call.due_s for call in self.calls if call.code == "OK"]) * 1e3

    @property
    def late_ms(self) -> F64:
        """Milliseconds from due to sent of every call, (n,): what the generator itself was late."""
        return np.array([call.sent_s - call.due_s for call in self.calls]) * 1e3


@contextmanager
def open_channels(address: str, n: int) -> Iterator[list[grpc.Channel]]:
    """Yields n channels to `address`, each with a connection of its own."""
    channels = [grpc.insecure_channel(address, CHANNEL_OPTIONS) for _ in range(n)]
    try:
        yield channels
    finally:
        for channel in channels:
            channel.close()


def closed_loop(
    channels: Sequence[grpc.Channel],
    requests: Sequence[bytes],
    *,
    concurrency: int,
    seconds: float,
    timeout_s: float,
) -> Load:
    """Returns the run of `concurrency` callers, each sending its next request when the last one is answered."""
    ask = _askers(channels, timeout_s)

    def caller(first: int, start: float) -> list[Call]:
        calls: list[Call] = []
        for i in itertools.count(first, concurrency):
            sent = time.perf_counter() - start
            if sent >= seconds:
                return calls
            code, reply = ask[first % len(ask)](requests[i % len(requests)])
            calls.append(Call(sent, sent, time.perf_counter() - start, code, reply))
        raise AssertionError

    return _measured(f"closed, {concurrency}", caller, concurrency, is_open=False)


def open_loop(
    channels: Sequence[grpc.Channel],
    requests: Sequence[bytes],
    *,
    rate: float,
    due_s: F64,
    timeout_s: float,
    senders: int = SENDERS,
) -> Load:
    """Returns the run of one request per entry of `due_s`, (n,) seconds since the start, ascending.

    Each sender takes the next arrival, sleeps until it is due and waits for its answer.
    """
    ask = _askers(channels, timeout_s)
    turn = itertools.count()  # one next() is one step of the interpreter: no two senders get the same

    def sender(_: int, start: float) -> list[Call]:
        calls = []
        while (i := next(turn)) < len(due_s):
            due = float(due_s[i])
            wait = start + due - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            sent = time.perf_counter() - start
            code, reply = ask[i % len(ask)](requests[i % len(requests)])
            calls.append(Call(due, sent, time.perf_counter() - start, code, reply))
        return calls

    return _measured(f"open, {rate:g}/s", sender, min(senders, max(1, len(due_s))), is_open=True)


def arrival_times(rate: float, seconds: float, arrivals: Arrivals, seed: int) -> F64:
    """Returns when requests are due, (n,) ascending, from 0 to `seconds`, `rate` a second on average."""
    if arrivals == "fixed":
        return np.arange(int(rate * seconds)) / rate
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 2) + 100)
    times = np.cumsum(gaps)
    return times[times < seconds]


def _askers(channels: Sequence[grpc.Channel], timeout_s: float) -> list[Callable[[bytes], tuple[str, bytes]]]:
    def asker(channel: grpc.Channel) -> Callable[[bytes], tuple[str, bytes]]:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)

        def ask(request: bytes) -> tuple[str, bytes]:
            try:
                return "OK", call(request, timeout=timeout_s)
            except grpc.RpcError as error:
                return error.code().name, b""

        return ask

    return [asker(channel) for channel in channels]


def _measured(name: str, work: Callable[[int, float], list[Call]], threads: int, *, is_open: bool) -> Load:
    gc.collect()
    gc.disable()  # a collection over all the kept replies would be counted as the server's time
    try:
        with ThreadPoolExecutor(threads) as pool:
            start, cpu = time.perf_counter(), time.process_time()
            parts = list(pool.map(lambda i: work(i, start), range(threads)))
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    finally:
        gc.enable()
    return Load(name, sorted(itertools.chain(*parts)), wall_s, cpu_s, is_open)
