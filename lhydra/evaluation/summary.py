"""The lines to read first: what makes figures worthless, the verdict, and everything that raises doubt."""

from lhydra.evaluation.bootstrap import sureness
from lhydra.evaluation.document import NDCG, Document, Protocol

_FEW_USERS = 50
_TIES_TOLD = 0.01  # share of lists with a tie at the cut from which a line says so


def summary(document: Document) -> list[str]:
    """Writes the lines to read first.

    Args:
        document: all else of it.

    Returns:
        What makes the figures worthless, the verdict beside the best baseline, then everything that raises doubt.
    """
    ranking, lines = document["ranking"], [*told(document["protocol"]), verdict(document)]
    for name, one in document["baselines"].items():
        if one["skipped"]:
            lines.append(f"baseline {name} skipped: {one['skipped']}")
    ties = document.get("ties")
    if ties and ties["lists"] >= _TIES_TOLD:
        lines.append(
            f"{ties['lists']:.0%} of the lists share a score at place {ties['k']}, where the order of ids decides:"
            f" NDCG@{ties['k']} from {_short(ties['lowest'])} to {_short(ties['highest'])} by the order of equal scores"
        )
    if document["counts"]["users"] < _FEW_USERS:
        lines.append(f"only {document['counts']['users']} users: hardly anything here is certain")
    if document["protocol"]["as_of"] == "valid":
        lines.append("the head was fitted on the valid fold, which chose all settings too: conclude from --as-of test")
    served, retrieved = (ranking[stage][NDCG]["mean"] for stage in ("cascade", "retrieval"))
    if served is not None and retrieved is not None and served < retrieved:
        lines.append(
            f"the head makes the lists worse: NDCG@10 {_short(retrieved)} of retrieval, {_short(served)} after it"
        )
    curve, depth = document["cascade_loss"]["curve"], document["counts"]["reranked"]
    at = [point for point in curve if point["depth"] <= depth]
    if at and at[-1]["overlap"] is not None and at[-1]["overlap"] < 0.8:
        lines.append(
            f"retrieval lets {at[-1]['overlap']:.0%} of the head's own top 10 through at depth {at[-1]['depth']}"
        )
    lines += document["beyond_accuracy"]["alarms"]
    lines += [
        f"{leak['verdict']}: {leak['check']}: {leak['found']}"
        for leak in document["leaks"]
        if leak["verdict"] == "leak"
    ]
    return lines


def told(protocol: Protocol) -> list[str]:
    """Says that the model may have learned from what it is asked for.

    Args:
        protocol: of a document.

    Returns:
        A line, or none.
    """
    seen = protocol.get("seen")
    if not seen or not seen["targets"]:
        return []
    share = f"{seen['targets']:,} of {seen['of']:,} targets"
    return [f"NOT A FAIR MEASURE: the model may have learned from {share}: {seen['why']}"]


def verdict(document: Document) -> str:
    """Writes the verdict: does the cascade beat the best baseline, by how much, and how sure is that.

    Args:
        document: its `ranking` and `paired`.

    Returns:
        The line.
    """
    means = {stage: found[NDCG]["mean"] or 0.0 for stage, found in document["ranking"].items()}
    own = f"cascade NDCG@10 {_short(means['cascade'])}"
    if not document["paired"]:
        return f"{own}; measured without baselines"
    best = max(document["paired"], key=lambda name: means[name])
    found, beside = document["paired"][best][NDCG], f"the best baseline {best} {_short(means[best])}"
    if (change := found["difference"]) is None:
        return f"{own}; {beside}: no user to compare them by"
    low, high = found["low"] or 0.0, found["high"] or 0.0
    if change == 0:
        ties = " (not certain: ties)" if tie_width(document) else ""
        return f"{own} is level with {beside}{ties}"
    if told(document["protocol"]):
        return f"{own}; {beside}, which has not learned from them: no verdict"
    word = "beats" if change > 0 else "LOSES to"
    certain = "" if low > 0 or high < 0 else ", not certain"
    if tie_width(document) > abs(change):
        certain = ", not certain: ties"
    how_sure = sureness(found["low"], found["high"])
    return f"{own} {word} {beside} by {_short(abs(change))} ({how_sure}{certain})"


def tie_width(document: Document) -> float:
    """Computes how far the order of equal scores could move the served NDCG@10.

    Args:
        document: of an evaluation.

    Returns:
        The highest less the lowest figure; 0 where a document does not say.
    """
    ties = document.get("ties")
    return ties["highest"] - ties["lowest"] if ties else 0.0


def _short(value: float) -> str:
    return f"{value:.4f}"
