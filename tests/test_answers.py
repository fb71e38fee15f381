"""The answer log: what a line holds, what is kept when things break, what is lost and counted, who is deleted."""

import errno
import gzip
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra.answers import folder as folders
from lhydra.answers import people, writer
from lhydra.answers.entry import LoggedAnswer, from_line, to_line
from lhydra.answers.folder import lines, locked, read, read_of
from lhydra.answers.writer import AnswerLog
from lhydra.domain import Play
from lhydra.errors import DataError
from lhydra.lists.file import read as read_rules
from lhydra.users.record import UserRecord
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.interceptors import REQUEST_ID_KEY
from tests.fake_serve import write_bundle
from tests.harness import free_port, gone, until
from tests.test_rules_file import WHOLE, write
from tests.test_supervisor import B1, TRACKS_OF, Server, fake, open_stub, publish, refused, running

PLAYS = [Play(f"e{i}", "u", f"t{i % 7}", 1000 + i, skipped=i % 5 == 4) for i in range(20)]
STATE = UserRecord().with_plays(PLAYS)[0].state
NO_LOG = "found no entries, expected an answer log of `lhydra serve --log-answers`"
ANSWER = LoggedAnswer(
    *("r-1", "Recommend", "u", 1_700_000_000, "b-1", 300, 1000, b"\x0a\x01u", STATE, None, "personal"),
    *((), ("t1", "t2"), (0.75, 0.5)),
)


def same(a: LoggedAnswer, b: LoggedAnswer) -> bool:
    """Whether two answers are equal, the arrays of their states bit by bit."""
    if (a.state is None) != (b.state is None) or replace(a, state=None) != replace(b, state=None):
        return False
    if a.state is None or b.state is None:
        return True
    names = ("history", "heard", "skipped", "repeats", "recent")
    arrays = all(np.array_equal(getattr(a.state, name), getattr(b.state, name)) for name in names)
    return arrays and (a.state.profile, a.state.version) == (b.state.profile, b.state.version)


def answer(number: int, user: str = "u") -> LoggedAnswer:
    return replace(ANSWER, request_id=f"r-{number}", user_id=user)


def ids(place: Path) -> list[str]:
    return [one.request_id for one in read(place, pytest.fail)]


class Counted:
    """A log that counts what it was told."""

    def __init__(self, folder: Path, share: float = 1.0, most_bytes: int = 2**30) -> None:
        self.n = self.n_bytes = self.lost = 0
        self.folder = folder
        self.log = AnswerLog(folder, share, most_bytes, logged=self._logged, dropped=self._dropped)

    def _logged(self, n: int, n_bytes: int) -> None:
        self.n, self.n_bytes = self.n + n, self.n_bytes + n_bytes

    def _dropped(self, n: int) -> None:
        self.lost += n

    def put(self, one: LoggedAnswer, seen_ns: int | None = None, n_bytes: int = 1000) -> None:
        self.log.put(lambda: one, time.monotonic_ns() if seen_ns is None else seen_ns, n_bytes)

    def wait(self, n: int) -> None:
        until(lambda: self.n + self.lost >= n)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    monkeypatch.setattr(writer, "GATHER_S", 0.001)
    counted = Counted(tmp_path / "answers")
    yield counted
    counted.log.close()


# -- a line -----------------------------------------------------------------------------------------------


@given(
    st.text(min_size=1).filter(lambda text: text.encode("utf-8", "ignore").decode() == text),
    st.lists(st.floats(0, 1, width=32), max_size=5),
    st.binary(),
    st.booleans(),
)
def test_an_answer_is_read_as_it_was_written(user: str, scores: list[float], request: bytes, known: bool) -> None:
    tracks = tuple(f"{user}{i}" for i in range(len(scores)))
    drawn = tuple(scores) if known else ()
    one = replace(ANSWER, user_id=user, tracks=tracks, scores=tuple(scores), propensities=drawn, request=request)
    one = replace(one, state=STATE if known else None)
    line = to_line(one)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert line.isascii()
    assert same(from_line(line, "here"), one)


def test_every_rule_is_read_as_it_was_written(tmp_path: Path) -> None:
    sets = read_rules(write(tmp_path / "rules.yaml", WHOLE))
    for rules in (None, *sets.sets.values()):
        assert from_line(to_line(replace(ANSWER, rules=rules)), "here").rules == rules


def test_what_a_later_version_adds_is_passed_over() -> None:
    later = json.loads(to_line(ANSWER)) | {"arm": "b", "shown": [1, 2]}
    assert same(from_line(json.dumps(later).encode(), "here"), ANSWER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: b"what\n", "here: found no JSON, expected an answer log of `lhydra serve --log-answers`"),
        (lambda line: b"[1]\n", "here: found JSON without a format, expected an answer log"),
        (
            lambda line: line.replace(b'"format": 1', b'"format": 2'),
            "here: found format 2, expected format 1: the vers",
        ),
        (
            lambda line: line.replace(b'"scores": [0.75', b'"scores": ["x"'),
            "here: scores.0: found a text, expected a n",
        ),
        (
            lambda line: line.replace(b'"state": "Aw', b'"state": "Bw'),
            "here: found a damaged entry (user store: val",
        ),
        (lambda line: line.replace(b'"request": "', b'"request": "?'), "here: found a damaged entry ("),
        (lambda line: line.replace(b'"scores": [', b'"scores": [1.0, '), "here: found a damaged entry (tracks without"),
        (
            lambda line: line.replace(b'"rules": null', b'"rules": {"name": "a", "caps": [["artist"]]}'),
            "here: found a damaged entry (",
        ),
    ],
)
def test_what_is_no_line_of_the_log_is_refused_in_one_line(change: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        from_line(change(to_line(ANSWER)), "here")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# -- files ------------------------------------------------------------------------------------------------


def test_a_torn_end_is_told_and_what_comes_before_is_kept(tmp_path: Path) -> None:
    whole = [to_line(answer(i)) for i in range(3)]
    data, path = b"".join(whole), tmp_path / "torn.jsonl"
    ends = [sum(map(len, whole[: i + 1])) for i in range(3)]
    for cut in (*range(ends[0] - 3, ends[0] + 20), ends[1], len(data) - 1, len(data)):
        path.write_bytes(data[:cut])
        said: list[str] = []
        assert [one.request_id for one in read(path, said.append)] == [f"r-{i}" for i in range(3) if ends[i] <= cut]
        assert said == [] if cut in ends else len(said) == 1
        assert not said or f"ends within entry {sum(end <= cut for end in ends) + 1}" in said[0]
    packed = gzip.compress(data)
    for cut in (len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:cut])
        said = []
        found = [one.request_id for one in read(path, said.append)]
        assert found == [f"r-{i}" for i in range(len(found))]
        assert said == [f"{path}: damaged after entry {len(found)}: kept up to it"]


NO_LOGS = [b"hello", b"", b"user,track\n", gzip.compress(b"hello", mtime=0), b"\x1f\x8bnot gzip"]


@pytest.mark.parametrize("content", NO_LOGS)
def test_a_file_that_is_no_answer_log_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=f"file: {NO_LOG}"):
        list(read(tmp_path / "file", pytest.fail))


def test_the_golden_log_is_read(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden"
    found = list(read(golden / "answer_log_v1.jsonl", pytest.fail))
    assert [one.request_id for one in found] == ["plain", "rules", "nobody", "similar"]
    assert found[0].state is not None
    assert len(found[0].state.recent)
    assert found[1].rules is not None
    assert found[1].rules.explore is not None
    assert any(found[1].propensities)
    assert found[2].state is None
    assert found[3].method == "SimilarTracks"
    text = (golden / "answer_log_v1.jsonl").read_bytes()
    assert b"".join(map(to_line, found)) == text


def test_entries_are_written_counted_and_compressed_when_the_server_ends(log: Counted) -> None:
    for i in range(5):
        log.put(answer(i))
    log.wait(5)
    (plain,) = folders.files(log.folder)
    assert plain.suffix == ".jsonl"
    assert plain.stat().st_size == log.n_bytes
    assert (plain.stat().st_mode & 0o777, log.folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert ids(log.folder) == ids(plain) == [f"r-{i}" for i in range(5)]
    assert [one.request_id for one in read_of(log.folder, "r-3", pytest.fail)] == ["r-3"]
    log.put(answer(5))
    log.log.close()
    (packed,) = folders.files(log.folder)
    assert packed.name == plain.name + ".gz"
    assert ids(log.folder) == [f"r-{i}" for i in range(6)]
    assert gzip.decompress(packed.read_bytes()).count(b"\n") == 6
    assert ids(plain) == ids(packed)  # who had the name of before finds it
    assert log.lost == 0


def test_files_turn_by_size_and_age_and_the_oldest_go(
    tmp_path: Path, log: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FILE_BYTES", 1)
    for i in range(6):
        log.put(answer(i))
        log.wait(i + 1)
        until(lambda: len(list(log.folder.glob("*.gz"))) == log.n)
    sizes = [path.stat().st_size for path in folders.files(log.folder)]
    log.log.close()
    bounded = Counted(log.folder, most_bytes=sum(sizes[-2:]) + sizes[0])
    bounded.put(answer(6))
    bounded.wait(1)
    bounded.log.close()
    assert ids(log.folder) == ["r-4", "r-5", "r-6"] or ids(log.folder) == ["r-5", "r-6"]
    assert sum(path.stat().st_size for path in folders.files(log.folder)) <= sum(sizes[-2:]) + sizes[0]
    monkeypatch.setattr(writer, "FILE_BYTES", 2**22)
    monkeypatch.setattr(writer, "FILE_S", 0.01)
    old = Counted(tmp_path / "old")
    old.put(answer(0))
    until(lambda: list(old.folder.glob("*.gz")))  # though no other answer came
    old.log.close()


def test_what_a_killed_process_left_is_compressed_by_the_next(tmp_path: Path, log: Counted) -> None:
    code = f"""
import sys, time
from pathlib import Path
from lhydra.answers.writer import AnswerLog
from tests.test_answers import answer
log = AnswerLog(Path({str(log.folder)!r}), 1.0, 2**30, logged=lambda n, size: print(n, flush=True))
log.put(lambda: answer(0), 0, 1)
time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        log.put(answer(1))
        log.wait(1)
        assert len(list(log.folder.glob("*.jsonl"))) == 2  # it lives, and so does its file
        other.kill()
    (left,) = log.folder.glob(f"*-{other.pid}.jsonl")
    with left.open("ab") as file:
        file.write(to_line(answer(2))[:-5])  # in the middle of a line
    (log.folder / "20200101T000000-000000-1.making").write_text("half")
    log.log.close()
    assert not list(log.folder.glob("*.jsonl"))
    assert not list(log.folder.glob("*.making"))
    assert sorted(ids(log.folder)) == ["r-0", "r-1"]


def test_a_kill_between_the_two_steps_of_compressing_doubles_nothing(log: Counted) -> None:
    log.put(answer(0))
    log.wait(1)
    (plain,) = folders.files(log.folder)
    copy = plain.read_bytes()
    log.log.close()
    plain.write_bytes(copy)  # as if it had not been removed
    assert ids(log.folder) == ["r-0"]
    assert people.delete(log.folder, "nobody") == 0
    assert not plain.exists()
    assert ids(log.folder) == ["r-0"]


# -- what is lost -----------------------------------------------------------------------------------------


def test_the_sample_is_stable_and_as_large_as_asked(tmp_path: Path) -> None:
    names = [f"request-{i}" for i in range(20_000)]
    small, large, all_of, none = (AnswerLog(tmp_path, share, 2**30) for share in (0.01, 0.1, 1.0, 0.0))
    taken = {name for name in names if small.wants(name)}
    assert 150 < len(taken) < 250  # 200, and three and a half deviations
    assert taken < {name for name in names if large.wants(name)}
    assert all(map(all_of.wants, names))
    assert not any(map(none.wants, names))
    digest = hashlib.blake2b(b"request-7", digest_size=8, person=b"answers").digest()
    assert large.wants("request-7") == (int.from_bytes(digest, "little") < 0.1 * 2**64)
    for one in (small, large, all_of, none):
        one.close()


def test_a_full_queue_loses_and_counts_and_nobody_waits(log: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST_BYTES", 10_000)
    with locked(log.folder):  # the writer waits: the disk may be as slow as it likes
        log.put(answer(0))
        until(lambda: not log.log._queue)  # taken by the thread, which waits for the lock
        for i in range(1, 100):
            log.put(answer(i))  # 1,000 bytes each
        assert log.lost == 99 - 10
    log.wait(100)
    assert ids(log.folder) == [f"r-{i}" for i in range(11)]
    log.put(answer(500), n_bytes=20_000)  # larger than all the room: taken where nothing else waits
    log.wait(101)
    assert ids(log.folder)[-1] == "r-500"


def test_a_full_disk_loses_and_counts_and_says_so_once(
    log: Counted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log.put(answer(0))
    log.wait(1)
    write_all = os.write

    def refuse(descriptor: int, data: bytes) -> int:
        if half.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        half.set()
        return write_all(descriptor, data[:100])  # what there is room for

    half = threading.Event()
    with caplog.at_level(logging.ERROR), monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        for i in range(1, 4):
            half.clear()
            log.put(answer(i))
            log.wait(i + 1)
    assert log.lost == 3
    told = [record.getMessage() for record in caplog.records if record.name == "lhydra.answers.writer"]
    assert told == ["answers are not logged: [Errno 28] No space left on device"]
    log.put(answer(4))
    log.wait(5)
    assert ids(log.folder) == ["r-0", "r-4"]  # nothing half between them


def test_an_answer_that_cannot_be_made_is_lost_alone(log: Counted, caplog: pytest.LogCaptureFixture) -> None:
    log.log.put(lambda: from_line(b"", "nowhere"), 0, 10)
    log.put(answer(1))
    log.wait(2)
    assert (ids(log.folder), log.lost) == (["r-1"], 1)


def test_a_folder_that_was_taken_away_is_made_again(log: Counted) -> None:
    log.put(answer(0))
    log.wait(1)
    for path in log.folder.iterdir():
        path.unlink()
    log.folder.rmdir()
    log.put(answer(1))
    log.wait(2)
    assert ids(log.folder) == ["r-1"]


# -- who is deleted ---------------------------------------------------------------------------------------


def raw(folder: Path) -> bytes:
    """All bytes in a folder, compressed ones too."""
    data = [path.read_bytes() for path in folder.iterdir() if path.is_file()]
    return b"".join(gzip.decompress(one) if one[:2] == b"\x1f\x8b" else one for one in data)


@pytest.mark.parametrize("user", ["u", 'a"b\\', "é雨", "u" * 256])
def test_delete_leaves_nothing_of_a_person_in_any_file(log: Counted, user: str) -> None:
    others = ["u2", "xu", user + user]
    for turn in range(3):
        for i, one in enumerate([user, *others]):
            log.put(answer(10 * turn + i, one))
        log.wait(4 * (turn + 1))
        if turn < 2:
            assert people.delete(log.folder, "nobody") == 0  # which compresses what is there
    assert [path.suffix for path in folders.files(log.folder)] == [".gz", ".gz", ".jsonl"]
    torn = log.folder / "20200101T000000-000000-1.jsonl"
    torn.write_bytes(to_line(answer(0, user)) + to_line(answer(1, user))[:-30])
    (log.folder / "20200101T000000-000000-1.making").write_bytes(to_line(answer(0, user)))
    assert len(list(people.of_user(log.folder, user, lambda line: None))) == 4
    assert people.delete(log.folder, user) == 4
    assert json.dumps(user).encode() not in raw(log.folder)
    left = [one.user_id for one in read(log.folder, pytest.fail)]
    assert sorted(left) == sorted(others * 3)
    assert people.delete(log.folder, user) == 0
    assert list(people.of_user(log.folder, user, pytest.fail)) == []


def test_what_a_server_still_holds_of_a_deleted_person_is_never_written(log: Counted) -> None:
    log.put(answer(0, "gone"))
    log.wait(1)
    begun = time.monotonic_ns()
    with locked(log.folder):
        log.put(answer(1, "gone"), begun)  # taken by the thread, which waits for the lock
        until(lambda: not log.log._queue)
        log.put(answer(2, "gone"), begun)
        log.put(answer(3, "here"), begun)
        deleting = threading.Thread(target=people.delete, args=(log.folder, "gone"))
        deleting.start()
    deleting.join()
    log.put(answer(4, "gone"), begun)  # a request that was under way all the time
    log.put(answer(5, "gone"))  # of one who is back: nothing of before is in it
    log.put(answer(6, "here"))
    until(lambda: {"r-5", "r-6"} <= set(ids(log.folder)))
    assert set(ids(log.folder)) == {"r-3", "r-5", "r-6"}
    assert b"gone" not in (log.folder / "deleted.json").read_bytes()


def test_two_deletions_at_once_lose_nothing_of_each_other(log: Counted) -> None:
    users = [f"u{i}" for i in range(8)]
    for turn in range(3):
        for user in users:
            log.put(answer(turn, user))
        log.wait(8 * (turn + 1))
        people.delete(log.folder, "nobody")
    threads = [threading.Thread(target=people.delete, args=(log.folder, user)) for user in users[:6]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.user_id for one in read(log.folder, pytest.fail)} == set(users[6:])


def test_notes_of_another_boot_or_long_ago_say_nothing(log: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    log.put(answer(0))
    log.wait(1)
    with monkeypatch.context() as patch:
        patch.setattr(people, "_boot", lambda: "another")
        people.delete(log.folder, "u")
    log.put(answer(1), 0)
    log.wait(2)
    assert ids(log.folder) == ["r-1"]
    people.delete(log.folder, "v")
    notes = json.loads((log.folder / "deleted.json").read_text())
    assert [boot == "another" for boot, *_ in notes] == [False]


def test_where_nobody_ever_logged_nothing_is_made(tmp_path: Path) -> None:
    assert people.delete(tmp_path / "answers", "u") == 0
    assert list(read(tmp_path / "answers", pytest.fail) if (tmp_path / "answers").exists() else []) == []
    assert list(tmp_path.iterdir()) == []


def test_lines_are_found_under_the_compressed_name(log: Counted) -> None:
    log.put(answer(0))
    log.log.close()
    (packed,) = folders.files(log.folder)
    assert len(list(lines(packed.with_suffix("")))) == 1


# -- in a server ------------------------------------------------------------------------------------------


class Serving:
    """A server of fake bundles that logs every answer."""

    def __init__(self, server: Server, port: int, folder: Path) -> None:
        self.server, self.port, self.folder = server, port, folder

    def ask(self, *request_ids: str) -> None:
        for one in request_ids:
            with open_stub(self.server.address) as stub:  # a channel each: they spread over the workers
                request = pb.RecommendRequest(user_id="u", k=10)
                metadata = ((REQUEST_ID_KEY, one),)
                assert len(stub.Recommend(request, timeout=60, metadata=metadata, wait_for_ready=True).tracks) == 10

    def holds(self, n: int) -> bool:
        return len(list(read(self.folder, lambda line: None))) == n

    def counted(self, name: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as reply:
            text = reply.read().decode()
        return int(float(text.partition(f"\nlhydra_answers_{name}_total ")[2].partition("\n")[0]))


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    store, port = tmp_path / "store", free_port()
    write_bundle(store, B1, n=TRACKS_OF[B1])
    publish(store, B1)
    with running(fake(store, metrics_port=port, log_answers=1.0), tmp_path / "log") as server:
        yield Serving(server, port, store / "answers")


def test_a_server_counts_what_it_logs_and_compresses_it_when_it_ends(serving: Serving) -> None:
    names = [f"r-{i}" for i in range(12)]
    serving.ask(*names)
    until(lambda: serving.counted("logged") == 12)
    assert serving.counted("dropped") == 0
    assert serving.counted("logged_bytes") == sum(path.stat().st_size for path in folders.files(serving.folder))
    assert sorted(ids(serving.folder)) == sorted(names)
    serving.server.whole_log()
    assert {path.suffix for path in folders.files(serving.folder)} == {".gz"}
    assert sorted(ids(serving.folder)) == sorted(names)


def test_killed_workers_lose_nothing_that_was_written(serving: Serving) -> None:
    for turn in range(3):
        serving.ask(*(f"r-{turn}-{i}" for i in range(6)))
        until(partial(serving.holds, 6 * (turn + 1)))
        for pid in serving.server.workers():
            os.kill(pid, signal.SIGKILL)
            until(partial(gone, pid))
        until(lambda: len(serving.server.workers()) == 2)
    serving.ask("last")
    serving.server.whole_log()
    assert sorted(ids(serving.folder)) == sorted(["last", *(f"r-{turn}-{i}" for turn in range(3) for i in range(6))])
    assert not list(serving.folder.glob("*.jsonl"))


def test_a_log_that_cannot_be_written_stops_no_answer(serving: Serving) -> None:
    serving.ask("before")
    until(lambda: serving.counted("logged") == 1)
    shutil.rmtree(serving.folder)
    serving.folder.write_text("a file in its place")
    serving.ask(*(f"r-{i}" for i in range(8)))
    until(lambda: serving.counted("dropped") == 8)
    told = [line["message"] for line in serving.server.whole_log() if line["level"] == "error"]
    assert 1 <= len(told) <= 2  # once in each worker that was asked
    assert all(line.startswith("answers are not logged: ") for line in told)


def test_a_folder_that_cannot_be_made_is_one_line_at_the_start(tmp_path: Path) -> None:
    write_bundle(tmp_path, B1, n=TRACKS_OF[B1])
    publish(tmp_path, B1)
    place = tmp_path / "none" / "answers"
    line = f"--answers: found {place}: No such file or directory, expected a folder to write to"
    assert refused(fake(tmp_path, log_answers=0.5, answers=str(place))) == line
    assert not (tmp_path / "answers").exists()


def test_deletion_leaves_nothing_behind_the_damage_of_a_file(tmp_path: Path) -> None:
    kept = to_line(answer(0, "kept"))
    others = b"".join(to_line(answer(n, f"other-{n}")) for n in range(1000))
    whole = gzip.compress(kept) + gzip.compress(others + to_line(answer(1, "gone")))
    damaged = bytearray(whole)
    place = len(gzip.compress(kept)) + 40
    damaged[place : place + 4] = bytes(255 - byte for byte in damaged[place : place + 4])
    path = tmp_path / "20260101T000000-000001-1.jsonl.gz"
    path.write_bytes(damaged)
    people.delete(tmp_path, "gone")
    assert gzip.decompress(path.read_bytes()).startswith(kept)  # whole again
    assert path.stat().st_size < len(whole) // 2
