"""Requests of the API in the words of the core; what only the wire can get wrong is checked here."""

import time
from collections.abc import Mapping
from dataclasses import replace

from lhydra.domain import Play, Repeat, Value
from lhydra.errors import InvalidRequest
from lhydra.limits import (
    CLOCK_SKEW_S,
    MAX_EVENT_CHARS,
    MAX_MS_PLAYED,
    MAX_PLAYS,
    check_id,
    check_length,
    check_range,
    check_request_id,
    check_time,
)
from lhydra.lists.file import RuleSets
from lhydra.queries import Request, check
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.filters import to_conditions
from lhydra_server.rules import NO_SETS, seed_of, to_rules

MAX_SEEDS = 100  # of a request for similar tracks, and as many dislikes
NOBODY = "-"
_POLICIES = {number: Repeat(number or Repeat.EXCLUDE) for number in pb.RepeatPolicy.values()}


def to_request(
    request: pb.RecommendRequest,
    max_k: int,
    columns: Mapping[str, str],
    genre: str | None,
    now: int,
    sets: RuleSets = NO_SETS,
    request_id: str = "",
) -> Request:
    """Returns what a request says, all of it checked.

    Args:
        request: as it came.
        max_k: the largest k that this server allows.
        columns: the columns that can be filtered on, and their kinds, `FilterColumns.names`.
        genre: the column that holds genres.
        now: Unix seconds.
        sets: the rule sets of this server.
        request_id: of the call.

    Returns:
        The request; its filter as conditions that the columns can answer.

    Raises:
        InvalidRequest: it can never be answered; names the field.
    """
    if (repeat := _POLICIES.get(request.repeat_policy)) is None:
        raise InvalidRequest("repeat_policy", request.repeat_policy, "a known policy")
    parsed = Request(
        request.user_id,
        request.k,
        request.exclude_track_ids,
        request.history.entries if request.HasField("history") else (),
        {name: _value(value) for name, value in request.profile.columns.items()} if request.HasField("profile") else {},
        request.depth,
        repeat,
        session=request.session.entries if request.HasField("session") else (),
        now=request.now_s,
        explain=request.explain,
    )
    check(parsed, max_k, now)
    if request.HasField("filter"):
        parsed = replace(parsed, filter=to_conditions(request.filter, columns, genre))
    if sets.default is not None or request.HasField("rules") or request.HasField("diversity"):
        rules = to_rules(request, sets, columns)
        parsed = replace(parsed, rules=rules, seed=seed_of(request.seed, request_id))
    return parsed


def to_similar(
    request: pb.SimilarTracksRequest,
    max_k: int,
    columns: Mapping[str, str],
    genre: str | None,
    now: int,
    sets: RuleSets = NO_SETS,
    request_id: str = "",
) -> Request:
    """Returns what a request for similar tracks says but for its seeds and dislikes, all of it checked.

    Args:
        request: as it came.
        max_k: the largest k that this server allows.
        columns: the columns that can be filtered on, and their kinds, `FilterColumns.names`.
        genre: the column that holds genres.
        now: Unix seconds.
        sets: the rule sets of this server.
        request_id: of the call.

    Returns:
        The request; its user id is - where there is none.

    Raises:
        InvalidRequest: it can never be answered; names the field.
    """
    for name, tracks, least in (
        ("track_ids", request.track_ids, 1),
        ("dislike_track_ids", request.dislike_track_ids, 0),
    ):
        check_range(name, len(tracks), least, MAX_SEEDS, "tracks")
        for i, track in enumerate(tracks):
            check_id(f"{name}[{i}]", track)
    parsed = Request(
        request.user_id or NOBODY, request.k, request.exclude_track_ids, depth=request.depth, now=request.now_s
    )
    check(parsed, max_k, now)
    if request.HasField("filter"):
        parsed = replace(parsed, filter=to_conditions(request.filter, columns, genre))
    if sets.default is not None or request.HasField("rules") or request.HasField("diversity"):
        rules = to_rules(request, sets, columns)
        parsed = replace(parsed, rules=rules, seed=seed_of(request.seed, request_id))
    return parsed


def to_plays(request: pb.RecordPlaysRequest) -> list[Play]:
    """Returns the plays of a request, all checked.

    Args:
        request: as it came.

    Returns:
        The plays in order; a play without a time, or with one more than CLOCK_SKEW_S ahead, is of now; one without a
        count counts 1.

    Raises:
        InvalidRequest: a limit is passed; names the field of the first play at fault.
    """
    check_range("plays", len(request.plays), 1, MAX_PLAYS, "plays")
    now = int(time.time())
    for i, play in enumerate(request.plays):
        check_length(f"plays[{i}].event_id", play.event_id, MAX_EVENT_CHARS)
        check_id(f"plays[{i}].user_id", play.user_id)
        check_id(f"plays[{i}].track_id", play.track_id)
        check_time(f"plays[{i}].timestamp_s", play.timestamp_s, now)
        if play.request_id:
            check_request_id(f"plays[{i}].request_id", play.request_id)
        if play.session_id:
            check_id(f"plays[{i}].session_id", play.session_id)
        if play.ms_played > MAX_MS_PLAYED:
            check_range(f"plays[{i}].ms_played", play.ms_played, 0, MAX_MS_PLAYED, "ms")
    return [_to_play(play, now) for play in request.plays]


def _to_play(play: pb.Play, now: int) -> Play:
    return Play(
        event_id=play.event_id,
        user_id=play.user_id,
        track_id=play.track_id,
        time=play.timestamp_s if 0 < play.timestamp_s <= now + CLOCK_SKEW_S else now,
        count=float(play.count or 1),
        completed=play.completed if play.HasField("completed") else None,
        skipped=play.skipped if play.HasField("skipped") else None,
        request_id=play.request_id,
        session_id=play.session_id,
        ms_played=play.ms_played if play.HasField("ms_played") else None,
    )


def _value(value: pb.Value) -> Value:
    kind = value.WhichOneof("kind")
    return None if kind is None else value.text if kind == "text" else value.number
