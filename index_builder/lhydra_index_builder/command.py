"""`lhydra index rebuild | add | remove | list | verify | sign | diff | rollback`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra import config
from lhydra.commands.ids import read_ids
from lhydra.console import print_table
from lhydra.errors import BundleMissing, UsageError, complain
from lhydra.lines import say
from lhydra.numerals import whole_number
from lhydra_index_builder.config import GATE, RebuildSettings

if TYPE_CHECKING:
    from lhydra_index_builder.build import Built, Log

HELP = "rebuild the index and publish a bundle; add and remove tracks; list, verify, sign, compare, roll back bundles"
EXTRA = "index"
SETTINGS = RebuildSettings


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `lhydra index`.

    Args:
        parser: of the command.
    """
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    rebuild = actions.add_parser("rebuild", help="embed all tracks, build the index, prove it, publish it")
    rebuild.add_argument("--model", type=Path, required=True, help="folder made by `lhydra train`")
    rebuild.add_argument("--data", type=Path, required=True, metavar="DATASET", help="whose tracks are embedded")
    config.add_flags(rebuild, RebuildSettings)
    add = actions.add_parser("add", help="make new tracks retrievable: without training, without a rebuild")
    add.add_argument(
        "tracks", type=Path, metavar="TRACKS", help="a CSV, JSON or Parquet file with track_id and what is known"
    )
    remove = actions.add_parser("remove", help="never return these tracks again")
    remove.add_argument("ids", nargs="*", metavar="ID", help="track ids")
    remove.add_argument("--from", dest="ids_from", type=Path, metavar="FILE", help="a file with an id per line")
    for action in (add, remove):
        action.add_argument("--users", metavar="URL", help="whose lists the gate compares (default: STORE/users.lmdb)")
        config.add_flags(action, RebuildSettings, (*GATE, "threads", "max_memory_gib"))
    listing = actions.add_parser("list", help="the bundles of a store, newest first")
    verify = actions.add_parser("verify", help="check every file of a bundle and re-run its golden users")
    verify.add_argument("bundle", nargs="?", metavar="ID", help="default: the current one")
    sign = actions.add_parser("sign", help="check every file of a bundle, and sign its manifest")
    sign.add_argument("bundle", nargs="?", metavar="ID", help="default: the current one")
    sign.add_argument(
        "--sign-key", type=Path, required=True, metavar="F", help="private Ed25519 key, PEM, without a password"
    )
    diff = actions.add_parser("diff", help="what would change for listeners between two bundles")
    diff.add_argument("a", metavar="A", help="the bundle before: an id, current or previous")
    diff.add_argument("b", metavar="B", help="the bundle after: an id, current or previous")
    diff.add_argument("--data", type=Path, metavar="DATASET", help="ask for users of a prepared dataset, as of now")
    diff.add_argument(
        "--requests", type=Path, metavar="FILE", help="ask recorded requests: JSON lines, or an answer log"
    )
    diff.add_argument("--users", metavar="URL", help="ask for users of this user store (default: STORE/users.lmdb)")
    diff.add_argument(
        "--sample", type=whole_number, default=500, metavar="N", help="users or requests at most (default: 500)"
    )
    diff.add_argument("--k", type=whole_number, default=10, help="tracks of each list to compare (default: 10)")
    rollback = actions.add_parser("rollback", help="make an older bundle the current one")
    rollback.add_argument("bundle", nargs="?", metavar="ID", help="default: the one before the current")
    rollback.add_argument("--force", action="store_true", help="even to a bundle that its gate refused")
    for action in (verify, rollback):
        action.add_argument("--require-signature", type=Path, metavar="KEY.pub", help="of who must have signed it")
    for action in (rebuild, add, remove, listing, verify, sign, diff, rollback):
        action.add_argument("--store", type=Path, required=True, help="where bundles are published")
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Does one action.

    Args:
        args: what `configure` made of the command line.

    Returns:
        The exit code, 0.
    """
    actions = {"rebuild": _rebuild, "add": _add, "remove": _remove}
    actions |= {"list": _list, "verify": _verify, "sign": _sign, "diff": _diff, "rollback": _rollback}
    return actions[args.action](args)


def _rebuild(args: argparse.Namespace) -> int:
    settings = _settings(args)
    from lhydra.bundle.manifest import check_place
    from lhydra.data.dataset import Dataset
    from lhydra_index_builder.build import rebuild

    check_place(args.store)
    built = rebuild(args.model, Dataset.open(args.data), args.store, settings, _log(args))
    if settings.explain and not args.json:
        _explain(built)
    _report(args, built)
    if not args.json:
        print(f"next: lhydra users load {args.data} --store {args.store}, then: lhydra serve {args.store}")
    return 0


def _add(args: argparse.Namespace) -> int:
    settings = _settings(args)
    from lhydra_index_builder.changes import add

    built, added, restored = add(args.tracks, args.store, settings, args.users, _log(args))
    _report(args, built)
    if not args.json:
        print(f"{added:,} tracks added" + (f", {restored:,} restored" if restored else ""))
    return 0


def _remove(args: argparse.Namespace) -> int:
    settings = _settings(args)
    from lhydra_index_builder.changes import remove

    ids = list(args.ids)
    if args.ids_from is not None:
        ids += read_ids(args.ids_from, "--from")
    if not ids:
        raise UsageError(complain("ID", "none", "track ids, as words or by --from FILE"))
    built, removed = remove(ids, args.store, settings, args.users, _log(args))
    _report(args, built)
    if not args.json:
        print(f"{removed:,} tracks removed: they stay in histories and are never returned")
    return 0


def _settings(args: argparse.Namespace) -> RebuildSettings:
    """The settings of a build, whose key and answer log are looked at before the work, not after it."""
    settings = config.resolve("index", RebuildSettings, args)
    if settings.requests is not None:
        from lhydra_index_builder.logged import check_traffic

        check_traffic(settings.requests)
    if settings.sign_key is not None:
        from lhydra.bundle.signature import private_key

        private_key(settings.sign_key)
    return settings


def _signed_by(args: argparse.Namespace) -> bytes | None:
    if args.require_signature is None:
        return None
    from lhydra.bundle.signature import public_key

    return public_key(args.require_signature)


def _log(args: argparse.Namespace) -> "Log":
    """Where lines on the way go: stdout, or nowhere when that is for JSON."""
    return (lambda line: None) if args.json else say


def _report(args: argparse.Namespace, built: "Built") -> None:
    """Says what was published, and what its gate found."""
    manifest = built.manifest
    if args.json:
        print(json.dumps(asdict(manifest)))
        return
    rows = []
    for check in manifest.gate["checks"]:
        found, limit = (_number(check[name]) for name in ("found", "limit"))
        rows.append([check["name"], check["verdict"], found, limit, check["note"]])
    print_table(["check", "", "found", "limit", ""], rows)
    recall = ", ".join(f"{name} {value:.4f}" for name, value in manifest.recall.items())
    forced = " (FORCED: its gate had refused it)" if manifest.gate["verdict"] == "forced" else ""
    count = manifest.n_tracks - manifest.changes["removed"]
    print(f"published {built.bundle_id}: {count:,} tracks, recipe {manifest.recipe}, {recall}{forced}")
    if manifest.changes["due"]:
        print(f"a full rebuild is due: {manifest.changes['due']}")
    if built.deleted:
        print(f"deleted {', '.join(built.deleted)}")


def _explain(built: "Built") -> None:
    """Prints what recipe, operating point and depth were chosen from."""
    from lhydra_index_builder import depth, recipe
    from lhydra_index_builder.sweep import MeasuredPoint

    manifest = built.manifest
    curve = [MeasuredPoint(**at) for at in manifest.index["curve"]]
    chosen = next((at for at in curve if at.recipe == manifest.recipe and vars(at.point) == manifest.point), curve[-1])
    title = f"Index: the least work with coverage {manifest.index['target']} at depth {manifest.depth}"
    print_table(*recipe.table(curve, chosen), title)
    title = f"Depth: the head over all tracks and over the candidates, {manifest.cascade['users']} users"
    print_table(*depth.table(manifest.cascade, manifest.depth), title)
    print()


def _list(args: argparse.Namespace) -> int:
    from lhydra.bundle import signature
    from lhydra.bundle.listed import entries
    from lhydra_index_builder.store import duration

    found = entries(args.store)
    if args.json:
        documents = [vars(entry) | {"age_s": round(entry.age_s)} for entry in found]
        print(json.dumps(documents, default=asdict))
        return 0
    if not found:
        raise BundleMissing(complain(args.store, "no bundles", "a store that `lhydra index rebuild` has published to"))
    rows = []
    for entry in found:
        row, manifest = [entry.bundle_id, entry.state, duration(entry.age_s)], entry.manifest
        if manifest is not None:
            changes = manifest.changes
            changed = f"+{changes['added']} -{changes['removed']}" if changes["added"] or changes["removed"] else ""
            tracks = f"{manifest.n_tracks - changes['removed']:,}"
            coverage, ndcg = manifest.recall.get("coverage"), manifest.quality.get("cascade ndcg@10")
            notes = ["forced"] if manifest.gate["verdict"] == "forced" else []
            notes += ["rebuild due"] if changes["due"] else []
            notes += ["signed"] if (args.store / entry.bundle_id / signature.FILE).is_file() else []
            row += [tracks, changed, manifest.recipe, _number(coverage), f"{manifest.depth}", _number(ndcg)]
            row += [manifest.parents.get("valid", "")[:6] or "-", ", ".join(notes)]
        rows.append(row + [""] * (11 - len(row)))
    header = ["bundle", "state", "age", "tracks", "changed", "recipe", "coverage", "depth", "ndcg@10", "of fold", ""]
    print_table(header, rows)
    for error in (entry.error for entry in found if entry.error):
        print(error)
    return 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _verify(args: argparse.Namespace) -> int:
    from lhydra.bundle.bundle import Bundle
    from lhydra.bundle.manifest import current_bundle_id

    bundle_id = args.bundle or current_bundle_id(args.store)
    manifest = Bundle.open(args.store, bundle_id, again=True, signed_by=_signed_by(args)).manifest
    assert manifest is not None  # opened from a folder
    if args.json:
        print(json.dumps({"bundle_id": bundle_id, "sound": True, "files": len(manifest.files)}))
    else:
        print(f"{bundle_id} is sound: {len(manifest.files)} files, {manifest.n_tracks:,} tracks, golden users agree")
    return 0


def _sign(args: argparse.Namespace) -> int:
    from lhydra.bundle import signature
    from lhydra.bundle.bundle import Bundle
    from lhydra.bundle.manifest import current_bundle_id

    bundle_id = args.bundle or current_bundle_id(args.store)
    signature.private_key(args.sign_key)
    Bundle.open(args.store, bundle_id, again=True)  # nobody signs what is damaged
    signature.sign(args.store / bundle_id, args.sign_key)
    print(json.dumps({"bundle_id": bundle_id, "signed": True}) if args.json else f"{bundle_id} is signed")
    return 0


def _diff(args: argparse.Namespace) -> int:
    from lhydra_index_builder.diff.comparing import between
    from lhydra_index_builder.diff.telling import tables

    asked = {name: getattr(args, name) for name in ("data", "requests", "users", "sample", "k")}
    found = between(args.store, args.a, args.b, **asked)
    if args.json:
        print(json.dumps(found.document(), allow_nan=False))
        return 0
    print(*found.summary, sep="\n")
    for table in tables(found):
        print()
        print_table(*table)
    return 0


def _rollback(args: argparse.Namespace) -> int:
    from lhydra_index_builder.store import rollback

    bundle_id = rollback(args.store, args.bundle, force=args.force, signed_by=_signed_by(args))
    print(json.dumps({"bundle_id": bundle_id}) if args.json else f"{bundle_id} is current")
    return 0
