"""How many candidates to rerank: the fewest with which the cascade loses next to nothing.

For some users the head scores the whole catalogue. What of its own best list is among the `depth` candidates, exact
retrieval's and those of the other sources, is what reranking so many can find; the order is the head's either way.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lhydra.bundle.candidates import brought, moment_of
from lhydra.bundle.exact import nearest
from lhydra.bundle.manifest import Cascade, DepthPoint
from lhydra.data.dataset import AsOf, Dataset, user_states
from lhydra.data.plays import with_plays
from lhydra.domain import I64, Query, UserState
from lhydra.evaluation.bootstrap import F64
from lhydra.evaluation.cascade import HeadLists, K, UserScoring, depths_within, head_lists, ndcg
from lhydra.evaluation.run import Targets, as_rows
from lhydra.recommender import Recommender
from lhydra.timing import timed

DEPTHS = (100, 150, 200, 300, 400, 500, 700, 1000, 1500, 2000)
MOST_LOSS = 0.01  # of NDCG@10
MAX_PAIRS = 40_000_000  # (user, track) pairs that the head is asked for: half a minute on two cores
FEWEST_USERS, MOST_USERS = 20, 500


@timed("rebuild.depth")
def measure(
    recommender: Recommender, dataset: Dataset, as_of: AsOf, targets: Targets | None, *, threads: int, seed: int
) -> Cascade:
    """Measures by depth what is lost against the head over the whole catalogue.

    Besides NDCG@10 on what users went on to play there is always the agreement: NDCG@10 with the head's own list for
    what is wanted, its best track the most.

    Args:
        recommender: of the bundle to be published.
        dataset: whose users are drawn.
        as_of: the fold up to which their plays are known.
        targets: what they went on to play, None where nothing was held out.
        threads: how many users are ranked at once.
        seed: of the draw.

    Returns:
        `cascade` of the manifest.
    """
    n = len(recommender.catalog)
    most = int(min(MOST_USERS, max(FEWEST_USERS, MAX_PAIRS // n)))
    if targets is not None:
        targets = targets.sample(most, seed)
        users = targets.users
    else:
        users = np.sort(np.random.default_rng(seed).permutation(len(dataset.user_ids))[:most])
    states = user_states(dataset, as_of, positions=users)
    if recommender.bundle.head.knows_moments:
        states = with_plays(dataset, as_of, states, positions=users)
    found = lists(recommender, [state for _, state in states], threads)
    agreement = {depth: agreements(found.full, own) for depth, own in found.by_depth.items()}
    curve: list[DepthPoint] = [{"depth": depth, "agreement": _mean(own)} for depth, own in agreement.items()]
    full = None
    if targets is not None:
        rows = as_rows(recommender.catalog.rows(dataset.hashes), n)[targets.tracks]
        wanted = np.concatenate([np.empty(0, np.int64), *(np.sort(rows[targets.of(u)]) for u in range(len(targets)))])
        full = round(ndcg(found.full, targets.offsets, wanted, n), 6)
        for at, own in zip(curve, found.by_depth.values(), strict=True):
            at["ndcg"] = round(ndcg(own, targets.offsets, wanted, n), 6)
    return {"k": K, "users": len(users), "ndcg": full, "curve": curve}


def choose(cascade: Cascade) -> int:
    """Chooses how many candidates to rerank.

    Args:
        cascade: of `measure`.

    Returns:
        The smallest depth from which on no more than MOST_LOSS is lost; the largest where none is so good.
    """
    chosen = cascade["curve"][-1]["depth"]
    for at in reversed(cascade["curve"]):
        if loss_at(cascade, at["depth"]) > MOST_LOSS:
            break
        chosen = at["depth"]
    return int(chosen)


def loss_at(cascade: Cascade, depth: int) -> float:
    """Computes the share of the head's NDCG@10 that is lost at a depth.

    On what users went on to play or on the head's own list, whichever is less: of few users the first is mostly
    chance, and a list may differ and be as good.

    Args:
        cascade: of `measure`.
        depth: candidates; between two measured depths, the loss is that of the smaller one.

    Returns:
        The share, below 0 where the head gains.
    """
    at = next((at for at in reversed(cascade["curve"]) if at["depth"] <= depth), cascade["curve"][0])
    own = float(1 - at["agreement"])
    return min(own, float(1 - at["ndcg"] / cascade["ndcg"])) if cascade["ndcg"] else own


def lists(recommender: Recommender, states: Sequence[UserState], threads: int) -> HeadLists:
    """Ranks all tracks, and those that are candidates by depth, by the head; heard and removed are left out.

    Args:
        recommender: of the bundle to be published.
        states: of the users.
        threads: how many users are ranked at once.

    Returns:
        (c, K) lists over everything, and by depth.
    """
    catalog, bundle = recommender.catalog, recommender.bundle
    depths = depths_within(DEPTHS, len(catalog))

    def scoring(state: UserState) -> UserScoring:
        heard = catalog.rows(state.heard)
        excluded = np.union1d(heard[heard >= 0], catalog.removed).astype(np.int64)
        user = recommender.encode(state)
        vector = bundle.embed(user)
        rows, cosines = nearest(catalog.vectors, vector, depths[-1], excluded)
        moment = moment_of(bundle, state, user, 0)

        def candidates(depth: int) -> I64:
            if moment is None and not len(bundle.co_listening):
                return rows[:depth]
            near = rows[:depth], cosines[:depth]
            return brought(bundle, Query(K, state), moment, user, near, vector, depth, excluded, None)[1][0]

        return UserScoring(lambda rows: bundle.score(vector, user, rows, moment)[0], candidates, excluded)

    return head_lists(states, len(states), scoring, len(catalog), depths, K, threads)


def agreements(full: I64, found: I64) -> F64:
    """Computes for each user the NDCG of one list when the tracks of another are what is wanted, the first the most.

    The gain of a track is its discount in `full`, so a list that keeps the best of it loses little.

    Args:
        full: (c, K) rows, -1 padded.
        found: (c, K) rows of the same users.

    Returns:
        (c,) 0 to 1; NaN for a user with an empty `full`.
    """
    gain = 1 / np.log2(np.arange(2, full.shape[1] + 2))
    held = (full[:, :, None] == found[:, None, :]).any(axis=2) & (full >= 0)
    ideal = ((full >= 0) * gain).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((held * gain).sum(axis=1) / ideal)


def _mean(values: F64) -> float:
    return round(float(np.nanmean(values)), 6) if not np.isnan(values).all() else 1.0


def table(cascade: Cascade, depth: int) -> tuple[list[str], list[list[str]]]:
    """Writes the curve for people.

    Args:
        cascade: of `measure`.
        depth: the one that was chosen, which is marked.

    Returns:
        Header and rows.
    """

    def rows() -> Iterator[list[str]]:
        for at in cascade["curve"]:
            ndcg = f"{at['ndcg']:.4f}" if "ndcg" in at else "-"
            mark = "chosen" if at["depth"] == depth else ""
            yield [f"{at['depth']:,}", ndcg, f"{loss_at(cascade, at['depth']):+.2%}", f"{at['agreement']:.4f}", mark]

    return ["depth", "NDCG@10", "lost", "agreement", ""], list(rows())
