"""Reports of a store: the pages in its folder `reports`, where `retrain` and `--report` of others write them."""

import re
from contextlib import suppress
from pathlib import Path

import grpc
from starlette.requests import Request
from starlette.responses import Response

from lhydra_server.web.cookie import bearer
from lhydra_server.web.gateway import Gateway
from lhydra_server.web.problems import of_call, problem

FOLDER = "reports"  # of a store
MAX_TOLD = 200  # names, newest first
POLICY = (  # a report has its styles and scripts inside, and reaches nothing, not this gateway either
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.html")


def listed(store: Path | None) -> list[dict[str, str]]:
    """Names the reports of a store.

    Args:
        store: the store; None where the gateway has none.

    Returns:
        Name and address of each, newest first.
    """
    found: list[tuple[float, Path]] = []
    for path in (store / FOLDER).glob("*.html") if store else ():
        with suppress(FileNotFoundError):  # taken away meanwhile
            if _NAME.fullmatch(path.name) and path.is_file():
                found.append((path.stat().st_mtime, path))
    newest = sorted(found, reverse=True)[:MAX_TOLD]
    return [{"name": path.stem, "href": f"/reports/{path.name}"} for _, path in newest]


async def report(gateway: Gateway, store: Path | None, request: Request) -> Response:
    """Tells a report to whom the server would answer.

    Args:
        gateway: before the server.
        store: the store; None where the gateway has none.
        request: GET with its name.

    Returns:
        The report, or a problem.
    """
    request_id, name = request.scope["request_id"], request.path_params["name"]
    try:
        if await gateway.refuses("GetStatus", bearer(request)[0]):
            return problem(401, "UNAUTHENTICATED", "token: expected one that may read", request_id)
    except ValueError as error:
        return problem(401, "UNAUTHENTICATED", str(error), request_id)
    except grpc.aio.AioRpcError as error:
        return of_call(error, request_id)
    headers = {"content-security-policy": POLICY, "cache-control": "no-store"}
    with suppress(FileNotFoundError):  # taken away meanwhile
        if store is not None and _NAME.fullmatch(name) and (path := store / FOLDER / name).is_file():
            return Response(path.read_bytes(), headers=headers, media_type="text/html; charset=utf-8")
    return problem(404, "NOT_FOUND", "path or method: no such report", request_id)
