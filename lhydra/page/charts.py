"""Charts: what page.js draws, as JSON. plotly reads a little HTML of its own, so every label is escaped for it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lhydra.page.blocks import Chart
from lhydra.page.words import interval, number

Series = dict[str, Any]
SHORT_NUMBER = ".3~f"  # how plotly writes ticks: d3-format


def dot_series(
    name: str, values: Sequence[Mapping[str, Any] | None], hollow: bool = False, signed: bool = False
) -> Series:
    """Makes a series of `dots`.

    Args:
        name: for the legend.
        values: {"mean", "low", "high"} of each row; None leaves its row empty.
        hollow: whether the dots are circles.
        signed: whether the texts have signs.

    Returns:
        The series.
    """
    points = []
    for value in values:
        found = value or {}
        text = f"{number(found.get('mean'), signed=signed)} {interval(found, signed)}".strip()
        points.append({**{key: found.get(key) for key in ("mean", "low", "high")}, "text": text})
    return {"name": name, "open": hollow, "points": points}


def dots(
    labels: Sequence[str],
    tones: Sequence[str],
    series: Sequence[Series],
    x: str,
    reference: float | None = None,
    span: Sequence[float] | None = None,
) -> Chart:
    """Draws a dot with its interval per label and series.

    Args:
        labels: of the rows, from above.
        tones: colour of each row: `accent`, `quiet` or `bad`.
        series: of `dot_series`.
        x: title of the axis.
        reference: where the dotted line is.
        span: least and greatest of the axis; None for what the dots need.

    Returns:
        The chart.
    """
    spec: dict[str, Any] = {
        "kind": "dots",
        "labels": list(map(_escaped, labels)),
        "tones": tones,
        "series": series,
        "x": _escaped(x),
    }
    spec |= {"reference": reference, "range": span, "format": SHORT_NUMBER}
    return Chart(spec, f"{x} of {', '.join(labels)}")


def line_series(name: str, x: Sequence[Any], y: Sequence[Any], tone: str = "accent", marked: bool = False) -> Series:
    """Makes a series of `lines`.

    Args:
        name: for the legend.
        x: of each point.
        y: of each point; None leaves a gap.
        tone: `accent`, `quiet` or `dashed`.
        marked: whether the points are marked.

    Returns:
        The series.
    """
    return {"name": _escaped(name), "x": list(x), "y": list(y), "tone": tone, "marked": marked}


def lines(
    x: str,
    y: str,
    series: Sequence[Series],
    depths: Sequence[float] = (),
    ticks: str = ".2~f",
    span: Sequence[float] | None = None,
) -> Chart:
    """Draws lines.

    Args:
        x: title of the axis.
        y: title of the other axis.
        series: of `line_series`.
        depths: of a shortlist; they double from one to the next, so their axis is logarithmic.
        ticks: how plotly writes numbers of y.
        span: least and greatest of both axes; None for what the lines need.

    Returns:
        The chart.
    """
    marked = [dict(one, marked=one["marked"] or (bool(depths) and one["tone"] == "accent")) for one in series]
    spec = {"kind": "lines", "x": _escaped(x), "y": _escaped(y), "series": marked, "format": ticks, "range": span}
    return Chart(spec | ({"ticks": list(depths), "log": True} if depths else {}), f"{y} by {x}")


def curves(x: str, y: str, steps: Sequence[str], values: Mapping[str, Sequence[float | None]]) -> Chart:
    """Draws a line per name over named steps.

    Args:
        x: title of the axis.
        y: title of the other axis.
        steps: what stands below each step.
        values: by name, one per step; the first names are drawn boldest, four look different.

    Returns:
        The chart.
    """
    tones, places = ("accent", "quiet", "dashed", "dotted"), range(len(steps))
    series = [
        line_series(name, places, own, tones[min(n, len(tones) - 1)], marked=True)
        for n, (name, own) in enumerate(values.items())
    ]
    chart = lines(x, y, series)
    return Chart({**chart.spec, "ticks": list(places), "tick_names": list(map(_escaped, steps))}, chart.alternative)


def bars(
    labels: Sequence[str],
    parts: Iterable[tuple[str, str, Sequence[int]]],
    totals: Sequence[int],
) -> Chart:
    """Draws a bar per label, divided into parts.

    Args:
        labels: of the rows, from above.
        parts: (name, tone, count of each row).
        totals: what each row's counts are shares of, above 0.

    Returns:
        The chart.
    """
    drawn = [
        {
            "name": name,
            "tone": tone,
            "counts": list(counts),
            "shares": [count / total for count, total in zip(counts, totals, strict=True)],
        }
        for name, tone, counts in parts
    ]
    spec = {"kind": "bars", "labels": list(map(_escaped, labels)), "parts": drawn, "x": "share of targets"}
    return Chart(spec, ", ".join(labels))


def columns(
    starts: Sequence[str], heights: Sequence[float], notes: Sequence[str], x: str, y: str, log: bool = False
) -> Chart:
    """Draws a column per step of an axis of time, or per bin.

    Args:
        starts: where each column begins: moments as ISO 8601, or the labels of bins.
        heights: of the columns, from 0.
        notes: what each column says when pointed at.
        x: title of the axis; "" for moments, which need none.
        y: title of the other axis.
        log: whether the heights are on a logarithmic axis.

    Returns:
        The chart.
    """
    spec = {"kind": "columns", "heights": list(heights), "notes": list(map(_escaped, notes)), "log": log}
    spec |= {"starts": list(map(_escaped, starts)), "x": _escaped(x), "y": _escaped(y)}
    return Chart(spec, f"{y} by {x or 'time'}")


def log_lines(x: str, y: str, series: Sequence[Series], ticks: Mapping[str, float]) -> Chart:
    """Draws lines on two logarithmic axes.

    Args:
        x: title of the axis.
        y: title of the other axis.
        series: of `line_series`, above 0.
        ticks: what stands at which x.

    Returns:
        The chart.
    """
    chart = lines(x, y, series, list(ticks.values()), ".2~g")
    return Chart({**chart.spec, "tick_names": list(map(_escaped, ticks)), "log_y": True}, chart.alternative)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
