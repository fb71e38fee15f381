"""A least-recently-used cache of eligible sets by filter, bounded by the memory it holds."""

import sys
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from lhydra.bundle.eligible import EligibleSet
from lhydra.domain import Condition

Conditions = tuple[Condition, ...]
ENTRY_BYTES, CONDITION_BYTES = 1024, 256  # Python objects of an entry and of each condition, measured: 1,003 and 176


class FilterCache:
    """Keeps the eligible sets of the filters used last. Safe to call from several threads.

    The newest entry stays even where it alone is larger than the capacity.

    Args:
        capacity: bytes for the eligible sets and for the conditions that they are found by.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Conditions, tuple[EligibleSet, int]] = OrderedDict()  # oldest first, with its bytes
        self._nbytes = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, see `entry_bytes`."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, conditions: Conditions, build: Callable[[Conditions], EligibleSet]) -> EligibleSet:
        """Returns the eligible set of a filter, built where it is not kept.

        `build` runs outside the lock: of several threads that build the same filter at once, all return what the
        first of them stored.

        Args:
            conditions: the filter in normal form, see `lhydra.bundle.columns.normalised`.
            build: computes the eligible set; what it raises is raised here.

        Returns:
            The eligible set.
        """
        with self._lock:
            if (entry := self._entries.get(conditions)) is not None:
                self._entries.move_to_end(conditions)
                return entry[0]
        built = build(conditions)
        size = entry_bytes(conditions, built)
        with self._lock:
            if (entry := self._entries.get(conditions)) is not None:
                self._entries.move_to_end(conditions)
                return entry[0]
            self._entries[conditions] = built, size
            self._nbytes += size
            while self._nbytes > self.capacity and len(self._entries) > 1:
                self._nbytes -= self._entries.popitem(last=False)[1][1]
        return built


def entry_bytes(conditions: Conditions, eligible: EligibleSet) -> int:
    """Returns the memory that one entry takes: arrays, texts of the conditions, and the objects around them.

    Args:
        conditions: the filter.
        eligible: its eligible set.

    Returns:
        Bytes.
    """
    texts = (text for c in conditions for text in (c.column, *c.any_of, *c.all_of, *c.none_of))
    keys = sum(sys.getsizeof(text) + 8 for text in texts)  # and a pointer in its tuple
    return eligible.nbytes + keys + ENTRY_BYTES + CONDITION_BYTES * len(conditions)
