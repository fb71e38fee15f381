"""The picture of a result: one HTML page that needs nothing else. Needs plotly (the extra `eval`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.latency.results import Document, Figures, KindNumbers
from benchmarks.latency.summary import OUTSIDE, merged

SERVERS = ("#1f6f8b", "#e07a3f", "#c94c6e", "#8e5ea2", "#7a9e3d", "#555555")
PARTS = ("#264653", "#2a9d8f", "#8ab17d", "#e9c46a", "#f4a261", "#e76f51", "#9d4edd", "#6c757d", "#d0d4d9")
GOOD, BAD, LINE = "#7a9e3d", "#d1495b", "#999999"


@dataclass(frozen=True)
class Panel:
    """One of the pictures."""

    title: str
    traces: Sequence[Any]
    x: str = ""
    y: str = "ms"
    log: bool = False
    names: bool = False  # x are names, not numbers
    mark: float | None = None  # the knee


def write_plot(path: Path, document: Document) -> None:
    """Writes the page for a result of `benchmarks.latency`.

    Args:
        path: the HTML file; its folder is made.
        document: the result.
    """
    panels = [panel for panel in _panels(document) if panel.traces]
    rows = (len(panels) + 1) // 2
    figure = make_subplots(
        rows=max(1, rows),
        cols=2,
        subplot_titles=[panel.title for panel in panels],
        vertical_spacing=0.36 / max(1, rows),
        horizontal_spacing=0.09,
    )
    for number, panel in enumerate(panels):
        row, column = number // 2 + 1, number % 2 + 1
        for trace in panel.traces:
            trace.update(legendgroup=panel.title, legendgrouptitle={"text": panel.title})
            figure.add_trace(trace, row=row, col=column)
        figure.update_xaxes(title_text=panel.x, type="category" if panel.names else None, row=row, col=column)
        figure.update_yaxes(title_text=panel.y, row=row, col=column, **({"type": "log"} if panel.log else {}))
        if not panel.log:
            figure.update_yaxes(rangemode="tozero", row=row, col=column)
        if panel.mark:
            mark = {"color": LINE, "dash": "dot"}
            figure.add_vline(panel.mark, row=row, col=column, line=mark, annotation_text="knee")
    figure.update_layout(
        barmode="stack",
        template="plotly_white",
        height=140 + 380 * rows,
        title=_title(document),
        margin={"t": 120},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True, config={"responsive": True})


def _panels(document: Document) -> list[Panel]:
    return [*_closed(document), *_ramp(document), *_open(document)]


def _closed(document: Document) -> list[Panel]:
    everybody = {"lhydra": document["figures"], **document["peers"]}
    callers = document["settings"]["concurrency"]
    latency, throughput = [], []
    for number, (name, found) in enumerate(everybody.items()):
        colour = SERVERS[number % len(SERVERS)]
        for what, dash in (("p50 ms", "solid"), ("p99 ms", "dot")):
            latency += _line(f"{name}, {what}", callers, found, what, colour, dash)
        throughput += _line(name, callers, found, "per s", colour, "solid")
    return [
        Panel("closed loop: latency by callers", latency, "callers", log=True, names=True),
        Panel("closed loop: answers a second by callers", throughput, "callers", "a second", names=True),
    ]


def _line(name: str, callers: Sequence[int], found: Figures, what: str, colour: str, dash: str) -> list[Any]:
    points = [(n, point) for n in callers if (point := found.get(f"closed, {n}: {what}"))]
    spread = {
        "type": "data",
        "array": [point["max"] - point["median"] for _, point in points],
        "arrayminus": [point["median"] - point["min"] for _, point in points],
    }
    x, y = [n for n, _ in points], [point["median"] for _, point in points]
    return [go.Scatter(x=x, y=y, error_y=spread, name=name, line={"color": colour, "dash": dash})] if points else []


def _ramp(document: Document) -> list[Panel]:
    ramp = [run for run in document["runs"] if run["mode"] == "ramp"]
    answered, tail = [], []
    for name, colour, steps in (
        ("sustained", GOOD, [run for run in ramp if run["sustained"]]),
        ("not sustained", BAD, [run for run in ramp if not run["sustained"]]),
    ):
        marks = {"mode": "markers", "marker": {"color": colour, "size": 8}, "name": name}
        offered = [run["offered_per_s"] for run in steps]
        answered.append(go.Scatter(x=offered, y=[run["goodput_per_s"] for run in steps], **marks))
        tail.append(go.Scatter(x=offered, y=[run["latency_ms"]["p99"] for run in steps], showlegend=False, **marks))
    if not ramp:
        return []
    ends = [0, max(run["offered_per_s"] for run in ramp)]
    answered.append(
        go.Scatter(x=ends, y=ends, mode="lines", line={"color": LINE, "dash": "dot"}, name="all that was offered")
    )
    knee = document["figures"]["knee: per s"]["median"] if "knee: per s" in document["figures"] else None
    return [
        Panel("ramp: answered against offered", answered, "offered a second", "a second", mark=knee),
        Panel("ramp: p99 against offered", tail, "offered a second", log=True, mark=knee),
    ]


def _open(document: Document) -> list[Panel]:
    ours = [run for run in document["runs"] if run["server"] == "lhydra" and run["mode"] != "ramp"]
    runs = merged([run for run in ours if run["mode"] != "in-process"])
    staged = [run for run in runs if run["stages_us"]]
    names = sorted(dict.fromkeys(name for run in staged for name in run["stages_us"]), key=OUTSIDE.__eq__)
    stages = [
        go.Bar(
            x=[run["name"] for run in staged],
            y=[run["stages_us"][name]["p50"] if run["stages_us"].get(name) else None for run in staged],
            name=name,
            marker_color=PARTS[number % len(PARTS)],
        )
        for number, name in enumerate(names)
    ]
    kinds: Mapping[str, KindNumbers] = next((run["kinds"] for run in runs if run["mode"] == "mixed"), {})
    by_kind = [
        go.Bar(
            x=list(kinds),
            y=[numbers["latency_ms"][what] for numbers in kinds.values()],
            name=what,
            marker_color=colour,
            offsetgroup=what,
        )
        for what, colour in (("p50", SERVERS[0]), ("p99", SERVERS[1]))
        if kinds
    ]
    return [
        Panel("where the time goes: p50 of each stage", stages, y="us", names=True),
        Panel("mixed traffic by kind", by_kind, names=True),
    ]


def _title(document: Document) -> str:
    served, machine, asked = document["server"], document["machine"], document["settings"]
    spun = document["spinning"]
    return (
        f"Recommend, k {asked['k']}: {served['tracks']:,} tracks, {served['workers']} workers, {asked['repeats']}"
        f" repeats<br><sup>{machine['cores']} cores, {machine['processor']}; two spinning processes do"
        f" x{spun['before']} before, x{spun['after']} after; bundle {document['bundle_id']},"
        f" {document['measured']}</sup>"
    )
