"""Replies that their callers have not read yet: bounded in bytes, because gRPC keeps them without a limit."""

from collections.abc import Callable
from threading import Lock

import grpc

MOST_BYTES = 2**23  # of a worker
CALL_BYTES = 8_192  # what a call takes until its reply has been taken; the reply itself is there twice


class UnreadReplies:
    """Counts the bytes of replies until the connection has taken them; beyond MOST_BYTES the oldest calls end.

    A caller that reads takes its reply within a few round trips, long before it is the oldest of so many.

    Args:
        dropped: called for each call that was ended.
    """

    def __init__(self, dropped: Callable[[], None]) -> None:
        self._dropped = dropped
        self._sizes: dict[grpc.ServicerContext, int] = {}
        self._lock = Lock()
        self.n_bytes = 0

    def add(self, context: grpc.ServicerContext, size: int) -> None:
        """Counts a reply that is about to be sent.

        Args:
            context: of its call.
            size: in bytes.
        """
        size = 2 * size + CALL_BYTES
        oldest = []
        with self._lock:
            self._sizes[context] = size
            self.n_bytes += size
            while self.n_bytes > MOST_BYTES and len(self._sizes) > 1:
                oldest.append(next(iter(self._sizes)))
                self.n_bytes -= self._sizes.pop(oldest[-1])
        if not context.add_callback(lambda: self._taken(context)):
            self._taken(context)  # the caller has gone
        for one in oldest:
            one.cancel()
            self._dropped()

    def _taken(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self.n_bytes -= self._sizes.pop(context, 0)
