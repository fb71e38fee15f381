"""What surrounds every call: request id, deadline, parsing, error translation, one log line."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from lhydra.errors import DeadlineExceeded, InvalidRequest, LhydraError, Unsupported
from lhydra_server.errors import status_of

REQUEST_ID = "x-request-id"  # metadata key, of the call and of its trailers
_SANE_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)


class Call:
    """One call in progress. `notes` become fields of its log line."""

    def __init__(self, context: grpc.ServicerContext, request_id: str) -> None:
        self.request_id = request_id
        self.notes: dict[str, object] = {}
        self._context = context

    def check(self) -> None:
        """Raises DeadlineExceeded when nobody waits for the answer any more."""
        remaining_s = self._context.time_remaining()
        if (remaining_s is not None and remaining_s <= 0) or not self._context.is_active():
            raise DeadlineExceeded("the deadline passed before the work was done")


def unary(name: str, request_type: type[Request], method: Callable[[Request, Call], Message]) -> Any:
    """Returns the gRPC handler of a unary method that may raise any LhydraError.

    Bytes are parsed here and not by gRPC, which would answer INTERNAL to what is a bad request.
    """

    def handle(data: bytes, context: grpc.ServicerContext) -> Message:
        started_ns = time.perf_counter_ns()
        call = Call(context, _request_id(context.invocation_metadata()))
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        code, details, reply = grpc.StatusCode.OK, "", None
        try:
            call.check()  # it may have waited in the queue for longer than its caller does
            reply = method(_parsed(data, request_type), call)
        except Exception as error:
            code, details = status_of(error, call.request_id)
            if code is grpc.StatusCode.INTERNAL:
                known = isinstance(error, LhydraError)  # its line says enough; anything else is our mistake
                _log.error("%s failed: %s", name, error, exc_info=not known, extra={"request_id": call.request_id})
        took_us = (time.perf_counter_ns() - started_ns) // 1000
        fields = {"request_id": call.request_id, "method": name, "code": code.name, "took_us": took_us}
        _log.info("%s %s", name, code.name, extra=fields | call.notes)
        if reply is None:
            context.abort(code, details)  # raises
        return reply

    return grpc.unary_unary_rpc_method_handler(handle, response_serializer=_serialized)


def refused_stream(name: str) -> Any:
    """Returns the handler of a streaming method that this version does not answer."""

    def handle(requests: Iterable[bytes], context: grpc.ServicerContext) -> None:
        request_id = _request_id(context.invocation_metadata())
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        context.abort(*status_of(Unsupported(f"{name}: this version does not answer it"), request_id))

    return grpc.stream_stream_rpc_method_handler(handle)


def _serialized(reply: Message) -> bytes:
    return reply.SerializeToString()


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
    return uuid.uuid4().hex
