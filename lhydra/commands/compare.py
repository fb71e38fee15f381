"""`lhydra compare`: did a change help? Two evaluations of one protocol, user by user."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra.commands.outputs import check_output, is_json_with

if TYPE_CHECKING:
    from lhydra.evaluation.compare import Comparison, PairedChange

HELP = "compare two evaluations of one protocol: B less A, with paired intervals"
EXTRA = "data"
METRICS = {"ndcg@10": "NDCG@10", "recall@20": "Recall@20"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra compare`.

    Args:
        parser: of the command.
    """
    parser.add_argument("a", type=Path, metavar="A.json", help="written by `lhydra evaluate --json`")
    parser.add_argument("b", type=Path, metavar="B.json", help="another, of the same dataset and settings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the differences to FILE")


def run(args: argparse.Namespace) -> int:
    """Prints the differences and writes the JSON file when asked for.

    Args:
        args: of the command line.

    Returns:
        0.
    """
    from lhydra.evaluation.compare import compare
    from lhydra.evaluation.document import read_document
    from lhydra.files import write_text

    check_output("--json", args.json, is_json_with("summary", "stages", "cohorts"))
    a, b = read_document(args.a), read_document(args.b)
    found = compare(a, b, (str(args.a), str(args.b)))
    if args.json is not None:  # before anything is printed: whoever reads that may stop reading
        write_text(args.json, json.dumps(found, indent=2, allow_nan=False) + "\n")
    show(found, (args.a, args.b))
    return 0


def show(found: "Comparison", paths: tuple[Path, Path]) -> None:
    """Prints the verdict, what A and B are, then stages and cohorts.

    Args:
        found: of `compare`.
        paths: of A and B.
    """
    from lhydra.commands.evaluate import number
    from lhydra.console import print_table

    print(*found["summary"], sep="\n")
    for letter, path in zip("AB", paths, strict=True):
        protocol = found["a" if letter == "A" else "b"]
        source = protocol.get("model") or protocol.get("store") or ""
        print(f"{letter}: {path}  {source} {protocol.get('bundle_id') or protocol.get('model_id') or ''}".rstrip())
    same = [stage for stage, measured in found["stages"].items() if all(map(unchanged, measured.values()))]
    rows = [
        [
            stage,
            text,
            number(own["a"]),
            number(own["b"]),
            signed(own["difference"]),
            f"{signed(own['low'])} to {signed(own['high'])}",
        ]
        for stage, measured in found["stages"].items()
        if stage not in same
        for own, text in ((measured[metric], text) for metric, text in METRICS.items())
    ]
    if rows:
        print_table(["", "metric", "A", "B", "B - A", "95 %"], rows, "Stages")
    if same:
        print(f"the same in both: {', '.join(same)}")
    rows = [
        [
            one["by"],
            one["name"],
            f"{one['users']:,}",
            signed(one["ndcg@10"]["difference"]),
            signed(one["recall@20"]["difference"]),
        ]
        for one in found["cohorts"]
    ]
    if rows:
        print_table(["by", "", "users", *METRICS.values()], rows, "Cohorts of users, cascade, B - A")


def unchanged(measured: "PairedChange") -> bool:
    """Whether a metric is the same for every user, as that of a baseline is.

    Args:
        measured: of a stage.

    Returns:
        True when difference and interval are 0.
    """
    return measured["difference"] == measured["low"] == measured["high"] == 0


def signed(value: float | None) -> str:
    """Writes a difference.

    Args:
        value: a difference.

    Returns:
        Sign and four digits, or `undefined`.
    """
    return "undefined" if value is None else f"{value:+.4f}"
