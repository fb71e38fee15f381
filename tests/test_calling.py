"""Callers of benchmarks: what they ask for, that every call counts, and that a failed one is no silent one."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice

import pytest

from benchmarks.calling import Goes, cost_of_calls, users_of


def test_callers_divide_the_users_and_begin_anew() -> None:
    users = [f"u{n}" for n in range(10)]
    asked = [list(islice(users_of(users, number, 4, lambda _: True), 5)) for number in range(4)]
    assert Counter(user for own in asked for user in own) == Counter(users * 2)
    assert [own[0] for own in asked] == users[:4]


def test_every_call_counts_and_time_ends_them() -> None:
    calls: list[int] = []

    def made(number: int, goes: Goes) -> Iterator[object]:
        while goes(None):
            calls.append(number)
            yield number

    cost = cost_of_calls(os.getpid(), 3, 0.05, made)
    assert calls
    assert cost["per_s"] * 0.05 <= len(calls)  # it took no less than its seconds
    assert 0 < cost["client_us"] * len(calls) < 60e6


@pytest.mark.parametrize("how", ["raised", "yielded"])
def test_a_failed_call_ends_the_run(how: str) -> None:
    def one(number: int) -> object:
        if number != 1:
            return number
        if how == "raised":
            raise ConnectionError("gone")
        return ConnectionError("gone")

    calls: Callable[[int, Goes], Iterator[object]] = lambda number, _: (one(number) for _ in range(2))  # noqa: E731
    with pytest.raises(ConnectionError, match="gone"):
        cost_of_calls(os.getpid(), 2, 0.05, calls)
