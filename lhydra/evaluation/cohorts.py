"""Who is served well: metrics by group of users, and for rare tracks, new tracks and cold users."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.data.dataset import TRAIN, Dataset
from lhydra.domain import I64, Tier
from lhydra.evaluation.bootstrap import intervals
from lhydra.evaluation.document import NDCG, RECALL, Cohort, Slice, Slices
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Run, as_rows

Mask = npt.NDArray[np.bool_]
METRICS = (NDCG, RECALL)
FEWEST_USERS = 10  # users that make a cohort
MOST_COHORTS = 12  # cohorts of one kind: those with the most users
FEW_PLAYS = 5
_AGES = (18, 25, 35, 45, 55)
_GENRE_COLUMNS = ("main_genre", "genre", "tags")


def cohorts(dataset: Dataset, run: Run, seed: int) -> list[Cohort]:
    """Computes `cohorts` of the document: the cascade by declared attribute, activity, favourite genre and tier.

    Args:
        dataset: whose users are grouped.
        run: how each of them was served.
        seed: of the intervals.

    Returns:
        At most MOST_COHORTS of a kind, of at least FEWEST_USERS users each.
    """
    values = np.stack([run.metrics["cascade"].per_user[name] for name in METRICS], axis=1)
    found: list[Cohort] = []
    for by, groups in _groupings(dataset, run):
        sizes = {name: int(members.sum()) for name, members in groups.items()}
        largest = sorted(groups, key=lambda name: -sizes[name])[:MOST_COHORTS]
        for name in (name for name in groups if name in largest and sizes[name] >= FEWEST_USERS):
            ndcg, recall = intervals(values[groups[name]], seed)
            found.append({"by": by, "name": name, "users": sizes[name], NDCG: ndcg, RECALL: recall})
    return found


def slices(dataset: Dataset, run: Run, seed: int) -> Slices:
    """Computes `slices` of the document: targets with few train plays or none, users with none or the fewest.

    Args:
        dataset: whose plays are counted.
        run: how each user was served.
        seed: of the intervals.

    Returns:
        The cascade on each slice.
    """
    listeners, own = train_counts(dataset)
    users = run.targets.users
    rare = _by_wanted(run, listeners)
    cold = np.zeros(len(users), np.bool_)
    cold[np.argsort(own[users], kind="stable")[: max(1, len(users) // 5)]] = True
    return {
        "few_play_tracks": {"at_most": FEW_PLAYS, **_slice(run, rare <= FEW_PLAYS, seed)},
        "new_tracks": {"at_most": 0, **_slice(run, rare == 0, seed)},
        "new_users": _slice(run, _of_users(run, own[users] == 0), seed),
        "cold_users": _slice(run, _of_users(run, cold), seed),
    }


def train_counts(dataset: Dataset) -> tuple[I64, I64]:
    """Counts the plays of the train fold.

    Args:
        dataset: a prepared dataset.

    Returns:
        (tracks,) listeners of each track and (users,) tracks of each user, by position in the tables.
    """
    plays = dataset.plays
    fed = plays.fold == TRAIN
    tracks = np.bincount(plays.track[fed], minlength=len(dataset.track_ids))
    return tracks, np.bincount(plays.user[fed], minlength=len(dataset.user_ids))


def genres(dataset: Dataset, names: Sequence[str] = _GENRE_COLUMNS) -> tuple[list[str], I64, I64] | None:
    """Reads the genres of tracks: the first of some columns that the tracks have.

    Args:
        dataset: a prepared dataset.
        names: of the columns, by default main_genre, genre and tags.

    Returns:
        Genre names; (tracks + 1,) offsets; the distinct genres of each track back to back. None without a column.
    """
    columns = {column.name for column in dataset.info.track_columns}
    name = next((name for name in names if name in columns), None)
    if name is None:
        return None
    numbers: dict[str, int] = {}
    held: list[int] = []
    offsets = np.zeros(len(dataset.track_ids) + 1, np.int64)
    for n, value in enumerate(dataset.tracks[name].to_pylist()):
        own = dict.fromkeys(value if isinstance(value, list) else [value])
        held += [numbers.setdefault(str(genre), len(numbers)) for genre in own if genre is not None and genre != ""]
        offsets[n + 1] = len(held)
    return list(numbers), offsets, np.array(held, np.int64)


def genre_shares(users: I64, tracks: I64, n_users: int, offsets: I64, held: I64, n_genres: int) -> Any:
    """Computes what share of each user's tracks is of each genre.

    Args:
        users: (p,) user of each pair, below `n_users`.
        tracks: (p,) track of each pair; one with several genres counts for each in equal parts.
        n_users: how many rows.
        offsets: (tracks + 1,) as of `genres`.
        held: the genres of each track back to back.
        n_genres: how many columns.

    Returns:
        (n_users, n_genres) shares; a row without genres is 0.
    """
    sizes = np.diff(offsets)[tracks]
    places = np.repeat(offsets[tracks] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    keys = np.repeat(users, sizes) * n_genres + held[places]
    weight = np.repeat(1 / np.maximum(sizes, 1), sizes)
    shares = np.bincount(keys, weight, n_users * n_genres).reshape(n_users, n_genres)
    return shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)


def _groupings(dataset: Dataset, run: Run) -> Iterator[tuple[str, dict[str, Mask]]]:
    users = run.targets.users
    for column in dataset.info.user_columns:
        values = dataset.users[column.name].to_pylist()
        own = [values[user] for user in users]
        if column.name == "age" and column.kind == "numeric":
            yield "age group", _ages(np.array([np.nan if age is None else age for age in own], np.float64))
        elif column.kind == "categorical":
            yield column.name, _named(np.array(["" if value is None else str(value) for value in own]))
    plays = train_counts(dataset)[1][users]
    if len(plays) and plays.max() > plays.min():
        edges = np.unique(np.quantile(plays, (0.25, 0.5, 0.75)).astype(np.int64))
        place = np.searchsorted(edges, plays)
        members = [place == n for n in range(len(edges) + 1)]
        yield "activity", {_span(plays[own], "train tracks"): own for own in members if own.any()}
    found = genres(dataset)
    if found is not None and len(found[0]):
        names, offsets, held = found
        fed = (dataset.plays.fold == TRAIN) & np.isin(dataset.plays.user, users)
        place = np.searchsorted(users, dataset.plays.user[fed])
        favourites = []
        step = max(1, (1 << 24) // len(names))
        for start in range(0, len(users), step):
            some = (place >= start) & (place < start + step)
            size = min(step, len(users) - start)
            share = genre_shares(place[some] - start, dataset.plays.track[fed][some], size, offsets, held, len(names))
            favourites.append(np.where(share.any(axis=1), share.argmax(axis=1), -1))
        yield "genre", _named(np.array([*names, ""])[np.concatenate(favourites)])
    yield "tier", {tier.label: run.tiers == tier for tier in Tier if (run.tiers == tier).any()}


def _ages(ages: npt.NDArray[np.float64]) -> dict[str, Mask]:
    edges = [-np.inf, *_AGES, np.inf]
    names = [f"under {_AGES[0]}", *(f"{a}-{b - 1}" for a, b in itertools.pairwise(_AGES)), f"{_AGES[-1]}+"]
    spans = zip(names, edges, edges[1:], strict=False)
    return {name: (ages >= low) & (ages < high) for name, low, high in spans}


def _named(values: npt.NDArray[np.str_]) -> dict[str, Mask]:
    found, counts = np.unique(values[values != ""], return_counts=True)
    largest = np.sort(found[np.argsort(-counts, kind="stable")[:MOST_COHORTS]])
    return {str(value): values == value for value in largest}


def _span(values: I64, unit: str) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,} {unit}" if low == high else f"{low:,} to {high:,} {unit}"


def _by_wanted(run: Run, listeners: I64) -> I64:
    """(m,) listeners of each of `run.wanted`, which is ordered by catalog row."""
    by_row = np.zeros(run.catalogue_size + len(run.rows), np.int64)
    by_row[as_rows(run.rows, run.catalogue_size)] = listeners
    return by_row[run.wanted]


def _of_users(run: Run, chosen: Mask) -> Mask:
    """(m,) bool by target from (n,) bool by user."""
    return np.repeat(chosen, np.diff(run.targets.offsets))


def _slice(run: Run, kept: Mask, seed: int) -> Slice:
    """The cascade judged on the targets that are `kept`, (m,) bool, alone; users without one are left out."""
    sizes = np.add.reduceat(kept, run.targets.offsets[:-1], dtype=np.int64)
    if not kept.any():
        return {"targets": 0, "users": 0, NDCG: None, RECALL: None, "intervals": {}}
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    found = rank_metrics(run.lists["cascade"], offsets, run.wanted[kept], run.catalogue_size, (10, 20)).per_user
    measured = intervals(np.stack([found[name] for name in METRICS], axis=1), seed)
    return {
        "targets": int(kept.sum()),
        "users": int((sizes > 0).sum()),
        NDCG: measured[0]["mean"],
        RECALL: measured[1]["mean"],
        "intervals": dict(zip(METRICS, measured, strict=True)),
    }
