"""Tracks like given ones: by what is heard together, by what follows, and by their vectors, which know content too.

A candidate's likeness to the seeds is a sum of PARTS, each a mean over the seeds, weighted by WEIGHTS: the cosine of
the vectors (a track that nobody has played has one), the weight in the co-listening table, the weights in the tables
of sequences, and the log of the candidate's own audience. `benchmarks.similar` chooses the weights on held-out plays.
For a user, the most alike are put in the order of the user's head.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lhydra.bundle.candidates import encode_states, moment_of
from lhydra.bundle.exact import selected
from lhydra.domain import F32, I64, Hashes, Query, Recommendation, Repeat, Tier
from lhydra.errors import InvalidRequest
from lhydra.features.histories import EncodedUsers
from lhydra.recommender import SKIP_WEIGHT as SKIP_WEIGHT
from lhydra.recommender import Recommender
from lhydra.ruled import Asked
from lhydra.timing import timed
from lhydra.traced import Traced, no_check

PARTS = ("vectors", "together", "follows", "shares", "audience")
WEIGHTS = (1.0, 0.0, 0.16, 0.04, 0.25)  # and RARE: chosen on valid folds; what is heard together the vectors know too
RARE = 3e-3  # share of listeners that is added: what few have played is not much more unlike than what more have
PERSONAL_PLACES, PERSONAL_FACTOR = 50, 3  # of the most alike so many, or so many for each place, a user's head orders

_BEHIND = np.float32(1000)  # far below any logit
_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class SimilarQuery:
    """What is asked for.

    seeds, dislikes: hashes of tracks. query: how many, without what, under which filter and rules. personal: whether
    `query.state` is of a user who orders the most alike.
    """

    seeds: Hashes
    query: Query
    dislikes: Hashes
    personal: bool = False


class Similar:
    """Finds tracks like given ones in one bundle; safe to use from several threads.

    Args:
        recommender: whose filters, search and rules are shared; kept as an attribute.
    """

    def __init__(self, recommender: Recommender) -> None:
        self.recommender, self._bundle = recommender, recommender.bundle

    def find(self, asked: SimilarQuery, check: Callable[[], None] = no_check) -> Recommendation:
        """Returns exactly k tracks, or all that are eligible, the most alike first, ties by track id.

        Args:
            asked: the seeds, of which those that the catalog does not hold are left out.
            check: called between stages; what it raises stops the work.

        Returns:
            The answer, its scores from 0 to 1; never a seed or a dislike among its tracks.

        Raises:
            InvalidRequest: the catalog holds none of the seeds.
        """
        recommender = self.recommender
        seeds = self.known(asked.seeds)
        if not len(seeds):
            raise InvalidRequest("track_ids", "no track of this bundle", "1 or more that it holds")
        dislikes = self.known(asked.dislikes)
        exclude = np.concatenate([asked.query.exclude, asked.seeds, asked.dislikes])
        request = Traced(replace(asked.query, exclude=exclude, repeat=Repeat.ALLOW), check)
        request.tier = Tier.HISTORY
        check()
        with timed("exclude", request.stage_us):
            recommender._exclude(request)
        if asked.personal:
            self._encode(request)
        with timed("embed", request.stage_us):
            request.vector = self._direction(seeds, dislikes)
        check()
        likeness = _Likeness(self, seeds, request.vector)

        def find(depth: int, known: I64 = _NO_ROWS) -> tuple[I64, F32]:
            with timed("retrieve", request.stage_us):
                return self._united(request, likeness, depth, known)

        found = find(recommender.depth_of(request.query))
        most = max(PERSONAL_PLACES, PERSONAL_FACTOR * request.query.k)
        least = _at(likeness.of(found[0]), most) if asked.personal else np.inf

        def score(rows: I64) -> tuple[F32, F32, F32]:
            alike = likeness.of(rows)
            return self._personal(request, rows, alike, least) if asked.personal else (alike, _sigmoid(alike), alike)

        if request.prepared is not None:
            rules = Asked(
                *(request.query, request.prepared, request.tier, self._played(request), request.eligible),
                *(request.barred, request.stage_us, check),
            )
            return recommender._ruled.make(rules, found, find, score, request.vector).answer(rules)
        rows, cosines = found
        with timed("rerank", request.stage_us):
            logits, scores, key = score(rows)
        check()
        with timed("select", request.stage_us):
            best = selected(rows, logits, scores, key, cosines, request.query.k)
            return Recommendation(*best, rows, cosines, request.tier, request.stage_us)

    def parts_of(self, seeds: I64, depth: int) -> tuple[I64, F32]:
        """Computes what likeness is the sum of, for the tracks that come into question.

        Args:
            seeds: (s,) rows, distinct.
            depth: how many of the nearest by vector come into question, beside all that the tables know.

        Returns:
            (n,) rows, ascending, without the seeds, and (n, len(PARTS)) their parts.
        """
        vector = self._direction(seeds, _NO_ROWS)
        likeness = _Likeness(self, seeds, vector)
        near, _ = self._bundle.index.search(vector, depth + len(seeds))
        rows = np.setdiff1d(np.union1d(near, likeness.others), seeds)
        return rows, likeness.parts(rows)

    def known(self, tracks: Hashes) -> I64:
        """Returns the rows of those tracks that the catalog holds.

        Args:
            tracks: hashes, repeats allowed.

        Returns:
            Distinct rows, ascending.
        """
        rows = np.unique(self._bundle.catalog.rows(tracks))
        return rows[rows >= 0]

    @cached_property
    def rows_of_items(self) -> npt.NDArray[np.int32]:
        """The row of the catalog that each row of the co-listening table is about, -1 where none is."""
        catalog = self._bundle.catalog
        rows = np.full(len(catalog.neighbours), -1, np.int32)
        rows[catalog.item_rows] = np.arange(len(catalog), dtype=np.int32)
        rows[0] = -1
        return rows

    def _direction(self, seeds: I64, dislikes: I64) -> F32:
        vectors = self._bundle.catalog.vectors
        vector = vectors[seeds].astype(np.float32).mean(0)
        if len(dislikes):
            vector = vector - SKIP_WEIGHT * vectors[dislikes].astype(np.float32).mean(0)
        unit: F32 = (vector / np.maximum(np.linalg.norm(vector), np.float32(1e-6)))[None]
        return unit

    def _united(self, request: Traced, likeness: "_Likeness", depth: int, known: I64) -> tuple[I64, F32]:
        """The nearest, and whatever the tables know, of what may be returned: at least min(depth, left) rows."""
        rows, cosines = self.recommender.find(request, depth, known)
        more = likeness.others
        if request.eligible is not None:
            more = more[request.eligible.mask[more]]
        catalog = self._bundle.catalog
        more = np.setdiff1d(more, np.concatenate([rows, known, request.excluded, catalog.removed]))
        assert request.vector is not None
        near = catalog.vectors.take(more, 0).astype(np.float32) @ request.vector[0]
        return np.concatenate([rows, more]), np.concatenate([cosines, near])

    def _encode(self, request: Traced) -> None:
        with timed("encode", request.stage_us):
            request.user = encode_states(self._bundle, [request.query.state])
            request.tier = self.recommender._tier(request.query, request.user)
            request.moment = moment_of(self._bundle, request.query.state, request.user, request.query.now)

    def _played(self, request: Traced) -> I64:
        return request.user.histories.rows if request.user is not None else np.empty(0, np.int64)

    def _personal(self, request: Traced, rows: I64, alike: F32, least: float) -> tuple[F32, F32, F32]:
        """The head's logits and scores of the most alike; all others lie behind them, by likeness."""
        user: EncodedUsers | None = request.user
        assert user is not None
        near, logits, scores, key = alike >= least, alike.copy(), _sigmoid(alike), alike - _BEHIND
        if near.any():
            vector = self.recommender._user_vector(user, request.query.state)
            logits[near], scores[near] = self._bundle.score(vector, user, rows[near], request.moment)
            key[near] = logits[near]
            scores[~near] *= scores[near].min()
        return logits, scores, key


class _Likeness:
    """How much tracks are like some seeds.

    Args:
        similar: whose tables tell.
        seeds: (s,) rows, distinct.
        vector: (1, dim) of them together.
    """

    def __init__(self, similar: Similar, seeds: I64, vector: F32) -> None:
        self._catalog, self._vector, self._seeds = similar._bundle.catalog, vector, seeds
        catalog, sequences = self._catalog, similar._bundle.sequences
        items = catalog.item_rows[seeds]
        self._items = items[items > 0]
        near = catalog.neighbours[self._items].ravel()
        weights = catalog.neighbour_weights[self._items].astype(np.float32).ravel()
        rows = similar.rows_of_items[near]
        there = (weights > 0) & (rows >= 0)
        self._tables = [_summed(rows[there].astype(np.int64), weights[there], len(seeds))]
        others, weights, _, follow = sequences.others(seeds)
        for part in (slice(follow), slice(follow, None)):  # what follows, what shares sessions
            self._tables.append(_summed(others[part].astype(np.int64), weights[part], len(seeds)))
        self.others = np.unique(np.concatenate([rows for rows, _ in self._tables]))

    def of(self, rows: I64) -> F32:
        """Returns the likeness of rows, (n,) float32, finite."""
        likeness: F32 = (self.parts(rows) * np.array(WEIGHTS, np.float32)).sum(1)
        return likeness

    def parts(self, rows: I64) -> F32:
        """Returns the PARTS of the likeness of rows, (n, len(PARTS)) float32, finite."""
        catalog = self._catalog
        together, follows, shares = (_looked_up(part, rows) for part in self._tables)
        parts: F32 = np.stack(
            [
                catalog.vectors.take(rows, 0).astype(np.float32) @ self._vector[0],
                np.sqrt(together + self._of_candidates(rows)),
                _relative(follows, self._tables[1]),
                _relative(shares, self._tables[2]),
                np.log(catalog.share.take(rows) + np.float32(RARE)),
            ],
            1,
        )
        return parts

    def _of_candidates(self, rows: I64) -> F32:
        """What the candidates' own lines of the table say of the seeds."""
        catalog = self._catalog
        items = catalog.item_rows.take(rows)
        hits = np.isin(catalog.neighbours.take(items, 0), self._items)
        weights = np.where(hits, catalog.neighbour_weights.take(items, 0).astype(np.float32), 0).sum(1)
        mean: F32 = np.maximum(weights, 0).astype(np.float32) / np.float32(len(self._seeds))
        return mean


def _summed(rows: I64, weights: F32, n: int) -> tuple[I64, F32]:
    """Distinct rows, ascending, and the sum of the weights of each, by the number of seeds."""
    distinct, at = np.unique(rows, return_inverse=True)
    return distinct, np.asarray(np.bincount(at, weights, len(distinct)) / n, np.float32)


def _looked_up(part: tuple[I64, F32], rows: I64) -> F32:
    """The weight of each row, 0 where the part does not hold it."""
    held, weights = part
    if not len(held):
        return np.zeros(len(rows), np.float32)
    at = np.minimum(np.searchsorted(held, rows), len(held) - 1)
    return np.where(held[at] == rows, weights[at], np.float32(0))


def _relative(weights: F32, part: tuple[I64, F32]) -> F32:
    """Weights of a table relative to its strongest, by the root: tables of few plays and of many count alike."""
    relative: F32 = np.sqrt(weights / max(float(part[1].max(initial=0)), 1e-9)).astype(np.float32)
    return relative


def _at(values: F32, place: int) -> float:
    """The value at a place from the largest, from 1; the least where there are fewer."""
    return float(-np.sort(-values)[min(place, len(values)) - 1]) if len(values) else np.inf


def _sigmoid(values: F32) -> F32:
    chances: F32 = (1 / (1 + np.exp(-values))).astype(np.float32)
    return chances
