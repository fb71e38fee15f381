"""What is compiled of a request from its candidates to its reply, against the NumPy code beside the calls."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra import kernels
from lhydra.bundle import bundle as bundles
from lhydra.bundle import candidates
from lhydra.bundle.exact import best_first, selected
from lhydra.bundle.strings import StringColumn
from lhydra.domain import F32, Query, Repeat
from lhydra.features.listening import Listening
from lhydra.features.moment import SOURCES, Moment
from lhydra.features.sequences import Sequences
from lhydra.recommender import Recommender
from lhydra_protos.v1.wire import SCORE_BYTES
from lhydra_server import replies
from tests.compiled_kernels import plain, where_a_compiler_is

pytestmark = where_a_compiler_is
N, DIM = 90, 33


def both(call: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call returns compiled, and in NumPy."""
    compiled = call()
    with plain():
        return compiled, call()


@given(
    st.lists(st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0]), max_size=60), st.integers(0, 70)
)
def test_the_order_of_any_scores(values: list[float], k: int) -> None:
    scores, rows = np.array(values, np.float32), np.random.default_rng(k).permutation(len(values))
    found, expected = both(lambda: best_first(rows, scores, k).tolist())
    assert found == expected == sorted(range(len(values)), key=lambda i: (-scores[i], rows[i]))[:k]


@pytest.mark.parametrize("backwards", [True, False])
def test_thousands_of_ties_are_ordered_by_row(backwards: bool) -> None:
    """As of many tracks of which nothing is known: each was compared with all others before."""
    n = 20_000
    rows = np.arange(n)[::-1] if backwards else np.random.default_rng(0).permutation(n)
    scores = np.repeat(np.array([0.0, 1.0, -0.0, 1.0], np.float32), n // 4)
    np.testing.assert_array_equal(*both(lambda: best_first(rows, scores, n)))


def moment_of(rng: np.random.Generator, now: int = 0) -> tuple[Moment, Sequences]:
    """A user's moment over N tracks, and what follows what."""
    lengths = rng.integers(0, 6, 2 * N)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    others, weights = rng.integers(0, N, offsets[-1]).astype(np.int32), rng.random(offsets[-1]).astype(np.float16)
    shares: F32 = (rng.random(3) / 2).astype(np.float32)
    tables = Sequences(offsets, others, weights, rng.random(N).astype(np.float16), shares)
    h, r = rng.integers(0, 30), rng.integers(0, 20)
    rows, recent = rng.permutation(N)[:h], rng.integers(0, N, r)
    last = rng.integers(10**6, 2 * 10**6, h)
    history = rows, rng.integers(1, 9, h).astype(np.float32), last, last - 1000, rng.random((h, 3)).astype(np.float32)
    plays = recent, np.sort(rng.integers(10**6, 2 * 10**6, r)), rng.integers(0, 8, r)
    return Moment(Listening(N, *history, *plays, now), tables), tables


@settings(deadline=None)
@given(st.integers(0, 2**16), st.integers(0, N), st.integers(0, 40), st.booleans(), st.sampled_from(Repeat))
def test_candidates_that_may_be_returned_and_all_together(
    seed: int, depth: int, out: int, filtered: bool, repeat: Repeat
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(N, DIM)).astype(np.float16)
    vectors[::7] = vectors[0]  # ties
    vector = rng.normal(size=(1, DIM)).astype(np.float32)
    excluded, removed = rng.integers(0, N, out), np.sort(rng.permutation(N)[: out // 4])
    moment, tables = moment_of(rng)
    catalog = Sized(SimpleNamespace(vectors=vectors, removed=removed))
    bundle: Any = SimpleNamespace(catalog=catalog, sequences=tables)
    eligible: Any = SimpleNamespace(mask=rng.random(N) < 0.7) if filtered else None
    cosines = np.sort(rng.normal(size=N).astype(np.float32))[::-1].copy()
    nearest, user = (rng.permutation(N)[:depth], cosines[:depth]), cast(Any, None)

    def together() -> Any:
        given = Query(10, repeat=repeat), moment, user, nearest, vector, depth, excluded, eligible
        return candidates.brought(bundle, *given)

    (found, (rows, near)), (expected, (rows_2, near_2)) = both(together)
    assert list(found) == list(expected) == [candidates.NEAREST, *SOURCES]
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    assert np.array_equal(np.sort(rows), np.sort(rows_2))
    of = dict(zip(rows_2.tolist(), near_2.tolist(), strict=True))
    np.testing.assert_allclose(near, [of[row] for row in rows.tolist()], atol=1e-5)
    pairs = list(zip(-near, rows, strict=True))
    assert pairs == sorted(pairs)


@given(st.integers(0, 2**16), st.integers(0, 60), st.integers(-1, 70))
def test_the_best_with_all_that_is_told_of_them(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    rows, few = rng.permutation(n), rng.integers(0, 9, (4, n)).astype(np.float32)
    found, expected = both(lambda: selected(rows, few[0], few[1], few[2], few[3], max(k, 0)))
    best = sorted(range(n), key=lambda i: (-few[2, i], rows[i]))[: max(k, 0)]
    shown = np.minimum.accumulate(few[1, best])
    brutes: list[Any] = [rows[best], shown, few[0, best], few[3, best]]
    for ours, theirs, brute in zip(found, expected, brutes, strict=True):
        assert ours.dtype == theirs.dtype == brute.dtype
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(ours, brute)
    with pytest.raises(ValueError, match="numbers of others"):
        selected(rows, few[0], few[1], few[2], np.zeros(n + 1, np.float32), k)


class Sized:
    """A catalogue of N tracks with some of its arrays."""

    def __init__(self, arrays: SimpleNamespace) -> None:
        vars(self).update(vars(arrays))

    def __len__(self) -> int:
        return N


@given(st.integers(0, 2**16), st.integers(0, 60), st.integers(0, 50))
def test_the_first_that_are_not_excluded(seed: int, out: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    excluded, rows = rng.integers(0, N, out), rng.permutation(N)[:50]
    cosines = rng.normal(size=50).astype(np.float32)
    catalog = Sized(SimpleNamespace(removed=np.empty(0, np.int64), n_eligible=N))
    recommender: Any = SimpleNamespace(catalog=catalog, fallbacks=0)
    request: Any = SimpleNamespace(depth=depth, excluded=excluded)
    found, expected = both(lambda: Recommender._without_excluded(recommender, request, rows, cosines))
    assert (found is None) == (expected is None)
    if found is not None:
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


@given(st.integers(0, 2**16), st.integers(0, 50))
def test_rows_of_several_tables(seed: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    tables: tuple[Any, ...] = (
        *(rng.normal(size=(N, width)).astype(np.float16) for width in (1, 2, 64, 65)),
        *(rng.integers(0, 9, (N, 0), dtype=np.int32), rng.integers(0, 9, N, dtype=np.int32)),
        rng.normal(size=N).astype(np.float32),
    )
    rows = rng.permutation(N)[:m]
    found, expected = both(lambda: bundles._gathered(rows, *tables))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_rows_beyond_a_table_and_parts_beyond_the_texts_are_errors() -> None:
    compiled = kernels.compiled
    assert compiled is not None
    table = np.zeros((5, 3), np.float16)
    for row in (-1, 5, 2**40):
        with pytest.raises(IndexError):
            compiled.gathered(np.array([0, row]), (table,))
        with pytest.raises(IndexError):
            compiled.united(table.view(np.uint16), np.zeros(3, np.float32), (np.array([row]),), *nothing(), 3)
        with pytest.raises(IndexError):
            moment_of(np.random.default_rng(0))[0].signals(np.array([row if row != 5 else N]))
    one = np.zeros(1, np.float32)
    for dtype in (np.int32, np.int64):
        texts = StringColumn(np.zeros(30, np.uint8), np.array([0, 10, 15, 31, 5], dtype))
        assert len(replies.tracks(np.array([0]), one, one, texts)) == SCORE_BYTES
        for row, error in ((1, ValueError), (2, ValueError), (3, ValueError), (4, IndexError), (-1, IndexError)):
            with pytest.raises(error):
                replies.tracks(np.array([row]), one, one, texts)


def nothing() -> tuple[Any, Any]:
    """No rows, and no scores."""
    return np.empty(0, np.int64), np.empty(0, np.float32)


@given(
    st.lists(st.tuples(st.binary(max_size=200), st.floats(width=32), st.floats(width=32)), max_size=20),
    st.sampled_from(("i4", "i8")),
)
def test_the_tracks_of_a_reply(tracks: list[tuple[bytes, float, float]], dtype: str) -> None:
    parts = [text + bytes(SCORE_BYTES) for text, *_ in tracks]
    offsets = np.cumsum([0, *map(len, parts)]).astype(dtype)
    texts = StringColumn(np.frombuffer(b"".join(parts), np.uint8), offsets)
    scores = [np.array([track[which] for track in tracks], np.float32) for which in (1, 2)]
    found, expected = both(lambda: replies.tracks(np.arange(len(tracks))[::-1], scores[0], scores[1], texts))
    assert bytes(found) == bytes(expected)


@pytest.mark.parametrize("offsets", [[2**63 - 5, 40], [0, -1], [30, 20], [0, 41], [35, 40], [-4, 20]])
def test_parts_that_are_not_there_are_an_error_and_nothing_is_read(offsets: list[int]) -> None:
    """Also where a sum of offsets is beyond 64 bits."""
    parts, none = StringColumn(np.zeros(40, np.uint8), np.array(offsets, np.int64)), np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="a part from"):
        replies.tracks(np.array([0]), none, none, parts)


def test_a_table_without_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="without rows"):
        bundles._gathered(np.array([0]), np.zeros((), np.float32))
