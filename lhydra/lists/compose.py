"""All rules of a set, one after the other, over the candidates of one request."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64
from lhydra.lists.calibration import calibrate, error
from lhydra.lists.caps import DUPLICATE, FREE, admit, fill
from lhydra.lists.diversity import contenders, dpp, mmr
from lhydra.lists.labels import Labels
from lhydra.lists.slots import F64, Placed, place
from lhydra.rules import Applied, Rules

PLACES = "places"  # the step that fills places kept, drawn and pinned

SPREAD = 200  # places that diversity fills, nobody looks at more at once: its cost grows with their square and more


@dataclass(frozen=True)
class Candidates:
    """n scored candidates, best first by `scores`, and what the rules look at; what no rule needs is left out.

    Args:
        scores: (n,) 0 or more, what orders them without rules.
        factors: (n,) boosts.
        pins: candidate by place, from 0; at most k.
        caps: labels by column, with the most tracks per value.
        groups: (n,) the recording that each is of, below 0 for one that is known to be alone.
        vectors: of so many positions, float32 of unit norm.
        mix: labels to calibrate, and the shares of the user's own plays.
        fresh: (n,) which are new.
    """

    scores: F64
    factors: F64 | None = None
    pins: Mapping[int, int] = field(default_factory=dict)
    caps: Sequence[tuple[str, Labels, int]] = ()
    groups: I64 | None = None
    vectors: Callable[[I64], F32] | None = None
    mix: tuple[Labels, F64] | None = None
    fresh: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Composed:
    """The list: positions among the candidates, and what the rules did.

    `propensity` is the chance with which each track came to its place, None without exploration. `moved_by` names, for
    each track, the rules that brought it into the list or further up. `short` says that caps or duplicates had to give
    way, so that other candidates would help; `free` are those against which neither stands, all of them in the list
    where it is short. `steps` are the rules in the order in which they acted, each with the order before and after it;
    of places kept, drawn and pinned, `why` tells which rule filled each.
    """

    order: I64
    propensity: F32 | None
    moved_by: tuple[tuple[str, ...], ...]
    applied: tuple[Applied, ...]
    short: bool
    free: I64
    steps: tuple[tuple[str, I64, I64], ...] = ()
    why: tuple[str, ...] = ()


def compose(rules: Rules, candidates: Candidates, k: int, seed: int = 0, even_short: bool = True) -> Composed:
    """Makes a list of candidates by the rules.

    Args:
        rules: what to do; blocked tracks are not among the candidates.
        candidates: what there is.
        k: how many tracks.
        seed: of the draws.
        even_short: False ends once caps and duplicates are found to leave too few, for whoever then looks for others.

    Returns:
        A list of min(k, n) distinct candidates; none in a list that ended early.
    """
    applied: list[Applied] = []
    steps: list[tuple[str, I64, I64]] = []
    moved_by: dict[int, list[str]] = {}
    pinned = np.array(sorted(candidates.pins.values()), np.int64)
    k = min(k, len(candidates.scores))
    need = k - len(pinned)

    def note(rule: str, before: I64, after: I64, gave_way: str = "", only: I64 | None = None) -> None:
        moved = _raised(before[:k].tolist(), after[:k].tolist())
        if only is not None:
            moved &= set(only.tolist())
        for one in moved:
            moved_by.setdefault(one, []).append(rule)
        applied.append(Applied(rule, len(moved), gave_way))
        steps.append((rule, before, after))

    scores = candidates.scores
    plain = order = np.arange(len(scores))
    if candidates.factors is not None:
        scores = scores * candidates.factors
        order = np.argsort(-scores, kind="stable")
        note("boost", plain, order, only=np.flatnonzero(candidates.factors > 1))
    if len(pinned):
        order = order[~np.isin(order, pinned)]
    order, free, short = _admitted(candidates, pinned, order, need, note)
    admitted = np.concatenate([pinned, order[:free]]) if short else order[:0]
    if short and not even_short:
        return Composed(order[:0], None, (), (), short, admitted)
    if rules.diversity is not None and rules.diversity.strength > 0 and candidates.vectors is not None:
        odds = (scores / (1 - np.minimum(candidates.scores, 1 - 1e-6)))[order[:free]]
        spread, strength, is_dpp = min(need, SPREAD), rules.diversity.strength, rules.diversity.method == "dpp"
        able = contenders(odds, spread, strength) if is_dpp else np.arange(free)
        vectors = candidates.vectors(order[able])
        chosen = able[(dpp if is_dpp else mmr)(odds[able], vectors, spread, strength)]
        before, order = order, _first(order, chosen)
        note("diversity", before, order, f"only the first {SPREAD} places" if need > SPREAD else "")
    placed: Placed | None = None

    def filled(order: I64, exploring: bool) -> Placed:
        return place(
            order,
            k,
            pins=candidates.pins,
            fresh=candidates.fresh,
            fresh_slots=rules.fresh.slots if rules.fresh else 0,
            scores=scores,
            explore=rules.explore if exploring else None,
            seed=seed,
        )

    if candidates.mix is not None and rules.calibration is not None:
        labels, wanted = candidates.mix
        relevance = np.sort(scores[order[:free]])[::-1]  # where an order was made by other rules, its places count
        held = labels.take(pinned).shares() * len(pinned) if len(pinned) else None
        chosen = calibrate(relevance, labels.take(order[:free]), wanted, need, rules.calibration.strength, held)
        after = _first(order, chosen)
        errors = [
            error(wanted, labels.take(filled(one, False).order).shares())
            if rules.fresh or len(pinned)
            else error(wanted, labels.take(one[:k]).shares())
            for one in (order, after)
        ]
        if errors[1] <= errors[0]:  # greedy may end worse: then nothing is gained by it
            note("calibration", order, after)
            order = after
        else:
            applied.append(Applied("calibration", 0))
    elif rules.calibration is not None:
        applied.append(Applied("calibration", 0, "no play of the user has a value in the column"))
    if candidates.pins or rules.fresh or rules.explore:
        placed = filled(order, True)
        for rule, asked in (("fresh", rules.fresh), ("explore", rules.explore), ("pin", rules.pins)):
            if asked:
                there = [int(one) for one, why in zip(placed.order, placed.why, strict=True) if why == rule]
                for one in there:
                    moved_by.setdefault(one, []).append(rule)
                gave_way = f"{placed.unmet} places without a new track" if rule == "fresh" and placed.unmet else ""
                applied.append(Applied(rule, len(there), gave_way))
        steps.append((PLACES, order, placed.order))
        order = placed.order
    order = order[:k]
    propensity = placed.propensity if placed is not None and rules.explore is not None else None
    moves = tuple(tuple(moved_by.get(one, ())) for one in order.tolist())
    why = placed.why if placed is not None else ()
    return Composed(order, propensity, moves, tuple(applied), short, admitted, tuple(steps), why)


def _admitted(
    candidates: Candidates, pinned: I64, order: I64, need: int, note: Callable[..., None]
) -> tuple[I64, int, bool]:
    """Applies collapse and caps.

    Returns the order with those let in after all at its end, how many are free, and whether these are too few.
    """
    if candidates.groups is None and not candidates.caps:
        return order, len(order), False
    everyone = np.concatenate([pinned, order]) if len(pinned) else order
    groups = None if candidates.groups is None else candidates.groups[everyone]
    caps = [(labels.take(everyone), most) for _, labels, most in candidates.caps]
    against = admit(len(everyone), caps, groups, len(pinned))
    let_in, duplicates, over = fill(against, caps, need + len(pinned))
    own = against[len(pinned) :]
    if groups is not None:
        gave = f"{duplicates} duplicates shown: no other candidate was left" if duplicates else ""
        after = order[own != DUPLICATE]
        note("collapse", order, after if not duplicates else np.concatenate([after, everyone[let_in]]), gave)
        order, own = order[own != DUPLICATE], own[own != DUPLICATE]
    free = order[own == FREE]
    whole = np.concatenate([free, everyone[let_in]])
    if caps:
        name = "cap " + ", ".join(column for column, _, _ in candidates.caps)
        note(name, order, whole, f"{over} tracks pass it: no other candidate was left" if over else "")
    return whole, len(free), len(free) < need


def _first(order: I64, chosen: I64) -> I64:
    """The chosen places of an order first, then the others as they were."""
    left = np.ones(len(order), np.bool_)
    left[chosen] = False
    return np.concatenate([order[chosen], order[left]])


def _raised(before: list[int], after: list[int]) -> set[int]:
    """Who has come into a list, or passed someone who stays in it."""
    if before == after:
        return set()
    was = {one: at for at, one in enumerate(before)}
    raised = {one for one in after if one not in was}
    kept = [was[one] for one in after if one in was]
    return raised | {before[one] for one, usual in zip(kept, sorted(kept), strict=True) if one > usual}
