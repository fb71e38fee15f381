"""Users, bundles and counts as operators ask for them: a real server and client, brute force as oracle."""

import asyncio
import bisect
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.bundle import Bundle
from lhydra.domain import Play
from lhydra.features.listening import PAUSE_S
from lhydra.logs import AccessLog
from lhydra.recommender import Recommender
from lhydra.users.place import claim
from lhydra.users.store import UserStore, open_users
from lhydra_client import AsyncClient, Client, InvalidRequest, Unavailable, User
from lhydra_client import Play as Played
from lhydra_server.app import Listener
from lhydra_server.metrics.counted import FRACTIONS, quantiles
from lhydra_server.metrics.layout import LATENCY_US
from lhydra_server.served import served_of
from lhydra_server.service import RecommenderService
from tests.fake_serve import write_bundle
from tests.harness import until
from tests.redis_server import RedisServer, budgets, running
from tests.test_supervisor import B1, fake, publish
from tests.test_supervisor import running as serving

NOW = 1_800_000_000
KINDS = ("lmdb", "redis")
IDS = ("ann", "anna", "an*", "an?x", "an[na]", "an\\n", "bob", "ünï", "音楽", "u", "h", "a" * 256, "音" * 256)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture(params=KINDS)
def users(request: pytest.FixtureRequest, tmp_path: Path, redis: RedisServer) -> Iterator[UserStore]:
    url = None
    if request.param == "redis":
        redis.empty()
        url = redis.url
        claim(url, tmp_path, False)()
    with budgets():
        store = open_users(url, tmp_path)
        yield store
        store.close()


@pytest.fixture(scope="module")
def bundle(tiny_store: Path) -> Bundle:
    return Bundle.open(tiny_store)


@pytest.fixture
def client(bundle: Bundle, tiny_store: Path, users: UserStore) -> Iterator[Client]:
    served = served_of(bundle, Recommender(bundle))
    service = RecommenderService(served, users, max_k=50, store=tiny_store, clock=lambda: NOW)
    listener = Listener(service, "127.0.0.1:0", max_in_flight=8)
    listener.start()
    with Client(f"127.0.0.1:{listener.port}", timeout_s=20) as client:
        yield client
    listener.stop(0)


def played(user: str, track: str, time_s: int, n: int, *, skipped: bool = False) -> Play:
    return Play(f"{user}-{n}", user, track, time_s, skipped=skipped)


def test_a_user_is_told_as_recorded(bundle: Bundle, client: Client, users: UserStore) -> None:
    ids = bundle.catalog.track_ids(np.arange(4))
    titles = bundle.catalog.titles(np.arange(4))
    pauses = [5 * PAUSE_S, PAUSE_S + 1, PAUSE_S, 60, 0]  # how long before the next play, or now
    times = [NOW - sum(pauses[i:]) - 100 for i in range(5)]
    tracks = [ids[0], ids[1], ids[0], "gone", ids[2]]
    users.record([played("ann", t, s, n, skipped=n == 4) for n, (t, s) in enumerate(zip(tracks, times, strict=True))])
    found = client.user("ann")
    assert found.known
    assert [play.track_id for play in found.plays] == [ids[2], "", ids[0], ids[1], ids[0]]
    assert [play.timestamp_s for play in found.plays] == times[::-1]
    assert [play.skipped for play in found.plays] == [True, False, False, False, False]
    assert all(play.live for play in found.plays)
    assert found.session == 3  # a pause of just PAUSE_S ends no session, one second more does
    assert [(one.track_id, one.count, one.first_s, one.last_s) for one in found.history] == [
        ("", 1, times[3], times[3]),
        (ids[0], 2, times[0], times[2]),
        (ids[1], 1, times[1], times[1]),
    ]  # a skip is no play
    assert [one.title for one in found.history] == ["", titles[0], titles[1]]
    assert (found.history_tracks, found.heard_tracks) == (3, 4)
    assert (found.bundle_id, found.state_version) == (bundle.bundle_id, 1)
    less = client.user("ann", 2)
    assert (less.plays, less.history, less.session) == (found.plays[:2], found.history[:2], 3)


def test_a_loaded_user_is_told_whole(bundle: Bundle, client: Client, users: UserStore, tiny_store: Path) -> None:
    loaded = open_users(None, tiny_store)
    states = [state for state in loaded.sample(300) if state.profile][:1]
    loaded.close()
    users.load([("ann", states[0])])
    found = client.user("ann", 1_000)
    assert dict(found.profile) == {
        name: value if isinstance(value, str) else float(value or 0)
        for name, value in states[0].profile.items()
        if value is not None
    }
    rows = bundle.catalog.rows(states[0].history["track"].astype(np.uint64)[::-1])
    assert [one.track_id for one in found.history] == bundle.catalog.track_ids(rows)
    assert found.heard_tracks == len(states[0].heard)


def test_unknown_and_deleted_users_are_no_error(client: Client, users: UserStore) -> None:
    nobody = client.user("nobody")
    assert (nobody.known, nobody.history, nobody.plays, nobody.session) == (False, (), (), 0)
    users.record([played("ann", "t", NOW, 0)])
    assert client.user("ann").known
    assert client.users("ann").user_ids == ("ann",)
    users.delete("ann")
    assert not client.user("ann").known
    assert client.users("ann").user_ids == ()


@pytest.mark.parametrize("empty", [True, False])
def test_users_are_found_by_the_beginning_of_their_ids(client: Client, users: UserStore, empty: bool) -> None:
    there = () if empty else IDS
    users.record([played(user, "t", NOW, n) for n, user in enumerate(there)])
    named = sorted((user for user in there if len(user.encode()) <= 500), key=str.encode)
    for prefix in ("", *IDS, "an", "音", "zz", "*", "["):
        begin = [user for user in named if user.startswith(prefix)]
        if prefix in there and prefix not in named:
            begin = [prefix]  # kept as a hash: only the whole id finds it
        for k in (1, 3, 100):
            found = client.users(prefix, k)
            assert set(found.user_ids) <= set(begin)
            assert len(found.user_ids) == min(k, len(begin)), prefix
            assert found.more == (len(begin) > k)
        assert list(client.users(prefix, 100).user_ids) == begin


@pytest.mark.parametrize("users", ["redis"], indirect=True)
def test_a_redis_store_is_not_looked_through_for_longer_than_allowed(
    users: UserStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lhydra.users import redis_store

    everybody = [f"u{n}" for n in range(6_000)]
    users.record([played(user, "t", NOW, n) for n, user in enumerate(everybody)])
    assert users.search("u4321", 5) == (["u4321"], False)
    monkeypatch.setattr(redis_store, "SEARCH_S", 0.0)
    found, more = users.search("u4321", 5)
    assert (found, more) == (["u4321"], True)  # the whole id is found in any case
    found, more = users.search("u", 7)
    assert (len(found), more) == (7, True)
    assert set(found) <= set(everybody)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client: client.user(""), "user_id"),
        (lambda client: client.user("a\nb"), "user_id"),
        (lambda client: client.user("a" * 257), "user_id"),
        (lambda client: client.user("ann", 1_001), "max_entries"),
        (lambda client: client.users("a" * 257), "prefix"),
        (lambda client: client.users("a\0"), "prefix"),
        (lambda client: client.users("a", 0), "k"),
        (lambda client: client.users("a", 101), "k"),
    ],
)
@pytest.mark.parametrize("users", ["lmdb"], indirect=True)
def test_limits_are_named_by_their_field(client: Client, call: Callable[[Client], object], field: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"\b{field}: found "):
        call(client)


def test_a_user_store_that_is_away_is_unavailable(bundle: Bundle, tiny_store: Path, tmp_path: Path) -> None:
    with running() as server, budgets():
        claim(server.url, tmp_path, False)()
        users = open_users(server.url, tmp_path)
        service = RecommenderService(served_of(bundle, Recommender(bundle)), users, max_k=50, store=tiny_store)
        listener = Listener(service, "127.0.0.1:0", max_in_flight=8)
        listener.start()
        server.kill()
        with Client(f"127.0.0.1:{listener.port}", timeout_s=20) as client:
            for call in (lambda: client.user("ann"), lambda: client.users("ann")):
                with pytest.raises(Unavailable):
                    call()
            assert client.bundles()
        listener.stop(0)
        users.close()


def test_a_folder_of_users_that_is_away_is_unavailable(bundle: Bundle, tmp_path: Path) -> None:
    users = open_users(f"lmdb:{tmp_path / 'away'}", tmp_path, create=False, lasting=True)
    service = RecommenderService(served_of(bundle, Recommender(bundle)), users, max_k=50)
    listener = Listener(service, "127.0.0.1:0", max_in_flight=8)
    listener.start()
    with Client(f"127.0.0.1:{listener.port}", timeout_s=20) as client:
        for call in (lambda: client.user("ann"), lambda: client.users("ann")):
            with pytest.raises(Unavailable):
                call()
    listener.stop(0)
    users.close()


def test_logs_name_nobody(bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    users = open_users(None, tmp_path)
    users.record([played("secret-ann", "t", NOW, 0)])
    service = RecommenderService(served_of(bundle, Recommender(bundle)), users, max_k=50)
    calls = logging.getLogger("lhydra_server.calls")
    caplog.set_level(logging.INFO)
    log = AccessLog(name=calls.name, put=lines.append)
    listener = Listener(service, "127.0.0.1:0", max_in_flight=8, access_log=log)
    listener.start()
    with Client(f"127.0.0.1:{listener.port}", timeout_s=20) as client:
        assert client.user("secret-ann").known
        assert client.users("secret-a").user_ids == ("secret-ann",)
        for call in (lambda: client.user("secret-ann", 9_999), lambda: client.users("secret-ann", 0)):
            with pytest.raises(InvalidRequest):
                call()
    listener.stop(0)
    users.close()
    assert len(lines) == 4
    assert not [line for line in (*lines, caplog.text) if "secret" in line]


@pytest.mark.parametrize("users", ["lmdb"], indirect=True)
def test_the_aio_client_says_the_same(client: Client, users: UserStore) -> None:
    users.record([played("ann", "t", NOW, 0)])

    async def ask() -> tuple[User, tuple[str, ...], int, str]:
        async with AsyncClient(client._server.rpartition(" ")[2], timeout_s=20) as other:
            found = await other.user("ann"), (await other.users()).user_ids
            return *found, len(await other.bundles()), (await other.track_map(5)).bundle_id

    user, ids, n, bundle_id = asyncio.run(ask())
    assert user.plays == client.user("ann").plays
    assert (ids, n) == (("ann",), len(client.bundles()))
    assert bundle_id == client.track_map(5).bundle_id


@pytest.mark.parametrize("users", ["lmdb"], indirect=True)
def test_bundles_are_those_of_the_store(bundle: Bundle, tiny_store: Path, users: UserStore, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    old, new = sorted(path.name for path in store.iterdir() if (path / "manifest.json").is_file())
    (store / "CURRENT").write_text(f"{new}\n")
    service = RecommenderService(served_of(bundle, Recommender(bundle)), users, max_k=50, store=store)
    listener = Listener(service, "127.0.0.1:0", max_in_flight=8)
    listener.start()
    with Client(f"127.0.0.1:{listener.port}", timeout_s=20) as client:
        found = client.bundles()
        assert [one.bundle_id for one in found] == [new, old]
        assert [(one.current, one.serving, one.previous) for one in found] == [
            (True, bundle.bundle_id == new, False),
            (False, bundle.bundle_id == old, True),
        ]
        for one in found:
            document = json.loads((store / one.bundle_id / "manifest.json").read_text())
            assert one.tracks == document["n_tracks"] == len(bundle.catalog)
            assert one.bytes == sum((store / one.bundle_id / name).stat().st_size for name in document["files"])
            assert abs(one.created_s - time.time()) < 86_400
            assert (one.model_id, one.error) == (document["model_id"], "")
            assert one.verdict == document["gate"]["verdict"]
            assert [
                {"name": g.name, "verdict": g.verdict, "found": g.found, "limit": g.limit, "note": g.note}
                for g in one.gates
            ] == document["gate"]["checks"]
        with (store / new / "vectors.npy").open("ab") as file:
            file.write(b"x")
        (store / old / "manifest.json").write_text("{}")
        damaged = client.bundles()
        assert "vectors.npy" in damaged[0].error
        assert damaged[0].tracks == len(bundle.catalog)
        assert "manifest.json" in damaged[1].error
        assert not damaged[1].previous
        whole = json.loads((store / new / "manifest.json").read_text())
        (store / new / "manifest.sha256").unlink(missing_ok=True)
        changes: list[dict[str, Any]] = [
            {"gate": {}},
            {"n_tracks": -5},
            {"recipe": "\ud800"},
            {"files": {f"{'a' * 300}.npy": {"bytes": 1, "sha256": ""}}},
            {"changes": whole["changes"] | {"removed": 10**9}},
        ]
        for change in changes:
            (store / new / "manifest.json").write_text(json.dumps(whole | change))
            assert "manifest.json" in client.bundles()[0].error
        shutil.rmtree(store / old)
        assert [one.bundle_id for one in client.bundles()] == [new]
    listener.stop(0)


BUCKETS = st.lists(st.integers(0, 1_000_000), min_size=1, max_size=300)


@settings(max_examples=200, deadline=None)
@given(BUCKETS)
def test_percentiles_lie_in_the_bucket_of_what_was_observed(observed: list[int]) -> None:
    counts = [0] * (len(LATENCY_US) + 1)
    for one in observed:
        counts[bisect.bisect_left(LATENCY_US, one)] += 1
    for fraction, found in zip(FRACTIONS, quantiles(counts, LATENCY_US), strict=True):
        exact = sorted(observed)[max(0, int(np.ceil(fraction * len(observed))) - 1)]  # the nearest rank
        at = bisect.bisect_left(LATENCY_US, exact)
        assert (LATENCY_US[at - 1] if at else 0) <= found <= LATENCY_US[min(at, len(LATENCY_US) - 1)]


def test_percentiles_by_hand() -> None:
    assert quantiles([10, 0, 10, 0], (10, 20, 40)) == [10, 36, 40]
    assert quantiles([0, 0, 0, 5], (10, 20, 40)) == [40, 40, 40]


@pytest.mark.parametrize("count", [True, False])
def test_the_status_tells_what_all_workers_counted(tmp_path: Path, count: bool) -> None:
    store = tmp_path / "store"
    write_bundle(store, B1, n=100)
    publish(store, B1)
    with serving(fake(store, workers=2, count=count), tmp_path / "log") as server:
        n = 30
        for i in range(n):
            with Client(server.address, timeout_s=20) as client:  # a connection each: both workers answer some
                client.recommend(f"u{i}", 3)
        with Client(server.address, timeout_s=20) as client:
            client.record_plays([Played("u", "t1")])
            with pytest.raises(InvalidRequest):
                client.recommend("u", 0)
            if not count:
                found = client.status()
                assert (found.stages, found.methods, dict(found.tiers)) == ((), (), {})
                return
            until(lambda: {one.name: one.count for one in client.status().methods}.get("Recommend") == n + 1)
            found = client.status()
        assert {one.name: one.count for one in found.stages}["queue"] == n
        assert sum(found.tiers.values()) == n
        assert all(0 <= one.p50_us <= one.p90_us <= one.p99_us for one in (*found.stages, *found.methods))
