"""`lhydra users`: profiles and histories into the user store that servers read; what is stored of one person."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lhydra.commands import person
from lhydra.commands.histories import check_flags
from lhydra.config import add_flags, resolve, setting
from lhydra.data.settings import ReadSettings
from lhydra.errors import ConfigError, UsageError, complain, quoted
from lhydra.limits import AN_ID, MAX_ID_CHARS, is_id

if TYPE_CHECKING:
    from lhydra.data.dataset import AsOf
    from lhydra.domain import UserState

HELP = "load users into the store that servers read; show, export and delete what is stored of a person"
EXTRA = "index"


@dataclass(frozen=True)
class UsersSettings(ReadSettings):
    """Where users are loaded to, and what of them."""

    store: str | None = setting(None, "the bundle store; its users lie in STORE/users.lmdb")
    users: str | None = setting(None, "another user store, lmdb:PATH or redis://HOST:PORT/DB")
    answers: str | None = setting(None, "folder of the answer log; by default answers inside the bundle store")
    as_of: str = setting(
        "now",
        "now: all plays; test: history is the train fold, heard is train and valid; valid: both are train",
        ("now", "test", "valid"),
    )
    history: Path | None = setting(
        None, "an export of people's listening, in any form that `lhydra prepare` reads, instead of DATASET"
    )
    json: bool = setting(False, "print the counts as JSON")


@dataclass
class Counts:
    """Totals over the users loaded."""

    users: int = 0
    history_entries: int = 0
    heard_tracks: int = 0
    left_out: int = 0

    def of(self, states: Iterable[tuple[str, "UserState"]]) -> Iterator[tuple[str, "UserState"]]:
        """Passes users on and counts them; leaves out those whose id no request can name.

        Args:
            states: (user id, state) pairs.

        Yields:
            The pairs whose id is one.
        """
        for user_id, state in states:
            if not is_id(user_id):
                self.left_out += 1
                continue
            self.users += 1
            self.history_entries += len(state.history)
            self.heard_tracks += len(state.heard)
            yield user_id, state


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `lhydra users`.

    Args:
        parser: of the command.
    """
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "load profiles and histories; plays recorded live that the dataset does not hold yet are kept"
    load = actions.add_parser("load", help=text, description=text)
    load.add_argument("dataset", type=Path, nargs="?", metavar="DATASET", help="made by `lhydra prepare`")
    add_flags(load, UsersSettings, [field.name for field in fields(UsersSettings) if field.name != "answers"])
    person.configure(actions, lambda action: add_flags(action, UsersSettings, ("store", "users", "answers")))


def run(args: argparse.Namespace) -> int:
    """Does one action.

    Args:
        args: of the command line.

    Returns:
        The exit code.

    Raises:
        ConfigError: ID is not an id.
    """
    if args.action == "load":
        return _load(args)
    if not is_id(args.user_id):
        raise ConfigError(complain("ID", quoted(args.user_id), AN_ID))
    if args.action == "hash":
        return person.tag(args.user_id, args.log_key)
    settings = resolve("users", UsersSettings, args)
    store = None if settings.store is None else Path(settings.store)
    place = settings.users, store, person.answers_of(settings.answers, store)
    if args.action == "export":
        return person.export(args.user_id, *place, args.out)
    return {"show": person.show, "delete": person.delete}[args.action](args.user_id, *place)


def _load(args: argparse.Namespace) -> int:
    """Loads the users; servers on the same store may be running, and see each user as soon as it is written.

    Args:
        args: of the command line.

    Returns:
        0.

    Raises:
        UsageError: neither `--store` nor `--users` is given, or neither or both of dataset and history.
        ConfigError: `--store` is a file.
    """
    settings = resolve("users", UsersSettings, args)
    if settings.store is None and settings.users is None:
        raise UsageError(complain("--store", "nothing", "the folder of a store, new or old, or --users URL"))
    if (settings.history is None) == (args.dataset is None):
        found = "neither" if settings.history is None else "both"
        raise UsageError(complain("DATASET and --history", found, "one of them"))
    check_flags(args, ("as_of",), history=settings.history is not None)
    if settings.history is not None:
        return _load_history(settings, settings.history)
    from lhydra.bundle.manifest import check_place, current_or_none
    from lhydra.console import with_progress
    from lhydra.data.dataset import Dataset, user_states
    from lhydra.data.plays import with_plays
    from lhydra.events.log import holds_all
    from lhydra.timing import timed
    from lhydra.users.store import open_users, redacted

    if args.dataset.exists() and not (args.dataset / "dataset.json").is_file():
        what = "a dataset of `lhydra prepare`; an export goes by --history EXPORT"
        raise ConfigError(complain(args.dataset, "no dataset", what))
    dataset = Dataset.open(args.dataset)
    n_users, counts = len(dataset.user_ids), Counts()
    store = Path(settings.store or ".")
    if settings.users is None:
        check_place(store)
        try:
            store.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(complain("--store", f"the file {store}", "a folder, new or old")) from None
    users = open_users(settings.users, store)
    try:
        with timed("users.load"):
            as_of = cast("AsOf", settings.as_of)
            states = counts.of(with_plays(dataset, as_of, user_states(dataset, as_of)))
            logged = dataset.info.logged if as_of == "now" else {}
            log = users.event_log()
            told = logged and logged["store"] == log.identity and holds_all(log, logged["position"])
            users.load(with_progress(states, n_users, "users"), logged["position"] if told else None)
    finally:
        users.close()
    if counts.left_out:  # a dataset of before `prepare` refused them
        what = f"ids of more than {MAX_ID_CHARS} characters or with control characters: no request can name them"
        print(f"warning: {counts.left_out:,} users left out: {what}", file=sys.stderr)
    where = redacted(settings.users) if settings.users else f"lmdb:{store}/users.lmdb"
    if settings.json:
        print(json.dumps({"users_store": where, "as_of": settings.as_of, **vars(counts)}))
    else:
        entries, heard = f"{counts.history_entries:,} history entries", f"{counts.heard_tracks:,} heard tracks"
        print(f"loaded {counts.users:,} users into {where} as of {settings.as_of}: {entries}, {heard}")
        if settings.users is None and not current_or_none(store):  # or the path was mistyped
            print(f"{store} has no bundle yet; next: lhydra index rebuild --model MODEL --data DATASET --store {store}")
    return 0


def _load_history(settings: UsersSettings, history: Path) -> int:
    """Brings people's own listening to a store; what is stored of them already stays, and nothing counts twice."""
    if settings.store is None:
        raise UsageError(complain("--store", "nothing", "the store whose bundle knows the tracks"))
    from lhydra.bundle.bundle import Bundle
    from lhydra.commands.histories import read_histories, tell_notes, with_history
    from lhydra.users.store import open_users, redacted

    store = Path(settings.store)
    found = read_histories(history, settings, Bundle.open(store).catalog)
    users = open_users(settings.users, store)
    try:
        stored = {user_id: users.get(user_id) for user_id in found.states}
        states = {user_id: with_history(stored[user_id], state) for user_id, state in found.states.items()}
        users.load(states.items())
    finally:
        users.close()
    again = [user_id for user_id, state in stored.items() if state is not None]
    where = redacted(settings.users) if settings.users else f"lmdb:{store}/users.lmdb"
    entries = sum(len(state.history) for state in states.values())
    if settings.json:
        counts = {"users": len(states), "history_entries": entries, "notes": found.notes}
        print(json.dumps({"users_store": where, **counts}))
        return 0
    tell_notes(found.notes)
    if again:
        print(f"in the store already, and added to: {', '.join(again[:3])}{' ...' * (len(again) > 3)}", file=sys.stderr)
    s = "s" * (len(states) != 1)
    print(f"loaded {len(states):,} user{s} into {where}: {entries:,} tracks in their histories")
    return 0
