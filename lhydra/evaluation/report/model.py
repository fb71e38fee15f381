"""Sections on the model: the head as a classifier, what it relies on, and how training went."""

from collections.abc import Mapping, Sequence
from typing import Any

from lhydra.evaluation.document import NDCG, Document
from lhydra.evaluation.report.words import STAGE_NAMES
from lhydra.page.blocks import Block, Confusion, Grid, Panel, Read, Tile, Tiles
from lhydra.page.charts import SHORT_NUMBER, dot_series, dots, line_series, lines
from lhydra.page.words import count, cut, is_number, number, part

CLASSIFICATION = ("accuracy", "precision", "recall", "f1", "auc", "pr_auc", "log_loss", "ece")
CLASSIFICATION_NAMES = {"f1": "F1", "auc": "ROC AUC", "pr_auc": "PR AUC", "log_loss": "log loss", "ece": "ECE"}
GROUPS_SHOWN, FEATURES_SHOWN = 20, 15
UNIT = (0, 1)  # both axes of shares


def classification(document: Document) -> list[Block]:
    """The head as a classifier of single pairs.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    found = part(document.get("classification"))
    if not found:
        return []
    values: dict[str, Any] = dict(found)
    tiles = [
        Tile(CLASSIFICATION_NAMES.get(name, name), number(values[name])) for name in CLASSIFICATION if name in values
    ]
    panels = []
    if roc := found.get("roc"):
        how = "Towards the upper left is better; the diagonal is guessing."
        panels.append(_curve("ROC", ("false positive rate", "true positive rate"), roc, (0, 1), how))
    if pr := found.get("pr"):
        base = found.get("positives", 0) / max(1, found.get("pairs", 0))
        panels.append(
            _curve(
                "Precision and recall", ("recall", "precision"), pr, (base, base), "Towards the upper right is better."
            )
        )
    if bins := [row for row in found.get("calibration", ()) if row.get("n")]:
        own = line_series("head", [b.get("predicted") for b in bins], [b.get("observed") for b in bins], marked=True)
        perfect = line_series("perfect", UNIT, UNIT, "dashed")
        chart = lines("predicted probability", "share that was played", [own, perfect], span=UNIT)
        panels.append(Panel("Calibration", chart, "On the diagonal, a score of 0.7 is right 7 times in 10."))
    if confusion := found.get("confusion"):
        panels.append(Panel("Confusion at 0.5", _confusion(confusion), "Tinted cells are right answers."))
    pairs = f"{count(found.get('pairs'))} pairs, {count(found.get('positives'))} of them played. "
    how = f"The head as a classifier of single pairs; lists are what users see, so read this last. {pairs}"
    negatives = f"Negatives: {found['negatives']}." if found.get("negatives") else ""
    return [Read(how + negatives), *([Tiles(tiles, 4, "small")] if tiles else []), Grid(panels)]


def _curve(title: str, axes: tuple[str, str], points: Any, chance: Sequence[float], how: str) -> Panel:
    x, y = zip(*points, strict=True)
    series = [line_series("head", x, y), line_series("chance", UNIT, chance, "dashed")]
    return Panel(title, lines(*axes, series, span=UNIT), how)


def _confusion(cells: Sequence[Sequence[int]]) -> Confusion:
    total = max(1, sum(map(sum, cells)))
    rows = []
    for row, name in enumerate(("not played", "played")):
        own = [(f"{cells[row][column]:,}", f"{cells[row][column] / total:.1%}", row == column) for column in (0, 1)]
        rows.append((name, own))
    return Confusion(rows)


def importance(document: Document) -> list[Block]:
    """What is lost when an input is shuffled.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    found = part(document.get("importance"))
    groups: list[dict[str, Any]] = [{"name": one.get("group"), **one} for one in found.get("groups", ())]
    features: list[dict[str, Any]] = [{"name": one.get("feature"), **one} for one in found.get("features", ())]
    panels = []
    for title, inputs, most in (("Groups", groups, GROUPS_SHOWN), ("Single features", features, FEATURES_SHOWN)):
        measured = [one for one in inputs if "drop" in one]
        for stage in dict.fromkeys(str(one.get("stage")) for one in measured):
            of_stage = [one for one in measured if str(one.get("stage")) == stage]
            shown = sorted(of_stage, key=lambda one: -one["drop"])[:most]
            tones = ["accent" if (one.get("low") or 0) > 0 else "quiet" for one in shown]
            series = [dot_series("", [dict(one, mean=one["drop"]) for one in shown], signed=True)]
            labels = [cut(one["name"], 26) for one in shown]
            chart = dots(labels, tones, series, f"drop in {found.get('metric')}", 0.0)
            panels.append(Panel(f"{title}: {_stage(stage)}", chart))
    if not panels:
        return []
    repeats, users = found.get("repeats"), found.get("users")
    setup = ""
    if users and repeats:
        times = "once" if repeats == 1 else f"{repeats:,} times"
        setup = f" Measured on {count(users)} users, every group shuffled {times}"
        setup += f"; unshuffled {number(found['base'])}." if "base" in found else "."
    how = "How much ranking loses when an input is shuffled; at the dotted line the model does not use it."
    return [Read(how + setup), Grid(panels), *(Read(str(note)) for note in found.get("notes", ()))]


def training(document: Document) -> list[Block]:
    """Losses and validation by epoch.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    measured = [line for line in document.get("training", ()) if isinstance(line, Mapping)]
    epochs = [line.get("epoch", n) for n, line in enumerate(measured, 1)]
    losses = dict.fromkeys(key for line in measured for key in line if "loss" in key and is_number(line[key]))
    stages = dict.fromkeys(key for line in measured for key in line if isinstance(line[key], Mapping))
    panels = []
    series = []
    for name in stages:
        values = [line[name].get(NDCG) if isinstance(line.get(name), Mapping) else None for line in measured]
        if any(map(is_number, values)):
            tone = "accent" if name == "cascade" else "quiet"
            series.append(line_series(_stage(name), epochs, values, tone, marked=True))
    if series:
        panels.append(Panel("Validation ranking", lines("epoch", "NDCG", series, ticks=SHORT_NUMBER)))
    for n, name in enumerate(losses):  # losses of different scale do not share an axis
        values = [line.get(name) for line in measured]
        own = line_series("", epochs, values, "quiet" if n else "accent", marked=True)
        panels.append(Panel(name.replace("_", " "), lines("epoch", "loss", [own], ticks=SHORT_NUMBER)))
    if not panels:
        return []
    how = "Losses should fall and validation should rise, then level off; a falling validation is overfitting."
    return [Read(how), Grid(panels, "grid three")]


def _stage(name: str) -> str:
    return name if name == "cascade" else STAGE_NAMES.get(name, name)
