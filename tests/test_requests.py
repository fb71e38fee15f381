"""What a request may ask for, against brute force: filters, exclusions, repeats, skips, charts; and company."""

import dataclasses
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra import recommender as recommenders
from lhydra.bundle import eligible as filtered
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.columns import check, normalised
from lhydra.bundle.decay import REPEAT_AFTER_S, REPEAT_SCALE_S
from lhydra.bundle.eligible import eligible_set, search_eligible
from lhydra.bundle.exact import best_first, nearest
from lhydra.bundle.index import BLAS_QUERIES, Index
from lhydra.bundle.manifest import OperatingPoint
from lhydra.bundle.strings import StringColumn
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import (
    F32,
    HISTORY_DTYPE,
    I64,
    Condition,
    Hashes,
    Query,
    Recommendation,
    Repeat,
    Tier,
    UserState,
    make_history,
    track_hashes,
)
from lhydra.errors import DeadlineExceeded, FeatureError, InvalidRequest
from lhydra.recommender import Recommender

DAY = 86_400
RECIPES = ("flat", "IVF8,SQ8", "HNSW4", "IVF4,PQ8x4fs")


@pytest.fixture(scope="module")
def bundle(tiny_store: object) -> Bundle:
    return Bundle.open(tiny_store)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def states(tiny_dataset: Dataset) -> list[UserState]:
    return [state for _, state in user_states(tiny_dataset, "now")]


@pytest.fixture(scope="module", params=RECIPES)
def recommender(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Recommender]:
    """With a bound so low that filters are searched for inside the index, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filtered, "BRUTE_FORCE_TRACKS", 30)
        patch.setattr(filtered, "MAX_BRUTE_FORCE_TRACKS", 30)
        patch.setattr(recommenders, "MAX_OVERFETCHED_EXCLUSIONS", 20)
        yield Recommender(dataclasses.replace(bundle, index=Index.build(bundle.catalog.vectors, request.param)))


def hashes_of(bundle: Bundle, rows: npt.ArrayLike) -> Hashes:
    return track_hashes(bundle.catalog.track_ids(np.asarray(rows, np.int64)))


def eligible_rows(bundle: Bundle, query: Query) -> set[int]:
    """By the definition: what the filter allows, less what is excluded, heard (where that counts) or removed."""
    mask = bundle.filters.mask(query.filter)
    out = set(bundle.catalog.rows(query.exclude).tolist())
    if query.repeat is not Repeat.ALLOW:
        out |= set(bundle.catalog.rows(query.state.heard).tolist())
    return set(np.flatnonzero(mask).tolist()) - out - set(bundle.catalog.removed.tolist())


def lawful(found: Recommendation, query: Query, eligible: set[int]) -> None:
    rows = found.rows.tolist()
    assert len(rows) == len(set(rows)) == min(query.k, len(eligible))
    assert set(rows) <= eligible
    assert (np.diff(found.scores) <= 0).all()


def conditions(bundle: Bundle) -> st.SearchStrategy[tuple[Condition, ...]]:
    artists = sorted({name for name in bundle.catalog.artists(np.arange(len(bundle.catalog))) if name})
    some = st.lists(st.sampled_from(artists), min_size=1, max_size=len(artists))
    of_artist = some.map(lambda names: Condition("artist", any_of=tuple(names)))
    not_artist = some.map(lambda names: Condition("artist", none_of=tuple(names)))
    years = st.tuples(st.integers(1950, 2030), st.integers(0, 60))
    of_year = years.map(lambda y: Condition("year", min=y[0], max=y[0] + y[1]))
    return st.lists(st.one_of(of_artist, not_artist, of_year), max_size=3).map(normalised)


# -- filters and exclusions ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_exactly_k_or_all_that_the_filter_and_the_exclusions_leave(
    recommender: Recommender, states: list[UserState], data: st.DataObject
) -> None:
    bundle = recommender.bundle
    n = len(bundle.catalog)
    query = Query(
        data.draw(st.integers(1, n + 20)),
        [*states, UserState()][data.draw(st.integers(0, len(states)))],
        True,
        hashes_of(bundle, data.draw(st.lists(st.integers(0, n - 1)))),
        repeat=data.draw(st.sampled_from((Repeat.EXCLUDE, Repeat.ALLOW))),
        filter=data.draw(conditions(bundle)),
    )
    lawful(recommender.recommend(query), query, eligible_rows(bundle, query))


def test_under_a_filter_the_list_is_the_head_over_the_nearest_allowed(
    bundle: Bundle, states: list[UserState], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filtered, "BRUTE_FORCE_TRACKS", 30)
    monkeypatch.setattr(filtered, "MAX_BRUTE_FORCE_TRACKS", 30)
    exact = Recommender(dataclasses.replace(bundle, index=Index.build(bundle.catalog.vectors, "flat")), depth=40)
    years = (Condition("year", min=1980), Condition("year", max=2000))
    for state in states[:20]:
        query = Query(10, state, True, filter=normalised(years), repeat=Repeat.EXCLUDE)
        user = exact.encode(state)
        vector = bundle.embed(user)
        allowed = sorted(eligible_rows(bundle, query))
        cosines = bundle.catalog.vectors.astype(np.float32) @ vector[0]
        rows = np.array(sorted(allowed, key=lambda row: (-cosines[row], row))[:40], np.int64)
        logits, _ = bundle.score(vector, user, rows)
        assert exact.recommend(query).rows.tolist() == rows[best_first(rows, logits, 10)].tolist()


def test_a_listener_of_nearly_everything_gets_the_rest(recommender: Recommender, states: list[UserState]) -> None:
    n = len(recommender.catalog)
    for left in (0, 1, 5, 60):
        heard = np.sort(hashes_of(recommender.bundle, np.random.default_rng(left).permutation(n)[: n - left]))
        query = Query(50, dataclasses.replace(states[0], heard=heard), True, repeat=Repeat.EXCLUDE)
        lawful(recommender.recommend(query), query, eligible_rows(recommender.bundle, query))


def test_a_filter_that_does_not_fit_is_refused_by_name(bundle: Bundle) -> None:
    with pytest.raises(InvalidRequest, match="shoe_size"):
        check([Condition("shoe_size", any_of=("44",))], bundle.filters.names)


def test_filters_are_kept_within_a_bound_and_asked_for_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommenders, "FILTER_CACHE_BYTES", 3 * len(bundle.catalog))
    asked: list[object] = []
    filters = bundle.filters

    class Counting(type(filters)):  # type: ignore[misc]
        def mask(self, conditions: object) -> object:
            asked.append(conditions)
            return filters.mask(conditions)  # type: ignore[arg-type]

    counting = Counting(filters.n, filters.names, filters.columns)
    recommender = Recommender(dataclasses.replace(bundle, filters=counting))
    first, *others = (normalised([Condition("year", min=1950 + i)]) for i in range(30))
    for _ in range(3):
        recommender.recommend(Query(5, filter=first))
    assert asked == [first]
    for other in others:
        recommender.recommend(Query(5, filter=other))
        assert len(recommender._filters) == 1 or recommender._filters.nbytes <= 3 * len(bundle.catalog)
    recommender.recommend(Query(5, filter=first))
    assert asked == [first, *others, first]


def test_filters_with_long_lists_of_values_are_kept_within_the_bound(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of everything that is kept, the conditions as well as the masks."""
    monkeypatch.setattr(recommenders, "FILTER_CACHE_BYTES", 500_000)
    recommender = Recommender(bundle)
    recommender.recommend(Query(5, filter=(Condition("artist", none_of=("x",)),)))
    tracemalloc.start()
    for i in range(60):
        values = tuple(f"nobody {i} {j}" for j in range(1_000))  # about 70 KB each
        recommender.recommend(Query(5, filter=(Condition("artist", none_of=values),)))
        del values
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 700_000


def test_many_threads_make_ready_what_everybody_may_get_once(
    bundle: Bundle, states: list[UserState], monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender, calls, second = Recommender(bundle), [], threading.Event()

    def counted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            second.set()
        second.wait(0.3)  # long enough for others to come in, if they can
        return eligible_set(*args)

    monkeypatch.setattr(recommenders, "eligible_set", counted)
    heard = np.sort(bundle.catalog.hashes[:300])
    query = Query(5, dataclasses.replace(states[0], heard=heard), True, repeat=Repeat.EXCLUDE)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(recommender.recommend, [query] * 4))
    assert len(calls) == 1
    assert all(one.rows.tolist() == found[0].rows.tolist() for one in found)


@pytest.fixture(scope="module")
def clustered() -> tuple[F32, I64, F32]:
    """20,000 vectors in 40 clusters, the cluster of each, and queries that lie between two of them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 24))
    cluster = rng.integers(0, 40, 20_000)
    vectors = centres[cluster] + 0.5 * rng.normal(size=(20_000, 24))
    queries = centres[rng.integers(0, 40, 40)] + centres[rng.integers(0, 40, 40)] + rng.normal(size=(40, 24))
    return *(unit(vectors), cluster), unit(queries)


def unit(vectors: npt.NDArray[np.float64]) -> F32:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.1, 0.03, 0.01, 0.001, 0.0])
@pytest.mark.parametrize("kind", ["random", "clusters"])
def test_the_nearest_ten_under_a_filter_are_found_at_every_selectivity(
    clustered: tuple[F32, I64, F32], kind: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random filters and, harder, whole clusters, which the query may be far from; at 0.0 a single track is left."""
    monkeypatch.setattr(filtered, "BRUTE_FORCE_TRACKS", 150)
    monkeypatch.setattr(filtered, "MAX_BRUTE_FORCE_TRACKS", 150)
    vectors, cluster, queries = clustered
    rng = np.random.default_rng(1)
    if share == 0.0:
        mask = np.arange(len(vectors)) == 77
    elif kind == "random":
        mask = rng.random(len(vectors)) < share
    else:
        mask = np.isin(cluster, rng.permutation(40)[: max(1, round(40 * share))]) & (
            rng.random(len(vectors)) < 40 * share
        )
    index = Index.build(vectors, "IVF128,SQ8").at(OperatingPoint(8))
    allowed = eligible_set(index, mask, vectors)
    found = 0
    wanted = 0
    for query in queries:
        rows, scores = search_eligible(index, query, 100, allowed, np.empty(0, np.int64))
        assert len(rows) == len(set(rows.tolist())) == min(100, np.count_nonzero(mask))
        assert mask[rows].all()
        assert (np.diff(scores) <= 0).all()
        best = nearest(vectors, query, 10, np.flatnonzero(~mask))[0]
        found, wanted = found + len(np.intersect1d(best, rows)), wanted + len(best)
    assert found / wanted >= 0.99


def test_barred_rows_and_removed_ones_are_searched_around(clustered: tuple[F32, I64, F32]) -> None:
    vectors, _, queries = clustered
    n = len(vectors)
    rng = np.random.default_rng(2)
    positions = rng.permutation(n).astype(np.int32)  # of the rows, as after `index add`
    by_position = vectors[positions]
    removed = rng.integers(0, n, 3_000)
    positions[np.isin(positions, removed)] = -1
    index = Index.build(by_position, "IVF64,Flat").at(OperatingPoint(12)).with_rows(positions)
    allowed = eligible_set(index, np.ones(n, np.bool_), vectors)
    gone = np.unique(removed)
    assert allowed.count == n - len(gone)
    found = 0
    for query in queries[:10]:
        excluded = np.concatenate([nearest(vectors, query, 4_000, gone)[0], rng.integers(0, n, 500)])
        rows, _ = search_eligible(index, query, 50, allowed, excluded)
        assert len(rows) == 50
        assert not np.isin(rows, excluded).any()
        assert not np.isin(rows, gone).any()
        exact = nearest(vectors, query, 10, np.union1d(excluded, gone))[0]
        found += len(np.intersect1d(exact, rows))
    assert found >= 95  # of a hundred, though a fifth of all, the nearest, are excluded


# -- company ---------------------------------------------------------------------------------------------


def test_nobody_s_answer_depends_on_who_else_asks(recommender: Recommender, states: list[UserState]) -> None:
    """To the last bit, and with requests among them that fail."""

    def late() -> None:
        raise DeadlineExceeded("too late")

    rng = np.random.default_rng(3)
    some = [states[i] for i in rng.permutation(len(states))[:30]] + [UserState(), UserState({"age": 30.0})]
    queries = [Query(7 + i, state, True, repeat=Repeat.EXCLUDE) for i, state in enumerate(some)]
    alone = [Recommender(recommender.bundle).recommend(query) for query in queries]
    for start in range(0, len(queries), 13):
        asked = [(query, lambda: None) for query in queries[start : start + 13]]
        bad = (Query(5, UserState({"age": float("inf")}), True), lambda: None)
        found = recommender.recommend_many([*asked[:4], (queries[0], late), bad, *asked[4:]])
        assert isinstance(found[4], DeadlineExceeded)
        assert isinstance(found[5], FeatureError)
        for together, one in zip([*found[:4], *found[6:]], alone[start : start + 13], strict=True):
            assert isinstance(together, Recommendation)
            for name in ("rows", "scores", "logits", "retrieval_scores", "candidates"):
                assert getattr(together, name).tobytes() == getattr(one, name).tobytes(), name
            assert together.tier is one.tier


def test_more_queries_than_faiss_answers_one_by_one_are_refused(bundle: Bundle) -> None:
    assert recommenders.MAX_BATCH < BLAS_QUERIES
    with pytest.raises(ValueError, match="at most 16 at once"):
        Recommender(bundle).recommend_many([(Query(5), lambda: None)] * (recommenders.MAX_BATCH + 1))


def test_a_deep_request_does_not_make_its_company_s_search_wide(
    bundle: Bundle, states: list[UserState], monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = Recommender(bundle, depth=20)
    searches: list[list[int]] = []
    search_many = Index.search_many

    def noted(self: Index, vectors: F32, ks: Sequence[int]) -> list[tuple[I64, F32]]:
        searches.append(list(ks))
        return search_many(self, vectors, ks)

    monkeypatch.setattr(Index, "search_many", noted)
    asked = [
        (Query(5, state, True, depth=depth), lambda: None)
        for state, depth in zip(states, (0, 390, 0, 40), strict=False)
    ]
    found = recommender.recommend_many(asked)
    assert searches == [[20, 20, 40], [390]]
    assert all(isinstance(one, Recommendation) and len(one.rows) == 5 for one in found)


# -- repeats, skips, charts ------------------------------------------------------------------------------


def test_heard_tracks_return_after_a_time_by_their_probability(bundle: Bundle, states: list[UserState]) -> None:
    recommender = Recommender(bundle, depth=len(bundle.catalog))
    state, now = states[0], 2_000_000_000
    gaps = np.array([0, 1, 6.9, 7, 30, 365]) * DAY
    heard = bundle.catalog.hashes[[3, 50, 100, 150, 200, 250]]
    history = np.zeros(6, HISTORY_DTYPE)
    history["track"], history["count"], history["time"] = heard, 1, now - gaps
    history = history[np.argsort(history["time"])]
    undated = bundle.catalog.hashes[300:302]
    state = UserState(state.profile, history, np.sort(np.concatenate([heard, undated])))
    n = len(bundle.catalog)
    query = Query(n, state, True, repeat=Repeat.DECAY, now=now)
    found = recommender.recommend(query)
    free = recommender.recommend(dataclasses.replace(query, repeat=Repeat.ALLOW))
    score = dict(zip(free.rows.tolist(), free.scores.tolist(), strict=True))
    back = {row for row, gap in zip(bundle.catalog.rows(heard).tolist(), gaps, strict=True) if gap >= REPEAT_AFTER_S}
    never = set(bundle.catalog.rows(state.heard).tolist()) - back
    assert len(back) == 3
    assert set(found.rows.tolist()) == set(range(n)) - never - set(bundle.catalog.removed.tolist())
    for row, got in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
        gap = next((gap for r, gap in zip(bundle.catalog.rows(heard).tolist(), gaps, strict=True) if r == row), None)
        chance = 1.0 if gap is None else 1 - np.exp(-gap / REPEAT_SCALE_S)
        assert got == pytest.approx(score[row] * chance, rel=1e-5)
    assert (np.diff(found.scores) <= 0).all()


def test_skips_count_against_what_is_like_them(bundle: Bundle, states: list[UserState]) -> None:
    recommender = Recommender(bundle, depth=len(bundle.catalog))
    for state in states[:10]:
        before = recommender.recommend(Query(len(bundle.catalog), state, True))
        first = int(before.rows[0])
        skipped = dataclasses.replace(state, skipped=hashes_of(bundle, [first]))
        after = recommender.recommend(Query(len(bundle.catalog), skipped, True))
        was = dict(zip(before.rows.tolist(), before.retrieval_scores.tolist(), strict=True))
        now = dict(zip(after.rows.tolist(), after.retrieval_scores.tolist(), strict=True))
        assert now[first] < was[first]
        like = bundle.catalog.vectors.astype(np.float32) @ bundle.catalog.vectors[first].astype(np.float32)
        near, far = np.argsort(-like)[:20], np.argsort(like)[:20]
        fell = np.mean([was[int(row)] - now[int(row)] for row in near])
        assert fell > np.mean([was[int(row)] - now[int(row)] for row in far])
        unknown = dataclasses.replace(state, skipped=track_hashes(["nowhere"]))
        assert recommender.recommend(Query(10, unknown, True)).rows.tolist() == before.rows[:10].tolist()


def test_nothing_known_but_a_country_gives_its_chart(bundle: Bundle, tiny_dataset: Dataset) -> None:
    recommender, plays = Recommender(bundle), tiny_dataset.plays
    countries = np.array(tiny_dataset.user_columns()["country"], object)
    trained = plays.fold == 0
    charts = bundle.catalog.charts.at(np.arange(len(bundle.catalog.charts)))
    assert charts
    for country in charts:
        users = np.flatnonzero(countries == country)
        there = trained & np.isin(plays.user, users)
        listeners = np.bincount(plays.track[there], minlength=len(bundle.catalog))
        expected = np.lexsort((np.arange(len(listeners)), -listeners))[:20]
        assert (listeners[expected] > 0).all()
        found = recommender.recommend(Query(20, UserState({"country": country})))
        assert found.tier is Tier.POPULAR
        assert found.rows.tolist() == expected.tolist()
        active = len(np.intersect1d(users, plays.user[trained]))
        assert found.scores.tolist() == pytest.approx((listeners[expected] / active).tolist())
        whole = recommender.recommend(Query(len(bundle.catalog), UserState({"country": country})))
        assert sorted(whole.rows.tolist()) == list(range(len(bundle.catalog)))
        assert (np.diff(whole.scores) <= 0).all()
    with pytest.MonkeyPatch.context() as patch:  # no name is decoded for a request
        patch.delattr(StringColumn, "at")
        found = recommender.recommend(Query(20, UserState({"country": charts[0]})))
        assert found.rows.tolist() == bundle.catalog.chart(charts[0])[0][:20].tolist()
    everywhere = recommender.recommend(Query(20)).rows.tolist()
    assert recommender.recommend(Query(20, UserState({"country": "Nowhere"}))).rows.tolist() == everywhere
    assert recommender.recommend(Query(20, UserState({"country": 7}))).rows.tolist() == everywhere


def test_hashes_are_found_by_bucket_as_by_search(bundle: Bundle) -> None:
    """Many hashes go another way than few."""
    catalog = bundle.catalog
    rng = np.random.default_rng(4)
    known = catalog.hashes[rng.integers(0, len(catalog), 1_000)]
    edges = np.array([0, 1, 2**64 - 1, int(catalog.hashes[0]), int(catalog.hashes[-1])], np.uint64)
    asked = np.concatenate([known, rng.integers(0, 2**64 - 1, 1_000, dtype=np.uint64), edges, known + np.uint64(1)])
    row_of = dict(zip(catalog.hashes.tolist(), catalog.hash_rows.tolist(), strict=True))
    assert catalog.rows(asked).tolist() == [row_of.get(name, -1) for name in asked.tolist()]
    assert catalog.rows(asked[:50]).tolist() == [row_of.get(name, -1) for name in asked[:50].tolist()]


def test_ties_go_by_row_and_everything_else_by_score() -> None:
    rng = np.random.default_rng(5)
    for n in (0, 1, 2, 50):
        scores = rng.integers(0, 6, n).astype(np.float32)
        rows = rng.permutation(n)
        expected = sorted(range(n), key=lambda i: (-scores[i], rows[i]))
        assert best_first(rows, scores, n).tolist() == expected
        assert best_first(rows, scores, 3).tolist() == expected[:3]


def test_a_history_that_the_request_brings_is_heard(bundle: Bundle) -> None:
    hashes = bundle.catalog.hashes[:5]
    state = UserState({}, make_history(hashes, [1.0] * 5, [0] * 5), np.sort(hashes))
    found = Recommender(bundle).recommend(Query(len(bundle.catalog), state, repeat=Repeat.EXCLUDE))
    assert found.tier is Tier.HISTORY
    assert not set(found.rows.tolist()) & set(bundle.catalog.rows(hashes).tolist())
