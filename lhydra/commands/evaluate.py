"""`lhydra evaluate`: how good are the served lists on plays that were held out, beside the baselines one would try."""

import argparse
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lhydra import config
from lhydra.commands import rule_sets
from lhydra.commands.figures import half_width, number, signed
from lhydra.commands.outputs import check_output, is_json_with, is_page
from lhydra.config import Requirement
from lhydra.console import print_table
from lhydra.errors import ConfigError, MissingExtra, UsageError, complain
from lhydra.numerals import whole_number

if TYPE_CHECKING:
    from lhydra.data.dataset import Mask
    from lhydra.evaluation.document import CascadeLoss, Document, Interval, Sources
    from lhydra.evaluation.run import Moment

HELP = "measure ranking quality on the held-out plays of a dataset, over the full catalogue, beside baselines"
EXTRA = "index"  # with baselines or a report: eval
MAX_K = 1000
NAMES = {"recall": "Recall", "ndcg": "NDCG", "map": "MAP", "hr": "HitRate", "coverage": "Coverage"}
BASELINES = ("popular", "itemknn", "rp3beta", "ials", "ease", "dlae")
ROLLING = ("next-session", "next-day", "next-track")
ROLLING_BASELINES = (
    *("popular", "popular-lately", "own-count", "own-recency", "bll"),
    *("co-listening", "transitions", "ials", "v-sknn", "blend"),
)
_COMPARED = f"all, none, or some of {','.join(BASELINES)}; rolling: some of {','.join(ROLLING_BASELINES)}"
HEAD_NAMES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auc": "AUC",
    "pr_auc": "PR-AUC",
    "log_loss": "log loss",
    "ece": "ECE",
}
SLICES = {
    "few_play_tracks": "targets with at most 5 train listeners",
    "new_tracks": "targets without train listeners",
    "new_users": "users without train plays",
    "cold_users": "the 20 % of users with the fewest train plays",
}
BEYOND = {
    "coverage@10": "Coverage@10",
    "popularity_lift": "popularity lift (1: like the histories)",
    "inter_user_overlap": "share in common of two users' top 10",
    "intra_list_diversity": "diversity within a list",
    "novelty": "novelty (bits)",
    "genre_calibration": "genre calibration (KL; 0: like the histories)",
}


@dataclass(frozen=True)
class EvaluateSettings(config.Settings):
    """What is measured."""

    protocol: str = config.setting(
        "static",
        "static: who plays what after the train fold; next-session, next-day, next-track: what comes next, moment by"
        " moment, with all that is known by then, new or heard before",
        ("static", *ROLLING),
    )
    known: int = config.setting(0, "plays of the session that are known (next-session, next-track)", low=0)
    refit: bool = config.setting(False, "once their settings are chosen, fit rolling baselines on valid too")
    as_of: str = config.setting(
        "test", "the fold to predict; test: train and valid tracks are left out, valid: train", ("test", "valid")
    )
    mask: str = config.setting(
        "seen",
        "what is left out of lists and targets: tracks of all folds before, or of train alone",
        ("seen", "train"),
    )
    k: str = config.setting(
        "10,20",
        "list lengths, separated by commas",
        must=Requirement(f"numbers from 1 to {MAX_K}, separated by commas", lambda text: bool(list_lengths(text))),
        listed=True,
    )
    users: int = config.setting(0, "how many users to draw at random, 0 for all who have targets", low=0)
    seed: int = config.setting(0, "seed of that draw, of the negatives and of the intervals", low=0)
    baselines: str = config.setting(
        "all",
        f"what to compare with: {_COMPARED}",
        must=Requirement(
            _COMPARED,
            lambda text: (
                text in ("all", "none")
                or any(set(text.split(",")) <= set(names) for names in (BASELINES, ROLLING_BASELINES))
            ),
        ),
        listed=True,
    )


SETTINGS = EvaluateSettings


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra evaluate`.

    Args:
        parser: of the command.
    """
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="made by `lhydra prepare`")
    parser.add_argument("--model", type=Path, metavar="MODEL", help="made by `lhydra train`; searched exactly")
    parser.add_argument("--store", type=Path, metavar="STORE", help="the current bundle, as it is served")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number and the protocol to FILE")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a report with plots to FILE.html")
    parser.add_argument("--rules", type=Path, metavar="FILE", help="measure its rule sets beside no rules")
    config.add_flags(parser, EvaluateSettings)


def run(args: argparse.Namespace) -> int:
    """Prints the tables and writes the JSON file and the report when asked for.

    Args:
        args: of the command line.

    Returns:
        0.

    Raises:
        ConfigError: a setting out of range, or settings that do not go together.
    """
    from lhydra.bundle.model import REFITTED
    from lhydra.commands.evaluated import opened, training_log
    from lhydra.data.dataset import Dataset
    from lhydra.evaluation.evaluate import evaluate
    from lhydra.evaluation.run import find_targets
    from lhydra.evaluation.summary import told
    from lhydra.recommender import Recommender

    settings = config.resolve("evaluate", EvaluateSettings, args)
    sets = rule_sets.asked(args.rules, settings.protocol)
    if settings.protocol != "static":
        from lhydra.commands.rolling import run_rolling

        return run_rolling(args, settings)
    if settings.known or settings.refit:
        found = f"--{'known' if settings.known else 'refit'} with --protocol static"
        raise ConfigError(complain("--protocol", found, f"one of {', '.join(ROLLING)}"))
    if unknown := set(chosen_baselines(settings.baselines)) - set(BASELINES):
        found = f"{sorted(unknown)[0]} with --protocol static"
        raise ConfigError(complain("--baselines", found, f"some of {','.join(BASELINES)}"))
    ks = list_lengths(settings.k)
    if (args.model is None) == (args.store is None):
        raise UsageError(complain("--model, --store", "neither" if args.model is None else "both", "one of the two"))
    check_outputs(args)
    baselines = chosen_baselines(settings.baselines)
    if baselines:
        check_installed("implicit", "scipy", "threadpoolctl")
    if args.report is not None:
        check_installed("plotly", "jinja2")
    dataset, training = Dataset.open(args.dataset), training_log(args.model)
    as_of, mask = cast("Moment", settings.as_of), cast("Mask", settings.mask)
    find_targets(dataset, as_of, mask)  # refuses a fold without any before a model embeds its tracks
    with opened(args.model, args.store, dataset, as_of) as (bundle, names, fitted):
        document = evaluate(
            Recommender(bundle),
            dataset,
            as_of=as_of,
            ks=ks,
            users=settings.users,
            seed=settings.seed,
            baselines=baselines,
            analyses=args.json is not None or args.report is not None,
            fitted=fitted,
            mask=mask,
        )
        document["protocol"] = {"dataset": str(args.dataset), **names, **document["protocol"]}
        document["training"] = training
        if sets is not None:
            document["rules"] = rule_sets.measured(
                *(bundle, dataset, sets), as_of=as_of, mask=mask, users=settings.users, seed=settings.seed
            )
        if names.get("fitted_on") == REFITTED and baselines:
            document["summary"].insert(
                1 + len(told(document["protocol"])),
                "the model learned from the valid fold too (--refit), the baselines did not",
            )
    from lhydra.files import write_text  # brings numpy, which `--help` must not import

    written = []  # before anything is printed: whoever reads that may stop reading
    if args.json is not None:
        write_text(args.json, json.dumps(document, indent=2, allow_nan=False) + "\n")
        written.append(f"wrote {args.json}: every number, for `lhydra compare`")
    if args.report is not None:
        from lhydra.evaluation.report.page import render

        write_text(args.report, render(document))
        written.append(f"wrote {args.report}: open it in a browser")
    show(bundle.bundle_id, document)
    if sets is not None:
        rule_sets.show(document["rules"])
    print(*("", *written) if written else (), sep="\n", end="\n" if written else "")
    return 0


def check_outputs(args: argparse.Namespace) -> None:
    """Checks that the JSON file and the report can be written.

    Args:
        args: of the command line.

    Raises:
        ConfigError: one cannot, or both are the same file.
    """
    check_output("--json", args.json, is_json_with("protocol", "ranking"))
    check_output("--report", args.report, is_page("evaluation"))
    if args.json is not None and args.report is not None and args.json.resolve() == args.report.resolve():
        raise ConfigError(complain("--json, --report", f"{args.json} for both", "two files"))


def check_installed(*modules: str) -> None:
    """Checks that the extra `eval` is installed: at once, not after minutes.

    Args:
        modules: what is needed of it.

    Raises:
        MissingExtra: one of them is not there.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtra("eval", module)


def list_lengths(text: str) -> tuple[int, ...]:
    """Reads `--k`.

    Args:
        text: numbers, separated by commas.

    Returns:
        The distinct lengths, ascending; () for anything but numbers in range.
    """
    try:
        ks = tuple(sorted({whole_number(part) for part in text.split(",")}))
    except ValueError:
        return ()
    return ks if ks[0] >= 1 and ks[-1] <= MAX_K else ()


def chosen_baselines(text: str, names: tuple[str, ...] = BASELINES) -> tuple[str, ...]:
    """Reads `--baselines`.

    Args:
        text: all, none, or names separated by commas.
        names: of all there are.

    Returns:
        The names, in the usual order; behind them those that there are not.
    """
    if text in ("all", "none"):
        return names if text == "all" else ()
    asked = text.split(",")
    return (*(name for name in names if name in asked), *(name for name in asked if name not in names))


def show(name: str, document: "Document") -> None:
    """Prints the document: the summary first, then what was measured, from the lists to the head as a classifier.

    Args:
        name: of what was evaluated.
        document: an evaluation.
    """
    counts, protocol = document["counts"], document["protocol"]
    print(*document["summary"], sep="\n")
    print(f"\n{name} on the {protocol['as_of']} fold: {counts['users']:,} users,", end=" ")
    print(f"{counts['targets']:,} targets among {counts['catalogue']:,} tracks; protocol {protocol['hash']}")
    if counts["targets_not_in_catalogue"]:
        print(f"{counts['targets_not_in_catalogue']:,} targets are not in the catalogue and count as missed")
    if counts["heard_before"]:
        print(f"{counts['heard_before']:,} plays of tracks heard before are no targets")
    if counts["users_without_list"]:
        print(f"{counts['users_without_list']:,} users got no list and score 0")
    show_ranking(document)
    show_cascade_loss(document["cascade_loss"], counts["reranked"])
    show_sources(document["sources"])
    show_groups(document)
    beyond: dict[str, Any] = {**document["beyond_accuracy"]}
    rows = [[text, number(beyond[key])] for key, text in BEYOND.items()]
    print_table(["", "cascade"], rows, "Beyond accuracy, the served top 10")
    doubts = [leak for leak in document["leaks"] if leak["verdict"] != "ok"]
    print(f"\nLeaks: {len(document['leaks'])} checks, {len(doubts)} in doubt")
    for leak in doubts:
        print(f"{leak['verdict']}: {leak['check']}: {leak['found']}")
    head: dict[str, Any] = {**document["classification"]}
    row = [number(head[key]) for key in HEAD_NAMES]
    print_table(list(HEAD_NAMES.values()), [row], "Secondary: the head as a classifier")
    print(f"{head['pairs']:,} pairs, positive from probability 0.5 up; negatives: {head['negatives']}")


def show_ranking(document: "Document") -> None:
    """Prints the metrics with one column per stage and baseline, then the intervals and how each was chosen.

    Args:
        document: an evaluation.
    """
    from lhydra.evaluation.bootstrap import span

    counts, protocol, stages = document["counts"], document["protocol"], document["ranking"]
    labels = {f"{name}@{k}": f"{NAMES[name]}@{k}" for k in protocol["ks"] for name in NAMES}
    labels |= {"ndcg@10": "NDCG@10", "recall@20": "Recall@20", "mrr": f"MRR@{protocol['mrr_depth']}"}
    rows = [[label, *(number(stages[stage][key]["mean"]) for stage in stages)] for key, label in labels.items()]
    for key in ("ndcg@10", "recall@20"):
        rows.append([f"{labels[key]} ±", *(half_width(stages[stage][key]) for stage in stages)])
    print_table(["", *stages], rows, "Ranking (±: half the 95 % interval over users)")
    if counts["users_of_head_alone"] < counts["users"]:
        curve = [at for at in document["cascade_loss"]["curve"] if at["depth"] <= counts["reranked"]]
        print(f"head: over the whole catalogue, for {counts['users_of_head_alone']:,} users drawn at random;", end=" ")
        print(f"for them, {curve[-1]['depth']} candidates reranked score NDCG@10 {curve[-1]['ndcg']:.4f}")
    rows = []
    for name, one in document["baselines"].items():
        if one["skipped"]:
            rows.append([name, "", "", f"skipped: {one['skipped']}"])
            continue
        chosen = ", ".join(f"{key} {value}" for key, value in one["chosen"].items()) or "nothing to choose"
        found = document["paired"][name]["ndcg@10"]
        how = f"best of {one['tried']} on the valid fold" if one["tried"] > 1 else "on the valid fold"
        how = how if one["valid_ndcg@10"] is not None else "no valid fold: usual values"
        how += ", kept from before" if one["cached"] else ""
        rows.append([name, signed(found["difference"]), span(found["low"], found["high"]), f"{chosen} ({how})"])
    if rows:
        print_table(["", "difference", "95 %", "chosen"], rows, "Cascade less baseline, NDCG@10, the same users")


def show_cascade_loss(loss: "CascadeLoss", served: int) -> None:
    """Prints how much of the head's own list each depth of retrieval lets through.

    Args:
        loss: of the document.
        served: the depth in use.
    """
    rows = [
        [f"{at['depth']:,}", number(at["overlap"]), number(at["ndcg"]), f"{at['ndcg_difference']:+.4f}"]
        for at in loss["curve"]
    ]
    title = (
        f"Cascade loss, {loss['users']:,} users: the head on so many candidates ({served:,} served) beside all tracks"
    )
    print_table(["candidates", "overlap@10", "NDCG@10", "difference"], rows, title)


def show_sources(found: "Sources") -> None:
    """Prints what each source of candidates adds.

    Args:
        found: of the document.
    """
    from lhydra.evaluation.sources import unheard

    heads = ["", "candidates", "targets found", "only by it", f"in the first {found['k']}", "only by it"]
    counted = ("found", "found_alone", "listed", "listed_alone")
    rows = [
        [one["source"], f"{one['candidates']:.0%}", *(f"{dict(one)[name]:,}" for name in counted)]
        for one in found["by_source"]
    ]
    rows.append(["all", "100%", f"{found['found']:,}", "", f"{found['listed']:,}", ""])
    print_table(heads, rows, f"Sources of candidates, {found['targets']:,} targets")
    if why := unheard(found):
        print(why)


def show_groups(document: "Document") -> None:
    """Prints the cohorts and the slices, cascade only.

    Args:
        document: an evaluation.
    """

    def cell(found: "Interval") -> str:
        return number(found["mean"]) + ("" if found["mean"] is None else f" {half_width(found)}")

    rows = [
        [one["by"], one["name"], f"{one['users']:,}", cell(one["ndcg@10"]), cell(one["recall@20"])]
        for one in document["cohorts"]
    ]
    if rows:
        print_table(["by", "", "users", "NDCG@10", "Recall@20"], rows, "Cohorts of users, cascade")
    slices: dict[str, Any] = {**document["slices"]}
    rows = [
        [text, f"{one['targets']:,}", f"{one['users']:,}", number(one["ndcg@10"]), number(one["recall@20"])]
        for text, one in ((text, slices[key]) for key, text in SLICES.items())
    ]
    print_table(["", "targets", "users", "NDCG@10", "Recall@20"], rows, "Hard cases, cascade")
