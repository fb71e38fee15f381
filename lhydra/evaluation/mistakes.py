"""What a recommender got wrong, for people to look at: users served worst, tracks missed most, where targets get lost.

A target is hit when it is in the top K of the served list; lost in retrieval when it was not even among the
candidates; lost in rerank when it was, and the head put it below K.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lhydra.data.dataset import TRAIN, Dataset
from lhydra.domain import I64, history_order
from lhydra.evaluation.document import MissedTrack, Mistakes, Reached, ReachedBin, ServedUser
from lhydra.evaluation.lists import Tracks
from lhydra.evaluation.run import Run, as_rows

K = 10
MAX_USERS, MAX_TRACKS = 10, 15  # shown
MAX_HISTORY, MAX_MISSED = 8, 10  # titles of a user, at most
ENOUGH_TARGETS = 3  # targets of a user whose bad list is more than bad luck
BINS = (0, 5, 20, 100, 500)  # most train listeners of each bin but the last
_USER_BLOCK = 4096  # users at a time

Bools = npt.NDArray[np.bool_]


def analyse(dataset: Dataset, catalog: Tracks, run: Run) -> Mistakes:
    """Collects `mistakes` of the document for the cascade.

    Args:
        dataset: whose users were asked for.
        catalog: what the rows of `run` belong to.
        run: the served lists.

    Returns:
        Users, tracks, and where targets got lost.
    """
    plays = dataset.plays
    listeners = np.bincount(plays.track[plays.fold == TRAIN], minlength=len(dataset.track_ids))
    hit, retrieved = reached(run)
    return {
        "users": _users(dataset, catalog, run),
        "tracks": _tracks(dataset, run, hit, listeners),
        "by_popularity": _by_popularity(hit, retrieved, listeners[run.targets.tracks]),
        "by_stage": _stages(hit, retrieved),
    }


def reached(run: Run) -> tuple[Bools, Bools]:
    """Finds how far each target came.

    Args:
        run: the served lists and their candidates.

    Returns:
        (m,) and (m,) bool in the order of `run.targets.tracks`: is it in the top K; is it among the candidates.
    """
    targets = run.targets
    hit, retrieved = np.zeros(len(targets.tracks), bool), np.zeros(len(targets.tracks), bool)
    size = run.catalogue_size + len(run.rows)
    rows = as_rows(run.rows, run.catalogue_size)[targets.tracks]
    owner = np.repeat(np.arange(len(targets.users)), np.diff(targets.offsets))
    for start in range(0, len(targets.users), _USER_BLOCK):
        end = min(start + _USER_BLOCK, len(targets.users))
        span = slice(targets.offsets[start], targets.offsets[end])
        wanted = (owner[span] - start) * size + rows[span]
        for found, lists in ((hit, run.lists["cascade"][start:end, :K]), (retrieved, run.candidates[start:end])):
            base = np.arange(end - start)[:, None] * size
            found[span] = np.isin(wanted, (base + lists)[lists >= 0])
    return hit, retrieved


def _stages(hit: Bools, retrieved: Bools) -> Reached:
    return {
        "targets": len(hit),
        "hit": int(hit.sum()),
        "lost_in_retrieval": int((~hit & ~retrieved).sum()),
        "lost_in_rerank": int((~hit & retrieved).sum()),
    }


def _by_popularity(hit: Bools, retrieved: Bools, listeners: I64) -> list[ReachedBin]:
    """The stages by train listeners of the target, bins without a target left out."""
    bins = np.searchsorted(BINS, listeners)
    least = [0, *(most + 1 for most in BINS)]
    names = [f"{low:,}–{most:,}" if low < most else f"{low:,}" for low, most in zip(least, BINS, strict=False)]
    names.append(f"over {BINS[-1]:,}")
    return [
        {"bin": f"{names[number]} listeners", **_stages(hit[bins == number], retrieved[bins == number])}
        for number in np.unique(bins)
    ]


def _tracks(dataset: Dataset, run: Run, hit: Bools, listeners: I64) -> list[MissedTrack]:
    """The tracks that most users wanted and did not get."""
    n = len(dataset.track_ids)
    wanted = np.bincount(run.targets.tracks, minlength=n)
    found = np.bincount(run.targets.tracks[hit], minlength=n)
    missed = wanted - found
    worst = np.argsort(-missed, kind="stable")[:MAX_TRACKS]
    worst = worst[missed[worst] > 0]
    names = titles(dataset, worst)
    return [
        {
            "track_id": dataset.track_ids[track],
            "title": name,
            "targets": int(wanted[track]),
            "found": int(found[track]),
            "listeners": int(listeners[track]),
        }
        for track, name in zip(worst.tolist(), names, strict=True)
    ]


def _users(dataset: Dataset, catalog: Tracks, run: Run) -> list[ServedUser]:
    """The users with the lowest ndcg@10; of equal ones those with more targets, whom luck explains less."""
    targets, ndcg = run.targets, run.metrics["cascade"].per_user[f"ndcg@{K}"]
    size = np.diff(targets.offsets)
    enough = np.flatnonzero(size >= min(ENOUGH_TARGETS, int(size.max())))
    worst = enough[np.lexsort((-size[enough], ndcg[enough]))][:MAX_USERS]
    return [_user(dataset, catalog, run, int(n)) for n in worst]


def _user(dataset: Dataset, catalog: Tracks, run: Run, n: int) -> ServedUser:
    user = int(run.targets.users[n])
    top = run.lists["cascade"][n, :K]
    wanted = run.targets.tracks[run.targets.of(n)]
    missed = wanted[~np.isin(run.rows[wanted], top[top >= 0])]
    return {
        "user_id": dataset.user_ids[user],
        "ndcg@10": float(run.metrics["cascade"].per_user[f"ndcg@{K}"][n]),
        "history": titles(dataset, _newest(dataset, user)),
        "list": _listed(dataset, catalog, run.rows, top[top >= 0]),
        "missed": titles(dataset, missed[:MAX_MISSED]),
    }


def _newest(dataset: Dataset, user: int) -> I64:
    """The tracks of the user's train fold, the reverse of `history_order`."""
    plays = dataset.plays
    own = slice(*np.searchsorted(plays.user, (user, user + 1)))
    train = plays.fold[own] == TRAIN
    track = plays.track[own][train].astype(np.int64)
    order = history_order(dataset.hashes[track], plays.count[own][train], plays.time[own][train])
    newest: I64 = track[order[::-1][:MAX_HISTORY]]
    return newest


def _listed(dataset: Dataset, catalog: Tracks, rows: I64, listed: I64) -> list[str]:
    """Titles of catalog rows; a track that the dataset does not know goes by its id."""
    order = np.argsort(rows, kind="stable")
    at = order[np.minimum(np.searchsorted(rows[order], listed), len(rows) - 1)]
    known = rows[at] == listed
    names = catalog.track_ids(listed)
    for place, name in zip(np.flatnonzero(known).tolist(), titles(dataset, at[known]), strict=True):
        names[place] = name
    return names


def titles(dataset: Dataset, tracks: I64) -> list[str]:
    """Names tracks as people do.

    Args:
        dataset: its tracks table.
        tracks: (n,) positions in the tracks table.

    Returns:
        n texts: title and artist, else the title, else the id.
    """
    ids = [dataset.track_ids[track] for track in tracks.tolist()]
    names, artists = (_texts(dataset, column, tracks) for column in ("name", "artist"))
    return [
        f"{name} – {artist}" if name and artist else name or track_id
        for name, artist, track_id in zip(names, artists, ids, strict=True)
    ]


def _texts(dataset: Dataset, column: str, tracks: I64) -> Sequence[str | None]:
    if column not in dataset.tracks.column_names:
        return [None] * len(tracks)
    texts: list[str | None] = dataset.tracks[column].take(tracks).to_pylist()
    return texts
