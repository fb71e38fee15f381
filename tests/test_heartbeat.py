"""Signs of life: a worker that is stopped, stuck or hung is replaced, and a machine that was suspended loses nobody."""

import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from lhydra_server.config import WorkerReport
from lhydra_server.heartbeat import WORK_STEP, Heart, Limits, Pulse
from tests.fake_serve import write_bundle
from tests.harness import free_port, gone, until
from tests.test_server_metrics import Scraped, value
from tests.test_supervisor import B1, B2, HUNG, Load, Server, fake, open_stub, publish, refused, running, whole

LIMITS = Limits()


# -- the law, on numbers ----------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.integers(0, 3 * WORK_STEP), st.sampled_from((0.0, 0.1, 60.0))), max_size=12
    ),
    st.booleans(),
)
def test_a_worker_is_lost_when_its_last_sign_of_life_says_so(
    beats: list[tuple[float, int, float]], ready: bool
) -> None:
    """Against the rule said in other words: the times of all beats, and of those that brought work."""
    pulse, now_s, work, heard, worked = Pulse("worker 1", 0.0), 0.0, 0, [], [(0.0, 0)]
    for after_s, more, stuck_s in beats:
        now_s, work = now_s + after_s, work + more
        pulse.heard(WorkerReport(work=work, stuck_s=stuck_s), now_s)
        heard.append((now_s, stuck_s))
        if work - worked[-1][1] >= WORK_STEP:
            worked.append((now_s, work))
    last_s = now_s
    for now_s in (last_s, last_s + 2, last_s + 5, last_s + 11, last_s + 70):
        silent_s = (LIMITS.silent_s if ready else LIMITS.silent_opening_s) if heard else LIMITS.start_s
        silent = now_s - (heard[-1][0] if heard else 0.0) > silent_s
        well = [i for i, (_, stuck_s) in enumerate(heard) if not stuck_s]
        overdue = heard[well[-1] + 1 if well else 0 :]
        stuck = bool(overdue) and overdue[-1][0] - overdue[0][0] > LIMITS.stuck_s
        idle = now_s - worked[-1][0] > LIMITS.idle_s
        reason, error = pulse.failure(now_s, LIMITS, opening=not ready, worked_s=pulse.worked_s)
        assert reason == ("frozen" if silent else "stuck" if ready and stuck else "hung" if not ready and idle else "")
        assert bool(error) == bool(reason)


def test_who_waits_for_another_worker_is_not_idle() -> None:
    pulse = Pulse("worker 1", 0.0)
    now_s = LIMITS.idle_s + 1
    assert pulse.failure(now_s, LIMITS, opening=True, worked_s=now_s - 1)[0] == "frozen"  # it never beat
    pulse.heard(WorkerReport(), now_s)
    assert pulse.failure(now_s, LIMITS, opening=True, worked_s=0.0)[0] == "hung"
    assert pulse.failure(now_s, LIMITS, opening=True, worked_s=now_s - 1)[0] == ""


def reports(descriptor: int) -> Iterator[WorkerReport]:
    with os.fdopen(descriptor, "rb") as pipe:
        for line in pipe:
            yield WorkerReport.from_json(line)


def test_a_heart_says_what_is_new_at_once_and_all_of_it_with_every_beat() -> None:
    read, write = os.pipe()
    heart = Heart(write)
    heart.stuck_s = lambda: 1.5
    heart.report(ready=True, model_id="m")
    beats = (report for report in reports(read) if report.stuck_s)
    report = next(beats)
    assert report.ready
    assert report.model_id == "m"
    busy = threading.Event()
    threading.Thread(target=lambda: [None for _ in iter(busy.is_set, True)], daemon=True).start()
    until(lambda: next(beats).work > report.work + WORK_STEP)
    busy.set()


def test_a_pipe_that_is_full_or_gone_stops_no_worker() -> None:
    read, write = os.pipe()
    heart = Heart(write)
    for _ in range(2_000):
        assert heart.report(model_id="m" * 100)
    os.close(read)
    assert not heart.report(ready=True)


# -- real processes ---------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    write_bundle(store, B1, n=100)
    write_bundle(store, B2, n=77)
    publish(store, B1)
    return store


def errors(server: Server) -> list[str]:
    return [line["message"] for line in server.lines() if line["level"] == "error"]


def test_a_frozen_worker_is_replaced_and_counted(store: Path) -> None:
    port = free_port()
    with running(fake(store, metrics_port=port), store.parent / "log") as server:
        stays, freezes = server.workers()
        os.kill(freezes, signal.SIGSTOP)
        until(lambda: gone(freezes))
        until(lambda: server.status().workers == 2)
        assert stays in server.workers()
        found = Scraped(server, port)()
        assert value(found, "lhydra_worker_failures_total", reason="frozen") == 1
        assert value(found, "lhydra_worker_failures_total", reason="ended") == 0
        assert server.all_errors() == [
            f"worker died: worker {freezes}: found no sign of life for 3 s, expected one every 0.5 s"
        ]


def test_a_stop_does_not_wait_for_a_frozen_worker(store: Path) -> None:
    with running(fake(store, connection_age_s=300), store.parent / "log") as server:  # it would for 5 minutes
        workers = server.workers()
        os.kill(workers[0], signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
        assert all(gone(pid) for pid in workers)


def test_a_machine_that_was_suspended_loses_no_worker(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMITS", json.dumps({"silent_s": 1.0}))
    with running(fake(store), store.parent / "log") as server:
        workers = server.workers()
        everybody = [server.process.pid, *workers]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)  # longer than a worker may be silent
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        publish(store, B2)
        until(lambda: all(gone(pid) for pid in workers))  # they left in peace
        assert server.status().bundle_id == B2
        assert server.all_errors() == []


def test_a_frozen_worker_does_not_outlive_its_supervisor(store: Path) -> None:
    with running(fake(store), store.parent / "log") as server:
        workers = server.workers()
        os.kill(workers[0], signal.SIGSTOP)
        server.process.kill()
        until(lambda: all(gone(pid) for pid in workers))


def test_a_worker_that_does_nothing_while_it_opens_is_given_up(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(store, HUNG, hangs=True)
    publish(store, HUNG)
    monkeypatch.setenv("LIMITS", json.dumps({"idle_s": 1.0}))
    assert refused(fake(store)).endswith(": found nothing done for 1 s, expected the bundle being opened")


def test_a_supervisor_out_of_descriptors_starts_workers_when_there_are_some(store: Path) -> None:
    port = free_port()
    with running(fake(store, metrics_port=port), store.parent / "log") as server:
        stays, dies = server.workers()
        pid, (_, most) = server.process.pid, resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, most))
        os.kill(dies, signal.SIGKILL)
        tried = until(lambda: [error for error in errors(server) if error.startswith("a new worker: ")])
        assert (
            tried[0] == "a new worker: found [Errno 24] Too many open files, expected one more process: see `ulimit -a`"
        )
        until(lambda: sum(error.startswith("a new worker: ") for error in errors(server)) > 2)
        assert gone(dies)
        assert not gone(stays)
        with open_stub(server.address) as stub:
            assert stub.Recommend(pb.RecommendRequest(user_id="ann", k=3)).tracks
        assert len(os.listdir(f"/proc/{pid}/fd")) <= used  # a try that failed leaves nothing
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        until(lambda: server.status().workers == 2)
        found = Scraped(server, port)()
        assert value(found, "lhydra_worker_failures_total", reason="not_started") > 2


def test_a_swap_without_descriptors_is_tried_again(store: Path) -> None:
    with running(fake(store), store.parent / "log") as server:
        server.workers()
        pid, (_, most) = server.process.pid, resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 4, most))
        publish(store, B2)
        until(lambda: any(error.startswith("swap failed: a new worker: ") for error in errors(server)))
        assert server.status().bundle_id == B1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        until(lambda: server.status().bundle_id == B2)


def test_workers_that_freeze_at_once_are_both_replaced(store: Path) -> None:
    with running(fake(store), store.parent / "log") as server:
        workers = server.workers()
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: all(gone(pid) for pid in workers))
        until(lambda: server.status().workers == 2)
        until(lambda: len(errors(server)) == 2)


def place_of(server: Server) -> tuple[str, int]:
    host, _, port = server.address.rpartition(":")
    return host, int(port)


def test_a_worker_that_freezes_while_it_leaves_is_killed(store: Path) -> None:
    with running(fake(store, connection_age_s=300), store.parent / "log") as server:  # it would stay for 5 minutes
        workers = server.workers()
        with socket.create_connection(place_of(server)):
            publish(store, B2)
            stays = until(lambda: len(left := [pid for pid in workers if not gone(pid)]) == 1 and left[0])
            os.kill(stays, signal.SIGSTOP)
            until(lambda: gone(stays))
        assert server.status().bundle_id == B2


def test_workers_that_freeze_as_they_come_leave_the_old_ones_serving(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMITS", json.dumps({"start_s": 4.0, "silent_opening_s": 4.0}))  # both: see which is met
    with running(fake(store), store.parent / "log") as server:
        workers = server.workers()
        publish(store, B2)
        coming = until(lambda: len(pids := {*server.children()} - {*workers}) == 2 and pids)
        commands = [Path(f"/proc/{pid}/cmdline") for pid in (server.process.pid, *coming)]
        # Whoever starts a process waits until it has a command of its own.
        until(lambda: commands[0].read_bytes() not in [path.read_bytes() for path in commands[1:]])
        for pid in coming:  # in their imports
            os.kill(pid, signal.SIGSTOP)
        with Load(server.address, whole, n_threads=1) as load:
            until(lambda: all(gone(pid) for pid in coming))
            until(lambda: server.status().bundle_id == B2)  # it is tried again
        assert load.failures == []
        failed, *_ = (line for line in server.whole_log() if line["level"] == "error")
        assert failed["message"].startswith("swap failed: worker ")
        assert "no sign of life for 4 s" in failed["message"]


def test_a_worker_that_keeps_pythons_lock_does_not_outlive_its_supervisor(store: Path) -> None:
    write_bundle(store, HUNG, locks=True)
    with running(fake(store), store.parent / "log") as server:
        workers = server.workers()
        publish(store, HUNG)
        locked = until(lambda: len(found := [*(store / HUNG).glob("locked-*")]) == 2 and found)
        pids = [*workers, *(int(path.name.partition("-")[2]) for path in locked)]
        server.process.kill()
        try:
            until(lambda: all(gone(pid) for pid in pids))
        finally:
            for pid in pids:
                if not gone(pid):
                    os.kill(pid, signal.SIGKILL)


def test_a_worker_whose_calls_hang_says_so_and_is_replaced(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALL_LIMIT_S", "0.5")
    port, stuck = free_port(), store / B1 / "stuck"
    with running(fake(store, metrics_port=port), store.parent / "log") as server:
        workers = server.workers()
        stuck.touch()
        with grpc.insecure_channel(server.address) as channel:
            hangs = RecommenderStub(channel).Recommend.future(pb.RecommendRequest(user_id="ann", k=3), timeout=60)
            check = health_pb2_grpc.HealthStub(channel).Check
            not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
            until(lambda: check(health_pb2.HealthCheckRequest(), timeout=30).status == not_serving)
            until(lambda: sum(gone(pid) for pid in workers) == 1)
            stuck.unlink()
            assert hangs.code() == grpc.StatusCode.UNAVAILABLE
        until(lambda: server.status().workers == 2)
        assert value(Scraped(server, port)(), "lhydra_worker_failures_total", reason="stuck") == 1
        (error,) = server.all_errors()
        assert error.endswith(": found calls that do not end, expected every call answered within seconds")


def cpu_s(pid: int) -> float:
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def test_full_ports_neither_end_nor_busy_a_server_with_few_descriptors(store: Path) -> None:
    port, (soft, hard) = free_port(), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
    try:
        with running(fake(store, metrics_port=port), store.parent / "log") as server, ExitStack() as stack:
            for pid in (server.process.pid, *server.workers()):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (256, 256))
            address, here = place_of(server), ("127.0.0.1", port)
            for place, sent, n in ((address, b"", 700), (here, b"GET /met", 300)):
                for _ in range(n):
                    stack.enter_context(socket.create_connection(place, timeout=60)).sendall(sent)
            pids = [server.process.pid, *server.workers()]
            before = [cpu_s(pid) for pid in pids]
            time.sleep(1)  # to see who is busy
            assert all(cpu_s(pid) - used < 0.5 for pid, used in zip(pids, before, strict=True))
            os.kill(pids[1], signal.SIGKILL)
            until(lambda: len(server.children()) == 2 and gone(pids[1]))
            stack.close()
            until(lambda: server.status().workers == 2)
            assert Scraped(server, port)()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
