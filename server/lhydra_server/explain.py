"""Explain: the request that is asked about is served, and one track of it followed through the stages."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from lhydra.domain import Query
from lhydra.errors import FeatureError, InvalidRequest
from lhydra.explain.changes import Changes
from lhydra.explain.explainer import Explained, Explainer
from lhydra.limits import check_id
from lhydra.recommender import MAX_BATCH
from lhydra.traced import Traced
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.rules import seed_of

DEFAULT_K = 10  # of a request that says none
QueryOf = Callable[[pb.RecommendRequest], Query]


def asked_request(request: pb.ExplainRequest, request_id: str) -> pb.RecommendRequest:
    """Returns the request whose answer is explained; clock and draws are set, so that it can be asked again.

    Args:
        request: as it came.
        request_id: of the call.

    Returns:
        A request of its own.

    Raises:
        InvalidRequest: it names two users, or a track that is no id.
    """
    check_id("track_id", request.track_id)
    asked = pb.RecommendRequest()
    asked.CopyFrom(request.request)
    if request.user_id and asked.user_id not in ("", request.user_id):
        raise InvalidRequest("user_id", f"{request.user_id!r} beside request.user_id {asked.user_id!r}", "one user")
    asked.user_id = asked.user_id or request.user_id
    asked.k = asked.k or DEFAULT_K
    asked.now_s = asked.now_s or int(time.time())
    asked.seed = seed_of(asked.seed, request_id)
    asked.explain = False
    return asked


def explain(
    explainer: Explainer,
    asked: pb.RecommendRequest,
    track_id: str,
    max_k: int,
    query_of: QueryOf,
    check: Callable[[], None],
) -> pb.ExplainResponse:
    """Explains one track of a request.

    Args:
        explainer: of the bundle that is served.
        asked: the request, complete.
        track_id: the track.
        max_k: the largest k that a request may ask for.
        query_of: makes the query of a request, as for Recommend.
        check: called between stages.

    Returns:
        The reply, without what is told of the call.

    Raises:
        InvalidRequest: the profile does not fit the features.
    """
    try:
        traced = explainer.trace(query_of(asked), check)
    except FeatureError as error:
        raise InvalidRequest("profile", str(error), "values that fit the features") from None

    def serve(tries: Sequence[Changes]) -> list[Traced | None]:
        queries = [(query_of(changed(explainer, asked, track_id, one)), check) for one in tries]
        found = []
        for start in range(0, len(queries), MAX_BATCH):
            found += explainer.recommender.trace_many(queries[start : start + MAX_BATCH])
        return [None if one.answer is None else one for one in found]

    found = explainer.explain(traced, track_id, max_k, serve)
    reply = _reply(explainer, found, asked)
    for changes, place in found.brings_in:
        request = changed(explainer, asked, track_id, changes)
        words = [one.words for one in changes]
        reply.would_bring_in.append(pb.WouldBringIn(changes=words, place=place, request=request))
    return reply


def changed(explainer: Explainer, asked: pb.RecommendRequest, track_id: str, changes: Changes) -> pb.RecommendRequest:
    """Returns a request with changes.

    Args:
        explainer: names the tracks of the catalog.
        asked: the request.
        track_id: the track that is explained.
        changes: what differs.

    Returns:
        A request of its own.
    """
    request = pb.RecommendRequest()
    request.CopyFrom(asked)
    for one in sorted(
        changes, key=lambda one: one.field, reverse=True
    ):  # conditions from the last, so that numbers hold
        field = one.field
        if field == "exclude_track_ids":
            kept = [name for name in request.exclude_track_ids if name != track_id]
            del request.exclude_track_ids[:]
            request.exclude_track_ids.extend(kept)
        elif field == "repeat_policy":
            request.repeat_policy = pb.REPEAT_POLICY_ALLOW
        elif field.startswith("filter."):
            _lift_filter(request.filter, field)
        elif field == "rules.blocks":
            request.rules.ClearField("blocks")
        elif field == "rules.off":
            request.ClearField("diversity")
            request.rules.CopyFrom(pb.Rules(off=True))
        elif field.startswith("rules.caps["):
            column = field.removeprefix("rules.caps[").removesuffix("]")
            request.rules.caps[column] = 0
            if column == "artist":
                request.diversity.max_per_artist = 0
        elif field == "session":
            names = explainer.recommender.catalog.track_ids(np.array(one.rows, np.int64))
            request.session.entries.extend(pb.SessionEntry(track_id=name) for name in names)
        else:
            setattr(request, field, one.number)
    return request


def _lift_filter(wanted: pb.Filter, field: str) -> None:
    """Leaves out a condition; both bounds of the year are one."""
    name = field.removeprefix("filter.")
    if name.startswith("conditions["):
        del wanted.conditions[int(name.removeprefix("conditions[").split("]")[0])]
    elif name in ("min_year", "max_year"):
        wanted.ClearField("min_year")
        wanted.ClearField("max_year")
    else:
        wanted.ClearField(name)  # type: ignore[arg-type]


def _reply(explainer: Explainer, found: Explained, asked: pb.RecommendRequest) -> pb.ExplainResponse:
    path, catalog = found.path, explainer.recommender.catalog
    rows = np.array([one.row for one in found.pulls], np.int64)
    named = zip(found.pulls, catalog.titles(rows), catalog.artists(rows), strict=True)
    return pb.ExplainResponse(
        tier=pb.Tier.ValueType(int(path.tier)),
        recommended=path.place > 0,
        rank=path.place,
        stopped_at=path.stopped_at,
        score=path.score,
        retrieval_score=path.cosine,
        stopped_by=path.stopped_by,
        dropped_by=path.dropped_by,
        sources=path.sources,
        exact_rank=path.exact_rank,
        index_rank=path.index_rank,
        depth=path.depth,
        candidates=path.candidates,
        candidate=path.is_candidate,
        head_rank=path.head_rank,
        logit=path.logit,
        steps=[pb.RuleStep(rule=step.rule, before=step.before, after=step.after) for step in path.steps],
        pulls=[pb.Pull(name=one.name, logit=one.logit, title=title, artist=artist) for one, title, artist in named],
        groups=[pb.Pull(name=one.name, logit=one.logit) for one in found.groups],
        k=asked.k,
        title=found.title,
        artist=found.artist,
    )
