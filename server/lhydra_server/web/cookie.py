"""A browser's token: in a cookie that no script reads and no other site's page sends."""

import base64
import binascii
import re

from starlette.requests import Request
from starlette.responses import Response

NAME = "lhydra_token"
TOKEN = re.compile(r"[!-~]{1,512}")  # as the server's file has them


def bearer(request: Request) -> tuple[str, bool]:
    """Finds the token of a request; one in the header comes before the cookie's.

    Args:
        request: of anybody.

    Returns:
        `Bearer TOKEN`, or "", and whether a cookie brought it.

    Raises:
        ValueError: the header holds something else.
    """
    if given := request.headers.get("authorization"):
        if not (given.startswith("Bearer ") and TOKEN.fullmatch(given.removeprefix("Bearer "))):
            raise ValueError("authorization: expected Bearer TOKEN")
        return given, False
    if kept := request.cookies.get(NAME):
        try:
            token = base64.b64decode(kept, b"-_", validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            token = ""
        if TOKEN.fullmatch(token):
            return f"Bearer {token}", True
    return "", False


def keep(response: Response, token: str, *, secure: bool) -> None:
    """Gives a browser its token.

    Args:
        response: that the browser gets.
        token: of the server; "" takes it away.
        secure: whether it may travel by https alone.
    """
    if token:
        value = base64.urlsafe_b64encode(token.encode()).decode()
        response.set_cookie(NAME, value, path="/", httponly=True, samesite="strict", secure=secure)
    else:
        response.delete_cookie(NAME, path="/", httponly=True, samesite="strict", secure=secure)


def same_origin(request: Request) -> bool:
    """Tells whether a page of this gateway sent a request, as browsers say themselves.

    Args:
        request: POST.

    Returns:
        True if `Origin` names the host that was asked.
    """
    return request.headers.get("origin", "").partition("://")[2] == request.headers.get("host", "")
