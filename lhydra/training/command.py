"""`lhydra train DATASET MODEL`."""

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from lhydra import config
from lhydra.errors import ConfigError, complain
from lhydra.training.config import TrainSettings

HELP = "train towers and head on a dataset and export the model"
EXTRA = "train"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra train`."""
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder made by `lhydra prepare`")
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder to write")
    parser.add_argument("--resume", action="store_true", help="continue the run whose checkpoint is in MODEL")
    parser.add_argument(
        "--refit", action="store_true", help="at the end, learn from the validation plays too; the head stays"
    )
    parser.add_argument(
        "--folds", type=int, default=0, metavar="N", help="first cross-validate on N random parts of train and valid"
    )
    config.add_flags(parser, TrainSettings)


def run(args: argparse.Namespace) -> int:
    """Trains, reporting every epoch; returns 0."""
    settings = config.resolve("train", TrainSettings, args)
    from lhydra.data.dataset import Dataset
    from lhydra.training.train import train

    if args.folds < 0 or args.folds == 1:
        raise ConfigError(complain("--folds", str(args.folds), "at least 2, or 0 for none"))
    dataset = Dataset.open(args.dataset)
    rank = int(os.environ.get("RANK", "0"))  # under torchrun one process speaks for all
    with _Progress(settings.epochs) as progress:
        report = progress.report if rank == 0 else lambda line: None
        options = {"resume": args.resume, "refit": args.refit, "folds": args.folds}
        info = train(dataset, args.model, settings, report=report, **options)
    if rank:
        return 0
    for name in ("retrieval", "cascade") if info.get("folds") else ():
        values = [fold[name]["ndcg@10"] for fold in info["folds"] if fold[name]]
        if values:
            mean, spread = statistics.mean(values), statistics.pstdev(values)
            print(f"{len(values)} random folds: {name} NDCG@10 {mean:.4f} ± {spread:.4f}")
    best = info["quality"]
    if best.get("cascade"):
        print(
            f"best epoch {best['epoch']}: validation NDCG@10 {best['cascade']['ndcg@10']:.4f} "
            f"(retrieval alone {best['retrieval']['ndcg@10']:.4f}); the head was fitted on that fold, cross-fitted"
        )
    else:
        print("no validation plays: trained the whole schedule, nothing was tuned or calibrated")
    print(f"model {info['model_id']} in {args.model}")
    print(f"next: lhydra index rebuild --model {args.model} --data {args.dataset} --store STORE")
    return 0


class _Progress:
    """One line per epoch; on a terminal a bar below them with the time left."""

    def __init__(self, epochs: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("training", total=epochs)

    def __enter__(self) -> "_Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def report(self, line: dict[str, Any]) -> None:
        """Shows what an epoch, a short run of the temperature search, a teacher or the head gave."""
        if "teacher" in line:
            text = f"teacher {line['teacher']} {', '.join(f'{value:g}' for value in line['setting'])}"
            text += f": NDCG@10 {line['ndcg@10']:.4f}" if line.get("ndcg@10") else ""
        elif "tried_temperature" in line:
            text = f"temperature {line['tried_temperature']:.2f}: retrieval NDCG@10 {line['retrieval']['ndcg@10']:.4f}"
        elif "refit" in line:
            text = f"refit {line['refit']}/{line['epochs']}  loss {line['retrieval_loss']:.4f}  {line['took_s']:.1f} s"
        elif "head_part" in line:
            text = f"head: cross-fitted on part {line['head_part']} of {line['parts']}"
        elif "head_epochs" in line:
            text = f"head: {line['head_epochs']} epochs, strength {line['strength']:g}"
            if line.get("cascade"):
                text += f"  NDCG@10 {line['cascade']['ndcg@10']:.4f}  Recall@20 {line['cascade']['recall@20']:.4f}"
        else:
            loss = f"{line['retrieval_loss']:.4f} + {line['distillation_loss']:.4f}"
            text = f"epoch {line['epoch']:>3}/{line['epochs']}  loss {loss}"
            if "retrieval" in line:
                text += f"  NDCG@10 {line['retrieval']['ndcg@10']:.4f}  Recall@20 {line['retrieval']['recall@20']:.4f}"
            text += f"  {line['took_s']:.1f} s" + ("  best" if line["best"] else "")
            if self._bar:
                self._bar.update(self._task, completed=line["epoch"])
        if "fold" in line:
            text = f"fold {line['fold'] + 1}: {text}"
        if self._bar:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
