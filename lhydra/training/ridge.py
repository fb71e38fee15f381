"""The systems of the co-listening table: each played track's nearest tracks, and its ridge regression on them.

Only played tracks have any, and they are taken in blocks of bounded work. Nearly all plays of neighbours are plays of
popular ones, so co-listening of the most popular tracks is looked up in one matrix, and only users who played another
neighbour are gone through. The system of a track with m neighbours has an unknown for each; where fewer than m users
tie the neighbours together, it is solved with one for each such user instead (Woodbury's identity).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from lhydra.domain import F32, I64
from lhydra.features.histories import offsets_of, spans

MAX_DENSE_TRACKS = 6_000  # most popular tracks whose co-listening is kept as one matrix
COSINE_SHRINKAGE = 20.0  # of the cosine that neighbours are chosen by
TRACKS_PER_BLOCK = 1_024  # regressed at a time, at most
WORK_PER_BLOCK = 1 << 19  # sums of products, or plays of neighbours, in a block of more than one track
USERS_PER_WORK = 64  # so many users to mark for a track are as much work as a play
VALUES_PER_BATCH = 1 << 22  # of a padded matrix
SMALLEST = 4  # sizes of systems are this, doubled as often as need be


@dataclass(frozen=True)
class Nearest:
    """Neighbours of n tracks, of which those at `played` (p,) have plays; others have none.

    neighbours: (n, width) int32 rows, ascending, 0 in places that hold none. with_track: (n, width) float32
    co-listening with the track, 0 there. plays: (users, p); own: (n,) float32 weight of each track. popular: (q,) of
    the p, at most MAX_DENSE_TRACKS; together: (q, q) their co-listening.
    """

    neighbours: npt.NDArray[np.int32]
    with_track: F32
    played: I64
    plays: sp.csr_matrix
    own: F32
    popular: I64
    together: F32


def nearest(plays: sp.csr_matrix, width: int, threads: int = 1) -> Nearest:
    """Finds the nearest tracks of each by shrunk cosine.

    Args:
        plays: (users, n) float32 weights.
        width: most neighbours of a track, below n.
        threads: blocks at a time.

    Returns:
        What `regressed` takes.
    """
    n = plays.shape[1]
    own = np.asarray(plays.multiply(plays).sum(0), np.float32).ravel()
    played = np.flatnonzero(np.bincount(plays.indices, minlength=n))
    some = plays[:, played] if len(played) < n else plays.tocsr()
    by_track = some.T.tocsr()
    scale = 1 / np.sqrt(own[played] + COSINE_SHRINKAGE)
    neighbours, with_track = np.zeros((n, width), np.int32), np.zeros((n, width), np.float32)
    popular = np.sort(np.argsort(-np.diff(by_track.indptr), kind="stable")[:MAX_DENSE_TRACKS])
    dense = np.empty((len(popular),) * 2, np.float32)

    def block(at: slice) -> None:
        together = (by_track[at] @ some).tocsr()
        of_popular = slice(*np.searchsorted(popular, (at.start, at.stop)))
        dense[of_popular] = together[popular[of_popular] - at.start][:, popular].toarray()
        track = np.repeat(np.arange(at.start, at.stop), np.diff(together.indptr))
        other = together.indices != track
        row, near, weight = (part[other] for part in (track, together.indices, together.data))
        kept = _largest(row - at.start, weight * scale[near], at.stop - at.start, width)
        row, near, weight = row[kept], near[kept], weight[kept]
        order = np.lexsort((near, row))
        row, near, weight = row[order], near[order], weight[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        neighbours[played[row], place], with_track[played[row], place] = played[near], weight

    work = by_track @ np.diff(some.indptr).astype(np.float64) if width else np.empty(0)
    _each(block, _blocks(np.minimum(work, len(played))), threads)
    return Nearest(neighbours, with_track, played, some, own, popular, dense)


def _largest(row: I64, value: F32, n: int, width: int) -> I64:
    """Positions of the `width` largest values of each of n rows; row: (m,) ascending."""
    lengths = np.bincount(row, minlength=n)
    starts = np.cumsum(lengths) - lengths
    few = lengths <= width
    found = [spans(starts[few], starts[few] + lengths[few])]
    for rows, size in _grouped(np.where(few, 0, lengths), 2 * width):
        padded = np.full((len(rows), size), np.inf, np.float32)
        place = spans(np.zeros(len(rows), np.int64), lengths[rows])
        at = np.repeat(np.arange(len(rows)), lengths[rows]), place
        padded[at] = -value[spans(starts[rows], starts[rows] + lengths[rows])]
        best = np.argpartition(padded, width - 1, 1)[:, :width]
        found.append((starts[rows][:, None] + best).ravel())
    return np.concatenate(found)


def regressed(found: Nearest, penalties: Sequence[tuple[float, ...]], threads: int = 1) -> list[F32]:
    """Regresses the plays of every track on those of its neighbours.

    Args:
        found: neighbours of n tracks.
        penalties: (constant, share of a neighbour's own weight) that is added to the diagonal.
        threads: blocks at a time.

    Returns:
        (n, width) float32 weights for each penalty, 0 where there is no neighbour.
    """
    weights = [np.zeros(found.with_track.shape, np.float32) for _ in penalties]
    by_track = found.plays.T.tocsr()
    position = np.zeros(len(found.neighbours), np.int64)
    position[found.played] = np.arange(len(found.played))
    place = np.full(len(found.played), -1, np.int32)  # in the matrix of popular tracks
    place[found.popular] = np.arange(len(found.popular))
    whole = [constant + (1 + share) * found.own for constant, share in penalties]

    def block(at: slice) -> None:
        tracks = found.played[at]
        near, right = found.neighbours[tracks], found.with_track[tracks]
        diagonals = [diagonal[near] for diagonal in whole]
        solved = _systems(by_track, position[near], right, diagonals, place, found.together)
        for out, one in zip(weights, solved, strict=True):
            out[tracks] = np.where(right > 0, one, 0)

    listeners, work = np.diff(by_track.indptr), np.empty(len(found.played))
    marks = by_track.shape[1] / USERS_PER_WORK if len(found.popular) < len(found.played) else 0.0
    for start in range(0, len(work), TRACKS_PER_BLOCK):
        tracks = found.played[start : start + TRACKS_PER_BLOCK]
        near, real = position[found.neighbours[tracks]], found.with_track[tracks] > 0
        rare = real & (place[near] < 0)
        plays = (listeners[near] * real).sum(1) * rare.any(1)
        work[start : start + TRACKS_PER_BLOCK] = plays + marks + real.sum(1) ** 2
    if found.with_track.shape[1]:
        _each(block, _blocks(work), threads)
    return weights


def _systems(
    by_track: sp.csr_matrix,
    near: I64,
    right: F32,
    diagonals: Sequence[F32],
    place: npt.NDArray[np.int32],
    together: F32,
) -> list[F32]:
    """Solves the systems of T tracks.

    by_track: (p, users); near: (T, width) rows of it, real where right is not 0; place: (p,) in `together`, or -1.

    A user who played one neighbour of a track only adds to the diagonal, which is known. What ties neighbours together
    are users with two or more, and of those who played popular ones only, the sum is in `together`.
    """
    real, width = right > 0, near.shape[1]
    popular = real & (place[near] >= 0)
    solved = [right / diagonal for diagonal in diagonals]
    rows = np.nonzero(real & (real & ~popular).any(1, keepdims=True))
    by_user = _of_some(by_track, near[rows], rows[0], ~popular[rows], len(near)).tocsc()  # track by track
    track, column = (part.astype(np.uint16) for part in rows)  # narrow: there are millions of plays to look up
    of_play = track.take(by_user.indices)
    ties = np.zeros(len(of_play) + 1, np.bool_)  # with the play before: of the same user and track
    np.equal(of_play[1:], of_play[:-1], out=ties[1:-1])
    ties[by_user.indptr] = False
    at = np.flatnonzero(ties[:-1] | ties[1:])  # plays of users with two or more
    begins = np.flatnonzero(~ties[at])
    lengths = np.diff(np.r_[begins, len(at)])
    of = of_play.take(at.take(begins))
    played, data = column.take(by_user.indices.take(at)), by_user.data.take(at)
    sizes = np.bincount(of, minlength=len(near))
    many = (sizes > width // 2) | (popular.sum(1) > 1)
    if many.any():
        tracks, uses = np.flatnonzero(many), np.flatnonzero(many[of])
        kept = spans(begins[uses], begins[uses] + lengths[uses])
        slot = np.repeat((np.cumsum(many) - 1)[of[uses]] * width, lengths[uses]) + played[kept]
        shape = len(uses), len(tracks) * width
        matrix = sp.csr_matrix((data[kept], slot, offsets_of(lengths[uses])), shape=shape)
        product = matrix.T @ matrix  # symmetric; a user of a track is a row: nothing ties the slots of two tracks
        left = np.zeros((len(tracks) * width, width), np.float32)
        left[np.repeat(np.arange(len(left)), np.diff(product.indptr)), product.indices % width] = product.data
        left = left.reshape(-1, width, width)
        row, known = place[near[tracks]], popular[tracks]
        looked_up = together[row[:, :, None], row[:, None, :]]
        np.copyto(left, looked_up, where=known[:, :, None] & known[:, None, :])
        for out, diagonal in zip(solved, diagonals, strict=True):
            out[tracks] = _solve(left, diagonal[tracks], right[tracks])
    order = np.argsort(of, kind="stable")
    first, lengths = begins[order], lengths[order]
    starts = np.cumsum(sizes) - sizes
    for tracks, size in _grouped(np.where(many, 0, sizes), SMALLEST, width):
        uses = spans(starts[tracks], starts[tracks] + sizes[tracks])
        kept = spans(first[uses], first[uses] + lengths[uses])
        dense = np.zeros((len(tracks), size, width), np.float32)
        user = np.repeat(spans(np.zeros(len(tracks), np.int64), sizes[tracks]), lengths[uses])
        own = np.repeat(np.repeat(np.arange(len(tracks)), sizes[tracks]), lengths[uses])
        dense[own, user, played[kept]] = data[kept]
        for out, diagonal in zip(solved, diagonals, strict=True):
            out[tracks] = _woodbury(dense, diagonal[tracks], right[tracks])
    return solved


def _of_some(by_track: sp.csr_matrix, near: I64, of: I64, all_users: npt.NDArray[np.bool_], n: int) -> sp.csr_matrix:
    """Plays of neighbours: of some, those of all users, of the others only those of the same users.

    near: (m,) rows of by_track, neighbours of the n tracks `of` (m,), ascending. Returns (m, users).
    """
    plays = by_track[near]
    lengths = np.diff(plays.indptr)
    user = np.repeat((of * plays.shape[1]).astype(np.int32), lengths) + plays.indices
    wanted = np.zeros(n * plays.shape[1], np.bool_)
    wanted[user[np.repeat(all_users, lengths)]] = True
    kept = np.flatnonzero(wanted.take(user))
    parts = plays.data.take(kept), plays.indices.take(kept), np.searchsorted(kept, plays.indptr)
    return sp.csr_matrix(parts, shape=plays.shape)


def _solve(left: F32, diagonal: F32, right: F32) -> F32:
    """Solves (T, width, width) systems whose diagonal is replaced."""
    at = np.arange(left.shape[1])
    left[:, at, at] = diagonal
    return np.asarray(np.linalg.solve(left, right[:, :, None])[:, :, 0])


def _woodbury(matrix: F32, diagonal: F32, right: F32) -> F32:
    """Solves systems matrix.T @ matrix with the diagonal replaced; matrix: (T, users, width)."""
    diagonal = diagonal - (matrix * matrix).sum(1)
    scaled = matrix / diagonal[:, None, :]
    small = scaled @ matrix.transpose(0, 2, 1)
    at = np.arange(matrix.shape[1])
    small[:, at, at] += 1
    tied = np.linalg.solve(small, scaled @ right[:, :, None])
    return np.asarray(right / diagonal - (scaled.transpose(0, 2, 1) @ tied)[:, :, 0])


def _grouped(sizes: I64, smallest: int, width: int = 1) -> Iterator[tuple[I64, int]]:
    """Groups rows by size, in batches whose (size, width) matrices take at most VALUES_PER_BATCH, if more than one.

    Yields (rows, size to pad to): `smallest`, doubled as often as need be. Rows of size 0 are left out.
    """
    doubled = np.ceil(np.log2(np.maximum(sizes, smallest) / smallest)).astype(np.int64)
    doubled[sizes == 0] = -1
    for power in np.unique(doubled[doubled >= 0]).tolist():
        rows = np.flatnonzero(doubled == power)
        size = int(min(smallest << power, sizes[rows].max()))
        step = max(1, VALUES_PER_BATCH // (size * max(width, 1)))
        for start in range(0, len(rows), step):
            yield rows[start : start + step], size


def _blocks(work: npt.NDArray[np.float64]) -> list[slice]:
    """Cuts tracks into blocks of at most WORK_PER_BLOCK, if more than one track, and TRACKS_PER_BLOCK tracks."""
    done, ends, total = np.r_[0, np.cumsum(work)], [0], len(work)
    while ends[-1] < total:
        fits = int(np.searchsorted(done, done[ends[-1]] + WORK_PER_BLOCK, side="right")) - 1
        ends.append(min(max(fits, ends[-1] + 1), ends[-1] + TRACKS_PER_BLOCK, total))
    return [slice(*pair) for pair in pairwise(ends)]


def _each(block: Callable[[slice], None], blocks: Sequence[slice], threads: int) -> None:
    """Calls `block` for each; they write to different rows, so that the order decides nothing."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in pool.map(block, blocks):
            pass
