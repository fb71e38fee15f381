"""Nothing that a stranger does with a connection stops the answers to others."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from lhydra_server import admission, app, unread
from lhydra_server.app import SERVICE
from lhydra_server.config import FleetStatus
from lhydra_server.metrics.layout import FAMILIES
from tests import raw_http2
from tests.fake_core import expected_ids
from tests.fake_serve import write_bundle
from tests.harness import until
from tests.test_server import Code, Gate, N, Running, fails, ids, play, reflected, request, serve

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
METHODS = ("Recommend", "RecordPlays", "GetStatus", "RecommendMany")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serve(tmp_path) as running:
        yield running


@contextlib.contextmanager
def half_open(port: int, calls: int, path: str, sockets: int = 4) -> Iterator[list[socket.socket]]:
    """Connections with calls that send their headers and nothing more, when the server has seen them all."""
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(raw_http2.connection(port)) for _ in range(sockets)]
        for i, raw in enumerate(raws):
            numbers = range(1, 2 * len(range(i, calls, sockets)), 2)
            raw.sendall(b"".join(raw_http2.headers(number, path) for number in numbers))
            raw.sendall(raw_http2.frame(raw_http2.PING, 0, 0, b"all seen"))
            assert raw_http2.PING in (kind for kind, *_ in raw_http2.frames(raw))
        yield raws


@pytest.mark.parametrize("method", METHODS)
def test_calls_that_never_send_their_request_take_no_place(tmp_path: Path, method: str) -> None:
    with serve(tmp_path, max_in_flight=2) as running, half_open(running.listener.port, 32, f"/{SERVICE}/{method}"):
        for _ in range(3):
            assert ids(running.stub.Recommend(request(), timeout=20)) == expected_ids(100, 5)
            assert running.stub.RecordPlays(pb.RecordPlaysRequest(plays=[play("e", "t001")]), timeout=20)
            assert running.stub.GetStatus(pb.GetStatusRequest(), timeout=20).bundle_id == "b-1"
        assert running.in_flight == 0


def test_of_calls_that_never_send_their_request_the_oldest_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MOST_AWAITED", 10)
    path = f"/{SERVICE}/Recommend"
    with serve(tmp_path, max_in_flight=10) as running, half_open(running.listener.port, 10, path, 1) as (first,):
        with half_open(running.listener.port, 4, path, 1):
            ended = raw_http2.answered(first)
            assert [next(ended) for _ in range(4)] == [1, 3, 5, 7]
            first.sendall(raw_http2.message(9, request().SerializeToString()))  # it was still waited for
            first.sendall(raw_http2.message(1, request().SerializeToString()))
            assert next(ended) == 9
        assert ids(running.stub.Recommend(request(), timeout=20)) == expected_ids(100, 5)


def test_of_requests_that_come_slowly_so_many_are_kept_as_memory_allows(running: Running) -> None:
    path, numbers = f"/{SERVICE}/Recommend", range(1, 400, 2)
    begun = b"\0" + (app.MAX_REQUEST_BYTES - 100).to_bytes(4, "big") + bytes(100)
    with raw_http2.connection(running.listener.port) as raw:
        for number in numbers:
            raw.sendall(raw_http2.headers(number, path) + raw_http2.frame(raw_http2.DATA, 0, number, begun))
        ended = raw_http2.answered(raw)
        most = admission.MOST_AWAITED
        made_room = [next(ended) for _ in numbers[:-most]]  # gRPC hands over what comes at once in an order of its own
        assert len(set(made_room)) == len(numbers) - most
        until(lambda: len(running.listener._calls._awaited) == most)
        assert ids(running.stub.Recommend(request(), timeout=20)) == expected_ids(N, 5)
    assert most * app.MAX_REQUEST_BYTES <= 2**26


def test_as_many_calls_come_in_one_moment_as_a_server_may_hold(tmp_path: Path) -> None:
    with serve(tmp_path, max_in_flight=400) as running:
        calls = [running.stub.Recommend.future(request(), timeout=60) for _ in range(400)]
        assert {tuple(ids(call.result())) for call in calls} == {tuple(expected_ids(N, 5))}


def test_a_call_that_never_sends_its_request_ends_with_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "CONNECTION_GRACE_S", 0.2)
    with (
        serve(tmp_path, connection_age_s=0.2) as running,
        half_open(running.listener.port, 5, f"/{SERVICE}/Recommend", 1) as (raw,),
    ):
        list(raw_http2.answered(raw))  # to the end of the connection
        until(lambda: not running.listener._calls._awaited)


@pytest.mark.parametrize("method", METHODS[:3])
def test_a_call_that_ends_without_a_request_is_told(running: Running, method: str) -> None:
    call: Any = running.channel.stream_unary(f"/{SERVICE}/{method}")
    error = fails(lambda: call(iter(()), timeout=20))
    assert error.code() is Code.UNIMPLEMENTED  # what gRPC says when the number of messages is wrong
    assert "request: found none" in (error.details() or "")


def test_a_request_that_comes_byte_by_byte_is_answered(running: Running) -> None:
    data = raw_http2.message(1, request().SerializeToString())
    with raw_http2.connection(running.listener.port) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.sendall(raw_http2.headers(1, f"/{SERVICE}/Recommend"))
        for at in range(len(data)):
            assert running.in_flight == 0
            raw.sendall(data[at : at + 1])
        assert next(raw_http2.answered(raw)) == 1


def test_writes_that_wait_refuse_no_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(tmp_path, max_in_flight=3) as running:
        let, waiting = threading.Event(), threading.Semaphore(0)
        record = running.users.record

        def held(*args: Any) -> Any:
            waiting.release()
            assert let.wait(30)
            return record(*args)

        monkeypatch.setattr(running.users, "record", held)
        plays = pb.RecordPlaysRequest(plays=[play("e", "t001")])
        writes = [running.stub.RecordPlays.future(plays, timeout=20) for _ in range(3)]
        assert all(waiting.acquire(timeout=30) for _ in writes)
        assert fails(lambda: running.stub.RecordPlays(plays, timeout=20)).code() is Code.RESOURCE_EXHAUSTED
        gate = Gate(running)
        reads = gate.holds(*[request(k=3)] * 3)
        assert running.in_flight == 6
        assert fails(lambda: running.stub.Recommend(request())).code() is Code.RESOURCE_EXHAUSTED
        assert running.stub.GetStatus(pb.GetStatusRequest(), timeout=20).bundle_id == "b-1"
        assert running.health() == SERVING
        gate.open.set()
        assert [ids(call.result()) for call in reads] == [expected_ids(100, 3)] * 3
        let.set()
        assert sorted(call.result().recorded for call in writes) == [0, 0, 1]
        until(lambda: running.in_flight == 0)


# -- many calls at once ------------------------------------------------------------------------------------


@contextlib.contextmanager
def busy(running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The thread in which gRPC receives calls takes none during the block."""
    let, busy = threading.Event(), threading.Event()

    def held() -> FleetStatus:
        busy.set()
        assert let.wait(60)
        return running.fleet

    monkeypatch.setattr(running.service, "_fleet", held)
    status = running.stub.GetStatus.future(pb.GetStatusRequest(), timeout=60)
    assert busy.wait(30)
    try:
        yield
    finally:
        monkeypatch.setattr(running.service, "_fleet", lambda: running.fleet)
        let.set()
        assert status.result().bundle_id == "b-1"


def test_calls_of_one_moment_are_bounded_and_those_kept_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_PENDING", 150)
    path, data, numbers = f"/{SERVICE}/Recommend", request().SerializeToString(), range(1, 800, 2)
    with serve(tmp_path) as running, raw_http2.connection(running.listener.port) as raw:
        ended = raw_http2.answered(raw)
        with busy(running, monkeypatch):
            raw.sendall(b"".join(raw_http2.headers(one, path) + raw_http2.message(one, data) for one in numbers))
            told = [next(ended) for _ in range(400 - 160)]
        told += [next(ended) for _ in range(160)]
        assert sorted(told) == list(numbers)
        codes = [line["code"] for line in running.lines() if line["method"] != "GetStatus"]
        assert 150 <= len(codes) <= 160  # gRPC has asked for some of them already
        assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED"}
        assert ids(running.stub.Recommend(request(), timeout=20)) == expected_ids(N, 5)


# -- health and reflection ---------------------------------------------------------------------------------


def streams(channel: grpc.Channel, number: int) -> list[Any]:
    """Reflection streams that have asked once and stay open."""
    stub, never = reflection_pb2_grpc.ServerReflectionStub(channel), threading.Event()

    def one_and_wait() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        never.wait(60)

    return [stub.ServerReflectionInfo(one_and_wait(), timeout=30) for _ in range(number)]


def watch(channel: grpc.Channel, service: str = SERVICE) -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=30)


def test_open_reflection_streams_and_watches_silence_nothing(running: Running) -> None:
    open_streams = streams(running.channel, app.REFLECTIONS)
    assert all(next(stream).list_services_response.service for stream in open_streams)
    watches = [watch(running.channel) for _ in range(app.WATCHES)]
    assert [next(one).status for one in watches] == [SERVING] * app.WATCHES
    for one_more in (lambda: next(streams(running.channel, 1)[0]), lambda: next(watch(running.channel))):
        assert fails(one_more).code() is Code.RESOURCE_EXHAUSTED
    assert [running.health(name) for name in ("", SERVICE)] == [SERVING] * 2
    assert ids(running.stub.Recommend(request(), timeout=20)) == expected_ids(100, 5)
    watches.pop().cancel()
    open_streams.pop().cancel()
    assert until(lambda: next_status(running.channel)) == SERVING
    assert SERVICE in until(lambda: reflected_names(running))


def next_status(channel: grpc.Channel) -> Any:
    """The first status of a watch, None where it is refused."""
    with contextlib.suppress(grpc.RpcError):
        return next(watch(channel)).status
    return None


def reflected_names(running: Running) -> set[str]:
    names: set[str] = set()
    with contextlib.suppress(grpc.RpcError):
        names = reflected(running)
    return names


def test_an_old_reflection_stream_makes_room(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    open_streams = streams(running.channel, app.REFLECTIONS)
    assert all(next(stream).list_services_response.service for stream in open_streams)
    monkeypatch.setattr(admission, "CALL_LIMIT_S", 0.0)
    more = streams(running.channel, app.REFLECTIONS)
    assert all(next(stream).list_services_response.service for stream in more)
    assert [stream.code() for stream in open_streams] == [Code.CANCELLED] * app.REFLECTIONS


def test_a_watcher_that_does_not_read_keeps_nobody_from_the_status(running: Running) -> None:
    asked = health_pb2.HealthCheckRequest(service=SERVICE).SerializeToString()
    no_window = raw_http2.frame(raw_http2.SETTINGS, 0, 0, bytes([0, 4, 0, 0, 0, 0]))  # not one byte may be sent
    with raw_http2.connection(running.listener.port) as raw:
        raw.sendall(no_window + raw_http2.headers(1, "/grpc.health.v1.Health/Watch") + raw_http2.message(1, asked))
        until(lambda: running.listener._watches.in_flight == 1)
        told = watch(running.channel)
        assert next(told).status == SERVING
        running.listener._health.leave()
        assert running.health() == next(told).status == NOT_SERVING


def test_a_stop_tells_watchers_and_ends_all_streams(tmp_path: Path) -> None:
    with serve(tmp_path) as running:
        told, (stream,) = watch(running.channel), streams(running.channel, 1)
        assert (next(told).status, bool(next(stream))) == (SERVING, True)
        with half_open(running.listener.port, 3, f"/{SERVICE}/Recommend", 1) as (raw,):
            until(lambda: len(running.listener._calls._awaited) == 3)
            reader = threading.Thread(target=lambda: list(raw_http2.answered(raw, pong=True)))
            reader.start()  # it answers the ping of a server that leaves, which gRPC waits for
            running.listener.stop(86_400)  # by far not that long: pytest's limits are shorter, in `make test-deep` too
            reader.join()
        assert [one.status for one in told] == [NOT_SERVING]
        assert stream.code() is Code.CANCELLED


def test_health_fails_while_a_call_hangs(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    told = watch(running.channel)
    assert next(told).status == SERVING
    gate = Gate(running)
    (call,) = gate.holds(request())
    assert (running.listener.stuck_s(), running.health()) == (0, SERVING)
    monkeypatch.setattr(admission, "CALL_LIMIT_S", 0.0)
    assert running.listener.stuck_s() > 0
    assert running.health(SERVICE) == next(told).status == NOT_SERVING
    gate.open.set()
    assert ids(call.result()) == expected_ids(100, 5)
    assert next(told).status == SERVING
    assert (running.listener.stuck_s(), running.health()) == (0, SERVING)


def test_the_health_of_an_unknown_service_is_unknown(running: Running) -> None:
    assert next(watch(running.channel, "else")).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert fails(lambda: running.health("else")).code() is Code.NOT_FOUND


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"])
def test_garbage_is_a_bad_request_for_health_too(running: Running, path: str) -> None:
    call: Any = running.channel.unary_stream(path)
    assert fails(lambda: list(call(b"\xff\xff", timeout=20))).code() is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_every_service_in_both_versions(running: Running, version: str) -> None:
    call: Any = running.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (listed,) = call(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=20)
    names = [service.name for service in listed.list_services_response.service]
    assert {SERVICE, "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"} <= set(names)
    asked = iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names])
    assert [len(reply.file_descriptor_response.file_descriptor_proto) > 0 for reply in call(asked, timeout=20)] == [
        True
    ] * len(names)
    raw: Any = running.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    assert fails(lambda: list(raw(iter([b"\xff\xff"]), timeout=20))).code() is Code.INVALID_ARGUMENT


# -- the log -----------------------------------------------------------------------------------------------


def test_a_log_that_nobody_reads_stops_no_answer(tmp_path: Path) -> None:
    write_bundle(tmp_path / "store", "20260102T030405-0123abcd", n=N)
    (tmp_path / "store" / "CURRENT").write_text("20260102T030405-0123abcd\n")
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4_096)
    settings = json.dumps({"port": 0, "workers": 1})
    server = subprocess.Popen(
        [sys.executable, Path(__file__).parent / "fake_serve.py", tmp_path / "store", settings],
        stdout=subprocess.PIPE,
        stderr=write,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    os.close(write)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().decode().split()[4]
        with grpc.insecure_channel(address) as channel:
            stub = RecommenderStub(channel)
            for _ in range(100):  # some 300 bytes each
                assert ids(stub.Recommend(request(), timeout=20)) == expected_ids(N, 5)
        server.terminate()
        assert server.wait(30) == 0
        with open(read, "rb") as log:
            lines = [json.loads(line) for line in log.read().splitlines()]  # whole lines, as many as the pipe held
        assert lines
    finally:
        server.kill()
        server.communicate()


# -- replies that nobody reads -----------------------------------------------------------------------------


def test_replies_that_nobody_reads_are_bounded_and_the_oldest_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "MOST_BYTES", 400_000)
    with serve(tmp_path, max_in_flight=200) as running:
        replies, data = running.listener._unread, request(k=50).SerializeToString()
        refused = FAMILIES["lhydra_refused_total"].places[("unread",)]
        with raw_http2.connection(running.listener.port) as raw:
            for number in range(1, 200, 2):
                raw.sendall(raw_http2.headers(number, f"/{SERVICE}/Recommend") + raw_http2.message(number, data))
                until(lambda: len(running.lines()) == number // 2 + 1)  # noqa: B023
            assert 300_000 < replies.n_bytes <= 400_000
            assert ids(running.stub.Recommend(request(), timeout=20)) == expected_ids(N, 5)  # whoever reads is answered
            raw.sendall(raw_http2.frame(raw_http2.PING, 0, 0, b"all told"))
            ended = [number for kind, _, number, _ in until_ping(raw) if kind == raw_http2.RST_STREAM]
            assert ended == list(range(ended[0], ended[-1] + 2, 2))  # the oldest of those that the window did not hold
            assert running.block.cells[refused] == len(ended) > 10
        until(lambda: replies.n_bytes == 0)


def until_ping(raw: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields the frames before the answer to a ping."""
    for frame in raw_http2.frames(raw):
        if frame[0] == raw_http2.PING and frame[3] == b"all told":
            return
        yield frame
