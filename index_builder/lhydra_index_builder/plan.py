"""Estimates the memory and disk of a rebuild before it begins, and refuses one that does not fit.

Memory is that of the builder and its processes together. It includes mapped files, which the system could take back, so
it is an upper bound; it was measured (benchmarks/results/rebuild). Disk is what the store grows by, at its peak.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lhydra.bundle.index import FLAT
from lhydra.bundle.model import Model
from lhydra.bundle.recipes import lists_of
from lhydra.data.dataset import Dataset
from lhydra.errors import ConfigError, complain
from lhydra_index_builder.recipe import AUTO, ladder

GIB = 2**30
BASE_BYTES = 500 << 20  # the builder: libraries, users, what it measures with
PROCESS_BYTES = 150 << 20  # it and each of its processes: graphs and what encodes
TEXT_BYTES = 80  # bytes of ids, titles and artists of a track, with their offsets


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
    n, dim = dataset.n_tracks, model.dim
    name = ladder(n, dim, max_bytes)[0] if recipe == AUTO else recipe
    codes = 4 * dim if name == FLAT else (dim + 8 if "SQ8" in name or "PQ" in name else 4 * dim + 8)
    codes += 300 if "HNSW" in name and "IVF" not in name else 0
    encoded = 4 * (len(model.spec.track_dense) + len(model.spec.track_ids))
    mapped = 8 * dim + encoded + 44  # measured: in the end nearly all of the catalog's numbers are touched
    table = model.neighbours.nbytes + model.neighbour_weights.nbytes
    plays = 25 * sum(dataset.info.counts[fold] for fold in ("train", "valid", "test"))
    vocabulary = (700 + 8 * dim) * len(model.neighbours)  # its ids in the features, their rows in the item tower
    sample = 2 * 4 * dim * min(n, max(1 << 16, 48 * lists_of(name)))
    sharing = 1 + (processes if processes > 1 else 0)
    memory = BASE_BYTES + sharing * (PROCESS_BYTES + vocabulary) + 3 * plays + table + sample + n * (mapped + codes)
    tracks = (dataset.path / "tracks.parquet").stat().st_size
    disk = int(1.4 * n * (8 * dim + encoded + 36 + TEXT_BYTES)) + 2 * n * codes + tracks + table
    return ResourceEstimate(int(memory), disk)


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
