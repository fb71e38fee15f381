"""The client against a real gRPC server: mapping, deadlines, retries, errors; sync and aio alike."""

import asyncio
import dataclasses
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import lhydra_client
from lhydra import domain
from lhydra.bundle import columns
from lhydra_client import (
    AsyncClient,
    Client,
    ClientError,
    Condition,
    Filter,
    HistoryEntry,
    InvalidRequest,
    Overloaded,
    Play,
    Recorded,
    Rules,
    ServerError,
    SessionEntry,
    Timeout,
    Track,
    Unavailable,
    Unsupported,
)
from lhydra_client.client import DEFAULT_TIMEOUT_S
from lhydra_client.errors import ERRORS
from lhydra_client.requests import recommend_request, record_plays_request
from lhydra_client.results import Status, recommendations
from lhydra_protos.v1 import recommender_pb2 as pb
from tests import fake_core, test_server
from tests.fake_recommender import STAGES, FakeRecommender, serving

PLAY = Play(*("u1", "t1", 1_700_000_000, 2, True, False), request_id="of an answer", session_id="evening", ms_played=0)


@pytest.fixture
def fake() -> FakeRecommender:
    return FakeRecommender()


@pytest.fixture
def address(fake: FakeRecommender) -> Iterator[str]:
    with serving(fake) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout_s=5.0) as client:
        yield client


def aborting(code: grpc.StatusCode, times: int, request_id: str = "r-42") -> Callable[[Any, Any], None]:
    """Returns a `before` that fails the first `times` calls with `code`."""
    left = [times]

    def before(request: Any, context: grpc.ServicerContext) -> None:
        if left[0]:
            left[0] -= 1
            context.set_trailing_metadata((("x-request-id", request_id),))
            context.abort(code, "k: found 0,\nexpected 1 to 1000")

    return before


# ---- mapping


def test_recommend_request_reaches_the_server_whole(client: Client, fake: FakeRecommender) -> None:
    client.recommend(
        "u1",
        3,
        exclude=["t9", "t8"],
        history=["t4", HistoryEntry("t5", count=2.5, timestamp_s=17)],
        profile={"age": 31, "country": "Chile", "hours": 1.5, "gender": None},
        allow_repeats=True,
        depth=50,
        session=["t6", SessionEntry("t7", 18, completed=False, skipped=True)],
        now_s=19,
    )
    assert fake.seen == [
        pb.RecommendRequest(
            user_id="u1",
            k=3,
            exclude_track_ids=["t9", "t8"],
            repeat_policy=pb.REPEAT_POLICY_ALLOW,
            history=pb.History(
                entries=[
                    pb.HistoryEntry(track_id="t4", count=1),
                    pb.HistoryEntry(track_id="t5", count=2.5, timestamp_s=17),
                ]
            ),
            profile=pb.Profile(
                columns={
                    "age": pb.Value(number=31),
                    "country": pb.Value(text="Chile"),
                    "hours": pb.Value(number=1.5),
                }
            ),
            depth=50,
            session=pb.Session(
                entries=[
                    pb.SessionEntry(track_id="t6"),
                    pb.SessionEntry(track_id="t7", timestamp_s=18, completed=False, skipped=True),
                ]
            ),
            now_s=19,
        )
    ]
    assert not fake.seen[0].session.entries[0].HasField("skipped")


def test_plain_recommend_sends_only_user_and_k(client: Client, fake: FakeRecommender) -> None:
    client.recommend("u1")
    assert fake.seen == [pb.RecommendRequest(user_id="u1", k=10)]
    assert not fake.seen[0].HasField("history")
    assert not fake.seen[0].HasField("profile")


def test_reply_arrives_as_plain_values(client: Client) -> None:
    answer = client.recommend("u1")
    assert answer.tracks[0] == Track("t1", 0.75, 0.5, "Blue Hour", "Ana Sol")
    assert [track.track_id for track in answer.tracks] == ["t1", "t2", "t3"]
    assert (answer.bundle_id, answer.tier, answer.request_id) == ("b-1", "history", "r-7")
    assert answer.degraded == ("slow store",)
    assert answer.stages_us == STAGES
    assert client.similar(["t1"]) == answer
    assert client.record_plays([PLAY, PLAY]) == Recorded(recorded=2, duplicates=0, unknown_tracks=1)
    assert client.explain("u1", "t1").stopped_at == "exclude"


def test_status_has_every_field_of_the_message(client: Client) -> None:
    names = [field.name for field in dataclasses.fields(Status)]
    assert names == [field.name for field in pb.GetStatusResponse.DESCRIPTOR.fields]
    status = client.status()
    assert (status.max_k, status.uptime_s, status.current_bundle_id, status.requests) == (1000, 1.5, "b-2", 9)


@pytest.mark.parametrize(
    ("tier", "name"), [(1, "personal"), (2, "history"), (3, "segment"), (4, "popular"), (9, "tier 9")]
)
def test_every_tier_has_its_word(tier: Any, name: str) -> None:
    assert recommendations(pb.RecommendResponse(tier=tier)).tier == name


def test_plays_reach_the_server_whole(client: Client, fake: FakeRecommender) -> None:
    client.record_plays([PLAY, Play("u2", "t2")])
    first, second = fake.seen[0].plays
    assert first == pb.Play(
        event_id=PLAY.event_id, user_id="u1", track_id="t1", timestamp_s=1_700_000_000, count=2,
        completed=True, skipped=False, request_id="of an answer", session_id="evening", ms_played=0,
    )  # fmt: skip
    assert first.HasField("ms_played")
    assert not second.HasField("ms_played")
    assert not second.HasField("completed")
    assert not second.HasField("skipped")
    assert 1 <= len(second.event_id) <= 128


def test_each_play_has_its_own_event_id_and_keeps_it(client: Client, fake: FakeRecommender) -> None:
    plays = [Play("u1", "t1") for _ in range(3)] + [Play("u1", "t1", event_id="mine")]
    client.record_plays(plays)
    client.record_plays(plays)
    ids = [[play.event_id for play in request.plays] for request in fake.seen]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 4
    assert ids[0][3] == "mine"


def test_aio_client_asks_and_answers_as_the_sync_one(address: str, fake: FakeRecommender) -> None:
    options: dict[str, Any] = {"exclude": ["t9"], "history": ["t4"], "profile": {"age": 3}, "depth": 7}
    options |= {"filter": FILTER, "repeat": "learnt", "session": ["t6"], "now_s": 5}

    async def asked() -> list[Any]:
        async with AsyncClient(address, timeout_s=5.0) as client:
            return [
                await client.recommend("u1", 3, **options),
                await client.similar(["t1"], 4, exclude=["t2"]),
                await client.explain("u1", "t1"),
                await client.record_plays([PLAY]),
                await client.status(),
            ]

    with Client(address, timeout_s=5.0) as client:
        answers: list[Any] = [
            client.recommend("u1", 3, **options),
            client.similar(["t1"], 4, exclude=["t2"]),
            client.explain("u1", "t1"),
            client.record_plays([PLAY]),
            client.status(),
        ]
    assert asyncio.run(asked()) == answers
    assert fake.seen[:5] == fake.seen[5:]


FILTER = Filter(
    genres=["Jazz", "Rock"],
    artists=("Ana Sol",),
    min_year=1990,
    max_year=1999,
    explicit=False,
    conditions=[
        Condition("tags", any_of=["a"], all_of=["piano", "live"], none_of={"christmas"}),
        Condition("tempo", min=0, max=120.5),
    ],
)
FILTER_SENT = pb.Filter(
    genres=["Jazz", "Rock"],
    artists=["Ana Sol"],
    min_year=1990,
    max_year=1999,
    explicit=False,
    conditions=[
        pb.Condition(column="tags", any_of=["a"], all_of=["piano", "live"], none_of=["christmas"]),
        pb.Condition(column="tempo", min=0, max=120.5),
    ],
)


def test_a_filter_reaches_the_server_whole_and_as_often_as_it_is_used(client: Client, fake: FakeRecommender) -> None:
    client.recommend("u1", filter=FILTER)
    client.recommend("u1", filter=FILTER)
    assert fake.seen == [pb.RecommendRequest(user_id="u1", k=10, filter=FILTER_SENT)] * 2


def test_filter_and_condition_have_every_field_of_their_messages() -> None:
    for kind, message in ((Filter, pb.Filter), (Condition, pb.Condition)):
        names = [field.name for field in dataclasses.fields(kind)]
        assert names == [field.name for field in message.DESCRIPTOR.fields]


def test_what_a_filter_does_not_say_is_not_sent(client: Client, fake: FakeRecommender) -> None:
    client.recommend("u1", filter=Filter(min_year=0, conditions=[Condition("tempo", max=0)]))
    (sent,) = [request.filter for request in fake.seen]
    assert [sent.HasField(name) for name in ("min_year", "max_year", "explicit")] == [True, False, False]
    assert [sent.conditions[0].HasField(name) for name in ("min", "max")] == [False, True]


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({}, pb.REPEAT_POLICY_UNSPECIFIED),
        ({"repeat": "exclude"}, pb.REPEAT_POLICY_EXCLUDE),
        ({"repeat": "allow"}, pb.REPEAT_POLICY_ALLOW),
        ({"repeat": "decay"}, pb.REPEAT_POLICY_DECAY),
        ({"repeat": "learnt"}, pb.REPEAT_POLICY_LEARNT),
        ({"allow_repeats": True}, pb.REPEAT_POLICY_ALLOW),
        ({"allow_repeats": True, "repeat": "allow"}, pb.REPEAT_POLICY_ALLOW),
    ],
)
def test_every_repeat_policy_has_its_word(
    client: Client, fake: FakeRecommender, options: dict[str, Any], policy: pb.RepeatPolicy.ValueType
) -> None:
    client.recommend("u1", **options)
    assert [request.repeat_policy for request in fake.seen] == [policy]


# ---- arguments that the wire cannot express


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda c: c.recommend("u1", -1), "k"),
        (lambda c: c.recommend("u1", 2**32), "k"),
        (lambda c: c.recommend("u1", 2.5), "k"),
        (lambda c: c.recommend("u1", "ten"), "k"),
        (lambda c: c.recommend("u1", depth=-1), "depth"),
        (lambda c: c.recommend(7), "user_id"),
        (lambda c: c.recommend("\udcff"), "user_id"),
        (lambda c: c.recommend("u1", exclude="t1"), "exclude_track_ids"),
        (lambda c: c.recommend("u1", exclude=["t1", 2]), r"exclude_track_ids\[1\]"),
        (lambda c: c.recommend("u1", history=[3]), r"history.entries\[0\].track_id"),
        (lambda c: c.recommend("u1", history=[HistoryEntry("t", count="x")]), r"history.entries\[0\].count"),  # type: ignore[arg-type]
        (lambda c: c.recommend("u1", session="t1"), "session"),
        (lambda c: c.recommend("u1", session=["t1", 2]), r"session.entries\[1\].track_id"),
        (lambda c: c.recommend("u1", session=[SessionEntry("t", 1.5)]), r"session.entries\[0\].timestamp_s"),  # type: ignore[arg-type]
        (lambda c: c.recommend("u1", now_s=2**63), "now_s"),
        (lambda c: c.recommend("u1", now_s="now"), "now_s"),
        (lambda c: c.recommend("u1", profile={"age": [1]}), "profile.columns"),
        (lambda c: c.recommend("u1", profile={3: 1}), "profile.columns"),
        (lambda c: c.recommend("u1", repeat="often"), "repeat_policy"),
        (lambda c: c.recommend("u1", repeat=["decay"]), "repeat_policy"),
        (lambda c: c.recommend("u1", repeat="decay", allow_repeats=True), "repeat_policy"),
        (lambda c: c.recommend("u1", filter={"genres": ["Jazz"]}), "filter"),
        (lambda c: c.recommend("u1", filter=Filter(genres="Jazz")), "filter.genres"),
        (lambda c: c.recommend("u1", filter=Filter(artists=["a", 3])), r"filter.artists\[1\]"),  # type: ignore[list-item]
        (lambda c: c.recommend("u1", filter=Filter(artists=iter("a"))), "filter.artists"),  # type: ignore[arg-type]
        (lambda c: c.recommend("u1", filter=Filter(min_year=2**31)), "filter.min_year"),
        (lambda c: c.recommend("u1", filter=Filter(max_year=1999.5)), "filter.max_year"),  # type: ignore[arg-type]
        (lambda c: c.recommend("u1", filter=Filter(explicit="no")), "filter.explicit"),  # type: ignore[arg-type]
        (lambda c: c.recommend("u1", filter=Filter(conditions=["tags"])), r"filter.conditions\[0\]"),  # type: ignore[list-item]
        (
            lambda c: c.recommend("u1", filter=Filter(conditions=[Condition("a", min="x")])),  # type: ignore[arg-type]
            r"filter.conditions\[0\].min",
        ),
        (
            lambda c: c.recommend("u1", filter=Filter(conditions=[Condition("a"), Condition("a", none_of="x")])),
            r"filter.conditions\[1\].none_of",
        ),
        (lambda c: c.recommend("u1", timeout_s=0), "timeout_s"),
        (lambda c: c.recommend("u1", timeout_s=float("inf")), "timeout_s"),
        (lambda c: c.recommend("u1", timeout_s=float("nan")), "timeout_s"),
        (lambda c: c.similar("t1"), "track_ids"),
        (lambda c: c.record_plays(["t1"]), r"plays\[0\]"),
        (lambda c: c.record_plays([Play("u", "t", count=-1)]), r"plays\[0\].count"),
        (lambda c: c.record_plays([Play("u", "t", timestamp_s=2**63)]), r"plays\[0\].timestamp_s"),
        (lambda c: c.record_plays([Play("u", "t", ms_played=-1)]), r"plays\[0\].ms_played"),
        (lambda c: c.record_plays([Play("u", "t", request_id=3)]), r"plays\[0\].request_id"),  # type: ignore[arg-type]
        (lambda c: Client("127.0.0.1"), "address"),
        (lambda c: Client("127.0.0.1:99999"), "address"),
        (lambda c: Client(""), "address"),
        (lambda c: Client(timeout_s=-1), "timeout_s"),
    ],
)
def test_what_the_wire_cannot_express_is_refused_without_a_call(
    client: Client, fake: FakeRecommender, call: Callable[[Any], Any], field: str
) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{field}.*: found .*, expected ") as caught:
        call(client)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert fake.seen == []


@pytest.mark.parametrize("k", [0, 10**9])
def test_what_the_wire_can_express_is_left_to_the_server(client: Client, fake: FakeRecommender, k: int) -> None:
    client.recommend("", k)
    assert fake.seen == [pb.RecommendRequest(k=k)]


# ---- None


NEEDED = {"user_id": "u1", "track_id": "t1", "track_ids": ["t1"], "text": "blue", "plays": [PLAY], "users": ["u1"]}


def optional(call: Callable[..., Any]) -> dict[str, Any]:
    """Every argument that may be left out, as None."""
    return {one.name: None for one in inspect.signature(call).parameters.values() if one.default is not one.empty}


@pytest.mark.parametrize(
    "name", [name for name, one in inspect.getmembers(Client, inspect.isfunction) if name[0] != "_" and optional(one)]
)
def test_none_means_what_leaving_an_argument_out_means(address: str, fake: FakeRecommender, name: str) -> None:
    parameters = inspect.signature(getattr(Client, name)).parameters.values()
    needed = {one.name: NEEDED[one.name] for one in parameters if one.default is one.empty and one.name != "self"}
    none = optional(getattr(Client, name))

    async def ask() -> None:
        async with AsyncClient(address, timeout_s=5.0) as client:
            for options in ({}, none):
                answer = getattr(client, name)(**needed, **options)
                _ = [one async for one in answer] if name == "recommend_many" else await answer

    with Client(address, timeout_s=5.0) as client:
        for options in ({}, none):
            answer = getattr(client, name)(**needed, **options)
            _ = list(answer) if name == "recommend_many" else answer
    asyncio.run(ask())
    assert fake.seen == [fake.seen[0]] * 4


def test_none_leaves_out_what_a_client_a_filter_and_rules_need_not_say() -> None:
    async def aio() -> float:
        return AsyncClient(**optional(AsyncClient))._timeout_s

    assert Client(**optional(Client))._timeout_s == asyncio.run(aio()) == DEFAULT_TIMEOUT_S
    for value in (Filter(), Rules(), Rules(calibrate="genre")):
        options = optional(type(value)) | ({"calibrate": "genre"} if value == Rules(calibrate="genre") else {})
        key = "filter" if isinstance(value, Filter) else "rules"
        given: list[Any] = [{key: value}, {key: type(value)(**options)}]
        first, second = (recommend_request("u1", 3, **one) for one in given)
        assert first == second
    entry, played = HistoryEntry("t1", **optional(HistoryEntry)), SessionEntry("t1", **optional(SessionEntry))
    told = recommend_request("u1", 3, history=[entry], session=[played])
    assert told == recommend_request("u1", 3, history=["t1"], session=["t1"])
    plays = [Play("u1", "t1", event_id="e"), Play("u1", "t1", **optional(Play) | {"event_id": "e"})]
    assert record_plays_request(plays[:1]) == record_plays_request(plays[1:])
    conditions = [Condition("tempo", min=1), Condition(**optional(Condition) | {"column": "tempo", "min": 1})]
    first, second = (recommend_request("u1", 3, filter=Filter(conditions=[one])) for one in conditions)
    assert first == second


# ---- errors


def test_every_status_code_has_its_error() -> None:
    assert set(ERRORS) == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    named = {grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest, grpc.StatusCode.UNIMPLEMENTED: Unsupported}
    named |= {grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded, grpc.StatusCode.UNAVAILABLE: Unavailable}
    named |= {grpc.StatusCode.DEADLINE_EXCEEDED: Timeout, grpc.StatusCode.INTERNAL: ServerError}
    assert {code: ERRORS[code] for code in named} == named


@pytest.mark.parametrize("code", list(ERRORS), ids=lambda code: code.name)
def test_a_status_from_the_server_arrives_as_its_error(
    client: Client, fake: FakeRecommender, code: grpc.StatusCode
) -> None:
    fake.before = aborting(code, times=99)
    with pytest.raises(ClientError) as caught:
        client.recommend("u1")
    assert type(caught.value) is ERRORS[code]
    assert caught.value.code == code.name
    assert caught.value.request_id == "r-42"
    assert str(caught.value).isprintable()
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        assert str(caught.value) == r"k: found 0,\nexpected 1 to 1000"


def test_aio_errors_are_those_of_the_sync_client(address: str, fake: FakeRecommender) -> None:
    fake.before = aborting(grpc.StatusCode.INTERNAL, times=2)

    async def ask() -> None:
        async with AsyncClient(address, timeout_s=5.0) as client:
            await client.recommend("u1")

    with pytest.raises(ServerError) as aio:
        asyncio.run(ask())
    with pytest.raises(ServerError) as sync, Client(address, timeout_s=5.0) as client:
        client.recommend("u1")
    assert (str(aio.value), aio.value.code, aio.value.request_id) == (str(sync.value), "INTERNAL", "r-42")


def test_a_message_above_the_size_limit_is_not_called_overload() -> None:
    with (
        serving(FakeRecommender(), options=(("grpc.max_receive_message_length", 1024),)) as address,
        Client(address, timeout_s=5.0) as client,
        pytest.raises(InvalidRequest, match="larger than max") as caught,
    ):
        client.recommend("u" * 5000)
    assert caught.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("trailers", "wait"),
    [
        ({"retry-after-ms": "250"}, 250),
        ({"retry-after-ms": "0"}, 0),
        ({}, None),
        ({"retry-after-ms": ""}, None),
        ({"retry-after-ms": "-5"}, None),
        ({"retry-after-ms": "2.5"}, None),
        ({"retry-after-ms": "9" * 5000}, None),
    ],
)
def test_an_overload_says_when_to_try_again(
    address: str, fake: FakeRecommender, trailers: dict[str, str], wait: int | None
) -> None:
    def refuse(request: Any, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("x-request-id", "r-42"), *trailers.items()))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")

    async def ask() -> None:
        async with AsyncClient(address, timeout_s=5.0) as client:
            await client.recommend("u1")

    fake.before = refuse
    with pytest.raises(Overloaded) as sync, Client(address, timeout_s=5.0) as client:
        client.recommend("u1")
    with pytest.raises(Overloaded) as aio:
        asyncio.run(ask())
    for caught in (sync.value, aio.value):
        assert (caught.retry_after_ms, caught.request_id, caught.code) == (wait, "r-42", "RESOURCE_EXHAUSTED")


def test_no_server_is_one_line_naming_the_address() -> None:
    with serving(FakeRecommender()) as address:
        pass  # stopped again: nobody listens there now
    with (
        Client(address) as client,
        pytest.raises(Unavailable, match=rf"^no server answers at {address} \([^\n]+\)$") as caught,
    ):
        client.status()
    assert caught.value.request_id == ""


# ---- deadlines


def test_a_silent_server_ends_in_a_timeout_and_its_call_is_cancelled(client: Client, fake: FakeRecommender) -> None:
    cancelled = threading.Event()

    def wait_until_cancelled(request: Any, context: grpc.ServicerContext) -> None:
        context.add_callback(cancelled.set)
        assert cancelled.wait(60)

    fake.before = wait_until_cancelled
    with pytest.raises(Timeout, match=r"^no answer from 127\.0\.0\.1:\d+ within 0\.2 s$"):
        client.recommend("u1", timeout_s=0.2)
    assert cancelled.wait(60)
    assert len(fake.seen) == 1


def test_every_call_has_a_deadline(address: str, fake: FakeRecommender) -> None:
    left: list[float | None] = []
    fake.before = lambda request, context: left.append(context.time_remaining())

    async def ask() -> None:
        async with AsyncClient(address) as client:
            await client.recommend("u1")
            await client.status(timeout_s=30)

    with Client(address) as client:
        client.recommend("u1")
        client.similar(["t1"])
        client.explain("u1", "t1")
        client.record_plays([PLAY])
        client.status()
        client.status(timeout_s=30)
    asyncio.run(ask())
    assert len(left) == 8
    assert all(seconds is not None and seconds < 1.5 for seconds in (*left[:5], left[6]))
    assert all(seconds is not None and 1.5 < seconds < 31 for seconds in (left[5], left[7]))


# ---- retries


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_an_unavailable_server_is_asked_again_with_the_same_events(
    client: Client, fake: FakeRecommender, code: grpc.StatusCode
) -> None:
    fake.before = aborting(code, times=3)
    assert client.record_plays([Play("u1", "t1"), Play("u1", "t2")]).recorded == 2
    assert len(fake.seen) == 4
    assert all(request == fake.seen[0] for request in fake.seen)
    assert len({play.event_id for play in fake.seen[0].plays}) == 2


def test_four_attempts_are_the_most(client: Client, fake: FakeRecommender) -> None:
    fake.before = aborting(grpc.StatusCode.UNAVAILABLE, times=99)
    with pytest.raises(Unavailable):
        client.recommend("u1")
    assert len(fake.seen) == 4


def test_the_aio_client_retries_too(address: str, fake: FakeRecommender) -> None:
    fake.before = aborting(grpc.StatusCode.UNAVAILABLE, times=2)

    async def ask() -> Recorded:
        async with AsyncClient(address, timeout_s=5.0) as client:
            return await client.record_plays([PLAY])

    assert asyncio.run(ask()).recorded == 1
    assert fake.seen == [fake.seen[0]] * 3


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "INTERNAL", "UNIMPLEMENTED"])
def test_nothing_else_is_retried(client: Client, fake: FakeRecommender, code: str) -> None:
    fake.before = aborting(grpc.StatusCode[code], times=1)
    with pytest.raises(ClientError):
        client.recommend("u1")
    assert len(fake.seen) == 1


# ---- the service itself


def test_filter_and_repeat_mean_to_the_service_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"genre": "categorical", "artist": "categorical", "year": "year", "explicit": "numeric"}
    filtered = columns.FilterColumns(test_server.N, kinds | {"tags": "multi", "tempo": "numeric"}, {})
    bundle = dataclasses.replace(fake_core.served(n=test_server.N), filters=filtered, genre="genre")
    monkeypatch.setattr(test_server, "served", lambda n: bundle)
    with test_server.serve(tmp_path) as running, Client(f"127.0.0.1:{running.listener.port}", 20) as client:
        assert len(client.recommend("u1", filter=FILTER, repeat="decay").tracks) == 10
        query = running.recommender.queries[-1]
        assert query.repeat.name == "DECAY"
        assert set(query.filter) == {
            domain.Condition("genre", any_of=("Jazz", "Rock")),
            domain.Condition("artist", any_of=("Ana Sol",)),
            domain.Condition("year", min=1990, max=1999),
            domain.Condition("explicit", any_of=("0",)),
            domain.Condition("tags", any_of=("a",), all_of=("piano", "live"), none_of=("christmas",)),
            domain.Condition("tempo", min=0, max=120.5),
        }
        with pytest.raises(InvalidRequest, match=r"^filter\.conditions\[0\]\.column: found .*mood"):
            client.recommend("u1", filter=Filter(conditions=[Condition("mood", any_of=["sad"])]))


def test_the_service_tells_the_client_when_to_try_again(tmp_path: Path) -> None:
    with test_server.serve(tmp_path, max_in_flight=1) as running:
        gate = test_server.Gate(running)
        (taken,) = gate.holds(test_server.request())
        try:
            with (
                Client(f"127.0.0.1:{running.listener.port}", 20) as client,
                pytest.raises(Overloaded, match="retry in") as caught,
            ):
                client.recommend("u1")
        finally:
            gate.open.set()
        taken.result()
        assert caught.value.retry_after_ms is not None
        assert caught.value.retry_after_ms >= 1
        assert f"{caught.value.retry_after_ms} ms" in str(caught.value)


# ---- channels, imports, documentation


def test_an_injected_channel_is_used_and_left_open(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        with Client(channel=channel) as client:
            assert client.recommend("u1").bundle_id == "b-1"
        with Client(channel=channel) as client:
            assert client.status().bundle_id == "b-1"

    async def ask() -> str:
        async with grpc.aio.insecure_channel(address) as channel:
            async with AsyncClient(channel=channel) as client:
                await client.status()
            async with AsyncClient(channel=channel) as client:
                return (await client.status()).bundle_id

    assert asyncio.run(ask()) == "b-1"


def test_every_public_name_exists_and_no_other_does() -> None:
    assert all(getattr(lhydra_client, name).__name__ == name for name in lhydra_client.__all__)
    with pytest.raises(AttributeError, match="Nobody"):
        lhydra_client.Nobody  # type: ignore[attr-defined]  # noqa: B018


def loaded(code: str) -> set[str]:
    """Returns the top-level modules that a fresh interpreter has loaded after `code`."""
    show = "; import sys; print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code + show], env=environ, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_client_loads_neither_numpy_nor_the_core() -> None:
    names = loaded("import lhydra_client; lhydra_client.Client().close(); lhydra_client.AsyncClient")
    heavy = {"numpy", "lhydra", "torch", "faiss", "onnxruntime", "pandas", "rich", "yaml"}
    assert "grpc" in names
    assert names & heavy == set()


def test_the_help_of_the_command_loads_no_grpc() -> None:
    assert loaded("import lhydra_client.command") & {"grpc", "google"} == set()
