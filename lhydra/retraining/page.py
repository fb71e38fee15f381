"""The page of a turn: how it ended and why, what was odd about the plays, what was measured, what the gate said."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from lhydra.page import page
from lhydra.page.blocks import Block, Cell, Facts, Notice, Panel, Read, Table, Tile, Tiles, Top
from lhydra.page.charts import dot_series, dots
from lhydra.page.page import Section
from lhydra.page.words import count, number, share

KIND = "retraining"  # what the title of such a page ends with
_VERDICTS = {
    "published": "Published: {bundle_id}",
    "nothing new": "Nothing published: nothing new",
    "no help": "Nothing published: the candidate would not help",
    "doubted": "Refused: the new plays look poisoned",
    "refused": "Refused by the gate",
}
_METRICS = {"ndcg@10": "NDCG@10", "recall@20": "Recall@20"}


def render(told: Mapping[str, Any]) -> str:
    """Renders how a run ended.

    Args:
        told: the document of the run.

    Returns:
        One HTML page.

    Raises:
        MissingExtra: plotly or Jinja2 is not installed.
    """
    steps = told["steps"]
    sections = (
        Section("quality", "Does it help?", _quality(steps)),
        Section("plays", "The new plays", _plays(steps)),
        Section("gate", "The gate", _gate(steps.get("rebuild", {}))),
        Section("steps", "Steps", _steps(steps), secondary=True),
    )
    footer = f"Made by Lhydra {told['lhydra_version']}. The figures are also in the JSON document beside this page."
    return page.render(KIND, _top(told), sections, footer)


def _top(told: Mapping[str, Any]) -> Top:
    steps, outcome = told["steps"], told["outcome"]
    look, change = steps.get("look", {}), steps.get("judge", {}).get("change", {})
    tiles = []
    if change:
        before = f"{number(change['a'], 4)} is served"
        tiles.append(Tile("NDCG@10 of the candidate", number(change["b"], 4), [before], main=True))
        tiles.append(Tile("Difference", number(change["difference"], 4, signed=True), [f"95 %: {_span(change)}"]))
    if look:
        tiles.append(Tile("New plays", count(look["new"]), [f"of {count(look['plays'])}"]))
        tiles.append(Tile("New tracks", count(look["new_tracks"]), ["played, and not served yet"]))
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(told["started_s"]))
    lines = [f"Begun {at} UTC; served before: {told['served_before'] or 'nothing'}.", told["why"]]
    verdict = _VERDICTS[outcome].format(**told)
    bad = [f"{one['name']}: {one['note']}" for one in _checks(steps) if one["bad"]]
    notices = [Notice("warning", "The new plays", bad)] if bad else []
    return Top(told["run_id"], verdict, lines, [Tiles(tiles, len(tiles))] if tiles else [], notices)


def _checks(steps: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What was checked of the new plays, as far as the turn went."""
    screened, look = (steps.get(name, {}) for name in ("screen", "look"))
    found: Sequence[Mapping[str, Any]] = look.get("checks") or [one for one in (screened.get("check"),) if one]
    return found


def _quality(steps: Mapping[str, Any]) -> list[Block]:
    judged = steps.get("judge", {})
    if not judged:
        return []
    held = steps["hold_out"]
    if "metrics" not in judged:
        return [Read("Nothing was served before: there is nothing to compare with.")]
    metrics = {label: judged["metrics"][name] for name, label in _METRICS.items()}
    points = [{"mean": one["difference"], "low": one["low"], "high": one["high"]} for one in metrics.values()]
    chart = dots(list(metrics), ["accent"] * len(points), [dot_series("", points, signed=True)], "difference", 0.0)
    rows = [
        [name, number(one["a"], 4), number(one["b"], 4), number(one["difference"], 4, signed=True), _span(one)]
        for name, one in metrics.items()
    ]
    how = (
        "Both were asked for the same users, as of before the plays held out, which neither has learned from. The "
        "candidate is searched exactly over all tracks, the served bundle as it is served. "
    )
    if held["left_out"]:
        how += f"{count(held['left_out'])} plays from served lists are as new and do not judge: they favour it."
    elif held["listed"]:
        how += "Too few new plays came without a list: plays from lists judge too, and favour what is served."
    return [
        Read(how),
        Panel("Candidate less served", chart, "The line: 95 % interval over users."),
        Panel("As numbers", Table(["", "served", "candidate", "difference", "95 %"], rows)),
    ]


def _span(change: Mapping[str, Any]) -> str:
    return f"{number(change['low'], 4, signed=True)} to {number(change['high'], 4, signed=True)}"


def _plays(steps: Mapping[str, Any]) -> list[Block]:
    screened = steps.get("screen")
    if screened is None:
        return []
    facts = {
        "plays in the log": count(screened["plays"]),
        "recorded since the run before": count(screened["came"]),
        "left out, of an impossible time": count(screened["left_out"]),
        "of tracks of the tracks file": count(screened["named"]),
    }
    blocks: list[Block] = [Panel("Counts", Facts(facts))]
    if checks := _checks(steps):
        rows = [
            [(one["name"], one["note"]), "REFUSED" if one["bad"] else "ok", share(one["found"]), share(one["limit"])]
            for one in checks
        ]
        blocks.append(
            Panel("Three kinds of poison", Table(["check", "", "found", "limit"], rows, numbers=2, wide=True))
        )
    return blocks


def _gate(rebuilt: Mapping[str, Any]) -> list[Block]:
    if not rebuilt:
        return []
    rows = [
        [(one["name"], one["note"]), one["verdict"], number(one["found"], 4), number(one["limit"], 4)]
        for one in rebuilt["gate"]["checks"]
    ]
    return [
        Panel(f"The gate of {rebuilt['bundle_id']}", Table(["check", "", "found", "limit"], rows, numbers=2, wide=True))
    ]


def _steps(steps: Mapping[str, Any]) -> Sequence[Block]:
    rows: list[list[Cell]] = [
        [(name, "\n".join(one["commands"])), f"{one['took_s']:.1f} s"] for name, one in steps.items()
    ]
    return [Read("Each step can be repeated by hand."), Panel("What was run", Table(["step", "took"], rows, wide=True))]
