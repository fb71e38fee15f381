"""An LMDB user store whose files fail, or whose write lock another process holds: errors in time, no plays lost."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lhydra import kernels
from lhydra.domain import Play, UserState
from lhydra.errors import DeadlineExceeded, UserStoreError
from lhydra.users import environment, writer
from lhydra.users.lmdb_store import LmdbUsers
from lhydra.users.opened import file_of
from lhydra.users.writer import Writer
from tests.compiled_kernels import where_a_compiler_is
from tests.harness import until

HOLDER = """
import sys, lmdb
env = lmdb.open(sys.argv[1], map_size=2**36, max_dbs=16, max_readers=1024)
with env.begin(write=True) as txn:
    txn.put(b"uzoe", b"never committed")
    print("held", flush=True)
    sys.stdin.read()
    txn.abort()
"""


def play(event: str, user: str = "ann") -> Play:
    return Play(event, user, f"of {event}", 1)


@contextmanager
def lock_held(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process holds the write lock during the block."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "RETRY_S", 0.02)


@pytest.fixture
def users(tmp_path: Path, short_waits: None) -> Iterator[LmdbUsers]:
    folder = tmp_path / "users.lmdb"
    made = LmdbUsers(folder)
    made.load([(f"u{i}", UserState({"note": "x" * 3000})) for i in range(200)])
    made.record([play("before")])
    made.close()
    served = LmdbUsers(folder, create=False, lasting=True)
    yield served
    served.close()


# -- a held write lock --------------------------------------------------------------------------------------


def test_reads_do_not_wait_for_a_held_write_lock_and_plays_wait_for_their_time(users: LmdbUsers) -> None:
    with lock_held(users.path) as holder, ThreadPoolExecutor(8) as pool:
        refused = [pool.submit(users.record, [play(f"refused-{i}")]) for i in range(8)]
        while not all(call.done() for call in refused):
            assert users.get("ann") is not None
        for call in refused:
            with pytest.raises(UserStoreError, match=r"found others writing for .*, expected a write lock"):
                call.result()
        with pytest.raises(DeadlineExceeded):
            users.record([play("late")], time.monotonic() + 0.02)
        holder.kill()  # the lock goes to the next writer
        assert until(lambda: recorded(users, "after")) == [True]
    state = users.get("ann")
    assert state is not None
    assert len(state.heard) == 2  # "before" and "after": what was refused is not there, and never comes
    assert users.get("zoe") is None


def refusal(users: LmdbUsers) -> str:
    try:
        users.get("ann")
    except UserStoreError as error:
        return str(error)
    return ""


def recorded(users: LmdbUsers, event: str) -> list[bool]:
    try:
        return users.record([play(event)])
    except UserStoreError:
        return []


def test_a_store_is_opened_and_closed_while_another_process_holds_the_write_lock(users: LmdbUsers) -> None:
    with lock_held(users.path):
        with pytest.raises(UserStoreError):
            users.record([play("refused")])
        users.close()
        with pytest.raises(UserStoreError):
            users.get("ann")
        code = (
            "import sys; from pathlib import Path; from lhydra.users.lmdb_store import LmdbUsers\n"
            "users = LmdbUsers(Path(sys.argv[1]), create=False, lasting=True)\n"
            "print(users.get('ann') is not None); users.close()"
        )
        done = subprocess.run([sys.executable, "-c", code, str(users.path)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "True\n")


class Ledger:
    """A list that is changed in transactions."""

    def __init__(self) -> None:
        self.committed: list[list[str]] = []
        self.free = threading.Event()

    @contextmanager
    def __call__(self) -> Iterator[list[str]]:
        self.free.wait()
        changes: list[str] = []
        yield changes
        self.committed.append(changes)


def adding(text: str) -> Callable[[list[str]], str]:
    def change(changes: list[str]) -> str:
        changes.append(text)
        if text.startswith("wrong"):
            raise UserStoreError(text)
        return text

    return change


def test_what_waits_together_shares_a_transaction_and_ones_fault_is_its_own() -> None:
    ledger = Ledger()
    writes = Writer(ledger, "the ledger")
    names = [f"{'wrong' if i % 3 == 1 else 'right'} {i}" for i in range(9)]
    with ThreadPoolExecutor(9) as pool:
        calls = {name: pool.submit(writes.write, adding(name), wait_s=60) for name in names}
        until(lambda: len(writes._waiting) == 9)
        ledger.free.set()
        for name, call in calls.items():
            if name.startswith("right"):
                assert call.result() == name
            else:
                with pytest.raises(UserStoreError, match=name):
                    call.result()
        ledger.free.clear()
        more = [pool.submit(writes.write, adding(f"more {i}"), wait_s=60) for i in range(5)]
        until(lambda: len(writes._waiting) == 5)
        ledger.free.set()
        for one in more:
            one.result()
    writes.close(60)
    flat = [text for changes in ledger.committed for text in changes]
    assert sorted(flat) == sorted(
        [name for name in names if name.startswith("right")] + [f"more {i}" for i in range(5)]
    )
    assert len(ledger.committed[-1]) == 5


def test_writes_that_cannot_begin_are_taken_back_and_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING", 3)
    ledger = Ledger()
    writes = Writer(ledger, "the ledger")
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(writes.write, adding(f"{i}"), wait_s=60) for i in range(3)]
        until(lambda: len(writes._waiting) == 3)
        with pytest.raises(UserStoreError, match="3 writes that wait"):
            writes.write(adding("one too many"))
        writes.stop()
        for call in calls:
            with pytest.raises(UserStoreError, match="given up"):
                call.result()
    ledger.free.set()
    writes.close(60)
    assert [changes for changes in ledger.committed if changes] == []
    with pytest.raises(UserStoreError, match="given up"):
        writes.write(adding("afterwards"))


# -- files that fail ----------------------------------------------------------------------------------------


def cut(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / "data.mdb", size)


def cut_a_page(folder: Path) -> None:
    os.truncate(folder / "data.mdb", (folder / "data.mdb").stat().st_size - 4096)


def replaced(folder: Path) -> None:
    shutil.copy(folder / "data.mdb", folder / "copy")
    (folder / "copy").replace(folder / "data.mdb")


def junk(folder: Path) -> None:
    (folder / "copy").write_bytes(os.urandom(100_000))
    (folder / "copy").replace(folder / "data.mdb")


FAULTS: dict[str, Callable[[Path], object]] = {
    "empty": cut(0),
    "half a page": cut(2000),
    "meta pages alone": cut(8192),
    "a page less": cut_a_page,
    "in the middle of a page": cut(300_001),
    "data gone": lambda folder: (folder / "data.mdb").unlink(),
    "lock cut": lambda folder: os.truncate(folder / "lock.mdb", 0),
    "moved away": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "another file": junk,
    "all gone": lambda folder: shutil.rmtree(folder),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_while_serving_is_one_error_and_what_is_put_back_is_picked_up(
    fault: str, users: LmdbUsers, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(users.path, backup)
    FAULTS[fault](users.path)
    for call in (lambda: users.get("ann"), lambda: users.record([play("lost?")]), lambda: users.get("u199")):
        with pytest.raises(UserStoreError) as caught:
            call()
        assert "\n" not in str(caught.value)
    if fault != "lock cut":  # a lock file is made anew by whoever opens the store
        with pytest.raises(UserStoreError) as caught:
            LmdbUsers(users.path, create=False)
        assert "\n" not in str(caught.value)
    if users.path.exists():
        users.path.rename(tmp_path / "aside")
    backup.rename(users.path)
    assert until(lambda: recorded(users, "after")) == [True]
    state = users.get("ann")
    assert state is not None
    assert len(state.heard) == 2
    assert users.get("u199") is not None


def test_a_lock_file_that_is_replaced_is_noticed_before_two_write_at_once(users: LmdbUsers) -> None:
    (users.path / "lock.mdb").unlink()
    assert recorded(users, "at once") == []  # its lock holds back nobody any more
    assert until(lambda: recorded(users, "then")) == [True]


def test_another_store_in_its_place_takes_no_plays(users: LmdbUsers, tmp_path: Path) -> None:
    aside = users.path.rename(tmp_path / "aside")
    other = LmdbUsers(users.path)
    other.record([play("of the other")])
    other.close()
    until(lambda: "which was served" in refusal(users))
    with pytest.raises(UserStoreError):
        users.record([play("into the wrong one")])
    users.path.rename(tmp_path / "the other")
    aside.rename(users.path)
    assert until(lambda: recorded(users, "back")) == [True]


def test_what_should_exist_is_not_made(tmp_path: Path, short_waits: None) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(UserStoreError, match=r"found no user store, expected one: `lhydra users load` and "):
        LmdbUsers(absent, create=False)
    users = LmdbUsers(absent, create=False, lasting=True)
    with pytest.raises(UserStoreError, match=r"found no user store, expected one: put it back.*--users-create"):
        users.record([play("e")])
    assert not absent.exists()
    LmdbUsers(absent).close()
    assert until(lambda: recorded(users, "e")) == [True]
    users.close()


@where_a_compiler_is
def test_the_compiled_look_tells_other_files_and_shorter_ones(tmp_path: Path) -> None:
    assert kernels.compiled is not None
    data, lock = tmp_path / "data", tmp_path / "lock"
    for path in (data, lock):
        path.write_bytes(bytes(100))
    paths, files = (os.fsencode(data), os.fsencode(lock)), (file_of(data.stat()), file_of(lock.stat()))
    unchanged = kernels.compiled.unchanged
    assert unchanged(*paths, files, 100, 90)
    assert not unchanged(*paths, files, 99, 90)  # grown
    assert not unchanged(*paths, files, 101, 90)
    assert not unchanged(*paths, files, 100, 101)
    assert not unchanged(*paths, (files[1], files[1]), 100, 90)
    data.rename(tmp_path / "elsewhere")
    assert not unchanged(*paths, files, 100, 90)


def test_the_growth_of_the_file_by_another_process_is_no_fault(users: LmdbUsers) -> None:
    code = (
        "import sys; from pathlib import Path; from lhydra.users.lmdb_store import LmdbUsers\n"
        "from lhydra.domain import UserState\n"
        "users = LmdbUsers(Path(sys.argv[1]))\n"
        "for i in range(60): users.load([(f'{i}-{j}', UserState({'note': 'x' * 5000})) for j in range(20)])\n"
        "users.close()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(users.path)]) as process:
        while process.poll() is None:
            assert users.get("ann") is not None
    assert process.returncode == 0
    assert users.get("59-19") is not None
