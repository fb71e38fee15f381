"""Errors of calls as RFC 9457 problems, with the field's name where one is at fault."""

import json
import re

import grpc
from starlette.responses import Response

from lhydra.errors import complain
from lhydra_server.web.bodies import GivenTwice

STATUS = {  # as Envoy's transcoder and the Connect protocol map codes
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}  # every other code is 500
_FIELD = re.compile(r"([a-z_][\w.\[\]]*): found ")
_PLACE = re.compile(r"Failed to parse ([A-Za-z]\w*) field: ")
_OF_JSON = re.compile(rf'((?:{_PLACE.pattern})*)(?:Message type "[^"]*" has no field named "([^"]*)")?')


def problem(status: int, code: str, detail: str, request_id: str, *, field: str = "", wait_ms: str = "") -> Response:
    """Makes the response to a call that failed.

    Args:
        status: of HTTP.
        code: name of the gRPC code.
        detail: what went wrong, for the caller.
        request_id: of the request.
        field: of the request, where one is at fault.
        wait_ms: milliseconds to wait before the call is sent again, in digits; "" where nobody knows.

    Returns:
        The response; `code` and `message` are there for clients of the Connect protocol.
    """
    told = {"type": "about:blank", "title": code.replace("_", " ").capitalize(), "status": status, "detail": detail}
    more = {"field": field, "requestId": request_id, "retryAfterMs": int(wait_ms) if wait_ms.isdecimal() else ""}
    told |= {"code": code.lower(), "message": detail} | {name: value for name, value in more.items() if value != ""}
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if wait_ms.isdecimal():
        headers["retry-after"] = str(-(-int(wait_ms) // 1000))
    return Response(json.dumps(told), status, headers, "application/problem+json")


def of_call(error: grpc.aio.AioRpcError, request_id: str) -> Response:
    """Makes the response to a call that the server ended with an error.

    Args:
        error: as gRPC raised it.
        request_id: of the request.

    Returns:
        The problem.
    """
    code, detail = error.code().name, error.details() or ""
    trailers = {key: value for key, value in error.trailing_metadata()}  # noqa: C416  # aio's Metadata is no mapping
    if code == "UNAVAILABLE" and "x-request-id" not in trailers:
        detail = "no server answers"  # gRPC's own text names addresses
    found = _FIELD.match(detail) if code == "INVALID_ARGUMENT" else None
    wait_ms = str(trailers.get("retry-after-ms", ""))
    return problem(STATUS.get(code, 500), code, detail, request_id, field=found[1] if found else "", wait_ms=wait_ms)


def of_body(error: Exception, expected: str, request_id: str) -> Response:
    """Makes the response to a body that is not the message.

    Args:
        error: of the parser.
        expected: name of the message.
        request_id: of the call.

    Returns:
        The problem.
    """
    if isinstance(error, GivenTwice):
        detail = complain(error.place[:100], "it twice", "each field once, by one of its names")
        return problem(400, "INVALID_ARGUMENT", detail, request_id, field=error.place[:100])
    found = _OF_JSON.match(str(error))
    assert found is not None  # every text begins so, if with nothing
    places, unknown = _PLACE.findall(found[1]), found[3]
    kind = "a value of another kind" if places else "no JSON, or JSON of another kind"
    if unknown is not None:
        places.append(unknown[:100])
        kind = "no such field"
    field = ".".join(places)
    detail = complain(field or "body", kind, f"the JSON of a {expected}")
    return problem(400, "INVALID_ARGUMENT", detail, request_id, field=field)
