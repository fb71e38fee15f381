"""From what a request says to the query that the recommender answers: one set of limits, one merge with the store.

The server, `lhydra index diff --requests`, batch lists and evaluation all make their queries here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from lhydra.domain import (
    MAX_HISTORY,
    MAX_RECENT,
    Condition,
    Hashes,
    Query,
    Recent,
    Repeat,
    UserState,
    Value,
    no_hashes,
    track_hashes,
)
from lhydra.errors import InvalidRequest, quoted
from lhydra.limits import (
    CLOCK_SKEW_S,
    MAX_COUNT,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_EXCLUDED,
    MAX_SESSION,
    check_id,
    check_range,
    check_time,
)
from lhydra.repeats import (
    Ended,
    after_plays,
    at_once,
    live_flags,
    make_recent,
    merge_recent,
    single_plays,
    sums_by_track,
    without,
)
from lhydra.rules import Rules


class HistoryEntry(Protocol):
    """One track of a history that a request brings, or one play of it, in the words of the API."""

    @property
    def track_id(self) -> str:
        """Which track."""

    @property
    def count(self) -> float:
        """Plays; 0 means 1."""

    @property
    def timestamp_s(self) -> int:
        """The last play in Unix seconds; 0 means unknown."""


class SessionEntry(Ended, Protocol):
    """One play of now that is not recorded yet, in the words of the API."""

    @property
    def track_id(self) -> str:
        """Which track."""

    @property
    def timestamp_s(self) -> int:
        """Unix seconds; 0 means unknown."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a request says, before anything is looked up. Fields as in `lhydra.v1.RecommendRequest`.

    profile: text, numbers or None by column; None counts as not given. filter: conditions that the bundle's columns
    can answer, normalised. session: plays of now, oldest first. now: Unix seconds, 0 for the clock of who answers.
    rules: whose columns the bundle has; seed: of their draws.
    """

    user_id: str
    k: int
    exclude_track_ids: Sequence[str] = ()
    history: Sequence[HistoryEntry] = ()
    profile: Mapping[str, Value] = field(default_factory=dict)
    depth: int = 0
    repeat: Repeat = Repeat.EXCLUDE
    filter: tuple[Condition, ...] = ()
    session: Sequence[SessionEntry] = ()
    now: int = 0
    rules: Rules | None = None
    seed: int = 0
    explain: bool = False


def check(
    request: Request,
    max_k: int,
    now: int,
    *,
    history: str = "history.entries",
    profile: str = "profile.columns",
    session: str = "session.entries",
) -> None:
    """Checks every limit of a request but those of its filter.

    Args:
        request: what to check.
        max_k: the largest k allowed.
        now: Unix seconds.
        history: what the caller calls the history entries, for errors.
        profile: what the caller calls the profile columns, for errors.
        session: what the caller calls the plays of the session, for errors.

    Raises:
        InvalidRequest: a limit is passed; names the field.
    """
    check_id("user_id", request.user_id)
    check_range("k", request.k, 1, max_k)
    if request.depth:
        check_range("depth", request.depth, 0, MAX_DEPTH)
    if request.exclude_track_ids:
        check_range("exclude_track_ids", len(request.exclude_track_ids), 0, MAX_EXCLUDED, "entries")
    if request.history:
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
    if request.session:
        check_range(session, len(request.session), 0, MAX_SESSION, "entries")
        for i, play in enumerate(request.session):
            check_id(f"{session}[{i}].track_id", play.track_id)
            check_time(f"{session}[{i}].timestamp_s", play.timestamp_s, now)
    if request.now:
        check_time("now_s", request.now, now)


def to_query(request: Request, stored: UserState | None, now: int) -> Query:
    """Returns the query of a checked request: what it says of the user, merged with what is stored.

    The stored state wins: the request's profile fills columns that the store does not have, its history counts where
    the store has none. Every track named in either history is heard. What the request's session says comes after that,
    as if its plays had just been recorded; a play that is among the last ones already counts once.

    Args:
        request: a request that passed `check`.
        stored: the state in the user store, None for a user it does not know.
        now: Unix seconds, from which ages count where the request has no clock of its own.

    Returns:
        The query; `known` tells whether the user is stored.
    """
    state = UserState() if stored is None else stored
    now = request.now or now
    if request.profile:
        profile = {name: _value(value) for name, value in request.profile.items() if value is not None}
        state = replace(state, profile=profile | dict(state.profile))
    if request.history:
        state = _with_history(state, request.history)
    if request.session:
        state = _after_session(state, request.session, now)
    exclude = track_hashes(request.exclude_track_ids) if request.exclude_track_ids else no_hashes()
    return Query(
        *(request.k, state, stored is not None, exclude, request.depth, request.repeat, request.filter, now),
        *(request.rules, request.seed, request.explain),
    )


def known_user(state: UserState, k: int, *, depth: int = 0, repeat: Repeat = Repeat.EXCLUDE, now: int = 0) -> Query:
    """Returns the query of a known user who says nothing more: what batch lists, evaluation and the gate ask.

    Args:
        state: what is known of the user.
        k: how many tracks.
        depth: candidates to rerank, 0 for the recommender's own.
        repeat: what happens to tracks in `state.heard`.
        now: Unix seconds, from which ages count.

    Returns:
        The query that the server makes of a request with nothing but the user's id, k, policy and clock.
    """
    return Query(k, state, True, depth=depth, repeat=repeat, now=now)


def _with_history(state: UserState, entries: Sequence[HistoryEntry]) -> UserState:
    """The state with the history of a request, where it has none of its own; counts in the API's precision, float32.

    Entries come oldest first, so their order counts where times do not decide: among equal times, and among entries
    without one, which stand before all others. Of a track that comes again the last entry tells the place. Each entry
    is a play of its time to the last plays, and as many as it counts to the decayed counts.
    """
    hashes = track_hashes(entry.track_id for entry in entries)
    tracks, n = np.unique(hashes), len(entries)
    heard = _union(state.heard, tracks)
    if len(state.history):
        return replace(state, heard=heard)
    counts = np.array([entry.count for entry in entries], np.float32)
    counts[counts == 0] = 1
    times = np.array([entry.timestamp_s for entry in entries], np.int64)
    history, place = single_plays(hashes, counts, times), np.arange(n)
    repeats = at_once(history)
    if len(tracks) < n:
        history, repeats, _ = sums_by_track(history, repeats)
        place = np.zeros(len(tracks), np.int64)
        np.maximum.at(place, np.searchsorted(tracks, hashes), np.arange(n))
    history["time"] = np.where(history["time"] > 0, history["time"], place - n)
    order = np.lexsort((place, history["time"]))[-MAX_HISTORY:]
    last = np.argsort(times, kind="stable")[-MAX_RECENT:]
    recent = make_recent(hashes[last], times[last], np.zeros(len(last), np.int64))
    if len(state.recent):  # skips
        recent = merge_recent(recent, without(state.recent, recent))
    return replace(state, history=history[order], heard=heard, repeats=repeats[order], recent=recent)


def _after_session(state: UserState, entries: Sequence[SessionEntry], now: int) -> UserState:
    """The state once these plays are recorded, but for those that are among its last plays already."""
    played = make_recent(
        track_hashes(entry.track_id for entry in entries), _placed(entries, state.recent, now), live_flags(entries)
    )
    played = without(played, state.recent)
    plays = single_plays(played["track"], np.ones(len(played), np.float32), played["time"].astype(np.int64))
    state = replace(state, heard=_union(state.heard, np.unique(played["track"])))
    return after_plays(state, plays, played["flags"].astype(np.int64))


def _placed(entries: Sequence[SessionEntry], recent: Recent, now: int) -> list[int]:
    """The times of a session's plays, more than CLOCK_SKEW_S ahead as of now, as recording has it.

    An unknown time is a second before that of the play after it, or now of the last play, but not before a play that
    came earlier: plays keep their order.
    """
    times = [entry.timestamp_s if entry.timestamp_s <= now + CLOCK_SKEW_S else now for entry in entries]
    earlier = np.maximum.accumulate([int(recent["time"][-1]) if len(recent) else 1, *times]).tolist()
    after = now + 1
    for i in reversed(range(len(times))):
        after = times[i] = times[i] or max(after - 1, min(earlier[i], after))
    return times


def _union(a: Hashes, b: Hashes) -> Hashes:
    return np.union1d(a, b) if len(a) and len(b) else a if len(a) else b


def _value(value: Value) -> Value:
    """Numbers as the API carries them, float64; whole ones as such: they may name a category."""
    if isinstance(value, str) or value is None:
        return value
    number = float(value)
    return int(number) if number.is_integer() else number
