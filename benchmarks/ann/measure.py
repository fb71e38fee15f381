"""Measures the entrants: vectors and queries, the least effort that reaches the target, and times in rounds."""

import importlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.ann.libraries import FETCH, Built, Effort, Library, Rows, Search
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.exact import nearest_of_many
from lhydra.bundle.index import one_thread, use_threads
from lhydra.bundle.manifest import OperatingPoint
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import F32, I64
from lhydra.errors import ConfigError, complain
from lhydra.lines import say
from lhydra.recommender import Recommender
from lhydra_index_builder.build import join_users
from lhydra_index_builder.sweep import NEIGHBOURS, REFINE_FACTORS, Truth, efforts

TARGET = 0.95  # coverage
MAX_PASSES = 5  # over the held-out users for every number of a round
MAX_PASSES_S = 4.0  # fewer passes where they take longer
OURS, LEAST = "ours", "ours, least"


@dataclass(frozen=True)
class Entrant:
    """One line of the table to be: an index and the effort found for it."""

    name: str
    recipe: str
    built: Built
    effort: Effort
    tuned: float  # coverage for the half that chose the effort
    build_wall_s: float | None
    build_cpu_s: float | None


@dataclass(frozen=True)
class Round:
    """What was timed in one round: `calls` one by one, as many by each thread."""

    calls: int
    p50_us: float
    p99_us: float
    qps_1: float
    qps_2: float


def vectors_of(bundle: Bundle) -> F32:
    """Returns the vectors of a bundle's tracks in memory of their own: some libraries take no read-only memory.

    Args:
        bundle: as published.

    Returns:
        (n, dim) float32.

    Raises:
        ConfigError: tracks were removed, which only our index knows, or there are fewer than FETCH.
    """
    if len(bundle.catalog.removed):
        raise ConfigError(complain("bundle", f"{len(bundle.catalog.removed)} removed tracks", "a fresh rebuild"))
    if len(bundle.catalog) < FETCH:
        raise ConfigError(complain("bundle", f"{len(bundle.catalog)} tracks", f"at least {FETCH}"))
    return np.array(bundle.catalog.vectors, np.float32)


def queries_of(bundle: Bundle, dataset: Dataset, n: int, seed: int) -> F32:
    """Returns vectors of users drawn at random, with the histories that they had before the validation fold.

    Args:
        bundle: whose user tower encodes them.
        dataset: with the users.
        n: how many.
        seed: of the draw.

    Returns:
        (n, dim) float32.

    Raises:
        ConfigError: there are too few users.
    """
    if n > len(dataset.user_ids):
        raise ConfigError(complain("--queries", n, f"at most the {len(dataset.user_ids)} users of the dataset"))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(dataset.user_ids))[:n])
    encode = Recommender(bundle).encode
    users = join_users([encode(state) for _, state in user_states(dataset, "valid", positions=drawn)])
    one_by_one = (users.take(np.array([i])) for i in range(n))
    return np.concatenate([bundle.embed(user) for user in one_by_one])


def truth_of(vectors: F32, queries: F32) -> Truth:
    """Computes the exact nearest NEIGHBOURS of every query, with all cores.

    Args:
        vectors: (n, dim) float32 of the tracks.
        queries: (q, dim) float32 of the users.

    Returns:
        The queries and the rows of their nearest.
    """
    use_threads(os.cpu_count() or 1)
    rows, _ = nearest_of_many([vectors], queries, NEIGHBOURS, np.empty(0, np.int64))
    one_thread()
    return Truth(queries, rows)


def half_of(truth: Truth, which: int) -> Truth:
    """Returns every other user.

    Args:
        truth: of all users.
        which: 0 from the first on, 1 from the second on.

    Returns:
        Half of the users.
    """
    return Truth(truth.queries[which::2], truth.nearest[which::2])


def shares(found: Sequence[Rows], nearest: I64) -> npt.NDArray[np.float64]:
    """Returns the share of every query's exact nearest that was found.

    Args:
        found: u times (k,) rows.
        nearest: (u, m) int64 rows, -1 padded.

    Returns:
        (u,) float64, from 0 to 1.
    """
    each = [
        np.isin(exact[exact >= 0], rows).sum() / max(1, (exact >= 0).sum())
        for rows, exact in zip(found, nearest, strict=True)
    ]
    return np.array(each, np.float64)


def share(found: Sequence[Rows], nearest: I64) -> float:
    """Returns the mean of `shares`, rounded.

    Args:
        found: u times (k,) rows.
        nearest: (u, m) int64 rows, -1 padded.

    Returns:
        From 0 to 1.
    """
    return round(float(shares(found, nearest).mean()), 6)


def covered(search: Search, truth: Truth) -> float:
    """Returns the coverage of a search.

    Args:
        search: fetches FETCH rows.
        truth: queries and their nearest.

    Returns:
        The mean share of the nearest that it finds.
    """
    return share([search(query) for query in truth.queries], truth.nearest)


def own_entrants(bundle: Bundle, vectors: F32, truth: Truth) -> list[Entrant]:
    """Returns our entrants: the published operating point and, where less effort does here, that one too.

    Args:
        bundle: as published.
        vectors: (n, dim) float32 of its tracks.
        truth: of the users that choose the effort.

    Returns:
        One or two.
    """
    manifest, index = bundle.manifest, bundle.index.refining(vectors)
    assert manifest is not None
    knob = index.knob or "effort"
    build_s = next((at["build_s"] for at in manifest.index["curve"] if at["recipe"] == manifest.recipe), None)

    def with_effort(effort: Effort) -> Search:
        searched = index.at(OperatingPoint(effort[knob], effort["refine"]))
        return lambda vector: searched.search(vector, FETCH)[0]

    refining = REFINE_FACTORS if index.vectors is not None and "Flat" not in index.recipe else (1,)
    series = [[{knob: step, "refine": refine} for step in efforts(index)] for refine in refining]
    built = Built(with_effort, series, manifest.files["index.faiss"]["bytes"])
    stored: Effort = {knob: index.point.effort, "refine": index.point.refine}
    chosen = {OURS: (stored, covered(with_effort(stored), truth))}
    fitting = fastest(built, least(series, lambda effort: covered(with_effort(effort), truth), TARGET), truth.queries)
    if fitting[0] != stored:
        chosen[LEAST] = fitting
    entrants = [
        Entrant(name, manifest.recipe, built, effort, tuned, build_s, None) for name, (effort, tuned) in chosen.items()
    ]
    for each in entrants:
        say(f"{each.name}: {label(each)}, coverage {each.tuned:.4f}")
    return entrants


def load(name: str, library: Library, skipped: dict[str, str]) -> Any:
    """Imports a library; says in a line why one is skipped.

    Args:
        name: the library's here.
        library: its module.
        skipped: takes the reason, by name.

    Returns:
        The module, or None.
    """
    try:
        return importlib.import_module(library.module)
    except (ImportError, OSError) as error:
        skipped[name] = f"{library.package} does not import: {' '.join(str(error).split())}"
        say(f"{name}: skipped, {skipped[name]}")
        return None


def entrant_of(name: str, library: Library, module: Any, vectors: F32, truth: Truth, threads: int) -> Entrant:
    """Builds the index of a library and finds its least effort.

    Args:
        name: the library's here.
        library: how it builds.
        module: its module.
        vectors: (n, dim) float32 of the tracks.
        truth: of the users that choose the effort.
        threads: to build with.

    Returns:
        The entrant.
    """
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.monotonic(), time.process_time()
        # the folder takes the saved index, whose writing is counted, as it is for ours
        built = library.build(module, vectors, threads, Path(folder))
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    one_thread()
    candidates = least(built.series, lambda effort: covered(built.with_effort(effort), truth), TARGET)
    effort, tuned = fastest(built, candidates, truth.queries)
    entrant = Entrant(name, name, built, effort, tuned, round(wall, 1), round(cpu, 1))
    say(f"{name}: built in {wall:.1f} s ({cpu:.1f} s CPU); {label(entrant)}, coverage {tuned:.4f}")
    return entrant


def least(
    series: Sequence[Sequence[Effort]], coverage: Callable[[Effort], float], target: float
) -> list[tuple[Effort, float]]:
    """Finds the first effort of each series that reaches the target.

    Args:
        series: efforts, each ascending; nothing is tried beyond the first that does.
        coverage: of an effort.
        target: the coverage to reach.

    Returns:
        Efforts with their coverage; where none reaches the target, the best that was tried.
    """
    good: list[tuple[Effort, float]] = []
    tried: list[tuple[Effort, float]] = []
    for ascending in series:
        for effort in ascending:
            tried.append((effort, coverage(effort)))
            if tried[-1][1] >= target:
                good.append(tried[-1])
                break
    return good or [max(tried, key=lambda one: one[1])]


def fastest(built: Built, candidates: Sequence[tuple[Effort, float]], queries: F32) -> tuple[Effort, float]:
    """Returns the fastest of several efforts, for libraries with two things to set; nothing is timed for one.

    Args:
        built: the index.
        candidates: efforts with their coverage.
        queries: (q, dim) float32.

    Returns:
        The candidate with the lowest p50.
    """
    if len(candidates) == 1:
        return candidates[0]
    times: list[list[float]] = [[] for _ in candidates]
    for _ in range(3):
        for (effort, _coverage), taken in zip(candidates, times, strict=True):
            taken.append(float(np.median(latencies_us(built.with_effort(effort), queries))))
    return candidates[int(np.argmin([statistics.median(taken) for taken in times]))]


def measure(entrants: Sequence[Entrant], truth: Truth, repeats: int) -> dict[str, list[Round]]:
    """Times all entrants in rounds; a round goes over all of them, each warmed up by the other half's users.

    Args:
        entrants: with different names.
        truth: of all users; the second half is timed.
        repeats: rounds.

    Returns:
        Rounds by the entrant's name.
    """
    rounds: dict[str, list[Round]] = {entrant.name: [] for entrant in entrants}
    one_thread()
    for _ in range(repeats):
        for entrant in entrants:
            search = entrant.built.with_effort(entrant.effort)
            taken_us = latencies_us(search, half_of(truth, 0).queries)
            passes = int(np.clip(MAX_PASSES_S * 1e6 / taken_us.sum(), 1, MAX_PASSES))
            queries = np.concatenate([half_of(truth, 1).queries] * passes)
            p50, p99 = np.percentile(latencies_us(search, queries), (50, 99))
            qps_1, qps_2 = rate(search, queries, 1), rate(search, queries, 2)
            rounds[entrant.name].append(Round(len(queries), float(p50), float(p99), qps_1, qps_2))
    return rounds


def latencies_us(search: Search, queries: F32) -> npt.NDArray[np.float64]:
    """Times queries one by one.

    Args:
        search: to time.
        queries: (q, dim) float32.

    Returns:
        (q,) float64 microseconds.
    """
    taken = np.zeros(len(queries))
    for i, query in enumerate(queries):
        started = time.perf_counter_ns()
        search(query)
        taken[i] = time.perf_counter_ns() - started
    return taken / 1000


def rate(search: Search, queries: F32, threads: int) -> float:
    """Measures the throughput of several Python threads.

    Args:
        search: to time.
        queries: (q, dim) float32; every thread asks all of them.
        threads: how many.

    Returns:
        Searches per second of all threads together.
    """
    ready = threading.Barrier(threads + 1)

    def ask() -> None:
        one_thread()
        ready.wait()
        for query in queries:
            search(query)

    asking = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in asking:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in asking:
        thread.join()
    return threads * len(queries) / (time.perf_counter() - started)


def label(entrant: Entrant) -> str:
    """Returns recipe and effort for people.

    Args:
        entrant: with its effort.

    Returns:
        A few words.
    """
    said = [f"{name} {value}" for name, value in entrant.effort.items() if (name, value) != ("refine", 1)]
    return ", ".join(said if entrant.recipe == entrant.name else [entrant.recipe, *said])
