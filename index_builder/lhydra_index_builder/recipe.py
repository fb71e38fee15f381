"""Which index, and how hard it looks: built, measured on real users' vectors, chosen by a rule.

The rule knows sizes and measured recall, never times: the same inputs give the same choice. It is, for `auto`:

    flat                    while exact search costs no more than MAX_FLAT_PRODUCTS multiplications
    IVF4096,SQ8 and such    beyond; lists: the power of two nearest 4 √n; codes of a byte a number
    IVF4096,PQ32x4fs        where `max_bytes_per_track` leaves no room for those; ordered by the mapped exact vectors
    IVF4096,Flat, flat      where the codes cannot reach the recall asked for

The operating point is the one with the least work whose coverage, the share of the exact nearest 100, or `depth` where
that is less, among `depth` found, reaches the target for both halves of the users. Codes that round may be helped by
refining: more are found by their codes, and ordered by the exact vectors.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from lhydra.bundle.embedding import Run
from lhydra.bundle.index import FLAT, Index
from lhydra.bundle.manifest import CurvePoint, IndexChoice
from lhydra.bundle.recipes import lists_of, untrained
from lhydra.errors import ConfigError, complain
from lhydra_index_builder.index_parts import VectorFile, build
from lhydra_index_builder.sweep import MeasuredPoint, Truth, exact_latency, search_cost, sweep

AUTO = "auto"
MAX_FLAT_PRODUCTS = 3_200_000  # multiplications of an exact search: about .4 ms on one core


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


def check(recipe: str, n: int, dim: int, max_bytes: int = 0) -> None:
    """Refuses, before anything is embedded, a recipe of which it is plain that no index comes of it.

    Args:
        recipe: `auto`, `flat` or a FAISS factory string.
        n: tracks.
        dim: width of their vectors.
        max_bytes: most bytes of the index per track, 0 for no limit.

    Raises:
        ConfigError: FAISS does not know the recipe, it has more lists than there are tracks, or none of `auto` is
            small enough.
    """
    if recipe == AUTO:
        ladder(n, dim, max_bytes)
    elif recipe != FLAT:
        untrained(dim, recipe)
        if (lists := lists_of(recipe)) > n:
            raise ConfigError(complain(f"recipe {recipe}", f"{lists:,} lists", f"at most one for each of {n:,} tracks"))


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
    exact = exact_latency(vectors, truth)
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


def document(choice: Choice, target: float, users: int) -> IndexChoice:
    """Returns `index` of the manifest.

    Args:
        choice: what was chosen.
        target: coverage that was to be reached.
        users: how many it was measured on.

    Returns:
        JSON values.
    """
    return {
        "target": target,
        "users": users,
        "reached": choice.reached,
        "curve": [cast(CurvePoint, vars(at)) for at in choice.curve],
    }
