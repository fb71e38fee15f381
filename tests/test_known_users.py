"""Users who are known are answered as if for the first time; what is kept is bounded; nothing is ever stale."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra import known_users
from lhydra import recommender as recommenders
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.index import Index
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import F32, I64, Play, Query, Recommendation, Repeat, Tier, UserState
from lhydra.known_users import KnownUsers, entry_bytes
from lhydra.queries import known_user
from lhydra.recommender import Recommender
from lhydra.traced import Traced, no_check
from lhydra.users.store import open_users
from tests.compiled_kernels import plain


@pytest.fixture(scope="module")
def bundle(tiny_store: Path) -> Bundle:
    return Bundle.open(tiny_store)


@pytest.fixture(scope="module")
def recommender(bundle: Bundle) -> Recommender:
    return Recommender(bundle)


@pytest.fixture(scope="module")
def states(tiny_dataset: Dataset) -> list[UserState]:
    return [state for _, state in user_states(tiny_dataset, "now")][:6]


def same(found: Recommendation | Exception, plain: Recommendation) -> None:
    assert isinstance(found, Recommendation)
    assert found.tier is plain.tier
    for name in ("rows", "logits", "scores", "retrieval_scores", "candidates", "candidate_scores"):
        assert getattr(found, name).tolist() == getattr(plain, name).tolist(), name


def test_requests_need_no_compiler(recommender: Recommender, bundle: Bundle, states: list[UserState]) -> None:
    """All of a request, also what is kept of its user, in the NumPy that the kernels stand for."""
    queries = [known_user(state, 5) for state in states]
    expected = [recommender.recommend(query) for query in queries]
    with plain():
        without = Recommender(bundle)
        without.warm_up()
        for _ in range(2):  # the second time as known users
            for query, wanted in zip(queries, expected, strict=True):
                found = without.recommend(query)
                assert found.tier is wanted.tier
                np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
        assert without.known_users.hits >= len(queries)


def counted(state: UserState) -> UserState:
    history = state.history.copy()
    history["count"][-1:] += 1
    return replace(state, history=history)


def later(state: UserState) -> UserState:
    history = state.history.copy()
    history["time"][-1:] += 86_400
    return replace(state, history=history)


CHANGES: list[Callable[[UserState], UserState]] = [
    lambda state: state,
    lambda state: replace(state, history=state.history.copy(), version=state.version + 1),  # no other user by content
    counted,
    later,
    lambda state: replace(state, history=state.history[:-1], repeats=state.repeats[:-1]),
    lambda state: replace(state, skipped=state.heard[:2]),
    lambda state: replace(state, heard=state.heard[:1]),
    lambda state: replace(state, recent=state.recent[:-1]),
    *(
        lambda state, value=value: replace(state, profile={**state.profile, "age": value, "gender": value})
        for value in (1, 1.0, True, "1", None)
    ),
]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_who_asks_again_is_answered_as_if_for_the_first_time(
    recommender: Recommender, bundle: Bundle, states: list[UserState], data: st.DataObject
) -> None:
    """Whatever was asked before, alone or in company, the answer is that of a recommender that knows nobody."""
    some = st.builds(lambda change, state: change(state), st.sampled_from(CHANGES), st.sampled_from(states))
    queries = [
        Query(
            data.draw(st.integers(1, 30)),
            data.draw(some),
            data.draw(st.booleans()),
            repeat=data.draw(st.sampled_from(Repeat)),
            now=data.draw(st.sampled_from((0, 1_800_000_000))),
        )
        for _ in range(data.draw(st.integers(1, 6)))
    ]
    for query, found in zip(queries, recommender.recommend_many([(q, no_check) for q in queries]), strict=True):
        same(found, Recommender(bundle).recommend(query))


def test_a_second_request_computes_no_user_and_searches_nothing(
    bundle: Bundle, states: list[UserState], monkeypatch: Any
) -> None:
    recommender = Recommender(bundle)
    plain = recommender.recommend(known_user(states[0], 5))
    monkeypatch.setattr(Index, "search_many", None)
    monkeypatch.setattr(recommender, "_user_vector", None)
    monkeypatch.setattr("lhydra.known_users.encode_states", None)
    again = replace(states[0], history=states[0].history.copy(), version=99)
    assert recommender.recommend(known_user(again, 3)).rows.tolist() == plain.rows[:3].tolist()
    assert recommender.known_users.hits == 1


@pytest.mark.parametrize("profile", [{"age": 10**400}, {"age": 10**5_000}], ids=["no float", "no text"])
def test_what_is_no_number_fails_nobody_else(bundle: Bundle, states: list[UserState], profile: dict[str, int]) -> None:
    queries = [known_user(states[0], 5), known_user(replace(states[1], profile=profile), 5), known_user(states[2], 5)]
    first, bad, last = Recommender(bundle).recommend_many([(query, no_check) for query in queries])
    assert isinstance(bad, Exception)
    for found, query in ((first, queries[0]), (last, queries[2])):
        same(found, Recommender(bundle).recommend(query))


def test_a_vector_that_is_none_fails_nobody_else(
    bundle: Bundle, states: list[UserState], monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender, queries = Recommender(bundle), [known_user(state, 5) for state in states[:3]]
    embed = recommender._user_vector
    monkeypatch.setattr(
        recommender, "_user_vector", lambda user, state: embed(user, state) * (np.nan if state is states[1] else 1)
    )
    first, bad, last = recommender.recommend_many([(query, no_check) for query in queries])
    assert "found a number that is not finite" in str(bad)
    for found, query in ((first, queries[0]), (last, queries[2])):
        same(found, Recommender(bundle).recommend(query))


def test_wide_searches_push_nobody_out(bundle: Bundle, states: list[UserState], monkeypatch: Any) -> None:
    monkeypatch.setattr(known_users, "MOST_NEAREST", 40)
    recommender = Recommender(bundle)
    for depth in (30, 50, len(bundle.catalog), 2**40):
        same(
            recommender.recommend(known_user(states[0], 5, depth=depth, repeat=Repeat.ALLOW)),
            Recommender(bundle).recommend(known_user(states[0], 5, depth=depth, repeat=Repeat.ALLOW)),
        )
    assert len(recommender.known_users.cache) == 1


def test_a_user_is_asked_for_by_two_surfaces_without_a_search(
    bundle: Bundle, states: list[UserState], monkeypatch: Any
) -> None:
    """With repeats and without, and a deep request between: what both had found stays."""
    recommender, searches = Recommender(bundle), list[int]()
    search_many = Index.search_many

    def noted(self: Index, vectors: F32, ks: Sequence[int]) -> list[tuple[I64, F32]]:
        searches.extend(ks)
        return search_many(self, vectors, ks)

    monkeypatch.setattr(Index, "search_many", noted)
    monkeypatch.setattr(known_users, "MOST_NEAREST", 60)
    for _ in range(3):
        for depth in (30, 40, 100):
            query = known_user(states[0], 5, depth=depth, repeat=Repeat.ALLOW)
            same(recommender.recommend(query), Recommender(bundle).recommend(query))
    narrow = [k for k in searches if k <= 60]
    assert sorted(narrow) == [30] * 4 + [40] * 4  # three by those who know nobody


def test_what_is_kept_is_bounded_and_holds_on_to_nothing_else(bundle: Bundle, states: list[UserState]) -> None:
    users = KnownUsers(bundle, 30_000)
    changed = [CHANGES[i % 5](state) for i in range(20) for state in states]
    for start in range(0, len(changed), 4):
        requests = [Traced(Query(5, state), no_check) for state in changed[start : start + 4]]
        users.encode(requests)
        for request in requests:
            request.vector = np.zeros((1, bundle.index.dim), np.float32)
            users.keep(request)
        assert {len(rows) for rows, _ in users.search(requests, [30] * len(requests))} == {30}
        entries = [(key, known) for key, (known, _) in users.cache._entries.items()]
        assert users.cache.nbytes == sum(entry_bytes(*entry) for entry in entries)
        assert users.cache.nbytes <= 30_000
        assert {type(part) for entry in entries for part in entry} == {bytes}  # no entry holds on to others
    assert users.hits


def test_no_play_goes_unseen_whoever_records_it(
    bundle: Bundle, states: list[UserState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a thread records, each answer is that of the state that was read; then another process records one play."""
    monkeypatch.setattr(recommenders, "KNOWN_USERS_BYTES", 20_000)
    place, names = f"lmdb:{tmp_path / 'users'}", [f"u{i}" for i in range(len(states))]
    users, recommender = open_users(place, tmp_path), Recommender(bundle)
    users.load(zip(names, states, strict=True))
    tracks = bundle.catalog.track_ids(np.arange(40))

    def record(i: int) -> None:
        users.record([Play(f"e{i}", names[i % 2], tracks[i], 1_800_000_000 + i, skipped=i % 3 == 0)])

    def ask(i: int) -> None:
        state = users.get(names[i % 2])
        assert state is not None
        query = known_user(state, 10)
        same(recommender.recommend(query), Recommender(bundle).recommend(query))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(job, i) for i in range(40) for job in (record, ask, ask)]:
            done.result()
    state = users.get(names[0])
    assert state is not None
    before = recommender.recommend(known_user(state, 1))
    assert before.tier is Tier.PERSONAL
    [best] = bundle.catalog.track_ids(before.rows)
    users.close()
    code = """
import sys
from pathlib import Path
from lhydra.domain import Play
from lhydra.users.store import open_users
users = open_users(sys.argv[1], Path())
users.record([Play("other", sys.argv[2], sys.argv[3], 1_900_000_000)])
users.close()
"""
    subprocess.run([sys.executable, "-c", code, place, names[0], best], check=True)
    users = open_users(place, tmp_path)
    state = users.get(names[0])
    users.close()
    assert state is not None
    query = known_user(state, 10)
    found = recommender.recommend(query)
    same(found, Recommender(bundle).recommend(query))
    assert best not in bundle.catalog.track_ids(found.rows)
