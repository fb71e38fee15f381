"""`lhydra index rebuild | list | verify | rollback`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lhydra import config
from lhydra.errors import BundleMissing, complain
from lhydra_index_builder.config import RebuildConfig

HELP = "rebuild the index and publish a bundle; list, verify and roll back bundles"
EXTRA = "index"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `lhydra index`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    rebuild = actions.add_parser("rebuild", help="embed all tracks, build the index, prove it, publish it")
    rebuild.add_argument("--model", type=Path, required=True, help="folder made by `lhydra train`")
    rebuild.add_argument("--data", type=Path, required=True, metavar="DATASET", help="whose tracks are embedded")
    config.add_flags(rebuild, RebuildConfig)
    listing = actions.add_parser("list", help="the bundles of a store, newest first")
    verify = actions.add_parser("verify", help="check every file of a bundle and re-run its golden users")
    verify.add_argument("bundle", nargs="?", metavar="ID", help="default: the current one")
    rollback = actions.add_parser("rollback", help="make an older bundle the current one")
    rollback.add_argument("bundle", nargs="?", metavar="ID", help="default: the one before the current")
    for action in (rebuild, listing, verify, rollback):
        action.add_argument("--store", type=Path, required=True, help="where bundles are published")
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Does one action; returns 0."""
    return {"rebuild": _rebuild, "list": _list, "verify": _verify, "rollback": _rollback}[args.action](args)


def _rebuild(args: argparse.Namespace) -> int:
    settings = config.resolve("index", RebuildConfig, args)
    from lhydra.data.dataset import Dataset
    from lhydra_index_builder.build import rebuild

    dataset = Dataset.open(args.data)
    with _Progress(len(dataset.track_ids)) as progress:
        built = rebuild(args.model, dataset, args.store, settings, progress.report)
    if args.json:
        print(json.dumps(asdict(built.manifest)))
        return 0
    manifest = built.manifest
    recall = ", ".join(f"{name} {value:.4f}" for name, value in manifest.recall.items())
    print(f"published {built.bundle_id}: {manifest.n_tracks:,} tracks, recipe {manifest.recipe}, {recall}")
    print(f"next: lhydra users load {args.data} --store {args.store}, then: lhydra serve {args.store}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from lhydra_index_builder.store import entries

    found = entries(args.store)
    if args.json:
        rows = [{"bundle_id": e.bundle_id, "state": e.state, "manifest": e.manifest} for e in found]
        print(json.dumps(rows, default=asdict))
        return 0
    if not found:
        raise BundleMissing(complain(args.store, "no bundles", "a store that `lhydra index rebuild` has published to"))
    print(
        f"{'bundle':<26} {'state':<9} {'created':<26} {'tracks':>10}  {'recipe':<14} {'recall@100':>10} {'ndcg@10':>8}"
    )
    for entry in found:
        manifest = entry.manifest
        if manifest is None:
            print(f"{entry.bundle_id:<26} {entry.state:<9}")
            continue
        recall, quality = manifest.recall.get("recall@100"), manifest.quality.get("cascade ndcg@10")
        print(
            f"{entry.bundle_id:<26} {entry.state:<9} {manifest.created:<26} {manifest.n_tracks:>10,}  "
            f"{manifest.recipe:<14} {_number(recall):>10} {_number(quality):>8}"
        )
    return 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _verify(args: argparse.Namespace) -> int:
    from lhydra.bundle import Bundle, current_bundle_id

    bundle_id = args.bundle or current_bundle_id(args.store)
    manifest = Bundle.open(args.store, bundle_id).manifest
    assert manifest is not None  # opened from a folder
    if args.json:
        print(json.dumps({"bundle_id": bundle_id, "sound": True, "files": len(manifest.files)}))
    else:
        print(f"{bundle_id} is sound: {len(manifest.files)} files, {manifest.n_tracks:,} tracks, golden users agree")
    return 0


def _rollback(args: argparse.Namespace) -> int:
    from lhydra_index_builder.store import rollback

    bundle_id = rollback(args.store, args.bundle)
    print(json.dumps({"bundle_id": bundle_id}) if args.json else f"{bundle_id} is current")
    return 0


class _Progress:
    """A bar on a terminal, nothing otherwise."""

    def __init__(self, total: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("embedding tracks", total=total)

    def __enter__(self) -> "_Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def report(self, rows: int) -> None:
        """Shows that `rows` tracks are embedded."""
        if self._bar:
            self._bar.update(self._task, completed=rows)
