"""One logged answer given again, by the service itself: what it looks up, and its clock, are those of the log."""

import math
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from lhydra.answers.entry import LoggedAnswer
from lhydra.domain import UserState
from lhydra.errors import BundleError, LhydraError, UserStoreError
from lhydra.users.store import UserStore
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.answers import Seen, entry_of
from lhydra_server.config import WorkerSettings
from lhydra_server.interceptors import Call
from lhydra_server.logged import sets_of
from lhydra_server.outage_log import OutageLog
from lhydra_server.served import Served, open_served
from lhydra_server.service import RecommenderService

MOST_OPEN = 2  # bundles; the answers of a file are all of one


class Opened:
    """The bundles of a store that answers are given from again.

    Args:
        store: the folder of bundles.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._served: dict[tuple[str, int], Served | BundleError] = {}

    def of(self, answer: LoggedAnswer) -> Served:
        """Returns the bundle that gave an answer.

        Args:
            answer: of the log.

        Returns:
            The bundle, with the depth of the server that answered.

        Raises:
            BundleError: it is not there, or not sound.
        """
        key = answer.bundle_id, answer.depth
        if key not in self._served:
            if len(self._served) == MOST_OPEN:
                del self._served[next(iter(self._served))]
            settings = WorkerSettings(str(self._store), answer.bundle_id, "", depth=answer.depth)
            try:
                self._served[key] = open_served(settings)
            except BundleError as error:
                self._served[key] = error
        found = self._served[key]
        if isinstance(found, BundleError):
            raise found
        return found


def differences(answer: LoggedAnswer, served: Served) -> list[dict[str, Any]]:
    """Answers again, and returns what differs from what was logged.

    Args:
        answer: of the log.
        served: the bundle that gave it.

    Returns:
        `place` (from 1) or `field`, with what it was and what it is; nothing where both are equal, scores to the float.
    """
    try:
        again = answered(answer, served)
    except (LhydraError, DecodeError) as error:  # or what was logged is no request
        return [{"field": "answer", "was": "a list", "is": f"{type(error).__name__}: {error}"}]
    found: list[dict[str, Any]] = [
        {"field": name, "was": was, "is": now}
        for name in ("tier", "degraded")
        if (was := getattr(answer, name)) != (now := getattr(again, name))
    ]
    for place, (was, now) in enumerate(zip_longest(_places(answer), _places(again)), 1):
        if was != now:
            found.append({"place": place, "was": was, "is": now})
    return found


def answered(answer: LoggedAnswer, served: Served) -> LoggedAnswer:
    """Answers again.

    Args:
        answer: of the log.
        served: the bundle that gave it.

    Returns:
        The answer as it would be logged now.

    Raises:
        LhydraError: what the request ends with now.
    """
    users, context = cast(UserStore, _AsStored(answer)), cast(grpc.ServicerContext, _Context())
    service = RecommenderService(served, users, max_k=answer.max_k, clock=lambda: answer.now)
    call = Call(context, answer.request_id, _Unsaid())
    if answer.method == "SimilarTracks":
        similar = pb.SimilarTracksRequest.FromString(answer.request)
        service.rule_sets = sets_of(answer, similar.rules.set)
        return _entry(answer, similar, service.SimilarTracks(similar, call), served)
    request = pb.RecommendRequest.FromString(answer.request)
    service.rule_sets = sets_of(answer, request.rules.set)
    return _entry(answer, request, service.Recommend(request, call), served)


def _entry(
    answer: LoggedAnswer, request: pb.RecommendRequest | pb.SimilarTracksRequest, reply: bytes, served: Served
) -> LoggedAnswer:
    seen = Seen(answer.now, 0, answer.state, answer.rules)
    return entry_of(request, answer.request_id, seen, reply, served.bundle_id, answer.depth, answer.max_k)


def _places(answer: LoggedAnswer) -> list[dict[str, Any]]:
    chances = answer.propensities or (0.0,) * len(answer.tracks)
    listed = zip(answer.tracks, answer.scores, chances, strict=True)
    return [{"track_id": track, "score": score, "propensity": chance} for track, score, chance in listed]


class _AsStored:
    """A user store that knows what the logged request found; it is out where it was out."""

    def __init__(self, answer: LoggedAnswer) -> None:
        self._answer = answer

    def get(self, user_id: str, deadline_s: float = math.inf) -> UserState | None:
        if "user_store" in self._answer.degraded:
            raise UserStoreError("the user store was out")
        return self._answer.state


class _Unsaid(OutageLog):
    """An outage of then is no news."""

    def write(self, effect: str, error: LhydraError, request_id: str) -> None:
        """Writes nothing.

        Args:
            effect: what became of the call.
            error: the outage.
            request_id: of the call.
        """


class _Context:
    """Of a call that nobody leaves, without a deadline."""

    def is_active(self) -> bool:
        return True

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()
