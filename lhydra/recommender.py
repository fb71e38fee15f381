"""The request path: exclude, encode, embed, retrieve, rerank, select. The same code answers online and in batch.

A batch of requests shares encoding and the FAISS search, which cost nearly the same for one user as for several.
No answer depends on the other requests of the batch, to the last bit.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock

import numpy as np

from lhydra import kernels
from lhydra.bundle.arrays import all_known
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.candidates import StateRows, brought, encode_states, moment_of
from lhydra.bundle.columns import normalised
from lhydra.bundle.decay import decayed_scores, repeatable
from lhydra.bundle.eligible import EligibleSet, eligible_set, search_eligible
from lhydra.bundle.exact import selected
from lhydra.bundle.filter_cache import FilterCache
from lhydra.bundle.index import BLAS_QUERIES
from lhydra.domain import F32, I64, Condition, Query, Recommendation, Repeat, Tier, UserState
from lhydra.errors import complain
from lhydra.features.histories import EncodedUsers
from lhydra.known_users import KnownUsers
from lhydra.ruled import Ruled, rules_depth
from lhydra.scratch import borrowed_mask
from lhydra.traced import NO_ROWS, Traced, no_check, run_stage, share_time, unfinished

DEFAULT_DEPTH = 300
MAX_BATCH = min(16, BLAS_QUERIES - 1)  # requests in one call of recommend_many
MAX_OVERFETCHED_EXCLUSIONS = 256  # up to so many, excluded tracks are fetched beyond the depth and dropped afterwards
SKIP_WEIGHT = 0.25  # of the mean vector of skipped tracks, subtracted from the user vector
FILTER_CACHE_BYTES = 24 * 2**20
KNOWN_USERS_BYTES = 16 * 2**20
LEARNT_AS_DECAY = "repeat_policy learnt: this bundle's model knows nothing of repeats; answered as decay"


class Recommender:
    """Answers queries from one bundle; holds no user state. Safe to call from several threads.

    Args:
        bundle: what to serve.
        depth: candidates to rerank unless the query says otherwise; 0 for the depth measured when the bundle was made
            (DEFAULT_DEPTH where none was).
    """

    def __init__(self, bundle: Bundle, depth: int = 0) -> None:
        self.bundle, self.catalog = bundle, bundle.catalog
        self.depth = depth or (bundle.manifest.depth if bundle.manifest else 0) or DEFAULT_DEPTH
        self._filters = FilterCache(FILTER_CACHE_BYTES)
        self.known_users = KnownUsers(bundle, KNOWN_USERS_BYTES)
        self._ruled = Ruled(bundle)
        self._all_eligible: EligibleSet | None = None
        self._lock = Lock()
        self.fallbacks = 0  # searches that came up short and were repeated, wider; counted roughly under threads

    @property
    def bundle_id(self) -> str:
        """Id of the bundle being served."""
        return self.bundle.bundle_id

    @property
    def knows_repeats(self) -> bool:
        """Whether the head has learnt what is played again; without it, Repeat.LEARNT is answered as DECAY."""
        return self.bundle.head.knows_moments

    def recommend(self, query: Query, check: Callable[[], None] = no_check) -> Recommendation:
        """Returns exactly k tracks, or all that are eligible, best first by raw logit, ties by track id.

        Args:
            query: what to answer.
            check: called between stages; what it raises (a deadline passed) stops the work.

        Returns:
            The answer.

        Raises:
            FeatureError: the profile does not fit the features.
        """
        answer = self.recommend_many([(query, check)])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def recommend_many(self, queries: Sequence[tuple[Query, Callable[[], None]]]) -> list[Recommendation | Exception]:
        """Answers up to MAX_BATCH queries; each gets what `recommend` returns or raises, whatever the others get.

        The time of a stage that requests share is divided equally among them in `stage_us`.

        Args:
            queries: each with its check, see `recommend`.

        Returns:
            An answer or an error for each.

        Raises:
            ValueError: more than MAX_BATCH queries.
        """
        if len(queries) > MAX_BATCH:
            raise ValueError(complain("queries", len(queries), f"at most {MAX_BATCH} at once"))
        answers = [traced.answer or traced.error for traced in self.trace_many(queries)]
        return [answer if answer is not None else AssertionError("neither answered nor refused") for answer in answers]

    def trace_many(self, queries: Sequence[tuple[Query, Callable[[], None]]]) -> list[Traced]:
        """Answers queries as `recommend_many` does, and keeps what every stage computed.

        Args:
            queries: at most MAX_BATCH, each with its check, see `recommend`.

        Returns:
            Of each query its answer or error, and how it came about.
        """
        requests = [Traced(query, check) for query, check in queries]
        for request in requests:
            run_stage("exclude", self._exclude, request)
        self._encode(unfinished(requests))
        for request in unfinished(requests):
            if request.tier is not Tier.POPULAR:
                run_stage("embed", self._embed, request)
            elif request.prepared is None:
                run_stage("select", self._select_popular, request)
            else:
                run_stage("", self._make_popular, request)
        self._retrieve(unfinished(requests))
        for request in unfinished(requests):
            if request.prepared is None:
                run_stage("rerank", self._rerank, request)
                run_stage("select", self._select, request)
            else:
                run_stage("", self._make, request)
        return requests

    def score(self, state: UserState, rows: I64, now: int = 0) -> tuple[F32, F32]:
        """Scores given tracks for a user, without retrieval.

        Args:
            state: the user.
            rows: (n,) int64 rows of the catalog, distinct.
            now: Unix seconds, from which ages count; 0 for the user's last play.

        Returns:
            (n,) float32 raw logits of the head and (n,) float32 calibrated probabilities.
        """
        user = self.encode(state)
        return self.bundle.score(self._user_vector(user, state), user, rows, moment_of(self.bundle, state, user, now))

    def encode(self, state: UserState) -> EncodedUsers:
        """Encodes one user; tracks that this catalog does not hold drop out of the history.

        Args:
            state: the user.

        Returns:
            Encoded users, one of them.
        """
        return encode_states(self.bundle, [state])

    def warm_up(self) -> None:
        """Runs requests of several shapes so that the first real one waits for no lazy loading."""
        hashes, names = self.catalog.hashes, self.bundle.spec.profile_columns
        for length in (0, 1, 50):
            history = np.zeros(min(length, len(hashes)), UserState().history.dtype)
            history["track"], history["count"] = hashes[: len(history)], 1
            state = UserState(dict.fromkeys(names, 1), history)
            self.recommend(Query(k=10, state=state))
            self.recommend_many([(Query(k=10, state=state), no_check)] * 3)
        heard = hashes[: MAX_OVERFETCHED_EXCLUSIONS + 1]
        self.recommend(Query(k=10, state=UserState({}, history, heard), repeat=Repeat.EXCLUDE))

    # -- stages, in order --------------------------------------------------------------------------------

    def _exclude(self, request: Traced) -> None:
        """Resolves the filter, the exclusions and the heard tracks to rows."""
        query = request.query
        if query.repeat is Repeat.LEARNT:
            query = request.query = replace(query, repeat=Repeat.ALLOW if self.knows_repeats else Repeat.DECAY)
        wanted = query.filter
        excluded = self.catalog.rows(query.exclude)
        if query.rules is not None:
            request.prepared = self._ruled.prepare(query)
            wanted = normalised((*wanted, *request.prepared.conditions))
            excluded = request.barred = np.concatenate([excluded, request.prepared.blocked])
        if wanted:
            request.eligible = self._filters.get(wanted, self._filtered)
        request.state_rows = StateRows.of(self.catalog, query.state)
        if query.repeat is not Repeat.ALLOW:
            heard = request.state_rows.heard
            if query.repeat is Repeat.DECAY:
                heard = np.setdiff1d(heard, repeatable(self.catalog, query)[0])
            excluded = np.concatenate([excluded, heard]) if len(excluded) else heard
        request.excluded = excluded if all_known(excluded) else excluded[excluded >= 0]

    def _encode(self, requests: list[Traced]) -> None:
        """Encodes the users of all requests who are not known."""
        if not requests:
            return
        started_ns = time.perf_counter_ns()
        self.known_users.encode(requests)
        for request in requests:
            if request.user is not None:
                request.tier = self._tier(request.query, request.user)
        share_time("encode", started_ns, requests)

    def _embed(self, request: Traced) -> None:
        assert request.user is not None
        if request.vector is None:
            request.vector = self.bundle.index.checked(self._user_vector(request.user, request.query.state))

    def _retrieve(self, requests: list[Traced]) -> None:
        """Finds candidates: in one search where requests have no filter and few exclusions, else each in its own."""
        together: list[Traced] = []
        deep: list[Traced] = []  # a search is as wide as its deepest request
        for request in requests:
            request.depth = self.depth_of(request.query)
            if request.eligible is None and len(request.excluded) <= MAX_OVERFETCHED_EXCLUSIONS:
                (together if request.depth <= 2 * self.depth else deep).append(request)
        if together:
            self._search_together(together)
        for request in deep:
            self._search_together([request])
        for request in requests:
            if request.candidates is None:
                run_stage("retrieve", self._search_eligible, request)
            if self.knows_repeats or len(self.bundle.co_listening):
                run_stage("retrieve", self._unite, request)

    def _search_together(self, requests: list[Traced]) -> None:
        started_ns = time.perf_counter_ns()
        wide = [request.depth + len(request.excluded) for request in requests]
        for request, (rows, cosines) in zip(requests, self.known_users.search(requests, wide), strict=True):
            request.candidates = self._without_excluded(request, rows, cosines)
        share_time("retrieve", started_ns, requests)

    def _search_eligible(self, request: Traced) -> None:
        request.candidates = self.find(request, request.depth)
        if not request.is_kept:
            self.known_users.keep(request)

    def find(self, request: Traced, depth: int, known: I64 = NO_ROWS) -> tuple[I64, F32]:
        """Finds the nearest tracks that a request may return.

        Args:
            request: with its user vector, eligible set and exclusions.
            depth: how many.
            known: (m,) rows that are left out.

        Returns:
            (min(depth, left),) rows and cosines, best first.
        """
        assert request.vector is not None
        eligible, excluded = request.eligible or self._unfiltered(), request.excluded
        excluded = np.concatenate([excluded, known]) if len(known) else excluded
        return search_eligible(self.bundle.index, request.vector, depth, eligible, excluded)

    def _unite(self, request: Traced) -> None:
        assert request.candidates is not None
        assert request.user is not None
        assert request.vector is not None
        query, user = request.query, request.user
        request.moment = moment = moment_of(self.bundle, query.state, user, query.now, request.state_rows)
        request.brought, request.candidates = brought(
            *(self.bundle, query, moment, user, request.candidates, request.vector),
            *(request.depth, request.excluded, request.eligible),
        )

    def _rerank(self, request: Traced) -> None:
        """Scores the candidates by the head."""
        assert request.candidates is not None
        request.scored = self.scored(request, request.candidates[0])

    def _select(self, request: Traced) -> None:
        """Selects the k best candidates."""
        assert request.candidates is not None
        assert request.scored is not None
        rows, cosines = request.candidates
        best = selected(rows, *request.scored, cosines, request.query.k)
        request.answer = Recommendation(*best, rows, cosines, request.tier, request.stage_us, brought=request.brought)

    def _make(self, request: Traced) -> None:
        """Selects those that the rules choose, with other candidates where they leave too few."""
        assert request.candidates is not None
        find, scored, asked = partial(self.find, request), partial(self.scored, request), request.asked()
        request.made = self._ruled.make(asked, request.candidates, find, scored, request.vector)
        request.answer = request.made.answer(asked)

    def scored(self, request: Traced, rows: I64) -> tuple[F32, F32, F32]:
        """Scores candidates of a request.

        Args:
            request: with its user.
            rows: (n,) of the catalog, distinct.

        Returns:
            (n,) logits, (n,) scores, and (n,) what orders them, before their rows do.
        """
        assert request.user is not None
        assert request.vector is not None
        logits, scores = self.bundle.score(request.vector, request.user, rows, request.moment)
        if request.query.repeat is not Repeat.DECAY:
            return logits, scores, logits
        scores = decayed_scores(self.catalog, request.query, rows, scores)
        return logits, scores, scores

    def _select_popular(self, request: Traced) -> None:
        """Answers with the most played tracks, first of the user's country; the score is the share of listeners."""
        rows, share = request.most_played(self.catalog, request.query.k)
        nothing = np.zeros(len(rows), np.float32)
        request.answer = Recommendation(rows, share, share, nothing, rows, nothing, Tier.POPULAR, request.stage_us)

    def _make_popular(self, request: Traced) -> None:
        """Answers with those of the most played that the rules choose."""
        find, asked = partial(request.most_played, self.catalog), request.asked()
        request.made = self._ruled.make_popular(asked, find, self.depth_of(request.query))
        request.answer = request.made.answer(asked)

    def _user_vector(self, user: EncodedUsers, state: UserState) -> F32:
        """Returns the user vector, (1, dim)."""
        return self.moved_away(self.bundle.embed(user), state)

    def moved_away(self, vector: F32, state: UserState) -> F32:
        """Moves a user vector away from skipped tracks (negative feedback: Rocchio 1971).

        Args:
            vector: (1, dim) of the user tower.
            state: of the user.

        Returns:
            (1, dim) of unit norm.
        """
        if len(state.skipped):
            rows = self.catalog.rows(state.skipped)
            if len(rows := rows[rows >= 0]):
                vector = vector - SKIP_WEIGHT * self.catalog.vectors[rows].astype(np.float32).mean(0)
                vector = vector / np.maximum(np.linalg.norm(vector), np.float32(1e-6))
        return vector

    def _tier(self, query: Query, user: EncodedUsers) -> Tier:
        if len(user.histories.rows):
            return Tier.PERSONAL if query.known else Tier.HISTORY
        more = self.bundle.spec.profile.known(query.state.profile) - {"country"}  # whose chart is of tier POPULAR
        return Tier.SEGMENT if more else Tier.POPULAR

    def depth_of(self, query: Query) -> int:
        """Returns how many candidates a query takes.

        Args:
            query: any.

        Returns:
            Its depth, or the recommender's own; at least k, and more with rules.
        """
        depth = max(query.depth or self.depth, query.k)
        return depth if query.rules is None else rules_depth(depth, query.k)

    def _without_excluded(self, request: Traced, rows: I64, cosines: F32) -> tuple[I64, F32] | None:
        """Returns the first `depth` candidates not excluded; None when an approximate index came up short."""
        depth, excluded = request.depth, request.excluded
        if kernels.compiled is not None:
            rows, cosines = kernels.compiled.without(rows, cosines, excluded, depth)
        elif len(excluded):
            with borrowed_mask(len(self.catalog)) as marked:
                marked[excluded] = True
                kept = ~marked.take(rows)
                marked[excluded] = False
            rows, cosines = rows[kept], cosines[kept]
        if len(rows) < depth:
            available = self.catalog.n_eligible - len(np.setdiff1d(excluded, self.catalog.removed))
            if len(rows) < available:
                self.fallbacks += 1
                return None
        return rows[:depth], cosines[:depth]

    def _filtered(self, conditions: tuple[Condition, ...]) -> EligibleSet:
        return eligible_set(self.bundle.index, self.bundle.filters.mask(conditions), self.catalog.vectors)

    def _unfiltered(self) -> EligibleSet:
        with self._lock:  # one of several threads computes it
            if self._all_eligible is None:
                mask = np.ones(len(self.catalog), np.bool_)
                mask[self.catalog.removed] = False
                self._all_eligible = eligible_set(self.bundle.index, mask, self.catalog.vectors)
            return self._all_eligible
