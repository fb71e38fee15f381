"""`lhydra recommend`: lists for many users into a file, from the same recommender that the server runs."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lhydra import config
from lhydra.commands.ids import read_ids
from lhydra.errors import ConfigError, complain
from lhydra.limits import DEFAULT_MAX_K, MAX_DEPTH

if TYPE_CHECKING:
    from lhydra.data.dataset import AsOf, Dataset, Mask
    from lhydra.domain import I64

HELP = "write recommendations for many users to a Parquet or CSV file"
EXTRA = "index"


@dataclass(frozen=True)
class RecommendSettings(config.Settings):
    """How the lists are made."""

    users: str = config.setting("all", "user ids, separated by commas, or `all`; for others see --users-file")
    users_file: Path | None = config.setting(None, "a file with any user ids, one per line, instead of --users")
    k: int = config.setting(10, "tracks per user", low=1, high=DEFAULT_MAX_K)
    stage: str = config.setting("final", "the reranked list, or what retrieval alone finds", ("final", "retrieval"))
    as_of: str = config.setting(
        "test",
        "test: history is the train fold, heard is train and valid; valid: both are train; refit: both are train and "
        "valid, for a model made with --refit; now: both are all plays",
        ("test", "valid", "refit", "now"),
    )
    mask: str = config.setting("seen", "what counts as heard: as --as-of says, or train alone", ("seen", "train"))
    include_heard: bool = config.setting(False, "also recommend what the user has heard")
    bundle: str | None = config.setting(None, "bundle of the store, instead of the current one")
    overwrite: bool = config.setting(False, "replace FILE even if it is no list of recommendations")
    depth: int = config.setting(0, "candidates to rerank, 0 for the server's default", low=0, high=MAX_DEPTH)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra recommend`.

    Args:
        parser: of the command.
    """
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="made by `lhydra prepare`")
    parser.add_argument("store", type=Path, metavar="STORE", help="made by `lhydra index rebuild`")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="*.parquet, *.csv or *.csv.gz")
    config.add_flags(parser, RecommendSettings)


def run(args: argparse.Namespace) -> int:
    """Writes the columns user_id, rank (from 1), track_id, score (of the stage asked for).

    Args:
        args: of the command line.

    Returns:
        0.

    Raises:
        ConfigError: a setting out of range, or both `--users` and `--users-file`.
    """
    from lhydra.bundle.bundle import Bundle
    from lhydra.data.dataset import Dataset
    from lhydra.evaluation import lists
    from lhydra.recommender import Recommender
    from lhydra.timing import timed

    settings = config.resolve("recommend", RecommendSettings, args)
    if settings.users_file is not None and (settings.users != "all" or hasattr(args, "users")):
        raise ConfigError(complain("--users-file", "--users as well", "one of them"))
    lists.check_destination(args.out, overwrite=settings.overwrite)
    dataset = Dataset.open(args.dataset)
    positions = chosen_users(dataset, settings.users, settings.users_file)
    recommender = Recommender(Bundle.open(args.store, settings.bundle), settings.depth)

    with timed("recommend"):
        short, rows = lists.write_lists(
            recommender,
            dataset,
            args.out,
            k=settings.k,
            stage=cast("lists.Stage", settings.stage),
            as_of=cast("AsOf", settings.as_of),
            positions=positions,
            include_heard=settings.include_heard,
            mask=cast("Mask", settings.mask),
        )
    print(f"{args.out}: {rows:,} rows for {len(positions):,} users, {settings.stage} stage of {recommender.bundle_id}")
    if short:
        print(f"{short:,} users have fewer than {settings.k} tracks: nothing more is eligible")
    return 0


def chosen_users(dataset: "Dataset", users: str, file: Path | None = None) -> "I64":
    """Reads `--users` or `--users-file`.

    Args:
        dataset: knows the users.
        users: ids separated by commas, or `all`.
        file: with an id per line, in place of `users`.

    Returns:
        (n,) int64 positions of the distinct users, in the order named.

    Raises:
        ConfigError: one is unknown, or the file is no list of ids.
    """
    import numpy as np

    if file is None and users == "all":
        return np.arange(len(dataset.user_ids))
    places = {user_id: position for position, user_id in enumerate(dataset.user_ids)}
    asked = list(dict.fromkeys(users.split(","))) if file is None else read_ids(file, "--users-file")
    unknown = [user_id for user_id in asked if user_id not in places]
    if unknown:
        found = ", ".join(map(repr, unknown[:3])) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        what = f"ids of the {len(places):,} users of {dataset.path}"
        if file is not None:
            raise ConfigError(complain(f"--users-file {file}", found, what))
        raise ConfigError(complain("--users", found, f"{what}, or all; ids with a comma: --users-file FILE"))
    return np.array([places[user_id] for user_id in asked], np.int64)
