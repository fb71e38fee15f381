"""One thread that does all the writing of a process, for callers who can wait only so long.

A lock that another process holds has no timeout in LMDB. Here one thread waits for it; the callers wait for the thread,
each until its own time ends, and take back what has not begun. What waited together shares one transaction.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from lhydra.errors import DeadlineExceeded, UserStoreError, complain

WAIT_S = 1.0  # for the lock that all writers share, and again for the end of a change that has begun
MAX_WAITING = 256  # changes that wait; more are refused at once
MAX_TOGETHER = 32  # changes in one transaction

Transaction = TypeVar("Transaction")
T = TypeVar("T")


class _Job(Generic[Transaction]):
    """A change that somebody waits for."""

    def __init__(self, change: Callable[[Transaction], Any], deadline_s: float) -> None:
        self.change, self.deadline_s = change, deadline_s
        self.done: Future[Any] = Future()


class Writer(Generic[Transaction]):
    """Makes changes in transactions, in order of their coming.

    Args:
        transact: returns a context that is one transaction: committed when its block ends, undone when that raises.
        name: of what is written to, for errors.
    """

    def __init__(self, transact: "Callable[[], AbstractContextManager[Transaction]]", name: str) -> None:
        self._transact, self._name = transact, name
        self._changed = threading.Condition()
        self._waiting: deque[_Job[Transaction]] = deque()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="users-write", daemon=True)
        self._thread.start()

    def write(self, change: Callable[[Transaction], T], deadline_s: float = math.inf, wait_s: float = WAIT_S) -> T:
        """Makes a change, alone or together with others; all of it or nothing.

        Args:
            change: made in a transaction; made again in another one where the first was undone for another's sake.
            deadline_s: when the caller leaves, on the clock of `time.monotonic`.
            wait_s: how long it may wait to begin.

        Returns:
            What `change` returned.

        Raises:
            UserStoreError: others wrote for so long, or too many wait: it was not made. Or it had begun and did not
                end in time: it may or may not be made.
            DeadlineExceeded: the same, where the deadline came first.
        """
        job, last_s = _Job(change, deadline_s), time.monotonic() + wait_s
        with self._changed:
            if self._ending:
                raise self._failed("it given up", "a store that is open")
            if len(self._waiting) >= MAX_WAITING:
                raise self._failed(f"{MAX_WAITING} writes that wait", "a write lock that its holder lets go")
            self._waiting.append(job)
            self._changed.notify()
        try:
            result: T = self._result(job, last_s)
            return result
        except TimeoutError:
            if self._withdrawn(job):
                self._check_deadline(job, "while others wrote")
                raise self._failed(f"others writing for {wait_s:g} s", "a write lock that its holder lets go") from None
        try:
            result = self._result(job, last_s + WAIT_S)
            return result
        except TimeoutError:
            self._check_deadline(job, "in the middle of writing: done or not")
            raise self._failed("a write that does not end", "a disk that answers") from None

    def stop(self) -> None:
        """Begins nothing more, and tells those who wait. Does not wait for what has begun."""
        with self._changed:
            self._ending = True
            self._changed.notify()
            refused = self._take(MAX_WAITING)
        for job in refused:
            job.done.set_exception(self._failed("it given up", "a store that is open"))

    def close(self, wait_s: float) -> None:
        """Makes the changes that wait and ends the thread; one that waits for a lock ends with the process.

        Args:
            wait_s: how long to wait for that.
        """
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(wait_s)
        self.stop()

    def _result(self, job: _Job[Transaction], last_s: float) -> Any:
        return job.done.result(max(0.0, min(last_s, job.deadline_s) - time.monotonic()))

    def _withdrawn(self, job: _Job[Transaction]) -> bool:
        """Takes back a change that has not begun; False where it has."""
        with self._changed:
            if not job.done.cancel():
                return False
            self._waiting.remove(job)
            return True

    def _check_deadline(self, job: _Job[Transaction], when: str) -> None:
        if time.monotonic() >= job.deadline_s:
            raise DeadlineExceeded(f"the deadline passed {when}") from None

    def _run(self) -> None:
        while self._some():
            jobs: list[_Job[Transaction]] | None = None
            try:
                with self._transact() as transaction:
                    jobs = self._begin()
                    results = [job.change(transaction) for job in jobs]
                for job, result in zip(jobs, results, strict=True):
                    job.done.set_result(result)
            except BaseException as error:
                if jobs is None or len(jobs) == 1:
                    for job in self._begin() if jobs is None else jobs:
                        job.done.set_exception(error)
                else:
                    for job in jobs:
                        self._make_alone(job)

    def _some(self) -> bool:
        """Waits until something waits; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            return bool(self._waiting)

    def _begin(self) -> list[_Job[Transaction]]:
        """Begins what waits, in order; what comes after its deadline is not."""
        with self._changed:
            taken = self._take(MAX_TOGETHER)
        begun = [job for job in taken if time.monotonic() < job.deadline_s]
        for job in taken:
            if job not in begun:
                job.done.set_exception(DeadlineExceeded("the deadline passed while others wrote"))
        return begun

    def _take(self, n: int) -> list[_Job[Transaction]]:
        taken = [self._waiting.popleft() for _ in range(min(n, len(self._waiting)))]
        return [job for job in taken if job.done.set_running_or_notify_cancel()]

    def _make_alone(self, job: _Job[Transaction]) -> None:
        """Makes a change that failed with others in a transaction of its own: one's fault is not the others'."""
        try:
            with self._transact() as transaction:
                result = job.change(transaction)
        except BaseException as error:
            job.done.set_exception(error)
        else:
            job.done.set_result(result)

    def _failed(self, found: str, expected: str) -> UserStoreError:
        return UserStoreError(complain(self._name, found, expected))
