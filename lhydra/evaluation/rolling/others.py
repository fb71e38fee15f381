"""Baselines of everybody's listening: what many play, what is played together, what follows what.

Rows of others are those that the fit may see; the user's own grow until the moment asked for.
"""

from dataclasses import replace

import numpy as np

from lhydra.domain import I64
from lhydra.evaluation.rolling.own import Params, Scored, Scorer, ages, summed
from lhydra.evaluation.rolling.past import F64, Known, Past, Rows
from lhydra.features.histories import offsets_of, spans

_FAVOURITES = 1000  # of the popular tracks, so many are scored
_HALF_LIVES = 10  # a play older than so many half-lives counts nothing
_FOLLOWERS = 10  # places after a play that count as following it


def fit_popular(past: Past, params: Params) -> Scorer:
    """Scores a track by its listeners of all time.

    Args:
        past: what is fitted on.
        params: none.

    Returns:
        The scorer.
    """
    top = past.favourites[:_FAVOURITES]
    scored = (top, past.listeners[top].astype(np.float64))
    return lambda known: scored


def fit_popular_lately(past: Past, params: Params) -> Scorer:
    """Scores a track by everybody's plays before the moment, each half as much after every `days`.

    Args:
        past: all plays; those of others count as soon as they lie before the moment.
        params: days.

    Returns:
        The scorer; without a clock it knows nothing.
    """
    order = np.argsort(past.events.time, kind="stable")
    times, tracks = past.events.time[order], past.events.track[order]
    half_life = params["days"] * 86_400.0

    def score(known: Known) -> Scored:
        start, stop = np.searchsorted(times, [max(known.now - _HALF_LIVES * half_life, 1), known.now])
        weights = np.exp2((times[start:stop] - known.now) / half_life)
        scores = np.bincount(tracks[start:stop], weights, past.n_tracks)
        found = np.flatnonzero(scores > 0)
        if len(found) > 2 * _FAVOURITES:
            found = found[np.argpartition(-scores[found], _FAVOURITES)[:_FAVOURITES]]
        return found, np.asarray(scores[found], np.float64)

    return score


def question(known: Known, params: Params) -> Scored:
    """Weighs what the user has played as the question to neighbours: the session that goes on, or all by age.

    Args:
        known: of a moment.
        params: unit and d of the ages; `last`: so many plays at most.

    Returns:
        Distinct tracks and their weights.
    """
    last = slice(-params["last"], None) if "last" in params else slice(None)
    tracks, inverse = np.unique(known.tracks[last], return_inverse=True)
    weights = np.zeros(len(tracks))
    np.maximum.at(weights, inverse, ages(known, params["unit"])[last] ** -params["d"])
    return tracks, weights


def near_rows(rows: Rows, past: Past, known: Known, tracks: I64, weights: F64) -> tuple[I64, F64]:
    """Finds the rows that hold some of the tracks.

    Args:
        rows: users or sessions.
        past: what is fitted on.
        known: of a moment.
        tracks: (n,) distinct.
        weights: (n,) of each.

    Returns:
        The rows, ascending, and the summed weights of the tracks that they hold over the root of their size.
    """
    limits = past.limits(known)
    starts, ends = rows.of_track[tracks], rows.of_track[tracks + 1]
    pairs = rows.by_track[spans(starts, ends)]
    row = rows.row[pairs]
    visible = rows.event[pairs] < limits[rows.user[row]]
    total = np.bincount(row[visible], np.repeat(weights, ends - starts)[visible], len(rows.user))
    found = np.flatnonzero(total > 0)
    size = rows.fitted[found]
    own = np.flatnonzero(rows.user[found] == known.user)
    for place in own.tolist():  # grown since the fit
        start, stop = rows.of_row[found[place]], rows.of_row[found[place] + 1]
        size[place] = (rows.event[start:stop] < known.cut).sum()
    return found, total[found] / np.sqrt(size)


def tracks_of(rows: Rows, past: Past, known: Known, found: I64, weights: F64) -> Scored:
    """Adds up the tracks of rows.

    Args:
        rows: users or sessions.
        past: what is fitted on.
        known: of a moment.
        found: (n,) distinct rows.
        weights: (n,) of each.

    Returns:
        The tracks that they hold and the summed weights of the rows.
    """
    limits = past.limits(known)
    starts, ends = rows.of_row[found], rows.of_row[found + 1]
    pairs = spans(starts, ends)
    visible = rows.event[pairs] < limits[rows.user[rows.row[pairs]]]
    total = np.bincount(rows.track[pairs][visible], np.repeat(weights, ends - starts)[visible], past.n_tracks)
    tracks = np.flatnonzero(total > 0)
    return tracks, np.asarray(total[tracks], np.float64)


def fit_co_listening(past: Past, params: Params) -> Scorer:
    """Scores a track by who or what session has it beside what the user has played (Deshpande and Karypis 2004).

    Args:
        past: what is fitted on.
        params: rows `users` or `sessions`; unit and d, how the user's plays weigh by age; norm, the power of the
            listeners by which a track is divided.

    Returns:
        The scorer.
    """
    rows = past.users if params["rows"] == "users" else past.sessions
    listeners = np.maximum(past.listeners, 1).astype(np.float64)

    def score(known: Known) -> Scored:
        tracks, weights = question(known, params)
        found, total = near_rows(rows, past, known, tracks, weights / np.sqrt(listeners[tracks]))
        tracks, scores = tracks_of(rows, past, known, found, total)
        return tracks, scores / listeners[tracks] ** params["norm"]

    return score


def fit_vsknn(past: Past, params: Params) -> Scorer:
    """Scores a track by the sessions most like the user's last plays, later ones weighing more (V-SKNN, Ludewig 2018).

    Args:
        past: what is fitted on.
        params: neighbours: sessions; last, unit and d, which plays are asked with; idf: whether rare tracks weigh more.

    Returns:
        The scorer.
    """
    rows = past.sessions
    rarity = np.log(1 + (past.listeners.max(initial=0) + 1) / np.maximum(past.listeners, 1))

    def score(known: Known) -> Scored:
        tracks, weights = question(known, params)
        before = known
        if known.current.any():  # the session that goes on is no neighbour of itself
            before = replace(known, cut=known.cut - len(known.tracks) + int(known.current.argmax()))
        found, total = near_rows(rows, past, before, tracks, weights * rarity[tracks] if params["idf"] else weights)
        if len(found) > params["neighbours"]:
            best = np.sort(np.argsort(-total, kind="stable")[: params["neighbours"]])
            found, total = found[best], total[best]
        tracks, scores = tracks_of(rows, past, before, found, total)
        return tracks, scores * rarity[tracks] if params["idf"] else scores

    return score


def fit_transitions(past: Past, params: Params) -> Scorer:
    """Scores a track by how often, and how closely, it followed what was played last, in the same session.

    Args:
        past: what is fitted on.
        params: last, unit and d, which plays are asked with; norm: the power of its listeners by which what was played
            last is divided.

    Returns:
        The scorer.
    """
    order, starts = past.by_session
    session = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    track, user = past.events.track[order].astype(np.int64), past.events.user[order]
    session[past.events.session[order] < 0] = -1
    by_track = np.argsort(track, kind="stable").astype(np.int64)
    counts = np.bincount(track, minlength=past.n_tracks)
    begin = offsets_of(counts)
    listeners = np.maximum(past.listeners, 1).astype(np.float64)
    steps = np.arange(1, _FOLLOWERS + 1)

    def score(known: Known) -> Scored:
        limits = past.limits(known)
        tracks, weights = question(known, params)
        places = by_track[spans(begin[tracks], begin[tracks + 1])]
        weights = np.repeat(weights / listeners[tracks] ** params["norm"], counts[tracks])
        later = places[:, None] + steps
        inside = later < len(order)
        later = np.where(inside, later, 0)
        inside &= (session[later] == session[places][:, None]) & (session[places] >= 0)[:, None]
        inside &= order[later] < limits[user[places]][:, None]
        each = weights[:, None] / steps ** params["fall"]
        return summed(track[later[inside]], each[inside])

    return score
