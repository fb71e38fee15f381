"""Laws of the splits, on arrays."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra.data import split
from lhydra.data.dataset import TEST, TRAIN, VALID

FRACTIONS = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.49])
SHARES = st.tuples(FRACTIONS, FRACTIONS) | st.sampled_from([(0.01, 0.98), (0.98, 0.01)])
PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12)), min_size=1, max_size=80, unique=True)


def arrays(pairs: list[tuple[int, int]]) -> tuple[split.Positions, split.Positions]:
    user, track = np.array(pairs, np.int32).reshape(-1, 2).T
    return np.ascontiguousarray(user), np.ascontiguousarray(track)


@given(pairs=PAIRS, shares=SHARES, seed=st.integers(0, 3))
def test_random_holds_out_its_share_of_every_user(
    pairs: list[tuple[int, int]], shares: tuple[float, float], seed: int
) -> None:
    user, track = arrays(pairs)
    fold = split.random(user, track, *shares, seed)
    for one in np.unique(user):
        n = int((user == one).sum())
        sizes = [int((fold[user == one] == f).sum()) for f in (TRAIN, VALID, TEST)]
        assert sum(sizes) == n
        if n < split.MIN_PLAYS:
            assert sizes == [n, 0, 0]
            continue
        wanted = [0 if not share else max(1, int(n * share + 1e-9)) for share in shares]
        assert sizes[1:] == [wanted[0], min(wanted[1], n - 1 - wanted[0])]
        assert sizes[0] >= 1


def test_random_shares_are_exact_where_floats_are_not() -> None:
    user, track = arrays([(0, t) for t in range(100)])
    fold = split.random(user, track, 0.29, 0.57, seed=0)  # 100 * 0.29 is 28.999999999999996
    assert np.bincount(fold).tolist() == [14, 29, 57]


@given(pairs=PAIRS, seed=st.integers(0, 3), data=st.data())
def test_random_depends_on_the_set_of_pairs_only(pairs: list[tuple[int, int]], seed: int, data: st.DataObject) -> None:
    mixed = data.draw(st.permutations(pairs))
    fold = dict(zip(pairs, split.random(*arrays(pairs), 0.1, 0.1, seed).tolist(), strict=True))
    again = dict(zip(mixed, split.random(*arrays(mixed), 0.1, 0.1, seed).tolist(), strict=True))
    assert fold == again


def test_random_is_the_same_on_every_machine_and_differs_by_seed() -> None:
    user, track = arrays([(u, t) for u in range(4) for t in range(10)])
    fold = split.random(user, track, 0.1, 0.2, seed=7)
    keys = np.random.PCG64(7).random_raw(40).reshape(4, 10)  # the pairs stand in id order already
    wanted = np.zeros((4, 10), np.int8)
    for own, row in zip(wanted, keys.argsort(axis=1), strict=True):
        own[row[:2]], own[row[2:3]] = TEST, VALID
    assert fold.tolist() == wanted.ravel().tolist()
    assert "".join(map(str, fold)) == "0002102000122000000001022000000020000201"
    assert not np.array_equal(fold, split.random(user, track, 0.1, 0.2, seed=8))


@given(pairs=PAIRS, data=st.data())
def test_leave_last_holds_out_the_two_newest(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    user, track = arrays(pairs)
    time = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(pairs), max_size=len(pairs))), np.int64)
    fold = split.leave_last(user, track, time)
    for one in np.unique(user):
        own = np.flatnonzero(user == one)
        by_age = sorted(own, key=lambda i: (time[i], track[i]))
        wanted = [TRAIN] * len(own)
        if len(own) >= split.MIN_PLAYS:
            wanted[-2:] = [VALID, TEST]
        assert fold[by_age].tolist() == wanted


@given(time=st.lists(st.integers(0, 30), min_size=1, max_size=60), valid=FRACTIONS, test=FRACTIONS)
def test_temporal_cuts_are_ordered_and_near_their_fractions(time: list[int], valid: float, test: float) -> None:
    stamps = np.array(time, np.int64)
    last_train, last_valid = split.temporal_cuts(stamps, valid, test)
    assert last_train <= last_valid
    train, rest = (stamps <= last_train).sum(), (stamps > last_valid).sum()
    ties = max(np.unique(stamps, return_counts=True)[1])
    assert train >= 1
    assert train >= len(time) * (1 - valid - test) - 0.5
    assert train <= max(len(time) * (1 - valid - test) + 0.5, 1) + ties
    assert rest <= len(time) * test + 0.5


def test_temporal_cuts_of_distinct_times_are_exact() -> None:
    stamps = np.random.default_rng(0).permutation(np.arange(1000, dtype=np.int64))
    assert split.temporal_cuts(stamps, 0.1, 0.2) == (699, 799)


def test_hash_names_every_fold_of_every_pair() -> None:
    user, track = np.array([1, 0, 0], np.int32), np.array([0, 1, 1], np.int32)
    fold = np.array([2, 1, 0], np.int8)
    users, tracks = pa.array(["a", "é"]), pa.array(["x", "y"])
    text = "a\ty\ttrain\na\ty\tvalid\né\tx\ttest\n"
    wanted = hashlib.sha256(text.encode()).hexdigest()
    assert split.split_hash(user, track, fold, users, tracks) == wanted
    assert split.split_hash(user[::-1], track[::-1], fold[::-1], users, tracks) == wanted
    assert split.split_hash(user, track, np.array([2, 2, 0], np.int8), users, tracks) != wanted


@pytest.mark.parametrize("n", [1, 2])
def test_few_plays_are_all_train(n: int) -> None:
    user, track = arrays([(0, t) for t in range(n)])
    assert not split.random(user, track, 0.4, 0.4, 0).any()
    assert not split.leave_last(user, track, np.arange(n)).any()
