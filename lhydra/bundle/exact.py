"""Exact brute-force search, and the order of every list: best first, ties by row. Tests compare against it."""

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np

from lhydra import kernels
from lhydra.domain import F16, F32, I64

BLOCK_ROWS = 65_536


def best_first(rows: I64, scores: F32, k: int) -> I64:
    """Returns the positions of the k best, best first, ties by row.

    Args:
        rows: (n,) int64.
        scores: (n,) float32, without NaN.
        k: how many at most.

    Returns:
        (min(k, n),) int64 positions in `rows`.
    """
    if kernels.compiled is not None and scores.dtype == np.float32:
        return kernels.compiled.best_first(np.ascontiguousarray(rows), np.ascontiguousarray(scores), k)
    order = np.argsort(-scores)
    ordered = scores.take(order)
    if (ordered[1:] == ordered[:-1]).any():  # rare, and sorting by two keys takes three times as long
        order = np.lexsort((rows, -scores))
    return order[:k]


def selected(rows: I64, logits: F32, scores: F32, keys: F32, cosines: F32, k: int) -> tuple[I64, F32, F32, F32]:
    """Returns the k best candidates of a request.

    Args:
        rows: (n,) int64.
        logits: (n,) float32.
        scores: (n,) float32, as they are shown.
        keys: (n,) float32 that order them, best first, ties by row.
        cosines: (n,) float32.
        k: how many at most.

    Returns:
        (min(k, n),) rows, scores, logits and cosines. No score is above the one before it: a graph's sigmoid is not
        monotone to the last bit.

    Raises:
        ValueError: arrays of different lengths, where kernels are compiled.
    """
    if kernels.compiled is not None:
        return kernels.compiled.selected(rows, logits, scores, keys, cosines, k)
    best = best_first(rows, keys, k)
    return rows.take(best), np.minimum.accumulate(scores.take(best)), logits.take(best), cosines.take(best)


def in_order(rows: I64, scores: F32, k: int) -> tuple[I64, F32]:
    """Returns the k best rows and their scores, best first, ties by row.

    Args:
        rows: (n,) int64.
        scores: (n,) float32, without NaN.
        k: how many at most.

    Returns:
        (min(k, n),) int64 rows and float32 scores.
    """
    compiled = kernels.compiled is not None and scores.dtype == np.float32
    if kernels.compiled.falls(scores) if compiled else (scores[1:] < scores[:-1]).all():  # FAISS orders them, mostly
        return rows[:k], scores[:k]
    order = best_first(rows, scores, k)
    return rows.take(order), scores.take(order)


def best_of(rows: I64, scores: F32, k: int) -> tuple[I64, F32]:
    """Returns what `in_order` does, faster where k is far below n.

    Args:
        rows: (n,) int64.
        scores: (n,) float32, without NaN.
        k: how many, from 1 to n.

    Returns:
        (k,) int64 rows and float32 scores, best first, ties by row.
    """
    bound = np.partition(scores, len(scores) - k)[len(scores) - k]
    near = np.flatnonzero(scores >= bound)  # more than k when the last place is shared
    return in_order(rows.take(near), scores.take(near), k)


def nearest(vectors: F16 | F32, vector: F32, k: int, excluded: I64) -> tuple[I64, F32]:
    """Searches exactly by brute force: the reference of tests, and the fallback of indexes that cannot be filtered.

    Args:
        vectors: (n, dim) float16 or float32.
        vector: (dim,) or (1, dim) float32.
        k: how many at most.
        excluded: distinct int64 rows that must not be returned.

    Returns:
        (m,) int64 rows and float32 inner products, best first, ties by row.
    """
    query, starts = vector.reshape(-1), range(0, len(vectors), BLOCK_ROWS)
    scores = np.concatenate(
        [vectors[start : start + BLOCK_ROWS].astype(np.float32, copy=False) @ query for start in starts]
        or [np.empty(0, np.float32)]
    )
    scores[excluded] = -np.inf
    k = min(k, len(scores) - len(excluded))
    if k < 1:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    return best_of(np.arange(len(scores)), scores, k)


def nearest_of_many(blocks: Sequence[F32] | Any, queries: F32, k: int, excluded: I64) -> tuple[I64, F32]:
    """Searches exactly for many queries over vectors that are read block by block.

    Args:
        blocks: (m, dim) arrays that together are the (n, dim) vectors.
        queries: (q, dim) float32.
        k: how many for each.
        excluded: int64 rows, ascending, that must not be returned.

    Returns:
        (q, k) int64 rows, best first, padded with -1; (q, k) float32 inner products.
    """
    found = faiss.ResultHeap(len(queries), k, keep_max=True)
    start = 0
    for block in blocks:
        block = np.ascontiguousarray(block, np.float32)
        inside = excluded[(excluded >= start) & (excluded < start + len(block))] - start
        wide = min(k + len(inside), len(block))
        scores, rows = faiss.knn(queries, block, wide, metric=faiss.METRIC_INNER_PRODUCT)
        if len(inside):
            bad = np.isin(rows, inside)
            scores[bad], rows[bad] = -np.inf, -1
        found.add_result(scores, np.where(rows >= 0, rows + start, -1))
        start += len(block)
    found.finalize()
    rows = np.where(np.isfinite(found.D), found.I, -1)
    return rows, np.asarray(found.D, np.float32)
