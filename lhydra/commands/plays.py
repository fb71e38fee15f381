"""`lhydra plays export`, `prune`: what servers recorded, out as training data, and no longer kept than needed."""

import argparse
import json
import time
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra.commands.outputs import check_output
from lhydra.commands.user_store import opened
from lhydra.config import Settings, add_flags, resolve, setting
from lhydra.errors import ConfigError, UsageError, complain

if TYPE_CHECKING:
    from lhydra.events.export import Cursor, NameOf
    from lhydra.users.store import UserStore

HELP = "export the plays that servers recorded, and prune what is old"
EXTRA = "index"
_EXPORT = """\
Writes the event log, a row per play in order of recording, as a table that `lhydra prepare` reads:
user_id, track_id, playcount, timestamp, position, session, skipped, completed, ms_played, event_id,
request_id (of the answer that the play came from), recorded_ms. Servers may be running.

With --cursor FILE each export goes on where the last one ended, whatever happens in between: a play
is in exactly one of the files. Where nothing is new, no file is written.

example
  lhydra plays export --store store/ plays.parquet
  lhydra plays export --store store/ --cursor nightly.json listening/plays-2026-11-29.parquet
  lhydra plays export --users redis://localhost/0 --since 2026-11-01 plays.parquet
"""
_PRUNE = """\
Takes plays out of the event log that were recorded before a moment; what is known of users stays.
The file of LMDB does not shrink: its free pages are used again.

example
  lhydra plays prune --store store/ --before 2026-09-01
"""


@dataclass(frozen=True)
class PlaysSettings(Settings):
    """Where the event log lies, and which part of it is meant."""

    store: str | None = setting(None, "the bundle store; its event log lies in STORE/users.lmdb")
    users: str | None = setting(None, "another user store, lmdb:PATH or redis://HOST:PORT/DB")
    since: str | None = setting(None, "plays recorded at this time or later: Unix seconds or ISO 8601, UTC")
    cursor: Path | None = setting(None, "the file that remembers how far plays were exported; made where there is none")
    log_key: Path | None = setting(None, "hash user ids with the key in this file, as the logs of servers do")
    before: str | None = setting(None, "plays recorded before this time: Unix seconds or ISO 8601, UTC")
    json: bool = setting(False, "print the counts as JSON")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `lhydra plays`.

    Args:
        parser: of the command.
    """
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text, example, only in (
        ("export", "write recorded plays to a Parquet file", _EXPORT, ("since", "cursor", "log_key")),
        ("prune", "take recorded plays out of the event log", _PRUNE, ("before",)),
    ):
        action = actions.add_parser(
            name, help=text, description=text, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add_flags(action, PlaysSettings, ("store", "users", *only, "json"))
        if name == "export":
            action.add_argument("out", type=Path, metavar="OUT.parquet", help="the file to write")


def run(args: argparse.Namespace) -> int:
    """Does one action.

    Args:
        args: of the command line.

    Returns:
        0.

    Raises:
        ConfigError: a flag is missing, or says something that is not there.
        UserStoreError: the store cannot be read, or written.
    """
    settings = resolve("plays", PlaysSettings, args)
    return _export(settings, args.out) if args.action == "export" else _prune(settings)


def _export(settings: PlaysSettings, out: Path) -> int:
    from lhydra.events.export import Cursor, is_export
    from lhydra.timing import timed

    if settings.since and settings.cursor:
        raise ConfigError(complain("--since", "it with --cursor", "one of them: a cursor knows where to go on"))
    since_ms = None if settings.since is None else 1000 * _moment("--since", settings.since)
    target = out.resolve()  # through a symbolic link, not over it
    check_output("OUT", target, is_export)
    name_of = _named(settings.log_key)
    with opened(*_place(settings)) as (users, where), timed("plays.export"):
        if settings.cursor is None:
            n_plays, _ = _written(users, target, Cursor(users.event_log().identity), since_ms, name_of)
        else:
            n_plays = _go_on(users, target, settings.cursor.resolve(), name_of)
    if settings.json:
        print(json.dumps({"users_store": where, "plays": n_plays, "out": str(out)}))
    elif n_plays or settings.cursor is None:
        print(f"wrote {n_plays:,} play{'' if n_plays == 1 else 's'} of {where} to {out}")
    else:
        print(f"no plays in {where} that {settings.cursor} has not passed: {out} is not written")
    return 0


def _go_on(users: "UserStore", out: Path, path: Path, name_of: "NameOf | None") -> int:
    """Exports what comes after a cursor. Whenever this is killed, the next run writes each play to one file only.

    The cursor names the file before it is written. A file that was written whole while its cursor stayed behind is
    known by its own metadata: it counts as exported, or is written again where the same file is asked for.
    """
    from lhydra.events.export import advance, alone, read_cursor, span_of

    if out == path or not path.parent.is_dir():
        found = "OUT itself" if out == path else f"no folder {path.parent}"
        raise ConfigError(complain(f"--cursor {path}", found, "a file of its own in a folder that exists"))
    with alone(path):
        cursor = read_cursor(path, users.event_log().identity)
        target = str(out)
        if cursor.writing != target:
            span = span_of(Path(cursor.writing)) if cursor.writing else None
            if span and (span.store, span.begin) == (cursor.store, cursor.position):
                cursor = replace(cursor, position=span.end)
            if out.exists() and out.stat().st_size:
                expected = f"a free path: plays in it would be lost, {path} has passed them"
                raise ConfigError(complain("OUT", f"{out}, an earlier export", expected))
        if not cursor.store:  # nothing was ever recorded
            return 0
        advance(path, replace(cursor, writing=target))
        n_plays, end = _written(users, out, cursor, None, name_of, empty=False)
        advance(path, replace(cursor, position=end, writing=""))
    return n_plays


def _written(
    users: "UserStore",
    out: Path,
    cursor: "Cursor",
    since_ms: int | None,
    name_of: "NameOf | None",
    *,
    empty: bool = True,
) -> tuple[int, str]:
    """Writes what comes after a cursor; returns how many plays, and the position of the last."""
    from lhydra.events.event import recorded_ms_of
    from lhydra.events.export import write

    entries = users.entries(cursor.position)
    if since_ms is not None:
        entries = ([one for one in chunk if recorded_ms_of(one[1]) >= since_ms] for chunk in entries)
    chunks = filter(None, entries)
    first = next(chunks, None)
    if first is None and not empty:
        return 0, cursor.position
    n_plays, span = write(out, cursor.store, cursor.position, chain([first or []], chunks), name_of)
    return n_plays, span.end


def _prune(settings: PlaysSettings) -> int:
    if settings.before is None:
        raise UsageError(complain("--before", "nothing", "a time: plays recorded before it are taken away"))
    before = _moment("--before", settings.before)
    if before > time.time():
        raise ConfigError(complain("--before", f"{settings.before}, which is to come", "a time that has passed"))
    with opened(*_place(settings)) as (users, where):
        n_plays = users.prune(1000 * before)
        left = users.event_log()
    if settings.json:
        print(json.dumps({"users_store": where, "pruned": n_plays, "plays": left.entries, "bytes": left.n_bytes}))
    else:
        print(f"took {n_plays:,} plays out of the event log of {where}; {left.entries:,} are left")
    return 0


def _place(settings: PlaysSettings) -> tuple[str | None, Path | None]:
    return settings.users, None if settings.store is None else Path(settings.store)


def _moment(flag: str, text: str) -> int:
    """Unix seconds of a time that people typed."""
    from lhydra.data.times import seconds_of

    found = seconds_of(text)
    if found is None or found < 0:
        raise ConfigError(complain(flag, repr(text), "Unix seconds, or a time such as 2026-11-29 or 2026-11-29T04:00Z"))
    return found


def _named(log_key: Path | None) -> "NameOf | None":
    """What stands for a user id in an export: the id, or what stands for it in logs."""
    if log_key is None:
        return None
    from lhydra.users.tag import read_key, use_key, user_tag

    use_key(read_key(log_key))
    return user_tag
