"""`lhydra query replay`: answers logged requests again by the code that serves, and says exactly what differs."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lhydra.errors import BundleError, ConfigError, DataError, MissingExtra, complain

if TYPE_CHECKING:
    from lhydra.answers.entry import LoggedAnswer

HELP = "answer logged requests again, from the bundle and the state that are named there, and say what differs"
_NEEDED = ("numpy", "faiss", "onnxruntime", "grpc_health")
_SHOWN = 20  # answers whose differences are printed; --json has all


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments.

    Args:
        parser: of the action.
    """
    what = "a file of an answer log, its folder, or the request id of one answer in it"
    parser.add_argument("what", metavar="FILE|REQUEST_ID", help=what)
    parser.add_argument("--store", type=Path, required=True, help="the store with the bundles that answered")
    parser.add_argument("--answers", type=Path, metavar="FOLDER", help="of the answer log (default: STORE/answers)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Answers again, and prints what came of it.

    Args:
        args: as parsed.

    Returns:
        0 where every answer is equal, 1 where one differs or could not be given again.

    Raises:
        MissingExtra: what serves is not installed.
        ConfigError, DataError: no such file or request id, or a file that is no answer log.
        BundleError: no bundle that answered is there.
    """
    for module in _NEEDED:
        if find_spec(module) is None:
            raise MissingExtra("server", module)
    from lhydra_server.replaying import Opened, differences

    opened, differ, asked = Opened(args.store), [], 0
    gone: dict[str, BundleError] = {}
    n_gone: Counter[str] = Counter()
    for answer in _answers(args):
        asked += 1
        try:
            served = opened.of(answer)
        except BundleError as error:
            gone.setdefault(answer.bundle_id, error)
            n_gone[answer.bundle_id] += 1
            continue
        if found := differences(answer, served):
            differ.append(_named(answer) | {"differences": found})
    if n_gone.total() == asked:
        raise next(iter(gone.values()))
    equal = asked - len(differ) - n_gone.total()
    missing = [{"bundle_id": name, "answers": n_gone[name], "why": str(gone[name])} for name in gone]
    if args.json:
        print(json.dumps({"answers": asked, "equal": equal, "differ": differ, "not_answered": missing}, indent=2))
    else:
        _tell(asked, equal, differ, missing)
    return int(equal < asked)


def _answers(args: argparse.Namespace) -> "Iterator[LoggedAnswer]":
    """The answers that the arguments name; at least one."""
    from lhydra.answers import folder

    place, log = Path(args.what), args.answers or args.store / folder.NAME
    if place.exists():
        found = folder.read(place, _say)
    elif place.suffix in (".jsonl", ".gz"):
        raise ConfigError(complain(place, "no such file", "a file of an answer log, or a request id"))
    elif not log.is_dir():
        expected = (
            f"an answer log for {args.what}: `lhydra serve --log-answers SHARE` writes one, --answers names another"
        )
        raise ConfigError(complain(log, "no such folder", expected))
    else:
        found = folder.read_of(log, args.what, _say)
    answer = next(found, None)
    if answer is None and place.exists():
        raise DataError(complain(place, "no entries", "an answer log: `lhydra serve --log-answers SHARE` writes one"))
    if answer is None:
        expected = f"one in {log}; --answers FOLDER names another log, and only a sample is logged"
        raise ConfigError(complain("request id", args.what, expected))
    yield answer
    yield from found


def _named(answer: "LoggedAnswer") -> dict[str, Any]:
    return {"request_id": answer.request_id, "user_id": answer.user_id, "bundle_id": answer.bundle_id}


def _tell(asked: int, equal: int, differ: list[dict[str, Any]], missing: list[dict[str, Any]]) -> None:
    for one in differ[:_SHOWN]:
        print(f"{one['request_id']} of user {one['user_id']}, bundle {one['bundle_id']}:")
        for found in one["differences"]:
            where = f"place {found['place']}" if "place" in found else found["field"]
            print(f"  {where}: was {_shown(found['was'])}, is {_shown(found['is'])}")
    if len(differ) > _SHOWN:
        print(f"... and {len(differ) - _SHOWN:,} more: --json has all")
    for lost in missing:
        print(f"{lost['answers']:,} not answered again: {lost['why']}")
    print(f"{asked:,} answer{'s' * (asked != 1)}: {equal:,} equal, {len(differ):,} differ" + _also(missing))


def _also(missing: list[dict[str, Any]]) -> str:
    return f", {sum(lost['answers'] for lost in missing):,} not answered again" if missing else ""


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):  # a place of the list
        chance = f", drawn with {value['propensity']!r}" if value["propensity"] else ""
        return f"{value['track_id']} with score {value['score']!r}{chance}"
    return repr(value)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
