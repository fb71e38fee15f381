"""The cache of eligible sets by filter, and what an entry of it takes."""

import sys

from lhydra.bundle.eligible import EligibleSet
from lhydra.domain import Condition
from lhydra.lru_cache import LruCache

Conditions = tuple[Condition, ...]
ENTRY_BYTES, CONDITION_BYTES = 1024, 256  # Python objects of an entry and of each condition, measured: 1,003 and 176


class FilterCache(LruCache[Conditions, EligibleSet]):
    """Keeps the eligible sets of the filters used last, by the filter in normal form: `columns.normalised`.

    Args:
        capacity: bytes for the eligible sets and for the conditions that they are found by.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, entry_bytes)


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
