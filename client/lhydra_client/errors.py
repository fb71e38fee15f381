"""Every error the client raises, and the one table from gRPC status code to error.

ClientError
├── InvalidRequest   the request can never succeed; the message names the field
├── Unsupported      the server does not answer that method or field yet
├── Unauthenticated  the server wants a token, and this is none of its own
├── PermissionDenied the token lacks the right that the call needs
├── Overloaded       the server is too busy, or the token is used too often: refused at once; try later, with a pause
├── Unavailable      no server answered, even after the retries
├── Timeout          no answer within the deadline
└── ServerError      anything else; `request_id` finds the call in the server's log
"""

import re
from collections.abc import Iterable
from typing import cast

import grpc

_REFUSED = re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: ([^:\]]+))?")
_MILLISECONDS = re.compile(r"[0-9]{1,9}")


class ClientError(Exception):
    """Base of all errors of the client; its text is one line.

    Args:
        message: cut to 400 characters, control characters escaped.
        code: name of the gRPC status code, such as "UNAVAILABLE".
        request_id: the server's id of the call, "" when no server saw it.
    """

    def __init__(self, message: str, *, code: str, request_id: str = "") -> None:
        super().__init__(one_line(message))
        self.code = code
        self.request_id = request_id


class InvalidRequest(ClientError):
    """The request can never succeed; the message names the field.

    Args:
        message: `field: found …, expected …`.
        code: name of the gRPC status code.
        request_id: the server's id of the call, "" when no server saw it.
    """

    def __init__(self, message: str, *, code: str = "INVALID_ARGUMENT", request_id: str = "") -> None:
        super().__init__(message, code=code, request_id=request_id)


class Unsupported(ClientError):
    """The server does not answer that method or field yet."""


class Unauthenticated(ClientError):
    """The server wants a token, and this is none of its own."""


class PermissionDenied(ClientError):
    """The token lacks the right that the call needs; the message names it."""


class Overloaded(ClientError):
    """The server is too busy, or the token is used too often; refused at once.

    Wait `retry_after_ms`, and a random part of it more, before the call is sent again.

    Args:
        message: what the server said.
        code: name of the gRPC status code.
        request_id: the server's id of the call, "" when no server saw it.
        retry_after_ms: milliseconds until the calls in flight should be answered, None where the server did not say.
    """

    def __init__(self, message: str, *, code: str, request_id: str = "", retry_after_ms: int | None = None) -> None:
        super().__init__(message, code=code, request_id=request_id)
        self.retry_after_ms = retry_after_ms


class Unavailable(ClientError):
    """No server answered, even after the retries."""


class Timeout(ClientError):
    """No answer within the deadline."""


class ServerError(ClientError):
    """The server failed, or answered with a code that has no better name here."""


ERRORS: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Timeout,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.NOT_FOUND: ServerError,
    grpc.StatusCode.ALREADY_EXISTS: ServerError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.FAILED_PRECONDITION: ServerError,
    grpc.StatusCode.ABORTED: ServerError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.DATA_LOSS: ServerError,
}  # every code but OK
_BY_NUMBER = {int(code.value[0]): code for code in ERRORS}


def from_rpc(error: grpc.RpcError, server: str, timeout_s: float) -> ClientError:
    """Returns the client's error for a call that failed.

    Args:
        error: as gRPC raised it.
        server: the address, for the message.
        timeout_s: deadline of the call in seconds, for the message.

    Returns:
        The error, to be raised.
    """
    code = error.code()
    details = error.details() or "no details"
    pairs = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    trailers = {key: value for key, value in pairs}  # noqa: C416  # not dict(): aio's Metadata of grpcio 1.76 is no mapping
    request_id = str(trailers.get("x-request-id", ""))
    kind = ERRORS.get(code, ServerError)
    if kind is Overloaded and "larger than max" in details:
        kind = InvalidRequest  # gRPC's own limit on message size has the same code, but no retry will help
    if kind is InvalidRequest:
        message = details
    elif kind is Timeout:
        message = f"no answer from {server} within {timeout_s:g} s"
    elif kind is Unavailable:
        message = f"{server} cannot answer now: {details}"
        if details.startswith(("failed to connect", "errors resolving")):  # gRPC's own, with the reason at the end
            message = f"no server answers at {server} ({_why_unconnected(details)})"
    elif kind is ServerError:
        message = f"{server} answered {code.name}: {details}"
        message += f" (request {request_id})" if request_id and request_id not in details else ""
    else:
        message = f"{server}: {details}"
    if kind is Overloaded:
        wait = str(trailers.get("retry-after-ms", ""))
        retry_after_ms = int(wait) if _MILLISECONDS.fullmatch(wait) else None
        return Overloaded(message, code=code.name, request_id=request_id, retry_after_ms=retry_after_ms)
    return kind(message, code=code.name, request_id=request_id)


def _why_unconnected(details: str) -> str:
    """What gRPC says of a connection that could not be made, in words."""
    if found := _REFUSED.search(details):
        return f"its certificate is refused: {found[1] or 'no reason given'}"
    if "Hostname Verification Check failed" in details or "is not in peer certificate" in details:
        return "its certificate is for another name"
    if "WRONG_VERSION_NUMBER" in details:
        return "it speaks no TLS"
    reason = details.rpartition(": ")[2].rstrip("]")
    closed = any(words in reason for words in ("Socket closed", "Connection reset by peer", "Broken pipe"))
    return f"{reason}; it may want TLS, or a certificate of the client" if closed else reason


def of_item(code: int, message: str, request_id: str, server: str) -> ClientError:
    """Returns the client's error for one request of a stream.

    Args:
        code: number of the gRPC status code.
        message: what the server said.
        request_id: the server's id of the request.
        server: the address, for the message.

    Returns:
        The error that a call of its own would have raised.
    """
    known: grpc.StatusCode | None = _BY_NUMBER.get(code)
    kind = ServerError if known is None else ERRORS.get(known, ServerError)
    name = str(code) if known is None else known.name
    if kind is ServerError:
        message = f"{server} answered {name}: {message}"
    elif kind is not InvalidRequest:
        message = f"{server}: {message}"
    return kind(message, code=name, request_id=request_id)


def one_line(text: str) -> str:
    """Returns a text as one printable line.

    Args:
        text: cut to 400 characters.

    Returns:
        The line, control characters escaped.
    """
    text = text if len(text) <= 400 else f"{text[:397]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
