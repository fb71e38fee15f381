"""The Redis user store beside LMDB, with writers racing, and with a server that is killed, frozen or not there."""

import json
import logging
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from hypothesis import settings

from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.domain import UserState
from lhydra.errors import ConfigError, DeadlineExceeded, LhydraError, MissingExtra, UserStoreError
from lhydra.users import redis_guard, redis_store, redis_values
from lhydra.users.breaker import FAILURES, LONGEST_REST_S, REST_S
from lhydra.users.connections import MAX_CONNECTIONS, Address, Connections
from lhydra.users.redis_store import RedisUsers
from lhydra.users.store import UserStore, open_users, redacted
from tests.harness import free_port
from tests.redis_server import RedisServer, budgets, running
from tests.test_breaker import Clock
from tests.test_evaluate import random_plays, write_dataset
from tests.test_users import USERS, AnyOrder, assert_same, damage, play, state_of

READ_S, WRITE_S = redis_store.READ_S, redis_store.WRITE_S  # before any test changes them
SECRET = "s3cr?t/#"  # needs quoting in an address
QUOTED = "s3cr%3Ft%2F%23"


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    """For tests that leave the server as it is."""
    with running() as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.empty()
    return shared


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """For tests that do not."""
    with running() as server:
        yield server


@pytest.fixture
def opened() -> Iterator[Callable[..., RedisUsers]]:
    """Opens stores that are closed when the test ends."""
    stores: list[RedisUsers] = []

    def open_one(url: str, clock: Callable[[], float] = time.monotonic) -> RedisUsers:
        stores.append(RedisUsers(Address.parse(url), clock=clock))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Grows by one whenever a store turns to its connections."""
    made: list[float] = []
    use = Connections.use

    def counted(self: Connections, budget_s: float) -> Any:
        made.append(budget_s)
        return use(self, budget_s)

    monkeypatch.setattr(Connections, "use", counted)
    return made


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    with budgets():
        yield


@contextmanager
def hurry() -> Iterator[None]:
    """The budgets as they are."""
    with budgets(READ_S, WRITE_S):
        yield


def told(server: RedisServer, *command: str | int) -> Any:
    """What the server says to a command of a client of its own."""
    with redis_py.Redis(port=server.port) as client:
        return client.execute_command(*command)


def failure(users: UserStore, user: str = "ann") -> str:
    with pytest.raises(UserStoreError) as caught:
        users.get(user)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the same answers as LMDB -------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def machine_server(shared: RedisServer) -> None:
    OnRedis.server = shared


class OnRedis(AnyOrder):
    """record, load and reopen in any order: get always equals the oracle, and so LMDB."""

    server: RedisServer

    def __init__(self) -> None:
        self.server.empty()
        super().__init__()

    def opened(self) -> UserStore:
        return open_users(self.server.url, Path(self.folder.name))


TestOnRedis = OnRedis.TestCase
TestOnRedis.settings = settings(deadline=None, max_examples=15, stateful_step_count=20)


@pytest.mark.parametrize("n", [1, 2, 7, 199, 500, 1001, 5000])
def test_both_stores_sample_the_same_users(server: RedisServer, tmp_path: Path, n: int) -> None:
    stores = [open_users(None, tmp_path), open_users(server.url, tmp_path)]
    told(server, "SET", "another:key", "of somebody else")
    samples = []
    for users in stores:
        users.load((f"{i * 7919 % 1000}", UserState({"n": i})) for i in range(1000))
        users.load([(name, UserState({"n": name})) for name in USERS])
        samples.append([dict(state.profile) for state in users.sample(n)])
        assert [dict(state.profile) for state in users.sample(n)] == samples[-1]
        users.close()
    assert samples[0] == samples[1]
    assert len(samples[0]) <= n or n > 1000
    assert told(server, "GET", "another:key") == b"of somebody else"


def test_a_user_is_read_in_one_round_trip(server: RedisServer, opened: Callable[..., RedisUsers]) -> None:
    users = opened(server.url)
    users.record([play("e0")])
    users.get("ann")
    before = told(server, "INFO", "commandstats")
    for _ in range(10):
        assert users.get("ann") is not None
    after = told(server, "INFO", "commandstats")
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    ours = {"cmdstat_info", "cmdstat_hello", "cmdstat_client|setinfo"}  # of the question itself
    assert {name: n for name, n in calls.items() if n and name not in ours} == {
        "cmdstat_get": 20
    }  # with the store's id


def test_databases_are_apart(server: RedisServer, opened: Callable[..., RedisUsers]) -> None:
    a, b = opened(server.url), opened(server.url.replace("/0", "/5"))
    a.record([play("e0")])
    assert b.get("ann") is None
    b.record([play("e1", "t7")])
    assert_same(b.get("ann"), state_of({}, [("t7", 1.0, 1)], {"t7"}))
    assert told(server, "EXISTS", "lhydra:u:ann") == 1


# -- writers at once ----------------------------------------------------------------------------------------


def test_two_servers_record_for_the_same_users_and_no_play_is_lost_or_counted_twice(
    server: RedisServer, opened: Callable[..., RedisUsers]
) -> None:
    n, names = 60, "abcd"  # a and b share a store, as threads of a worker do
    first, second = opened(server.url), opened(server.url)
    stores = {"a": first, "b": first, "c": second, "d": second}
    start = threading.Barrier(len(names) + 1)

    def write(name: str) -> list[list[bool]]:
        start.wait()
        return [
            stores[name].record(
                [
                    play(f"{name}{i}", f"{name}{i}", time=i),
                    play(f"all{i}", "t0", time=i),  # sent by everybody
                    play(f"{name}{i}", "t0", user="bob", time=i),
                ]
            )
            for i in range(n)
        ]

    def load() -> None:
        start.wait()
        for i in range(20):
            second.load([("ann", UserState({"round": i})), ("bob", UserState({"round": i}))])

    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(write, name) for name in names]
        pool.submit(load).result()
        flags = [future.result() for future in writing]
    assert all(own and bobs for call in flags for own, _, bobs in call)
    for i in range(n):
        assert sum(call[i][1] for call in flags) == 1
    tracks = {f"{name}{i}" for name in names for i in range(n)}
    anns = [(track, 1.0, int(track[1:])) for track in tracks] + [("t0", 1.0, i) for i in range(n)]
    assert_same(first.get("ann"), state_of({"round": 19}, anns, tracks | {"t0"}))
    assert_same(second.get("bob"), state_of({"round": 19}, [("t0", 4.0, i) for i in range(n)], {"t0"}))


def interrupted(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[], object]) -> list[int]:
    """From now on `meddle` runs before every transaction; returns the list that counts them."""
    ask, transactions = redis_values.ask, list[int]()

    def asked(connection: Any, *commands: Any) -> Any:
        if commands[0] == ("MULTI",):
            transactions.append(len(commands))
            meddle()
        return ask(connection, *commands)

    monkeypatch.setattr(redis_store, "ask", asked)
    return transactions


def test_a_write_in_between_is_never_overwritten(
    server: RedisServer, opened: Callable[..., RedisUsers], monkeypatch: pytest.MonkeyPatch
) -> None:
    users, other = opened(server.url), opened(server.url)
    others = iter(range(3))

    def meddle() -> None:
        monkeypatch.undo()  # the other one goes undisturbed
        if (i := next(others, None)) is not None:
            other.record([play(f"o{i}", f"o{i}"), play("same", "t9")])
            transactions.extend(interrupted(monkeypatch, meddle))

    transactions = interrupted(monkeypatch, meddle)
    assert users.record([play("e0", "t0"), play("e0", "t0", user="bob"), play("same", "t9")]) == [True, True, False]
    tracks = ["t0", "t9", "o0", "o1", "o2"]
    assert_same(users.get("ann"), state_of({}, [(track, 1.0, 1) for track in tracks], set(tracks)))
    assert_same(users.get("bob"), state_of({}, [("t0", 1.0, 1)], {"t0"}))


def test_a_call_of_duplicates_writes_nothing_and_leaves_nothing_behind(
    server: RedisServer, opened: Callable[..., RedisUsers], monkeypatch: pytest.MonkeyPatch
) -> None:
    users, other = opened(server.url), opened(server.url)
    users.record([play("e0")])
    transactions = interrupted(monkeypatch, lambda: None)
    assert users.record([play("e0")]) == [False]
    assert transactions == []
    other.record([play("e1")])  # would upset a transaction of a connection that still watches
    users.record([play("e0", user="bob")])
    assert len(transactions) == 2


@pytest.mark.parametrize(
    ("contended_s", "deadline_s", "error", "found"),
    [
        (100, math.inf, UserStoreError, "found other writers for 100 s"),
        (1000, 100, DeadlineExceeded, "the deadline passed while user store"),
    ],
)
def test_it_gives_up_in_time_where_others_never_stop_and_nothing_is_written(
    server: RedisServer,
    opened: Callable[..., RedisUsers],
    monkeypatch: pytest.MonkeyPatch,
    contended_s: float,
    deadline_s: float,
    error: type[LhydraError],
    found: str,
) -> None:
    users = opened(server.url)
    users.load([("ann", UserState({"age": 3}))])
    value = told(server, "GET", "lhydra:u:ann")
    clock = Clock()
    for module in (redis_store, redis_guard):
        monkeypatch.setattr(module, "time", clock.module())
    monkeypatch.setattr(redis_store, "CONTENDED_S", contended_s)

    def meddle() -> None:
        clock.now += 30
        told(server, "SET", "lhydra:u:ann", value)

    transactions = interrupted(monkeypatch, meddle)
    with pytest.raises(error, match=found):
        users.record([play("e0"), play("e0", user="bob")], clock.now + deadline_s)
    assert len(transactions) == 4  # begun after 0, 30, 60 and 90 s: none after a hundred
    assert users.get("bob") is None
    assert told(server, "GET", "lhydra:u:ann") == value
    assert users.breaker.state == "closed"


# -- lost servers -------------------------------------------------------------------------------------------


def assert_opens_after_failures(users: RedisUsers, attempts: list[float], reason: str) -> None:
    """The first calls fail for `reason`, the later ones at once, and none hangs."""
    began = time.monotonic()
    del attempts[:]
    with hurry():
        for i in range(50):
            expected = reason if i < FAILURES else "no answer a moment ago"
            assert f"user store {users.address}: found {expected}, expected a Redis server" in failure(users)
        with pytest.raises(UserStoreError, match="a moment ago"):
            users.record([play("e1")])
    assert len(attempts) == FAILURES
    assert users.breaker.state == "open"
    assert time.monotonic() - began < 2


def assert_recovers(users: RedisUsers, clock: Clock, rest_s: float = REST_S) -> None:
    clock.now += rest_s
    users.get("ann")
    assert users.breaker.state == "closed"
    assert users.record([play("after", "t8")]) == [True]


def test_a_killed_server_is_left_alone_and_found_again(
    own: RedisServer, opened: Callable[..., RedisUsers], attempts: list[float]
) -> None:
    clock = Clock()
    users = opened(own.url, clock)
    users.record([play("e0")])
    own.kill()
    assert_opens_after_failures(users, attempts, "Connection refused")
    clock.now += REST_S
    assert "Connection refused" in failure(users)  # the one attempt of the half open breaker
    assert "a moment ago" in failure(users)
    own.start()
    assert_recovers(users, clock, 2 * REST_S)


def test_a_frozen_server_is_left_alone_and_found_again(
    own: RedisServer, opened: Callable[..., RedisUsers], attempts: list[float]
) -> None:
    clock = Clock()
    users = opened(own.url, clock)
    users.record([play("e0")])
    own.freeze()
    assert_opens_after_failures(users, attempts, "no answer within 20 ms")
    for _ in range(4):
        clock.now += LONGEST_REST_S
        with hurry():
            assert "no answer within 20 ms" in failure(users)
        assert "a moment ago" in failure(users)
    own.thaw()
    assert_recovers(users, clock, LONGEST_REST_S)
    assert_same(users.get("ann"), state_of({}, [("t0", 1.0, 1), ("t8", 1.0, 1)], {"t0", "t8"}))


def test_writes_to_a_frozen_server_fail_in_time_and_can_be_repeated(
    own: RedisServer, opened: Callable[..., RedisUsers]
) -> None:
    clock = Clock()
    users = opened(own.url, clock)
    users.record([play("e0")])
    own.freeze()
    for _ in range(FAILURES):
        with hurry(), pytest.raises(UserStoreError, match="no answer within 100 ms"):
            users.record([play("e1", "t1")])
    own.thaw()
    clock.now += REST_S
    users.record([play("e1", "t1")])
    assert users.record([play("e1", "t1")]) == [False]
    assert_same(users.get("ann"), state_of({}, [("t0", 1.0, 1), ("t1", 1.0, 1)], {"t0", "t1"}))


def assert_closed(users: RedisUsers) -> None:
    assert users.breaker.state == "closed"


def test_callers_that_leave_early_say_nothing_of_the_server(
    own: RedisServer, opened: Callable[..., RedisUsers], attempts: list[float]
) -> None:
    clock = Clock()
    users = opened(own.url, clock)
    users.record([play("e0")])
    own.freeze()
    for _ in range(FAILURES + 1):
        with pytest.raises(DeadlineExceeded):
            users.get("ann", time.monotonic() + 0.02)  # READ_S is twenty seconds here
        with pytest.raises(DeadlineExceeded):
            users.record([play("e1", "t1")], time.monotonic() + 0.02)
    assert_closed(users)
    assert_opens_after_failures(users, attempts, "no answer within 20 ms")
    clock.now += REST_S
    with pytest.raises(DeadlineExceeded):
        users.get("ann", time.monotonic() + 0.005)  # the one attempt finds nothing out
    assert users.breaker.state == "half open"
    own.thaw()
    assert_recovers(users, clock, 0)


def test_nothing_is_tried_for_a_caller_who_has_left(
    server: RedisServer, opened: Callable[..., RedisUsers], attempts: list[float]
) -> None:
    users = opened(server.url)
    for call in (lambda: users.get("ann", time.monotonic()), lambda: users.record([play("e0")], time.monotonic())):
        with pytest.raises(DeadlineExceeded):
            call()
    assert attempts == []
    assert users.get("ann") is None


def test_a_port_that_takes_connections_and_says_nothing(
    opened: Callable[..., RedisUsers], attempts: list[float]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        users = opened(f"redis://:{QUOTED}@127.0.0.1:{silent.getsockname()[1]}")
        assert_opens_after_failures(users, attempts, "no answer within 20 ms")


def test_a_name_that_nobody_resolves_holds_up_no_request(
    server: RedisServer,
    opened: Callable[..., RedisUsers],
    attempts: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved, look_up = threading.Event(), socket.getaddrinfo

    def slow(*args: Any) -> Any:
        resolved.wait(60)
        return look_up(*args)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    clock = Clock()
    users = opened(server.url, clock)
    assert_opens_after_failures(users, attempts, "no answer within 20 ms")
    assert users._connections.n_open <= FAILURES + 1  # those being made
    resolved.set()
    monkeypatch.undo()
    assert_recovers(users, clock)


def test_a_restart_between_two_requests_is_not_noticed(own: RedisServer, opened: Callable[..., RedisUsers]) -> None:
    users = opened(own.url)
    users.record([play("e0")])
    own.kill()
    own.start()
    assert users.get("ann") is None  # this server keeps nothing
    assert users.record([play("e0")]) == [True]


def test_many_threads_share_few_connections(server: RedisServer, opened: Callable[..., RedisUsers]) -> None:
    users = opened(server.url)
    users.record([play("e0")])
    n = 2 * MAX_CONNECTIONS
    start = threading.Barrier(n)

    def read(_: int) -> int:
        start.wait()
        return sum(users.get("ann") is not None for _ in range(20))

    with ThreadPoolExecutor(n) as pool:
        assert sum(pool.map(read, range(n))) == 20 * n
    assert 1 <= users._connections.n_open <= MAX_CONNECTIONS
    users.close()
    users.close()
    assert users._connections.n_open == 0


def test_a_server_without_memory_takes_no_plays_and_is_still_read(
    own: RedisServer, opened: Callable[..., RedisUsers]
) -> None:
    users = opened(own.url)
    users.record([play("e0")])
    told(own, "CONFIG", "SET", "maxmemory", 1)
    for _ in range(FAILURES + 1):
        with pytest.raises(UserStoreError, match="found OutOfMemoryError"):
            users.record([play("e1", "t1"), play("e1", user="bob")])
        assert_same(users.get("ann"), state_of({}, [("t0", 1.0, 1)], {"t0"}))
    told(own, "CONFIG", "SET", "maxmemory", 0)
    assert users.record([play("e1", "t1")]) == [True]


def test_what_is_no_record_is_one_line(server: RedisServer, opened: Callable[..., RedisUsers]) -> None:
    users = opened(server.url)
    told(server, "LPUSH", "lhydra:u:ann", "x")
    assert "found ResponseError WRONGTYPE" in failure(users)
    damage(users, "bob", b"\x02junk")
    assert "found 5 damaged bytes" in failure(users, "bob")
    assert users.breaker.state == "closed"


# -- passwords and addresses --------------------------------------------------------------------------------


def test_a_password_is_used_and_never_shown(
    opened: Callable[..., RedisUsers], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with running(SECRET) as server:
        right = f"redis://:{QUOTED}@127.0.0.1:{server.port}/1"
        assert opened(right).record([play("e0")]) == [True]
        for wrong in (right.replace("s3cr", "wr0ng"), right.replace("redis://", "redis://me"), redacted(right)):
            users = opened(wrong)
            lines = [failure(users) for _ in range(FAILURES + 1)]
            assert "found user or password refused" in lines[0]
            said = "".join([*lines, repr(users.address), str(users.address), caplog.text])
            assert not any(secret in said for secret in (SECRET, QUOTED, "s3cr", "wr0ng", "me@"))
    assert "out of reach" in caplog.text


def test_over_tls_a_server_must_prove_who_it_is(
    tmp_path: Path, opened: Callable[..., RedisUsers], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (openssl := shutil.which("openssl")):
        pytest.skip("OPENSSL ABSENT: no certificate can be made")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *names]
    subprocess.run(list(map(str, argv)), check=True, capture_output=True)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(certificate)]
    options += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    with running("", *options):
        monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
        assert "certificate verify failed" in failure(opened(f"rediss://127.0.0.1:{port}"))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert opened(f"rediss://127.0.0.1:{port}").get("ann") is None


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis:", "no host"),
        ("redis:host", "no host"),
        ("redis://", "no host"),
        ("redis://:s3cr@", "no host"),
        ("redis://:s3cr/x@host", "a malformed address"),
        ("redis://s3cr/x@host", "a database that is no number"),
        ("redis://me:s3c?r@host", "a malformed address"),
        ("redis://:s3cr@host/one", "a database that is no number"),
        ("redis://:s3cr@host/-1", "a database that is no number"),
        ("redis://:s3cr@host/0/1", "a database that is no number"),
        ("redis://:s3cr@host:port", "a malformed address"),
        ("redis://:s3cr@host:99999", "a malformed address"),
        ("redis://:s3cr@[::1", "a malformed address"),
        ("rediss://:s3cr@" + "h" * 70, "a malformed address"),
        ("redis://:s3cr@host/0?socket_timeout=9", "options behind the database"),
        ("redis://:s3cr@host#x", "options behind the database"),
    ],
)
def test_a_malformed_address_is_refused_and_not_shown(url: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--users: found {found}.*, expected redis://") as caught:
        open_users(url, tmp_path)
    assert "s3cr" not in str(caught.value)


def test_addresses() -> None:
    assert Address.parse("redis://h") == Address("h")
    assert Address.parse("rediss://me:a%40b@h:1/2/") == Address("h", 1, 2, True, "me", "a@b")
    assert str(Address.parse("rediss://me:a%40b@[::1]:1/2")) == "rediss://[::1]:1/2"
    assert redacted("rediss://me:a%40b@[::1]:1/2") == "rediss://[::1]:1/2"
    assert redacted("lmdb:a@b") == "lmdb:a@b"


def nobody_there() -> str:
    return f"redis://me:{QUOTED}@127.0.0.1:{free_port()}"


def test_opening_asks_for_no_server(tmp_path: Path) -> None:
    users = open_users(nobody_there(), tmp_path)
    assert "Connection refused" in failure(users)
    users.close()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    plays = random_plays(3, 40, 30)
    return write_dataset(tmp_path / "dataset", [f"u{i}" for i in range(40)], [f"t{i}" for i in range(30)], plays)


def test_loading_a_dataset(dataset: Dataset, server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["users", "load", str(dataset.path), "--users", server.url.replace("//", f"//:{QUOTED}@")]) == 1
    assert "password refused" in capsys.readouterr().err  # of a server without one
    assert main(["users", "load", str(dataset.path), "--users", server.url, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["users"], counts["users_store"]) == (40, server.url)
    assert told(server, "DBSIZE") == 40 + 1  # and the id of the store


def test_loading_where_nobody_is_is_one_line(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    url = nobody_there()
    assert main(["users", "load", str(dataset.path), "--users", url]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    where = f"{redacted(url)}/0"
    assert line == f"lhydra users: user store {where}: found Connection refused, expected a Redis server that answers"


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lhydra.users.redis_store", "lhydra.users.connections"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lhydra\[redis\]'"):
        open_users("redis://host", tmp_path)


def test_redis_is_imported_only_when_asked_for() -> None:
    script = "import sys, lhydra.users, lhydra_server.worker; assert 'redis' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
