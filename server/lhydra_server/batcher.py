"""Requests that wait for the processor are answered together, and nobody waits for company.

A worker computes on one core, so one call computes at a time. Whoever comes and finds nobody computing does so at
once, in its own thread; whoever comes meanwhile waits, and the next turn takes all who wait, up to a limit (flat
combining: Hendler, Incze, Shavit & Tzafrir 2010). Alone, a request pays nothing for it; under load, what a turn costs
however many share it is paid once.

Before a turn begins, calls that have arrived but are not in line yet (their thread is parsing, or answering) get the
processor: without that, the thread that computes keeps it, and batches of one follow each other. Nothing is slept away:
when no thread is ready, giving way returns at once.
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
GIVE_WAY = 20  # times at most before a turn
SMOOTHING = 0.05  # of the mean time per request


def _closed() -> Lock:
    lock = Lock()
    lock.acquire()
    return lock


@dataclass
class _Waiting(Generic[Request, Answer]):
    request: Request
    came_ns: int = field(default_factory=time.perf_counter_ns)
    answer: Answer | None = None
    error: Exception | None = None  # what stopped its turn
    done: bool = False
    door: Lock = field(default_factory=_closed)  # opened when the answer is there, or it may be one's turn


class Batcher(Generic[Request, Answer]):
    """Answers requests by `work`, which gets those of one turn, `most` at most, and returns an answer for each.

    started: told how many share a turn that begins, and how many wait behind it. The attribute `in_flight`: how many
    calls there are, in line or on their way there; without it nobody is waited upon.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Request]], Sequence[Answer]],
        most: int,
        started: Callable[[int, int], None] = lambda size, behind: None,
    ) -> None:
        self._work, self._most, self._started = work, most, started
        self.in_flight: Callable[[], int] = lambda: 0
        self._waiting: deque[_Waiting[Request, Answer]] = deque()
        self._turn = Lock()
        self.mean_us = 1000.0  # what a request takes of a turn

    def answer(self, request: Request) -> tuple[Answer, int]:
        """Returns the answer and for how many microseconds the request waited or was computed; raises what `work` does.

        Called from any thread.
        """
        mine = _Waiting[Request, Answer](request)
        self._waiting.append(mine)
        while not mine.done:
            if not self._turn.acquire(blocking=False):
                mine.door.acquire()
                continue
            try:
                if not mine.done:
                    self._take_turn(mine)
            finally:
                self._turn.release()
                with suppress(IndexError):  # nobody waits
                    _open(self._waiting[0])
        if mine.error is not None:
            raise mine.error
        assert mine.answer is not None
        return mine.answer, (time.perf_counter_ns() - mine.came_ns) // 1000

    def _take_turn(self, mine: _Waiting[Request, Answer]) -> None:
        for _ in range(GIVE_WAY):
            if len(self._waiting) >= min(self.in_flight(), self._most):
                break
            _give_way()
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]
        started_ns = time.perf_counter_ns()
        try:
            self._started(len(taken), len(self._waiting))
            for waiting, answer in zip(taken, self._work([waiting.request for waiting in taken]), strict=True):
                waiting.answer = answer
        except Exception as error:  # everybody's in this turn, which need not be that of whoever takes it
            for waiting in taken:
                waiting.error = error
        finally:
            for waiting in taken:
                waiting.done = True
                if waiting is not mine:
                    _open(waiting)
        took_us = (time.perf_counter_ns() - started_ns) / 1000 / len(taken)
        self.mean_us += SMOOTHING * (took_us - self.mean_us)


def _threads_first() -> Callable[[], object]:
    """sched_yield through ctypes, which lets go of the interpreter lock meanwhile; `os.sched_yield` keeps it."""
    try:
        give_way: Callable[[], object] = ctypes.CDLL(None).sched_yield
    except (OSError, AttributeError, TypeError):
        return lambda: time.sleep(0)
    return give_way


_give_way = _threads_first()


def _open(waiting: _Waiting[Request, Answer]) -> None:
    with suppress(RuntimeError):  # open already
        waiting.door.release()
