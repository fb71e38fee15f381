"""What a page of the gateway asks besides the API: what it may do here, and a token's way in and out."""

from pathlib import Path
from urllib.parse import parse_qs

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from lhydra_server.web.cookie import TOKEN, bearer, keep, same_origin
from lhydra_server.web.gateway import Gateway, media_type
from lhydra_server.web.problems import of_call, problem
from lhydra_server.web.reports import listed


async def about(gateway: Gateway, compared: bool, store: Path | None, request: Request) -> Response:
    """Says what the caller can do here.

    Args:
        gateway: before the server.
        compared: whether there is another server beside it.
        store: whose reports are named; None for none.
        request: GET.

    Returns:
        JSON: whether plays would be passed on, whether a token is needed, whether there is another server, and the
        reports that the caller may read; a problem where no server says so.
    """
    try:
        state, plays = "none", gateway.allow_plays
        if await gateway.refuses("GetStatus", ""):
            found, _ = bearer(request)
            state = "done" if found and not await gateway.refuses("GetStatus", found) else "needed"
            plays = state == "done" and not await gateway.refuses("RecordPlays", found)  # of no plays
    except ValueError as error:
        return problem(401, "UNAUTHENTICATED", str(error), request.scope["request_id"])
    except grpc.aio.AioRpcError as error:
        return of_call(error, request.scope["request_id"])
    told = {"plays": plays, "login": state, "compared": compared, "reports": listed(store) if state != "needed" else []}
    return JSONResponse(told, headers={"cache-control": "no-store"})


async def login(gateway: Gateway, request: Request) -> Response:
    """Takes a token from a form into a cookie.

    Args:
        gateway: before the server, which judges the token.
        request: POST with the form's field `token`.

    Returns:
        The way to the page, or a problem.
    """
    request_id = request.scope["request_id"]
    if not same_origin(request):
        return _elsewhere(request_id)
    if media_type(request) != "application/x-www-form-urlencoded":
        return problem(415, "INVALID_ARGUMENT", "content-type: expected that of a form", request_id)
    body = await gateway.body(request)
    if isinstance(body, Response):
        return body
    try:
        token = parse_qs(body.decode("ascii"), max_num_fields=10).get("token", [""])[0].strip()
    except ValueError:
        token = ""
    try:
        if not TOKEN.fullmatch(token) or await gateway.refuses("GetStatus", f"Bearer {token}"):
            return problem(401, "UNAUTHENTICATED", "token: the server knows no such token", request_id, field="token")
    except grpc.aio.AioRpcError as error:
        return of_call(error, request_id)
    response = RedirectResponse("/", 303)
    keep(response, token, secure=request.headers["origin"].startswith("https:"))
    return response


async def logout(request: Request) -> Response:
    """Takes the cookie away.

    Args:
        request: POST.

    Returns:
        The way to the page, or a problem.
    """
    if not same_origin(request):
        return _elsewhere(request.scope["request_id"])
    response = RedirectResponse("/", 303)
    keep(response, "", secure=request.headers["origin"].startswith("https:"))
    return response


def _elsewhere(request_id: str) -> Response:
    return problem(403, "PERMISSION_DENIED", "origin: expected a page of this gateway", request_id)
