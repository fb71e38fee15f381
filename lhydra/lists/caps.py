"""Caps and collapsed duplicates: which candidates may stand in a list together.

Both are settled before anything is chosen: of the candidates, best first, the first `most` per value stay, so that
whatever is chosen among those that stay obeys the caps.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64
from lhydra.lists.labels import Labels, Single, earlier

FREE, DUPLICATE, CAPPED = 0, 1, 2  # what stands against a candidate; the lower gives way first


def admit(n: int, caps: Sequence[tuple[Labels, int]], groups: I64 | None, first: int = 0) -> npt.NDArray[np.int8]:
    """Finds what stands against each of n candidates, which come best first.

    Args:
        n: how many.
        caps: labels of the candidates, each with the most tracks per value.
        groups: (n,) the recording that each is of, below 0 for one that is known to be alone; None collapses nothing.
        first: so many candidates are in whatever the rules say; they count towards the caps.

    Returns:
        (n,) int8: FREE, DUPLICATE of a better one, or CAPPED by better ones, which count whether free or duplicate
        only if they are free.
    """
    found = np.zeros(n, np.int8)
    if groups is not None:
        found[_repeats(groups)] = DUPLICATE
        found[:first] = FREE
    if len(caps) == 1 and not first and isinstance(labels := caps[0][0], Single):
        at = np.flatnonzero((labels.values >= 0) & (found == FREE))
        found[at[earlier(labels.values[at]) >= caps[0][1]]] = CAPPED
        return found
    if caps:
        held = [([0] * labels.size, labels.lists, most) for labels, most in caps]
        for i, why in enumerate(found.tolist()):
            if why != FREE:
                continue
            if i >= first and any(counts[code] >= most for counts, lists, most in held for code in lists[i]):
                found[i] = CAPPED
                continue
            for counts, lists, _ in held:
                for code in lists[i]:
                    counts[code] += 1
    return found


def fill(against: npt.NDArray[np.int8], caps: Sequence[tuple[Labels, int]], k: int) -> tuple[I64, int, int]:
    """Chooses whom to let in where too few are free: first duplicates that no cap stops, then whoever comes next.

    Args:
        against: (n,) what `admit` found.
        caps: as given to `admit`.
        k: how many tracks the list shall hold.

    Returns:
        Positions to append to those that are free, best first of each kind; how many of them are duplicates, and how
        many pass a cap.
    """
    short = min(k, len(against)) - int(np.count_nonzero(against == FREE))
    if short <= 0:
        return np.empty(0, np.int64), 0, 0
    free = np.flatnonzero(against == FREE)
    counts = [np.bincount(labels.take(free).codes, minlength=labels.size) for labels, _ in caps]
    let_in: list[int] = []
    for i in np.flatnonzero(against == DUPLICATE).tolist():
        if len(let_in) < short:
            own = [labels.lists[i] for labels, _ in caps]
            if all(n[code] < most for n, codes, (_, most) in zip(counts, own, caps, strict=True) for code in codes):
                for n, codes in zip(counts, own, strict=True):
                    n[codes] += 1
                let_in.append(i)
    duplicates = len(let_in)
    rest = np.setdiff1d(np.flatnonzero(against != FREE), let_in)[: short - duplicates]
    return np.concatenate([np.array(let_in, np.int64), rest]), duplicates, len(rest) if caps else 0


def _repeats(groups: I64) -> npt.NDArray[np.bool_]:
    """Which entries have the group, 0 or more, of an entry before."""
    return (earlier(groups) > 0) & (groups >= 0)
