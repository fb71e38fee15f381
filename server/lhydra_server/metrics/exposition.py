"""Shows the metrics to Prometheus over HTTP: one thread, few connections, and a limit to every wait.

`http.server` gives every connection a thread and a descriptor for as long as it likes: who opens many takes the
descriptors that the supervisor needs to replace a worker. Here a connection too many takes the place of the oldest.
"""

import asyncio
import errno
import gzip
import logging
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from lhydra.errors import ConfigError, Overloaded, PermissionDenied, PortInUse, Unauthenticated, complain
from lhydra_server.access import METRICS, Access
from lhydra_server.address import joined
from lhydra_server.files_in_force import FilesInForce
from lhydra_server.metrics.totals import Totals

if TYPE_CHECKING:
    from prometheus_client import Metric  # imported only where metrics are asked for

PATH = "/metrics"
METHODS = "GET, HEAD, OPTIONS"
MAX_CONNECTIONS = 32  # a scrape is short: what has been here longest is none
QUEUED = 1_024  # in the kernel, which drops what is more: its clients would try again after a second
REQUEST_S = 5.0  # to send a request in
REPLY_S = 10.0  # to take the reply in
MAX_LINE_BYTES = 8_192
MAX_LINES = 100
ROUNDS = 8  # of the loop: one to accept, to begin, to close and to be told so, and as many to spare
SUFFIXES = ("", "_total", "_bucket", "_sum", "_count")
OPEN_TO_ALL = Access()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What is sent back. A body that is not an exposition is one line of text."""

    status: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def line(cls, status: str, text: str, **headers: str) -> "Reply":
        """Makes a reply of one line.

        Args:
            status: code and reason.
            text: the line.
            headers: more of them.

        Returns:
            The reply.
        """
        return cls(status, f"{text}\n".encode(), {"Content-Type": "text/plain; charset=utf-8"} | headers)

    def to_bytes(self, *, body: bool = True) -> bytes:
        """Writes the reply as it is sent; every reply is the last of its connection.

        Args:
            body: False for HEAD, which gets the headers alone.

        Returns:
            Status line, headers and body.
        """
        headers = {"Content-Length": str(len(self.body)), "Connection": "close"} | dict(self.headers)
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status}\r\n{head}\r\n".encode() + (self.body if body else b"")


class _Collected(list["Metric"]):
    """Metrics as the encoders of prometheus_client take them."""

    def collect(self) -> "Iterator[Metric]":
        return iter(self)


def answer(totals: Totals, lines: list[bytes], access: Access = OPEN_TO_ALL) -> bytes:
    """Answers one request.

    Args:
        totals: what is shown.
        lines: request line and headers.
        access: checks the caller's token.

    Returns:
        The whole reply.
    """
    words = lines[0].decode("latin-1").split()
    if len(words) != 3 or not re.fullmatch(r"HTTP/\d+(\.\d+)?", words[2]):
        return Reply.line("400 Bad Request", f"expected GET {PATH} HTTP/1.1").to_bytes()
    method, target, version = words
    if not version.startswith("HTTP/1"):
        return Reply.line("505 HTTP Version Not Supported", "expected HTTP/1.1").to_bytes()
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = ",".join(filter(None, (headers.get(name.strip().lower()), value.strip())))
    try:
        reply = _denied(access, headers) or _replied(totals, method, target, headers)
    except Exception as error:  # a mistake of ours ends a scrape, not the metrics
        _log.exception("metrics cannot be shown")
        reply = Reply.line("500 Internal Server Error", type(error).__name__)
    return reply.to_bytes(body=method != "HEAD")


def _denied(access: Access, headers: Mapping[str, str]) -> Reply | None:
    """What a caller is told who may not see the metrics; None for one who may."""
    try:
        access.check(METRICS, headers.items())
    except Unauthenticated as error:
        return Reply.line("401 Unauthorized", str(error), **{"WWW-Authenticate": "Bearer"})
    except PermissionDenied as error:
        return Reply.line("403 Forbidden", str(error))
    except Overloaded as error:
        return Reply.line("429 Too Many Requests", str(error), **{"Retry-After": str(-(-error.retry_after_ms // 1000))})
    return None


def _replied(totals: Totals, method: str, target: str, headers: Mapping[str, str]) -> Reply:
    allowed = {"Allow": METHODS}
    if method == "OPTIONS" and target == "*":
        return Reply("204 No Content", headers=allowed)
    try:
        parts = urlsplit(target) if "://" in target.partition("?")[0] else urlsplit(f"http://here{target}")
        path, asked = parts.path, parse_qs(parts.query).get("name[]", [])  # an empty name is none
    except ValueError:
        return Reply.line("400 Bad Request", "expected a path")
    if path != PATH:
        return Reply.line("404 Not Found", f"expected {PATH}")
    if method == "OPTIONS":
        return Reply("204 No Content", headers=allowed)
    if method not in ("GET", "HEAD"):
        return Reply.line("405 Method Not Allowed", f"expected {METHODS}", **allowed)
    metrics = _Collected(totals.collect())
    if asked:
        named = {metric.name + suffix: metric.name for metric in metrics for suffix in SUFFIXES}
        if unknown := [name for name in asked if name not in named]:
            return Reply.line("404 Not Found", complain("name[]", ", ".join(unknown)[:200], f"names that {PATH} shows"))
        wanted = {named[name] for name in asked}
        metrics = _Collected(metric for metric in metrics if metric.name in wanted)
    encode, content_type = _encoder(headers.get("accept", ""))
    body, more = encode(metrics), {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
    if _takes_gzip(headers.get("accept-encoding", "")):
        body, more = gzip.compress(body, 6), more | {"Content-Encoding": "gzip"}
    return Reply("200 OK", body, more)


def _encoder(accept: str) -> tuple[Any, str]:
    """(what makes bytes of metrics, their type), in the format that Prometheus asks for."""
    from prometheus_client.exposition import choose_encoder

    try:
        return choose_encoder(accept)
    except (ValueError, IndexError, TypeError):  # a version that is none
        return choose_encoder("")


def _takes_gzip(accept_encoding: str) -> bool:
    codings = (coding.lower().replace(" ", "").split(";") for coding in accept_encoding.split(","))
    return any(name == "gzip" and not re.fullmatch(r"q=0(\.0*)?", "".join(quality)) for name, *quality in codings)


class _Connections:
    """The open connections, oldest first."""

    def __init__(self, totals: Totals, files: FilesInForce | None) -> None:
        self._totals, self._files = totals, files
        self._open: dict[asyncio.StreamWriter, None] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the one request of a new connection and closes it, whatever the other side does.

        Args:
            reader: of the connection.
            writer: of the connection.
        """
        self._open[writer] = None
        while len(self._open) > MAX_CONNECTIONS:
            self._close(next(iter(self._open)))
        try:
            async with asyncio.timeout(REPLY_S + REQUEST_S):
                if self._files is not None and self._files.context is not None:
                    await writer.start_tls(self._files.context, ssl_handshake_timeout=REQUEST_S)
                reply = await self._reply(reader)
                if reply is None:
                    return
                writer.write(reply)
                await writer.drain()
                if writer.can_write_eof():
                    writer.write_eof()
                else:  # of TLS, which says by itself that nothing follows
                    writer.close()
                while await reader.read(65_536):
                    pass  # what came and is not read would reset the connection before the reply has been read
        except (OSError, TimeoutError):  # of TLS too
            pass
        finally:
            self._close(writer)

    async def _reply(self, reader: asyncio.StreamReader) -> bytes | None:
        lines: list[bytes] = []
        try:
            async with asyncio.timeout(REQUEST_S):
                while line := await reader.readline():
                    if not line.strip() and lines:
                        return answer(self._totals, lines, self._files.access if self._files else OPEN_TO_ALL)
                    if line.strip():
                        lines.append(line)
                    if len(lines) > MAX_LINES:
                        break
                else:
                    return None  # it left
        except TimeoutError:
            return Reply.line("408 Request Timeout", f"expected a request within {REQUEST_S:g} s").to_bytes()
        except ValueError:  # of readline: more than MAX_LINE_BYTES
            if not lines:
                return Reply.line("414 URI Too Long", f"expected at most {MAX_LINE_BYTES} bytes").to_bytes()
        expected = f"expected at most {MAX_LINES} headers of at most {MAX_LINE_BYTES} bytes"
        return Reply.line("431 Request Header Fields Too Large", expected).to_bytes()

    def _close(self, writer: asyncio.StreamWriter) -> None:
        self._open.pop(writer, None)
        writer.transport.abort()

    async def end(self) -> None:
        """Closes all of them, those that are just being accepted or closed too."""
        for _ in range(ROUNDS):
            for writer in [*self._open]:
                self._close(writer)
            await asyncio.sleep(0)


@contextmanager
def exposed(totals: Totals, host: str, port: int, files: FilesInForce | None = None) -> Iterator[None]:
    """Answers http://HOST:PORT/metrics, or https://, as long as the context lasts.

    Args:
        totals: what is shown.
        host: address to listen on.
        port: to listen on.
        files: certificates and tokens as they are when a connection or a request comes; None for none.

    Yields:
        Once, when it listens.

    Raises:
        PortInUse: somebody listens there already.
        ConfigError: not an address of this machine, or one that may not be used.
    """
    import prometheus_client.exposition  # noqa: F401  # a scrape need not wait for it

    listening = _listening(host, port)
    connections = _Connections(totals, files)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_tell)
    begun = asyncio.start_server(connections.serve, sock=listening, limit=MAX_LINE_BYTES, backlog=MAX_CONNECTIONS)
    server = loop.run_until_complete(begun)
    listening.listen(QUEUED)  # as the backlog of asyncio it would be accepted at once, and take as many descriptors
    thread = threading.Thread(target=loop.run_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.remove_reader(listening)  # no more of them: asyncio loses those that it accepts as a server closes
        loop.run_until_complete(connections.end())
        server.close()
        loop.close()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(place[:2], family=family)
    except OSError as error:
        thing = f"metrics address {joined(host, port)}"
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(complain(thing, "the port in use", "a free --metrics-port")) from None
        raise ConfigError(complain(thing, str(error.strerror), "an address this process may listen on")) from None


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs what asyncio meets, such as no descriptor for a connection, which it tries again after a second."""
    _log.error("metrics: %s", context.get("exception") or context["message"])
