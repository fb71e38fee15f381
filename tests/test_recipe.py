"""Which index is built and how hard it looks: what is measured is the truth, and the choice follows its rule."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.exact import nearest, nearest_of_many
from lhydra.bundle.index import FLAT, Index
from lhydra.bundle.manifest import OperatingPoint
from lhydra.bundle.recipes import sample_rows
from lhydra.domain import F32, I64
from lhydra.errors import ConfigError
from lhydra_index_builder import index_parts, pool, recipe, sweep
from lhydra_index_builder.index_parts import VectorFile
from lhydra_index_builder.recipe import choose, ladder
from lhydra_index_builder.sweep import MeasuredPoint, Truth, measure

DIM = 16
NOTHING: I64 = np.empty(0, np.int64)


def unit(n: int, seed: int, dim: int = DIM) -> F32:
    """Unit vectors around a few centres, as tracks are."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(30, dim))[rng.integers(30, size=n)] + 0.7 * rng.normal(size=(n, dim))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> VectorFile:
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    np.save(path, unit(3000, 1))
    return VectorFile(path, 3000, DIM)


@pytest.fixture(scope="module")
def truth(vectors: VectorFile) -> Truth:
    queries = unit(60, 2)
    rows, _ = nearest_of_many([np.load(vectors.path)], queries, sweep.NEIGHBOURS, NOTHING)
    return Truth(queries, rows)


def chosen(vectors: VectorFile, truth: Truth, folder: Path, **other: object) -> recipe.Choice:
    defaults: dict[str, object] = {"recipe": recipe.AUTO, "target": 0.95, "depth": 200, "max_bytes": 0, "seed": 0}
    return choose(vectors, truth, **{**defaults, **other}, run=map, threads=1, folder=folder)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.integers(1, 150), st.integers(1, 150))
def test_an_exact_index_covers_all_that_is_asked_for(n: int, depth: int) -> None:
    exact, queries = unit(n, 3), unit(5, 4)
    rows, _ = nearest_of_many([exact], queries, sweep.NEIGHBOURS, NOTHING)
    found = sweep.measure(Index.build(exact, FLAT), Truth(queries, rows), depth, 0, 0)
    assert found.coverage == 1


# -- exact search over blocks ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 33), st.integers(0, 1000), st.data())
def test_nearest_of_many_is_brute_force(n: int, k: int, block: int, seed: int, data: st.DataObject) -> None:
    vectors, queries = unit(n, seed, 8), unit(3, seed + 1, 8)
    excluded = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))), np.int64)
    rows, scores = nearest_of_many((vectors[at : at + block] for at in range(0, n, block)), queries, k, excluded)
    for query, found, score in zip(queries, rows, scores, strict=True):
        expected, best = nearest(vectors, query, k, excluded)
        assert (found >= 0).sum() == len(expected)
        np.testing.assert_allclose(score[: len(best)], best, atol=1e-6)
        assert len({*found[found >= 0]}) == len(expected)
        assert not {*found} & {*excluded}


# -- the ladder -----------------------------------------------------------------------------------------------


def test_the_ladder_follows_size_and_memory() -> None:
    assert ladder(3_000, 64)[0] == FLAT
    assert ladder(50_000, 64)[0] == FLAT
    assert ladder(50_001, 64)[:2] == ["IVF1024,SQ8", "IVF1024,Flat"]
    assert ladder(1_000_000, 64)[0] == "IVF4096,SQ8"
    assert ladder(10_000_000, 64)[0] == "IVF16384,SQ8"
    assert ladder(10_000_000, 64, max_bytes=30)[0] == "IVF16384,PQ32x4fs"
    assert ladder(10_000_000, 64, max_bytes=16)[0] == "IVF16384,PQ16x4fs"
    assert ladder(1_000, 64, max_bytes=100)[0] == "IVF16,SQ8"
    for n in (1, 10, 100, 1_000, 10_000):
        assert FLAT in ladder(n, 64)  # something always reaches the recall asked for
    with pytest.raises(ConfigError, match=r"--max-bytes-per-track: found 9, expected at least 16 for 64 numbers"):
        ladder(1_000_000, 64, max_bytes=9)


def test_an_index_that_must_be_small_is_small_and_orders_by_exact_vectors(
    vectors: VectorFile, truth: Truth, tmp_path: Path
) -> None:
    found = chosen(vectors, truth, tmp_path, max_bytes=14, target=0.9)
    assert found.measured.recipe.endswith("PQ8x4fs")
    assert found.reached
    mapped = np.load(vectors.path)
    index = Index.open(found.path, found.measured.recipe, found.measured.point).refining(mapped)
    assert found.measured.refine > 1
    rows, scores = index.search(truth.queries[0], 50)
    np.testing.assert_allclose(scores, mapped[rows] @ truth.queries[0], atol=1e-6)
    large = chosen(vectors, truth, tmp_path / "..", recipe="IVF16,Flat").measured.bytes_per_track
    assert found.measured.bytes_per_track < large / 3


# -- choosing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["IVF64,SQ8", "IVF64,Flat", "HNSW16", "PCA8,IVF32,SQ8", "IVF32,SQ8,RFlat"])
def test_the_point_reaches_the_target_with_the_least_work(
    name: str, vectors: VectorFile, truth: Truth, tmp_path: Path
) -> None:
    found = chosen(vectors, truth, tmp_path, recipe=name, target=0.8, depth=120)
    points = [at for at in found.curve if at.recipe == name]
    good = [at for at in points if at.least >= 0.8]
    assert found.reached == bool(good)
    assert min(good, key=lambda at: sweep.search_cost(at, vectors.n, 120)).point == found.measured.point
    assert any(at.least < 0.8 for at in points) or points[0].point == found.measured.point
    assert found.path.is_file()
    assert [at.recipe for at in found.curve if at.recipe == FLAT] == [FLAT]  # what exact search costs, beside it


def test_a_target_out_of_reach_of_the_codes_takes_the_next_recipe(
    vectors: VectorFile, truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "MAX_FLAT_PRODUCTS", 0)
    found = chosen(vectors, truth, tmp_path, target=1.0, depth=100)
    tried = list(dict.fromkeys(at.recipe for at in found.curve))
    assert found.reached
    assert found.measured.coverage == 1
    assert tried[-1] == found.measured.recipe != tried[0]
    assert [path.name for path in tmp_path.glob("index-*")] == [found.path.name]  # the others are gone


def test_the_measure_is_the_truth(vectors: VectorFile, truth: Truth, tmp_path: Path) -> None:
    index_parts.build(vectors, "IVF64,SQ8", 0, map, 1, tmp_path / "index")
    index = Index.open(tmp_path / "index", "IVF64,SQ8", OperatingPoint(3))
    found = measure(index, truth, 150, 7.0, 1.0)
    mapped = np.load(vectors.path)
    shares = []
    for query in truth.queries:
        exact = nearest(mapped, query, 100, NOTHING)[0].tolist()
        rows = index.search(query, 150)[0].tolist()
        shares.append([len({*exact} & {*rows}), 10 * len({*exact[:10]} & {*rows[:10]}), len({*exact} & {*rows[:100]})])
    expected = np.mean(shares, axis=0) / 100
    assert (found.coverage, found.recall_10, found.recall_100) == pytest.approx(expected, abs=1e-6)
    halves = [np.mean(shares[first::2], axis=0)[0] / 100 for first in (0, 1)]
    assert found.least == pytest.approx(min(halves), abs=1e-6)
    assert (found.recipe, found.effort, found.bytes_per_track) == ("IVF64,SQ8", 3, 7.0)


def test_work_counts_what_is_compared() -> None:
    at = MeasuredPoint("IVF100,SQ8", 4, 1, 1, 1, 1, 1, 0, 0, 0, 0)
    assert sweep.search_cost(at, 50_000, 300) == 100 + 4 * 500
    assert sweep.search_cost(replace(at, refine=2), 50_000, 300) == 100 + 4 * 500 + 10 * 600


# -- building in parts ------------------------------------------------------------------------------------------


def lists_of(path: Path, name: str, vectors: VectorFile, truth: Truth) -> list[list[int]]:
    index = Index.open(path, name, OperatingPoint(8))
    assert len(index) == vectors.n
    return [index.search(query, 80)[0].tolist() for query in truth.queries[:20]]


@pytest.mark.parametrize("name", ["IVF32,SQ8", "IVF32,PQ8x4fs", "IVF32,Flat"])
def test_an_index_in_parts_is_the_index_in_one_go(
    name: str, vectors: VectorFile, truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_parts.build(vectors, name, 0, map, 1, tmp_path / "whole")
    monkeypatch.setattr(index_parts, "SHARD", 97)
    index_parts.build(vectors, name, 0, map, 1, tmp_path / "parts")
    whole = Index.build(np.load(vectors.path), name, 0)
    whole.write(tmp_path / "direct")
    expected = lists_of(tmp_path / "direct", name, vectors, truth)
    assert lists_of(tmp_path / "whole", name, vectors, truth) == expected
    assert lists_of(tmp_path / "parts", name, vectors, truth) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["direct", "parts", "whole"]  # no part is left


def test_processes_build_what_one_process_builds(
    vectors: VectorFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_parts, "SHARD", 200)
    index_parts.build(vectors, "IVF32,SQ8", 0, map, 1, tmp_path / "one")
    with pool.processes(2) as run:
        index_parts.build(vectors, "IVF32,SQ8", 0, run, 1, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@settings(deadline=None)
@given(st.integers(1, 300_000), st.sampled_from(["flat", "IVF4096,SQ8", "HNSW32"]), st.integers(0, 5))
def test_samples_are_distinct_rows_and_repeat_themselves(n: int, name: str, seed: int) -> None:
    rows = sample_rows(n, name, seed)
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] <= rows[-1] < n
    assert len(rows) == min(n, 48 * 4096 if "IVF" in name else 65_536)
    assert rows.tolist() == sample_rows(n, name, seed).tolist()
