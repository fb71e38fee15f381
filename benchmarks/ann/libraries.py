"""The libraries under test: how each builds an index over unit vectors, saves it, and searches with an effort."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.domain import F32

FETCH = 300  # rows of every search
M, EF_CONSTRUCTION = 32, 128  # of every graph
# candidates that a walk over a graph keeps: at least FETCH
EF_STEPS = (300, 340, 380, 440, 500, 600, 700, 850, 1000, 1200, 1500, 2000, 3000, 4000, 6000, 8000, 12_000, 16_000)
LEAF_STEPS = tuple(sorted({step * 2**power for power in range(2, 11) for step in (2, 3)}))
REORDER_STEPS = (300, 450, 600, 900, 1350, 2000, 3000, 5000, 8000, 12_000)

Rows = npt.NDArray[np.integer[Any]]
Effort = Mapping[str, int]
Search = Callable[[F32], Rows]  # a vector (dim,) -> rows, best first


@dataclass(frozen=True)
class Built:
    """An index in memory.

    with_effort: returns its search with an effort, which holds until the next call.
    series: efforts to try, each ascending.
    """

    with_effort: Callable[[Effort], Search]
    series: Sequence[Sequence[Effort]]
    size: int  # bytes of the saved index


@dataclass(frozen=True)
class Library:
    """A library to compare with. build: of its module, (n, dim) vectors, a number of threads, a folder to save in."""

    package: str
    module: str
    build: Callable[[Any, F32, int, Path], Built]


def faiss_hnsw(faiss: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """FAISS's graph over float32.

    Args:
        faiss: its module.
        vectors: (n, dim) float32, unit.
        threads: to build with.
        folder: an empty one, for the saved index.

    Returns:
        The index.
    """
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(vectors.shape[1], M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    index.add(vectors)
    faiss.write_index(index, str(folder / "index"))

    def with_effort(effort: Effort) -> Search:
        index.hnsw.efSearch = effort["efSearch"]
        return lambda vector: index.search(vector.reshape(1, -1), FETCH)[1][0]

    return Built(with_effort, ef_series("efSearch"), size_of(folder))


def hnswlib(module: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """The graph of hnswlib over float32.

    Args:
        module: its module.
        vectors: (n, dim) float32, unit.
        threads: to build with.
        folder: an empty one, for the saved index.

    Returns:
        The index.
    """
    index = module.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=M, ef_construction=EF_CONSTRUCTION)
    index.add_items(vectors, np.arange(len(vectors)), num_threads=threads)
    index.save_index(str(folder / "index"))

    def with_effort(effort: Effort) -> Search:
        index.set_ef(effort["ef"])
        return lambda vector: index.knn_query(vector, FETCH, num_threads=1)[0][0]

    return Built(with_effort, ef_series("ef"), size_of(folder))


def voyager(module: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """The graph of voyager over float32; by cosine, its fastest measure and the same order for unit vectors.

    Args:
        module: its module.
        vectors: (n, dim) float32, unit.
        threads: to build with.
        folder: an empty one, for the saved index.

    Returns:
        The index.
    """
    index = module.Index(
        module.Space.Cosine,
        vectors.shape[1],
        M=M,
        ef_construction=EF_CONSTRUCTION,
        max_elements=len(vectors),
        storage_data_type=module.StorageDataType.Float32,
    )
    index.add_items(vectors, num_threads=threads)
    index.save(str(folder / "index"))

    def with_effort(effort: Effort) -> Search:
        ef = effort["query_ef"]
        return lambda vector: index.query(vector, FETCH, num_threads=1, query_ef=ef)[0]

    return Built(with_effort, ef_series("query_ef"), size_of(folder))


def usearch(module: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """The graph of usearch over float32.

    Args:
        module: its module.
        vectors: (n, dim) float32, unit.
        threads: to build with.
        folder: an empty one, for the saved index.

    Returns:
        The index.
    """
    index = module.Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION)
    index.add(np.arange(len(vectors)), vectors, threads=threads)
    index.save(str(folder / "index"))

    def with_effort(effort: Effort) -> Search:
        index.expansion_search = effort["expansion"]
        return lambda vector: index.search(vector, FETCH, threads=1).keys

    return Built(with_effort, ef_series("expansion"), size_of(folder))


def scann(module: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """ScaNN: a tree, anisotropic codes of half a byte for two numbers, the best of them put in order exactly.

    Args:
        module: its module.
        vectors: (n, dim) float32, unit.
        threads: to build with.
        folder: an empty one, for the saved index.

    Returns:
        The index.
    """
    builder, sample = _scann_tree(module, vectors, threads)
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=sample)
    return _scann_built(builder.reorder(FETCH), len(vectors), folder, [{"reorder": kept} for kept in REORDER_STEPS])


def scann_int8(module: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """ScaNN: a tree, codes of a byte a number: what comes nearest to our recipe; nothing put in order exactly.

    Args:
        module: its module.
        vectors: (n, dim) float32, unit.
        threads: to build with.
        folder: an empty one, for the saved index.

    Returns:
        The index.
    """
    builder, _ = _scann_tree(module, vectors, threads)
    return _scann_built(builder.score_brute_force(quantize=True), len(vectors), folder, [{}])


def _scann_leaves(n: int) -> int:
    return int(2 ** round(math.log2(4 * math.sqrt(n))))


def _scann_tree(module: Any, vectors: F32, threads: int) -> tuple[Any, int]:
    """A builder with its tree, and of how many vectors it learns."""
    leaves, sample = _scann_leaves(len(vectors)), min(len(vectors), 262_144)
    builder = module.scann_ops_pybind.builder(vectors, FETCH, "dot_product").set_n_training_threads(threads)
    return builder.tree(num_leaves=leaves, num_leaves_to_search=1, training_sample_size=sample), sample


def _scann_built(builder: Any, n: int, folder: Path, others: Sequence[Effort]) -> Built:
    """`others`: what else to set, each with every number of leaves."""
    index = builder.build()
    index.serialize(str(folder))

    def with_effort(effort: Effort) -> Search:
        reorder, searched = effort.get("reorder", FETCH), effort["leaves"]
        return lambda vector: index.search(vector, FETCH, reorder, searched)[0]

    leaves = _scann_leaves(n)
    steps = [step for step in LEAF_STEPS if step < leaves] + [leaves]
    return Built(with_effort, [[{"leaves": step, **other} for step in steps] for other in others], size_of(folder))


def ef_series(name: str) -> list[list[Effort]]:
    """Returns the efforts to try of a graph.

    Args:
        name: of its setting, the number of candidates that a walk keeps.

    Returns:
        One series, ascending.
    """
    return [[{name: kept} for kept in EF_STEPS]]


def size_of(folder: Path) -> int:
    """Returns the size of all files below a folder.

    Args:
        folder: where the index was saved.

    Returns:
        Bytes.
    """
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


LIBRARIES: dict[str, Library] = {
    "faiss-hnsw": Library("faiss-cpu", "faiss", faiss_hnsw),
    "hnswlib": Library("hnswlib", "hnswlib", hnswlib),
    "voyager": Library("voyager", "voyager", voyager),
    "usearch": Library("usearch", "usearch.index", usearch),
    "scann": Library("scann", "scann", scann),
    "scann-int8": Library("scann", "scann", scann_int8),
}
