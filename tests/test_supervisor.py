"""`lhydra serve` as processes: on fake bundles (what the supervisor does), then on real ones (the whole road)."""

import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import current_bundle_id
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import Query, UserState
from lhydra.errors import ConfigError, LhydraError, PortInUse, UserStoreError
from lhydra.recommender import Recommender
from lhydra_client.client import CHANNEL_OPTIONS
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from lhydra_server import fleet, supervisor
from lhydra_server.address import Reservation, joined
from lhydra_server.config import GRACE_S, MAX_ERROR_CHARS, NOTICE_S, ServeSettings, WorkerReport, longest_stop_s
from lhydra_server.descriptors import check_free_descriptors, use_all_descriptors
from lhydra_server.fleet import Backoff
from lhydra_server.heartbeat import Limits
from lhydra_server.processes import WorkerProcess
from tests.fake_core import expected_ids
from tests.fake_serve import write_bundle
from tests.harness import deep, free_port, gone, log_lines, until

ROOT = Path(__file__).resolve().parents[1]
B1, B2, BAD, HALF, HUNG = (f"20260101T00000{i}-0123abcd" for i in range(5))
TRACKS_OF = {B1: 100, B2: 77}


class Server:
    """A running `lhydra serve`."""

    def __init__(self, argv: Sequence[str | Path], log: Path) -> None:
        self.log = log
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, argv)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                start_new_session=True,  # its own group, so that a test can press Ctrl-C
            )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline().strip()
        self.address = self.first_line.partition(" on ")[2].partition(" ")[0]

    def children(self) -> list[int]:
        pid = self.process.pid
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(pid) for pid in pids if not gone(int(pid))]

    def workers(self) -> list[int]:
        """The two workers, once nothing else is left: a bundle that was refused leaves its own in a moment."""
        pids: list[int] = until(lambda: len(found := self.children()) == 2 and found)
        return pids

    def status(self) -> pb.GetStatusResponse:
        """What one of the workers says; a new channel each time, so that every worker gets asked."""
        with open_stub(self.address) as stub:
            reply: pb.GetStatusResponse = stub.GetStatus(pb.GetStatusRequest(), timeout=60, wait_for_ready=True)
        return reply

    def lines(self) -> list[dict[str, Any]]:
        return log_lines(self.log)

    def whole_log(self) -> list[dict[str, Any]]:
        """Every line of its log: it is told to end first, as one that runs may have lines still to write."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        return self.lines()

    def all_errors(self) -> list[str]:
        """The errors in its whole log, in order."""
        return [line["message"] for line in self.whole_log() if line["level"] == "error"]

    def ended(self) -> int:
        """The exit code, once it has ended."""
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""
        return self.process.wait(60)


@contextmanager
def running(argv: Sequence[str | Path], log: Path) -> Iterator[Server]:
    server = Server(argv, log)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        assert server.process.stdout is not None
        server.process.stdout.close()


@contextmanager
def open_stub(address: str) -> Iterator[RecommenderStub]:
    with grpc.insecure_channel(address, CHANNEL_OPTIONS) as channel:
        yield RecommenderStub(channel)


def publish(store: Path, bundle_id: str) -> None:
    (store / "CURRENT.new").write_text(bundle_id + "\n")
    (store / "CURRENT.new").replace(store / "CURRENT")


class Load:
    """Calls without pause from several channels, each reopened now and then; keeps what went wrong."""

    def __init__(self, address: str, check: Callable[[pb.RecommendResponse], bool], n_threads: int = 3) -> None:
        self.address, self.check = address, check
        self.failures: list[str] = []
        self.answers: dict[str, int] = {}
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(n_threads)]

    def _run(self, number: int) -> None:
        while not self.stop.is_set():
            with open_stub(self.address) as stub:
                for i in range(50):
                    try:
                        reply = stub.Recommend(pb.RecommendRequest(user_id=f"u{number}", k=10), timeout=20)
                    except grpc.RpcError as error:
                        self.failures.append(f"call {i}: {error.code()} {error.details()}")
                    else:
                        if not self.check(reply):
                            self.failures.append(f"mixed answer: {reply}")
                        self.answers[reply.bundle_id] = self.answers.get(reply.bundle_id, 0) + 1
                    if self.stop.is_set():
                        return

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


# -- descriptors ------------------------------------------------------------------------------------------


def test_idle_connections_beyond_the_soft_limit_keep_nobody_waiting(tmp_path: Path) -> None:
    write_bundle(tmp_path, B1, n=100)
    publish(tmp_path, B1)
    lower = "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 1_000))"
    code = f"import os, resource, sys; {lower}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    argv: list[str | Path] = ["-c", code, ROOT / "tests/fake_serve.py", tmp_path, json.dumps({"port": 0, "workers": 1})]
    with running(argv, tmp_path / "log") as server, contextlib.ExitStack() as stack:
        host, _, port = server.address.rpartition(":")
        for _ in range(300):
            stack.enter_context(socket.create_connection((host, int(port))))
        with open_stub(server.address) as stub:
            assert stub.GetStatus(pb.GetStatusRequest(), timeout=5).bundle_id == B1


def test_too_few_descriptors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path, B1, n=100)
    publish(tmp_path, B1)
    lower = "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    code = f"import os, resource, sys; {lower}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    enough = "128 at least, better some thousands: raise `ulimit -Hn`"
    assert refused(["-c", code, *fake(tmp_path)]) == f"open files: found a hard limit of 64, expected {enough}"
    used = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 10, used + 10))
    with pytest.raises(ConfigError, match="in use before anybody connects, expected"):
        check_free_descriptors()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    check_free_descriptors()
    use_all_descriptors()


# -- the address ------------------------------------------------------------------------------------------


def test_a_reserved_port_is_shared_by_workers_and_refused_to_others() -> None:
    with Reservation("127.0.0.1", 0) as first:
        with pytest.raises(PortInUse, match=rf"address 127.0.0.1:{first.port}: found the port in use, expected a free"):
            Reservation("127.0.0.1", first.port)
        with socket.socket() as worker:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # as gRPC does
                worker.setsockopt(socket.SOL_SOCKET, option, 1)
            worker.bind(("127.0.0.1", first.port))
            worker.listen()
            with socket.create_connection(("127.0.0.1", first.port)):  # the reservation itself takes none
                worker.accept()[0].close()
            with pytest.raises(PortInUse):
                Reservation("127.0.0.1", first.port)
    with Reservation("127.0.0.1", first.port):  # though the connection lingers
        pass


def test_a_port_of_somebody_else_is_refused() -> None:
    for shared in (0, 1):
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
            other.bind(("127.0.0.1", 0))
            other.listen()
            with pytest.raises(PortInUse):
                Reservation("127.0.0.1", other.getsockname()[1])


@pytest.mark.parametrize("host", ["no.such.host.invalid", "", "a" * 300, "a..b", "127.0.0.1:50051"])
def test_what_is_no_address_of_this_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--host: found .*, expected an address of this machine") as caught:
        Reservation(host, 0)
    assert f"found {host[:9] or 'nothing'}" in str(caught.value)
    assert "Errno" not in str(caught.value)


def test_every_address_of_this_machine_can_be_reserved() -> None:
    for host, shown in {"localhost": "127.0.0.1", "0.0.0.0": "0.0.0.0", "::": "[::]"}.items():
        with Reservation(host, 0) as reservation:
            assert reservation.address in (f"{shown}:{reservation.port}", f"[::1]:{reservation.port}")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_ipv6_address_is_printed_as_clients_take_it(store: Path) -> None:
    port = free_port()
    with running(fake(store, host="[::1]", metrics_port=port), store.parent / "log") as server:
        assert server.address == joined("::1", server.address.rpartition(":")[2])
        assert server.status().bundle_id == B1
        assert server.process.stdout is not None
        url = server.process.stdout.readline().split()[-1]
        assert url == f"http://[::1]:{port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as reply:
            assert b"lhydra_workers" in reply.read()


# -- on fake bundles --------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    for bundle_id, n in TRACKS_OF.items():
        write_bundle(store, bundle_id, n=n)
    write_bundle(store, BAD, error="bad: index.faiss: found 3 bytes, expected 4")
    publish(store, B1)
    return store


def fake(store: Path, **settings: Any) -> list[str | Path]:
    return [
        ROOT / "tests" / "fake_serve.py",
        store,
        json.dumps({"port": 0, "workers": 2, "connection_age_s": 0.5} | settings),
    ]


@pytest.fixture
def server(store: Path) -> Iterator[Server]:
    with running(fake(store), store.parent / "log") as server:
        yield server


def whole(reply: pb.RecommendResponse) -> bool:
    """Whether the reply is the right one for the bundle it names."""
    return [track.track_id for track in reply.tracks] == expected_ids(TRACKS_OF[reply.bundle_id], 10)


def test_it_says_when_it_is_ready_and_drains_on_sigterm(server: Server, store: Path) -> None:
    assert server.first_line == f"serving bundle {B1} on {server.address} with 2 workers"
    assert len(server.workers()) == 2
    with open_stub(server.address) as stub:
        assert whole(stub.Recommend(pb.RecommendRequest(user_id="ann", k=10)))
    status = until(lambda: (status := server.status()).workers and status)
    assert (status.bundle_id, status.current_bundle_id, status.workers, status.swap_error) == (B1, B1, 2, "")
    with grpc.insecure_channel(server.address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    workers = server.workers()
    server.process.send_signal(signal.SIGTERM)
    assert server.ended() == 0
    assert all(gone(pid) for pid in workers)
    messages = [line["message"] for line in server.lines()]  # every line of the log is JSON
    assert {"serving", "Recommend OK", "draining"} <= set(messages)


def test_ctrl_c_drains_too(server: Server) -> None:
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.ended() == 0
    assert not [line for line in server.lines() if line["level"] == "error"]


IGNORING_HANGUPS = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_other_signals_that_end_a_server_drain_it_and_say_so(server: Server, number: signal.Signals) -> None:
    os.killpg(server.process.pid, number)  # as a terminal does that is closed
    assert server.ended() == 0
    assert [line["signal"] for line in server.lines() if line["message"] == "draining"] == [number.name]
    assert not [line for line in server.lines() if line["level"] == "error"]


def test_a_worker_leaves_every_signal_but_sigterm_to_its_supervisor(server: Server) -> None:
    workers = server.workers()
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT):
        for pid in workers:
            os.kill(pid, number)
    os.kill(workers[0], signal.SIGKILL)  # its end is seen after whatever the other signals did
    until(lambda: len(now := server.children()) == 2 and workers[0] not in now)
    assert workers[1] in server.children()
    assert server.all_errors() == [f"worker died: worker {workers[0]} ended with signal 9"]


def test_a_hangup_under_nohup_ends_nothing(store: Path) -> None:
    ignored = [
        "-c",
        IGNORING_HANGUPS,
    ]
    with running([*ignored, *fake(store)], store.parent / "log") as server:
        for number in (signal.SIGHUP, signal.SIGHUP):
            server.process.send_signal(number)
        assert server.status().bundle_id == B1
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
        assert [line["signal"] for line in server.lines() if line["message"] == "draining"] == ["SIGTERM"]


def test_sigterm_is_heard_by_whichever_thread_the_kernel_hands_it_to(store: Path) -> None:
    port = free_port()
    with running(fake(store, metrics_port=port), store.parent / "log") as server:
        worker = server.workers()[0]
        os.kill(sorted(map(int, os.listdir(f"/proc/{worker}/task")))[-1], signal.SIGTERM)
        until(lambda: gone(worker))
        died = until(lambda: [line["message"] for line in server.lines() if line["level"] == "error"])
        assert died == [f"worker died: worker {worker} ended with exit code 0"]  # it drained
        workers = server.workers()
        os.kill(sorted(map(int, os.listdir(f"/proc/{server.process.pid}/task")))[-1], signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert all(gone(pid) for pid in workers)


def wait_for_swap(load: Load, old: list[int], bundle_id: str) -> None:
    """Returns when the old workers are gone and the load has had answers from the new ones."""
    until(lambda: all(gone(pid) for pid in old))
    before = load.answers.get(bundle_id, 0)
    until(lambda: load.answers.get(bundle_id, 0) > before + 20)


def test_a_swap_fails_no_call_and_mixes_no_answer(server: Server, store: Path) -> None:
    with Load(server.address, whole) as load:
        for bundle_id in (B2, B1, B2) if deep() else (B2, B1):
            old = server.workers()
            publish(store, bundle_id)
            wait_for_swap(load, old, bundle_id)
            assert server.status().bundle_id == bundle_id
    assert load.failures == []
    assert set(load.answers) == {B1, B2}
    assert len(server.workers()) == 2


def test_a_bundle_that_was_asked_for_is_served_whatever_is_current(store: Path) -> None:
    with running(fake(store, bundle=B2), store.parent / "log") as server:
        assert (server.status().bundle_id, server.status().current_bundle_id) == (B2, B1)
        publish(store, BAD)
        until(lambda: server.status().current_bundle_id == BAD)
        assert (server.status().bundle_id, server.status().swap_error) == (B2, "")
    for wrong in ("previous", "20260101T000009-0123abcd", "../store"):  # none of these has a manifest
        assert refused(fake(store, bundle=wrong)).count("\n") <= 1


def test_a_bundle_that_cannot_open_leaves_the_old_one_serving(server: Server, store: Path) -> None:
    workers = server.workers()
    with Load(server.address, whole) as load:
        publish(store, BAD)
        status = until(lambda: (status := server.status()).swap_error and status)
        assert status.swap_error == "bad: index.faiss: found 3 bytes, expected 4"
        assert (status.bundle_id, status.current_bundle_id) == (B1, BAD)
        publish(store, B1)
        until(lambda: not server.status().swap_error)
        assert set(workers) <= set(server.children())
        publish(store, BAD)
        until(lambda: server.status().swap_error)
        publish(store, B2)
        until(lambda: load.answers.get(B2))
        until(lambda: not server.status().swap_error)
    assert load.failures == []
    assert {*server.all_errors()} == {"swap failed: bad: index.faiss: found 3 bytes, expected 4"}


def test_a_bundle_that_only_some_workers_can_open_is_not_moved_to(server: Server, store: Path) -> None:
    workers = server.workers()
    write_bundle(store, HALF, n=50, error="half: out of memory")
    publish(store, HALF)
    until(lambda: server.status().bundle_id == HALF)  # one of its workers answers already
    (store / HALF / "go").touch()
    until(lambda: server.status().swap_error == "half: out of memory")
    assert set(workers) <= set(server.children())
    assert [line["bundle"] for line in server.whole_log() if line["message"] == "serving"] == [B1]


NO_REPORT = r"worker \d+: found no report after 0 s, expected the bundle open by then"


def test_a_bundle_that_never_opens_is_given_up_and_tried_again(store: Path) -> None:
    write_bundle(store, HUNG, hangs=True)
    port = free_port()
    with running(fake(store, metrics_port=port), store.parent / "log") as server:
        workers = server.workers()
        server.process.send_signal(signal.SIGUSR1)
        publish(store, HUNG)
        with Load(server.address, whole) as load:
            status = until(lambda: (status := server.status()).swap_error and status)
            assert re.fullmatch(NO_REPORT, status.swap_error)
            assert (status.bundle_id, status.current_bundle_id) == (B1, HUNG)
            begun = "swap begins"
            until(lambda: sum(line["message"] == begun for line in server.lines()) > 1)  # and again, later
            until(lambda: server.children() == workers)  # those that hang are gone, though they are deaf to SIGTERM
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
                assert re.search(r"lhydra_swap_failures_total [1-9]", reply.read().decode())
            server.process.send_signal(signal.SIGUSR2)
            publish(store, B2)
            until(lambda: load.answers.get(B2))
            until(lambda: not server.status().swap_error)
    assert load.failures == []
    errors = {line["message"] for line in server.lines() if line["level"] == "error"}
    assert errors
    assert all(re.fullmatch(f"swap failed: {NO_REPORT}", message) for message in errors)


def test_a_replacement_that_never_opens_is_replaced_in_its_turn(server: Server) -> None:
    stays, dies = server.workers()
    server.process.send_signal(signal.SIGUSR1)
    os.kill(dies, signal.SIGKILL)
    died = until(lambda: [line for line in server.lines() if "no report" in line["message"]])
    assert re.fullmatch(f"worker died: {NO_REPORT}", died[0]["message"])
    server.process.send_signal(signal.SIGUSR2)
    until(lambda: server.status().workers == 2)
    assert stays in server.workers()


def test_a_first_bundle_that_never_opens_is_one_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(store, HUNG, hangs=True)
    publish(store, HUNG)
    monkeypatch.setenv("LIMITS", '{"open_s": 0}')
    assert re.fullmatch(NO_REPORT, refused(fake(store)))


def test_an_error_of_any_length_reaches_the_status_short_and_ends_nothing(server: Server, store: Path) -> None:
    write_bundle(store, HUNG, error="index.faiss: " + "x" * 200_000)  # more than a pipe holds
    publish(store, HUNG)
    status = until(lambda: (status := server.status()).swap_error and status)
    assert status.swap_error == ("index.faiss: " + "x" * 200_000)[:MAX_ERROR_CHARS]
    publish(store, B2)
    until(lambda: server.status().bundle_id == B2)


class Unkillable:
    """A worker that hangs in the kernel, as one does that waits for a lost disk."""

    pid, report, opening = 1, -1, False
    asked_s: ClassVar[list[float]] = []

    def look(self, now_s: float) -> None: ...

    def judge(self, now_s: float, limits: Limits, worked_s: float) -> None: ...

    def finished(self, most_s: float) -> bool:
        self.asked_s.append(most_s)
        return False


def test_a_worker_that_no_signal_ends_does_not_keep_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lhydra_server.supervisor.KILL_TIMEOUT_S", 0.0)
    monkeypatch.setattr("lhydra_server.supervisor.longest_stop_s", lambda age_s: 0.01)
    stopped = supervisor.Supervisor(tmp_path, ServeSettings())
    stopped._leaving = [cast(WorkerProcess, Unkillable())]
    stopped._stop()  # returns
    assert Unkillable.asked_s[0] == 0.01


WAITING_WORKER = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); pathlib.Path(sys.argv[2]).write_text(input())"


def test_workers_load_while_the_user_store_is_looked_for_and_none_is_left_where_that_fails(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, told = tmp_path / "loads", tmp_path / "told"

    def claim(*args: object) -> Callable[[], tuple[str, str]]:
        def found() -> tuple[str, str]:
            until(loads.exists)
            raise UserStoreError("no user store")

        return found

    monkeypatch.setattr(supervisor, "claim", claim)
    command = (sys.executable, "-c", WAITING_WORKER, str(loads), str(told))
    server = supervisor.Supervisor(store, ServeSettings(port=0, workers=2), command=command)
    numbers = (*supervisor.ENDING, *supervisor.UNUSED, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    try:
        with pytest.raises(UserStoreError, match="no user store"):
            server.run()
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert server._leaving == []
    assert not told.exists()


@pytest.mark.parametrize("age_s", [0.1, 5, 88, 300])
def test_no_worker_is_killed_while_its_connections_may_still_end(age_s: float) -> None:
    """gRPC ends them when they are 10 % older than they should be, at the latest."""
    assert longest_stop_s(age_s) > NOTICE_S + 1.1 * age_s + GRACE_S


@pytest.mark.parametrize("line", ["", "no JSON", "[1]", '{"error": "", "mood": "new field"}', b"\xff"])
def test_a_message_of_another_version_is_one_line(line: str | bytes) -> None:
    with pytest.raises(LhydraError, match=r"WorkerReport: found .*, expected one of this version") as error:
        WorkerReport.from_json(line)
    assert str(error.value).isprintable()


def test_a_store_that_loses_current_keeps_being_served(server: Server, store: Path) -> None:
    (store / "CURRENT").unlink()
    status = until(lambda: (status := server.status()).swap_error and status)
    assert (status.bundle_id, status.current_bundle_id) == (B1, "")
    publish(store, B2)
    until(lambda: server.status().bundle_id == B2)


def test_a_killed_worker_is_replaced(server: Server) -> None:
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    after = until(lambda: len(now := server.children()) == 2 and before[0] not in now and now)
    assert before[1] in after
    until(lambda: server.status().workers == 2)
    assert server.all_errors() == [f"worker died: worker {before[0]} ended with signal 9"]


def test_a_worker_that_dies_while_a_bad_bundle_is_current_is_replaced_on_the_good_one(
    server: Server, store: Path
) -> None:
    publish(store, BAD)
    until(lambda: server.status().swap_error)
    before = server.workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(now := server.children()) == 2 and not set(before) & set(now))
    assert until(lambda: (status := server.status()).workers == 2 and status).bundle_id == B1


def test_workers_that_die_together_are_one_failure() -> None:
    backoff, many = Backoff(), Backoff()
    backoff.failed()
    for _ in range(64):
        many.failed()
    assert many.delay_s == backoff.delay_s


def test_what_served_is_back_soon_however_often_it_dies() -> None:
    served, never = Backoff(), Backoff()
    for _ in range(64):
        served.due_s = never.due_s = 0.0  # as if it had waited
        served.failed(fleet.LONGEST_SERVED_S)
        never.failed()
    assert (served.delay_s, never.delay_s) == (fleet.LONGEST_SERVED_S, fleet.LONGEST_S)


def test_no_worker_outlives_its_supervisor(server: Server) -> None:
    workers = server.workers()
    server.process.kill()
    until(lambda: all(gone(pid) for pid in workers))


def refused(argv: Sequence[str | Path]) -> str:
    """The one line that a server which cannot start leaves on stderr."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run([sys.executable, *map(str, argv)], capture_output=True, text=True, env=environment)
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    return line


def test_a_first_bundle_that_cannot_open_is_one_line(store: Path) -> None:
    publish(store, BAD)
    assert refused(fake(store)) == "bad: index.faiss: found 3 bytes, expected 4"


def test_a_taken_port_is_one_line(server: Server, store: Path) -> None:
    port = int(server.address.rpartition(":")[2])
    line = f"address 127.0.0.1:{port}: found the port in use, expected a free port, or --port 0"
    assert refused(fake(store, port=port)) == line


# -- on real bundles --------------------------------------------------------------------------------------


@pytest.fixture
def real(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the small store, to be changed at will; see conftest.py."""
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


def serve(store: Path, *more: str) -> list[str | Path]:
    return ["-m", "lhydra.cli", "serve", store, "--port", "0", "--workers", "2", "--connection-age-s", "0.5", *more]


def bundles(store: Path) -> tuple[str, str]:
    """The current bundle and another one."""
    current = current_bundle_id(store)
    others = sorted(manifest.parent.name for manifest in store.glob("*/manifest.json"))
    return current, next(bundle_id for bundle_id in others if bundle_id != current)


def expected(recommender: Recommender, state: UserState, k: int) -> list[str]:
    found = recommender.recommend(Query(k, state, True, state.heard))
    return recommender.catalog.track_ids(found.rows)


def named(reply: pb.RecommendResponse) -> list[str]:
    return [track.track_id for track in reply.tracks]


def test_the_server_answers_what_the_recommender_answers(real: Path, tiny_dataset: Dataset) -> None:
    recommender = Recommender(Bundle.open(real))
    states = list(itertools.islice(user_states(tiny_dataset, "now"), 40))
    with running(serve(real), real.parent / "log") as server, open_stub(server.address) as stub:
        for user_id, state in states:
            reply = stub.Recommend(pb.RecommendRequest(user_id=user_id, k=15), timeout=20)
            assert named(reply) == expected(recommender, state, 15)
            assert all(a.score >= b.score for a, b in itertools.pairwise(reply.tracks))
        status = stub.GetStatus(pb.GetStatusRequest())
        assert status.bundle_id == current_bundle_id(real)
        assert status.tracks == len(recommender.catalog)
        whole = stub.Recommend(pb.RecommendRequest(user_id="nobody", k=1000), timeout=20)
        assert len(set(named(whole))) == min(1000, len(recommender.catalog))
        assert whole.tier == pb.TIER_POPULAR


def test_a_recorded_play_is_seen_by_every_worker_and_survives_them(real: Path) -> None:
    with running(serve(real), real.parent / "log") as server:
        request = pb.RecommendRequest(user_id="a new listener", k=5)
        with open_stub(server.address) as stub:
            heard = named(stub.Recommend(request, timeout=20))[0]
            play = pb.Play(event_id="e1", user_id=request.user_id, track_id=heard)
            assert stub.RecordPlays(pb.RecordPlaysRequest(plays=[play]), timeout=20).recorded == 1
        for _ in range(10):  # each channel meets one of the workers
            with open_stub(server.address) as stub:
                reply = stub.Recommend(request, timeout=20)
            assert reply.tier == pb.TIER_PERSONAL
            assert heard not in named(reply)
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        until(lambda: server.status().workers == 2)
        with open_stub(server.address) as stub:
            assert heard not in named(stub.Recommend(request, timeout=20, wait_for_ready=True))
            assert stub.RecordPlays(pb.RecordPlaysRequest(plays=[play]), timeout=20).duplicates == 1


def test_a_real_swap_fails_no_call_and_mixes_no_answer(real: Path) -> None:
    current, other = bundles(real)
    popular = {
        bundle_id: expected(Recommender(Bundle.open(real, bundle_id)), UserState(), 10)
        for bundle_id in (current, other)
    }
    log = real.parent / "log"
    with running(serve(real), log) as server:
        with Load(server.address, lambda reply: named(reply) == popular[reply.bundle_id], n_threads=2) as load:
            for bundle_id in (other, current):
                old = server.workers()
                publish(real, bundle_id)
                wait_for_swap(load, old, bundle_id)
        assert load.failures == []
        for pid in server.workers():  # what a worker has loaded
            mapped = Path(f"/proc/{pid}/maps").read_text()
            assert "onnxruntime" in mapped
            assert not [name for name in ("torch", "pandas", "pyarrow", "duckdb") if f"/{name}" in mapped]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_bundle_is_refused_while_the_old_one_serves(real: Path) -> None:
    current, other = bundles(real)
    flip_a_byte(real / other / "index.faiss")
    with running(serve(real), real.parent / "log") as server:
        publish(real, other)
        status = until(lambda: (status := server.status()).swap_error and status)
        assert status.bundle_id == current
        assert "index.faiss: found sha256" in status.swap_error


def test_what_cannot_be_served_is_one_line(real: Path) -> None:
    flip_a_byte(real / current_bundle_id(real) / "head.onnx")
    assert "head.onnx: found sha256" in refused(serve(real))
    (real / "CURRENT").unlink()
    line = refused(serve(real))
    expected = (
        "a store that `lhydra index rebuild` has published to, or `lhydra index rollback ID` to one of its bundles"
    )
    assert line == f"lhydra serve: {real}: found no CURRENT, expected {expected}"
    assert "found no such folder" in refused(serve(real / "nowhere"))


def test_serve_refuses_a_taken_port_and_bad_settings(real: Path) -> None:
    with running(serve(real), real.parent / "log") as server:
        server.process.send_signal(signal.SIGUSR1)  # means nothing, ends nothing
        port = server.address.rpartition(":")[2]
        line = f"lhydra serve: address 127.0.0.1:{port}: found the port in use, expected a free port, or --port 0"
        assert refused(serve(real, "--port", port)) == line
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
    assert refused(serve(real, "--workers", "-1")) == "lhydra serve: --workers: found -1, expected 0 to 1024"
    assert "--users" in refused(serve(real, "--users", "redis://localhost:port"))
