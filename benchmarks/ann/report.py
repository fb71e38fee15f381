"""Rows, ratios and tables of the comparison."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.ann.measure import TARGET, Entrant, Round, label, share, shares
from lhydra_client.table import table
from lhydra_index_builder.sweep import NEIGHBOURS, Truth

TIMES, BUILD_CLOCKS = ("p50_us", "p99_us", "qps_1", "qps_2"), ("wall", "cpu")


@dataclass(frozen=True)
class Spread:
    """Median, least and most over the rounds."""

    median: float
    min: float
    max: float


def row_of(entrant: Entrant, rounds: Sequence[Round], truth: Truth, n: int) -> dict[str, Any]:
    """Returns everything about an entrant, as the JSON has it.

    Args:
        entrant: with its effort.
        rounds: its times.
        truth: of the users whose coverage and recall are told.
        n: tracks.

    Returns:
        Numbers by name; times have median, min and max.
    """
    search = entrant.built.with_effort(entrant.effort)
    found = [search(query) for query in truth.queries]
    times = {name: asdict(spread([getattr(one, name) for one in rounds])) for name in TIMES}
    return {
        "name": entrant.name,
        "recipe": entrant.recipe,
        "effort": dict(entrant.effort),
        "setting": label(entrant),
        "coverage_when_chosen": entrant.tuned,
        "reached": entrant.tuned >= TARGET,
        "coverage": share(found, truth.nearest),
        "recall@100": share([rows[:NEIGHBOURS] for rows in found], truth.nearest),
        "users_below_half": round(float((shares(found, truth.nearest) < 0.5).mean()), 4),
        **times,
        "calls": [one.calls for one in rounds],
        "bytes_per_track": round(entrant.built.size / n, 1),
        "build_wall_s": entrant.build_wall_s,
        "build_cpu_s": entrant.build_cpu_s,
    }


def spread(values: Sequence[float]) -> Spread:
    """Returns median, least and most.

    Args:
        values: one per round.

    Returns:
        The three, rounded.
    """
    return Spread(*(round(float(value), 1) for value in (statistics.median(values), min(values), max(values))))


def ratios(row: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float]:
    """Returns a row's numbers over those of another one.

    Args:
        row: from `row_of`.
        base: the row to compare with.

    Returns:
        Ratios by name; without those that either row lacks.
    """
    medians = {key: row[key]["median"] / base[key]["median"] for key in TIMES}
    plain = {
        key: row[key] / base[key]
        for key in ("bytes_per_track", "build_wall_s")
        if row[key] is not None and base[key]  # None or 0: nothing to compare with
    }
    return {key: round(value, 3) for key, value in (medians | plain).items()}


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the tables that people read; x: over ours.

    Args:
        rows: from `row_of`, with `to_ours`.

    Returns:
        Some lines.
    """

    def spelled(row: Mapping[str, Any], key: str) -> tuple[str, str]:
        value = row[key]
        return f"{value['median']:,.0f} ({value['min']:,.0f}..{value['max']:,.0f})", f"{row['to_ours'][key]:.2f}"

    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    found, timed = [], []
    for row in rows:
        shown = (f"{row[key]:.4f}" + ("" if row["reached"] else " short") for key in ("coverage", "recall@100"))
        size = (f"{row['bytes_per_track']:.0f}", f"{row['to_ours']['bytes_per_track']:.1f}")
        below = f"{row['users_below_half']:.1%}"
        found.append(
            (row["name"], row["setting"], *shown, below, *size, *(seconds(row[f"build_{of}_s"]) for of in BUILD_CLOCKS))
        )
        timed.append((row["name"], *(cell for key in TIMES for cell in spelled(row, key))))
    header = ("", "setting", "coverage", "recall@100", "users < .5", "B/track", "x", "build s", "cpu s")
    times = ("", "p50 us", "x", "p99 us", "x", "per s, 1 thread", "x", "2 threads", "x")
    return f"{table(header, found)}\n\n{table(times, timed)}"
