"""What surrounds every call: request id, deadline, parsing, error translation, metrics, one log line."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from lhydra import logs
from lhydra.errors import DeadlineExceeded, InvalidRequest, LhydraError, Overloaded, PermissionDenied, Unauthenticated
from lhydra.limits import is_request_id
from lhydra_server.access import RIGHT_OF, Access
from lhydra_server.admission import Behavior, DirectPool, ReadAheadPool, RefusalPool, Requests
from lhydra_server.answers import Seen
from lhydra_server.errors import status_of
from lhydra_server.metrics.layout import OTHER
from lhydra_server.metrics.worker import Metrics
from lhydra_server.outage_log import OutageLog
from lhydra_server.tracing import Tracing
from lhydra_server.unread import UnreadReplies

REQUEST_ID_KEY = "x-request-id"  # metadata key, of the call and of its trailers
RETRY_AFTER_KEY = "retry-after-ms"  # trailer of a call refused for overload
DENIALS: dict[type[LhydraError], str] = {
    Unauthenticated: "unauthenticated",
    PermissionDenied: "permission",
    Overloaded: "rate",
}  # reason of the metric, by what `Access` raises
NO_NOTES: Mapping[str, object] = MappingProxyType({})
_log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)


class Call:
    """One call in progress: its caller, and what a method leaves for its log line and the metrics.

    The attribute `notes` becomes fields of the log line, the rest is counted. `deadline_s` is when the caller leaves,
    on the clock of `time.monotonic`; infinite without a deadline.

    Args:
        context: of gRPC.
        request_id: the caller's, or a new one.
        outages: where a failing user store is logged.
    """

    def __init__(self, context: grpc.ServicerContext, request_id: str, outages: OutageLog) -> None:
        self.request_id = request_id
        self.outages = outages
        self.notes: dict[str, object] = {}
        self.stage_us: dict[str, int] = {}
        self.tier = ""
        self.degraded: list[str] = []
        self.short = False
        self.seen: Seen | None = None  # of an answer that is logged
        self._active = context.is_active
        self.metadata = context.invocation_metadata
        remaining_s = context.time_remaining()
        self.deadline_s = math.inf if remaining_s is None else time.monotonic() + remaining_s

    def check(self) -> None:
        """Ends the work on a call whose caller has left.

        Raises:
            DeadlineExceeded: the deadline has passed, or the caller has cancelled or is gone.
        """
        if time.monotonic() >= self.deadline_s or not self._active():
            raise DeadlineExceeded("the deadline passed before the work was done")


class HandlerFactory:
    """Makes gRPC handlers of methods that may raise any LhydraError.

    Args:
        metrics: what calls are counted in.
        access_log: where each call has its line.
        unread: counts the replies.
        tracing: is told of each call; None for none.
    """

    def __init__(
        self, metrics: Metrics, access_log: logs.AccessLog, unread: UnreadReplies, tracing: Tracing | None = None
    ) -> None:
        self._metrics, self._access_log, self._tracing = metrics, access_log, tracing
        self._outages, self._unread, self._refusals = OutageLog(), unread, RefusalPool()

    def unary(
        self,
        name: str,
        request_type: type[Request],
        method: Callable[[Request, Call], Message | bytes],
        pool: DirectPool,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Makes the handler of a unary method.

        The handler parses the request itself: gRPC would answer INTERNAL to bytes that cannot be parsed.

        Args:
            name: of the method, in metrics and logs.
            request_type: what the bytes of a request are parsed as.
            method: answers a parsed request, with a message or its bytes.
            pool: admits calls, and gives them a thread.

        Returns:
            The handler.
        """

        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            started_ns = time.perf_counter_ns()
            call = Call(context, _request_id(context.invocation_metadata()), self._outages)
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            code, details, reply = grpc.StatusCode.OK, "", None
            try:
                call.check()  # it may have waited for a thread for longer than its caller does
                reply = _serialized(method(parsed(data, request_type), call))
            except Exception as error:
                code, details = self.told(name, error, call)
            self.ended(name, code, call, started_ns)
            if reply is None:
                context.abort(code, details)  # raises
            self._unread.add(context, len(reply))
            return reply

        handle.experimental_thread_pool = pool  # type: ignore[attr-defined]
        return grpc.unary_unary_rpc_method_handler(handle)

    def stream(
        self, behavior: Callable[[Requests, grpc.ServicerContext], Iterator[bytes]], pool: ReadAheadPool
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Makes the handler of a method that answers a stream by a stream.

        Args:
            behavior: answers it.
            pool: admits streams, and gives them a thread.

        Returns:
            The handler.
        """

        def handle(requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            return behavior(requests, context)

        handle.experimental_thread_pool = pool  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(handle)

    def begin(self, context: grpc.ServicerContext) -> str:
        """Names a stream, and says its name in the trailers.

        Args:
            context: of gRPC.

        Returns:
            Its request id, the caller's or a new one.
        """
        request_id = _request_id(context.invocation_metadata())
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        return request_id

    def call(self, context: grpc.ServicerContext, request_id: str) -> Call:
        """Makes the call that stands for one request of a stream.

        Args:
            context: of the stream.
            request_id: of the request.

        Returns:
            The call; it ends when the stream does.
        """
        return Call(context, request_id, self._outages)

    def told(self, name: str, error: Exception, call: Call) -> tuple[grpc.StatusCode, str]:
        """Logs or counts an error as its kind asks for.

        Args:
            name: of the method.
            error: what ended the call.
            call: the call.

        Returns:
            The status that the caller sees.
        """
        code, details = status_of(error, call.request_id)
        if code is grpc.StatusCode.UNAVAILABLE and isinstance(error, LhydraError):
            call.outages.write(f"{name} failed", error, call.request_id)
        elif code is grpc.StatusCode.INTERNAL:  # a mistake: always told
            known = isinstance(error, LhydraError)  # its line says enough
            _log.error("%s failed: %s", name, error, exc_info=not known, extra={"request_id": call.request_id})
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._metrics.refused("deadline")
        return code, details

    def ended(self, name: str, code: grpc.StatusCode, call: Call, started_ns: int) -> None:
        """Counts a request and writes its log line.

        Args:
            name: of the method.
            code: what it ended with.
            call: with what the method left.
            started_ns: when it began, on the clock of `time.perf_counter_ns`.
        """
        took_us = (time.perf_counter_ns() - started_ns) // 1000
        self._metrics.record(name, code.name, took_us, call.stage_us, call.tier, call.degraded, call.short)
        self._access_log.write(name, code.name, call.request_id, took_us, call.notes)
        if self._tracing is not None:
            self._tracing.ended(name, code.name, call, took_us)

    def overloaded(self, retry_after_ms: Callable[[], int]) -> Behavior:
        """Makes what answers calls for which there is no room: it refuses them at once.

        Args:
            retry_after_ms: returns the milliseconds that the refused caller should wait.

        Returns:
            What a pool runs in place of the method; it refuses with RESOURCE_EXHAUSTED.
        """

        def refuse(data: bytes, context: grpc.ServicerContext) -> None:
            after_ms = retry_after_ms()
            error = Overloaded(f"too many requests in flight, retry in {after_ms} ms", after_ms)
            self._refuse("overload", "overload", error, context)

        return refuse

    def denied(self, method: str, error: LhydraError, reason: str) -> "grpc.RpcMethodHandler[Any, Any]":
        """Makes the handler of a call that its caller may not make: it refuses it at once, without its request.

        Args:
            method: with its service.
            error: why.
            reason: of the metric.

        Returns:
            The handler.
        """
        name = method.rpartition("/")[2] if method in RIGHT_OF else OTHER  # it may be any text

        def refuse(data: bytes, context: grpc.ServicerContext) -> None:
            self._refuse(name, reason, error, context, {"why": str(error)})

        refuse.experimental_thread_pool = self._refusals  # type: ignore[attr-defined]
        return grpc.unary_unary_rpc_method_handler(refuse)

    def _refuse(
        self,
        name: str,
        reason: str,
        error: LhydraError,
        context: grpc.ServicerContext,
        notes: Mapping[str, object] = NO_NOTES,
    ) -> None:
        self._metrics.refused(reason)
        request_id = _request_id(context.invocation_metadata())
        after = ((RETRY_AFTER_KEY, str(error.retry_after_ms)),) if isinstance(error, Overloaded) else ()
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id), *after))
        code, details = status_of(error, request_id)
        self._metrics.record(name, code.name, 0, {})
        self._access_log.write(name, code.name, request_id, 0, notes)
        context.abort(code, details)  # raises


class AccessInterceptor(grpc.ServerInterceptor):
    """Refuses calls that their callers may not make, before they take a place or their request is read.

    Args:
        access: checks their tokens.
        handlers: makes what refuses them.
    """

    def __init__(self, access: Access, handlers: HandlerFactory) -> None:
        self._access, self._handlers = access, handlers

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Finds the handler of a call whose headers have come.

        Args:
            continuation: finds that of its method.
            handler_call_details: the method and the metadata.

        Returns:
            The handler; None where there is no such method.
        """
        method = handler_call_details.method
        try:
            self._access.check(method, handler_call_details.invocation_metadata)
        except tuple(DENIALS) as error:
            return self._handlers.denied(method, error, DENIALS[type(error)])
        return continuation(handler_call_details)


def _serialized(reply: Message | bytes) -> bytes:
    return reply if isinstance(reply, bytes) else reply.SerializeToString()


def parsed(data: bytes, request_type: type[Request]) -> Request:
    """Parses a request.

    Args:
        data: its bytes.
        request_type: what they are parsed as.

    Returns:
        The message.

    Raises:
        InvalidRequest: they cannot be.
    """
    request = request_type()
    try:
        request.ParseFromString(data)
    except DecodeError:
        expected = f"a {request_type.DESCRIPTOR.full_name}"
        raise InvalidRequest("request", f"{len(data)} bytes that cannot be parsed", expected) from None
    return request


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Returns the caller's request id where logs can hold it, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and is_request_id(value):
            return value
    return os.urandom(16).hex()
