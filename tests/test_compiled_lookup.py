"""Compiled lookups of tracks by hash against NumPy's, whatever a table of hashes holds."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import Catalog, hash_shift
from lhydra.domain import HISTORY_DTYPE, RECENT_DTYPE, Hashes, UserState
from tests.compiled_kernels import plain, where_a_compiler_is

pytestmark = where_a_compiler_is


def catalog_of(bundle: Bundle, hashes: Hashes) -> Catalog:
    """A catalog of which only the lookup means anything."""
    n, rng = len(hashes), np.random.default_rng(0)
    bits = 64 - hash_shift(n)
    firsts = np.arange(2**bits, dtype=np.uint64) << np.uint64(64 - bits)
    starts, rows = np.searchsorted(hashes, firsts).astype(np.int32), rng.permutation(n).astype(np.int32)
    vectors = np.zeros((n, 1), np.float16)
    return dataclasses.replace(bundle.catalog, vectors=vectors, hashes=hashes, hash_rows=rows, hash_starts=starts)


def state_of(history: Hashes, recent: Hashes, heard: Hashes) -> UserState:
    state = UserState({}, np.zeros(len(history), HISTORY_DTYPE), heard, recent=np.zeros(len(recent), RECENT_DTYPE))
    state.history["track"], state.recent["track"] = history, recent
    return state


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 700), st.tuples(*[st.integers(0, 300)] * 3), st.sampled_from([64, 20, 3]))
def test_tracks_are_found_as_by_numpy(
    tiny_bundle: Bundle, seed: int, n: int, sizes: tuple[int, ...], bits: int
) -> None:
    """Also where hashes are not spread evenly, so that a bucket holds many."""
    rng = np.random.default_rng(seed)
    hashes = np.unique(rng.integers(0, 2**bits, n, np.uint64))
    catalog = catalog_of(tiny_bundle, hashes)
    ends = np.array([0, 1, 2**64 - 1], np.uint64)
    known = np.concatenate([hashes, ends, rng.integers(0, 2**64, 9, np.uint64), hashes + np.uint64(1)])
    wanted = [rng.choice(known, size) for size in sizes]
    state = state_of(*wanted)
    with plain():
        expected = catalog.state_rows(state)
    for mine, theirs, asked in zip(catalog.state_rows(state), expected, wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(catalog.rows(asked), theirs)
        np.testing.assert_array_equal(catalog.rows(np.repeat(asked, 2)[::2]), theirs)
        assert mine.dtype == theirs.dtype == np.int64


@pytest.mark.parametrize("starts", [[], [-1, 2**31 - 1], [2**31 - 1] * 4, [-(2**31)] * 64])
def test_a_damaged_table_finds_too_little_and_reads_nothing_else(tiny_bundle: Bundle, starts: list[int]) -> None:
    rng = np.random.default_rng(1)
    hashes = np.unique(rng.integers(0, 2**64, 50, np.uint64))
    catalog = dataclasses.replace(catalog_of(tiny_bundle, hashes), hash_starts=np.array(starts, np.int32))
    rows = catalog.rows(np.concatenate([hashes, rng.integers(0, 2**64, 200, np.uint64)]))
    assert len(rows) == len(hashes) + 200
    assert np.isin(rows, np.arange(-1, len(hashes))).all()


def test_a_table_with_too_few_rows_is_an_error(tiny_bundle: Bundle) -> None:
    catalog = catalog_of(tiny_bundle, np.arange(9, dtype=np.uint64))
    with pytest.raises(ValueError, match="unequal"):
        dataclasses.replace(catalog, hash_rows=catalog.hash_rows[:4]).rows(catalog.hashes)
