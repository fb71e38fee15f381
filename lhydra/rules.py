"""Rules between scores and list, as frozen values: what a rule set says, from a file or from a request.

The order of precedence: block > pin > cap > collapse > fresh > explore > calibration > diversity > boost. Where two
rules cannot both hold, the earlier one does, and the answer says what gave way.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lhydra.numerals import real_number

MAX_FACTOR = 1e6  # of a boost; a bury divides by as much at most


@dataclass(frozen=True, slots=True)
class Match:
    """Which tracks a rule is about: those that it names, or those with one of some values in a column.

    Args:
        column: that holds the values; "" where tracks are named.
        values: exact texts; in a column of numbers, numbers.
        tracks: ids.
        since: Unix seconds from which on the rule holds.
        until: Unix seconds at which it ends; 0 never.
    """

    column: str = ""
    values: tuple[str, ...] = ()
    tracks: tuple[str, ...] = ()
    since: int = 0
    until: int = 0

    def holds(self, now: int) -> bool:
        """Says whether the rule is in force.

        Args:
            now: Unix seconds.

        Returns:
            Whether it has begun and has not ended.
        """
        return self.since <= now and (not self.until or now < self.until)


@dataclass(frozen=True, slots=True)
class Boost:
    """Tracks whose score counts times `factor`: above 1 they rise, below 1 they are buried."""

    match: Match
    factor: float


@dataclass(frozen=True, slots=True)
class Pin:
    """A track (the one in `match.tracks`) that stands at a place of the list, counted from 1."""

    match: Match
    position: int


@dataclass(frozen=True, slots=True)
class Collapse:
    """Of recordings by one artist under one normalised title one stays, unless a column of `versions` differs."""

    versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Diversity:
    """How far a list spreads: 0 not at all, 1 without a look at scores; by `dpp` or by `mmr`."""

    strength: float
    method: str = "dpp"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Moves the mix of a column in the list towards that of the user's own plays; strength 0 to 1."""

    column: str
    strength: float = 0.5


@dataclass(frozen=True, slots=True)
class Fresh:
    """Places kept for new tracks: those whose number in `column` is `since` or more, or within so many of this year."""

    slots: int
    column: str = "year"
    since: float | None = None
    within: float | None = None


@dataclass(frozen=True, slots=True)
class Explore:
    """Places filled by a draw from the next `pool` candidates.

    The chance of each is (1 - epsilon) · softmax(log score / temperature) + epsilon / pool.
    """

    slots: int
    pool: int = 20
    temperature: float = 1.0
    epsilon: float = 0.1


@dataclass(frozen=True, slots=True)
class Rules:
    """A rule set; the default does nothing. `caps` are pairs of a column and the most tracks per value of it."""

    name: str = ""
    caps: tuple[tuple[str, int], ...] = ()
    collapse: Collapse | None = None
    diversity: Diversity | None = None
    calibration: Calibration | None = None
    boosts: tuple[Boost, ...] = ()
    pins: tuple[Pin, ...] = ()
    blocks: tuple[Match, ...] = ()
    fresh: Fresh | None = None
    explore: Explore | None = None

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """The columns that the rules look at, each after the rule that does."""
        named = [("caps", column) for column, _ in self.caps]
        named += [("collapse.versions", column) for column in (self.collapse.versions if self.collapse else ())]
        named += [("calibration.column", self.calibration.column)] if self.calibration else []
        named += [("fresh.column", self.fresh.column)] if self.fresh else []
        named += [(where, match.column) for where, match in self.matches if match.column]
        return tuple(named)

    @property
    def matches(self) -> tuple[tuple[str, Match], ...]:
        """What the rules are about, each after the kind of rule that is."""
        boosts, pins = (tuple(one.match for one in some) for some in (self.boosts, self.pins))
        named = {"boosts": boosts, "blocks": self.blocks, "pins": pins}
        return tuple((where, match) for where, matches in named.items() for match in matches)


@dataclass(frozen=True, slots=True)
class Applied:
    """What a rule did to an answer: how many tracks it moved, and what gave way where it could not be met."""

    rule: str
    moved: int
    gave_way: str = ""


def problem(rules: Rules, columns: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Finds a column that rules look at and a bundle does not have.

    Args:
        rules: of a file or a request.
        columns: kind by name of the bundle's filter columns.

    Returns:
        The field, what it says and what it may say; None where all is well.
    """
    some = ", ".join(sorted(columns)) or "this bundle has none"
    for where, column in rules.columns:
        artist = column == "artist" and where == "caps"  # of which every catalog knows the text
        if column not in columns and not artist:
            return f"{where}", repr(column), f"a column of the bundle ({some})"
        if where == "fresh.column" and columns[column] not in ("numeric", "year"):
            return where, f"{column}, which is {columns[column]}", "a column of numbers"
        if where == "calibration.column" and columns[column] in ("numeric", "year"):
            return where, f"{column}, which is {columns[column]}", "a column of values"
    for where, match in rules.matches:
        if match.column and columns[match.column] in ("numeric", "year"):
            for text in match.values:
                try:
                    known = math.isfinite(real_number(text))
                except ValueError:
                    known = False
                if not known:
                    return where, repr(text), f"numbers, as {match.column} is {columns[match.column]}"
    return None
