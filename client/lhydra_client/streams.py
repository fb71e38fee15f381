"""Many requests over streams, for both clients: the answers in order, an error in place of the answer it is about.

A server keeps a stream open for some seconds. Requests go to one stream for at most FEED_S, then to the next; what
has no answer when a stream breaks is sent again.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc

from lhydra_client.checks import listed, shown
from lhydra_client.errors import ClientError, InvalidRequest, Overloaded, ServerError, from_rpc, of_item
from lhydra_client.requests import recommend_request
from lhydra_client.results import Recommendations, recommendations
from lhydra_protos.v1 import recommender_pb2 as pb

AHEAD = 64  # requests that are sent before the first of them has its answer
FEED_S = 2.0  # for which a stream is given requests, half of the deadline at most; a server takes them for twice that
PAUSE_S = 0.02  # before a refused stream is opened again, where the server says nothing of it
_LOST = "Internal error from Core"  # what gRPC's aio client says of a stream that ends while it sends, whatever its end
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)

Open = Callable[..., Any]  # of the stub: an iterator of requests and `timeout` into a call


class _Stream:
    """What both clients do around a stream: which requests it is given, and what becomes of those left over."""

    def __init__(
        self, users: Iterable[str | pb.RecommendRequest], k: int | None, server: str, timeout_s: float
    ) -> None:
        self._source = iter(listed("users", users))
        self._k, self._server, self._timeout_s = k, server, timeout_s
        self._waiting: deque[pb.RecommendRequest | ClientError] = deque()  # in order, the sent ones first
        self._refused_s: float | None = None  # since when no stream has been let in
        self._fed = self._progress = False
        self.exhausted = False

    def begin(self) -> list[pb.RecommendRequest]:
        """Starts a stream; returns what has no answer yet."""
        self._fed, self._progress = False, False
        self._ends_s = time.monotonic() + min(FEED_S, self._timeout_s / 2)
        return [one for one in self._waiting if isinstance(one, pb.RecommendRequest)]

    def feed(self) -> list[pb.RecommendRequest | None]:
        """Returns what is to be sent now, None where nothing follows on this stream."""
        if self._fed:
            return []
        more: list[pb.RecommendRequest | None] = []
        while len(self._waiting) < AHEAD and not self.exhausted:
            try:
                user = next(self._source)
            except StopIteration:
                self.exhausted = True
                break
            made = _made(user, self._k)
            self._waiting.append(made)
            if not isinstance(made, ClientError):
                more.append(made)
        if self.exhausted or time.monotonic() >= self._ends_s:
            self._fed = True
            more.append(None)
        return more

    def refused(self) -> Iterator[ClientError]:
        """Yields the errors whose turn it is."""
        while self._waiting and isinstance(first := self._waiting[0], ClientError):
            self._waiting.popleft()
            yield first

    @property
    def expects(self) -> bool:
        """Whether an answer is to come on this stream."""
        return bool(self._waiting)

    @property
    def open(self) -> bool:
        """Whether this stream is given more requests."""
        return not self._fed

    def answered(self, reply: pb.RecommendResponse) -> Recommendations | ClientError:
        """Takes the next answer."""
        self._waiting.popleft()
        self._progress, self._refused_s = True, None
        if reply.HasField("error"):
            return of_item(reply.error.code, reply.error.message, reply.request_id, self._server)
        return recommendations(reply)

    def broken(self, error: grpc.RpcError) -> float:
        """Returns the seconds to wait before the next stream, or raises."""
        lost = error.code() is grpc.StatusCode.INTERNAL and error.details() == _LOST
        if self._progress and (lost or error.code() in _AGAIN):
            return 0.0
        raised = from_rpc(error, self._server, self._timeout_s)
        if lost or isinstance(raised, Overloaded):
            after_ms = raised.retry_after_ms if isinstance(raised, Overloaded) else None
            pause_s = (after_ms or PAUSE_S * 1000) / 1000 * (1 + random.random())
            if self._refused_s is None:
                self._refused_s = time.monotonic()
            if time.monotonic() + pause_s < self._refused_s + self._timeout_s:
                return pause_s
        raise raised from None

    def ended(self) -> None:
        """Takes that the server has ended the stream before every request had its answer, or raises."""
        if not self._progress:
            message = f"{self._server} ended a stream without an answer to the first of {len(self._waiting)} requests"
            raise ServerError(message, code="OK")


def _made(user: str | pb.RecommendRequest, k: int | None) -> pb.RecommendRequest | ClientError:
    try:
        if isinstance(user, pb.RecommendRequest):
            return user
        if not isinstance(user, str):
            raise InvalidRequest(f"users: found {shown(user)}, expected ids or requests")
        return recommend_request(user, k)
    except InvalidRequest as error:
        return error


def answers(
    opened: Open, users: Iterable[str | pb.RecommendRequest], k: int | None, server: str, timeout_s: float
) -> Generator[Recommendations | ClientError, None, None]:
    """Answers of `Client.recommend_many`.

    Args:
        opened: opens a stream.
        users: ids or requests.
        k: how many tracks for those named by id.
        server: its address, for errors.
        timeout_s: the longest wait for the next answer.

    Yields:
        An answer or an error for each, in order.

    Raises:
        ClientError: the server cannot be reached, or refuses.
    """
    stream = _Stream(users, k, server, timeout_s)
    while True:
        sent: SimpleQueue[pb.RecommendRequest | None] = SimpleQueue()
        for request in stream.begin():
            sent.put(request)
        call, pause_s = None, 0.0
        try:
            while stream.open or stream.expects:
                for one in stream.feed():
                    sent.put(one)
                yield from stream.refused()
                if stream.expects:
                    call = call or opened(iter(sent.get, None), timeout=timeout_s)
                    yield stream.answered(next(call))
        except StopIteration:  # it ended without an answer to all
            stream.ended()
        except grpc.RpcError as error:
            pause_s = stream.broken(error)
        finally:
            sent.put(None)
            if call is not None:
                call.cancel()
        if stream.exhausted and not stream.expects:
            return
        time.sleep(pause_s)


async def answers_aio(
    opened: Open, users: Iterable[str | pb.RecommendRequest], k: int | None, server: str, timeout_s: float
) -> AsyncGenerator[Recommendations | ClientError, None]:
    """Answers of `AsyncClient.recommend_many`.

    Args:
        opened: opens a stream.
        users: ids or requests.
        k: how many tracks for those named by id.
        server: its address, for errors.
        timeout_s: the longest wait for the next answer.

    Yields:
        An answer or an error for each, in order.

    Raises:
        ClientError: the server cannot be reached, or refuses.
    """
    stream = _Stream(users, k, server, timeout_s)
    while True:
        sent: asyncio.Queue[pb.RecommendRequest | None] = asyncio.Queue()
        for request in stream.begin():
            sent.put_nowait(request)
        call, pause_s = None, 0.0
        try:
            while stream.open or stream.expects:
                for one in stream.feed():
                    sent.put_nowait(one)
                for refused in stream.refused():
                    yield refused
                if stream.expects:
                    call = call or opened(_queued(sent), timeout=timeout_s)
                    reply = await call.read()
                    if reply is grpc.aio.EOF:
                        stream.ended()
                        break
                    yield stream.answered(reply)
        except grpc.RpcError as error:
            pause_s = stream.broken(error)
        finally:
            sent.put_nowait(None)
            if call is not None:
                call.cancel()
        if stream.exhausted and not stream.expects:
            return
        await asyncio.sleep(pause_s)


async def _queued(sent: "asyncio.Queue[pb.RecommendRequest | None]") -> AsyncIterator[pb.RecommendRequest]:
    while (request := await sent.get()) is not None:
        yield request
