"""Requests that wait for the processor are computed together, as one batch; no request waits for a batch to fill.

A worker computes on one core, so one batch is computed at a time. The first caller computes immediately in its own
thread. Callers that come meanwhile queue, and the next batch takes all that are queued, up to a limit (flat combining:
Hendler, Incze, Shavit & Tzafrir 2010). Alone, a request pays nothing for it; under load, what a batch costs however
many share it is paid once.

Before a batch is taken from the queue, the thread yields the processor to calls that have arrived but are not queued
yet (their thread is parsing, or answering): without that, the thread that computes keeps it, and batches of one follow
each other. It does not sleep: when no thread is ready, the yield returns at once.
"""

import ctypes
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
MAX_YIELDS = 20  # of the processor, before a batch is taken
MEAN_SMOOTHING = 0.05  # weight of the newest batch in the mean time per request


def _locked() -> Lock:
    lock = Lock()
    lock.acquire()
    return lock


@dataclass
class _Queued(Generic[Request, Answer]):
    request: Request
    queued_ns: int = field(default_factory=time.perf_counter_ns)
    answer: Answer | None = None
    error: Exception | None = None  # what stopped its batch
    done: bool = False
    sleeping: Lock = field(default_factory=_locked)  # released when it is done, or when its thread may compute


class Batcher(Generic[Request, Answer]):
    """Answers requests in batches.

    The attribute `in_flight` says how many calls there are, queued or on their way to the queue; by default none, so
    that no batch waits for any. `mean_us` is what a request takes of a batch, on average.

    Args:
        work: computes a batch; returns an answer for each request, in their order.
        most: requests in a batch.
        started: told the size of each batch before it is computed, and how many requests stay queued.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Request]], Sequence[Answer]],
        most: int,
        started: Callable[[int, int], None] = lambda size, behind: None,
    ) -> None:
        self._work, self._most, self._started = work, most, started
        self.in_flight: Callable[[], int] = lambda: 0
        self._queue: deque[_Queued[Request, Answer]] = deque()
        self._computing = Lock()
        self.mean_us = 1000.0

    def answer(self, request: Request) -> tuple[Answer, int]:
        """Answers one request; called from any thread.

        Args:
            request: what `work` gets.

        Returns:
            The answer, and for how many microseconds the request was queued or computed.

        Raises:
            Exception: whatever `work` raised for its batch.
        """
        own = _Queued[Request, Answer](request)
        self._queue.append(own)
        return self._wait(own)

    def answer_many(self, requests: Sequence[Request]) -> list[tuple[Answer, int] | Exception]:
        """Answers several requests, queued one after another with nothing between them; called from any thread.

        Args:
            requests: what `work` gets.

        Returns:
            For each what `answer` returns, or what it would raise.
        """
        queued = [_Queued[Request, Answer](request) for request in requests]
        self._queue.extend(queued)
        answers: list[tuple[Answer, int] | Exception] = []
        for own in queued:
            try:
                answers.append(self._wait(own))
            except Exception as error:
                answers.append(error)
        return answers

    def _wait(self, own: _Queued[Request, Answer]) -> tuple[Answer, int]:
        while not own.done:
            if not self._computing.acquire(blocking=False):
                own.sleeping.acquire()
                continue
            try:
                if not own.done:
                    self._compute_batch(own)
            finally:
                self._computing.release()
                with suppress(IndexError):  # the queue is empty
                    _wake(self._queue[0])
        if own.error is not None:
            raise own.error
        assert own.answer is not None
        return own.answer, (time.perf_counter_ns() - own.queued_ns) // 1000

    def _compute_batch(self, own: _Queued[Request, Answer]) -> None:
        for _ in range(MAX_YIELDS):
            if len(self._queue) >= min(self.in_flight(), self._most):
                break
            _yield_processor()
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._most))]
        started_ns = time.perf_counter_ns()
        try:
            self._started(len(batch), len(self._queue))
            for queued, answer in zip(batch, self._work([queued.request for queued in batch]), strict=True):
                queued.answer = answer
        except Exception as error:  # of every request in the batch, which need not hold that of this thread
            for queued in batch:
                queued.error = error
        finally:
            for queued in batch:
                queued.done = True
                if queued is not own:
                    _wake(queued)
        took_us = (time.perf_counter_ns() - started_ns) / 1000 / len(batch)
        self.mean_us += MEAN_SMOOTHING * (took_us - self.mean_us)


def _sched_yield() -> Callable[[], object]:
    """sched_yield through ctypes, which releases the interpreter lock meanwhile; `os.sched_yield` keeps it."""
    try:
        sched_yield: Callable[[], object] = ctypes.CDLL(None).sched_yield
    except (OSError, AttributeError, TypeError):
        return lambda: time.sleep(0)
    return sched_yield


_yield_processor = _sched_yield()


def _wake(queued: _Queued[Request, Answer]) -> None:
    with suppress(RuntimeError):  # awake already
        queued.sleeping.release()
