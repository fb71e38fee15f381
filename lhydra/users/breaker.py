"""A circuit breaker: after FAILURES in a row it refuses attempts for a while, so that callers do not wait in vain.

Closed, it allows every attempt. Open, it refuses every attempt at once. After REST_S it is half open: it allows one
attempt at a time. An answer closes it; a failure opens it for twice as long as before, LONGEST_REST_S at most.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from lhydra.errors import DeadlineExceeded

FAILURES = 3  # in a row, that open the breaker
REST_S = 1.0  # the first time open
LONGEST_REST_S = 4.0  # a recovered server is found within so long; until then one caller in 4 s pays for the attempt
_log = logging.getLogger(__name__)


class BreakerOpen(Exception):
    """The breaker refused the attempt: the last ones failed."""


class Breaker:
    """Guards attempts to reach one server, from any thread.

    Args:
        name: of the server, for the log.
        counts: the exceptions that mean it was not reached; any other one means that it answered.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, name: str, counts: tuple[type[Exception], ...], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._counts, self._clock = name, counts, clock
        self._lock = threading.Lock()
        self._failures = 0  # in a row, while closed
        self._rest_s = REST_S
        self._closed, self._resting_until, self._probing = True, 0.0, False

    @property
    def state(self) -> Literal["closed", "open", "half open"]:
        """closed: attempts are allowed; open: refused; half open: the next one, or the one in flight, decides."""
        with self._lock:
            if self._closed:
                return "closed"
            return "half open" if self._probing or self._clock() >= self._resting_until else "open"

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Runs the block as one attempt, and counts its outcome. DeadlineExceeded counts as neither.

        Raises:
            BreakerOpen: at once, in place of the block, while no attempt is allowed.
        """
        probing = self._enter()
        try:
            yield
        except self._counts:
            self._failed(probing)
            raise
        except DeadlineExceeded:
            self._abandoned(probing)
            raise
        except BaseException:
            self._answered(probing)
            raise
        self._answered(probing)

    def _enter(self) -> bool:
        with self._lock:
            if self._closed:
                return False
            if self._probing or self._clock() < self._resting_until:
                raise BreakerOpen(self._name)
            self._probing = True
            return True

    def _failed(self, probing: bool) -> None:
        with self._lock:
            if self._closed:
                self._failures += 1
                if self._failures < FAILURES:
                    return
                self._closed, self._rest_s = False, REST_S
                _log.warning("%s out of reach, not tried for a while", self._name)
            elif probing:
                self._probing, self._rest_s = False, min(2 * self._rest_s, LONGEST_REST_S)
            else:  # it began before the breaker opened, and changes nothing
                return
            self._resting_until = self._clock() + self._rest_s

    def _abandoned(self, probing: bool) -> None:
        with self._lock:
            if probing and not self._closed:  # the next caller makes the attempt
                self._probing = False

    def _answered(self, probing: bool) -> None:
        with self._lock:
            if self._closed:
                self._failures = 0
            elif probing:
                self._closed, self._failures, self._probing = True, 0, False
                _log.warning("%s within reach again", self._name)
