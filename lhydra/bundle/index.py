"""Nearest tracks by inner product: a FAISS index, its operating point, and the map from its positions to rows.

Recipes: `flat` is exact; any other text is a FAISS factory string (`IVF4096,SQ8`, `HNSW32`, …), approximate. The
search effort of an approximate index is its operating point, which a rebuild measures. FAISS numbers vectors in
the order in which they were added: their positions. The map from positions to rows of the catalog lets tracks be
added and removed without building the index again.

FAISS checks shapes with `assert` and answers NaN queries with nothing, so queries are checked here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from lhydra.bundle.arrays import is_finite
from lhydra.bundle.exact import in_order
from lhydra.bundle.inverted import InvertedFile
from lhydra.bundle.manifest import OperatingPoint
from lhydra.bundle.recipes import BLOCK, is_plain, knob, lists_of, parameters, sample_rows, untrained
from lhydra.domain import F16, F32, I64
from lhydra.errors import BundleCorrupt, ConfigError, complain

FLAT = "flat"
# The number of queries in one call from which FAISS may multiply matrices (BLAS), which rounds otherwise than one
# query. `faiss.cvar.distance_compute_blas_threshold` was 20 in older versions and is 128,000 in 1.15.1. The bound stays
# at 20, so that answers are equal to the bit under either; batches are smaller anyway.
BLAS_QUERIES = 20
I32 = npt.NDArray[np.int32]
DEFAULT_POINT = OperatingPoint()
_swig_ptr: Any = faiss.swig_ptr


@dataclass(frozen=True)
class Index:
    """A FAISS index over the tracks of one catalog, searched at one operating point.

    Several may share one FAISS index, each with its own point: a search passes it on and changes nothing.

    Args:
        recipe: `flat` or a FAISS factory string.
        point: the operating point.
        faiss_index: what is searched.
        rows: (positions,) row of each position, -1 where the track was removed; None where they are the same.
        vectors: (n, dim) exact vectors by row, for operating points that refine.
    """

    recipe: str
    point: OperatingPoint
    faiss_index: faiss.Index
    rows: I32 | None = None
    vectors: F16 | F32 | None = None

    def __len__(self) -> int:
        return int(self.faiss_index.ntotal) - self.removed

    @cached_property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.faiss_index.d)

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
        return knob(self.faiss_index)

    @property
    def lists(self) -> int:
        """How many inverted lists there are, 0 for none."""
        return lists_of(self.recipe)

    def search(self, vector: F32, k: int) -> tuple[I64, F32]:
        """Finds the nearest tracks.

        Args:
            vector: (dim,) or (1, dim) float32, finite.
            k: how many at most.

        Returns:
            (m,) int64 rows and float32 inner products, best first, ties by row; never -1. An approximate index may
            return fewer than k, and inner products that its codes round, unless the operating point refines.

        Raises:
            ValueError: the vector has another width, or is not finite.
        """
        query = self.checked(vector)
        k = min(k, len(self))
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        refine = self.point.refine if self.vectors is not None else 1
        wanted, total = k * refine, int(self.faiss_index.ntotal)
        wide = wanted + 1
        if self.removed:
            wide += (
                16 + 2 * wanted * self.removed // total
            )  # twice the share of the removed, so a second search is rare
        while True:
            wide = min(wide, total)
            scores, rows = self._found_rows(query, wide)
            if len(rows) >= k and not (self.exact and len(rows) > k and scores[-1] == scores[k - 1]):
                break  # an exact search fetches all ties of the last place, which rows then order
            if wide == total or (not self.exact and len(rows) + self.removed < wide):
                break  # all is fetched, or all that this effort finds
            wide *= 2
        if refine > 1:
            assert self.vectors is not None
            scores = self.vectors.take(rows, 0).astype(np.float32, copy=False) @ query[0]
        return in_order(rows, scores, k)

    def search_many(self, vectors: F32, ks: Sequence[int]) -> list[tuple[I64, F32]]:
        """Returns what `search` does for each vector, to the last bit; in one FAISS call where the index allows it.

        Args:
            vectors: (b, dim) float32 as `checked` returns them, b below BLAS_QUERIES.
            ks: (b,) how many at most of each.

        Returns:
            Rows and inner products of each.

        Raises:
            ValueError: too many vectors.
        """
        if len(vectors) >= BLAS_QUERIES:
            raise ValueError(complain("query vectors", len(vectors), f"fewer than {BLAS_QUERIES} in one call"))
        most = max(ks, default=0)
        if not self._plain or most >= len(self):
            return [self.search(vector, k) for vector, k in zip(vectors, ks, strict=True)]
        scores, rows = self._search_faiss(vectors, most + 1)  # as wide as `search` for one query
        found = []
        for vector, k, own, near in zip(vectors, ks, rows, scores, strict=True):
            if own[-1] < 0:
                own, near = own[own >= 0], near[own >= 0]
            if k < most and len(own) > k and near[k] == near[k - 1]:  # which of equals are fetched goes by the width
                found.append(self.search(vector, k))
            else:
                found.append(in_order(own, near, k))
        return found

    def checked(self, vectors: F32) -> F32:
        """Returns query vectors as FAISS takes them.

        Args:
            vectors: (dim,) or (b, dim).

        Returns:
            (b, dim) float32, contiguous.

        Raises:
            ValueError: they have another width, or are not finite.
        """
        query = np.ascontiguousarray(vectors, np.float32)
        query = query if query.ndim == 2 else query.reshape(-1, query.shape[-1])
        if query.shape[1] != self.dim or not is_finite(query):
            found = f"{query.shape[1]} numbers" if query.shape[1] != self.dim else "a number that is not finite"
            raise ValueError(complain("query vector", found, f"{self.dim} finite numbers"))
        return query

    @cached_property
    def inverted(self) -> InvertedFile | None:
        """The inverted file of plain lists, None where the index is something else."""
        if not self.mergeable:
            return None
        index: Any = faiss.downcast_index(self.faiss_index)
        return InvertedFile(index, self.point.effort or int(index.nprobe))

    @cached_property
    def position_of(self) -> I32:
        """(n,) the position of each row, -1 for the removed, of an index with a map."""
        assert self.rows is not None
        positions = np.full(len(self.rows), -1, np.int32)
        there = np.flatnonzero(self.rows >= 0)
        positions[self.rows[there]] = there
        return positions

    @cached_property
    def _parameters(self) -> Any:
        return parameters(self.faiss_index, self.point)

    def _search_faiss(self, queries: F32, k: int) -> tuple[F32, I64]:
        """Does what `faiss_index.search` does, without its second look at queries that `checked` has looked at."""
        assert queries.shape[1] == self.dim  # SWIG looks at dtype and order
        index: Any = self.faiss_index
        scores, positions = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        index.search_c(len(queries), _swig_ptr(queries), k, _swig_ptr(scores), _swig_ptr(positions), self._parameters)
        return scores, positions

    def _found_rows(self, query: F32, wide: int) -> tuple[F32, I64]:
        """Returns the inner products and rows that FAISS finds for one query, without removed tracks."""
        scores, positions = self._search_faiss(query, wide)
        scores, rows = scores[0], positions[0]
        if self.rows is not None:
            rows = np.where(rows >= 0, self.rows[rows], -1).astype(np.int64)
        if rows[-1] < 0 or self.rows is not None:
            found = rows >= 0
            rows, scores = rows[found], scores[found]
        return scores, rows

    def at(self, point: OperatingPoint) -> "Index":
        """Returns an index with another operating point over the same FAISS index.

        Args:
            point: the operating point.

        Returns:
            The index; this one keeps its own point.
        """
        return replace(self, point=point)

    def refining(self, vectors: F16 | F32) -> "Index":
        """Returns this index with exact vectors that its operating points may refine by.

        Args:
            vectors: (n, dim) by row.

        Returns:
            The index; this one where it is exact, or refines by vectors of its own.
        """
        return self if self.exact or self._refines_itself else replace(self, vectors=vectors)

    @cached_property
    def _plain(self) -> bool:
        return is_plain(self.faiss_index) and self.rows is None and self.vectors is None

    @property
    def _refines_itself(self) -> bool:
        return isinstance(faiss.downcast_index(self.faiss_index), faiss.IndexRefine)

    # -- building ----------------------------------------------------------------------------------------

    @classmethod
    def empty(cls, dim: int, recipe: str, sample: F32, n: int) -> "Index":
        """Returns an index without tracks, trained.

        Args:
            dim: width of the vectors.
            recipe: `flat` or a FAISS factory string.
            sample: (m, dim) vectors, for recipes that are trained on them.
            n: how many tracks it is for.

        Returns:
            The index.

        Raises:
            ConfigError: FAISS does not know the recipe, or it does not fit these vectors.
        """
        if recipe == FLAT:
            return cls(recipe, DEFAULT_POINT, faiss.IndexFlatIP(dim))
        index = untrained(dim, recipe)
        try:
            if not index.is_trained:
                index.train(np.ascontiguousarray(sample, np.float32))
        except RuntimeError as error:
            raise _unfit(recipe, error, n, dim) from None
        return cls(recipe, DEFAULT_POINT, index)

    @classmethod
    def build(cls, vectors: F16 | F32, recipe: str, seed: int = 0) -> "Index":
        """Builds an index in one go.

        Args:
            vectors: (n, dim), unit norm, finite.
            recipe: `flat` or a FAISS factory string.
            seed: of the training sample.

        Returns:
            The index.

        Raises:
            ConfigError: FAISS does not know the recipe, or it does not fit these vectors.
        """
        n, dim = vectors.shape
        chosen = sample_rows(n, recipe, seed)
        index = cls.empty(dim, recipe, np.asarray(vectors[chosen]), n)
        for start in range(0, n, BLOCK):
            index.add(vectors[start : start + BLOCK])
        return index

    def add(self, vectors: F16 | F32, start: int | None = None) -> None:
        """Adds tracks.

        Args:
            vectors: (m, dim) of the tracks.
            start: position of the first, for `mergeable` recipes; None for the next free one.

        Raises:
            ConfigError: the recipe cannot hold them.
        """
        block = np.ascontiguousarray(vectors, np.float32)
        try:
            if start is None:
                self.faiss_index.add(block)
            else:
                self.faiss_index.add_with_ids(block, np.arange(start, start + len(block), dtype=np.int64))
        except RuntimeError as error:
            raise _unfit(self.recipe, error, len(block), self.dim) from None

    @property
    def mergeable(self) -> bool:
        """Whether parts built on their own can be merged: plain inverted files can.

        Packed codes (`PQ…fs`) lie in blocks across tracks: merging them crashes FAISS.
        """
        index = faiss.downcast_index(self.faiss_index)
        if not isinstance(index, faiss.IndexIVF):
            return False
        lists: Any = index.invlists
        return isinstance(faiss.downcast_InvertedLists(lists), faiss.ArrayInvertedLists)

    def merge(self, part: "Index") -> None:
        """Takes over the tracks of another index.

        Args:
            part: an index from the same `empty` one, with other positions.
        """
        self.faiss_index.merge_from(part.faiss_index, 0)

    def with_rows(self, rows: I32) -> "Index":
        """Returns the index with another map from positions to rows.

        Args:
            rows: (positions,) int32, -1 where the track was removed.

        Returns:
            The index.
        """
        return replace(self, rows=rows)

    # -- files -------------------------------------------------------------------------------------------

    def write(self, path: Path) -> None:
        """Writes the FAISS index to a file.

        Args:
            path: the file.

        Raises:
            OSError: it cannot be written whole.
        """
        stubless: Any = faiss
        try:
            with path.open("wb") as file:  # on a full disk FAISS's own writer only prints an error when it closes
                faiss.write_index(self.faiss_index, stubless.PyCallbackIOWriter(file.write, 1 << 20))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None

    @classmethod
    def open(cls, path: Path, recipe: str, point: OperatingPoint = DEFAULT_POINT, *, mapped: bool = True) -> "Index":
        """Opens an index.

        Args:
            path: the file.
            recipe: what it was built by.
            point: the operating point.
            mapped: whether the file is mapped; False for an index that will be added to.

        Returns:
            The index.

        Raises:
            BundleCorrupt: FAISS cannot read it.
        """
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        except RuntimeError:
            raise BundleCorrupt(complain(path, "a file that FAISS cannot read", "a FAISS index")) from None
        return cls(recipe, point, index)


def one_thread() -> None:
    """Limits FAISS in the calling thread to one core: for server workers, pool processes and latency measurements."""
    faiss.omp_set_num_threads(1)


def use_threads(n: int) -> None:
    """Lets the calling thread's FAISS use several cores.

    Args:
        n: how many.
    """
    faiss.omp_set_num_threads(n)


def _unfit(recipe: str, error: RuntimeError, n: int, dim: int) -> ConfigError:
    why = str(error).strip().splitlines()[-1]
    return ConfigError(complain(f"recipe {recipe}", why, f"one that fits {n} tracks of {dim} numbers"))
