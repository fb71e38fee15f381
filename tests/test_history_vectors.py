"""History vectors of a byte a number: how far they are off, and that every way to read them gives the same."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lhydra import kernels
from lhydra.bundle.history_vectors import LARGEST, TOO_LARGE, HistoryVectors, is_sound
from lhydra.domain import F16, F32
from tests.compiled_kernels import plain, where_a_compiler_is

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70)
VECTORS = arrays.arrays(np.float32, SHAPES, elements=st.floats(-60_000, 60_000, width=32))
SCALES = st.integers(0, TOO_LARGE - 1)


def all_of(vectors: HistoryVectors) -> F16:
    found: F16 = vectors.at(np.arange(len(vectors))[None])[0]
    return found


def bound(vectors: F32) -> F32:
    """Half a scale, which is an eighth too large at most; the smallest scales are steps of 2^-17."""
    least = np.abs(vectors).max(axis=1, keepdims=True) / LARGEST
    return np.asarray(0.5 * np.maximum(least * 1.13, least + 1.01 * 2.0**-17), np.float32)


@given(VECTORS)
@example(np.array([[0.001]], np.float32))
def test_a_number_is_off_by_half_a_scale_at_most(vectors: F32) -> None:
    made = HistoryVectors.of(vectors)
    assert made.table.dtype == np.int8
    assert made.table.shape == (len(vectors), vectors.shape[1] + 1)
    assert (len(made), made.dim) == vectors.shape
    assert is_sound(made.table)
    assert (np.abs(all_of(made).astype(np.float32) - vectors) <= bound(vectors)).all()


@given(VECTORS)
def test_signs_mirror_and_rows_do_not_see_each_other(vectors: F32) -> None:
    np.testing.assert_array_equal(all_of(HistoryVectors.of(-vectors)), -all_of(HistoryVectors.of(vectors)))
    alone = [HistoryVectors.of(row[None]).table[0] for row in vectors]
    np.testing.assert_array_equal(HistoryVectors.of(vectors).table, np.stack(alone))


def test_nothing_is_lost_where_nothing_is_rounded() -> None:
    vectors = np.concatenate([np.arange(-LARGEST, LARGEST + 1), np.zeros(1)]).astype(np.float32)[None]
    for scale in (2.0**-14, 2.0**-8, 1.0, 256.0):
        np.testing.assert_array_equal(all_of(HistoryVectors.of(scale * vectors)), scale * vectors)
    np.testing.assert_array_equal(all_of(HistoryVectors.of(np.zeros((2, 3), np.float32))), np.zeros((2, 3)))
    nobody = HistoryVectors.of(np.zeros((0, 3), np.float32)).at(np.zeros((2, 1), np.int64))
    np.testing.assert_array_equal(nobody, np.zeros((2, 1, 3)))


@where_a_compiler_is
@given(st.data(), SHAPES, st.lists(SCALES, min_size=70, max_size=70))
def test_the_kernel_widens_as_numpy_does(data: st.DataObject, shape: tuple[int, int], scales: list[int]) -> None:
    numbers = data.draw(arrays.arrays(np.int8, shape, elements=st.integers(-128, 127)))
    behind = np.array(scales[: shape[0]], np.uint8).view(np.int8)[:, None]
    vectors = HistoryVectors(np.concatenate([numbers, behind], axis=1))
    some = st.tuples(st.integers(0, 3), st.integers(0, 40))
    rows = data.draw(arrays.arrays(np.int64, some, elements=st.integers(0, shape[0] - 1)))
    with plain():
        expected = vectors.at(rows)
    found = vectors.at(rows)
    assert found.dtype == np.float16
    assert found.shape == (*rows.shape, shape[1])
    np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=where_a_compiler_is)])
def test_every_number_times_every_scale_is_exact(compiled: bool) -> None:
    numbers, scales = np.arange(-128, 128).astype(np.int8), np.arange(TOO_LARGE, dtype=np.uint8)[:, None]
    vectors = HistoryVectors(np.concatenate([np.tile(numbers, (TOO_LARGE, 1)), scales.view(np.int8)], axis=1))
    exact = numbers * (scales.astype(np.uint16) << 7).view(np.float16).astype(np.float64)
    assert is_sound(vectors.table)
    with nullcontext() if compiled else plain():
        found = all_of(vectors)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found.astype(np.float64), exact)


def test_rows_that_are_not_there_are_errors() -> None:
    made = HistoryVectors.of(np.ones((3, 4), np.float32))
    for row in (3, 2**40) if kernels.compiled is None else (-1, 3, 2**40, -(2**63)):
        with pytest.raises(IndexError):
            made.at(np.array([[0, row]]))
    if kernels.compiled is not None:
        for table in (np.zeros((3, 0), np.int8), np.zeros((4, 3), np.int8).T):
            with pytest.raises(ValueError, match=r"without scales|contiguous"):
                kernels.compiled.history_vectors(table, np.zeros((1, 1), np.int64))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scales_and_halves_that_are_no_numbers_are_seen(bad: float) -> None:
    table = HistoryVectors.of(np.ones((5, 4), np.float32)).table
    table.view(np.uint8)[3, -1] = np.array([bad], np.float16).view(np.uint16)[0] >> 7 & 0xFF
    assert not is_sound(table)
    halves = np.ones((5, 4), np.float16)
    assert is_sound(halves)
    halves[2, 1] = bad
    assert not is_sound(halves)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FF81000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0x7F7FFFFF])
def test_no_number_that_is_none_becomes_a_sound_vector(bits: int) -> None:
    vectors = np.ones((3, 4), np.float32)
    vectors.view(np.uint32)[1, 2] = bits
    assert not is_sound(HistoryVectors.of(vectors).table)


def test_a_mapped_file_is_read_in_place_and_halves_of_before_as_they_are(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    made, rows = HistoryVectors.of(vectors), np.array([[5, 5], [199, 0]])
    np.save(tmp_path / "history.npy", made.table)
    mapped = np.asarray(np.load(tmp_path / "history.npy", "r"))
    np.testing.assert_array_equal(HistoryVectors(mapped).at(rows), made.at(rows))
    halves = HistoryVectors(vectors.astype(np.float16))
    assert (len(halves), halves.dim) == (200, 64)
    np.testing.assert_array_equal(halves.at(rows), vectors.astype(np.float16)[rows])
