"""Two evaluation documents of one protocol side by side: B less A, user by user."""

from typing import Any

import numpy as np

from lhydra.errors import DataError, complain
from lhydra.evaluation.bootstrap import F64, difference

METRICS = ("ndcg@10", "recall@20")
PARTS = {"protocol": dict, "ranking": dict, "cohorts": list, "per_user": dict}  # of a document, that are compared
DECIDES = ("as_of", "split", "users", "seed", "ks", "targets", "ranked", "mrr_depth")  # in the order they are named


def compare(a: dict[str, Any], b: dict[str, Any], names: tuple[str, str], seed: int = 0) -> dict[str, Any]:
    """Returns the differences B - A of every shared stage and cohort, plain JSON values.

    a, b: documents of `evaluate`; names: what to call them in a complaint. By stage, METRICS have paired 95 %
    intervals over the users that both were measured for; the other metrics, and the cohorts, have none.

    Raises:
        DataError: something other than an evaluation, or two that measured different things.
    """
    for document, name in ((a, names[0]), (b, names[1])):
        if document.get("format") != 1 or not all(isinstance(document.get(part), kind) for part, kind in PARTS.items()):
            raise DataError(complain(name, "another document", "what `lhydra evaluate --json` wrote"))
    check_protocols(a, b, names)
    stages = {}
    for stage in (stage for stage in a["per_user"]["stages"] if stage in b["per_user"]["stages"]):
        stages[stage] = {metric: _paired(a, b, stage, metric, seed) for metric in METRICS}
    metrics = {
        stage: {
            name: _side_by_side(a["ranking"][stage][name]["mean"], b["ranking"][stage][name]["mean"])
            for name in a["ranking"][stage]
            if name in b["ranking"][stage]
        }
        for stage in stages
    }
    theirs = {(one["by"], one["name"]): one for one in b["cohorts"]}
    cohorts = []
    for one in a["cohorts"]:
        other = theirs.get((one["by"], one["name"]))
        if other is not None and other["users"] == one["users"]:  # a tier may hold other users
            found = {name: _side_by_side(one[name]["mean"], other[name]["mean"]) for name in METRICS}
            cohorts.append({"by": one["by"], "name": one["name"], "users": one["users"], **found})
    return {
        "format": 1,
        "a": a["protocol"],
        "b": b["protocol"],
        "summary": [verdict(stages["cascade"]["ndcg@10"])],
        "stages": stages,
        "metrics": metrics,
        "cohorts": cohorts,
    }


def check_protocols(a: dict[str, Any], b: dict[str, Any], names: tuple[str, str]) -> None:
    """Raises DataError unless two documents measured the same thing, whatever the model."""
    ours, theirs = a["protocol"], b["protocol"]
    if ours.get("hash") == theirs.get("hash") and a["per_user"].get("users") == b["per_user"].get("users"):
        return
    what = next((name for name in DECIDES if ours.get(name) != theirs.get(name)), "hash")
    found, expected = (f"{what} {_short(protocol.get(what))}" for protocol in (theirs, ours))
    if found == expected:
        found, expected = "other data or users", "the same"
    raise DataError(complain(names[1], found, f"the protocol of {names[0]}: {expected}"))


def verdict(found: dict[str, Any]) -> str:
    """Returns the first line: which of the two has the better served lists, and how sure that is."""
    change = found["difference"]
    if change == 0 and found["low"] == found["high"] == 0:
        return f"B and A rank alike: cascade NDCG@10 {found['a']:.4f}"
    word = "is better than" if change > 0 else "is WORSE than"
    certain = "" if found["low"] > 0 or found["high"] < 0 else "; not certain"
    span = f"95 % interval {found['low']:+.4f} to {found['high']:+.4f}"
    return f"B, cascade NDCG@10 {found['b']:.4f}, {word} A {found['a']:.4f} by {abs(change):.4f} ({span}{certain})"


def _paired(a: dict[str, Any], b: dict[str, Any], stage: str, metric: str, seed: int) -> dict[str, float | None]:
    """{a, b, difference, low, high} over the users that both have a number for."""
    ours, theirs = (_values(document["per_user"]["stages"][stage][metric]) for document in (a, b))
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    means = {"a": float(ours[both].mean()), "b": float(theirs[both].mean())} if both.any() else {"a": None, "b": None}
    return {**means, **difference(ours[both], theirs[both], seed)}


def _values(numbers: list[float | None]) -> F64:
    return np.array([np.nan if number is None else number for number in numbers], np.float64)


def _side_by_side(a: float | None, b: float | None) -> dict[str, float | None]:
    return {"a": a, "b": b, "difference": None if a is None or b is None else b - a}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(part)[:12] for part in value.values())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
