"""The request path against brute force: what must hold for every user, k, depth and exclusion."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.index import Index
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import STAGES, Hashes, Query, Recommendation, Tier, UserState, make_history, track_hashes
from lhydra.errors import DeadlineExceeded
from lhydra.recommender import MAX_OVERFETCHED_EXCLUSIONS, Recommender
from lhydra.traced import Traced, no_check


@pytest.fixture(scope="module")
def states(tiny_dataset: Dataset) -> list[UserState]:
    return [state for _, state in user_states(tiny_dataset, "now")]


@pytest.fixture(scope="module", params=["flat", "HNSW4", "IVF8,SQ8"])
def recommender(request: pytest.FixtureRequest, tiny_bundle: Bundle) -> Recommender:
    index = Index.build(tiny_bundle.catalog.vectors, request.param)
    return Recommender(dataclasses.replace(tiny_bundle, index=index))


def hashes_of(bundle: Bundle, rows: list[int]) -> Hashes:
    return track_hashes(bundle.catalog.track_ids(np.array(rows, np.int64)))


def by_hand(bundle: Bundle, query: Query, depth: int) -> list[int]:
    """The list by brute force: the head over the `depth` nearest eligible tracks, best first, ties by row."""
    recommender = Recommender(bundle)
    user = recommender.encode(query.state)
    vector = bundle.embed(user)
    excluded = set(bundle.catalog.rows(query.exclude).tolist())
    cosines = bundle.catalog.vectors @ vector[0]
    eligible = [row for row in range(len(bundle.catalog)) if row not in excluded]
    rows = np.array(sorted(eligible, key=lambda row: (-cosines[row], row))[: max(depth, query.k)], np.int64)
    logits, _ = bundle.score(vector, user, rows)
    return sorted(rows.tolist(), key=lambda row: (-logits[rows.tolist().index(row)], row))[: query.k]


def test_the_list_is_the_head_over_the_nearest_eligible_tracks(tiny_bundle: Bundle, states: list[UserState]) -> None:
    recommender = Recommender(tiny_bundle, depth=60)
    for i, state in enumerate(states[:40]):
        query = Query(k=1 + 7 * (i % 15), state=state, known=True, exclude=state.heard, depth=(0, 5, 400)[i % 3])
        expected = by_hand(tiny_bundle, query, query.depth or 60)
        assert recommender.recommend(query).rows.tolist() == expected


def lawful(found: Recommendation, bundle: Bundle, query: Query) -> None:
    n = len(bundle.catalog)
    excluded = set(bundle.catalog.rows(query.exclude).tolist()) - {-1}
    rows = found.rows.tolist()
    assert len(rows) == min(query.k, n - len(excluded))
    assert len(set(rows)) == len(rows)
    assert not excluded & set(rows)
    assert all(0 <= row < n for row in rows)
    keys = list(zip((-found.logits).tolist(), rows, strict=True))
    assert keys == sorted(keys)
    assert (np.diff(found.scores) <= 1e-6).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert [stage for stage in STAGES if stage in found.stage_us] == list(found.stage_us)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_exactly_k_or_all_that_are_eligible(
    recommender: Recommender, states: list[UserState], data: st.DataObject
) -> None:
    n = len(recommender.catalog)
    state = data.draw(st.sampled_from(states))
    left_out = data.draw(st.one_of(st.just(list(range(n - 3))), st.lists(st.integers(0, n - 1), unique=True)))
    exclude = np.union1d(hashes_of(recommender.bundle, left_out), track_hashes(["unknown"]))
    query = Query(k=data.draw(st.integers(1, n + 50)), state=state, known=True, exclude=exclude)
    lawful(recommender.recommend(query), recommender.bundle, query)


def test_an_approximate_index_that_falls_short_is_made_good(tiny_bundle: Bundle, states: list[UserState]) -> None:
    """One probe of an IVF index sees an eighth of the tracks; the answer must still be whole."""
    bundle = dataclasses.replace(tiny_bundle, index=Index.build(tiny_bundle.catalog.vectors, "IVF8,Flat"))
    query = Query(k=10, state=states[0], exclude=states[0].heard, depth=300)
    assert Recommender(bundle).recommend(query).rows.tolist() == by_hand(tiny_bundle, query, 300)


def test_tiers(tiny_bundle: Bundle, states: list[UserState]) -> None:
    recommender = Recommender(tiny_bundle)
    full = next(state for state in states if len(state.history) and state.profile)
    profile_only, nothing = UserState(full.profile), UserState()
    unheard_of = UserState({}, make_history(track_hashes(["unknown"]), [1.0], [5]))
    for state, known, tier in (
        (full, True, Tier.PERSONAL),
        (full, False, Tier.HISTORY),
        (profile_only, True, Tier.SEGMENT),
        (profile_only, False, Tier.SEGMENT),
        (nothing, True, Tier.POPULAR),
        (nothing, False, Tier.POPULAR),
        (unheard_of, False, Tier.POPULAR),
        (UserState({"shoe_size": 44}), False, Tier.POPULAR),
        (UserState({"gender": "zzz", "age": "nan"}), False, Tier.POPULAR),  # nothing that the model knows
        (UserState({"gender": "zzz", "age": 30.0}), False, Tier.SEGMENT),
        (UserState({"country": "Nowhere"}), False, Tier.POPULAR),
    ):
        found = recommender.recommend(Query(k=5, state=state, known=known))
        assert found.tier is tier
        lawful(found, tiny_bundle, Query(k=5, state=state))


def test_popular_tracks_are_those_with_most_listeners(tiny_bundle: Bundle, tiny_dataset: Dataset) -> None:
    plays = tiny_dataset.plays
    listeners = np.bincount(plays.track[plays.fold == 0], minlength=len(tiny_bundle.catalog))
    ranked = sorted(range(len(listeners)), key=lambda row: (-listeners[row], row))
    exclude = hashes_of(tiny_bundle, ranked[:7])
    found = Recommender(tiny_bundle).recommend(Query(k=20, exclude=exclude))
    assert found.rows.tolist() == ranked[7:27]


def test_a_play_of_an_unknown_track_changes_nothing(tiny_bundle: Bundle, states: list[UserState]) -> None:
    recommender, state = Recommender(tiny_bundle), states[3]
    more = np.concatenate([state.history, make_history(track_hashes(["unknown"]), [50.0], [10**10])])
    a, b = (recommender.recommend(Query(k=20, state=s)) for s in (state, UserState(state.profile, more)))
    assert a.rows.tolist() == b.rows.tolist()


def test_answers_are_deterministic_across_threads(tiny_bundle: Bundle, states: list[UserState]) -> None:
    recommender = Recommender(tiny_bundle)
    queries = [Query(k=10, state=state, exclude=state.heard) for state in states[:20]] * 5
    alone = [recommender.recommend(query) for query in queries]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(recommender.recommend, queries))
    for a, b in zip(alone, together, strict=True):
        assert a.rows.tolist() == b.rows.tolist()
        assert a.logits.tolist() == b.logits.tolist()


def test_score_is_what_the_list_shows(tiny_bundle: Bundle, states: list[UserState]) -> None:
    recommender = Recommender(tiny_bundle)
    found = recommender.recommend(Query(k=30, state=states[0]))
    np.testing.assert_allclose(recommender.score(states[0], found.rows)[1], found.scores, atol=1e-5)


@pytest.mark.parametrize("calls", range(4))
def test_a_deadline_stops_the_work_between_stages(tiny_bundle: Bundle, states: list[UserState], calls: int) -> None:
    seen = []

    def check() -> None:
        seen.append(1)
        if len(seen) > calls:
            raise DeadlineExceeded("late")

    with pytest.raises(DeadlineExceeded):
        Recommender(tiny_bundle).recommend(Query(k=5, state=states[0]), check)
    assert len(seen) == calls + 1


@pytest.mark.parametrize("stage", ["_exclude", "_embed", "find", "_rerank", "_select"])
def test_the_error_of_a_stage_is_the_answer_and_nobody_else_s(
    tiny_bundle: Bundle, states: list[UserState], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """No later stage runs, whose own error would hide it."""
    recommender, own = Recommender(tiny_bundle), getattr(Recommender, stage)
    few = hashes_of(tiny_bundle, list(range(len(tiny_bundle.catalog) - 20)))  # left over: each searches by itself
    assert len(few) > MAX_OVERFETCHED_EXCLUSIONS
    queries = [Query(5, state, True, exclude=few) for state in states[:3]]

    def failing(self: Recommender, request: Traced, *rest: object) -> object:
        if request.query is queries[1]:
            raise DeadlineExceeded(f"in {stage}")
        return own(self, request, *rest)

    monkeypatch.setattr(Recommender, stage, failing)
    first, bad, last = recommender.recommend_many([(query, no_check) for query in queries])
    assert str(bad) == f"in {stage}"
    for found in (first, last):
        assert isinstance(found, Recommendation)
        assert len(found.rows) == 5
