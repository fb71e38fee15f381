"""Nearest tracks by inner product. The only file that imports faiss.

Recipes: `flat` is exact; any other text is a FAISS factory string (`IVF4096,SQ8`, `HNSW32`, …), approximate. How
hard an approximate index looks is its operating point, which a rebuild finds by measuring. FAISS numbers vectors
by the order in which they were added, its positions; the map from positions to rows of the catalog lets an index
be added to and be removed from without being built again.

FAISS checks shapes with `assert` and answers NaN queries with nothing, so the door is here.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from lhydra.bundle.exact import best_of, in_order, nearest
from lhydra.domain import F16, F32, I64
from lhydra.errors import BundleCorrupt, ConfigError, complain
from lhydra.scratch import borrowed_mask

BLOCK = 65_536
FLAT = "flat"
BRUTE_FORCE_TRACKS, MAX_BRUTE_FORCE_TRACKS = (
    8_192,
    32_768,
)  # so many eligible tracks, or a share of all up to the second, are compared one by one
I32 = npt.NDArray[np.int32]
FILTERED_SEARCH_FACTOR = (
    2  # so many times as many tracks are compared under a filter: measured to miss no more than without one
)
HEARD_SEARCH_FACTOR = 1.5  # and where only what one listener has heard is left out


@dataclass(frozen=True)
class OperatingPoint:
    """An operating point: how hard to look.

    effort: inverted lists probed (IVF) or candidates kept on the walk (HNSW); 0 leaves FAISS's own default.
    refine: so many times the tracks asked for are found by their codes, then ordered by their exact vectors; 1: not.
    """

    effort: int = 0
    refine: int = 1


@dataclass(frozen=True)
class EligibleSet:
    """The tracks that may be returned, made ready for searching by `Index.eligible_set`: worth keeping for a filter.

    count: how many. mask: (n,) by row. bits: the same by position, eight to a byte, lowest bit first.
    in_list: (lists,) how many lie in each inverted list, None where there are none.
    rows, vectors: of all of them, (count,) and (count, dim), where they are few; else None.
    every: (n, dim) vectors of all tracks, mapped.
    """

    count: int
    mask: npt.NDArray[np.bool_]
    bits: npt.NDArray[np.uint8]
    in_list: I64 | None
    rows: I64 | None
    vectors: F32 | None
    every: F16 | F32

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        parts = (self.mask, self.bits, self.in_list, self.rows, self.vectors)
        return sum(part.nbytes for part in parts if part is not None)


@dataclass(frozen=True)
class Index:
    """A FAISS index over the tracks of one catalog.

    rows: (positions,) row of each position, -1 where the track was removed; None where position and row are one.
    vectors: (n, dim) exact vectors by row, for operating points that refine.
    """

    recipe: str
    point: OperatingPoint
    _faiss: faiss.Index
    rows: I32 | None = None
    vectors: F16 | F32 | None = None

    def __len__(self) -> int:
        return int(self._faiss.ntotal) - self.removed

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._faiss.d)

    @property
    def exact(self) -> bool:
        """Whether every search finds the nearest."""
        return self.recipe == FLAT

    @cached_property
    def removed(self) -> int:
        """How many positions hold a track that was removed."""
        return 0 if self.rows is None else int(np.count_nonzero(self.rows < 0))

    @property
    def knob(self) -> str:
        """What `OperatingPoint.effort` sets: `nprobe`, `efSearch`, or "" where there is nothing to set."""
        return _knob(self._faiss)

    @property
    def lists(self) -> int:
        """How many inverted lists there are, 0 for none."""
        return lists_of(self.recipe)

    def search(self, vector: F32, k: int) -> tuple[I64, F32]:
        """Returns at most k rows (m,) and their inner products (m,), best first, ties by row; never -1.

        vector: (dim,) or (1, dim) float32, finite. An approximate index may return fewer than k, and inner products
        that its codes round, unless the operating point refines.
        """
        query = self._checked(vector)
        k = min(k, len(self))
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        refine = self.point.refine if self.vectors is not None else 1
        wanted, total = k * refine, int(self._faiss.ntotal)
        wide = wanted + 1
        if self.removed:
            wide += 16 + 2 * wanted * self.removed // total  # twice the share of the removed: seldom asked again
        while True:
            wide = min(wide, total)
            scores, rows = self._found(query, wide)
            if len(rows) >= k and not (self.exact and len(rows) > k and scores[-1] == scores[k - 1]):
                break  # when the last place is shared, an exact search sees all who share it: rows decide
            if wide == total or (not self.exact and len(rows) + self.removed < wide):
                break  # there is no more, or no more at this effort
            wide *= 2
        if refine > 1:
            assert self.vectors is not None
            scores = self.vectors.take(rows, 0).astype(np.float32, copy=False) @ query[0]
        return in_order(rows, scores, k)

    def search_many(self, vectors: F32, k: int) -> list[tuple[I64, F32]]:
        """Returns what `search` does for each of `vectors`, (b, dim), b below 20: in one call of FAISS where it can be.

        From 20 queries on, FAISS multiplies matrices, which rounds otherwise than one query does.
        """
        if self.exact or self.rows is not None or self.vectors is not None or k >= len(self):
            return [self.search(vector, k) for vector in vectors]
        scores, rows = self._faiss.search(self._checked(vectors), k + 1)  # as wide as one query is asked
        found = []
        for i in range(len(vectors)):
            there = rows[i] >= 0 if rows[i, -1] < 0 else slice(None)
            found.append(in_order(rows[i][there], scores[i][there], k))
        return found

    def eligible_set(self, mask: npt.NDArray[np.bool_], vectors: F16 | F32) -> EligibleSet:
        """Returns the rows where `mask`, (n,), is True, less those removed, made ready for `search_eligible`.

        vectors: (n, dim) exact vectors by row.
        """
        if self.rows is None:
            by_position = mask
        else:
            by_position = (self.rows >= 0) & mask.take(self.rows, mode="clip")
            mask = np.zeros(len(mask), np.bool_)
            mask[self.rows[by_position]] = True
        count = int(np.count_nonzero(by_position))
        in_list = np.bincount(self._list_of[by_position], minlength=self.lists) if self._inverted is not None else None
        few = not self.exact and count <= max(BRUTE_FORCE_TRACKS, min(MAX_BRUTE_FORCE_TRACKS, len(mask) // 32))
        rows = np.flatnonzero(mask) if few else None
        near = np.asarray(vectors[rows], np.float32) if rows is not None else None
        return EligibleSet(count, mask, np.packbits(by_position, bitorder="little"), in_list, rows, near, vectors)

    def search_eligible(self, vector: F32, k: int, eligible: EligibleSet, excluded: I64) -> tuple[I64, F32]:
        """Returns k rows, or all there are, of those eligible and not excluded, like `search`.

        Few eligible tracks are compared one by one. An inverted file visits only lists with eligible tracks, nearest
        first, until it has compared FILTERED_SEARCH_FACTOR times as many tracks as without a filter: where few of the
        near tracks are eligible it looks further. Other indexes are not asked: nothing bounds what a graph misses.

        excluded: (m,) rows, in any order, repeats allowed.
        """
        with borrowed_mask(len(eligible.mask)) as out:
            out[excluded] = True
            found = self._search_eligible(self._checked(vector), k, eligible, excluded, out)
            out[excluded] = False
        return found

    def _search_eligible(
        self, query: F32, k: int, eligible: EligibleSet, excluded: I64, out: npt.NDArray[np.bool_]
    ) -> tuple[I64, F32]:
        """The same, with `out`, (n,), True at the excluded rows."""
        left = eligible.count - int(np.count_nonzero(eligible.mask & out)) if len(excluded) else eligible.count
        k = min(k, left)
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        if eligible.rows is not None:
            assert eligible.vectors is not None
            scores = eligible.vectors @ query[0]
            scores[out.take(eligible.rows)] = -np.inf
            return best_of(eligible.rows, scores, k)
        if self._inverted is None and not self.exact:
            return nearest(eligible.every, query, k, np.flatnonzero(~eligible.mask | out))
        bits, gone = eligible.bits, None
        if len(excluded):
            if self.rows is None:
                gone = out
            else:
                gone, at = np.zeros(len(self.rows), np.bool_), self._position_of[excluded]
                gone[at[at >= 0]] = True
            bits = bits & ~np.packbits(gone, bitorder="little")
        stubless: Any = faiss
        selector = stubless.IDSelectorBitmap(bits)
        if self.exact:
            scores, positions = self._exact_eligible(query, k, left, selector)
        else:
            in_list = eligible.in_list
            assert in_list is not None
            if gone is not None:
                lost = np.flatnonzero(gone)
                lost = lost[(eligible.bits.take(lost >> 3) >> (lost & 7) & 1).astype(np.bool_)]  # that were eligible
                in_list = in_list - np.bincount(self._list_of.take(lost), minlength=self.lists)
            wider = FILTERED_SEARCH_FACTOR if eligible.count < len(self) else HEARD_SEARCH_FACTOR
            scores, positions = self._in_lists(query, k, in_list, selector, wider)
        rows = positions if self.rows is None else self.rows[positions].astype(np.int64)
        return in_order(rows, scores, k)

    def _exact_eligible(self, query: F32, k: int, left: int, selector: Any) -> tuple[F32, I64]:
        stubless: Any = faiss
        params, wide = stubless.SearchParameters(sel=selector), k + 1
        while True:  # when the last place is shared, all who share it are found: rows decide
            wide = min(wide, left)
            scores, positions = (part[0] for part in self._faiss.search(query, wide, params=params))
            if wide == left or scores[-1] != scores[k - 1]:
                return scores, positions
            wide *= 2

    def _in_lists(self, query: F32, k: int, in_list: I64, selector: Any, wider: float) -> tuple[F32, I64]:
        stubless: Any = faiss
        near = self._centroids @ query[0]
        order = np.argsort(-near)
        order = order[in_list.take(order) > 0]
        reached = np.cumsum(in_list.take(order))
        compared = max(k, int(wider * self._probes * int(self._faiss.ntotal)) // self.lists)
        while True:
            n = min(int(np.searchsorted(reached, compared)) + 1, len(order))
            lists = np.ascontiguousarray(order[:n], np.int64)
            near_lists, scores, positions = near.take(lists), np.empty(k, np.float32), np.empty(k, np.int64)
            arrays = [faiss.swig_ptr(array) for array in (lists, near_lists, scores, positions)]
            params = stubless.SearchParametersIVF(sel=selector, nprobe=n)  # FAISS's Python wrapper passes none on
            self._inverted.search_preassigned_c(1, faiss.swig_ptr(query), k, *arrays, False, params)
            if positions[-1] >= 0 or n == len(order):
                found = positions >= 0
                return scores[found], positions[found]
            compared *= 4

    def _checked(self, vectors: F32) -> F32:
        query = np.ascontiguousarray(vectors, np.float32).reshape(-1, np.shape(vectors)[-1])
        if query.shape[1] != self.dim or not np.isfinite(query).all():
            raise ValueError(complain("query vector", f"{query.shape[1]} numbers", f"{self.dim} finite numbers"))
        return query

    @cached_property
    def _inverted(self) -> Any:
        """The inverted file of plain lists, None where the index is something else."""
        return faiss.downcast_index(self._faiss) if self.mergeable else None

    @cached_property
    def _probes(self) -> int:
        return int(self._inverted.nprobe)

    @cached_property
    def _centroids(self) -> F32:
        """(lists, dim) centroids of the inverted lists."""
        return np.asarray(faiss.downcast_index(self._inverted.quantizer).reconstruct_n(0, self.lists))

    @cached_property
    def _list_of(self) -> npt.NDArray[Any]:
        """(positions,) the inverted list of each position."""
        lists, kind = self._inverted.invlists, np.uint16 if self.lists < 65_536 else np.int32
        found: npt.NDArray[Any] = np.zeros(self._faiss.ntotal, kind)
        for number in range(self.lists):
            if size := lists.list_size(number):
                found[faiss.rev_swig_ptr(lists.get_ids(number), size)] = number
        return found

    @cached_property
    def _position_of(self) -> I32:
        """(n,) the position of each row, -1 for the removed, of an index with a map."""
        assert self.rows is not None
        positions = np.full(len(self.rows), -1, np.int32)
        there = np.flatnonzero(self.rows >= 0)
        positions[self.rows[there]] = there
        return positions

    def _found(self, query: F32, wide: int) -> tuple[F32, I64]:
        """What FAISS finds for one query, the removed left out."""
        scores, positions = self._faiss.search(query, wide)
        scores, rows = scores[0], positions[0]
        if self.rows is not None:
            rows = np.where(rows >= 0, self.rows[rows], -1).astype(np.int64)
        if rows[-1] < 0 or self.rows is not None:
            found = rows >= 0
            rows, scores = rows[found], scores[found]
        return scores, rows

    def at(self, point: OperatingPoint) -> "Index":
        """Returns this index looking as hard as `point` says. It is the same FAISS index: others on it follow."""
        if point.effort and self.knob:
            faiss.ParameterSpace().set_index_parameter(self._faiss, self.knob, point.effort)
        if point.refine > 1 and self._refines_itself:
            faiss.ParameterSpace().set_index_parameter(self._faiss, "k_factor_rf", point.refine)
        return replace(self, point=point)

    def refining(self, vectors: F16 | F32) -> "Index":
        """Returns this index with the exact `vectors` (n, dim) that its operating points may refine by."""
        return self if self.exact or self._refines_itself else replace(self, vectors=vectors)

    @property
    def _refines_itself(self) -> bool:
        return isinstance(faiss.downcast_index(self._faiss), faiss.IndexRefine)

    # -- building ----------------------------------------------------------------------------------------

    @classmethod
    def empty(cls, dim: int, recipe: str, sample: F32, n: int) -> "Index":
        """Returns an index without tracks, trained for `n` of them.

        sample: (m, dim) of their vectors, for recipes that learn from them.

        Raises:
            ConfigError: FAISS does not know the recipe, or it does not fit these vectors.
        """
        if recipe == FLAT:
            return cls(recipe, OperatingPoint(), faiss.IndexFlatIP(dim))
        try:
            index = faiss.index_factory(dim, recipe, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError:
            raise ConfigError(complain("recipe", recipe, "flat or a FAISS factory string")) from None
        try:
            if not index.is_trained:
                index.train(np.ascontiguousarray(sample, np.float32))
        except RuntimeError as error:
            raise _unfit(recipe, error, n, dim) from None
        return cls(recipe, OperatingPoint(), index)

    @classmethod
    def build(cls, vectors: F16 | F32, recipe: str, seed: int = 0) -> "Index":
        """Builds an index over `vectors` (n, dim), unit norm, finite, in one go. Raises ConfigError like `empty`."""
        n, dim = vectors.shape
        chosen = sample_rows(n, recipe, seed)
        index = cls.empty(dim, recipe, np.asarray(vectors[chosen]), n)
        for start in range(0, n, BLOCK):
            index.add(vectors[start : start + BLOCK])
        return index

    def add(self, vectors: F16 | F32, start: int | None = None) -> None:
        """Adds `vectors` (m, dim) at the next positions, or, for `mergeable` recipes, at `start` and those behind.

        Raises ConfigError when the recipe cannot hold them.
        """
        block = np.ascontiguousarray(vectors, np.float32)
        try:
            if start is None:
                self._faiss.add(block)
            else:
                self._faiss.add_with_ids(block, np.arange(start, start + len(block), dtype=np.int64))
        except RuntimeError as error:
            raise _unfit(self.recipe, error, len(block), self.dim) from None

    @property
    def mergeable(self) -> bool:
        """Whether parts built on their own can be merged: plain inverted files can.

        Packed codes (`PQ…fs`) lie in blocks across tracks: FAISS dies of merging those.
        """
        index = faiss.downcast_index(self._faiss)
        if not isinstance(index, faiss.IndexIVF):
            return False
        lists: Any = index.invlists
        return isinstance(faiss.downcast_InvertedLists(lists), faiss.ArrayInvertedLists)

    def merge(self, part: "Index") -> None:
        """Takes over the tracks of `part`, an index from the same `empty` one whose positions do not meet ours."""
        self._faiss.merge_from(part._faiss, 0)

    def with_rows(self, rows: I32) -> "Index":
        """Returns the index with another map from positions to rows, (positions,) int32."""
        return replace(self, rows=rows)

    # -- files -------------------------------------------------------------------------------------------

    def write(self, path: Path) -> None:
        """Writes the FAISS index to a file. Raises OSError where it cannot be written whole."""
        stubless: Any = faiss
        try:
            with path.open("wb") as file:  # FAISS's own writer only prints that the disk was full when it closed
                faiss.write_index(self._faiss, stubless.PyCallbackIOWriter(file.write, 1 << 20))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None

    @classmethod
    def open(cls, path: Path, recipe: str, point: OperatingPoint = OperatingPoint(), *, mapped: bool = True) -> "Index":
        """Opens the index in `path`, mapped unless it is to be added to.

        Raises BundleCorrupt when FAISS cannot read it.
        """
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        except RuntimeError:
            raise BundleCorrupt(complain(path, "a file that FAISS cannot read", "a FAISS index")) from None
        return cls(recipe, OperatingPoint(), index).at(point)


def _knob(index: Any) -> str:
    index = faiss.downcast_index(index)
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        return _knob(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _knob(index.base_index)
    if isinstance(index, faiss.IndexIVF):
        return "nprobe"
    return "efSearch" if isinstance(index, faiss.IndexHNSW) else ""


def lists_of(recipe: str) -> int:
    """Returns how many inverted lists a factory string asks for, 0 for none."""
    for part in recipe.split(","):
        digits = part.removeprefix("IVF").partition("_")[0]
        if part.startswith("IVF") and digits.isdigit():
            return int(digits)
    return 0


def sample_rows(n: int, recipe: str, seed: int) -> I64:
    """Returns the rows that an index of `n` tracks learns from, ascending: 48 a list, 65,536 at least, all if fewer."""
    most = max(BLOCK, 48 * lists_of(recipe))
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def one_thread() -> None:
    """Keeps the calling thread's FAISS to one core: a server's worker, a process of a pool, a latency measured."""
    faiss.omp_set_num_threads(1)


def use_threads(n: int) -> None:
    """Lets the calling thread's FAISS use `n` cores."""
    faiss.omp_set_num_threads(n)


def _unfit(recipe: str, error: RuntimeError, n: int, dim: int) -> ConfigError:
    why = str(error).strip().splitlines()[-1]
    return ConfigError(complain(f"recipe {recipe}", why, f"one that fits {n} tracks of {dim} numbers"))
