"""Connections of the gateway that end: whoever sends no request, or reads no reply, gives the place back."""

import asyncio
import os
import socket

import h11
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from lhydra_server.web.problems import problem

HEAD_S = 10.0  # for a request's head to come
MAX_CONNECTIONS = 1_000
ANSWER_S = 80.0  # from there to the end of the reply: the longest body and the longest call


class Connection(H11Protocol):
    """One connection: uvicorn waits without end for the first request, for the rest of a head, and for readers."""

    _time: asyncio.TimerHandle | None = None
    _before_head = True

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
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Takes bytes; a whole head has more time.

        Args:
            data: as they came.
        """
        super().data_received(data)
        if self._before_head and self.conn.their_state is not h11.IDLE:
            self._begin()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP, and closes.

        Args:
            msg: of uvicorn.
        """
        refused = _refused(400, "INVALID_ARGUMENT", "request: found no HTTP/1.1, expected it")
        out = [h11.Response(status_code=400, headers=refused.raw_headers), h11.Data(data=bytes(refused.body))]
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in [*out, h11.EndOfMessage()]))
        self.transport.close()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        super().on_response_complete()
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting.

        Args:
            exc: why it ended.
        """
        if self._time:
            self._time.cancel()
        super().connection_lost(exc)

    def _begin(self) -> None:
        if self._time:
            self._time.cancel()
        self._before_head = self.conn.their_state is h11.IDLE
        self._time = self.loop.call_later(HEAD_S if self._before_head else ANSWER_S, self.transport.abort)


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    await _refused(503, "UNAVAILABLE", "too many connections", wait_ms="1000")(scope, receive, send)


def _refused(status: int, code: str, detail: str, wait_ms: str = "") -> Response:
    """A problem that ends a connection before the application has seen the request."""
    refused = problem(status, code, detail, request_id := os.urandom(16).hex(), wait_ms=wait_ms)
    refused.headers["x-request-id"], refused.headers["connection"] = request_id, "close"
    return refused
