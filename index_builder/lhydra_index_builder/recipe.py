"""Which index, and how hard it looks: built, measured on real users' vectors, chosen by a rule.

The rule knows sizes and measured recall, never times: the same inputs give the same choice. It is, for `auto`:

    flat                    while exact search costs no more than MAX_FLAT_PRODUCTS multiplications
    IVF4096,SQ8 and such    beyond; lists: the power of two nearest 4 √n; codes of a byte a number
    IVF4096,PQ32x4fs        where `max_bytes_per_track` leaves no room for those; ordered by the mapped exact vectors
    IVF4096,Flat, flat      where the codes cannot reach the recall asked for

The operating point is the one with the least work whose coverage, the share of the exact nearest 100 among `depth`
found, reaches the target for both halves of the users. Codes that round may be helped by refining: more are found by
their codes, and ordered by the exact vectors.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lhydra.bundle.arrays import blocks
from lhydra.bundle.embedding import SHARD, Run
from lhydra.bundle.exact import nearest_of_many
from lhydra.bundle.index import FLAT, Index, OperatingPoint, lists_of, one_thread, sample_rows, use_threads
from lhydra.domain import F32, I64
from lhydra.errors import ConfigError, complain
from lhydra.timing import timed

AUTO = "auto"
MAX_FLAT_PRODUCTS = 3_200_000  # multiplications of an exact search: about .4 ms on one core
NEIGHBOURS = 100  # exact neighbours whose share is counted
REFINE_FACTORS = (1, 2, 4, 8)
POINTS_BEYOND = 2  # measured behind the chosen one: the curve shows what more effort would bring


@dataclass(frozen=True)
class VectorFile:
    """The vectors of a catalog on disk, (n, dim)."""

    path: Path
    n: int
    dim: int


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

    @property
    def point(self) -> OperatingPoint:
        """The operating point."""
        return OperatingPoint(self.effort, self.refine)

    @property
    def recall(self) -> dict[str, float]:
        """What `recall` of the manifest says of it."""
        return {"coverage": self.coverage, "recall@10": self.recall_10, "recall@100": self.recall_100}


@dataclass(frozen=True)
class Choice:
    """What was chosen: an index written to `path`, its operating point, and the whole curve."""

    path: Path
    measured: MeasuredPoint
    curve: tuple[MeasuredPoint, ...]
    reached: bool


def ladder(n: int, dim: int, max_bytes: int = 0) -> list[str]:
    """Returns the recipes that `auto` tries, in order, until one reaches the recall asked for.

    Args:
        n: tracks.
        dim: width of their vectors.
        max_bytes: most bytes of the index per track, 0 for no limit.

    Returns:
        Distinct recipes, at least one.

    Raises:
        ConfigError: no recipe is as small as `max_bytes` per track.
    """
    lists = 2 ** round(math.log2(4 * math.sqrt(n)))
    while lists > 1 and n < 39 * lists:
        lists //= 2
    steps: list[tuple[str, float]] = []  # recipe and its bytes per track
    if n * dim <= MAX_FLAT_PRODUCTS or lists < 2:
        steps.append((FLAT, 4 * dim))
    if lists >= 2:
        steps.append((f"IVF{lists},SQ8", dim + 8))
        compact = [(m, m / 2 + 8) for m in (dim // 2, dim // 4) if m and dim % m == 0]
        steps += [(f"IVF{lists},PQ{m}x4fs", size) for m, size in compact if max_bytes]
        steps += [(f"IVF{lists},Flat", 4 * dim + 8), (FLAT, 4 * dim)]
    fits = [recipe for recipe, size in steps if not max_bytes or size <= max_bytes]
    if not fits:
        least = math.ceil(min(size for _, size in steps))
        raise ConfigError(complain("--max-bytes-per-track", max_bytes, f"at least {least} for {dim} numbers a track"))
    return list(dict.fromkeys(fits))


def choose(
    vectors: VectorFile,
    truth: Truth,
    *,
    recipe: str,
    target: float,
    depth: int,
    max_bytes: int,
    seed: int,
    run: Run,
    threads: int,
    folder: Path,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Choice:
    """Builds and measures recipes until one reaches the target.

    Args:
        vectors: what to index.
        truth: what exact search finds for some users.
        recipe: `auto`, `flat` or a FAISS factory string.
        target: share of the exact nearest that must be among the candidates.
        depth: candidates that are retrieved.
        max_bytes: most bytes of the index per track, 0 for no limit.
        seed: of the training of approximate indexes.
        run: runs the parts of an index.
        threads: for what is built in one go.
        folder: where indexes are written.
        on_rows: told how many vectors are in the index.

    Returns:
        The index to publish: where none reaches the target, the one that came nearest, which the gate then judges.

    Raises:
        ConfigError: FAISS does not know the recipe, or it does not fit.
    """
    tried: list[Choice] = []
    curve: list[MeasuredPoint] = []
    exact = _exact_latency(vectors, truth)
    for name in ladder(vectors.n, vectors.dim, max_bytes) if recipe == AUTO else [recipe]:
        path = folder / f"index-{len(tried)}.faiss"
        started = time.monotonic()
        build(vectors, name, seed, run, threads, path, on_rows)
        took_s = time.monotonic() - started
        index = Index.open(path, name).refining(np.load(vectors.path, "r"))
        points = list(sweep(index, truth, depth, target, path.stat().st_size / vectors.n, took_s))
        curve += points
        good = [at for at in points if at.least >= target]
        best = (
            min(good, key=lambda at: search_cost(at, vectors.n, depth))
            if good
            else max(points, key=lambda at: at.least)
        )
        tried.append(Choice(path, best, (), bool(good)))
        if good:
            break
    if exact is not None and not any(at.recipe == FLAT for at in curve):
        curve.insert(0, exact)
    chosen = max(tried, key=lambda choice: (choice.reached, choice.measured.least))
    for choice in tried:
        if choice.path != chosen.path:
            choice.path.unlink()
    return Choice(chosen.path, chosen.measured, tuple(curve), chosen.reached)


# -- building -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IndexPart:
    """Rows `start` to `stop` of the vectors, to be added to a copy of the empty index; travels to other processes."""

    empty: Path
    recipe: str
    vectors: Path
    start: int
    stop: int
    out: Path


def build_part(part: IndexPart) -> Path:
    """Builds one part of an index.

    Args:
        part: which.

    Returns:
        Its file.
    """
    index = Index.open(part.empty, part.recipe, mapped=False)
    vectors = np.load(part.vectors, "r", allow_pickle=False)
    for start in range(part.start, part.stop, SHARD):
        index.add(vectors[start : min(start + SHARD, part.stop)], start)
    index.write(part.out)
    return part.out


@timed("rebuild.index")
def build(
    vectors: VectorFile,
    recipe: str,
    seed: int,
    run: Run,
    threads: int,
    path: Path,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> None:
    """Builds an index and writes it.

    Inverted files are built in parts, which do not depend on how many processes there are, and merged in order;
    everything else in one go.

    Args:
        vectors: what to index.
        recipe: `flat` or a FAISS factory string.
        seed: of the training.
        run: runs the parts.
        threads: for what is built in one go.
        path: the file to write.
        on_rows: told how many vectors are in the index.

    Raises:
        ConfigError: FAISS does not know the recipe, or it does not fit.
    """
    use_threads(threads)
    index = Index.empty(vectors.dim, recipe, _sample(vectors, sample_rows(vectors.n, recipe, seed)), vectors.n)
    if not index.mergeable:
        done = 0
        for block in blocks(vectors.path):
            index.add(block)
            done += len(block)
            on_rows(done)
        index.write(path)
        return
    empty, size = path.with_suffix(".empty"), 4 * SHARD
    index.write(empty)
    parts = [
        IndexPart(empty, recipe, vectors.path, start, min(start + size, vectors.n), path.with_suffix(f".{start}"))
        for start in range(0, vectors.n, size)
    ]
    for part, built in zip(parts, run(build_part, parts), strict=True):
        index.merge(Index.open(built, recipe, mapped=False))
        built.unlink()
        on_rows(part.stop)
    empty.unlink()
    index.write(path)


def _sample(vectors: VectorFile, rows: I64) -> F32:
    """The vectors of `rows`, ascending, read block by block: a mapping would hold almost every page."""
    parts, start = [np.empty((0, vectors.dim), np.float32)], 0
    for block in blocks(vectors.path):
        inside = slice(*np.searchsorted(rows, (start, start + len(block))))
        parts.append(block[rows[inside] - start])
        start += len(block)
    return np.concatenate(parts)


# -- measuring ----------------------------------------------------------------------------------------------


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
        exact = exact[exact >= 0]
        for column, (wanted, found) in enumerate(((exact, rows), (exact[:10], rows[:10]), (exact, rows[:NEIGHBOURS]))):
            shares[i, column] = np.isin(wanted, found).sum() / max(1, len(wanted))
    coverage, recall_10, recall_100 = (round(float(share), 6) for share in shares.mean(0))
    least = round(float(min(shares[0::2, 0].mean(), shares[len(shares) > 1 :: 2, 0].mean())), 6)
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
    )


def _exact_latency(vectors: VectorFile, truth: Truth) -> MeasuredPoint | None:
    """What exact search costs, for the table; None where it would take too long to find out."""
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


def table(curve: Sequence[MeasuredPoint], chosen: MeasuredPoint) -> tuple[list[str], list[list[str]]]:
    """Returns the curve as a table for people.

    Args:
        curve: what was measured.
        chosen: the point to be marked.

    Returns:
        Header and rows.
    """
    header = ["recipe", "effort", "refine", "coverage", "recall@100", "p50 µs", "p99 µs", "B/track", "build s", ""]
    rows = []
    for at in curve:
        mark = "chosen" if (at.recipe, at.point) == (chosen.recipe, chosen.point) else ""
        numbers = (f"{at.coverage:.4f}", f"{at.recall_100:.4f}", f"{at.p50_us:,.0f}", f"{at.p99_us:,.0f}")
        size = (f"{at.bytes_per_track:.0f}", f"{at.build_s:.1f}")
        rows.append([at.recipe, f"{at.effort or '-'}", f"{at.refine}", *numbers, *size, mark])
    return header, rows


def document(choice: Choice, target: float, users: int) -> dict[str, Any]:
    """Returns `index` of the manifest.

    Args:
        choice: what was chosen.
        target: coverage that was to be reached.
        users: how many it was measured on.

    Returns:
        JSON values.
    """
    return {"target": target, "users": users, "reached": choice.reached, "curve": [vars(at) for at in choice.curve]}
