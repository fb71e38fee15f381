"""The calls for operators, of both clients: users, bundles, the map. Servers with tokens ask for the right `admin`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from lhydra_client import stored
from lhydra_client.stored import FoundUsers, StoredBundle, TrackMap, User
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub

if TYPE_CHECKING:
    import grpc
    import grpc.aio

    from lhydra_protos.v1.recommender_pb2_grpc import RecommenderAsyncStub

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class OperatorCalls(ABC):
    """What `Client` asks for operators."""

    _stub: RecommenderStub

    @abstractmethod
    def _call(
        self, method: "grpc.UnaryUnaryMultiCallable[Request, Reply]", request: Request, timeout_s: float | None
    ) -> Reply: ...

    def user(self, user_id: str, max_entries: int | None = 0, *, timeout_s: float | None = None) -> User:
        """Returns what is stored of a user. Needs the right `admin`, as the next three methods do.

        Args:
            user_id: the listener.
            max_entries: of the history and of the last plays; 0 for 100, at most 1,000.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            Profile, history and last plays; of an unknown user `known` is False.

        Raises:
            ClientError: one of its subclasses.
        """
        asked = stored.user_request(user_id, max_entries)
        return stored.user(self._call(self._stub.GetUser, asked, timeout_s))

    def users(self, prefix: str | None = "", k: int | None = 10, *, timeout_s: float | None = None) -> FoundUsers:
        """Returns the users whose ids begin in one way.

        Args:
            prefix: what the ids begin with; "" for any.
            k: how many, 1 to 100.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The first of them.

        Raises:
            ClientError: one of its subclasses.
        """
        asked = stored.users_request(prefix, k)
        return stored.users(self._call(self._stub.SearchUsers, asked, timeout_s))

    def bundles(self, *, timeout_s: float | None = None) -> tuple[StoredBundle, ...]:
        """Returns the bundles of the server's store.

        Args:
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The bundles, newest first, with what their gates said.

        Raises:
            ClientError: one of its subclasses.
        """
        asked = pb.ListBundlesRequest()
        return stored.bundles(self._call(self._stub.ListBundles, asked, timeout_s))

    def track_map(
        self,
        max_points: int | None = 0,
        *,
        column: str | None = "",
        track_ids: Iterable[str] | None = (),
        timeout_s: float | None = None,
    ) -> TrackMap:
        """Returns the tracks as points of a plane, where the bundle has a map.

        Args:
            max_points: tracks, most listeners first; 0 for 100,000, at most 200,000.
            column: of the catalogue, to label them by; "" for that of the genres.
            track_ids: up to 1,000 tracks that are wanted in any case.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The tracks with their places.

        Raises:
            ClientError: one of its subclasses.
        """
        asked = stored.map_request(max_points, column, track_ids)
        return stored.track_map(self._call(self._stub.GetMap, asked, timeout_s))


class AsyncOperatorCalls(ABC):
    """What `AsyncClient` asks for operators."""

    _stub: "RecommenderAsyncStub"

    @abstractmethod
    async def _call(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Reply]", request: Request, timeout_s: float | None
    ) -> Reply: ...

    async def user(self, user_id: str, max_entries: int | None = 0, *, timeout_s: float | None = None) -> User:
        """Returns what is stored of a user. Needs the right `admin`, as the next three methods do.

        Args:
            user_id: the listener.
            max_entries: of the history and of the last plays; 0 for 100, at most 1,000.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            Profile, history and last plays; of an unknown user `known` is False.

        Raises:
            ClientError: one of its subclasses.
        """
        asked = stored.user_request(user_id, max_entries)
        return stored.user(await self._call(self._stub.GetUser, asked, timeout_s))

    async def users(self, prefix: str | None = "", k: int | None = 10, *, timeout_s: float | None = None) -> FoundUsers:
        """Returns the users whose ids begin in one way.

        Args:
            prefix: what the ids begin with; "" for any.
            k: how many, 1 to 100.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The first of them.

        Raises:
            ClientError: one of its subclasses.
        """
        asked = stored.users_request(prefix, k)
        return stored.users(await self._call(self._stub.SearchUsers, asked, timeout_s))

    async def bundles(self, *, timeout_s: float | None = None) -> tuple[StoredBundle, ...]:
        """Returns the bundles of the server's store.

        Args:
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The bundles, newest first, with what their gates said.

        Raises:
            ClientError: one of its subclasses.
        """
        asked = pb.ListBundlesRequest()
        return stored.bundles(await self._call(self._stub.ListBundles, asked, timeout_s))

    async def track_map(
        self,
        max_points: int | None = 0,
        *,
        column: str | None = "",
        track_ids: Iterable[str] | None = (),
        timeout_s: float | None = None,
    ) -> TrackMap:
        """Returns the tracks as points of a plane, where the bundle has a map.

        Args:
            max_points: tracks, most listeners first; 0 for 100,000, at most 200,000.
            column: of the catalogue, to label them by; "" for that of the genres.
            track_ids: up to 1,000 tracks that are wanted in any case.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The tracks with their places.

        Raises:
            ClientError: one of its subclasses.
        """
        asked = stored.map_request(max_points, column, track_ids)
        return stored.track_map(await self._call(self._stub.GetMap, asked, timeout_s))
