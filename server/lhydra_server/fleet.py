"""The workers on one bundle, and when to try again what failed."""

import time
from dataclasses import dataclass, field

from lhydra_server.processes import WorkerProcess

LONGEST_S = 30.0  # between two tries of what never served
LONGEST_SERVED_S = 0.5  # of what served before it died: every second without it costs answers
LONGEST_SPAWN_S = 2.0  # of a process that could not be started: descriptors and memory come back at any time


@dataclass
class Backoff:
    """When to try again after failures: 0.1 s, doubling."""

    delay_s: float = 0.0
    due_s: float = 0.0  # on the monotonic clock

    def failed(self, longest_s: float = LONGEST_S) -> None:
        """Puts the next try off, for twice as long as the last time; failures before it is due count as one.

        Args:
            longest_s: seconds to wait at most.
        """
        if self.over:
            self.delay_s = min(max(self.delay_s * 2, 0.1), longest_s)
            self.due_s = time.monotonic() + self.delay_s

    @property
    def over(self) -> bool:
        """Whether it is time to try."""
        return time.monotonic() >= self.due_s


@dataclass
class Fleet:
    """The workers on one bundle."""

    bundle_id: str
    workers: list[WorkerProcess] = field(default_factory=list)
    backoff: Backoff = field(default_factory=Backoff)
    started_s: float = field(default_factory=time.monotonic)
    spawn_error: str = ""  # why it has fewer workers than asked for
    publish_error: str = ""  # why new connections do not reach it

    @property
    def n_ready(self) -> int:
        """How many workers serve."""
        return sum(worker.ready and not worker.ended for worker in self.workers)
