"""An index over the vectors of a catalog, built on several cores: parts are built apart and merged in order."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lhydra.bundle.arrays import blocks
from lhydra.bundle.embedding import SHARD, Run
from lhydra.bundle.index import Index, use_threads
from lhydra.bundle.recipes import sample_rows
from lhydra.domain import F32, I64
from lhydra.timing import timed


@dataclass(frozen=True)
class VectorFile:
    """The vectors of a catalog on disk, (n, dim)."""

    path: Path
    n: int
    dim: int


@dataclass(frozen=True)
class IndexPart:
    """Rows `start` to `stop` of the vectors, to be added to a copy of the empty index; travels to other processes."""

    empty: Path
    recipe: str
    vectors: Path
    start: int
    stop: int
    out: Path


def build_part(part: IndexPart) -> Path:
    """Builds one part of an index.

    Args:
        part: which.

    Returns:
        Its file.
    """
    index = Index.open(part.empty, part.recipe, mapped=False)
    vectors = np.load(part.vectors, "r", allow_pickle=False)
    for start in range(part.start, part.stop, SHARD):
        index.add(vectors[start : min(start + SHARD, part.stop)], start)
    index.write(part.out)
    return part.out


@timed("rebuild.index")
def build(
    vectors: VectorFile,
    recipe: str,
    seed: int,
    run: Run,
    threads: int,
    path: Path,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> None:
    """Builds an index and writes it.

    Inverted files are built in parts, which do not depend on how many processes there are, and merged in order;
    everything else in one go.

    Args:
        vectors: what to index.
        recipe: `flat` or a FAISS factory string.
        seed: of the training.
        run: runs the parts.
        threads: for what is built in one go.
        path: the file to write.
        on_rows: told how many vectors are in the index.

    Raises:
        ConfigError: FAISS does not know the recipe, or it does not fit.
    """
    use_threads(threads)
    index = Index.empty(vectors.dim, recipe, _sample(vectors, sample_rows(vectors.n, recipe, seed)), vectors.n)
    if not index.mergeable:
        done = 0
        for block in blocks(vectors.path):
            index.add(block)
            done += len(block)
            on_rows(done)
        index.write(path)
        return
    empty, size = path.with_suffix(".empty"), 4 * SHARD
    index.write(empty)
    parts = [
        IndexPart(empty, recipe, vectors.path, start, min(start + size, vectors.n), path.with_suffix(f".{start}"))
        for start in range(0, vectors.n, size)
    ]
    for part, built in zip(parts, run(build_part, parts), strict=True):
        index.merge(Index.open(built, recipe, mapped=False))
        built.unlink()
        on_rows(part.stop)
    empty.unlink()
    index.write(path)


def _sample(vectors: VectorFile, rows: I64) -> F32:
    """The vectors of `rows`, ascending, read block by block: a mapping would hold almost every page."""
    parts, start = [np.empty((0, vectors.dim), np.float32)], 0
    for block in blocks(vectors.path):
        inside = slice(*np.searchsorted(rows, (start, start + len(block))))
        parts.append(block[rows[inside] - start])
        start += len(block)
    return np.concatenate(parts)
