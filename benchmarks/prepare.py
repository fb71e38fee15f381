"""What reading a log costs: `python -m benchmarks.prepare WORK --gb 1 --repeats 3 --out FILE.json`.

A CSV of plays of the size asked for is made in WORK. Then, by turns, DuckDB copies it to Parquet (`COPY (SELECT * FROM
read_csv(...)) TO ...`, every cell parsed, nothing checked) and `lhydra prepare` makes a dataset of it. Told are the
medians of the seconds by the clock, of processor seconds, the largest resident set, and the ratios to the copy: of the
whole command, and of its reading alone (the steps `open` and `read`, after which every row lies in DuckDB).
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.machine import machine, versions
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError
from lhydra.files import write_text

_STEP = re.compile(r"prepare\.(open|read) took_ms=([0-9.]+)")
_COPY = """import duckdb, sys
duckdb.execute("SET memory_limit = '2GB'")
duckdb.execute(f"COPY (SELECT * FROM read_csv('{sys.argv[1]}')) TO '{sys.argv[2]}' (FORMAT parquet)")
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the log, reads it in both ways, prints what that cost and writes it.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--gb", type=float, default=1.0, help="size of the CSV in GB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "ratio"))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    args.work.mkdir(parents=True, exist_ok=True)
    source = args.work / "plays.csv"
    rows = write_log(source, int(args.gb * 1e9), args.seed)
    lhydra = [sys.executable, "-m", "lhydra.cli", "--log-level", "info"]
    ways = {
        "copy": [sys.executable, "-c", _COPY, source, args.work / "copy.parquet"],
        "prepare": [*lhydra, "prepare", source, args.work / "dataset"],
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, words in ways.items():
            runs[name].append(run([str(word) for word in words]))
    medians = {
        name: {key: round(statistics.median(one[key] for one in found), 2) for key in found[0]}
        for name, found in runs.items()
    }
    ratios = {
        key: [round(b[key] / a["wall_s"], 2) for a, b in zip(runs["copy"], runs["prepare"], strict=True)]
        for key in ("wall_s", "read_s")
    }
    document = {
        "benchmark": "prepare",
        "command": f"python -m benchmarks.prepare WORK --gb {args.gb:g} --repeats {args.repeats} --seed {args.seed}",
        "bytes": source.stat().st_size,
        "rows": rows,
        "seed": args.seed,
        "machine": machine(),
        "versions": versions() | {"duckdb": duckdb.__version__},
        "medians": medians,
        "ratio": {key: {"median": statistics.median(values), "pairs": values} for key, values in ratios.items()},
    }
    print(json.dumps(document, indent=2))
    if args.out:
        write_text(args.out, json.dumps(document, indent=2) + "\n")
    return 0


def write_log(path: Path, size: int, seed: int) -> int:
    """Writes a CSV of plays with ids, counts, times and artists.

    Args:
        path: the file.
        size: about how many bytes.
        seed: of the draws.

    Returns:
        How many rows it has.
    """
    rows = size // 52  # bytes of a row
    with duckdb.connect() as con:
        con.execute("SET threads = 1")  # else the draws depend on who comes first
        con.execute(f"SELECT setseed({(seed % 1000) / 1000})")
        con.execute(
            f"""COPY (SELECT 'user' || CAST(floor(pow(random(), 2) * 200000) AS INT) AS user_id,
                't' || track AS track_id, 1 AS playcount,
                1500000000 + CAST(floor(random() * 1e8) AS BIGINT) AS timestamp,
                'Artist number ' || (track % 20000) AS artist
                FROM (SELECT CAST(floor(pow(random(), 3) * 500000) AS INT) AS track FROM range({rows})))
                TO '{path}' (FORMAT csv, HEADER)"""
        )
    return rows


def run(words: list[str]) -> dict[str, float]:
    """Runs a program and waits for it.

    Args:
        words: its command line.

    Returns:
        wall_s, cpu_s, read_s (seconds of reading that it logs, 0 where it logs none), and rss_gb, its largest set.

    Raises:
        RuntimeError: it failed; the message is what it wrote.
    """
    started = time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        logged = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(logged)
    found: dict[str, Any] = {
        "wall_s": time.monotonic() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "read_s": sum(float(ms) for _, ms in _STEP.findall(logged)) / 1000,
        "rss_gb": usage.ru_maxrss / 1e6,
    }
    return found


if __name__ == "__main__":
    sys.exit(main())
