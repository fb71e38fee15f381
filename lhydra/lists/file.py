"""Named rule sets from a YAML file: the one reader, which refuses what it does not know, by its place in the file."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lhydra.config import Null, read_yaml, shown, unknown
from lhydra.errors import ConfigError, complain
from lhydra.limits import AN_ID, is_id
from lhydra.numerals import real_number, whole_number
from lhydra.rules import MAX_FACTOR, Boost, Calibration, Collapse, Diversity, Explore, Fresh, Match, Pin, Rules, problem

MAX_CAP, MAX_SLOTS, MAX_POOL = 10_000, 1_000, 1_000
OFF = "off"  # as the default: no rules


@dataclass(frozen=True)
class RuleSets:
    """Rule sets by name, and the one that counts where a request names none; None for no rules."""

    sets: Mapping[str, Rules] = field(default_factory=dict)
    default: Rules | None = None

    def check(self, columns: Mapping[str, str]) -> None:
        """Checks that a bundle has the columns that the rules look at.

        Args:
            columns: kind by name of its filter columns.

        Raises:
            ConfigError: it lacks one; names rule set and rule.
        """
        for name, rules in self.sets.items():
            if (wrong := problem(rules, columns)) is not None:
                raise ConfigError(complain(f"rules: sets.{name}.{wrong[0]}", *wrong[1:]))


def read(path: Path) -> RuleSets:
    """Reads a file of rule sets.

    Args:
        path: of the YAML file.

    Returns:
        Its sets, of which `default` names one.

    Raises:
        ConfigError: the file cannot be read, or says what no rule set can; names the place.
    """
    top = _mapping(read_yaml(path), str(path), ("default", "sets"))
    sets = {}
    for name, value in _mapping(top.get("sets", {}), f"{path}: sets", None).items():
        if not 1 <= len(name) <= 64 or name == OFF or not is_id(name):
            found = name if is_id(name) else ascii(name)
            expected = f"names of 1 to 64 characters of UTF-8, none of control, not '{OFF}'"
            raise ConfigError(complain(f"{path}: sets", found, expected))
        sets[name] = _rules(name, value, f"{path}: sets.{name}")
    if not sets:  # as of a file that somebody is writing
        raise ConfigError(complain(f"{path}: sets", "nothing", "a rule set or more"))
    default = top.get("default", OFF)
    if default != OFF and default not in sets:
        known = ", ".join([*sets, OFF])
        raise ConfigError(complain(f"{path}: default", shown(default), f"the name of a set ({known})"))
    return RuleSets(sets, None if default == OFF else sets[default])


def _rules(name: str, value: Any, at: str) -> Rules:
    keys = (*("caps", "collapse", "diversity", "calibration", "boost", "bury", "pin", "block", "fresh", "explore"),)
    given = _mapping(value, at, keys)
    made: dict[str, Any] = {}
    caps = _mapping(given.get("caps", {}), f"{at}.caps", None)
    made["caps"] = tuple((column, _whole(most, f"{at}.caps.{column}", 1, MAX_CAP)) for column, most in caps.items())
    if "collapse" in given:
        made["collapse"] = _collapse(given["collapse"], f"{at}.collapse")
    if "diversity" in given:
        part = _mapping(given["diversity"], f"{at}.diversity", ("strength", "method"))
        method = part.get("method", "dpp")
        if method not in ("dpp", "mmr"):
            raise ConfigError(complain(f"{at}.diversity.method", shown(method), "dpp or mmr"))
        made["diversity"] = Diversity(_number(part.get("strength"), f"{at}.diversity.strength", 0, 1), method)
    if "calibration" in given:
        part = _mapping(given["calibration"], f"{at}.calibration", ("column", "strength"))
        column = _text(part.get("column"), f"{at}.calibration.column")
        strength = _number(part.get("strength", "0.5"), f"{at}.calibration.strength", 0, 1)
        made["calibration"] = Calibration(column, strength)
    boosts = [
        _boost(part, f"{at}.{key}[{i}]", key)
        for key in ("boost", "bury")
        for i, part in enumerate(_list(given.get(key, []), f"{at}.{key}"))
    ]
    made["boosts"] = tuple(boosts)
    made["blocks"] = tuple(
        _match(_mapping(part, f"{at}.block[{i}]", _MATCH), f"{at}.block[{i}]")
        for i, part in enumerate(_list(given.get("block", []), f"{at}.block"))
    )
    made["pins"] = tuple(
        _pin(part, i, f"{at}.pin[{i}]") for i, part in enumerate(_list(given.get("pin", []), f"{at}.pin"))
    )
    if "fresh" in given:
        made["fresh"] = _fresh(given["fresh"], f"{at}.fresh")
    if "explore" in given:
        made["explore"] = _explore(given["explore"], f"{at}.explore")
    return Rules(name, **made)


_WHEN = ("since", "until")
_MATCH = ("column", "values", "tracks", *_WHEN)


def _collapse(value: Any, at: str) -> Collapse | None:
    if isinstance(value, str) and not isinstance(value, Null) and value in ("true", "false"):
        return Collapse() if value == "true" else None
    part = _mapping(value, at, ("versions",))
    return Collapse(tuple(_texts(part.get("versions", []), f"{at}.versions")))


def _boost(value: Any, at: str, key: str) -> Boost:
    part = _mapping(value, at, (*_MATCH, "factor"))
    factor = _number(part.get("factor"), f"{at}.factor", 1, MAX_FACTOR)
    return Boost(_match(part, at), factor if key == "boost" else 1 / factor)


def _pin(value: Any, i: int, at: str) -> Pin:
    part = _mapping(value, at, ("track", "position", *_WHEN))
    track = _track(part.get("track"), f"{at}.track")
    position = _whole(part.get("position", str(i + 1)), f"{at}.position", 1, MAX_CAP)
    return Pin(Match("", (), (track,), *_times(part, at)), position)


def _fresh(value: Any, at: str) -> Fresh:
    part = _mapping(value, at, ("slots", "column", "since", "within"))
    if ("since" in part) == ("within" in part):
        raise ConfigError(complain(at, "both" if "since" in part else "neither", "one of since and within"))
    since, within = (
        _number(part[key], f"{at}.{key}", low, math.inf) if key in part else None
        for key, low in (("since", -math.inf), ("within", 0))
    )
    slots = _whole(part.get("slots"), f"{at}.slots", 1, MAX_SLOTS)
    return Fresh(slots, _text(part.get("column", "year"), f"{at}.column"), since, within)


def _explore(value: Any, at: str) -> Explore:
    part = _mapping(value, at, ("slots", "pool", "temperature", "epsilon"))
    return Explore(
        _whole(part.get("slots"), f"{at}.slots", 1, MAX_SLOTS),
        _whole(part.get("pool", "20"), f"{at}.pool", 2, MAX_POOL),
        _number(part.get("temperature", "1"), f"{at}.temperature", 0.01, 100),
        _number(part.get("epsilon", "0.1"), f"{at}.epsilon", 0, 1),
    )


def _match(part: Mapping[str, Any], at: str) -> Match:
    if ("column" in part) == ("tracks" in part) or ("column" in part) != ("values" in part):
        raise ConfigError(complain(at, ", ".join(part) or "nothing", "column and values, or tracks"))
    column = _text(part["column"], f"{at}.column") if "column" in part else ""
    values = tuple(_texts(part.get("values", []), f"{at}.values"))
    tracks = tuple(
        _track(one, f"{at}.tracks[{i}]") for i, one in enumerate(_list(part.get("tracks", []), f"{at}.tracks"))
    )
    if not (values or tracks):
        raise ConfigError(complain(at, "an empty list", "one entry or more"))
    return Match(column, values, tracks, *_times(part, at))


def _times(part: Mapping[str, Any], at: str) -> tuple[int, int]:
    """When a rule begins and ends; 0 for always and never."""
    since, until = _time(part, "since", at), _time(part, "until", at)
    if until and until <= since:
        raise ConfigError(complain(f"{at}.until", shown(part["until"]), "a time after since"))
    return since, until


def _time(part: Mapping[str, Any], key: str, at: str) -> int:
    if key not in part:
        return 0
    try:
        found = datetime.fromisoformat(part[key])
        seconds = int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
        if seconds <= 0:  # 0 is for none
            raise ValueError
        return seconds
    except (TypeError, ValueError, OverflowError):
        expected = "a date such as 2026-12-24, or a date and time, after 1970-01-01"
        raise ConfigError(complain(f"{at}.{key}", shown(part[key]), expected)) from None


def _mapping(value: Any, at: str, known: Iterable[str] | None) -> dict[str, Any]:
    if isinstance(value, Null):
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(complain(at, shown(value), "a mapping"))
    for key in value:
        if not isinstance(key, str) or isinstance(key, Null):
            raise ConfigError(complain(at, shown(key), "names as keys"))
        if known is not None and key not in known:
            raise ConfigError(unknown(at, key, known))
    return value


def _list(value: Any, at: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(complain(at, shown(value), "a list"))
    return value


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str) or isinstance(value, Null) or not value:
        raise ConfigError(complain(at, shown(value), "text"))
    if not value.isascii() and value != value.encode("utf-8", "replace").decode():
        raise ConfigError(complain(at, ascii(value), "text that is UTF-8"))
    return value


def _track(value: Any, at: str) -> str:
    if not is_id(text := _text(value, at)):
        raise ConfigError(complain(at, ascii(text)[:80], f"a track id: {AN_ID}"))
    return text


def _texts(value: Any, at: str) -> list[str]:
    return [_text(one, f"{at}[{i}]") for i, one in enumerate(_list(value, at))]


def _whole(value: Any, at: str, low: int, high: int) -> int:
    return int(_in_range(whole_number, value, at, low, high, "a whole number"))


def _number(value: Any, at: str, low: float, high: float) -> float:
    return _in_range(real_number, value, at, low, high, "a number")


def _in_range(read: Callable[[str], float], value: Any, at: str, low: float, high: float, what: str) -> float:
    above = "" if math.isinf(low) else f" from {low:g}"
    expected = what + above + ("" if math.isinf(high) else f" to {high:g}")
    try:
        number = read(value if isinstance(value, str) and not isinstance(value, Null) else "")
    except ValueError:
        raise ConfigError(complain(at, shown(value), expected)) from None
    if not (math.isfinite(number) and low <= number <= high):
        raise ConfigError(complain(at, shown(value), expected))
    return number
