"""One evaluation: a recommender on a dataset's held-out plays, beside the baselines, as one plain document.

The document holds JSON values only; a number that is undefined is null. Its parts are made by the other modules
here, each a plain function of arrays; what decides whether two documents can be compared is in `protocol.hash`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lhydra import __version__
from lhydra.data.dataset import Dataset
from lhydra.evaluation import baselines as fair
from lhydra.evaluation.beyond import beyond_accuracy
from lhydra.evaluation.bootstrap import Interval, difference, intervals
from lhydra.evaluation.cascade import draw_users, head_alone
from lhydra.evaluation.classification import describe
from lhydra.evaluation.cohorts import cohorts, slices
from lhydra.evaluation.lists import Recommends
from lhydra.evaluation.metrics import MRR_DEPTH, RankMetrics
from lhydra.evaluation.run import Moment, Run, as_rows, ask, find_targets, some_users
from lhydra.timing import timed

FORMAT = 1
PAIRED = ("ndcg@10", "recall@20")  # kept by user: what intervals of differences are made of
_IMPORTANCE_USERS = 300
_FEW_USERS = 50


@timed("evaluate")
def evaluate(
    recommender: Recommends,
    dataset: Dataset,
    *,
    as_of: Moment = "test",
    ks: Sequence[int] = (10, 20),
    users: int = 0,
    seed: int = 0,
    baselines: Sequence[str] = (),
    analyses: bool = False,
) -> dict[str, Any]:
    """Returns the evaluation of `recommender` on the users with targets, or on `users` of them drawn by `seed`.

    baselines: which of `baselines.NAMES` to measure beside it. analyses: with the mistakes and the importance of
    features, which take as long as the rest. Ranking is always measured at 10 and 20 too.

    Raises:
        DataError: nobody has a target, or none of the dataset's tracks is in the recommender's catalog.
    """
    targets = find_targets(dataset, as_of)
    sampled = 0 < users < len(targets)
    if sampled:
        targets = targets.sample(users, seed)
    every_k = sorted({*ks, 10, 20})
    run = ask(recommender, dataset, targets, as_of=as_of, ks=every_k, seed=seed)
    measured = fair.measure(
        dataset, baselines, targets, run.rows >= 0, as_of=as_of, k=run.lists["cascade"].shape[1], seed=seed
    )
    chosen = draw_users(len(targets), run.catalogue_size, seed)
    head, loss = head_alone(recommender, dataset, run, chosen, every_k)
    run = with_lists(run, {"head": (chosen, head)}, every_k)
    everybody = np.arange(len(targets))
    listed = {name: (everybody, to_rows(run, one.lists)) for name, one in measured.items() if one.lists is not None}
    run = with_lists(run, listed, every_k)

    ranking = {stage: summarise(found, seed) for stage, found in run.metrics.items()}
    paired = {
        name: {metric: paired_difference(run, name, "cascade", metric, seed) for metric in PAIRED} for name in listed
    }
    vectors = getattr(recommender.catalog, "vectors", None)
    beyond = beyond_accuracy(dataset, run, vectors, seed)
    negatives = f"one uniformly random unheard track per {as_of} play, seed {seed}"
    document: dict[str, Any] = {
        "format": FORMAT,
        "protocol": {
            "split": dataset.info.split,
            "as_of": as_of,
            "ks": list(ks),
            "mrr_depth": MRR_DEPTH,
            "users": users if sampled else "all",
            "seed": seed,
            "ranked": "the whole catalogue without what the user heard",
            "targets": f"tracks of the {as_of} fold that the user had not heard",
            "negatives": negatives,
            "lhydra_version": __version__,
        },
        "summary": [],
        "counts": count(run, loss["users"]),
        "ranking": ranking,
        "baselines": {name: one.to_json() for name, one in measured.items()},
        "paired": paired,
        "cascade_loss": loss,
        "classification": describe(run.labels, run.probabilities, negatives),
        "cohorts": cohorts(dataset, run, seed),
        "slices": slices(dataset, run, seed),
        "beyond_accuracy": beyond,
        "leaks": _leaks(dataset),
        "mistakes": None,
        "importance": None,
        "training": [],
        "per_user": per_user(dataset, run),
    }
    document["protocol"]["hash"] = protocol_hash(dataset, document["protocol"])
    if analyses:
        from lhydra.evaluation.importance import measure
        from lhydra.evaluation.mistakes import analyse

        document["mistakes"] = analyse(dataset, recommender.catalog, run)
        document["importance"] = measure(
            recommender, dataset, targets, as_of, min(len(targets), _IMPORTANCE_USERS), seed
        )
    document["summary"] = summary(document)
    return document


def with_lists(run: Run, lists: dict[str, tuple[Any, Any]], ks: Sequence[int]) -> Run:
    """Returns `run` with further stages: name -> (places of the users, (c,); their lists, (c, K) rows)."""
    added = {name: some_users(run, chosen, found, ks) for name, (chosen, found) in lists.items()}
    return replace(
        run,
        lists=run.lists | {name: found for name, (found, _) in added.items()},
        metrics=run.metrics | {name: found for name, (_, found) in added.items()},
    )


def to_rows(run: Run, tracks: Any) -> Any:
    """Returns catalog rows for positions in the tracks table, (n, K) with -1 padding."""
    return np.where(tracks >= 0, as_rows(run.rows, run.catalogue_size)[tracks], -1)


def summarise(found: RankMetrics, seed: int) -> dict[str, Interval]:
    """Returns every metric of a stage with its interval; coverage, of all users together, has none of its own."""
    measured = intervals(np.stack(list(found.per_user.values()), axis=1), seed)
    whole: dict[str, Interval] = {
        name: {"mean": value, "low": value, "high": value} for name, value in found.coverage.items()
    }
    return dict(zip(found.per_user, measured, strict=True)) | whole


def paired_difference(run: Run, a: str, b: str, metric: str, seed: int) -> Interval:
    """Returns difference, low and high of `metric`, stage b less stage a, over the same users."""
    return difference(run.metrics[a].per_user[metric], run.metrics[b].per_user[metric], seed)


def count(run: Run, head_users: int) -> dict[str, int]:
    """Returns `counts` of the document."""
    return {
        "users": len(run.targets),
        "users_without_list": int((run.lists["cascade"][:, 0] < 0).sum()),
        "users_of_head_alone": head_users,
        "targets": len(run.wanted),
        "targets_not_in_catalogue": int((run.wanted >= run.catalogue_size).sum()),
        "heard_before": run.targets.heard_before,
        "catalogue": run.catalogue_size,
        "reranked": run.candidates.shape[1],
    }


def per_user(dataset: Dataset, run: Run) -> dict[str, Any]:
    """Returns `per_user` of the document: PAIRED by stage, null where a stage was not asked for a user."""
    ids = dataset.user_ids
    stages = {
        stage: {
            metric: [None if np.isnan(value) else round(value, 6) for value in found.per_user[metric].tolist()]
            for metric in PAIRED
        }
        for stage, found in run.metrics.items()
    }
    return {"users": [ids[user] for user in run.targets.users], "stages": stages}


def protocol_hash(dataset: Dataset, protocol: dict[str, Any]) -> str:
    """Returns 16 hex digits that are equal when two documents measure the same thing, whatever the model."""
    names = ("split", "as_of", "ks", "mrr_depth", "users", "seed", "ranked", "targets")
    decides = [FORMAT, dataset.info.counts, *(protocol[name] for name in names)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def summary(document: dict[str, Any]) -> list[str]:
    """Returns the lines to read first: beside the best baseline, then everything that raises doubt."""
    ranking, lines = document["ranking"], [verdict(document)]
    for name, one in document["baselines"].items():
        if one["skipped"]:
            lines.append(f"baseline {name} skipped: {one['skipped']}")
    if document["counts"]["users"] < _FEW_USERS:
        lines.append(f"only {document['counts']['users']} users: hardly anything here is certain")
    if document["protocol"]["as_of"] == "valid":
        lines.append("the head was fitted on the valid fold, which chose all settings too: conclude from --as-of test")
    served, retrieved = (ranking[stage]["ndcg@10"]["mean"] for stage in ("cascade", "retrieval"))
    if served < retrieved:
        lines.append(
            f"the head makes the lists worse: NDCG@10 {_short(retrieved)} of retrieval, {_short(served)} after it"
        )
    curve, depth = document["cascade_loss"]["curve"], document["counts"]["reranked"]
    at = [point for point in curve if point["depth"] <= depth]
    if at and at[-1]["overlap"] is not None and at[-1]["overlap"] < 0.8:
        lines.append(
            f"retrieval lets {at[-1]['overlap']:.0%} of the head's own top 10 through at depth {at[-1]['depth']}"
        )
    lines += document["beyond_accuracy"]["alarms"]
    lines += [
        f"{leak['verdict']}: {leak['check']}: {leak['found']}"
        for leak in document["leaks"]
        if leak["verdict"] == "leak"
    ]
    return lines


def verdict(document: dict[str, Any]) -> str:
    """Returns the first line: does the cascade beat the best baseline, by how much, and how sure is that."""
    ranking, paired = document["ranking"], document["paired"]
    own = f"cascade NDCG@10 {_short(ranking['cascade']['ndcg@10']['mean'])}"
    if not paired:
        return f"{own}; measured without baselines"
    best = max(paired, key=lambda name: float(ranking[name]["ndcg@10"]["mean"]))
    found, beside = paired[best]["ndcg@10"], f"the best baseline {best} {_short(ranking[best]['ndcg@10']['mean'])}"
    if found["difference"] == 0:
        return f"{own} is level with {beside}"
    word = "beats" if found["difference"] > 0 else "LOSES to"
    span = f"95 % interval {found['low']:+.4f} to {found['high']:+.4f}"
    certain = "" if found["low"] > 0 or found["high"] < 0 else ", not certain"
    return f"{own} {word} {beside} by {_short(abs(found['difference']))} ({span}{certain})"


def _short(value: float) -> str:
    return f"{value:.4f}"


def _leaks(dataset: Dataset) -> list[dict[str, Any]]:
    from lhydra.evaluation.leaks import find_leaks

    return find_leaks(dataset)
