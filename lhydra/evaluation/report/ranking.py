"""Sections on lists: how good they are, beside the baselines, and what the shortlist costs."""

from collections.abc import Iterable, Mapping
from typing import Any

from lhydra.evaluation.document import NDCG, RECALL, Document
from lhydra.evaluation.report.words import METRIC_NAMES, metric_name, stage_name
from lhydra.evaluation.sources import unheard
from lhydra.page.blocks import Block, Cell, Folded, Grid, Panel, Read, Table
from lhydra.page.charts import SHORT_NUMBER, dot_series, dots, line_series, lines
from lhydra.page.words import DASH, count, interval, is_number, number, part, share


def ranking(document: Document) -> list[Block]:
    """Every stage and baseline, by metric.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    stages = {name: found for name, found in document.get("ranking", {}).items() if found}
    if not stages:
        return []
    names = list(map(stage_name, stages))
    metrics = list(dict.fromkeys(metric for found in stages.values() for metric in found))
    tones = ["accent" if name == "cascade" else "quiet" for name in stages]
    panels = []
    for kind in ("ndcg", "recall"):
        series = [
            dot_series(f"k = {metric.partition('@')[2]}", [found.get(metric) for found in stages.values()], n > 0)
            for n, metric in enumerate(_of_kind(metrics, kind))
        ]
        if series:
            panels.append(Panel(METRIC_NAMES[kind], dots(names, tones, series, METRIC_NAMES[kind])))
    rows = [
        [metric_name(metric), *(with_interval(found.get(metric), metric) for found in stages.values())]
        for metric in metrics
    ]
    return [
        Read("Each dot is a mean over users, the line through it its 95 % interval; further right is better."),
        Grid(panels),
        Folded("All metrics as numbers", [Table(["", *names], rows, wide=True)]),
    ]


def paired(document: Document) -> list[Block]:
    """The cascade less each baseline, and how the baselines were tuned.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    panels = []
    for metric in (NDCG, RECALL):
        found: dict[str, Any] = {name: one.get(metric) for name, one in document.get("paired", {}).items()}
        found = {name: one for name, one in found.items() if one}
        if found:
            points = [dict(one, mean=one.get("difference")) for one in found.values()]
            labels = [f"over {stage_name(name)}" for name in found]
            series = [dot_series("", points, signed=True)]
            chart = dots(labels, list(map(tone, points)), series, "difference", reference=0.0)
            panels.append(Panel(f"{metric_name(metric)}, Lhydra minus baseline", chart))
    if not panels:
        return []
    how = "User by user on the same targets. Right of the dotted line Lhydra is better; an interval that crosses it "
    return [Read(f"{how}is a tie."), Grid(panels), *_baselines(document)]


def tone(point: Mapping[str, Any]) -> str:
    """Chooses the colour of a difference.

    Args:
        point: has `low` and `high`, or not.

    Returns:
        `accent` where it is surely above 0, `bad` where it is surely below, else `quiet`.
    """
    if is_number(point.get("high")) and point["high"] < 0:
        return "bad"
    return "accent" if (point.get("low") or 0) > 0 else "quiet"


def _baselines(document: Document) -> list[Block]:
    rows = []
    for name, one in document.get("baselines", {}).items():
        chosen = ", ".join(f"{key} {value}" for key, value in one.get("chosen", {}).items()) or DASH
        how = f"skipped: {one['skipped']}" if one.get("skipped") else chosen
        took_s = one.get("took_s")
        took = DASH if took_s is None else f"{took_s:.1f} s" + " (kept)" * bool(one.get("cached"))
        rows.append([stage_name(name), how, count(one.get("tried")), number(one.get("valid_ndcg@10")), took])
    head = ["", "settings chosen on the validation fold", "settings tried", "NDCG on validation", "took"]
    return [Folded("How the baselines were tuned", [Table(head, rows, numbers=2)])] if rows else []


def cascade(document: Document) -> list[Block]:
    """What is lost because only a shortlist reaches the head.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    loss = part(document.get("cascade_loss"))
    curve = [point for point in loss.get("curve", ()) if point.get("depth")]
    if not curve:
        return []
    depths = [point["depth"] for point in curve]
    k, x = loss.get("k", 10), "shortlist length"
    survives = [line_series("", depths, [point.get("overlap") for point in curve])]
    series = [line_series("cascade", depths, [point.get("ndcg") for point in curve])]
    full = loss.get("full", {}).get(NDCG)
    if full is not None:
        series.append(line_series("head over the whole catalogue", [depths[0], depths[-1]], [full, full], "dashed"))
    panels = [
        Panel(f"The head's own top {k} that survives", lines(x, "share", survives, depths, ".0%")),
        Panel("Ranking quality", lines(x, f"NDCG@{k}", series, depths, SHORT_NUMBER)),
    ]
    users = f" Measured on {count(loss['users'])} users." if loss.get("users") else ""
    how = (
        "Only a shortlist reaches the head. Where quality is flat, a longer one buys nothing; where it falls, it harms."
    )
    return [Read(how + users), Grid(panels)]


def sources(document: Document) -> list[Block]:
    """What each source of candidates adds to the shortlist and to the lists.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    found = part(document.get("sources"))
    if not found.get("by_source"):
        return []
    counted = ("found", "found_alone", "listed", "listed_alone")
    rows: list[list[Cell]] = [
        [one.get("source", ""), f"{one.get('candidates', 0):.0%}", *(count({**one}.get(name)) for name in counted)]
        for one in found["by_source"]
    ]
    rows.append(["all", "100%", count(found.get("found")), "", count(found.get("listed")), ""])
    head = ["", "candidates", "targets found", "only by it", f"in the first {found.get('k')}", "only by it"]
    how = (
        f"Of {count(found.get('targets'))} targets, how many each source of candidates brings to the shortlist, and how"
        " many of those end in the list. What only one source finds would be lost without it."
        f" {unheard(found)}"
    )
    return [Read(how), Panel("", Table(head, rows))]


def _of_kind(metrics: Iterable[str], kind: str) -> list[str]:
    return [metric for metric in metrics if metric.startswith(f"{kind}@")]


def with_interval(value: Mapping[str, Any] | None, metric: str) -> Cell:
    """Writes a metric and its interval.

    Args:
        value: of the metric, or nothing.
        metric: its name.

    Returns:
        The cell of a table; a dash for nothing.
    """
    if not value:
        return DASH
    shown = share(value.get("mean")) if metric.startswith("coverage") else number(value.get("mean"))
    return (shown, interval(value)) if interval(value) else shown
