"""Our index against other libraries on real vectors: `python -m benchmarks.ann STORE DATASET --out FILE.json`.

Tracks: all of the bundle that STORE names CURRENT. Queries: vectors of users of DATASET, drawn at random. Everybody
fetches FETCH rows, whatever the bundle's depth, with the least effort whose coverage, the share of the exact nearest
100 among them, reaches TARGET for one half of the users; what the table says was measured on the other half. `ours` is
the published operating point, through the call the server makes, ties put in order; `ours, least` the least that
does. The other libraries are called bare. One query per call; rounds go over all in turn, medians with min..max.
Libraries that are not installed (dependency group `bench`) are skipped, and said to be.
"""

import os
import sys

if __name__ == "__main__":  # read when the libraries are loaded; not to be touched by who only imports this
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)

import argparse
import importlib
import json
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import core_scaling, machine, versions
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.exact import nearest_of_many
from lhydra.bundle.index import one_thread, use_threads
from lhydra.bundle.manifest import OperatingPoint
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import F32, I64
from lhydra.errors import ConfigError, LhydraError, complain
from lhydra.recommender import Recommender
from lhydra_client.table import table
from lhydra_index_builder.build import join_users
from lhydra_index_builder.sweep import NEIGHBOURS, REFINE_FACTORS, Truth, efforts

FETCH, TARGET = 300, 0.95
M, EF_CONSTRUCTION = 32, 128  # of every graph
PASSES, LONGEST_S = 5, 4.0  # over the held-out users for every number of a round; fewer passes where they take longer
SPIN_S = 1.0
OURS, LEAST = "ours", "ours, least"
TIMED, BUILD = ("p50_us", "p99_us", "qps_1", "qps_2"), ("wall", "cpu")
# a walk keeps FETCH candidates at least
KEEPING = (300, 340, 380, 440, 500, 600, 700, 850, 1000, 1200, 1500, 2000, 3000, 4000, 6000, 8000, 12_000, 16_000)
LEAVES = tuple(sorted({step * 2**power for power in range(2, 11) for step in (2, 3)}))
REORDER = (300, 450, 600, 900, 1350, 2000, 3000, 5000, 8000, 12_000)

Rows = npt.NDArray[np.integer[Any]]
Effort = Mapping[str, int]
Search = Callable[[F32], Rows]  # a vector (dim,) -> rows, best first


@dataclass(frozen=True)
class Built:
    """An index in memory.

    at: returns its search with an effort, which holds until the next call. series: efforts to try, each ascending.
    """

    at: Callable[[Effort], Search]
    series: Sequence[Sequence[Effort]]
    size: int  # bytes of the saved index


@dataclass(frozen=True)
class Library:
    """A library to compare with. build: of its module, (n, dim) vectors, a number of threads, a folder to save in."""

    package: str
    module: str
    build: Callable[[Any, F32, int, Path], Built]


@dataclass(frozen=True)
class Entrant:
    """One line of the table to be: an index and the effort found for it."""

    name: str
    recipe: str
    built: Built
    effort: Effort
    tuned: float  # coverage for the half that chose the effort
    build_wall_s: float | None
    build_cpu_s: float | None


@dataclass(frozen=True)
class Round:
    """What was timed in one round: `calls` one by one, as many by each thread."""

    calls: int
    p50_us: float
    p99_us: float
    qps_1: float
    qps_2: float


@dataclass(frozen=True)
class Spread:
    """Median, least and most over the rounds."""

    median: float
    min: float
    max: float


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and writes the JSON; returns 0, or 1 after bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--queries", type=int, default=400, help="users, half of them to choose the effort by")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--libraries", default=",".join((OURS, *LIBRARIES)))
    parser.add_argument("--build-threads", type=int, default=os.cpu_count(), help="cores to build with")
    parser.add_argument("--seed", type=int, default=1, help="draws the users; a rebuild draws with 0")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    names = list(dict.fromkeys(name for name in args.libraries.split(",") if name != OURS))
    if unknown := [name for name in names if name not in LIBRARIES]:
        parser.error(f"--libraries: unknown {unknown[0]}, expected some of {','.join((OURS, *LIBRARIES))}")
    if args.queries < 2 or args.repeats < 1 or args.build_threads < 1:
        parser.error("--queries: at least 2; --repeats and --build-threads: at least 1")
    at_start, spinners = machine(), {"before": core_scaling(SPIN_S)}
    try:
        bundle, dataset = Bundle.open(args.store), Dataset.open(args.dataset)
        vectors = vectors_of(bundle)
        truth = truth_of(vectors, queries_of(bundle, dataset, args.queries, args.seed))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    near = np.einsum("ud,umd->um", truth.queries, vectors[truth.nearest]).mean(0)
    print(
        f"{len(vectors):,} tracks of {vectors.shape[1]} numbers, {len(truth.queries)} users; inner product with the"
        f" nearest {near[0]:.2f}, with the last of the nearest {NEIGHBOURS} {near[-1]:.2f}",
        flush=True,
    )
    entrants = ours(bundle, vectors, half(truth, 0))
    skipped: dict[str, str] = {}
    for name in names:
        module = load(name, LIBRARIES[name], skipped)
        if module is not None:
            entrants.append(enter(name, LIBRARIES[name], module, vectors, half(truth, 0), args.build_threads))
    packages = [LIBRARIES[name].package for name in names if name not in skipped]
    rounds = measure(entrants, truth, args.repeats)
    rows = [row_of(entrant, rounds[entrant.name], half(truth, 1), len(vectors)) for entrant in entrants]
    for row in rows:
        row["to_ours"] = ratios(row, rows[0])
    spinners["after"] = core_scaling(SPIN_S)
    print(report(rows))
    print(f"two spinning processes do x{spinners['before']:.2f} (before) and x{spinners['after']:.2f} (after) of one")
    document = {
        "benchmark": "ann",
        "command": f"python -m benchmarks.ann STORE DATASET --queries {args.queries} --repeats {args.repeats}"
        f" --libraries {args.libraries} --build-threads {args.build_threads} --seed {args.seed}",
        "seed": args.seed,
        "machine": at_start,
        "versions": versions() | {package: version(package) for package in packages},
        "spinners": spinners,
        "tracks": len(vectors),
        "dim": vectors.shape[1],
        "inner_product_of_nearest": {"first": round(float(near[0]), 4), "last": round(float(near[-1]), 4)},
        "fetch": FETCH,
        "target": TARGET,
        "depth_of_bundle": bundle.manifest.depth if bundle.manifest else None,
        "build_threads": args.build_threads,
        "skipped": skipped,
        "rows": rows,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


# -- vectors ------------------------------------------------------------------------------------------------


def vectors_of(bundle: Bundle) -> F32:
    """Returns the (n, dim) vectors in memory.

    Raises:
        ConfigError: tracks were removed, which only our index knows, or there are fewer than FETCH.
    """
    if len(bundle.catalog.removed):
        raise ConfigError(complain("bundle", f"{len(bundle.catalog.removed)} removed tracks", "a fresh rebuild"))
    if len(bundle.catalog) < FETCH:
        raise ConfigError(complain("bundle", f"{len(bundle.catalog)} tracks", f"at least {FETCH}"))
    return np.array(bundle.catalog.vectors, np.float32)  # of its own: some libraries take no read-only memory


def queries_of(bundle: Bundle, dataset: Dataset, n: int, seed: int) -> F32:
    """Returns (n, dim) vectors of users drawn at random, with the histories that they had before the validation fold.

    Raises ConfigError when there are too few users.
    """
    if n > len(dataset.user_ids):
        raise ConfigError(complain("--queries", n, f"at most the {len(dataset.user_ids)} users of the dataset"))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(dataset.user_ids))[:n])
    encode = Recommender(bundle).encode
    users = join_users([encode(state) for _, state in user_states(dataset, "valid", positions=drawn)])
    one_by_one = (users.take(np.array([i])) for i in range(n))
    return np.concatenate([bundle.user_tower.embed(user, bundle.catalog.history) for user in one_by_one])


def truth_of(vectors: F32, queries: F32) -> Truth:
    """Returns the exact nearest NEIGHBOURS of every query."""
    use_threads(os.cpu_count() or 1)
    rows, _ = nearest_of_many([vectors], queries, NEIGHBOURS, np.empty(0, np.int64))
    one_thread()
    return Truth(queries, rows)


def half(truth: Truth, which: int) -> Truth:
    """Returns every other user, from the first (0) or second (1) on."""
    return Truth(truth.queries[which::2], truth.nearest[which::2])


def shares(found: Sequence[Rows], nearest: I64) -> npt.NDArray[np.float64]:
    """Returns what share of a query's exact `nearest`, (u, m), -1 padded, is in `found`, u times (k,) rows: (u,)."""
    each = [
        np.isin(exact[exact >= 0], rows).sum() / max(1, (exact >= 0).sum())
        for rows, exact in zip(found, nearest, strict=True)
    ]
    return np.array(each, np.float64)


def share(found: Sequence[Rows], nearest: I64) -> float:
    """Returns the mean of `shares`."""
    return round(float(shares(found, nearest).mean()), 6)


def covered(search: Search, truth: Truth) -> float:
    """Returns the coverage of a search."""
    return share([search(query) for query in truth.queries], truth.nearest)


# -- entrants -----------------------------------------------------------------------------------------------


def ours(bundle: Bundle, vectors: F32, truth: Truth) -> list[Entrant]:
    """Returns the published operating point and, where another one is the least that does here, that one too."""
    manifest, index = bundle.manifest, bundle.index.refining(vectors)
    assert manifest is not None
    knob = index.knob or "effort"
    build_s = next((at["build_s"] for at in manifest.index["curve"] if at["recipe"] == manifest.recipe), None)

    def at(effort: Effort) -> Search:
        searched = index.at(OperatingPoint(effort[knob], effort["refine"]))
        return lambda vector: searched.search(vector, FETCH)[0]

    refining = REFINE_FACTORS if index.vectors is not None and "Flat" not in index.recipe else (1,)
    series = [[{knob: step, "refine": refine} for step in efforts(index)] for refine in refining]
    built = Built(at, series, manifest.files["index.faiss"]["bytes"])
    stored: Effort = {knob: index.point.effort, "refine": index.point.refine}
    chosen = {OURS: (stored, covered(at(stored), truth))}
    fitting = fastest(built, least(series, lambda effort: covered(at(effort), truth), TARGET), truth.queries)
    if fitting[0] != stored:
        chosen[LEAST] = fitting
    entrants = [
        Entrant(name, manifest.recipe, built, effort, tuned, build_s, None) for name, (effort, tuned) in chosen.items()
    ]
    for each in entrants:
        print(f"{each.name}: {label(each)}, coverage {each.tuned:.4f}", flush=True)
    return entrants


def load(name: str, library: Library, skipped: dict[str, str]) -> Any:
    """Returns the module of a library, or None after a line that says why it is skipped, which `skipped` notes."""
    try:
        return importlib.import_module(library.module)
    except (ImportError, OSError) as error:
        skipped[name] = f"{library.package} does not import: {' '.join(str(error).split())}"
        print(f"{name}: skipped, {skipped[name]}", flush=True)
        return None


def enter(name: str, library: Library, module: Any, vectors: F32, truth: Truth, threads: int) -> Entrant:
    """Builds the index of a library and finds its least effort."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.monotonic(), time.process_time()
        # the folder takes the saved index, whose writing is counted, as it is for ours
        built = library.build(module, vectors, threads, Path(folder))
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    one_thread()
    candidates = least(built.series, lambda effort: covered(built.at(effort), truth), TARGET)
    effort, tuned = fastest(built, candidates, truth.queries)
    entrant = Entrant(name, name, built, effort, tuned, round(wall, 1), round(cpu, 1))
    print(f"{name}: built in {wall:.1f} s ({cpu:.1f} s CPU); {label(entrant)}, coverage {tuned:.4f}", flush=True)
    return entrant


def least(
    series: Sequence[Sequence[Effort]], coverage: Callable[[Effort], float], target: float
) -> list[tuple[Effort, float]]:
    """Returns the first effort of each series that reaches the target, with its coverage; if none does, the best."""
    good: list[tuple[Effort, float]] = []
    tried: list[tuple[Effort, float]] = []
    for ascending in series:
        for effort in ascending:
            tried.append((effort, coverage(effort)))
            if tried[-1][1] >= target:
                good.append(tried[-1])
                break
    return good or [max(tried, key=lambda one: one[1])]


def fastest(built: Built, candidates: Sequence[tuple[Effort, float]], queries: F32) -> tuple[Effort, float]:
    """Returns the candidate with the lowest p50, for libraries with two things to set; nothing is timed for one."""
    if len(candidates) == 1:
        return candidates[0]
    times: list[list[float]] = [[] for _ in candidates]
    for _ in range(3):
        for (effort, _coverage), taken in zip(candidates, times, strict=True):
            taken.append(float(np.median(latencies_us(built.at(effort), queries))))
    return candidates[int(np.argmin([statistics.median(taken) for taken in times]))]


# -- libraries ----------------------------------------------------------------------------------------------


def faiss_hnsw(faiss: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """FAISS's graph over float32."""
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(vectors.shape[1], M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    index.add(vectors)
    faiss.write_index(index, str(folder / "index"))

    def at(effort: Effort) -> Search:
        index.hnsw.efSearch = effort["efSearch"]
        return lambda vector: index.search(vector.reshape(1, -1), FETCH)[1][0]

    return Built(at, keeping("efSearch"), size_of(folder))


def hnswlib(module: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """The graph of hnswlib over float32."""
    index = module.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=M, ef_construction=EF_CONSTRUCTION)
    index.add_items(vectors, np.arange(len(vectors)), num_threads=threads)
    index.save_index(str(folder / "index"))

    def at(effort: Effort) -> Search:
        index.set_ef(effort["ef"])
        return lambda vector: index.knn_query(vector, FETCH, num_threads=1)[0][0]

    return Built(at, keeping("ef"), size_of(folder))


def voyager(module: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """The graph of voyager over float32; by cosine, its fastest measure and the same order for unit vectors."""
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

    def at(effort: Effort) -> Search:
        ef = effort["query_ef"]
        return lambda vector: index.query(vector, FETCH, num_threads=1, query_ef=ef)[0]

    return Built(at, keeping("query_ef"), size_of(folder))


def usearch(module: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """The graph of usearch over float32."""
    index = module.Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION)
    index.add(np.arange(len(vectors)), vectors, threads=threads)
    index.save(str(folder / "index"))

    def at(effort: Effort) -> Search:
        index.expansion_search = effort["expansion"]
        return lambda vector: index.search(vector, FETCH, threads=1).keys

    return Built(at, keeping("expansion"), size_of(folder))


def scann(module: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """ScaNN: a tree, anisotropic codes of half a byte for two numbers, the best of them put in order exactly."""
    builder, sample = _scann_tree(module, vectors, threads)
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=sample)
    return _scann_built(builder.reorder(FETCH), len(vectors), folder, [{"reorder": kept} for kept in REORDER])


def scann_int8(module: Any, vectors: F32, threads: int, folder: Path) -> Built:
    """ScaNN: a tree, codes of a byte a number: what comes nearest to our recipe; nothing put in order exactly."""
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

    def at(effort: Effort) -> Search:
        reorder, searched = effort.get("reorder", FETCH), effort["leaves"]
        return lambda vector: index.search(vector, FETCH, reorder, searched)[0]

    leaves = _scann_leaves(n)
    steps = [step for step in LEAVES if step < leaves] + [leaves]
    return Built(at, [[{"leaves": step, **other} for step in steps] for other in others], size_of(folder))


def keeping(name: str) -> list[list[Effort]]:
    """Returns the efforts of a graph whose setting is called `name`."""
    return [[{name: kept} for kept in KEEPING]]


def size_of(folder: Path) -> int:
    """Returns the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


LIBRARIES: dict[str, Library] = {
    "faiss-hnsw": Library("faiss-cpu", "faiss", faiss_hnsw),
    "hnswlib": Library("hnswlib", "hnswlib", hnswlib),
    "voyager": Library("voyager", "voyager", voyager),
    "usearch": Library("usearch", "usearch.index", usearch),
    "scann": Library("scann", "scann", scann),
    "scann-int8": Library("scann", "scann", scann_int8),
}


# -- measuring ----------------------------------------------------------------------------------------------


def measure(entrants: Sequence[Entrant], truth: Truth, repeats: int) -> dict[str, list[Round]]:
    """Returns the rounds of every entrant; a round goes over all of them, each warmed up by the other half's users."""
    rounds: dict[str, list[Round]] = {entrant.name: [] for entrant in entrants}
    one_thread()
    for _ in range(repeats):
        for entrant in entrants:
            search = entrant.built.at(entrant.effort)
            taken_us = latencies_us(search, half(truth, 0).queries)
            passes = int(np.clip(LONGEST_S * 1e6 / taken_us.sum(), 1, PASSES))
            queries = np.concatenate([half(truth, 1).queries] * passes)
            p50, p99 = np.percentile(latencies_us(search, queries), (50, 99))
            qps_1, qps_2 = rate(search, queries, 1), rate(search, queries, 2)
            rounds[entrant.name].append(Round(len(queries), float(p50), float(p99), qps_1, qps_2))
    return rounds


def latencies_us(search: Search, queries: F32) -> npt.NDArray[np.float64]:
    """Returns how long every query takes, (q,) microseconds."""
    taken = np.zeros(len(queries))
    for i, query in enumerate(queries):
        started = time.perf_counter_ns()
        search(query)
        taken[i] = time.perf_counter_ns() - started
    return taken / 1000


def rate(search: Search, queries: F32, threads: int) -> float:
    """Returns searches per second when each of some Python threads asks all the queries."""
    ready = threading.Barrier(threads + 1)

    def ask() -> None:
        one_thread()
        ready.wait()
        for query in queries:
            search(query)

    asking = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in asking:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in asking:
        thread.join()
    return threads * len(queries) / (time.perf_counter() - started)


# -- reporting ----------------------------------------------------------------------------------------------


def row_of(entrant: Entrant, rounds: Sequence[Round], truth: Truth, n: int) -> dict[str, Any]:
    """Returns everything about an entrant; coverage and recall are those of the users in `truth`."""
    search = entrant.built.at(entrant.effort)
    found = [search(query) for query in truth.queries]
    times = {name: asdict(spread([getattr(one, name) for one in rounds])) for name in TIMED}
    return {
        "name": entrant.name,
        "recipe": entrant.recipe,
        "effort": dict(entrant.effort),
        "setting": label(entrant),
        "coverage_when_chosen": entrant.tuned,
        "reached": entrant.tuned >= TARGET,
        "coverage": share(found, truth.nearest),
        "recall@100": share([rows[:NEIGHBOURS] for rows in found], truth.nearest),
        "users_below_half": round(float((shares(found, truth.nearest) < 0.5).mean()), 4),
        **times,
        "calls": [one.calls for one in rounds],
        "bytes_per_track": round(entrant.built.size / n, 1),
        "build_wall_s": entrant.build_wall_s,
        "build_cpu_s": entrant.build_cpu_s,
    }


def spread(values: Sequence[float]) -> Spread:
    """Returns median, least and most."""
    return Spread(*(round(float(value), 1) for value in (statistics.median(values), min(values), max(values))))


def ratios(row: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float]:
    """Returns a row's numbers over those of `base`."""
    medians = {key: row[key]["median"] / base[key]["median"] for key in TIMED}
    plain = {
        key: row[key] / base[key]
        for key in ("bytes_per_track", "build_wall_s")
        if row[key] is not None and base[key]  # None or 0: nothing to compare with
    }
    return {key: round(value, 3) for key, value in (medians | plain).items()}


def label(entrant: Entrant) -> str:
    """Returns recipe and effort for people."""
    said = [f"{name} {value}" for name, value in entrant.effort.items() if (name, value) != ("refine", 1)]
    return ", ".join(said if entrant.recipe == entrant.name else [entrant.recipe, *said])


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the tables that people read; x: over ours."""

    def spelled(row: Mapping[str, Any], key: str) -> tuple[str, str]:
        value = row[key]
        return f"{value['median']:,.0f} ({value['min']:,.0f}..{value['max']:,.0f})", f"{row['to_ours'][key]:.2f}"

    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    found, timed = [], []
    for row in rows:
        shown = (f"{row[key]:.4f}" + ("" if row["reached"] else " short") for key in ("coverage", "recall@100"))
        size = (f"{row['bytes_per_track']:.0f}", f"{row['to_ours']['bytes_per_track']:.1f}")
        below = f"{row['users_below_half']:.1%}"
        found.append(
            (row["name"], row["setting"], *shown, below, *size, *(seconds(row[f"build_{of}_s"]) for of in BUILD))
        )
        timed.append((row["name"], *(cell for key in TIMED for cell in spelled(row, key))))
    header = ("", "setting", "coverage", "recall@100", "users < .5", "B/track", "x", "build s", "cpu s")
    times = ("", "p50 us", "x", "p99 us", "x", "per s, 1 thread", "x", "2 threads", "x")
    return f"{table(header, found)}\n\n{table(times, timed)}"


if __name__ == "__main__":
    sys.exit(main())
