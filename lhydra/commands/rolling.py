"""`lhydra evaluate --protocol next-session|next-day|next-track`: what users play next, beside the tuned baselines."""

import argparse
import json
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from lhydra.commands.evaluate import (
    ROLLING_BASELINES,
    EvaluateSettings,
    check_installed,
    check_outputs,
    chosen_baselines,
)
from lhydra.commands.figures import half_width, number, signed
from lhydra.console import print_table
from lhydra.errors import ConfigError, UsageError, complain

if TYPE_CHECKING:
    from lhydra.bundle.bundle import Bundle
    from lhydra.evaluation.document import Source
    from lhydra.evaluation.rolling.document import RollingDocument
    from lhydra.evaluation.rolling.moments import Protocol
    from lhydra.evaluation.run import Moment

COLUMNS = {
    "ndcg@10": "NDCG@10",
    "recall@10": "Recall@10",
    "hr@10": "HitRate@10",
    "hr@20": "HitRate@20",
    "mrr": "MRR@20",
    "ndcg@100": "NDCG@100",
    "recall@100": "Recall@100",
}
SLICES = {
    "place": "All, by place in the session: NDCG@10, mean of lists",
    "age": "All, targets heard before, by their last play: share in the top 10",
    "share": "All, users by their share of repeats: NDCG@10",
}


def run_rolling(args: argparse.Namespace, settings: EvaluateSettings) -> int:
    """Prints the tables and writes the JSON file and the report when asked for.

    Args:
        args: of the command line.
        settings: resolved; the protocol is not static.

    Returns:
        0.

    Raises:
        ConfigError: settings that do not go together.
    """
    usual = {field.name: field.default for field in fields(EvaluateSettings)}
    static = f"nothing with --protocol {settings.protocol}, which has its own"
    for name in ("k", "mask"):
        if getattr(settings, name) != usual[name]:
            raise ConfigError(complain(f"--{name}", str(getattr(settings, name)), static))
    if args.model is not None and args.store is not None:
        raise UsageError(complain("--model, --store", "both", "one of the two, or none for the baselines alone"))
    if settings.known and settings.protocol == "next-day":
        raise ConfigError(
            complain("--known", str(settings.known), "a protocol of sessions: next-session or next-track")
        )
    names = chosen_baselines(settings.baselines, ROLLING_BASELINES)
    if unknown := set(names) - set(ROLLING_BASELINES):
        expected = f"some of {','.join(ROLLING_BASELINES)} with --protocol {settings.protocol}"
        raise ConfigError(complain("--baselines", sorted(unknown)[0], expected))
    alone = args.model is None and args.store is None
    if alone and not set(names) - {"blend"}:
        raise ConfigError(complain("--baselines", settings.baselines, "at least one to measure besides the blend"))
    check_outputs(args)
    if "ials" in names:
        check_installed("implicit", "scipy", "threadpoolctl")
    if args.report is not None:
        check_installed("plotly", "jinja2")
    from lhydra.commands.evaluated import opened
    from lhydra.data.dataset import Dataset
    from lhydra.evaluation.rolling.moments import find_moments
    from lhydra.evaluation.rolling.run import evaluate_rolling, learned
    from lhydra.files import write_text
    from lhydra.recommender import Recommender

    dataset, as_of = Dataset.open(args.dataset), cast("Moment", settings.as_of)
    protocol = cast("Protocol", settings.protocol)
    find_moments(dataset, protocol, as_of, settings.known)  # refuses before a model embeds its tracks
    with ExitStack() as stack:
        bundle: Bundle | None = None
        source: Source = {}
        fitted: dict[str, Any] | None = None
        if not alone:
            bundle, source, fitted = stack.enter_context(opened(args.model, args.store, dataset, as_of))
        document = evaluate_rolling(
            dataset,
            protocol,
            as_of=as_of,
            known=settings.known,
            users=settings.users,
            seed=settings.seed,
            names=names,
            refit=settings.refit,
            recommender=Recommender(bundle) if bundle is not None else None,
        )
    document["protocol"] = {"dataset": str(args.dataset), **source, **document["protocol"]}
    if fitted is not None and (doubt := learned(dataset, fitted)):
        document["protocol"]["doubt"] = doubt
    written = []  # before anything is printed: whoever reads that may stop reading
    if args.json is not None:
        write_text(args.json, json.dumps(document, indent=2, allow_nan=False) + "\n")
        written.append(f"wrote {args.json}: every number, for `lhydra compare`")
    if args.report is not None:
        from lhydra.evaluation.rolling.report import render

        write_text(args.report, render(document))
        written.append(f"wrote {args.report}: open it in a browser")
    show(document)
    print(*("", *written) if written else (), sep="\n", end="\n" if written else "")
    return 0


def show(document: "RollingDocument") -> None:
    """Prints the three figures, then how often tracks were heard before, and how each baseline was chosen.

    Args:
        document: a rolling evaluation.
    """
    from lhydra.evaluation.bootstrap import span
    from lhydra.evaluation.rolling.baselines import useless
    from lhydra.evaluation.rolling.document import MEANINGS

    counts, protocol = document["counts"], document["protocol"]
    if "doubt" in protocol:
        print(f"NOT A FAIR MEASURE: {protocol['doubt']}")
    for figure, stages in document["ranking"].items():
        known = {name: found["ndcg@10"]["mean"] for name, found in stages.items() if not useless(name, figure)}
        best = max(known, key=lambda name: known[name] or 0.0)
        print(f"{figure}: best is {best}, NDCG@10 {number(known[best])} {half_width(stages[best]['ndcg@10'])}")
    after = f", {protocol['known']} plays of the session known" if protocol["known"] else ""
    print(f"\n{protocol['protocol']} on the {protocol['as_of']} fold{after}: {counts['moments']:,} lists", end=" ")
    print(f"of {counts['users']:,} users, {counts['targets']['all']:,} targets,", end=" ")
    print(f"{counts['targets']['repeat']:,} heard before; {counts['catalogue']:,} tracks; protocol {protocol['hash']}")
    print("mean of each user's lists, then of users; ±: half the 95 % interval over users")
    if protocol["split"].get("protocol") == "next-session":
        print("split next-session: what is fitted knows train plays of other people that may lie after the moment")
    for figure, stages in document["ranking"].items():
        rows = [
            [name, *(number(found[key]["mean"]) for key in COLUMNS), half_width(found["ndcg@10"])]
            for name, found in stages.items()
            if not useless(name, figure)
        ]
        print_table(["", *COLUMNS.values(), "NDCG@10 ±"], rows, f"{figure.capitalize()}: {MEANINGS[figure]}")
    rows = [
        [figure, name, signed(one["difference"]), span(one["low"], one["high"])]
        for figure, own in document["paired"].items()
        for name, found in own.items()
        for one in [found["ndcg@10"]]
        if not useless(name, figure)
    ]
    if rows:
        print_table(["", "", "difference", "95 %"], rows, "Served less the others, NDCG@10, the same users")
    if protocol["protocol"] == "next-track":
        rows = [
            [name, number(found["hr@20"]), number(found["mrr"])] for name, found in document["by_moment"]["all"].items()
        ]
        print_table(
            ["", "HitRate@20", "MRR@20"], rows, "All, plain mean of all lists, as session-based work reports it"
        )
    show_slices(document)
    repeats = document["repeats"]
    rows = [["what was played", number(repeats["truth"]["mean"]), half_width(repeats["truth"])]]
    rows += [[name, number(one["mean"]), half_width(one)] for name, one in repeats["lists"].items()]
    print_table(["", "heard before", "±"], rows, "Share of repeats, in the truth and in the top 10 of all")
    rows = []
    for name, own in document["chosen"].items():
        for figure, one in own.items():
            if useless(name, figure) or (one["tried"] == 1 and name != "blend"):
                continue
            settings = ", ".join(
                f"{key} {value}" for key, value in one["settings"].items() if value != 0 or name != "blend"
            )
            rows.append([name, figure, number(one["valid"]) if one["valid"] is not None else "usual values", settings])
    metric = protocol["tuned_on"].upper()
    print_table(
        ["", "figure", f"valid {metric}", "chosen"], rows, "Chosen on the valid fold, for each figure by itself"
    )
    for name, why in document["skipped"].items():
        print(f"{name} skipped: {why}")


def show_slices(document: "RollingDocument") -> None:
    """Prints where lists are good.

    Args:
        document: a rolling evaluation.
    """
    for by, title in SLICES.items():
        parts = [part for part in document["slices"] if part["by"] == by]
        names = list(parts[0]["scorers"]) if parts else []
        rows = [[one["name"], f"{one['n']:,}", *(number(one["scorers"][name]) for name in names)] for one in parts]
        if rows:
            print_table(["", "of them", *names], rows, title)
