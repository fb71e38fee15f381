"""The document of a rolling evaluation, as JSON; what is undefined is null. A figure is all, repeat or discovery."""

from typing import Any, TypedDict

from lhydra.evaluation.document import Interval

FORMAT = "rolling-1"


class RollingProtocol(TypedDict):
    """What was asked and how; two documents with the same `hash` can be compared."""

    split: dict[str, Any]
    protocol: str
    as_of: str
    known: int
    refit: bool
    ks: list[int]
    mrr_depth: int
    users: int | str  # `all`, or how many were drawn
    seed: int
    tuned_on: str
    lhydra_version: str
    hash: str


class RollingCounts(TypedDict):
    """How many of what; targets by figure."""

    users: int
    moments: int
    targets: dict[str, int]
    catalogue: int


class Repeats(TypedDict):
    """Share of tracks heard before: of what was played, and of each scorer's top 10 of `all`."""

    truth: Interval
    lists: dict[str, Interval]


class Chosen(TypedDict):
    """Settings for one figure, from how many, and their NDCG on the valid fold; null: there was none, usual values."""

    settings: dict[str, Any]
    tried: int
    valid: float | None


class RollingPerUser(TypedDict):
    """NDCG@10 of every user, by figure and scorer, in the order of `users`; null where there is no target."""

    users: list[str]
    figures: dict[str, dict[str, list[float | None]]]


class RollingDocument(TypedDict):
    """A rolling evaluation. ranking: figure, scorer, metric, mean over users; by_moment: the plain mean of moments."""

    format: str
    protocol: RollingProtocol
    counts: RollingCounts
    repeats: Repeats
    ranking: dict[str, dict[str, dict[str, Interval]]]
    by_moment: dict[str, dict[str, dict[str, float | None]]]
    chosen: dict[str, dict[str, Chosen]]
    skipped: dict[str, str]
    per_user: RollingPerUser
