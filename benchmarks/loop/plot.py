"""The picture of a drill: an SVG of two charts over weeks, a line and an interval's band for each service."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loop.service import LEARNING, NEVER
from lhydra.files import write_text

WIDTH, HEIGHT, LEFT, TOP, GAP = 380, 230, 60, 50, 90  # of a chart, in pixels, and what lies around it
COLOURS = {LEARNING: "#1f6f8b", NEVER: "#e07a3f"}
NAMES = {LEARNING: "learns every week", NEVER: "never learns"}
STEPS = 5  # ticks of y, about


def write_plot(path: Path, found: Mapping[str, Any]) -> None:
    """Draws both services over the weeks: the share of plays from lists, and regret.

    Args:
        path: the SVG file.
        found: by `figures`.
    """
    rows = found["rows"]
    charts = [
        _chart(
            LEFT, "share of plays that come from lists", [row["share"] for row in rows], lambda y: f"{100 * y:.0f} %"
        ),
        _chart(LEFT + WIDTH + GAP, "regret of a list", [row["regret"] for row in rows], lambda y: f"{y:.2f}"),
    ]
    width, height = LEFT + 2 * WIDTH + GAP + 20, TOP + HEIGHT + 60
    write_text(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#333"><rect width="{width}" height="{height}" fill="#fff"/>\n'
        + "\n".join(charts)
        + "\n</svg>\n",
    )


def _chart(left: int, title: str, weeks: Sequence[Mapping[str, float]], written: Callable[[float], str]) -> str:
    """One chart. The band is the interval of the difference, laid about the line of the service that learns."""
    band = [(one[NEVER] + one["low"], one[NEVER] + one["high"]) for one in weeks]
    values = [one[twin] for one in weeks for twin in (LEARNING, NEVER)] + [end for ends in band for end in ends]
    step = _step(max(values) / STEPS)
    top = step * (int(max(values) / step) + 1)

    def x(week: int) -> float:
        return left + WIDTH * week / max(1, len(weeks) - 1)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - value / top)

    def points(values: Sequence[tuple[int, float]]) -> str:
        return " ".join(f"{x(week):.1f},{y(value):.1f}" for week, value in values)

    parts = [f'<text x="{left}" y="{TOP - 28}" font-size="14" font-weight="bold">{title}</text>']
    for tick in range(round(top / step) + 1):
        at = y(tick * step)
        parts.append(f'<path d="M{left} {at:.1f}h{WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{written(tick * step)}</text>')
    for week in range(len(weeks)):
        parts.append(f'<text x="{x(week):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{week}</text>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 38}" text-anchor="middle">week</text>')
    edge = [*enumerate(low for low, _ in band), *reversed([*enumerate(high for _, high in band)])]
    parts.append(f'<polygon points="{points(edge)}" fill="{COLOURS[LEARNING]}" fill-opacity=".18"/>')
    for place, (twin, colour) in enumerate(COLOURS.items()):
        line = points([(week, one[twin]) for week, one in enumerate(weeks)])
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<path d="M{left + 150 * place} {TOP - 12}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 150 * place + 24}" y="{TOP - 8}">{NAMES[twin]}</text>')
    return "\n".join(parts)


def _step(least: float) -> float:
    """The smallest of 1, 2, 5, 10 ... times a power of ten that is not below `least`."""
    power = 10.0**-6
    while True:
        for times in (1, 2, 5):
            if times * power >= least:
                return times * power
        power *= 10
