"""Rule sets beside no rules, on the same users: what each costs in accuracy and what it gains.

distance by tags          1 - mean cosine of the tags (else genres) of two tracks of a list
distance by co-listening  1 - mean cosine of the sets of train users who played them; diversity optimises neither
calibration error         KL of the genres of a history from those of the list, smoothed by 0.01 (Steck 2018)
novelty                   mean -log2 of the share of train users who played a track, one at least
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lhydra.console import with_progress
from lhydra.data.dataset import TRAIN, Dataset, Mask, user_states
from lhydra.domain import I64
from lhydra.evaluation.beyond import kl_calibration
from lhydra.evaluation.bootstrap import difference
from lhydra.evaluation.cohorts import genre_shares, genres, train_counts
from lhydra.evaluation.document import NDCG, RuleFigures, RuleGains
from lhydra.evaluation.lists import Recommends
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Moment, as_rows, find_targets
from lhydra.queries import known_user
from lhydra.rules import Rules

K = 10
PLAIN = "no rules"


def measure_rules(
    recommender: Recommends,
    dataset: Dataset,
    sets: Mapping[str, Rules],
    *,
    as_of: Moment = "test",
    mask: Mask = "seen",
    users: int = 0,
    seed: int = 0,
    now: int = 0,
) -> list[RuleFigures]:
    """Measures rule sets on the users with targets.

    Args:
        recommender: what is evaluated.
        dataset: whose held-out plays are the targets.
        sets: by name.
        as_of: the fold of the targets.
        mask: what of a user is left out of lists.
        users: how many users are drawn, 0 for all.
        seed: of that draw, of the intervals, and of explored places.
        now: Unix seconds, at which dated rules hold.

    Returns:
        Figures of no rules, then of each set.

    Raises:
        DataError: nobody has a target.
    """
    targets = find_targets(dataset, as_of, mask)
    if 0 < users < len(targets):
        targets = targets.sample(users, seed)
    rows = recommender.catalog.rows(dataset.hashes)
    asked: dict[str, Rules | None] = {PLAIN: None, **sets}
    lists = {name: np.full((len(targets), K), -1, np.int64) for name in asked}
    states = user_states(dataset, as_of, positions=targets.users, mask=mask)
    for place, (_, state) in enumerate(with_progress(states, len(targets), "applying rules")):
        query = known_user(state, K, now=now)
        for name, rules in asked.items():
            found = recommender.recommend(replace(query, rules=rules, seed=seed + place)).rows
            lists[name][place, : len(found)] = found
    size = len(recommender.catalog)
    wanted = as_rows(rows, size)[targets.tracks]
    wanted = wanted[np.lexsort((wanted, np.repeat(targets.users, np.diff(targets.offsets))))]
    track_of = np.full(size, -1, np.int64)
    track_of[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    ndcg = {
        name: rank_metrics(found, targets.offsets, wanted, size, (K,)).per_user[NDCG] for name, found in lists.items()
    }
    figures: list[RuleFigures] = []
    for name, found in lists.items():
        tracks = np.where(found >= 0, track_of[np.maximum(found, 0)], -1)
        figures.append(
            {
                "name": name,
                "ndcg@10": float(np.nanmean(ndcg[name])),
                "paired": difference(ndcg[PLAIN], ndcg[name], seed),
                "coverage@10": len(np.unique(found[found >= 0])) / size,
                "gains": _beyond(dataset, tracks, targets.users),
            }
        )
    return figures


def list_distance(lists: I64, offsets: I64, held: I64, size: int) -> float | None:
    """Computes 1 - the mean cosine of two tracks of a list, each the set of what it holds.

    Args:
        lists: (n, k) tracks, -1 padded.
        offsets: (tracks + 1,) where what each track holds lies in `held`.
        held: distinct numbers within a track, below `size`.
        size: how many things can be held.

    Returns:
        The mean over lists with two tracks or more that hold anything; None without any.
    """
    sizes = np.diff(offsets)
    distances = []
    for own in lists:
        own = own[own >= 0]
        own = own[sizes[own] > 0]
        if (m := len(own)) > 1:
            parts = [held[offsets[track] : offsets[track + 1]] for track in own]
            lengths = [len(part) for part in parts]
            total = np.bincount(np.concatenate(parts), np.repeat(1 / np.sqrt(lengths), lengths), size)
            distances.append(1 - (float((total**2).sum()) - m) / (m * (m - 1)))  # of all pairs, each with itself
    return float(np.mean(distances)) if distances else None


def _beyond(dataset: Dataset, lists: I64, users: I64) -> RuleGains:
    plays = dataset.plays
    fed = plays.fold == TRAIN
    keys = np.unique(plays.track[fed].astype(np.int64) * len(dataset.user_ids) + plays.user[fed])
    track, listener = np.divmod(keys, len(dataset.user_ids))
    offsets = np.searchsorted(track, np.arange(dataset.n_tracks + 1))
    train_users = max(1, len(np.unique(listener)))
    played, _ = train_counts(dataset)
    shown = lists[lists >= 0]
    tags = genres(dataset, ("tags", "main_genre", "genre"))
    found = genres(dataset)
    error = None
    if found is not None and len(found[0]):
        names, starts, held = found
        at = np.searchsorted(users, plays.user[fed & np.isin(plays.user, users)])
        history = genre_shares(at, plays.track[fed & np.isin(plays.user, users)], len(users), starts, held, len(names))
        place, _ = np.nonzero(lists >= 0)
        error = kl_calibration(history, genre_shares(place, shown, len(users), starts, held, len(names)))
    return {
        "distance_by_tags": list_distance(lists, tags[1], tags[2], len(tags[0])) if tags else None,
        "distance_by_co_listening": list_distance(lists, offsets, listener, len(dataset.user_ids)),
        "calibration_error": error,
        "novelty": float(-np.log2(np.maximum(played[shown], 1) / train_users).mean()) if len(shown) else None,
    }
