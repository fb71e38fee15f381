"""Whether what a graph returns is made of numbers: compiled as by NumPy, wherever one of them is none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra import kernels
from tests.compiled_kernels import where_a_compiler_is

pytestmark = where_a_compiler_is
NUMBERS = st.floats(width=32) | st.sampled_from(
    [np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal, -0.0]
)


@given(st.lists(NUMBERS, max_size=40), st.sampled_from([(-1,), (1, -1), (-1, 1)]))
def test_outputs_are_finite_as_numpy_has_it(numbers: list[float], shape: tuple[int, ...]) -> None:
    assert kernels.compiled is not None
    values = np.array(numbers, np.float32).reshape(shape)
    assert kernels.compiled.all_finite(values) == np.isfinite(values).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_that_is_none_is_seen_anywhere(bad: float) -> None:
    assert kernels.compiled is not None
    for place in range(300):
        values = np.zeros((1, 300), np.float32)
        values[0, place] = bad
        assert not kernels.compiled.all_finite(values)


def test_other_types_and_orders_are_an_error() -> None:
    assert kernels.compiled is not None
    for values in (np.zeros(3), np.zeros(3, np.int32), np.zeros((4, 4), np.float32)[:, ::2]):
        with pytest.raises(ValueError, match=r"float32|contiguous"):
            kernels.compiled.all_finite(values)  # type: ignore[arg-type]
