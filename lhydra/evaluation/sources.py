"""What each source of candidates adds: its share of them, and the targets that it finds, alone and with others.

A source has found what it brought, whether or not another did too. What only one has found would be lost without it,
but for what would take its place: so a track that the index found within the whole depth counts as found by `nearest`,
also where other sources took the room.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.bundle.candidates import NEAREST
from lhydra.domain import I64, Recommendation, Tier
from lhydra.evaluation.document import Sources, SourceShare
from lhydra.features.moment import SOURCES as OF_MOMENT

K = 20  # places of the served list that are looked at
POPULAR = "popular"  # where nothing is known of a user, the list is that
Tally = dict[str, npt.NDArray[np.int64]]  # by source: candidates, found, found alone, listed, listed alone
ALL = ""  # of a tally: whatever the source


def note(tally: Tally, answer: Recommendation, wanted: I64) -> None:
    """Counts one answer.

    Args:
        tally: of the answers so far, {} at first.
        answer: with its candidates and what each source brought.
        wanted: (t,) distinct catalog rows of the targets.
    """
    alone = POPULAR if answer.tier is Tier.POPULAR else NEAREST
    brought = answer.brought or {alone: answer.candidates}
    listed = np.isin(wanted, answer.rows[:K])
    found = np.isin(wanted, answer.candidates) | listed
    by = {name: np.isin(wanted, rows) & found for name, rows in brought.items()}
    several = np.sum(list(by.values()), 0) > 1
    for name, rows in brought.items():
        own = by[name]
        counts = (np.isin(answer.candidates, rows), own, own & ~several, own & listed, own & listed & ~several)
        tally[name] = tally.get(name, np.zeros(5, np.int64)) + np.array([np.count_nonzero(one) for one in counts])
    whole = np.array([len(answer.candidates), np.count_nonzero(found), 0, np.count_nonzero(listed), 0])
    tally[ALL] = tally.get(ALL, np.zeros(5, np.int64)) + whole


def unheard(found: Mapping[str, Any]) -> str:
    """Says why sources that live on the order of plays brought nothing.

    Args:
        found: `sources` of the document.

    Returns:
        A sentence, "" where they brought something or are no sources.
    """
    silent = [one.get("source") for one in found.get("by_source", ()) if not one.get("candidates")]
    names = [name for name in OF_MOMENT if name in silent]
    if not names:
        return ""
    return (
        f"{', '.join(names)}: nothing here, where users are shown as sets of tracks and what they have heard is left"
        " out; a served request knows their last plays."
    )


def described(tally: Tally, targets: int) -> Sources:
    """Writes `sources` of the document.

    Args:
        tally: of all answers.
        targets: how many there were.

    Returns:
        The whole and each source, in the order in which they came up.
    """
    candidates, found, _, listed, _ = tally.get(ALL, np.zeros(5, np.int64)).tolist()
    sources: list[SourceShare] = []
    for name, counts in tally.items():
        if name != ALL:
            own: list[int] = counts.tolist()
            share = own[0] / candidates if candidates else 0.0
            _, found_by, alone, listed_by, listed_alone = own
            facts: SourceShare = {
                "source": name,
                "candidates": share,
                "found": found_by,
                "found_alone": alone,
                "listed": listed_by,
                "listed_alone": listed_alone,
            }
            sources.append(facts)
    return {"k": K, "targets": targets, "found": found, "listed": listed, "by_source": sources}
