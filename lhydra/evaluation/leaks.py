"""Leak checks of a prepared dataset: does training get to see what evaluation asks for?

Verdicts: `ok`; `warning`, worth a look, the numbers may still be right; `leak`, the numbers flatter.
"""

import time
from typing import Any

import numpy as np

from lhydra.data.dataset import TEST, TRAIN, Dataset, Plays
from lhydra.data.split import MIN_PLAYS
from lhydra.domain import I64
from lhydra.evaluation.column_leaks import counted, finding, own_aggregates, track_columns, user_columns
from lhydra.evaluation.document import Finding


def find_leaks(dataset: Dataset) -> list[Finding]:
    """Checks a dataset; deterministic but for today's date.

    Args:
        dataset: a prepared dataset.

    Returns:
        The findings of every check, in the order of the checks.
    """
    plays = dataset.plays
    return [
        _ids(dataset),
        *_repeats(dataset, plays),
        _twin_users(dataset, plays),
        _twin_tracks(dataset, plays),
        _time_order(dataset, plays),
        _time_range(plays),
        _only_in_test(dataset, plays),
        *own_aggregates(dataset, plays),
        *track_columns(dataset, plays),
        *user_columns(dataset, plays),
    ]


# -- rows and ids -----------------------------------------------------------------------------------------


def _ids(dataset: Dataset) -> Finding:
    """The same id twice is two people or tracks whose plays belong together; one half may be in train."""
    twice = close = 0
    for ids in (dataset.user_ids, dataset.track_ids):
        distinct = set(ids)
        twice += len(ids) - len(distinct)
        close += len(distinct) - len({text.strip().casefold() for text in distinct})
    if twice:
        return finding(
            "duplicate ids", "leak", f"{counted(twice, 'user or track id')} more than once in the tables", twice
        )
    if close:
        text = f"{counted(close, 'user or track id')} equal to another but for case or spaces around"
        return finding("duplicate ids", "warning", text, close)
    return finding("duplicate ids", "ok", "every user and track id once", 0)


def _repeats(dataset: Dataset, plays: Plays) -> tuple[Finding, Finding]:
    """Fold overlap and duplicate plays.

    A pair in train and again later is repeat listening if time separates the two, else a leak.
    """
    keys = _pairs(dataset, plays)
    order = np.argsort(keys * 3 + plays.fold, kind="stable")  # by time within a pair and fold, as the plays are
    same_pair = keys[order[1:]] == keys[order[:-1]]
    fold, times = plays.fold[order], plays.time[order]
    later_fold = same_pair & (fold[1:] > fold[:-1])
    double = int(same_pair.sum()) - int(later_fold.sum())
    text = f"{counted(double, 'row')} of a user and track that the fold holds already"
    if double:
        twice = finding("duplicate plays", "warning", text, double)
    else:
        twice = finding("duplicate plays", "ok", "every user and track at most once in a fold", 0)

    pairs = int(later_fold.sum())
    share = pairs / max(1, int((fold > TRAIN).sum()))
    if not pairs:
        return finding("fold overlap", "ok", "no user has the same track in two folds", 0.0), twice
    protocol = dataset.info.split.get("protocol")
    by_time = protocol in ("temporal", "global-time", "column") and dataset.info.timed
    not_later = later_fold & ((times[1:] <= times[:-1]) | (times[1:] <= 0))
    wrong = int(not_later.sum()) if by_time else pairs
    if protocol == "next-session":  # by order, which may have no clock
        wrong = 0
    text = f"{counted(pairs, 'held-out play')} ({share:.1%}) of a track that the user has in an earlier fold"
    if wrong:
        why = "not later in time than there" if by_time else "which this split must not have"
        return finding("fold overlap", "leak", f"{text}; {wrong:,} of them {why}", share), twice
    text += ": repeat listening, later in time and never a target"
    return finding("fold overlap", "ok", text, share), twice


def _twin_users(dataset: Dataset, plays: Plays) -> Finding:
    """Two ids with the very same tracks are one person: what is held out of one is in the train fold of the other."""
    n_users, n_tracks = len(dataset.user_ids), len(dataset.track_ids)
    keys = _distinct(_pairs(dataset, plays))
    user, track = keys // n_tracks, keys % n_tracks
    marks = np.random.PCG64(0).random_raw(n_tracks)
    total = np.zeros(n_users, np.uint64)
    np.add.at(total, user, marks[track])  # equal sets have equal sums; others by an accident of 1 in 2**64
    size = np.bincount(user, minlength=n_users)
    held_out = np.bincount(plays.user[plays.fold > TRAIN], minlength=n_users) > 0
    rich = np.flatnonzero(size >= 5)  # fewer tracks agree by chance
    _, inverse, counts = np.unique(total[rich], return_inverse=True, return_counts=True)
    twins = int((held_out[rich] & (counts[inverse] > 1)).sum())
    share = twins / max(1, int(held_out.sum()))
    if not twins:
        return finding("twin users", "ok", "no two users with the very same tracks", 0.0)
    text = f"{counted(twins, 'evaluated user')} ({share:.1%}) with the very same tracks as another user"
    return finding("twin users", "leak" if share >= 0.01 else "warning", text, share)


def _twin_tracks(dataset: Dataset, plays: Plays) -> Finding:
    """A target that the user heard under another id, judged by title and artist."""
    check = "twin tracks"
    names = [column.name for column in dataset.info.track_columns if column.name in ("name", "artist")]
    if len(names) < 2:
        return finding(check, "ok", "not checked: needs a title and an artist of every track", None)
    title, artist = (_codes(dataset.tracks[name].to_pylist()) for name in ("name", "artist"))
    _, same = np.unique(title * (artist.max(initial=0) + 1) + artist, return_inverse=True)
    twin = np.bincount(same)[same] > 1
    twin &= (title > 0) & (artist > 0)
    stride = len(dataset.track_ids) + 1
    concerned = plays.where(twin[plays.track])
    train, later = concerned.where(concerned.fold == TRAIN), concerned.where(concerned.fold > TRAIN)
    before = train.user.astype(np.int64) * stride + same[train.track]
    heard = np.isin(later.user.astype(np.int64) * stride + same[later.track], before)
    heard &= ~np.isin(_pairs(dataset, later), _pairs(dataset, train))
    count, share = int(heard.sum()), int(heard.sum()) / max(1, int((plays.fold > TRAIN).sum()))
    text = f"{counted(int(twin.sum()), 'track')} share title and artist with another; {counted(count, 'held-out play')}"
    text += f" ({share:.1%}) of a track that the user has in train under another id"
    return finding(check, "warning" if share > 0.01 else "ok", text, share)


def _only_in_test(dataset: Dataset, plays: Plays) -> Finding:
    """No leak, but what nobody can learn; many of them mean that the split is not what one thinks."""
    train = plays.fold == TRAIN
    test = plays.where(plays.fold == TEST)
    track_known, user_known = np.zeros(len(dataset.track_ids), bool), np.zeros(len(dataset.user_ids), bool)
    track_known[plays.track[train]], user_known[plays.user[train]] = True, True
    lost_track, lost_user = ~track_known[test.track], ~user_known[test.user]
    tracks, users = len(np.unique(test.track[lost_track])), len(np.unique(test.user[lost_user]))
    share = float((lost_track | lost_user).mean()) if len(test) else 0.0
    text = f"{counted(users, 'user')} and {counted(tracks, 'track')} of the test fold without a play in train"
    text += f": {share:.1%} of its plays"
    return finding("ids only in test", "warning" if share > 0.2 else "ok", text, share)


# -- time -------------------------------------------------------------------------------------------------


def _time_order(dataset: Dataset, plays: Plays) -> Finding:
    """Train plays later than the plays to predict: for a split by time a leak."""
    check, protocol = "future plays in train", str(dataset.info.split.get("protocol"))
    if not dataset.info.timed:
        return finding(check, "ok", "not checked: the plays have no timestamps", None)
    known = plays.time > 0
    train, later = known & (plays.fold == TRAIN), known & (plays.fold > TRAIN)
    n_users = len(dataset.user_ids)
    first = np.full(n_users, np.iinfo(np.int64).max)
    if protocol in ("temporal", "global-time"):
        first[:] = plays.time[later].min(initial=np.iinfo(np.int64).max)
    else:
        np.minimum.at(first, plays.user[later], plays.time[later])
    ahead = train & (plays.time > first[plays.user])
    text = f"{counted(int(ahead.sum()), 'train play')} later than the first held-out play"
    text += "" if protocol in ("temporal", "global-time") else " of their user"
    share = int(ahead.sum()) / max(1, int(train.sum()))
    if not ahead.any():
        return finding(check, "ok", f"no {text[2:] if text.startswith('0 ') else text}", 0.0)
    if protocol not in ("temporal", "global-time", "leave-last", "next-session"):
        note = f"{text}, as in any split that is not by time: the model sees the future"
        return finding(check, "warning", note, share)
    # who has hardly any plays is all train by the protocol
    small = np.zeros(n_users, bool)
    keys = _distinct(_pairs(dataset, plays))
    if protocol in ("temporal", "leave-last"):
        small[:] = np.bincount(keys // len(dataset.track_ids), minlength=n_users) < MIN_PLAYS
    if (ahead & ~small[plays.user]).any():
        return finding(check, "leak", f"{text}, which a {protocol} split must not have", share)
    text += f", all of users with fewer than {MIN_PLAYS} tracks, who are train by the protocol"
    return finding(check, "warning" if share > 0.01 else "ok", text, share)


def _time_range(plays: Plays) -> Finding:
    early, late = int((plays.time < 0).sum()), int((plays.time > time.time() + 86_400).sum())
    if not early + late:
        return finding("timestamps", "ok", "no play before 1970 or after today", 0)
    text = f"{counted(early, 'play')} before 1970, {late:,} after today (milliseconds taken for seconds?)"
    return finding("timestamps", "warning", text, early + late)


# -- columns ----------------------------------------------------------------------------------------------


# -- parts ------------------------------------------------------------------------------------------------


def _pairs(dataset: Dataset, plays: Plays) -> I64:
    """(user, track) as one number each."""
    return plays.user.astype(np.int64) * len(dataset.track_ids) + plays.track


def _distinct(keys: I64) -> I64:
    """The distinct keys, ascending; np.unique hashes, which takes ten times as long for millions of distinct ones."""
    ordered = np.sort(keys)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def _codes(texts: list[Any]) -> I64:
    """Texts as numbers, equal but for case; 0 for a missing one."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(text.casefold(), len(known) + 1) if text else 0 for text in texts], np.int64)
