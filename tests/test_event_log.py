"""The event log beside a plain list: what was recorded, once, in order, whatever else is done to the store."""

import itertools
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import pytest
import redis as redis_py
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.domain import Play, track_hashes
from lhydra.errors import UserStoreError
from lhydra.events import lmdb_log, log, redis_log
from lhydra.events.event import Event, pack, unpack
from lhydra.users import lmdb_store, redis_store
from lhydra.users import opened as opened_files
from lhydra.users.lmdb_store import LmdbUsers
from lhydra.users.place import try_files
from lhydra.users.redis_store import RedisUsers
from lhydra.users.store import UserStore, open_users
from tests.redis_server import RedisServer, budgets, running

GOLDEN = Path(__file__).parent / "golden" / "event_v1.hex"
FULL = Play("e é", "ann", "t雨", 1_700_000_000, 2.5, True, False, "req:1/2.3_-", "s 1", 86_400_000)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The clock of recording, in milliseconds: its one entry."""
    clock = [1_700_000_000_000]
    for module in (lmdb_store, redis_log):
        monkeypatch.setattr(module, "now_ms", lambda: clock[0])
    return clock


Opener = Callable[..., UserStore]


@pytest.fixture(params=["lmdb", "redis"])
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Opens the one store; what was opened before is closed first."""
    url, made = None, list[UserStore]()
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        server.empty()
        url = server.url

    def open_one(**options: Any) -> UserStore:
        while made:
            made.pop().close()
        made.append(open_users(url, tmp_path, **options))
        return made[-1]

    with budgets():
        yield open_one
        made[-1].close()


@pytest.fixture
def users(opened: Opener) -> UserStore:
    return opened()


def play(event: str, user: str = "ann", **more: Any) -> Play:
    return Play(event, user, f"of {event}", 1, **more)


def logged(users: UserStore, *args: Any, **options: Any) -> list[tuple[str, Event]]:
    return [entry for chunk in users.events(*args, **options) for entry in chunk]


def ids(entries: Sequence[tuple[str, Event]]) -> list[str]:
    return [event.play.event_id for _, event in entries]


# -- one entry ----------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
flags = st.sampled_from([None, True, False])
plays = st.builds(
    Play,
    *(texts, texts, texts, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), flags, flags),
    *(texts, texts, st.none() | st.integers(0, 2**32 - 1)),
)


@given(plays, st.integers(0, 2**63))
def test_an_entry_is_read_as_it_was_written(one: Play, recorded_ms: int) -> None:
    packed = pack(one, recorded_ms)
    assert unpack(packed, "7") == Event(one, recorded_ms)


def test_entries_of_format_1_are_read_by_every_later_version() -> None:
    packed = bytes.fromhex(GOLDEN.read_text())
    assert unpack(packed, "7") == Event(FULL, 1_800_000_000_123)
    assert pack(FULL, 1_800_000_000_123) == packed


def test_no_changed_byte_and_no_lost_one_is_half_read() -> None:
    packed = pack(FULL, 5)
    wrong = [packed[:n] for n in range(len(packed))] + [packed + b"x"]
    for place in range(len(packed)):
        if place not in (1, 2, 3):  # nothing lies there
            wrong += [packed[:place] + bytes([packed[place] ^ 1 << bit]) + packed[place + 1 :] for bit in range(8)]
    for value in wrong:
        with pytest.raises(UserStoreError, match=r"^event log: entry 7-1: found .*, expected [^\n]*$"):
            unpack(value, "7-1")
    with pytest.raises(UserStoreError, match="found format 2, expected format 1"):
        unpack(b"\x02" + packed[1:], "7")


def test_positions_compare_as_entries_follow_each_other() -> None:
    assert sorted(["10-2", "9-11", "10-10", "10-1"], key=log.place) == ["9-11", "10-1", "10-2", "10-10"]
    assert sorted(["10", "9", "100"], key=log.place) == ["9", "10", "100"]
    for wrong in ("", "-", "1-", "-1", "1-2-3", "x", "1.0", "٣", "1" * 21):
        with pytest.raises(UserStoreError, match="position in the event log: found "):
            log.place(wrong)


# -- the log ------------------------------------------------------------------------------------------------


def test_new_plays_enter_in_order_as_they_came(users: UserStore, now: list[int]) -> None:
    empty = users.event_log()
    assert empty == log.EventLogInfo(identity=empty.identity, free_bytes=empty.free_bytes)
    assert logged(users) == []
    first = [FULL, play("e1", "bob"), FULL, play("e2")]
    assert users.record(first) == [True, True, False, True]
    now[0] += 5
    assert users.record([play("e1", "bob"), play("e3", "bob")]) == [False, True]
    found = logged(users)
    assert [event.play for _, event in found] == [FULL, play("e1", "bob"), play("e2"), play("e3", "bob")]
    assert [event.recorded_ms for _, event in found] == [now[0] - 5] * 3 + [now[0]]
    info = users.event_log()
    assert (info.entries, info.oldest_ms, info.first, info.last) == (4, now[0] - 5, found[0][0], found[-1][0])
    assert info.n_bytes > 0
    assert len(info.identity) == 16
    assert ids(logged(users, found[1][0])) == ["e2", "e3"]
    assert ids(logged(users, found[0][0], found[2][0])) == ["e1", "e2"]
    assert ids(logged(users, user_id="bob")) == ["e1", "e3"]
    assert ids(logged(users, user_id="bo")) == []
    assert logged(users, found[-1][0]) == []


def test_a_log_of_many_chunks_is_read_whole(users: UserStore, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [f"e{i}" for i in range(300)]
    users.record([play(event, f"u{i % 7}") for i, event in enumerate(events)])
    for module in (lmdb_store, redis_log):
        monkeypatch.setattr(module, "CHUNK", 7)
    assert ids(logged(users)) == events
    assert max(map(len, users.events())) == 7
    assert ids(logged(users, user_id="u3")) == events[3::7]


def test_without_the_log_plays_are_recorded_alone(opened: Opener) -> None:
    assert opened(events=False).record([play("e1")]) == [True]
    assert opened().event_log().entries == 0
    assert opened().record([play("e1"), play("e2")]) == [False, True]
    assert ids(logged(opened(events=False))) == ["e2"]


class Oracle:
    """The log as a list."""

    def __init__(self) -> None:
        self.entries: list[tuple[Play, int]] = []
        self.seen: dict[str, set[str]] = {}

    def record(self, plays: Sequence[Play], now_ms: int) -> list[bool]:
        flags = []
        for one in plays:
            flags.append(one.event_id not in self.seen.setdefault(one.user_id, set()))
            self.seen[one.user_id].add(one.event_id)
        self.entries += [(one, now_ms) for one in itertools.compress(plays, flags)]
        return flags

    def prune(self, before_ms: int) -> int:
        n_before = len(self.entries)
        self.entries = list(itertools.dropwhile(lambda entry: entry[1] < before_ms, self.entries))
        return n_before - len(self.entries)

    def delete(self, user_id: str) -> bool:
        self.entries, before = [entry for entry in self.entries if entry[0].user_id != user_id], self.entries
        return (self.seen.pop(user_id, None) is not None) | (len(self.entries) < len(before))


names = st.sampled_from(["a", "ab", "b"])
recordings = st.lists(st.tuples(st.sampled_from("123456789"), names), min_size=1, max_size=6)
steps = st.lists(
    st.one_of(
        *(recordings.map(lambda some: ("record", some)),) * 3,
        st.integers(-30, 30).map(lambda ms: ("clock", ms)),
        st.integers(-40, 40).map(lambda ms: ("prune", ms)),
        names.map(lambda name: ("delete", name)),
        st.just(("reopen", None)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=40)
@given(steps=steps, chunk=st.sampled_from([1, 2, 1000]))
@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_the_log_equals_a_list_in_any_order_of_steps(
    kind: str,
    redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, Any]],
    chunk: int,
) -> None:
    redis.empty()
    url, folder, clock = redis.url if kind == "redis" else None, tmp_path_factory.mktemp("log"), [1_000_000]
    oracle, positions = Oracle(), set[str]()
    with budgets(), pytest.MonkeyPatch.context() as patch:
        for module in (lmdb_store, redis_log):
            patch.setattr(module, "CHUNK", chunk)
            patch.setattr(module, "now_ms", lambda: clock[0])
        users = open_users(url, folder, sync_s=60)
        last, given = (0, 0), dict[str, str]()  # the highest position so far; what stood at each
        for step, what in steps:
            if step == "record":
                some = [Play(event, user, "t", 1) for event, user in what]
                assert users.record(some) == oracle.record(some, clock[0])
            elif step == "clock":
                clock[0] += what
            elif step == "prune":
                assert users.prune(clock[0] + what) == oracle.prune(clock[0] + what)
            elif step == "delete":
                assert users.delete(what) == oracle.delete(what)
            else:
                users.close()
                users = open_users(url, folder, sync_s=60)
            found = logged(users)
            assert [(event.play, event.recorded_ms) for _, event in found] == oracle.entries
            for position, event in found:  # no position ever stands for another entry
                assert given.setdefault(position, event.play.event_id) == event.play.event_id
            fresh = [log.place(position) for position, _ in found if position not in positions]
            assert all(one > last for one in fresh)
            last, positions = max([last, *fresh]), positions | {position for position, _ in found}
            info = users.event_log()
            ends = (found[0][0], found[-1][0], found[0][1].recorded_ms) if found else ("", "", 0)
            assert (info.entries, info.first, info.last, info.oldest_ms) == (len(found), *ends)
        users.close()


def test_a_reader_beside_writers_misses_nothing_and_reads_nothing_twice(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, n_writers, n_each = opened(), 4, 60
    for module in (lmdb_store, redis_log):
        monkeypatch.setattr(module, "CHUNK", 5)

    def write(name: int) -> None:
        for i in range(n_each):
            assert users.record([play(f"{name}-{i}", f"u{i % 5}")]) == [True]

    found: list[tuple[str, Event]] = []
    with ThreadPoolExecutor(n_writers) as pool:
        writing = [pool.submit(write, name) for name in range(n_writers)]
        while not all(one.done() for one in writing):
            found += logged(users, found[-1][0] if found else "")
        for one in writing:
            one.result()
    found += logged(users, found[-1][0] if found else "")
    assert found == logged(users)
    assert sorted(ids(found)) == sorted(f"{name}-{i}" for name in range(n_writers) for i in range(n_each))
    for name in range(n_writers):  # what one writer was told of first comes first
        own = [event for event in ids(found) if event.startswith(f"{name}-")]
        assert own == [f"{name}-{i}" for i in range(n_each)]


def test_old_entries_go_with_new_ones(opened: Opener, now: list[int]) -> None:
    users = opened(events_keep_ms=1000)
    n = 500
    if isinstance(users, RedisUsers):
        pytest.skip("ids of a stream are by the clock of Redis")
    for i in range(n):
        users.record([play(f"old{i}")])
    now[0] += 1001
    for i in range(n):
        users.record([play(f"new{i}", "bob")])
    assert ids(logged(users)) == [f"new{i}" for i in range(n)]
    assert opened().prune(now[0] + 1) == n


def test_a_stream_forgets_whole_nodes_that_are_too_old(opened: Opener) -> None:
    users = opened(events_keep_ms=1)
    if not isinstance(users, RedisUsers):
        pytest.skip("LMDB forgets single entries")
    with redis_py.Redis(port=users.address.port) as client:
        for i in range(1000):
            client.xadd(redis_log.NAME, {redis_log.FIELD: pack(play(f"old{i}"), 1)}, id=f"1-{i + 1}")
    users.record([play("new")])
    assert ids(logged(users))[-1] == "new"
    assert users.event_log().entries < 200


def test_a_play_recorded_while_its_user_is_deleted_is_gone_or_begins_anew(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = opened()
    for module in (lmdb_store, redis_log):
        monkeypatch.setattr(module, "CHUNK", 3)
    events = (f"e{i}" for i in itertools.count())
    users.record([play("other", "bob")])
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            users.record([play(next(events))])

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        for _ in range(20):
            users.delete("ann")
        ended.set()
        writing.result()
    stored = users.stored("ann")
    heard = set() if stored is None else set(stored.record.state.heard.tolist())
    of_log = [event.play.track_id for _, event in logged(users, user_id="ann")]
    assert set(track_hashes(of_log).tolist()) == heard
    assert len(of_log) == len(set(of_log))
    assert ids(logged(users, user_id="bob")) == ["other"]


def test_a_play_recorded_while_the_log_is_looked_through_stays(
    users: UserStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    users.record([play(f"e{i}") for i in range(10)])
    for module in (lmdb_store, redis_log):
        monkeypatch.setattr(module, "CHUNK", 3)
    looked: list[int] = []

    def look(entries: Sequence[tuple[str, bytes]], user_id: str) -> list[str]:
        if not looked:
            assert users.record([play("meanwhile")]) == [True]
        looked.append(len(entries))
        return log.positions_of(entries, user_id)

    for module in (lmdb_store, redis_store):
        monkeypatch.setattr(module, "positions_of", look)
    assert users.delete("ann")
    assert sum(looked) == 10
    assert ids(logged(users)) == ["meanwhile"]
    stored = users.stored("ann")
    assert stored is not None
    assert stored.record.state.heard.tolist() == track_hashes(["of meanwhile"]).tolist()


def test_a_damaged_entry_is_named_and_nothing_of_its_chunk_is_given(users: UserStore) -> None:
    users.record([play("e1"), play("e2"), play("e3")])
    position = logged(users)[1][0]
    if isinstance(users, LmdbUsers):
        database = users._env.database(lmdb_log.NAME, create=False)
        with users._env.raw.begin(write=True, db=database) as txn:
            key = int(position).to_bytes(8, "big")
            value = bytes(txn.get(key) or b"")
            txn.put(key, value[:-1] + b"?")
    else:
        assert isinstance(users, RedisUsers)
        with redis_py.Redis(port=users.address.port) as client:
            position = client.xadd(redis_log.NAME, {redis_log.FIELD: pack(play("e4"), 1)[:-1] + b"?"}).decode()
    with pytest.raises(UserStoreError, match=f"event log: entry {position}: found .* damaged bytes"):
        logged(users)
    assert ids(logged(users, position)) == (["e3"] if isinstance(users, LmdbUsers) else [])
    assert users.delete("ann")  # also what cannot be read
    assert logged(users) == []


def test_nothing_is_recorded_where_the_log_takes_nothing(users: UserStore, monkeypatch: pytest.MonkeyPatch) -> None:
    users.record([play("before")])
    state = users.get("ann")
    if isinstance(users, RedisUsers):
        with redis_py.Redis(port=users.address.port) as client:
            client.rename(redis_log.NAME, "kept")
            client.set(redis_log.NAME, "something else")
            with pytest.raises(UserStoreError, match=r"user store .*: found .*WRONGTYPE"):
                users.record([play("after"), play("after", "bob")])
            client.rename("kept", redis_log.NAME)
    else:
        with monkeypatch.context() as patch:

            def full(*args: Any) -> None:
                raise lmdb.MapFullError("no room")

            patch.setattr(lmdb_log, "append", full)
            with pytest.raises(UserStoreError, match="nothing was recorded"):
                users.record([play("after"), play("after", "bob")])
    again = users.get("ann")
    assert again is not None
    assert state is not None
    assert again.version == state.version
    assert users.get("bob") is None
    assert users.record([play("after")]) == [True]
    assert ids(logged(users)) == ["before", "after"]


def test_a_store_of_before_the_log_opens_and_begins_one(opened: Opener) -> None:
    old = opened(events=False)  # writes what an earlier version wrote
    old.record([play("e1")])
    users = opened(create=False)
    assert logged(users) == []
    assert users.prune(2**62) == 0
    assert users.event_log().entries == 0
    assert users.record([play("e1"), play("e2")]) == [False, True]
    assert ids(logged(users)) == ["e2"]
    sample = users.sample(10)
    assert len(sample) == 1  # whoever goes through all keys does not meet the log


def test_pages_of_an_lmdb_file_are_used_again_after_a_prune(tmp_path: Path) -> None:
    users = LmdbUsers(tmp_path / "users.lmdb", sync_s=60)
    data, sizes = tmp_path / "users.lmdb" / "data.mdb", list[int]()
    for round_ in range(6):
        for i in range(20):
            users.record([play(f"{round_}-{i}-{n}", f"u{n}", session_id="s" * 200) for n in range(40)])
        sizes.append(data.stat().st_size)
        full = users.event_log()
        assert users.prune(2**62) == 800
        empty = users.event_log()
        assert empty.free_bytes is not None
        assert full.free_bytes is not None
        assert empty.free_bytes - full.free_bytes > full.n_bytes / 2
        assert empty.n_bytes < full.n_bytes / 10
        for n in range(40):
            assert users.delete(f"u{n}")  # whose records would grow
    assert sizes[-1] == sizes[2]
    users.close()


def refused(users: UserStore, plays: Sequence[Play]) -> str:
    try:
        assert users.record(plays) == [True] * len(plays)
    except UserStoreError as error:
        return str(error)
    return ""


def test_a_full_map_refuses_plays_whole_and_a_prune_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened_files, "MAP_BYTES", 2**20)
    users, taken = LmdbUsers(tmp_path / "users.lmdb", sync_s=60), list[str]()
    batches = ([play(f"{n}-{i}", f"u{n % 5}", session_id="s" * 250) for i in range(20)] for n in itertools.count())
    for batch in batches:
        if said := refused(users, batch):
            break
        taken += [one.event_id for one in batch]
    assert said.endswith("in one store: nothing was recorded, reads go on")
    assert ids(logged(users)) == taken
    for n in range(5):
        state = users.get(f"u{n}")
        assert state is not None
        own = [event.play.track_id for _, event in logged(users, user_id=f"u{n}")]
        assert state.history["count"].sum() == len(own)
    assert users.prune(2**62) == len(taken)
    assert refused(users, batch) == ""
    assert ids(logged(users)) == [one.event_id for one in batch]
    users.close()


def test_a_redis_without_memory_refuses_plays_whole(tmp_path: Path) -> None:
    with running() as server, budgets(), redis_py.Redis(port=server.port) as client:
        users, taken = open_users(server.url, tmp_path), list[str]()
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 1_500_000)
        batches = ([play(f"{n}-{i}", f"u{n}", session_id="s" * 250) for i in range(20)] for n in itertools.count())
        for batch in batches:
            if said := refused(users, batch):
                break
            taken += [one.event_id for one in batch]
        assert "OutOfMemoryError" in said
        assert taken
        assert ids(logged(users)) == taken
        assert users.get(batch[0].user_id) is None
        client.config_set("maxmemory", 0)
        assert refused(users, batch) == ""
        assert ids(logged(users)) == taken + [one.event_id for one in batch]
        users.close()


def test_the_try_of_doubtful_files_reads_the_ends_of_the_log_too(tmp_path: Path) -> None:
    users = LmdbUsers(tmp_path / "users.lmdb")
    users.record([play("e1")])
    with users._env.raw.begin() as txn:
        (root,) = struct.unpack_from("<Q", bytes(txn.get(lmdb_log.NAME) or b""), 40)  # LMDB's page of the database
    size = users._env.raw.stat()["psize"]
    users.close()
    try_files(tmp_path / "users.lmdb")
    with (tmp_path / "users.lmdb" / "data.mdb").open("r+b") as data:
        data.seek(root * size)
        data.write(b"\xff" * size)
    with pytest.raises(UserStoreError):
        try_files(tmp_path / "users.lmdb")
