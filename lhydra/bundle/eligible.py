"""Filtered search: among eligible tracks, or with many exclusions.

The planner counts eligible tracks: few are searched by brute force. An inverted file visits only lists with eligible
tracks, nearest first, until it has compared FILTERED_SEARCH_FACTOR times as many tracks as without a filter: where few
of the near tracks are eligible, it visits more lists. Other indexes are bypassed: nothing bounds what a graph misses.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from lhydra.bundle.exact import best_of, in_order, nearest
from lhydra.bundle.index import Index
from lhydra.domain import F16, F32, I64
from lhydra.scratch import borrowed_mask

# Up to so many eligible tracks, or one in 32 of all up to the second number, are searched by brute force.
BRUTE_FORCE_TRACKS, MAX_BRUTE_FORCE_TRACKS = 8_192, 32_768
# Tracks compared under a filter, relative to a search without one: measured to miss no more than without one.
FILTERED_SEARCH_FACTOR = 2
HEARD_SEARCH_FACTOR = 1.5  # the same where only the tracks heard by one listener are excluded


@dataclass(frozen=True)
class EligibleSet:
    """The tracks that may be returned, prepared for searching by `eligible_set`; `FilterCache` keeps them.

    Args:
        count: how many.
        mask: (n,) bool by row.
        bits: the same by position, eight to a byte, lowest bit first.
        in_list: (lists,) how many lie in each inverted list, None without lists.
        rows: (count,) int64 of all of them where they are few, else None.
        vectors: (count, dim) float32 of `rows`, or None.
        all_vectors: (n, dim) of all tracks, mapped.
    """

    count: int
    mask: npt.NDArray[np.bool_]
    bits: npt.NDArray[np.uint8]
    in_list: I64 | None
    rows: I64 | None
    vectors: F32 | None
    all_vectors: F16 | F32

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take, in bytes."""
        parts = (self.mask, self.bits, self.in_list, self.rows, self.vectors)
        return sum(part.nbytes for part in parts if part is not None)


def eligible_set(index: Index, mask: npt.NDArray[np.bool_], vectors: F16 | F32) -> EligibleSet:
    """Prepares a set of tracks for `search_eligible`; removed tracks are left out.

    Args:
        index: what will be searched.
        mask: (n,) bool by row, which tracks.
        vectors: (n, dim) exact vectors by row.

    Returns:
        The set.
    """
    if index.rows is None:
        by_position = mask
    else:
        by_position = (index.rows >= 0) & mask.take(index.rows, mode="clip")
        mask = np.zeros(len(mask), np.bool_)
        mask[index.rows[by_position]] = True
    count = int(np.count_nonzero(by_position))
    in_list = index.inverted.sizes(by_position) if index.inverted is not None else None
    few = not index.exact and count <= max(BRUTE_FORCE_TRACKS, min(MAX_BRUTE_FORCE_TRACKS, len(mask) // 32))
    rows = np.flatnonzero(mask) if few else None
    near = np.asarray(vectors[rows], np.float32) if rows is not None else None
    return EligibleSet(count, mask, np.packbits(by_position, bitorder="little"), in_list, rows, near, vectors)


def search_eligible(index: Index, vector: F32, k: int, eligible: EligibleSet, excluded: I64) -> tuple[I64, F32]:
    """Finds the nearest of the tracks that are eligible and not excluded.

    Args:
        index: the index that `eligible` was made for.
        vector: (dim,) or (1, dim) float32, finite.
        k: how many.
        eligible: what may be returned.
        excluded: (m,) int64 rows that must not be, in any order, repeats allowed.

    Returns:
        (min(k, left),) int64 rows and float32 inner products, best first, ties by row.

    Raises:
        ValueError: the vector has another width, or is not finite.
    """
    query = index.checked(vector)
    with borrowed_mask(len(eligible.mask)) as is_excluded:
        is_excluded[excluded] = True
        found = _search(index, query, k, eligible, excluded, is_excluded)
        is_excluded[excluded] = False
    return found


def _search(
    index: Index, query: F32, k: int, eligible: EligibleSet, excluded: I64, is_excluded: npt.NDArray[np.bool_]
) -> tuple[I64, F32]:
    """Searches as `search_eligible` does; `is_excluded`, (n,), is True at the excluded rows."""
    left = eligible.count - int(np.count_nonzero(eligible.mask & is_excluded)) if len(excluded) else eligible.count
    k = min(k, left)
    if k < 1:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    if eligible.rows is not None:
        assert eligible.vectors is not None
        scores = eligible.vectors @ query[0]
        scores[is_excluded.take(eligible.rows)] = -np.inf
        return best_of(eligible.rows, scores, k)
    if index.inverted is None and not index.exact:
        return nearest(eligible.all_vectors, query, k, np.flatnonzero(~eligible.mask | is_excluded))
    bits, gone = eligible.bits, None
    if len(excluded):
        if index.rows is None:
            gone = is_excluded
        else:
            gone, at = np.zeros(len(index.rows), np.bool_), index.position_of[excluded]
            gone[at[at >= 0]] = True
        bits = bits & ~np.packbits(gone, bitorder="little")
    stubless: Any = faiss
    selector = stubless.IDSelectorBitmap(bits)
    if index.exact:
        scores, positions = _exactly(index, query, k, left, selector)
    else:
        assert index.inverted is not None
        assert eligible.in_list is not None
        in_list = eligible.in_list
        if gone is not None:
            lost = np.flatnonzero(gone)
            lost = lost[(eligible.bits.take(lost >> 3) >> (lost & 7) & 1).astype(np.bool_)]  # that were eligible
            in_list = in_list - index.inverted.sizes(lost)
        factor = FILTERED_SEARCH_FACTOR if eligible.count < len(index) else HEARD_SEARCH_FACTOR
        scores, positions = index.inverted.search(query, k, in_list, selector, factor)
    rows = positions if index.rows is None else index.rows[positions].astype(np.int64)
    return in_order(rows, scores, k)


def _exactly(index: Index, query: F32, k: int, left: int, selector: Any) -> tuple[F32, I64]:
    stubless: Any = faiss
    params, wide = stubless.SearchParameters(sel=selector), k + 1
    while True:  # until all ties of the last place are fetched, which rows then order
        wide = min(wide, left)
        scores, positions = (part[0] for part in index.faiss_index.search(query, wide, params=params))
        if wide == left or scores[-1] != scores[k - 1]:
            return scores, positions
        wide *= 2
