"""One merge and one set of limits: a request of the API and its recording become the same query."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lhydra.domain import Query, UserState, make_history, track_hashes
from lhydra.errors import InvalidRequest
from lhydra.limits import CLOCK_SKEW_S, MAX_COUNT, MAX_ENTRIES, MAX_EXCLUDED, MAX_ID_CHARS, MAX_K, MAX_SESSION
from lhydra.queries import Request, known_user, to_query
from lhydra_index_builder.diff import asking
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.translate import to_request
from tests.harness import examples

NOW = 1_700_000_000
ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=3) | st.sampled_from(
    ["t1", "t2", "x" * MAX_ID_CHARS, "x" * (MAX_ID_CHARS + 1), "a\nb"]
)
counts = st.none() | st.floats(width=32) | st.integers(-1, 3) | st.sampled_from([0.1, MAX_COUNT, 2 * MAX_COUNT])
times = st.none() | st.integers(-1, 3) | st.sampled_from([NOW, NOW + CLOCK_SKEW_S, NOW + CLOCK_SKEW_S + 1, 2**41])
entries = st.fixed_dictionaries({"track_id": ids}, optional={"count": counts, "timestamp_s": times})
plays = st.fixed_dictionaries(
    {"track_id": ids},
    optional={"timestamp_s": times, "completed": st.none() | st.booleans(), "skipped": st.none() | st.booleans()},
)
values = st.none() | ids | st.floats() | st.integers(-(2**70), 2**70) | st.booleans()
requests = st.fixed_dictionaries(
    {"user_id": ids},
    optional={
        "k": st.sampled_from([1, 7, MAX_K, MAX_K + 1]),
        "exclude_track_ids": st.none() | st.lists(ids, max_size=3),
        "history": st.none() | st.lists(entries, max_size=4),
        "session": st.none() | st.lists(plays, max_size=4),
        "now_s": times,
        "profile": st.none() | st.dictionaries(st.sampled_from(["age", "country", "π"]), values),
    },
)
states = st.none() | st.builds(
    lambda tracks, profile: UserState(
        profile,
        make_history(track_hashes(tracks), [1.0] * len(tracks), [5] * len(tracks)),
        np.unique(track_hashes(tracks)),
    ),
    st.lists(st.sampled_from(["t1", "t2", "t3"]), max_size=3),
    st.dictionaries(st.sampled_from(["age", "city"]), st.sampled_from([3, "Lyon"])),
)


def message(request: dict[str, Any]) -> pb.RecommendRequest:
    """What a client would have sent: a recording holds what was in it, in words of JSON."""
    sent = pb.RecommendRequest(user_id=request["user_id"], k=request.get("k", 10))
    sent.exclude_track_ids.extend(request.get("exclude_track_ids") or [])
    for entry in request.get("history") or []:
        sent.history.entries.add(
            track_id=entry["track_id"], count=entry.get("count") or 0, timestamp_s=entry.get("timestamp_s") or 0
        )
    for play in request.get("session") or []:
        sent.session.entries.add(
            track_id=play["track_id"],
            timestamp_s=play.get("timestamp_s") or 0,
            completed=play.get("completed"),
            skipped=play.get("skipped"),
        )
    sent.now_s = request.get("now_s") or 0
    for name, value in (request.get("profile") or {}).items():
        if isinstance(value, str):
            sent.profile.columns[name].text = value
        elif value is None:
            sent.profile.columns[name].SetInParent()
        else:
            sent.profile.columns[name].number = float(value)
    return sent


def same(a: Query, b: Query) -> None:
    assert (a.k, a.known, a.depth, a.repeat, a.filter, a.now) == (b.k, b.known, b.depth, b.repeat, b.filter, b.now)
    assert dict(a.state.profile) == dict(b.state.profile)
    assert {name: type(value) for name, value in a.state.profile.items()} == {
        name: type(value) for name, value in b.state.profile.items()
    }
    for x, y in (
        (a.exclude, b.exclude),
        (a.state.history, b.state.history),
        (a.state.heard, b.state.heard),
        (a.state.skipped, b.state.skipped),
        (a.state.repeats, b.state.repeats),
        (a.state.recent, b.state.recent),
    ):
        np.testing.assert_array_equal(x, y)


@settings(max_examples=examples(200), deadline=None)
@given(requests, states)
@example(
    {"user_id": "u", "history": [{"track_id": "t9", "count": 3}]},
    UserState({}, make_history(track_hashes(["t1"]), [1], [5])),
)
@example({"user_id": "u\n"}, None)
def test_a_request_and_its_recording_become_the_same_query_or_are_both_refused(
    request: dict[str, Any], stored: UserState | None
) -> None:
    line = json.dumps(request).encode()
    try:
        served: Any = to_query(to_request(message(request), MAX_K, {}, None, NOW), stored, NOW)
    except InvalidRequest as error:
        served = error
    try:
        recorded: Any = to_query(asking._parsed(line, 10, NOW), stored, NOW)
    except InvalidRequest as error:
        recorded = error
    assert type(served) is type(recorded), (served, recorded)
    if isinstance(served, Query):
        same(served, recorded)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("exclude_track_ids", {"exclude_track_ids": ["t"] * (MAX_EXCLUDED + 1)}),
        ("history", {"history": [{"track_id": "t"}] * (MAX_ENTRIES + 1)}),
        ("session", {"session": [{"track_id": "t"}] * (MAX_SESSION + 1)}),
    ],
)
def test_long_lists_are_refused_by_both(field: str, request_: dict[str, Any]) -> None:
    said = {"user_id": "u", **request_}
    most = MAX_SESSION if field == "session" else MAX_ENTRIES
    line = f"^{field}.*: found {most + 1} entries, expected 0 to {most} entries"
    with pytest.raises(InvalidRequest, match=line):
        to_request(message(said), MAX_K, {}, None, NOW)
    with pytest.raises(InvalidRequest, match=line):
        asking._parsed(json.dumps(said).encode(), 10, NOW)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"session": {}', "session: found {}, expected a list"),
        ('"session": ["t1"]', "session[0]: found 't1', expected a JSON object"),
        ('"session": [{"track_id": 1}]', "session[0].track_id: found 1, expected text"),
        ('"session": [{"track_id": "a", "skipped": 1}]', "session[0].skipped: found 1, expected true or false"),
        ('"session": [{"track_id": "a", "count": 1}]', "session[0]: found field 'count', expected only track_id, "),
        ('"session": [{"track_id": "a", "timestamp_s": -1}]', "session[0].timestamp_s: found -1, expected Unix sec"),
        ('"session": [{"track_id": ""}]', "session[0].track_id: found 0 characters"),
        ('"now_s": "today"', "now_s: found 'today', expected whole seconds since 1970"),
        ('"now_s": true', "now_s: found True, expected whole seconds since 1970"),
        ('"now_s": -1', "now_s: found -1, expected Unix seconds"),
        ('"now_s": 1700000000000', "now_s: found 1700000000000, expected Unix seconds"),
    ],
)
def test_a_recorded_session_and_clock_are_refused_by_name(line: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asking._parsed(f'{{"user_id": "u", {line}}}'.encode(), 10, NOW)
    assert str(caught.value).startswith(message)


def test_batch_and_evaluation_ask_what_a_bare_request_of_a_known_user_asks() -> None:
    tracks = track_hashes(["t1", "t2"])
    state = UserState({"age": 3}, make_history(tracks, [1.0, 2.0], [5, 6]), np.sort(tracks), tracks[:1])
    same(to_query(Request("u", 7, depth=3), state, 0), known_user(state, 7, depth=3))
