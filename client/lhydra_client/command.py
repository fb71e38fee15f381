"""`lhydra query`: asks a running server, for people (a table) or for machines (`--json`)."""

import argparse
import dataclasses
import importlib
import io
import json
import os
import re
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from lhydra_client import access_flags, catalogue_actions, operator_actions

if TYPE_CHECKING:
    from lhydra_client.client import Client
    from lhydra_client.results import Recommendations
    from lhydra_client.rules import Rules

HELP = (
    "ask a running server: recommend, plays, similar, explain, tracks, search, status, user, users, bundles, map; "
    "replay answers it has logged"
)
EXTRA = ""
GROUP = "lhydra.query_actions"  # of entry points: actions of other parts, modules with HELP, configure and run
DEFAULT_ADDRESS = "127.0.0.1:50051"
WHY = ("#", "title", "artist", "score", "why", "track id")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `lhydra query`.

    Args:
        parser: of the command.
    """
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--address", metavar="H:P", help=f"the server, or unix:PATH (default: LHYDRA_ADDRESS, else {DEFAULT_ADDRESS})"
    )
    access_flags.add(common)
    common.add_argument("--timeout-s", type=_number, default=5.0, help="deadline, retries included (default: 5)")
    common.add_argument("--json", action="store_true", help="print everything as JSON")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text, parents=[common])

    recommend = action("recommend", "Tracks for a user, best first.")
    recommend.set_defaults(parser=recommend)
    recommend.add_argument("--why", action="store_true", help="a reason for each track")
    recommend.add_argument("user", metavar="USER", nargs="?")
    recommend.add_argument(
        "--users-file", metavar="FILE", help="lists of many users, over a stream: one id per line, - for standard input"
    )
    _add_request(recommend)

    plays = action("plays", "Records that a user played tracks, just now.")
    plays.add_argument("user", metavar="USER")
    plays.add_argument("tracks", metavar="TRACK_ID", nargs="+")
    plays.add_argument("--request-id", default="", metavar="ID", help="of the answer that the plays came from")

    similar = action("similar", "Tracks similar to given ones.")
    similar.add_argument("tracks", metavar="TRACK_ID", nargs="+")
    similar.add_argument("--k", type=_whole, default=10, help="how many tracks (default: 10)")
    similar.add_argument("--for", dest="user", default="", metavar="USER", help="whose taste orders the most alike")
    similar.add_argument(
        "--dislike", action="append", default=[], metavar="ID", help="a track to move away from; again for more"
    )
    similar.add_argument("--exclude", action="append", default=[], metavar="ID", help="a track never to return")
    similar.add_argument("--genre", action="append", default=[], metavar="NAME", help="only tracks of this genre")
    similar.add_argument("--artist", action="append", default=[], metavar="NAME", help="only tracks by this artist")
    similar.add_argument("--rules", metavar="NAME", help="a rule set of the server (default: the server's)")
    similar.add_argument(
        "--max-per-artist", type=_whole, default=0, metavar="N", help="tracks of one artist, while there are others"
    )

    explain = action("explain", "Why a track is in a user's list, or why it is not.")
    explain.add_argument("user", metavar="USER")
    explain.add_argument("track", metavar="TRACK_ID")
    _add_request(explain)

    catalogue_actions.configure(action, _whole)
    operator_actions.configure(action, _whole)
    for entry in entry_points(group=GROUP):
        module = importlib.import_module(entry.value)
        other = actions.add_parser(entry.name, help=module.HELP, description=module.HELP)
        module.configure(other)
        other.set_defaults(elsewhere=module.run)


def _add_request(recommend: argparse.ArgumentParser) -> None:
    """Adds all that a request can say besides its user."""
    recommend.add_argument("--k", type=_whole, default=10, help="how many tracks (default: 10)")
    recommend.add_argument(
        "--exclude", type=_ids, action="extend", default=[], metavar="ID,...", help="tracks never to return"
    )
    recommend.add_argument(
        "--history",
        type=_ids,
        action="extend",
        default=[],
        metavar="ID,...",
        help="plays, oldest first, for an unknown user",
    )
    recommend.add_argument(
        "--session",
        type=_ids,
        action="extend",
        default=[],
        metavar="ID,...",
        help="plays of now that are not recorded, oldest first",
    )
    ids = {"exclude": "a track never to return", "history": "the next play", "session": "the next play of now"}
    for flag, what in ids.items():
        text = f"{what}, its id as it is, commas and all; again for more"
        recommend.add_argument(f"--{flag}-id", dest=flag, action="append", metavar="ID", help=text)
    recommend.add_argument(
        "--profile", type=_column, nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="profile columns for an unknown user, such as age=31 country=Chile",
    )  # fmt: skip
    recommend.add_argument(
        "--genre",
        action="append",
        default=[],
        metavar="NAME",
        help="only tracks of this genre, in the catalogue's spelling; again for or that one",
    )
    recommend.add_argument(
        "--artist",
        action="append",
        default=[],
        metavar="NAME",
        help="only tracks by this artist, in the catalogue's spelling; again for or that one",
    )
    recommend.add_argument("--min-year", type=_whole, metavar="YEAR", help="only tracks of this year or later")
    recommend.add_argument("--max-year", type=_whole, metavar="YEAR", help="only tracks of this year or earlier")
    recommend.add_argument(
        "--explicit", action=argparse.BooleanOptionalAction, help="only tracks that are marked explicit, or marked not"
    )
    repeats = recommend.add_mutually_exclusive_group()
    repeats.add_argument("--allow-repeats", action="store_true", help="heard tracks may come back")
    repeats.add_argument("--decay-repeats", action="store_true", help="heard tracks may come back after a time")
    repeats.add_argument(
        "--repeat",
        metavar="POLICY",
        help="what becomes of heard tracks: exclude (the default), allow, decay, or learnt, when the model has learnt "
        "that they come back",
    )
    recommend.add_argument(
        "--now-s", type=_whole, default=0, metavar="SECONDS", help="Unix time from which ages count (default: now)"
    )
    recommend.add_argument("--rules", metavar="NAME", help="a rule set of the server, or off (default: the server's)")
    recommend.add_argument(
        "--max-per-artist", type=_whole, default=0, metavar="N", help="tracks of one artist, while there are others"
    )
    recommend.add_argument(
        "--diversity", type=_number, default=0.0, metavar="S", help="how far the list spreads, 0 to 1 (default: 0)"
    )
    recommend.add_argument(
        "--cap", type=_cap, action="append", default=[], metavar="COLUMN=N", help="tracks of one value in a column"
    )
    recommend.add_argument(
        "--calibrate", metavar="COLUMN", default="", help="mix this column as the user's own plays do"
    )
    recommend.add_argument(
        "--block", type=_named, action="append", default=[], metavar="COLUMN=VALUE", help="never return such tracks"
    )
    recommend.add_argument(
        "--explore", type=_whole, default=0, metavar="N", help="places of the list that are drawn at random"
    )
    recommend.add_argument(
        "--seed", type=_whole, default=0, metavar="N", help="of those draws; the same seed draws the same list"
    )


def run(args: argparse.Namespace) -> int:
    """Runs one action and prints the answer; an error of the client becomes one line on stderr.

    Args:
        args: as parsed.

    Returns:
        The exit code: 1 after an error of the client.
    """
    if args.action not in _ACTIONS:
        return int(args.elsewhere(args))
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # which would say in lines of its own what our one line says
    from lhydra_client.client import Client
    from lhydra_client.errors import ClientError

    for stream in (sys.stdout, sys.stderr):  # a title that the terminal's encoding lacks must not end in a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        address = args.address or os.environ.get("LHYDRA_ADDRESS") or DEFAULT_ADDRESS
        with Client(address, timeout_s=args.timeout_s, **access_flags.read(args)) as client:
            if getattr(args, "users_file", None) is not None:
                return _many(client, args)
            text, values = _ACTIONS[args.action](client, args)
    except ClientError as error:
        print(f"lhydra query: {error}", file=sys.stderr)
        return 1
    print(json.dumps(values, indent=2) if args.json else text)
    return 0


def _recommend(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if args.user is None:
        args.parser.error("found no user, expected USER or --users-file FILE")
    return _shown(args.user, args.k, client.recommend(args.user, args.k, **_options(args)))


def _many(client: "Client", args: argparse.Namespace) -> int:
    from lhydra_client import bulk

    if args.user is not None:
        args.parser.error(f"found user {args.user} and --users-file, expected one of them")

    def shown(user: str, answer: "Recommendations") -> tuple[str, dict[str, Any]]:
        return _shown(user, args.k, answer)

    return bulk.run(client, args.users_file, args.k, _options(args), shown, as_json=args.json)


def _shown(user: str, k: int, answer: "Recommendations") -> tuple[str, dict[str, Any]]:
    return _list_of_tracks(f"user {user}", answer), {"user_id": user, "k": k} | _values(answer)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    from lhydra_client.requests import Filter

    wanted = Filter(args.genre, args.artist, args.min_year, args.max_year, args.explicit)
    return {
        "exclude": args.exclude,
        "history": args.history,
        "profile": _each_once(args, "--profile", args.profile),
        "filter": None if wanted == Filter([], []) else wanted,
        "allow_repeats": args.allow_repeats,
        "repeat": "decay" if args.decay_repeats else args.repeat,
        "session": args.session,
        "now_s": args.now_s,
        "rules": _rules(args),
        "max_per_artist": args.max_per_artist,
        "diversity": args.diversity,
        "seed": args.seed,
        "explain": getattr(args, "why", False),
    }


def _rules(args: argparse.Namespace) -> "Rules | None":
    from lhydra_client.rules import Rules

    block: dict[str, list[str]] = {}
    for column, value in args.block:
        block.setdefault(column, []).append(value)
    rules = Rules(
        "" if args.rules in (None, "off") else args.rules,
        args.rules == "off",
        _each_once(args, "--cap", args.cap),
        args.calibrate,
        block=block,
        explore_slots=args.explore,
    )
    return None if rules == Rules() else rules


def _each_once(args: argparse.Namespace, flag: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Values by name, of which none is lost: another value for the same name ends the command."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            args.parser.error(f"{flag} {name}: found it twice, {found[name]} and {value}, expected it once")
    return found


def _similar(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from lhydra_client.requests import Filter

    answer = client.similar(
        args.tracks,
        args.k,
        exclude=args.exclude,
        filter=Filter(args.genre, args.artist) if args.genre or args.artist else None,
        dislike=args.dislike,
        user_id=args.user,
        rules=args.rules,
        max_per_artist=args.max_per_artist,
    )
    title = f"similar to {', '.join(args.tracks)}" + f" for {args.user}" * bool(args.user)
    return _list_of_tracks(title, answer), {"track_ids": args.tracks, "k": args.k} | _values(answer)


def _plays(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from lhydra_client.requests import Play

    answer = client.record_plays([Play(args.user, track, request_id=args.request_id) for track in args.tracks])
    text = f"recorded {answer.recorded} play{'' if answer.recorded == 1 else 's'} of user {args.user}"
    if answer.unknown_tracks:
        text += f", {answer.unknown_tracks} of a track that the bundle being served does not hold"
        if any("," in track for track in args.tracks):
            text += " (a comma is part of an id here: several are apart by spaces)"
    return _clean(text), {"user_id": args.user} | _values(answer)


def _explain(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from google.protobuf.json_format import MessageToDict

    from lhydra_client.explained import text
    from lhydra_client.requests import recommend_request

    answer = client.explain(args.user, args.track, recommend_request(args.user, args.k, **_options(args)))
    values = {"user_id": args.user, "track_id": args.track} | _values(answer)
    for one in values["would_bring_in"]:
        one["request"] = MessageToDict(one["request"], preserving_proto_field_name=True)
    return text(args.user, args.track, answer), values


_ACTIONS = {
    "recommend": _recommend,
    "plays": _plays,
    "similar": _similar,
    "explain": _explain,
    **catalogue_actions.ACTIONS,
    **operator_actions.ACTIONS,
}


def _list_of_tracks(title: str, answer: "Recommendations") -> str:
    from lhydra_client.table import score, table

    took_ms = sum(answer.stages_us.values()) / 1000
    lines = [_clean(f"{title} · tier {answer.tier} · bundle {answer.bundle_id} · took {took_ms:.1f} ms")]
    lines += [_clean(f"degraded: {reason}") for reason in answer.degraded]
    lines += [
        _clean(f"rule {one.rule}: moved {one.moved}{f'; {one.gave_way}' * bool(one.gave_way)}")
        for one in answer.rules_applied
    ]
    rows = [
        (str(rank), track.title, track.artist, score(track.score), track.track_id)
        for rank, track in enumerate(answer.tracks, 1)
    ]
    if not rows:
        return "\n".join([*lines, "no track is eligible"])
    if any(track.reasons for track in answer.tracks):
        why = [(*row[:-1], "; ".join(track.reasons), row[-1]) for row, track in zip(rows, answer.tracks, strict=True)]
        return "\n".join([*lines, table(WHY, why, right=(0, 3), sentences=4)])
    return "\n".join([*lines, table(("#", "title", "artist", "score", "track id"), rows, right=(0, 3))])


def _values(answer: Any) -> dict[str, Any]:
    return dataclasses.asdict(answer)


def _clean(text: str) -> str:
    from lhydra_client.table import clean

    return clean(text)


def _ids(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _whole(text: str) -> int:
    """Python's own `int` takes 1_999 and the digits of every script."""
    if not _WHOLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number")
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number")
    return float(text)


def _cap(text: str) -> tuple[str, int]:
    name, value = _named(text)
    return name, _whole(value)


def _named(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not (name and found):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected COLUMN=VALUE")
    return name, value


def _column(text: str) -> tuple[str, str | float]:
    name, found, value = text.partition("=")
    if not (name and found):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=VALUE")
    return name, float(value) if _NUMBER.fullmatch(value) else value
