"""Splitting plays into train, valid and test: pure functions of arrays, and the hash that names a split.

A user with fewer than MIN_PLAYS distinct tracks is all train, whatever the protocol; except for a given split
(`column`), which is kept as it is.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lhydra.data.dataset import TEST, TRAIN, VALID
from lhydra.domain import I64

Fold = npt.NDArray[np.int8]
Positions = npt.NDArray[np.int32]
MIN_PLAYS = 3


def random(user: Positions, track: Positions, valid: float, test: float, seed: int) -> Fold:
    """Returns a random fold per play, (n,) int8; of a user's n plays, n·valid and n·test are held out.

    The fold of a pair depends on the set of pairs and
    the seed only, not on their order. Fractions are rounded down, but to at least one play unless 0.

    Args:
        user: (n,) int32, in any order.
        track: (n,) int32; each pair of user and track occurs once.
        valid: share of plays for validation.
        test: share of plays for test.
        seed: of the draw.

    Returns:
        (n,) int8 folds.
    """
    by_ids = np.lexsort((track, user))
    keys = np.empty(len(user), np.uint64)
    keys[by_ids] = np.random.PCG64(seed).random_raw(len(user))  # the raw stream never changes between versions
    order = np.lexsort((track, keys, user))
    counts, place = _per_user(user[order])
    n_test, n_valid = _share(counts, test), _share(counts, valid)
    n_test = np.minimum(n_test, counts - 1 - n_valid)
    fold = np.full(len(user), TRAIN, np.int8)
    fold[order[place < n_test + n_valid]] = VALID
    fold[order[place < n_test]] = TEST
    fold[order[counts < MIN_PLAYS]] = TRAIN
    return fold


def leave_last(user: Positions, track: Positions, time: I64) -> Fold:
    """Returns a fold per play, (n,) int8: each user's last is test, the one before valid, the others train.

    Args:
        user: (n,) int32, in any order.
        track: (n,) int32; each pair of user and track occurs once.
        time: (n,) int64 seconds; equal times go by track.

    Returns:
        (n,) int8 folds.
    """
    order = np.lexsort((track, time, user))
    counts, place = _per_user(user[order])
    fold = np.full(len(user), TRAIN, np.int8)
    fold[order[(place == counts - 2) & (counts >= MIN_PLAYS)]] = VALID
    fold[order[(place == counts - 1) & (counts >= MIN_PLAYS)]] = TEST
    return fold


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


def _per_user(ordered: Positions) -> tuple[I64, I64]:
    """Returns per play of users in order: (how many plays its user has, its place among them from 0)."""
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    sizes = np.diff(starts, append=len(ordered))
    return np.repeat(sizes, sizes), np.arange(len(ordered)) - np.repeat(starts, sizes)


def _share(counts: I64, fraction: float) -> I64:
    if fraction == 0:
        return np.zeros_like(counts)
    share: I64 = np.maximum(np.floor(counts * fraction + 1e-9).astype(np.int64), 1)
    return share


def _nearest(x: float) -> int:
    return int(np.floor(x + 0.5))
