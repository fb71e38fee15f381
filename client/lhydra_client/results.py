"""What callers get back: frozen values, and the one place where replies are turned into them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from lhydra_protos.v1 import recommender_pb2 as pb


@dataclass(frozen=True, slots=True)
class Track:
    """One recommended track.

    score: calibrated probability of a play; for tier "popular" the share of listeners.
    retrieval_score: cosine of user and track vector, -1 to 1; 0 for tier "popular".
    title, artist: "" where the catalogue has none.
    """

    track_id: str
    score: float
    retrieval_score: float
    title: str
    artist: str


@dataclass(frozen=True, slots=True)
class Recommendations:
    """An answer: tracks, best first, and how it was made.

    tier: personal, history, segment or popular. degraded: why the answer is less than it could be.
    stages_us: microseconds the server spent per stage.
    """

    tracks: tuple[Track, ...]
    bundle_id: str
    tier: str
    degraded: tuple[str, ...]
    stages_us: Mapping[str, int]
    request_id: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of recorded plays; tracks unknown to the bundle are recorded too."""

    recorded: int
    duplicates: int
    unknown_tracks: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a track is in a user's list (rank from 1), or which stage removed it (rank 0)."""

    bundle_id: str
    tier: str
    recommended: bool
    rank: int
    stopped_at: str
    score: float
    retrieval_score: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """What is being served; uptime and requests are those of the worker that answered.

    swap_error: why the store's current bundle is not the one being served; "" when it is.
    """

    bundle_id: str
    model_id: str
    lhydra_version: str
    tracks: int
    dim: int
    index_recipe: str
    default_depth: int
    max_k: int
    workers: int
    uptime_s: float
    current_bundle_id: str
    swap_error: str
    requests: int


def recommendations(reply: pb.RecommendResponse) -> Recommendations:
    """Returns `reply` as plain values."""
    tracks = tuple(Track(t.track_id, t.score, t.retrieval_score, t.title, t.artist) for t in reply.tracks)
    return Recommendations(
        tracks=tracks,
        bundle_id=reply.bundle_id,
        tier=tier_name(reply.tier),
        degraded=tuple(reply.degraded),
        stages_us={stage.name: stage.took_us for stage in reply.stages},
        request_id=reply.request_id,
    )


def recorded(reply: pb.RecordPlaysResponse) -> Recorded:
    """Returns `reply` as plain values."""
    return Recorded(reply.recorded, reply.duplicates, reply.unknown_tracks)


def explanation(reply: pb.ExplainResponse) -> Explanation:
    """Returns `reply` as plain values."""
    return Explanation(
        bundle_id=reply.bundle_id,
        tier=tier_name(reply.tier),
        recommended=reply.recommended,
        rank=reply.rank,
        stopped_at=reply.stopped_at,
        score=reply.score,
        retrieval_score=reply.retrieval_score,
        reasons=tuple(reply.reasons),
    )


def status(reply: pb.GetStatusResponse) -> Status:
    """Returns `reply` as plain values; Status has the fields of the message."""
    return Status(*(getattr(reply, field.name) for field in fields(Status)))


def tier_name(tier: int) -> str:
    """Returns the word for a tier of the wire; a tier newer than this client is named by its number."""
    known = pb.Tier.DESCRIPTOR.values_by_number
    return known[tier].name.removeprefix("TIER_").lower() if tier in known else f"tier {tier}"
