"""The systems of the co-listening table: each played track's nearest tracks, and its ridge regression on them.

Only played tracks have any, and they are taken in blocks of bounded work. The system of a track with m neighbours has
an unknown for each; where fewer than m users tie the neighbours together, it is solved with one for each such user
instead (Woodbury's identity), which for a track that few have played is a handful.
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

MAX_DENSE_TRACKS = 6_000  # played tracks whose co-listening is kept as one matrix
COSINE_SHRINKAGE = 20.0  # of the cosine that neighbours are chosen by
TRACKS_PER_BLOCK = 1_024  # regressed at a time, at most
WORK_PER_BLOCK = 1 << 19  # sums of products, or plays of neighbours, in a block of more than one track
VALUES_PER_BATCH = 1 << 22  # of a padded matrix
SMALLEST = 4  # sizes of systems are this, doubled as often as need be


@dataclass(frozen=True)
class Nearest:
    """Neighbours of n tracks, of which those at `played` (p,) have plays; others have none.

    neighbours: (n, width) int32 rows, ascending, 0 in places that hold none. with_track: (n, width) float32
    co-listening with the track, 0 there. plays: (users, p); own: (n,) float32 weight of each track. together: (p, p)
    co-listening, of at most MAX_DENSE_TRACKS tracks.
    """

    neighbours: npt.NDArray[np.int32]
    with_track: F32
    played: I64
    plays: sp.csr_matrix
    own: F32
    together: F32 | None


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
    dense = np.empty((len(played),) * 2, np.float32) if len(played) <= MAX_DENSE_TRACKS else None

    def block(at: slice) -> None:
        together = (by_track[at] @ some).tocsr()
        if dense is not None:
            dense[at] = together.toarray()
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
    return Nearest(neighbours, with_track, played, some, own, dense)


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
    position = np.zeros(len(found.neighbours), np.int64)
    position[found.played] = np.arange(len(found.played))
    by_track = found.plays.T.tocsr()
    whole = [constant + (1 + share) * found.own for constant, share in penalties]

    def block(at: slice) -> None:
        tracks = found.played[at]
        near, right = found.neighbours[tracks], found.with_track[tracks]
        diagonals = [diagonal[near] for diagonal in whole]
        if found.together is not None:
            real, rows = right > 0, position[near]
            left = found.together[rows[:, :, None], rows[:, None, :]] * (real[:, :, None] & real[:, None, :])
            solved = [_solve(left, diagonal, right) for diagonal in diagonals]
        else:
            solved = _by_users(by_track, position[near], right, diagonals)
        for out, one in zip(weights, solved, strict=True):
            out[tracks] = np.where(right > 0, one, 0)

    listeners = np.diff(by_track.indptr)
    if found.together is not None:
        work = np.full(len(found.played), float(found.with_track.shape[1]) ** 2)
    else:
        work = np.zeros(len(found.played))
        for start in range(0, len(work), TRACKS_PER_BLOCK):
            tracks = found.played[start : start + TRACKS_PER_BLOCK]
            real = found.with_track[tracks] > 0
            work[start : start + TRACKS_PER_BLOCK] = (listeners[position[found.neighbours[tracks]]] * real).sum(1)
    if found.with_track.shape[1]:
        _each(block, _blocks(work), threads)
    return weights


def _by_users(by_track: sp.csr_matrix, near: I64, right: F32, diagonals: Sequence[F32]) -> list[F32]:
    """Solves the systems of T tracks. by_track: (p, users); near: (T, width) rows of it, real where right is not 0.

    A user who played one neighbour of a track only adds to the diagonal, which is known. What ties neighbours together
    are users with two or more: of each track a matrix (users, width), padded to the sizes of its group where they are
    few, and one sparse matrix for all tracks where they are many.
    """
    solved = [right / diagonal for diagonal in diagonals]
    rows = np.nonzero(right)
    by_user = by_track[near[rows]].tocsc()  # of each user the neighbours played, track by track
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
    sizes, width = np.bincount(of, minlength=len(near)), near.shape[1]
    many = sizes > width // 2
    if many.any():
        tracks, uses = np.flatnonzero(many), np.flatnonzero(many[of])
        kept = spans(begins[uses], begins[uses] + lengths[uses])
        slot = np.repeat((np.cumsum(many) - 1)[of[uses]] * width, lengths[uses]) + played[kept]
        shape = len(uses), len(tracks) * width
        matrix = sp.csr_matrix((data[kept], slot, offsets_of(lengths[uses])), shape=shape)
        product = matrix.T @ matrix  # symmetric; a user of a track is a row: nothing ties the slots of two tracks
        left = np.zeros((len(tracks) * width, width), np.float32)
        left[np.repeat(np.arange(len(left)), np.diff(product.indptr)), product.indices % width] = product.data
        for out, diagonal in zip(solved, diagonals, strict=True):
            out[tracks] = _solve(left.reshape(-1, width, width), diagonal[tracks], right[tracks])
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
