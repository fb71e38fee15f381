"""One request: encode, embed, retrieve, rerank, select. The same code answers online and in batch.

Requests that wait together are answered together: what costs the same for one user as for several, encoding and the
calls into FAISS, is done once. Nobody's answer depends on who else was there, to the last bit.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import numpy.typing as npt

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import Catalog
from lhydra.bundle.eligible import EligibleSet, eligible_set, search_eligible
from lhydra.bundle.exact import best_first
from lhydra.bundle.filter_cache import FilterCache
from lhydra.bundle.index import BLAS_QUERIES
from lhydra.domain import F32, I64, Condition, Query, Recommendation, Repeat, Tier, UserState
from lhydra.errors import LhydraError, complain
from lhydra.features.histories import EncodedUsers, Histories, offsets_of
from lhydra.scratch import borrowed_mask
from lhydra.timing import timed

DEFAULT_DEPTH = 300
MAX_BATCH = min(16, BLAS_QUERIES - 1)  # requests answered together at most
OVERFETCHED_EXCLUSIONS = 256  # so many tracks are fetched beyond the depth and dropped; more are kept out of the search
SKIP_WEIGHT = 0.25  # how far skipped tracks push the user's vector away from them
RETURN_AFTER_S, RETURN_S = 7 * 86_400, 30 * 86_400  # Repeat.DECAY: when a heard track may return, and how fast it does
FILTER_BYTES = 24 * 2**20  # memory for filters that were asked for lately


def _no_check() -> None:
    pass


@dataclass(eq=False)
class _Asked:
    """A request under way."""

    query: Query
    check: Callable[[], None]
    stage_us: dict[str, int] = field(default_factory=dict)
    error: Exception | None = None
    tier: Tier = Tier.POPULAR
    eligible: EligibleSet | None = None  # what the filter lets through, None without one
    excluded: I64 = field(default_factory=lambda: np.empty(0, np.int64))  # rows that must not be returned
    user: EncodedUsers | None = None
    vector: F32 | None = None
    found: tuple[I64, F32] | None = None
    answer: Recommendation | None = None


class Recommender:
    """Answers queries from one bundle; holds no user state. Safe to call from several threads.

    bundle: what to serve; depth: candidates to rerank unless the query says otherwise, 0 for what was measured when
    the bundle was made (DEFAULT_DEPTH where nothing was).
    """

    def __init__(self, bundle: Bundle, depth: int = 0) -> None:
        self.bundle = bundle
        self.depth = depth or (bundle.manifest.depth if bundle.manifest else 0) or DEFAULT_DEPTH
        self._tracks = bundle.catalog.tracks
        self._telling = frozenset(bundle.spec.profile_columns) - {"country"}  # what makes a profile more than a country
        self._filters = FilterCache(FILTER_BYTES)
        self._all: EligibleSet | None = None
        self._lock = Lock()
        self.fallbacks = 0  # searches that came up short and were done again, wider; counted roughly under threads

    @property
    def bundle_id(self) -> str:
        """Id of the bundle being served."""
        return self.bundle.bundle_id

    @property
    def catalog(self) -> Catalog:
        """The tracks that can be recommended."""
        return self.bundle.catalog

    def recommend(self, query: Query, check: Callable[[], None] = _no_check) -> Recommendation:
        """Returns exactly k tracks, or all that are eligible, best first by raw logit, ties by track id.

        `check` is called between stages: what it raises (a deadline passed) stops the work.

        Raises:
            FeatureError: the profile does not fit the features.
        """
        answer = self.recommend_many([(query, check)])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def recommend_many(self, asked: Sequence[tuple[Query, Callable[[], None]]]) -> list[Recommendation | Exception]:
        """Answers up to MAX_BATCH queries; each gets what `recommend` returns or raises, whatever the others get.

        A stage that was gone through together counts for each with its share of the time.

        Args:
            asked: queries, each with its check, see `recommend`.

        Returns:
            An answer or an error for each.

        Raises:
            ValueError: more than MAX_BATCH queries.
        """
        if len(asked) > MAX_BATCH:
            raise ValueError(complain("queries", len(asked), f"at most {MAX_BATCH} at once"))
        requests = [_Asked(query, check) for query, check in asked]
        for request in requests:
            self._try(request, self._admit)
        self._encode_all(_going(requests))
        for request in _going(requests):
            self._try(request, self._embed if request.tier is not Tier.POPULAR else self._popular)
        self._retrieve_all(_going(requests))
        for request in _going(requests):
            self._try(request, self._rerank)
        answers = [request.answer or request.error for request in requests]
        return [answer if answer is not None else AssertionError("neither answered nor refused") for answer in answers]

    def score(self, state: UserState, rows: I64) -> tuple[F32, F32]:
        """Returns the head's raw logits and calibrated probabilities for each of `rows`, (n,) float32 each."""
        user = self.encode(state)
        return self.bundle.score(self._user_vector(user, state), user, rows)

    def encode(self, state: UserState) -> EncodedUsers:
        """Returns one encoded user; tracks that this catalog does not hold drop out of the history."""
        return self._encoded([state])

    def warm_up(self) -> None:
        """Runs requests of several shapes so that the first real one finds everything loaded."""
        hashes, names = self.catalog.hashes, self.bundle.spec.profile_columns
        for length in (0, 1, 50):
            history = np.zeros(min(length, len(hashes)), UserState().history.dtype)
            history["track"], history["count"] = hashes[: len(history)], 1
            state = UserState(dict.fromkeys(names, 1), history)
            self.recommend(Query(k=10, state=state))
            self.recommend_many([(Query(k=10, state=state), _no_check)] * 3)
        heard = hashes[: OVERFETCHED_EXCLUSIONS + 1]
        self.recommend(Query(k=10, state=UserState({}, history, heard), repeat=Repeat.EXCLUDE))

    # -- stages ------------------------------------------------------------------------------------------

    def _try(self, request: _Asked, stage: Callable[[_Asked], None]) -> None:
        try:
            request.check()
            stage(request)
        except Exception as error:
            request.error = error

    def _admit(self, request: _Asked) -> None:
        """Which rows the request rules out."""
        with timed("exclude", request.stage_us):
            query = request.query
            if query.filter:
                request.eligible = self._filters.get(query.filter, self._eligible)
            excluded = self.catalog.rows(query.exclude)
            if query.repeat is not Repeat.ALLOW:
                heard = self.catalog.rows(query.state.heard)
                if query.repeat is Repeat.DECAY:
                    heard = np.setdiff1d(heard, self._returning(query)[0])
                excluded = np.concatenate([excluded, heard]) if len(excluded) else heard
            request.excluded = excluded if excluded.min(initial=0) >= 0 else excluded[excluded >= 0]

    def _encode_all(self, requests: list[_Asked]) -> None:
        if not requests:
            return
        started_ns = time.perf_counter_ns()
        try:
            users = self._encoded([request.query.state for request in requests])
        except LhydraError as error:  # somebody's profile: find out whose
            for request in requests:
                if len(requests) == 1:
                    request.error = error
                else:
                    self._encode_all([request])
            return
        for i, request in enumerate(requests):
            request.user = users if len(requests) == 1 else users.one(i)
            request.tier = self._tier(request.query, request.user)
        _share("encode", started_ns, requests)

    def _embed(self, request: _Asked) -> None:
        assert request.user is not None
        with timed("embed", request.stage_us):
            request.vector = self._user_vector(request.user, request.query.state)

    def _retrieve_all(self, requests: list[_Asked]) -> None:
        """Candidates of every request: those without a filter and with little to leave out in one call."""
        plain = [
            r for r in requests if r.answer is None and r.eligible is None and len(r.excluded) <= OVERFETCHED_EXCLUSIONS
        ]
        deep = [request for request in plain if self._depth(request.query) > 2 * self.depth]
        together = [request for request in plain if request not in deep]
        for group in (
            together,
            *([request] for request in deep),
        ):  # a search is as wide as its widest: deep ones go alone
            if group:
                self._retrieve_together(group)
        for request in requests:
            if request.answer is None and request.found is None:
                self._try(request, self._retrieve)

    def _retrieve_together(self, requests: list[_Asked]) -> None:
        started_ns = time.perf_counter_ns()
        vectors = np.concatenate([request.vector for request in requests if request.vector is not None])
        wide = max(self._depth(request.query) + len(request.excluded) for request in requests)
        for request, (rows, cosines) in zip(requests, self.bundle.index.search_many(vectors, wide), strict=True):
            request.found = self._kept(request, rows, cosines)
        _share("retrieve", started_ns, requests)

    def _retrieve(self, request: _Asked) -> None:
        with timed("retrieve", request.stage_us):
            assert request.vector is not None
            eligible, depth = request.eligible or self._every(), self._depth(request.query)
            request.found = search_eligible(self.bundle.index, request.vector, depth, eligible, request.excluded)

    def _rerank(self, request: _Asked) -> None:
        if request.answer is not None:
            return
        assert request.found is not None
        assert request.user is not None
        assert request.vector is not None
        rows, cosines = request.found
        query = request.query
        with timed("rerank", request.stage_us):
            logits, scores = self.bundle.score(request.vector, request.user, rows)
        request.check()
        with timed("select", request.stage_us):
            key = logits
            if query.repeat is Repeat.DECAY:
                key = scores = self._decayed(query, rows, scores)
            best = best_first(rows, key, query.k)
            request.answer = Recommendation(
                rows.take(best),
                np.minimum.accumulate(scores.take(best)),  # the graph's sigmoid is not monotone to the last bit
                logits.take(best),
                cosines.take(best),
                rows,
                cosines,
                request.tier,
                request.stage_us,
            )

    def _popular(self, request: _Asked) -> None:
        """The most played tracks, of the user's country where it is known; their score is the share of listeners."""
        with timed("select", request.stage_us):
            excluded = np.zeros(len(self.catalog), np.bool_)
            excluded[request.excluded] = True
            excluded[self.catalog.removed] = True
            if request.eligible is not None:
                excluded |= ~request.eligible.mask
            k = request.query.k
            rows, share = self.catalog.chart(request.query.state.profile.get("country"))
            kept = np.flatnonzero(~excluded.take(rows))[:k]
            rows, share = rows[kept], share[kept]
            if len(rows) < k:  # then those of everywhere
                excluded[rows] = True
                wide = min(k + int(np.count_nonzero(excluded)), len(excluded))
                others = self.catalog.popular[:wide].astype(np.int64)
                others = others[~excluded.take(others)][: k - len(rows)]
                least = share[-1] if len(share) else np.float32(1)
                rows = np.concatenate([rows, others])
                share = np.concatenate([share, np.minimum(self.catalog.share[others], least)])
        nothing = np.zeros(len(rows), np.float32)
        request.answer = Recommendation(rows, share, share, nothing, rows, nothing, Tier.POPULAR, request.stage_us)

    # -- parts -------------------------------------------------------------------------------------------

    def _encoded(self, states: Sequence[UserState]) -> EncodedUsers:
        histories = [state.history for state in states]
        history = np.concatenate(histories) if len(histories) > 1 else histories[0]
        lengths = np.array([len(one) for one in histories])
        rows = self.catalog.rows(history["track"])
        counts, times = history["count"], history["time"]
        known = rows >= 0
        if not known.all():
            rows, counts, times = rows[known], counts[known], times[known]
            before = np.concatenate([[0], np.cumsum(known)])
            lengths = np.diff(before[offsets_of(lengths)])
        profiles = self.bundle.spec.encode_profile_rows([state.profile for state in states])
        return self.bundle.spec.encode_users(
            profiles, Histories(offsets_of(lengths), rows, counts, times), self._tracks
        )

    def _user_vector(self, user: EncodedUsers, state: UserState) -> F32:
        """(1, dim) the user tower's vector, pushed away from what was skipped (Rocchio 1971: negative feedback)."""
        vector = self.bundle.user_tower.embed(user, self.catalog.history)
        if len(state.skipped):
            rows = self.catalog.rows(state.skipped)
            if len(rows := rows[rows >= 0]):
                vector = vector - SKIP_WEIGHT * self.catalog.vectors[rows].astype(np.float32).mean(0)
                vector = vector / np.maximum(np.linalg.norm(vector), np.float32(1e-6))
        return vector

    def _tier(self, query: Query, user: EncodedUsers) -> Tier:
        if len(user.histories.rows):
            return Tier.PERSONAL if query.known else Tier.HISTORY
        profile = query.state.profile
        return Tier.SEGMENT if any(profile.get(name) is not None for name in self._telling) else Tier.POPULAR

    def _depth(self, query: Query) -> int:
        return max(query.depth or self.depth, query.k)

    def _kept(self, request: _Asked, rows: I64, cosines: F32) -> tuple[I64, F32] | None:
        """The first `depth` candidates not excluded; None when an approximate index came up short."""
        depth = self._depth(request.query)
        excluded = request.excluded
        if len(excluded):
            with borrowed_mask(len(self.catalog)) as marked:
                marked[excluded] = True
                kept = ~marked.take(rows)
                marked[excluded] = False
            rows, cosines = rows[kept], cosines[kept]
        if len(rows) < depth and len(rows) < self.catalog.n_eligible - len(
            np.setdiff1d(excluded, self.catalog.removed)
        ):
            self.fallbacks += 1
            return None
        return rows[:depth], cosines[:depth]

    def _eligible(self, conditions: tuple[Condition, ...]) -> EligibleSet:
        """What a filter lets through."""
        mask = self.bundle.filters.mask(conditions)
        return eligible_set(self.bundle.index, mask, self.catalog.vectors)

    def _every(self) -> EligibleSet:
        """All that may be returned to somebody."""
        with self._lock:  # several threads may come first: one of them computes
            if self._all is None:
                mask = np.ones(len(self.catalog), np.bool_)
                mask[self.catalog.removed] = False
                self._all = eligible_set(self.bundle.index, mask, self.catalog.vectors)
            return self._all

    def _returning(self, query: Query) -> tuple[I64, npt.NDArray[np.float64]]:
        """Rows of heard tracks that may return, and their probability: 1 - exp(-days since the last play / 30)."""
        history = query.state.history
        gap = np.maximum(query.now - history["time"], 0)
        back = (history["time"] > 0) & (gap >= RETURN_AFTER_S)
        rows = self.catalog.rows(history["track"][back])
        chance = -np.expm1(-gap[back] / RETURN_S)
        return rows[rows >= 0], chance[rows >= 0]

    def _decayed(self, query: Query, rows: I64, scores: F32) -> F32:
        """The scores (n,) of `rows`, those of heard tracks times the probability that they are wanted again."""
        returning, chance = self._returning(query)
        if not len(returning):
            return scores
        order = np.argsort(returning)
        returning, chance = returning[order], chance[order]
        at = np.minimum(np.searchsorted(returning, rows), len(returning) - 1)
        return np.where(returning[at] == rows, scores * chance[at], scores).astype(np.float32)


def _going(requests: list[_Asked]) -> list[_Asked]:
    return [request for request in requests if request.error is None]


def _share(stage: str, started_ns: int, requests: list[_Asked]) -> None:
    took_us = (time.perf_counter_ns() - started_ns) // 1000 // len(requests)
    for request in requests:
        request.stage_us[stage] = request.stage_us.get(stage, 0) + took_us
