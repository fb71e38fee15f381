"""`benchmarks.ann`: shares against brute force, the least effort, ratios, libraries that are not there, its JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.ann import command, libraries, measure, report
from lhydra.bundle.bundle import Bundle
from lhydra.data.dataset import Dataset
from lhydra.domain import F32
from lhydra_index_builder.sweep import NEIGHBOURS


def unit(n: int, seed: int) -> F32:
    drawn = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


# ---- shares


def test_brute_force_covers_everything_and_its_last_rows_nothing() -> None:
    vectors, queries = unit(500, 0), unit(20, 1)
    truth = measure.truth_of(vectors, queries)
    order = [np.argsort(-(vectors @ query), kind="stable") for query in queries]
    assert [sorted(rows[:NEIGHBOURS]) for rows in order] == [sorted(exact) for exact in truth.nearest]
    for found, expected in (
        ([rows[: libraries.FETCH] for rows in order], 1.0),
        ([rows[:50] for rows in order], 0.5),
        ([rows[NEIGHBOURS:] for rows in order], 0.0),
        ([rows[:0] for rows in order], 0.0),
    ):
        assert measure.share(found, truth.nearest) == expected
        assert set(measure.shares(found, truth.nearest)) == {expected}


def test_padding_of_the_truth_is_nothing_to_be_found() -> None:
    assert measure.share([np.array([3, -1])], np.array([[3, 4, -1, -1]])) == 0.5
    assert measure.share([np.array([3])], np.array([[-1, -1]])) == 0.0


def test_halves_share_no_user() -> None:
    truth = measure.truth_of(unit(400, 0), unit(11, 1))
    first, second = measure.half_of(truth, 0), measure.half_of(truth, 1)
    assert len(first.queries) + len(second.queries) == 11
    assert not {query.tobytes() for query in first.queries} & {query.tobytes() for query in second.queries}


# ---- the least effort


def series_of(*shares: Sequence[float]) -> tuple[list[list[libraries.Effort]], dict[tuple[int, int], float]]:
    efforts: list[list[libraries.Effort]] = [[{"a": a, "b": b} for b in range(len(of))] for a, of in enumerate(shares)]
    return efforts, {(a, b): value for a, of in enumerate(shares) for b, value in enumerate(of)}


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=1, max_size=4), st.floats(0, 1))
def test_the_least_effort_is_the_first_of_its_series_that_reaches_the_target(
    shares: list[list[float]], target: float
) -> None:
    series, coverage = series_of(*shares)
    asked: list[tuple[int, int]] = []

    def cover(effort: libraries.Effort) -> float:
        asked.append((effort["a"], effort["b"]))
        return coverage[asked[-1]]

    found = measure.least(series, cover, target)
    firsts = [next((at for at, value in enumerate(of) if value >= target), None) for of in shares]
    reaching = [(a, b) for a, b in enumerate(firsts) if b is not None]
    if reaching:
        assert [(effort["a"], effort["b"]) for effort, _ in found] == reaching
        assert all(b <= firsts[a] for a, b in asked if firsts[a] is not None)  # type: ignore[operator]
    else:
        ((effort, best),) = found
        assert best == coverage[effort["a"], effort["b"]] == max(coverage.values()) < target
    assert all(value == coverage[effort["a"], effort["b"]] for effort, value in found)


def test_of_several_the_fastest_is_taken_and_of_one_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is timed three times, in turn; the median of the medians decides, not the best of them."""
    times_us = {0: [30.0, 1.0, 30.0], 1: [20.0, 20.0, 40.0]}
    timed: list[int] = []

    def latencies_us(search: libraries.Search, queries: F32) -> F32:
        timed.append(int(search(queries[0])[0]))
        return np.full(len(queries), times_us[timed[-1]][timed.count(timed[-1]) - 1], np.float32)

    def with_effort(effort: libraries.Effort) -> libraries.Search:
        return lambda vector: np.array([effort["a"]])

    monkeypatch.setattr(measure, "latencies_us", latencies_us)
    built = libraries.Built(with_effort, (), 0)
    assert measure.fastest(built, [({"a": 0}, 0.97), ({"a": 1}, 0.96)], unit(20, 0)) == ({"a": 1}, 0.96)
    assert timed == [0, 1] * 3
    assert measure.fastest(built, [({"a": 7}, 0.97)], unit(20, 0)) == ({"a": 7}, 0.97)
    assert timed == [0, 1] * 3


def test_a_library_is_built_saved_and_as_good_as_asked(tmp_path: Path) -> None:
    vectors, queries = unit(800, 0), unit(40, 1)
    truth = measure.truth_of(vectors, queries)
    library = libraries.LIBRARIES["faiss-hnsw"]
    module = measure.load("faiss-hnsw", library, {})
    chosen_by, held_out = measure.half_of(truth, 0), measure.half_of(truth, 1)
    entrant = measure.entrant_of("faiss-hnsw", library, module, vectors, chosen_by, 1)
    assert entrant.tuned >= measure.TARGET
    assert entrant.built.size > vectors.nbytes
    (round_,) = measure.measure([entrant], truth, 1)["faiss-hnsw"]
    assert 0 < round_.p50_us <= round_.p99_us
    assert round_.qps_1 > 0
    row = report.row_of(entrant, [round_] * 3, held_out, len(vectors))
    assert row["coverage"] == measure.covered(entrant.built.with_effort(entrant.effort), held_out)
    assert row["coverage"] >= row["recall@100"] > 0.9
    assert row["p50_us"]["min"] == row["p50_us"]["median"] == row["p50_us"]["max"]
    assert set(report.ratios(row, row).values()) == {1.0}


def test_every_thread_asks_every_query() -> None:
    asked: list[float] = []

    def search(vector: F32) -> libraries.Rows:
        asked.append(float(vector[0]))
        return np.arange(3)

    queries = unit(50, 0)
    for threads in (1, 2):
        asked.clear()
        assert measure.rate(search, queries, threads) > 0
        assert sorted(asked) == sorted(queries[:, 0].tolist() * threads)
    assert len(measure.latencies_us(search, queries)) == 50


def test_spread_and_ratios() -> None:
    assert report.spread([3.0, 1.0, 2.0]) == report.Spread(2.0, 1.0, 3.0)
    base = {key: {"median": 10.0} for key in report.TIMES} | {"bytes_per_track": 73.0, "build_wall_s": None}
    row = {key: {"median": 25.0} for key in report.TIMES} | {"bytes_per_track": 511.0, "build_wall_s": 4.0}
    assert report.ratios(row, base) == dict.fromkeys(report.TIMES, 2.5) | {"bytes_per_track": 7.0}


# ---- the whole


def test_libraries_that_are_not_there_are_skipped_and_said_to_be(
    tiny_store: Path,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "SPIN_S", 0.02)
    monkeypatch.setattr(measure, "MAX_PASSES", 1)
    monkeypatch.setitem(
        libraries.LIBRARIES, "hnswlib", libraries.Library("hnswlib", "no_such_module", libraries.hnswlib)
    )
    argv = [str(tiny_store), str(tiny_dataset.path), "--queries", "20", "--repeats", "2", "--build-threads", "1"]
    argv += ["--libraries", "ours,hnswlib,faiss-hnsw", "--out", str(tmp_path / "new" / "ann.json")]
    assert command.main(argv) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("hnswlib"))
    assert line == "hnswlib: skipped, hnswlib does not import: No module named 'no_such_module'"
    text = (tmp_path / "new" / "ann.json").read_text()
    found = json.loads(text)
    assert found["skipped"] == {"hnswlib": line.partition("skipped, ")[2]}
    assert [row["name"] for row in found["rows"]] == ["ours", "faiss-hnsw"]
    own, other = found["rows"]
    assert own["coverage"] == own["recall@100"] == 1.0  # 400 tracks: flat
    assert own["reached"]
    assert other["reached"]
    assert own["to_ours"]["p50_us"] == 1.0
    assert other["bytes_per_track"] > 1.5 * own["bytes_per_track"]
    bundle = Bundle.open(tiny_store)
    assert bundle.manifest is not None
    assert own["recipe"] == bundle.manifest.recipe
    assert (found["tracks"], found["dim"], found["fetch"], found["seed"]) == (400, 32, libraries.FETCH, 1)
    assert found["spinners"].keys() == {"before", "after"}
    assert str(tmp_path) not in text
    assert str(tiny_store) not in text


@pytest.mark.parametrize("flag", ["--libraries=ours,annoy", "--queries=1", "--repeats=0", "--build-threads=0"])
def test_impossible_settings_are_wrong_usage(flag: str) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["store", "dataset", flag])
    assert caught.value.code == 2


def test_no_store_and_too_many_users_are_one_line(
    tiny_store: Path,
    tiny_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "SPIN_S", 0.01)
    for store, queries, says in ((tmp_path, "4", "no CURRENT"), (tiny_store, "100000", "--queries")):
        assert command.main([str(store), str(tiny_dataset.path), "--queries", queries, "--libraries", "ours"]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert says in line


def in_another_python(program: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environ |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_CORETYPE": "Haswell"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    return done.stdout.strip()


SEEN = "print(os.environ.get('OPENBLAS_CORETYPE'), os.environ.get('OMP_NUM_THREADS'))"


def test_importing_a_benchmark_leaves_the_environment_alone() -> None:
    assert (
        in_another_python(f"import os, benchmarks.ann.command, benchmarks.lists, benchmarks.stages; {SEEN}")
        == "Haswell None"
    )


@pytest.mark.parametrize("module", ["benchmarks.ann", "benchmarks.lists", "benchmarks.stages"])
def test_running_one_sets_the_environment_before_a_library_reads_it(module: str) -> None:
    program = f"""
import os, runpy, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            {SEEN}
            sys.exit()

sys.meta_path.insert(0, Finder())
sys.argv = ["x"]
runpy.run_module({module!r}, run_name="__main__")
"""
    assert in_another_python(program) == "None 1"
