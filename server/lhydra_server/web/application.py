"""The application: what comes before every request (its id, `Host`, its rate), and which path leads where."""

import logging
import math
import os
import re
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lhydra.limits import is_request_id
from lhydra_server.tokens import Bucket
from lhydra_server.web import login, page, reports
from lhydra_server.web.gateway import PATH, Gateway
from lhydra_server.web.openapi import openapi
from lhydra_server.web.problems import problem

_log = logging.getLogger(__name__)
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
COMPARED, HEALTH = "/compared", ("/healthz", "/readyz")
_CODE_OF = {404: "NOT_FOUND", 405: "UNIMPLEMENTED"}
_NO_SNIFF = (b"x-content-type-options", b"nosniff")
_BROWSER_HEADERS = (  # not on the JSON of calls: each header costs processor time
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_DENY_ALL = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_CORS_ALLOWED_HEADERS = "content-type, authorization, x-request-id, connect-timeout-ms, grpc-timeout"
_CORS_EXPOSED_HEADERS = "x-request-id, retry-after"
MAX_CALLERS = 10_000  # whose rates are kept
_PORT = re.compile(r":[0-9]*$")


class Application:
    """Gives every request an id and refuses what no path should see; calls go to the gateway, the rest to `pages`.

    Args:
        gateway: answers calls.
        compared: answers those to the server beside it.
        pages: answers everything else.
        names: what the gateway may be called in `Host`.
        origins: of other sites' pages that may call.
        rate: requests a second of one address, 0 for any number.
    """

    def __init__(
        self,
        gateway: Gateway,
        compared: Gateway | None,
        pages: ASGIApp,
        *,
        names: Sequence[str],
        origins: Sequence[str],
        rate: float,
    ) -> None:
        self._origins, self._rate = frozenset(origins), rate
        self._buckets: dict[str, Bucket] = {}
        self._gateway, self._compared, self._pages = gateway, compared, pages
        self._names = {name.strip("[]").lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request.

        Args:
            scope: of the request.
            receive: its body.
            send: takes the reply.
        """
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        origin = request.headers.get("origin", "")
        request_id = scope["request_id"] = given if is_request_id(given) else os.urandom(16).hex()
        began = False

        async def told(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began, headers = True, message["headers"]
                if (b"content-type", b"application/json") not in headers:  # which no browser shows
                    has_policy = _DENY_ALL[0] in {name for name, _ in headers}
                    headers += _BROWSER_HEADERS if has_policy else (_DENY_ALL, *_BROWSER_HEADERS)
                if origin in self._origins:
                    headers += [(b"access-control-allow-origin", origin.encode()), (b"vary", b"origin")]
                    headers.append((b"access-control-expose-headers", _CORS_EXPOSED_HEADERS.encode()))
                headers += [(b"x-request-id", request_id.encode()), _NO_SNIFF]
            await send(message)

        try:
            app: ASGIApp = self._refused(request) or await self._answered(request) or self._pages
            await app(scope, receive, told)
        except Exception as error:  # whose text may be somebody's data
            place = "".join(traceback.format_tb(error.__traceback__))
            _log.error("request %s: %s\n%s", request_id, type(error).__name__, place)
            if began:
                raise ConnectionAbortedError from None
            await problem(500, "INTERNAL", "internal error", request_id)(scope, receive, told)

    async def _answered(self, request: Request) -> Response | None:
        path = request.scope["path"]
        if request.method == "OPTIONS" and request.headers.get("origin") in self._origins:
            allowed = {
                "access-control-allow-methods": "POST",
                "access-control-allow-headers": _CORS_ALLOWED_HEADERS,
                "access-control-max-age": "600",
            }
            return Response(status_code=204, headers=allowed)
        if path.startswith(PATH):
            return await self._gateway.call(request, path.removeprefix(PATH))
        if path.startswith(COMPARED + PATH) and self._compared:
            return await self._compared.call(request, path.removeprefix(COMPARED + PATH))
        return None

    def _refused(self, request: Request) -> Response | None:
        request_id = request.scope["request_id"]
        hosts = [_PORT.sub("", host).strip("[]").lower() for host in request.headers.getlist("host")]
        if len(hosts) != 1 or hosts[0] not in self._names:  # of two a proxy may go by the other one
            detail = "host: found another name, expected one of this gateway's (--name)"
            return problem(400, "INVALID_ARGUMENT", detail, request_id)
        if self._rate and request.scope["path"] not in HEALTH and (wait_s := self._wait_s(request)):
            detail = "too many requests of this address"
            return problem(429, "RESOURCE_EXHAUSTED", detail, request_id, wait_ms=str(math.ceil(wait_s * 1000)))
        return None

    def _wait_s(self, request: Request) -> float:
        host = request.client.host if request.client else ""
        bucket = self._buckets.pop(host, None) or Bucket(self._rate)
        self._buckets[host] = bucket  # last in order: who asked longest ago is forgotten first
        if len(self._buckets) > MAX_CALLERS:
            del self._buckets[next(iter(self._buckets))]
        return bucket.take()


def application(
    gateway: Gateway,
    names: Sequence[str] = LOCAL_NAMES,
    compared: Gateway | None = None,
    *,
    origins: Sequence[str] = (),
    rate: float = 0,
    store: Path | None = None,
) -> Application:
    """Makes the application.

    Args:
        gateway: answers calls.
        names: what the gateway may be called in `Host`.
        compared: answers calls to another server, for a page that shows both.
        origins: of other sites' pages that may call.
        rate: requests a second of one address, 0 for any number.
        store: whose reports are told; None for none.

    Returns:
        The ASGI application, which connects when it starts.
    """

    @asynccontextmanager
    async def connected(app: object) -> AsyncIterator[None]:
        async with gateway.connected(), compared.connected() if compared else nullcontext():
            yield

    routes = [
        Route("/", page.index),
        Route("/assets/{name}", page.asset),
        Route("/about", partial(login.about, gateway, compared is not None, store)),
        Route("/login", partial(login.login, gateway), methods=["POST"]),
        Route("/logout", login.logout, methods=["POST"]),
        Route("/reports/{name}", partial(reports.report, gateway, store)),
        Route("/openapi.json", openapi),
        Route("/healthz", alive),
        Route("/readyz", partial(ready, gateway)),
    ]
    pages = Starlette(routes=routes, lifespan=connected, exception_handlers={HTTPException: _no_path})
    pages.router.redirect_slashes = False
    return Application(gateway, compared, pages, names=names, origins=origins, rate=rate)


async def alive(request: Request) -> Response:
    """Says that the gateway runs.

    Args:
        request: GET.

    Returns:
        200.
    """
    return PlainTextResponse("ok\n")


async def ready(gateway: Gateway, request: Request) -> Response:
    """Says whether the server behind answers.

    Args:
        gateway: connected to it.
        request: GET.

    Returns:
        200, or a problem of 503.
    """
    if found := await gateway.not_ready():
        return problem(503, "UNAVAILABLE", found, request.scope["request_id"])
    return PlainTextResponse("ready\n")


async def _no_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODE_OF.get(error.status_code, "INVALID_ARGUMENT")
    detail = f"path or method: {error.detail.lower()}"
    refused = problem(error.status_code, code, detail, request.scope["request_id"])
    refused.headers.update(error.headers or {})
    return refused
