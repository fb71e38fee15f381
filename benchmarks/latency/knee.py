"""The saturation knee: the highest rate of arrivals that a server sustains."""

from collections.abc import Callable

from benchmarks.latency.results import Run

MIN_GOODPUT = 0.99  # of what was offered must be answered
GROWTH, PRECISION = 1.25, 0.04
LOWEST_SHARE = 1 / 64  # of the first rate: below, there is no knee


def sustained(run: Run, p99_ms: float) -> bool:
    """Whether a run of the open loop answered at least 99 % of what was offered, 99 % of that within `p99_ms`.

    Args:
        run: its requests, answers and latencies.
        p99_ms: milliseconds from due to done.

    Returns:
        Whether the rate is sustained; a run without requests is not.
    """
    p99 = run["latency_ms"]["p99"]
    return (
        run["requests"] > 0 and run["answered"] >= MIN_GOODPUT * run["requests"] and p99 is not None and p99 <= p99_ms
    )


def find_knee(sustains: Callable[[float], bool], start: float) -> float:
    """Searches for the highest rate that is sustained, 0 where none is.

    Up from `start` by a quarter each time (down, where that fails already) until a rate fails, then halving the ratio
    between the last that held and the first that failed until it is 4 %. A rate has failed when it failed
    twice: one disturbance of the machine does not end the ramp.

    Args:
        sustains: makes a run at a rate (requests a second) and says whether it was sustained.
        start: the first rate.

    Returns:
        Requests a second.
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
            if rate < start * LOWEST_SHARE:
                return 0.0
    while bad / good > 1 + PRECISION:
        rate = (good * bad) ** 0.5
        if holds(rate):
            good = rate
        else:
            bad = rate
    return good
