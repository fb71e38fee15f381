"""Nearest tracks by inner product. The only file that imports faiss.

Recipes: `flat` is exact; any other text is a FAISS factory string (`HNSW32`, `IVF256,SQ8`, …), approximate.
FAISS checks shapes with `assert` and answers NaN queries with nothing, so the door is here.
"""

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from lhydra.domain import F32, I64
from lhydra.errors import BundleCorrupt, ConfigError, complain

BLOCK = 65_536


@dataclass(frozen=True)
class Index:
    """A FAISS index over the rows of one catalog."""

    dim: int
    exact: bool
    _faiss: faiss.Index

    def __len__(self) -> int:
        return int(self._faiss.ntotal)

    def search(self, vector: F32, k: int) -> tuple[I64, F32]:
        """Returns at most k rows (m,) and their inner products (m,), best first, ties by row; never -1.

        vector: (dim,) or (1, dim) float32, finite. An approximate index may return fewer than k.
        """
        query = np.ascontiguousarray(vector, np.float32).reshape(1, -1)
        if query.shape[1] != self.dim or not np.isfinite(query).all():
            raise ValueError(complain("query vector", f"{query.shape[1]} numbers", f"{self.dim} finite numbers"))
        k = min(k, len(self))
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        wide = min(k + 1, len(self))
        scores, rows = self._faiss.search(query, wide)
        while self.exact and wide < len(self) and scores[0][-1] == scores[0][k - 1]:
            wide = min(2 * wide, len(self))  # the last place is shared: see all who share it, so that rows decide
            scores, rows = self._faiss.search(query, wide)
        found = rows[0] >= 0
        rows, scores = rows[0][found], scores[0][found]
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]

    def write(self, path: Path) -> None:
        """Writes the index to a file."""
        faiss.write_index(self._faiss, str(path))

    @classmethod
    def build(cls, vectors: F32, recipe: str, seed: int = 0) -> "Index":
        """Builds an index over `vectors` (n, dim), unit norm, finite; `vectors` may be a mapped file.

        Raises:
            ConfigError: FAISS does not know the recipe, or it does not fit these vectors.
        """
        n, dim = vectors.shape
        if recipe == "flat":
            index: faiss.Index = faiss.IndexFlatIP(dim)
        else:
            try:
                index = faiss.index_factory(dim, recipe, faiss.METRIC_INNER_PRODUCT)
            except RuntimeError:
                raise ConfigError(complain("recipe", recipe, "flat or a FAISS factory string")) from None
        try:
            if not index.is_trained:
                chosen = np.random.default_rng(seed).permutation(n)[: 256 * 1024]
                index.train(np.ascontiguousarray(vectors[np.sort(chosen)]))
            for start in range(0, n, BLOCK):
                index.add(np.ascontiguousarray(vectors[start : start + BLOCK]))
        except RuntimeError as error:
            why = str(error).strip().splitlines()[-1]
            raise ConfigError(complain(f"recipe {recipe}", why, f"one that fits {n} tracks of {dim} numbers")) from None
        return cls(dim, recipe == "flat", index)

    @classmethod
    def open(cls, path: Path, recipe: str) -> "Index":
        """Maps the index in `path`. Raises BundleCorrupt when FAISS cannot read it."""
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError:
            raise BundleCorrupt(complain(path, "a file that FAISS cannot read", "a FAISS index")) from None
        return cls(index.d, recipe == "flat", index)


def nearest(vectors: F32, vector: F32, k: int, excluded: I64) -> tuple[I64, F32]:
    """Exact search by brute force: at most k rows (m,) and inner products (m,), best first, ties by row.

    excluded: rows that must not be returned. The oracle of tests and the way out when an index falls short.
    """
    scores = np.concatenate(
        [vectors[start : start + BLOCK] @ vector.reshape(-1) for start in range(0, len(vectors), BLOCK)]
    )
    scores[excluded] = -np.inf
    k = min(k, len(scores) - len(excluded))
    if k < 1:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    bound = np.partition(scores, len(scores) - k)[len(scores) - k]
    rows = np.flatnonzero(scores >= bound)  # more than k when the last place is shared
    order = np.lexsort((rows, -scores[rows]))[:k]
    return rows[order], scores[rows[order]]
