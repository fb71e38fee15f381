"""Exact search by brute force, and the one order of every list: best first, ties by row. The oracle of all tests."""

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np

from lhydra.domain import F16, F32, I64

BLOCK_ROWS = 65_536


def best_first(rows: I64, scores: F32, k: int) -> I64:
    """Returns where the k best of `rows` are, (min(k, n),) best first, ties by row; scores: (n,), without NaN."""
    order = np.argsort(-scores)
    ordered = scores.take(order)
    if (ordered[1:] == ordered[:-1]).any():  # seldom, and sorting by two keys takes three times as long
        order = np.lexsort((rows, -scores))
    return order[:k]


def in_order(rows: I64, scores: F32, k: int) -> tuple[I64, F32]:
    """Returns the k best of `rows` and their scores, (min(k, n),) each, best first, ties by row."""
    order = best_first(rows, scores, k)
    return rows.take(order), scores.take(order)


def best_of(rows: I64, scores: F32, k: int) -> tuple[I64, F32]:
    """The k best of `rows`, ties by row; k is at most how many there are."""
    bound = np.partition(scores, len(scores) - k)[len(scores) - k]
    near = np.flatnonzero(scores >= bound)  # more than k when the last place is shared
    return in_order(rows.take(near), scores.take(near), k)


def nearest(vectors: F16 | F32, vector: F32, k: int, excluded: I64) -> tuple[I64, F32]:
    """Exact search by brute force: at most k rows (m,) and inner products (m,), best first, ties by row.

    excluded: rows that must not be returned. The oracle of tests and the way out when an index falls short.
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
    """Exact search for many queries over vectors that come block by block: (q, k) rows, best first, -1 padded.

    blocks: yields (m, dim) arrays that together are the (n, dim) vectors. queries: (q, dim). excluded: (m,) rows,
    ascending, that are not returned.
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
