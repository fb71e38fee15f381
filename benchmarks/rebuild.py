"""What a rebuild costs by size: `python -m benchmarks.rebuild WORK --sizes 10k,100k,1m --out FILE.json`.

Per size: a synthetic world far larger than its plays, a model trained on the tracks that were played, then, each in a
process of its own, two rebuilds (the second is gated against the first), `index add` of 1,000 tracks, `index remove`
of 100, `index rollback`. Worlds and models are kept in WORK and used again. Peak memory is that of the builder and its
processes together, shared pages counted once (PSS, from the kernel), mapped files included.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.environment import untuned_blas
from benchmarks.machine import machine, versions
from benchmarks.processes import memory_bytes, process_tree
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError
from lhydra.files import write_text

# users, tracks, plays
SIZES = {
    "10k": (2_000, 10_000, 200_000),
    "100k": (10_000, 100_000, 1_000_000),
    "1m": (20_000, 1_000_000, 2_000_000),
    "10m": (20_000, 10_000_000, 2_000_000),
}
TRAIN = ("--dim", "64", "--hidden", "64", "--epochs", "2", "--head-epochs", "1", "--threads", "1")
ADDED, REMOVED = 1_000, 100
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """What one command took: seconds of the clock and of all cores, bytes of memory at the highest, its own steps."""

    command: str
    wall_s: float
    cpu_s: float
    peak_pss: int  # of the process and all it started, together
    peak_rss: int  # of the largest of them
    steps_s: dict[str, float]
    refused: str = ""  # why, where the store let no change through: what the rebuild before it took still counts


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and writes the JSON.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 when a command failed, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for worlds, models and stores")
    parser.add_argument("--sizes", default="10k,100k,1m", help=f"some of {','.join(SIZES)}")
    parser.add_argument("--rebuilds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "growth"))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for size in args.sizes.split(","):
        try:
            rows.append(measure(args.work, size, args.rebuilds))
        except subprocess.CalledProcessError as error:
            print(
                f"{size}: {' '.join(error.cmd[:4])} … failed: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr
            )
            return 1
        show(rows[-1])
    document = {
        "benchmark": "rebuild",
        "command": f"python -m benchmarks.rebuild WORK --sizes {args.sizes} --rebuilds {args.rebuilds}",
        "sizes": {size: dict(zip(("users", "tracks", "plays"), SIZES[size], strict=True)) for size in SIZES},
        "train": " ".join(TRAIN),
        "seed": 0,
        "machine": machine(),
        "versions": versions(),
        "results": rows,
        "growth": growth([row for row in rows if row["tracks"] >= 100_000]),
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(f"growth exponents from 100 k on: {document['growth']}")
    return 0


def measure(work: Path, size: str, rebuilds: int) -> dict[str, Any]:
    """Returns what the commands cost at one size.

    Args:
        work: folder for worlds, models and stores.
        size: a key of SIZES.
        rebuilds: how many.

    Returns:
        Numbers by name, as the JSON has them.
    """
    dataset, model, store = make(work, size)
    shutil.rmtree(store, ignore_errors=True)
    place = ["--store", str(store)]
    costs = [run(["index", "rebuild", "--model", str(model), "--data", str(dataset), *place]) for _ in range(rebuilds)]
    manifest = Manifest.read(store / current_bundle_id(store))
    some = pq.read_table(dataset / "tracks.parquet", columns=["track_id"])["track_id"][:REMOVED].to_pylist()
    for change in (["add", str(new_tracks(dataset, work / f"new-{size}.parquet"))], ["remove", *some], ["rollback"]):
        costs.append(run(["index", *change, *place], may_be_refused=True))
    Bundle.open(store)
    return {
        "size": size,
        "tracks": manifest.n_tracks,
        "dim": manifest.dim,
        "recipe": manifest.recipe,
        "point": manifest.point,
        "recall": manifest.recall,
        "depth": manifest.depth,
        "cascade_users": manifest.cascade["users"],
        "index_bytes_per_track": round(manifest.files["index.faiss"]["bytes"] / manifest.n_tracks, 1),
        "bundle_bytes_per_track": round(sum(f["bytes"] for f in manifest.files.values()) / manifest.n_tracks, 1),
        "verdict": manifest.gate["verdict"],
        "costs": [asdict(cost) for cost in costs],
    }


def make(work: Path, size: str) -> tuple[Path, Path, Path]:
    """Makes dataset and model of a size where they are not there yet.

    Args:
        work: folder for worlds, models and stores.
        size: a key of SIZES.

    Returns:
        The folders of dataset, model and store.
    """
    users, tracks, plays = SIZES[size]
    world, dataset, played, few, model = (work / f"{name}{size}" for name in ("w", "d", "p", "dp", "m"))
    if not (dataset / "dataset.json").exists():
        sizes = ["--users", str(users), "--tracks", str(tracks), "--plays", str(plays)]
        lhydra(["synth", str(world), *sizes, "--seed", "0"])
        lhydra(["prepare", str(world), str(dataset)])
    if not (model / "model.json").exists():
        only_played(world, played)
        lhydra(["prepare", str(played), str(few)])
        lhydra(["train", str(few), str(model), *TRAIN])
    return dataset, model, work / f"s{size}"


def only_played(world: Path, out: Path) -> None:
    """Writes the world without the tracks that nobody plays: what a model can learn from.

    Args:
        world: folder of a source.
        out: folder to write.
    """
    out.mkdir(exist_ok=True)
    ids = pc.unique(pq.read_table(world / "plays.parquet", columns=["track_id"])["track_id"])
    source = world / "tracks.parquet"
    with pq.ParquetFile(source) as file, pq.ParquetWriter(out / "tracks.parquet", file.schema_arrow) as writer:
        for batch in file.iter_batches(1 << 16):
            table = pa.Table.from_batches([batch])
            writer.write_table(table.filter(pc.is_in(table["track_id"], ids)))
    for name in ("plays", "users"):
        shutil.copyfile(world / f"{name}.parquet", out / f"{name}.parquet")


def new_tracks(dataset: Path, out: Path) -> Path:
    """Writes ADDED tracks with content of tracks there are and ids of their own, spread over the order of ids.

    Args:
        dataset: folder with the tracks.
        out: Parquet file to write.

    Returns:
        `out`.
    """
    with pq.ParquetFile(dataset / "tracks.parquet") as file:
        table = file.read_row_group(0).slice(0, ADDED)
    step = max(1, pq.read_metadata(dataset / "tracks.parquet").num_rows // ADDED)
    ids = pa.array([f"T{i * step:07d}-new" for i in range(table.num_rows)])
    kept = table.drop_columns([name for name in table.column_names if name.startswith("train_")])
    pq.write_table(kept.set_column(0, "track_id", ids), out)
    return out


def lhydra(words: list[str]) -> None:
    """Runs a command whose cost is not counted.

    Args:
        words: after `lhydra`.
    """
    subprocess.run([sys.executable, "-m", "lhydra.cli", *words], check=True, capture_output=True, text=True)


def run(words: list[str], *, may_be_refused: bool = False) -> Cost:
    """Runs one command.

    Args:
        words: after `lhydra`.
        may_be_refused: whether exit code 1 is told, not raised.

    Returns:
        What it took.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "lhydra.cli", "--log-level", "info", *words]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peaks, stop = [0, 0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks, stop))
    watcher.start()
    out, err = process.communicate()
    wall_s = time.monotonic() - started
    stop.set()
    watcher.join()
    if process.returncode and not (may_be_refused and process.returncode == 1):
        raise subprocess.CalledProcessError(process.returncode, command[3:], out, err)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    steps: dict[str, float] = {}
    for line in err.splitlines():
        if " took_ms=" in line:
            name, took = line.split()[-2], float(line.rpartition("=")[2])
            steps[name] = round(steps.get(name, 0.0) + took / 1000, 2)
    refused = err.strip().splitlines()[-1] if process.returncode else ""
    return Cost(" ".join(words[:2]), round(wall_s, 2), round(cpu_s, 2), peaks[0], peaks[1], steps, refused)


def _watch(pid: int, peaks: list[int], stop: threading.Event) -> None:
    took_s = 0.0
    while not stop.wait(max(0.1, 30 * took_s)):  # the kernel walks every page: looking must not slow what is looked at
        started = time.monotonic()
        sizes = [memory_bytes(one) for one in process_tree(pid)]
        peaks[0] = max(peaks[0], sum(size["pss"] for size in sizes))
        peaks[1] = max(peaks[1], *(size["rss"] for size in sizes))
        took_s = time.monotonic() - started


def growth(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns the exponents e of n^e between the smallest and the largest catalogue, of the last rebuild.

    Args:
        rows: from `measure`, by size.

    Returns:
        Exponents by cost; none for fewer than two sizes.
    """
    if len(rows) < 2:
        return {}
    first, last = rows[0], rows[-1]
    ratio = math.log(last["tracks"] / first["tracks"])

    def exponent(key: str) -> float:
        a, b = ([cost for cost in row["costs"] if cost["command"] == "index rebuild"][-1][key] for row in (first, last))
        return round(math.log(b / a) / ratio, 3)

    return {key: exponent(key) for key in ("wall_s", "cpu_s", "peak_pss", "peak_rss")}


def show(row: dict[str, Any]) -> None:
    """Prints one size.

    Args:
        row: from `measure`.
    """
    print(
        f"{row['size']}: {row['recipe']} {row['point']}, coverage {row['recall']['coverage']:.4f}, depth {row['depth']}"
        f", index {row['index_bytes_per_track']} B/track, bundle {row['bundle_bytes_per_track']} B/track"
    )
    for cost in row["costs"]:
        print(
            f"  {cost['command']:<15} wall {cost['wall_s']:8.2f} s  cpu {cost['cpu_s']:8.2f} s  "
            f"peak PSS {cost['peak_pss'] / GIB:5.2f} GiB  largest RSS {cost['peak_rss'] / GIB:5.2f} GiB"
            f"{'  ' * bool(cost['refused'])}{cost['refused']}"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    untuned_blas()
    sys.exit(main())
