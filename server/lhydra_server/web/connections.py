"""Connections of the gateway that end: whoever sends no request, or reads no reply, gives the place back."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0  # for a request's head to come
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
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Takes bytes; a whole head has more time.

        Args:
            data: as they came.
        """
        super().data_received(data)
        if self._before_head and self.conn.their_state is not h11.IDLE:
            self._begin()

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
