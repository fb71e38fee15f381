"""How a worker counts: whole numbers at fixed places of the shared memory that its supervisor made."""

import mmap
import os
import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from lhydra.errors import LhydraError, complain
from lhydra_server.metrics.layout import BATCH, BLOCK_BYTES, FAMILIES, LATENCY_US, LAYOUT_MARK, OTHER


def _by_value(name: str) -> tuple[dict[str, int], int]:
    """(place of each value of its one label, place of the other values)."""
    places = {value: place for (value,), place in FAMILIES[name].places.items()}
    return places, places[OTHER]


def _place(name: str) -> int:
    return FAMILIES[name].first


_REQUESTS = FAMILIES["lhydra_requests_total"].places
_REQUESTS_OTHER = _REQUESTS[OTHER, OTHER]
_REQUEST_US, _REQUEST_US_OTHER = _by_value("lhydra_request_seconds")
_STAGE_US, _STAGE_US_OTHER = _by_value("lhydra_stage_seconds")
_ANSWERS, _ANSWERS_OTHER = _by_value("lhydra_answers_total")
_DEGRADED, _DEGRADED_OTHER = _by_value("lhydra_degraded_total")
_REFUSED, _REFUSED_OTHER = _by_value("lhydra_refused_total")
_SHORT = _place("lhydra_short_answers_total")
_EXACT = _place("lhydra_exact_fallbacks_total")
_KNOWN_USERS = _place("lhydra_known_users_total")
_BATCH = _place("lhydra_batch_size")
QUEUE = _place("lhydra_queue_depth")
IN_FLIGHT = _place("lhydra_in_flight")
_PLAYS = _place("lhydra_plays_recorded_total")
_LOG_LINES_LOST = _place("lhydra_log_lines_lost_total")
_ANSWERS_LOGGED = _place("lhydra_answers_logged_total")
_ANSWERS_BYTES = _place("lhydra_answers_logged_bytes_total")
_ANSWERS_DROPPED = _place("lhydra_answers_dropped_total")
_STORE_ERRORS = _place("lhydra_user_store_errors_total")
_EVENT_LOG = [_place(f"lhydra_event_log_{name}") for name in ("entries", "bytes", "oldest_seconds", "free_bytes")]


class Metrics:
    """What one worker counts; safe to call from several threads. Label values that are not listed count as `other`.

    Args:
        memory: the block, BLOCK_BYTES of it.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._cells = memoryview(memory).cast("q")
        self._lock = threading.Lock()

    @classmethod
    def open(cls, descriptor: int) -> "Metrics":
        """Opens the supervisor's block to count into.

        Args:
            descriptor: inherited, closed here; below 0 nothing is counted.

        Returns:
            The worker's side of the block.

        Raises:
            LhydraError: the block is laid out by another version.
        """
        if descriptor < 0:
            return NoMetrics()
        try:
            memory = mmap.mmap(descriptor, BLOCK_BYTES)
        except ValueError:
            memory = None
        finally:
            os.close(descriptor)
        if memory is None or memoryview(memory).cast("q")[0] != LAYOUT_MARK:
            raise LhydraError(complain("metrics", "a supervisor of another version", "a restart of `lhydra serve`"))
        return cls(memory)

    def record(
        self,
        method: str,
        code: str,
        took_us: int,
        stage_us: Mapping[str, int],
        tier: str = "",
        degraded: Sequence[str] = (),
        short: bool = False,
    ) -> None:
        """Counts a call that was answered.

        Args:
            method: of the API.
            code: of gRPC, by name.
            took_us: microseconds in the handler.
            stage_us: microseconds by stage.
            tier: of the list, if the answer is one.
            degraded: what the list was made without.
            short: whether the list is shorter than k.
        """
        cells = self._cells
        with self._lock:
            cells[_REQUESTS.get((method, code), _REQUESTS_OTHER)] += 1
            place = _REQUEST_US.get(method, _REQUEST_US_OTHER)
            cells[place] += took_us
            cells[place + 1 + bisect_left(LATENCY_US, took_us)] += 1
            for stage, stage_took_us in stage_us.items():
                place = _STAGE_US.get(stage, _STAGE_US_OTHER)
                cells[place] += stage_took_us
                cells[place + 1 + bisect_left(LATENCY_US, stage_took_us)] += 1
            if tier:
                cells[_ANSWERS.get(tier, _ANSWERS_OTHER)] += 1
            for reason in degraded:
                cells[_DEGRADED.get(reason.partition(":")[0], _DEGRADED_OTHER)] += 1
            if short:
                cells[_SHORT] += 1

    def batch(self, size: int) -> None:
        """Counts a batch.

        Args:
            size: requests computed together.
        """
        with self._lock:
            self._cells[_BATCH] += size
            self._cells[_BATCH + 1 + bisect_left(BATCH, size)] += 1

    def queue(self, n: int) -> None:
        """Sets the gauge of queued requests.

        Args:
            n: requests that wait for a batch now.
        """
        self._cells[QUEUE] = n

    def in_flight(self, n: int) -> None:
        """Sets the gauge of calls in flight.

        Args:
            n: calls being answered now.
        """
        self._cells[IN_FLIGHT] = n

    def event_log(self, entries: int, n_bytes: int, oldest_s: int, free_bytes: int) -> None:
        """Sets the gauges of the event log.

        Args:
            entries: plays in it.
            n_bytes: what it takes.
            oldest_s: Unix seconds of its oldest entry, 0 without one.
            free_bytes: room in the file.
        """
        for place, value in zip(_EVENT_LOG, (entries, n_bytes, oldest_s, free_bytes), strict=True):
            self._cells[place] = value

    def refused(self, reason: str) -> None:
        """Counts a call that was given up; it is recorded as well, with its code.

        Args:
            reason: one of REFUSED.
        """
        self._add(_REFUSED.get(reason, _REFUSED_OTHER), 1)

    def plays(self, n: int) -> None:
        """Counts recorded plays.

        Args:
            n: plays that were not known.
        """
        self._add(_PLAYS, n)

    def exact_fallback(self, n: int = 1) -> None:
        """Counts searches that were done again, wider or exactly, because the index fell short.

        Args:
            n: searches.
        """
        self._add(_EXACT, n)

    def known_users(self, n: int) -> None:
        """Counts users who were encoded for an earlier request already.

        Args:
            n: users.
        """
        self._add(_KNOWN_USERS, n)

    def user_store_error(self) -> None:
        """Counts a read or write of the user store that failed."""
        self._add(_STORE_ERRORS, 1)

    def log_lines_lost(self, n: int) -> None:
        """Counts lines of the log that nobody will see.

        Args:
            n: lines.
        """
        self._add(_LOG_LINES_LOST, n)

    def answers_logged(self, n: int, n_bytes: int) -> None:
        """Counts entries of the answer log.

        Args:
            n: entries written.
            n_bytes: their length.
        """
        self._add(_ANSWERS_LOGGED, n)
        self._add(_ANSWERS_BYTES, n_bytes)

    def answers_dropped(self, n: int) -> None:
        """Counts answers of the sample that were not logged.

        Args:
            n: answers.
        """
        self._add(_ANSWERS_DROPPED, n)

    def _add(self, place: int, n: int) -> None:
        with self._lock:
            self._cells[place] += n


class NoMetrics(Metrics):
    """Counts nothing: the same interface for a server without metrics."""

    def __init__(self) -> None:
        pass

    def _count_nothing(self, *args: object, **kwargs: object) -> None: ...

    record = batch = queue = in_flight = event_log = _add = _count_nothing
