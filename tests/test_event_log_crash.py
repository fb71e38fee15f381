"""The event log under kill -9 of workers, supervisor and Redis: what was acknowledged is in it, once and in order."""

import os
import random
import signal
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

from lhydra.domain import track_hashes
from lhydra.users.store import open_users
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from tests.fake_serve import write_bundle
from tests.harness import free_port, gone, until
from tests.redis_server import budgets
from tests.redis_server import running as redis_running
from tests.test_supervisor import B1, Server, fake, open_stub, publish, running

USERS = [f"u{i}" for i in range(4)]
KILLS = 6


class Senders:
    """Threads that record plays, each call again and again until it is acknowledged, for the block.

    Args:
        address: of the server.
        n: how many threads.
    """

    def __init__(self, address: str, n: int = 3) -> None:
        self._address, self._n = address, n
        self._ended = threading.Event()
        self._count = threading.Lock()
        self.acknowledged = 0  # calls
        self.again = 0  # calls that failed and were sent again

    def __enter__(self) -> "Senders":
        self._pool = ThreadPoolExecutor(self._n)
        self._sending = [self._pool.submit(self._send, name) for name in range(self._n)]
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._pool.shutdown()
        self.sent = [sending.result() for sending in self._sending]

    def _send(self, name: int) -> list[pb.Play]:
        chance, sent = random.Random(name), list[pb.Play]()
        while not self._ended.is_set():
            plays = [
                pb.Play(
                    event_id=f"{name}-{len(sent) + i}",
                    user_id=chance.choice(USERS),
                    track_id=f"t{name}-{len(sent) + i}",
                    timestamp_s=1 + len(sent) + i,
                )
                for i in range(chance.randint(1, 5))
            ]
            self._record(plays)
            sent += plays
        return sent

    def _record(self, plays: list[pb.Play]) -> None:
        while True:
            with grpc.insecure_channel(self._address) as channel:
                try:
                    request = pb.RecordPlaysRequest(plays=plays)
                    answer = RecommenderStub(channel).RecordPlays(request, timeout=10, wait_for_ready=True)
                except grpc.RpcError:
                    with self._count:
                        self.again += 1
                    continue
            assert answer.recorded + answer.duplicates == len(plays)
            with self._count:
                self.acknowledged += 1
            return


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "store", B1, n=10)
    publish(tmp_path / "store", B1)
    return tmp_path / "store"


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def at_random(senders: Senders, happen: Callable[[], object], times: int = KILLS) -> None:
    """Has something happen some times, each after some more acknowledged calls."""
    chance = random.Random(KILLS)
    for _ in range(times):
        more = senders.acknowledged + chance.randint(1, 25)
        until(lambda: senders.acknowledged >= more)  # noqa: B023
        happen()


def check(senders: Senders, url: str | None, store: Path) -> None:
    """Holds log and states to what was acknowledged, which in the end is all that was sent."""
    with budgets():
        users = open_users(url, store)
        logged = [event.play for chunk in users.events() for _, event in chunk]
        assert len(logged) == sum(map(len, senders.sent))
        for name, sent in enumerate(senders.sent):
            own = [play for play in logged if play.event_id.startswith(f"{name}-")]
            assert [(play.event_id, play.user_id, play.track_id, play.time) for play in own] == [
                (play.event_id, play.user_id, play.track_id, play.timestamp_s) for play in sent
            ]
        for user in USERS:
            tracks = [play.track_id for play in logged if play.user_id == user]
            state = users.get(user)
            assert state is not None
            np.testing.assert_array_equal(state.heard, np.unique(track_hashes(tracks)))
            assert state.history["count"].sum() == len(tracks)
        users.close()


def test_killed_workers_lose_no_play_and_count_none_twice(store: Path) -> None:
    chance = random.Random(0)
    with running(fake(store), store.parent / "log") as server:
        with Senders(server.address) as senders:
            at_random(senders, lambda: kill(chance.choice(server.workers())))
        assert senders.acknowledged > KILLS
    check(senders, None, store)


def test_a_killed_supervisor_takes_its_workers_but_no_play(store: Path) -> None:
    port, servers = free_port(), list[Server]()
    with ExitStack() as stack:

        def serving() -> None:
            log = store.parent / f"log{len(servers)}"
            servers.append(stack.enter_context(running(fake(store, port=port), log)))

        def killed() -> None:
            workers = servers[-1].children()
            kill(servers[-1].process.pid)
            until(lambda: all(map(gone, workers)))
            serving()

        serving()
        with Senders(f"127.0.0.1:{port}") as senders:
            at_random(senders, killed, 3)
    check(senders, None, store)


def test_a_killed_redis_loses_no_play_and_counts_none_twice(store: Path, tmp_path: Path) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always", "--dir", str(tmp_path))
    with redis_running("", *options) as redis:

        def killed() -> None:
            redis.kill()
            redis.start()

        with running(fake(store, users=redis.url), store.parent / "log") as server, Senders(server.address) as senders:
            at_random(senders, killed)
        assert senders.again > 0
        check(senders, redis.url, store)


def test_the_flags_of_a_server_reach_its_log(store: Path) -> None:
    play = pb.Play(event_id="e", user_id="ann", track_id="t1", timestamp_s=1)
    port = free_port()

    def shown() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
            lines = [line.split() for line in reply.read().decode().splitlines() if line.startswith("lhydra_event_log")]
        return {name.removeprefix("lhydra_event_log_"): float(value) for name, value in lines}

    with (
        running(fake(store, events="off", metrics_port=port), store.parent / "log") as server,
        open_stub(server.address) as stub,
    ):
        assert stub.RecordPlays(pb.RecordPlaysRequest(plays=[play]), timeout=20).recorded == 1
        assert stub.GetStatus(pb.GetStatusRequest()).event_log == pb.EventLogStatus()
    with (
        running(fake(store, events_days=1e-9, metrics_port=port), store.parent / "log") as server,
        open_stub(server.address) as stub,
    ):
        for i in range(200):  # one that is a millisecond old leaves, once in 64
            play.event_id = f"e{i}"
            assert stub.RecordPlays(pb.RecordPlaysRequest(plays=[play]), timeout=20).recorded == 1
        users = open_users(None, store)
        entries = users.event_log().entries
        users.close()
        assert 0 < entries < 200
        found = until(lambda: (log := server.status().event_log).entries == entries and log)
        assert found.on
        until(lambda: shown()["entries"] == entries)
        metrics = shown()
        assert (metrics["bytes"], metrics["oldest_seconds"]) == (found.bytes, found.oldest_ms // 1000)
        assert metrics["free_bytes"] > 0
