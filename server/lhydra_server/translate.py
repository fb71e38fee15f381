"""Requests into the words of the core, answers back into messages; every limit of the API is checked here."""

import math
import time
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from lhydra.domain import (
    Hashes,
    Play,
    Query,
    Repeat,
    UserState,
    Value,
    make_history,
    track_hashes,
)
from lhydra.errors import InvalidRequest, Unsupported
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.config import MAX_DEPTH
from lhydra_server.filters import to_conditions

MAX_ID_CHARS = 256
MAX_EVENT_CHARS = 128
MAX_EXCLUDED = 10_000
MAX_ENTRIES = 10_000
MAX_PLAYS = 1_000
NOBODY = UserState()  # nothing is known of
CLOCK_SKEW_S = 86_400  # a timestamp may be ahead of our clock by so much


def check_recommend(request: pb.RecommendRequest, max_k: int) -> None:
    """Raises InvalidRequest or Unsupported, naming the field, for what can never be answered."""
    _check_user_id("user_id", request.user_id)
    _check_range("k", request.k, 1, max_k)
    _check_range("depth", request.depth, 0, MAX_DEPTH)
    _check_range("exclude_track_ids", len(request.exclude_track_ids), 0, MAX_EXCLUDED, "entries")
    _check_range("history.entries", len(request.history.entries), 0, MAX_ENTRIES, "entries")
    now = int(time.time())
    for i, entry in enumerate(request.history.entries):
        _check_length(f"history.entries[{i}].track_id", entry.track_id, MAX_ID_CHARS)
        _check_time(f"history.entries[{i}].timestamp_s", entry.timestamp_s, now)
        if not (math.isfinite(entry.count) and entry.count >= 0):
            raise InvalidRequest(f"history.entries[{i}].count", entry.count, "a finite number, not negative")
    for name, value in request.profile.columns.items():
        if value.WhichOneof("kind") == "number" and not math.isfinite(value.number):
            raise InvalidRequest(f"profile.columns[{name!r}]", value.number, "a finite number")
    if request.repeat_policy not in pb.RepeatPolicy.values():
        raise InvalidRequest("repeat_policy", request.repeat_policy, "a known policy")
    unanswered = {
        "diversity": request.diversity.ByteSize() > 0,
        "explain": request.explain,
    }
    for field, is_set in unanswered.items():
        if is_set:
            raise Unsupported(f"{field}: this version does not answer it")


def to_query(
    request: pb.RecommendRequest, stored: UserState | None, columns: Mapping[str, str], genre: str | None
) -> Query:
    """Returns the query for a checked request.

    The stored state wins: the request's profile fills columns the store does not have, its history counts
    where the store has none. Every track named in either history is heard.
    columns: those that can be filtered on, and their kinds; genre: the one that holds genres.

    Raises:
        InvalidRequest: a filter that the columns cannot answer.
    """
    given = _given_state(request)
    state = given if stored is None else stored
    if stored is not None and given is not NOBODY:
        history = stored.history if len(stored.history) else given.history
        heard = _union(stored.heard, given.heard)
        state = UserState({**given.profile, **stored.profile}, history, heard, stored.skipped)
    return Query(
        request.k,
        state,
        stored is not None,
        track_hashes(request.exclude_track_ids),
        request.depth,
        Repeat(request.repeat_policy or Repeat.EXCLUDE),
        to_conditions(request.filter, columns, genre) if request.HasField("filter") else (),
        int(time.time()),
    )


def to_plays(request: pb.RecordPlaysRequest) -> list[Play]:
    """Returns the plays, all checked. Raises InvalidRequest naming the first field at fault."""
    _check_range("plays", len(request.plays), 1, MAX_PLAYS, "plays")
    now = int(time.time())
    for i, play in enumerate(request.plays):
        _check_length(f"plays[{i}].event_id", play.event_id, MAX_EVENT_CHARS)
        _check_user_id(f"plays[{i}].user_id", play.user_id)
        _check_length(f"plays[{i}].track_id", play.track_id, MAX_ID_CHARS)
        _check_time(f"plays[{i}].timestamp_s", play.timestamp_s, now)
    return [_to_play(play, now) for play in request.plays]


def _to_play(play: pb.Play, now: int) -> Play:
    return Play(
        event_id=play.event_id,
        user_id=play.user_id,
        track_id=play.track_id,
        time=play.timestamp_s or now,
        count=float(play.count or 1),
        completed=play.completed if play.HasField("completed") else None,
        skipped=play.skipped if play.HasField("skipped") else None,
    )


def _given_state(request: pb.RecommendRequest) -> UserState:
    """What the request itself says about the user."""
    if not (request.HasField("history") or request.HasField("profile")):
        return NOBODY
    entries: Sequence[pb.HistoryEntry] = request.history.entries
    tracks = track_hashes(entry.track_id for entry in entries)
    history = make_history(tracks, [entry.count or 1.0 for entry in entries], [entry.timestamp_s for entry in entries])
    values = ((name, _value(value)) for name, value in request.profile.columns.items())
    return UserState({name: value for name, value in values if value is not None}, history, np.unique(tracks))


def _union(a: Hashes, b: Hashes) -> Hashes:
    return np.union1d(a, b) if len(a) and len(b) else a if len(a) else b


def _value(value: pb.Value) -> Value:
    kind = value.WhichOneof("kind")
    if kind == "text":
        return value.text
    if kind == "number":  # whole numbers as such: they may name a category
        return int(value.number) if value.number.is_integer() else value.number
    return None


def _check_user_id(field: str, user_id: str) -> None:
    _check_length(field, user_id, MAX_ID_CHARS)
    if not user_id.isprintable() and any(unicodedata.category(c).startswith("C") for c in user_id):
        raise InvalidRequest(field, user_id, "no control characters")


def _check_length(field: str, text: str, longest: int) -> None:
    if not 1 <= len(text) <= longest:
        raise InvalidRequest(field, f"{len(text)} characters", f"1 to {longest} characters")


def _check_range(field: str, value: int, low: int, high: int, unit: str = "") -> None:
    if not low <= value <= high:
        raise InvalidRequest(field, f"{value} {unit}".rstrip(), f"{low} to {high} {unit}".rstrip())


def _check_time(field: str, timestamp_s: int, now: int) -> None:
    if not 0 <= timestamp_s <= now + CLOCK_SKEW_S:
        raise InvalidRequest(field, timestamp_s, "Unix seconds, not negative and at most a day ahead")
