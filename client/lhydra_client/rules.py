"""Rules of a request: what turns scored tracks into a list, besides or in place of the server's own."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from lhydra_client.checks import UINT32, given, kept, kept_texts, number, shown, text, whole
from lhydra_client.errors import InvalidRequest
from lhydra_protos.v1 import recommender_pb2 as pb


@dataclass(frozen=True, slots=True)
class Boost:
    """Tracks with one of some values count more, or less.

    Args:
        column: of the catalogue.
        values: exact texts.
        factor: of the score: above 1 they rise, below 1 they are buried.
    """

    column: str
    values: Collection[str]
    factor: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What differs from a rule set of the server.

    Args:
        set: the name of the set to start from; "" for the server's default.
        off: no rules at all, whatever the default; the rest then counts alone.
        caps: most tracks per value by column; 0 lifts a cap of the set.
        calibrate: column whose mix moves towards that of the user's own plays; "" leaves it to the set.
        calibration: how far, 0 to 1.
        boosts: besides those of the set.
        block: values by column whose tracks are never returned, besides those of the set.
        explore_slots: places drawn at random; 0 leaves it to the set.
    """

    set: str | None = ""
    off: bool = False
    caps: Mapping[str, int] | None = field(default_factory=dict)
    calibrate: str | None = ""
    calibration: float | None = 0.5
    boosts: Collection[Boost] | None = ()
    block: Mapping[str, Collection[str]] | None = field(default_factory=dict)
    explore_slots: int | None = 0


def rules_message(rules: Rules | str) -> pb.Rules:
    """Makes the message of rules.

    Args:
        rules: the name of a set, or what differs.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    if isinstance(rules, str):
        return pb.Rules(set=text("rules.set", rules))
    if not isinstance(rules, Rules):
        raise InvalidRequest(f"rules: found {shown(rules)}, expected Rules or the name of a set")
    message = pb.Rules(
        set=text("rules.set", given(rules.set, "")),
        off=bool(rules.off),
        explore_slots=whole("rules.explore_slots", given(rules.explore_slots, 0), *UINT32),
    )
    for column, most in given(rules.caps, {}).items():
        message.caps[text("rules.caps", column)] = whole(f"rules.caps[{column!r}]", most, *UINT32)
    if rules.calibrate:
        message.calibration.column = text("rules.calibration.column", rules.calibrate)
        message.calibration.strength = number("rules.calibration.strength", given(rules.calibration, 0.5))
    for position, boost in enumerate(kept("rules.boosts", given(rules.boosts, ()))):
        name = f"rules.boosts[{position}]"
        if not isinstance(boost, Boost):
            raise InvalidRequest(f"{name}: found {shown(boost)}, expected a Boost")
        message.boosts.add(
            column=text(f"{name}.column", boost.column),
            values=kept_texts(f"{name}.values", boost.values),
            factor=number(f"{name}.factor", boost.factor),
        )
    for position, (column, values) in enumerate(given(rules.block, {}).items()):
        name = f"rules.blocks[{position}]"
        message.blocks.add(column=text(f"{name}.column", column), values=kept_texts(f"{name}.values", values))
    return message


def add_rules(
    request: pb.RecommendRequest | pb.SimilarTracksRequest,
    rules: Rules | str | None,
    max_per_artist: int | None,
    diversity: float | None,
) -> None:
    """Adds to a request what it says about rules.

    Args:
        request: is changed.
        rules: the name of a rule set, or what differs from the server's default; None for that.
        max_per_artist: tracks per artist; 0 for no cap.
        diversity: how far the list spreads, 0 to 1.
    """
    if rules is not None:
        request.rules.CopyFrom(rules_message(rules))
    if max_per_artist or diversity:
        request.diversity.max_per_artist = whole("diversity.max_per_artist", given(max_per_artist, 0), *UINT32)
        request.diversity.strength = number("diversity.strength", given(diversity, 0.0))
