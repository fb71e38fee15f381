"""The figures of the benchmark of TLS and tokens: ratios are of one repeat, the interval is over rounds."""

import pytest

from benchmarks import access


def test_ratios_are_of_the_same_repeat_and_of_what_was_before() -> None:
    costs = [[100.0, 300.0], [50.0, 80.0], [1000.0, 20.0]]

    def measured(factor: float) -> list[list[dict[str, float]]]:
        return [[{"server_us": factor * one, "per_s": 1e6 / one} for one in costs_of] for costs_of in costs]

    kinds = {"plain": measured(1), "tls": measured(1.1), "before, plain": measured(0.8)}
    rounds = [{name: found[number] for name, found in kinds.items()} for number in range(len(costs))]
    told = access.told(rounds, 0)
    assert [told[name]["ratio"] for name in kinds] == [1, 1.1, 1.25]
    assert told["tls"]["ratio_interval"] == [1.1, 1.1]
    assert told["before, plain"]["ratio_interval"] == [1.25, 1.25]
    assert told["tls"]["server_us"] == pytest.approx(99)


def test_rounds_that_differ_widen_the_interval() -> None:
    rounds = [{"plain": [{"server_us": 100.0}] * 5, "tls": [{"server_us": cost}] * 5} for cost in (90.0, 100.0, 120.0)]
    told = access.told(rounds, 0)
    assert told["tls"]["ratio"] == 1
    assert told["tls"]["ratio_interval"] == [0.9, 1.2]
