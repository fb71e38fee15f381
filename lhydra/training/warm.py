"""Going on from a model trained before (`--warm`): its towers row by row, what it chose, and who may go on from it.

A row of a table stands for a text (a track id, an artist, a tag) and is found again by it, since the numbers of texts
change with every fit. What is new starts as the unknown did. Numbers keep the scale that the towers have learnt.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lhydra.bundle.model import Chosen, Model
from lhydra.data.dataset import Dataset
from lhydra.errors import ModelError, complain
from lhydra.evaluation.unseen import describe, drawn_apart
from lhydra.features.spec import FeatureSpec
from lhydra.training import checkpoint
from lhydra.training.config import TrainSettings
from lhydra.training.model import Network
from lhydra.training.moment_network import MomentHead

EPOCHS, RATE = 0.25, 0.3  # of the first cycle and of the peak learning rate of a training from the start
Texts = tuple[Hashable, ...]
TOWERS = ("item_tower.", "user_tower.")
GATE = ("scale", "lift", "gate.weight", "gate.bias")  # of the head: few numbers for all users together
TRACK_TABLES = ("item_tower.retrieval_id.weight", "item_tower.history_id.weight")
_WITHOUT = "train without --warm"


@dataclass(frozen=True)
class Parent:
    """The model to go on from.

    towers: their parameters by name, of the best epoch, before any --refit: they know no validation play; and the gate
    of the head. spec: what the rows of their tables stand for. chosen: what was chosen on the validation fold; None
    where there was none.
    shares: of the sources of candidates; moments: the part of the head for them, where there is one. joined: whether
    all sessions of a user count as one for them.
    """

    model_id: str
    spec: FeatureSpec
    towers: dict[str, Tensor]
    chosen: Chosen | None
    shares: tuple[float, ...] | None
    moments: MomentHead | None
    joined: bool


def parent_of(path: Path, out: Path, dataset: Dataset, config: TrainSettings) -> Parent:
    """Opens the model to go on from.

    Args:
        path: folder made by `lhydra train`, with its checkpoint.
        out: the folder that is written, another one.
        dataset: what is trained on now.
        config: settings of the training.

    Returns:
        The parent.

    Raises:
        ModelError: it is no model, has no checkpoint, is of another shape or of other columns, or has learnt from plays
            that the dataset holds out.
    """
    if path.resolve() == out.resolve():
        raise ModelError(complain("--warm", "the folder that is written", "another model"))
    model = Model.open(path)
    info = model.info
    for name in ("dim", "hidden"):
        if info.config.get(name) != getattr(config, name):
            found = f"--{name} {info.config.get(name)}"
            raise ModelError(complain(f"{path}", found, f"--{name} {getattr(config, name)}, or {_WITHOUT}"))
    theirs, ours = _columns(model.spec), _columns_of(dataset)
    if differ := sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)):
        found = f"other columns than in {dataset.path} ({', '.join(differ)})"
        raise ModelError(complain(path, found, f"a model of the same columns, or {_WITHOUT}"))
    fitted = info.parents["split"] if info.parents else {}
    if not holds_out(fitted, dataset.info.split):
        found = f"a model of another split ({describe(fitted)}; {dataset.path}: {describe(dataset.info.split)})"
        raise ModelError(complain(path, found, f"one whose train plays are none of valid or test here, or {_WITHOUT}"))
    shares = model.sequences.told_shares if len(model.sequences) else None
    chosen = info.chosen if info.quality.get("retrieval") else None
    spec, towers = _towers(model)
    head = checkpoint.read_head(path / "checkpoint" / "head.safetensors")
    if chosen and chosen["head strength"]:
        towers |= {f"head.{name}": value for name, value in head.items() if name in GATE}
    joined = bool(info.chosen and info.chosen.get("sessions joined"))
    return Parent(info.model_id, spec, towers, chosen, shares, _moments(head) if shares else None, joined)


def _moments(head: Mapping[str, Tensor]) -> MomentHead | None:
    """The part of a head for moments; None where it has none, or that of a version with other inputs."""
    own = {name.removeprefix("moments."): value for name, value in head.items() if name.startswith("moments.")}
    if not own or len(own["mean"]) != MomentHead.inputs():
        return None
    part = MomentHead(own["mean"], own["spread"], own["context_mean"], own["context_spread"])
    part.load_state_dict({"level": part.level} | own)  # parts of before have none
    return part


def _towers(model: Model) -> tuple[FeatureSpec, dict[str, Tensor]]:
    """The towers of the best epoch, before any --refit, and the features that they know."""
    file, info = model.path / "checkpoint" / "best.safetensors", model.info
    if not file.exists():
        raise ModelError(complain(file, "no such file", f"the checkpoint that the model came from, or {_WITHOUT}"))
    state, tensors = checkpoint.read(file)
    spec, kept = model.spec, file.with_name("features.json")
    if kept.exists():
        spec = FeatureSpec.from_json(kept.read_text(encoding="utf-8"))
    of_run = (state.config, state.parents, state.warm_from) == (info.config, info.parents, info.warm_from)
    if not of_run or (state.features or model.spec.fingerprint) != spec.fingerprint:
        raise ModelError(complain(file, "the checkpoint of another run", f"that of {info.model_id}, or {_WITHOUT}"))
    towers = {name: value for name, value in tensors.items() if name.startswith(TOWERS)}
    if len(towers[TRACK_TABLES[0]]) != 1 + len(spec.track_categories[0].values):  # of before, and refitted since
        raise ModelError(complain(file, "towers of unknown tracks", f"a model trained by this version, or {_WITHOUT}"))
    return spec, towers


def holds_out(fitted: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Tells whether all that one split holds out was held out, or not yet played, under an earlier one.

    Otherwise validation would measure what was learnt by heart: it ends the training, and the head is fitted on it.

    Args:
        fitted: the `split` that the earlier model was fitted under.
        ours: that of what is trained on now.

    Returns:
        False where it is not so, or not known.
    """
    if not fitted:
        return False
    if fitted.get("hash") == ours.get("hash") or drawn_apart(ours, fitted, "valid"):
        return True
    if fitted.get("protocol") == ours.get("protocol"):
        if ours["protocol"] == "leave-last":
            return True
        if ours["protocol"] == "next-session":
            held = [split["valid_sessions"] + split["test_sessions"] for split in (ours, fitted)]
            return bool(held[0] <= held[1])
        if "cuts" in ours and "cuts" in fitted:
            return bool(fitted["cuts"]["train"] <= ours["cuts"]["train"])
    newest, held_out = fitted.get("newest", {}).get("train", 0), ours.get("oldest", {})
    return bool(newest and held_out and all(not begin or newest < begin for begin in held_out.values()))


def shortened(config: TrainSettings) -> TrainSettings:
    """Returns how long and how fast towers go on.

    Args:
        config: settings of a training from the start.

    Returns:
        The same with EPOCHS of its first cycle, at RATE of its peak learning rate.
    """
    epochs = max(1, round(config.cycle * EPOCHS))
    return replace(config, epochs=epochs, learning_rate=config.learning_rate * RATE)


def towers_of(parent: Parent, network: Network, spec: FeatureSpec) -> dict[str, Tensor]:
    """Brings the towers of the parent to the features now.

    Args:
        parent: the model to go on from.
        network: a new one for `spec`.
        spec: the features now.

    Returns:
        Parameters of `network` by name.

    Raises:
        ModelError: the towers are of another shape, as those of another version may be.
    """
    fresh = network.state_dict()
    found = carried(parent.towers, parent.spec, fresh, spec)
    for name, value in found.items():
        if value.shape != fresh[name].shape:
            shapes = [list(one.shape) for one in (value, fresh[name])]
            raise ModelError(complain(f"{name} of {parent.model_id}", f"{shapes[0]}", f"{shapes[1]}; {_WITHOUT}"))
    return found


def vocabulary(spec: FeatureSpec) -> dict[str, Texts]:
    """Tells what the rows of the towers' tables stand for.

    Args:
        spec: the fitted features.

    Returns:
        By name of the parameter, what rows 1 and later stand for.
    """
    values: dict[str, Texts] = {one.name: one.values for one in (*spec.track_categories, *spec.user_categories)}
    bagged: dict[str, Texts] = {bag.name: bag.values for bag in spec.track_bags}
    genre = (values | bagged).get(spec.genre or "", ())
    (_, _), *of_tracks = spec.track_ids
    found = dict.fromkeys(TRACK_TABLES, values["track_id"])
    for tower, columns in (("item_tower", of_tracks), ("user_tower", spec.user_ids)):
        for i, (name, size) in enumerate(columns):
            known = genre[: size - 1] if name in ("genre*", "top_genre") else values.get(name, tuple(range(1, size)))
            found[f"{tower}.ids.{i}.weight"] = known
    found["item_tower.bag.weight"] = tuple((bag.name, value) for bag in spec.track_bags for value in bag.values)
    return found


@torch.no_grad()
def carried(
    kept: Mapping[str, Tensor], before: FeatureSpec, fresh: Mapping[str, Tensor], spec: FeatureSpec
) -> dict[str, Tensor]:
    """Brings parameters to other features, such that what both know gives what it gave.

    Args:
        kept: parameters by name, fitted under `before`.
        before: the features that they know.
        fresh: parameters of a network for `spec` that nobody has trained.
        spec: the features now, of the same columns.

    Returns:
        The parameters for `spec`. A row whose text is new is row 0, the unknown. Tables are as wide as those of
        `fresh`: columns more have no weight yet. Names that `kept` lacks are left out.
    """
    texts = vocabulary(before), vocabulary(spec)
    found = {}
    for name, value in fresh.items():
        if name not in kept:
            continue
        old = kept[name]
        if name in texts[1]:
            found[name] = _rows(old, texts[0][name], value, texts[1][name])
        elif name in _FIRST:
            found[name] = _inputs(old, _widths(kept, name), value, _widths(fresh, name))
        else:
            found[name] = old
    return found


def _rows(old: Tensor, before: Texts, fresh: Tensor, now: Texts) -> Tensor:
    """The table of `fresh` with the rows of `old`."""
    at = {text: number for number, text in enumerate(before, 1)}
    rows = torch.tensor([0, *(at.get(text, 0) for text in now)])
    new = fresh[: len(rows)].clone()
    width = min(old.shape[1], new.shape[1])
    new[:, :width] = old[rows, :width]
    return new


# A first layer takes the dense columns, then the tables in this order.
_FIRST = {"item_tower.content.0.weight": "item_tower.", "user_tower.profile.0.weight": "user_tower."}


def _widths(parameters: Mapping[str, Tensor], layer: str) -> list[int]:
    """Widths of what a first layer takes: dense columns, each table of ids, the bag."""
    tower = _FIRST[layer]
    tables: list[int] = []
    while (table := parameters.get(f"{tower}ids.{len(tables)}.weight")) is not None:
        tables.append(table.shape[1])
    bag = parameters.get(f"{tower}bag.weight")
    if bag is not None and len(bag) > 1:
        tables.append(bag.shape[1])
    return [parameters[layer].shape[1] - sum(tables), *tables]


def _inputs(old: Tensor, before: list[int], fresh: Tensor, now: list[int]) -> Tensor:
    """The first layer of `fresh` with the weights of `old`, part by part."""
    new = torch.zeros_like(fresh)
    at, to = 0, 0
    for width, wide in zip([*before, *[0] * (len(now) - len(before))], now, strict=False):
        some = min(width, wide)
        new[:, to : to + some] = old[:, at : at + some]
        at, to = at + width, to + wide
    return new


def _columns(spec: FeatureSpec) -> dict[str, str]:
    """Kind of each column that the features know."""
    kinds = {f"track column {one.name}": "numeric" for one in spec.track_numbers}
    kinds |= {f"track column {one.name}": "categorical" for one in spec.track_categories[1:]}
    kinds |= {f"track column {one.name}": "multi" for one in spec.track_bags}
    kinds |= {f"user column {one.name}": "numeric" for one in spec.user_numbers}
    return kinds | {f"user column {one.name}": "categorical" for one in spec.user_categories}


def _columns_of(dataset: Dataset) -> dict[str, str]:
    """Kind of each column of a dataset that is a feature, as `_columns` tells it."""
    named = (("track", dataset.info.track_columns), ("user", dataset.info.user_columns))
    kinds = {f"{whose} column {one.name}": one.kind for whose, columns in named for one in columns}
    kinds = {name: "numeric" if kind == "year" else kind for name, kind in kinds.items() if kind != "text"}
    return {name: kind for name, kind in kinds.items() if not (name.startswith("user") and kind == "multi")}
