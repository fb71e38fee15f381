"""RecommendMany on a real server: what a call of its own gets, in order; bounded, and nothing left behind."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra.domain import Play
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from lhydra_server import admission, app, streams
from lhydra_server.app import SERVICE
from lhydra_server.metrics.layout import FAMILIES
from tests import raw_http2
from tests.fake_core import expected_ids
from tests.harness import until
from tests.test_server import MAX_K, Code, Gate, N, Running, fails, ids, request, serve

PATH = f"/{SERVICE}/RecommendMany"
GARBAGE = b"\xff\xff\xff"
BAD = [
    request(k=0),
    request(""),
    request(depth=2**31),
    request(filter=pb.Filter(genres=["rock"])),
    request(explain=True),
]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(streams, "STREAM_S", 60.0)  # a slow machine ends no stream of a test
    with serve(tmp_path) as running:
        yield running


def many(running: Running, requests: Any, **options: Any) -> Any:
    return running.stub.RecommendMany(iter(requests), timeout=60, **options)


def raw_many(running: Running, data: Sequence[bytes]) -> list[pb.RecommendResponse]:
    call: Any = running.channel.stream_stream(PATH, response_deserializer=pb.RecommendResponse.FromString)
    return list(call(iter(data), timeout=60))


def alone(running: Running, data: bytes) -> pb.RecommendResponse:
    """What a call of its own gets, its error as a stream tells it."""
    call: Any = running.channel.unary_unary(
        f"/{SERVICE}/Recommend", response_deserializer=pb.RecommendResponse.FromString
    )
    try:
        return bare(call(data, timeout=60))
    except grpc.RpcError as error:
        code: Any = error.code()
        return pb.RecommendResponse(error=pb.Error(code=code.value[0], message=error.details() or ""))


def bare(reply: pb.RecommendResponse) -> pb.RecommendResponse:
    """Without what differs between two calls with equal answers."""
    reply.ClearField("request_id")
    for stage in reply.stages:
        stage.took_us = 0
    return reply


def nothing_in_flight(running: Running) -> bool:
    left = running.waiting, running.service._of_streams, running.in_flight, running.listener._streams._running
    return not any(left)


good = st.builds(
    request,
    st.sampled_from(["ann", "bob", "nobody"]),
    st.integers(1, MAX_K),
    exclude_track_ids=st.lists(st.sampled_from([f"t{i:03}" for i in range(N)]), max_size=5),
    repeat_policy=st.sampled_from([pb.REPEAT_POLICY_EXCLUDE, pb.REPEAT_POLICY_ALLOW]),
).map(lambda made: made.SerializeToString())
bad = st.sampled_from([*(one.SerializeToString() for one in BAD), GARBAGE])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(good | bad, max_size=60))
def test_a_stream_equals_calls_of_their_own_bit_for_bit_and_in_order(running: Running, data: list[bytes]) -> None:
    running.users.record([Play("e0", "ann", "t007", 5), Play("e1", "bob", "t017", 5)])
    found = [bare(reply).SerializeToString(deterministic=True) for reply in raw_many(running, data)]
    assert found == [alone(running, one).SerializeToString(deterministic=True) for one in data]


def test_an_error_is_the_answer_to_its_own_request(running: Running) -> None:
    before, refused, after = many(running, [request(k=3), request(k=0), request(k=4)])
    assert (ids(before), ids(after)) == (expected_ids(N, 3), expected_ids(N, 4))
    assert refused.error.code == Code.INVALID_ARGUMENT.value[0]
    assert refused.error.message.startswith("k: found 0, expected")
    assert [reply.HasField("error") for reply in (before, refused, after)] == [False, True, False]
    assert pb.RecommendResponse(request_id=refused.request_id, error=refused.error) == refused


def test_each_request_of_a_stream_has_its_id_its_line_and_its_count(running: Running) -> None:
    call = many(running, [request(), request(k=0)], metadata=(("x-request-id", "night"),))
    assert [reply.request_id for reply in call] == ["night/1", "night/2"]
    assert ("x-request-id", "night") in [tuple(item) for item in call.trailing_metadata()]
    lines = until(lambda: running.lines() if len(running.lines()) == 2 else None)
    assert [(line["method"], line["code"], line["request_id"]) for line in lines] == [
        ("RecommendMany", "OK", "night/1"),
        ("RecommendMany", "INVALID_ARGUMENT", "night/2"),
    ]
    counted = running.block.cells, FAMILIES["lhydra_requests_total"].places
    assert [counted[0][counted[1]["RecommendMany", code]] for code in ("OK", "INVALID_ARGUMENT")] == [1, 1]


def test_an_error_inside_tells_its_id_and_nothing_more(running: Running) -> None:
    def broken(check: Any) -> None:
        if running.recommender.queries[-1].k == 2:
            raise ZeroDivisionError("a secret")

    running.recommender.between = broken
    _, lost, _ = many(running, [request(k=1), request(k=2), request(k=3)])
    assert lost.error.message == f"internal error, request id {lost.request_id}"


def test_a_stream_without_requests_has_no_answers(running: Running) -> None:
    assert list(many(running, [])) == []
    until(lambda: nothing_in_flight(running))


def test_an_answer_comes_before_the_next_request_is_there(running: Running) -> None:
    asked: Any = threading.Semaphore(1)

    def one_by_one() -> Iterator[pb.RecommendRequest]:
        for k in (1, 2, 3):
            assert asked.acquire(timeout=30)
            yield request(k=k)

    for k, reply in enumerate(many(running, one_by_one()), 1):
        assert ids(reply) == expected_ids(N, k)
        asked.release()


def test_a_stream_that_is_cancelled_leaves_nothing_in_flight(running: Running) -> None:
    gate = Gate(running)
    call = many(running, itertools.repeat(request()))
    assert gate.entered.acquire(timeout=30)
    until(lambda: len(running.waiting) == 0 and running.service._of_streams > 0)
    call.cancel()
    gate.open.set()
    until(lambda: nothing_in_flight(running))
    begun = len(running.recommender.queries)
    assert begun <= 2 * streams.MOST_TOGETHER
    assert ids(running.stub.Recommend(request(), timeout=20)) == expected_ids(N, 5)
    assert len(running.recommender.queries) == begun + 1


def test_a_stream_keeps_its_deadline(running: Running) -> None:
    running.recommender.between = lambda check: until(check)  # raises once the caller has left
    call = running.stub.RecommendMany(iter([request()] * 40), timeout=0.2)
    assert fails(lambda: list(call)).code() is Code.DEADLINE_EXCEEDED
    until(lambda: nothing_in_flight(running))
    assert len(running.recommender.queries) <= streams.MOST_TOGETHER


def test_a_caller_that_sends_much_and_reads_nothing_holds_a_bounded_part_of_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, taken, ahead = itertools.count(), [0], [0]
    take, came = admission.Requests.take, admission.Requests._came

    def counted(requests: Any, most: int, until_s: float) -> list[bytes]:
        data = take(requests, most, until_s)
        taken.append(len(data))
        return data

    def seen(requests: Any, task: Any, data: bytes | None) -> None:
        came(requests, task, data)
        ahead.append(len(requests._ahead))

    monkeypatch.setattr(admission.Requests, "take", counted)
    monkeypatch.setattr(admission.Requests, "_came", seen)
    monkeypatch.setattr(streams, "STREAM_S", 600.0)
    asked = request(k=MAX_K, exclude_track_ids=["x" * 100] * 40)
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16))  # gRPC would take megabytes ahead
    channel = grpc.insecure_channel(f"127.0.0.1:{running.listener.port}", options)
    call = RecommenderStub(channel).RecommendMany((asked for _ in range(10_000) if next(sent) >= 0), timeout=60)

    def stopped() -> bool:
        before = sum(taken)
        for _ in range(50):
            assert ids(running.stub.Recommend(request(), timeout=20)) == expected_ids(N, 5)
        return 0 < before == sum(taken)

    until(stopped)
    assert max(ahead) == admission.MOST_AHEAD
    assert max(taken) <= streams.MOST_TOGETHER
    assert sum(taken) < 500  # those whose replies the caller's own system has taken for it
    assert next(sent) < 5_000
    call.cancel()
    channel.close()
    until(lambda: nothing_in_flight(running))


def test_a_caller_to_whom_not_one_byte_may_be_sent_has_one_batch_computed(running: Running) -> None:
    no_window = raw_http2.frame(raw_http2.SETTINGS, 0, 0, bytes([0, 4, 0, 0, 0, 0]))
    data = request().SerializeToString()
    one = raw_http2.frame(raw_http2.DATA, 0, 1, b"\0" + len(data).to_bytes(4, "big") + data)
    with raw_http2.connection(running.listener.port) as raw:
        raw.sendall(no_window + raw_http2.headers(1, PATH) + one * 500)
        until(lambda: running.recommender.queries)
        for _ in range(100):
            assert ids(running.stub.Recommend(request(k=7), timeout=20)) == expected_ids(N, 7)
        assert sum(query.k == 5 for query in running.recommender.queries) <= streams.MOST_TOGETHER
    until(lambda: nothing_in_flight(running))


def test_large_requests_are_read_ahead_by_their_bytes(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    most, came = [0], admission.Requests._came

    def seen(requests: Any, task: Any, data: bytes | None) -> None:
        came(requests, task, data)
        most.append(requests._bytes)

    monkeypatch.setattr(admission.Requests, "_came", seen)
    monkeypatch.setattr(admission, "MOST_BYTES_AHEAD", 2_000)
    large = request(exclude_track_ids=["x" * 1_000])
    assert len(list(many(running, [large] * 40))) == 40
    assert 2_000 < max(most) <= 2_000 + len(large.SerializeToString())


def test_a_stream_ends_after_a_time_with_an_answer_to_all_that_it_took(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STREAM_S", 0.3)
    never, found = threading.Event(), []

    def three_and_wait() -> Iterator[pb.RecommendRequest]:
        yield from [request(k=3)] * 3
        never.wait(60)

    call = many(running, three_and_wait())
    error = fails(lambda: found.extend(call))
    never.set()
    assert (error.code(), [ids(reply) for reply in found]) == (Code.UNAVAILABLE, [expected_ids(N, 3)] * 3)
    assert "send what has no answer on a new one" in (error.details() or "")
    until(lambda: nothing_in_flight(running))


# -- admission -----------------------------------------------------------------------------------------------


def open_streams(running: Running, number: int) -> list[Any]:
    """Streams that have had one answer and stay open."""

    def one_and_wait() -> Iterator[pb.RecommendRequest]:
        yield request()
        threading.Event().wait(20)

    opened = [many(running, one_and_wait()) for _ in range(number)]
    assert all(ids(next(call)) == expected_ids(N, 5) for call in opened)
    return opened


def test_more_streams_than_there_is_room_for_are_refused_at_once(running: Running) -> None:
    opened = open_streams(running, app.STREAMS)
    error: Any = fails(lambda: list(many(running, [request()])))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert "retry-after-ms" in dict(error.trailing_metadata())
    assert ids(running.stub.Recommend(request(), timeout=20)) == expected_ids(N, 5)  # its limit is another
    opened.pop().cancel()
    until(lambda: running.listener._streams.in_flight < app.STREAMS)
    assert len(list(many(running, [request()] * 3))) == 3
    for call in opened:
        call.cancel()


def test_a_stream_older_than_any_may_be_makes_room(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_streams(running, app.STREAMS)
    monkeypatch.setattr(admission, "CALL_LIMIT_S", 0.0)
    assert len(list(many(running, [request()] * 3))) == 3
    (cancelled,) = until(lambda: [call for call in opened if call.done()])  # the first to come, not the first sent
    assert cancelled.code() is Code.CANCELLED
    for call in opened:
        call.cancel()


def test_calls_of_their_own_wait_behind_one_batch_of_streams_at_most(tmp_path: Path) -> None:
    with serve(tmp_path, max_in_flight=2) as running:
        gate = Gate(running)
        calls = [many(running, [request(k=2)] * 40) for _ in range(4)]
        assert gate.entered.acquire(timeout=30)
        (own,) = [running.stub.Recommend.future(request(k=3))]
        until(lambda: running.listener._calls.in_flight == 1)
        assert len(running.waiting) <= streams.MOST_TOGETHER + 1
        gate.open.set()
        assert ids(own.result()) == expected_ids(N, 3)
        asked = [query.k for query in running.recommender.queries]
        assert asked.index(3) <= 2 * streams.MOST_TOGETHER
        assert [[ids(reply) for reply in call] for call in calls] == [[expected_ids(N, 2)] * 40] * 4


def test_a_stop_ends_streams(tmp_path: Path) -> None:
    with serve(tmp_path) as running:
        (call,) = open_streams(running, 1)
        running.listener.stop(0.1)
        assert fails(lambda: list(call)).code() in (Code.CANCELLED, Code.UNAVAILABLE)
