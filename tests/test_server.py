"""The service through a real gRPC server and stub, on a fake recommender whose answers are known exactly."""

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra import errors
from lhydra.domain import MAX_HISTORY, STAGES, Play, UserState, make_history, track_hashes
from lhydra.users import UserStore, open_users
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from lhydra_server.app import SERVICE, THREADS, Listener
from lhydra_server.config import FleetStatus, ServeSettings, WorkerSettings
from lhydra_server.errors import CODES, status_of
from lhydra_server.service import RecommenderService
from tests.fake_core import FakeRecommender, expected_ids, served

N = 100
MAX_K = 50
Code = grpc.StatusCode


@dataclass
class Running:
    stub: RecommenderStub
    channel: grpc.Channel
    recommender: FakeRecommender
    users: UserStore
    listener: Listener
    fleet: FleetStatus

    def health(self, service: str = "") -> int:
        reply = health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(service=service))
        return int(reply.status)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serve(tmp_path) as running:
        yield running


@contextmanager
def serve(folder: Path, *, max_in_flight: int = 32, connection_age_s: float = 60) -> Iterator[Running]:
    users = open_users(None, folder)
    bundle = served(n=N)
    fleet = FleetStatus(2, "b-2", "b-2: index.faiss: found 3 bytes, expected 4")
    service = RecommenderService(bundle, users, max_k=MAX_K, fleet=lambda: fleet)
    listener = Listener(service, "127.0.0.1:0", max_in_flight=max_in_flight, connection_age_s=connection_age_s)
    listener.start()
    with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        recommender = cast(FakeRecommender, bundle.recommender)
        yield Running(RecommenderStub(channel), channel, recommender, users, listener, fleet)
    listener.stop(0)
    users.close()


def fails(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def ids(reply: pb.RecommendResponse) -> list[str]:
    return [track.track_id for track in reply.tracks]


def request(user_id: str = "ann", k: int = 5, **more: Any) -> pb.RecommendRequest:
    return pb.RecommendRequest(user_id=user_id, k=k, **more)


def play(event: str, track: str, user: str = "ann", **more: Any) -> pb.Play:
    return pb.Play(event_id=event, user_id=user, track_id=track, **more)


# -- answers ---------------------------------------------------------------------------------------------


def test_an_unknown_user_gets_the_whole_reply(running: Running) -> None:
    reply, call = running.stub.Recommend.with_call(request(k=7), metadata=(("x-request-id", "r-1"),))
    assert ids(reply) == expected_ids(N, 7)
    assert [track.score for track in reply.tracks] == pytest.approx([0.9] * 7)
    assert [track.retrieval_score for track in reply.tracks] == pytest.approx([0.45] * 7)
    rows = [int(track.track_id[1:]) for track in reply.tracks]
    assert [track.title for track in reply.tracks] == [f"Title {row}" if row % 3 else "" for row in rows]
    assert [track.artist for track in reply.tracks] == [f"Artist {row % 7}" if row % 3 else "" for row in rows]
    assert reply.bundle_id == "b-1"
    assert reply.tier == pb.TIER_POPULAR
    assert [stage.name for stage in reply.stages] == list(STAGES)
    assert [stage.took_us for stage in reply.stages[1:]] == [10] * (len(STAGES) - 1)
    assert not reply.degraded
    assert reply.request_id == "r-1"
    assert ("x-request-id", "r-1") in [tuple(item) for item in call.trailing_metadata()]


@pytest.mark.parametrize("bad", ["", "two words", "x" * 129, 'a"b', "a\\b"])
def test_a_request_id_that_logs_cannot_hold_is_replaced(running: Running, bad: str) -> None:
    given, missing = (
        running.stub.Recommend(request(), metadata=metadata).request_id for metadata in ((("x-request-id", bad),), ())
    )
    assert given != bad
    assert len({given, missing}) == 2
    assert all(len(found) == 32 for found in (given, missing))


def test_what_a_user_heard_and_what_is_excluded_never_comes_back(running: Running) -> None:
    running.users.record([Play("e0", "ann", "t007", 5), Play("e1", "ann", "t017", 5, skipped=True)])
    reply = running.stub.Recommend(request(k=MAX_K, exclude_track_ids=["t027", "unknown", "t027"]))
    assert ids(reply) == expected_ids(N, MAX_K, {"t007", "t017", "t027"})
    assert reply.tier == pb.TIER_PERSONAL
    allowed = running.stub.Recommend(request(k=MAX_K, exclude_track_ids=["t027"], repeat_policy=pb.REPEAT_POLICY_ALLOW))
    assert ids(allowed) == expected_ids(N, MAX_K, {"t027"})


def test_fewer_than_k_when_fewer_are_eligible(running: Running) -> None:
    everything = [f"t{i:03}" for i in range(N)]
    assert ids(running.stub.Recommend(request(k=MAX_K, exclude_track_ids=everything[3:]))) == expected_ids(
        N, 3, set(everything[3:])
    )
    assert ids(running.stub.Recommend(request(exclude_track_ids=everything))) == []


def test_an_unknown_user_is_served_by_what_the_request_says(running: Running) -> None:
    entries = [pb.HistoryEntry(track_id="t007", timestamp_s=9), pb.HistoryEntry(track_id="x", count=3, timestamp_s=4)]
    profile = {
        "age": pb.Value(number=31),
        "weight": pb.Value(number=1.5),
        "city": pb.Value(text="Lyon"),
        "no": pb.Value(),
    }
    reply = running.stub.Recommend(
        request(k=9, history=pb.History(entries=entries), profile=pb.Profile(columns=profile))
    )
    assert reply.tier == pb.TIER_HISTORY
    assert ids(reply) == expected_ids(N, 9, {"t007"})
    query = running.recommender.queries[-1]
    assert not query.known
    assert query.state.profile == {"age": 31, "weight": 1.5, "city": "Lyon"}
    assert isinstance(query.state.profile["age"], int)  # a whole number may name a category, as "31"
    np.testing.assert_array_equal(query.state.history, make_history(track_hashes(["t007", "x"]), [1.0, 3.0], [9, 4]))
    only_profile = running.stub.Recommend(request(profile=pb.Profile(columns=profile)))
    assert only_profile.tier == pb.TIER_SEGMENT
    assert running.users.get("ann") is None


def test_the_stored_state_wins_over_the_request(running: Running) -> None:
    stored = UserState({"age": 50}, make_history(track_hashes(["t001"]), [1.0], [3]), track_hashes(["t001"]))
    running.users.load([("ann", stored), ("new", UserState())])
    given: dict[str, Any] = {
        "history": pb.History(entries=[pb.HistoryEntry(track_id="t007", count=2, timestamp_s=9)]),
        "profile": pb.Profile(columns={"age": pb.Value(number=20), "city": pb.Value(text="Lyon")}),
    }
    reply = running.stub.Recommend(request(k=30, **given))
    query = running.recommender.queries[-1]
    assert query.known
    assert query.state.profile == {"age": 50, "city": "Lyon"}
    np.testing.assert_array_equal(query.state.history, stored.history)
    assert ids(reply) == expected_ids(N, 30, {"t001", "t007"})
    running.stub.Recommend(request("new", **given))
    assert running.recommender.queries[-1].state.history["track"].tolist() == track_hashes(["t007"]).tolist()


def test_depth_and_k_reach_the_recommender(running: Running) -> None:
    running.stub.Recommend(request(k=3, depth=700))
    running.stub.Recommend(request(k=MAX_K))
    assert [(query.k, query.depth) for query in running.recommender.queries] == [(3, 700), (MAX_K, 0)]


def test_the_same_request_gets_the_same_answer(running: Running) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(running.stub.Recommend, [request(k=20)] * 40))
    assert {tuple(ids(reply)) for reply in replies} == {tuple(expected_ids(N, 20))}


def test_a_lost_user_store_lowers_the_tier_and_says_so(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.users.record([Play("e0", "ann", "t007", 5)])

    def lost(user_id: str) -> UserState:
        raise errors.UserStoreError("the disk is gone")

    monkeypatch.setattr(running.users, "get", lost)
    reply = running.stub.Recommend(request())
    assert list(reply.degraded) == ["user_store"]
    assert reply.tier == pb.TIER_POPULAR
    assert ids(reply) == expected_ids(N, 5)


# -- plays -----------------------------------------------------------------------------------------------


def test_plays_are_seen_by_the_next_request(running: Running) -> None:
    now = int(time.time())
    plays = [play("e0", "t007", count=3), play("e1", "new-track", timestamp_s=77), play("e2", "t017", "bob")]
    recorded = running.stub.RecordPlays(pb.RecordPlaysRequest(plays=plays))
    assert (recorded.recorded, recorded.duplicates, recorded.unknown_tracks) == (3, 0, 1)
    reply = running.stub.Recommend(request(k=30))
    assert reply.tier == pb.TIER_PERSONAL
    assert ids(reply) == expected_ids(N, 30, {"t007"})
    history = running.recommender.queries[-1].state.history
    assert history["track"].tolist() == track_hashes(["new-track", "t007"]).tolist()
    assert history["count"].tolist() == [1.0, 3.0]
    assert history["time"][0] == 77
    assert now <= history["time"][1] <= time.time()
    assert ids(running.stub.Recommend(request("bob", k=30))) == expected_ids(N, 30, {"t017"})


def test_a_repeated_call_counts_once(running: Running) -> None:
    call = pb.RecordPlaysRequest(plays=[play("e0", "t007"), play("e1", "x"), play("e0", "t007")])
    first, second = running.stub.RecordPlays(call), running.stub.RecordPlays(call)
    assert (first.recorded, first.duplicates, first.unknown_tracks) == (2, 1, 1)
    assert (second.recorded, second.duplicates, second.unknown_tracks) == (0, 3, 0)


def test_a_bad_play_means_none_is_recorded(running: Running) -> None:
    error = fails(lambda: running.stub.RecordPlays(pb.RecordPlaysRequest(plays=[play("e0", "t1"), play("", "t2")])))
    assert error.code() is Code.INVALID_ARGUMENT
    assert error.details() == "plays[1].event_id: found 0 characters, expected 1 to 128 characters"
    assert running.users.get("ann") is None


DAY_S = 86_400


@pytest.mark.parametrize(
    ("field", "plays"),
    [
        ("plays", []),
        ("plays", [play(f"e{i}", "t") for i in range(1001)]),
        ("plays[0].event_id", [play("", "t")]),
        ("plays[0].event_id", [play("e" * 129, "t")]),
        ("plays[1].user_id", [play("e", "t"), play("e", "t", user="")]),
        ("plays[0].user_id", [play("e", "t", user="a\nb")]),
        ("plays[0].track_id", [play("e", "")]),
        ("plays[0].track_id", [play("e", "t" * 257)]),
        ("plays[0].timestamp_s", [play("e", "t", timestamp_s=-1)]),
        ("plays[0].timestamp_s", [play("e", "t", timestamp_s=int(time.time()) + 2 * DAY_S)]),
    ],
)
def test_bad_plays_are_refused_naming_the_field(running: Running, field: str, plays: list[pb.Play]) -> None:
    error = fails(lambda: running.stub.RecordPlays(pb.RecordPlaysRequest(plays=plays)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert (error.details() or "").startswith(f"{field}: found ")


def test_the_largest_call_is_taken(running: Running) -> None:
    ahead = int(time.time()) + DAY_S // 2
    plays = [play(f"{i}".rjust(128, "e"), f"{i}".rjust(256, "t"), "ü" * 256, timestamp_s=ahead) for i in range(1000)]
    assert running.stub.RecordPlays(pb.RecordPlaysRequest(plays=plays)).recorded == 1000


# -- refusals --------------------------------------------------------------------------------------------


def history(**entry: Any) -> dict[str, Any]:
    return {"history": pb.History(entries=[pb.HistoryEntry(track_id="t"), pb.HistoryEntry(**entry)])}


def profile(number: float) -> dict[str, Any]:
    return {"profile": pb.Profile(columns={"age": pb.Value(number=number)})}


@pytest.mark.parametrize(
    ("message", "bad"),
    [
        (f"k: found 0, expected 1 to {MAX_K}", request(k=0)),
        (f"k: found {MAX_K + 1}, expected 1 to {MAX_K}", request(k=MAX_K + 1)),
        (f"k: found 1000000000, expected 1 to {MAX_K}", request(k=10**9)),
        (f"k: found 4294967295, expected 1 to {MAX_K}", request(k=2**32 - 1)),
        ("user_id: found 0 characters, expected 1 to 256 characters", request("")),
        ("user_id: found 257 characters, expected 1 to 256 characters", request("a" * 257)),
        ("user_id: found 10240 characters, expected 1 to 256 characters", request("a" * 10_240)),
        ("user_id: found ann\\nbob, expected no control characters", request("ann\nbob")),
        ("user_id: found \\x00, expected no control characters", request("\0")),
        ("user_id: found \\x1b[2J, expected no control characters", request("\x1b[2J")),
        ("user_id: found a\\u202eb, expected no control characters", request("a\u202eb")),
        ("depth: found 10001, expected 0 to 10000", request(depth=10_001)),
        ("exclude_track_ids: found 10001 entries", request(exclude_track_ids=["t"] * 10_001)),
        (
            "history.entries: found 10001 entries",
            request(history=pb.History(entries=[pb.HistoryEntry(track_id="t")] * 10_001)),
        ),
        ("history.entries[1].track_id: found 0 characters", request(**history())),
        ("history.entries[1].count: found nan", request(**history(track_id="t", count=float("nan")))),
        ("history.entries[1].count: found inf", request(**history(track_id="t", count=float("inf")))),
        ("history.entries[1].count: found -1.0", request(**history(track_id="t", count=-1))),
        ("history.entries[1].timestamp_s: found -1", request(**history(track_id="t", timestamp_s=-1))),
        ("history.entries[1].timestamp_s: found 9", request(**history(track_id="t", timestamp_s=2**63 - 1))),
        ("profile.columns['age']: found nan, expected a finite number", request(**profile(float("nan")))),
        ("profile.columns['age']: found -inf, expected a finite number", request(**profile(float("-inf")))),
        ("repeat_policy: found 9, expected a known policy", request(repeat_policy=cast(Any, 9))),
    ],
)
def test_bad_requests_are_refused_naming_the_field(running: Running, message: str, bad: pb.RecommendRequest) -> None:
    error = fails(lambda: running.stub.Recommend(bad))
    assert error.code() is Code.INVALID_ARGUMENT
    assert (error.details() or "").startswith(message)
    assert not running.recommender.queries


@pytest.mark.parametrize(
    ("field", "unanswered"),
    [
        ("filter", request(filter=pb.Filter(genres=["rock"]))),
        ("diversity", request(diversity=pb.Diversity(max_per_artist=2))),
        ("explain", request(explain=True)),
        ("repeat_policy DECAY", request(repeat_policy=pb.REPEAT_POLICY_DECAY)),
    ],
)
def test_fields_of_later_versions_are_refused_by_name(
    running: Running, field: str, unanswered: pb.RecommendRequest
) -> None:
    error = fails(lambda: running.stub.Recommend(unanswered))
    assert error.code() is Code.UNIMPLEMENTED
    assert error.details() == f"{field}: this version does not answer it"


def test_fields_that_are_set_to_nothing_are_fine(running: Running) -> None:
    assert ids(running.stub.Recommend(request(filter=pb.Filter(), diversity=pb.Diversity(), seed=7))) == expected_ids(
        N, 5
    )


def test_methods_of_later_versions_are_refused_by_name(running: Running) -> None:
    stub = running.stub
    for name, call in {
        "SimilarTracks": lambda: stub.SimilarTracks(pb.SimilarTracksRequest(track_ids=["t1"], k=3)),
        "Explain": lambda: stub.Explain(pb.ExplainRequest(user_id="ann", track_id="t1")),
        "RecommendMany": lambda: list(stub.RecommendMany(iter([request()]))),
    }.items():
        error = fails(call)
        assert error.code() is Code.UNIMPLEMENTED
        assert error.details() == f"{name}: this version does not answer it"


@pytest.mark.parametrize(
    "garbage", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f", b"\x00" * 50, b"GET / HTTP/1.1\r\n"]
)
@pytest.mark.parametrize("method", ["Recommend", "RecordPlays"])
def test_garbage_bytes_are_a_bad_request(running: Running, method: str, garbage: bytes) -> None:
    error = fails(lambda: raw(running, method, garbage))
    assert error.code() is Code.INVALID_ARGUMENT
    found = f"{len(garbage)} bytes that cannot be parsed"
    assert error.details() == f"request: found {found}, expected a lhydra.v1.{method}Request"


def raw(running: Running, method: str, data: bytes) -> Any:
    return cast(Any, running.channel.unary_unary(f"/{SERVICE}/{method}"))(data)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60), method=st.sampled_from(["Recommend", "RecordPlays", "GetStatus"]))
def test_no_bytes_make_an_internal_error(running: Running, data: bytes, method: str) -> None:
    code = None
    try:
        raw(running, method, data)
    except grpc.RpcError as error:
        code = error.code()
    assert code in (None, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)


def test_an_oversized_message_is_refused(running: Running) -> None:
    error = fails(lambda: running.stub.Recommend(request("a" * (2**20 + 1))))
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert ids(running.stub.Recommend(request())) == expected_ids(N, 5)


# -- failures --------------------------------------------------------------------------------------------


def every_error(base: type[errors.LhydraError] = errors.LhydraError) -> set[type[errors.LhydraError]]:
    return {base}.union(*(every_error(kind) for kind in base.__subclasses__()))


def test_every_error_has_a_code() -> None:
    assert every_error() == set(CODES)


@pytest.mark.parametrize("kind", sorted(CODES, key=str))
def test_only_errors_written_for_callers_are_told(kind: type[errors.LhydraError]) -> None:
    made = (
        kind("a", "b", "c")
        if kind is errors.InvalidRequest
        else kind(*["secret"] * (1 + (kind is errors.MissingExtra)))
    )
    code, text = status_of(made, "r-1")
    assert code is CODES[kind]
    assert text == ("internal error, request id r-1" if code is Code.INTERNAL else str(made))


@pytest.mark.parametrize("error", [RuntimeError("secret"), errors.BundleCorrupt("secret"), KeyError("secret")])
def test_an_internal_error_tells_its_request_id_and_nothing_else(
    running: Running, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(check: Callable[[], None]) -> None:
        raise error

    running.recommender.between = fail
    with caplog.at_level(logging.INFO):
        failed = fails(lambda: running.stub.Recommend(request(), metadata=(("x-request-id", "r-9"),)))
    assert failed.code() is Code.INTERNAL
    assert failed.details() == "internal error, request id r-9"
    assert "secret" in caplog.text
    running.recommender.between = lambda check: None
    assert ids(running.stub.Recommend(request())) == expected_ids(N, 5)


def test_a_store_that_cannot_be_written_fails_the_call(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(plays: list[Play]) -> list[bool]:
        raise errors.UserStoreError("disk full")

    monkeypatch.setattr(running.users, "record", full)
    error = fails(lambda: running.stub.RecordPlays(pb.RecordPlaysRequest(plays=[play("e", "t")])))
    assert error.code() is Code.INTERNAL


def test_features_that_a_profile_does_not_fit_are_the_callers_fault(running: Running) -> None:
    def fail(check: Callable[[], None]) -> None:
        raise errors.FeatureError("age: found an infinite number, expected finite numbers")

    running.recommender.between = fail
    error = fails(lambda: running.stub.Recommend(request(**profile(1))))
    assert error.code() is Code.INVALID_ARGUMENT
    assert (error.details() or "").startswith("profile: found age")
    assert fails(lambda: running.stub.Recommend(request())).code() is Code.INTERNAL


class Gate:
    """Holds calls between two stages until opened."""

    def __init__(self, running: Running) -> None:
        self.open, self.entered = threading.Event(), threading.Semaphore(0)
        running.recommender.between = self.hold

    def hold(self, check: Callable[[], None]) -> None:
        self.entered.release()
        assert self.open.wait(30)


def test_work_stops_once_the_deadline_has_passed(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    def work(check: Callable[[], None]) -> None:
        until(check)  # raises when the deadline has passed

    running.recommender.between = work
    with caplog.at_level(logging.INFO):
        error = fails(lambda: running.stub.Recommend(request(), timeout=0.05))
        assert error.code() is Code.DEADLINE_EXCEEDED
        (line,) = until(lambda: requests_in(caplog))
    assert line.code == "DEADLINE_EXCEEDED"


def test_what_is_too_much_is_refused_at_once_and_the_rest_is_answered(tmp_path: Path) -> None:
    with serve(tmp_path, max_in_flight=3) as running:
        gate = Gate(running)
        taken = [running.stub.Recommend.future(request(k=3)) for _ in range(3)]
        for _ in taken:
            assert gate.entered.acquire(timeout=30)
        assert fails(lambda: running.stub.Recommend(request())).code() is Code.RESOURCE_EXHAUSTED
        gate.open.set()
        assert [ids(call.result()) for call in taken] == [expected_ids(N, 3)] * 3
        assert ids(until(lambda: answered(running))) == expected_ids(N, 5)


def test_a_call_whose_caller_left_while_it_waited_is_not_begun(tmp_path: Path) -> None:
    with serve(tmp_path, max_in_flight=THREADS + 1) as running:
        gate = Gate(running)
        taken = [running.stub.Recommend.future(request(k=3)) for _ in range(THREADS)]
        for _ in taken:
            assert gate.entered.acquire(timeout=30)
        waiting = running.stub.Recommend.future(request("impatient"))
        waiting.cancel()
        until(lambda: line_is_full(running))  # the server has read all that was sent before
        gate.open.set()
        assert [ids(call.result()) for call in taken] == [expected_ids(N, 3)] * THREADS
        until(lambda: answered(running))
        assert running.recommender.queries[THREADS:] == running.recommender.queries[THREADS:][-1:]


def line_is_full(running: Running) -> bool:
    """Whether one more call is refused. It is cancelled if it is not, so that it does not count for long."""
    call = running.stub.Recommend.future(request(), timeout=0.5)
    error = cast(Any, call.exception())
    return bool(error.code() is Code.RESOURCE_EXHAUSTED)


def answered(running: Running) -> pb.RecommendResponse | None:
    """An answer, None while there is no room for the call yet."""
    with suppress(grpc.RpcError):
        return running.stub.Recommend(request())
    return None


# -- health, reflection, status, logs ---------------------------------------------------------------------


def until(found: Callable[[], Any]) -> Any:
    """Returns the first truthy value of `found`, asked again and again for half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_a_drain_fails_no_call_and_health_tells_of_it(tmp_path: Path) -> None:
    serving, leaving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with serve(tmp_path, connection_age_s=1.0) as running, ThreadPoolExecutor(1) as pool:
        assert [running.health(name) for name in ("", SERVICE)] == [serving] * 2
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watch).status == serving
        gate = Gate(running)
        under_way = running.stub.Recommend.future(request(k=4))
        assert gate.entered.acquire(timeout=30)
        drained = pool.submit(running.listener.drain)
        assert next(watch).status == leaving
        watch.cancel()
        assert until(lambda: refuses_connections(running.listener.port))
        gate.open.set()
        assert ids(under_way.result()) == expected_ids(N, 4)
        drained.result(30)
        running.listener.stop(30)


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionError:
        return True
    return False


def test_health_is_not_serving_before_the_start(tmp_path: Path) -> None:
    users = open_users(None, tmp_path)
    listener = Listener(RecommenderService(served(), users, max_k=MAX_K), "127.0.0.1:0", max_in_flight=8)
    listener._server.start()  # as `start` does first
    with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        for name in ("", SERVICE):
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
    listener.stop(0)
    users.close()


def test_reflection_names_the_services(running: Running) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    reply = next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
    names = {service.name for service in reply.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


def test_status_says_what_is_served(running: Running) -> None:
    for _ in range(3):
        running.stub.Recommend(request())
    status = running.stub.GetStatus(pb.GetStatusRequest())
    assert (status.bundle_id, status.model_id, status.tracks, status.dim) == ("b-1", "m-1", N, 8)
    assert (status.index_recipe, status.default_depth, status.max_k) == ("Flat", 300, MAX_K)
    assert (status.workers, status.current_bundle_id, status.swap_error) == (2, "b-2", running.fleet.swap_error)
    assert status.requests == 4
    assert status.uptime_s > 0
    assert status.lhydra_version


def requests_in(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if hasattr(record, "took_us")]


def test_one_log_line_per_request_without_the_user(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    user = "someone-in-particular"
    with caplog.at_level(logging.INFO):
        running.stub.Recommend(request(user), metadata=(("x-request-id", "r-5"),))
        fails(lambda: running.stub.Recommend(request(user + "\n", k=5)))
        running.stub.RecordPlays(pb.RecordPlaysRequest(plays=[play("e", "t", user)]))
    good, bad, plays = requests_in(caplog)
    assert (good.request_id, good.method, good.code, good.tier, good.bundle) == (
        "r-5",
        "Recommend",
        "OK",
        "popular",
        "b-1",
    )
    assert set(good.stage_us) == set(STAGES)
    assert len(good.user) == 8
    assert (bad.method, bad.code) == ("Recommend", "INVALID_ARGUMENT")
    assert (plays.method, plays.code, plays.recorded) == ("RecordPlays", "OK", 1)
    assert user not in json.dumps([vars(record) for record in caplog.records], default=str)


# -- settings and weight ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [{"port": -1}, {"port": 65536}, {"workers": -1}, {"max_k": 0}, {"max_in_flight": 0}, {"depth": 10_001}]
)
def test_settings_out_of_range_are_refused(bad: dict[str, int]) -> None:
    name, value = next(iter(bad.items()))
    flag = name.replace("_", "-")
    with pytest.raises(errors.ConfigError, match=f"--{flag}: found {value}, expected "):
        ServeSettings(**cast(Any, bad)).check()


def test_settings_travel_as_one_line() -> None:
    sent = WorkerSettings("a store\n", "b", "127.0.0.1:1", users="lmdb:ü", depth=7)
    assert "\n" not in sent.to_json()
    assert WorkerSettings.from_json(sent.to_json()) == sent
    status = FleetStatus(3, "b", 'why "not"\n')
    assert "\n" not in status.to_json()
    assert FleetStatus.from_json(status.to_json()) == status


HEAVY = ("torch", "pandas", "pyarrow", "rich", "duckdb", "sklearn", "scipy", "yaml")


@pytest.mark.parametrize("module", ["lhydra_server.worker", "lhydra_server.supervisor", "lhydra_server.command"])
def test_serving_needs_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_long_history_is_cut_to_the_newest(running: Running) -> None:
    entries = [pb.HistoryEntry(track_id=f"x{i}", timestamp_s=i + 1) for i in range(10_000)]
    running.stub.Recommend(request(history=pb.History(entries=entries)))
    query = running.recommender.queries[-1]
    assert len(query.state.history) == MAX_HISTORY
    assert len(query.state.heard) == 10_000
