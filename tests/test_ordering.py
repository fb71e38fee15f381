"""Sorting by several whole numbers gives the order of numpy's lexsort, whatever the numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lhydra.data.ordering import lexsort, settle


@st.composite
def keys(draw: st.DrawFn) -> list[npt.NDArray[Any]]:
    n = draw(st.integers(1, 40))
    spans = [(-2, 2), (0, 0), (-(2**62), 2**62), (-(2**63), 2**63 - 1)]
    return [
        draw(arrays(np.int64, n, elements=st.integers(*draw(st.sampled_from(spans)))))
        for _ in range(draw(st.integers(1, 4)))
    ]


@given(keys())
def test_it_is_the_order_of_lexsort(found: list[npt.NDArray[Any]]) -> None:
    assert lexsort(found).tolist() == np.lexsort(found).tolist()


@given(keys())
def test_ties_are_settled_by_further_keys(found: list[npt.NDArray[Any]]) -> None:
    *rest, first = found
    order = lexsort([first])
    same = np.append(False, first[order][1:] == first[order][:-1])
    assert settle(order, same, rest or [first]).tolist() == np.lexsort([*rest, first]).tolist()


def test_nothing_is_in_order() -> None:
    assert lexsort([np.empty(0, np.int64)]).tolist() == []
