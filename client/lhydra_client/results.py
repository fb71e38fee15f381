"""What callers get back: frozen values, and the one place where replies are turned into them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

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
        sources: what it was a candidate by: nearest, co-listening, own, following, together, pinned, chart, popular;
            empty unless reasons were asked for.
        reasons: in words that a listener can read; empty unless asked for.
    """

    track_id: str
    score: float
    retrieval_score: float
    title: str
    artist: str
    propensity: float = 0.0
    moved_by: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


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
class RuleStep:
    """What a rule did to one track.

    Attributes:
        rule: such as "cap artist".
        before: its place before, from 1; 0 for none.
        after: its place after.
    """

    rule: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Pull:
    """A play of the history, or a group of features, and what the track owes to it.

    Attributes:
        name: id of a track, or name of a group.
        logit: by how much the track's logit falls without it; below 0 it pulled the track down.
        title: of a track.
        artist: of a track.
    """

    name: str
    logit: float
    title: str = ""
    artist: str = ""


@dataclass(frozen=True, slots=True)
class WouldBringIn:
    """A request that was tried and has the track in its list.

    Attributes:
        changes: what differs, in words.
        place: of the track in that list, from 1.
        request: to ask for the list.
    """

    changes: tuple[str, ...]
    place: int
    request: pb.RecommendRequest


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a track is in a user's list, or what stopped it on its way there.

    Attributes:
        bundle_id: the bundle that answered.
        tier: as in `Recommendations`.
        recommended: whether the track is in the list.
        rank: place in the list, from 1; 0 when not recommended.
        stopped_at: catalogue, exclude, retrieve, rerank or select; "" when recommended.
        score: as in `Track`, of a track that was no candidate too.
        retrieval_score: as in `Track`.
        reasons: short, for the listener.
        stopped_by: unknown, the first of `dropped_by`, depth, index (it missed a near track), score, or a rule.
        dropped_by: removed, exclude_track_ids, rules.blocks, a field of the filter, heard.
        sources: where it came from as a candidate.
        exact_rank: by the cosine among all tracks that may be returned; 0 for tier "popular".
        index_rank: by the index; 0 when it is not among the first 10,000.
        depth: candidates asked for.
        candidates: that reached the head.
        candidate: whether it was one of them.
        head_rank: by score among the candidates, which it need not be one of.
        logit: of the head, raw.
        steps: what each rule did to it.
        pulls: plays that pulled it up, strongest first.
        groups: groups of features, strongest first.
        would_bring_in: requests that would list it, fewest changes first.
        k: tracks asked for.
        title: "" where the catalog has none.
        artist: "" where the catalog has none.
        degraded: as in `Recommendations`.
        request_id: finds the call in the server's log.
    """

    bundle_id: str
    tier: str
    recommended: bool
    rank: int
    stopped_at: str
    score: float
    retrieval_score: float
    reasons: tuple[str, ...]
    stopped_by: str = ""
    dropped_by: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    exact_rank: int = 0
    index_rank: int = 0
    depth: int = 0
    candidates: int = 0
    candidate: bool = False
    head_rank: int = 0
    logit: float = 0.0
    steps: tuple[RuleStep, ...] = ()
    pulls: tuple[Pull, ...] = ()
    groups: tuple[Pull, ...] = ()
    would_bring_in: tuple[WouldBringIn, ...] = ()
    k: int = 0
    title: str = ""
    artist: str = ""
    degraded: tuple[str, ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class EventLog:
    """Recorded plays as they came, which lie beside the users.

    Attributes:
        on: recorded plays enter it.
        entries: plays in it.
        bytes: what it takes, of memory or disk.
        oldest_ms: when the oldest play was recorded, Unix milliseconds; 0 where there is none.
        free_bytes: room in an LMDB file for what is recorded next; None where nobody can tell.
        error: why the server cannot tell; "" where it can.
    """

    on: bool
    entries: int
    bytes: int
    oldest_ms: int
    free_bytes: int | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """How long something took, from a histogram.

    Attributes:
        name: of the stage or method.
        count: how often.
        p50_us: microseconds that half of them did not pass.
        p90_us: the same for 90 %.
        p99_us: the same for 99 %.
    """

    name: str
    count: int
    p50_us: int
    p90_us: int
    p99_us: int


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
        access_error: why its files of certificates or tokens are not what is in force; "" when they are.
        event_log: recorded plays as they came; None of a server that keeps none.
        stages: of requests, of all workers since the server began, as everything below; empty where it counts nothing.
        methods: of calls.
        tiers: lists returned, by tier.
        refusals: calls given up, by reason.
        degraded: lists made with less than there is, by what was missing.
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
    access_error: str = ""
    event_log: EventLog | None = None
    stages: tuple[Percentiles, ...] = ()
    methods: tuple[Percentiles, ...] = ()
    tiers: Mapping[str, int] = field(default_factory=dict)
    refusals: Mapping[str, int] = field(default_factory=dict)
    degraded: Mapping[str, int] = field(default_factory=dict)


def recommendations(reply: pb.RecommendResponse) -> Recommendations:
    """Turns a reply into plain values.

    Args:
        reply: to Recommend or SimilarTracks.

    Returns:
        The tracks, best first, and how they were made.
    """
    tracks = tuple(
        Track(
            *(t.track_id, t.score, t.retrieval_score, t.title, t.artist, t.propensity),
            *(tuple(t.moved_by), tuple(t.sources), tuple(t.reasons)),
        )
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
    values = {one.name: getattr(reply, one.name) for one in fields(Explanation)}
    values |= {name: tuple(values[name]) for name in ("reasons", "dropped_by", "sources", "degraded")}
    values |= {name: tuple(map(_pull, values[name])) for name in ("pulls", "groups")}
    values["tier"] = tier_name(reply.tier)
    values["steps"] = tuple(RuleStep(one.rule, one.before, one.after) for one in reply.steps)
    values["would_bring_in"] = tuple(
        WouldBringIn(tuple(one.changes), one.place, one.request) for one in reply.would_bring_in
    )
    return Explanation(**values)


def _pull(one: pb.Pull) -> Pull:
    return Pull(one.name, one.logit, one.title, one.artist)


def status(reply: pb.GetStatusResponse) -> Status:
    """Turns a reply into plain values; Status has the fields of the message.

    Args:
        reply: to GetStatus.

    Returns:
        The status.
    """
    values = {one.name: getattr(reply, one.name) for one in fields(Status) if one.name != "event_log"}
    log = None
    if reply.HasField("event_log"):
        said = reply.event_log
        free = said.free_bytes if said.HasField("free_bytes") else None
        log = EventLog(said.on, said.entries, said.bytes, said.oldest_ms, free, said.error)
    values |= {"rule_sets": tuple(reply.rule_sets), "event_log": log}
    for name in ("stages", "methods"):
        values[name] = tuple(
            Percentiles(one.name, one.count, one.p50_us, one.p90_us, one.p99_us) for one in values[name]
        )
    for name in ("tiers", "refusals", "degraded"):
        values[name] = {one.name: one.count for one in values[name]}
    return Status(**values)


def tier_name(tier: int) -> str:
    """Returns the word for a tier.

    Args:
        tier: its number in the API.

    Returns:
        Such as "personal"; "tier 9" for one newer than this client.
    """
    known = pb.Tier.DESCRIPTOR.values_by_number
    return known[tier].name.removeprefix("TIER_").lower() if tier in known else f"tier {tier}"
