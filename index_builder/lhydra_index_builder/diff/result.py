"""What a comparison says: `lhydra index diff --json` prints it. None stands where there was nothing to measure."""

from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from lhydra.bundle.manifest import OperatingPoint

T = TypeVar("T")
FORMAT = 1


@dataclass(frozen=True)
class Both(Generic[T]):
    """One value of each bundle."""

    a: T
    b: T


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle was served with; tracks: how many it may return."""

    model: str | None
    recipe: str
    point: OperatingPoint
    depth: int
    tracks: int


@dataclass(frozen=True)
class Overlap:
    """Mean and 95 % interval of overlap@k; the shares of users who see the same, or nothing of before."""

    mean: float | None
    low: float | None
    high: float | None
    identical: float | None
    same_tracks: float | None
    nothing: float | None


@dataclass(frozen=True)
class Order:
    """Mean distance, in places, that tracks in both lists moved; the share of users with the same first track."""

    rank_shift: float | None
    same_first: float | None


@dataclass(frozen=True)
class Popularity(Both[float | None]):
    """Mean share of listeners of a recommended track; the paired difference B - A and its 95 % interval."""

    difference: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CatalogueChanges(Both[int]):
    """Tracks that may be returned, and what came and went.

    recommended_new, recommended_gone: different tracks that B recommends and A does not have, and the reverse.
    """

    added: int
    removed: int
    recommended_new: int
    recommended_gone: int


@dataclass(frozen=True)
class GenreMove(Both[float]):
    """Share of one genre in what is recommended, and how far it moved."""

    genre: str
    difference: float


@dataclass(frozen=True)
class Genres:
    """How far the shares of genres moved, the biggest movers first, and the shares of all."""

    total_variation: float
    movers: list[GenreMove]
    shares: dict[str, Both[float]]


@dataclass(frozen=True)
class Cohort:
    """Users alike in `by` (tier or history), and their mean overlap@k."""

    by: str
    name: str
    users: int
    overlap: float


@dataclass(frozen=True)
class Latency:
    """Time of one query in one process."""

    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Audience:
    """Who was asked: in words, how many, and how many of them nobody knows anything of."""

    source: str
    queries: int
    unknown: int


@dataclass(frozen=True)
class Comparison:
    """How the lists of bundle B differ from those of bundle A.

    k: tracks compared of each list. users: those with a list on either side. differ: names of the facts that differ.
    coverage: different tracks recommended. common: what the lists of two users of one bundle have in common, at
    length `common_at`. asked: None where `compare` was called with queries of the caller's own.
    """

    summary: list[str]
    k: int
    users: int
    a: str
    b: str
    settings: Both[BundleFacts]
    differ: list[str]
    overlap: Overlap
    order: Order
    popularity: Popularity
    catalogue: CatalogueChanges
    coverage: Both[int]
    common_at: int
    common: Both[float | None]
    genres: Genres | None
    cohorts: list[Cohort]
    latency: Both[Latency]
    asked: Audience | None = None

    def document(self) -> dict[str, Any]:
        """Returns the comparison as JSON values."""
        found = asdict(self)
        found[f"inter_user_overlap@{found.pop('common_at')}"] = found.pop("common")
        if self.asked is None:
            del found["asked"]
        return {**found, "format": FORMAT}
