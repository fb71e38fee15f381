"""What surrounds every call: admission, request id, deadline, parsing, error translation, metrics, one log line."""

import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from lhydra import logs
from lhydra.errors import DeadlineExceeded, InvalidRequest, LhydraError, Overloaded, Unsupported
from lhydra_server.errors import status_of
from lhydra_server.metrics.worker import Metrics
from lhydra_server.outage_log import OutageLog

REQUEST_ID = "x-request-id"  # metadata key, of the call and of its trailers
RETRY_AFTER = "retry-after-ms"  # trailer of a call refused for overload
_SANE_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)


class Call:
    """One call in progress. `notes` become fields of its log line, the rest is counted.

    deadline_s: when its caller leaves, on the clock of `time.monotonic`; infinite without a deadline.
    """

    def __init__(self, context: grpc.ServicerContext, request_id: str, outages: OutageLog) -> None:
        self.request_id = request_id
        self.outages = outages
        self.notes: dict[str, object] = {}
        self.stage_us: dict[str, int] = {}
        self.tier = ""
        self.degraded: list[str] = []
        self.short = False
        self._active = context.is_active
        remaining_s = context.time_remaining()
        self.deadline_s = math.inf if remaining_s is None else time.monotonic() + remaining_s

    def check(self) -> None:
        """Raises DeadlineExceeded when nobody waits for the answer any more."""
        if time.monotonic() >= self.deadline_s or not self._active():
            raise DeadlineExceeded("the deadline passed before the work was done")


class HandlerFactory:
    """Makes gRPC handlers of methods that may raise any LhydraError. pool: where unary methods run."""

    def __init__(self, metrics: Metrics, access_log: logs.AccessLog, pool: "CountingPool") -> None:
        self._metrics, self._access_log, self._pool = metrics, access_log, pool
        self._outages = OutageLog()

    def unary(
        self, name: str, request_type: type[Request], method: Callable[[Request, Call], Message | bytes]
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Returns the handler of a unary method, whose reply may be bytes already.

        Bytes are parsed here and not by gRPC, which would answer INTERNAL to what is a bad request.
        """

        def handle(data: bytes, context: grpc.ServicerContext) -> Message | bytes:
            started_ns = time.perf_counter_ns()
            call = Call(context, _request_id(context.invocation_metadata()), self._outages)
            context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
            code, details, reply = grpc.StatusCode.OK, "", None
            try:
                call.check()  # it may have waited for a thread for longer than its caller does
                reply = method(_parsed(data, request_type), call)
            except Exception as error:
                code, details = status_of(error, call.request_id)
                if code is grpc.StatusCode.UNAVAILABLE and isinstance(error, LhydraError):
                    call.outages.write(f"{name} failed", error, call.request_id)
                elif code is grpc.StatusCode.INTERNAL:  # a mistake: always told
                    known = isinstance(error, LhydraError)  # its line says enough
                    _log.error("%s failed: %s", name, error, exc_info=not known, extra={"request_id": call.request_id})
                elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._metrics.refused("deadline")
            took_us = (time.perf_counter_ns() - started_ns) // 1000
            self._metrics.record(name, code.name, took_us, call.stage_us, call.tier, call.degraded, call.short)
            self._access_log.write(name, code.name, call.request_id, took_us, call.notes)
            if reply is None:
                context.abort(code, details)  # raises
            return reply

        handle.experimental_thread_pool = self._pool  # type: ignore[attr-defined]
        return grpc.unary_unary_rpc_method_handler(handle, response_serializer=_serialized)

    def refused_stream(self, name: str) -> "grpc.RpcMethodHandler[Any, Any]":
        """Returns the handler of a streaming method that this version does not answer."""

        def handle(requests: Iterable[bytes], context: grpc.ServicerContext) -> None:
            self._refuse(name, Unsupported(f"{name}: this version does not answer it"), context)

        return grpc.stream_stream_rpc_method_handler(handle)

    def overloaded(self, retry_after_ms: Callable[[], int]) -> "grpc.RpcMethodHandler[Any, Any]":
        """Returns the handler of unary calls that come while too many are in flight: a refusal, at once.

        It has a thread of its own: those of the others are what there is too little of. It takes the request for a
        stream, which gRPC hands over before there is a message: one that never comes holds nobody up.
        """

        def refuse(requests: Iterable[bytes], context: grpc.ServicerContext) -> None:
            after_ms = retry_after_ms()
            self._metrics.refused("overload")
            error = Overloaded(f"too many requests in flight, retry in {after_ms} ms")
            self._refuse("overload", error, context, ((RETRY_AFTER, str(after_ms)),))

        refuse.experimental_thread_pool = ThreadPoolExecutor(1, "refuse")  # type: ignore[attr-defined]
        return grpc.stream_unary_rpc_method_handler(refuse)

    def _refuse(
        self,
        name: str,
        error: LhydraError,
        context: grpc.ServicerContext,
        trailers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        request_id = _request_id(context.invocation_metadata())
        context.set_trailing_metadata(((REQUEST_ID, request_id), *trailers))
        code, details = status_of(error, request_id)
        self._metrics.record(name, code.name, 0, {})
        self._access_log.write(name, code.name, request_id, 0, {})
        context.abort(code, details)  # raises


class AdmissionControl(grpc.GenericRpcHandler):
    """Lets calls of the API in, as long as there are fewer than `most` in flight.

    methods: handlers by their path. pool: where they run. refusal: the handler of those that find it full.
    """

    def __init__(
        self,
        methods: "Mapping[str, grpc.RpcMethodHandler[Any, Any]]",
        pool: "CountingPool",
        most: int,
        refusal: "grpc.RpcMethodHandler[Any, Any]",
    ) -> None:
        self._methods, self._pool, self._most, self._refusal = methods, pool, most, refusal

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Returns the handler of a call that has come; runs in the one thread that gRPC receives calls in."""
        handler = self._methods.get(details.method)
        if handler is None or self._pool.in_flight < self._most or handler.request_streaming:
            return handler
        return self._refusal


class CountingPool(ThreadPoolExecutor):
    """Threads for calls: knows how many calls run or wait for one. changed: told when that is another number."""

    def __init__(self, threads: int, changed: Callable[[int], None]) -> None:
        super().__init__(threads, "call")
        self.in_flight = 0
        self._changed, self._count = changed, Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Runs a call when there is a thread for it."""
        self._add(1)
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(lambda _: self._add(-1))
        return future

    def _add(self, n: int) -> None:
        with self._count:
            self.in_flight += n
            self._changed(self.in_flight)


def _serialized(reply: Message | bytes) -> bytes:
    return reply if isinstance(reply, bytes) else reply.SerializeToString()


def _parsed(data: bytes, request_type: type[Request]) -> Request:
    request = request_type()
    try:
        request.ParseFromString(data)
    except DecodeError:
        expected = f"a {request_type.DESCRIPTOR.full_name}"
        raise InvalidRequest("request", f"{len(data)} bytes that cannot be parsed", expected) from None
    return request


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The caller's request id when it is one that logs can hold, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _SANE_ID.fullmatch(value):
            return value
    return os.urandom(16).hex()
