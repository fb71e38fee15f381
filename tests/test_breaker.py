"""The circuit breaker, moment by moment on a clock of its own, and against many threads."""

import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra.users.breaker import FAILURES, LONGEST_REST_S, REST_S, Breaker, BreakerOpen


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def module(self) -> SimpleNamespace:
        """What may stand for the module `time`: nobody sleeps."""
        return SimpleNamespace(monotonic=self, sleep=lambda seconds: None)


class Lost(Exception):
    pass


def attempt(breaker: Breaker, outcome: type[Exception] | None = None) -> bool:
    """Whether the attempt was made; it ends as told."""
    made = False
    try:
        with breaker.attempt():
            made = True
            if outcome:
                raise outcome
    except (Lost, KeyError, BreakerOpen):
        pass
    return made


def opened(clock: Clock) -> Breaker:
    breaker = Breaker("it", (Lost,), clock=clock)
    for _ in range(FAILURES):
        assert attempt(breaker, Lost)
    assert breaker.state == "open"
    return breaker


def test_only_failures_in_a_row_open_it() -> None:
    breaker = Breaker("it", (Lost,))
    for outcome in [*[Lost] * (FAILURES - 1), None] * 3 + [*[Lost] * (FAILURES - 1), KeyError] * 3:
        assert attempt(breaker, outcome)
        assert breaker.state == "closed"


def test_the_block_raises_what_it_raises() -> None:
    breaker = Breaker("it", (Lost,))
    for kind in (Lost, KeyError):
        with pytest.raises(kind), breaker.attempt():
            raise kind


def test_open_refuses_until_it_has_rested_and_each_failed_attempt_doubles_the_rest() -> None:
    clock = Clock()
    breaker, rest = opened(clock), REST_S
    for _ in range(6):
        clock.now += rest - 0.01
        assert not attempt(breaker)
        clock.now += 0.02
        assert breaker.state == "half open"
        assert attempt(breaker, Lost)
        assert not attempt(breaker)
        rest = min(2 * rest, LONGEST_REST_S)
    clock.now += rest
    assert attempt(breaker)
    assert breaker.state == "closed"
    assert all(attempt(breaker, Lost) for _ in range(FAILURES))  # from the start again
    clock.now += REST_S
    assert attempt(breaker)


def test_an_answer_that_is_no_success_closes_it_too() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += REST_S
    assert attempt(breaker, KeyError)
    assert breaker.state == "closed"


def test_half_open_tries_one_at_a_time_from_any_number_of_threads() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += REST_S
    n, made = 16, []
    arrived, refused = threading.Barrier(n), threading.Semaphore(0)

    def run() -> None:
        arrived.wait()
        try:
            with breaker.attempt():
                made.append(1)
                for _ in range(n - 1):  # the attempt lasts until all others were refused
                    assert refused.acquire(timeout=20)
        except BreakerOpen:
            refused.release()

    threads = [threading.Thread(target=run) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert breaker.state == "closed"


def test_what_began_before_it_opened_neither_closes_it_nor_prolongs_the_rest() -> None:
    for late in (None, Lost):
        clock = Clock()
        breaker = Breaker("it", (Lost,), clock=clock)
        try:
            with breaker.attempt():
                for _ in range(FAILURES):
                    attempt(breaker, Lost)
                clock.now += REST_S / 2
                if late:
                    raise late
        except Lost:
            pass
        assert breaker.state == "open"
        clock.now += REST_S / 2
        assert attempt(breaker)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.3, REST_S, LONGEST_REST_S]), st.sampled_from([None, Lost, KeyError])))
)
def test_it_follows_its_rules_in_any_order(steps: list[tuple[float, type[Exception] | None]]) -> None:
    clock = Clock()
    breaker = Breaker("it", (Lost,), clock=clock)
    failures, rest, until = 0, REST_S, 0.0  # the rules, said once more
    for waited, outcome in steps:
        clock.now += waited
        allowed = failures < FAILURES or clock.now >= until
        assert attempt(breaker, outcome) == allowed
        if allowed and outcome is Lost:
            rest = min(2 * rest, LONGEST_REST_S) if failures >= FAILURES else REST_S
            failures += 1
            until = clock.now + rest
        elif allowed:
            failures = 0
        assert (breaker.state == "closed") == (failures < FAILURES)
