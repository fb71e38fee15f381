"""The metrics: their names, how a worker counts, and how the supervisor shows the sum to Prometheus.

The supervisor makes a block of shared memory per worker; the worker adds whole numbers at fixed places in it, some
2 µs a request (prometheus_client's own way to count in several processes takes ten times as long). A scrape
reads the blocks. What a worker counted is kept when it ends, however it ends, so no counter ever goes back.
"""

import errno
import itertools
import mmap
import os
import tempfile
import threading
import time
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lhydra.domain import STAGES, Tier
from lhydra.errors import ConfigError, LhydraError, PortInUse, complain

if TYPE_CHECKING:
    from prometheus_client import Metric  # imported only where metrics are asked for

OTHER = "other"  # stands for every label value that is not listed here
METHODS = ("Recommend", "SimilarTracks", "RecordPlays", "Explain", "RecommendMany", "GetStatus")
CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"),
    *("UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
TIERS = tuple(tier.label for tier in Tier)
DEGRADED = ("user_store",)
REFUSED = ("overload", "deadline")
LATENCY_US = (
    *(10, 25, 50, 100, 200, 300, 400, 600, 800, 1_000, 1_500, 2_000, 3_000, 5_000, 7_500),
    *(10_000, 20_000, 50_000, 100_000, 250_000, 1_000_000),
)
BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
RECENT = 8  # bundles that have a label of their own; what older ones counted is added up under `older`
OLDER = "older"


@dataclass(frozen=True)
class Family:
    """One metric that workers count, and where in a block its numbers are.

    labels: the values of each. bounds: upper bounds of a histogram, in the unit that is counted, of which `per` make
    the unit that is shown. first: the place of its first child. Children lie in the order of the product of their
    labels: one number each, or of a histogram the sum and then the count of each bucket, +Inf last.
    """

    name: str
    kind: str  # counter, gauge or histogram
    text: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bounds: tuple[int, ...] = ()
    per: int = 1
    first: int = 0

    @property
    def width(self) -> int:
        """Numbers per child."""
        return len(self.bounds) + 2 if self.bounds else 1

    @property
    def places(self) -> dict[tuple[str, ...], int]:
        """The place of each child, by its label values."""
        children = itertools.product(*self.labels.values())
        return {child: self.first + i * self.width for i, child in enumerate(children)}

    @property
    def end(self) -> int:
        """The place after its last child."""
        return self.first + len(self.places) * self.width


def _laid_out(*families: Family) -> dict[str, Family]:
    placed, first = {}, 1  # the first number is the mark of the layout
    for family in families:
        family = Family(**{**vars(family), "first": first})
        placed[family.name], first = family, family.end
    return placed


FAMILIES = _laid_out(
    Family(
        *("lhydra_requests_total", "counter", "Calls answered, by method and gRPC code."),
        {"method": (*METHODS, OTHER), "code": (*CODES, OTHER)},
    ),
    Family(
        *("lhydra_request_seconds", "histogram", "Time inside the handler."),
        {"method": (*METHODS, OTHER)},
        LATENCY_US,
        per=1_000_000,
    ),
    Family(
        *("lhydra_stage_seconds", "histogram", "Time of each stage of Recommend."),
        {"stage": (*STAGES, OTHER)},
        LATENCY_US,
        per=1_000_000,
    ),
    Family("lhydra_answers_total", "counter", "Lists returned, by tier and bundle.", {"tier": (*TIERS, OTHER)}),
    Family(
        *("lhydra_degraded_total", "counter", "Answers made with less than there is, by what was missing."),
        {"reason": (*DEGRADED, OTHER)},
    ),
    Family(
        *("lhydra_short_answers_total", "counter", "Lists shorter than k, because no more tracks were eligible."),
    ),
    Family("lhydra_exact_fallbacks_total", "counter", "Searches repeated exactly, because the index fell short."),
    Family("lhydra_batch_size", "histogram", "Requests computed together.", {}, BATCH),
    Family("lhydra_queue_depth", "gauge", "Requests waiting for the compute turn now."),
    Family("lhydra_in_flight", "gauge", "Calls being answered now, those that wait included."),
    Family(
        *("lhydra_refused_total", "counter", "Calls given up before the work was done, by reason."),
        {"reason": (*REFUSED, OTHER)},
    ),
    Family("lhydra_plays_recorded_total", "counter", "Plays recorded, without those that were known."),
    Family("lhydra_user_store_errors_total", "counter", "Reads and writes of the user store that failed."),
)
_CELLS = max(family.end for family in FAMILIES.values())
_SIZE = 8 * _CELLS
_MARK = zlib.crc32(repr(FAMILIES).encode())


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
_BATCH = _place("lhydra_batch_size")
_QUEUE = _place("lhydra_queue_depth")
_IN_FLIGHT = _place("lhydra_in_flight")
_PLAYS = _place("lhydra_plays_recorded_total")
_STORE_ERRORS = _place("lhydra_user_store_errors_total")


class Metrics:
    """What one worker counts; safe to call from several threads. Label values that are not listed count as `other`."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._cells = memoryview(memory).cast("q")
        self._lock = threading.Lock()

    @classmethod
    def open(cls, descriptor: int) -> "Metrics":
        """Counts into the supervisor's block, an inherited descriptor that is closed here; below 0, nowhere.

        Raises LhydraError when the block is laid out by another version.
        """
        if descriptor < 0:
            return NoMetrics()
        try:
            memory = mmap.mmap(descriptor, _SIZE)
        except ValueError:
            memory = None
        finally:
            os.close(descriptor)
        if memory is None or memoryview(memory).cast("q")[0] != _MARK:
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
        """Counts a call that was answered; tier, degraded and short are those of a list, if it is one."""
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
                cells[_DEGRADED.get(reason, _DEGRADED_OTHER)] += 1
            if short:
                cells[_SHORT] += 1

    def batch(self, size: int) -> None:
        """Counts requests that were computed together."""
        with self._lock:
            self._cells[_BATCH] += size
            self._cells[_BATCH + 1 + bisect_left(BATCH, size)] += 1

    def queue(self, n: int) -> None:
        """Says how many requests wait for the compute turn now."""
        self._cells[_QUEUE] = n

    def in_flight(self, n: int) -> None:
        """Says how many calls are being answered now."""
        self._cells[_IN_FLIGHT] = n

    def refused(self, reason: str) -> None:
        """Counts a call that was given up; it is recorded as well, with its code."""
        self._add(_REFUSED.get(reason, _REFUSED_OTHER), 1)

    def plays(self, n: int) -> None:
        """Counts recorded plays."""
        self._add(_PLAYS, n)

    def exact_fallback(self) -> None:
        """Counts a search that had to be repeated exactly."""
        self._add(_EXACT, 1)

    def user_store_error(self) -> None:
        """Counts a read or write of the user store that failed."""
        self._add(_STORE_ERRORS, 1)

    def _add(self, place: int, n: int) -> None:
        with self._lock:
            self._cells[place] += n


class NoMetrics(Metrics):
    """Counts nothing: the same interface for a server without metrics."""

    def __init__(self) -> None:
        pass

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
        """Does nothing, as all of these."""

    def batch(self, size: int) -> None: ...  # noqa: D102

    def queue(self, n: int) -> None: ...  # noqa: D102

    def in_flight(self, n: int) -> None: ...  # noqa: D102

    def _add(self, place: int, n: int) -> None: ...


class Block:
    """The memory that one worker counts into, as its supervisor sees it. `descriptor` is for the worker to inherit."""

    def __init__(self, totals: "Totals", bundle_id: str) -> None:
        self._totals = totals
        self.bundle_id = bundle_id
        self.descriptor = _memory()
        self.cells = memoryview(mmap.mmap(self.descriptor, _SIZE)).cast("q")
        self.cells[0] = _MARK

    def handed_over(self) -> None:
        """The worker has been started: the supervisor needs the descriptor no more."""
        os.close(self.descriptor)

    def end(self) -> None:
        """The worker has ended: what it counted is kept, its gauges are forgotten."""
        self._totals.keep(self)


def _memory() -> int:
    """A descriptor of new zeroed memory without a name: nothing is left behind, however the processes end."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("lhydra-metrics")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _SIZE)
    return descriptor


class Totals:
    """What all workers of a server have counted, and what only the supervisor knows; a collector of prometheus_client.

    The attributes are set by the supervisor's loop and read by the thread that answers a scrape.
    """

    def __init__(self) -> None:
        self.workers = self.worker_restarts = self.swap_failures = 0
        self.serving: tuple[str, str] | None = None  # bundle id, model id
        self._lock = threading.Lock()
        self._blocks: list[Block] = []
        self._kept: dict[str, list[int]] = {}  # by bundle, what ended workers counted; the last to end is last

    def block(self, bundle_id: str) -> Block:
        """Returns the block of a worker that is about to start."""
        block = Block(self, bundle_id)
        with self._lock:
            self._blocks.append(block)
        return block

    def keep(self, block: Block) -> None:
        """Keeps the counters of a worker that has ended."""
        with self._lock:
            self._blocks.remove(block)
            block.cells[_QUEUE] = block.cells[_IN_FLIGHT] = 0
            if not any(block.cells[1:]):
                return  # it never served
            kept = self._kept.pop(block.bundle_id, None)
            self._kept[block.bundle_id] = _added([block.cells.tolist(), *([kept] if kept else [])])
            while len(self._kept) - (OLDER in self._kept) > RECENT:
                oldest = next(bundle_id for bundle_id in self._kept if bundle_id != OLDER)
                older = [self._kept.pop(bundle_id) for bundle_id in (oldest, OLDER) if bundle_id in self._kept]
                self._kept[OLDER] = _added(older)

    def collect(self) -> "Iterator[Metric]":
        """Yields every metric with its value now."""
        with self._lock:
            counted = {bundle_id: [cells] for bundle_id, cells in self._kept.items()}
            living = [block.cells.tolist() for block in self._blocks]
            for block, cells in zip(self._blocks, living, strict=True):
                counted.setdefault(block.bundle_id, []).append(cells)
        by_bundle = {bundle_id: _added(rows) for bundle_id, rows in counted.items()}
        total, now = _added(list(by_bundle.values())), _added(living)
        for family in FAMILIES.values():
            yield _metric(family, now if family.kind == "gauge" else total, by_bundle)
        yield from self._of_supervisor()

    def _of_supervisor(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        info = GaugeMetricFamily("lhydra_bundle_info", "The bundle being served.", labels=("bundle_id", "model_id"))
        age = GaugeMetricFamily("lhydra_bundle_age_seconds", "Time since the bundle being served was made.")
        if self.serving is not None:
            info.add_metric(self.serving, 1)
            if (age_s := _age_s(self.serving[0])) is not None:
                age.add_metric((), age_s)
        yield info
        yield age
        yield GaugeMetricFamily("lhydra_workers", "Workers that serve now.", self.workers)
        yield CounterMetricFamily(
            "lhydra_worker_restarts_total", "Workers started in place of dead ones.", self.worker_restarts
        )
        yield CounterMetricFamily("lhydra_swap_failures_total", "Moves to CURRENT that failed.", self.swap_failures)


def _added(rows: list[list[int]]) -> list[int]:
    """The sum of the rows, number by number; of no rows, zeros."""
    return [sum(column) for column in zip(*rows, strict=True)] if rows else [0] * _CELLS


def _metric(family: Family, cells: list[int], by_bundle: Mapping[str, list[int]]) -> "Metric":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    names = tuple(family.labels)
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.text, labels=names)
        for child, place in family.places.items():
            below = itertools.accumulate(cells[place + 1 : place + family.width])
            bounds = (*(str(bound / family.per) for bound in family.bounds), "+Inf")
            histogram.add_metric(child, list(zip(bounds, below, strict=True)), cells[place] / family.per)
        return histogram
    if family.kind == "gauge":
        return GaugeMetricFamily(family.name, family.text, cells[family.first])
    if family.name == "lhydra_answers_total":
        answers = CounterMetricFamily(family.name, family.text, labels=(*names, "bundle"))
        for bundle_id, of_bundle in by_bundle.items():
            if any(of_bundle[family.first : family.end]):  # one that never answers makes no label
                for child, place in family.places.items():
                    answers.add_metric((*child, bundle_id), of_bundle[place])
        return answers
    counter = CounterMetricFamily(family.name, family.text, labels=names)
    for child, place in family.places.items():
        if cells[place] or "OK" in child or len(names) < 2:  # of methods and codes, those that happened
            counter.add_metric(child, cells[place])
    return counter


def _age_s(bundle_id: str) -> float | None:
    """Seconds since the time in a bundle's id."""
    try:
        made = datetime.strptime(bundle_id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    return max(time.time() - made.timestamp(), 0.0)


@contextmanager
def exposed(totals: Totals, host: str, port: int) -> Iterator[None]:
    """Answers http://HOST:PORT/metrics as long as the context lasts.

    Raises:
        PortInUse: somebody listens there already.
        ConfigError: not an address of this machine, or one that may not be used.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(totals)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        thing = f"metrics address {host}:{port}"
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(complain(thing, "the port in use", "a free --metrics-port")) from None
        raise ConfigError(complain(thing, str(error.strerror), "an address this process may listen on")) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
