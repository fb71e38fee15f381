"""One request: encode, embed, retrieve, exclude, rerank, select. The same code answers online and in batch."""

from collections.abc import Callable

import numpy as np

from lhydra.bundle import Bundle
from lhydra.catalog import Catalog
from lhydra.domain import F32, I64, Query, Recommendation, Tier, UserState
from lhydra.histories import EncodedUsers, Histories
from lhydra.index import nearest
from lhydra.timing import timed

DEFAULT_DEPTH = 300


def _no_check() -> None:
    pass


class Recommender:
    """Answers queries from one bundle; holds no user state. Safe to call from several threads.

    bundle: what to serve; depth: candidates to rerank unless the query says otherwise, 0 for what was measured when
    the bundle was made (DEFAULT_DEPTH where nothing was).
    """

    def __init__(self, bundle: Bundle, depth: int = 0) -> None:
        self.bundle = bundle
        self.depth = depth or (bundle.manifest.depth if bundle.manifest else 0) or DEFAULT_DEPTH
        self._profile_names = [
            *(number.name for number in bundle.spec.user_numbers),
            *(category.name for category in bundle.spec.user_categories),
        ]
        self._tracks = bundle.catalog.tracks

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
        """
        stage_us: dict[str, int] = {}
        catalog = self.catalog
        excluded = catalog.rows(query.exclude)
        excluded = np.unique(excluded[excluded >= 0])
        if len(catalog.removed):  # the index leaves them out by itself
            excluded = np.setdiff1d(excluded, catalog.removed, assume_unique=True)
        with timed("encode", stage_us):
            user = self.encode(query.state)
        tier = self._tier(query, user)
        if tier is Tier.POPULAR:
            return self._popular(query.k, excluded, stage_us)
        check()
        with timed("embed", stage_us):
            vector = self.bundle.user_tower.embed(user, catalog.history)
        check()
        depth = max(query.depth or self.depth, query.k)
        with timed("retrieve", stage_us):
            rows, cosines = self.bundle.index.search(vector, depth + len(excluded))
        with timed("exclude", stage_us):
            rows, cosines = self._eligible(vector, rows, cosines, excluded, depth)
        check()
        with timed("rerank", stage_us):
            logits, scores = self.bundle.score(vector, user, rows)
        check()
        with timed("select", stage_us):
            best = np.lexsort((rows, -logits))[: query.k]
        return Recommendation(rows[best], scores[best], logits[best], cosines[best], rows, cosines, tier, stage_us)

    def score(self, state: UserState, rows: I64) -> tuple[F32, F32]:
        """Returns the head's raw logits and calibrated probabilities for each of `rows`, (n,) float32 each."""
        user = self.encode(state)
        vector = self.bundle.user_tower.embed(user, self.catalog.history)
        return self.bundle.score(vector, user, rows)

    def encode(self, state: UserState) -> EncodedUsers:
        """Returns one encoded user; tracks that this catalog does not hold drop out of the history."""
        history = state.history
        rows = self.catalog.rows(history["track"])
        if (rows < 0).any():
            history, rows = history[rows >= 0], rows[rows >= 0]
        profile = self.bundle.spec.encode_profile(state.profile)
        histories = Histories.one(rows, history["count"], history["time"])
        return self.bundle.spec.encode_users(profile, histories, self._tracks)

    def warm_up(self) -> None:
        """Runs requests of several shapes so that the first real one finds everything loaded."""
        hashes = self.catalog.hashes
        for length in (0, 1, 50):
            history = np.zeros(min(length, len(hashes)), UserState().history.dtype)
            history["track"], history["count"] = hashes[: len(history)], 1
            state = UserState(dict.fromkeys(self._profile_names, 1), history)
            self.recommend(Query(k=10, state=state))

    def _tier(self, query: Query, user: EncodedUsers) -> Tier:
        if len(user.histories.rows):
            return Tier.PERSONAL if query.known else Tier.HISTORY
        known = any(query.state.profile.get(name) is not None for name in self._profile_names)
        return Tier.SEGMENT if known else Tier.POPULAR

    def _eligible(self, vector: F32, rows: I64, cosines: F32, excluded: I64, depth: int) -> tuple[I64, F32]:
        """Drops excluded rows and keeps `depth`; searches exactly when an approximate index came up short."""
        if len(excluded):
            at = np.minimum(np.searchsorted(excluded, rows), len(excluded) - 1)
            kept = excluded[at] != rows
            rows, cosines = rows[kept], cosines[kept]
        if len(rows) < min(depth, self.catalog.n_eligible - len(excluded)):
            rows, cosines = nearest(self.catalog.vectors, vector, depth, self._barred(excluded))
        return rows[:depth], cosines[:depth]

    def _barred(self, excluded: I64) -> I64:
        """Everything that must not be returned: what the query excludes and what was removed from the catalog."""
        return np.concatenate([excluded, self.catalog.removed]) if len(self.catalog.removed) else excluded

    def _popular(self, k: int, excluded: I64, stage_us: dict[str, int]) -> Recommendation:
        """The most played tracks; their score is the share of listeners."""
        with timed("select", stage_us):
            barred = self._barred(excluded)
            rows = self.catalog.popular[: k + len(barred)].astype(np.int64)
            rows = rows[~np.isin(rows, barred)][:k]
            share = self.catalog.share[rows]
        nothing = np.zeros(len(rows), np.float32)
        return Recommendation(rows, share, share, nothing, rows, nothing, Tier.POPULAR, stage_us)
