"""The gateway: each unary method as JSON at POST /lhydra.v1.Recommender/METHOD, made of the descriptors.

Paths and bodies are those of Envoy's transcoder with `auto_mapping` and of the Connect protocol. Nothing of a request
is logged. Only `application/json` is taken, which no page of another origin can send unasked. A browser's cookie is
no leave to write: that takes a header besides, which no page of another origin can send either.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lhydra.errors import complain
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.access import RIGHT_OF
from lhydra_server.web.bodies import message_of
from lhydra_server.web.cookie import bearer
from lhydra_server.web.problems import of_body, of_call, problem

SERVICE = pb.DESCRIPTOR.services_by_name["Recommender"]
PATH = f"/{SERVICE.full_name}/"
MAX_BODY_BYTES = 2**20  # as the server's largest request
MAX_REPLY_BYTES = 64 * 2**20  # a map of 200,000 tracks is larger than gRPC's own 4 MiB
BODY_S = 10.0  # for a body to arrive; only then its call takes a place
DEFAULT_S, LONGEST_S = 5.0, 60.0  # deadline of a call that names none, and of any
MAX_CALLS = 64  # at a time
LONG_BYTES, MAX_LONG_BYTES = 2**14, 64 * 2**20  # of a body that is long, and of all those under way together
PAGE_HEADER = "x-lhydra-page"
SOON_BACK = (  # gRPC's own wait grows to two minutes, in which a server that is back would not be found
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}  # of grpc-timeout
_GRPC_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_WRITES = frozenset(path for path, right in RIGHT_OF.items() if right == "write")


class Gateway:
    """Turns JSON into calls of one server, and replies into JSON.

    Args:
        address: of the server, as gRPC names it.
        allow_plays: whether methods that write are passed on for callers without a token.
        compared: whether this is the server beside another one, to which nothing is written.
    """

    def __init__(self, address: str, *, allow_plays: bool = False, compared: bool = False) -> None:
        self.allow_plays, self._compared = allow_plays, compared
        self._address, self._running, self._long_bytes = address, 0, 0
        self._calls: dict[str, tuple[type[Message], Any]] = {}
        self._health: Any = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Holds the connection to the server.

        Yields:
            Nothing.
        """
        options = [("grpc.enable_http_proxy", 0), ("grpc.default_authority", "localhost"), *SOON_BACK]
        options.append(("grpc.max_receive_message_length", MAX_REPLY_BYTES))
        async with grpc.aio.insecure_channel(self._address, options) as channel:
            for method in SERVICE.methods:
                asked, told = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
                if not (method.client_streaming or method.server_streaming):
                    call = channel.unary_unary(PATH + method.name, asked.SerializeToString, told.FromString)
                    self._calls[method.name] = asked, call
            check = health_pb2.HealthCheckRequest.SerializeToString
            self._health = channel.unary_unary(
                "/grpc.health.v1.Health/Check", check, health_pb2.HealthCheckResponse.FromString
            )
            yield

    async def call(self, request: Request, name: str) -> Response:
        """Answers a call.

        Args:
            request: with the JSON of the method's request; an empty body is an empty message.
            name: of the method, as the path has it.

        Returns:
            The JSON of the reply, or a problem.
        """
        request_id = request.scope["request_id"]
        if name not in SERVICE.methods_by_name:
            return problem(404, "UNIMPLEMENTED", f"there is no method {name[:100]!r}", request_id)
        if request.method != "POST":
            refused = problem(405, "UNIMPLEMENTED", f"{name}: expected POST", request_id)
            refused.headers["allow"] = "POST"
            return refused
        if name not in self._calls:
            return problem(501, "UNIMPLEMENTED", f"{name} is a stream: only gRPC has it", request_id)
        if media_type(request) != "application/json":
            return problem(415, "INVALID_ARGUMENT", "content-type: expected application/json", request_id)
        try:
            seconds, (token, by_cookie) = timeout_s(request), bearer(request)
        except DeadlineError as error:
            return problem(400, "INVALID_ARGUMENT", str(error), request_id)
        except ValueError as error:
            return problem(401, "UNAUTHENTICATED", str(error), request_id)
        body = await self.body(request)
        if isinstance(body, Response):
            return body
        if self._running >= MAX_CALLS:
            return problem(429, "RESOURCE_EXHAUSTED", "too many calls at a time", request_id, wait_ms="1000")
        self._running += 1
        try:
            if PATH + name in _WRITES and (why := await self._why_no_write(request, name, token, by_cookie)):
                return problem(403, "PERMISSION_DENIED", why, request_id)
            return await self._passed_on(request_id, name, body, seconds, token)
        except grpc.aio.AioRpcError as error:
            return of_call(error, request_id)
        finally:
            self._running -= 1

    async def _why_no_write(self, request: Request, name: str, token: str, by_cookie: bool) -> str:
        """Says why a method that writes is not passed on, "" where it is."""
        if by_cookie and request.headers.get(PAGE_HEADER) != "1":
            return f"{PAGE_HEADER}: found none, expected 1 beside a cookie, to write"
        if self._compared:
            return f"{name}: found a server to compare with, expected a method that only reads"
        if self.allow_plays or (token and await self.refuses("GetStatus", "")):  # a server that asks for tokens judges
            return ""
        return f"{name}: found a gateway that only reads, expected --allow-plays, or a token that may write"

    async def _passed_on(self, request_id: str, name: str, body: bytes, seconds: float, token: str) -> Response:
        kind, call = self._calls[name]
        try:
            message = message_of(body, kind)
        except (json_format.ParseError, ValueError, RecursionError) as error:
            return of_body(error, kind.DESCRIPTOR.name, request_id)
        reply = await call(message, timeout=seconds, metadata=_metadata(request_id, token))
        told = json_format.MessageToJson(reply, indent=None, ensure_ascii=False)
        return Response(told, 200, {"cache-control": "no-store"}, "application/json")

    async def body(self, request: Request) -> bytes | Response:
        """Reads the body of a request.

        Args:
            request: of anybody.

        Returns:
            The body, or a problem of one that is too long, which is not read to its end, or does not come, or comes
            beside too many long ones.
        """
        body, held, request_id = bytearray(), 0, request.scope["request_id"]
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    body += part
                    if len(body) > MAX_BODY_BYTES:
                        detail = f"body: expected at most {MAX_BODY_BYTES:,} bytes"
                        return problem(413, "INVALID_ARGUMENT", detail, request_id)
                    if len(body) > LONG_BYTES:  # shorter ones are bounded by the connections
                        self._long_bytes += len(body) - held
                        held = len(body)
                        if self._long_bytes > MAX_LONG_BYTES:
                            detail = "too many long bodies at a time"
                            return problem(429, "RESOURCE_EXHAUSTED", detail, request_id, wait_ms="1000")
        except (TimeoutError, ClientDisconnect):
            return problem(408, "DEADLINE_EXCEEDED", "the body did not come", request_id)
        finally:
            self._long_bytes -= held
        return bytes(body)

    async def refuses(self, name: str, token: str) -> bool:
        """Asks whether the server lets a token call a method; the request is empty.

        Args:
            name: of the method.
            token: `Bearer TOKEN`, or "" for none.

        Returns:
            True if it refuses the token, or refuses callers without one.

        Raises:
            AioRpcError: it says neither, as it has no time to look, or nobody answers.
        """
        kind, call = self._calls[name]
        try:
            await call(kind(), timeout=DEFAULT_S, metadata=_metadata("", token))
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return True
            if error.code() != grpc.StatusCode.INVALID_ARGUMENT:  # of an empty request, by who may send another
                raise
        return False

    async def not_ready(self) -> str:
        """Asks whether the server behind serves.

        Returns:
            "" if it does, or what is wrong.
        """
        try:
            reply = await self._health(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.aio.AioRpcError:
            return "no server answers"
        return "" if reply.status == health_pb2.HealthCheckResponse.SERVING else "the server does not serve"


class DeadlineError(ValueError):
    """A deadline that makes no sense; names its header."""


def media_type(request: Request) -> str:
    """Reads what kind of body a request has.

    Args:
        request: of anybody.

    Returns:
        The type of `content-type` in lower case, without parameters; "" for none.
    """
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def timeout_s(request: Request) -> float:
    """Reads the deadline of a call.

    Args:
        request: with `connect-timeout-ms`, `grpc-timeout`, or neither.

    Returns:
        Seconds.

    Raises:
        DeadlineError: there is no sense in it.
    """
    if given := request.headers.get(name := "connect-timeout-ms"):
        seconds = int(given) / 1000 if re.fullmatch(r"[0-9]{1,10}", given) else 0.0
    elif given := request.headers.get(name := "grpc-timeout"):
        found = _GRPC_TIMEOUT.fullmatch(given)
        seconds = int(found[1]) * _UNITS[found[2]] if found else 0.0
    else:
        return DEFAULT_S
    if not 0 < seconds <= LONGEST_S:
        raise DeadlineError(complain(name, given[:20], f"more than 0, up to {LONGEST_S:g} s"))
    return seconds


def _metadata(request_id: str, token: str) -> list[tuple[str, str]]:
    found = (("x-request-id", request_id), ("authorization", token))
    return [(key, value) for key, value in found if value]
