"""What moved a track: plays of the history left out one at a time, and groups of features hidden, by the served graphs.

The answer is the fall of the head's raw logit, so that effects of the strongest and the weakest tracks compare. All
that is computed of a history is computed anew without the play: vector, profile of listening, co-listening, signals of
the moment. What the moment is like (how long ago the last play is, in a session or not) stays: it raises all tracks
alike, and without the last play each of them would seem to be pulled by it.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.domain import F16, F32, I64, UserState
from lhydra.features import item_item
from lhydra.features.histories import EncodedUsers, Histories, offsets_of, relative_weights_of
from lhydra.features.spec import Encoded
from lhydra.recommender import Recommender
from lhydra.traced import Traced

MOST_PLAYS = 64  # that are left out: those of most weight
SHOWN_PLAYS = 5  # that are told
AT_ONCE = 16_384  # history entries in one call of the graphs: they stay in the processor's cache
IDENTITIES = ("track_id", "artist", "album")  # columns that say which, not what kind


@dataclass(frozen=True)
class Pull:
    """By how much a track's logit falls without something: a play of a row, or a group of features."""

    name: str
    logit: float
    row: int = -1


@dataclass(frozen=True)
class _Inputs:
    """What the head is asked with, of m tracks for n users."""

    vectors: F32  # (n, dim)
    users: EncodedUsers
    together: F32  # (n, m, 2)
    signals: F32 | None = None  # (n, m, s)
    context: F32 | None = None  # (n, c)


def plays_of(recommender: Recommender, traced: Traced, row: int) -> list[Pull]:
    """Leaves out one play after the other.

    Args:
        recommender: that answered.
        traced: the request.
        row: of the track.

    Returns:
        The fall of its logit without each of the plays of most weight, largest first.
    """
    assert traced.user is not None
    histories = traced.user.histories
    own = np.flatnonzero(histories.rows != row)  # a track says nothing about why it is played itself
    weight = relative_weights_of(traced.user.entry)
    chosen = own[np.argsort(-weight[own], kind="stable")[:MOST_PLAYS]]
    if not len(chosen):
        return []
    falls = falls_of(recommender, traced, np.array([row]), chosen)[:, 0]
    order = np.argsort(-falls, kind="stable")
    return [Pull("", float(falls[i]), int(histories.rows[chosen[i]])) for i in order.tolist()]


def falls_of(recommender: Recommender, traced: Traced, rows: I64, chosen: I64) -> F32:
    """Leaves out one play after the other for several tracks.

    Args:
        recommender: that answered.
        traced: the request.
        rows: (n,) of the tracks, distinct.
        chosen: (p,) places of the plays in the encoded history, at least one.

    Returns:
        (p, n) fall of each track's logit without each play.
    """
    assert traced.user is not None
    catalog, played = recommender.catalog, traced.user.histories.rows
    tracks = catalog.tracks[played]  # by places, widened once: few, so they stay near
    own = Encoded(tracks.dense.astype(np.float32), tracks.ids, tracks.bags), catalog.history.at(played[None])[0]
    parts = _parts(chosen, len(played))
    logits = np.concatenate([_without(recommender, traced, rows, part, *own) for part in parts])
    return np.asarray(recommender.scored(traced, rows)[0] - logits, np.float32)


def groups_of(recommender: Recommender, traced: Traced, row: int) -> list[Pull]:
    """Hides one group of features after the other: what is known by it becomes unknown.

    Args:
        recommender: that answered.
        traced: the request.
        row: of the track.

    Returns:
        The fall of the track's logit without each group, largest first.
    """
    bundle, state = recommender.bundle, traced.query.state
    assert traced.user is not None
    assert traced.vector is not None
    full = float(recommender.scored(traced, np.array([row]))[0][0])
    base, (dense, ids, popularity) = _inputs(recommender, traced, row), _track(recommender, np.array([row]))
    found: list[Pull] = []

    def hidden(name: str, logit: float) -> None:
        found.append(Pull(name, full - logit))

    if len(traced.user.histories.rows):
        unheard = replace(base, together=np.zeros_like(base.together))
        if base.signals is not None:  # the context stays: of somebody who never played another part of the head answers
            unheard = replace(unheard, signals=np.zeros_like(base.signals))
        of_user = _of_user(recommender, UserState(state.profile))
        hidden("history", _head(recommender, row, replace(unheard, **of_user)))
    if any(state.profile.get(name) is not None for name in bundle.spec.profile_columns):
        hidden("profile", _head(recommender, row, replace(base, **_of_user(recommender, replace(state, profile={})))))
    named = [name for name, _ in bundle.spec.track_ids]
    identities = np.isin(named, IDENTITIES)
    hidden("ids", _head(recommender, row, base, ids=np.where(identities, 0, ids)))
    hidden("genre and tags", _head(recommender, row, base, ids=np.where(identities, ids, 0)))
    hidden("content numbers", _head(recommender, row, base, dense=np.zeros_like(dense)))
    usual = np.float32(np.median(bundle.catalog.popularity[:: max(len(bundle.catalog) // 4096, 1)]))
    hidden("popularity", _head(recommender, row, base, popularity=np.full_like(popularity, usual)))
    hidden("co-listening", _head(recommender, row, replace(base, together=np.zeros_like(base.together))))
    if base.signals is not None:
        hidden("moment", _head(recommender, row, replace(base, signals=np.zeros_like(base.signals))))
    return sorted(found, key=lambda one: -one.logit)


def _parts(chosen: I64, h: int) -> list[I64]:
    size = max(AT_ONCE // max(h, 1), 1)
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]


def _without(recommender: Recommender, traced: Traced, rows: I64, left_out: I64, tracks: Encoded, vectors: F16) -> F32:
    """(p, n) logits of n tracks for the user without each of p plays, of all of which features and vectors come."""
    bundle, state, catalog = recommender.bundle, traced.query.state, recommender.catalog
    assert traced.user is not None
    whole, n = traced.user.histories, len(left_out)
    h = len(whole.rows) - 1
    kept = np.ones((n, h + 1), np.bool_)
    kept[np.arange(n), left_out] = False
    at = np.nonzero(kept)[1]
    histories = Histories(offsets_of(np.full(n, h)), at, whole.counts[at], whole.times[at])
    users = bundle.spec.encode_users([state.profile] * n, histories, tracks)
    entry = np.zeros((n, h + 1, users.entry.shape[1]), np.float32)
    entry[kept] = users.entry
    embedded = bundle.user_tower.embed_parts(users, vectors, entry, kept)
    embedded = np.concatenate([recommender.moved_away(embedded[i : i + 1], state) for i in range(n)])
    table, known = (catalog.neighbours, catalog.neighbour_weights), catalog.item_rows
    together = item_item.scores_of_parts(*table, known.take(whole.rows), entry, kept, known.take(rows))
    inputs = _Inputs(embedded, users, together)
    if traced.moment is not None:
        moments = [traced.moment.without(int(whole.rows[i])) for i in left_out]
        context = np.repeat(traced.moment.context()[None], n, 0)
        inputs = replace(inputs, signals=np.stack([one.signals(rows) for one in moments]), context=context)
    return _heads(recommender, rows, inputs)


def _of_user(recommender: Recommender, state: UserState) -> dict[str, Any]:
    """The vector and the encoded user of a state, by their names in `_Inputs`."""
    users = recommender.encode(state)
    vectors = recommender.bundle.embed(users)
    return {"vectors": recommender.moved_away(vectors, state), "users": users}


def _inputs(recommender: Recommender, traced: Traced, row: int) -> _Inputs:
    """What the head was asked with."""
    assert traced.user is not None
    assert traced.vector is not None
    catalog, rows = recommender.catalog, np.array([row])
    played, asked = catalog.item_rows.take(traced.user.histories.rows), catalog.item_rows.take(rows)
    together = item_item.scores(catalog.neighbours, catalog.neighbour_weights, played, traced.user.entry, asked)
    inputs = _Inputs(traced.vector, traced.user, together[None])
    if traced.moment is not None:
        inputs = replace(inputs, signals=traced.moment.signals(rows)[None], context=traced.moment.context()[None])
    return inputs


def _track(recommender: Recommender, rows: I64) -> tuple[npt.NDArray[Any], I64, F32]:
    """Features of m tracks: (m, dt) dense, (m, ct) ids, (m,) popularity."""
    catalog = recommender.catalog
    return catalog.dense.take(rows, 0), catalog.ids.take(rows, 0).astype(np.int64), catalog.popularity.take(rows)


def _head(
    recommender: Recommender,
    row: int,
    inputs: _Inputs,
    dense: npt.NDArray[Any] | None = None,
    ids: I64 | None = None,
    popularity: F32 | None = None,
) -> float:
    return float(_heads(recommender, np.array([row]), inputs, dense, ids, popularity)[0, 0])


def _heads(
    recommender: Recommender,
    rows: I64,
    inputs: _Inputs,
    dense: npt.NDArray[Any] | None = None,
    ids: I64 | None = None,
    popularity: F32 | None = None,
) -> F32:
    """(n, m) logits of m tracks for n users, some of their features replaced."""
    n = len(inputs.vectors)
    own: tuple[npt.NDArray[Any], ...] = _track(recommender, rows)
    parts: list[npt.NDArray[Any]] = [
        one if given is None else given for one, given in zip(own, (dense, ids, popularity), strict=True)
    ]
    vectors = recommender.catalog.vectors.take(rows, 0)
    tracks = [*(np.repeat(part[None], n, 0) for part in (vectors, *parts)), inputs.together]
    more = []
    if inputs.signals is not None and inputs.context is not None:
        more = [inputs.signals, inputs.context]
    head, users = recommender.bundle.head, inputs.users
    return head.run(inputs.vectors, users.dense, users.ids, *tracks, *more)[0]
