"""One evaluation: a recommender on a dataset's held-out plays, beside the baselines, as one plain document.

The parts of the document are made by the other modules here, each a plain function of arrays; what decides whether
two documents can be compared is in `protocol.hash`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from lhydra import __version__
from lhydra.data.dataset import Dataset, Mask
from lhydra.domain import I64
from lhydra.evaluation import baselines as fair
from lhydra.evaluation.beyond import beyond_accuracy
from lhydra.evaluation.bootstrap import difference, intervals
from lhydra.evaluation.cascade import draw_users, head_alone
from lhydra.evaluation.classification import describe
from lhydra.evaluation.cohorts import cohorts, slices
from lhydra.evaluation.document import (
    FORMAT,
    NDCG,
    RECALL,
    Counts,
    Difference,
    Document,
    Interval,
    PerUser,
    Protocol,
    TieRange,
)
from lhydra.evaluation.leaks import find_leaks
from lhydra.evaluation.lists import Recommends
from lhydra.evaluation.metrics import MRR_DEPTH, RankMetrics
from lhydra.evaluation.run import Moment, Run, as_rows, ask, find_targets, some_users
from lhydra.evaluation.sources import described
from lhydra.evaluation.summary import summary
from lhydra.evaluation.ties import K as TIES_AT
from lhydra.evaluation.unseen import unseen
from lhydra.timing import timed

PAIRED = (NDCG, RECALL)  # kept by user: what intervals of differences are made of
_IMPORTANCE_USERS = 300


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
    fitted: Mapping[str, Any] | None = None,
    mask: Mask = "seen",
) -> Document:
    """Evaluates a recommender on the users with targets.

    Args:
        recommender: what is evaluated.
        dataset: whose held-out plays are the targets.
        as_of: the fold of the targets.
        ks: list lengths; ranking is always measured at 10 and 20 too.
        users: how many users are drawn, 0 for all.
        seed: of the draw, the negatives and the intervals.
        baselines: which of `baselines.NAMES` to measure beside it.
        analyses: with the mistakes and the importance of features, which take as long as the rest.
        fitted: `split` of the dataset that the recommender's model was fitted on, to tell whether it may have learned
            from targets; None: nothing is said of that.
        mask: what of a user is left out of lists, and of targets: all folds before, or train alone.

    Returns:
        The document; `protocol` does not yet say what was evaluated on which dataset.

    Raises:
        DataError: nobody has a target, or none of the dataset's tracks is in the recommender's catalog.
    """
    targets = find_targets(dataset, as_of, mask)
    sampled = 0 < users < len(targets)
    if sampled:
        targets = targets.sample(users, seed)
    every_k = sorted({*ks, 10, 20})
    run = ask(recommender, dataset, targets, as_of=as_of, ks=every_k, seed=seed, mask=mask)
    measured = fair.measure(
        dataset, baselines, targets, run.rows >= 0, as_of=as_of, k=run.lists["cascade"].shape[1], seed=seed, mask=mask
    )
    chosen = draw_users(len(targets), run.catalogue_size, seed)
    head, loss = head_alone(recommender, dataset, run, chosen, every_k)
    run = with_lists(run, {"head": (chosen, head)}, every_k)
    everybody = np.arange(len(targets))
    listed = {name: (everybody, to_rows(run, one.lists)) for name, one in measured.items() if one.lists is not None}
    run = with_lists(run, listed, every_k)

    vectors = getattr(recommender.catalog, "vectors", None)
    beyond = beyond_accuracy(dataset, run, vectors, seed)
    negatives = f"one uniformly random unheard track per {as_of} play, seed {seed}"
    protocol: Protocol = {
        "split": dataset.info.split,
        "as_of": as_of,
        "ks": list(ks),
        "mrr_depth": MRR_DEPTH,
        "users": users if sampled else "all",
        "seed": seed,
        "ranked": "the whole catalogue without what the user heard" + (", in train alone" if mask == "train" else ""),
        "targets": f"tracks of the {as_of} fold that the user had not heard" + (" in train" if mask == "train" else ""),
        "negatives": negatives,
        "lhydra_version": __version__,
        "hash": "",
    }
    protocol["hash"] = protocol_hash(dataset, protocol)
    if fitted is not None:
        found = unseen(dataset, targets, fitted, as_of)
        protocol["seen"] = {"targets": int((~found.mask).sum()), "of": len(found.mask), "why": found.why}
    document: Document = {
        "format": FORMAT,
        "protocol": protocol,
        "summary": [],
        "counts": count(run, loss["users"]),
        "ties": tie_range(run),
        "ranking": {stage: summarise(found, seed) for stage, found in run.metrics.items()},
        "baselines": {name: one.to_json() for name, one in measured.items()},
        "paired": {
            name: {
                NDCG: paired_difference(run, name, "cascade", NDCG, seed),
                RECALL: paired_difference(run, name, "cascade", RECALL, seed),
            }
            for name in listed
        },
        "cascade_loss": loss,
        "sources": described(run.found_by, len(run.wanted)),
        "classification": describe(run.labels, run.probabilities, negatives),
        "cohorts": cohorts(dataset, run, seed),
        "slices": slices(dataset, run, seed),
        "beyond_accuracy": beyond,
        "leaks": find_leaks(dataset),
        "mistakes": None,
        "importance": None,
        "training": [],
        "per_user": per_user(dataset, run),
    }
    if analyses:
        from lhydra.evaluation.importance import measure
        from lhydra.evaluation.mistakes import analyse

        document["mistakes"] = analyse(dataset, recommender.catalog, run)
        document["importance"] = measure(
            recommender, dataset, targets, as_of, min(len(targets), _IMPORTANCE_USERS), seed, mask
        )
    document["summary"] = summary(document)
    return document


def with_lists(run: Run, lists: dict[str, tuple[Any, Any]], ks: Sequence[int]) -> Run:
    """Adds stages to a run.

    Args:
        run: of all users.
        lists: name -> (places of the users, (c,); their lists, (c, K) rows).
        ks: list lengths at which metrics are computed.

    Returns:
        The run with the further stages.
    """
    added = {name: some_users(run, chosen, found, ks) for name, (chosen, found) in lists.items()}
    return replace(
        run,
        lists=run.lists | {name: found for name, (found, _) in added.items()},
        metrics=run.metrics | {name: found for name, (_, found) in added.items()},
    )


def to_rows(run: Run, tracks: I64) -> I64:
    """Translates positions in the tracks table into catalog rows.

    Args:
        run: knows both.
        tracks: (n, K) positions, -1 padded.

    Returns:
        (n, K) rows, -1 padded.
    """
    return np.where(tracks >= 0, as_rows(run.rows, run.catalogue_size)[tracks], -1)


def summarise(found: RankMetrics, seed: int) -> dict[str, Interval]:
    """Computes every metric of a stage with its interval.

    Args:
        found: metrics by user.
        seed: of the intervals.

    Returns:
        By metric; coverage, of all users together, has an interval of no width.
    """
    measured = intervals(np.stack(list(found.per_user.values()), axis=1), seed)
    whole: dict[str, Interval] = {
        name: {"mean": value, "low": value, "high": value} for name, value in found.coverage.items()
    }
    return dict(zip(found.per_user, measured, strict=True)) | whole


def tie_range(run: Run) -> TieRange:
    """Tells what the served figure owes to the order of equal scores.

    Args:
        run: of all users.

    Returns:
        `ties` of the document.
    """
    lowest, highest = run.ties.ndcg(run.targets.offsets, run.wanted, run.catalogue_size)
    return {"k": TIES_AT, "lists": float(run.ties.at_cut.mean()), "lowest": lowest, "highest": highest}


def paired_difference(run: Run, a: str, b: str, metric: str, seed: int) -> Difference:
    """Compares two stages over the same users.

    Args:
        run: has both.
        a: a stage.
        b: another.
        metric: as `ndcg@10`.
        seed: of the interval.

    Returns:
        Stage b less stage a.
    """
    return difference(run.metrics[a].per_user[metric], run.metrics[b].per_user[metric], seed)


def count(run: Run, head_users: int) -> Counts:
    """Counts what was evaluated.

    Args:
        run: of all users.
        head_users: how many of them the whole catalogue was scored for.

    Returns:
        `counts` of the document.
    """
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


def per_user(dataset: Dataset, run: Run) -> PerUser:
    """Lists the metrics of every user.

    Args:
        dataset: knows their ids.
        run: of all users.

    Returns:
        `per_user` of the document: PAIRED by stage, null where a stage was not asked for a user.
    """
    ids = dataset.user_ids
    stages = {
        stage: {
            metric: [None if np.isnan(value) else round(value, 6) for value in found.per_user[metric].tolist()]
            for metric in PAIRED
        }
        for stage, found in run.metrics.items()
    }
    return {"users": [ids[user] for user in run.targets.users], "stages": stages}


def protocol_hash(dataset: Dataset, protocol: Protocol) -> str:
    """Hashes what decides whether two documents measure the same thing, whatever the model.

    Args:
        dataset: what was evaluated on.
        protocol: of the document; its `hash` is not looked at.

    Returns:
        16 hex digits.
    """
    names = ("split", "as_of", "ks", "mrr_depth", "users", "seed", "ranked", "targets")
    values = cast(dict[str, Any], protocol)
    decides = [FORMAT, dataset.info.counts, *(values[name] for name in names)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
