"""Explain: the request that is asked about is served, and one track of it followed through the stages."""

import time
from collections.abc import Callable

from lhydra.domain import Query
from lhydra.errors import FeatureError, InvalidRequest
from lhydra.explain.explainer import Explained, Explainer
from lhydra.limits import check_id
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
    explainer: Explainer, asked: pb.RecommendRequest, track_id: str, query_of: QueryOf, check: Callable[[], None]
) -> pb.ExplainResponse:
    """Explains one track of a request.

    Args:
        explainer: of the bundle that is served.
        asked: the request, complete.
        track_id: the track.
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
    return _reply(explainer.explain(traced, track_id), asked)


def _reply(found: Explained, asked: pb.RecommendRequest) -> pb.ExplainResponse:
    path = found.path
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
        k=asked.k,
        title=found.title,
        artist=found.artist,
    )
