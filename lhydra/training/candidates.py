"""Candidates of several sources, as they are served, and how the depth is shared out among the sources.

What each source may take is chosen on the validation fold by the targets that the union finds.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lhydra.domain import I64
from lhydra.features.co_listening import CoListening
from lhydra.features.histories import EncodedUsers, Histories
from lhydra.training.data import Targets, TrainingData, select
from lhydra.training.model import Network
from lhydra.training.step import Tensors, embed_users, tensor
from lhydra.training.validate import embed_tracks, sample

F64 = npt.NDArray[np.float64]
SHARED = 0.8  # of the depth at most; the nearest vectors have the rest
MEASURED = 600  # users or moments that the shares are chosen on
WORTH = 1.002  # a larger share must find more by this factor
CO_LISTENING_SHARES = (0.0, 0.15, 0.3, 0.45, 0.6)
CO_LISTENING_WORTH = 1.02  # with it the union must find more by this factor: a request costs an eighth more


@dataclass(frozen=True)
class Found:
    """What the sources find for a user at one time.

    levels: by number of the option, then by source, the rows that it brings. nearest: (depth,) rows, best first.
    targets: distinct rows; heard: rows heard before.
    """

    levels: Sequence[Sequence[I64]]
    nearest: I64
    targets: I64
    heard: I64


def united(sources: Sequence[I64], nearest: I64, depth: int) -> I64:
    """Unites candidates: those of the sources, then the nearest until there are enough.

    Args:
        sources: distinct rows of each.
        nearest: (depth,) rows, best first.
        depth: how many.

    Returns:
        At most `depth` distinct rows.
    """
    special = np.unique(np.concatenate(sources))[:depth]
    others = nearest[~np.isin(nearest, special)]
    return np.concatenate([special, others[: depth - len(special)]])


def choose_shares(
    options: Sequence[Sequence[float]], found: Iterable[Found], depth: int, least: float = 1.0
) -> tuple[float, ...]:
    """Shares the depth out among the sources by what each adds: the targets found, with and without repeats.

    Args:
        options: of each source, shares of the depth to choose from, ascending from 0.
        found: what they find, for some users.
        depth: candidates in all.
        least: more targets than the nearest alone, by this factor, must be found, else no source has a share.

    Returns:
        A share of the depth for each source; the nearest vectors have the rest.
    """
    every = np.sum([_hits(options, one, depth) for one in found], 0)
    nothing = best = (0.0,) * len(options)
    most = -1.0
    for shares, value in zip(itertools.product(*options), every, strict=True):
        if sum(shares) <= SHARED and value > most * WORTH:
            best, most = shares, value
    return best if most >= every[0] * least else nothing


def _hits(options: Sequence[Sequence[float]], found: Found, depth: int) -> F64:
    """The share of targets found, and of those not heard, with each choice of `options`."""
    levels, nearest = found.levels, found.nearest
    tracks = np.unique(np.concatenate([found.targets, nearest, *itertools.chain(*levels)]))

    def mask(rows: I64) -> npt.NDArray[np.bool_]:
        marked = np.zeros(len(tracks), np.bool_)
        marked[np.searchsorted(tracks, rows)] = True
        return marked

    chosen = [[mask(levels[n][source]) for n in range(len(own))] for source, own in enumerate(options)]
    special = np.array([np.logical_or.reduce(one) for one in itertools.product(*chosen)])
    near, wanted, fresh = np.searchsorted(tracks, nearest), mask(found.targets), ~np.isin(tracks, found.heard)
    hits = np.zeros(len(special))
    for allowed in (np.ones(len(tracks), np.bool_), fresh):
        if asked := np.count_nonzero(wanted & allowed):
            among = special & allowed
            others = (allowed & ~among)[:, near]
            others &= np.cumsum(others, 1) <= depth - among.sum(1, keepdims=True)
            hits += ((among & wanted).sum(1) + (others & wanted[near]).sum(1)) / asked
    return hits


@dataclass(frozen=True)
class Retrieved:
    """What the towers retrieve for E users. user: (E, D) vectors. encoded: the users. rows: (E, depth), best cosine
    first, and real: (E, depth), which of them there are.
    """

    user: Tensor
    encoded: EncodedUsers
    rows: I64
    real: npt.NDArray[np.bool_]


def retrieve(
    network: Network,
    data: TrainingData,
    embedded: tuple[Tensor, Tensor],
    together: CoListening,
    users: I64,
    shown: Histories,
    depth: int,
) -> Retrieved:
    """Retrieves candidates: those by co-listening, then the nearest tracks; tracks shown are left out.

    Args:
        network: towers in evaluation mode.
        data: profiles and tracks.
        embedded: retrieval and history vectors of all tracks.
        together: from what was played to candidates, and their share.
        users: (E,) positions.
        shown: the histories that they are encoded from.
        depth: candidates in all, at most the number of tracks.

    Returns:
        The candidates.
    """
    encoded = data.spec.encode_users(data.profiles[users], shown, data.tracks)
    starts = range(0, len(users), 256)
    parts = [embed_users(network, encoded.take(np.arange(i, min(i + 256, len(users)))), embedded[1]) for i in starts]
    user = torch.cat(parts)
    rows, real = _nearest(user, embedded[0], shown, depth)
    for i, brought in enumerate(_by_co_listening(together, encoded, depth)):
        if len(brought):
            union = united([brought], rows[i][real[i]], depth)
            cosines = (embedded[0][tensor(union)] @ user[i]).numpy()
            rows[i, : len(union)] = union[np.argsort(-cosines, kind="stable")]
            real[i] = np.arange(depth) < len(union)
    return Retrieved(user, encoded, rows, real)


@torch.no_grad()
def choose_co_listening(
    network: Network,
    data: TrainingData,
    tensors: Tensors,
    together: CoListening,
    targets: Targets,
    depth: int,
    seed: int,
) -> float:
    """Chooses how much of the depth the candidates by co-listening may take.

    Args:
        network: towers that are finished; left in evaluation mode.
        data: train plays, profiles and tracks.
        tensors: the tracks of `data`.
        together: from what was played to candidates.
        targets: validation plays.
        depth: candidates in all.
        seed: of the draw of users.

    Returns:
        The share, of CO_LISTENING_SHARES.
    """
    network.eval()
    some, depth = sample(targets, seed, MEASURED), min(depth, data.n_tracks)
    shown, nothing = select(data.train, some.users), replace(together, share=np.zeros(1, np.float32))
    near = retrieve(network, data, embed_tracks(network, tensors), nothing, some.users, shown, depth)
    most = replace(together, share=np.array([CO_LISTENING_SHARES[-1]], np.float32))
    found = (
        Found(
            [(brought[: round(share * depth)],) for share in CO_LISTENING_SHARES],
            near.rows[i][near.real[i]],
            some.rows[some.offsets[i] : some.offsets[i + 1]],
            near.encoded.one(i).histories.rows,
        )
        for i, brought in enumerate(_by_co_listening(most, near.encoded, depth))
    )
    [share] = choose_shares((CO_LISTENING_SHARES,), found, depth, CO_LISTENING_WORTH)
    return share


def _by_co_listening(together: CoListening, encoded: EncodedUsers, depth: int) -> Iterable[I64]:
    """Of each user the tracks not heard that co-listening brings."""
    free = np.ones(len(together), np.bool_)
    for i in range(len(encoded.dense)):
        one = encoded.one(i)
        free[one.histories.rows] = False
        yield together.candidates(one.histories.rows, one.entry, free.take, depth)
        free[one.histories.rows] = True


def _nearest(user: Tensor, vectors: Tensor, shown: Histories, depth: int) -> tuple[I64, npt.NDArray[np.bool_]]:
    """(rows (E, depth), which of them are real) by cosine, without the tracks shown: those get less than any cosine."""
    rows, real = [], []
    for start in range(0, len(user), 256):
        cosines = user[start : start + 256] @ vectors.T
        offsets = shown.offsets[start : start + len(cosines) + 1]
        owner = np.repeat(np.arange(len(cosines)), np.diff(offsets))
        cosines[tensor(owner), tensor(shown.rows[offsets[0] : offsets[-1]])] = -2.0
        best, found = cosines.topk(depth, 1)  # of equal ones any: the head learns from a set
        rows.append(found.numpy())
        real.append((best > -1.5).numpy())
    return np.concatenate(rows), np.concatenate(real)
