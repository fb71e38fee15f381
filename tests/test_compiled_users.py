"""Compiled features of users against the NumPy code that defines them, whatever histories and tables hold."""

import dataclasses
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lhydra import kernels
from lhydra.bundle.candidates import known_histories
from lhydra.domain import HISTORY_DTYPE, I64, History
from lhydra.errors import FeatureError
from lhydra.features.histories import EncodedUsers, Histories
from lhydra.features.spec import AGE_BOUNDS, Encoded, FeatureSpec
from tests.compiled_kernels import plain, where_a_compiler_is
from tests.test_features import ENCODED, SPEC, USERS, N

pytestmark = where_a_compiler_is

Entry = tuple[int, float, int]  # row, -1 where the catalog does not hold the track; count; time
COUNTS = st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.0, 0.7, 7.25, 1e5, 1e18])  # no two sums of their logarithms nearly tie
TIMES = st.sampled_from([0, 0, -1, -7, 1, 10**9, 10**9, -(2**63), 2**63 - 1]) | st.integers(-50, 2 * 10**9)
ENTRIES = st.lists(st.tuples(st.integers(-1, N - 1), COUNTS, TIMES), max_size=12)
PROFILES = SPEC.encode_profiles(USERS)
ODD_CELLS = "f", "DE", "31", "nan", "inf", "1e999", 18, 18.0, 24.999999, 65, -0.0, 1e308, 10**400
CELLS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.sampled_from(ODD_CELLS))


def as_served(spec: FeatureSpec) -> Encoded:
    """The tracks as a catalog holds them; of the first four nothing is known."""
    encoded = ENCODED if spec is SPEC else spec.encode_tracks({"track_id": [f"t{i:02}" for i in range(N)]})
    dense: Any = encoded.dense.astype(np.float16)
    ids: Any = encoded.ids.astype(np.int32)
    ids[:4] = 0
    return Encoded(dense, ids, np.zeros((N, 0), np.int64))


def bare() -> FeatureSpec:
    """Features without genre, mood, artist and duration."""
    return dataclasses.replace(
        SPEC, track_numbers=(), track_bags=(), track_categories=SPEC.track_categories[:1], genre=None
    )


def history_of(entries: list[Entry]) -> tuple[History, I64]:
    history = np.zeros(len(entries), HISTORY_DTYPE)
    history["count"], history["time"] = [count for _, count, _ in entries], [time for *_, time in entries]
    return history, np.array([row for row, *_ in entries], np.int64)


def encoded(spec: FeatureSpec, users: list[list[Entry]], compiled: bool) -> EncodedUsers:
    histories, rows = zip(*map(history_of, users), strict=True)
    with nullcontext() if compiled else plain():
        return spec.encode_users(PROFILES[: len(users)], known_histories(histories, rows), as_served(spec))


@settings(deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=5), st.sampled_from([SPEC, bare()]))
def test_users_are_encoded_as_by_numpy(users: list[list[Entry]], spec: FeatureSpec) -> None:
    ours, expected = encoded(spec, users, compiled=True), encoded(spec, users, compiled=False)
    for field in dataclasses.fields(Histories):
        mine, theirs = getattr(ours.histories, field.name), getattr(expected.histories, field.name)
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    for mine, theirs in ((ours.dense, expected.dense), (ours.entry, expected.entry)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=2e-6)
        assert mine.dtype == theirs.dtype == np.float32
    np.testing.assert_array_equal(ours.ids, expected.ids)
    for i in range(len(users)):  # to the last bit
        alone, taken = encoded(spec, [users[i]], compiled=True), ours.one(i)
        np.testing.assert_array_equal(alone.entry, taken.entry)
        np.testing.assert_array_equal(alone.dense[:, spec.preference.start :], taken.dense[:, spec.preference.start :])


def test_profiles_by_row_are_encoded_as_those_of_columns() -> None:
    n = len(PROFILES)
    given = [{name: column[i] for name, column in USERS.items()} for i in range(n)]
    histories = known_histories(*zip(*[history_of([(i, 2.0, 9)]) for i in range(n)], strict=True))
    for context in (nullcontext(), plain()):
        with context:
            by_row, by_column = (SPEC.encode_users(one, histories, as_served(SPEC)) for one in (given, PROFILES))
            np.testing.assert_array_equal(by_row.dense, by_column.dense)
            np.testing.assert_array_equal(by_row.ids, by_column.ids)
    for other in (
        Encoded(PROFILES.dense[:, 1:], PROFILES.ids, PROFILES.bags),
        Encoded(PROFILES.dense, PROFILES.ids[:, 1:], PROFILES.bags),
    ):
        with pytest.raises(ValueError, match="other columns"):
            SPEC.encode_users(other, histories, as_served(SPEC))


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(SPEC.profile_columns), CELLS), max_size=4))
@example([{"age": bound} for bound in (*AGE_BOUNDS, 18, -1e300)])
def test_profiles_are_numbers_as_in_python(profiles: list[dict[str, Any]]) -> None:
    """To the bit, and with the same errors, whatever their cells hold."""
    columns = SPEC.profile

    def found() -> object:
        try:
            return repr(columns.encoded(profiles))  # which tells -0.0 from 0.0
        except (FeatureError, OverflowError) as error:
            return type(error), str(error)

    ours = found()
    with plain():
        assert ours == found()


def test_plain_profiles_need_no_python() -> None:
    columns, compiled = SPEC.profile, kernels.compiled
    given: list[dict[str, Any]] = [{"age": 24.5, "gender": "f", "country": "nowhere"}, {"age": 18}, {}]
    assert compiled.profile_numbers(given, columns.categories, columns.numbers) == columns.encoded(given)
    assert compiled.profile_numbers([{"gender": 3}, {"gender": True}], columns.categories, columns.numbers) is not None
    for cell in (True, "24", math.nan, math.inf, [1.0]):
        assert compiled.profile_numbers([{"age": cell}], columns.categories, columns.numbers) is None


def test_long_histories_are_encoded_as_by_numpy() -> None:
    rng = np.random.default_rng(5)
    users: list[list[Entry]] = [
        [(int(row), float(count), int(time)) for row, count, time in zip(*columns, strict=True)]
        for columns in (
            (rng.integers(-1, N, h), rng.integers(1, 9, h), np.sort(rng.integers(0, 2 * 10**9, h)))
            for h in (2048, 1, 500)
        )
    ]
    ours, expected = encoded(SPEC, users, compiled=True), encoded(SPEC, users, compiled=False)
    np.testing.assert_allclose(ours.dense, expected.dense, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.entry, expected.entry, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", [-1, N, 2**62, -(2**63)])
@pytest.mark.parametrize("place", [0, 30])
def test_a_row_of_no_track_is_an_error_and_nothing_is_read(row: int, place: int) -> None:
    rows = np.zeros(40, np.int64)
    rows[place] = row
    histories = Histories.one(rows, np.ones(40, np.float32), np.zeros(40, np.int64))
    with pytest.raises(IndexError):
        SPEC.encode_users(PROFILES[:1], histories, as_served(SPEC))


@pytest.mark.parametrize("value", [-1, 2**31 - 1])
@pytest.mark.parametrize("column", ["artist", "genre*", "quadrant"])
def test_an_id_beyond_its_column_is_an_error(column: str, value: int) -> None:
    tracks = as_served(SPEC)
    tracks.ids[3, [name for name, _ in SPEC.track_ids].index(column)] = value
    with pytest.raises(ValueError, match=f"id {value}"):
        SPEC.encode_users(
            PROFILES[:1], Histories.one(np.array([3]), np.ones(1, np.float32), np.ones(1, np.int64)), tracks
        )


@pytest.mark.parametrize("offsets", [[0, 1], [0, 3, 2], [0, 2**40, 2], [0, 1, -(2**63), 2], [1, 2], [0]])
def test_histories_that_do_not_fit_are_an_error(offsets: list[int]) -> None:
    rows = np.zeros(2, np.int64)
    histories = Histories(np.array(offsets, np.int64), rows, np.ones(2, np.float32), rows)
    with pytest.raises(ValueError, match=r"users|histories"):
        SPEC.encode_users(PROFILES[: max(len(offsets) - 1, 1)], histories, as_served(SPEC))


def test_plays_and_rows_of_unequal_number_are_an_error() -> None:
    with pytest.raises(ValueError, match="unequal"):
        known_histories([np.zeros(2, HISTORY_DTYPE)], [np.zeros(3, np.int64)])
