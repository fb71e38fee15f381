"""Splitting plays into train, valid and test: pure functions of arrays, and the hash that names a split.

A user with fewer than MIN_PLAYS distinct tracks is all train with temporal and leave-last. With global-time that would
put plays of the last day into train; with random, one more play would move the others.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lhydra.data.dataset import TEST, TRAIN, VALID
from lhydra.data.events import Log
from lhydra.data.settings import PrepareSettings
from lhydra.domain import I64, Hashes

Fold = npt.NDArray[np.int8]
Positions = npt.NDArray[np.int32]
MIN_PLAYS = 3
LEFT_OUT = 3  # a play in the gap of global-time: in no fold
RULE = 2  # how folds are drawn, kept with a split: since 2 a random fold is that of a pair, whatever else is there


def random(users: Hashes, tracks: Hashes, user: Positions, track: Positions, settings: PrepareSettings) -> Fold:
    """Returns a random fold per pair: what it is depends on the two ids, the seed and the fractions, on nothing else.

    A pair that is added moves no other, so no model of this draw has seen the test plays of a later one. By chance a
    user may have no valid play, no test play, or no other.

    Args:
        users: (all users,) uint64 `track_hashes` of their ids.
        tracks: (all tracks,) uint64 of theirs.
        user: (n,) int32.
        track: (n,) int32; each pair of user and track occurs once.
        settings: seed and fractions.

    Returns:
        (n,) int8 folds.
    """
    seed = np.uint64(settings.seed % 2**64)
    key = _mixed(_mixed(_mixed(seed) ^ users[user]) ^ tracks[track])
    drawn = (key >> np.uint64(11)).astype(np.float64) * 2.0**-53  # uniform in [0, 1)
    fold = np.full(len(user), TRAIN, np.int8)
    fold[drawn < settings.test + settings.valid] = VALID
    fold[drawn < settings.test] = TEST
    return fold


def leave_last(user: Positions, last: I64) -> Fold:
    """Returns a fold per pair, (n,) int8: each user's last is test, the one before valid, the others train.

    Args:
        user: (n,) int32, in order; each pair of user and track occurs once.
        last: (n,) int64 place of the pair's last play in the order of listening.

    Returns:
        (n,) int8 folds.
    """
    order = np.argsort(last)  # users stay in order
    counts, place = _per_user(user[order])
    fold = np.full(len(user), TRAIN, np.int8)
    fold[order[(place == counts - 2) & (counts >= MIN_PLAYS)]] = VALID
    fold[order[(place == counts - 1) & (counts >= MIN_PLAYS)]] = TEST
    return fold


def temporal(log: Log, last_train: int, last_valid: int) -> Fold:
    """Returns a fold per play: up to the first moment train, up to the second valid, later test.

    Args:
        log: n plays.
        last_train: s.
        last_valid: s.

    Returns:
        (n,) int8 folds.
    """
    time = log.events.time
    fold = np.full(len(time), TEST, np.int8)
    fold[time <= last_valid] = VALID
    fold[time <= last_train] = TRAIN
    few = log.spread(_few_tracks(log.events.user[log.last]).astype(np.int8))
    fold[few.astype(np.bool_)] = TRAIN
    return fold


def next_session(user: Positions, session: Positions, valid: int, test: int) -> Fold:
    """Returns a fold per play: of each user the last sessions are test, those before valid, the others train.

    A user without a session for train is all train, and so is a play of no session.

    Args:
        user: (n,) int32, in order.
        session: (n,) int32 of the user, from 0; -1 none.
        valid: sessions of each user for validation.
        test: sessions of each user for test.

    Returns:
        (n,) int8 folds.
    """
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    sizes = np.diff(starts, append=len(user))
    sessions = np.repeat(np.maximum.reduceat(session, starts) + 1, sizes)
    fold = np.full(len(user), TRAIN, np.int8)
    enough = (sessions > valid + test) & (session >= 0)
    fold[enough & (session >= sessions - test - valid)] = VALID
    fold[enough & (session >= sessions - test)] = TEST
    return fold


def global_time(time: I64, settings: PrepareSettings) -> tuple[Fold, int, int]:
    """Returns a fold per play: the last `test_s` seconds are test, `valid_s` before a gap valid, before another train.

    The protocol of Yambda (Ploshkin et al. 2025): what lies in a gap, LEFT_OUT, is in no fold, as a service does not
    learn in an instant. A play without a time is train.

    Args:
        time: (n,) int64 seconds, 0 unknown.
        settings: lengths of the folds and of the gaps.

    Returns:
        (n,) int8 folds, last second of train, last second of valid.
    """
    last_valid = int(time.max()) - settings.test_s - settings.gap_s
    last_train = last_valid - settings.valid_s - (settings.gap_s if settings.valid_s else 0)
    fold = np.full(len(time), LEFT_OUT, np.int8)
    fold[time > last_valid + settings.gap_s] = TEST
    fold[(time <= last_valid) & (time > last_valid - settings.valid_s)] = VALID
    fold[time <= last_train] = TRAIN
    fold[time == 0] = TRAIN
    return fold, last_train, last_valid


def temporal_cuts(time: I64, valid: float, test: float) -> tuple[int, int]:
    """Returns where train and valid end in time.

    Events of the same second stay together, in the earlier fold.

    Args:
        time: (n,) int64 seconds of events, n >= 1.
        valid: share of events for validation.
        test: share of events for test.

    Returns:
        Last second of train, last second of valid.
    """
    n = len(time)
    train_end = min(max(_nearest(n * (1 - valid - test)), 1), n) - 1
    valid_end = min(max(_nearest(n * (1 - test)), train_end + 1), n) - 1
    ordered = np.partition(time, (train_end, valid_end))
    return int(ordered[train_end]), int(ordered[valid_end])


def split_hash(user: Positions, track: Positions, fold: Fold, user_ids: pa.Array, track_ids: pa.Array) -> str:
    """Returns the SHA-256 of all (user id, track id, fold), sorted.

    Args:
        user: (n,) int32 positions.
        track: (n,) int32 positions.
        fold: (n,) int8.
        user_ids: in order of position.
        track_ids: in order of position.

    Returns:
        64 hex digits.
    """
    key = (user.astype(np.uint64) << np.uint64(33)) | (track.astype(np.uint64) << np.uint64(2))
    order = np.argsort(key | fold.astype(np.uint64))
    digest = hashlib.sha256()
    for start in range(0, len(order), 1 << 20):
        rows = order[start : start + (1 << 20)]
        parts = (user_ids.take(pa.array(user[rows])), track_ids.take(pa.array(track[rows])))
        folds = pa.array(["train\n", "valid\n", "test\n"]).take(pa.array(fold[rows]))
        lines = pc.binary_join_element_wise(*parts, folds, "\t")
        digest.update(memoryview(lines.buffers()[2])[: pc.sum(pc.binary_length(lines)).as_py()])
    return digest.hexdigest()


def _mixed(key: Any) -> Any:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of a uint64 sways every bit of what it becomes."""
    with np.errstate(over="ignore"):
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def _few_tracks(user: Positions) -> npt.NDArray[np.bool_]:
    """Whether the user of each pair has fewer than MIN_PLAYS; user: (pairs,) in order."""
    return _per_user(user)[0] < MIN_PLAYS


def _per_user(ordered: Positions) -> tuple[I64, I64]:
    """Returns per play of users in order: (how many plays its user has, its place among them from 0)."""
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    sizes = np.diff(starts, append=len(ordered))
    return np.repeat(sizes, sizes), np.arange(len(ordered)) - np.repeat(starts, sizes)


def _nearest(x: float) -> int:
    return int(np.floor(x + 0.5))
