"""`lhydra compare`: did a change help? Two evaluations of one protocol, user by user."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lhydra.commands.figures import number, signed
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import complain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lhydra.evaluation.compare import Comparison, PairedChange
    from lhydra.evaluation.rolling.compare import RollingComparison

HELP = "compare two evaluations of one protocol: B less A, with paired intervals"
EXTRA = "data"
METRICS = {"ndcg@10": "NDCG@10", "recall@20": "Recall@20"}
ROLLING_METRICS = {"ndcg@10": "NDCG@10", "hr@20": "HitRate@20", "mrr": "MRR@20"}


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

    Raises:
        DataError: the two measured different things.
    """
    from lhydra.errors import DataError
    from lhydra.evaluation.compare import compare
    from lhydra.evaluation.document import WRITTEN_BY, read_document
    from lhydra.evaluation.rolling.compare import compare_rolling
    from lhydra.evaluation.rolling.document import read_rolling
    from lhydra.files import read_json, write_text

    check_output("--json", args.json, is_own)
    names = (str(args.a), str(args.b))
    for path in (args.a, args.b):
        if not path.exists():
            raise DataError(complain(path, "no such file", WRITTEN_BY))
    kinds = [kind_of(read_json(path, DataError, WRITTEN_BY)) for path in (args.a, args.b)]
    if len(set(kinds)) > 1:
        raise DataError(complain(names[1], f"a {kinds[1]} evaluation", f"a {kinds[0]} one, as {names[0]} is"))
    found: Comparison | RollingComparison
    if kinds[0] == "rolling":
        found = rolling = compare_rolling(read_rolling(args.a), read_rolling(args.b), names)
    else:
        found = static = compare(read_document(args.a), read_document(args.b), names)
    if args.json is not None:  # before anything is printed: whoever reads that may stop reading
        write_text(args.json, json.dumps(found, indent=2, allow_nan=False) + "\n")
    if kinds[0] == "rolling":
        show_rolling(rolling, (args.a, args.b))
    else:
        show(static, (args.a, args.b))
    return 0


def is_own(content: bytes) -> bool:
    """Whether a file holds what this command writes.

    Args:
        content: of the file.

    Returns:
        True for either kind of comparison.
    """
    return any(is_json_with("a", "b", "summary", key)(content) for key in ("stages", "figures"))


def kind_of(document: "Mapping[str, Any]") -> str:
    """Tells what wrote a document.

    Args:
        document: a JSON object.

    Returns:
        `rolling`, or `static`.
    """
    return "rolling" if str(document.get("format")).startswith("rolling") else "static"


def show_rolling(found: "RollingComparison", paths: tuple[Path, Path]) -> None:
    """Prints the verdicts, what A and B are, then each figure.

    Args:
        found: of `compare_rolling`.
        paths: of A and B.
    """
    from lhydra.console import print_table

    print(*found["summary"], sep="\n")
    show_sources(found["a"], found["b"], paths)
    metric = "hr@20" if found["a"]["protocol"] == "next-track" else "ndcg@10"
    metrics = [metric, *(one for one in ROLLING_METRICS if one != metric)]
    for figure, scorers in found["figures"].items():
        same = [name for name, measured in scorers.items() if all(map(unchanged, measured.values()))]
        rows = [
            [name, ROLLING_METRICS[metric], *changes(measured[metric])]
            for name, measured in scorers.items()
            if name not in same
            for metric in metrics
        ]
        if rows:
            print_table(["", "metric", "A", "B", "B - A", "95 %"], rows, figure.capitalize())
        if same:
            print(f"{figure}, the same in both: {', '.join(same)}")


def show_sources(a: "Mapping[str, Any]", b: "Mapping[str, Any]", paths: tuple[Path, Path]) -> None:
    """Prints what A and B are.

    Args:
        a: the protocol of A.
        b: that of B.
        paths: of both.
    """
    for letter, path, protocol in zip("AB", paths, (a, b), strict=True):
        source = protocol.get("model") or protocol.get("store") or ""
        print(f"{letter}: {path}  {source} {protocol.get('bundle_id') or protocol.get('model_id') or ''}".rstrip())


def changes(own: "PairedChange") -> list[str]:
    """Writes the cells of a metric.

    Args:
        own: of a stage or scorer.

    Returns:
        A, B, the difference and its interval.
    """
    from lhydra.evaluation.bootstrap import span

    return [number(own["a"]), number(own["b"]), signed(own["difference"]), span(own["low"], own["high"])]


def show(found: "Comparison", paths: tuple[Path, Path]) -> None:
    """Prints the verdict, what A and B are, then stages and cohorts.

    Args:
        found: of `compare`.
        paths: of A and B.
    """
    from lhydra.console import print_table

    print(*found["summary"], sep="\n")
    show_sources(found["a"], found["b"], paths)
    same = [stage for stage, measured in found["stages"].items() if all(map(unchanged, measured.values()))]
    rows = [
        [stage, text, *changes(own)]
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
