"""The gateway: each unary method as JSON at POST /lhydra.v1.Recommender/METHOD, made of the descriptors.

Paths and bodies are those of Envoy's transcoder with `auto_mapping` and of the Connect protocol. Nothing of a request
is logged. Only `application/json` is taken, which no page of another origin can send unasked, and only known names of
this host are answered to, which no other page can make its own.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lhydra.limits import is_request_id
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.access import RIGHT_OF
from lhydra_server.web.connections import OneLength
from lhydra_server.web.problems import of_body, of_call, problem

SERVICE = pb.DESCRIPTOR.services_by_name["Recommender"]
MAX_BODY_BYTES = 2**20  # as the server's largest request
BODY_S = 10.0  # for a body to arrive: a slow one must not hold a place
DEFAULT_S, LONGEST_S = 5.0, 60.0  # deadline of a call that names none, and of any
MAX_CALLS = 64  # at a time
LOCAL_NAMES = ("localhost", "127.0.0.1")
SOON_BACK = (  # gRPC's own wait grows to two minutes, in which a server that is back would not be found
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}  # of grpc-timeout
_GRPC_TIMEOUT, _TOKEN = re.compile(r"(\d{1,8})([HMSmun])"), re.compile(r"Bearer [!-~]{1,512}")


class Gateway:
    """Turns JSON into calls of one server, and replies into JSON.

    Args:
        address: of the server, as gRPC names it.
        allow_plays: whether methods that write are passed on.
    """

    def __init__(self, address: str, *, allow_plays: bool) -> None:
        self._address, self._allow_plays, self._running = address, allow_plays, 0
        self._calls: dict[str, tuple[type[Message], Any]] = {}
        self._health: Any = None

    @asynccontextmanager
    async def connected(self, app: object = None) -> AsyncIterator[None]:
        """Holds the connection to the server.

        Args:
            app: not used; Starlette gives it.

        Yields:
            Nothing.
        """
        options = [("grpc.enable_http_proxy", 0), ("grpc.default_authority", "localhost"), *SOON_BACK]
        async with grpc.aio.insecure_channel(self._address, options) as channel:
            for method in SERVICE.methods:
                asked, told = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
                if not (method.client_streaming or method.server_streaming):
                    self._calls[method.name] = (
                        asked,
                        channel.unary_unary(
                            f"/{SERVICE.full_name}/{method.name}", asked.SerializeToString, told.FromString
                        ),
                    )
            check = health_pb2.HealthCheckRequest.SerializeToString
            self._health = channel.unary_unary(
                "/grpc.health.v1.Health/Check", check, health_pb2.HealthCheckResponse.FromString
            )
            yield

    async def call(self, request: Request) -> Response:
        """Answers a call.

        Args:
            request: POST with the JSON of the method's request; an empty body is an empty message.

        Returns:
            The JSON of the reply, or a problem.
        """
        given, name = request.headers.get("x-request-id", ""), request.path_params["method"]
        request_id = given if is_request_id(given) else os.urandom(16).hex()
        if name not in SERVICE.methods_by_name:
            return problem(404, "UNIMPLEMENTED", f"there is no method {name[:100]!r}", request_id)
        if name not in self._calls:
            return problem(501, "UNIMPLEMENTED", f"{name} is a stream: only gRPC has it", request_id)
        if not self._allow_plays and RIGHT_OF.get(f"/{SERVICE.full_name}/{name}") != "read":
            detail = f"{name}: found a gateway that only reads, expected one started with --allow-plays"
            return problem(403, "PERMISSION_DENIED", detail, request_id)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return problem(415, "INVALID_ARGUMENT", "content-type: expected application/json", request_id)
        if (seconds := timeout_s(request)) is None:
            return problem(400, "INVALID_ARGUMENT", f"deadline: expected up to {LONGEST_S:g} s", request_id)
        if self._running >= MAX_CALLS:
            return problem(429, "RESOURCE_EXHAUSTED", "too many calls at a time", request_id, wait_ms="1000")
        self._running += 1
        try:
            return await self._passed_on(request, name, request_id, seconds)
        finally:
            self._running -= 1

    async def _passed_on(self, request: Request, name: str, request_id: str, seconds: float) -> Response:
        kind, call = self._calls[name]
        try:
            async with asyncio.timeout(BODY_S):
                body = await _body(request)
        except (TimeoutError, ClientDisconnect):
            return problem(408, "DEADLINE_EXCEEDED", "the body did not come", request_id)
        if body is None:
            return problem(413, "INVALID_ARGUMENT", f"body: expected at most {MAX_BODY_BYTES:,} bytes", request_id)
        try:
            text = body.decode() or "{}"
            if not text.lstrip().startswith("{"):
                raise ValueError("no object")
            message = json_format.Parse(text, kind())
        except (json_format.ParseError, ValueError, RecursionError) as error:
            return of_body(error, kind.DESCRIPTOR.name, request_id)
        metadata = [("x-request-id", request_id)]
        if token := request.headers.get("authorization"):
            if not _TOKEN.fullmatch(token):
                return problem(401, "UNAUTHENTICATED", "authorization: expected Bearer TOKEN", request_id)
            metadata.append(("authorization", token))
        try:
            reply = await call(message, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return of_call(error)
        told = json_format.MessageToJson(reply, indent=None, ensure_ascii=False)
        return Response(told, 200, {"x-request-id": request_id, "cache-control": "no-store"}, "application/json")

    async def ready(self, request: Request) -> Response:
        """Says whether the server behind answers.

        Args:
            request: GET.

        Returns:
            200, or 503.
        """
        try:
            reply = await self._health(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.aio.AioRpcError:
            return PlainTextResponse("no server answers\n", 503)
        up = reply.status == health_pb2.HealthCheckResponse.SERVING
        return PlainTextResponse("ready\n" if up else "not serving\n", 200 if up else 503)


async def alive(request: Request) -> Response:
    """Says that the gateway runs.

    Args:
        request: GET.

    Returns:
        200.
    """
    return PlainTextResponse("ok\n")


def application(gateway: Gateway, names: Sequence[str] = LOCAL_NAMES) -> Starlette:
    """Makes the application.

    Args:
        gateway: answers calls.
        names: what the gateway may be called in `Host`.

    Returns:
        The ASGI application, which connects when it starts.
    """
    routes = [
        Route(f"/{SERVICE.full_name}/{{method}}", gateway.call, methods=["POST"]),
        Route("/healthz", alive),
        Route("/readyz", gateway.ready),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(names), www_redirect=False)
    return Starlette(routes=routes, middleware=[Middleware(OneLength), hosts], lifespan=gateway.connected)


def timeout_s(request: Request) -> float | None:
    """Reads the deadline of a call.

    Args:
        request: with `connect-timeout-ms`, `grpc-timeout`, or neither.

    Returns:
        Seconds; None where there is no sense in it.
    """
    if given := request.headers.get("connect-timeout-ms"):
        seconds = int(given) / 1000 if re.fullmatch(r"[0-9]{1,10}", given) else 0.0
    elif given := request.headers.get("grpc-timeout"):
        found = _GRPC_TIMEOUT.fullmatch(given)
        seconds = int(found[1]) * _UNITS[found[2]] if found else 0.0
    else:
        return DEFAULT_S
    return seconds if 0 < seconds <= LONGEST_S else None


async def _body(request: Request) -> bytes | None:
    """The body; None of one that is too long, which is not read to its end."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)
