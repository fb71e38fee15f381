"""What all workers have counted, for GetStatus: the supervisor writes the sums into memory that every worker maps.

A number is written and read whole; two numbers read together may be half a second apart.
"""

import itertools
import mmap
import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from lhydra.errors import LhydraError, complain
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.metrics.layout import BLOCK_BYTES, FAMILIES, LAYOUT_MARK, Family

FRACTIONS = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Counts:
    """What happened since the server began; what never did is not there."""

    stages: Sequence[pb.Percentiles] = ()
    methods: Sequence[pb.Percentiles] = ()
    tiers: Sequence[pb.Counted] = ()
    refusals: Sequence[pb.Counted] = ()
    degraded: Sequence[pb.Counted] = ()


NOTHING_COUNTED = Counts()


class Sums:
    """A worker's view of the sums.

    Args:
        descriptor: of the memory, inherited, closed here; below 0 nothing is counted.

    Raises:
        LhydraError: the memory is laid out by another version.
    """

    def __init__(self, descriptor: int) -> None:
        self._cells: memoryview | None = None
        if descriptor < 0:
            return
        try:
            memory = mmap.mmap(descriptor, BLOCK_BYTES, access=mmap.ACCESS_READ)
        except ValueError:
            memory = None
        finally:
            os.close(descriptor)
        if memory is None or memoryview(memory).cast("q")[0] != LAYOUT_MARK:
            raise LhydraError(complain("metrics", "a supervisor of another version", "a restart of `lhydra serve`"))
        self._cells = memoryview(memory).cast("q")

    def counted(self) -> Counts:
        """Returns what all workers have counted so far."""
        if self._cells is None:
            return NOTHING_COUNTED
        cells = self._cells.tolist()
        return Counts(
            _percentiles(cells, FAMILIES["lhydra_stage_seconds"]),
            _percentiles(cells, FAMILIES["lhydra_request_seconds"]),
            _counts(cells, FAMILIES["lhydra_answers_total"]),
            _counts(cells, FAMILIES["lhydra_refused_total"]),
            _counts(cells, FAMILIES["lhydra_degraded_total"]),
        )


def _percentiles(cells: list[int], family: Family) -> list[pb.Percentiles]:
    found = []
    for (name,), place in family.places.items():
        buckets = cells[place + 1 : place + family.width]
        if count := sum(buckets):
            p50, p90, p99 = quantiles(buckets, family.bounds)
            found.append(pb.Percentiles(name=name, count=count, p50_us=p50, p90_us=p90, p99_us=p99))
    return found


def _counts(cells: list[int], family: Family) -> list[pb.Counted]:
    return [pb.Counted(name=name, count=cells[at]) for (name,), at in family.places.items() if cells[at]]


def quantiles(buckets: Sequence[int], bounds: Sequence[int]) -> list[int]:
    """Returns where FRACTIONS of what a histogram observed lie, as `histogram_quantile` of Prometheus tells it.

    Args:
        buckets: how many observations each has, at least one in all; the last is beyond all bounds.
        bounds: the upper bound of each bucket but the last.

    Returns:
        One number for each fraction, spread evenly within a bucket; beyond all bounds the largest of them.
    """
    below = list(itertools.accumulate(buckets))
    found = []
    for fraction in FRACTIONS:
        rank = fraction * below[-1]
        at = bisect_left(below, rank)
        if at == len(bounds):
            found.append(bounds[-1])
            continue
        low, before = (bounds[at - 1], below[at - 1]) if at else (0, 0)
        found.append(round(low + (bounds[at] - low) * (rank - before) / buckets[at]))
    return found
