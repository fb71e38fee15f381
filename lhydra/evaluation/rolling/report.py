"""The page of a rolling evaluation: three figures apart, where lists are good, and how often tracks come again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lhydra.evaluation.report.protocol import protocol
from lhydra.evaluation.report.ranking import tone, with_interval
from lhydra.evaluation.report.words import metric_name, stage_name
from lhydra.evaluation.rolling.baselines import BLEND, useless
from lhydra.evaluation.rolling.document import MEANINGS, RollingDocument
from lhydra.evaluation.rolling.lists import FIGURES
from lhydra.evaluation.rolling.served import PICKED, SERVED
from lhydra.page import page
from lhydra.page.blocks import Block, Cell, Folded, Grid, Notice, Panel, Read, Table, Tile, Tiles, Top
from lhydra.page.charts import curves, dot_series, dots
from lhydra.page.page import Section
from lhydra.page.words import DASH, count, defined, interval, is_number, number, part, share

_NDCG = "ndcg@10"
_DRAWN = 4  # scorers in one chart of lines
_NAMES = {
    SERVED: "Lhydra",
    PICKED: "Lhydra, ALLOW",
    "popular-lately": "popular lately",
    "own-count": "own plays, by count",
    "own-recency": "own plays, by recency",
    "bll": "BLL",
    "v-sknn": "V-SKNN",
}
_SLICES = {
    "place": ("By place in the session", "plays of the session known", "NDCG@10, mean of lists"),
    "age": ("By the age of the last play", "sessions since the last play", "share in the top 10"),
    "share": ("By the users' share of repeats", "users, from those who repeat least", "NDCG@10, mean of users"),
}


def render(document: RollingDocument) -> str:
    """Renders a rolling evaluation.

    Args:
        document: of `evaluate_rolling`; any part may be missing or null.

    Returns:
        One HTML page.

    Raises:
        MissingExtra: plotly or Jinja2 is not installed.
    """
    document = defined(document)
    sections = (
        Section("ranking", "What comes next", _ranking(document)),
        Section("paired", "Against the others", _paired(document)),
        Section("slices", "Where lists are good", _slices(document)),
        Section("chosen", "What was chosen", _chosen(document)),
        Section("protocol", "Protocol", protocol(_flat(document))),
    )
    version = part(document.get("protocol")).get("lhydra_version", "")
    footer = (
        f"Made by Lhydra {version}. Means of each user's lists, then of users; intervals are 95 % bootstrap intervals "
        "over users. Everything on this page is also in the JSON document."
    )
    return page.render("evaluation", _top(document), sections, footer)


def _name(scorer: str) -> str:
    return _NAMES.get(scorer, stage_name(scorer))


def _figures(document: RollingDocument) -> dict[str, dict[str, Mapping[str, Any]]]:
    """By figure the scorers that have something to say of it, best NDCG@10 last but what is served first."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for figure in FIGURES:
        own = part(document.get("ranking")).get(figure, {})
        kept = {name: one for name, one in own.items() if one.get(_NDCG) and not useless(name, figure)}
        if kept:
            order = sorted(kept, key=lambda name: (name not in (SERVED, PICKED), name == PICKED, -_mean(kept[name])))
            found[figure] = {name: kept[name] for name in order}
    return found


def _mean(found: Mapping[str, Any]) -> float:
    return float(part(found.get(_NDCG)).get("mean") or 0.0)


def _best(own: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The best scorer of a figure that is not what is measured."""
    return max((name for name in own if name not in (SERVED, PICKED)), key=lambda name: _mean(own[name]), default=None)


def _top(document: RollingDocument) -> Top:
    """What was evaluated, who is best at what, and how much there was."""
    told, counts = part(document.get("protocol")), part(document.get("counts"))
    what = told.get("bundle_id") or told.get("model_id") or told.get("store") or told.get("model")
    where = Path(str(told["dataset"])).name if told.get("dataset") else None
    fold = f"{told['as_of']} fold" if told.get("as_of") else None
    asked = str(told.get("protocol", ""))
    known = f"plays known: {count(told['known'])}" if told.get("known") else None
    subject = " · ".join(str(one) for one in ("Lhydra evaluation", asked, what, where, fold, known) if one)
    lines, tiles = [], []
    for figure, own in _figures(document).items():
        title, meaning = figure.capitalize(), MEANINGS[figure]
        first, best = (SERVED if SERVED in own else None), _best(own)
        shown = first or best
        if shown is None:
            continue
        values = own[shown][_NDCG]
        notes = [f"{metric_name(_NDCG)} {interval(values)}".strip(), meaning]
        if first and best:
            notes.insert(1, f"best other: {_name(best)} {number(_mean(own[best]))}")
        tiles.append(Tile(f"{title}: {_name(shown)}", number(values.get("mean")), notes, main=figure == "all"))
        lines.append(f"{title}: {_verdict(document, figure, own)}")
    truth = part(part(document.get("repeats")).get("truth"))
    if is_number(truth.get("mean")):
        tiles.append(Tile("Heard before", share(truth["mean"]), ["of what was played"]))
    if counts.get("users") is not None:
        note = f"{count(part(counts.get('targets')).get('all'))} targets among {count(counts.get('catalogue'))} tracks"
        tiles.append(Tile("Lists", count(counts.get("moments")), [f"of {count(counts['users'])} users", note]))
    verdict, *more = lines or ["What comes next?"]
    notices = [Notice("leak", "Not a fair measure", [str(told["doubt"])])] if told.get("doubt") else []
    return Top(subject, verdict, more, [Tiles(tiles, len(tiles))] if tiles else [], notices)


def _verdict(document: RollingDocument, figure: str, own: Mapping[str, Mapping[str, Any]]) -> str:
    """Who is best at a figure, and whether that is certain."""
    best = _best(own)
    if SERVED not in own or best is None:
        name = best or SERVED
        return f"best is {_name(name)}, {metric_name(_NDCG)} {number(_mean(own[name]))}"
    found = part(part(part(document.get("paired")).get(figure)).get(best)).get(_NDCG)
    low, high = (part(found).get(end) for end in ("low", "high"))
    if is_number(low) and low > 0:
        return f"Lhydra is better than {_name(best)}, the best of the others"
    if is_number(high) and high < 0:
        return f"{_name(best)} is better than Lhydra"
    return f"Lhydra and {_name(best)}, the best of the others, are not certain to differ"


def _ranking(document: RollingDocument) -> list[Block]:
    """The three figures by scorer."""
    panels, folded = [], []
    for figure, own in _figures(document).items():
        title, meaning = figure.capitalize(), MEANINGS[figure]
        names, best = list(map(_name, own)), _best(own)
        shown = SERVED if SERVED in own else best
        tones = ["accent" if name in (shown, PICKED) else "quiet" for name in own]
        chart = dots(names, tones, [dot_series("", [one[_NDCG] for one in own.values()])], metric_name(_NDCG))
        panels.append(Panel(f"{title}: {meaning}", chart))
        metrics = list(dict.fromkeys(metric for one in own.values() for metric in one))
        rows: list[Sequence[Cell]] = [
            [_name(name), *(with_interval(one.get(metric), metric) for metric in metrics)] for name, one in own.items()
        ]
        folded.append(
            Folded(f"{title}: all metrics as numbers", [Table(["", *map(metric_name, metrics)], rows, 1, True)])
        )
    how = (
        "Each dot is a mean over users, the line through it its 95 % interval; further right is better. "
        "Each figure has a list of its own, of the tracks that it is about."
    )
    if any(PICKED in own for own in _figures(document).values()):
        how += " Lhydra, ALLOW: the new tracks of its list where repeats are allowed."
    panels += _repeats(document)
    return [Read(how), Grid(panels), *folded] if panels else []


def _paired(document: RollingDocument) -> list[Block]:
    """What is served less every other scorer."""
    panels = []
    for figure, others in part(document.get("paired")).items():
        found = {name: one[_NDCG] for name, one in others.items() if one.get(_NDCG) and not useless(name, figure)}
        if not found:
            continue
        points = [{**one, "mean": one.get("difference")} for one in found.values()]
        tones = [tone(point) for point in points]
        labels = [f"over {_name(name)}" for name in found]
        chart = dots(labels, tones, [dot_series("", points, signed=True)], "difference", reference=0.0)
        panels.append(Panel(f"{figure.capitalize()}, {metric_name(_NDCG)}, Lhydra minus the other", chart))
    how = "User by user on the same targets. Right of the dotted line Lhydra is better; an interval that crosses it "
    return [Read(f"{how}is a tie."), Grid(panels)] if panels else []


def _slices(document: RollingDocument) -> list[Block]:
    """`all` by place in the session, by the age of the last play and by the users' share of repeats."""
    own = _figures(document).get("all", {})
    drawn = [name for name in own if name != PICKED][:_DRAWN]
    panels, folded = [], []
    for by, (title, x, y) in _SLICES.items():
        parts = [one for one in document.get("slices", ()) if one.get("by") == by]
        if not parts:
            continue
        steps = [_step(str(one.get("name"))) for one in parts]
        lines = {_name(name): [one["scorers"].get(name) for one in parts] for name in drawn}
        if len(steps) > 1 and lines:
            panels.append(Panel(title, curves(x, y, steps, lines)))
        names = list(dict.fromkeys(name for one in parts for name in one["scorers"]))
        rows: list[Sequence[Cell]] = [
            [str(one["name"]), count(one.get("n")), *(number(one["scorers"].get(name)) for name in names)]
            for one in parts
        ]
        folded.append(
            Folded(f"{title}: all scorers as numbers", [Table(["", "of them", *map(_name, names)], rows, 1, True)])
        )
    how = (
        f"The figure of all, in parts: {', '.join(map(_name, drawn))}. By place and by share NDCG@10; by age the share "
        "of the targets that stand in the top 10, of those heard before."
    )
    return [Read(how), Grid(panels), *folded] if folded else []


def _step(name: str) -> str:
    """What stands below a point: the number of a group, or which third."""
    for end in (" plays known", " sessions ago"):
        name = name.removesuffix(end)
    return name.removeprefix("the third ").removeprefix("who ").replace(" or more", "+").replace(" to ", DASH)


def _repeats(document: RollingDocument) -> list[Panel]:
    """How often tracks were heard before, in what was played and in the lists."""
    found = part(document.get("repeats"))
    truth, listed = part(found.get("truth")), part(found.get("lists"))
    if not listed:
        return []
    order = sorted(listed, key=lambda name: (name != SERVED, -(listed[name].get("mean") or 0.0)))
    labels = ["what was played", *map(_name, order)]
    tones = ["accent", *("accent" if name == SERVED else "quiet" for name in order)]
    points = dot_series("", [truth, *(listed[name] for name in order)])
    chart = dots(labels, tones, [points], "share heard before", reference=truth.get("mean"))
    how = "In what was played (the dotted line) and in the top 10 of all; left of it lists dare more than people do."
    return [Panel("Share of tracks heard before", chart, how)]


def _chosen(document: RollingDocument) -> list[Block]:
    """The settings of every baseline, and the weights of the blend, for each figure."""
    rows: list[Sequence[Cell]] = []
    for name, own in part(document.get("chosen")).items():
        for figure, one in own.items():
            if useless(name, figure) or (one.get("tried") == 1 and name != BLEND):
                continue
            settings = {key: value for key, value in one["settings"].items() if name != BLEND or value}
            text = ", ".join(f"{key if name != BLEND else _name(key)} {value}" for key, value in settings.items())
            valid = number(one.get("valid")) if one.get("valid") is not None else "usual values"
            rows.append([_name(name), figure.capitalize(), text, count(one.get("tried")), valid])
    rows += [[_name(name), DASH, f"skipped: {why}", DASH, DASH] for name, why in part(document.get("skipped")).items()]
    if not rows:
        return []
    metric = metric_name(str(part(document.get("protocol")).get("tuned_on", _NDCG)))
    how = "The settings of every baseline, and the weights of the blend, are those best on the validation fold."
    head = ["", "figure", "settings", "tried", f"{metric} on validation"]
    return [Read(how), Panel("", Table(head, rows, 3))]


def _flat(document: RollingDocument) -> Any:
    """Protocol and counts; the targets of each figure are counts of their own."""
    counts: dict[str, Any] = dict(part(document.get("counts")))
    for figure, n in counts.pop("targets", {}).items():
        counts[f"targets, {figure}"] = n
    return {"protocol": document.get("protocol"), "counts": counts}
