"""Training the prediction head: on what the towers retrieve for held-out plays, never on plays they have learnt.

The towers know the train plays by heart, so a head trained on them would learn to trust the towers too much. The
head is fitted on the validation fold instead: each user with their whole train history, the validation plays as
targets, to order what is retrieved and some random tracks, by a loss on NDCG. How long its deep part trains and how
much it counts is chosen by cross-fitting: every third of the users is ranked by a head that has not seen them, and
the figures reported for the cascade are of those. Where even the signals alone do not help, the retrieval order
stays. Without validation plays, hidden train plays stand in for them.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lhydra.bundle.model import Chosen
from lhydra.domain import I64
from lhydra.evaluation.metrics import rank_metrics
from lhydra.features.co_listening import CoListening
from lhydra.timing import timed
from lhydra.training.calibration import fit_calibration
from lhydra.training.candidates import choose_co_listening
from lhydra.training.config import TrainSettings
from lhydra.training.content import RARE, Tried, hits, most_rare
from lhydra.training.data import TrainingData
from lhydra.training.examples import Examples, gather, held_out
from lhydra.training.losses import lambda_loss
from lhydra.training.model import Head, Network
from lhydra.training.progress import HeadPart, Report, unreported
from lhydra.training.step import Tensors, tensor
from lhydra.training.teachers import Table
from lhydra.training.validate import REPORTED_METRICS, best_first, embed_tracks, measured, worth

CROSS_FIT_PARTS = 3
DEEP_BATCH = 32
GATE_STEPS, GATE_BATCH, GATE_RATE, GATE_DECAY = 60, 512, 0.1, 0.01
WARM_STEPS = 15  # of a gate that goes on from an earlier one
GATE_START = (0.0, 0.0, 4.0, 0.0)  # beside the scaled cosine: popularity, co-listening of all and recent plays
STRENGTHS = (0.25, 0.5, 1.0)
LIFTS = (0.0, 0.05, 0.1, 0.15)  # of the scale: what a track without listeners may be worth beyond what the loss says
LIST_LENGTH = 20  # tracks of a list that is measured
ROOM = 0.99  # of the best in all, for a lift that brings more rare targets
RETRIEVAL_ORDER = -1.0  # stands for the retrieval order among the strengths
UNMEASURED_STRENGTH = 0.25


@dataclass(frozen=True)
class Fitted:
    """The head's settings and the cross-fitted metrics of the cascade; no metrics without validation plays.

    share: of the candidates, for those by co-listening.
    """

    epochs: int
    strength: float
    cascade: dict[str, float]
    share: float = 0.0


@dataclass(frozen=True)
class _Trainer:
    """Fits copies of `start`, one after the other, from the random streams of the whole fitting."""

    start: Head
    examples: Examples
    vectors: Tensor  # (n, D) of all tracks
    tensors: Tensors
    config: TrainSettings
    rng: np.random.Generator
    steps: int  # of the gate

    def stages(self, users: I64, epochs: int) -> Iterator[Head]:
        """Yields one new head, fitted on the examples `users`: first its gate, then every epoch of its deep part."""
        head, config = copy.deepcopy(self.start), self.config
        _fit_gate(head, self.examples, users, self.rng, self.steps)
        yield head
        linear = {id(parameter) for parameter in head.linear()}
        deep = [parameter for parameter in head.parameters() if id(parameter) not in linear]
        optimizer = torch.optim.AdamW(deep, lr=config.head_learning_rate, weight_decay=config.head_weight_decay)
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                group["lr"] = config.head_learning_rate * (1 - epoch / max(config.head_epochs, 1))
            _deep_epoch(head, optimizer, self.examples, self.vectors, self.tensors, users, self.rng)
            yield head


@dataclass(frozen=True)
class _CrossFit:
    """What heads gave for the users that they were not fitted on.

    part: (E,) of each user. heads: by part, one per epoch, the first with its gate alone. lists: (E, 20) rows by
    (epoch, strength), -1 where a list ends.
    """

    part: I64
    heads: dict[int, list[Head]]
    lists: dict[tuple[int, float], I64]


@timed("train.head")
def fit(
    network: Network,
    data: TrainingData,
    tensors: Tensors,
    table: Table,
    config: TrainSettings,
    report: Report = unreported,
    like: Chosen | None = None,
    share: float | None = None,
) -> Fitted:
    """Trains the head and its calibration in place, and returns how.

    Args:
        network: towers that are finished, and a head that nobody has fitted, or only its gate, on earlier plays.
        data: what the towers were trained on, and the validation plays.
        tensors: the tracks of `data`.
        table: the co-listening table that the head's signals come from.
        config: settings of the training.
        report: told about every part of the cross-fitting.
        like: epochs and strength of a training before; beside them the orders of retrieval and gate alone are tried.
        share: of the candidates, for those by co-listening; None chooses it on the validation plays.

    Returns:
        The settings that cross-fitting chose. The calibration is fitted on the logits of the cross-fitted heads, and
        stays as it was where there were too few validation users for any.
    """
    rng = np.random.default_rng([config.seed, 5])
    torch.manual_seed(config.seed * 1_000_003)
    network.head.few.copy_(tensors.popularity(torch.tensor(RARE + 1.0)))
    targets, shown = held_out(data, config, rng)
    together = CoListening.of(table.neighbours, table.weights, share or 0.0)
    if share is None and len(data.valid.users):  # hidden train plays would not do: the table knows them by heart
        share = choose_co_listening(network, data, tensors, together, targets, config.depth, config.seed)
        together = replace(together, share=np.array([share], np.float32))
    examples = gather(network, data, tensors, table, together, targets, shown, config.depth, rng)
    start, by_retrieval = copy.deepcopy(network.head), copy.deepcopy(network.head)
    warm = bool(start.gate.bias.any())
    with torch.no_grad():
        for parameter in (by_retrieval.lift, *by_retrieval.gate.parameters()):
            parameter.zero_()
        if not warm:
            start.gate.bias.copy_(torch.tensor(GATE_START))
    steps = WARM_STEPS if warm else GATE_STEPS
    trainer = _Trainer(start, examples, embed_tracks(network, tensors)[0], tensors, config, rng, steps)
    crossed = _cross_fit(trainer, report, like) if len(data.valid.users) >= CROSS_FIT_PARTS else None
    fitted = Fitted(min(1, config.head_epochs), UNMEASURED_STRENGTH, {}, share or 0.0)
    if crossed:
        means = {
            key: rank_metrics(found, targets.offsets, targets.rows, data.n_tracks).means()
            for key, found in crossed.lists.items()
        }
        (epochs, strength), best = max(means.items(), key=lambda item: (worth(item[1]), -item[0][0]))
        reported = {name: round(best[name], 6) for name in REPORTED_METRICS}
        fitted = replace(fitted, epochs=epochs, strength=strength, cascade=reported)
    if fitted.strength == RETRIEVAL_ORDER:
        network.head = by_retrieval
        fitted = replace(fitted, strength=0.0)
        unseen, part = {0: by_retrieval}, np.zeros(len(examples), np.int64)
    else:
        *_, network.head = trainer.stages(np.arange(len(examples)), fitted.epochs)
        unseen = {number: stages[fitted.epochs] for number, stages in crossed.heads.items()} if crossed else {}
        part = crossed.part if crossed else np.empty(0, np.int64)
    for head in (network.head, *unseen.values()):
        head.strength.fill_(fitted.strength)
    if unseen and by_retrieval is not network.head:
        lifts = (*(-lift for lift in LIFTS[:0:-1]), *LIFTS) if warm else LIFTS  # else each training would lift further
        fitted = replace(fitted, cascade=_lift_rare(trainer, unseen, part, network.head, data, lifts))
    if unseen:
        calibration = fit_calibration(network, data, tensors, table, targets, unseen, part, config.seed)
        network.head.calibration.copy_(torch.tensor(calibration))
    return fitted


def _cross_fit(trainer: _Trainer, report: Report, like: Chosen | None) -> _CrossFit:
    """Fits a head on all users but each part in turn, and ranks that part's."""
    examples, everybody = trainer.examples, np.arange(len(trainer.examples))
    fold = trainer.rng.integers(0, CROSS_FIT_PARTS, len(examples))
    if len(np.unique(fold)) == 1:  # three users in one part, by chance
        fold = np.arange(len(examples)) % CROSS_FIT_PARTS
    best = np.where(examples.excluded, -1, examples.rows)[:, : min(LIST_LENGTH, examples.retrieved)]
    crossed = _CrossFit(fold, {}, {(0, RETRIEVAL_ORDER): best})
    epochs = trainer.config.head_epochs if like is None else min(like["head epochs"], trainer.config.head_epochs)
    for part in range(CROSS_FIT_PARTS):
        held = everybody[fold == part]
        report(HeadPart(part=part + 1, parts=CROSS_FIT_PARTS))
        if not len(held):
            continue
        crossed.heads[part] = []
        for epoch, head in enumerate(trainer.stages(everybody[fold != part], epochs)):
            crossed.heads[part].append(copy.deepcopy(head))
            strengths = (0.0,) if not epoch else STRENGTHS if like is None else (like["head strength"],)
            if like is not None and 0 < epoch < epochs:
                continue
            for strength, ranked in _ranked(head, examples, trainer.vectors, trainer.tensors, held, strengths).items():
                whole = crossed.lists.setdefault((epoch, strength), np.full((len(examples), LIST_LENGTH), -1, np.int64))
                whole[held, : len(ranked[0])] = np.stack(ranked)
    return crossed


@torch.no_grad()
def _lift_rare(
    trainer: _Trainer, unseen: dict[int, Head], part: I64, whole: Head, data: TrainingData, lifts: Sequence[float]
) -> dict[str, float]:
    """Lifts rare tracks in all heads: a loss on whole lists hears too little of them, as few targets are rare.

    Of the lifts that are near the best in all, the one whose lists hold the most rare targets; returns its metrics.
    """
    examples, targets = trainer.examples, trainer.examples.targets
    own = {head: float(head.lift) for head in (whole, *unseen.values())}
    tried: dict[float, Tried] = {}
    for lift in lifts:
        lists = np.full((len(examples), LIST_LENGTH), -1, np.int64)
        for number, head in unseen.items():
            head.lift.fill_(own[head] + lift * float(head.scale))
            held, strength = np.flatnonzero(part == number), float(head.strength)
            ranked = _ranked(head, examples, trainer.vectors, trainer.tensors, held, (strength,))[strength]
            lists[held, : len(ranked[0])] = np.stack(ranked)
        tried[lift] = measured(lists, data, targets), *hits(lists, data, targets)
    chosen = most_rare(tried, ROOM)
    for head, before in own.items():
        head.lift.fill_(before + chosen * float(head.scale))
    return tried[chosen][0]


def _fit_gate(head: Head, examples: Examples, users: I64, rng: np.random.Generator, steps: int) -> None:
    """Fits scale and gate, whatever the deep part, to the order of the candidates of `users`."""
    optimizer = torch.optim.Adam(head.linear(), lr=GATE_RATE)
    for _ in range(steps):
        at = tensor(rng.permutation(users)[:GATE_BATCH])
        optimizer.zero_grad()
        signals = examples.signals[at]
        logits = head.weighted(examples.dense[at], signals, head.rarity(signals[:, :, 1]))
        loss = lambda_loss(logits, examples.labels[at], examples.excluded[at], examples.wanted[at])
        (loss + GATE_DECAY * head.gate.weight.square().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _deep_epoch(
    head: Head,
    optimizer: torch.optim.Optimizer,
    examples: Examples,
    vectors: Tensor,
    tensors: Tensors,
    users: I64,
    rng: np.random.Generator,
) -> None:
    head.train()
    order = rng.permutation(users)
    for start in range(0, len(order), DEEP_BATCH):
        at = tensor(order[start : start + DEEP_BATCH])
        base, deep = _parts(head, examples, vectors, tensors, at)
        optimizer.zero_grad(set_to_none=True)
        logits = base.detach() + deep
        loss = lambda_loss(logits, examples.labels[at], examples.excluded[at], examples.wanted[at])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    head.eval()


@torch.no_grad()
def _ranked(
    head: Head, examples: Examples, vectors: Tensor, tensors: Tensors, users: I64, strengths: tuple[float, ...]
) -> dict[float, list[I64]]:
    """The best LIST_LENGTH of the retrieved candidates of each of `users`, by strength of the deep part."""
    head.eval()
    found: dict[float, list[I64]] = {strength: [] for strength in strengths}
    for start in range(0, len(users), 128):
        at = tensor(users[start : start + 128])
        base, deep = _parts(head, examples, vectors, tensors, at, with_deep=strengths != (0.0,))
        out = examples.excluded[at].clone()
        out[:, examples.retrieved :] = True
        rows, by_row = examples.rows[at].sort(1)  # the order of equal logits
        for strength, lists in found.items():
            logits = (base + strength * deep).masked_fill(out, float("-inf")).gather(1, by_row)
            logits, order = best_first(logits, min(LIST_LENGTH, out.shape[1]))
            lists.extend(rows.gather(1, order).masked_fill(logits == float("-inf"), -1).numpy())
    return found


def _parts(
    head: Head, examples: Examples, vectors: Tensor, tensors: Tensors, at: Tensor, with_deep: bool = True
) -> tuple[Tensor, Tensor]:
    rows, signals = examples.rows[at], examples.signals[at]
    if not with_deep:
        base = head.weighted(examples.dense[at], signals, head.rarity(signals[:, :, 1]))
        return base, torch.zeros_like(base)
    return head.parts(
        examples.user[at],
        examples.dense[at],
        examples.ids[at],
        vectors[rows],
        tensors.dense[rows],
        tensors.ids[rows],
        signals[:, :, 1],
        signals[:, :, 2:],
    )
