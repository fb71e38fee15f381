"""What a user's record holds beyond history and heard tracks, and what a play costs, against plays in plain lists."""

import math
import random
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra import domain
from lhydra.data import plays
from lhydra.data.dataset import TEST, TRAIN, Dataset, user_states
from lhydra.data.plays import with_plays
from lhydra.domain import (
    COMPLETED,
    HALF_LIVES_DAYS,
    LIVE,
    MAX_RECENT,
    MAX_TOTAL,
    SKIPPED,
    UserState,
    make_history,
    no_hashes,
    track_hashes,
)
from lhydra.errors import UserStoreError
from lhydra.repeats import add_up, at_once, either, hashes_of, histories_of, single_plays, sums_by_track
from lhydra.users import heard, lmdb_store, packed, record
from lhydra.users.packed import unpack
from lhydra.users.record import UserRecord
from lhydra.users.store import UserStore, open_users
from tests.redis_server import RedisServer, budgets, running
from tests.test_users import Entry, assert_same, damage, play, state_of, stored

DAY = 86_400


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture(params=["lmdb", "redis"])
def users(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[UserStore]:
    url = None
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        server.empty()
        url = server.url
    store = open_users(url, tmp_path)
    with budgets():
        yield store
    store.close()


def state(users: UserStore, user_id: str = "ann") -> UserState:
    found = users.get(user_id)
    assert found is not None
    return found


# -- chunks of heard tracks ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 2**64 - 1) | st.integers(0, 60), max_size=60)))
def test_every_hash_is_found_in_its_chunk_and_no_chunk_passes_its_bound(batches: list[set[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heard, "MAX_CHUNK", 8)
        lows, chunks, everything = np.zeros(1, np.uint64), {0: no_hashes()}, set[int]()
        for batch in batches:
            hashes = np.array(sorted(batch), np.uint64)
            wanted = heard.places(lows, hashes) if len(hashes) else []
            lows, changed = heard.add(lows, {low: chunks[low] for low in wanted}, hashes)
            assert len(batch) != 1 or len(changed) <= 2
            assert not changed or batch - everything
            chunks |= changed
            everything |= batch
            assert lows.tolist() == sorted(chunks)
            whole = np.concatenate([chunks[low] for low in lows.tolist()])
            assert whole.tolist() == sorted(everything)
            assert all(len(chunk) <= 8 for chunk in chunks.values())
            for one in batch:
                (place,) = heard.places(lows, np.array([one], np.uint64))
                assert one in chunks[place].tolist()


@pytest.mark.parametrize("n", [heard.MAX_CHUNK, heard.MAX_CHUNK + 1, 50_000])
def test_heavy_listeners_are_read_whole_and_change_one_chunk_a_play(users: UserStore, n: int) -> None:
    tracks = [f"n{i}" for i in range(n)]
    users.load([("ann", state_of({"age": 3}, [("n0", 1.0, 1)], set(tracks))), ("anna", UserState({"age": 4}))])
    assert_same(users.get("ann"), state_of({"age": 3}, [("n0", 1.0, 1)], set(tracks)))
    users.record([play("e0", "new", time=2), play("e1", "newer", time=3), play("e2", "n7", user="anna")])
    expected = state_of({"age": 3}, [("n0", 1.0, 1), ("new", 1.0, 2), ("newer", 1.0, 3)], {*tracks, "new", "newer"})
    assert_same(users.get("ann"), expected)
    users.load([("ann", state_of({"age": 5}, [], {"late"}))])
    assert len(state(users).heard) == n + 3
    assert_same(users.get("anna"), state_of({"age": 4}, [("n7", 1.0, 1)], {"n7"}))
    assert [dict(one.profile) for one in users.sample(9)] == [{"age": 5}, {"age": 4}]  # chunks are no users
    assert [len(one.heard) for one in users.sample(9)] == [n + 3, 1]


def test_what_a_play_writes_does_not_grow_with_what_was_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def counted(record: UserRecord, key: bytes) -> list[tuple[bytes, bytes]]:
        values = list(packed.values(record, key))
        written.append(sum(len(value) for _, value in values))
        return values

    users = open_users(None, tmp_path)
    most = []
    for n in (10_000, 160_000):
        hashes = np.unique(np.random.default_rng(n).integers(0, 2**64, n, np.uint64))
        users.load([("ann", UserState({}, heard=hashes))])
        with monkeypatch.context() as patch:
            patch.setattr(lmdb_store, "values", counted)
            written.clear()
            for i in range(100):
                users.record([play(f"{n}-{i}", f"{n}-{i}", time=i)])
            most.append(max(written))
    users.close()
    assert most[1] < most[0] + 16 * (160_000 // heard.MAX_CHUNK) + 60 * 200  # 200 live plays more; 2 % at most
    assert most[1] < 2 * 8 * heard.MAX_CHUNK


def test_readers_see_record_and_chunks_of_one_moment(users: UserStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard, "MAX_CHUNK", 4)
    done, wrong, read = threading.Event(), list[tuple[int, int]](), 0

    def reading() -> None:
        nonlocal read
        while not done.is_set():
            if (found := users.get("ann")) is not None:
                read += 1
                if len(found.heard) != found.version:
                    wrong.append((len(found.heard), found.version))

    threads = [threading.Thread(target=reading) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(150):
            users.record([play(f"e{i}", f"t{i}", time=i)])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert read > 0
    assert state(users).version == 150


def test_a_missing_chunk_is_an_error_and_not_a_shorter_list(users: UserStore) -> None:
    users.load([("ann", state_of({}, [], {f"n{i}" for i in range(5000)}))])
    lows = unpack(stored(users, "ann"), "ann").lows.tolist()
    assert len(lows) > 1
    if hasattr(users, "_env"):
        with users._env.raw.begin(write=True) as txn:
            assert txn.delete(heard.chunk_key(b"uann", lows[1]))
    else:
        with users._connection(1) as connection:  # type: ignore[attr-defined]
            connection.send_command("DEL", b"lhydra:~:uann" + lows[1].to_bytes(8, "big"))
            assert connection.read_response() == 1
    with pytest.raises(UserStoreError, match=r"value of user [0-9a-f]{16}: found nothing, expected"):
        users.get("ann")


# -- first plays, decayed counts, the last plays in order, versions -------------------------------------------

moments = st.integers(0, 40).map(lambda n: n * 11 * DAY)
plays_of = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([1.0, 2.0, 7.5]), moments), max_size=12)


def assert_repeats(found: UserState, entries: list[Entry]) -> None:
    """By brute force, from every play."""
    assert len(found.repeats) == len(found.history)
    by_hash = {int(track_hashes([track]).item()): track for track, _, _ in entries}
    for (track, _, last), (first, decayed) in zip(found.history.tolist(), found.repeats.tolist(), strict=True):
        own = [(count, time) for name, count, time in entries if name == by_hash[track]]
        assert first == min((time for _, time in own if time), default=0)
        for days, value in zip(HALF_LIVES_DAYS, decayed, strict=True):
            expected = math.fsum(count * 2 ** (-(last - time) / (days * DAY)) for count, time in own)
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-30)


def told(entries: list[Entry]) -> UserState:
    """The state of plays of which each is known."""
    tracks, counts, times = ([entry[i] for entry in entries] for i in range(3))
    hashes = track_hashes(map(str, tracks))
    single = single_plays(hashes, counts, times)  # type: ignore[arg-type]
    history, repeats = add_up(single, at_once(single))
    return UserState({}, history, np.unique(hashes), repeats=repeats)


@settings(deadline=None)
@given(st.data())
def test_entries_added_up_are_those_of_make_history_and_brute_force(data: st.DataObject) -> None:
    entries: list[Entry] = data.draw(plays_of)
    found = told(entries)
    tracks, counts, times = ([entry[i] for entry in entries] for i in range(3))
    expected = make_history(track_hashes(map(str, tracks)), counts, times)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.history, expected)
    assert_repeats(found, entries)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(2**63, 2**63 + 9) | st.integers(0, 2**64 - 1)), max_size=40))
def test_the_heard_tracks_of_many_users_are_sorted_to_the_last_bit(heard_by: list[tuple[int, int]]) -> None:
    users = np.array([user for user, _ in heard_by], np.int64)
    found = hashes_of(np.array([track for _, track in heard_by], np.uint64), users, 6)
    assert [one.tolist() for one in found] == [sorted({t for u, t in heard_by if u == user}) for user in range(6)]


def test_many_users_added_up_at_once_are_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    owners = np.sort(rng.integers(0, 9, 4000))
    owners[owners == 4] = 5  # one without plays
    times = rng.integers(0, 99, 4000) * DAY
    single = single_plays(rng.integers(0, 300, 4000, np.uint64), rng.random(4000, np.float32), times)
    sums, repeats, whose = sums_by_track(single, at_once(single), owners)
    monkeypatch.setattr(domain, "MAX_HISTORY", 100)
    monkeypatch.setattr("lhydra.repeats.MAX_HISTORY", 100)
    histories = histories_of(single, owners, 11)
    assert [len(one) for one in histories] == [100] * 4 + [0] + [100] * 4 + [0] * 2
    heards = hashes_of(single["track"], owners, 11)
    for user in range(11):
        own = single[owners == user]
        np.testing.assert_array_equal(histories[user], make_history(own["track"], own["count"], own["time"]))
        np.testing.assert_array_equal(heards[user], np.unique(own["track"]))
        alone, parts = add_up(own, at_once(own))
        np.testing.assert_array_equal(alone, histories[user])
        at = np.searchsorted(sums["track"][whose == user], alone["track"])
        np.testing.assert_array_equal(repeats[whose == user][at], parts)


@settings(deadline=None)
@given(plays_of, plays_of, st.integers(1, 12))
def test_decayed_counts_of_any_split_are_those_of_all_plays(base: list[Entry], live: list[Entry], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "MAX_LIVE", 3)  # sums of live plays too
        found = UserRecord().with_base(told(base))
        calls = [play(f"e{i}", track, count=count, time=time) for i, (track, count, time) in enumerate(live)]
        for i in range(0, len(calls), size):
            found, _ = found.with_plays(calls[i : i + size])
        assert_repeats(found.state, base + live)
        found = found.with_base(UserState())
        assert_repeats(found.state, live)


def test_loading_absorbs_what_the_data_covers_in_every_column(users: UserStore) -> None:
    users.record([play("e0", "a", time=10 * DAY), play("e1", "b", time=20 * DAY), play("e2", "a", time=30 * DAY)])
    base: list[Entry] = [("a", 2.0, 5 * DAY), ("a", 1.0, 10 * DAY)]
    users.load([("ann", told(base))])
    assert_repeats(state(users), [*base, ("b", 1.0, 20 * DAY), ("a", 1.0, 30 * DAY)])


@pytest.mark.parametrize("as_of", ["now", "test"])
def test_loaded_users_know_their_single_plays(tiny_dataset: Dataset, as_of: Any, users: UserStore) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plays, "_BATCH", 97)
        states = dict(with_plays(tiny_dataset, as_of, user_states(tiny_dataset, as_of)))
    assert list(states) == tiny_dataset.user_ids
    some = list(states)[:40]
    users.load([(user_id, states[user_id]) for user_id in some])
    events = tiny_dataset.events
    upto = TRAIN if as_of == "test" else TEST
    for n, user_id in enumerate(some):
        own = events.where((events.user == n) & (events.fold <= upto))
        found = state(users, user_id)
        ids = [tiny_dataset.track_ids[track] for track in own.track]
        assert_repeats(found, list(zip(ids, own.count.tolist(), own.time.tolist(), strict=True)))
        dated = [(i, t) for i, t in zip(ids, own.time.tolist(), strict=True) if t > 0][-MAX_RECENT:]
        assert found.recent["time"].tolist() == [time for _, time in dated]
        assert found.recent["track"].tolist() == track_hashes(track for track, _ in dated).tolist()


@settings(deadline=None)
@given(plays_of, st.integers(0, 12), st.integers(0, 12))
def test_two_overlapping_accounts_count_no_play_twice(plays: list[Entry], first: int, second: int) -> None:
    whole, part = told(plays), told([entry for i, entry in enumerate(plays) if first <= i < second])
    for a, b in ((whole, part), (part, whole), (whole, whole)):
        history, repeats, _ = either(a, b)
        np.testing.assert_array_equal(history, whole.history)
        assert_repeats(UserState({}, history, repeats=repeats), plays)


def test_what_is_stored_may_be_loaded_again_with_more(users: UserStore) -> None:
    users.load([("ann", told([("a", 2.0, 5 * DAY)]))])
    users.record([play("e0", "b", time=6 * DAY), play("e1", "c", time=7 * DAY, skipped=True)])
    before = state(users)
    history, repeats, recent = either(before, told([("a", 1.0, 5 * DAY), ("d", 1.0, 1 * DAY)]))
    users.load([("ann", UserState({}, history, before.heard, repeats=repeats, recent=recent))])
    assert_repeats(state(users), [("a", 2.0, 5 * DAY), ("b", 1.0, 6 * DAY), ("d", 1.0, 1 * DAY)])
    np.testing.assert_array_equal(state(users).recent, before.recent)


def test_the_last_plays_are_kept_in_order(users: UserStore) -> None:
    rng = random.Random(1)
    calls = [
        play(f"e{i}", f"t{i % 7}", time=rng.randrange(1, 90), skipped=rng.random() < 0.3, completed=rng.random() < 0.5)
        for i in range(MAX_RECENT + 60)
    ]
    at = 0
    while at < len(calls):
        n = rng.randrange(1, 40)
        users.record(calls[at : at + n])
        at += n
    kept = sorted(range(len(calls)), key=lambda i: calls[i].time)[-MAX_RECENT:]  # ties by arrival
    found = state(users).recent
    assert len(found) == MAX_RECENT
    assert found["time"].tolist() == [calls[i].time for i in kept]
    assert found["track"].tolist() == track_hashes(calls[i].track_id for i in kept).tolist()
    flags = [LIVE | SKIPPED * bool(calls[i].skipped) | COMPLETED * bool(calls[i].completed) for i in kept]
    assert found["flags"].tolist() == flags


def test_every_change_raises_the_version_and_nothing_else_does(users: UserStore) -> None:
    versions = []
    for change in (
        lambda: users.record([play("e0", "a")]),
        lambda: users.record([play("e0", "a")]),  # a retry
        lambda: users.load([("ann", told([("b", 1.0, 1)]))]),
        lambda: users.load([("ann", told([("b", 1.0, 1)]))]),  # the same again
        lambda: users.record([play("e1", "a", skipped=True)]),
        lambda: users.load([("bob", UserState())]),
    ):
        change()
        versions.append(state(users).version)
    assert versions == [1, 1, 2, 2, 3, 3]
    assert state(users, "bob").version == 1


@pytest.mark.parametrize("bad", [3e38, math.inf, math.nan, -5.0])
def test_no_count_becomes_infinite_or_no_number(users: UserStore, bad: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        users.record([play(f"e{i}", "a", count=bad, time=DAY * i) for i in range(20)])
        huge = make_history(track_hashes("ab"), [min(bad, 3e38)] * 2, [5, 5])
        users.load([("ann", UserState({}, huge)), ("bob", UserState({}, huge))])
        users.record([play("x", "a", count=bad, time=1)])
    for user in ("ann", "bob"):
        found = state(users, user)
        for counts in (found.history["count"], found.repeats["decayed"]):
            assert np.isfinite(counts).all()
            assert (counts >= 0).all()
            assert (counts <= np.float32(MAX_TOTAL)).all()


# What each version wrote for the same listener. Never to be changed: such values lie in stores.
GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_golden_records_are_read_and_written_as_the_newest(users: UserStore, version: int) -> None:
    damage(users, "ann", bytes.fromhex((GOLDEN / f"user_record_v{version}.hex").read_text()))
    entries: list[Entry] = [("t0", 5.0, 10), ("t1", 1.0, 12), ("t0", 2.0, 20)]
    expected = state_of(
        {"age": 30, "country": "Österreich"}, entries, {"t0", "t1", "t2", "t9"}, ["t2"] if version > 1 else []
    )
    found = state(users)
    assert_same(found, expected)
    assert found.version == (2 if version == 3 else 0)
    assert found.recent["track"].tolist() == (track_hashes(["t0", "t2"]).tolist() if version == 3 else [])
    assert users.record([play("e0", "t0"), play("e1", "t0")]) == [False, False]
    assert stored(users, "ann")[0] == version
    assert users.record([play("e2", "t0", time=DAY)]) == [True]
    assert stored(users, "ann")[0] == 3
    assert state(users).version > found.version
    assert_same(
        users.get("ann"),
        state_of(
            dict(expected.profile),
            [*entries, ("t0", 1.0, DAY)],
            {"t0", "t1", "t2", "t9"},
            ["t2"] if version > 1 else [],
        ),
    )
