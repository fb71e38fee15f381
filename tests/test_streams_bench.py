"""The figures of the benchmark of streams: ratios are of one repeat, told by their median."""

import pytest

from benchmarks import streams


def test_ratios_are_of_the_same_repeat() -> None:
    speeds = [100.0, 10.0, 1000.0, 50.0, 400.0]
    found = {
        name: [{"per_s": factor * one, "server_us": 1e6 / one} for one, factor in zip(speeds, factors, strict=True)]
        for name, factors in {"calls": [1.0] * 5, "steady": [1.3] * 5, "mixed": [0.5, 2.0, 1.5, 1.0, 1.1]}.items()
    }
    told = streams.told(found, 0)
    assert told["calls"]["ratio"] == 1
    assert [told["steady"]["ratio"], *told["steady"]["ratio_interval"]] == pytest.approx([1.3] * 3)
    assert told["mixed"]["ratio"] == 1.1
    low, high = told["mixed"]["ratio_interval"]
    assert 0.5 <= low < 1.1 < high <= 2.0
    assert told["steady"]["per_s"] == 130
