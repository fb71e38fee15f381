"""The truth table of health in docs/operations.md: what each state of a server says, and that each row has a test."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lhydra.users.lmdb_store import LmdbUsers
from lhydra_protos.v1 import recommender_pb2 as pb
from tests.fake_serve import write_bundle
from tests.harness import free_port, until
from tests.test_supervisor import B1, BAD, HUNG, ROOT, Server, fake, open_stub, publish, running

SERVING = health_pb2.HealthCheckResponse.SERVING


def health(address: str) -> int:
    """What a new channel hears."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    status: int = reply.status
    return status


def degraded(server: Server) -> list[str]:
    with open_stub(server.address) as stub:
        return list(stub.Recommend(pb.RecommendRequest(user_id="ann", k=3), timeout=30).degraded)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    write_bundle(folder, B1, n=50)
    write_bundle(folder, BAD, error="bad: index.faiss: found 3 bytes, expected 4")
    write_bundle(folder, HUNG, hangs=True)
    publish(folder, B1)
    return folder


@contextmanager
def opening(store: Path, port: int) -> Iterator[list[int]]:
    """A server whose first bundle takes for ever to open; yields the ids of its workers."""
    publish(store, HUNG)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    argv = [sys.executable, *map(str, fake(store, port=port))]
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        yield until(lambda: [int(pid) for pid in children.read_text().split()])
    finally:
        process.kill()
        process.wait(60)


def test_while_the_first_bundle_opens_nothing_listens(store: Path) -> None:
    port = free_port()
    with opening(store, port), pytest.raises(grpc.RpcError) as refused:
        health(f"127.0.0.1:{port}")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_while_another_bundle_opens_the_old_one_serves(store: Path) -> None:
    with running(fake(store), store.parent / "log") as server:
        workers = server.workers()
        publish(store, HUNG)
        until(lambda: set(server.children()) - set(workers))
        assert health(server.address) == SERVING
        assert server.status().bundle_id == B1


def test_a_refused_bundle_leaves_health_serving_and_says_why(store: Path) -> None:
    with running(fake(store), store.parent / "log") as server:
        publish(store, BAD)
        assert until(lambda: server.status().swap_error) == "bad: index.faiss: found 3 bytes, expected 4"
        assert health(server.address) == SERVING


def test_a_lost_user_store_leaves_health_serving_and_answers_say_so(store: Path) -> None:
    users = LmdbUsers(store / "users.lmdb")
    users.close()
    with running(fake(store), store.parent / "log") as server:
        assert degraded(server) == []
        users.path.rename(store / "elsewhere")
        assert degraded(server) == ["user_store"]
        assert health(server.address) == SERVING


def test_after_the_drain_nothing_listens(store: Path) -> None:
    with running(fake(store), store.parent / "log") as server:
        assert health(server.address) == SERVING
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0
        with pytest.raises(grpc.RpcError) as refused:
            health(server.address)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_every_row_of_the_table_names_a_test_that_there_is() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text.partition("| state | health |")[2].partition("\n\n")[0]
    rows = [row for row in table.splitlines()[2:] if row.startswith("|")]
    states = ("loading", "warming", "serving", "moving", "degraded", "refused bundle", "stuck", "draining", "gone")
    assert [row.split("|")[1].strip() for row in rows] == [*states]
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), row
