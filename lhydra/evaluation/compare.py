"""Two evaluation documents of one protocol side by side: B less A, user by user."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from lhydra.errors import DataError, complain
from lhydra.evaluation.bootstrap import F64, difference, sureness
from lhydra.evaluation.document import NDCG, RECALL, Document, Protocol
from lhydra.evaluation.summary import tie_width

METRICS = (NDCG, RECALL)
DECIDES = ("as_of", "split", "users", "seed", "ks", "targets", "ranked", "mrr_depth")  # in the order they are named


class Change(TypedDict):
    """A metric of A and of B, and B less A; null where one lacks it."""

    a: float | None
    b: float | None
    difference: float | None


class PairedChange(Change):
    """The same over the users that both were measured for, with its paired 95 % interval."""

    low: float | None
    high: float | None


CohortChange = TypedDict("CohortChange", {"by": str, "name": str, "users": int, "ndcg@10": Change, "recall@20": Change})
"""A group of users that both have."""


class Comparison(TypedDict):
    """What `lhydra compare --json` writes: B less A; `stages` have METRICS, `metrics` the others too."""

    format: int
    a: Protocol
    b: Protocol
    summary: list[str]
    stages: dict[str, dict[str, PairedChange]]
    metrics: dict[str, dict[str, Change]]
    cohorts: list[CohortChange]


def compare(a: Document, b: Document, names: tuple[str, str], seed: int = 0) -> Comparison:
    """Compares two evaluations, user by user.

    Args:
        a: a document of `evaluate`.
        b: another, of the same protocol.
        names: what to call them in a complaint.
        seed: of the intervals.

    Returns:
        The differences B - A of every shared stage and cohort. By stage, METRICS have paired 95 % intervals over the
        users that both were measured for; the other metrics, and the cohorts, have none.

    Raises:
        DataError: the two measured different things.
    """
    check_seen(a, b, names)
    check_protocols(a, b, names)
    stages: dict[str, dict[str, PairedChange]] = {}
    for stage in (stage for stage in a["per_user"]["stages"] if stage in b["per_user"]["stages"]):
        before, after = (document["per_user"]["stages"][stage] for document in (a, b))
        stages[stage] = {metric: paired_change(before[metric], after[metric], seed) for metric in METRICS}
    metrics = {
        stage: {
            name: _side_by_side(a["ranking"][stage][name]["mean"], b["ranking"][stage][name]["mean"])
            for name in a["ranking"][stage]
            if name in b["ranking"][stage]
        }
        for stage in stages
    }
    theirs = {(one["by"], one["name"]): one for one in b["cohorts"]}
    cohorts: list[CohortChange] = []
    for one in a["cohorts"]:
        other = theirs.get((one["by"], one["name"]))
        if other is not None and other["users"] == one["users"]:  # a tier may hold other users
            cohorts.append(
                {
                    "by": one["by"],
                    "name": one["name"],
                    "users": one["users"],
                    NDCG: _side_by_side(one[NDCG]["mean"], other[NDCG]["mean"]),
                    RECALL: _side_by_side(one[RECALL]["mean"], other[RECALL]["mean"]),
                }
            )
    return {
        "format": 1,
        "a": a["protocol"],
        "b": b["protocol"],
        "summary": [verdict(stages["cascade"]["ndcg@10"], ties=sum(map(tie_width, (a, b))))],
        "stages": stages,
        "metrics": metrics,
        "cohorts": cohorts,
    }


def check_seen(a: Document, b: Document, names: tuple[str, str]) -> None:
    """Checks that no model may have learned from what it was asked for.

    Args:
        a: a document.
        b: another.
        names: what to call them in a complaint.

    Raises:
        DataError: one may have.
    """
    for document, name in zip((a, b), names, strict=True):
        seen = document["protocol"].get("seen")
        if seen and seen["targets"]:
            found = f"{seen['targets']:,} of {seen['of']:,} targets that its model may have learned from"
            raise DataError(complain(name, f"{found} ({seen['why']})", "none"))


def check_protocols(a: Document, b: Document, names: tuple[str, str]) -> None:
    """Checks that two documents measured the same thing, whatever the model.

    Args:
        a: a document.
        b: another.
        names: what to call them in a complaint.

    Raises:
        DataError: they did not; names the first setting that differs.
    """
    ours, theirs = a["protocol"], b["protocol"]
    if ours["hash"] == theirs["hash"] and a["per_user"]["users"] == b["per_user"]["users"]:
        return
    raise other_protocol({**ours}, {**theirs}, DECIDES, names)


def other_protocol(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], decides: Iterable[str], names: tuple[str, str]
) -> DataError:
    """Makes the complaint about two documents that measured different things.

    Args:
        ours: the protocol of A.
        theirs: that of B.
        decides: the settings that have to be the same, in the order they are looked at.
        names: what to call A and B.

    Returns:
        The error; it names the first setting that differs.
    """
    what = next((name for name in decides if ours.get(name) != theirs.get(name)), "")
    found, expected = (f"{what} {_short(protocol.get(what))}" for protocol in (theirs, ours))
    if not what or found == expected:
        found, expected = "other data or users", "the same"
    return DataError(complain(names[1], found, f"the protocol of {names[0]}: {expected}"))


def verdict(found: PairedChange, what: str = "cascade NDCG@10", ties: float = 0.0) -> str:
    """Writes the first line: which of the two has the better lists, and how sure that is.

    Args:
        found: a metric.
        what: its name and whose it is.
        ties: how far the order of equal scores could move the two figures together.

    Returns:
        The line.
    """
    a, b, change = found["a"], found["b"], found["difference"]
    if a is None or b is None or change is None:
        return f"no verdict: no user has a {what} in both"
    low, high = found["low"] or 0.0, found["high"] or 0.0
    if change == low == high == 0:
        return f"B and A rank alike: {what} {a:.4f}"
    word = "is better than" if change > 0 else "is WORSE than"
    certain = "" if low > 0 or high < 0 else "; not certain"
    if ties > abs(change):
        certain = "; not certain: ties"
    how_sure = sureness(found["low"], found["high"])
    return f"B, {what} {b:.4f}, {word} A {a:.4f} by {abs(change):.4f} ({how_sure}{certain})"


def paired_change(a: Sequence[float | None], b: Sequence[float | None], seed: int) -> PairedChange:
    """Compares a metric user by user.

    Args:
        a: of every user, None where there is nothing to measure.
        b: of the same users.
        seed: of the interval.

    Returns:
        B less A over the users that both have a number for.
    """
    ours, theirs = _values(a), _values(b)
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    means = [float(values[both].mean()) if both.any() else None for values in (ours, theirs)]
    return {"a": means[0], "b": means[1], **difference(ours[both], theirs[both], seed)}


def _values(numbers: Sequence[float | None]) -> F64:
    return np.array([np.nan if number is None else number for number in numbers], np.float64)


def _side_by_side(a: float | None, b: float | None) -> Change:
    return {"a": a, "b": b, "difference": None if a is None or b is None else b - a}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(part)[:12] for part in value.values())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
