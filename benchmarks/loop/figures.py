"""From plays and lists to figures: by week, both services, and their difference with an interval over listeners."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.loop.listeners import F64
from benchmarks.loop.service import LEARNING, NEVER, TWINS, Played, Shown
from lhydra.evaluation.bootstrap import LEVEL, resampled_means


def figures(
    played: Mapping[str, Sequence[Played]],
    shown: Mapping[str, Sequence[Shown]],
    turns: Sequence[Mapping[str, Any]],
    seed: int,
) -> dict[str, Any]:
    """Computes the figures of a drill.

    Args:
        played: plays of each twin.
        shown: lists of each twin.
        turns: retrains so far.
        seed: of the resamples.

    Returns:
        rows, one per week; last, the last of them; after, the weeks after the first retrain together, if any.
    """
    done = 1 + max(one.week for one in played[NEVER])
    weeks = [[week] for week in range(done)]
    rows = [_row(played, shown, week, seed) | {"week": week[0]} for week in weeks]
    for row, turn in zip(rows[1:], turns, strict=False):
        row["model"] = turn["outcome"]
    after = {"after": _row(played, shown, range(1, done), seed)} if done > 1 else {}
    return {"rows": rows, "last": rows[-1], **after, "turns": list(turns)}


def _row(
    played: Mapping[str, Sequence[Played]], shown: Mapping[str, Sequence[Shown]], weeks: Sequence[int], seed: int
) -> dict[str, Any]:
    """The figures of some weeks together."""
    users = 1 + max(one.user for one in played[NEVER])

    def of(rows: Sequence[Played] | Sequence[Shown], value: Any) -> F64:
        own = [one for one in rows if one.week in weeks]
        return np.bincount([one.user for one in own], [float(value(one)) for one in own], users).astype(np.float64)

    plays = {twin: of(played[twin], lambda one: 1) for twin in TWINS}
    listed = {twin: of(played[twin], lambda one: one.place > 0) for twin in TWINS}
    lists = {twin: of(shown[twin], lambda one: 1) for twin in TWINS}
    regret = {twin: of(shown[twin], lambda one: one.best - one.liking) for twin in TWINS}
    liking = {twin: of(shown[twin], lambda one: one.liking) for twin in TWINS}
    return {
        "plays": int(plays[NEVER].sum()),
        "lists": int(lists[NEVER].sum()),
        "listeners": int((plays[NEVER] > 0).sum()),
        "share": compared(listed, plays[NEVER], seed),
        "regret": compared(regret, lists[NEVER], seed),
        "liking": compared(liking, lists[NEVER], seed),
    }


def compared(totals: Mapping[str, F64], counts: F64, seed: int) -> dict[str, float]:
    """Computes a ratio of both twins and their difference, with an interval over listeners, in pairs.

    Args:
        totals: (users,) of each twin.
        counts: (users,) what the totals are of, the same for both.
        seed: of the resamples.

    Returns:
        learning, never, difference, low, high.
    """
    some = counts > 0
    difference = totals[LEARNING] - totals[NEVER]
    means = resampled_means(np.stack([difference, counts], axis=1)[some], seed)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means[:, 0] / means[:, 1], (tail, 1 - tail))
    found = {twin: float(total.sum() / counts.sum()) for twin, total in totals.items()}
    return found | {"difference": float(difference.sum() / counts.sum()), "low": float(low), "high": float(high)}


def table(found: Mapping[str, Any]) -> str:
    """Writes the figures as a Markdown table.

    Args:
        found: by `figures`.

    Returns:
        The table.
    """
    names = ["week", "model", "share of plays from lists: learning", "never", "difference", "regret: learning", "never"]
    lines = [f"| {' | '.join([*names, 'difference'])} |", "|---" * 8 + "|"]
    for row in [*found["rows"], *([found["after"]] if "after" in found else [])]:
        model = row.get("model", "the first" if row.get("week") == 0 else "")
        name = row.get("week", f"1 to {found['rows'][-1]['week']}")
        cells = [str(name), model, *_cells(row["share"], 100, " %"), *_cells(row["regret"], 1, "")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(document: Mapping[str, Any]) -> str:
    """Writes a result for people.

    Args:
        document: the result, as its JSON has it.

    Returns:
        Markdown: the command, the table, what came of each retrain.
    """
    sizes, found, rows = document["settings"], document["versions"], document["rows"]
    return f"""# The loop

```sh
{document["command"]}
```

{sizes["users"]} listeners, {sizes["tracks"]:,} tracks, {rows[0]["plays"]:,} plays in the first week;
{document["seconds"]} s, retrains included. {document["machine"]["cores"]} cores; CPython {found["python"]},
numpy {found["numpy"]}, onnxruntime {found["onnxruntime"]}.

Differences are of pairs, the same listeners with the same luck; in brackets 95 % intervals of a bootstrap
over listeners. Regret is the expected liking of the best list less that of the one shown. In week 0 both
services have the same bundle.

{table(document)}

![Both services by week](loop.svg)

| before week | retrain | NDCG@10 of what was served | of the candidate | difference |
|---|---|---|---|---|
{"".join(f"| {week} | {_told(turn)} |{chr(10)}" for week, turn in enumerate(document["turns"], 1))}"""


def _told(turn: Mapping[str, Any]) -> str:
    """What came of a retrain, and what it was judged by."""
    if not (judged := turn["judged"]):
        return f"{turn['outcome']}: {turn['why']} | | |"
    span = f"{judged['difference']:+.3f} ({judged['low']:+.3f} to {judged['high']:+.3f})"
    return f"{turn['outcome']} | {judged['a']:.3f} | {judged['b']:.3f} | {span}"


def _cells(one: Mapping[str, float], scale: float, unit: str) -> list[str]:
    digits = 1 if scale > 1 else 3
    values = [f"{scale * one[twin]:.{digits}f}{unit}" for twin in (LEARNING, NEVER)]
    low, difference, high = (f"{scale * one[name]:+.{digits}f}" for name in ("low", "difference", "high"))
    return [*values, f"{difference} ({low} to {high})"]
