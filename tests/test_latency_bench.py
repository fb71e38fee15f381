"""The latency benchmark measures what it says: latencies from the due time, percentiles, errors, the JSON it writes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import latency
from benchmarks.load import Call, Load, arrival_times, closed_loop, open_channels, open_loop
from benchmarks.own_server import serve_command, started
from benchmarks.summary import PERCENTILES, percentiles, report, summarise
from lhydra.data.dataset import DatasetInfo
from lhydra.errors import DataError, NotReady
from lhydra_protos.v1 import recommender_pb2 as pb
from tests.fake_recommender import STAGES, FakeRecommender, reply, serving

ROOT = Path(__file__).resolve().parents[1]
STALL_S = 0.4


def requests(*users: str) -> list[bytes]:
    return [pb.RecommendRequest(user_id=user, k=3).SerializeToString() for user in users]


def stalling(request: pb.RecommendRequest, context: grpc.ServicerContext) -> None:
    if request.user_id == "slow":
        time.sleep(STALL_S)


@pytest.fixture
def fake() -> FakeRecommender:
    return FakeRecommender()


@pytest.fixture
def address(fake: FakeRecommender) -> Iterator[str]:
    with serving(fake) as address:
        yield address


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


@pytest.mark.parametrize("senders", [64, 1])
def test_a_stall_is_felt_by_every_request_that_was_due_meanwhile(senders: int) -> None:
    """One server thread, stalled by the first request: nothing else can be answered before the stall ends.

    With one sender the requests are not even sent before: their latency counts from the due time all the same.
    """
    due_s = np.concatenate([[0.0], 0.1 + np.arange(20) / 100])  # all due before the stall ends
    with serving(FakeRecommender(stalling), workers=1) as address, open_channels(address, 2) as channels:
        asked = requests("slow", *(f"u{i}" for i in range(20)))
        load = open_loop(channels, asked, rate=100, due_s=due_s, timeout_s=60, senders=senders)
    assert [call.code for call in load.calls] == ["OK"] * 21
    assert [call.due_s for call in load.calls] == due_s.tolist()
    stall_ends_s = load.calls[0].sent_s + STALL_S
    assert (load.latency_ms >= (stall_ends_s - due_s) * 1e3).all()
    assert all(call.due_s <= call.sent_s < call.done_s for call in load.calls)
    if senders == 1:
        assert (load.late_ms[1:] >= (stall_ends_s - due_s[1:]) * 1e3).all()
        assert summarise(load)["generator"]["late_share"] >= 20 / 21


def test_the_open_loop_sends_every_request_once_over_all_connections(fake: FakeRecommender, address: str) -> None:
    peers = []
    fake.before = lambda request, context: peers.append(context.peer())
    users = [f"u{i}" for i in range(40)]
    with open_channels(address, 4) as channels:
        load = open_loop(channels, requests(*users), rate=400, due_s=np.arange(40) / 400, timeout_s=60)
    assert sorted(request.user_id for request in fake.seen) == sorted(users)
    assert all(request.k == 3 for request in fake.seen)
    assert len(set(peers)) == 4
    assert {call.reply for call in load.calls} == {reply().SerializeToString()}


def test_the_closed_loop_has_at_most_its_concurrency_in_flight(fake: FakeRecommender, address: str) -> None:
    with open_channels(address, 2) as channels:
        load = closed_loop(channels, requests("a", "b", "c"), concurrency=3, seconds=0.3, timeout_s=60)
    assert len(load.calls) == len(fake.seen) >= 3
    changes = sorted([(call.sent_s, 1) for call in load.calls] + [(call.done_s, -1) for call in load.calls])
    assert np.cumsum([change for _, change in changes]).max() <= 3
    assert all(call.due_s == call.sent_s for call in load.calls)
    assert max(call.sent_s for call in load.calls) < 0.3 <= load.wall_s


def test_errors_are_counted_by_code_and_kept_out_of_the_latencies(fake: FakeRecommender, address: str) -> None:
    def before(request: Any, context: grpc.ServicerContext) -> None:
        if request.user_id.startswith("bad"):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        if request.user_id == "down":
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    fake.before = before
    users = ["good", "bad1", "bad2", "down", "good"] * 4
    with open_channels(address, 2) as channels:
        load = open_loop(channels, requests(*users), rate=200, due_s=np.arange(20) / 200, timeout_s=60)
    numbers = summarise(load)
    assert numbers["errors"] == {"RESOURCE_EXHAUSTED": 8, "UNAVAILABLE": 4}
    assert (numbers["requests"], numbers["answered"], len(load.latency_ms)) == (20, 8, 8)
    assert len(fake.seen) == 20  # the benchmark retries nothing
    assert "ERRORS, not in the latencies above: 8 RESOURCE_EXHAUSTED, 4 UNAVAILABLE" in report([numbers])


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
    assert "ALL ANSWERS" not in report([numbers, numbers | {"tiers": {"personal": 1}}])


# ---- the program


def short(path: Path, *argv: str) -> list[str]:
    return [*argv, "--seconds", "0.2", "--warmup-s", "0.1", "--channels", "2", "--json", str(path)]


def test_the_program_writes_the_whole_story(
    fake: FakeRecommender, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "recs.csv"
    lists.write_text('user_id,rank,track_id,score\n"u,1",1,t1,.9\n"u,1",2,t2,.8\nu2,1,t1,.7\n')
    path = tmp_path / "deep" / "latency.json"
    argv = short(path, "--address", address, "--concurrency", "1,2", "--rates", "50", "--seed", "4", "--k", "7")
    assert latency.main([*argv, "--user-ids", str(lists), "--arrivals", "fixed"]) == 0
    assert {(request.user_id, request.k) for request in fake.seen[1:]} == {("u,1", 7), ("u2", 7)}
    document = json.loads(path.read_text())
    assert sorted(document) == [
        "bundle_id", "command", "format", "machine", "measured", "runs", "server", "settings", "users", "versions",
    ]  # fmt: skip
    assert document["bundle_id"] == document["server"]["bundle_id"] == "b-1"
    assert (document["settings"]["seed"], document["users"]["count"]) == (4, 2)
    assert set(document["versions"]) >= {"python", "grpcio", "numpy", "faiss-cpu", "onnxruntime", "lhydra"}
    assert document["machine"]["cores"] >= 1
    assert document["machine"]["memory_gib"] > 0
    assert [run["name"] for run in document["runs"]] == ["closed, 1", "closed, 2", "open, 50/s"]
    assert document["runs"][2]["requests"] == 10
    for run in document["runs"]:
        assert run["answered"] == run["requests"] > 0
        assert list(run["latency_ms"]) == ["p50", "p90", "p99", "p99_9", "mean", "max"]
        assert set(run["stages_us"]) == {*STAGES, "outside"}
    out = capsys.readouterr().out
    assert "p99.9" in out
    assert "rerank" in out
    assert f"written: {path}" in out
    assert list(path.parent.iterdir()) == [path]


def test_any_error_fails_the_program_unless_allowed(fake: FakeRecommender, address: str, tmp_path: Path) -> None:
    def before(request: Any, context: grpc.ServicerContext) -> None:
        if getattr(request, "user_id", "") == "bench-7":
            context.abort(grpc.StatusCode.INTERNAL, "broken")

    fake.before = before
    argv = short(tmp_path / "l.json", "--address", address, "--concurrency", "4", "--rates", "")
    argv += ["--user-ids", str(tmp_path / "ids.txt")]
    (tmp_path / "ids.txt").write_text("bench-7\nbench-8\n\nbench-8\n")
    assert latency.main(argv) == 1
    assert json.loads((tmp_path / "l.json").read_text())["runs"][0]["errors"]["INTERNAL"] > 0
    assert latency.main([*argv, "--allow-errors"]) == 0
    (tmp_path / "ids.txt").write_text("bench-7\n")
    assert latency.main([*argv, "--allow-errors"]) == 1  # not one answer: nothing was measured


def test_the_users_of_a_dataset_are_asked_for(fake: FakeRecommender, address: str, tmp_path: Path) -> None:
    info = DatasetInfo(source="s", track_columns=(), user_columns=(), counts={}, split={}, timed=False)
    (tmp_path / "dataset.json").write_text(info.to_json())
    for name in ("tracks", "plays", "users"):
        pq.write_table(pa.table({"user_id": ["ana", "bo"]}), tmp_path / f"{name}.parquet")
    argv = short(tmp_path / "l.json", "--address", address, "--concurrency", "1", "--rates", "")
    assert latency.main([*argv, "--dataset", str(tmp_path)]) == 0
    assert {request.user_id for request in fake.seen[1:]} == {"ana", "bo"}


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
    print(f"serving bundle b-1 on {{address}} with 1 workers", flush=True)
    done.wait()
pathlib.Path({str(stopped)!r}).touch()
"""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setattr(latency, "serve_command", lambda store, workers: [sys.executable, "-c", program])
    argv = short(tmp_path / "l.json", "--store", "store", "--concurrency", "1", "--rates", "20")
    assert latency.main(argv) == 0
    assert stopped.exists()
    assert "made-up ids" in capsys.readouterr().out


def test_a_server_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import sys; print('noise'); print('x\\nlhydra serve: store: found nothing', file=sys.stderr); sys.exit(1)"
    )
    monkeypatch.setattr(latency, "serve_command", lambda store, workers: [sys.executable, "-c", program])
    assert latency.main(short(tmp_path / "l.json", "--store", "nowhere")) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("latency: the server: found exit 1: lhydra serve: store: found nothing, expected a ready")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_gets_ready_is_ended() -> None:
    program = "import time; time.sleep(600)"
    with (
        pytest.raises(NotReady, match=r"expected a ready line within 0\.3 s"),
        started([sys.executable, "-c", program], startup_s=0.3),
    ):
        pass


def test_the_serve_command_is_the_documented_one() -> None:
    assert serve_command(Path("s"), 2)[1:] == ["-m", "lhydra.cli", "serve", "s", "--port", "0", "--workers", "2"]
    assert serve_command(Path("s"), None)[1:] == ["-m", "lhydra.cli", "serve", "s", "--port", "0"]


def test_no_server_and_no_ids_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeRecommender()) as address:
        pass  # nobody listens there now
    assert latency.main(short(tmp_path / "l.json", "--address", address)) == 1
    assert capsys.readouterr().err.startswith(f"latency: no server answers at {address}")
    for name, content in {"empty": b"", "binary": b"\xff\xfe\x00"}.items():
        (tmp_path / name).write_bytes(content)
        argv = short(tmp_path / "l.json", "--address", address, "--user-ids", str(tmp_path / name))
        assert latency.main(argv) == 1
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(DataError, match="no-such-file"):
        latency._read_ids(tmp_path / "no-such-file")


@pytest.mark.parametrize("flag", ["--seconds=0", "--rates=-1", "--concurrency=1,x", "--channels=0", "--rates=inf"])
def test_impossible_settings_are_wrong_usage(flag: str) -> None:
    with pytest.raises(SystemExit) as caught:
        latency.main(["--address", "127.0.0.1:1", flag])
    assert caught.value.code == 2


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "latency.py"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    argv = [sys.executable, str(script), "--help"]
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert "--allow-errors" in done.stdout
