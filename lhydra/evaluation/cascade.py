"""What the cascade loses: the head over the whole catalogue, and how much of its list each depth lets through."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lhydra.console import with_progress
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import F32, I64, Query, UserState
from lhydra.evaluation.lists import Recommends
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Run

DEPTHS = (10, 20, 50, 100, 200, 300, 500, 1000)
K = 10
_PAIRS = 10_000_000  # (user, track) pairs that the head is asked for
_FEWEST = 100  # users, however large the catalogue
_CHUNK = 1 << 14  # tracks scored at a time: more of them leave the cache


def draw_users(n: int, catalogue_size: int, seed: int) -> I64:
    """Returns the users, ascending places below n, whose whole catalogue is scored: all, or a seeded sample."""
    most = max(_FEWEST, _PAIRS // max(1, catalogue_size))
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


def head_alone(
    recommender: Recommends, dataset: Dataset, run: Run, chosen: I64, ks: Sequence[int]
) -> tuple[I64, dict[str, Any]]:
    """Returns (lists, loss): the head's best unheard tracks of the whole catalogue, and the cascade-loss curve.

    lists: (c, K) rows for the users at `chosen`, by raw logit, ties by row. loss: `cascade_loss` of the document:
    by depth, the share of the head's top 10 among the candidates, and NDCG@10 of the head on those alone.
    """
    depths = [depth for depth in DEPTHS if depth < run.catalogue_size]
    depths.append(min(DEPTHS[-1], run.catalogue_size))
    width = run.lists["cascade"].shape[1]
    full = np.full((len(chosen), width), -1, np.int64)
    by_depth = {depth: np.full((len(chosen), K), -1, np.int64) for depth in depths}
    states = user_states(dataset, run.as_of, positions=run.targets.users[chosen])
    for n, (_, state) in enumerate(with_progress(states, len(chosen), "scoring the whole catalogue")):
        heard = recommender.catalog.rows(state.heard)
        eligible = np.ones(run.catalogue_size, np.bool_)
        eligible[heard[heard >= 0]] = False
        eligible[recommender.catalog.removed] = False
        logits = _logits(recommender, state, run.catalogue_size)
        best = best_rows(np.flatnonzero(eligible), logits, width)
        full[n, : len(best)] = best
        candidates = recommender.recommend(Query(K, state, True, state.heard, depths[-1])).candidates
        for depth, found in by_depth.items():
            best = best_rows(candidates[:depth], logits, K)
            found[n, : len(best)] = best
    return full, loss_curve(run, chosen, full, by_depth)


def best_rows(rows: I64, logits: F32, k: int) -> I64:
    """Returns the k of `rows` with the highest of `logits` (catalogue,), best first, ties by row."""
    own = logits[rows]
    if len(rows) > 4 * k:  # the same rows, without sorting all
        edge = np.partition(own, len(own) - k)[-k]
        rows, own = rows[own >= edge], own[own >= edge]
    return rows[np.lexsort((rows, -own))[:k]]


def loss_curve(run: Run, chosen: I64, full: I64, by_depth: dict[int, I64]) -> dict[str, Any]:
    """Returns `cascade_loss` of the document from the head's own lists and those at each depth, (c, K) rows."""
    offsets = run.targets.take(chosen).offsets
    wanted = np.concatenate([run.wanted[run.targets.of(n)] for n in chosen])
    top = full[:, :K]
    own = _ndcg(top, offsets, wanted, run.catalogue_size)
    curve = []
    for depth, found in by_depth.items():
        ndcg = _ndcg(found, offsets, wanted, run.catalogue_size)
        overlap = overlaps(top, found)
        curve.append({"depth": depth, "overlap": overlap, "ndcg": ndcg, "ndcg_difference": ndcg - own})
    return {"k": K, "full": {f"ndcg@{K}": own}, "curve": curve, "users": len(chosen)}


def overlaps(a: I64, b: I64) -> float | None:
    """Returns the share of the tracks of `a` that are in `b`, both (n, K) with -1 padding, over the users with any."""
    held = (a[:, :, None] == b[:, None, :]).any(axis=2) & (a >= 0)
    sizes = (a >= 0).sum(axis=1)
    return float((held.sum(axis=1)[sizes > 0] / sizes[sizes > 0]).mean()) if sizes.any() else None


def _ndcg(lists: I64, offsets: I64, wanted: I64, catalogue_size: int) -> float:
    return rank_metrics(lists, offsets, wanted, catalogue_size, (K,)).means()[f"ndcg@{K}"]


def _logits(recommender: Recommends, state: UserState, catalogue_size: int) -> F32:
    """The head's raw logits of the whole catalogue, (catalogue,)."""
    chunks = (np.arange(at, min(at + _CHUNK, catalogue_size)) for at in range(0, catalogue_size, _CHUNK))
    return np.concatenate([recommender.score(state, rows)[0] for rows in chunks])
