"""`lhydra train DATASET MODEL`."""

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra import config
from lhydra.console import progress
from lhydra.errors import ConfigError, complain
from lhydra.lines import say
from lhydra.numerals import whole_number
from lhydra.training.config import TrainSettings
from lhydra.training.progress import EpochDone, Progress, unreported

if TYPE_CHECKING:
    from lhydra.bundle.model import Quality

HELP = "train towers and head on a dataset and export the model"
EXTRA = "train"
SETTINGS = TrainSettings


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra train`.

    Args:
        parser: of the subcommand.
    """
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder made by `lhydra prepare`")
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder to write")
    parser.add_argument("--resume", action="store_true", help="continue the run whose checkpoint is in MODEL")
    parser.add_argument(
        "--warm", type=Path, metavar="MODEL", help="go on from a model trained before, for a quarter of a cycle"
    )
    parser.add_argument(
        "--refit", action="store_true", help="at the end, learn from the validation plays too; the head stays"
    )
    parser.add_argument(
        "--folds",
        type=whole_number,
        default=0,
        metavar="N",
        help="first cross-validate on N random parts of train and valid",
    )
    config.add_flags(parser, TrainSettings)


def run(args: argparse.Namespace) -> int:
    """Trains, reporting every epoch.

    Args:
        args: of `configure`.

    Returns:
        0.

    Raises:
        ConfigError: a setting is out of range.
    """
    settings = config.resolve("train", TrainSettings, args)
    from lhydra.data.dataset import Dataset
    from lhydra.training.train import train

    if args.folds < 0 or args.folds == 1:
        raise ConfigError(complain("--folds", str(args.folds), "at least 2, or 0 for none"))
    if args.folds and args.warm:
        raise ConfigError(complain("--folds", "--warm too", "one of them: the towers know plays of every part"))
    dataset = Dataset.open(args.dataset)
    settings = settings.resolved(dataset.plays)
    rank = int(os.environ.get("RANK", "0"))  # under torchrun one process speaks for all
    with progress(settings.epochs, "training", lines=False) as show:

        def report(done: Progress) -> None:
            if isinstance(done, EpochDone):
                show(done.epoch)
            say(done, sys.stderr)

        options = {"resume": args.resume, "refit": args.refit, "folds": args.folds, "warm": args.warm}
        info = train(dataset, args.model, settings, report=report if rank == 0 else unreported, **options)
    if rank:
        return 0
    for name in ("retrieval", "cascade"):
        measured = [fold["retrieval"] if name == "retrieval" else fold["cascade"] for fold in info.folds]
        if values := [metrics["ndcg@10"] for metrics in measured if metrics]:
            mean, spread = statistics.mean(values), statistics.pstdev(values)
            print(f"{len(values)} random folds: {name} NDCG@10 {mean:.4f} ± {spread:.4f}")
    print(outcome(info.quality))
    print(f"model {info.model_id} in {args.model}")
    print(f"next: lhydra index rebuild --model {args.model} --data {args.dataset} --store STORE")
    return 0


def outcome(quality: "Quality") -> str:
    """Says what was measured on the validation fold, and what could not be.

    Args:
        quality: of the trained model.

    Returns:
        A line.
    """
    if not quality.get("retrieval"):
        return "no validation plays new to their users: trained the whole schedule, nothing was tuned or calibrated"
    epoch, retrieval = quality["epoch"], quality["retrieval"]["ndcg@10"]
    if not quality.get("cascade"):
        return (
            f"best epoch {epoch}: validation NDCG@10 of retrieval {retrieval:.4f}, of one or two users; the head was "
            "fitted on them, neither cross-fitted nor calibrated: that takes three users with validation plays"
        )
    return (
        f"best epoch {epoch}: validation NDCG@10 {quality['cascade']['ndcg@10']:.4f} "
        f"(retrieval alone {retrieval:.4f}); the head was fitted on that fold, cross-fitted"
    )
