"""How sure a mean over users is: the percentile bootstrap over users (Efron 1979), vectorised and seeded.

The same seed and number of users give the same resamples, so that intervals of several stages go together.
"""

import numpy as np
import numpy.typing as npt

from lhydra.evaluation.document import Difference, Interval

F64 = npt.NDArray[np.float64]
RESAMPLES = 1000
LEVEL = 0.95
_MAX_DRAWN = 1 << 22  # users drawn at a time


def resampled_means(values: F64, seed: int) -> F64:
    """Computes means of resamples.

    Args:
        values: (n, m) a row per user, n >= 1.
        seed: the same seed and n draw the same users.

    Returns:
        (RESAMPLES, m) the column means of each resample of the rows.
    """
    n = len(values)
    rng = np.random.default_rng([seed, n])
    means = np.empty((RESAMPLES, values.shape[1]))
    step = max(1, _MAX_DRAWN // n)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means[start : start + size] = times @ values / n
    return means


def intervals(values: F64, seed: int) -> list[Interval]:
    """Computes mean and 95 % interval of each column.

    Args:
        values: (n, m) a row per user; a user with a NaN is left out of all columns.
        seed: of the resamples.

    Returns:
        m intervals; without users every number is None, of one user the mean alone is known: no resample differs.
    """
    values = values[~np.isnan(values).any(axis=1)]
    if len(values) < 2:
        means = values[0].tolist() if len(values) else [None] * values.shape[1]
        return [{"mean": mean, "low": None, "high": None} for mean in means]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled_means(values, seed), (tail, 1 - tail), axis=0)
    columns = zip(values.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    return [{"mean": mean, "low": lower, "high": higher} for mean, lower, higher in columns]


def interval(values: F64, seed: int) -> Interval:
    """Computes mean and 95 % interval.

    Args:
        values: (n,) one per user; NaN is left out.
        seed: of the resamples.

    Returns:
        The interval, as `intervals` gives it.
    """
    return intervals(values[:, None], seed)[0]


def difference(a: F64, b: F64, seed: int) -> Difference:
    """Computes the mean of b - a and its paired 95 % interval.

    Args:
        a: (n,) one per user; NaN is left out.
        b: (n,) of the same users.
        seed: of the resamples.

    Returns:
        The difference, with numbers of None where `intervals` has them.
    """
    found = interval(b - a, seed)
    return {"difference": found["mean"], "low": found["low"], "high": found["high"]}


def sureness(low: float | None, high: float | None) -> str:
    """Writes how sure a difference is.

    Args:
        low: the lower end of its interval, None where one user was measured.
        high: its upper end, likewise.

    Returns:
        The interval, or that there is none.
    """
    return "of one user" if low is None or high is None else f"95 % interval {low:+.4f} to {high:+.4f}"


def span(low: float | None, high: float | None) -> str:
    """Writes the ends of an interval.

    Args:
        low: its lower end, None where fewer than two users were measured.
        high: its upper end, likewise.

    Returns:
        Both with their signs, or that there is no interval.
    """
    return "no interval" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
