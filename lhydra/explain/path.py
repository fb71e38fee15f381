"""One track of one request through every stage: what dropped it, where it came from, its ranks, and its place."""

from dataclasses import dataclass

import numpy as np

from lhydra.bundle.candidates import NEAREST
from lhydra.bundle.columns import normalised
from lhydra.bundle.decay import repeatable
from lhydra.bundle.exact import best_first
from lhydra.domain import F16, F32, I64, Query, Repeat, Tier
from lhydra.explain.sources import PINNED, sources_of
from lhydra.limits import MAX_DEPTH
from lhydra.lists.compose import PLACES
from lhydra.recommender import Recommender
from lhydra.traced import NO_ROWS, Traced

REMOVED, EXCLUDED, BLOCKED, HEARD = "removed", "exclude_track_ids", "rules.blocks", "heard"  # what drops, with filters
DEPTH, INDEX, SCORE = "depth", "index", "score"  # what stops what nothing drops, beside the names of rules

IN_CACHE = 4_096  # vectors that are widened at a time


@dataclass(frozen=True)
class Step:
    """What a rule did to the track: its place before and after, from 1; 0 where it has none."""

    rule: str
    before: int
    after: int


@dataclass(frozen=True)
class Path:
    """A track on its way through a request.

    Args:
        row: of the catalog, -1 for a track that it does not hold: then nothing else is known.
        place: in the list, from 1; 0 for a track that is not in it.
        stopped_at: the stage that it did not pass: catalogue, exclude, retrieve, rerank, select; "" in the list.
        stopped_by: what stopped it there: the first of `dropped_by`, depth (too far, or other sources had its place),
            index (which missed a track that is near enough), score, or the rule that took its place.
        dropped_by: all that keeps it from the candidates: removed, exclude_track_ids, rules.blocks, a field of the
            filter, heard.
        sources: where it came from as a candidate.
        exact_rank: among all tracks that may be returned, by the cosine alone, from 1; 0 without a user vector.
        index_rank: among what the index finds, from 1; 0 where it is not among the first MAX_DEPTH.
        depth: candidates asked for.
        candidates: how many reached the head.
        is_candidate: whether it was one of them.
        head_rank: its place among the candidates by what orders them, from 1; for another track the one it would have.
            Of a listener of whom nothing is known: its place in the charts.
        logit: of the head, raw.
        score: as in the list.
        cosine: of user and track vector.
        steps: what each rule did to it, in the order in which they acted.
    """

    row: int
    tier: Tier
    place: int = 0
    stopped_at: str = ""
    stopped_by: str = ""
    dropped_by: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    exact_rank: int = 0
    index_rank: int = 0
    depth: int = 0
    candidates: int = 0
    is_candidate: bool = False
    head_rank: int = 0
    logit: float = 0.0
    score: float = 0.0
    cosine: float = 0.0
    steps: tuple[Step, ...] = ()


def path_of(recommender: Recommender, traced: Traced, row: int) -> Path:
    """Reads the way of one track.

    Args:
        recommender: that answered.
        traced: the request, answered.
        row: of the track, -1 for one that the catalog does not hold.

    Returns:
        The way.
    """
    answer = traced.answer
    assert answer is not None
    assert traced.candidates is not None or traced.tier is Tier.POPULAR
    if row < 0:
        return Path(row, traced.tier, stopped_at="catalogue", stopped_by="unknown")
    place = _place(answer.rows, row)
    dropped = dropped_by(recommender, traced, row)
    depth = recommender.depth_of(traced.query)
    if traced.tier is Tier.POPULAR:
        rows, share = traced.most_played(recommender.catalog, len(recommender.catalog))
        found = traced.made.rows if traced.made is not None else rows[: traced.query.k]
        rank, score = _place(rows, row), float(share[rows == row][0]) if row in rows else 0.0
        is_candidate = row in found
        logit = score
        exact = index_rank = 0
        cosine = 0.0
    else:
        rows, keys, logits, scores, cosines = _scored(recommender, traced)
        at = np.flatnonzero(rows == row)
        is_candidate, found = bool(len(at)), rows
        if is_candidate:
            order = best_first(rows, keys, len(rows))
            rank, at_row = _place(rows[order], row), int(at[0])
            logit, score, cosine = float(logits[at_row]), float(scores[at_row]), float(cosines[at_row])
        else:
            one = np.array([row])
            own_logit, own_score, own_key = recommender.scored(traced, one)
            rank = 1 + int(np.count_nonzero((keys > own_key[0]) | ((keys == own_key[0]) & (rows < row))))
            logit, score = float(own_logit[0]), float(own_score[0])
        cosine, exact = _exact_rank(recommender, traced, row)
        index_rank = _index_rank(recommender, traced, row, exact)
    steps = _steps(traced, row)
    missed = exact <= depth and row not in traced.brought.get(NEAREST, NO_ROWS)
    stopped_at, stopped_by = _stopped(traced, place, dropped, is_candidate, rank, missed, steps)
    return Path(
        *(row, traced.tier, place, stopped_at, stopped_by, dropped),
        sources=sources_of(recommender, traced, np.array([row]))[0] if is_candidate else (),
        exact_rank=exact,
        index_rank=index_rank,
        depth=depth,
        candidates=len(found),
        is_candidate=is_candidate,
        head_rank=rank,
        logit=logit,
        score=score,
        cosine=cosine,
        steps=steps,
    )


def dropped_by(recommender: Recommender, traced: Traced, row: int) -> tuple[str, ...]:
    """Lists all that keeps a track from being a candidate.

    Args:
        recommender: that answered.
        traced: the request.
        row: of the catalog.

    Returns:
        Names, those that no request can lift first.
    """
    query, catalog, filters = traced.query, recommender.catalog, recommender.bundle.filters
    found = [REMOVED] if row in catalog.removed else []
    found += [EXCLUDED] if row in catalog.rows(query.exclude) else []
    if (prepared := traced.prepared) is not None:
        blocked = bool(prepared.conditions) and not filters.mask(prepared.conditions)[row]
        found += [BLOCKED] if blocked or row in prepared.blocked else []
    found += [one.where.rstrip(".") for one in normalised(query.filter) if not filters.mask((one,))[row]]
    return (*found, *([HEARD] if _is_heard(recommender, query, row) else []))


def _is_heard(recommender: Recommender, query: Query, row: int) -> bool:
    if query.repeat is Repeat.ALLOW or row not in recommender.catalog.rows(query.state.heard):
        return False
    return query.repeat is not Repeat.DECAY or row not in repeatable(recommender.catalog, query)[0]


def _scored(recommender: Recommender, traced: Traced) -> tuple[I64, F32, F32, F32, F32]:
    """Rows of the candidates, what orders them, logits, scores, cosines."""
    if (made := traced.made) is not None:
        return made.rows, made.keys, made.logits, made.scores, made.cosines
    assert traced.candidates is not None
    assert traced.scored is not None
    logits, scores, keys = traced.scored
    return traced.candidates[0], keys, logits, scores, traced.candidates[1]


def _exact_rank(recommender: Recommender, traced: Traced, row: int) -> tuple[float, int]:
    """The cosine of a track, and its rank by that among all that may be returned, itself in any case."""
    assert traced.vector is not None
    near = _cosines(recommender.catalog.vectors, traced.vector[0])
    own = near[row]
    near[traced.excluded] = near[recommender.catalog.removed] = -np.inf
    if traced.eligible is not None:
        near[~traced.eligible.mask] = -np.inf
    return float(own), 1 + int(np.count_nonzero(near > own)) + int(np.count_nonzero(near[:row] == own))


def _cosines(vectors: F16, vector: F32) -> F32:
    """Inner products with all vectors; halves are widened by their bits, which is three times as fast as a cast.

    Shifted into the places of a float32, the bits of a half say 2^-112 of its number.
    """
    near, scaled = np.empty(len(vectors), np.float32), vector * np.float32(2.0**112)
    halves = vectors.view(np.int16)
    for at in range(0, len(vectors), IN_CACHE):
        bits = halves[at : at + IN_CACHE].astype(np.int32)
        bits <<= 13
        bits &= ~(7 << 28)  # what the sign was carried through
        np.dot(bits.view(np.float32), scaled, out=near[at : at + IN_CACHE])
    return near


def _index_rank(recommender: Recommender, traced: Traced, row: int, exact: int) -> int:
    """The rank by the index: in what it found, else in a wider search, where the exact rank leaves hope."""
    nearest = traced.found_nearest
    if (place := _place(nearest, row)) or exact > MAX_DEPTH:
        return place
    return _place(recommender.find(traced, min(2 * exact + len(nearest), MAX_DEPTH))[0], row)


def _steps(traced: Traced, row: int) -> tuple[Step, ...]:
    """What each rule did: places of one candidate before and after."""
    if traced.made is None:
        return ()
    made = traced.made
    at = np.flatnonzero(made.rows[made.order] == row)
    if not len(at):
        return ()
    found = []
    for rule, before, after in made.composed.steps:
        was, now = _place(before, int(at[0])), _place(after, int(at[0]))
        if rule == PLACES:
            rule = (now and made.composed.why[now - 1]) or PLACES
        found.append(Step(rule, was, now))
    return tuple(found)


def _stopped(
    traced: Traced,
    place: int,
    dropped: tuple[str, ...],
    is_candidate: bool,
    rank: int,
    missed: bool,
    steps: tuple[Step, ...],
) -> tuple[str, str]:
    if place:
        return "", ""
    if dropped and not is_candidate:
        return "exclude", dropped[0]
    if traced.tier is not Tier.POPULAR and not is_candidate:
        return "retrieve", INDEX if missed else DEPTH
    k = traced.query.k
    if rank > k or traced.made is None:
        return "rerank" if traced.tier is not Tier.POPULAR else "select", SCORE
    lost = [step.rule for step in steps if 0 < step.before <= k and not 0 < step.after <= k]
    return "select", lost[-1] if lost else PINNED  # who is pinned takes a place without a step


def _place(rows: I64, row: int) -> int:
    """The place of a row, from 1; 0 where it is not among them."""
    at = np.flatnonzero(rows == row)
    return int(at[0]) + 1 if len(at) else 0
