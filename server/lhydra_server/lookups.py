"""The methods of the API that look things up: tracks in the catalogue, users in their store, bundles in theirs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lhydra.errors import Unsupported, UserStoreError
from lhydra.limits import check_id, check_range
from lhydra.users.store import UserStore
from lhydra.users.tag import user_tag
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server import bundles, listeners
from lhydra_server.catalogue import Catalogue
from lhydra_server.interceptors import Call
from lhydra_server.metrics.worker import Metrics
from lhydra_server.served import Served

MAX_ENTRIES, DEFAULT_ENTRIES = 1_000, 100  # of one GetUser
MAX_USERS = 100  # of one SearchUsers
Found = TypeVar("Found", pb.GetTracksResponse, pb.SearchTracksResponse)
T = TypeVar("T")


class Lookups:
    """Answers the calls of one worker that look things up; safe to call from several threads.

    Args:
        served: the opened bundle.
        users: the user store.
        max_k: the largest k that a request may ask for.
        store: where bundles lie; None where nobody can tell.
        metrics: what errors of the user store are counted in.
        answered: counts an answer.
        clock: Unix seconds, up to which a session reaches.
    """

    def __init__(
        self,
        served: Served,
        users: UserStore,
        *,
        max_k: int,
        store: Path | None,
        metrics: Metrics,
        answered: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._served, self._users, self._max_k, self._store = served, users, max_k, store
        self._metrics, self._answered, self._clock = metrics, answered, clock

    def GetTracks(self, request: pb.GetTracksRequest, call: Call) -> pb.GetTracksResponse:
        """Answers what the catalogue says of tracks.

        Args:
            request: as it came.
            call: the call in progress.

        Returns:
            The tracks, and the ids that the bundle does not hold.

        Raises:
            InvalidRequest: a limit is passed; names the field.
            Unsupported: what is served has no catalogue to look into.
        """
        return self._of_tracks("GetTracks", call, lambda catalogue: catalogue.get(request))

    def SearchTracks(self, request: pb.SearchTracksRequest, call: Call) -> pb.SearchTracksResponse:
        """Answers with the tracks that have some words in title or artist.

        Args:
            request: as it came.
            call: the call in progress.

        Returns:
            The best of them, and how many there are.

        Raises:
            InvalidRequest: it can never be answered; names the field.
            Unsupported: what is served has no catalogue to look into.
            DeadlineExceeded: the caller left before the answer was found.
        """
        return self._of_tracks("SearchTracks", call, lambda found: found.search(request, self._max_k, call.check))

    def GetMap(self, request: pb.GetMapRequest, call: Call) -> pb.GetMapResponse:
        """Answers with the tracks as points of a plane.

        Args:
            request: as it came.
            call: the call in progress.

        Returns:
            The tracks, none where the bundle has no map.

        Raises:
            InvalidRequest: it can never be answered; names the field.
            Unsupported: what is served has no catalogue to look into.
            DeadlineExceeded: the caller left before the answer was made.
        """
        found = self._catalogue("GetMap").map(request, call.check)
        found.bundle_id, found.request_id = self._served.bundle_id, call.request_id
        call.notes |= {"bundle": self._served.bundle_id, "tracks": len(found.track_ids)}
        self._answered()
        return found

    def GetUser(self, request: pb.GetUserRequest, call: Call) -> pb.GetUserResponse:
        """Answers what is stored of a user.

        Args:
            request: as it came.
            call: the call in progress.

        Returns:
            Profile, history and last plays; of an unknown user that nothing is known.

        Raises:
            InvalidRequest: a limit is passed; names the field.
            Unsupported: what is served has no catalogue to look into.
            UserStoreError: the store does not answer.
        """
        check_id("user_id", request.user_id)
        check_range("max_entries", request.max_entries, 0, MAX_ENTRIES)
        catalogue, most = self._catalogue("GetUser"), request.max_entries or DEFAULT_ENTRIES
        call.notes |= {"bundle": self._served.bundle_id, "user": user_tag(request.user_id)}
        state = self._from_users(lambda: self._users.get(request.user_id, call.deadline_s))
        found = pb.GetUserResponse() if state is None else listeners.told(state, most, self._clock(), catalogue)
        found.bundle_id, found.request_id = self._served.bundle_id, call.request_id
        self._answered()
        return found

    def SearchUsers(self, request: pb.SearchUsersRequest, call: Call) -> pb.SearchUsersResponse:
        """Answers with the users whose ids begin in one way.

        Args:
            request: as it came.
            call: the call in progress.

        Returns:
            Their ids.

        Raises:
            InvalidRequest: a limit is passed; names the field.
            UserStoreError: the store does not answer.
        """
        if request.prefix:
            check_id("prefix", request.prefix)
        check_range("k", request.k, 1, MAX_USERS)
        ids, more = self._from_users(lambda: self._users.search(request.prefix, request.k, call.deadline_s))
        call.notes |= {"users": len(ids)}
        self._answered()
        return pb.SearchUsersResponse(user_ids=ids, more=more, request_id=call.request_id)

    def ListBundles(self, request: pb.ListBundlesRequest, call: Call) -> pb.ListBundlesResponse:
        """Answers with the bundles of the store.

        Args:
            request: empty.
            call: the call in progress.

        Returns:
            The bundles, newest first.

        Raises:
            Unsupported: nobody can tell where they lie.
            BundleMissing: the store is gone.
        """
        if self._store is None:
            raise Unsupported("ListBundles: this version does not answer it")
        found = bundles.listed(self._store, self._served.bundle_id)
        call.notes |= {"bundles": len(found)}
        self._answered()
        return pb.ListBundlesResponse(bundles=found, request_id=call.request_id)

    def _of_tracks(self, name: str, call: Call, look: Callable[[Catalogue], Found]) -> Found:
        found = look(self._catalogue(name))
        found.bundle_id, found.request_id = self._served.bundle_id, call.request_id
        call.notes |= {"bundle": self._served.bundle_id, "tracks": len(found.tracks)}
        self._answered()
        return found

    def _catalogue(self, name: str) -> Catalogue:
        if self._served.catalogue is None:
            raise Unsupported(f"{name}: this version does not answer it")
        return self._served.catalogue

    def _from_users(self, look: Callable[[], T]) -> T:
        try:
            return look()
        except UserStoreError:
            self._metrics.user_store_error()
            raise
