"""`lhydra evaluate --rules FILE`: each rule set of the file beside no rules, on the same users."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra.console import print_table
from lhydra.errors import ConfigError, complain

if TYPE_CHECKING:
    from lhydra.bundle.bundle import Bundle
    from lhydra.data.dataset import Dataset, Mask
    from lhydra.evaluation.document import RuleFigures
    from lhydra.evaluation.run import Moment
    from lhydra.lists.file import RuleSets

HEADER = ["rules", "NDCG@10", "less", "95 %", "by tags", "by co-listening", "Coverage@10", "calibration", "novelty"]


def asked(path: Path | None, protocol: str) -> "RuleSets | None":
    """Reads the file of `--rules`.

    Args:
        path: of the file; None where none is given.
        protocol: of the evaluation.

    Returns:
        Its rule sets; None for none.

    Raises:
        ConfigError: the file is wrong, or the protocol asks for no lists of known users.
    """
    from lhydra.lists.file import read

    if path is None:
        return None
    if protocol != "static":
        raise ConfigError(complain("--rules", f"--protocol {protocol}", "--protocol static"))
    return read(path)


def measured(
    bundle: "Bundle",
    dataset: "Dataset",
    sets: "RuleSets",
    *,
    as_of: "Moment",
    mask: "Mask",
    users: int,
    seed: int,
) -> "list[RuleFigures]":
    """Measures the rule sets of a file.

    Args:
        bundle: what is evaluated; of a model it has no filter columns, which are made here.
        dataset: whose held-out plays are the targets.
        sets: of the file.
        as_of: the fold of the targets.
        mask: what of a user is left out of lists.
        users: how many are drawn, 0 for all.
        seed: of draws and intervals.

    Returns:
        Figures of no rules, then of each set.

    Raises:
        ConfigError: the rules look at a column that there is not.
        DataError: nobody has a target.
    """
    from lhydra.bundle.columns import FilterColumns
    from lhydra.bundle.columns_writer import write_columns
    from lhydra.evaluation.rule_sets import measure_rules
    from lhydra.recommender import Recommender
    from lhydra.unmatched import unmatched

    with tempfile.TemporaryDirectory(prefix="lhydra-") as folder:
        if not bundle.filters.names:
            kinds = {column.name: column.kind for column in dataset.info.track_columns}
            write_columns(Path(folder), dataset.path / "tracks.parquet", kinds)
            bundle = replace(bundle, filters=FilterColumns.open(Path(folder)))
        sets.check(bundle.filters.names)
        if said := unmatched(sets.sets, bundle.catalog.rows, bundle.filters):
            print(f"note: rules: {said}", file=sys.stderr)
        newest = int(dataset.plays.time.max(initial=0))
        return measure_rules(
            Recommender(bundle), dataset, sets.sets, as_of=as_of, mask=mask, users=users, seed=seed, now=newest
        )


def show(figures: "list[RuleFigures]") -> None:
    """Prints a table of rule sets.

    Args:
        figures: no rules first.
    """
    rows = []
    plain = figures[0]["ndcg@10"]
    for one in figures:
        gains, paired = one["gains"], one["paired"]
        beyond = [
            *(gains["distance_by_tags"], gains["distance_by_co_listening"]),
            *(one["coverage@10"], gains["calibration_error"], gains["novelty"]),
        ]
        interval = f"{paired['low']:+.4f} to {paired['high']:+.4f}" if paired["low"] is not None else ""
        share = f"{1 - one['ndcg@10'] / plain:.1%}" if plain else ""
        shown = ["undefined" if value is None else f"{value:.4f}" for value in beyond]
        rows.append(
            [one["name"], f"{one['ndcg@10']:.4f}", *((share, interval) if one is not figures[0] else ("", "")), *shown]
        )
    print_table(HEADER, rows, "Rule sets beside no rules, the served top 10 (95 %: of the difference in NDCG@10)")
