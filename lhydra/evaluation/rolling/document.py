"""The document of a rolling evaluation, as JSON; what is undefined is null. A figure is all, repeat or discovery."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from lhydra.data.dataset import Dataset
from lhydra.errors import DataError, complain
from lhydra.evaluation.bootstrap import difference, interval, intervals
from lhydra.evaluation.document import WRITTEN_BY, Difference, Interval, Source
from lhydra.evaluation.rolling.baselines import BLEND
from lhydra.evaluation.rolling.lists import FIGURES, Figure, belongs
from lhydra.evaluation.rolling.measure import Measured
from lhydra.evaluation.rolling.moments import Moments
from lhydra.evaluation.rolling.own import Params
from lhydra.evaluation.rolling.past import F64
from lhydra.evaluation.rolling.served import SERVED
from lhydra.evaluation.rolling.slices import RollingSlice
from lhydra.files import read_json
from lhydra.typed import checked

FORMAT = "rolling-2"
MEANINGS: dict[str, str] = {
    "all": "whatever is played next, heard before or not",
    "repeat": "of the tracks heard before, those played again",
    "discovery": "of the tracks not heard before, those played",
}
PAIRED = ("ndcg@10", "hr@20", "mrr")
DECIDES = ("protocol", "as_of", "known", "split", "users", "seed", "ks", "mrr_depth")  # in the order they are named


@dataclass(frozen=True)
class Choice:
    """Settings of a baseline for one figure, how many were tried, and their NDCG on the valid fold; None: not tried."""

    params: Params
    tried: int
    valid: float | None


class RollingProtocol(Source):
    """What was asked and how; two documents with the same `hash` can be compared."""

    dataset: NotRequired[str]
    doubt: NotRequired[str]  # why the model may have learned from what is asked for
    split: dict[str, Any]
    protocol: str
    as_of: str
    known: int
    refit: bool
    ks: list[int]
    mrr_depth: int
    users: int | str  # `all`, or how many were drawn
    seed: int
    tuned_on: str
    lhydra_version: str
    hash: str


class RollingCounts(TypedDict):
    """How many of what; targets by figure."""

    users: int
    moments: int
    targets: dict[str, int]
    catalogue: int


class Repeats(TypedDict):
    """Share of tracks heard before: of what was played, and of each scorer's top 10 of `all`."""

    truth: Interval
    lists: dict[str, Interval]


class Chosen(TypedDict):
    """Settings for one figure, from how many, and their NDCG on the valid fold; null: there was none, usual values."""

    settings: dict[str, Any]
    tried: int
    valid: float | None


class RollingPerUser(TypedDict):
    """By figure, scorer and metric of PAIRED one value per user, in the order of `users`; null without a target."""

    users: list[str]
    figures: dict[str, dict[str, dict[str, list[float | None]]]]


class RollingDocument(TypedDict):
    """A rolling evaluation. ranking: figure, scorer, metric, mean over users; by_moment: the plain mean of moments."""

    format: str
    protocol: RollingProtocol
    counts: RollingCounts
    repeats: Repeats
    ranking: dict[str, dict[str, dict[str, Interval]]]
    by_moment: dict[str, dict[str, dict[str, float | None]]]
    paired: dict[str, dict[str, dict[str, Difference]]]  # figure, scorer, metric: what is served less the scorer
    slices: list[RollingSlice]
    chosen: dict[str, dict[str, Chosen]]
    skipped: dict[str, str]
    per_user: RollingPerUser


def make_document(
    dataset: Dataset,
    moments: Moments,
    measured: Mapping[Figure, Mapping[str, Measured]],
    parts: list[RollingSlice],
    shares: Mapping[str, F64],
    chosen: Mapping[str, Mapping[Figure, Choice]],
    weights: Mapping[Figure, tuple[F64, float | None]],
    skipped: Mapping[str, str],
    protocol: RollingProtocol,
) -> RollingDocument:
    """Puts it all into one document.

    Args:
        dataset: knows ids.
        moments: that were asked for.
        measured: by figure and scorer.
        parts: of the lists, targets and users, with figures of each.
        shares: by scorer, the share of heard tracks in the top 10 of `all`, by user.
        chosen: settings of each baseline by figure.
        weights: of the blend by figure; {} without it.
        skipped: why a baseline was.
        protocol: its `hash` is filled in here.

    Returns:
        The document.
    """
    seed, decides = protocol["seed"], cast("dict[str, Any]", protocol)
    text = json.dumps([FORMAT, dataset.info.counts, *(decides[name] for name in DECIDES)], sort_keys=True)
    protocol["hash"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    facts: dict[str, dict[str, Chosen]] = {
        name: {figure: {"settings": one.params, "tried": one.tried, "valid": one.valid} for figure, one in own.items()}
        for name, own in chosen.items()
    }
    if weights:
        facts[BLEND] = {
            figure: {"settings": dict(zip(chosen, own.round(4).tolist(), strict=True)), "tried": 1, "valid": valid}
            for figure, (own, valid) in weights.items()
        }
    users = np.unique(moments.user)
    truth = heard_in_truth(moments)
    return {
        "format": FORMAT,
        "protocol": protocol,
        "paired": {figure: paired(own, seed) for figure, own in measured.items()},
        "counts": {
            "users": len(users),
            "moments": len(moments),
            "targets": {figure: int(belongs(figure, moments.heard).sum()) for figure in FIGURES},
            "catalogue": dataset.n_tracks,
        },
        "repeats": {
            "truth": interval(truth, seed),
            "lists": {name: interval(own, seed) for name, own in shares.items()},
        },
        "ranking": {
            figure: {
                name: dict(
                    zip(found.by_user, intervals(np.stack(list(found.by_user.values()), axis=1), seed), strict=True)
                )
                for name, found in own.items()
            }
            for figure, own in measured.items()
        },
        "by_moment": {
            figure: {
                name: {metric: _mean(values) for metric, values in found.by_moment.items()}
                for name, found in own.items()
            }
            for figure, own in measured.items()
        },
        "slices": parts,
        "chosen": facts,
        "skipped": dict(skipped),
        "per_user": {
            "users": [dataset.user_ids[user] for user in users],
            "figures": {
                figure: {
                    name: {metric: _defined(found.by_user[metric]) for metric in PAIRED} for name, found in own.items()
                }
                for figure, own in measured.items()
            },
        },
    }


def paired(measured: Mapping[str, Measured], seed: int) -> dict[str, dict[str, Difference]]:
    """Compares what is served with every other scorer, over the same users.

    Args:
        measured: by scorer.
        seed: of the intervals.

    Returns:
        By scorer and metric, what is served less the scorer; {} where nothing is served.
    """
    if SERVED not in measured:
        return {}
    served = measured[SERVED].by_user
    return {
        name: {metric: difference(found.by_user[metric], served[metric], seed) for metric in PAIRED}
        for name, found in measured.items()
        if name != SERVED
    }


def read_rolling(path: Path) -> RollingDocument:
    """Reads a rolling evaluation.

    Args:
        path: a JSON file.

    Returns:
        The document, every part of it checked.

    Raises:
        DataError: no such file, no JSON, another format, or a part that is missing or of another type.
    """
    document, again = read_json(path, DataError, WRITTEN_BY), "write it again with `lhydra evaluate --json`"
    if document.get("format") != FORMAT:
        raise DataError(complain(path, f"format {document.get('format')}", f"{FORMAT}; {again}"))
    return checked(document, RollingDocument, path, DataError, again)


def heard_in_truth(moments: Moments) -> F64:
    """Tells how much of what users played they had heard.

    Args:
        moments: q of them.

    Returns:
        (users,) mean shares of each user's moments.
    """
    share = np.add.reduceat(moments.heard, moments.offsets[:-1], dtype=np.float64) / np.diff(moments.offsets)
    _, place = np.unique(moments.user, return_inverse=True)
    return np.asarray(np.bincount(place, share) / np.bincount(place))


def _defined(values: F64) -> list[float | None]:
    """Values with six digits, None for NaN."""
    return [None if np.isnan(value) else round(value, 6) for value in values.tolist()]


def _mean(values: F64) -> float | None:
    """The mean of what is defined, None where nothing is."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else None
