"""A running server whose user store is cut, moved away, replaced, locked or missing: it answers, and loses no plays."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lhydra.domain import Play, UserState
from lhydra.users.lmdb_store import LmdbUsers
from lhydra_client.client import CHANNEL_OPTIONS
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from tests.fake_serve import write_bundle
from tests.harness import until
from tests.test_supervisor import B1, Server, fake, publish, running
from tests.test_user_store_faults import lock_held


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of one fake bundle, without users."""
    folder = tmp_path / "store"
    write_bundle(folder, B1, n=100)
    publish(folder, B1)
    return folder


@pytest.fixture
def users(store: Path) -> Path:
    """The user store inside it."""
    made = LmdbUsers(store / "users.lmdb")
    made.load([(f"u{i}", UserState({"note": "x" * 3000})) for i in range(100)])
    made.record([Play("e", "ann", "t1", 1)])
    made.close()
    return made.path


@pytest.fixture
def server(store: Path, users: Path) -> Iterator[Server]:
    with running(fake(store), store.parent / "log") as server:
        yield server


def recommend(server: Server, user: str = "ann") -> pb.RecommendResponse:
    """One answer of any worker: each call has a channel of its own."""
    with grpc.insecure_channel(server.address, [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer: pb.RecommendResponse = RecommenderStub(channel).Recommend(
            pb.RecommendRequest(user_id=user, k=5), timeout=20
        )
    return answer


def record(server: Server, event: str, timeout: float = 20) -> grpc.StatusCode:
    """What became of a play of user zoe."""
    play = pb.Play(event_id=event, user_id="zoe", track_id=f"of {event}", timestamp_s=5)
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            RecommenderStub(channel).RecordPlays(pb.RecordPlaysRequest(plays=[play]), timeout=timeout)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def events_of(users: Path) -> int:
    """How many tracks zoe has heard, in the files."""
    opened = LmdbUsers(users, create=False)
    state = opened.get("zoe")
    opened.close()
    return 0 if state is None else len(state.heard)


def well(server: Server) -> bool:
    """Whether no worker lacks its user store: many calls in a row that reach both of them."""
    return not any("user_store" in recommend(server).degraded for _ in range(40))


def cut(users: Path) -> None:
    os.truncate(users / "data.mdb", (users / "data.mdb").stat().st_size // 2)


def emptied(users: Path) -> None:
    os.truncate(users / "data.mdb", 0)


def moved_away(users: Path) -> None:
    users.rename(users.with_name("elsewhere"))


def replaced(users: Path) -> None:
    moved_away(users)
    other = LmdbUsers(users)
    other.record([Play("of the other", "bob", "t2", 1)])
    other.close()


@pytest.mark.parametrize("fault", [cut, emptied, moved_away, replaced])
def test_a_store_that_fails_while_serving_costs_a_tier_and_nobodys_plays(
    fault: object, server: Server, users: Path, tmp_path: Path
) -> None:
    assert callable(fault)
    workers = server.workers()
    assert record(server, "before") is grpc.StatusCode.OK
    backup = tmp_path / "backup"
    shutil.copytree(users, backup)
    fault(users)
    for i in range(12):
        assert "user_store" in recommend(server).degraded
        assert record(server, f"lost-{i}") is grpc.StatusCode.UNAVAILABLE
    assert server.workers() == workers
    if users.exists():
        users.rename(tmp_path / "aside")
    backup.rename(users)
    until(lambda: well(server))
    assert record(server, "after") is grpc.StatusCode.OK
    assert server.workers() == workers
    assert events_of(users) == 2


def test_workers_that_come_later_serve_without_a_store_and_never_make_one(server: Server, users: Path) -> None:
    away = users.rename(users.with_name("elsewhere"))
    workers = server.workers()
    for pid in workers:
        os.kill(pid, 9)
    until(lambda: not set(server.children()) & set(workers) and len(server.children()) == 2)
    until(lambda: server.status().workers == 2)
    for _ in range(8):
        assert "user_store" in recommend(server).degraded
        assert record(server, "lost") is grpc.StatusCode.UNAVAILABLE
    assert not users.exists()
    away.rename(users)
    until(lambda: well(server))
    assert events_of(users) == 0


def test_a_server_starts_on_a_store_that_is_damaged(store: Path, users: Path) -> None:
    whole = shutil.copytree(users, store / "whole")
    cut(users)
    with running(fake(store), store.parent / "log") as server:
        for _ in range(8):
            assert "user_store" in recommend(server).degraded
            assert record(server, "lost") is grpc.StatusCode.UNAVAILABLE
        (whole / "data.mdb").replace(users / "data.mdb")
        until(lambda: well(server))
    errors = {line["message"] for line in server.lines() if line["level"] == "error"}
    assert any("data.mdb cut to" in error and "restore the backup" in error for error in errors)


def test_a_place_that_was_named_must_hold_a_store(store: Path) -> None:
    typo = store.parent / "typo"
    with running(fake(store, users=f"lmdb:{typo}"), store.parent / "log") as server:
        assert server.ended() == 1
    last = server.log.read_text().splitlines()[-1]
    assert last == f"--users lmdb:{typo}: found no user store, expected one; --users-create makes it"
    assert not typo.exists()
    with running(fake(store, users=f"lmdb:{typo}", users_create=True), store.parent / "log") as server:
        assert record(server, "e") is grpc.StatusCode.OK
    assert events_of(typo) == 1
    with running(fake(store, users=f"lmdb:{typo}"), store.parent / "log") as server:
        assert record(server, "f") is grpc.StatusCode.OK
    assert events_of(typo) == 2


def test_the_store_inside_a_fresh_bundle_store_is_made_with_a_line(store: Path) -> None:
    with running(fake(store), store.parent / "log") as server:
        assert record(server, "e") is grpc.StatusCode.OK
    assert events_of(store / "users.lmdb") == 1
    (made,) = (line for line in server.lines() if line["message"] == "made an empty user store")
    assert (made["level"], made["folder"]) == ("warning", str(store / "users.lmdb"))


def test_files_that_kill_a_worker_are_not_mapped_by_the_next_one(server: Server, users: Path) -> None:
    """A crash is told by its signal, whatever its reason; a sound store is served again, a damaged one is not."""
    first = server.workers()[0]
    os.kill(first, signal.SIGBUS)
    until(lambda: first not in server.children() and len(server.children()) == 2)
    until(lambda: well(server))  # tried, found sound and opened
    whole = (users / "data.mdb").read_bytes()
    pages = [bytearray(whole[i : i + 4096]) for i in range(0, len(whole), 4096)]
    for page in pages[2:]:
        if page[10] & 0x03:  # branches and leaves: LMDB asserts what they are
            page[:] = bytes(4096)
    with (users / "data.mdb").open("r+b") as file:  # in place: no look at the files can tell
        file.write(b"".join(pages))
    doomed = server.workers()
    for pid in doomed:
        os.kill(pid, signal.SIGSEGV)
    until(lambda: not set(doomed) & set(server.children()) and len(server.children()) == 2)
    until(lambda: server.status().workers == 2)
    workers = server.workers()
    for _ in range(8):
        assert "user_store" in recommend(server).degraded
        assert record(server, "lost") is grpc.StatusCode.UNAVAILABLE
    assert server.workers() == workers


def test_a_held_write_lock_refuses_plays_in_time_and_no_reader(server: Server, users: Path) -> None:
    with lock_held(users) as holder:
        assert record(server, "patient") is grpc.StatusCode.UNAVAILABLE
        assert record(server, "hurried", timeout=0.3) is grpc.StatusCode.DEADLINE_EXCEEDED
        for _ in range(8):
            assert "user_store" not in recommend(server).degraded
        holder.kill()
        until(lambda: record(server, "after") is grpc.StatusCode.OK)
    assert events_of(users) == 1
