"""A plain inverted file (`IVF…,Flat`, `IVF…,SQ8`), searched list by list for filtered search."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from lhydra.domain import F32, I64


@dataclass(frozen=True)
class InvertedFile:
    """An inverted file whose lists are FAISS arrays.

    Args:
        index: faiss.IndexIVF.
        nprobe: lists that a search without a filter visits.
    """

    index: Any
    nprobe: int

    @property
    def lists(self) -> int:
        """How many inverted lists there are."""
        return int(self.index.nlist)

    @cached_property
    def centroids(self) -> F32:
        """(lists, dim) float32 centroids."""
        return np.asarray(faiss.downcast_index(self.index.quantizer).reconstruct_n(0, self.lists))

    @cached_property
    def list_of(self) -> npt.NDArray[Any]:
        """(positions,) uint16 or int32, the list of each position."""
        lists, dtype = self.index.invlists, np.uint16 if self.lists < 65_536 else np.int32
        found: npt.NDArray[Any] = np.zeros(self.index.ntotal, dtype)
        for number in range(self.lists):
            if size := lists.list_size(number):
                found[faiss.rev_swig_ptr(lists.get_ids(number), size)] = number
        return found

    def sizes(self, positions: npt.NDArray[Any]) -> I64:
        """Counts positions by list.

        Args:
            positions: (m,) int64 positions, or a mask (positions,) of them.

        Returns:
            (lists,) int64.
        """
        return np.bincount(self.list_of[positions], minlength=self.lists)

    def search(self, query: F32, k: int, in_list: I64, selector: Any, factor: float) -> tuple[F32, I64]:
        """Visits only lists with eligible tracks, nearest first, until enough tracks are compared and k are found.

        Args:
            query: (1, dim) float32.
            k: how many, at most as many as are eligible.
            in_list: (lists,) how many eligible tracks each list holds.
            selector: faiss.IDSelector of the eligible positions.
            factor: how many times as many tracks are compared as without a filter; four times as many again while
                fewer than k are found.

        Returns:
            (m,) float32 inner products and (m,) int64 positions, best first, m at most k.
        """
        stubless: Any = faiss
        near = self.centroids @ query[0]
        order = np.argsort(-near)
        order = order[in_list.take(order) > 0]
        reached = np.cumsum(in_list.take(order))
        compared = max(k, int(factor * self.nprobe * int(self.index.ntotal)) // self.lists)
        while True:
            n = min(int(np.searchsorted(reached, compared)) + 1, len(order))
            lists = np.ascontiguousarray(order[:n], np.int64)
            near_lists, scores, positions = near.take(lists), np.empty(k, np.float32), np.empty(k, np.int64)
            arrays = [faiss.swig_ptr(array) for array in (lists, near_lists, scores, positions)]
            params = stubless.SearchParametersIVF(sel=selector, nprobe=n)  # the Python wrapper drops parameters
            self.index.search_preassigned_c(1, faiss.swig_ptr(query), k, *arrays, False, params)
            if positions[-1] >= 0 or n == len(order):
                found = positions >= 0
                return scores[found], positions[found]
            compared *= 4
