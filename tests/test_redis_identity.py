"""A store on Redis that was emptied, or is another one, while it is served: noticed, and no play is taken by it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from lhydra.errors import ConfigError, UserStoreError
from lhydra.users.connections import Address
from lhydra.users.place import claim
from lhydra.users.redis_store import RedisUsers
from lhydra.users.store import open_users
from lhydra_protos.v1 import recommender_pb2 as pb
from tests.fake_serve import write_bundle
from tests.harness import free_port, log_lines, until
from tests.redis_server import RedisServer, budgets, running
from tests.test_redis_users import failure, told
from tests.test_server import play as sent
from tests.test_supervisor import B1, fake, open_stub, publish
from tests.test_supervisor import running as serving
from tests.test_users import play

GONE = "found no store: the database was emptied, or is another one"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running() as server, budgets():
        yield server


@pytest.fixture
def served(server: RedisServer) -> Iterator[RedisUsers]:
    """A store as a server opens it, which one play is in."""
    users = open_users(server.url, Path(), lasting=True)
    assert isinstance(users, RedisUsers)
    assert users.record([play("e0")]) == [True]
    assert users.get("ann") is not None
    yield users
    users.close()


def empty(server: RedisServer) -> None:
    told(server, "FLUSHALL")


def swap(server: RedisServer) -> None:
    told(server, "SWAPDB", 0, 1)


def restart(server: RedisServer) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("lose", [empty, swap, restart])
def test_a_store_that_vanishes_is_noticed_and_takes_no_plays(
    server: RedisServer, served: RedisUsers, lose: Callable[[RedisServer], None]
) -> None:
    lose(server)
    for _ in range(2):
        assert GONE in failure(served)
        assert f"expected store {served.identity}, which was served" in failure(served, "never seen")
        with pytest.raises(UserStoreError, match=GONE):
            served.record([play("e1")])
    assert told(server, "DBSIZE") == 0
    assert served.breaker.state == "closed"


def test_a_store_that_comes_back_is_used_again(server: RedisServer, served: RedisUsers) -> None:
    swap(server)
    assert GONE in failure(served)
    swap(server)
    assert served.get("ann") is not None
    assert served.record([play("e0"), play("e1")]) == [False, True]


def test_another_store_in_its_place_takes_no_plays(server: RedisServer, served: RedisUsers) -> None:
    empty(server)
    other = RedisUsers(Address.parse(server.url))
    assert other.record([play("e9", user="bob")]) == [True]
    identity, was_empty = other.claim()
    assert (len(identity), was_empty) == (16, False)
    assert f"found store {identity}, expected store {served.identity}" in failure(served, "bob")
    with pytest.raises(UserStoreError, match=f"found store {identity}"):
        served.record([play("e1")])
    other.close()


def test_a_store_that_is_emptied_in_the_middle_of_a_write_takes_no_play(
    server: RedisServer, served: RedisUsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lhydra.users import redis_store, redis_values

    ask = redis_values.ask

    def emptied_before(connection: object, *commands: redis_values.Command) -> list[object]:
        if commands[0] == ("MULTI",):
            empty(server)
        return ask(connection, *commands)  # type: ignore[arg-type]

    monkeypatch.setattr(redis_store, "ask", emptied_before)
    with pytest.raises(UserStoreError, match=GONE):
        served.record([play("e1", user="new")])
    assert told(server, "DBSIZE") == 0


def test_whoever_opens_it_first_gives_it_the_id_that_all_others_find(server: RedisServer) -> None:
    stores = [RedisUsers(Address.parse(server.url), identity="") for _ in range(3)]
    assert stores[0].get("ann") is None  # an empty database is no fault where none was served
    for number, store in enumerate(stores):
        assert store.record([play(f"e{number}", user=f"u{number}")]) == [True]
    assert [store.get("u0") is not None for store in stores] == [True] * 3
    assert {store.identity for store in stores} == {claim(server.url, Path(), False)()[0]}
    for store in stores:
        store.close()


def test_a_server_that_starts_gives_an_old_store_an_id_and_tells_of_an_empty_one(
    server: RedisServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    identity, made = claim(server.url, tmp_path, False)()
    assert (len(identity), made) == (16, server.url)
    assert claim(server.url, tmp_path, False)() == (identity, "")
    empty(server)
    told(server, "SET", "lhydra:u:ann", "as an earlier Lhydra left it")
    assert claim(server.url, tmp_path, False)()[1] == ""
    with pytest.raises(ConfigError, match="a malformed address") as caught:
        claim("redis://:secret@h:port", tmp_path, False)()
    assert "secret" not in str(caught.value)
    with caplog.at_level(logging.ERROR):
        assert claim(f"redis://:secret@127.0.0.1:{free_port()}", tmp_path, False)() == ("", "")
    (line,) = caplog.messages
    assert "starting without the user store" in line
    assert "Connection refused" in line
    assert "secret" not in line


def test_a_server_goes_on_without_a_store_that_was_emptied_and_tells(server: RedisServer, tmp_path: Path) -> None:
    write_bundle(tmp_path, B1, n=100)
    publish(tmp_path, B1)
    plays = pb.RecordPlaysRequest(plays=[sent("e", "t001")])
    argv = fake(tmp_path, users=server.url, workers=1)
    with serving(argv, tmp_path / "log") as running_server, open_stub(running_server.address) as stub:
        asked = pb.RecommendRequest(user_id="ann", k=3)
        until(lambda: not stub.Recommend(asked, timeout=20).degraded)
        assert stub.RecordPlays(plays, timeout=20).recorded == 1
        empty(server)
        assert list(stub.Recommend(asked, timeout=20).degraded) == ["user_store"]
        with pytest.raises(grpc.RpcError) as caught:
            stub.RecordPlays(plays, timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    lines = log_lines(tmp_path / "log")
    messages = [line["message"] for line in lines]
    assert any("made an empty user store" in message for message in messages)
    assert any("answered without the user store" in message and GONE in message for message in messages)
