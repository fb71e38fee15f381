"""What an index finds, and how long it takes: measured on real users' vectors against exact search."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lhydra.bundle.exact import nearest_of_many
from lhydra.bundle.index import FLAT, Index, one_thread
from lhydra.bundle.manifest import OperatingPoint, Recall
from lhydra.bundle.recipes import lists_of
from lhydra.domain import F32, I64
from lhydra_index_builder.index_parts import VectorFile

NEIGHBOURS = 100  # exact neighbours whose share is counted
REFINE_FACTORS = (1, 2, 4, 8)
NOISE = 2.0  # standard errors that a mean over some users may lie off that over all
POINTS_BEYOND = 2  # measured behind the chosen one: the curve shows what more effort would bring


@dataclass(frozen=True)
class Truth:
    """What exact search finds: queries (u, dim), the users' vectors; nearest (u, NEIGHBOURS) rows, best first."""

    queries: F32
    nearest: I64


@dataclass(frozen=True)
class MeasuredPoint:
    """One point of the curve; times are of one query on one core."""

    recipe: str
    effort: int
    refine: int
    coverage: float
    least: float  # coverage of that half of the users for which it is lower
    recall_10: float
    recall_100: float
    p50_us: float
    p99_us: float
    bytes_per_track: float
    build_s: float
    coverage_error: float = 0.0  # its standard error over the users; curves of before lack it

    @property
    def point(self) -> OperatingPoint:
        """The operating point."""
        return OperatingPoint(self.effort, self.refine)

    @property
    def recall(self) -> Recall:
        """What `recall` of the manifest says of it."""
        return {
            "coverage": self.coverage,
            "recall@10": self.recall_10,
            "recall@100": self.recall_100,
            "coverage error": self.coverage_error,
        }


def noise_of(recall: Recall) -> float:
    """Returns how far a measured coverage may lie from that of all users.

    Args:
        recall: of a manifest.

    Returns:
        NOISE standard errors; 0 of a manifest of before, which has none.
    """
    return NOISE * recall.get("coverage error", 0.0)


def sweep(
    index: Index, truth: Truth, depth: int, target: float, bytes_per_track: float, build_s: float
) -> Iterator[MeasuredPoint]:
    """Yields what operating points find: for each `refine` ever more effort, until a few points behind the target.

    More refining is tried as long as it lets less effort reach the target.

    Args:
        index: to be measured; its own operating point does not matter.
        truth: what exact search finds for some users.
        depth: candidates that are retrieved.
        target: coverage to be reached.
        bytes_per_track: of the index, for the table.
        build_s: how long it took to build, for the table.

    Yields:
        The points in the order of their measuring.
    """
    one_thread()
    least = None
    for refine in REFINE_FACTORS if index.vectors is not None and "Flat" not in index.recipe else (1,):
        reached: list[int] = []
        level, before = 0, -1.0
        for effort in efforts(index):
            if least is not None and not least <= 4 * effort < 4 * least:
                continue  # refining helps codes that round, not lists that are not looked at
            at = measure(index.at(OperatingPoint(effort, refine)), truth, depth, bytes_per_track, build_s)
            yield at
            reached += [effort] if at.least >= target else []
            level = level + 1 if at.coverage < before + 0.0005 else 0
            before = at.coverage
            if len(reached) > (POINTS_BEYOND if least is None else 0) or (not reached and level > 2):
                break
        if not reached and least is not None:
            return
        least = reached[0] if reached else least


def search_cost(at: MeasuredPoint, n: int, depth: int) -> float:
    """Returns what a search costs.

    Args:
        at: the operating point.
        n: tracks.
        depth: candidates that are retrieved.

    Returns:
        Vectors compared by their codes; one compared exactly counts as ten.
    """
    lists = lists_of(at.recipe)
    scanned = lists + at.effort * n / lists if lists else float(at.effort)
    return scanned + (10 * depth * at.refine if at.refine > 1 else 0)


def efforts(index: Index) -> Iterable[int]:
    """Returns the efforts to try.

    Args:
        index: to be measured.

    Returns:
        1, 2, 3, 4, 6, 8, 12, …, ascending; 0 alone where there is nothing to set.
    """
    if not index.knob:
        return (0,)
    most = index.lists if index.knob == "nprobe" else 4096
    steps = {size for power in range(13) for size in (2**power, 3 * 2**power // 2)}
    return sorted({*(step for step in steps if step < most), most})


def measure(index: Index, truth: Truth, depth: int, bytes_per_track: float, build_s: float) -> MeasuredPoint:
    """Returns what an index finds at its operating point, and how long it takes.

    Args:
        index: to be measured.
        truth: what exact search finds for some users.
        depth: candidates that are retrieved.
        bytes_per_track: of the index, for the table.
        build_s: how long it took to build, for the table.

    Returns:
        Means over the users, times of one query on one core.
    """
    shares, times = np.zeros((len(truth.queries), 3)), np.zeros(len(truth.queries))
    for i, (query, exact) in enumerate(zip(truth.queries, truth.nearest, strict=True)):
        started = time.perf_counter_ns()
        rows, _ = index.search(query, depth)
        times[i] = time.perf_counter_ns() - started
        exact = exact[exact >= 0][:depth]  # a search of 50 candidates cannot hold the nearest 100
        for column, (wanted, found) in enumerate(((exact, rows), (exact[:10], rows[:10]), (exact, rows[:NEIGHBOURS]))):
            shares[i, column] = np.isin(wanted, found).sum() / max(1, len(wanted))
    coverage, recall_10, recall_100 = (round(float(share), 6) for share in shares.mean(0))
    least = round(float(min(shares[0::2, 0].mean(), shares[len(shares) > 1 :: 2, 0].mean())), 6)
    error = round(float(shares[:, 0].std(ddof=1) / np.sqrt(len(shares))), 6) if len(shares) > 1 else 0.0
    p50, p99 = (round(float(at), 1) for at in np.percentile(times / 1000, (50, 99)))
    point, size = index.point, round(bytes_per_track, 1)
    return MeasuredPoint(
        index.recipe,
        point.effort,
        point.refine,
        coverage,
        least,
        recall_10,
        recall_100,
        p50,
        p99,
        size,
        round(build_s, 1),
        error,
    )


def exact_latency(vectors: VectorFile, truth: Truth) -> MeasuredPoint | None:
    """Returns what exact search costs, for the table.

    Args:
        vectors: what is searched.
        truth: its queries.

    Returns:
        The point of exact search; None where it would take too long to find out.
    """
    if vectors.n * vectors.dim > 2**27:  # half a gigabyte as float32
        return None
    one_thread()
    exact, times = np.load(vectors.path, allow_pickle=False).astype(np.float32), []
    for i in range(min(20, len(truth.queries))):
        started = time.perf_counter_ns()
        nearest_of_many([exact], truth.queries[i : i + 1], NEIGHBOURS, np.empty(0, np.int64))
        times.append((time.perf_counter_ns() - started) / 1000)
    p50, p99 = (round(float(at), 1) for at in np.percentile(times[1:] or times, (50, 99)))
    return MeasuredPoint(FLAT, 0, 1, 1.0, 1.0, 1.0, 1.0, p50, p99, 4.0 * vectors.dim, 0.0)
