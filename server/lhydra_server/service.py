"""The methods of the API: translate, call the core, translate back."""

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lhydra import __version__
from lhydra.domain import I64, Hashes, Query, Recommendation, UserState, track_hashes
from lhydra.errors import FeatureError, InvalidRequest, Unsupported, UserStoreError
from lhydra.timing import timed
from lhydra.user_record import user_tag
from lhydra.users import UserStore
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.config import FleetStatus
from lhydra_server.interceptors import Call
from lhydra_server.translate import Named, check_recommend, to_plays, to_query, to_response

_log = logging.getLogger(__name__)


class Recommends(Protocol):
    """What the service needs of a recommender."""

    depth: int

    def recommend(self, query: Query, check: Callable[[], None] = ...) -> Recommendation:
        """Returns the answer to `query`; `check` is called between stages and may raise."""


class Tracks(Named, Protocol):
    """What the service needs of a catalog."""

    def __len__(self) -> int: ...

    def rows(self, hashes: Hashes) -> I64:
        """Returns the row of each track hash, -1 where unknown."""


@dataclass(frozen=True)
class Served:
    """An opened bundle as the service sees it."""

    bundle_id: str
    model_id: str
    dim: int
    index_recipe: str
    recommender: Recommends
    catalog: Tracks


class RecommenderService:
    """Answers the calls of one worker; safe to call from several threads.

    fleet: says what only the supervisor knows, asked anew for every GetStatus.
    """

    def __init__(
        self, served: Served, users: UserStore, *, max_k: int, fleet: Callable[[], FleetStatus] = FleetStatus
    ) -> None:
        self._served, self._users, self._max_k, self._fleet = served, users, max_k, fleet
        self._started_s = time.monotonic()
        self._count = itertools.count(1)
        self._answered = 0

    def Recommend(self, request: pb.RecommendRequest, call: Call) -> pb.RecommendResponse:
        """Tracks for a user, best first."""
        served, stage_us = self._served, dict[str, int]()
        call.notes |= {"bundle": served.bundle_id, "user": user_tag(request.user_id), "stage_us": stage_us}
        check_recommend(request, self._max_k)
        with timed("lookup", into=stage_us):
            stored, degraded = self._look_up(request.user_id, call)
            query = to_query(request, stored)
        try:
            found = served.recommender.recommend(query, call.check)
        except FeatureError as error:
            if request.profile.columns:
                raise InvalidRequest("profile", str(error), "values that fit the features") from None
            raise
        stage_us |= found.stage_us
        call.notes |= {"tier": found.tier.label, "k": request.k}
        reply = to_response(found, served.catalog, stage_us, bundle_id=served.bundle_id, request_id=call.request_id)
        reply.degraded.extend(degraded)
        self._answered = next(self._count)
        return reply

    def RecordPlays(self, request: pb.RecordPlaysRequest, call: Call) -> pb.RecordPlaysResponse:
        """Appends plays to users' histories."""
        plays = to_plays(request)
        fresh = self._users.record(plays)
        tracks = track_hashes(play.track_id for play, new in zip(plays, fresh, strict=True) if new)
        recorded = sum(fresh)
        call.notes |= {"recorded": recorded, "duplicates": len(plays) - recorded}
        self._answered = next(self._count)
        return pb.RecordPlaysResponse(
            recorded=recorded,
            duplicates=len(plays) - recorded,
            unknown_tracks=int(np.count_nonzero(self._served.catalog.rows(tracks) < 0)),
        )

    def GetStatus(self, request: pb.GetStatusRequest, call: Call) -> pb.GetStatusResponse:
        """What is being served, and how the server is."""
        served, fleet = self._served, self._fleet()
        self._answered = next(self._count)
        return pb.GetStatusResponse(
            bundle_id=served.bundle_id,
            model_id=served.model_id,
            lhydra_version=__version__,
            tracks=len(served.catalog),
            dim=served.dim,
            index_recipe=served.index_recipe,
            default_depth=served.recommender.depth,
            max_k=self._max_k,
            workers=fleet.workers,
            uptime_s=time.monotonic() - self._started_s,
            current_bundle_id=fleet.current_bundle_id,
            swap_error=fleet.swap_error,
            requests=self._answered,
        )

    def SimilarTracks(self, request: pb.SimilarTracksRequest, call: Call) -> pb.RecommendResponse:
        """Tracks similar to given ones."""
        raise Unsupported("SimilarTracks: this version does not answer it")

    def Explain(self, request: pb.ExplainRequest, call: Call) -> pb.ExplainResponse:
        """Why a track is in a user's list, or why it is not."""
        raise Unsupported("Explain: this version does not answer it")

    def _look_up(self, user_id: str, call: Call) -> tuple[UserState | None, list[str]]:
        """The stored state and reasons why it is less than it could be: a lost store lowers the tier, no more."""
        try:
            return self._users.get(user_id), []
        except UserStoreError as error:
            _log.error("answered without the user store: %s", error, extra={"request_id": call.request_id})
            return None, ["user_store"]
