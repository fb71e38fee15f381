"""Connections of the gateway that end: whoever sends no request, or reads no reply, gives the place back."""

import asyncio
import os
import socket

import httptools
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lhydra_server.web.problems import problem

HEAD_S = 10.0  # for a request's head to come
MAX_HEAD_BYTES = 2**16  # llhttp, which reads heads, has no bound of its own
MAX_CONNECTIONS = 1_000
ANSWER_S = 80.0  # from there to the end of the reply: the longest body and the longest call


class Connection(HttpToolsProtocol):
    """One connection: uvicorn waits without end for the first request, for the rest of a head, and for readers."""

    _time: asyncio.TimerHandle | None = None
    _head_bytes = 0  # since a head or a part of a body was whole

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begins to wait for a request.

        Args:
            transport: of the connection.
        """
        super().connection_made(transport)
        # asyncio does so only where the listening socket names its protocol. Without it a body waits for the receipt of
        # its head, which callers put off for 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > MAX_CONNECTIONS:
            self.app = _busy
        self._begin(HEAD_S)

    def data_received(self, data: bytes) -> None:
        """Takes bytes, of a head no more than its share.

        Args:
            data: as they came.
        """
        self._unset_keepalive_if_required()  # else uvicorn closes 5 s after the reply before, whatever is under way
        self._head_bytes += len(data)
        self._feed(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        """Takes a whole head, which has more time."""
        if self.parser.should_upgrade():
            return
        self._head_bytes = 0
        if not self._answering():
            self._begin(ANSWER_S)
        super().on_headers_complete()
        self.headers = []  # those behind the body are none of the head, which may have passed a proxy's checks

    def on_body(self, body: bytes) -> None:
        """Takes a part of a body, which the application bounds.

        Args:
            body: as it came.
        """
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Takes a whole request."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP, and closes.

        Args:
            msg: of the parser.
        """
        cycle = self.cycle
        own = self._answering() and cycle.more_body and not (cycle.response_started or self.pipeline)
        if own:  # what is no HTTP is in the body of the only request under way, whose answer this is
            cycle.disconnected = True
            cycle.message_event.set()
        if own or not self._answering():  # else it would be read as the answer to the request before
            refused = _refused(400, "INVALID_ARGUMENT", "request: found no HTTP/1.1, expected it")
            head = b"".join(b"%b: %b\r\n" % header for header in refused.raw_headers)
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n%b\r\n%b" % (head, bytes(refused.body)))
        self.transport.close()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request, or answers one that has come."""
        self._begin(ANSWER_S if self.pipeline else HEAD_S)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting.

        Args:
            exc: why it ended.
        """
        if self._time:
            self._time.cancel()
        super().connection_lost(exc)

    def _feed(self, data: bytes) -> None:
        """Has bytes parsed; a request that offers another protocol once more without the offer.

        Java's client and `curl --http2` make such offers. The parser would take their bodies for the other protocol.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                if self.parser.get_method() == b"CONNECT":  # offers nothing: it would come back for ever
                    self.send_400_response("")
                    return
                line = self.parser.get_method(), self.url, self.parser.get_http_version().encode()
                head = b"%b %b HTTP/%b\r\n" % line
                head += b"".join(b"%b: %b\r\n" % one for one in self.headers if one[0] != b"upgrade")
                data = head + b"\r\n" + data[offer.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            except httptools.HttpParserError as error:
                self.send_400_response(str(error))
                return

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _begin(self, seconds: float) -> None:
        if self._time:
            self._time.cancel()
        self._time = self.loop.call_later(seconds, self.transport.abort)


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    await _refused(503, "UNAVAILABLE", "too many connections", wait_ms="1000")(scope, receive, send)


def _refused(status: int, code: str, detail: str, wait_ms: str = "") -> Response:
    """A problem that ends a connection before the application has seen the request."""
    refused = problem(status, code, detail, request_id := os.urandom(16).hex(), wait_ms=wait_ms)
    refused.headers["x-request-id"], refused.headers["connection"] = request_id, "close"
    return refused
