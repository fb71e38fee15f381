"""Places of a list: pinned tracks at theirs, places kept for new tracks, places filled by a draw; the rest in order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64
from lhydra.rules import Explore

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Placed:
    """A list: positions of the candidates, with what chance each came to its place, and which rule put it there.

    `why` is "pin", "fresh", "explore", or "" for whatever came next. `unmet` counts places kept for new tracks for
    which there was none.
    """

    order: I64
    propensity: npt.NDArray[np.float32]
    why: tuple[str, ...]
    unmet: int


def spread(slots: int, k: int) -> list[int]:
    """Returns places spread evenly over a list, the last of them at its end.

    Args:
        slots: how many; more than k are k.
        k: places of the list.

    Returns:
        Places from 0, ascending.
    """
    slots = min(slots, k)
    return [(i + 1) * k // slots - 1 for i in range(slots)]


def chances(scores: F64, explore: Explore) -> F64:
    """Returns the chance of each candidate in a draw: a softmax over log score, with a floor.

    Args:
        scores: (n,) not negative.
        explore: temperature and epsilon.

    Returns:
        (n,) (1 - epsilon) · softmax(log score / temperature) + epsilon / n, which add up to 1.
    """
    logs = np.log(np.maximum(scores, 1e-12)) / explore.temperature
    weights = np.exp(logs - logs.max())
    mixed: F64 = (1 - explore.epsilon) * weights / weights.sum() + explore.epsilon / len(scores)
    return mixed


def place(
    order: I64,
    k: int,
    *,
    pins: Mapping[int, int] | None = None,
    fresh: npt.NDArray[np.bool_] | None = None,
    fresh_slots: int = 0,
    scores: F64 | None = None,
    explore: Explore | None = None,
    seed: int = 0,
) -> Placed:
    """Fills the places of a list.

    A place kept for a new track takes the next one that is new, unless as many stand above it already. A place that is
    explored takes a draw from the next `explore.pool` candidates. Pinned places are neither, kept places not drawn.

    Args:
        order: candidates, best first, without the pinned.
        k: places.
        pins: candidate by place, from 0; those beyond the end of the list move up, and none past another.
        fresh: by candidate, whether it is new; needed with `fresh_slots`.
        fresh_slots: places kept for new tracks.
        scores: by candidate; needed with `explore`.
        explore: how to draw.
        seed: of the draws.

    Returns:
        min(k, candidates) places filled.
    """
    pins = dict(pins or {})
    k = min(k, len(order) + len(pins))
    above = k - len(pins)  # all that are not pinned
    pins = {min(at, above + i): pins[at] for i, at in enumerate(sorted(pins))}
    free = [at for at in range(k) if at not in pins]
    kept = {free[i] for i in spread(fresh_slots, len(free))}
    rest = [at for at in free if at not in kept]
    drawn = {rest[i] for i in spread(explore.slots, len(rest))} if explore else set()
    waiting, used = order.tolist(), set[int]()
    rng = np.random.default_rng(seed) if drawn else None
    out: list[int] = []
    why, chance = [""] * k, np.ones(k, np.float32)
    at = n_fresh = n_kept = unmet = 0
    for i in range(k):
        while at < len(waiting) and waiting[at] in used:
            at += 1
        if i in pins:
            chosen, why[i] = pins[i], "pin"
        elif i in drawn and rng is not None and explore is not None and scores is not None:
            pool = [c for c in waiting[at : at + len(used) + explore.pool] if c not in used][: explore.pool]
            odds = chances(scores[pool], explore)
            j = min(int(np.searchsorted(np.cumsum(odds), rng.random(), side="right")), len(pool) - 1)
            chosen, chance[i], why[i] = pool[j], odds[j], "explore"
        else:
            chosen = waiting[at]
            n_kept += i in kept
            if i in kept and fresh is not None and n_fresh < n_kept and not fresh[chosen]:
                new = next((c for c in waiting[at:] if c not in used and fresh[c]), None)
                unmet += new is None
                if new is not None:
                    chosen, why[i] = new, "fresh"
        used.add(chosen)
        n_fresh += fresh is not None and bool(fresh[chosen])
        out.append(chosen)
    return Placed(np.array(out, np.int64), chance, tuple(why), unmet)
