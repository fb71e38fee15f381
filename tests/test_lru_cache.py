"""A least-recently-used cache against a plain list: what is kept, in what order, and how many bytes that is."""

from hypothesis import given
from hypothesis import strategies as st

from lhydra.lru_cache import LruCache


@given(
    st.integers(0, 40),
    st.lists(st.tuples(st.sampled_from(("find", "get", "put")), st.integers(0, 5), st.binary(max_size=12))),
)
def test_what_is_kept_is_what_was_used_last(capacity: int, steps: list[tuple[str, int, bytes]]) -> None:
    cache = LruCache[int, bytes](capacity, lambda key, value: len(value))
    kept: list[tuple[int, bytes]] = []  # the oracle: oldest first
    for step, key, value in steps:
        before = dict(kept).get(key)
        if step == "find":
            assert cache.find(key) == before
            now = before
        elif step == "get":
            now = cache.get(key, lambda _, value=value: value)  # type: ignore[misc]
            assert now == (value if before is None else before)
        else:
            cache.put(key, value)
            now = value
        kept = [entry for entry in kept if entry[0] != key] + ([] if now is None else [(key, now)])
        while sum(len(own) for _, own in kept) > capacity and len(kept) > 1:
            del kept[0]
        assert [(own, entry[0]) for own, entry in cache._entries.items()] == kept
        assert cache.nbytes == sum(len(own) for _, own in kept)
