"""The picture of a result: one HTML page that needs nothing else. Needs plotly (the extra `eval`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.summary import OUTSIDE, merged

TITLES = (
    "closed loop: latency by callers",
    "closed loop: requests a second",
    "ramp: answered against offered",
    "ramp: p99 against offered",
    "where the time goes (p50 of each stage)",
    "mixed traffic by kind",
)
COLOURS = ("#1f6f8b", "#e07a3f", "#7a9e3d", "#8e5ea2", "#b0892f", "#555555", "#c94c6e", "#4aa3a2", "#999999")


def write_plot(path: Path, document: Mapping[str, Any]) -> None:
    """Writes the page for a document of `benchmarks/latency.py`."""
    figure = make_subplots(rows=3, cols=2, subplot_titles=TITLES, vertical_spacing=0.12, horizontal_spacing=0.1)
    everybody = {"lhydra": document["figures"], **document["peers"]}
    callers = document["settings"]["concurrency"]
    for colour, (name, found) in zip(COLOURS, everybody.items(), strict=False):
        for row_col, what, dash in (((1, 1), "p50 ms", "solid"), ((1, 1), "p99 ms", "dot"), ((1, 2), "per s", "solid")):
            points = [found.get(f"closed, {n}: {what}") for n in callers]
            _add(figure, row_col, _line(f"{name}, {what}", callers, points, colour, dash))
    ramp = sorted((run for run in document["runs"] if run["mode"] == "ramp"), key=lambda run: run["offered_per_s"])
    offered = [run["offered_per_s"] for run in ramp]
    marks = {"color": [COLOURS[2] if run["sustained"] else COLOURS[1] for run in ramp], "size": 8}
    for row_col, values in (
        ((2, 1), [run["goodput_per_s"] for run in ramp]),
        ((2, 2), [run["latency_ms"]["p99"] for run in ramp]),
    ):
        _add(figure, row_col, go.Scatter(x=offered, y=values, mode="markers", marker=marks, showlegend=False))
    if offered:
        line = {"color": COLOURS[8], "dash": "dot"}
        ends = [min(offered), max(offered)]
        _add(figure, (2, 1), go.Scatter(x=ends, y=ends, mode="lines", line=line, name="all answered"))
        knee = document["figures"].get("knee: per s")
        for column in (1, 2) if knee else ():
            figure.add_vline(knee["median"], row=2, col=column, line=line, annotation_text="knee")
    told = merged([run for run in document["runs"] if run["mode"] not in ("ramp", "in-process")])
    staged = [run for run in told if run["stages_us"]]
    names = sorted(dict.fromkeys(name for run in staged for name in run["stages_us"]), key=OUTSIDE.__eq__)
    for number, name in enumerate(names):
        taken = [(run["stages_us"].get(name) or {}).get("p50") for run in staged]
        bars = go.Bar(x=[run["name"] for run in staged], y=taken, name=name, marker_color=COLOURS[number % 9])
        _add(figure, (3, 1), bars)
    kinds: dict[str, Any] = next((run["kinds"] for run in told if run["mode"] == "mixed"), {})
    for colour, what in ((COLOURS[0], "p50"), (COLOURS[1], "p99")):
        values = [numbers["latency_ms"][what] for numbers in kinds.values()]
        where = [what] * len(values), list(kinds)
        _add(figure, (3, 2), go.Bar(x=where[1], y=values, name=f"mixed, {what}", marker_color=colour, offsetgroup=what))
    figure.update_layout(
        barmode="stack", template="plotly_white", height=1200, width=1300, title=_title(document), margin={"t": 110}
    )
    for row, column, x, y in (
        (1, 1, "callers", "ms"),
        (1, 2, "callers", "answered a second"),
        (2, 1, "offered a second", "answered a second"),
        (2, 2, "offered a second", "ms"),
        (3, 1, "", "us"),
        (3, 2, "", "ms"),
    ):
        figure.update_xaxes(title_text=x, row=row, col=column)
        figure.update_yaxes(title_text=y, row=row, col=column)
    for row, column in ((1, 1), (2, 2)):
        figure.update_yaxes(type="log", row=row, col=column)
    for column in (1, 2):
        figure.update_xaxes(type="category", row=1, col=column)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True)


def _add(figure: Any, where: tuple[int, int], trace: Any) -> None:
    figure.add_trace(trace, row=where[0], col=where[1])


def _line(name: str, x: list[Any], points: list[Mapping[str, Any] | None], colour: str, dash: str) -> Any:
    known = [(at, point) for at, point in zip(x, points, strict=True) if point is not None]
    return go.Scatter(
        x=[at for at, _ in known],
        y=[point["median"] for _, point in known],
        error_y={
            "type": "data",
            "array": [point["max"] - point["median"] for _, point in known],
            "arrayminus": [point["median"] - point["min"] for _, point in known],
        },
        name=name,
        line={"color": colour, "dash": dash},
    )


def _title(document: Mapping[str, Any]) -> str:
    served, machine, asked = document["server"], document["machine"], document["settings"]
    spun = document["spinning"]
    return (
        f"Recommend, k {asked['k']}: {served['tracks']:,} tracks, {served['workers']} workers, {asked['repeats']}"
        f" repeats<br><sup>{machine['cores']} cores, {machine['processor']}; two spinning processes do"
        f" x{spun['before']} before, x{spun['after']} after; bundle {document['bundle_id']},"
        f" {document['measured']}</sup>"
    )
