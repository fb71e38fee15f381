"""The page and its files, as they were built, with a policy that lets nothing in from elsewhere."""

import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from lhydra_server.web.problems import problem

FOLDER = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}  # nothing else is told
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}")
_HASHED = re.compile(r"-[A-Za-z0-9_-]{8,}\.[a-z]+")  # a build names files by what they hold
_ENCODINGS = (("br", ".br"), ("gzip", ".gz"))  # of files compressed by the build, best first


async def index(request: Request) -> Response:
    """Tells the page.

    Args:
        request: GET.

    Returns:
        The page; a problem where none was built.
    """
    return _file(request, FOLDER / "index.html", "no-cache")


async def asset(request: Request) -> Response:
    """Tells a file of the page.

    Args:
        request: GET with its name.

    Returns:
        The file, or a problem.
    """
    name = request.path_params["name"]
    kept = "public, max-age=31536000, immutable" if _HASHED.search(name) else "no-cache"
    return _file(request, FOLDER / "assets" / name if _NAME.fullmatch(name) else None, kept)


def _file(request: Request, path: Path | None, kept: str) -> Response:
    if path is None or path.suffix not in TYPES or not path.is_file():
        return problem(404, "NOT_FOUND", "path or method: no such file of the page", request.scope["request_id"])
    headers = {"content-security-policy": POLICY, "cache-control": kept, "vary": "accept-encoding"}
    headers["cross-origin-opener-policy"] = "same-origin"  # here alone: browsers show no sandboxed report that has it
    accepted = request.headers.get("accept-encoding", "").replace(" ", "").split(",")  # one with a weight is none
    for name, suffix in _ENCODINGS:
        compressed = path.with_name(path.name + suffix)
        if name in accepted and compressed.is_file():
            headers["content-encoding"] = name
            data = compressed.read_bytes()
            break
    else:
        data = path.read_bytes()
    headers["etag"] = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=TYPES[path.suffix])
