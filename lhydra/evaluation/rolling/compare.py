"""Two rolling evaluations of one protocol side by side: B less A, user by user, for each figure and scorer."""

from typing import TypedDict

from lhydra.errors import DataError, complain
from lhydra.evaluation.compare import PairedChange, other_protocol, paired_change, verdict
from lhydra.evaluation.rolling.baselines import useless
from lhydra.evaluation.rolling.document import DECIDES, PAIRED, RollingDocument, RollingProtocol
from lhydra.evaluation.rolling.lists import FIGURES
from lhydra.evaluation.rolling.served import SERVED


class RollingComparison(TypedDict):
    """What `lhydra compare --json` writes of two rolling documents: B less A; figures: figure, scorer, metric."""

    format: str
    a: RollingProtocol
    b: RollingProtocol
    summary: list[str]
    figures: dict[str, dict[str, dict[str, PairedChange]]]


def compare_rolling(a: RollingDocument, b: RollingDocument, names: tuple[str, str], seed: int = 0) -> RollingComparison:
    """Compares two rolling evaluations, user by user.

    Args:
        a: a document of `evaluate_rolling`.
        b: another, of the same protocol.
        names: what to call them in a complaint.
        seed: of the intervals.

    Returns:
        The differences B - A of every figure, shared scorer and metric of PAIRED, with paired 95 % intervals over the
        users that both were measured for.

    Raises:
        DataError: the two measured different things, or a model may have learned from what it was asked for.
    """
    for document, name in zip((a, b), names, strict=True):
        if doubt := document["protocol"].get("doubt"):
            raise DataError(complain(name, doubt, "a model that has not learned from what is asked for"))
    ours, theirs = a["per_user"], b["per_user"]
    if a["protocol"]["hash"] != b["protocol"]["hash"] or ours["users"] != theirs["users"]:
        raise other_protocol(dict(a["protocol"]), dict(b["protocol"]), DECIDES, names)
    figures: dict[str, dict[str, dict[str, PairedChange]]] = {
        figure: {
            name: {
                metric: paired_change(own[metric], theirs["figures"][figure][name][metric], seed) for metric in PAIRED
            }
            for name, own in ours["figures"][figure].items()
            if name in theirs["figures"][figure] and not useless(name, figure)
        }
        for figure in FIGURES
    }
    summary = []
    for figure, scorers in figures.items():
        shown = SERVED if SERVED in scorers else _best(scorers)
        if shown is None:
            raise DataError(complain(names[1], "no scorer that both have measured", f"one of those of {names[0]}"))
        summary.append(f"{figure}: {verdict(scorers[shown]['ndcg@10'], f'{shown} NDCG@10')}")
    return {
        "format": "rolling-comparison-1",
        "a": a["protocol"],
        "b": b["protocol"],
        "summary": summary,
        "figures": figures,
    }


def _best(scorers: dict[str, dict[str, PairedChange]]) -> str | None:
    """The scorer that is best in A, None where there is none."""
    return max(scorers, key=lambda name: scorers[name]["ndcg@10"]["a"] or 0.0, default=None)
