"""Compares the figures of two results, knowing how far repeats of the same thing lie apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.latency.results import Document, Figures
from lhydra_client.table import table

MIN_REPEATS = 3  # repeats on either side, or nothing is said
MIN_DIFFERENCE = 0.03  # differences below are nobody's business, however small the spread
BETTER, WORSE, SAME, UNKNOWN = "better", "WORSE", "no difference", "too few repeats"
SAME_MACHINE = ("cores", "processor", "memory_gib", "system")
SAME_SETTINGS = ("k", "depth", "workers", "seconds", "channels", "arrivals", "p99_ms", "closed_by")
SAME_SERVER = ("tracks", "dim")


@dataclass(frozen=True)
class Verdict:
    """The ratio of medians, now over before, and what it means."""

    ratio: float
    noise: float
    word: str


def judge(before: Sequence[float], now: Sequence[float], *, higher_is_better: bool) -> Verdict:
    """Compares the repeats of one figure.

    It is better or worse only where every repeat of one side is beyond every repeat of the other, and the medians lie
    further apart than the mean of the two spreads (largest minus smallest over the median) and than MIN_DIFFERENCE.

    Args:
        before: a value per repeat.
        now: a value per repeat.
        higher_is_better: the direction.

    Returns:
        The verdict; fewer than MIN_REPEATS on either side say nothing.
    """
    old, new = float(np.median(before)), float(np.median(now))
    if old <= 0 or new <= 0:
        return Verdict(1.0 if old == new else math.inf, 0.0, SAME if old == new else UNKNOWN)
    spreads = [float(np.ptp(side)) / middle for side, middle in ((before, old), (now, new))]
    noise = max(MIN_DIFFERENCE, sum(spreads) / 2)
    ratio = new / old
    if min(len(before), len(now)) < MIN_REPEATS:
        return Verdict(ratio, noise, UNKNOWN)
    apart = min(now) > max(before) or max(now) < min(before)
    if not apart or abs(math.log(ratio)) <= math.log1p(noise):
        return Verdict(ratio, noise, SAME)
    return Verdict(ratio, noise, BETTER if (ratio > 1) == higher_is_better else WORSE)


def compare(before: Figures, now: Figures) -> dict[str, Verdict]:
    """Returns a verdict on every figure that both results have.

    Args:
        before: the earlier figures.
        now: the new ones.

    Returns:
        Verdicts by the name of the figure.
    """
    return {
        name: judge(then["values"], figure["values"], higher_is_better=figure["better"] == "higher")
        for name, figure in now.items()
        if (then := before.get(name))
    }


def differences(baseline: Document, document: Document) -> list[str]:
    """Returns what makes the two results incomparable.

    Args:
        baseline: the earlier result.
        document: the new one.

    Returns:
        One line each; none where they compare.
    """
    found = []
    for part, names, old, new in (
        ("machine", SAME_MACHINE, baseline["machine"], document["machine"]),
        ("settings", SAME_SETTINGS, baseline["settings"], document["settings"]),
        ("server", SAME_SERVER, baseline["server"], document["server"]),
    ):
        found += [
            f"NOT COMPARABLE: {part}: {name} was {old.get(name)}, is {new.get(name)}"
            for name in names
            if old.get(name) != new.get(name)
        ]
    for name, other in (("the baseline", baseline), ("this run", document)):
        if not other["spinning"]["free"]:
            found.append(f"NOT COMPARABLE: the cores were not free during {name}")
    return found


def report(verdicts: Mapping[str, Verdict], before: Figures, now: Figures) -> str:
    """Returns the table of a comparison that people read.

    Args:
        verdicts: from `compare`.
        before: the earlier figures.
        now: the new ones.

    Returns:
        Some lines.
    """
    rows = [
        (
            name,
            f"{before[name]['median']:.4g}",
            f"{now[name]['median']:.4g}",
            f"{verdict.ratio:.3f}",
            f"±{100 * verdict.noise:.0f} %",
            verdict.word,
        )
        for name, verdict in verdicts.items()
    ]
    return table(("against the baseline", "was", "is", "ratio", "noise", "verdict"), rows, right=range(1, 5), widest=60)
