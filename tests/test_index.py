"""Search against brute force; approximate indexes never lie about what they lack."""

import dataclasses
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.eligible import eligible_set, search_eligible
from lhydra.bundle.exact import nearest
from lhydra.bundle.index import BLAS_QUERIES, Index
from lhydra.bundle.manifest import OperatingPoint
from lhydra.domain import F32, I64
from lhydra.errors import BundleCorrupt, ConfigError

NONE: I64 = np.empty(0, np.int64)


def unit(n: int, dim: int, seed: int = 0) -> F32:
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def oracle(vectors: F32, query: F32, k: int, excluded: set[int] = frozenset()) -> list[int]:  # type: ignore[assignment]
    scores = vectors @ query
    ranked = sorted((row for row in range(len(vectors)) if row not in excluded), key=lambda row: (-scores[row], row))
    return ranked[:k]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 80), st.integers(0, 2**16), st.data())
def test_exact_search_and_nearest_equal_brute_force(n: int, k: int, seed: int, data: st.DataObject) -> None:
    vectors, query = unit(n, 8, seed), unit(1, 8, seed + 1)[0]
    vectors[n // 2] = vectors[0]  # a tie
    excluded = data.draw(st.sets(st.integers(0, n - 1)))
    rows, scores = Index.build(vectors, "flat").search(query, k)
    assert rows.tolist() == oracle(vectors, query, k)
    np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-6)
    found, _ = nearest(vectors, query, k, np.array(sorted(excluded), np.int64))
    assert found.tolist() == oracle(vectors, query, k, excluded)


def test_a_shared_last_place_goes_to_the_lowest_rows() -> None:
    vectors = np.repeat(unit(1, 8), 50, axis=0)
    for k in (1, 7, 49, 50):
        assert Index.build(vectors, "flat").search(vectors[0], k)[0].tolist() == list(range(k))


@pytest.mark.parametrize("recipe", ["HNSW8", "IVF16,Flat", "IVF16,SQ8"])
def test_an_approximate_index_returns_distinct_rows_and_never_minus_one(recipe: str) -> None:
    vectors = unit(700, 16)
    index = Index.build(vectors, recipe)
    assert not index.exact
    for query in unit(20, 16, seed=5):
        rows, scores = index.search(query, 600)
        assert len(set(rows.tolist())) == len(rows) <= 600
        assert (rows >= 0).all()
        assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("recipe", ["flat", "HNSW8", "IVF16,SQ8"])
def test_an_index_answers_the_same_from_disk(recipe: str, tmp_path: Path) -> None:
    vectors = unit(700, 16)
    index = Index.build(vectors, recipe)
    index.write(tmp_path / "index.faiss")
    again = Index.open(tmp_path / "index.faiss", recipe)
    assert (again.dim, len(again), again.exact) == (16, 700, recipe == "flat")
    for query in unit(10, 16, seed=2):
        assert index.search(query, 50)[0].tolist() == again.search(query, 50)[0].tolist()


@pytest.mark.parametrize("recipe", ["flatt", "", "IVF,", "HNSW-1"])
def test_an_unknown_recipe_is_refused_in_one_line(recipe: str) -> None:
    with pytest.raises(ConfigError, match="recipe") as caught:
        Index.build(unit(50, 8), recipe)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_needs_more_tracks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe IVF64,Flat: .* expected one that fits 10 tracks of 8 numbers"):
        Index.build(unit(10, 8), "IVF64,Flat")


@pytest.mark.parametrize("query", [np.zeros(9, np.float32), np.full(8, np.nan, np.float32)])
def test_a_query_that_does_not_fit_is_refused(query: F32) -> None:
    with pytest.raises(ValueError, match="query vector"):
        Index.build(unit(10, 8), "flat").search(query, 3)


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.faiss").write_bytes(b"no index at all")
    with pytest.raises(BundleCorrupt, match=r"index\.faiss"):
        Index.open(tmp_path / "index.faiss", "flat")


def test_nearest_of_nothing() -> None:
    everything: I64 = np.arange(5)
    assert len(nearest(unit(5, 4), unit(1, 4)[0], 3, everything)[0]) == 0


# -- removed tracks and operating points ------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(1, 70), st.integers(0, 2**16), st.data())
def test_a_map_from_positions_to_rows_and_removed_tracks(n: int, k: int, seed: int, data: st.DataObject) -> None:
    """Rows in any order of positions, some removed: what is found is brute force over the rest, ties by row."""
    vectors, query = unit(n, 8, seed), unit(1, 8, seed + 1)[0]
    vectors[n // 2] = vectors[0]  # a tie
    removed = data.draw(st.sets(st.integers(0, n - 1)))
    row_of = np.random.default_rng(seed).permutation(n).astype(np.int32)
    index = Index.build(vectors[row_of], "flat")  # position p holds the track of row row_of[p]
    index = index.with_rows(np.where(np.isin(row_of, list(removed)), -1, row_of).astype(np.int32))
    assert len(index) == n - len(removed)
    rows, scores = index.search(query, k)
    assert rows.tolist() == oracle(vectors, query, k, removed)
    np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-6)


@pytest.mark.parametrize("recipe", ["HNSW8", "IVF16,SQ8"])
def test_an_approximate_index_is_not_short_because_of_the_removed(recipe: str) -> None:
    vectors = unit(700, 16)
    index = Index.build(vectors, recipe).at(OperatingPoint(16 if "IVF" in recipe else 700))
    for query in unit(10, 16, seed=5):
        near = index.search(query, 120)[0]
        rows = np.arange(700, dtype=np.int32)
        rows[near[:100]] = -1  # the worst case: all the nearest are gone
        found, _ = index.with_rows(rows).search(query, 20)
        assert len(found) == 20
        assert not set(found.tolist()) & set(near[:100].tolist())


def test_the_operating_point_survives_the_file_and_changes_what_is_found(tmp_path: Path) -> None:
    vectors = unit(3000, 16)
    index = Index.build(vectors, "IVF64,SQ8")
    index.write(tmp_path / "index.faiss")
    exact = Index.build(vectors, "flat")
    shares = []
    for effort in (1, 8, 64):
        again = Index.open(tmp_path / "index.faiss", "IVF64,SQ8", OperatingPoint(effort))
        assert (again.point, again.knob, again.lists) == (OperatingPoint(effort), "nprobe", 64)
        hits = [len({*exact.search(q, 50)[0]} & {*again.search(q, 50)[0]}) for q in unit(40, 16, seed=3)]
        shares.append(np.mean(hits) / 50)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.9


@pytest.mark.parametrize(
    ("recipe", "low", "high"),
    [
        ("IVF64,SQ8", OperatingPoint(1), OperatingPoint(48)),
        ("IVF16,PQ8x4fs", OperatingPoint(1), OperatingPoint(16)),
        ("HNSW8", OperatingPoint(4), OperatingPoint(300)),
        ("PCA8,IVF64,Flat", OperatingPoint(1), OperatingPoint(48)),
        ("IVF64,SQ4,RFlat", OperatingPoint(1), OperatingPoint(48, 8)),
    ],
)
def test_two_indexes_over_one_faiss_index_each_search_at_their_own_point(
    recipe: str, low: OperatingPoint, high: OperatingPoint
) -> None:
    vectors = unit(3000, 16)
    shared = Index.build(vectors, recipe)
    expected = {}
    for point in (low, high):  # an index of its own each, told FAISS's way
        own = dataclasses.replace(shared, faiss_index=faiss.clone_index(shared.faiss_index))
        faiss.ParameterSpace().set_index_parameter(own.faiss_index, own.knob, point.effort)
        if point.refine > 1:
            faiss.ParameterSpace().set_index_parameter(own.faiss_index, "k_factor_rf", point.refine)
        expected[point] = [[part.tobytes() for part in own.search(query, 40)] for query in unit(12, 16, 3)]
    assert expected[low] != expected[high]
    one, other = shared.at(low), shared.at(high)
    for i, query in enumerate(unit(12, 16, 3)):  # in turns
        for index, point in ((one, low), (other, high)):
            assert [part.tobytes() for part in index.search(query, 40)] == expected[point][i]
    for index, point in ((one, low), (other, high)):
        for found, wanted in zip(index.search_many(unit(12, 16, 3), [40] * 12), expected[point], strict=True):
            assert [part.tobytes() for part in found] == wanted


def test_an_operating_point_holds_under_a_filter() -> None:
    vectors = unit(20_000, 16)
    shared, mask, query = Index.build(vectors, "IVF64,SQ8"), np.arange(20_000) % 2 == 0, unit(1, 16, 4)
    found = []
    for index in (shared.at(OperatingPoint(1)), shared.at(OperatingPoint(64))):
        found.append(search_eligible(index, query, 200, eligible_set(index, mask, vectors), NONE)[0].tolist())
    again = shared.at(OperatingPoint(1))
    assert found[0] == search_eligible(again, query, 200, eligible_set(again, mask, vectors), NONE)[0].tolist()
    exact = set(nearest(vectors, query, 200, np.flatnonzero(~mask))[0].tolist())
    assert len(exact & set(found[0])) < len(exact & set(found[1]))


def test_so_many_queries_that_faiss_would_round_otherwise_are_refused() -> None:
    most = unit(BLAS_QUERIES - 1, 16, 1)
    for recipe in ("flat", "IVF8,SQ8", "HNSW8", "PCA8,IVF8,Flat"):
        index = Index.build(unit(500, 16), recipe)
        for query, found in zip(
            most, index.search_many(most, [5] * len(most)), strict=True
        ):  # as many as may be: equal to the bit
            assert [part.tobytes() for part in found] == [part.tobytes() for part in index.search(query, 5)]
        with pytest.raises(ValueError, match="found 20, expected fewer than 20"):
            index.search_many(unit(BLAS_QUERIES, 16, 1), [5] * BLAS_QUERIES)


@pytest.mark.parametrize(
    ("recipe", "point"),
    [
        ("flat", OperatingPoint()),
        ("IVF16,SQ8", OperatingPoint(4)),
        ("IVF16,SQ4", OperatingPoint(4, 2)),  # refined by the exact vectors
        ("IVF16,PQ4x4fs", OperatingPoint(4)),
        ("IVF16,SQ4,RFlat", OperatingPoint(4, 2)),
        ("PCA8,IVF16,Flat", OperatingPoint(4)),
        ("IVF16,RaBitQ4", OperatingPoint(4)),  # refines what beats the k-th
        ("IVF16(PCA8,Flat),SQ8", OperatingPoint(4)),
        ("HNSW8", OperatingPoint(4)),
    ],
)
@pytest.mark.parametrize("distinct", [3000, 100])  # tracks alike share their score: which of them is fetched goes by k
@pytest.mark.parametrize("removed", [0, 7])
def test_nobody_s_search_depends_on_how_many_others_search_for(
    recipe: str, point: OperatingPoint, distinct: int, removed: int
) -> None:
    rng = np.random.default_rng(0)
    vectors = unit(3000, 64)[rng.integers(0, distinct, 3000)]  # so wide that tables of packed codes are multiplied
    index = Index.build(vectors, recipe).at(point)
    if removed:
        index = index.with_rows(np.where(np.arange(3000) % removed, np.arange(3000), -1).astype(np.int32))
    if point.refine > 1:
        index = index.refining(vectors)
    for seed in range(20):
        ks = rng.integers(0, 200, rng.integers(1, BLAS_QUERIES)).tolist()
        queries = unit(len(ks), 64, seed)
        for query, k, found in zip(queries, ks, index.search_many(queries, ks), strict=True):
            assert [part.tobytes() for part in found] == [part.tobytes() for part in index.search(query, k)]


def test_refining_orders_by_the_exact_vectors() -> None:
    vectors = unit(2000, 16)
    index = Index.build(vectors, "IVF4,PQ8x4fs").at(OperatingPoint(4))
    rough = np.mean([len({*nearest(vectors, q, 20, NONE)[0]} & {*index.search(q, 20)[0]}) for q in unit(30, 16, 9)])
    fine = index.refining(vectors).at(OperatingPoint(4, 8))
    for query in unit(30, 16, 9):
        rows, scores = fine.search(query, 20)
        np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-6)
        assert (np.diff(scores) <= 0).all()
    better = np.mean([len({*nearest(vectors, q, 20, NONE)[0]} & {*fine.search(q, 20)[0]}) for q in unit(30, 16, 9)])
    assert better > rough
    assert Index.build(vectors, "flat").refining(vectors).vectors is None  # exact already


def test_parts_of_an_index_merge_only_where_they_can() -> None:
    assert Index.build(unit(500, 16), "IVF8,SQ8").mergeable
    assert not Index.build(unit(500, 16), "HNSW8").mergeable
    assert not Index.build(unit(500, 16), "flat").mergeable
