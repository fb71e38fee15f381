"""What callers get back: frozen values, and the one place where replies are turned into them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from lhydra_protos.v1 import recommender_pb2 as pb


@dataclass(frozen=True, slots=True)
class Track:
    """One recommended track.

    Attributes:
        track_id: the track.
        score: calibrated probability of a play; for tier "popular" the share of listeners.
        retrieval_score: cosine of user and track vector, -1 to 1; 0 for tier "popular".
        title: "" where the catalog has none.
        artist: "" where the catalog has none.
        propensity: chance with which it came to its place, given those above; 0 without exploration.
        moved_by: rules that brought it into the list or further up.
    """

    track_id: str
    score: float
    retrieval_score: float
    title: str
    artist: str
    propensity: float = 0.0
    moved_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """What a rule did to an answer.

    Attributes:
        rule: such as "cap artist".
        moved: tracks that it brought into the list or further up; of "block", tracks that it keeps out.
        gave_way: what could not be met; "" when all was.
    """

    rule: str
    moved: int
    gave_way: str


@dataclass(frozen=True, slots=True)
class Recommendations:
    """An answer: tracks, best first, and how it was made.

    Attributes:
        tracks: best first; fewer than k where no more are eligible.
        bundle_id: the bundle that answered.
        tier: "personal", "history", "segment" or "popular".
        degraded: reasons why the answer is less than it could be, such as "user_store"; empty when it is whole.
        stages_us: microseconds that the server spent, by stage.
        request_id: finds the call in the server's log.
        rules_applied: what each rule did; empty without rules.
    """

    tracks: tuple[Track, ...]
    bundle_id: str
    tier: str
    degraded: tuple[str, ...]
    stages_us: Mapping[str, int]
    request_id: str
    rules_applied: tuple[AppliedRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of recorded plays.

    Attributes:
        recorded: plays that were new.
        duplicates: plays whose event id had been recorded before.
        unknown_tracks: new plays of tracks that the bundle being served does not hold; they are recorded too.
    """

    recorded: int
    duplicates: int
    unknown_tracks: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a track is in a user's list, or which stage removed it.

    Attributes:
        bundle_id: the bundle that answered.
        tier: as in `Recommendations`.
        recommended: whether the track is in the list.
        rank: place in the list, from 1; 0 when not ranked.
        stopped_at: the stage that removed the track; "" when recommended.
        score: as in `Track`.
        retrieval_score: as in `Track`.
        reasons: one sentence each.
    """

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
    """What is being served, and how the server is.

    Attributes:
        bundle_id: the bundle that answers.
        model_id: the model in it.
        lhydra_version: of the server.
        tracks: in the bundle.
        dim: of user and track vectors.
        index_recipe: how the index was built.
        default_depth: candidates to rerank where a request names no depth.
        max_k: the largest k that a request may ask for.
        workers: processes that serve now.
        uptime_s: seconds since the worker that answered was started.
        current_bundle_id: the bundle that the store calls CURRENT.
        swap_error: why CURRENT is not being served; "" when it is.
        requests: answered by the worker that answered this one.
        rules_error: why the server's file of rules is not what is in force; "" when it is.
        rule_sets: that requests can name.
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
    rules_error: str = ""
    rule_sets: tuple[str, ...] = ()


def recommendations(reply: pb.RecommendResponse) -> Recommendations:
    """Turns a reply into plain values.

    Args:
        reply: to Recommend or SimilarTracks.

    Returns:
        The tracks, best first, and how they were made.
    """
    tracks = tuple(
        Track(t.track_id, t.score, t.retrieval_score, t.title, t.artist, t.propensity, tuple(t.moved_by))
        for t in reply.tracks
    )
    return Recommendations(
        tracks=tracks,
        bundle_id=reply.bundle_id,
        tier=tier_name(reply.tier),
        degraded=tuple(reply.degraded),
        stages_us={stage.name: stage.took_us for stage in reply.stages},
        request_id=reply.request_id,
        rules_applied=tuple(AppliedRule(one.rule, one.moved, one.gave_way) for one in reply.rules_applied),
    )


def recorded(reply: pb.RecordPlaysResponse) -> Recorded:
    """Turns a reply into plain values.

    Args:
        reply: to RecordPlays.

    Returns:
        How many plays were recorded.
    """
    return Recorded(reply.recorded, reply.duplicates, reply.unknown_tracks)


def explanation(reply: pb.ExplainResponse) -> Explanation:
    """Turns a reply into plain values.

    Args:
        reply: to Explain.

    Returns:
        The explanation.
    """
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
    """Turns a reply into plain values; Status has the fields of the message.

    Args:
        reply: to GetStatus.

    Returns:
        The status.
    """
    values = {field.name: getattr(reply, field.name) for field in fields(Status)}
    return Status(**values | {"rule_sets": tuple(reply.rule_sets)})


def tier_name(tier: int) -> str:
    """Returns the word for a tier.

    Args:
        tier: its number in the API.

    Returns:
        Such as "personal"; "tier 9" for one newer than this client.
    """
    known = pb.Tier.DESCRIPTOR.values_by_number
    return known[tier].name.removeprefix("TIER_").lower() if tier in known else f"tier {tier}"
