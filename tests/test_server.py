"""The service through a real gRPC server and stub, on a fake recommender whose answers are known exactly."""

import json
import logging
import math
import os
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
from lhydra.domain import MAX_HISTORY, STAGES, Play, Repeat, UserState, make_history, track_hashes
from lhydra.limits import LAST_S
from lhydra.logs import AccessLog
from lhydra.users.store import UserStore, open_users
from lhydra_client import Client
from lhydra_client import Play as ClientPlay
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from lhydra_server import event_log, outage_log
from lhydra_server.app import CALL_THREADS, SERVICE, Listener
from lhydra_server.config import FleetStatus, ServeSettings, WorkerReport, WorkerSettings
from lhydra_server.errors import CODES, status_of
from lhydra_server.metrics.counts import Counts
from lhydra_server.metrics.layout import FAMILIES
from lhydra_server.metrics.totals import Block, Totals
from lhydra_server.metrics.worker import Metrics
from lhydra_server.service import RecommenderService
from tests.fake_core import FakeRecommender, expected_ids, served
from tests.fake_serve import write_bundle
from tests.harness import free_port, log_lines, until

ROOT = Path(__file__).resolve().parents[1]
N = 100
MAX_K = 50
Code = grpc.StatusCode


@dataclass
class Running:
    stub: RecommenderStub
    channel: grpc.Channel
    recommender: FakeRecommender
    users: UserStore
    service: RecommenderService
    listener: Listener
    fleet: FleetStatus
    totals: Totals
    block: Block
    log: Path

    def health(self, service: str = "") -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status)

    def lines(self) -> list[dict[str, Any]]:
        """The lines of the requests that have ended."""
        return log_lines(self.log)

    @property
    def in_flight(self) -> int:
        """Calls of the API that run or wait for a thread."""
        return self.block.cells[FAMILIES["lhydra_in_flight"].first]

    @property
    def waiting(self) -> list[Any]:
        """Those in line for their turn."""
        return list(self.service._batcher._queue)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serve(tmp_path) as running:
        yield running


@contextmanager
def serve(folder: Path, *, max_in_flight: int = 32, connection_age_s: float = 60) -> Iterator[Running]:
    calls, log = logging.getLogger("lhydra_server.calls"), folder / "access.log"
    before = calls.level
    calls.setLevel(logging.INFO)
    users, bundle = open_users(None, folder), served(n=N)
    fleet = FleetStatus(2, "b-2", "b-2: index.faiss: found 3 bytes, expected 4")
    totals = Totals(Counts())
    block = totals.block("b-1")
    metrics = Metrics.open(os.dup(block.descriptor))
    block.handed_over()
    with log.open("ab") as lines:
        service = RecommenderService(bundle, users, max_k=MAX_K, fleet=lambda: fleet, metrics=metrics)
        listener = Listener(
            service,
            "127.0.0.1:0",
            max_in_flight=max_in_flight,
            connection_age_s=connection_age_s,
            metrics=metrics,
            access_log=AccessLog(name=calls.name, put=lambda line: os.write(lines.fileno(), f"{line}\n".encode())),
        )
        listener.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
                fake = cast(FakeRecommender, bundle.recommender)
                stub = RecommenderStub(channel)
                yield Running(stub, channel, fake, users, service, listener, fleet, totals, block, log)
        finally:
            listener.stop(0)
            users.close()
            calls.setLevel(before)


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
    assert STAGES[:2] == ("queue", "lookup")  # measured; the fake's own take 10 each
    assert [stage.took_us for stage in reply.stages[2:]] == [10] * (len(STAGES) - 2)
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


@pytest.mark.parametrize(
    ("asked", "policy"),
    [
        (pb.REPEAT_POLICY_UNSPECIFIED, Repeat.EXCLUDE),
        (pb.REPEAT_POLICY_EXCLUDE, Repeat.EXCLUDE),
        (pb.REPEAT_POLICY_ALLOW, Repeat.ALLOW),
        (pb.REPEAT_POLICY_DECAY, Repeat.DECAY),
        (pb.REPEAT_POLICY_LEARNT, Repeat.LEARNT),
    ],
)
def test_the_repeat_policy_reaches_the_recommender(running: Running, asked: pb.RepeatPolicy, policy: Repeat) -> None:
    before = int(time.time())
    running.stub.Recommend(request(repeat_policy=asked))
    assert running.recommender.queries[-1].repeat is policy
    assert before <= running.recommender.queries[-1].now <= time.time()


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
    assert running.stub.Recommend(request()).tier == pb.TIER_PERSONAL

    def lost(user_id: str, deadline_s: float) -> UserState:
        raise errors.UserStoreError("the disk is gone")

    monkeypatch.setattr(running.users, "get", lost)
    entries = [pb.HistoryEntry(track_id="t017")]
    for tier, says in {
        pb.TIER_POPULAR: {},
        pb.TIER_SEGMENT: profile(3),
        pb.TIER_HISTORY: {"history": pb.History(entries=entries)},
    }.items():
        reply, call = running.stub.Recommend.with_call(request(**says))
        assert call.code() is Code.OK
        assert list(reply.degraded) == ["user_store"]
        assert reply.tier == tier
        assert ids(reply) == expected_ids(N, 5, {"t017"} if tier == pb.TIER_HISTORY else set())
    monkeypatch.undo()
    reply = running.stub.Recommend(request())
    assert (reply.tier, list(reply.degraded)) == (pb.TIER_PERSONAL, [])


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


def test_plays_on_one_listener_change_the_next_answer_of_the_other(tmp_path: Path) -> None:
    """Two processes on one user store, as the workers of a server are; plays go to either in turn."""
    write_bundle(tmp_path, "b-1", n=N)
    with serve(tmp_path) as here, another_worker(tmp_path) as there:
        heard: set[str] = set()
        for i in range(12):
            asked, told = (here.stub, there) if i % 2 else (there, here.stub)
            track = ids(asked.Recommend(request(k=1)))[0]
            told.RecordPlays(pb.RecordPlaysRequest(plays=[play(f"e{i}", track, skipped=i % 3 == 0)]))
            heard.add(track)
            replies = [stub.Recommend(request(k=MAX_K)) for stub in (asked, told)]
            assert [ids(reply) for reply in replies] == [expected_ids(N, MAX_K, heard)] * 2
            assert {reply.tier for reply in replies} == {pb.TIER_PERSONAL}
        again = pb.RecordPlaysRequest(plays=[play(f"e{i}", "t099") for i in range(12)])
        assert {stub.RecordPlays(again).duplicates for stub in (here.stub, there)} == {12}


@contextmanager
def another_worker(store: Path) -> Iterator[RecommenderStub]:
    """A worker process on the bundle b-1 of this store."""
    address = f"127.0.0.1:{free_port()}"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, ROOT / "tests" / "fake_serve.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(WorkerSettings(str(store), "b-1", address, max_k=MAX_K).to_json() + "\n")
        worker.stdin.flush()
        reports = map(WorkerReport.from_json, worker.stdout)
        said = next(report for report in reports if report.ready or report.error)  # before it, that it lives
        assert said.error == ""
        with grpc.insecure_channel(address) as channel:
            yield RecommenderStub(channel)
        worker.stdin.close()  # as when the supervisor is gone: it ends
        assert worker.wait(30) == 0


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
        ("plays[0].timestamp_s", [play("e", "t", timestamp_s=LAST_S + 1)]),
        ("plays[0].timestamp_s", [play("e", "t", timestamp_s=1000 * int(time.time()))]),
        ("plays[0].request_id", [play("e", "t", request_id="a b")]),
        ("plays[0].request_id", [play("e", "t", request_id="r" * 129)]),
        ("plays[0].session_id", [play("e", "t", session_id="a\nb")]),
        ("plays[0].session_id", [play("e", "t", session_id="s" * 257)]),
        ("plays[0].ms_played", [play("e", "t", ms_played=86_400_001)]),
    ],
)
def test_bad_plays_are_refused_naming_the_field(running: Running, field: str, plays: list[pb.Play]) -> None:
    error = fails(lambda: running.stub.RecordPlays(pb.RecordPlaysRequest(plays=plays)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert (error.details() or "").startswith(f"{field}: found ")


def test_a_play_enters_the_log_with_all_that_was_said_of_it(running: Running) -> None:
    answer = running.stub.Recommend(request())
    given = play("e0", "t007", timestamp_s=5, count=3, request_id=answer.request_id, session_id="s é", ms_played=0)
    running.stub.RecordPlays(pb.RecordPlaysRequest(plays=[given, play("e1", "t008", timestamp_s=6, skipped=False)]))
    [[(_, first), (_, second)]] = running.users.events()
    assert first.play == Play("e0", "ann", "t007", 5, 3.0, None, None, answer.request_id, "s é", 0)
    assert second.play == Play("e1", "ann", "t008", 6, 1.0, None, False, "", "", None)
    assert abs(first.recorded_ms / 1000 - time.time()) < 3600


def test_the_status_tells_of_the_event_log(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "EVERY_S", 0.01)
    watch = event_log.EventLogWatch(running.users, running.service._metrics)
    watch.start()
    monkeypatch.setattr(running.service, "_event_log", lambda: watch.status)

    def status(*wanted: object) -> pb.EventLogStatus:
        found: pb.EventLogStatus = until(
            lambda: (log := running.stub.GetStatus(pb.GetStatusRequest()).event_log).entries in wanted and log
        )
        return found

    until(lambda: watch.status.on)
    empty = status(0)
    assert (empty.on, empty.entries, empty.oldest_ms, empty.error) == (True, 0, 0, "")
    began_ms = int(time.time() * 1000)
    running.stub.RecordPlays(pb.RecordPlaysRequest(plays=[play(f"e{i}", "t007") for i in range(40)]))
    found = status(40)
    assert (found.on, found.error) == (True, "")
    assert found.oldest_ms >= began_ms
    assert found.bytes > 40 * 50
    assert found.HasField("free_bytes")
    with Client(f"127.0.0.1:{running.listener.port}") as client:
        said = client.status().event_log
    assert said is not None
    assert (said.on, said.entries, said.bytes, said.oldest_ms) == (True, 40, found.bytes, found.oldest_ms)

    def fail() -> None:
        raise errors.UserStoreError("user store: found it gone")

    monkeypatch.setattr(running.users, "event_log", fail)
    assert status(0) == pb.EventLogStatus(error="user store: found it gone")
    watch.stop()


@pytest.mark.parametrize("behind_s", [1, DAY_S - 60, DAY_S + 60, 400 * DAY_S])
def test_a_clock_that_is_behind_loses_no_plays(
    running: Running, behind_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = int(time.time())
    monkeypatch.setattr(time, "time", lambda: float(today - behind_s))
    given = [play("e0", "t007", timestamp_s=today), play("e1", "t017", timestamp_s=today - 2 * behind_s)]
    assert running.stub.RecordPlays(pb.RecordPlaysRequest(plays=given)).recorded == 2
    state = running.users.get("ann")
    assert state is not None
    ahead = today if behind_s <= DAY_S else today - behind_s
    assert state.history["time"].tolist() == [today - 2 * behind_s, ahead]
    reply = running.stub.Recommend(request(user_id="bob", **history(track_id="t007", timestamp_s=today)))
    assert "t007" not in [track.track_id for track in reply.tracks]


def test_the_largest_call_is_taken(running: Running) -> None:
    ahead = int(time.time()) + DAY_S // 2
    plays = [play(f"{i}".rjust(128, "e"), f"{i}".rjust(256, "t"), "ü" * 256, timestamp_s=ahead) for i in range(1000)]
    assert running.stub.RecordPlays(pb.RecordPlaysRequest(plays=plays)).recorded == 1000


# -- refusals --------------------------------------------------------------------------------------------


def history(**entry: Any) -> dict[str, Any]:
    return {"history": pb.History(entries=[pb.HistoryEntry(track_id="t"), pb.HistoryEntry(**entry)])}


def session(**entry: Any) -> dict[str, Any]:
    return {"session": pb.Session(entries=[pb.SessionEntry(track_id="t"), pb.SessionEntry(**entry)])}


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
        ("user_id: found a\\x85b, expected no control characters", request("a\x85b")),
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
        (
            "session.entries: found 257 entries, expected 0 to 256 entries",
            request(session=pb.Session(entries=[pb.SessionEntry(track_id="t")] * 257)),
        ),
        ("session.entries[1].track_id: found 0 characters", request(**session())),
        ("session.entries[1].track_id: found a\\nb, expected no control", request(**session(track_id="a\nb"))),
        ("session.entries[1].timestamp_s: found -1", request(**session(track_id="t", timestamp_s=-1))),
        ("session.entries[1].timestamp_s: found 9", request(**session(track_id="t", timestamp_s=2**63 - 1))),
        ("now_s: found -1, expected Unix seconds", request(now_s=-1)),
        ("now_s: found 1700000000000, expected Unix seconds", request(now_s=1_700_000_000_000)),
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
        ("explain", request(explain=True)),
    ],
)
def test_fields_of_later_versions_are_refused_by_name(
    running: Running, field: str, unanswered: pb.RecommendRequest
) -> None:
    error = fails(lambda: running.stub.Recommend(unanswered))
    assert error.code() is Code.UNIMPLEMENTED
    assert error.details() == f"{field}: this version does not answer it"


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("filter.genres", pb.Filter(genres=["rock"])),
        ("filter.artists", pb.Filter(artists=["Nobody"])),
        ("filter.min_year", pb.Filter(min_year=1999)),
        ("filter.max_year", pb.Filter(max_year=1999)),
        ("filter.explicit", pb.Filter(explicit=False)),
        ("filter.conditions[0].column", pb.Filter(conditions=[pb.Condition(column="mood", any_of=["sad"])])),
        ("filter.genres[1]", pb.Filter(genres=["rock", ""])),
    ],
)
def test_a_filter_on_a_bundle_without_columns_is_refused_by_field(
    running: Running, field: str, wanted: pb.Filter
) -> None:
    error = fails(lambda: running.stub.Recommend(request(filter=wanted)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert (error.details() or "").startswith(f"{field}: found ")
    assert not running.recommender.queries


@pytest.mark.parametrize("lost", [False, True])
def test_a_wrong_filter_is_checked_once_and_nothing_is_looked_up_for_it(
    running: Running, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    reads: list[str] = []

    def read(user_id: str, deadline_s: float) -> UserState | None:
        reads.append(user_id)
        if lost:
            raise errors.UserStoreError("the disk is gone")
        return None

    monkeypatch.setattr(running.users, "get", read)
    error = fails(lambda: running.stub.Recommend(request(filter=pb.Filter(genres=["rock"]))))
    assert (error.code(), reads) == (Code.INVALID_ARGUMENT, [])
    running.stub.Recommend(request(filter=pb.Filter()))
    assert reads == ["ann"]


def test_fields_that_are_set_to_nothing_are_fine(running: Running) -> None:
    found = running.stub.Recommend(request(filter=pb.Filter(), diversity=pb.Diversity(), seed=0))
    assert ids(found) == expected_ids(N, 5)


def test_methods_of_later_versions_are_refused_by_name(running: Running) -> None:
    stub = running.stub
    for name, call in {
        "SimilarTracks": lambda: stub.SimilarTracks(pb.SimilarTracksRequest(track_ids=["t1"], k=3)),
        "Explain": lambda: stub.Explain(pb.ExplainRequest(user_id="ann", track_id="t1")),
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


TOLD = {Code.INTERNAL: "internal error, request id r-1", Code.UNAVAILABLE: "no user store just now, request id r-1"}


@pytest.mark.parametrize("kind", sorted(CODES, key=str))
def test_only_errors_written_for_callers_are_told(kind: type[errors.LhydraError]) -> None:
    made = (
        kind("a", "b", "c")
        if kind is errors.InvalidRequest
        else kind(*["secret"] * (1 + (kind is errors.MissingExtra)))
    )
    code, text = status_of(made, "r-1")
    assert code is CODES[kind]
    for_callers = kind in FOR_CALLERS
    assert text == (str(made) if for_callers else TOLD[code])
    assert for_callers or "secret" not in text


FOR_CALLERS = {
    errors.InvalidRequest,
    errors.Unsupported,
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.Overloaded,
    errors.NotReady,
    errors.DeadlineExceeded,
}


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


def test_a_store_that_cannot_be_written_fails_the_call(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(plays: list[Play], deadline_s: float) -> list[bool]:
        raise errors.UserStoreError("secret: disk full")

    monkeypatch.setattr(running.users, "record", full)
    call = pb.RecordPlaysRequest(plays=[play("e", "t")])
    error = fails(lambda: running.stub.RecordPlays(call, metadata=(("x-request-id", "r-9"),)))
    assert (error.code(), error.details()) == (Code.UNAVAILABLE, "no user store just now, request id r-9")
    assert "secret: disk full" in caplog.text
    assert ids(running.stub.Recommend(request())) == expected_ids(N, 5)


def test_an_outage_is_logged_once_a_second_however_many_calls_meet_it(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(*_: Any) -> Any:
        raise errors.UserStoreError("the disk is gone")

    monkeypatch.setattr(running.users, "get", lost)
    monkeypatch.setattr(running.users, "record", lost)
    monkeypatch.setattr(outage_log, "LOG_EVERY_S", math.inf)
    plays = pb.RecordPlaysRequest(plays=[play("e", "t")])
    for _ in range(4):
        assert fails(lambda: running.stub.RecordPlays(plays)).code() is Code.UNAVAILABLE
        running.stub.Recommend(request())
    monkeypatch.setattr(outage_log, "LOG_EVERY_S", 0.0)
    running.stub.Recommend(request())
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    first, second = "RecordPlays failed", "answered without the user store"
    others = f"since the last line also {first} 3 times, {second} 4 times"
    assert lines == [f"{first}: the disk is gone", f"{second}: the disk is gone; {others}"]


def test_a_mistake_is_logged_each_time(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    def fail(check: Callable[[], None]) -> None:
        raise RuntimeError("a bug")

    running.recommender.between = fail
    for _ in range(3):
        assert fails(lambda: running.stub.Recommend(request())).code() is Code.INTERNAL
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["Recommend failed: a bug"] * 3


def test_the_callers_deadline_reaches_the_store(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def late(what: Any, deadline_s: float) -> Any:
        seen.append(deadline_s)
        raise errors.DeadlineExceeded("the deadline passed while others wrote")

    monkeypatch.setattr(running.users, "get", late)
    monkeypatch.setattr(running.users, "record", late)
    plays = pb.RecordPlaysRequest(plays=[play("e", "t")])
    before = time.monotonic()
    for call in (
        lambda: running.stub.RecordPlays(plays, timeout=100),
        lambda: running.stub.Recommend(request(), timeout=100),
    ):
        assert fails(call).code() is Code.DEADLINE_EXCEEDED
    assert all(before + 50 < deadline_s < time.monotonic() + 150 for deadline_s in seen)
    fails(lambda: running.stub.RecordPlays(plays))
    assert seen[2] > 2**40  # without one: in longer than anybody waits


def test_plays_are_sent_again_until_the_store_takes_them_and_count_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, calls = running.users.record, 0

    def shaky(plays: list[Play], deadline_s: float) -> list[bool]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise errors.UserStoreError("connection refused")
        if (fresh := record(plays)) and calls == 2:
            raise errors.UserStoreError("connection lost after the write")
        return fresh

    monkeypatch.setattr(running.users, "record", shaky)
    with Client(f"127.0.0.1:{running.listener.port}", timeout_s=20) as client:
        recorded = client.record_plays([ClientPlay("ann", "t007", count=2), ClientPlay("ann", "t017")])
    assert (calls, recorded.recorded, recorded.duplicates) == (3, 0, 2)
    stored = running.users.get("ann")
    assert stored is not None
    assert sorted(stored.history["count"].tolist()) == [1.0, 2.0]


def test_features_that_a_profile_does_not_fit_are_the_callers_fault(running: Running) -> None:
    def fail(check: Callable[[], None]) -> None:
        raise errors.FeatureError("age: found an infinite number, expected finite numbers")

    running.recommender.between = fail
    error = fails(lambda: running.stub.Recommend(request(**profile(1))))
    assert error.code() is Code.INVALID_ARGUMENT
    assert (error.details() or "").startswith("profile: found age")
    assert fails(lambda: running.stub.Recommend(request())).code() is Code.INTERNAL


class Gate:
    """Holds the first call between two stages until opened; those behind it wait for their turn."""

    def __init__(self, running: Running) -> None:
        self.open, self.entered = threading.Event(), threading.Semaphore(0)
        self.running = running
        running.recommender.between = self.hold

    def hold(self, check: Callable[[], None]) -> None:
        self.entered.release()
        assert self.open.wait(30)

    def holds(self, *requests: pb.RecommendRequest, **options: Any) -> list[Any]:
        """Sends these, and returns the calls when the first is held and all others are in line."""
        calls = [self.running.stub.Recommend.future(requests[0], **options)]
        assert self.entered.acquire(timeout=30)
        for request in requests[1:]:
            calls.append(self.running.stub.Recommend.future(request, **options))
            until(lambda: len(self.running.waiting) == len(calls) - 1)
        return calls


def test_work_stops_once_the_deadline_has_passed(running: Running) -> None:
    def work(check: Callable[[], None]) -> None:
        until(check)  # raises when the deadline has passed

    running.recommender.between = work
    error = fails(lambda: running.stub.Recommend(request(), timeout=0.05))
    assert error.code() is Code.DEADLINE_EXCEEDED
    (line,) = until(running.lines)
    assert line["code"] == "DEADLINE_EXCEEDED"


def test_whose_caller_left_while_it_was_in_line_is_not_begun_and_the_others_are_answered(running: Running) -> None:
    gate = Gate(running)
    first, before, cancelled, after = gate.holds(*(request(k=k) for k in (1, 2, 3, 4)))
    late = running.stub.Recommend.future(request(k=5), timeout=0.5)
    until(lambda: len(running.waiting) == 4)
    assert late.code() is Code.DEADLINE_EXCEEDED  # its caller is told without delay
    cancelled.cancel()
    until(lambda: [gone(one.request[1]) for one in running.waiting] == [False, True, False, True])
    gate.open.set()
    for k, call in {1: first, 2: before, 4: after}.items():
        assert ids(call.result()) == expected_ids(N, k)
    until(lambda: len(running.lines()) == 5)
    assert [query.k for query in running.recommender.queries] == [1, 2, 4]
    assert sorted(line["code"] for line in running.lines()) == ["DEADLINE_EXCEEDED"] * 2 + ["OK"] * 3
    until(lambda: running.in_flight == 0)


def gone(check: Callable[[], None]) -> bool:
    """Whether the server knows that nobody waits for this any more."""
    with suppress(errors.DeadlineExceeded):
        check()
        return False
    return True


def trailer(call: Any, key: str) -> str:
    (found,) = [value for name, value in call.trailing_metadata() if name == key]
    return str(found)


@pytest.mark.parametrize("most", [1, 3])
def test_what_is_too_much_is_refused_at_once_and_the_rest_is_answered(tmp_path: Path, most: int) -> None:
    with serve(tmp_path, max_in_flight=most) as running:
        gate = Gate(running)
        taken = gate.holds(*[request(k=3)] * most)
        for name, call in {
            "Recommend": lambda: running.stub.Recommend(request(), timeout=20, metadata=(("x-request-id", "r-2"),)),
            "Explain": lambda: running.stub.Explain(pb.ExplainRequest(), timeout=20),
        }.items():
            for _ in range(10):  # all while the others are held
                error = cast(Any, fails(call))
                assert error.code() is Code.RESOURCE_EXHAUSTED
                assert int(trailer(error, "retry-after-ms")) >= 1
                assert trailer(error, "retry-after-ms") in (error.details() or "")
                assert name != "Recommend" or trailer(error, "x-request-id") == "r-2"
        assert not [call for call in taken if call.done()]
        assert len(running.waiting) == most - 1
        gate.open.set()
        assert [ids(call.result()) for call in taken] == [expected_ids(N, 3)] * most
        until(lambda: running.in_flight == 0)
        assert ids(running.stub.Recommend(request())) == expected_ids(N, 5)
        assert len(running.recommender.queries) == most + 1


def test_health_and_reflection_are_answered_while_everything_is_held(tmp_path: Path) -> None:
    with serve(tmp_path, max_in_flight=2) as running:
        gate = Gate(running)
        taken = gate.holds(request(), request())
        assert [running.health(name) for name in ("", SERVICE)] == [health_pb2.HealthCheckResponse.SERVING] * 2
        assert SERVICE in reflected(running)
        assert running.in_flight == 2  # they do not count
        gate.open.set()
        assert [ids(call.result()) for call in taken] == [expected_ids(N, 5)] * 2


def test_a_refusal_does_not_wait_for_a_message_that_never_comes(tmp_path: Path) -> None:
    with serve(tmp_path, max_in_flight=1) as running:
        gate, never = Gate(running), threading.Event()
        (taken,) = gate.holds(request())

        def nothing() -> Iterator[bytes]:
            never.wait(30)
            yield from ()

        method = cast(Any, running.channel.stream_unary(f"/{SERVICE}/Recommend"))
        silent = method.future(nothing(), timeout=20)
        assert silent.code() is Code.RESOURCE_EXHAUSTED
        assert fails(lambda: running.stub.Recommend(request(), timeout=20)).code() is Code.RESOURCE_EXHAUSTED
        gate.open.set()
        assert ids(taken.result()) == expected_ids(N, 5)
        never.set()


def test_the_door_is_open_again_after_callers_that_cancel(tmp_path: Path) -> None:
    with serve(tmp_path, max_in_flight=6) as running:

        def hammer(number: int) -> None:
            for i in range(60):
                call = running.stub.Recommend.future(request(k=3), timeout=(0.0005, 0.005, None)[i % 3])
                if i % 2:
                    call.cancel()
                else:
                    call.exception()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(hammer, range(8)))
        until(lambda: running.in_flight == 0)
        assert not running.waiting
        gate = Gate(running)
        taken = gate.holds(*[request(k=3)] * 6)  # there is room for all six
        assert fails(lambda: running.stub.Recommend(request())).code() is Code.RESOURCE_EXHAUSTED
        gate.open.set()
        assert [ids(call.result()) for call in taken] == [expected_ids(N, 3)] * 6


def test_the_door_is_open_again_after_a_client_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lhydra_server.batcher.MAX_YIELDS", 0)  # the first is held alone, though four come at once
    script = """if True:
        import sys, grpc
        from lhydra_protos.v1 import recommender_pb2 as pb
        from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
        stub = RecommenderStub(grpc.insecure_channel(sys.argv[1]))
        calls = [stub.Recommend.future(pb.RecommendRequest(user_id="ann", k=2)) for _ in range(4)]
        [call.exception() for call in calls]
    """
    with serve(tmp_path, max_in_flight=4) as running:
        gate = Gate(running)
        client = subprocess.Popen([sys.executable, "-c", script, f"127.0.0.1:{running.listener.port}"])
        try:
            until(lambda: len(running.waiting) == 3)
            assert fails(lambda: running.stub.Recommend(request())).code() is Code.RESOURCE_EXHAUSTED
        finally:
            client.kill()
            client.wait()
        until(lambda: all(gone(one.request[1]) for one in running.waiting))
        gate.open.set()
        until(lambda: running.in_flight == 0)
        assert len(running.recommender.queries) == 1  # those in line were not begun
        assert ids(running.stub.Recommend(request())) == expected_ids(N, 5)


def test_a_call_whose_caller_left_while_it_waited_for_a_thread_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(tmp_path, max_in_flight=CALL_THREADS + 2) as running:
        looked_up: list[str] = []
        get = running.users.get

        def noted(user_id: str, deadline_s: float = math.inf) -> UserState | None:
            looked_up.append(user_id)
            return get(user_id, deadline_s)

        monkeypatch.setattr(running.users, "get", noted)
        gate = Gate(running)
        taken = gate.holds(*[request(k=3)] * CALL_THREADS)
        left: list[Any] = [
            running.stub.Recommend.future(request("impatient")),
            running.stub.Recommend.future(request("impatient", k=2)),
        ]
        until(lambda: running.in_flight == CALL_THREADS + 2)
        for call in left:
            call.cancel()
        # on one connection calls come in order: once this one is refused, the server knows of those cancellations
        assert fails(lambda: running.stub.Recommend(request())).code() is Code.RESOURCE_EXHAUSTED
        gate.open.set()
        assert [ids(call.result()) for call in taken] == [expected_ids(N, 3)] * CALL_THREADS
        until(lambda: running.in_flight == 0)
        assert len(running.recommender.queries) == CALL_THREADS
        assert "impatient" not in looked_up


def test_requests_that_wait_together_are_each_answered_as_if_alone(running: Running) -> None:
    running.users.record([Play(f"e{i}", f"u{i}", f"t{i:03}", 5) for i in range(20)])
    gate = Gate(running)
    asked = [request(f"u{i}", k=i + 1, exclude_track_ids=[f"t{i + 30:03}"]) for i in range(20)]
    calls = gate.holds(*asked)
    gate.open.set()
    for i, call in enumerate(calls):
        assert ids(call.result()) == expected_ids(N, i + 1, {f"t{i:03}", f"t{i + 30:03}"})
        assert {stage.name: stage.took_us for stage in call.result().stages}["exclude"] == 10


def test_one_bad_profile_fails_alone(running: Running) -> None:
    """The error of one request in a turn is nobody else's."""
    gate = Gate(running)
    (first, *others) = gate.holds(request(k=1), request(k=2), request(k=3, **profile(1)), request(k=4))
    real = running.recommender.recommend

    def fussy(query: Any, check: Any) -> Any:
        if query.state.profile:
            raise errors.FeatureError("age: found 1, expected more")
        return real(query, check)

    cast(Any, running.recommender).recommend = fussy
    gate.open.set()
    assert ids(first.result()) == expected_ids(N, 1)
    assert others[1].code() is Code.INVALID_ARGUMENT
    assert [ids(others[i].result()) for i in (0, 2)] == [expected_ids(N, k) for k in (2, 4)]


# -- health, reflection, status, logs ---------------------------------------------------------------------


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


def reflected(running: Running) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    reply = next(stub.ServerReflectionInfo(asked, timeout=20))
    return {service.name for service in reply.list_services_response.service}


def test_reflection_names_the_services(running: Running) -> None:
    assert {SERVICE, "grpc.health.v1.Health"} <= reflected(running)


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


def test_one_log_line_per_request_without_the_user(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    user = "someone-in-particular"
    with caplog.at_level(logging.INFO):
        running.stub.Recommend(request(user), metadata=(("x-request-id", "r-5"),))
        fails(lambda: running.stub.Recommend(request(user + "\n", k=5)))
        running.stub.RecordPlays(pb.RecordPlaysRequest(plays=[play("e", "t", user)]))
    good, bad, plays = until(lambda: len(lines := running.lines()) == 3 and lines)
    told = [good[name] for name in ("request_id", "method", "code", "tier", "bundle", "k")]
    assert told == ["r-5", "Recommend", "OK", "popular", "b-1", 5]
    assert set(good["stage_us"]) == set(STAGES)
    assert good["took_us"] >= good["stage_us"]["queue"]
    assert len(good["user"]) == 16
    assert (bad["method"], bad["code"]) == ("Recommend", "INVALID_ARGUMENT")
    assert (plays["method"], plays["code"], plays["recorded"]) == ("RecordPlays", "OK", 1)
    assert user not in running.log.read_text()
    assert user not in json.dumps([vars(record) for record in caplog.records], default=str)


# -- settings and weight ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [{"port": -1}, {"port": 65536}, {"workers": -1}, {"max_k": 0}, {"max_in_flight": 0}, {"depth": 10_001}]
)
def test_settings_out_of_range_are_refused(bad: dict[str, int]) -> None:
    name, value = next(iter(bad.items()))
    with pytest.raises(errors.ConfigError, match=f"ServeSettings.{name}: found {value}, expected "):
        ServeSettings(**cast(Any, bad))


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
