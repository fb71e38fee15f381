"""Estimates the memory and disk of a rebuild before it begins, and refuses one that does not fit.

Memory is that of the builder and its processes together. It includes mapped files, which the system could take back, so
it is an upper bound; it was measured (docs/index-building.md). Disk is what the store grows by, at its peak.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lhydra.bundle import columns_writer
from lhydra.bundle.embedding import SHARD
from lhydra.bundle.index import FLAT
from lhydra.bundle.model import Model
from lhydra.bundle.recipes import lists_of
from lhydra.data.dataset import Dataset
from lhydra.errors import ConfigError, complain
from lhydra_index_builder.recipe import AUTO, ladder
from lhydra_index_builder.sizes import file_sizes

GIB = 2**30
BASE_BYTES = 500 << 20  # the builder: libraries, users, what it measures with
PROCESS_BYTES = 150 << 20  # it and each of its processes: graphs and what encodes
CELL_BYTES = 40  # a value of a track, as Arrow holds those of a shard and Python those of a block
SCORE_BYTES = 64  # a track, by each thread that scores all of them: what rebuilds of 10 M tracks took beyond the rest


@dataclass(frozen=True)
class ResourceEstimate:
    """Peak bytes."""

    memory: int
    disk: int

    def __str__(self) -> str:
        return f"{self.memory / GIB:.1f} GiB of memory and {self.disk / 1e9:.1f} GB of disk"


def predict(model: Model, dataset: Dataset, recipe: str, max_bytes: int, processes: int) -> ResourceEstimate:
    """Returns what a rebuild will estimate.

    Args:
        model: what embeds.
        dataset: whose tracks are embedded.
        recipe: `auto`, `flat` or a FAISS factory string.
        max_bytes: most bytes of the index per track, 0 for no limit.
        processes: how many embed and build; 1 is the builder alone.

    Returns:
        Bytes of memory and disk.
    """
    n, dim, sizes = dataset.n_tracks, model.dim, file_sizes(model, dataset)
    names = ladder(n, dim, max_bytes) if recipe == AUTO else [recipe]
    exact = next((i for i, name in enumerate(names) if name == FLAT or name.endswith(",Flat")), len(names))
    names = names[: exact + 1]  # what is exact when it looks everywhere reaches every recall: nothing is tried after it
    indexes = [n * _codes(name, dim) + 4 * dim * lists_of(name) for name in names]
    sharing = 1 + (processes if processes > 1 else 0)
    cells = CELL_BYTES * min(n, SHARD) * sizes.values
    plays = 25 * sum(dataset.info.counts[fold] for fold in ("train", "valid", "test"))
    base = BASE_BYTES + sharing * (PROCESS_BYTES + vocabulary_bytes(sizes.files) + cells) + 3 * plays
    sample = 2 * 4 * dim * min(n, max(1 << 16, 48 * max(map(lists_of, names))))
    indexing = mapped_bytes(sizes.files) + sample + SCORE_BYTES * n * processes + max(indexes)
    memory = base + max(columns_writer.MEMORY * sizes.widest, indexing)  # one after the other
    disk = sum(sizes.files.values()) + max(sum(indexes), 8 * sizes.entries)  # they lie in a file while they are grouped
    return ResourceEstimate(int(memory), int(disk))


def mapped_bytes(sizes: Mapping[str, int]) -> int:
    """Tells what of the files of a bundle is in memory in the end: all that is mapped but what only filters read.

    Args:
        sizes: bytes of each file by name.

    Returns:
        Bytes.
    """
    return sum(size for name, size in sizes.items() if name.endswith(".npy") and not name.startswith("filter"))


def vocabulary_bytes(sizes: Mapping[str, int]) -> int:
    """Tells what a process that embeds holds of the values that training knew: as Python, and as ONNX Runtime.

    Args:
        sizes: bytes of each file of a model or a bundle by name.

    Returns:
        Bytes, measured.
    """
    return 45 * sizes["features.json"] + sizes["item_tower.onnx"]


def _codes(recipe: str, dim: int) -> int:
    """Bytes of a track in an index."""
    codes = 4 * dim if recipe == FLAT else (dim + 8 if "SQ8" in recipe or "PQ" in recipe else 4 * dim + 8)
    return codes + (300 if "HNSW" in recipe and "IVF" not in recipe else 0)


def check(estimate: ResourceEstimate, store: Path, max_memory_gib: float) -> None:
    """Refuses what does not fit.

    Args:
        estimate: what is needed.
        store: the folder whose disk is written to; it need not exist yet.
        max_memory_gib: memory that may be used, in GiB; 0 takes what is free.

    Raises:
        ConfigError: the machine, or the limit, has less than what is needed.
    """
    have = int(max_memory_gib * GIB) if max_memory_gib else free_memory()
    if have is not None and estimate.memory > have:
        thing = "--max-memory-gib" if max_memory_gib else "memory"
        found = f"{have / GIB:.1f} GiB free" if not max_memory_gib else f"{max_memory_gib:g}"
        raise ConfigError(complain(thing, found, f"about {estimate.memory / GIB:.1f} GiB for this rebuild"))
    there = store
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if estimate.disk > free:
        expected = f"about {estimate.disk / 1e9:.1f} GB for this rebuild"
        raise ConfigError(complain(f"disk of {store}", f"{free / 1e9:.1f} GB free", expected))


def free_memory() -> int | None:
    """Returns the bytes that this process may still take, of the system's or its control group's; None when unknown."""
    found: list[int] = []
    with suppress(OSError, ValueError):  # not Linux, or no control groups: the other one counts
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdigit():
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return min(found, default=None)


def cores(threads: int) -> int:
    """Returns how many processes and threads to use.

    Args:
        threads: what was asked for; 0 takes all cores that this process may run on.

    Returns:
        At least 1.
    """
    if threads:
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
