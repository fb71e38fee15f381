"""What the cascade loses: the head over the whole catalogue, and how much of its list each depth lets through.

Evaluation measures it on a served bundle, the index builder on a bundle to be published: `head_lists` is the
computation of both.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lhydra.console import with_progress
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import F32, I64, UserState
from lhydra.evaluation.document import CascadeLoss, DepthLoss
from lhydra.evaluation.lists import Recommends
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Run
from lhydra.queries import known_user

DEPTHS = (10, 20, 50, 100, 200, 300, 500, 1000)
K = 10
SCORE_BLOCK = 4096  # tracks the head scores at a time: what they need stays in the cache
_MAX_PAIRS = 10_000_000  # (user, track) pairs that the head is asked for
_FEWEST_USERS = 100  # however large the catalogue


@dataclass(frozen=True)
class HeadLists:
    """The head's best tracks of c users: `full` (c, width) of all, `by_depth` (c, K) of the nearest so many."""

    full: I64
    by_depth: dict[int, I64]


@dataclass(frozen=True)
class UserScoring:
    """How the tracks are scored for one user.

    score: rows (n,) -> the head's raw logits (n,). candidates: of a depth, the rows that are retrieved in all, without
    the excluded: with several sources, those of a depth are not the first of a larger one.
    excluded: rows that are never listed, in any order.
    """

    score: Callable[[I64], F32]
    candidates: Callable[[int], I64]
    excluded: I64


def draw_users(n: int, catalogue_size: int, seed: int) -> I64:
    """Draws the users whose whole catalogue is scored.

    Args:
        n: how many users there are.
        catalogue_size: tracks to score for each.
        seed: of the draw.

    Returns:
        (c,) ascending places below n: all, or a sample.
    """
    most = max(_FEWEST_USERS, _MAX_PAIRS // max(1, catalogue_size))
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


def depths_within(depths: Sequence[int], catalogue_size: int) -> list[int]:
    """Chooses the depths to measure.

    Args:
        depths: ascending.
        catalogue_size: how many tracks there are.

    Returns:
        Those below the catalogue's size, ascending; last the largest, or the whole catalogue where it is smaller.
    """
    return sorted({*(depth for depth in depths if depth < catalogue_size), min(depths[-1], catalogue_size)})


def head_lists(
    states: Iterable[UserState],
    n_users: int,
    scoring: Callable[[UserState], UserScoring],
    catalogue_size: int,
    depths: Sequence[int],
    width: int,
    threads: int = 1,
) -> HeadLists:
    """Ranks the whole catalogue, and the nearest tracks alone, by the head's raw logit, ties by row.

    Args:
        states: of the users.
        n_users: how many of them there are.
        scoring: what scores the tracks for a user; called from `threads` threads.
        catalogue_size: how many tracks there are.
        depths: how many of the candidates are ranked alone.
        width: places of the list over the whole catalogue.
        threads: how many users are ranked at once.

    Returns:
        The lists, -1 padded.
    """
    full = np.full((n_users, width), -1, np.int64)
    by_depth = {depth: np.full((n_users, K), -1, np.int64) for depth in depths}

    def ranked(state: UserState) -> list[I64]:
        user = scoring(state)
        logits = np.empty(catalogue_size, np.float32)
        for start in range(0, catalogue_size, SCORE_BLOCK):
            rows = np.arange(start, min(start + SCORE_BLOCK, catalogue_size))
            logits[rows] = user.score(rows)
        eligible = np.ones(catalogue_size, np.bool_)
        eligible[user.excluded] = False
        near = (best_rows(user.candidates(depth), logits, K) for depth in depths)
        return [best_rows(np.flatnonzero(eligible), logits, width), *near]

    with ThreadPoolExecutor(threads) as pool:  # the head and the scans hold no lock
        answers = pool.map(ranked, states) if threads > 1 else map(ranked, states)
        for n, own in enumerate(with_progress(answers, n_users, "scoring the whole catalogue")):
            for lists, rows in zip((full, *by_depth.values()), own, strict=True):
                lists[n, : len(rows)] = rows
    return HeadLists(full, by_depth)


def head_alone(
    recommender: Recommends, dataset: Dataset, run: Run, chosen: I64, ks: Sequence[int]
) -> tuple[I64, CascadeLoss]:
    """Measures the head over the whole catalogue, and on as many candidates of the served retrieval as each depth.

    Args:
        recommender: what is evaluated.
        dataset: whose users are asked for.
        run: its lists for all users with targets.
        chosen: (c,) ascending places among the users of `run`.
        ks: list lengths.

    Returns:
        (c, K) rows of the head's best unheard tracks, as wide as the lists of `run`; and `cascade_loss` of the
        document: by depth, the share of the head's top 10 among the candidates, and NDCG@10 of the head on those.
    """
    catalog, depths = recommender.catalog, depths_within(DEPTHS, run.catalogue_size)

    def scoring(state: UserState) -> UserScoring:
        heard = catalog.rows(state.heard)
        whole = recommender.recommend(known_user(state, K, depth=depths[-1]))

        def candidates(depth: int) -> I64:
            several = whole.brought and depth < depths[-1]
            answer = recommender.recommend(known_user(state, K, depth=depth)) if several else whole
            return answer.candidates[:depth]

        excluded = np.concatenate([heard[heard >= 0], catalog.removed])
        return UserScoring(lambda rows: recommender.score(state, rows)[0], candidates, excluded)

    states = (state for _, state in user_states(dataset, run.as_of, positions=run.targets.users[chosen], mask=run.mask))
    width = run.lists["cascade"].shape[1]
    lists = head_lists(states, len(chosen), scoring, run.catalogue_size, depths, width)
    return lists.full, loss_curve(run, chosen, lists)


def best_rows(rows: I64, logits: F32, k: int) -> I64:
    """Chooses the best rows.

    Args:
        rows: (n,) distinct rows.
        logits: (catalogue,) of every row.
        k: how many at most.

    Returns:
        (min(k, n),) of `rows`, the highest logit first, ties by row.
    """
    own = logits[rows]
    if len(rows) > 4 * k:  # the same rows, without sorting all
        edge = np.partition(own, len(own) - k)[-k]
        rows, own = rows[own >= edge], own[own >= edge]
    return rows[np.lexsort((rows, -own))[:k]]


def loss_curve(run: Run, chosen: I64, lists: HeadLists) -> CascadeLoss:
    """Computes `cascade_loss` of the document.

    Args:
        run: what the users wanted.
        chosen: (c,) places of the users among those of `run`.
        lists: of these users.

    Returns:
        The loss by depth.
    """
    offsets = run.targets.take(chosen).offsets
    wanted = np.concatenate([run.wanted[run.targets.of(n)] for n in chosen])
    top = lists.full[:, :K]
    own = ndcg(top, offsets, wanted, run.catalogue_size)
    curve: list[DepthLoss] = []
    for depth, found in lists.by_depth.items():
        at = ndcg(found, offsets, wanted, run.catalogue_size)
        curve.append({"depth": depth, "overlap": overlaps(top, found), "ndcg": at, "ndcg_difference": at - own})
    return {"k": K, "full": {f"ndcg@{K}": own}, "curve": curve, "users": len(chosen)}


def overlaps(a: I64, b: I64) -> float | None:
    """Computes the share of the tracks of one list that are in another.

    Args:
        a: (n, K) rows, -1 padded.
        b: (n, K) rows of the same users.

    Returns:
        The mean over users with tracks in `a`; None without any.
    """
    held = (a[:, :, None] == b[:, None, :]).any(axis=2) & (a >= 0)
    sizes = (a >= 0).sum(axis=1)
    return float((held.sum(axis=1)[sizes > 0] / sizes[sizes > 0]).mean()) if sizes.any() else None


def ndcg(lists: I64, offsets: I64, wanted: I64, catalogue_size: int) -> float:
    """Computes the mean NDCG@K over users.

    Args:
        lists: (c, K) rows, -1 padded.
        offsets: (c + 1,) where the targets of each user are.
        wanted: catalog rows of the targets, ascending within a user.
        catalogue_size: how many tracks there are.

    Returns:
        0 to 1.
    """
    return rank_metrics(lists, offsets, wanted, catalogue_size, (K,)).means()[f"ndcg@{K}"]
