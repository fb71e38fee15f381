"""Training, top to bottom: load, fit the teachers, fit the towers with early stopping, fit the head, export."""

import json
import logging
import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from lhydra import files
from lhydra.bundle.catalog_writer import fitted_users
from lhydra.bundle.model import FITTED, REFITTED, Chosen, ModelInfo, Parents, Quality
from lhydra.data.dataset import TEST, TRAIN, VALID, Dataset, Plays
from lhydra.domain import I64
from lhydra.errors import ModelError, complain
from lhydra.features.histories import HISTORY_FEATURES
from lhydra.timing import timed
from lhydra.training import checkpoint, content, device, moment_head, moments, patience, ranks
from lhydra.training import head as heads
from lhydra.training import teachers as teaching
from lhydra.training import warm as warmed
from lhydra.training.ahead import ahead
from lhydra.training.checkpoint import State
from lhydra.training.config import TrainSettings
from lhydra.training.data import TrainingData, load
from lhydra.training.export import export
from lhydra.training.model import Network
from lhydra.training.optimizer import RowwiseAdamW, schedule
from lhydra.training.progress import EpochDone, HeadFitted, Progress, RefitDone, Report, TemperatureTried, unreported
from lhydra.training.shape import Shape
from lhydra.training.step import Batch, Tensors, losses, prepare, tensor
from lhydra.training.teachers import Teachers
from lhydra.training.validate import sample, validate, worth
from lhydra.training.warm import Parent

_log = logging.getLogger(__name__)

TEMPERATURES = (0.07, 0.1, 0.15)  # tried, by short runs, when the setting is 0
UNMEASURED_TEMPERATURE = 0.1  # where there is no validation fold to tune on
REFIT_EPOCHS, REFIT_RATE = 0.25, 0.2  # shares of the epochs and of the peak learning rate


@dataclass(frozen=True)
class Run:
    """Everything that stays the same during one training."""

    data: TrainingData
    tensors: Tensors
    teachers: Teachers
    config: TrainSettings
    users: I64  # with train plays
    batch_size: int  # of all processes together
    rank: int = 0
    processes: int = 1
    device: str = "cpu"  # of the towers; all else is on the CPU

    @cached_property
    def placed(self) -> Tensors:
        """The tracks where the towers are."""
        return self.tensors.to(self.device)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.users) / self.batch_size)


@timed("train")
def train(
    dataset: Dataset,
    out: Path,
    config: TrainSettings,
    *,
    resume: bool = False,
    refit: bool = False,
    folds: int = 0,
    warm: Path | None = None,
    report: Report = unreported,
) -> ModelInfo:
    """Trains on `dataset` and writes a model folder. Under torchrun only rank 0 writes.

    Args:
        dataset: with plays in the train fold.
        out: the model folder, new or made by a training before.
        config: settings of the training.
        resume: continue from the last whole epoch in `out`, to the same result as an uninterrupted run: every epoch
            draws from random streams of its own.
        refit: let the finished towers go on for a quarter of a cycle with the validation plays among the train
            plays; the head stays.
        folds: first cut the train and validation plays into that many parts at random, and validate on each a model
            of the others; 0 for none.
        warm: a model trained before, whose towers and settings to go on from; not with `folds`.
        report: told about every epoch and everything tried.

    Returns:
        What model.json says; under torchrun only rank 0's means anything.

    Raises:
        DataError: nothing to train on.
        ModelError: `out` is something else, nothing to resume from, nothing to go on from, or the loss is not finite.
    """
    config = config.resolved(dataset.plays)
    where = device.choose(config.device)
    parent = warmed.parent_of(warm, out, dataset, config) if warm else None
    rank, processes = ranks.start(where)
    if rank == 0:
        checkpoint.claim(out, resume)
    _log.info("towers are trained on %s", where)
    torch.set_num_threads(config.threads or max(1, device.cores(processes) // 2))
    parents = Parents(dataset=dataset.info.source, split=dataset.info.split)
    warm_from = parent.model_id if parent else ""
    start = State(config.recorded(), parents, config.temperature, data=_tables(dataset), warm_from=warm_from)
    if resume and rank == 0:
        checkpoint.check_same(out / "checkpoint" / "last.safetensors", start, dataset.path)
    crossed = tuple(_train_fold(dataset, part, folds, out, config, parents, report) for part in range(folds))
    if rank == 0:
        shutil.rmtree(out / "folds", ignore_errors=True)
    spec = parent.spec if parent else None
    has_moments = moments.find(dataset, config.moments, config.seed) is not None
    trained = _train(load(dataset, like=spec), out, config, start, resume, report, parent, has_moments)
    run, in_time = trained.run, None
    if rank == 0:
        fitted = trained.network, dataset, run.data, run.tensors, run.teachers.table
        before = (parent.shares, parent.moments, parent.joined) if parent else ()
        in_time = moment_head.fit(*fitted, config, report, *before)
        checkpoint.save_head(out / "checkpoint" / "head.safetensors", trained.network.head)
    if refit:
        trained = _refit(trained, load(dataset, upto=VALID, like=spec), config, report)
        if in_time is not None:
            sequences = moments.refitted(in_time.sequences, dataset, trained.run.data, in_time.joined)
            in_time = replace(in_time, sequences=sequences)
    info = ModelInfo(
        parents=parents,
        config=config.recorded(),
        chosen=trained.chosen | ({"sessions joined": in_time.joined} if in_time else {}),
        quality=trained.quality,
        fitted_on=REFITTED if refit else FITTED,
        folds=crossed,
        warm_from=warm_from,
    )
    ranks.end()  # not where something was raised: torchrun ends the others then
    if rank:
        return info
    users = fitted_users(dataset)
    tables = in_time.sequences if in_time else None
    return export(trained.network, trained.run.data, trained.run.teachers.table, out, info, tables, users)


def _train_fold(
    dataset: Dataset, part: int, folds: int, out: Path, config: TrainSettings, parents: Parents, report: Report
) -> Quality:
    """Trains on all parts of the train and validation plays but one, and returns the validation on that one."""
    folder = out / "folds" / str(part)
    if ranks.start()[0] == 0:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "checkpoint").mkdir(parents=True)

    def of_fold(progress: Progress) -> None:
        report(replace(progress, fold=part))

    data = load(dataset, _fold(dataset.plays, part, folds, config.seed))
    start = State(config.recorded(), parents, config.temperature)
    quality = _train(data, folder, config, start, False, of_fold).quality
    return Quality(retrieval=quality.get("retrieval", {}), cascade=quality.get("cascade", {}))


@dataclass(frozen=True)
class Trained:
    """A finished training, ready to export."""

    network: Network
    run: Run
    quality: Quality
    chosen: Chosen


def _train(
    data: TrainingData,
    out: Path,
    config: TrainSettings,
    state: State,
    resume: bool,
    report: Report,
    parent: Parent | None = None,
    has_moments: bool = False,
) -> Trained:
    """Fits teachers, towers and head on `data`, from `state`; checkpoints and metrics.jsonl go to `out`."""
    like = parent.chosen if parent else None
    users = np.flatnonzero(np.diff(data.train.offsets) > 0)
    rank, processes = ranks.start()
    teachers = teaching.fit(data, config.dim, config.seed, report, like, config.threads or device.cores(processes))
    towers = warmed.shortened(config) if parent else config
    where = device.choose(config.device)
    run = Run(data, Tensors.of(data), teachers, towers, users, config.batch_size, rank, processes, where)
    network, optimizer = _new(run)
    if rank == 0:  # those of the model know more tracks after a --refit
        files.write_text(out / "checkpoint" / "features.json", data.spec.to_json())
    state = replace(state, features=data.spec.fingerprint)
    if resume:
        state = checkpoint.load(out / "checkpoint" / "last.safetensors", network, optimizer)
    elif not state.temperature:
        state = replace(state, temperature=like["temperature"] if like else _tune_temperature(run, report))
    if parent and not resume:
        network.load_state_dict(network.state_dict() | warmed.towers_of(parent, network, data.spec))
    _fit(run, network, optimizer, state, out, report)
    network.cpu()
    best: Quality | None = None
    fitted = heads.Fitted(0, 0.0, {})
    if rank == 0:
        best = checkpoint.load(out / "checkpoint" / "best.safetensors", network).best
        if (measured := content.fit(network, data, run.tensors, config, report)) and best:
            best["retrieval"] = measured
        share = like.get("co-listening share") if like else None  # in time the sources of a moment have the depth
        share = 0.0 if has_moments else share
        fitted = heads.fit(network, data, run.tensors, teachers.table, config, report, like, share)
    ranks.same(network.state_dict().values())
    fitted, best = ranks.agreed((fitted, best))
    quality = Quality(**best, cascade=fitted.cascade) if best else Quality()
    report(HeadFitted(**asdict(fitted)))
    chosen: Chosen = {
        "ials": list(teachers.ials),
        "co-listening": list(teachers.penalty),
        "mix": [round(weight, 4) for weight in teachers.mix],
        "temperature": state.temperature,
        "head epochs": fitted.epochs,
        "head strength": fitted.strength,
        "co-listening share": fitted.share,
    }
    return Trained(network, run, quality, chosen)


def _tables(dataset: Dataset) -> tuple[str, ...]:
    """What the dataset holds, in a few hashes: a run goes on with the data that it began with."""
    return tuple(files.sha256_of(dataset.path / f"{name}.parquet" for name in ("plays", "tracks", "users")))


def _refit(trained: Trained, data: TrainingData, config: TrainSettings, report: Report) -> Trained:
    """Returns the trained model after some more epochs on `data`, which holds the validation plays too."""
    before = trained.run
    threads = config.threads or device.cores(before.processes)
    teachers = teaching.fit(data, config.dim, config.seed, report, trained.chosen, threads)
    users = np.flatnonzero(np.diff(data.train.offsets) > 0)
    run = replace(before, data=data, tensors=Tensors.of(data), teachers=teachers, config=config, users=users)
    network, optimizer = _new(run)
    network.head.moments = trained.network.head.moments
    kept = trained.network.state_dict()
    network.load_state_dict(warmed.carried(kept, before.data.spec, network.state_dict(), data.spec))
    more = max(1, round(config.cycle * REFIT_EPOCHS))
    for number in range(1, more + 1):
        started = time.monotonic()
        temperature = trained.chosen["temperature"]
        loss, _ = _epoch(run, network, optimizer, config.epochs + number, config.cycle, temperature, REFIT_RATE)
        took_s = round(time.monotonic() - started, 2)
        report(RefitDone(epoch=number, epochs=more, retrieval_loss=loss, took_s=took_s))
    return replace(trained, network=network.cpu(), run=run)


def _fold(plays: Plays, part: int, folds: int, seed: int) -> Plays:
    """The plays with one part of train and validation in the validation fold, and the rest in the train fold."""
    drawn = np.random.default_rng([seed, 6]).integers(0, folds, len(plays))
    fold = np.where(plays.fold == TEST, TEST, np.where(drawn == part, VALID, TRAIN)).astype(np.int8)
    return replace(plays, fold=fold)


def _fit(run: Run, network: Network, optimizer: RowwiseAdamW, state: State, out: Path, report: Report) -> None:
    """Trains from `state` until the end of the schedule or of patience; keeps last and best checkpoints."""
    config, folder, writes = run.config, out / "checkpoint", run.rank == 0
    targets = sample(run.data.valid, config.seed)
    if writes:
        checkpoint.keep_lines(out / "metrics.jsonl", state.epoch)
    if state.warm_from and not state.epoch and len(targets.users):  # the towers as they came may stay the best
        measured = ranks.agreed(validate(network, run.data, run.placed, targets) if writes else None)
        state = replace(state, best=Quality(epoch=0, retrieval=measured) if measured else None)
        if writes:
            checkpoint.save(folder / "best.safetensors", network, optimizer, state)
    while state.epoch < config.epochs and not patience.over(state, config):
        started = time.monotonic()
        if state.best and state.epoch and state.epoch % config.cycle == 0:
            state = replace(state, began=worth(state.best["retrieval"]))
        epoch = state.epoch + 1
        retrieval_loss, distillation_loss = _epoch(run, network, optimizer, epoch, config.cycle, state.temperature)
        measured = None
        if len(targets.users):
            measured = ranks.agreed(validate(network, run.data, run.placed, targets) if writes else None)
        took_s = time.monotonic() - started
        best = state.best
        better = measured is None or best is None or worth(measured) > worth(best["retrieval"])
        if better:
            best = Quality(epoch=epoch, retrieval=measured) if measured else None
        state = replace(state, epoch=epoch, best=best)
        done = EpochDone(
            epoch=epoch,
            temperature=state.temperature,
            retrieval_loss=retrieval_loss,
            distillation_loss=distillation_loss,
            retrieval=measured,
            took_s=round(took_s, 2),
            plays_per_s=round(len(run.data.train.rows) / took_s),
            epochs=config.epochs,
            best=better,
        )
        if writes:  # the line first: a line without its checkpoint is cut off again, a checkpoint needs its line
            with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(done.metrics()) + "\n")
            if better:
                checkpoint.save(folder / "best.safetensors", network, optimizer, state)
            checkpoint.save(folder / "last.safetensors", network, optimizer, state)
        report(done)


@threadpool_limits.wrap(limits=1, user_api="blas")  # type: ignore[untyped-decorator]  # batches are made beside torch
def _epoch(
    run: Run,
    network: Network,
    optimizer: RowwiseAdamW,
    epoch: int,
    cycle: int,
    temperature: float,
    rate: float | None = None,
) -> tuple[float, float]:
    """Makes one pass over the users; returns the mean retrieval and distillation loss.

    Random streams depend on seed, epoch and rank only. cycle: epochs after which the schedule starts anew. rate: a
    share of the peak learning rate to keep to, instead of the schedule.
    """
    config = run.config
    torch.manual_seed((config.seed * 1_000_003 + epoch) * 64 + run.rank)
    order = np.random.default_rng([config.seed, epoch]).permutation(run.users)
    rng = np.random.default_rng([config.seed, epoch, 1 + run.rank])
    sums = np.zeros(2)
    network.train()

    def batch(number: int) -> Batch:
        whole = order[number * run.batch_size : (number + 1) * run.batch_size]
        users = np.sort(whole[run.rank :: run.processes] if len(whole) >= run.processes else whole)
        return prepare(run.data, run.tensors, run.teachers, users, rng, config).to(run.device)

    for number, prepared in enumerate(ahead(batch, range(run.steps))):
        tables = optimizer.take(prepared.numbers)
        pair = losses(network, run.placed, prepared, tables, config, temperature)
        total = (1 - config.distil) * pair[0] + config.distil * pair[1]
        if not torch.isfinite(total):
            found = f"a loss of {total.item()} in epoch {epoch}"
            raise ModelError(complain("training", found, "a finite loss; try a lower --learning-rate"))
        done = (epoch - 1 + number / run.steps) / cycle % 1
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (schedule(done) if rate is None else rate)
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        ranks.average_gradients(optimizer.param_groups[0]["params"])
        optimizer.clip(config.clip_norm)
        optimizer.step()
        sums += [part.item() for part in pair]
    optimizer.catch_up()
    return round(sums[0] / run.steps, 5), round(sums[1] / run.steps, 5)


@timed("train.temperature")
def _tune_temperature(run: Run, report: Report) -> float:
    """Returns the temperature whose short run retrieves best on the validation fold."""
    targets = sample(run.data.valid, run.config.seed)
    if not len(targets.users):
        return UNMEASURED_TEMPERATURE
    epochs = max(2, run.config.cycle // 8)
    found: dict[float, float] = {}
    for temperature in TEMPERATURES:
        network, optimizer = _new(run)
        for epoch in range(1, epochs + 1):
            _epoch(run, network, optimizer, epoch, epochs, temperature)
        measured = ranks.agreed(validate(network, run.data, run.placed, targets) if run.rank == 0 else None)
        assert measured is not None
        found[temperature] = measured["ndcg@10"]
        report(TemperatureTried(temperature=temperature, retrieval=measured))
    return max(found, key=lambda temperature: found[temperature])


def _new(run: Run) -> tuple[Network, RowwiseAdamW]:
    """Returns a fresh network and its optimizer, the same for the same seed."""
    config = run.config
    torch.manual_seed(config.seed)
    network = Network(Shape.of(run.data.spec, config.dim, config.hidden, config.dropout), len(HISTORY_FEATURES))
    item, history, user = (tensor(part) for part in run.teachers.start)
    network.start_from(run.tensors.ids[:, 0], item, history, user)
    ranks.same(network.state_dict().values())
    network.head.scale.data.fill_(1 / (config.temperature or UNMEASURED_TEMPERATURE))
    network.to(run.device)
    towers = [*network.item_tower.parameters(), *network.user_tower.parameters()]
    group = {"params": towers, "peak": config.learning_rate, "weight_decay": config.weight_decay}
    by_row = run.data.n_tracks > config.full_softmax and run.processes == 1  # gradients of several are averaged whole
    names = ("retrieval_id.weight", "history_id.weight") if by_row else ()
    return network, RowwiseAdamW(group, {name: network.item_tower.get_parameter(name) for name in names})
