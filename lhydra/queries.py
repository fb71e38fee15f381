"""From what a request says to the query that the recommender answers: one set of limits, one merge with the store.

The server, `lhydra index diff --requests`, batch lists and evaluation all make their queries here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lhydra.domain import (
    HISTORY_DTYPE,
    MAX_HISTORY,
    Condition,
    Hashes,
    History,
    Query,
    Repeat,
    UserState,
    Value,
    no_history,
    track_hashes,
)
from lhydra.errors import InvalidRequest, quoted
from lhydra.limits import (
    MAX_COUNT,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_EXCLUDED,
    check_id,
    check_range,
    check_time,
)


class HistoryEntry(Protocol):
    """One track of a history that a request brings, in the words of the API."""

    @property
    def track_id(self) -> str:
        """Which track."""

    @property
    def count(self) -> float:
        """Plays; 0 means 1."""

    @property
    def timestamp_s(self) -> int:
        """The last play in Unix seconds; 0 means unknown."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a request says, before anything is looked up. Fields as in `lhydra.v1.RecommendRequest`.

    profile: text, numbers or None by column; None counts as not given. filter: conditions that the bundle's columns
    can answer, normalised.
    """

    user_id: str
    k: int
    exclude_track_ids: Sequence[str] = ()
    history: Sequence[HistoryEntry] = ()
    profile: Mapping[str, Value] = field(default_factory=dict)
    depth: int = 0
    repeat: Repeat = Repeat.EXCLUDE
    filter: tuple[Condition, ...] = ()


def check(
    request: Request, max_k: int, now: int, *, history: str = "history.entries", profile: str = "profile.columns"
) -> None:
    """Checks every limit of a request but those of its filter.

    Args:
        request: what to check.
        max_k: the largest k allowed.
        now: Unix seconds.
        history: what the caller calls the history entries, for errors.
        profile: what the caller calls the profile columns, for errors.

    Raises:
        InvalidRequest: a limit is passed; names the field.
    """
    check_id("user_id", request.user_id)
    check_range("k", request.k, 1, max_k)
    check_range("depth", request.depth, 0, MAX_DEPTH)
    check_range("exclude_track_ids", len(request.exclude_track_ids), 0, MAX_EXCLUDED, "entries")
    check_range(history, len(request.history), 0, MAX_ENTRIES, "entries")
    for i, entry in enumerate(request.history):
        check_id(f"{history}[{i}].track_id", entry.track_id)
        check_time(f"{history}[{i}].timestamp_s", entry.timestamp_s, now)
        if not 0 <= entry.count <= MAX_COUNT:
            expected = f"a finite number, not negative, at most {MAX_COUNT:.0e}"
            raise InvalidRequest(f"{history}[{i}].count", entry.count, expected)
    for name, value in request.profile.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"{profile}[{quoted(name)}]", value, "a finite number")


def to_query(request: Request, stored: UserState | None, now: int) -> Query:
    """Returns the query of a checked request: what it says of the user, merged with what is stored.

    The stored state wins: the request's profile fills columns that the store does not have, its history counts where
    the store has none. Every track named in either history is heard.

    Args:
        request: a request that passed `check`.
        stored: the state in the user store, None for a user it does not know.
        now: Unix seconds, from which Repeat.DECAY counts.

    Returns:
        The query; `known` tells whether the user is stored.
    """
    state = UserState() if stored is None else stored
    if request.history or request.profile:
        profile = {name: _value(value) for name, value in request.profile.items() if value is not None}
        history, heard = _played(request.history)
        if stored is not None:
            profile |= stored.profile
            history = stored.history if len(stored.history) else history
            heard = _union(stored.heard, heard)
        state = UserState(profile, history, heard, state.skipped, state.repeats, state.recent, state.version)
    exclude = track_hashes(request.exclude_track_ids)
    return Query(request.k, state, stored is not None, exclude, request.depth, request.repeat, request.filter, now)


def known_user(state: UserState, k: int, *, depth: int = 0, include_heard: bool = False) -> Query:
    """Returns the query of a known user who says nothing more: what batch lists, evaluation and the gate ask.

    Args:
        state: what is known of the user.
        k: how many tracks.
        depth: candidates to rerank, 0 for the recommender's own.
        include_heard: whether tracks in `state.heard` may be returned.

    Returns:
        The query that the server makes of a request with nothing but the user's id and k.
    """
    return Query(k, state, True, depth=depth, repeat=Repeat.ALLOW if include_heard else Repeat.EXCLUDE)


def _played(entries: Sequence[HistoryEntry]) -> tuple[History, Hashes]:
    """The history of these entries, and the tracks in it, ascending. Counts have the precision of the API: float32.

    Entries come oldest first, so their order counts where times do not decide: among equal times, and among entries
    without one, which stand before all others. Of a track that comes again the last entry tells the place.
    """
    if not entries:
        return no_history(), np.empty(0, np.uint64)
    tracks, at = np.unique(track_hashes(entry.track_id for entry in entries), return_inverse=True)
    counts = np.array([entry.count for entry in entries], np.float32)
    counts[counts == 0] = 1
    history = np.zeros(len(tracks), HISTORY_DTYPE)
    history["track"] = tracks
    history["count"] = np.bincount(at, counts, len(tracks))
    latest, place = np.zeros((2, len(tracks)), np.int64)
    np.maximum.at(latest, at, np.array([entry.timestamp_s for entry in entries], np.int64))
    np.maximum.at(place, at, np.arange(len(entries)))
    history["time"] = np.where(latest > 0, latest, place - len(entries))
    return history[np.lexsort((place, history["time"]))[-MAX_HISTORY:]], tracks


def _union(a: Hashes, b: Hashes) -> Hashes:
    return np.union1d(a, b) if len(a) and len(b) else a if len(a) else b


def _value(value: Value) -> Value:
    """Numbers as the API carries them, float64; whole ones as such: they may name a category."""
    if isinstance(value, str) or value is None:
        return value
    number = float(value)
    return int(number) if number.is_integer() else number
