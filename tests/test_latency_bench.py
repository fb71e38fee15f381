"""The latency benchmark measures what it says: latencies from the due time, percentiles, errors, the JSON it writes."""

import gc
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.latency import h2load, http2, measure, modes, servers, traffic
from benchmarks.latency.command import main
from benchmarks.latency.load import (
    Call,
    Load,
    LoadRun,
    Plan,
    Request,
    arrival_times,
    closed_loop,
    open_loop,
    run_in_subprocess,
)
from benchmarks.latency.own_server import serve_command, start_server
from benchmarks.latency.results import Run
from benchmarks.latency.summary import PERCENTILES, percentiles, report, summarise
from lhydra.data.dataset import DatasetInfo
from lhydra.errors import DataError, LhydraError, NotReady
from lhydra_protos.v1 import recommender_pb2 as pb
from tests.fake_recommender import STAGES, FakeRecommender, reply, serving
from tests.simulated_load import SimulatedServer

ROOT = Path(__file__).resolve().parents[1]
STALL_S = 0.25


def requests(*users: str) -> list[Request]:
    return [Request(pb.RecommendRequest(user_id=user, k=3).SerializeToString()) for user in users]


def stalling(request: pb.RecommendRequest, context: grpc.ServicerContext) -> None:
    if request.user_id == "slow":
        time.sleep(STALL_S)


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> Iterator[None]:
    """Each run collects garbage first; the objects of all the other tests need not be looked through every time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeRecommender, str]]:
    """One server for all tests, and its address."""
    fake = FakeRecommender()
    with serving(fake) as address:
        yield fake, address


@pytest.fixture
def fake(shared: tuple[FakeRecommender, str]) -> FakeRecommender:
    """The server's answers, as new."""
    fake, fresh = shared[0], FakeRecommender()
    fake.before, fake.seen, fake.reply = fresh.before, fresh.seen, fresh.reply
    return fake


@pytest.fixture
def address(fake: FakeRecommender, shared: tuple[FakeRecommender, str]) -> str:
    return shared[1]


# ---- arrivals and loops


def test_fixed_arrivals_are_evenly_spaced() -> None:
    assert arrival_times(50, 2.0, "fixed", seed=3).tolist() == [i / 50 for i in range(100)]


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0.5, 500), st.floats(0.1, 20), st.integers(0, 2**31))
def test_poisson_arrivals_are_seeded_ordered_and_inside(rate: float, seconds: float, seed: int) -> None:
    due_s = arrival_times(rate, seconds, "poisson", seed)
    assert np.array_equal(due_s, arrival_times(rate, seconds, "poisson", seed))
    assert (np.diff(due_s) >= 0).all()
    assert ((due_s >= 0) & (due_s < seconds)).all()
    assert abs(len(due_s) - rate * seconds) <= 7 * np.sqrt(rate * seconds) + 7  # seven sigma


@pytest.mark.parametrize("channels", [1, 4])
def test_a_stall_is_felt_by_every_request_that_was_due_meanwhile(channels: int) -> None:
    """One server thread, stalled by the first request: nothing else can be answered before the stall ends."""
    due_s = np.concatenate([[0.0], 0.05 + np.arange(20) / 100])  # all due before the stall ends
    with serving(FakeRecommender(stalling), workers=1) as address:
        asked = requests("slow", *(f"u{i}" for i in range(20)))
        load = open_loop(address, asked, rate=100, due_s=due_s, timeout_s=60, channels=channels)
    assert [call.code for call in load.calls] == ["OK"] * 21
    assert [call.due_s for call in load.calls] == due_s.tolist()
    stall_ends_s = load.calls[0].sent_s + STALL_S
    assert (load.latency_ms >= (stall_ends_s - due_s) * 1e3).all()
    assert all(call.due_s <= call.sent_s < call.done_s for call in load.calls)


def test_a_late_generator_is_felt_by_the_latencies_and_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause of this program, right after the first request: what was due meanwhile counts from when it was due."""
    place, paused = LoadRun._place, []

    def pause(self: LoadRun, token: int) -> None:
        place(self, token)
        if token == 0:
            paused.append(self.now())
            time.sleep(STALL_S)

    monkeypatch.setattr(LoadRun, "_place", pause)
    load = open_loop(address, requests("a"), rate=100, due_s=np.arange(20) / 100, timeout_s=60)
    over_s = paused[0] + STALL_S
    due_s = np.array([call.due_s for call in load.calls])
    assert (load.late_ms[1:] >= (over_s - due_s[1:]) * 1e3 - 1).all()
    assert (load.latency_ms >= load.late_ms).all()
    late: Any = summarise(load)["generator"]["late_share"]
    assert late >= 19 / 20


def test_the_open_loop_sends_every_request_once_over_all_connections(fake: FakeRecommender, address: str) -> None:
    peers = []
    fake.before = lambda request, context: peers.append(context.peer())
    users = [f"u{i}" for i in range(40)]
    load = open_loop(address, requests(*users), rate=400, due_s=np.arange(40) / 400, timeout_s=60, channels=4)
    assert sorted(request.user_id for request in fake.seen) == sorted(users)
    assert all(request.k == 3 for request in fake.seen)
    assert len(set(peers)) == 4
    assert {call.reply for call in load.calls} == {reply().SerializeToString()}


def test_the_closed_loop_has_at_most_its_concurrency_in_flight(fake: FakeRecommender, address: str) -> None:
    load = closed_loop(address, requests("a", "b", "c"), concurrency=3, seconds=0.3, timeout_s=60)
    assert len(load.calls) == len(fake.seen) >= 3
    changes = sorted([(call.sent_s, 1) for call in load.calls] + [(call.done_s, -1) for call in load.calls])
    assert np.cumsum([change for _, change in changes]).max() <= 3
    assert max(call.due_s for call in load.calls) < 0.3 <= load.wall_s


def test_errors_are_counted_by_code_and_kept_out_of_the_latencies(fake: FakeRecommender, address: str) -> None:
    def before(request: Any, context: grpc.ServicerContext) -> None:
        if request.user_id.startswith("bad"):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        if request.user_id == "down":
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    fake.before = before
    users = ["good", "bad1", "bad2", "down", "good"] * 4
    load = open_loop(address, requests(*users), rate=200, due_s=np.arange(20) / 200, timeout_s=60)
    numbers: Any = summarise(load)
    assert numbers["errors"] == {"RESOURCE_EXHAUSTED": 8, "UNAVAILABLE": 4}
    assert (numbers["requests"], numbers["answered"], len(load.latency_ms)) == (20, 8, 8)
    assert 0 < numbers["refused_ms"]["p50"] <= numbers["refused_ms"]["max"]
    assert len(fake.seen) == 20  # the benchmark retries nothing
    assert "ERRORS, not in the latencies above: 8 RESOURCE_EXHAUSTED, 4 UNAVAILABLE" in report([numbers])


def leap(monkeypatch: pytest.MonkeyPatch, seconds: float, when: Callable[[LoadRun], bool]) -> None:
    """The generator's clock is `seconds` ahead as soon as `when`."""
    now = LoadRun.now
    monkeypatch.setattr(LoadRun, "now", lambda self: now(self) + seconds * when(self))


def test_a_deadline_ends_a_call_and_nothing_else(
    fake: FakeRecommender, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock passes the deadline once the other calls have been answered."""

    def hold(request: pb.RecommendRequest, context: grpc.ServicerContext) -> None:
        if request.user_id == "held":
            given_up = threading.Event()
            if context.add_callback(given_up.set):
                given_up.wait(60)

    fake.before = hold
    leap(monkeypatch, 60, lambda run: len(run.calls) == 2)
    load = open_loop(address, requests("held", "a", "b"), rate=100, due_s=np.arange(3) / 100, timeout_s=60, channels=1)
    assert [call.code for call in load.calls] == ["DEADLINE_EXCEEDED", "OK", "OK"]
    assert load.calls[0].done_s - load.calls[0].sent_s >= 60


def test_servers_that_end_their_connections_lose_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `lhydra serve` does: connections live for a while, then the server says goodbye and others are opened."""
    fake, peers = FakeRecommender(), set()
    fake.before = lambda request, context: peers.add(context.peer())
    leap(monkeypatch, 3600, lambda run: len(peers) > 8)
    with serving(fake, options=(("grpc.max_connection_age_ms", 50),)) as address:
        load = closed_loop(address, requests("a", "b"), concurrency=8, seconds=3600, timeout_s=50_000)
    assert {call.code for call in load.calls} == {"OK"}
    assert len(load.calls) == len(fake.seen)
    assert len(peers) > 8


def test_a_connection_that_is_told_goodbye_starts_no_call_and_gives_back_what_was_not_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connection = http2.Connection(f"127.0.0.1:{listening.getsockname()[1]}")
        server, _ = listening.accept()
        with server:
            for token in (7, 8, 9):  # streams 1, 3, 5
                connection.call(token, http2.header_block("/x", "a", 1.0), http2.framed(b"m"))
            server.sendall(http2._frame(http2.GOAWAY, 0, 0, (3).to_bytes(4, "big") + bytes(4)))
            _, _, _ = select.select([connection.socket], [], [], 20)
            connection.receive()
            assert connection.leaving
            assert connection.unsent == [9]
            assert (connection.in_flight, connection.closed) == (2, False)
        _, _, _ = select.select([connection.socket], [], [], 20)
        connection.receive()
        assert connection.closed
        assert connection.done == [(7, "UNAVAILABLE", b""), (8, "UNAVAILABLE", b"")]


def test_a_server_that_goes_away_is_unavailable() -> None:
    with serving(FakeRecommender()) as address:
        gone = address
    with pytest.raises(OSError, match="refused"):
        open_loop(gone, requests("a"), rate=10, due_s=np.arange(2) / 10, timeout_s=1)


def test_large_messages_travel_whole_in_both_directions() -> None:
    fake = FakeRecommender()
    fake.reply.tracks.extend(pb.ScoredTrack(track_id=f"t{i}", title="x" * 400) for i in range(500))  # 200 KB
    entries = [pb.HistoryEntry(track_id=f"track-{i}") for i in range(3000)]  # 45 KB, three frames
    big = pb.RecommendRequest(user_id="u", k=3, history=pb.History(entries=entries))
    with serving(fake) as address:
        asked = [Request(big.SerializeToString())]
        load = open_loop(address, asked, rate=50, due_s=np.arange(30) / 50, timeout_s=60, channels=1)
    assert {call.code for call in load.calls} == {"OK"}
    assert {call.reply for call in load.calls} == {fake.reply.SerializeToString()}
    assert fake.seen == [big] * 30


def test_a_process_of_its_own_gives_the_same_numbers(fake: FakeRecommender, address: str) -> None:
    plan = Plan(address, requests("a", "b"), seconds=0.2, timeout_s=60, channels=2, rate=100, arrivals="fixed")
    apart, here = run_in_subprocess(plan), summarise(plan.run())
    assert len(fake.seen) == 40
    assert apart.keys() == here.keys()

    def counted(run: Run) -> list[object]:
        return [run["name"], run["requests"], run["answered"], run["errors"], run["tiers"], run["tracks_min"]]

    assert counted(apart) == counted(here)


def test_a_generator_that_fails_is_one_line() -> None:
    with serving(FakeRecommender()) as address:
        gone = address
    with pytest.raises(LhydraError, match=r"^the load generator: .*refused"):
        run_in_subprocess(Plan(gone, requests("a"), seconds=0.1, timeout_s=1, channels=1, concurrency=1))


# ---- HTTP/2


def test_every_status_is_read_as_grpc_reads_it(fake: FakeRecommender, address: str) -> None:
    codes = {code.name: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}
    fake.before = lambda request, context: context.abort(codes[request.user_id], "why: ü" * 20)
    load = open_loop(address, requests(*codes), rate=100, due_s=np.arange(len(codes)) / 1e6, timeout_s=60)
    assert [call.code for call in load.calls] == list(codes)


@given(st.integers(0, 99), st.booleans(), st.booleans(), st.sampled_from([0x00, 0x10, 0x40]))
def test_statuses_are_found_in_any_spelling(status: int, packed_name: bool, packed_value: bool, kind: int) -> None:
    """HPACK leaves it to the server: plain or Huffman code, indexed or not, among other headers."""
    digits = {str(n): (f"{n:05b}" if n < 3 else f"{n + 22:06b}") for n in range(10)}
    bits = "".join(digits[digit] for digit in str(status))
    packed = int(bits + "1" * (-len(bits) % 8), 2).to_bytes((len(bits) + 7) // 8, "big")
    name = _string(bytes.fromhex("9acac8b21234da8f"), True) if packed_name else _string(b"grpc-status", False)
    value = _string(packed, True) if packed_value else _string(str(status).encode(), False)
    block = b"\x20\x88" + b"\x00" + _string(b"x-before", False) + _string(b"7" * 200, False)
    block += bytes([kind]) + name + value + b"\x0f\x0d" + _string(b"3", False)
    assert http2.status_of(block) == status
    assert http2.status_of(b"\x20\x88") is None


def _string(text: bytes, packed: bool) -> bytes:
    flag = 0x80 if packed else 0
    if len(text) < 127:
        return bytes([flag | len(text)]) + text
    rest, out = len(text) - 127, bytearray([flag | 127])
    while rest >= 128:
        out.append(rest % 128 | 128)
        rest //= 128
    return bytes(out) + bytes([rest]) + text


@given(st.binary(max_size=300))
def test_a_frame_is_a_flag_the_length_and_the_message(message: bytes) -> None:
    framed = http2.framed(message)
    assert framed[0] == 0
    assert int.from_bytes(framed[1:5], "big") == len(message)
    assert framed[5:] == message


# ---- numbers


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=200))
def test_percentiles_are_those_of_numpy(values: list[float]) -> None:
    sample = np.array(values)
    named = percentiles(sample, PERCENTILES)
    assert named["p50"] == np.percentile(sample, 50)
    assert named["p90"] == np.percentile(sample, 90)
    assert named["p99"] == np.percentile(sample, 99)
    assert named["p99_9"] == np.percentile(sample, 99.9)
    assert (named["max"], named["mean"]) == (sample.max(), sample.mean())


def test_a_run_of_known_calls_gives_the_known_numbers() -> None:
    answer = reply().SerializeToString()
    calls = [Call(i / 10, i / 10 + (0.002 if i < 3 else 0), i / 10 + 0.01 * (i + 1), "OK", answer) for i in range(10)]
    calls.append(Call(1.0, 1.0, 9.0, "INTERNAL", b""))
    numbers = summarise(Load("open, 10/s", calls, wall_s=2.0, cpu_s=0.5, is_open=True))
    expected = np.linspace(10.0, 100.0, 10)  # ms, from due to done
    assert numbers["latency_ms"]["p50"] == pytest.approx(np.percentile(expected, 50))
    assert numbers["latency_ms"]["p99_9"] == pytest.approx(np.percentile(expected, 99.9))
    assert numbers["latency_ms"]["max"] == pytest.approx(100.0)
    assert (numbers["throughput_per_s"], numbers["generator"]["cpu_share"]) == (5.0, 0.25)
    assert numbers["generator"]["late_share"] == pytest.approx(3 / 11)
    assert list(numbers["stages_us"]) == [*STAGES, "outside"]
    assert all(numbers["stages_us"][name]["p99"] == took_us for name, took_us in STAGES.items())
    outside = percentiles(expected * 1e3 - sum(STAGES.values()), {"p50": 50.0, "p99": 99.0})
    assert numbers["stages_us"]["outside"] == pytest.approx(outside)
    assert (numbers["tiers"], numbers["bundles"]) == ({"history": 10}, {"b-1": 10})
    assert (numbers["degraded"], numbers["tracks_min"]) == (10, 3)


def test_a_run_without_an_answer_has_no_latency_and_a_report() -> None:
    numbers = summarise(Load("closed, 1", [Call(0, 0, 1, "UNAVAILABLE", b"")], 1.0, 0.1, is_open=False))
    assert set(numbers["latency_ms"].values()) == {None}
    assert "1 UNAVAILABLE" in report([numbers])
    assert "tiers: no answer" in report([numbers])


def test_popular_answers_only_are_said_loudly() -> None:
    popular = pb.RecommendResponse(tier=pb.TIER_POPULAR).SerializeToString()
    numbers = summarise(Load("closed, 1", [Call(0, 0, 1, "OK", popular)], 1.0, 0.1, is_open=False))
    assert "ALL ANSWERS WERE POPULAR TRACKS" in report([numbers])
    personal: Run = {**numbers, "tiers": {"personal": 1}}
    assert "ALL ANSWERS" not in report([numbers, personal])


# ---- the program


def short(path: Path, *argv: str) -> list[str]:
    brief = ["--seconds", "0.1", "--warmup-s", "0.02", "--channels", "2", "--spin-s", "0", "--closed-by", "python"]
    return [*argv, *brief, "--json", str(path)]


@pytest.mark.usefixtures("one_process")
def test_the_program_writes_the_whole_story(
    fake: FakeRecommender, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "recs.csv"
    lists.write_text('user_id,rank,track_id,score\n"u,1",1,t1,.9\n"u,1",2,t2,.8\nu2,1,t1,.7\n')
    path = tmp_path / "deep" / "latency.json"
    argv = short(path, "--address", address, "--concurrency", "1,2", "--rates", "50", "--seed", "4", "--k", "7")
    assert main([*argv, "--user-ids", str(lists), "--arrivals", "fixed", "--repeats", "2"]) == 0
    assert {(request.user_id, request.k) for request in asked_of(fake)} == {("u,1", 7), ("u2", 7)}
    document = json.loads(path.read_text())
    assert sorted(document) == [
        "bundle_id", "command", "faults", "figures", "format", "machine", "measured", "peers", "rates", "runs",
        "server", "settings", "spinning", "users", "versions",
    ]  # fmt: skip
    assert document["bundle_id"] == document["server"]["bundle_id"] == "b-1"
    assert (document["settings"]["seed"], document["users"]["count"]) == (4, 2)
    assert set(document["versions"]) >= {"python", "grpcio", "numpy", "faiss-cpu", "onnxruntime", "lhydra"}
    assert document["machine"]["cores"] >= 1
    assert document["machine"]["memory_gib"] > 0
    names = ["closed, 1", "closed, 2", "open, 50/s"]
    assert [(run["repeat"], run["name"]) for run in document["runs"]] == [(n, name) for n in (0, 1) for name in names]
    assert document["runs"][2]["requests"] == 5
    for run in document["runs"]:
        assert run["answered"] == run["requests"] > 0
        assert list(run["latency_ms"]) == ["p50", "p90", "p99", "p99_9", "mean", "max"]
        assert set(run["stages_us"]) == {*STAGES, "outside"}
    for name, figure in document["figures"].items():
        assert len(figure["values"]) == 2, name
        assert figure["min"] <= figure["median"] <= figure["max"]
    assert {name for name, figure in document["figures"].items() if figure["better"] == "higher"} == {
        "closed, 1: per s",
        "closed, 2: per s",
    }
    out = capsys.readouterr().out
    assert "p99.9" in out
    assert "rerank" in out
    assert f"written: {path}" in out
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the load in this process: many short runs, where starting one would take most of the time."""
    monkeypatch.setattr(measure, "run_in_subprocess", lambda plan: summarise(plan.run()))
    monkeypatch.setattr(measure, "CHECKED_USERS", 5)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Simulates the load: no run takes any time. The plans are kept."""
    plans: list[Plan] = []
    monkeypatch.setattr(measure, "run_in_subprocess", SimulatedServer(sent=plans.append).run)
    monkeypatch.setattr(measure, "CHECKED_USERS", 5)
    return plans


def asked_of(fake: FakeRecommender) -> list[pb.RecommendRequest]:
    return [request for request in fake.seen if isinstance(request, pb.RecommendRequest)]


def test_every_mode_runs_and_fails_nothing(
    fake: FakeRecommender, address: str, tmp_path: Path, simulated: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of 200 requests a second that refuses beyond 24 inside: what it refuses in overload is no failure."""
    path = tmp_path / "l.json"
    argv = short(path, "--address", address, "--modes", "closed,ramp,soak,overload,mixed", "--concurrency", "2")
    argv += [
        "--ramp-from",
        "50",
        "--p99-ms",
        "100",
        "--seconds",
        "6",
        "--soak-s",
        "6",
        "--filter",
        "genre=rock,min_year=1990",
    ]
    assert main([*argv, "--feedback"]) == 0
    document = json.loads(path.read_text())
    rates, by_mode = document["rates"], {run["mode"]: run for run in document["runs"]}
    assert list(by_mode) == ["closed", "ramp", "knee", "soak", "overload", "mixed"]
    capacity = SimulatedServer().capacity_per_s
    assert by_mode["closed"]["throughput_per_s"] == pytest.approx(capacity / 2, rel=0.01)  # two callers, four places
    assert 0.8 * capacity < rates["knee"] < capacity
    assert rates["soak"] == pytest.approx(0.6 * rates["knee"])
    assert rates["overload"] == pytest.approx(2 * rates["knee"])
    assert by_mode["knee"]["sustained"]
    assert by_mode["knee"]["offered_per_s"] == rates["knee"]
    assert set(by_mode["overload"]["errors"]) == {"RESOURCE_EXHAUSTED"}
    assert by_mode["overload"]["goodput_per_s"] == pytest.approx(capacity, rel=0.05)
    assert by_mode["soak"]["errors"] == by_mode["mixed"]["errors"] == {}
    assert set(by_mode["mixed"]["kinds"]) == set(traffic.MIX)
    sent = [pb.RecommendRequest.FromString(one.message) for one in simulated[-1].requests if one.kind != "feedback"]
    assert any(request.filter == traffic.parse_filter("genre=rock,min_year=1990") for request in sent)
    assert any(len(request.history.entries) for request in sent)
    monkeypatch.setattr(measure, "run_in_subprocess", SimulatedServer(code="INTERNAL").run)
    assert main(argv) == 1


@pytest.mark.usefixtures("simulated")
def test_kinds_that_a_server_does_not_answer_are_left_out(fake: FakeRecommender, address: str, tmp_path: Path) -> None:
    def before(request: Any, context: grpc.ServicerContext) -> None:
        if isinstance(request, pb.RecommendRequest) and request.filter.ByteSize():
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "filter")

    fake.before = before
    argv = short(tmp_path / "l.json", "--address", address, "--modes", "mixed", "--filter", "explicit=false")
    assert main(argv) == 0
    (run,) = json.loads((tmp_path / "l.json").read_text())["runs"]
    assert set(run["kinds"]) == {"warm", "cold, history", "cold, nothing"}  # and nothing is recorded unless asked for


@pytest.mark.skipif(not h2load.installed(), reason="no h2load: apt-get install nghttp2-client")
@pytest.mark.usefixtures("one_process")
def test_h2load_asks_for_many_users_and_is_believed_for_its_sizes_only(
    fake: FakeRecommender, address: str, tmp_path: Path
) -> None:
    path = tmp_path / "l.json"
    argv = [*short(path, "--address", address, "--concurrency", "3", "--modes", "closed"), "--closed-by", "h2load"]
    assert main([*argv, "--seconds", "0.3"]) == 0
    (run,) = json.loads(path.read_text())["runs"]
    assert run["generator"]["by"] == "h2load"
    assert run["reply_bytes"]["mean"] == pytest.approx(run["reply_bytes"]["checked"])
    users = {
        request.user_id for request in asked_of(fake)[-run["answered"] - measure.CHECKED_USERS : -measure.CHECKED_USERS]
    }
    assert len(users) > 3  # one each of three processes, were the bodies not rewritten
    assert users <= {f"bench-{n}" for n in range(1000)}
    assert run["latency_ms"]["p50"] <= run["latency_ms"]["p99"] <= run["latency_ms"]["max"]

    turn = itertools.count()

    def refuse_every_second(request: Any, context: grpc.ServicerContext) -> None:
        agent = dict(context.invocation_metadata())["user-agent"]
        if str(agent).startswith("h2load") and next(turn) % 2:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")

    fake.before = refuse_every_second  # but never the checks
    assert main([*argv, "--seconds", "0.3"]) == 1  # HTTP 200 all of them, but too short to be answers
    document = json.loads(path.read_text())
    assert document["faults"] == []
    assert document["runs"][0]["errors"]["REPLIES TOO SHORT"] > 0


@pytest.mark.parametrize(("mode", "failed"), [("closed", 9), ("open", 9), ("mixed", 9), ("ramp", 2), ("overload", 2)])
def test_refusals_are_failures_unless_too_much_was_asked_for(mode: str, failed: int) -> None:
    assert modes.failures({"mode": mode, "errors": {"RESOURCE_EXHAUSTED": 7, "INTERNAL": 2}}) == failed


@pytest.mark.usefixtures("simulated")
def test_a_baseline_decides_by_exit_code_and_lends_its_rates(
    fake: FakeRecommender, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, base = tmp_path / "l.json", tmp_path / "base.json"
    argv = short(base, "--address", address, "--concurrency", "1", "--modes", "closed,soak", "--repeats", "3")
    argv += ["--soak-s", "0.2", "--soak-rate", "40", "--seconds", "0.1"]
    assert main(argv) == 0
    document = json.loads(base.read_text())
    argv = [*(word for word in argv if word not in ("--soak-rate", "40")), "--json", str(path), "--compare", str(base)]
    for factor, expected in ((1e-3, 1), (1e3, 0)):  # once the baseline was far better, once far worse
        for figure in document["figures"].values():
            scale = factor if figure["better"] == "lower" else 1 / factor
            figure["values"] = [value * scale for value in figure["values"]]
        base.write_text(json.dumps(document))
        assert main(argv) == expected
        out = capsys.readouterr().out
        assert ("WORSE" in out) == bool(expected)
        assert json.loads(path.read_text())["rates"]["soak"] == 40
        for figure in document["figures"].values():
            scale = factor if figure["better"] == "lower" else 1 / factor
            figure["values"] = [value / scale for value in figure["values"]]
    for text, says in (
        ('{"format": 1}', "expected format 2"),
        ("[]", "found list"),
        ("{", "broken JSON"),
        ('{"format": 2}', "no settings"),
    ):
        base.write_text(text)
        assert main(argv) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert says in line


@pytest.mark.usefixtures("one_process")
def test_any_error_fails_the_program_unless_allowed(fake: FakeRecommender, address: str, tmp_path: Path) -> None:
    def before(request: Any, context: grpc.ServicerContext) -> None:
        if getattr(request, "user_id", "") == "bench-7":
            context.abort(grpc.StatusCode.INTERNAL, "broken")

    fake.before = before
    argv = short(tmp_path / "l.json", "--address", address, "--concurrency", "4", "--rates", "")
    argv += ["--user-ids", str(tmp_path / "ids.txt")]
    (tmp_path / "ids.txt").write_text("bench-7\nbench-8\n\nbench-8\n")
    assert main(argv) == 1
    assert json.loads((tmp_path / "l.json").read_text())["runs"][0]["errors"]["INTERNAL"] > 0
    assert main([*argv, "--allow-errors"]) == 0
    (tmp_path / "ids.txt").write_text("bench-7\n")
    assert main([*argv, "--allow-errors"]) == 1  # not one answer: nothing was measured


@pytest.mark.usefixtures("one_process")
def test_the_users_of_a_dataset_are_asked_for(fake: FakeRecommender, address: str, tmp_path: Path) -> None:
    info = DatasetInfo(source="s", track_columns=(), user_columns=(), counts={}, split={}, timed=False)
    (tmp_path / "dataset.json").write_text(info.to_json())
    for name in ("tracks", "plays", "users"):
        pq.write_table(pa.table({"user_id": ["ana", "bo"]}), tmp_path / f"{name}.parquet")
    argv = short(tmp_path / "l.json", "--address", address, "--concurrency", "1", "--rates", "")
    assert main([*argv, "--dataset", str(tmp_path)]) == 0
    assert {request.user_id for request in asked_of(fake)} == {"ana", "bo"}


@pytest.mark.usefixtures("one_process")
def test_a_server_of_its_own_is_started_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = tmp_path / "stopped"
    program = f"""
import pathlib, signal, threading
from tests.fake_recommender import FakeRecommender, serving
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
with serving(FakeRecommender()) as address:
    print("starting", flush=True)
    print(f"serving bundle b-1 on {{address}} with 1 worker", flush=True)
    done.wait()
pathlib.Path({str(stopped)!r}).touch()
"""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setattr(servers, "serve_command", lambda store, *_, **__: [sys.executable, "-c", program])
    argv = short(tmp_path / "l.json", "--store", "store", "--concurrency", "1", "--rates", "20")
    assert main(argv) == 0
    assert stopped.exists()
    assert "made-up ids" in capsys.readouterr().out


def test_a_server_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import sys; print('noise'); print('x\\nlhydra serve: store: found nothing', file=sys.stderr); sys.exit(1)"
    )
    monkeypatch.setattr(servers, "serve_command", lambda store, *_, **__: [sys.executable, "-c", program])
    assert main(short(tmp_path / "l.json", "--store", "nowhere")) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("latency: the server: found exit 1: lhydra serve: store: found nothing, expected a ready")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_gets_ready_is_ended() -> None:
    program = "import time; time.sleep(600)"
    with (
        pytest.raises(NotReady, match=r"expected a ready line within 0\.3 s"),
        start_server([sys.executable, "-c", program], startup_s=0.3),
    ):
        pass


def test_the_serve_command_is_the_documented_one() -> None:
    plain = ["-m", "lhydra.cli", "serve", "s", "--port", "0", "--connection-age-s", "300"]
    assert serve_command(Path("s"))[1:] == plain
    asked = serve_command(Path("s"), 2, depth=300, users="lmdb:u", flags=["--max-in-flight", "8"])
    wanted = ["--workers", "2", "--depth", "300", "--users", "lmdb:u", "--max-in-flight", "8"]
    assert asked[1:] == [*plain, *wanted]


def test_no_server_and_no_ids_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeRecommender()) as address:
        pass  # nobody listens there now
    assert main(short(tmp_path / "l.json", "--address", address)) == 1
    assert capsys.readouterr().err.startswith(f"latency: no server answers at {address}")
    for name, content in {"empty": b"", "binary": b"\xff\xfe\x00"}.items():
        (tmp_path / name).write_bytes(content)
        argv = short(tmp_path / "l.json", "--address", address, "--user-ids", str(tmp_path / name))
        assert main(argv) == 1
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(DataError, match="no-such-file"):
        traffic.user_ids(None, tmp_path / "no-such-file")


@pytest.mark.parametrize("flag", ["--seconds=0", "--rates=-1", "--concurrency=1,x", "--channels=0", "--rates=inf"])
def test_impossible_settings_are_wrong_usage(flag: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--address", "127.0.0.1:1", flag])
    assert caught.value.code == 2


def test_the_documented_command_runs() -> None:
    argv = [sys.executable, "-m", "benchmarks.latency", "--help"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--allow-errors" in done.stdout
