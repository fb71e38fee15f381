"""Whether requests have become slower: `make bench-compare`.

    python -m benchmarks.compare DATASET STORE --against BASELINE.json   # exit code 1 where slower beyond noise
    python -m benchmarks.compare DATASET STORE --out BASELINE.json       # a new baseline

Times do not compare between two machines, nor between two hours of one. What does is how far the request path is from
bare native calls that answer the same in the same seconds, on the same core: the ratios of `benchmarks.floor`. Each run
is a process of its own, as the place of code and tables in memory is drawn once a process; how far runs lie apart is
the noise. Work on other cores slows the request path more than the floor: it can make a ratio worse, never better.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.latency.results import Figures
from benchmarks.latency.verdict import MIN_REPEATS, SAME_MACHINE, WORSE, compare, report
from benchmarks.machine import MIN_CORE_SCALING
from lhydra import kernels
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import DataError, LhydraError, complain
from lhydra.files import read_json, write_text

SETTINGS = {"users": 500, "repeats": 3, "k": 100, "depth": 300, "seed": 0}  # of the floor
KEYS = "settings", "bundle", "machine", "versions", "spinning", "figures"
SLOWER, NO_VERDICT = 1, 2  # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """Measures some runs, and says what they are against a baseline.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0; SLOWER where a ratio is worse beyond noise; NO_VERDICT where nothing can be said, and after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--runs", type=int, default=5, help=f"{MIN_REPEATS} at least")
    parser.add_argument("--against", type=Path, metavar="JSON", help="what an earlier revision wrote with --out")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    if args.runs < MIN_REPEATS:
        print(complain("--runs", str(args.runs), f"{MIN_REPEATS} at least"), file=sys.stderr)
        return NO_VERDICT
    try:
        check_output("--out", args.out, is_json_with("benchmark", "spinning", "figures"))
        baseline = baseline_in(args.against) if args.against else None
        document = document_of([floor(args.dataset, args.store) for _ in range(args.runs)])
    except LhydraError as error:
        print(error, file=sys.stderr)
        return NO_VERDICT
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    if baseline is None:
        for name, figure in document["figures"].items():
            print(f"{name:9} x{figure['median']:.2f} ({figure['min']:.2f} to {figure['max']:.2f}) of the floor")
        return 0
    return said(baseline, document)


def said(baseline: Mapping[str, Any], document: Mapping[str, Any]) -> int:
    """Prints the verdict.

    Args:
        baseline: of an earlier revision.
        document: of this one.

    Returns:
        The exit code.
    """
    for part in ("settings", "bundle"):
        for name, was in baseline[part].items():
            if (now := document[part].get(name)) != was:
                print(f"NOT COMPARABLE: {part}: {name} was {was}, is {now}", file=sys.stderr)
                return NO_VERDICT
    if alone := sorted(set(baseline["figures"]) ^ set(document["figures"])):
        print(f"NOT COMPARABLE: figures: only one of both has {alone[0]}", file=sys.stderr)
        return NO_VERDICT
    verdicts = compare(baseline["figures"], document["figures"])
    print(report(verdicts, baseline["figures"], document["figures"]))
    for part, names in (("machine", SAME_MACHINE), ("versions", baseline["versions"])):
        for name in names:
            if (was := baseline[part].get(name)) != (now := document[part].get(name)):
                print(f"note: {part}: {name} was {was}, is {now}: ratios may differ for that alone")
    slower = [name for name, verdict in verdicts.items() if verdict.word == WORSE]
    if baseline["spinning"] < MIN_CORE_SCALING:
        print(f"note: the cores were not free during the baseline (x{baseline['spinning']:.2f}): it hides slowdowns")
    if slower and document["spinning"] < MIN_CORE_SCALING:
        how = f"the cores were not free (x{document['spinning']:.2f}), which alone makes ratios worse"
        print(f"NO VERDICT: {how}: {', '.join(slower)}", file=sys.stderr)
        return NO_VERDICT
    print(f"SLOWER beyond noise: {', '.join(slower)}" if slower else "not slower beyond noise")
    return SLOWER if slower else 0


def baseline_in(path: Path) -> dict[str, Any]:
    """Reads a baseline.

    Args:
        path: the file.

    Returns:
        The document.

    Raises:
        DataError: it is none.
    """
    expected = "a baseline of `python -m benchmarks.compare`"
    document = read_json(path, DataError, expected)
    if missing := [key for key in KEYS if key not in document]:
        raise DataError(complain(path, f"no {missing[0]}", expected))
    if not _says_something(document):
        raise DataError(complain(path, "parts of another kind", expected))
    return document


def _says_something(document: Mapping[str, Any]) -> bool:
    """Whether a baseline has what a verdict is made of: a NaN, or no figure at all, would call everything the same."""
    try:
        figures = document["figures"].values()
        numbers = [number for figure in figures for number in (*figure["values"], figure["median"])]
        return (
            all(isinstance(document[part], dict) for part in ("settings", "bundle", "machine", "versions"))
            and len(figures) > 0
            and all(len(figure["values"]) >= MIN_REPEATS and figure["better"] == "lower" for figure in figures)
            and all(0 < number < math.inf for number in (*numbers, document["spinning"]))
        )
    except (AttributeError, KeyError, TypeError):
        return False


def floor(dataset: Path, store: Path) -> dict[str, Any]:
    """Makes one run of the floor in a process of its own.

    Args:
        dataset: whose users are asked for.
        store: with them loaded.

    Returns:
        What the run wrote.

    Raises:
        DataError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "floor.json")
        flags = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
        words = [sys.executable, "-m", "benchmarks.floor", str(dataset), str(store), *flags, "--out", str(out)]
        ran = subprocess.run(words, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise DataError((ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1])
        return read_json(out, DataError, "a result of `benchmarks.floor`")


def document_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts runs together.

    Args:
        runs: what `benchmarks.floor` wrote, once a run.

    Returns:
        The document: a ratio per run for each stage that the floor has, the whole, and the processor.
    """
    last = runs[-1]
    ratios = {
        name: [round(run["floor"][name]["ratio"], 4) for run in runs]
        for name, row in last["floor"].items()
        if "ratio" in row
    }
    figures: Figures = {
        name: {
            "values": values,
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "better": "lower",
        }
        for name, values in ratios.items()
    }
    return {
        "benchmark": "compare",
        "settings": last["settings"] | {"runs": len(runs), "compiled": kernels.compiled is not None},
        "bundle": last["bundle"],
        "machine": last["machine"],
        "versions": last["versions"],
        "spinning": statistics.median(value for run in runs for value in run["spinning"].values()),
        "figures": figures,
    }


if __name__ == "__main__":
    sys.exit(main())
