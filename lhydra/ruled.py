"""The rules of a request on one bundle: what they keep out, what they pin, and the list they make of the candidates."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.eligible import EligibleSet
from lhydra.bundle.exact import best_first
from lhydra.bundle.row_columns import RowColumns
from lhydra.domain import F32, I64, Condition, Query, Recommendation, Tier, track_hashes
from lhydra.limits import MAX_DEPTH
from lhydra.lists.compose import Candidates, Composed, compose
from lhydra.rules import Applied, Match, Rules
from lhydra.timing import timed

_NO_ROWS = np.empty(0, np.int64)
_LEAST_DEPTH = 3  # candidates per place of the list: rules need something to choose from
_MORE = 3  # times that as many candidates again are taken where caps or duplicates leave too few


def rules_depth(depth: int, k: int) -> int:
    """Returns how many candidates a request with rules takes.

    Args:
        depth: without rules.
        k: how many tracks it asks for.

    Returns:
        At least three for each place, as far as MAX_DEPTH goes.
    """
    return max(depth, k, min(_LEAST_DEPTH * k, MAX_DEPTH))


@dataclass(frozen=True)
class Prepared:
    """What the rules of a request say before anything is retrieved.

    conditions: that keep blocked values out; blocked: rows that are blocked by name; n_blocked: tracks of the catalog
    that are kept out; pinned: rows to pin with their places, from 0, not yet held against filter and exclusions.
    """

    conditions: tuple[Condition, ...] = ()
    blocked: I64 = field(default_factory=lambda: _NO_ROWS)
    n_blocked: int = 0
    pinned: tuple[tuple[int, int], ...] = ()
    unknown: int = 0  # pinned tracks that the catalog does not have


@dataclass(frozen=True)
class Asked:
    """A request with rules, as far as the stages before its list have come.

    history: (m,) rows that the user has played. eligible: of filter and blocked values, None where everything is.
    barred: rows that the request excludes and that are blocked, which no pin may show. stage_us: where the times go.
    check: called between stages; what it raises stops the work.
    """

    query: Query
    prepared: Prepared
    tier: Tier
    history: I64
    eligible: EligibleSet | None
    barred: I64
    stage_us: dict[str, int]
    check: Callable[[], None]


@dataclass(frozen=True)
class Made:
    """A list made by rules, and what it was made of.

    found: rows and cosines of the candidates before any were added. rows, cosines, logits, scores, keys: (n,) of all
    candidates, pinned ones included. order: (n,) their places by `keys`, best first. composed: the list, as positions
    in `order`. pins: places and rows of the pins that may be shown; refused: how many may not.
    """

    found: tuple[I64, F32]
    rows: I64
    cosines: F32
    logits: F32
    scores: F32
    keys: F32
    order: I64
    composed: Composed
    pins: Sequence[tuple[int, int]]
    refused: int

    def answer(self, asked: Asked) -> Recommendation:
        """Returns the list as an answer.

        Args:
            asked: the request that it was made for.

        Returns:
            The answer.
        """
        made, best = self.composed, self.order[self.composed.order]
        shown = set(self.rows[best].tolist())
        crowded = len({row for _, row in self.pins} - shown) if self.pins else 0
        return Recommendation(
            *(self.rows[best], self.scores[best], self.logits[best], self.cosines[best], *self.found),
            *(
                asked.tier,
                asked.stage_us,
                _told(made, asked.prepared, self.refused, crowded),
                made.moved_by,
                made.propensity,
            ),
        )


class Ruled:
    """Makes lists by rules from one bundle; safe to use from several threads.

    Args:
        bundle: whose tracks are listed.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._catalog = bundle, bundle.catalog
        self.columns = RowColumns(bundle.catalog, bundle.filters)
        self._blocks = lru_cache(64)(self._blocked)
        self._named = lru_cache(256)(lambda tracks: self._catalog.rows(track_hashes(tracks)))

    def prepare(self, query: Query) -> Prepared:
        """Finds what the rules of a request keep out and what they pin.

        Args:
            query: with rules.

        Returns:
            What retrieval must know.
        """
        rules = query.rules
        assert rules is not None
        if not (rules.blocks or rules.pins):
            return Prepared()
        matches = tuple(match for match in rules.blocks if match.holds(query.now))
        conditions, blocked, n_blocked = self._blocks(matches) if matches else ((), _NO_ROWS, 0)
        pinned, unknown = [], 0
        for pin in rules.pins:
            if pin.match.holds(query.now):
                row = int(self._named(pin.match.tracks)[0])
                unknown += row < 0
                pinned += [(pin.position - 1, row)] if row >= 0 else []
        return Prepared(conditions, blocked, n_blocked, tuple(pinned), unknown)

    def make(
        self,
        asked: Asked,
        found: tuple[I64, F32],
        find: Callable[[int, I64], tuple[I64, F32]],
        score: Callable[[I64], tuple[F32, F32, F32]],
        vector: F32 | None,
    ) -> Made:
        """Makes the list of a request by its rules, with other candidates where caps or duplicates leave too few.

        Those are looked for without the values that are full, so that a few help much, and a cap that no track could
        meet ends the search at once. Their number is bounded: a request costs at most 1 + _MORE times what one without
        rules of its depth does, whatever its caps.

        Args:
            asked: the request.
            found: rows of the candidates and their cosines.
            find: finds so many candidates besides what is excluded and some rows.
            score: of rows: the logit; the score shown; what orders them, before their rows do.
            vector: (1, dim) of the user, None where cosines say nothing.

        Returns:
            The list.
        """
        pins, refused = self._allowed(asked)
        rows, cosines = found
        depth = len(rows)
        pinned = np.array([row for _, row in pins], np.int64)
        if pins and len(more := pinned[~np.isin(pinned, rows)]):
            near = np.zeros(len(more), np.float32) if vector is None else self._vectors(more) @ vector[0]
            rows, cosines = np.concatenate([rows, more]), np.concatenate([cosines, near])
        with timed("rerank", asked.stage_us):
            scored = score(rows)
        left = _MORE
        while True:
            asked.check()
            with timed("select", asked.stage_us):
                logits, scores, keys = scored
                order = best_first(rows, keys, len(rows))
                left = left if len(rows) < MAX_DEPTH else 0
                made = self.compose(asked.query, rows[order], scores[order], pins, asked.history, not left)
            if not (made.short and left):
                break
            with timed("retrieve", asked.stage_us):
                more, near = find(
                    min(depth, MAX_DEPTH - len(rows)), self._useless(asked.query, rows, rows[order[made.free]])
                )
            if not len(more):  # that is all there is
                left = 0
                continue
            left -= 1
            rows, cosines = np.concatenate([rows, more]), np.concatenate([cosines, near])
            with timed("rerank", asked.stage_us):
                new = score(more)
                logits, scores, keys = (np.concatenate([scored[i], new[i]]) for i in range(3))
                scored = logits, scores, keys
        return Made(found, rows, cosines, logits, scores, keys, order, made, pins, refused)

    def make_popular(self, asked: Asked, find: Callable[[int, I64], tuple[I64, F32]], depth: int) -> Made:
        """Makes the list of a request of which nothing is known by its rules, from what is played most.

        Args:
            asked: the request.
            find: finds so many rows besides some, and the share of listeners of each, best first.
            depth: how many candidates to begin with.

        Returns:
            The list.
        """
        share = self._catalog.share.copy()
        place = np.zeros(len(share), np.float32)  # 0, -1, -2, … from the most played down
        least, n = np.float32(1), 0

        def found(depth: int, known: I64) -> tuple[I64, F32]:
            nonlocal least, n
            rows, own = find(depth, known)
            share[rows] = np.minimum(own, least)
            place[rows] = -np.arange(n, n + len(rows), dtype=np.float32)
            if len(rows):
                least, n = share[rows[-1]], n + len(rows)
            return rows, np.zeros(len(rows), np.float32)

        first = found(depth, _NO_ROWS)
        return self.make(asked, first, found, lambda rows: (share[rows], share[rows], place[rows]), None)

    def compose(
        self,
        query: Query,
        rows: I64,
        scores: F32,
        pins: Sequence[tuple[int, int]],
        history: I64,
        even_short: bool = True,
    ) -> Composed:
        """Makes the list of a request.

        Args:
            query: with rules.
            rows: (n,) candidates, pinned ones included, best first.
            scores: (n,) of the candidates, descending.
            pins: rows and places of the pins that may be shown.
            history: (m,) rows that the user has played.
            even_short: see `lhydra.lists.compose.compose`.

        Returns:
            The list, as positions in `rows`.
        """
        rules = query.rules
        assert rules is not None
        columns, mix = self.columns, None
        if rules.calibration is not None and len(history):
            wanted = columns.labels(rules.calibration.column, history).shares()
            mix = (columns.labels(rules.calibration.column, rows), wanted) if wanted.any() else None
        candidates = Candidates(
            scores.astype(np.float64),
            self._factors(rules, rows, query.now),
            _places(pins, rows, min(query.k, len(rows))),
            [(column, columns.labels(column, rows), most) for column, most in rules.caps],
            columns.songs(rows, rules.collapse.versions) if rules.collapse else None,
            (lambda chosen: self._vectors(rows.take(chosen))) if rules.diversity else None,
            mix,
            self._fresh(rules, rows, query.now),
        )
        return compose(rules, candidates, query.k, query.seed, even_short)

    def _useless(self, query: Query, known: I64, listed: I64) -> I64:
        """Rows that cannot help a list that is too short: the candidates, and all of the values that are full."""
        assert query.rules is not None
        full = [self.columns.full(column, listed, most) for column, most in query.rules.caps]
        return np.concatenate([known, *full])

    def _allowed(self, asked: Asked) -> tuple[list[tuple[int, int]], int]:
        """The pins that may be shown, as places and rows, and how many may not."""
        prepared, eligible = asked.prepared, asked.eligible
        if not prepared.pinned:
            return [], prepared.unknown
        out = {*asked.barred.tolist(), *self._catalog.removed.tolist()}
        kept = [
            (place, row)
            for place, row in prepared.pinned
            if row not in out and (eligible is None or bool(eligible.mask[row]))
        ]
        return kept, prepared.unknown + len(prepared.pinned) - len(kept)

    def _vectors(self, rows: I64) -> F32:
        return self._catalog.vectors.take(rows, 0).astype(np.float32)

    def _blocked(self, matches: tuple[Match, ...]) -> tuple[tuple[Condition, ...], I64, int]:
        """What keeps tracks out, the rows named, and how many tracks that are."""
        conditions = tuple(
            Condition(one.column, none_of=one.values, where="rules.blocks.") for one in matches if one.column
        )
        named = self._named(tuple(track for one in matches for track in one.tracks))
        named = named[named >= 0]
        out = ~self._bundle.filters.mask(conditions) if conditions else np.zeros(len(self._catalog), np.bool_)
        out[named] = True
        return conditions, named, int(np.count_nonzero(out))

    def _factors(self, rules: Rules, rows: I64, now: int) -> npt.NDArray[np.float64] | None:
        if not rules.boosts:
            return None
        factors = np.ones(len(rows))
        for boost in rules.boosts:
            match = boost.match
            if match.holds(now):
                own = np.isin(rows, self._named(match.tracks)) if match.tracks else np.zeros(len(rows), np.bool_)
                factors[own | self.columns.having(match.column, match.values, rows) if match.column else own] *= (
                    boost.factor
                )
        return factors

    def _fresh(self, rules: Rules, rows: I64, now: int) -> npt.NDArray[np.bool_] | None:
        fresh = rules.fresh
        if fresh is None:
            return None
        numbers = self.columns.numbers(fresh.column, rows)
        assert numbers is not None  # checked
        since = fresh.since if fresh.since is not None else time.gmtime(now).tm_year - (fresh.within or 0)
        return numbers >= since


def _places(pins: Sequence[tuple[int, int]], rows: I64, k: int) -> dict[int, int]:
    """Candidate by place, in the order of places and, for one place, of the pins: a later one takes the next below."""
    places: dict[int, int] = {}
    at = {row: i for i, row in enumerate(rows.tolist())} if pins else {}
    last = -1
    for place, row in sorted(pins, key=itemgetter(0)):
        if len(places) < k and row in at and at[row] not in places.values():
            last = max(place, last + 1)
            places[last] = at[row]
    return places


def _told(made: Composed, prepared: Prepared, refused: int, crowded: int) -> tuple[Applied, ...]:
    """What the rules did, with what happened before there was a list: blocks, and pins that may not be shown."""
    applied = list(made.applied)
    if prepared.conditions or len(prepared.blocked):
        applied.insert(0, Applied("block", prepared.n_blocked))
    if refused or crowded:
        said = [f"{refused} pinned tracks are unknown, blocked, excluded or filtered out"] if refused else []
        gave_way = "; ".join([*said, *([f"{crowded} pinned tracks had no place left"] if crowded else [])])
        applied = [one for one in applied if one.rule != "pin"]
        applied.append(Applied("pin", sum("pin" in moves for moves in made.moved_by), gave_way))
    return tuple(applied)
