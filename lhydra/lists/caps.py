"""Caps and collapsed duplicates: which candidates may stand in a list together.

Both are settled before anything is chosen: of the candidates, best first, the first `most` per value stay, so that
whatever is chosen among those that stay obeys the caps.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64
from lhydra.lists.labels import Labels, Single

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
        most, of = caps[0][1], labels.values.tolist()
        if groups is not None:
            of = [-1 if why else code for code, why in zip(of, found.tolist(), strict=True)]
        seen: dict[int, int] = {}
        for i, code in enumerate(of):
            if code >= 0:
                seen[code] = before = seen.get(code, -1) + 1
                if before >= most:
                    found[i] = CAPPED
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


def _ranks(codes: I64) -> I64:
    """How many entries before each have the same code."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(codes) else codes
    sizes = np.diff(np.append(starts, len(codes)))
    ranks = np.empty(len(codes), np.int64)
    ranks[order] = np.arange(len(codes)) - np.repeat(starts, sizes)
    return ranks


def _repeats(groups: I64) -> npt.NDArray[np.bool_]:
    """Which entries have the group, 0 or more, of an entry before."""
    return (_ranks(groups) > 0) & (groups >= 0)
