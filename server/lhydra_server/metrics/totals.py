"""What all workers have counted, as the supervisor keeps it."""

import itertools
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from lhydra_server.metrics.counts import Counts
from lhydra_server.metrics.layout import BLOCK_BYTES, CELLS, FAMILIES, LAYOUT_MARK, Family

if TYPE_CHECKING:
    from prometheus_client import Metric  # imported only where metrics are asked for

RECENT = 8  # bundles that have a label of their own; what older ones counted is added up under `older`
OLDER = "older"


class Block:
    """The memory that one worker counts into, as its supervisor sees it. `descriptor` is for the worker to inherit.

    Args:
        totals: keep the counters when the worker has ended.
        bundle_id: what the worker serves.

    Raises:
        OSError: no descriptor or no memory is left.
    """

    def __init__(self, totals: "Totals", bundle_id: str) -> None:
        self._totals = totals
        self.bundle_id = bundle_id
        self.descriptor = _memory()
        try:
            os.ftruncate(self.descriptor, BLOCK_BYTES)
            self.cells = memoryview(mmap.mmap(self.descriptor, BLOCK_BYTES)).cast("q")
        except OSError:
            os.close(self.descriptor)
            raise
        self.cells[0] = LAYOUT_MARK

    def handed_over(self) -> None:
        """The worker has been started: the supervisor needs the descriptor no more."""
        os.close(self.descriptor)

    def end(self) -> None:
        """The worker has ended: what it counted is kept, its gauges are forgotten."""
        self._totals.keep(self)


def _memory() -> int:
    """A descriptor of new memory without a name: nothing is left behind, however the processes end."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("lhydra-metrics")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Totals:
    """What all workers of a server have counted, and what only the supervisor knows; a collector of prometheus_client.

    Args:
        counts: of the supervisor.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._lock = threading.Lock()
        self._blocks: list[Block] = []
        self._shared = -1  # descriptor of the sums
        self._sums: memoryview | None = None
        self._kept: dict[str, list[int]] = {}  # by bundle, what ended workers counted; the last to end is last

    def block(self, bundle_id: str) -> Block:
        """Makes the block of a worker that is about to start.

        Args:
            bundle_id: what it will serve.

        Returns:
            Zeroed memory that scrapes read from now on.
        """
        block = Block(self, bundle_id)
        with self._lock:
            self._blocks.append(block)
        return block

    def keep(self, block: Block) -> None:
        """Keeps the counters of a worker that has ended.

        Args:
            block: of that worker; read no more after this.
        """
        with self._lock:
            self._blocks.remove(block)
            for family in FAMILIES.values():
                if family.kind == "gauge":
                    block.cells[family.first] = 0
            if not any(block.cells[1:]):
                return  # it never served
            kept = self._kept.pop(block.bundle_id, None)
            self._kept[block.bundle_id] = _added([block.cells.tolist(), *([kept] if kept else [])])
            while len(self._kept) - (OLDER in self._kept) > RECENT:
                oldest = next(bundle_id for bundle_id in self._kept if bundle_id != OLDER)
                older = [self._kept.pop(bundle_id) for bundle_id in (oldest, OLDER) if bundle_id in self._kept]
                self._kept[OLDER] = _added(older)

    def share(self) -> int:
        """Makes the memory that `sum_up` writes to.

        Returns:
            Its descriptor, for workers to inherit.

        Raises:
            OSError: no descriptor or no memory is left.
        """
        if self._sums is None:
            self._shared = _memory()
            os.ftruncate(self._shared, BLOCK_BYTES)
            self._sums = memoryview(mmap.mmap(self._shared, BLOCK_BYTES)).cast("q")
            self._sums[0] = LAYOUT_MARK
        return self._shared

    def sum_up(self) -> None:
        """Writes what all workers have counted into the shared memory, where somebody shares it."""
        if self._sums is None:
            return
        with self._lock:
            rows = [block.cells[1:] for block in self._blocks]
            kept = [cells[1:] for cells in self._kept.values()]
        total = np.zeros(CELLS - 1, np.int64)
        for row in (*rows, *kept):
            total += np.asarray(row)
        self._sums[1:] = memoryview(total.tobytes()).cast("q")

    def collect(self) -> "Iterator[Metric]":
        """Yields every metric with its value now."""
        with self._lock:
            counted = {bundle_id: [cells] for bundle_id, cells in self._kept.items()}
            living = [block.cells.tolist() for block in self._blocks]
            for block, cells in zip(self._blocks, living, strict=True):
                counted.setdefault(block.bundle_id, []).append(cells)
        by_bundle = {bundle_id: _added(rows) for bundle_id, rows in counted.items()}
        total, now = _added(list(by_bundle.values())), _added(living)
        highest = [max(column) for column in zip(*living, strict=True)] if living else now
        for family in FAMILIES.values():
            cells = highest if family.shared else now if family.kind == "gauge" else total
            yield _metric(family, cells, by_bundle)
        yield from self._of_supervisor()

    def _of_supervisor(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counts = self._counts
        info = GaugeMetricFamily("lhydra_bundle_info", "The bundle being served.", labels=("bundle_id", "model_id"))
        age = GaugeMetricFamily("lhydra_bundle_age_seconds", "Time since the bundle being served was made.")
        if counts.serving is not None:
            info.add_metric(counts.serving, 1)
            if (age_s := _age_s(counts.serving[0])) is not None:
                age.add_metric((), age_s)
        yield info
        yield age
        yield GaugeMetricFamily("lhydra_workers", "Workers that serve now.", counts.workers)
        yield CounterMetricFamily(
            "lhydra_worker_restarts_total", "Workers started in place of dead ones.", counts.worker_restarts
        )
        failures = CounterMetricFamily(
            "lhydra_worker_failures_total",
            "Workers lost, and those that could not be started, by reason.",
            labels=("reason",),
        )
        for reason, number in counts.worker_failures.items():
            failures.add_metric((reason,), number)
        yield failures
        yield CounterMetricFamily("lhydra_swap_failures_total", "Moves to CURRENT that failed.", counts.swap_failures)
        yield CounterMetricFamily(
            "lhydra_rules_failures_total",
            "Changes of the file of rules that were refused.",
            counts.file_failures["rules"],
        )
        access = CounterMetricFamily(
            "lhydra_access_failures_total",
            "Changes of the files of certificates and tokens that were refused.",
            labels=("file",),
        )
        for file in ("certificates", "tokens"):
            access.add_metric((file,), counts.file_failures[file])
        yield access
        expires = GaugeMetricFamily("lhydra_certificate_expires_seconds", "Unix time at which the certificate ends.")
        if counts.expires_s:
            expires.add_metric((), counts.expires_s)
        yield expires


def _added(rows: list[list[int]]) -> list[int]:
    """The sum of the rows, number by number; of no rows, zeros."""
    return [sum(column) for column in zip(*rows, strict=True)] if rows else [0] * CELLS


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
