"""`lhydra recommend`: lists for the users of a dataset or of an export, from the recommender that servers run."""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lhydra import config
from lhydra.commands.histories import check_flags
from lhydra.commands.ids import read_ids
from lhydra.data.settings import ReadSettings
from lhydra.errors import ConfigError, UsageError, complain
from lhydra.limits import DEFAULT_MAX_K, LAST_S, MAX_DEPTH

if TYPE_CHECKING:
    from lhydra.data.dataset import AsOf, Dataset, Mask
    from lhydra.domain import I64, Repeat, UserState
    from lhydra.recommender import Recommender

HELP = "write recommendations for many users, or for an export of somebody's listening"
EXTRA = "index"


REPEATS = ("exclude", "allow", "decay", "learnt")


@dataclass(frozen=True)
class RecommendSettings(ReadSettings):
    """How the lists are made."""

    history: Path | None = config.setting(
        None, "an export of people's listening, in any form that `lhydra prepare` reads, instead of DATASET"
    )
    users: str = config.setting(
        "all", "user ids, separated by commas, or `all`; for others see --users-file", listed=True
    )
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
    repeat: str | None = config.setting(
        None,
        "what becomes of heard tracks; exclude: they never come back, allow: they do like any other, decay: after a "
        "time, learnt: as the model has learnt that they do (default: exclude)",
        REPEATS,
    )
    include_heard: bool = config.setting(False, "short for --repeat allow")
    now_s: int = config.setting(0, "Unix time from which ages count, 0 for now", low=0, high=LAST_S)
    bundle: str | None = config.setting(None, "bundle of the store, instead of the current one")
    overwrite: bool = config.setting(False, "replace FILE even if it is no list of recommendations")
    depth: int = config.setting(0, "candidates to rerank, 0 for the server's default", low=0, high=MAX_DEPTH)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra recommend`.

    Args:
        parser: of the command.
    """
    parser.add_argument("dataset", type=Path, nargs="?", metavar="DATASET", help="made by `lhydra prepare`")
    parser.add_argument("store", type=Path, metavar="STORE", help="made by `lhydra index rebuild`")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="*.parquet, *.csv or *.csv.gz; without it --history prints"
    )
    config.add_flags(parser, RecommendSettings)


def run(args: argparse.Namespace) -> int:
    """Writes the columns user_id, rank (from 1), track_id, score (of the stage asked for), or prints lists.

    Args:
        args: of the command line.

    Returns:
        0.

    Raises:
        ConfigError: a setting out of range, or flags that exclude each other.
    """
    settings = config.resolve("recommend", RecommendSettings, args)
    if (settings.history is None) == (args.dataset is None):
        found = "neither" if settings.history is None else "both"
        raise UsageError(complain("DATASET and --history", found, "one of them"))
    if settings.include_heard and settings.repeat not in (None, "allow"):
        raise UsageError(complain("--repeat", f"{settings.repeat} and --include-heard", "one of them"))
    check_flags(args, ("users", "users_file", "as_of", "mask"), history=settings.history is not None)
    if settings.users_file is not None and (settings.users != "all" or hasattr(args, "users")):
        raise UsageError(complain("--users-file", "--users as well", "one of them"))
    if args.out is None and settings.history is None:
        raise UsageError(complain("--out", "nothing", "a file for the lists; an export goes by --history EXPORT"))
    from lhydra.evaluation import lists

    if args.out is not None:
        lists.check_destination(args.out, overwrite=settings.overwrite)
    return _of_users(args, settings) if settings.history is None else _of_history(args, settings, settings.history)


def _of_users(args: argparse.Namespace, settings: RecommendSettings) -> int:
    """Writes lists for the users of a dataset."""
    from lhydra.data.dataset import Dataset
    from lhydra.evaluation import lists
    from lhydra.timing import timed

    dataset = Dataset.open(args.dataset)
    positions = chosen_users(dataset, settings.users, settings.users_file)
    recommender = _opened(args, settings)

    with timed("recommend"):
        short, rows = lists.write_lists(
            recommender,
            dataset,
            args.out,
            k=settings.k,
            stage=cast("lists.Stage", settings.stage),
            as_of=cast("AsOf", settings.as_of),
            positions=positions,
            repeat=_policy(settings),
            now=_now(settings),
            mask=cast("Mask", settings.mask),
        )
    _tell(args.out, rows, len(positions), short, settings, recommender.bundle_id)
    return 0


def _of_history(args: argparse.Namespace, settings: RecommendSettings, history: Path) -> int:
    """Writes or prints lists for people whose listening a file holds; nothing of them is stored."""
    from lhydra.commands.histories import read_histories, tell_notes
    from lhydra.console import print_table
    from lhydra.evaluation import lists

    recommender = _opened(args, settings)
    found = read_histories(history, settings, recommender.catalog)
    if args.out is None and len(found.states) > _PRINTED:
        what = f"a file for the lists of {len(found.states):,} users"
        raise UsageError(complain("--out", "nothing", what))
    tell_notes(found.notes)
    if args.out is not None:
        stage = cast("lists.Stage", settings.stage)
        states, n = found.states.items(), len(found.states)
        short, rows = lists.write_states(
            recommender, states, n, args.out, k=settings.k, stage=stage, repeat=_policy(settings), now=_now(settings)
        )
        _tell(args.out, rows, n, short, settings, recommender.bundle_id)
        return 0
    for user_id, state in found.states.items():
        print_table(
            ["rank", "artist", "title", "track", "score"], _cells(recommender, state, settings), f"for {user_id}"
        )
    return 0


def _cells(recommender: "Recommender", state: "UserState", settings: RecommendSettings) -> list[list[str]]:
    from lhydra.queries import known_user

    k, repeat, now = settings.k, _policy(settings), _now(settings)
    answer = recommender.recommend(known_user(state, k, repeat=repeat, now=now))
    final = settings.stage == "final"
    rows = answer.rows if final else answer.candidates[:k]
    scores = answer.scores if final else answer.candidate_scores[:k]
    catalog = recommender.catalog
    columns = (catalog.artists(rows), catalog.titles(rows), catalog.track_ids(rows), scores.tolist())
    return [
        [str(rank), artist, title, track_id, f"{score:.3f}"]
        for rank, (artist, title, track_id, score) in enumerate(zip(*columns, strict=True), start=1)
    ]


def _policy(settings: RecommendSettings) -> "Repeat":
    from lhydra.domain import Repeat

    return Repeat[(settings.repeat or ("allow" if settings.include_heard else "exclude")).upper()]


def _now(settings: RecommendSettings) -> int:
    return settings.now_s or int(time.time())


def _opened(args: argparse.Namespace, settings: RecommendSettings) -> "Recommender":
    """The recommender of the bundle; what it cannot answer as asked is told on stderr."""
    from lhydra.bundle.bundle import Bundle
    from lhydra.commands.histories import tell_notes
    from lhydra.recommender import LEARNT_AS_DECAY, Recommender

    recommender = Recommender(Bundle.open(args.store, settings.bundle), settings.depth)
    if settings.repeat == "learnt" and not recommender.knows_repeats:
        tell_notes([LEARNT_AS_DECAY])
    return recommender


def _tell(out: Path, rows: int, users: int, short: int, settings: RecommendSettings, bundle_id: str) -> None:
    print(f"{out}: {rows:,} rows for {users:,} user{'s' * (users != 1)}, {settings.stage} stage of {bundle_id}")
    if short:
        print(f"{short:,} users have fewer than {settings.k} tracks: nothing more is eligible")


_PRINTED = 5  # lists that a terminal is good for


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
