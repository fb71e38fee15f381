"""Batcher by real threads: everybody is answered, nobody twice, in order, and no wake-up is lost."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest

from lhydra_server.batcher import MAX_YIELDS, Batcher, _Queued
from tests.harness import until


class Desk:
    """Work that answers n by n², and notes who shared which turn. A turn with a request in `held` waits for `open`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: list[int] = []
        self.took_us: list[int] = []
        self.held: set[int] = set()
        self.bad: set[int] = set()
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self._alone = threading.Lock()

    def work(self, requests: Sequence[int]) -> list[int]:
        assert self._alone.acquire(blocking=False), "two batches at once"
        try:
            started_ns = time.perf_counter_ns()
            self.batches.append(list(requests))
            self.threads.append(threading.get_ident())
            if self.held.intersection(requests):
                self.entered.release()
                assert self.open.wait(30)
            if self.bad.intersection(requests):
                raise ZeroDivisionError(f"turn {requests}")
            self.took_us.append((time.perf_counter_ns() - started_ns) // 1000)
            return [n * n for n in requests]
        finally:
            self._alone.release()


class Caller(threading.Thread):
    """Asks once, in a thread of its own."""

    def __init__(self, batches: Batcher[int, int], request: int) -> None:
        super().__init__(daemon=True)
        self.batches, self.request = batches, request
        self.answer, self.took_us, self.error = 0, 0, Exception()
        self.start()

    def run(self) -> None:
        try:
            self.answer, self.took_us = self.batches.answer(self.request)
        except Exception as error:
            self.error = error

    def ended(self) -> "Caller":
        self.join(30)
        assert not self.is_alive(), "a request was forgotten"
        return self


def in_line(batches: Batcher[int, int], requests: Sequence[int]) -> list[Caller]:
    """Callers that wait behind a turn in progress, in this order."""
    callers = []
    for request in requests:
        before = len(batches._queue)
        callers.append(Caller(batches, request))
        until(lambda: len(batches._queue) == before + 1)  # noqa: B023
    return callers


@contextmanager
def a_turn_in_progress(desk: Desk, batches: Batcher[int, int]) -> Iterator[Caller]:
    """A turn that ends with the block."""
    desk.held.add(-1)
    first = Caller(batches, -1)
    assert desk.entered.acquire(timeout=30)
    yield first
    desk.open.set()


def test_who_comes_alone_is_answered_at_once_in_the_thread_that_asks() -> None:
    desk = Desk()
    batches = Batcher(desk.work, 4)
    assert [batches.answer(n)[0] for n in (3, 5, 7)] == [9, 25, 49]
    assert desk.batches == [[3], [5], [7]]
    assert set(desk.threads) == {threading.get_ident()}


@pytest.mark.parametrize("most", [1, 3, 16])
@pytest.mark.parametrize("waiting", [1, 2, 3, 7, 20])
def test_those_who_wait_share_the_next_turns_in_order_of_arrival(most: int, waiting: int) -> None:
    desk = Desk()
    begun: list[tuple[int, int]] = []
    batches = Batcher(desk.work, most, lambda size, behind: begun.append((size, behind)))
    requests = list(range(1, waiting + 1))
    with a_turn_in_progress(desk, batches) as first:
        callers = in_line(batches, requests)
        assert desk.batches == [[-1]]
    assert [caller.ended().answer for caller in (first, *callers)] == [1, *(n * n for n in requests)]
    shared = [requests[i : i + most] for i in range(0, waiting, most)]
    assert desk.batches == [[-1], *shared]
    assert begun == [(1, 0), *((len(turn), waiting - turn[-1]) for turn in shared)]
    took_us = [us for turn, us in zip(shared, desk.took_us[1:], strict=True) for _ in turn]
    assert all(caller.took_us >= us for caller, us in zip(callers, took_us, strict=True))  # at least its turn's
    assert not batches._queue


def test_a_turn_is_handed_on_when_it_ends() -> None:
    desk = Desk()
    batches = Batcher(desk.work, 2)
    with a_turn_in_progress(desk, batches) as first:
        callers = in_line(batches, [1, 2, 3])
        last = threading.Event()
        desk.held, held_open = {3}, desk.open
        desk.open = last
        held_open.set()  # the first turn's, which waits for that one still
        assert first.ended().answer == 1  # its thread does not do the work of others
        assert desk.entered.acquire(timeout=30)
        assert [caller.ended().answer for caller in callers[:2]] == [1, 4]  # nor are they held up by the next turn
    assert callers[2].ended().answer == 9
    assert desk.batches == [[-1], [1, 2], [3]]
    assert desk.threads == [caller.ident for caller in (first, callers[0], callers[2])]


def test_what_stops_the_work_reaches_all_of_its_turn_and_nobody_else() -> None:
    desk = Desk()
    batches = Batcher(desk.work, 3)
    desk.bad = {2}
    with a_turn_in_progress(desk, batches) as first:
        callers = in_line(batches, [1, 2, 3, 4, 5])
    first.ended()
    for caller in callers:
        caller.ended()
    assert [str(caller.error) for caller in callers[:3]] == ["turn [1, 2, 3]"] * 3
    assert all(isinstance(caller.error, ZeroDivisionError) for caller in callers[:3])
    assert [caller.answer for caller in callers[3:]] == [16, 25]
    with pytest.raises(ZeroDivisionError):
        batches.answer(2)
    assert batches.answer(6)[0] == 36


def test_whoever_takes_a_turn_that_is_not_its_own_is_not_stopped_by_it() -> None:
    desk = Desk()
    batches = Batcher(desk.work, 2)
    desk.bad, desk.held = {1}, {3}
    assert batches._computing.acquire(blocking=False)
    callers = in_line(batches, [1, 2, 3])
    batches._computing.release()  # between this and waking the first who waits, another comes
    another = Caller(batches, 4)
    assert desk.entered.acquire(timeout=30)
    desk.open.set()
    assert another.ended().answer == 16
    assert [str(caller.ended().error) for caller in callers[:2]] == ["turn [1, 2]"] * 2
    assert callers[2].ended().answer == 9
    assert desk.batches == [[1, 2], [3, 4]]


def test_work_that_answers_too_little_leaves_nobody_waiting() -> None:
    batches: Batcher[int, int] = Batcher(lambda requests: [], 2)
    with pytest.raises(ValueError, match="zip"):
        batches.answer(1)
    assert not batches._queue


class SlowToRelease:
    """A lock that takes a while to release: whoever is woken or comes too early tries it in vain meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, blocking: bool) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        time.sleep(0.002)
        self._lock.release()


@pytest.mark.parametrize("most", [1, 3])
def test_nobody_is_woken_before_the_turn_is_free(most: int) -> None:
    desk = Desk()
    batches = Batcher(desk.work, most)
    batches._computing = cast(Any, SlowToRelease())
    for _ in range(20):  # nobody comes between these who would wake the others
        callers = [Caller(batches, n) for n in range(6)]
        assert [caller.ended().answer for caller in callers] == [n * n for n in range(6)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("most", [1, 5])
def test_no_request_is_lost_or_mixed_up(most: int) -> None:
    n_threads, n_each = 16, 2_000
    desk = Desk()
    batches = Batcher(desk.work, most)
    wrong: list[int] = []

    def ask(number: int) -> None:
        for request in range(number * n_each, (number + 1) * n_each):
            if batches.answer(request)[0] != request * request:
                wrong.append(request)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert sorted(request for turn in desk.batches for request in turn) == list(range(n_threads * n_each))
    assert max(map(len, desk.batches)) == most
    assert not batches._queue


def test_calls_on_their_way_come_into_line_before_a_turn_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """While more are in flight than wait, others get the processor: what comes into line meanwhile shares the turn."""
    sizes: list[int] = []
    batches: Batcher[int, int] = Batcher(lambda requests: [*requests], 16, lambda size, behind: sizes.append(size))
    batches.in_flight = lambda: 3
    gave_way: list[int] = []

    def give_way() -> None:
        gave_way.append(1)
        if len(gave_way) <= 2:
            batches._queue.append(_Queued(len(gave_way)))

    monkeypatch.setattr("lhydra_server.batcher._yield_processor", give_way)
    assert batches.answer(7)[0] == 7
    assert (sizes, len(gave_way)) == ([3], 2)
    batches.in_flight = lambda: 9  # they never come: nobody is waited for without end
    assert batches.answer(8)[0] == 8
    assert (sizes, len(gave_way)) == ([3, 1], 2 + MAX_YIELDS)
