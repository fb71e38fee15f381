"""A least-recently-used cache, bounded by the memory that its entries take."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """Keeps the values that were used last. Safe to call from several threads.

    The newest entry stays even where it alone is larger than the capacity.

    Args:
        capacity: bytes of all entries.
        size_of: bytes of an entry, counted once.
    """

    def __init__(self, capacity: int, size_of: Callable[[Key, Value], int]) -> None:
        self.capacity, self._size_of = capacity, size_of
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()  # oldest first, with its bytes
        self.nbytes = 0  # of all entries
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Key) -> Value | None:
        """Returns what is kept.

        Args:
            key: of an entry.

        Returns:
            Its value, None where there is none.
        """
        with self._lock:
            if (entry := self._entries.get(key)) is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: Key, value: Value) -> None:
        """Keeps a value in place of what was kept.

        Args:
            key: of the entry.
            value: to keep.
        """
        size = self._size_of(key, value)
        with self._lock:
            if (entry := self._entries.pop(key, None)) is not None:
                self.nbytes -= entry[1]
            self._add(key, value, size)

    def _add(self, key: Key, value: Value, size: int) -> None:
        self._entries[key] = value, size
        self.nbytes += size
        while self.nbytes > self.capacity and len(self._entries) > 1:
            self.nbytes -= self._entries.popitem(last=False)[1][1]

    def get(self, key: Key, build: Callable[[Key], Value]) -> Value:
        """Returns a value, built where it is not kept.

        `build` runs outside the lock: of several threads that build the same entry at once, all return what the
        first of them stored.

        Args:
            key: of the entry.
            build: computes the value; what it raises is raised here.

        Returns:
            The value.
        """
        if (found := self.find(key)) is not None:
            return found
        value = build(key)
        size = self._size_of(key, value)
        with self._lock:
            if (entry := self._entries.get(key)) is None:
                self._add(key, value, size)
                return value
            self._entries.move_to_end(key)
            return entry[0]
