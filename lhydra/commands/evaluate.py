"""`lhydra evaluate`: how good are retrieval, the served lists and the head, on plays that were held out."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lhydra import config
from lhydra.errors import ConfigError, complain

if TYPE_CHECKING:
    from lhydra.bundle import Bundle
    from lhydra.data.dataset import Dataset
    from lhydra.evaluation.evaluate import Evaluation, Moment

HELP = "measure ranking quality on the held-out plays of a dataset, over the full catalogue"
EXTRA = "index"
MAX_K = 1000
NAMES = {"recall": "Recall", "ndcg": "NDCG", "map": "MAP", "hr": "HitRate", "coverage": "Coverage"}
HEAD_NAMES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auc": "AUC",
    "log_loss": "log loss",
}


@dataclass(frozen=True)
class EvaluateSettings:
    """What is measured."""

    as_of: str = config.setting(
        "test", "the fold to predict; test: train and valid tracks are left out, valid: train", ("test", "valid")
    )
    k: str = config.setting("10,20", "list lengths, separated by commas")
    users: int = config.setting(0, "how many users to draw at random, 0 for all who have targets")
    seed: int = config.setting(0, "seed of that draw and of the negatives")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra evaluate`."""
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="made by `lhydra prepare`")
    parser.add_argument("--model", type=Path, metavar="MODEL", help="made by `lhydra train`; searched exactly")
    parser.add_argument("--store", type=Path, metavar="STORE", help="the current bundle, as it is served")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number and the protocol to FILE")
    config.add_flags(parser, EvaluateSettings)


def run(args: argparse.Namespace) -> int:
    """Prints the tables and writes the JSON file when asked for."""
    from lhydra.data.dataset import Dataset
    from lhydra.evaluation.evaluate import evaluate
    from lhydra.recommender import Recommender

    settings = config.resolve("evaluate", EvaluateSettings, args)
    ks = list_lengths(settings.k)
    for flag, value in (("--users", settings.users), ("--seed", settings.seed)):
        if value < 0:
            raise ConfigError(complain(flag, value, "0 or more"))
    if (args.model is None) == (args.store is None):
        raise ConfigError(complain("--model, --store", "neither" if args.model is None else "both", "one of the two"))
    if args.json is not None and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise ConfigError(complain("--json", str(args.json), "a file in a folder that exists"))
    dataset = Dataset.open(args.dataset)
    with opened(args.model, args.store, dataset) as (bundle, names):
        evaluation = evaluate(
            Recommender(bundle),
            dataset,
            as_of=cast("Moment", settings.as_of),
            ks=ks,
            users=settings.users,
            seed=settings.seed,
        )
        show(bundle.bundle_id, evaluation, ks)
    if args.json is not None:
        document = evaluation.to_json()
        document["protocol"] = {"dataset": str(args.dataset), **names, **document["protocol"]}
        write_json(args.json, document)
    return 0


@contextmanager
def opened(
    model: Path | None, store: Path | None, dataset: "Dataset"
) -> Iterator[tuple["Bundle", dict[str, str | None]]]:
    """Gives what to evaluate and its names for the protocol; a model is searched exactly over the dataset's tracks."""
    from lhydra.bundle import Bundle
    from lhydra.embedding import unpublished_bundle
    from lhydra.model import Model

    if store is not None:
        bundle = Bundle.open(store)
        model_id = bundle.manifest.model_id if bundle.manifest else None
        yield bundle, {"store": str(store), "bundle_id": bundle.bundle_id, "model_id": model_id}
    elif model is not None:
        with tempfile.TemporaryDirectory(prefix="lhydra-") as folder:
            bundle = unpublished_bundle(Model.open(model), dataset, Path(folder))
            yield bundle, {"model": str(model), "bundle_id": None, "model_id": bundle.bundle_id}


def list_lengths(text: str) -> tuple[int, ...]:
    """Returns the distinct lengths of `--k`, ascending. Raises ConfigError on anything but numbers in range."""
    try:
        ks = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        ks = ()
    if not ks or ks[0] < 1 or ks[-1] > MAX_K:
        raise ConfigError(complain("--k", text, f"numbers from 1 to {MAX_K}, separated by commas"))
    return ks


def show(name: str, evaluation: "Evaluation", ks: Sequence[int]) -> None:
    """Prints the ranking table and, after it, the head as a classifier."""
    counts, protocol = evaluation.counts, evaluation.protocol
    print(f"{name} on the {protocol['as_of']} fold: {counts['users']:,} users,", end=" ")
    print(f"{counts['targets']:,} targets among {counts['catalogue']:,} tracks")
    if counts["targets_not_in_catalogue"]:
        print(f"{counts['targets_not_in_catalogue']:,} targets are not in the catalogue and count as missed")
    if counts["heard_before"]:
        print(f"{counts['heard_before']:,} plays of tracks heard before are no targets")
    if counts["users_without_list"]:
        print(f"{counts['users_without_list']:,} users got no list and score 0")

    labels = {f"{name}@{k}": f"{NAMES[name]}@{k}" for k in ks for name in NAMES}
    labels["mrr"] = f"MRR@{protocol['mrr_depth']}"
    stages = evaluation.ranking
    rows = [[label, *(f"{stages[stage][metric]:.4f}" for stage in stages)] for metric, label in labels.items()]
    print_table("Ranking", ["", *stages], rows)

    head = asdict(evaluation.head)
    values = ["undefined" if head[name] is None else f"{head[name]:.4f}" for name in HEAD_NAMES]
    print_table("Secondary: the head as a classifier", list(HEAD_NAMES.values()), [values])
    print(f"{head['pairs']:,} pairs, positive from probability 0.5 up; negatives: {protocol['negatives']}")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: with rich on a terminal, in plain aligned columns otherwise."""
    print(f"\n{title}")
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for n, name in enumerate(header):
            table.add_column(name, justify="right" if n else "left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(line[n]) for line in (header, *rows)) for n in range(len(header))]
    for line in (header, *rows):
        print(
            f"{line[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)),
            sep="  ",
        )


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes `document` to `path`, whole or not at all."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        hidden.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
