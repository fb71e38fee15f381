"""What callers hand in, and the one place where it is turned into messages, for the sync and the aio client.

Only what the wire cannot express is refused here (a negative k, an id that is not text); every other rule is
the server's, which names the field.
"""

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, SupportsFloat

from lhydra_client.checks import (
    INT32,
    INT64,
    UINT32,
    UINT64,
    given,
    kept,
    kept_texts,
    listed,
    number,
    shown,
    text,
    texts,
    whole,
)
from lhydra_client.errors import InvalidRequest
from lhydra_client.rules import Rules, add_rules
from lhydra_protos.v1 import recommender_pb2 as pb

Value = str | SupportsFloat | None  # a profile column; None is left out
Repeat = Literal["exclude", "allow", "decay", "learnt"]  # what becomes of heard tracks
REPEATS: "dict[str, pb.RepeatPolicy.ValueType]" = {
    "exclude": pb.REPEAT_POLICY_EXCLUDE,
    "allow": pb.REPEAT_POLICY_ALLOW,
    "decay": pb.REPEAT_POLICY_DECAY,
    "learnt": pb.REPEAT_POLICY_LEARNT,
}


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One track of a history, or one play of it: a track may come several times.

    Args:
        track_id: the track.
        count: plays.
        timestamp_s: Unix seconds of the last play, 0 when unknown.
    """

    track_id: str
    count: float = 1.0
    timestamp_s: int = 0


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """One play of now that is not recorded yet.

    Args:
        track_id: the track.
        timestamp_s: Unix seconds of the play, 0 when unknown: shortly before now, in its place.
        completed: whether the track was played to its end, None when unknown.
        skipped: whether the track was skipped, None when unknown.
    """

    track_id: str
    timestamp_s: int = 0
    completed: bool | None = None
    skipped: bool | None = None


@dataclass(frozen=True, slots=True)
class Play:
    """One play to record.

    The event id is made with the object, so the same object recorded again, for example after a timeout, counts once.

    Args:
        user_id: the listener.
        track_id: the track; the bundle being served need not hold it.
        timestamp_s: Unix seconds of the play, 0 for now.
        count: plays that this one stands for.
        completed: whether the track was played to its end, None when unknown.
        skipped: whether the track was skipped, None when unknown.
        event_id: unique per play, at most 128 characters.
        request_id: of the answer that the play came from; "" where it came from none, or none is known.
        session_id: of your own, like an id; "" where unknown.
        ms_played: milliseconds, a day at most; None when unknown.
    """

    user_id: str
    track_id: str
    timestamp_s: int = 0
    count: int = 1
    completed: bool | None = None
    skipped: bool | None = None
    event_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    request_id: str = ""
    session_id: str = ""
    ms_played: int | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """What one column of the catalogue must say of a track; all that is set must hold.

    Args:
        column: name of a column that can be filtered on.
        any_of: exact values, of which the track has at least one.
        all_of: exact values, of which the track has every one.
        none_of: exact values, of which the track has none.
        min: lower bound of a column of numbers, included; None for no bound.
        max: upper bound, included; None for no bound.
    """

    column: str
    any_of: Collection[str] | None = ()
    all_of: Collection[str] | None = ()
    none_of: Collection[str] | None = ()
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tracks are eligible; all that is set must hold.

    Args:
        genres: exact names, of which the track has at least one.
        artists: exact names, of which the track has at least one.
        min_year: the first year, included; None for no bound.
        max_year: the last year, included; None for no bound.
        explicit: only tracks with this value; None for any track.
        conditions: on any columns; every one of them holds.
    """

    genres: Collection[str] | None = ()
    artists: Collection[str] | None = ()
    min_year: int | None = None
    max_year: int | None = None
    explicit: bool | None = None
    conditions: Collection[Condition] | None = ()


def recommend_request(
    user_id: str,
    k: int | None,
    *,
    exclude: Iterable[str] | None = (),
    history: Iterable[str | HistoryEntry] | None = (),
    profile: Mapping[str, Value] | None = None,
    filter: Filter | None = None,
    allow_repeats: bool = False,
    repeat: Repeat | None = None,
    depth: int | None = 0,
    session: Iterable[str | SessionEntry] | None = (),
    now_s: int | None = 0,
    rules: Rules | str | None = None,
    max_per_artist: int | None = 0,
    diversity: float | None = 0.0,
    seed: int | None = 0,
    explain: bool = False,
) -> pb.RecommendRequest:
    """Makes the request of `Client.recommend`.

    Args:
        user_id: the listener.
        k: how many tracks.
        exclude: ids of tracks never to return.
        history: track ids or entries, oldest first.
        profile: text or numbers by column; None is left out.
        filter: which tracks are eligible.
        allow_repeats: short for repeat="allow".
        repeat: what becomes of heard tracks; None for the server's default.
        depth: candidates to rerank; 0 for the server's default.
        session: track ids or entries, oldest first.
        now_s: Unix seconds; 0 for the server's clock.
        rules: the name of a rule set, or what differs from the server's default; None for that.
        max_per_artist: tracks per artist; 0 for no cap.
        diversity: how far the list spreads, 0 to 1.
        seed: of draws; 0 for one made of the request id.
        explain: whether reasons are wanted.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    request = pb.RecommendRequest(
        user_id=text("user_id", user_id),
        k=whole("k", given(k, 10), *UINT32),
        exclude_track_ids=texts("exclude_track_ids", given(exclude, ())),
        depth=whole("depth", given(depth, 0), *UINT32),
        now_s=whole("now_s", given(now_s, 0), *INT64),
        seed=whole("seed", given(seed, 0), *UINT64),
        explain=bool(explain),
    )
    add_rules(request, rules, max_per_artist, diversity)
    if filter is not None:
        request.filter.CopyFrom(filter_message(filter))
    if repeat is None:
        repeat = "allow" if allow_repeats else None
    elif not isinstance(repeat, str) or repeat not in REPEATS:
        raise InvalidRequest(f"repeat_policy: found {shown(repeat)}, expected one of {', '.join(REPEATS)}")
    elif allow_repeats and repeat != "allow":
        raise InvalidRequest(f"repeat_policy: found allow_repeats and {repeat!r}, expected one of them")
    if repeat is not None:
        request.repeat_policy = REPEATS[repeat]
    for position, entry in enumerate(listed("history", given(history, ()))):
        entry = entry if isinstance(entry, HistoryEntry) else HistoryEntry(entry)
        name = f"history.entries[{position}]"
        request.history.entries.add(
            track_id=text(f"{name}.track_id", entry.track_id),
            count=number(f"{name}.count", given(entry.count, 1.0)),
            timestamp_s=whole(f"{name}.timestamp_s", given(entry.timestamp_s, 0), *INT64),
        )
    for position, played in enumerate(listed("session", given(session, ()))):
        played = played if isinstance(played, SessionEntry) else SessionEntry(played)
        name = f"session.entries[{position}]"
        request.session.entries.add(
            track_id=text(f"{name}.track_id", played.track_id),
            timestamp_s=whole(f"{name}.timestamp_s", given(played.timestamp_s, 0), *INT64),
            completed=None if played.completed is None else bool(played.completed),
            skipped=None if played.skipped is None else bool(played.skipped),
        )
    for column, value in (profile or {}).items():
        name = f"profile.columns[{text('profile.columns', column)!r}]"
        if isinstance(value, str):
            request.profile.columns[column].text = text(name, value)
        elif value is not None:
            request.profile.columns[column].number = number(name, value)
    return request


def similar_request(
    track_ids: Iterable[str],
    k: int | None,
    *,
    exclude: Iterable[str] | None = (),
    filter: Filter | None = None,
    dislike: Iterable[str] | None = (),
    user_id: str | None = "",
    rules: Rules | str | None = None,
    max_per_artist: int | None = 0,
    diversity: float | None = 0.0,
    depth: int | None = 0,
    seed: int | None = 0,
    now_s: int | None = 0,
) -> pb.SimilarTracksRequest:
    """Makes the request of `Client.similar`.

    Args:
        track_ids: the tracks to compare with.
        k: how many tracks.
        exclude: ids of tracks never to return.
        filter: which tracks are eligible.
        dislike: tracks to move away from.
        user_id: whose taste orders the most alike; "" for nobody's.
        rules: the name of a rule set, or what differs from the server's default; None for that.
        max_per_artist: tracks per artist; 0 for no cap.
        diversity: how far the list spreads, 0 to 1.
        depth: candidates by vector; 0 for the server's default.
        seed: of draws; 0 for one made of the request id.
        now_s: Unix seconds; 0 for the server's clock.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    request = pb.SimilarTracksRequest(
        track_ids=texts("track_ids", track_ids),
        k=whole("k", given(k, 10), *UINT32),
        exclude_track_ids=texts("exclude_track_ids", given(exclude, ())),
        dislike_track_ids=texts("dislike_track_ids", given(dislike, ())),
        user_id=text("user_id", given(user_id, "")),
        depth=whole("depth", given(depth, 0), *UINT32),
        seed=whole("seed", given(seed, 0), *UINT64),
        now_s=whole("now_s", given(now_s, 0), *INT64),
    )
    add_rules(request, rules, max_per_artist, diversity)
    if filter is not None:
        request.filter.CopyFrom(filter_message(filter))
    return request


def explain_request(user_id: str, track_id: str, request: pb.RecommendRequest | None = None) -> pb.ExplainRequest:
    """Makes the request of `Client.explain`.

    Args:
        user_id: the listener.
        track_id: the track to explain.
        request: made by `recommend_request`; None for one of the user alone.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    if not (request is None or isinstance(request, pb.RecommendRequest)):
        raise InvalidRequest(f"request: found {shown(request)}, expected what recommend_request makes")
    return pb.ExplainRequest(user_id=text("user_id", user_id), track_id=text("track_id", track_id), request=request)


def record_plays_request(plays: Iterable[Play]) -> pb.RecordPlaysRequest:
    """Makes the request of `Client.record_plays`.

    Args:
        plays: of any users.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    request = pb.RecordPlaysRequest()
    for position, play in enumerate(listed("plays", plays)):
        name = f"plays[{position}]"
        if not isinstance(play, Play):
            raise InvalidRequest(f"{name}: found {shown(play)}, expected a Play")
        request.plays.add(
            event_id=text(f"{name}.event_id", play.event_id),
            user_id=text(f"{name}.user_id", play.user_id),
            track_id=text(f"{name}.track_id", play.track_id),
            timestamp_s=whole(f"{name}.timestamp_s", given(play.timestamp_s, 0), *INT64),
            count=whole(f"{name}.count", given(play.count, 1), *UINT32),
            completed=None if play.completed is None else bool(play.completed),
            skipped=None if play.skipped is None else bool(play.skipped),
            request_id=text(f"{name}.request_id", given(play.request_id, "")),
            session_id=text(f"{name}.session_id", given(play.session_id, "")),
            ms_played=None if play.ms_played is None else whole(f"{name}.ms_played", play.ms_played, *UINT32),
        )
    return request


def deadline(timeout_s: float) -> float:
    """Checks a deadline.

    Args:
        timeout_s: seconds.

    Returns:
        The seconds as a float.

    Raises:
        InvalidRequest: not a number above 0 and at most 86,400 (a day).
    """
    seconds = number("timeout_s", timeout_s)
    if not 0 < seconds <= 86_400:  # gRPC takes far larger numbers for a deadline that has passed
        raise InvalidRequest(f"timeout_s: found {seconds:g}, expected above 0 and at most 86400 seconds")
    return seconds


def filter_message(wanted: Filter) -> pb.Filter:
    """Makes the message of a filter.

    Args:
        wanted: which tracks are eligible.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    if not isinstance(wanted, Filter):
        raise InvalidRequest(f"filter: found {shown(wanted)}, expected a Filter")
    if not (wanted.explicit is None or isinstance(wanted.explicit, bool)):  # the text "no" would be true
        raise InvalidRequest(f"filter.explicit: found {shown(wanted.explicit)}, expected True or False")
    message = pb.Filter(
        genres=kept_texts("filter.genres", given(wanted.genres, ())),
        artists=kept_texts("filter.artists", given(wanted.artists, ())),
        min_year=None if wanted.min_year is None else whole("filter.min_year", wanted.min_year, *INT32),
        max_year=None if wanted.max_year is None else whole("filter.max_year", wanted.max_year, *INT32),
        explicit=wanted.explicit,
    )
    for position, condition in enumerate(kept("filter.conditions", given(wanted.conditions, ()))):
        name = f"filter.conditions[{position}]"
        if not isinstance(condition, Condition):
            raise InvalidRequest(f"{name}: found {shown(condition)}, expected a Condition")
        message.conditions.add(
            column=text(f"{name}.column", condition.column),
            any_of=kept_texts(f"{name}.any_of", given(condition.any_of, ())),
            all_of=kept_texts(f"{name}.all_of", given(condition.all_of, ())),
            none_of=kept_texts(f"{name}.none_of", given(condition.none_of, ())),
            min=None if condition.min is None else number(f"{name}.min", condition.min),
            max=None if condition.max is None else number(f"{name}.max", condition.max),
        )
    return message
