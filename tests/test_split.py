"""Laws of the splits, on arrays."""

import hashlib
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra.data import split
from lhydra.data.dataset import TEST, TRAIN, VALID
from lhydra.data.settings import PrepareSettings
from lhydra.domain import track_hashes

FRACTIONS = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.49])
SHARES = st.tuples(FRACTIONS, FRACTIONS) | st.sampled_from([(0.01, 0.98), (0.98, 0.01)])
PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12)), min_size=1, max_size=80, unique=True)


def arrays(pairs: list[tuple[int, int]]) -> tuple[split.Positions, split.Positions]:
    user, track = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
    return np.ascontiguousarray(user), np.ascontiguousarray(track)


def drawn(pairs: list[tuple[int, int]], valid: float, test: float, seed: int) -> dict[tuple[int, int], int]:
    """The random fold of each pair of user and track."""
    users, tracks = (track_hashes(f"{letter}{n}" for n in range(200)) for letter in "ut")
    user, track = arrays(pairs)
    folds = split.random(users, tracks, user, track, PrepareSettings(valid=valid, test=test, seed=seed))
    return dict(zip(sorted(pairs), folds.tolist(), strict=True))


def mixed(key: int) -> int:
    """The finaliser of SplitMix64, in plain numbers."""
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) % 2**64
    return key ^ (key >> 31)


@given(pairs=PAIRS, shares=SHARES, seed=st.integers(0, 3))
def test_a_random_fold_is_that_of_the_pair_alone(
    pairs: list[tuple[int, int]], shares: tuple[float, float], seed: int
) -> None:
    valid, test = shares
    for (user, track), fold in drawn(pairs, valid, test, seed).items():
        ids = (
            int.from_bytes(blake2b(f"{x}".encode(), digest_size=8).digest(), "little")
            for x in (f"u{user}", f"t{track}")
        )
        key = mixed(seed)
        for name in ids:
            key = mixed(key ^ name)
        at = (key >> 11) / 2**53
        wanted = TEST if at < test else VALID if at < test + valid else TRAIN
        assert fold == wanted


@given(pairs=PAIRS, added=PAIRS, seed=st.integers(0, 3))
def test_an_added_play_moves_nobody_else(pairs: list[tuple[int, int]], added: list[tuple[int, int]], seed: int) -> None:
    before = drawn(pairs, 0.25, 0.25, seed)
    after = drawn(list({*pairs, *added}), 0.25, 0.25, seed)
    assert {pair: after[pair] for pair in pairs} == before


def test_random_shares_are_those_asked_for() -> None:
    pairs = [(user, track) for user in range(200) for track in range(200)]
    for valid, test, seed in ((0.1, 0.1, 0), (0.29, 0.57, 1), (0.0, 0.05, 2)):
        shares = np.bincount(list(drawn(pairs, valid, test, seed).values()), minlength=3) / len(pairs)
        np.testing.assert_allclose(shares, [1 - valid - test, valid, test], atol=0.01)


def test_random_differs_by_seed() -> None:
    pairs = [(user, track) for user in range(10) for track in range(20)]
    a, b = (np.array(list(drawn(pairs, 0.1, 0.1, seed).values())) for seed in (7, 8))
    assert 0.5 < (a == b).mean() < 0.9


@given(pairs=PAIRS, data=st.data())
def test_leave_last_holds_out_the_two_newest(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    user, _ = arrays(pairs)
    order = np.array(data.draw(st.permutations(range(len(pairs)))), np.int64)
    last = order[np.argsort(user[order], kind="stable")]  # some order, user by user
    place = np.empty(len(last), np.int64)
    place[last] = np.arange(len(last))
    fold = split.leave_last(user, place)
    for one in np.unique(user):
        by_age = sorted(np.flatnonzero(user == one), key=lambda i: place[i])
        wanted = [TRAIN] * len(by_age)
        if len(by_age) >= split.MIN_PLAYS:
            wanted[-2:] = [VALID, TEST]
        assert fold[by_age].tolist() == wanted


@given(
    sessions=st.lists(st.lists(st.integers(-1, 6), max_size=12), min_size=1, max_size=6),
    valid=st.integers(0, 2),
    test=st.integers(1, 3),
)
def test_next_session_holds_out_each_users_last_sessions(sessions: list[list[int]], valid: int, test: int) -> None:
    own = [sorted(one) for one in sessions if one]
    user = np.repeat(np.arange(len(own), dtype=np.int32), [len(one) for one in own])
    session = np.array([number for one in own for number in one], np.int32)
    if not len(user):
        return
    fold = split.next_session(user, session, valid, test)
    for one in range(len(own)):
        count = max(own[one]) + 1
        for number, found in zip(own[one], fold[user == one], strict=True):
            wanted = TRAIN
            if number >= 0 and count > valid + test:
                wanted = TEST if number >= count - test else VALID if number >= count - test - valid else TRAIN
            assert found == wanted


@given(
    time=st.lists(st.integers(0, 400), min_size=1, max_size=60),
    gap=st.integers(0, 30),
    valid=st.integers(0, 60),
    test=st.integers(1, 60),
)
def test_global_time_leaves_gaps(time: list[int], gap: int, valid: int, test: int) -> None:
    settings = PrepareSettings(gap_s=gap, valid_s=valid, test_s=test)
    fold, last_train, last_valid = split.global_time(np.array(time, np.int64), settings)
    newest = max(time)
    for when, found in zip(time, fold, strict=True):
        before_end = newest - when
        if when == 0 or before_end >= test + gap + valid + (gap if valid else 0):
            wanted = TRAIN
        elif before_end < test:
            wanted = TEST
        elif test + gap <= before_end < test + gap + valid:
            wanted = VALID
        else:
            wanted = split.LEFT_OUT
        assert found == wanted
        assert when == 0 or (found == TRAIN) == (when <= last_train)
        assert found != VALID or when <= last_valid


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
    user, _ = arrays([(0, t) for t in range(n)])
    assert not split.leave_last(user, np.arange(n)).any()
