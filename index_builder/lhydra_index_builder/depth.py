"""How many candidates to rerank: the fewest with which the cascade loses next to nothing.

For some users the head scores the whole catalogue. What of its own best list is among the first `depth` tracks of
exact retrieval is what reranking so many can find; the order is the head's either way.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lhydra.bundle.exact import nearest
from lhydra.console import with_progress
from lhydra.data.dataset import AsOf, Dataset, user_states
from lhydra.domain import I64, UserState
from lhydra.evaluation.bootstrap import F64
from lhydra.evaluation.cascade import best_rows
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Targets, as_rows
from lhydra.recommender import Recommender
from lhydra.timing import timed

DEPTHS = (100, 150, 200, 300, 400, 500, 700, 1000, 1500, 2000)
K = 10
MOST_LOSS = 0.01  # of NDCG@10
PAIRS = 40_000_000  # (user, track) pairs that the head is asked for: half a minute on two cores
CHUNK = 4096  # tracks scored at a time: what they need stays in the cache
FEWEST, MOST_USERS = 20, 500


@dataclass(frozen=True)
class Lists:
    """What the head puts first for c users: `full` (c, K) among all tracks, `by_depth` among the nearest so many."""

    full: I64
    by_depth: dict[int, I64]


@timed("rebuild.depth")
def measure(
    recommender: Recommender, dataset: Dataset, as_of: AsOf, targets: Targets | None, *, threads: int, seed: int
) -> dict[str, Any]:
    """Returns `cascade` of the manifest: by depth, what is lost against the head over the whole catalogue.

    targets: what the users went on to play, None where nothing was held out. Besides NDCG@10 on that there is always
    the agreement: NDCG@10 with the head's own list for what is wanted, its best track the most.
    """
    n = len(recommender.catalog)
    most = int(min(MOST_USERS, max(FEWEST, PAIRS // n)))
    if targets is not None:
        targets = targets.sample(most, seed)
        users = targets.users
    else:
        users = np.sort(np.random.default_rng(seed).permutation(len(dataset.user_ids))[:most])
    found = lists(recommender, [state for _, state in user_states(dataset, as_of, positions=users)], threads)
    agreement = {depth: agreements(found.full, own) for depth, own in found.by_depth.items()}
    curve = [{"depth": depth, "agreement": _mean(own)} for depth, own in agreement.items()]
    full = None
    if targets is not None:
        rows = as_rows(recommender.catalog.rows(dataset.hashes), n)[targets.tracks]
        wanted = np.concatenate([np.empty(0, np.int64), *(np.sort(rows[targets.of(u)]) for u in range(len(targets)))])

        def ndcg(own: I64) -> float:
            return float(rank_metrics(own, targets.offsets, wanted, n, (K,)).means()[f"ndcg@{K}"])

        full = round(ndcg(found.full), 6)
        for at, own in zip(curve, found.by_depth.values(), strict=True):
            at["ndcg"] = round(ndcg(own), 6)
    return {"k": K, "users": len(users), "ndcg": full, "curve": curve}


def choose(cascade: dict[str, Any]) -> int:
    """Returns the smallest depth from which on no more than MOST_LOSS is lost; the largest where none is so good."""
    chosen = cascade["curve"][-1]["depth"]
    for at in reversed(cascade["curve"]):
        if loss_at(cascade, at["depth"]) > MOST_LOSS:
            break
        chosen = at["depth"]
    return int(chosen)


def loss_at(cascade: dict[str, Any], depth: int) -> float:
    """Returns the share of the head's NDCG@10 that is lost at `depth`, below 0 where it gains.

    On what users went on to play or on the head's own list, whichever is less: of few users the first is mostly
    chance, and a list may differ and be as good. Between two measured depths, that of the smaller one.
    """
    at = next((at for at in reversed(cascade["curve"]) if at["depth"] <= depth), cascade["curve"][0])
    own = float(1 - at["agreement"])
    return min(own, float(1 - at["ndcg"] / cascade["ndcg"])) if cascade["ndcg"] else own


def lists(recommender: Recommender, states: Sequence[UserState], threads: int) -> Lists:
    """Returns the head's best tracks for each user, over everything and by depth; heard and removed are left out."""
    n = len(recommender.catalog)
    depths = sorted({*(depth for depth in DEPTHS if depth < n), min(n, DEPTHS[-1])})
    full = np.full((len(states), K), -1, np.int64)
    by_depth = {depth: np.full((len(states), K), -1, np.int64) for depth in depths}
    with ThreadPoolExecutor(threads) as pool:  # the head and the scans hold no lock
        answers = pool.map(lambda state: _of_user(recommender, state, depths), states)
        for i, own in enumerate(with_progress(answers, len(states), "scoring the whole catalogue")):
            full[i, : len(own[0])] = own[0]
            for depth, best in zip(depths, own[1:], strict=True):
                by_depth[depth][i, : len(best)] = best
    return Lists(full, by_depth)


def _of_user(recommender: Recommender, state: UserState, depths: Sequence[int]) -> list[I64]:
    catalog, bundle = recommender.catalog, recommender.bundle
    heard = catalog.rows(state.heard)
    excluded = np.union1d(heard[heard >= 0], catalog.removed).astype(np.int64)
    user = recommender.encode(state)
    vector = bundle.user_tower.embed(user, catalog.history)
    logits = np.empty(len(catalog), np.float32)
    for start in range(0, len(catalog), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(catalog)))
        logits[rows] = bundle.score(vector, user, rows)[0]
    candidates, _ = nearest(catalog.vectors, vector, depths[-1], excluded)
    eligible = np.ones(len(catalog), np.bool_)
    eligible[excluded] = False
    return [
        best_rows(np.flatnonzero(eligible), logits, K),
        *(best_rows(candidates[:depth], logits, K) for depth in depths),
    ]


def agreements(full: I64, found: I64) -> F64:
    """Returns for each user the NDCG of `found` when the tracks of `full` are what is wanted, the first the most.

    full, found: (c, K) rows, -1 padded; NaN for a user with an empty `full`. The gain of a track is its discount in
    `full`, so a list that keeps the best of it loses little.
    """
    gain = 1 / np.log2(np.arange(2, full.shape[1] + 2))
    held = (full[:, :, None] == found[:, None, :]).any(axis=2) & (full >= 0)
    ideal = ((full >= 0) * gain).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((held * gain).sum(axis=1) / ideal)


def _mean(values: F64) -> float:
    return round(float(np.nanmean(values)), 6) if not np.isnan(values).all() else 1.0


def table(cascade: dict[str, Any], depth: int) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the curve for people; the chosen depth is marked."""

    def rows() -> Iterator[list[str]]:
        for at in cascade["curve"]:
            ndcg = f"{at['ndcg']:.4f}" if "ndcg" in at else "-"
            mark = "chosen" if at["depth"] == depth else ""
            yield [f"{at['depth']:,}", ndcg, f"{loss_at(cascade, at['depth']):+.2%}", f"{at['agreement']:.4f}", mark]

    return ["depth", "NDCG@10", "lost", "agreement", ""], list(rows())
