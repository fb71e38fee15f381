"""Recorded plays come back as training data: each in exactly one export, and counted once wherever they go."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lhydra import files
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.data.logged import read_logged
from lhydra.domain import Play, UserState, track_hashes
from lhydra.errors import DataError
from lhydra.events import export
from lhydra.users import record as user_record
from lhydra.users import tag
from lhydra.users.lmdb_store import LmdbUsers
from lhydra.users.store import UserStore, open_users
from tests.redis_server import RedisServer, budgets, running

T0 = 1_700_000_000


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture(params=["lmdb", "redis"])
def where(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The flags that name a store, new and empty."""
    with budgets():
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


def record(where: list[str], plays: list[Play]) -> None:
    users = opened(where)
    users.record(plays)
    users.close()


def play(n: int, user: str = "", track: str = "", **more: Any) -> Play:
    return Play(f"e{n}", user or f"u{n % 3}", track or f"t{n % 7}", T0 + n, **more)


def rows(*paths: Path) -> list[dict[str, Any]]:
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def run(*argv: object) -> int:
    return main([str(arg) for arg in argv])


def assert_refused(capsys: pytest.CaptureFixture[str], expected: str, *argv: object, code: int = 1) -> None:
    capsys.readouterr()
    assert run(*argv) == code
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def told(plays: list[Play]) -> list[tuple[Any, ...]]:
    return [
        (p.user_id, p.track_id, p.count, p.time, p.session_id or None, p.skipped, p.completed, p.ms_played,
         p.event_id, p.request_id or None) for p in plays
    ]  # fmt: skip


def exported(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = ("user_id", "track_id", "playcount", "timestamp", "session", "skipped", "completed", "ms_played")
    return [tuple(row[name] for name in (*names, "event_id", "request_id")) for row in found]


IDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=5)
PLAYS = st.builds(
    Play, IDS, IDS, IDS, st.integers(1, T0), st.floats(1, 1e9), st.none() | st.booleans(), st.none() | st.booleans(),
    st.sampled_from(["", "r-1", "a/b:c"]), st.just("") | IDS, st.none() | st.integers(0, 86_400_000),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(PLAYS, min_size=1, max_size=8, unique_by=lambda p: (p.user_id, p.event_id)))
@example([Play("é", "ü", "日本", 1), Play("e", "u", "t", 2, 3.0, True, False, "r", "s", 5)])
def test_an_export_says_what_was_recorded(plays: list[Play]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        where = ["--store", folder]
        record(where, plays)
        assert run("plays", "export", *where, f"{folder}/out.parquet") == 0
        assert exported(rows(Path(folder) / "out.parquet")) == told(plays)


def test_plays_keep_their_order_and_duplicates_stay_out(where: list[str], tmp_path: Path) -> None:
    plays = [play(n) for n in range(5)]
    record(where, plays)
    record(where, [*plays[3:], play(5)])
    assert run("plays", "export", *where, tmp_path / "out.parquet") == 0
    found = rows(tmp_path / "out.parquet")
    assert exported(found) == told([*plays, play(5)])
    assert (np.diff([row["position"] for row in found]) > 0).all()


class Killed(BaseException):
    """What ends a process at a moment."""


@pytest.mark.parametrize("moment", ["before the cursor", "in the file", "before the cursor moves", "never"])
@pytest.mark.parametrize("same_file", [True, False])
def test_each_play_is_in_one_export_whenever_one_is_killed(
    where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, same_file: bool
) -> None:
    plays, cursor = [play(n) for n in range(30)], tmp_path / "cursor.json"
    record(where, plays[:10])
    assert run("plays", "export", *where, "--cursor", cursor, tmp_path / "a.parquet") == 0
    record(where, plays[10:20])
    with monkeypatch.context() as patch:
        calls = Counter[str]()
        advance, write = export.advance, export.write

        def advancing(path: Path, new: export.Cursor) -> None:
            calls["advance"] += 1
            if (moment, calls["advance"]) in (("before the cursor", 1), ("before the cursor moves", 2)):
                raise Killed
            advance(path, new)

        def writing(*args: Any, **kwargs: Any) -> Any:
            if moment == "in the file":
                with files.replacing_file(args[0]) as path:
                    path.write_bytes(b"PAR1 half")
                    raise Killed
            return write(*args, **kwargs)

        patch.setattr(export, "advance", advancing)
        patch.setattr(export, "write", writing)
        if moment == "never":
            assert run("plays", "export", *where, "--cursor", cursor, tmp_path / "b.parquet") == 0
        else:
            with pytest.raises(Killed):
                run("plays", "export", *where, "--cursor", cursor, tmp_path / "b.parquet")
    record(where, plays[20:])
    name = "b.parquet" if same_file and moment != "never" else "c.parquet"
    assert run("plays", "export", *where, "--cursor", cursor, tmp_path / name) == 0
    found = rows(*(path for path in sorted(tmp_path.glob("?.parquet"))))
    assert exported(found) == told(plays)


def test_nothing_new_writes_nothing(where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cursor = tmp_path / "cursor.json"
    record(where, [play(1)])
    assert run("plays", "export", *where, "--cursor", cursor, tmp_path / "a.parquet") == 0
    assert run("plays", "export", *where, "--cursor", cursor, tmp_path / "b.parquet") == 0
    assert not (tmp_path / "b.parquet").exists()
    assert "no plays" in capsys.readouterr().out
    record(where, [play(2)])
    assert run("plays", "export", *where, "--cursor", cursor, tmp_path / "b.parquet") == 0
    assert exported(rows(tmp_path / "b.parquet")) == told([play(2)])


def test_an_earlier_export_is_not_lost_under_its_cursor(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(where, [play(1)])
    argv = ["plays", "export", *where, "--cursor", tmp_path / "cursor.json", tmp_path / "a.parquet"]
    assert run(*argv) == 0
    record(where, [play(2)])
    assert_refused(capsys, "an earlier export", *argv)
    assert exported(rows(tmp_path / "a.parquet")) == told([play(1)])


def test_a_killed_export_leaves_earlier_ones_alone(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(where, [play(1)])
    cursor, first = tmp_path / "cursor.json", tmp_path / "a.parquet"
    argv = ["plays", "export", *where, "--cursor", cursor]
    assert run(*argv, first) == 0
    record(where, [play(2)])
    users = opened(where)
    at = export.read_cursor(cursor, users.event_log().identity)
    users.close()
    export.advance(cursor, replace(at, writing=str(tmp_path / "b.parquet")))  # killed before it wrote
    assert_refused(capsys, "an earlier export", *argv, first)
    assert exported(rows(first)) == told([play(1)])
    assert run(*argv, tmp_path / "b.parquet") == 0
    assert exported(rows(first, tmp_path / "b.parquet")) == told([play(1), play(2)])


def test_an_export_goes_through_links_and_replaces_nothing_but_files(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(where, [play(1)])
    (tmp_path / "elsewhere").mkdir()
    for name in ("c.json", "a.parquet"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere" / name)
    assert run("plays", "export", *where, "--cursor", tmp_path / "c.json", tmp_path / "a.parquet") == 0
    assert all((tmp_path / name).is_symlink() for name in ("c.json", "a.parquet"))
    assert exported(rows(tmp_path / "elsewhere" / "a.parquet")) == told([play(1)])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert_refused(capsys, "OUT: found", "plays", "export", *where, pipe)
    assert pipe.is_fifo()
    both = tmp_path / "both"
    assert_refused(capsys, "found OUT itself", "plays", "export", *where, "--cursor", both, both)
    missing = tmp_path / "missing" / "c.json"
    assert_refused(capsys, "no folder", "plays", "export", *where, "--cursor", missing, both)
    assert not both.exists()


def test_two_exports_with_one_cursor_take_turns(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--users", redis.url]  # a process opens an LMDB store once
    redis.empty()
    plays, cursor, write = [play(n) for n in range(10)], tmp_path / "cursor.json", export.write
    record(where, plays)
    second = threading.Thread(
        target=run, args=("plays", "export", *where, "--cursor", cursor, tmp_path / "b.parquet"), daemon=True
    )
    waits = threading.Event()
    flock = fcntl.flock

    def locking(descriptor: int, how: int) -> None:
        if threading.current_thread() is second and how == fcntl.LOCK_EX:
            waits.set()
        flock(descriptor, how)

    def writing(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is not second:
            second.start()
            assert waits.wait(30)  # it has come as far as the lock that this export holds
        return write(*args, **kwargs)

    monkeypatch.setattr(export, "write", writing)
    monkeypatch.setattr(fcntl, "flock", locking)
    assert run("plays", "export", *where, "--cursor", cursor, tmp_path / "a.parquet") == 0
    second.join(30)
    assert exported(rows(*sorted(tmp_path.glob("?.parquet")))) == told(plays)


def test_what_is_wrong_is_said_in_one_line(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(where, [play(1)])
    cursor, out = tmp_path / "cursor.json", tmp_path / "a.parquet"
    export.advance(cursor, export.Cursor("0123456789abcdef", "1"))
    whole = ["plays", "export", *where, "--cursor", cursor, out]
    assert_refused(capsys, "found the cursor of store '0123456789abcdef', expected one of store", *whole)
    cursor.write_text('{"format": 1, "store"')
    assert_refused(capsys, "cursor", *whole)
    for argv, expected in (
        (("export", *where, "--since", "yesterday", out), "--since: found 'yesterday'"),
        (("export", *where, "--since", "1", "--cursor", cursor, out), "--since: found it with --cursor"),
        (("prune", *where), "--before: found nothing"),
        (("prune", *where, "--before", "2999-01-01"), "--before: found 2999-01-01"),
        (("export", out), "--store: found nothing"),
        (("export", *where, tmp_path / "missing" / "a.parquet"), "OUT"),
    ):
        lacks = expected.endswith("found nothing")
        assert_refused(capsys, expected, "plays", *argv, code=2 if lacks else 1)
    assert not out.exists()


def test_since_and_prune_go_by_the_time_of_recording(
    where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = opened(where)
    for n in range(6):
        monkeypatch.setattr("time.time_ns", lambda n=n: (T0 + n) * 10**9)
        users.record([play(n)])
    monkeypatch.undo()
    users.close()
    assert run("plays", "export", *where, "--since", T0 + 4, tmp_path / "new.parquet") == 0
    assert exported(rows(tmp_path / "new.parquet")) == told([play(4), play(5)])
    assert run("plays", "prune", *where, "--before", T0 + 2) == 0
    assert run("plays", "export", *where, tmp_path / "left.parquet") == 0
    assert exported(rows(tmp_path / "left.parquet")) == told([play(n) for n in range(2, 6)])


def test_a_cursor_survives_a_prune(where: list[str], tmp_path: Path) -> None:
    cursor, now = tmp_path / "cursor.json", 4_000_000_000
    record(where, [play(n) for n in range(4)])
    assert run("plays", "export", *where, "--cursor", cursor, tmp_path / "a.parquet") == 0
    users = opened(where)
    assert users.prune(1000 * now) == 4
    users.record([play(5)])
    users.close()
    assert run("plays", "export", *where, "--cursor", cursor, tmp_path / "b.parquet") == 0
    assert exported(rows(tmp_path / "b.parquet")) == told([play(5)])


def test_user_ids_are_hashed_as_logs_hash_them(where: list[str], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef")
    record(where, [play(1, "anna"), play(2, "bo")])
    assert run("plays", "export", *where, "--log-key", key, tmp_path / "a.parquet") == 0
    tag.use_key(tag.read_key(key))
    assert [row["user_id"] for row in rows(tmp_path / "a.parquet")] == [tag.user_tag("anna"), tag.user_tag("bo")]


def test_exports_beside_live_traffic_miss_nothing(where: list[str], tmp_path: Path) -> None:
    """Three threads record while another process exports again and again."""
    users, n = opened(where), 0
    users.record([play(99_999)])

    def writing(part: int) -> None:
        for i in range(150):
            users.record([play(1000 * part + i)])

    writers = [threading.Thread(target=writing, args=(part,)) for part in range(3)]
    for writer in writers:
        writer.start()
    last = False
    while not last:
        last, n = not any(writer.is_alive() for writer in writers), n + 1
        argv = ["plays", "export", *where, "--cursor", tmp_path / "c.json", tmp_path / f"{n:04}.parquet"]
        subprocess.run([sys.executable, "-m", "lhydra.cli", *map(str, argv)], check=True, capture_output=True)
    users.close()
    found = Counter(row["event_id"] for row in rows(*tmp_path.glob("*.parquet")))
    assert set(found) == {f"e{1000 * part + i}" for part in range(3) for i in range(150)} | {"e99999"}
    assert set(found.values()) == {1}


# --- into a dataset, and back into the store


def source(folder: Path, plays: list[Play]) -> Path:
    folder.mkdir()
    table = pa.table(
        {
            "user_id": [p.user_id for p in plays],
            "track_id": [p.track_id for p in plays],
            "playcount": [p.count for p in plays],
            "timestamp": [p.time for p in plays],
        }
    )
    pq.write_table(table, folder / "plays.parquet")
    return folder


def pairs(dataset: Path) -> dict[tuple[str, str], float]:
    opened = Dataset.open(dataset)
    plays, found = opened.plays, defaultdict[tuple[str, str], float](float)
    for user, track, count in zip(plays.user, plays.track, plays.count, strict=True):
        found[opened.user_ids[user], opened.track_ids[track]] += float(count)
    return dict(found)


def counted(plays: list[Play]) -> dict[tuple[str, str], float]:
    found = defaultdict[tuple[str, str], float](float)
    for p in plays:
        found[p.user_id, p.track_id] += p.count
    return dict(found)


def test_a_dataset_takes_recorded_plays_along_and_counts_each_once(where: list[str], tmp_path: Path) -> None:
    before, live = [play(n) for n in range(40)], [play(n, track=f"t{n % 9}") for n in range(35, 60)]
    record(where, live)  # the first five are of the source too: same user, track and second
    shared = [p for p in live if told([p])[0][:4] in {row[:4] for row in told(before)}]
    plain = source(tmp_path / "source", before)
    assert run("prepare", plain, tmp_path / "dataset", "--plays", where[1]) == 0
    assert pairs(tmp_path / "dataset") == counted(before + [p for p in live if p not in shared])
    logged = Dataset.open(tmp_path / "dataset").info.logged
    users = opened(where)
    assert logged == {"store": users.event_log().identity, "position": users.event_log().last}
    users.close()
    assert run("prepare", plain, tmp_path / "again", "--plays", where[1]) == 0
    assert pairs(tmp_path / "again") == pairs(tmp_path / "dataset")


def test_exports_one_after_the_other_are_one_log(where: list[str], tmp_path: Path) -> None:
    plain, parts = source(tmp_path / "source", [play(n) for n in range(40)]), tmp_path / "parts"
    parts.mkdir()
    for n in range(3):
        record(where, [play(100 + 10 * n + i) for i in range(10)])
        argv = ["--cursor", tmp_path / "c.json", parts / f"plays-{n}.parquet"]
        assert run("plays", "export", *where, *argv) == 0
    assert run("prepare", plain, tmp_path / "a", "--plays", parts) == 0
    assert run("prepare", plain, tmp_path / "b", "--plays", where[1]) == 0
    assert pairs(tmp_path / "a") == pairs(tmp_path / "b")
    assert Dataset.open(tmp_path / "a").info.logged == Dataset.open(tmp_path / "b").info.logged
    (parts / "plays-1.parquet").rename(tmp_path / "aside")
    with pytest.raises(DataError, match="nothing between the positions"):
        read_logged(parts)
    (tmp_path / "aside").rename(parts / "plays-1.parquet")
    (parts / "plays-9.parquet").write_bytes((parts / "plays-1.parquet").read_bytes())
    with pytest.raises(DataError, match="again"):
        read_logged(parts)
    (parts / "plays-9.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="no export of an event log"):
        read_logged(parts)


def test_no_recorded_plays_are_no_fault(where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = source(tmp_path / "source", [play(n) for n in range(40)])
    assert run("prepare", plain, tmp_path / "dataset", "--plays", where[1]) == 0
    assert "no recorded plays" in capsys.readouterr().err
    assert not Dataset.open(tmp_path / "dataset").info.logged
    assert run("plays", "export", *where, tmp_path / "none.parquet") == 0
    capsys.readouterr()
    assert run("prepare", plain, tmp_path / "dataset", "--plays", tmp_path / "none.parquet") == 0
    assert "no recorded plays" in capsys.readouterr().err


def test_a_dataset_that_is_added_to_holds_the_log_as_before(where: list[str], tmp_path: Path) -> None:
    plain = source(tmp_path / "source", [play(n) for n in range(40)])
    record(where, [play(n) for n in range(50, 60)])
    assert run("prepare", plain, tmp_path / "dataset", "--plays", where[1]) == 0
    before = Dataset.open(tmp_path / "dataset").info
    assert any("users of the source already" in note for note in before.warnings)
    more = source(tmp_path / "more", [play(n) for n in range(70, 80)])
    assert run("prepare", more, tmp_path / "dataset", "--append") == 0
    assert Dataset.open(tmp_path / "dataset").info.logged == before.logged


@pytest.mark.parametrize("max_live", [9, 30, 4096])
def test_loading_counts_nothing_twice_and_loses_nothing(
    where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_live: int
) -> None:
    """Plays arrive out of order, before and after the export: each is counted once, also where live plays are sums."""
    monkeypatch.setattr(user_record, "MAX_LIVE", max_live)
    rng = np.random.default_rng(7)
    before = [play(n) for n in range(40)]
    live = [
        Play(f"l{n}", f"u{n % 3}", f"t{rng.integers(9)}", T0 - 10_000 + int(rng.integers(20_000)), skipped=n % 11 == 0)
        for n in range(120)
    ]
    plain = source(tmp_path / "source", before)
    record(where, live[:60])
    assert run("prepare", plain, tmp_path / "dataset", "--plays", where[1]) == 0
    record(where, live[60:])
    assert run("users", "load", tmp_path / "dataset", *where) == 0
    assert run("users", "load", tmp_path / "dataset", *where) == 0
    names = {int(h): t for t in {p.track_id for p in before + live} for h in track_hashes([t])}

    def states() -> dict[str, UserState]:
        users = opened(where)
        found = {user: users.get(user) for user in ("u0", "u1", "u2")}
        users.close()
        return {user: state for user, state in found.items() if state is not None}

    def counts() -> dict[tuple[str, str], float]:
        return {(user, names[int(e["track"])]): float(e["count"]) for user, s in states().items() for e in s.history}

    expected = counted(before + live[:60] + [one for one in live[60:] if not one.skipped])
    assert counts() == expected
    once = states()
    assert run("prepare", plain, tmp_path / "newer", "--plays", where[1]) == 0
    assert run("users", "load", tmp_path / "newer", *where) == 0
    assert counts() == counted(before + live)
    assert run("users", "load", tmp_path / "dataset", *where) == 0
    assert counts() == expected, "back to the earlier dataset"
    for user, state in states().items():
        for part in ("recent", "skipped", "heard"):
            assert np.array_equal(getattr(state, part), getattr(once[user], part)), part


def test_export_says_json(where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(where, [play(1)])
    assert run("plays", "export", *where, "--json", tmp_path / "a.parquet") == 0
    assert json.loads(capsys.readouterr().out)["plays"] == 1
    assert run("plays", "prune", *where, "--before", T0, "--json") == 0
    assert json.loads(capsys.readouterr().out)["plays"] == 1
