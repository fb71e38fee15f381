"""One answer as a line of the log: what was asked, what was known, and what came of it."""

import base64
import json
from dataclasses import asdict, dataclass
from typing import Any, NotRequired, TypedDict

from lhydra.domain import UserState
from lhydra.errors import DataError, UserStoreError, complain
from lhydra.rules import Boost, Calibration, Collapse, Diversity, Explore, Fresh, Match, Pin, Rules
from lhydra.typed import checked
from lhydra.users.packed import pack, unpack_state
from lhydra.users.record import UserRecord

FORMAT = 1  # a reader of it passes over keys that it does not know: an arm of an experiment needs no new number
START = b'{"format": '  # of every line
_REMEDY = "an answer log of `lhydra serve --log-answers`"


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """One answer.

    method: of the API. now: the clock of the answer, Unix seconds. depth, max_k: of the server.
    request: protobuf as it came. state: what was stored of the user; None where nobody is known or the store was out,
    which `degraded` tells apart. rules: the named set or the default that the request started from, None for none.
    scores, propensities: as they were sent, one per track; propensities are empty where nothing was drawn.
    """

    request_id: str
    method: str
    user_id: str
    now: int
    bundle_id: str
    depth: int
    max_k: int
    request: bytes
    state: UserState | None
    rules: Rules | None
    tier: str
    degraded: tuple[str, ...]
    tracks: tuple[str, ...]
    scores: tuple[float, ...]
    propensities: tuple[float, ...] = ()


class _Line(TypedDict):
    """A line, as JSON."""

    format: int
    request_id: str
    method: str
    user_id: str
    now_s: int
    bundle_id: str
    depth: int
    max_k: int
    tier: str
    degraded: list[str]
    tracks: list[str]
    scores: list[float]
    propensities: list[float]
    rules: dict[str, Any] | None
    state: str | None
    request: str
    arm: NotRequired[str]


def to_line(answer: LoggedAnswer) -> bytes:
    """Returns an answer as a line of the log.

    Args:
        answer: to write.

    Returns:
        JSON in ASCII with its end; bytes are in base64, the state is the part of a user record that requests read.
    """
    line: _Line = {
        "format": FORMAT,
        "request_id": answer.request_id,
        "method": answer.method,
        "user_id": answer.user_id,
        "now_s": answer.now,
        "bundle_id": answer.bundle_id,
        "depth": answer.depth,
        "max_k": answer.max_k,
        "tier": answer.tier,
        "degraded": list(answer.degraded),
        "tracks": list(answer.tracks),
        "scores": list(answer.scores),
        "propensities": list(answer.propensities),
        "rules": None if answer.rules is None else asdict(answer.rules),
        "state": None if answer.state is None else _text(pack(UserRecord(answer.state))),
        "request": _text(answer.request),
    }
    return json.dumps(line).encode("ascii") + b"\n"


def document_of(line: bytes, where: object) -> dict[str, Any]:
    """Returns a line as the JSON that it is, every key of it checked.

    Args:
        line: of the log.
        where: what an error names.

    Returns:
        The object.

    Raises:
        DataError: it is no line of an answer log, or one of another format.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(complain(where, "no JSON", _REMEDY)) from None
    if not isinstance(found, dict) or "format" not in found:
        raise DataError(complain(where, "JSON without a format", _REMEDY))
    if found["format"] != FORMAT:
        expected = f"format {FORMAT}: the version of Lhydra that wrote it reads it"
        raise DataError(complain(where, f"format {found['format']!r}", expected))
    checked(found, _Line, where, DataError, _REMEDY)
    return found


def from_line(line: bytes, where: object) -> LoggedAnswer:
    """Returns what `to_line` wrote.

    Args:
        line: of the log.
        where: what an error names.

    Returns:
        The answer.

    Raises:
        DataError: it is no line of an answer log, one of another format, or damaged.
    """
    found = document_of(line, where)
    if not len(found["tracks"]) == len(found["scores"]) == (len(found["propensities"]) or len(found["tracks"])):
        raise DataError(complain(where, "a damaged entry (tracks without scores)", "the bytes that were written"))
    try:
        state = found["state"]
        return LoggedAnswer(
            request_id=found["request_id"],
            method=found["method"],
            user_id=found["user_id"],
            now=found["now_s"],
            bundle_id=found["bundle_id"],
            depth=found["depth"],
            max_k=found["max_k"],
            request=_bytes(found["request"]),
            state=None if state is None else unpack_state(_bytes(state), found["user_id"])[0],
            rules=None if found["rules"] is None else _rules(found["rules"]),
            tier=found["tier"],
            degraded=tuple(found["degraded"]),
            tracks=tuple(found["tracks"]),
            scores=tuple(map(float, found["scores"])),
            propensities=tuple(map(float, found["propensities"])),
        )
    except (ValueError, UserStoreError, KeyError, TypeError) as error:
        raise DataError(complain(where, f"a damaged entry ({error})", "the bytes that were written")) from None


def _rules(found: dict[str, Any]) -> Rules:
    """The rule set that `asdict` took apart."""

    def matched(one: dict[str, Any]) -> Match:
        return Match(**_tupled(one))

    made: dict[str, Any] = {"name": found["name"], "caps": tuple((column, most) for column, most in found["caps"])}
    for name, kind in (
        ("collapse", Collapse),
        ("diversity", Diversity),
        ("calibration", Calibration),
        ("fresh", Fresh),
        ("explore", Explore),
    ):
        made[name] = None if found[name] is None else kind(**_tupled(found[name]))
    made["boosts"] = tuple(Boost(matched(one["match"]), one["factor"]) for one in found["boosts"])
    made["pins"] = tuple(Pin(matched(one["match"]), one["position"]) for one in found["pins"])
    made["blocks"] = tuple(map(matched, found["blocks"]))
    return Rules(**made)


def _tupled(found: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
