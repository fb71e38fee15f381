"""What is stored of one person: shown and exported whole, deleted without a trace, and never named in a log."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import lmdb
import numpy as np
import pytest
import redis as redis_py
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lhydra.bundle.bundle import Bundle
from lhydra.cli import main
from lhydra.domain import Play, UserState, track_hashes
from lhydra.errors import ConfigError, LhydraError
from lhydra.users import heard as chunks
from lhydra.users import packed as packing
from lhydra.users import redis_store, stored, tag
from lhydra.users.lmdb_store import LmdbUsers
from lhydra.users.record import UserRecord
from lhydra.users.redis_store import RedisUsers
from lhydra.users.store import UserStore, open_users
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.config import WorkerSettings
from tests.fake_serve import write_bundle
from tests.redis_server import RedisServer, budgets, running
from tests.test_supervisor import B1, Server, fake, open_stub, publish
from tests.test_supervisor import running as serving
from tests.test_users import damage

Values = dict[bytes, bytes]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture(params=["lmdb", "redis"])
def where(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The flags that name a store, new and empty."""
    with budgets(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MAX_CHUNK", 8)  # so that some users have chunks
        if request.param == "lmdb":
            LmdbUsers(tmp_path / "users.lmdb").close()
            yield ["--store", str(tmp_path)]
        else:
            server: RedisServer = request.getfixturevalue("redis")
            server.empty()
            yield ["--users", server.url]


def opened(where: list[str]) -> UserStore:
    flag, value = where
    return open_users(None, Path(value)) if flag == "--store" else open_users(value, Path())


def everything(users: UserStore) -> Values:
    """Every key and value of every database, read without our code."""
    if isinstance(users, RedisUsers):
        with redis_py.Redis(port=users.address.port) as client:
            events = {b"events/" + key: held[b"e"] for key, held in client.xrange("lhydra:events")}
            return {key: bytes(client.get(key) or b"") for key in client.keys("*") if key != b"lhydra:events"} | events
    assert isinstance(users, LmdbUsers)
    env, found = users._env.raw, Values()
    with env.begin() as txn:
        for key, held in txn.cursor():
            found[key] = held
        if found.pop(b"meta", None):
            with txn.cursor(env.open_db(b"meta", txn=txn, create=False)) as cursor:
                found |= {b"meta/" + key: held for key, held in cursor}
        if found.pop(b"events", None):
            log = users._env.database(b"events", create=False)
            with txn.cursor(log) as cursor:
                found |= {b"events/" + key: held for key, held in cursor if any(key)}
    return found


def plays_of(user: str, n: int, start: int = 0) -> list[Play]:
    return [Play(f"{user}-{i}", user, f"t{i}", 1000 + i, skipped=i % 5 == 4) for i in range(start, start + n)]


# Ids that begin with others', are as long as the key of a chunk, look like patterns, or are beyond LMDB's keys.
ODD = ["a", "ab", "a" + "x" * 8, "a\\*", "a*", "a?", "[a]", "aé雨", "a" * 256, "音" * 256, "音" * 255 + "楽"]


@settings(deadline=None, max_examples=12)
@example(sizes={"ab": 30, "axxxxxxxx": 30}, gone="a", n_gone=30, broken=False)
@example(sizes={"ab": 30, "axxxxxxxx": 30}, gone="a", n_gone=30, broken=True)
@given(
    sizes=st.dictionaries(st.sampled_from(ODD), st.sampled_from([1, 7, 30]), min_size=1),
    gone=st.sampled_from(ODD),
    n_gone=st.sampled_from([7, 30]),
    broken=st.booleans(),
)
@pytest.mark.parametrize("kind", ["lmdb", "redis"])
def test_delete_leaves_nothing_of_the_user_and_all_of_the_others(
    kind: str,
    sizes: dict[str, int],
    gone: str,
    n_gone: int,
    broken: bool,
    redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with budgets(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MAX_CHUNK", 8)
        redis.empty()
        where = ["--users", redis.url] if kind == "redis" else ["--store", str(tmp_path_factory.mktemp("store"))]
        users = opened(where)
        before: dict[str, Values] = {}
        for user, n in (sizes | {gone: n_gone}).items():
            held = everything(users)
            users.load([(user, UserState({"note": f"declared by {ODD.index(user)}."}))])
            users.record(plays_of(user, n))
            now = everything(users)
            identity = {key for key in now if key.endswith(b"id")}
            before[user] = {key: now[key] for key in now.keys() - held.keys() - identity}
            n_events = sum(key.startswith(b"events/") for key in before[user])
            assert (n_events, len(before[user]) > n_events + 2) == (n, n > 8)  # chunks of their own
        if broken and len(gone) < 250:  # a record that nobody can read any more tells of no chunks
            damage(users, gone, b"\x03broken")
        assert users.delete(gone)
        assert users.get(gone) is None
        assert users.stored(gone) is None
        assert not users.delete(gone)
        left = everything(users)
        for user, values in before.items():
            assert (values.keys() & left.keys()) == (set() if user == gone else values.keys())
            assert all(left.get(key, value) == value for key, value in values.items())
        traces = [f"declared by {ODD.index(gone)}.".encode()]
        if len(gone) > 2 and not any(gone in user for user in sizes if user != gone):
            traces.append(gone.encode())
        assert not any(trace in key + value for trace in traces for key, value in left.items())
        users.close()


def test_plays_beside_deletions_leave_a_whole_record_of_the_later_ones(where: list[str]) -> None:
    """Plays come in order while another thread deletes: what is left in the end are the last so many of them."""
    users, n = opened(where), 120
    users.record(plays_of("ann", 20))
    done = threading.Event()

    def record() -> None:
        for i in range(20, n):
            assert users.record(plays_of("ann", 1, i)) == [True]
        done.set()

    thread = threading.Thread(target=record)
    thread.start()
    deleted = 0
    while not done.is_set():
        deleted += users.delete("ann")
    thread.join()
    assert deleted > 0
    found = users.stored("ann")
    heard = set() if found is None else set(found.record.state.heard.tolist())
    hashes = track_hashes(f"t{i}" for i in range(n)).tolist()
    assert heard == set(hashes[n - len(heard) :])
    assert len(heard) < n
    assert users.record(plays_of("ann", 20)) == [i not in range(n - len(heard), n) for i in range(20)]
    users.delete("ann")
    assert not [key for key in everything(users) if not key.endswith((b"id", b"meta"))]
    users.close()


def test_a_play_that_comes_while_redis_deletes_is_deleted_too(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes new values after the old ones were counted: none of them may stay."""
    redis.empty()
    with budgets():
        monkeypatch.setattr(chunks, "MAX_CHUNK", 8)
        users, other = open_users(redis.url, Path()), open_users(redis.url, Path())
        users.record(plays_of("ann", 30))
        before, looks = len(everything(users)), list[object]()

        def looked(packed: bytes, user_id: str) -> list[int] | None:
            found = stored.lows_of(packed, user_id)
            if not looks:
                other.record(plays_of("ann", 30, 30))
                assert len(everything(users)) > before  # more chunks
            looks.append(found)
            return found

        monkeypatch.setattr(redis_store, "lows_of", looked)
        assert users.delete("ann")
        assert len(looks) == 2
        assert [key for key in everything(users) if not key.endswith(b"id")] == []
        for store in (users, other):
            store.close()


def test_reading_while_somebody_deletes_finds_nobody(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    redis.empty()
    with budgets():
        monkeypatch.setattr(chunks, "MAX_CHUNK", 8)
        users, other = open_users(redis.url, Path()), open_users(redis.url, Path())
        users.record(plays_of("ann", 30))

        def looked(packed: bytes, user_id: str) -> list[int] | None:
            monkeypatch.setattr(redis_store, "lows_of", stored.lows_of)
            assert other.delete(user_id)
            return stored.lows_of(packed, user_id)

        monkeypatch.setattr(redis_store, "lows_of", looked)
        assert users.stored("ann") is None
        for store in (users, other):
            store.close()


def test_a_play_that_redis_was_told_of_before_a_deletion_begins_a_new_record(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.empty()
    with budgets():
        monkeypatch.setattr(chunks, "MAX_CHUNK", 8)
        users, other = open_users(redis.url, Path()), open_users(redis.url, Path())
        users.record(plays_of("ann", 30))

        def read(packed: bytes, user_id: str) -> UserRecord:
            other.delete(user_id)  # and writing on the record that was read would bring half of it back
            return packing.unpack(packed, user_id)

        monkeypatch.setattr(redis_store, "unpack", read)
        assert users.record(plays_of("ann", 1, 30)) == [True]
        found = users.stored("ann")
        assert found is not None
        assert found.record.state.heard.tolist() == track_hashes(["t30"]).tolist()
        assert found.record.state.version == 1
        left = [key for key in everything(users) if not key.endswith(b"id")]
        assert sum(not key.startswith(b"events/") for key in left) == 1
        assert [event.play.event_id for chunk in users.events() for _, event in chunk] == ["ann-30"]
        for store in (users, other):
            store.close()


def test_an_export_says_when_it_did_not_look_for_answers(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = opened(where)
    users.record(plays_of("a", 1))
    users.close()
    told = "the answer log is not in it: say where it is, --store STORE or --answers FOLDER\n"
    for flags in (where, [*where, "--answers", str(tmp_path)]):
        assert main(["users", "export", "a", *flags]) == 0
        said = capsys.readouterr()
        unsaid = flags == where and where[0] == "--users"
        assert json.loads(said.out)["answers"] == (None if unsaid else [])
        assert (said.err == told) == unsaid


def test_an_export_holds_all_that_the_record_holds(where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    users = opened(where)
    users.load([("ann", UserState({"age": 30, "country": "Österreich", "none": None}))])
    users.record(plays_of("ann", 30))
    found = users.stored("ann")
    assert found is not None
    state = found.record.state
    values = everything(users)
    users.close()
    assert main(["users", "export", "ann", *where]) == 0
    said = json.loads(capsys.readouterr().out)

    def hashes(name: str) -> list[int]:
        return [int(entry["track_hash"], 16) for entry in said[name]]

    assert (said["user_id"], said["profile"]) == ("ann", {"age": 30, "country": "Österreich", "none": None})
    assert (said["version"], said["record_format"], said["flags"]) == (state.version, 3, 0)
    assert sorted(hashes("heard")) == sorted(track_hashes(f"t{i}" for i in range(30)).tolist())
    assert hashes("skipped") == track_hashes(f"t{i}" for i in range(30) if i % 5 == 4).tolist()
    liked = [i for i in range(30) if i % 5 != 4]
    for name in ("history", "recorded_since_load"):
        assert hashes(name) == track_hashes(f"t{i}" for i in liked).tolist()
        assert [entry["last_play_s"] for entry in said[name]] == [1000 + i for i in liked]
        assert [entry["count"] for entry in said[name]] == [1.0] * len(liked)
    assert [entry["first_play_s"] for entry in said["history"]] == [1000 + i for i in liked]
    assert [list(entry["decayed"].values()) for entry in said["history"]] == state.repeats["decayed"].tolist()
    assert hashes("recent_plays") == track_hashes(f"t{i}" for i in range(30)).tolist()
    assert [(play["time_s"], play["skipped"]) for play in said["recent_plays"]] == [
        (1000 + i, i % 5 == 4) for i in range(30)
    ]
    assert said["event_hashes"] == [f"{event:016x}" for event in track_hashes(f"ann-{i}" for i in range(30)).tolist()]
    logged = said["event_log"]
    assert [entry["event_id"] for entry in logged] == [f"ann-{i}" for i in range(30)]
    assert [entry["track_id"] for entry in logged] == [f"t{i}" for i in range(30)]
    assert [entry["skipped"] for entry in logged] == [i % 5 == 4 for i in range(30)]
    own = {key: held for key, held in values.items() if not (key.endswith(b"id") or key.startswith(b"events/"))}
    assert (said["values"], said["bytes"]) == (len(own), sum(map(len, own.values())))


def test_the_commands_say_what_they_did(where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = opened(where)
    users.record(plays_of("ann", 30))
    users.close()
    assert main(["users", "show", "ann", *where]) == 0
    shown = capsys.readouterr().out
    assert "24 tracks, 24 plays" in shown
    assert "30 plays as they were recorded" in shown
    assert "30 tracks, kept out of lists" in shown
    assert "1970-01-01 00:17:09" in shown  # of the last play
    out = tmp_path / "ann.json"
    for _ in range(2):  # an earlier export may be replaced
        assert main(["users", "export", "ann", str(out), *where]) == 0
    assert json.loads(out.read_text())["user_id"] == "ann"
    assert main(["users", "export", "ann", str(tmp_path), *where]) != 0
    assert main(["users", "delete", "ann", *where]) == 0
    assert capsys.readouterr().out.startswith("deleted ann from ")
    assert main(["users", "delete", "ann", *where]) == 0  # may be repeated
    assert capsys.readouterr().out.startswith("nothing is stored of ann in ")
    for action in ("show", "export"):
        assert main(["users", action, "ann", *where]) != 0
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert "user 'ann': found nothing stored in " in said.err


def test_tracks_have_names_where_the_bundle_knows_them(
    tiny_store: Path, redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    redis.empty()
    catalog = Bundle.open(tiny_store).catalog
    (known,) = catalog.track_ids(np.array([3]))
    users = open_users(redis.url, Path())
    users.record([Play("e0", "ann", known, 5), Play("e1", "ann", "no such track", 6)])
    users.close()
    assert main(["users", "export", "ann", "--users", redis.url, "--store", str(tiny_store)]) == 0
    recent = json.loads(capsys.readouterr().out)["recent_plays"]
    assert [play["track_id"] for play in recent] == [known, None]
    assert recent[0]["title"] == catalog.titles(np.array([3]))[0]


def test_no_store_is_made_by_asking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("show", "export", "delete"):
        assert main(["users", action, "ann", "--store", str(tmp_path / "none")]) != 0
        assert main(["users", action, "ann"]) != 0
        assert capsys.readouterr().err.count("\n") == 2
    assert not (tmp_path / "none").exists()


def test_the_pages_of_a_compacted_copy_hold_nothing_of_who_was_deleted(tmp_path: Path) -> None:
    """LMDB leaves what was deleted in free pages; operations.md names the copy that does not take them along."""
    users = LmdbUsers(tmp_path / "users.lmdb")
    users.load([("bob", UserState({"note": "stays"})), ("ann-to-forget", UserState({"note": "forget-me" * 20}))])
    assert users.delete("ann-to-forget")
    users.close()
    copy = tmp_path / "copy"
    copy.mkdir()
    with lmdb.open(str(tmp_path / "users.lmdb"), max_dbs=16) as env:
        env.copy(str(copy), compact=True)
    data = (copy / "data.mdb").read_bytes()
    assert b"ann-to-forget" not in data
    assert b"forget-me" not in data
    assert b"stays" in data


@pytest.fixture
def fake_store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    write_bundle(folder, B1, n=100)
    publish(folder, B1)
    return folder


def test_a_running_server_forgets_at_once(fake_store: Path) -> None:
    users = LmdbUsers(fake_store / "users.lmdb")
    users.record(plays_of("ann", 3))
    users.close()
    with serving(fake(fake_store), fake_store.parent / "log") as server:
        with open_stub(server.address) as stub:
            asked = pb.RecommendRequest(user_id="ann", k=5)
            assert stub.Recommend(asked, timeout=20).tier != pb.TIER_POPULAR
        assert main(["users", "delete", "ann", "--store", str(fake_store)]) == 0
        for _ in range(8):  # of either worker
            with open_stub(server.address) as stub:
                assert stub.Recommend(asked, timeout=20).tier == pb.TIER_POPULAR
                play = pb.Play(event_id="ann-0", user_id="zoe", track_id="t1", timestamp_s=5)
                stub.RecordPlays(pb.RecordPlaysRequest(plays=[play]), timeout=20)


def log_of(fake_store: Path, name: str, **settings: Any) -> tuple[str, list[dict[str, Any]]]:
    """The log of a server that was asked everything about one user, with a damaged record too."""
    log = fake_store.parent / name
    with serving(fake(fake_store, **settings), log) as server:
        for _ in range(6):
            ask_everything(server)
    text = log.read_text()
    return text, [json.loads(line) for line in text.splitlines()]


def ask_everything(server: Server) -> None:
    def tried(call: Any, request: Any) -> None:
        try:
            call(request, timeout=20)
        except grpc.RpcError:
            return

    with open_stub(server.address) as stub:
        for user in ("ann-raw-id", "damaged-raw-id", "bad-raw-id\n"):
            asked = pb.RecommendRequest(user_id=user, k=5)
            tried(stub.Recommend, asked)
            tried(stub.Explain, pb.ExplainRequest(user_id=user, track_id="t1"))
            tried(stub.Explain, pb.ExplainRequest(user_id="x", request=asked, track_id="t1"))
            tried(stub.SimilarTracks, pb.SimilarTracksRequest(user_id=user, track_ids=["t1"], k=5))
            play = pb.Play(event_id="e", user_id=user, track_id="t1", timestamp_s=5)
            tried(stub.RecordPlays, pb.RecordPlaysRequest(plays=[play]))
            for reply in stub.RecommendMany(iter([asked]), timeout=20):
                assert reply.request_id


def test_a_log_never_names_a_user_and_joins_under_one_key(
    fake_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = LmdbUsers(fake_store / "users.lmdb")
    users.load([("damaged-raw-id", UserState({"a": 1}))])
    damage(users, "damaged-raw-id", b"\x03broken")
    users.close()
    key = tmp_path / "key"
    key.write_text("0123456789abcdef\n")
    assert main(["users", "hash", "ann-raw-id", "--log-key", str(key)]) == 0
    hashed = capsys.readouterr().out.strip()
    assert main(["users", "hash", "damaged-raw-id", "--log-key", str(key)]) == 0
    damaged = capsys.readouterr().out.strip()
    assert len(hashed) * 4 >= 64
    text, lines = log_of(fake_store, "keyed", log_key=str(key))
    assert "raw-id" not in text
    of_ann = {line["user"] for line in lines if "user" in line}
    assert hashed in of_ann
    assert any(damaged in line["message"] for line in lines if line["level"] in ("warning", "error"))
    assert "--log-key" not in text
    drawn, lines = log_of(fake_store, "drawn")
    assert "raw-id" not in drawn
    assert hashed not in drawn
    of_workers = {(line["user"], line["bundle"]) for line in lines if "user" in line and line["code"] == "OK"}
    assert len(of_workers) <= 4  # ann, x, damaged and the bad one: each the same in both workers
    assert drawn.count("hashed with a key of this start") == 1


@pytest.mark.parametrize("secret", [b"", b"short", b" " * 40, b"x" * 5000, None])
def test_a_key_that_is_none_is_refused(secret: bytes | None, tmp_path: Path, fake_store: Path) -> None:
    path = tmp_path / "key"
    if secret is not None:
        path.write_bytes(secret)
    with pytest.raises(ConfigError, match=r"--log-key .*expected a file with 16 to 4,096 random bytes") as caught:
        tag.read_key(path)
    assert "\n" not in str(caught.value)
    with serving(fake(fake_store, log_key=str(path)), tmp_path / "log") as server:
        assert server.process.wait(60) != 0
        assert server.first_line == ""
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_tags_tell_users_apart_and_change_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag, "_key", b"k" * 16)
    ids = [f"u{i}" for i in range(20_000)]  # with 32 bits some would be the same
    tags = {tag.user_tag(one) for one in ids}
    assert len(tags) == len(ids)
    tag.use_key(b"l" * 16)
    assert not tags & {tag.user_tag(one) for one in ids}


def test_a_message_that_cannot_be_read_shows_no_key() -> None:
    line = WorkerSettings("s", "b", "a", log_key="c0ffee").to_json().replace('"store"', '"shop"')
    with pytest.raises(LhydraError) as caught:
        WorkerSettings.from_json(line)
    assert "c0ffee" not in str(caught.value)


def test_deleting_is_proposed_for_what_is_damaged_alone(fake_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = LmdbUsers(fake_store / "users.lmdb")
    users.load([("ann", UserState({"a": 1}))])
    damage(users, "ann", b"\x03broken")
    users.close()
    assert main(["users", "show", "ann", "--store", str(fake_store)]) == 1
    assert "`lhydra users delete` takes it away all the same" in capsys.readouterr().err
    assert main(["users", "show", "ann", "--users", "redis://127.0.0.1:1/0"]) == 1
    err = capsys.readouterr().err
    assert "Connection refused" in err
    assert "delete" not in err
