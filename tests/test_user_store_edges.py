"""What a user store on LMDB runs into: a full disk, a full map, no slot for a reader, files of somebody else."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from lhydra.domain import UserState
from lhydra.errors import UserStoreError
from lhydra.users import opened
from lhydra.users.lmdb_store import LmdbUsers
from lhydra_protos.v1 import recommender_pb2 as pb
from tests.fake_serve import write_bundle
from tests.harness import until
from tests.test_server import play as sent
from tests.test_supervisor import B1, fake, open_stub, publish, running
from tests.test_user_store_faults import play

ROOT = Path(__file__).resolve().parents[1]
SOMEBODY_ELSE = """
import os, sys
from lhydra.users import environment, place
os.setuid(65_534)
sys.exit(place.main())
"""
READERS = """
import sys, lmdb
env = lmdb.open(sys.argv[1], map_size=2**36, max_dbs=16, max_readers=126)
held = []
try:
    while True:
        held.append(env.begin())
except lmdb.ReadersFullError:
    assert len(held) > 1000
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"SMALL DISK ABSENT: no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> Path:
    """Takes all that is left of a disk; returns the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(disk).f_bavail == 0
    return filler


def refusal(users: LmdbUsers, number: int) -> str:
    """Why the store does not take a play; empty where it does."""
    try:
        assert users.record([play(f"e{number}", f"u{number % 50}")]) == [True]
    except UserStoreError as error:
        return str(error)
    return ""


def taken_until(users: LmdbUsers, found: str, most: int = 5_000) -> int:
    """Records until the store takes no more, for a reason of one line; returns how many plays it took."""
    number, why = next((number, why) for number in range(most) if (why := refusal(users, number)))
    assert found in why
    assert "\n" not in why
    return number


def assert_kept(users: LmdbUsers, taken: int) -> None:
    """All acknowledged plays are there, and not one more."""
    states = [users.get(f"u{i}") for i in range(50)]
    assert sum(len(state.heard) for state in states if state is not None) == taken


def test_a_full_disk_takes_no_play_loses_none_and_is_read(small_disk: Path) -> None:
    folder = small_disk / "users.lmdb"
    users = LmdbUsers(folder, lasting=True)
    users.load([(f"u{i}", UserState({"note": "x" * 200})) for i in range(50)])
    filler = fill(small_disk)
    taken = taken_until(users, "No space left on device, expected room on its disk")
    for _ in range(3):
        assert "No space left on device" in refusal(users, taken)
        assert_kept(users, taken)
    filler.unlink()
    assert users.record([play("after", "u0")]) == [True]
    users.close()
    again = LmdbUsers(folder, create=False)
    assert_kept(again, taken + 1)
    again.close()


def test_a_server_on_a_full_disk_answers_and_refuses_plays(small_disk: Path, tmp_path: Path) -> None:
    store, users = tmp_path / "store", small_disk / "users.lmdb"
    write_bundle(store, B1, n=100)
    publish(store, B1)
    made = LmdbUsers(users)
    made.record([play("before")])
    made.close()
    filler = fill(small_disk)
    settings = {"users": f"lmdb:{users}", "workers": 1}
    with running(fake(store, **settings), tmp_path / "log") as server, open_stub(server.address) as stub:

        def code(number: int) -> grpc.StatusCode:
            plays = pb.RecordPlaysRequest(plays=[sent(f"e{number}", "t001")])
            try:
                assert stub.RecordPlays(plays, timeout=20).recorded == 1
            except grpc.RpcError as error:
                found: grpc.StatusCode = error.code()
                return found
            return grpc.StatusCode.OK

        def answered() -> bool:
            reply = stub.Recommend(pb.RecommendRequest(user_id="ann", k=3), timeout=20)
            return len(reply.tracks) == 3 and not reply.degraded

        refused = next(i for i in range(200) if not (answered() and code(i) is grpc.StatusCode.OK))
        assert code(refused) is grpc.StatusCode.UNAVAILABLE
        assert answered()
        filler.unlink()
        assert code(refused) is grpc.StatusCode.OK
        assert answered()
    again = LmdbUsers(users, create=False)
    state = again.get("ann")
    assert state is not None
    assert state.recent is not None
    assert len(state.recent) == refused + 2
    again.close()


def test_a_store_on_a_disk_that_is_full_from_the_start_is_one_line(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(UserStoreError, match="No space left on device, expected an LMDB folder that can be written"):
        LmdbUsers(small_disk / "users.lmdb")


def test_a_full_map_takes_no_play_loses_none_and_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "MAP_BYTES", 2**19)
    users = LmdbUsers(tmp_path, lasting=True)
    taken = taken_until(users, "MDB_MAP_FULL")
    assert taken > 100
    assert "MDB_MAP_FULL" in refusal(users, taken)
    assert_kept(users, taken)
    users.close()
    monkeypatch.undo()
    again = LmdbUsers(tmp_path, create=False)
    assert again.record([play("after", "u0")]) == [True]
    assert_kept(again, taken + 1)
    again.close()


@contextmanager
def all_slots_taken(folder: Path) -> Iterator[None]:
    """Another process takes them all."""
    command = [sys.executable, "-c", READERS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.kill()


def test_without_a_slot_for_a_reader_it_says_so_and_comes_back(tmp_path: Path) -> None:
    made = LmdbUsers(tmp_path)
    made.record([play("before")])
    made.close()
    with all_slots_taken(tmp_path):
        users = LmdbUsers(tmp_path, create=False, lasting=True)
        with pytest.raises(UserStoreError, match=r"MDB_READERS_FULL.*, expected fewer readers") as caught:
            users.get("ann")
        assert "\n" not in str(caught.value)
    until(lambda: reads(users))
    assert users.record([play("after")]) == [True]
    users.close()


def reads(users: LmdbUsers) -> bool:
    try:
        return users.get("ann") is not None
    except UserStoreError:
        return False


@pytest.mark.skipif(os.geteuid() != 0, reason="USERS ABSENT: only root can become somebody else")
def test_the_files_of_somebody_else_are_one_line() -> None:
    with tempfile.TemporaryDirectory() as open_to_all:  # the folders of pytest are its user's alone
        os.chmod(open_to_all, 0o755)
        folder = Path(open_to_all) / "users.lmdb"
        made = LmdbUsers(folder)
        made.record([play("before")])
        made.close()
        before = (folder / "data.mdb").read_bytes()
        done = subprocess.run(
            [sys.executable, "-c", SOMEBODY_ELSE, folder],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"{folder}: found Permission denied, expected an LMDB folder that can be written\n"
        assert (folder / "data.mdb").read_bytes() == before
