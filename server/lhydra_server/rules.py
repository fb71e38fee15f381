"""A request's rules into those of the core: the set that it starts from, what it changes, and every limit checked."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lhydra.errors import InvalidRequest, quoted
from lhydra.lists.file import MAX_CAP, MAX_SLOTS, RuleSets
from lhydra.rules import MAX_FACTOR, Boost, Calibration, Diversity, Explore, Match, Rules, problem
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.filters import MAX_VALUE_CHARS, MAX_VALUES

MAX_CAPS = 16
NO_SETS = RuleSets()
_FIELDS = {"caps": "rules.caps", "calibration.column": "rules.calibration.column"}


def to_rules(
    request: pb.RecommendRequest | pb.SimilarTracksRequest, sets: RuleSets, columns: Mapping[str, str]
) -> Rules | None:
    """Returns the rules of a request.

    Args:
        request: as it came.
        sets: those of the server's file.
        columns: the bundle's filter columns and their kinds.

    Returns:
        The rules; None for none.

    Raises:
        InvalidRequest: a limit is passed, a set is not known, or a column; names the field.
    """
    wanted, short = request.rules, request.diversity
    if wanted.off:
        if wanted.set:
            raise InvalidRequest("rules.off", f"true beside set {quoted(wanted.set)}", "one of the two")
        rules = Rules()
    elif wanted.set:
        if wanted.set not in sets.sets:
            some = ", ".join(sets.sets) or "this server has none: `lhydra serve --rules FILE`"
            raise InvalidRequest("rules.set", quoted(wanted.set), f"the name of a rule set ({some})")
        rules = sets.sets[wanted.set]
    else:
        rules = sets.default or Rules()
    named = rules
    rules = _changed(rules, wanted)
    if short.max_per_artist:
        _check_number("diversity.max_per_artist", short.max_per_artist, 0, MAX_CAP)
        caps = dict(rules.caps)
        caps["artist"] = min(caps.get("artist", MAX_CAP), short.max_per_artist)
        rules = replace(rules, caps=tuple(caps.items()))
    _check_number("diversity.strength", short.strength, 0, 1)
    if short.strength:
        rules = replace(
            rules, diversity=Diversity(short.strength, rules.diversity.method if rules.diversity else "dpp")
        )
    if rules is not named and (wrong := problem(rules, columns)) is not None:
        field, found, expected = wrong
        raise InvalidRequest(_FIELDS.get(field, f"rules.{field}"), found, expected)
    return None if rules == Rules(rules.name) else rules


def seed_of(seed: int, request_id: str) -> int:
    """Returns the seed of a request's draws.

    Args:
        seed: as it came; 0 for none.
        request_id: of the call.

    Returns:
        The seed that it names, else one made of the request's id, so that a logged call can be answered again.
    """
    return seed or int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "little")


def _changed(rules: Rules, wanted: pb.Rules) -> Rules:
    """A rule set with what a request says besides or instead."""
    _check_values(wanted)
    if wanted.caps:
        caps = dict(rules.caps) | dict(wanted.caps)
        for column, most in wanted.caps.items():
            _check_number(f"rules.caps[{quoted(column)}]", most, 0, MAX_CAP)
        rules = replace(rules, caps=tuple((column, most) for column, most in caps.items() if most))
    if wanted.HasField("calibration"):
        _check_number("rules.calibration.strength", wanted.calibration.strength, 0, 1)
        strength = wanted.calibration.strength or 0.5
        rules = replace(rules, calibration=Calibration(wanted.calibration.column, strength))
    if wanted.boosts:
        boosts = [Boost(Match(one.column, tuple(one.values)), one.factor) for one in wanted.boosts]
        for i, one in enumerate(boosts):
            _check_number(f"rules.boosts[{i}].factor", one.factor, 1 / MAX_FACTOR, MAX_FACTOR)
        rules = replace(rules, boosts=(*rules.boosts, *boosts))
    if wanted.blocks:
        blocks = [Match(one.column, tuple(one.values)) for one in wanted.blocks]
        rules = replace(rules, blocks=(*rules.blocks, *blocks))
    if wanted.explore_slots:
        _check_number("rules.explore_slots", wanted.explore_slots, 0, MAX_SLOTS)
        rules = replace(rules, explore=replace(rules.explore or Explore(0), slots=wanted.explore_slots))
    return rules


def _check_values(wanted: pb.Rules) -> None:
    if len(wanted.caps) > MAX_CAPS:
        raise InvalidRequest("rules.caps", f"{len(wanted.caps)} columns", f"at most {MAX_CAPS}")
    named: Sequence[tuple[str, pb.Boost | pb.ColumnValues]] = [
        *((f"rules.boosts[{i}]", one) for i, one in enumerate(wanted.boosts)),
        *((f"rules.blocks[{i}]", one) for i, one in enumerate(wanted.blocks)),
    ]
    if (total := sum(len(one.values) for _, one in named)) > MAX_VALUES:
        raise InvalidRequest("rules", f"{total:,} values", f"at most {MAX_VALUES:,} in all")
    for field, one in named:
        if not one.column:
            raise InvalidRequest(f"{field}.column", "0 characters", "a column of the bundle")
        if not one.values:
            raise InvalidRequest(f"{field}.values", "0 values", "1 or more")
        for i, value in enumerate(one.values):
            if not 1 <= len(value) <= MAX_VALUE_CHARS:
                expected = f"1 to {MAX_VALUE_CHARS} characters"
                raise InvalidRequest(f"{field}.values[{i}]", f"{len(value)} characters", expected)


def _check_number(field: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequest(field, f"{value:.6g}", f"{low:g} to {high:g}")
