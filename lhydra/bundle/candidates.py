"""A user in the words of a bundle, and candidates of several sources: the nearest, and what listening brings up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from lhydra import kernels
from lhydra.bundle.arrays import all_known
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import Catalog
from lhydra.bundle.eligible import EligibleSet
from lhydra.bundle.exact import best_first
from lhydra.domain import F32, I64, History, Query, Repeat, UserState
from lhydra.features.histories import EncodedUsers, Histories, offsets_of
from lhydra.features.listening import Listening
from lhydra.features.moment import SOURCES as OF_MOMENT
from lhydra.features.moment import Moment, room_of
from lhydra.repeats import repeats_of
from lhydra.scratch import borrowed_mask

NEAREST, CO_LISTENING = "nearest", "co-listening"  # sources of candidates, beside those of a moment


@dataclass(frozen=True, slots=True)
class StateRows:
    """The rows of what a user has played, -1 where the catalog does not hold it.

    history: (h,) int64 of the history. recent: (r,) int64 of the last plays. heard: (m,) int64 of the heard tracks.
    """

    history: I64
    recent: I64
    heard: I64

    @classmethod
    def of(cls, catalog: Catalog, state: UserState) -> "StateRows":
        """Looks all of them up.

        Args:
            catalog: the rows.
            state: of the user.

        Returns:
            The rows.
        """
        return cls(*catalog.state_rows(state))


def encode_states(bundle: Bundle, states: Sequence[UserState], state_rows: Sequence[StateRows] = ()) -> EncodedUsers:
    """Encodes users; tracks that the catalog does not hold drop out of their histories.

    Args:
        bundle: its features and tracks.
        states: of n users.
        state_rows: of each; looked up where there are none.

    Returns:
        n encoded users.
    """
    of_each = [one.history for one in state_rows] or [bundle.catalog.rows(state.history["track"]) for state in states]
    histories = known_histories([state.history for state in states], of_each)
    return bundle.spec.encode_users([state.profile for state in states], histories, bundle.catalog.tracks)


def known_histories(histories: Sequence[History], rows: Sequence[I64]) -> Histories:
    """Puts histories together by rows; tracks that the catalog does not hold drop out.

    Args:
        histories: of n users.
        rows: (h,) int64 of each, -1 where the catalog does not hold the track.

    Returns:
        The histories of n users.
    """
    lengths = [len(one) for one in histories]
    history: History = np.concatenate(histories) if len(histories) > 1 else histories[0]
    row: I64 = np.concatenate(rows) if len(rows) > 1 else rows[0]
    if kernels.compiled is not None:
        return Histories(*kernels.compiled.known_plays(history, lengths, row))
    counts, times = np.ascontiguousarray(history["count"]), np.ascontiguousarray(history["time"])
    known = row >= 0
    if not known.all():
        row, counts, times = row[known], counts[known], times[known]
        before = np.concatenate([[0], np.cumsum(known)])
        lengths = np.diff(before[offsets_of(np.array(lengths))])
    return Histories(offsets_of(np.array(lengths)), row, counts, times)


def listening_of(catalog: Catalog, state: UserState, user: EncodedUsers, now: int, state_rows: StateRows) -> Listening:
    """Tells by rows what a user has played.

    Args:
        catalog: the rows; tracks that it does not hold drop out.
        state: of the user.
        user: the one user, encoded: the rows of the history are looked up once a request.
        now: Unix seconds, 0 for the last play.
        state_rows: of the user.

    Returns:
        What features of a moment are made of.
    """
    known, repeats, recent, of_recent = user.histories, repeats_of(state), state.recent, state_rows.recent
    if len(known.rows) < len(repeats):
        repeats = repeats[state_rows.history >= 0]
    if not all_known(of_recent):
        of_recent, recent = of_recent[of_recent >= 0], recent[of_recent >= 0]
    return Listening(
        len(catalog),
        known.rows,
        known.counts,
        known.times,
        repeats["first"].astype(np.int64),
        repeats["decayed"],
        of_recent,
        recent["time"].astype(np.int64),
        recent["flags"].astype(np.int64),
        now,
    )


def moment_of(
    bundle: Bundle, state: UserState, user: EncodedUsers, now: int, state_rows: StateRows | None = None
) -> Moment | None:
    """Returns the moment of a user; None where the head knows nothing of moments.

    Args:
        bundle: what is served.
        state: of the user.
        user: the one user, encoded.
        now: Unix seconds, 0 for the last play.
        state_rows: of the user; looked up where there are none.

    Returns:
        What features of a moment are looked up in.
    """
    if not bundle.head.knows_moments:
        return None
    state_rows = state_rows or StateRows.of(bundle.catalog, state)
    known, rows, n = user.histories, state_rows, len(bundle.catalog)
    recorded = known.rows, known.counts, known.times, rows.history, repeats_of(state), rows.recent, state.recent
    listening = partial(listening_of, bundle.catalog, state, user, now, rows)
    return Moment.of(recorded, n, now, listening, bundle.sequences)


def brought(
    bundle: Bundle,
    query: Query,
    moment: Moment | None,
    user: EncodedUsers,
    nearest: tuple[I64, F32],
    vector: F32,
    depth: int,
    excluded: I64,
    eligible: EligibleSet | None,
) -> tuple[dict[str, I64], tuple[I64, F32]]:
    """Finds the candidates of all sources: what the moment or co-listening brings up; the nearest fill the depth.

    Args:
        bundle: what is served.
        query: says whether the user's own tracks are a source.
        moment: of the user; None where the head knows nothing of moments.
        user: the one user, encoded.
        nearest: (n,) rows and cosines of what the index found, none of them excluded.
        vector: (1, dim) float32 of the user.
        depth: candidates in all, of which each source has a share.
        excluded: (e,) rows that must not be returned.
        eligible: those that may be; None for all.

    Returns:
        Rows that may be returned, by source; and all rows and cosines, best cosine first, as many as `nearest` holds or
        more, up to the depth.
    """
    catalog = bundle.catalog
    if kernels.compiled is not None and moment is not None and moment.compiled is not None:
        mask = None if eligible is None else eligible.mask.view(np.uint8)
        room, repeats = room_of(bundle.sequences.told_shares, depth), query.repeat is not Repeat.EXCLUDE
        kept, together = kernels.compiled.brought(
            *(moment.compiled, room, repeats, excluded, catalog.removed, mask),
            *(catalog.vectors.view(np.uint16), vector[0], *nearest, depth),
        )
        return {NEAREST: nearest[0], **dict(zip(OF_MOMENT, kept, strict=True))}, together
    found = _found_by(bundle, query, moment, user, depth, excluded, eligible)
    return {NEAREST: nearest[0], **found}, _united(catalog, found.values(), nearest, vector, depth)


def _found_by(
    bundle: Bundle,
    query: Query,
    moment: Moment | None,
    user: EncodedUsers,
    depth: int,
    excluded: I64,
    eligible: EligibleSet | None,
) -> dict[str, I64]:
    """Rows that the sources beside the nearest vectors bring and that may be returned."""
    catalog, parts = bundle.catalog, None
    if moment is not None:
        parts = moment.candidates(bundle.sequences.told_shares, depth, repeats=query.repeat is not Repeat.EXCLUDE)
    with borrowed_mask(len(catalog)) as barred:
        barred[excluded] = barred[catalog.removed] = True
        allowed = partial(_allowed, barred, eligible)
        if parts is not None:
            found = {name: rows[allowed(rows)] for name, rows in zip(OF_MOMENT, parts, strict=True)}
        else:
            found = {CO_LISTENING: bundle.co_listening.candidates(user.histories.rows, user.entry, allowed, depth)}
        barred[excluded] = barred[catalog.removed] = False
    return found


def _allowed(
    barred: npt.NDArray[np.bool_], eligible: EligibleSet | None, rows: npt.NDArray[np.integer]
) -> npt.NDArray[np.bool_]:
    free = ~barred.take(rows)
    return free if eligible is None else free & eligible.mask.take(rows)


def _united(
    catalog: Catalog, sources: Iterable[I64], nearest: tuple[I64, F32], vector: F32, depth: int
) -> tuple[I64, F32]:
    """All rows of the sources and as many of the nearest as the depth holds."""
    if kernels.compiled is not None and catalog.vectors.dtype == np.float16:
        return kernels.compiled.united(catalog.vectors.view(np.uint16), vector[0], tuple(sources), *nearest, depth)
    special = np.concatenate(list(sources))
    if not len(special):
        return nearest
    special.sort()
    new = np.ones(len(special), np.bool_)
    np.not_equal(special[1:], special[:-1], out=new[1:])
    special = special[new]
    rows, cosines = nearest
    with borrowed_mask(len(catalog)) as marked:
        marked[special] = True
        kept = np.flatnonzero(~marked.take(rows))[: max(depth - len(special), 0)]
        marked[special] = False
    near = catalog.vectors.take(special, 0).astype(np.float32) @ vector[0]
    rows, cosines = np.concatenate([rows[kept], special]), np.concatenate([cosines[kept], near])
    order = best_first(rows, cosines, len(rows))
    return rows[order], cosines[order]
