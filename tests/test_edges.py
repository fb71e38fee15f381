"""Requests at the edges of what the wire can say, on a real server over a real bundle: refused by name, or answered."""

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra.bundle.bundle import Bundle
from lhydra.domain import MAX_HISTORY, UserState, make_history, track_hashes
from lhydra.limits import LAST_S
from lhydra.logs import AccessLog, JsonFormatter
from lhydra.queries import Request, to_query
from lhydra.recommender import Recommender
from lhydra.users.store import UserStore, open_users
from lhydra_client import HistoryEntry
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from lhydra_server.app import Listener
from lhydra_server.errors import MAX_TEXT_CHARS, status_of
from lhydra_server.served import served_of
from lhydra_server.service import RecommenderService
from tests.harness import examples

BUNDLE = Path(__file__).resolve().parent / "golden" / "bundle_v4"
NOW = 1_700_000_000
Code = grpc.StatusCode
ALLOWED = {Code.OK, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED}


class Served:
    """A server over the golden bundle, and what it logs."""

    def __init__(self, users: UserStore, log: Path, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)])
        self.stub, self.users, self.log = RecommenderStub(self.channel), users, log
        self.track_ids = Bundle.open_folder(BUNDLE).catalog.track_ids(np.arange(40))

    def ask(self, method: str, request: Message) -> tuple[grpc.StatusCode, str, Any]:
        try:
            return Code.OK, "", getattr(self.stub, method)(request, timeout=60)
        except grpc.RpcError as error:
            return error.code(), error.details() or "", None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("edges")
    calls = logging.getLogger("lhydra_server.calls")
    calls.setLevel(logging.INFO)
    bundle = Bundle.open_folder(BUNDLE)
    users = open_users(None, folder)
    with (folder / "log").open("ab") as lines:
        service = RecommenderService(served_of(bundle, Recommender(bundle)), users, max_k=50)
        access = AccessLog(name=calls.name, put=lambda line: os.write(lines.fileno(), f"{line}\n".encode()))
        listener = Listener(service, "127.0.0.1:0", max_in_flight=32, connection_age_s=600, access_log=access)
        listener.start()
        running = Served(users, folder / "log", listener.port)
        try:
            yield running
        finally:
            running.channel.close()
            listener.stop(0)
            users.close()


def strict(line: str) -> Any:
    """Parses JSON as its standard has it: without NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(line, parse_constant=refuse)


# -- every field of every message ------------------------------------------------------------------------------

DOUBLES = st.floats() | st.sampled_from([3e38, 1.7e308, 5e-324, -0.0, 2.0**63, 1e19, -1e19])
FLOATS = st.floats(width=32) | st.sampled_from([2.0**127, 2.0**-149, -0.0])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["z" * 20_000, "\U0001f3b5" * 5_000, "é\x01" * 5_000, "a\x00b", "\u202e", "1_999", "\x85", "'\"\\" * 3_000, "year"]
)


def whole(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high) | st.sampled_from([low, high, 0, 1, min(high, 2**31 - 1), min(high, NOW)])


OF_TYPE: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_DOUBLE: DOUBLES,
    FieldDescriptor.TYPE_FLOAT: FLOATS,
    FieldDescriptor.TYPE_INT64: whole(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: whole(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: whole(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: whole(0, 2**32 - 1),
    FieldDescriptor.TYPE_ENUM: whole(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: TEXTS,
}


def fields(message: Message, draw: st.DrawFn, leave_out: tuple[str, ...] = ()) -> None:
    """Fills some fields of a message with whatever the wire can carry."""
    for field in message.DESCRIPTOR.fields:
        if field.name in leave_out or not draw(st.booleans()):
            continue
        times = draw(st.integers(1, 3)) if field.is_repeated else 1
        if field.message_type is None:
            values = [draw(OF_TYPE[field.type]) for _ in range(times)]
            if field.is_repeated:
                getattr(message, field.name).extend(values)
            else:
                setattr(message, field.name, values[0])
        elif field.message_type.GetOptions().map_entry:
            for _ in range(times):
                name = draw(TEXTS | st.sampled_from(["age", "country", "gender"]))
                inner, value = getattr(message, field.name), field.message_type.fields_by_name["value"]
                if value.message_type is None:
                    inner[name] = draw(OF_TYPE[value.type])
                else:
                    fields(inner[name], draw)
        else:
            for _ in range(times):
                inner = getattr(message, field.name)
                fields(inner.add() if field.is_repeated else inner, draw)


def fit_rules(message: pb.RecommendRequest, draw: st.DrawFn) -> None:
    """Rules of a kind that the bundle can answer, of whatever size."""
    columns, values = st.sampled_from(["artist", "genre", "tags", "year"]), st.sampled_from(["1999", "rock", "0.5"])
    message.diversity.strength = draw(st.floats(0, 1, width=32))
    message.rules.Clear()
    for _ in range(draw(st.integers(0, 3))):
        message.rules.caps[draw(columns)] = draw(whole(0, 9))
        message.rules.boosts.add(
            column=draw(columns), values=[draw(values)], factor=draw(st.sampled_from([1e-3, 2, 1e6]))
        )
    if draw(st.booleans()):
        message.rules.blocks.add(column=draw(columns), values=[draw(values)])
    message.rules.calibration.column = draw(columns)
    message.rules.explore_slots = draw(whole(0, 9))


@st.composite
def recommends(draw: st.DrawFn) -> pb.RecommendRequest:
    """Mostly valid where it does not matter, so that what is drawn is reached."""
    message = pb.RecommendRequest(user_id="ann", k=5)
    fields(message, draw, ("user_id", "k", *(["diversity", "explain", "rules"] if draw(st.booleans()) else [])))
    if draw(st.integers(0, 9)) == 0:
        message.user_id, message.k = draw(TEXTS), draw(whole(0, 2**32 - 1))
    for condition in message.filter.conditions:
        if draw(st.booleans()):
            condition.column = draw(st.sampled_from(["year", "tempo", "genre", "tags"]))
    if draw(st.booleans()):
        fit_rules(message, draw)
    for entry in message.history.entries:
        if draw(st.booleans()):
            entry.track_id, entry.timestamp_s = "T0000001", draw(st.sampled_from([0, 5, NOW]))
    for play in message.session.entries:
        if draw(st.booleans()):
            play.track_id, play.timestamp_s = "T0000001", draw(st.sampled_from([0, 5, NOW]))
    if draw(st.booleans()):
        message.now_s = draw(st.sampled_from([0, 1, NOW, LAST_S]))
    return message


@st.composite
def records(draw: st.DrawFn) -> pb.RecordPlaysRequest:
    message = pb.RecordPlaysRequest()
    for i in range(draw(st.integers(0, 3))):
        play = message.plays.add(event_id=f"e{i}", user_id="ann", track_id="T0000001")
        fields(play, draw, ("event_id", "user_id", "track_id") if draw(st.booleans()) else ())
    return message


def sound(server: Served, method: str, request: Message) -> None:
    code, details, answer = server.ask(method, request)
    assert code in ALLOWED, (code, details)
    assert len(details) <= MAX_TEXT_CHARS
    assert details.isprintable()
    for track in getattr(answer, "tracks", ()):
        assert 0 <= track.score <= 1
        assert math.isfinite(track.retrieval_score)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=list(HealthCheck))
@given(recommends())
def test_whatever_a_recommend_says_it_is_answered_or_refused_by_name(
    server: Served, request_: pb.RecommendRequest
) -> None:
    sound(server, "Recommend", request_)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(records())
def test_whatever_a_record_says_it_is_taken_or_refused_by_name(server: Served, request_: pb.RecordPlaysRequest) -> None:
    sound(server, "RecordPlays", request_)
    sound(server, "Recommend", pb.RecommendRequest(user_id="ann", k=5, repeat_policy=pb.REPEAT_POLICY_ALLOW))


def test_every_line_of_all_that_is_json(server: Served) -> None:
    for line in server.log.read_text().splitlines():
        strict(line)


@pytest.mark.parametrize("column", ["z" * 20_000, "\U0001f3b5" * 4_000, "é\x01" * 5_000, "\n"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_error_about_a_long_name_is_short_enough_for_its_trailer(server: Served, column: str, value: float) -> None:
    request = pb.RecommendRequest(user_id="ann", k=5)
    request.profile.columns[column].number = value
    code, details, _ = server.ask("Recommend", request)
    assert code is Code.INVALID_ARGUMENT
    assert details.startswith("profile.columns[")
    assert details.endswith(f"found {value}, expected a finite number")
    assert len(details) <= MAX_TEXT_CHARS
    assert details.isprintable()


def test_the_text_of_any_error_is_bounded_and_printable() -> None:
    from lhydra.errors import InvalidRequest, Overloaded

    for error in (InvalidRequest("f" * 99_999, "\n", "\x07" * 9_999), Overloaded("\U0001f3b5\n" * 9_999)):
        _, details = status_of(error, "id")
        assert len(details) <= MAX_TEXT_CHARS
        assert details.isprintable()


def test_a_profile_column_that_the_model_does_not_use_is_named_in_the_answer(server: Served) -> None:
    request = pb.RecommendRequest(user_id="nobody", k=5)
    request.profile.columns["age"].number = 30
    request.profile.columns["country"].text = "France"
    _, _, plain = server.ask("Recommend", request)
    assert list(plain.degraded) == []
    request.profile.columns["Age"].number = 31
    request.profile.columns["\x07" + "z" * 20_000].text = "x"
    _, _, told = server.ask("Recommend", request)
    (reason,) = told.degraded
    assert reason.startswith("unused_profile_columns: ")
    assert "'Age'; the model uses age, country, gender, region" in reason
    assert len(reason) <= 500
    assert reason.isprintable()
    assert [track.track_id for track in told.tracks] == [track.track_id for track in plain.tracks]
    for i in range(200):
        request.profile.columns[f"column {i}"].number = i
    _, _, told = server.ask("Recommend", request)
    assert len(told.degraded[0]) <= 500
    assert ", ..." in told.degraded[0]


def test_a_text_where_the_model_wants_a_number_is_named_in_the_answer(server: Served) -> None:
    for text, told in (("abc", ["age"]), ("31", []), (" ", [])):
        request = pb.RecommendRequest(user_id="nobody", k=5)
        request.profile.columns["age"].text = text
        _, _, found = server.ask("Recommend", request)
        assert [reason.partition("; ")[0] for reason in found.degraded] == [
            f"unused_profile_columns: '{name}', as '{text}' is no number" for name in told
        ]


def test_a_value_that_the_model_has_not_met_is_named_in_the_answer(server: Served) -> None:
    request = pb.RecommendRequest(user_id="nobody", k=5)
    request.profile.columns["gender"].text = "zzz"
    request.profile.columns["country"].text = "Nowhere"
    request.profile.columns["region"].text = " "
    _, _, found = server.ask("Recommend", request)
    assert found.tier == pb.TIER_POPULAR
    assert [reason.partition("; ")[0] for reason in found.degraded] == [
        "unused_profile_columns: 'country', as the model knows no 'Nowhere', 'gender', as the model knows no 'zzz'"
    ]


@pytest.mark.parametrize("name", ["history", "session"])
def test_plays_of_which_the_bundle_holds_none_are_told_and_of_which_it_holds_one_are_not(
    server: Served, name: str
) -> None:
    _, _, plain = server.ask("Recommend", pb.RecommendRequest(user_id="nobody", k=5))
    request = pb.RecommendRequest(user_id="nobody", k=5)
    for i in range(3):
        getattr(request, name).entries.add(track_id=f"no track {i}")
    _, _, found = server.ask("Recommend", request)
    assert list(found.degraded) == [f"unknown_tracks: this bundle holds none of the 3 tracks of {name}"]
    getattr(request, name).entries.add(track_id=plain.tracks[0].track_id)
    _, _, found = server.ask("Recommend", request)
    assert list(found.degraded) == []


def test_a_filter_value_that_no_track_has_is_named_where_the_list_falls_short(server: Served) -> None:
    _, _, plain = server.ask("Recommend", pb.RecommendRequest(user_id="nobody", k=5, filter=pb.Filter(genres=["Jazz"])))
    assert len(plain.tracks) > 0
    wanted = pb.Filter(genres=["jazz", "no such\x07 genre" + "z" * 200], explicit=True)
    _, _, told = server.ask("Recommend", pb.RecommendRequest(user_id="nobody", k=5, filter=wanted))
    (reason,) = told.degraded
    assert reason.startswith("unknown_values: no track has genre 'jazz' ('Jazz'?), genre 'no such")
    assert (reason.isprintable(), len(reason) <= 500, len(told.tracks)) == (True, True, 0)
    spelled = pb.Filter(genres=["Jazz", "Jaz"])  # a list that is whole says nothing of what did not matter
    _, _, whole = server.ask("Recommend", pb.RecommendRequest(user_id="nobody", k=1, filter=spelled))
    assert (len(whole.tracks), list(whole.degraded)) == (1, [])


def test_a_seed_without_a_draw_changes_nothing(server: Served) -> None:
    lists = [server.ask("Recommend", pb.RecommendRequest(user_id="ann", k=5, seed=seed))[2].tracks for seed in (0, 7)]
    assert list(lists[0]) == list(lists[1])


# -- the order of a history ------------------------------------------------------------------------------------


def history(*entries: tuple[str, int]) -> list[HistoryEntry]:
    return [HistoryEntry(track, 1.0, time) for track, time in entries]


def order(entries: list[HistoryEntry]) -> list[str]:
    """The tracks of a request's history as the recommender takes them, newest last."""
    names = {int(track_hashes([entry.track_id])[0]): entry.track_id for entry in entries}
    return [names[int(track)] for track in to_query(Request("u", 5, history=entries), None, NOW).state.history["track"]]


def test_without_times_the_order_of_a_history_counts(server: Served) -> None:
    def answer(track_ids: list[str]) -> list[tuple[str, float]]:
        request = pb.RecommendRequest(user_id="nobody", k=10)
        for track_id in track_ids:
            request.history.entries.add(track_id=track_id)
        _, _, answered = server.ask("Recommend", request)
        return [(track.track_id, track.score) for track in answered.tracks]

    played = server.track_ids[:12]
    assert answer(played) == answer(played)
    assert answer(played) != answer(played[::-1])


@pytest.mark.parametrize("time", [0, NOW])
def test_of_more_plays_than_are_kept_the_last_ones_stay(time: int) -> None:
    entries = history(*((f"t{i}", time) for i in range(3_000)))
    assert order(entries) == [f"t{i}" for i in range(3_000 - MAX_HISTORY, 3_000)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([0, 0, 1, 2, NOW])), max_size=12))
def test_a_history_is_ordered_by_time_then_by_place_and_unknown_times_come_first(plays: list[tuple[str, int]]) -> None:
    latest: dict[str, int] = {}
    place: dict[str, int] = {}
    for i, (track, time) in enumerate(plays):
        latest[track], place[track] = max(latest.get(track, 0), time), i
    assert order(history(*plays)) == sorted(latest, key=lambda track: (latest[track], place[track]))
    found = to_query(Request("u", 5, history=history(*plays)), None, NOW).state
    assert {time for time in found.history["time"].tolist() if time > 0} == {time for time in latest.values() if time}
    assert found.heard.tolist() == sorted(track_hashes(latest).tolist())


def test_a_play_without_a_time_never_decays_back(server: Served) -> None:
    heard = server.track_ids
    request = pb.RecommendRequest(user_id="nobody", k=50, repeat_policy=pb.REPEAT_POLICY_DECAY)
    for track_id in heard:
        request.history.entries.add(track_id=track_id)
    _, _, answer = server.ask("Recommend", request)
    assert not {track.track_id for track in answer.tracks} & set(heard)


def test_what_is_stored_without_times_has_no_order() -> None:
    """Prepared data without times is sorted by count: that is no order of listening."""
    recommender = Recommender(Bundle.open_folder(BUNDLE))
    tracks = recommender.catalog.hashes[:12]
    state = UserState({}, make_history(tracks, [1.0] * 12, [0] * 12))
    turned = UserState({}, state.history[::-1].copy())
    a, b = (recommender.encode(one) for one in (state, turned))
    assert not a.entry[:, 1:].any()
    assert not b.entry[:, 1:].any()


# -- logs ------------------------------------------------------------------------------------------------------


@given(st.recursive(DOUBLES | TEXTS | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)))
@settings(max_examples=50, deadline=None)
def test_a_log_line_is_json_whatever_number_is_in_it(value: Any) -> None:
    record = logging.makeLogRecord({"msg": "m", "found": value, "score": math.nan, "array": np.float32(np.inf)})
    line = strict(JsonFormatter().format(record))
    assert line["score"] == "nan"
    with suppress(AssertionError):
        assert line["found"] == value
