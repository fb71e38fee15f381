"""What comes next: the part of the head that ranks all tracks at a moment, heard or not.

Its inputs are the logit of the rest of the head and the signals of `lhydra.features.listening`. It is fitted on moments
of the validation fold (`lhydra.training.moments`), to order what all sources of candidates give.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lhydra.data.dataset import TRAIN, Dataset
from lhydra.domain import I64
from lhydra.features import item_item
from lhydra.features.histories import EncodedUsers, Histories, offsets_of
from lhydra.features.listening import SIGNALS, Listening, Moment
from lhydra.features.sequences import Sequences
from lhydra.timing import timed
from lhydra.training.calibration import platt
from lhydra.training.config import TrainSettings
from lhydra.training.data import TrainingData
from lhydra.training.losses import listwise_loss
from lhydra.training.model import Network
from lhydra.training.moment_network import MomentHead
from lhydra.training.moments import Asked, find, listenings, sequences_of
from lhydra.training.progress import MomentsFitted, Report, unreported
from lhydra.training.step import Tensors, embed_users, tensor
from lhydra.training.teachers import Table
from lhydra.training.validate import embed_tracks

RANDOM_TRACKS = 8  # of each moment, to calibrate the score
BATCH, RATE, DECAY = 64, 3e-3, 1e-3
EPOCHS = (5, 10, 20, 30)  # to choose from
OWN, FOLLOWING, TOGETHER = (
    (0.0, 0.15, 0.3),
    (0.0, 0.15, 0.3, 0.45),
    (0.0, 0.1, 0.2),
)  # shares of the depth to choose from
SHARED = 0.8  # of the depth at most; the nearest vectors have the rest
MEASURED = 600  # moments that the shares are chosen on
WORTH = 1.002  # a larger share must find more by this factor


@dataclass(frozen=True)
class Prepared:
    """What the part for moments sees, padded to the most candidates C.

    inputs: (q, C, inputs) logit, cosine, popularity and signals. context: (q, c). wanted: (q, C) weights of targets.
    real: (q, C) what is no padding. random: (q, C) drawn at random. sizes: (q,) targets of each. user: (q,).
    """

    inputs: Tensor
    context: Tensor
    wanted: Tensor
    real: Tensor
    random: Tensor
    sizes: Tensor
    user: I64


@timed("train.moments")
@torch.no_grad()
def fit(
    network: Network,
    dataset: Dataset,
    data: TrainingData,
    tensors: Tensors,
    table: Table,
    config: TrainSettings,
    report: Report = unreported,
) -> Sequences | None:
    """Fits the part of the head for moments in place, and its calibration.

    Args:
        network: towers and the rest of the head, finished.
        dataset: its single plays of the validation fold are what is learnt from.
        data: profiles and tracks.
        tensors: the tracks of `data`.
        table: the co-listening table.
        config: settings of the training.
        report: told what came out.

    Returns:
        The tables of what goes with what in time, which the part needs; None where there is nothing to learn from, and
        the head stays as it is.
    """
    asked = find(dataset, config.moments, config.seed)
    if asked is None:
        return None
    network.eval()
    sequences = sequences_of(dataset, data, TRAIN)
    known = listenings(dataset, asked)
    moments = [Moment(one, sequences) for one in known]
    depth = min(config.depth, data.n_tracks)
    encoded, vectors, track_vectors = _encoded(network, data, tensors, asked, known)
    nearest = _nearest(vectors, track_vectors, depth)
    shares = choose_shares(asked, known, moments, nearest, depth, config.seed)
    rng = np.random.default_rng([config.seed, 12])
    popularity = tensors.popularity(tensors.listeners).numpy()
    rows: list[I64] = []
    for i, moment in enumerate(moments):
        drawn = rng.integers(0, data.n_tracks, RANDOM_TRACKS)
        union = united(moment.candidates(shares, depth), nearest[i], depth)
        rows.append(np.concatenate([union, np.setdiff1d(drawn, union)]))
    width = max(len(one) for one in rows)
    q = len(asked)
    inputs = np.zeros((q, width, MomentHead.PAIR + len(SIGNALS)), np.float32)
    wanted, real, random = np.zeros((q, width), np.float32), np.zeros((q, width), bool), np.zeros((q, width), bool)
    for i, (own, moment) in enumerate(zip(rows, moments, strict=True)):
        m = len(own)
        real[i, :m] = True
        random[i, min(depth, m - 1) :] = real[i, min(depth, m - 1) :]
        inputs[i, :m, MomentHead.PAIR :] = moment.signals(own)
        place = {int(track): n for n, track in enumerate(asked.targets[i])}
        wanted[i, :m] = [place.get(int(row), -1) for row in own]
        one = encoded.one(i)
        together = item_item.scores(table.neighbours, table.weights, one.histories.rows, one.entry, own)
        at = tensor(own)[None]
        of_tracks = track_vectors[at], tensors.dense[at], tensors.ids[at], tensor(popularity[own])[None]
        of_user = vectors[i : i + 1], tensor(one.dense), tensor(one.ids)
        base, deep = network.head.parts(*of_user, *of_tracks, tensor(together)[None])
        inputs[i, :m, 0] = (base + network.head.strength * deep)[0].numpy()
        inputs[i, :m, 1] = (track_vectors[at[0]] @ vectors[i]).numpy()
        inputs[i, :m, 2] = popularity[own]
    wanted = np.where(wanted >= 0, (1.0 + np.maximum(wanted, 0)) ** -0.5, 0) * real
    sizes = np.array([len(targets) for targets in asked.targets])
    context = np.stack([moment.context() for moment in moments])
    weights = tensor(wanted.astype(np.float32))
    prepared = Prepared(
        tensor(inputs), tensor(context), weights, tensor(real), tensor(random), tensor(sizes), asked.user
    )
    epochs, ndcg = _choose_epochs(prepared, config)
    part = _trained(prepared, np.arange(q), epochs, config.seed)
    logits = torch.cat([part(prepared.inputs[i : i + 256], prepared.context[i : i + 256]) for i in range(0, q, 256)])
    calibration = _calibrated(logits, prepared)
    network.head.moments = part
    if calibration is not None:
        part.calibration.copy_(torch.tensor(calibration))
    report(MomentsFitted(moments=q, epochs=epochs, ndcg=ndcg, shares=shares))
    return replace(sequences, shares=np.array(shares, np.float32))


def _encoded(
    network: Network, data: TrainingData, tensors: Tensors, asked: Asked, known: Sequence[Listening]
) -> tuple[EncodedUsers, Tensor, Tensor]:
    """The users at the moments: encoded, their vectors, and the vectors of all tracks."""
    offsets = offsets_of(np.array([len(one.rows) for one in known]))
    rows, counts, times = (np.concatenate([getattr(one, name) for one in known]) for name in ("rows", "counts", "last"))
    encoded = data.spec.encode_users(data.profiles[asked.user], Histories(offsets, rows, counts, times), data.tracks)
    track_vectors, history = embed_tracks(network, tensors)
    vectors = torch.cat(
        [
            embed_users(network, encoded.take(np.arange(start, min(start + 256, len(asked)))), history)
            for start in range(0, len(asked), 256)
        ]
    )
    return encoded, vectors, track_vectors


def _nearest(vectors: Tensor, tracks: Tensor, depth: int) -> I64:
    return np.concatenate(
        [(vectors[i : i + 128] @ tracks.T).topk(depth, 1)[1].numpy() for i in range(0, len(vectors), 128)]
    )


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
    asked: Asked, known: Sequence[Listening], moments: Sequence[Moment], nearest: I64, depth: int, seed: int
) -> tuple[float, float, float]:
    """Shares the depth out among the sources by what each adds: the targets found, with and without repeats.

    Args:
        asked: the moments.
        known: of each.
        moments: of each.
        nearest: (q, depth) rows.
        depth: candidates in all.
        seed: of the draw.

    Returns:
        A share of the depth for each of SOURCES; the nearest vectors have the rest.
    """
    chosen = np.random.default_rng([seed, 13]).permutation(len(asked))[:MEASURED]
    best, found = (0.0, 0.0, 0.0), -1.0
    for shares in itertools.product(OWN, FOLLOWING, TOGETHER):
        if sum(shares) > SHARED:
            continue
        hits = 0.0
        for i in chosen:
            targets, heard = asked.targets[i], known[i].rows
            own, following, together = moments[i].candidates(shares, depth)
            everything = united((own, following, together), nearest[i], depth)
            hits += np.isin(targets, everything).sum() / len(targets)
            fresh = targets[~np.isin(targets, heard)]
            if len(fresh):
                unheard = nearest[i][~np.isin(nearest[i], heard)]
                new = united([one[~np.isin(one, heard)] for one in (following, together)], unheard, depth)
                hits += np.isin(fresh, new).sum() / len(fresh)
        if hits > found * WORTH:
            best, found = shares, hits
    return best


def _trained(prepared: Prepared, chosen: I64, epochs: int, seed: int) -> MomentHead:
    """Fits a part on some moments."""
    rng, at = np.random.default_rng([seed, 14]), tensor(chosen)
    torch.manual_seed(seed * 1_000_003 + 7)
    part = MomentHead.fitted_to(prepared.inputs[at][prepared.real[at]], prepared.context[at])
    some = chosen[(prepared.wanted[at].sum(1) > 0).numpy()]
    optimizer = torch.optim.AdamW(part.parameters(), lr=RATE, weight_decay=DECAY)
    with torch.enable_grad():
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - epoch / epochs)
            order = rng.permutation(some)
            for start in range(0, len(order), BATCH):
                at = tensor(order[start : start + BATCH])
                optimizer.zero_grad(set_to_none=True)
                logits = part(prepared.inputs[at], prepared.context[at])
                loss = listwise_loss(logits, prepared.wanted[at], prepared.real[at])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return part.eval()


def _choose_epochs(prepared: Prepared, config: TrainSettings) -> tuple[int, float]:
    """The number of epochs with the best NDCG@10 for a third of the users that were not learnt from, and that NDCG."""
    held = np.random.default_rng([config.seed, 15]).permutation(np.unique(prepared.user))
    out = np.isin(prepared.user, held[: max(len(held) // 3, 1)])
    inside, outside = np.flatnonzero(~out), np.flatnonzero(out)
    if not len(inside) or not len(outside):
        return EPOCHS[1], 0.0
    best = (EPOCHS[1], -1.0)
    for epochs in EPOCHS:
        part = _trained(prepared, inside, epochs, config.seed)
        at = tensor(outside)
        value = _ndcg(part(prepared.inputs[at], prepared.context[at]), prepared, at)
        if value > best[1]:
            best = (epochs, value)
    return best


def _ndcg(logits: Tensor, prepared: Prepared, at: Tensor, k: int = 10) -> float:
    listed = logits.masked_fill(~prepared.real[at] | prepared.random[at], float("-inf")).topk(k, 1)[1]
    hits = (prepared.wanted[at].gather(1, listed) > 0).float()
    gain = 1 / torch.log2(torch.arange(2, k + 2).float())
    ideal = torch.cumsum(gain, 0)[prepared.sizes[at].clamp(max=k) - 1]
    return float(((hits * gain).sum(1) / ideal).mean())


def _calibrated(logits: Tensor, prepared: Prepared) -> tuple[float, float] | None:
    """Platt scaling of targets found and as many random tracks; None where there are none."""
    positive = logits[(prepared.wanted > 0) & ~prepared.random].numpy()
    negative = logits[prepared.random & (prepared.wanted == 0)].numpy()
    if not len(positive) or not len(negative):
        return None
    some = min(len(positive), len(negative))
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.permutation(positive)[:some], rng.permutation(negative)[:some]]).astype(np.float64)
    return platt(values, np.arange(2 * some) < some)
