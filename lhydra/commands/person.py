"""`lhydra users show | export | delete | hash`: what is stored of one person, and away with it."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lhydra.commands.outputs import check_output, is_json_with
from lhydra.commands.user_store import opened
from lhydra.console import print_table
from lhydra.errors import ConfigError, LhydraError, UserStoreError, complain, quoted

if TYPE_CHECKING:
    from lhydra.bundle.catalog import Catalog
    from lhydra.domain import Hashes
    from lhydra.events.event import Event
    from lhydra.users.store import UserStore
    from lhydra.users.stored import StoredUser

LAST = 10  # plays that `show` prints
FORMAT = 1  # of the document


def answers_of(given: str | None, store: Path | None) -> Path | None:
    """Returns the folder of the answer log.

    Args:
        given: by a flag.
        store: the bundle store, which holds it by default.

    Returns:
        The folder, which need not be there; None where nobody says.
    """
    from lhydra.answers.folder import NAME

    return Path(given) if given is not None else store / NAME if store is not None else None


def show(user_id: str, url: str | None, store: Path | None, answers: Path | None) -> int:
    """Prints what is stored of a person, for people.

    Args:
        user_id: whose.
        url: of the user store; None for the one inside the bundle store.
        store: the bundle store, whose bundle knows the tracks.
        answers: folder of the answer log; None where nobody says.

    Returns:
        0.

    Raises:
        ConfigError: nothing is stored of them.
        UserStoreError: the store or the record cannot be read.
    """
    document, where = _all_of(user_id, url, store, answers)
    logged = _answers_row(document["answers"] or [], answers)
    if "history" not in document:
        print(f"{user_id}: nothing in {where}")
        print_table(["", ""], [logged])
        return 0
    history, recent = document["history"], document["recent_plays"]
    firsts = [time for entry in history if (time := entry["first_play_s"]) > 0]
    lasts = [
        time for entry in (*history, *recent) if (time := entry["last_play_s" if "count" in entry else "time_s"]) > 0
    ]
    print(f"{user_id} in {where}")
    declared = [[name, str(value)] for name, value in document["profile"].items()]
    rows = [
        ["profile", ", ".join(f"{name} {value}" for name, value in declared) or "nothing declared"],
        ["history", f"{len(history):,} tracks, {sum(entry['count'] for entry in history):,.0f} plays"],
        ["first play (UTC)", _when(min(firsts, default=0))],
        ["last play (UTC)", _when(max(lasts, default=0))],
        ["heard", f"{len(document['heard']):,} tracks, kept out of lists unless a request lets them return"],
        ["skipped", f"{len(document['skipped']):,} tracks"],
        ["event ids", f"{len(document['event_hashes']):,} remembered, so that a repeated call counts once"],
        ["event log", f"{len(document['event_log']):,} plays as they were recorded"],
        ["record", f"format {document['record_format']}, version {document['version']}"],
        logged,
        ["size", f"{document['bytes']:,} bytes in {document['values']:,} value{'s' * (document['values'] > 1)}"],
    ]
    print_table(["", ""], rows)
    last = [[_when(play["time_s"]), _track(play), _flags(play)] for play in recent[-LAST:][::-1]]
    if not last:
        newest = history[-LAST:][::-1]
        last = [[_when(entry["last_play_s"]), _track(entry), f"{entry['count']:,g} plays"] for entry in newest]
    if last:
        print_table(
            ["time (UTC)", "track", ""], last, f"The last {len(last)} " + ("plays" if recent else "tracks played")
        )
    return 0


def export(user_id: str, url: str | None, store: Path | None, answers: Path | None, out: Path | None) -> int:
    """Writes all that is stored of a person as one JSON document.

    Args:
        user_id: whose.
        url: of the user store; None for the one inside the bundle store.
        store: the bundle store, whose bundle knows the tracks.
        answers: folder of the answer log; None where nobody says.
        out: the file; None for stdout.

    Returns:
        0.

    Raises:
        ConfigError: nothing is stored of them, or the file cannot be written.
        UserStoreError: the store or the record cannot be read.
    """
    check_output("OUT", out, is_json_with("user_id", "record_format"))
    document, _ = _all_of(user_id, url, store, answers)
    if answers is None:
        print("the answer log is not in it: say where it is, --store STORE or --answers FOLDER", file=sys.stderr)
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        from lhydra.files import write_text

        write_text(out, text)
    return 0


def delete(user_id: str, url: str | None, store: Path | None, answers: Path | None) -> int:
    """Takes away all that is stored of a person.

    Args:
        user_id: whose.
        url: of the user store; None for the one inside the bundle store.
        store: the bundle store.
        answers: folder of the answer log; None where nobody says.

    Returns:
        0, also where nothing was stored: the command may be repeated.

    Raises:
        UserStoreError: the store cannot be written.
    """
    with opened(url, store) as (users, where):
        deleted = users.delete(user_id)
    print(f"deleted {user_id} from {where}" if deleted else f"nothing is stored of {user_id} in {where}")
    if answers is None:
        print("the answer log is reached with --store STORE or --answers FOLDER")
    else:
        from lhydra.answers.people import delete as delete_answers

        if n := delete_answers(answers, user_id):
            print(f"deleted {n:,} of their answers from {answers}")
    _tell_bundles(user_id, store)
    return 0


def tag(user_id: str, log_key: Path) -> int:
    """Prints what stands for a person in the logs of servers that use the same key.

    Args:
        user_id: whose.
        log_key: the file with the key.

    Returns:
        0.

    Raises:
        ConfigError: the file holds no key.
    """
    from lhydra.users.tag import read_key, use_key, user_tag

    use_key(read_key(log_key))
    print(user_tag(user_id))
    return 0


def _tell_bundles(user_id: str, store: Path | None) -> None:
    """Names the bundles whose models know the person's plays: deleting does not reach into them."""
    from lhydra.bundle.fitted import bundles_of
    from lhydra.bundle.manifest import current_bundle_id

    if store is None:
        print("which bundles were fitted on the plays of this person is told with --store STORE")
        return
    fitted, unknown = bundles_of(store, user_id)
    current = ""
    with contextlib.suppress(LhydraError):
        current = current_bundle_id(store)
    for bundle_id in fitted:
        print(f"fitted on the plays of this person: {bundle_id}" + " (current)" * (bundle_id == current))
    if fitted:
        print("train and rebuild from data without them, then delete those bundles and their models")
    if unknown:
        told = "not known whether these learned from this person, as made by an earlier Lhydra, or damaged"
        print(f"{told}: {', '.join(unknown)}")


def _all_of(user_id: str, url: str | None, store: Path | None, answers: Path | None) -> tuple[dict[str, Any], str]:
    """The document of a person, and where the user store lies; one of whom only answers are known has no record."""
    from lhydra.answers.people import of_user

    logged = [] if answers is None else list(of_user(answers, user_id, lambda line: print(line, file=sys.stderr)))
    with opened(url, store) as (users, where):
        found, plays = _stored(users, user_id), _logged(users, user_id)
    if found is None and not logged:
        raise ConfigError(complain(f"user {quoted(user_id)}", f"nothing stored in {where}", "a user of that store"))
    record = {"format": FORMAT, "user_id": user_id}
    if found is not None:
        record = _document(user_id, found, _catalog(store), plays)
    return record | {"answers": None if answers is None else logged}, where


def _answers_row(entries: Sequence[dict[str, Any]], answers: Path | None) -> list[str]:
    """The row of `show` that tells of the answer log."""
    if answers is None:
        return ["answers", "told with --store STORE or --answers FOLDER"]
    newest = f", the newest of {_when(max(entry['now_s'] for entry in entries))}" if entries else ""
    return ["answers", f"{len(entries):,} in {answers}{newest}"]


def _stored(users: "UserStore", user_id: str) -> "StoredUser | None":
    from lhydra.users.record import UserRecord
    from lhydra.users.stored import StoredUser
    from lhydra.users.tag import user_tag

    try:
        found = users.stored(user_id)
    except UserStoreError as error:
        is_damaged = user_tag(user_id) in str(error)  # else it is the store that does not answer
        hint = "; `lhydra users delete` takes it away all the same" if is_damaged else ""
        raise UserStoreError(f"{quoted(user_id)}: {error}{hint}") from None
    if found is None and _logged(users, user_id):  # a deletion that was cut short
        return StoredUser(UserRecord(), 0, 0, 0)
    return found


def _logged(users: "UserStore", user_id: str) -> list["Event"]:
    return [event for chunk in users.events(user_id=user_id) for _, event in chunk]


def _catalog(store: Path | None) -> "Catalog | None":
    """The tracks of the current bundle: the user store knows them by hash."""
    from lhydra.bundle.bundle import Bundle

    if store is None:
        return None
    try:
        return Bundle.open(store).catalog
    except LhydraError as error:
        print(f"tracks have no names: {error}", file=sys.stderr)
        return None


def _document(
    user_id: str, stored: "StoredUser", catalog: "Catalog | None", logged: "Sequence[Event]"
) -> dict[str, Any]:
    """Everything that is stored of a person; docs/operations.md says what each field means."""
    from lhydra.domain import COMPLETED, HALF_LIVES_DAYS, LIVE, SKIPPED
    from lhydra.repeats import repeats_of

    record, state = stored.record, stored.record.state

    def counted(entries: Any, repeats: Any) -> list[dict[str, Any]]:
        return [
            {
                **named,
                "count": float(entry["count"]),
                "first_play_s": int(repeat["first"]),
                "last_play_s": int(entry["time"]),
                "decayed": dict(zip(map(str, HALF_LIVES_DAYS), repeat["decayed"].tolist(), strict=True)),
            }
            for named, entry, repeat in zip(_named(entries["track"], catalog), entries, repeats, strict=True)
        ]

    recent = [
        {
            **named,
            "time_s": int(play["time"]),
            "skipped": bool(play["flags"] & SKIPPED),
            "completed": bool(play["flags"] & COMPLETED),
            "recorded": bool(play["flags"] & LIVE),
        }
        for named, play in zip(_named(state.recent["track"], catalog), state.recent, strict=True)
    ]
    sums = record.sums
    live = [
        {**named, "count": float(play["count"]), "last_play_s": int(play["time"]), "added_up": n < len(sums)}
        for n, (named, play) in enumerate(zip(_named(record.live["track"], catalog), record.live, strict=True))
    ]
    for entry, one in zip(live, sums, strict=False):
        entry["first_play_s"] = int(one["first"])
        entry["decayed"] = dict(zip(map(str, HALF_LIVES_DAYS), one["decayed"].tolist(), strict=True))
    return {
        "format": FORMAT,
        "user_id": user_id,
        "record_format": stored.format,
        "version": state.version,
        "flags": record.flags,
        "bytes": stored.n_bytes,
        "values": stored.n_values,
        "profile": dict(state.profile),
        "history": counted(state.history, repeats_of(state)),
        "recent_plays": recent,
        "heard": _named(state.heard, catalog),
        "skipped": _named(state.skipped, catalog),
        "recorded_since_load": live,
        "event_log": [
            {
                "recorded_ms": event.recorded_ms,
                **{
                    name if name != "time" else "time_s": v
                    for name, v in asdict(event.play).items()
                    if name != "user_id"
                },
            }
            for event in logged
        ],
        "event_hashes": [f"{event:016x}" for event in record.events.tolist()],
    }


def _named(hashes: "Hashes", catalog: "Catalog | None") -> list[dict[str, Any]]:
    """Tracks by hash, and by id, title and artist where the bundle knows them."""
    import numpy as np

    named: list[dict[str, Any]] = [{"track_hash": f"{one:016x}", "track_id": None} for one in hashes.tolist()]
    if catalog is None:
        return named
    rows = catalog.rows(np.ascontiguousarray(hashes))
    places = np.flatnonzero(rows >= 0)
    rows = rows[places]
    texts = zip(catalog.track_ids(rows), catalog.titles(rows), catalog.artists(rows), strict=True)
    for place, (track_id, title, artist) in zip(places.tolist(), texts, strict=True):
        named[place] |= {"track_id": track_id, "title": title, "artist": artist}
    return named


def _track(entry: dict[str, Any]) -> str:
    said = " by ".join(text for name in ("title", "artist") if (text := entry.get(name)))
    return said or entry["track_id"] or f"track {entry['track_hash']}"


def _flags(play: dict[str, Any]) -> str:
    return ", ".join(name for name in ("skipped", "completed", "recorded") if play[name])


def _when(seconds: int) -> str:
    """Unix seconds as UTC; a time that nobody knows is 0 or less."""
    if seconds <= 0:
        return "unknown"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s"


ACTIONS: Sequence[tuple[str, str]] = (
    ("show", "what is stored of a person"),
    ("export", "all that is stored of a person, as one JSON document"),
    ("delete", "take away all that is stored of a person; servers may be running"),
)


def configure(actions: "argparse._SubParsersAction[Any]", add_place: Any) -> None:
    """Adds the actions.

    Args:
        actions: of `lhydra users`.
        add_place: adds the flags that name the store to an action.
    """
    for name, text in ACTIONS:
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("user_id", metavar="ID", help="the user id, as in requests")
        if name == "export":
            action.add_argument("out", type=Path, nargs="?", metavar="OUT", help="the file (default: stdout)")
        add_place(action)
    text = "what stands for a person in logs that were written with a key"
    hashed = actions.add_parser("hash", help=text, description=text)
    hashed.add_argument("user_id", metavar="ID", help="the user id, as in requests")
    hashed.add_argument(
        "--log-key", type=Path, required=True, metavar="F", help="the file that `lhydra serve` was given"
    )
