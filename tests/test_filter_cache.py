"""The cache of filters against a plain list: what is kept, in what order, and how many bytes that is."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.eligible import EligibleSet
from lhydra.bundle.filter_cache import FilterCache, entry_bytes
from lhydra.domain import Condition

Conditions = tuple[Condition, ...]


def made(size: int) -> EligibleSet:
    mask = np.zeros(size, np.bool_)
    return EligibleSet(0, mask, np.packbits(mask), None, None, None, np.empty((0, 2), np.float32))


def conditions(number: int, values: int) -> Conditions:
    return (Condition("artist", any_of=tuple(f"{number} {i}" for i in range(values))),)


@settings(deadline=None)
@given(
    st.integers(0, 60_000),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 200), st.integers(0, 9_000)), max_size=60),
)
def test_what_is_kept_and_its_bytes_are_those_of_a_plain_list(capacity: int, asked: list[tuple[int, int, int]]) -> None:
    cache = FilterCache(capacity)
    kept: list[tuple[Conditions, EligibleSet]] = []  # the oracle: oldest first
    for number, values, size in asked:
        key = conditions(number, values)
        built: list[EligibleSet] = []

        def build(wanted: Conditions, size: int = size, built: list[EligibleSet] = built) -> EligibleSet:
            built.append(made(size))
            return built[-1]

        found = cache.get(key, build)
        before = next((entry for entry in kept if entry[0] == key), None)
        assert found is (built[0] if before is None else before[1])
        assert len(built) == (before is None)
        kept = [entry for entry in kept if entry[0] != key] + [(key, found)]
        while sum(entry_bytes(*entry) for entry in kept) > capacity and len(kept) > 1:
            del kept[0]
        assert cache.nbytes == sum(entry_bytes(*entry) for entry in kept)
        assert [*cache._entries] == [entry[0] for entry in kept]


def test_a_new_filter_costs_the_same_however_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are counted once, of what is new, and not again of what is kept."""
    counted: list[int] = []
    nbytes = EligibleSet.nbytes.fget  # type: ignore[attr-defined]

    def count(eligible: EligibleSet) -> int:
        counted.append(1)
        return int(nbytes(eligible))

    monkeypatch.setattr(EligibleSet, "nbytes", property(count))
    cache = FilterCache(2**30)
    for number in range(300):
        cache.get(conditions(number, 1), lambda _: made(10))
        assert len(counted) == number + 1


def test_threads_that_build_the_same_filter_at_once_get_one_of_it() -> None:
    cache, both = FilterCache(2**20), threading.Barrier(2)

    def build(wanted: Conditions) -> EligibleSet:
        both.wait(10)  # neither is stored before both are building
        return made(100)

    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(lambda _: cache.get(conditions(0, 3), build), range(2))
    assert a is b
    assert cache.nbytes == entry_bytes(conditions(0, 3), a)


def test_what_cannot_be_built_is_not_kept() -> None:
    cache = FilterCache(2**20)

    def fail(wanted: Conditions) -> EligibleSet:
        raise KeyError("artist")

    with pytest.raises(KeyError):
        cache.get(conditions(0, 1), fail)
    assert (len(cache), cache.nbytes) == (0, 0)
