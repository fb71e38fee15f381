"""The saturation knee: the highest rate of arrivals that a server sustains."""

from collections.abc import Callable, Mapping
from typing import Any

GOODPUT = 0.99  # of what was offered must be answered
GROWTH, PRECISION = 1.25, 0.04
LOWEST = 1 / 64  # of the first rate: below, there is no knee


def sustained(run: Mapping[str, Any], p99_ms: float) -> bool:
    """Whether a run of the open loop answered at least 99 % of what was offered, 99 % of that within `p99_ms`."""
    p99 = run["latency_ms"]["p99"]
    return run["requests"] > 0 and run["answered"] >= GOODPUT * run["requests"] and p99 is not None and p99 <= p99_ms


def find_knee(sustains: Callable[[float], bool], start: float) -> float:
    """Returns the highest rate found that is sustained, 0 where none is.

    Up from `start` by a quarter each time (down, where that fails already) until a rate fails, then halving the ratio
    between the last that held and the first that failed until it is 4 %. A rate has failed when it failed
    twice: one disturbance of the machine does not end the ramp.
    """

    def holds(rate: float) -> bool:
        return sustains(rate) or sustains(rate)

    good, bad, rate = 0.0, float("inf"), start
    while not good or bad == float("inf"):
        if holds(rate):
            good = rate
            rate *= GROWTH
        else:
            bad = rate
            rate /= GROWTH
            if rate < start * LOWEST:
                return 0.0
    while bad / good > 1 + PRECISION:
        rate = (good * bad) ** 0.5
        if holds(rate):
            good = rate
        else:
            bad = rate
    return good
