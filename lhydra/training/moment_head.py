"""What comes next: the part of the head that ranks all tracks at a moment, heard or not.

Its inputs are the logit of the rest of the head and the signals of `lhydra.features.moment`. It is fitted on moments
of the validation fold (`lhydra.training.moments`), to order what all sources of candidates give.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lhydra.data.dataset import TRAIN, Dataset
from lhydra.domain import I64
from lhydra.evaluation.metrics import rank_metrics
from lhydra.features import item_item
from lhydra.features.histories import EncodedUsers, Histories, offsets_of
from lhydra.features.listening import Listening
from lhydra.features.moment import CONTEXT, SIGNALS, Moment
from lhydra.features.sequences import Sequences
from lhydra.timing import timed
from lhydra.training.calibration import platt_at, plays_and_others
from lhydra.training.candidates import MEASURED, Found, choose_shares, united
from lhydra.training.config import TrainSettings
from lhydra.training.content import ROOM, hits, most_rare
from lhydra.training.data import Targets, TrainingData
from lhydra.training.losses import listwise_loss
from lhydra.training.model import Network
from lhydra.training.moment_network import MomentHead
from lhydra.training.moments import MIN_MOMENTS, Asked, find, listenings, sequences_of
from lhydra.training.progress import MomentsFitted, Report, unreported
from lhydra.training.step import Tensors, embed_users, tensor
from lhydra.training.teachers import Table
from lhydra.training.validate import embed_tracks, measured

F64 = npt.NDArray[np.float64]
RANDOM_TRACKS = 8  # of each moment, beside what the sources bring
BATCH, RATE, DECAY = 64, 3e-3, 1e-3
EPOCHS = 10  # more of them fit the users of the fold better, and later sessions worse
WARM_MOMENTS, WARM_EPOCHS, WARM_RATE = 1_000, 3, 0.5  # of a part that goes on from an earlier one; a share of the rate
JOINED_WORTH = 1.02  # sessions are joined where what follows then ranks better by this factor
AFTER_MANY = SIGNALS.index("after many")  # the signal that ranks what follows
LIST = 20  # tracks of such a ranking
LIFTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of a logit: what a track without listeners may be worth more
LEAST_JUDGED = 100  # moments that tell a level: its pairs share one context, so fewer fit it to themselves
MOST_PAIRS = 32  # of a moment: a long session says little more of its level than a short one
LEVELLED = np.array([name != "away" for name in CONTEXT])  # users are away for longer when served than in most logs
RARITY, HEARD = MomentHead.PAIR - 1, MomentHead.PAIR  # inputs of the part
SHARES = ((0.0, 0.15, 0.3), (0.0, 0.15, 0.3, 0.45), (0.0, 0.1, 0.2))  # of the depth, to choose from for each source


@dataclass(frozen=True)
class InTime:
    """What the part for moments needs beside its weights.

    sequences: what goes with what in time. joined: whether all sessions of a user count as one there.
    """

    sequences: Sequences
    joined: bool


@dataclass(frozen=True)
class Prepared:
    """What the part for moments sees, padded to the most candidates C.

    inputs: (q, C, i) and context: (q, c), both scaled. wanted: (q, C) weights of targets.
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
    shares: tuple[float, ...] | None = None,
    before: MomentHead | None = None,
    joined: bool = False,
) -> InTime | None:
    """Fits the part of the head for moments in place, and its calibration.

    Args:
        network: towers and the rest of the head, finished.
        dataset: its single plays of the validation fold are what is learnt from.
        data: profiles and tracks.
        tensors: the tracks of `data`.
        table: the co-listening table.
        config: settings of the training.
        report: told what came out.
        shares: of the depth for each source, to take instead of choosing.
        before: a part fitted on earlier moments, to go on from; then nothing is measured, as it may know these users.
        joined: whether sessions are joined, where `shares` are given; else that is chosen too.

    Returns:
        What the part needs beside its weights; None where there is nothing to learn from, and the head stays as it is.
    """
    asked = find(dataset, config.moments if before is None else min(config.moments, WARM_MOMENTS), config.seed)
    if asked is None:
        return None
    network.eval()
    known = listenings(dataset, asked)
    depth = min(config.depth, data.n_tracks)
    encoded, vectors, track_vectors = _encoded(network, data, tensors, asked, known)
    nearest = _nearest(vectors, track_vectors, depth)
    if shares is None:
        apart, together = (_follows(dataset, data, asked, known, whether) for whether in (False, True))
        joined = together > apart * JOINED_WORTH
    sequences = sequences_of(dataset, data, TRAIN, joined)
    moments = [Moment(one, sequences) for one in known]
    if shares is None:
        shares = _best_shares(moments, known, nearest, asked, depth, config.seed)
    rng = np.random.default_rng([config.seed, 12])
    rows = []
    for moment, near in zip(moments, nearest, strict=True):
        union = united(moment.candidates(shares, depth), near, depth)
        rows.append(np.concatenate([union, np.setdiff1d(rng.integers(0, data.n_tracks, RANDOM_TRACKS), union)]))
    inputs = _inputs(network, tensors, table, moments, rows, encoded, vectors, track_vectors)
    lengths, width = np.array([len(own) for own in rows])[:, None], max(len(own) for own in rows)
    real = np.arange(width) < lengths
    random = real & (np.arange(width) >= np.minimum(depth, lengths - 1))
    wanted = np.zeros(real.shape, np.float32)
    for i, (own, targets) in enumerate(zip(rows, asked.targets, strict=True)):
        _, at, place = np.intersect1d(own, targets, assume_unique=True, return_indices=True)
        wanted[i, at] = (1.0 + place) ** -0.5
    context = tensor(np.stack([one.context() for one in moments]))
    fitted = MomentHead.fitted_to(inputs, tensor(real), context)
    part = fitted if before is None else before.reopened(fitted)
    sizes = np.array([len(targets) for targets in asked.targets])
    about, padding = part.about(context), (tensor(wanted), tensor(real), tensor(random))
    prepared = Prepared(part.scaled(inputs), about, *padding, tensor(sizes), asked.user)
    every, users = np.arange(len(asked)), np.random.default_rng([config.seed, 15]).permutation(np.unique(asked.user))
    out = np.flatnonzero(np.isin(asked.user, users[: len(users) // 3]))
    both = np.setdiff1d(every, out)
    others = _trained(part, prepared, both, config.seed, before is not None)
    part = _trained(part, prepared, every, config.seed, before is not None) if len(out) else others
    ndcg, lift = _held_out(others, prepared, out, rows, asked, known, data) if before is None else (0.0, 0.0)
    for one in {others, part}:
        one.linear.weight[0, RARITY] += lift * one.spread[RARITY]
    judged = out if len(out) else every
    pairs = _pairs([asked.targets[i] for i in judged], [known[i].rows for i in judged], data.n_tracks, rng)
    of_judged = [moments[i] for i in judged], [pair.ravel() for pair in pairs], encoded.take(judged)
    paired = _inputs(network, tensors, table, *of_judged, vectors[tensor(judged)], track_vectors)
    _calibrate(part, others, prepared, both, paired, judged, np.array([pair.shape[1] for pair in pairs]))
    network.head.moments = part
    epochs = EPOCHS if before is None else WARM_EPOCHS
    report(MomentsFitted(moments=len(asked), epochs=epochs, ndcg=ndcg, shares=shares, joined=joined))
    return InTime(replace(sequences, shares=np.array(shares, np.float32)), joined)


def _follows(dataset: Dataset, data: TrainingData, asked: Asked, known: Sequence[Listening], joined: bool) -> float:
    """NDCG@10 of the moments, by what follows the last plays alone."""
    sequences = sequences_of(dataset, data, TRAIN, joined)
    if not len(sequences.rows):
        return 0.0
    lists = np.full((len(asked), LIST), -1, np.int64)
    for i, one in enumerate(known):
        moment = Moment(one, sequences)
        _, following, _ = moment.candidates((0.0, 1.0, 0.0), 2 * LIST, repeats=False)
        rows = np.unique(following)
        best = rows[np.argsort(-moment.signals(rows)[:, AFTER_MANY], kind="stable")][:LIST]
        lists[i, : len(best)] = best
    offsets = offsets_of(np.array([len(one) for one in asked.targets]))
    targets = np.concatenate([np.sort(one) for one in asked.targets])
    return rank_metrics(lists, offsets, targets, data.n_tracks).means()["ndcg@10"]


def _best_shares(
    moments: Sequence[Moment], known: Sequence[Listening], nearest: I64, asked: Asked, depth: int, seed: int
) -> tuple[float, ...]:
    """How the sources share the depth where the union finds most targets of some moments."""
    levels = list(itertools.zip_longest(*SHARES, fillvalue=0.0))
    chosen = np.random.default_rng([seed, 13]).permutation(len(asked))[:MEASURED].tolist()
    brought = ([moments[i].candidates(one, depth) for one in levels] for i in chosen)
    found = (Found(own, nearest[i], asked.targets[i], known[i].rows) for own, i in zip(brought, chosen, strict=True))
    return choose_shares(SHARES, found, depth)


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


def _inputs(
    network: Network,
    tensors: Tensors,
    table: Table,
    moments: Sequence[Moment],
    rows: Sequence[I64],
    encoded: EncodedUsers,
    vectors: Tensor,
    track_vectors: Tensor,
) -> Tensor:
    """(q, C, i) what `MomentHead` is given for the candidates `rows` of each moment, padded by zeros."""
    inputs = torch.zeros(len(rows), max(len(own) for own in rows), MomentHead.PAIR + len(SIGNALS))
    popularity = tensors.popularity(tensors.listeners)
    for start in range(0, len(rows), BATCH):
        chosen = range(start, min(start + BATCH, len(rows)))
        width = max(len(rows[i]) for i in chosen)
        own, together = np.zeros((len(chosen), width), np.int64), np.zeros((len(chosen), width, 2), np.float32)
        for n, i in enumerate(chosen):
            m, one = len(rows[i]), encoded.one(i)
            own[n, :m] = rows[i]
            histories = one.histories.rows
            together[n, :m] = item_item.scores(table.neighbours, table.weights, histories, one.entry, rows[i])
            inputs[i, :m, MomentHead.PAIR :] = tensor(moments[i].signals(rows[i]))
        users, at = encoded.take(np.array(chosen)), tensor(own)
        of_user = vectors[start : start + BATCH], tensor(users.dense), tensor(users.ids)
        of_tracks = track_vectors[at], tensors.dense[at], tensors.ids[at], popularity[at]
        base, deep = network.head.parts(*of_user, *of_tracks, tensor(together))
        cosines = (of_tracks[0] @ of_user[0].unsqueeze(2)).squeeze(2)
        logit, listened = base + network.head.strength * deep, popularity[at]
        pair = torch.stack([logit, cosines, listened, network.head.rarity(listened)], 2)
        inputs[start : start + BATCH, :width, : MomentHead.PAIR] = pair
    return inputs


def _nearest(vectors: Tensor, tracks: Tensor, depth: int) -> I64:
    return np.concatenate(
        [(vectors[i : i + 128] @ tracks.T).topk(depth, 1)[1].numpy() for i in range(0, len(vectors), 128)]
    )


def _trained(part: MomentHead, prepared: Prepared, chosen: I64, seed: int, warm: bool = False) -> MomentHead:
    """Fits a part like `part`, which stays as it is, on some moments; warm: from its weights."""
    rng = np.random.default_rng([seed, 14])
    torch.manual_seed(seed * 1_000_003 + 7)
    begun = MomentHead(part.mean, part.spread, part.context_mean, part.context_spread)
    if warm:
        begun.load_state_dict(part.state_dict())
    part, epochs, rate = begun, WARM_EPOCHS if warm else EPOCHS, RATE * (WARM_RATE if warm else 1)
    some = chosen[(prepared.wanted[tensor(chosen)].sum(1) > 0).numpy()]
    optimizer = torch.optim.AdamW(part.parameters(), lr=RATE, weight_decay=DECAY)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - epoch / epochs)
        order = rng.permutation(some)
        for start in range(0, len(order), BATCH):
            at = tensor(order[start : start + BATCH])
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                logits = part.logits(prepared.inputs[at], prepared.context[at])
                loss = listwise_loss(logits, prepared.wanted[at], prepared.real[at])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return part.eval()


def _held_out(
    one: MomentHead,
    prepared: Prepared,
    out: I64,
    rows: Sequence[I64],
    asked: Asked,
    known: Sequence[Listening],
    data: TrainingData,
) -> tuple[float, float]:
    """NDCG@10 of the moments `out` by a part that was fitted on other users, and how far it lifts rare tracks.

    Few targets are rare, so the loss hears little of them; `lhydra.training.content` has the rule. Nothing of one user.
    """
    if not len(out):
        return 0.0, 0.0
    at = tensor(out)
    logits = one.logits(prepared.inputs[at], prepared.context[at])
    rarity, heard = (prepared.inputs[at][..., i] * one.spread[i] + one.mean[i] for i in (RARITY, HEARD))
    listed = prepared.real[at] & ~prepared.random[at] & (heard < 0.5)  # 0 or 1, but for rounding
    unheard = [np.setdiff1d(asked.targets[i], known[i].rows) for i in out.tolist()]
    some = np.flatnonzero([len(own) for own in unheard])
    if not len(some):
        return _ndcg(logits, prepared, at), 0.0
    offsets = offsets_of(np.array([len(unheard[n]) for n in some]))
    targets = Targets(asked.user[out[some]], offsets, np.concatenate([unheard[n] for n in some]))
    of = tensor(some)
    lift = _rare_lift(logits[of], rarity[of], listed[of], [rows[i] for i in out[some].tolist()], targets, data)
    return _ndcg(logits + lift * rarity, prepared, at), lift


def _rare_lift(
    logits: Tensor, rarity: Tensor, listed: Tensor, rows: Sequence[I64], targets: Targets, data: TrainingData
) -> float:
    """The one of LIFTS whose lists hold the most rare targets; (q, C) of candidates, and their rows for each of q."""
    tried = {}
    for lift in LIFTS:
        logit, place = (logits + lift * rarity).masked_fill(~listed, float("-inf")).topk(min(LIST, logits.shape[1]), 1)
        found = np.full(logit.shape, -1, np.int64)
        for n, own in enumerate(rows):
            some = (logit[n] > float("-inf")).numpy()
            found[n, some] = own[place[n].numpy()[some]]
        tried[lift] = measured(found, data, targets), *hits(found, data, targets)
    return most_rare(tried, ROOM)


def _ndcg(logits: Tensor, prepared: Prepared, at: Tensor, k: int = 10) -> float:
    ranked = logits.masked_fill(~prepared.real[at] | prepared.random[at], float("-inf"))
    listed = ranked.topk(min(k, ranked.shape[1]), 1)[1]
    hits = (prepared.wanted[at].gather(1, listed) > 0).float()
    gain = 1 / torch.log2(torch.arange(2, k + 2).float())
    ideal = torch.cumsum(gain, 0)[prepared.sizes[at].clamp(max=k) - 1]
    return float(((hits * gain[: listed.shape[1]]).sum(1) / ideal).mean())


def _pairs(targets: Sequence[I64], heard: Sequence[I64], n_tracks: int, rng: np.random.Generator) -> list[I64]:
    """(2, p) of each moment, p <= MOST_PAIRS: targets that were not heard before, and as many tracks that are neither.

    A heard track stands so far above others that a scale of both would be too sure of what lists are made of. Where
    hardly a moment has others, they count.
    """
    fresh = [np.setdiff1d(own, before) for own, before in zip(targets, heard, strict=True)]
    is_told = np.count_nonzero([len(own) for own in fresh]) >= min(MIN_MOMENTS, len(targets) / 10)
    every = fresh if is_told else targets
    wanted = [rng.choice(own, MOST_PAIRS, False) if len(own) > MOST_PAIRS else own for own in every]
    return [np.stack(plays_and_others(own, before, n_tracks, rng)) for own, before in zip(wanted, heard, strict=True)]


def _calibrate(
    part: MomentHead, others: MomentHead, prepared: Prepared, both: I64, inputs: Tensor, judged: I64, sizes: I64
) -> None:
    """Fits level and calibration of the part, by moments that the part `others` has not learnt; not without pairs.

    A part is too sure of moments that it has learnt. And how high all candidates of a moment stand is by chance, as the
    loss is blind to it. So the logits of `others` are first brought to where the final part's stand, by least squares
    on the moments `both`, which both have learnt, and what is known of a moment may raise its candidates alike.

    `inputs` (j, 2 * p, i), not scaled, are of the plays and then of the other tracks of the moments `judged`, of which
    each has as many of both as its size.
    """
    place = np.arange(inputs.shape[1])
    real, plays = place < 2 * sizes[:, None], place < sizes[:, None]
    if not real.any():
        return
    inside, about = prepared.real[tensor(both)].numpy(), prepared.context[tensor(both)]
    x, y = (one.logits(prepared.inputs[tensor(both)], about).double().numpy() for one in (others, part))
    stands, *_ = np.linalg.lstsq(_known(x, about, inside), y[inside], rcond=None)
    about = prepared.context[tensor(judged)]
    known = _known(others.logits(others.scaled(inputs), about).double().numpy(), about, real)
    told = LEVELLED & (np.count_nonzero(sizes) >= LEAST_JUDGED)
    a, b, level = platt_at(known @ stands, known[:, 2:] * told, plays[real])
    part.level += tensor(level.astype(np.float32))
    part.calibration.copy_(torch.tensor([a, b]))


def _known(logits: F64, about: Tensor, real: npt.NDArray[np.bool_]) -> F64:
    """(n, 2 + c) of each real candidate: its logit, 1, and what its moment is like."""
    moment = np.nonzero(real)[0]
    return np.column_stack([logits[real], np.ones(len(moment)), about.double().numpy()[moment]])
