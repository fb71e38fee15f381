"""Log lines of a known outage, limited in rate: what every call meets is told once a second, not once a call."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from threading import Lock

from lhydra.errors import LhydraError

LOG_EVERY_S = 1.0
_log = logging.getLogger(__name__)


class OutageLog:
    """Writes at most one line every LOG_EVERY_S per cause, the kind of the error; safe to use from any thread.

    Metrics count every call all the same.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates the log of one worker.

        Args:
            clock: seconds that never go back.
        """
        self._clock, self._lock = clock, Lock()
        self._written_s: dict[type[LhydraError], float] = {}
        self._left_out: dict[type[LhydraError], Counter[str]] = {}

    def write(self, effect: str, error: LhydraError, request_id: str) -> None:
        """Writes what an outage did to a call, or counts it for the next line.

        Args:
            effect: what became of the call, one of few texts.
            error: the outage.
            request_id: of the call.
        """
        cause = type(error)
        with self._lock:
            left_out = self._left_out.setdefault(cause, Counter())
            if self._clock() - self._written_s.get(cause, -math.inf) < LOG_EVERY_S:
                left_out[effect] += 1
                return
            self._written_s[cause] = self._clock()
            others = ", ".join(f"{effect} {n:,} times" for effect, n in sorted(left_out.items()))
            left_out.clear()
        since = f"; since the last line also {others}" if others else ""
        _log.error("%s: %s%s", effect, error, since, extra={"request_id": request_id})
