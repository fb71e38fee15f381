"""Whatever kills a builder, and whoever else is at work: CURRENT names a whole bundle, and what is left is swept."""

import fcntl
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lhydra import files
from lhydra.bundle import listed
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.errors import BundleMissing, BundleRefused
from lhydra_index_builder import build, gate
from lhydra_index_builder import store as stores
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings
from tests.harness import examples, gone, until

SETTINGS = RebuildSettings(recipe="flat", depth=100, recall_users=20, gate_users=20, threads=1)

# Forks, for every message, a process that runs `lhydra ARGV` with something happening at the nth call of one function,
# before it or after it; a number asks for the exit code of a child. The imports, most of a short run, are done once.
DRIVER = """
import json, os, pkgutil, resource, signal, socket, sys
import lhydra_index_builder.changes, lhydra_index_builder.command
from lhydra import console
from lhydra.cli import main
from tests.harness import gone, until

def drive(at, words):
    console._REPORT_EVERY_S = float("inf")  # no progress on stderr, however slow the machine
    calls = 0

    def happen():
        if at["what"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if at["what"] == "wait":
            print("here", file=sys.stderr, flush=True)
            sys.stdin.read()
        if at["what"] == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (at["bytes"], resource.RLIM_INFINITY))

    def wrapped(*args, **named):
        nonlocal calls
        calls += at["match"] in str(args[:1])
        mine = calls == at["nth"] and at["match"] in str(args[:1])
        if mine and not at["after"]:
            happen()
        result = original(*args, **named)
        if mine and at["after"]:
            happen()
        return result

    if at["step"]:
        place, _, name = at["step"].rpartition(".")
        owner = pkgutil.resolve_name(place)
        original = getattr(owner, name)
        setattr(owner, name, wrapped)
    print("ready", file=sys.stderr, flush=True)
    sys.exit(main(words))

asked = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, given, _, _ = socket.recv_fds(asked, 1 << 16, 2)
    if not message:
        break
    what = json.loads(message)
    if isinstance(what, int):
        asked.send(str(os.waitstatus_to_exitcode(os.waitpid(what, 0)[1])).encode())
        continue
    pid = os.fork()
    if not pid:
        asked.close()
        os.dup2(given[0], 0)
        os.dup2(given[1], 2)
        drive(*what)
    for one in given:
        os.close(one)
    asked.send(str(pid).encode())
"""


class Driven:
    """A process that a driver forked: it has said that it is ready. Its stdin is open until `end`."""

    def __init__(self, driver: socket.socket, at: dict[str, Any], words: list[str]) -> None:
        self.driver, self.returncode, self.said = driver, None, b""
        stdin, self.stdin = os.pipe()
        self.stderr, stderr = os.pipe()
        socket.send_fds(driver, [json.dumps([at, words]).encode()], [stdin, stderr])
        self.pid = int(driver.recv(100))
        os.close(stdin)
        os.close(stderr)
        assert self.line() == "ready"

    returncode: int | None

    def read(self, timeout_s: float | None) -> bool:
        """Reads what has come on stderr; False where that was the end of it."""
        if not select.select([self.stderr], [], [], timeout_s)[0]:
            raise TimeoutError
        found = os.read(self.stderr, 1 << 16)
        self.said += found
        return bool(found)

    def line(self) -> str:
        """The next line that it says on stderr."""
        while b"\n" not in self.said:
            assert self.read(60), self.said
        line, _, self.said = self.said.partition(b"\n")
        return line.decode()

    def wait(self) -> None:
        """Waits until it has ended."""
        if self.returncode is None:
            self.driver.send(str(self.pid).encode())
            self.returncode = int(self.driver.recv(100))

    def kill(self) -> None:
        """Kills it, if it has not ended, and waits."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def end(self, timeout_s: float | None = None) -> str:
        """Lets it go on and waits for it; returns what it said on stderr, raises TimeoutError."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self.read(None if until_s is None else max(0, until_s - time.monotonic())):
            pass
        self.wait()
        return self.said.decode()

    def close(self) -> None:
        """Ends it, whatever it is doing."""
        self.kill()
        for one in (self.stdin, self.stderr):
            if one >= 0:
                os.close(one)
        self.stdin = self.stderr = -1


Start = Callable[..., Driven]


@pytest.fixture(scope="module")
def driver() -> Iterator[socket.socket]:
    """What forks processes."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", DRIVER, str(theirs.fileno())]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
    ) as process:
        theirs.close()
        yield ours
        ours.close()
        assert process.wait() == 0


@pytest.fixture
def start(driver: socket.socket) -> Iterator[Start]:
    """Starts `lhydra WORDS` in a process of its own, whose imports are done; gone after the test."""
    started: list[Driven] = []

    def one(
        words: list[str],
        what: str = "",
        step: str = "",
        *,
        after: bool = False,
        nth: int = 1,
        match: str = "",
        size: int = 0,
    ) -> Driven:
        at = {"what": what, "step": step, "after": after, "nth": nth, "match": match, "bytes": size}
        started.append(Driven(driver, at, words))
        return started[-1]

    yield one
    for process in started:
        process.close()


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the tiny store's bundles: two, the newer one current."""
    shutil.copytree(tiny_store, tmp_path / "store", ignore=shutil.ignore_patterns("users.lmdb"))
    return tmp_path / "store"


@pytest.fixture
def again(tiny_model: Path, tiny_dataset: Dataset, store: Path) -> Callable[..., build.Built]:
    """Rebuilds in the store, in this process."""
    return lambda **settings: rebuild(tiny_model, tiny_dataset, store, replace(SETTINGS, **settings))


@pytest.fixture
def words(tiny_model: Path, tiny_dataset: Dataset, store: Path, tmp_path: Path) -> dict[str, list[str]]:
    """The command lines of what builds."""
    (tmp_path / "new.csv").write_text("track_id,name,artist\nnew-1,One,Somebody\nnew-2,Two,Nobody\n")
    some = tiny_dataset.track_rows(0, 2)["track_id"].to_pylist()
    place = ["--store", str(store), "--gate-users", "20"]
    sizes = ["--recipe", "flat", "--depth", "100", "--recall-users", "20", "--threads", "1"]
    model = ["--model", str(tiny_model), "--data", str(tiny_dataset.path)]
    return {
        "rebuild": ["index", "rebuild", *model, *place, *sizes],
        "add": ["index", "add", str(tmp_path / "new.csv"), *place],
        "remove": ["index", "remove", *some, *place],
    }


@contextmanager
def waiting(start: Start, words: list[str], step: str, **named: Any) -> Iterator[Driven]:
    """Gives a process that has come to `step` and waits there until its stdin closes; killed at the end."""
    process = start(words, "wait", step, **named)
    assert process.line() == "here"
    yield process
    process.kill()


def left_over(store: Path) -> list[str]:
    """Hidden files, without the memory of verified ones, which stays."""
    hidden = (path.name for path in store.iterdir() if path.name.startswith("."))
    return sorted(name for name in hidden if not name.startswith(".verified-"))


def bundles(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir() if path.is_dir() and not path.name.startswith("."))


# -- killed -------------------------------------------------------------------------------------------------

BUILD, STORE = "lhydra_index_builder.build", "lhydra_index_builder.store"
CHANGES = "lhydra_index_builder.changes"
KILLS: list[tuple[str, str, dict[str, Any]]] = [
    ("rebuild", f"{BUILD}.write_catalog", {}),
    ("rebuild", f"{BUILD}.write_catalog", {"after": True}),
    ("rebuild", f"{BUILD}.depths.measure", {}),
    ("rebuild", f"{BUILD}.recipe.choose", {"after": True}),
    ("rebuild", "lhydra.files.seal", {"after": True}),
    ("rebuild", f"{BUILD}.Bundle.open_folder", {}),
    ("rebuild", f"{BUILD}.gate.check", {"after": True}),
    ("rebuild", f"{STORE}.add", {}),
    ("rebuild", "os.fsync", {"nth": 20}),
    ("rebuild", f"{STORE}.set_current", {}),
    ("rebuild", "pathlib.Path.replace", {"match": ".CURRENT"}),
    ("rebuild", "pathlib.Path.replace", {"match": ".CURRENT", "after": True}),
    ("add", f"{CHANGES}._merge", {}),
    ("add", f"{STORE}.add", {"after": True}),
    ("remove", f"{CHANGES}._link", {"after": True}),
    ("remove", f"{STORE}.set_current", {"after": True}),
]
PUBLISHED = [("pathlib.Path.replace", True), (f"{STORE}.set_current", True)]  # killed there, CURRENT is the new one
IN_PLACE = [*PUBLISHED, ("pathlib.Path.replace", False), (f"{STORE}.set_current", False), (f"{STORE}.add", True)]


@pytest.mark.parametrize(("action", "step", "how"), KILLS)
def test_killed_at_a_step_the_last_good_bundle_is_current(
    start: Start,
    action: str,
    step: str,
    how: dict[str, Any],
    store: Path,
    words: dict[str, list[str]],
    again: Callable[..., build.Built],
) -> None:
    current, before = current_bundle_id(store), bundles(store)
    process = start(words[action], "kill", step, **how)
    err = process.end()
    assert (process.returncode, err) == (-signal.SIGKILL, "")
    at = (step, how.get("after", False))
    assert Bundle.open(store).bundle_id == current_bundle_id(store)
    assert (current_bundle_id(store) == current) == (at not in PUBLISHED)
    new = sorted({*bundles(store)} - {*before})
    assert len(new) == (at in IN_PLACE)
    for bundle_id in (*before, *new):
        Bundle.open(store, bundle_id)
    partial = [entry.bundle_id for entry in listed.entries(store) if entry.state == "partial"]
    assert partial == [name for name in left_over(store) if name.startswith(".staging-")]
    assert len(partial) == (at not in IN_PLACE)
    built = again()
    assert Bundle.open(store).bundle_id == built.bundle_id
    assert bundles(store) == sorted([*before, *new, built.bundle_id])
    assert left_over(store) == [".lock"]


def test_killed_at_any_moment_the_last_good_bundle_loads(
    start: Start, store: Path, words: dict[str, list[str]], again: Callable[..., build.Built]
) -> None:
    """Five of five, in `make test-deep` a hundred of a hundred."""
    process = start(words["rebuild"])
    started = time.monotonic()
    process.end()
    took_s = time.monotonic() - started
    assert process.returncode == 0
    killed = 0
    while killed < examples(5):
        known = bundles(store)
        current = current_bundle_id(store)
        process = start(words["rebuild"])
        after_s = random.SystemRandom().uniform(0, took_s)  # other moments in every run
        print(f"killed after {after_s} of {took_s} s")  # pytest shows it where the test fails
        with suppress(TimeoutError):
            process.end(after_s)
        process.close()
        killed += process.returncode == -signal.SIGKILL  # else it had ended by then
        loaded = Bundle.open(store).bundle_id
        assert loaded == current or loaded not in known
        assert len([name for name in left_over(store) if name.startswith(".staging-")]) <= 1
    built = again()
    assert Bundle.open(store).bundle_id == built.bundle_id
    assert left_over(store) == [".lock"]
    for bundle_id in bundles(store):
        Bundle.open(store, bundle_id)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_of_a_pool_outlives_its_builder(tmp_path: Path, end: signal.Signals) -> None:
    """Neither one at work, nor the one that multiprocessing starts to clean up behind them."""
    pipes = [tmp_path / "a", tmp_path / "b"]
    for pipe in pipes:
        os.mkfifo(pipe)
    program = """
import sys
from pathlib import Path
from types import SimpleNamespace
from lhydra import cli
from lhydra_index_builder import pool
def run(args):
    with pool.processes(2) as run:
        list(run(Path.read_bytes, [Path(name) for name in sys.argv[1:]]))
cli._parse = lambda argv: (SimpleNamespace(command="index", log_level="warning"), SimpleNamespace(run=run, EXTRA=""))
sys.exit(cli.main(["index"]))
"""
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, pipes)], stderr=subprocess.PIPE, text=True)
    writers: list[int] = []

    def at_work() -> bool:
        with suppress(OSError):  # nobody reads there yet
            writers.append(os.open(pipes[len(writers)], os.O_WRONLY | os.O_NONBLOCK))
        return len(writers) == len(pipes)

    children: list[int] = []
    try:
        assert until(at_work)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(children) >= 2
        assert not any(gone(pid) for pid in children)
        process.send_signal(end)
        _, errors = process.communicate(timeout=60)
        if end is signal.SIGTERM:
            assert (process.returncode, errors) == (143, "lhydra index: ended by SIGTERM\n")
        assert until(lambda: all(gone(pid) for pid in children))
    finally:
        process.kill()
        process.wait()
        for pid in children:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        for writer in writers:
            os.close(writer)


# -- no space -----------------------------------------------------------------------------------------------

FULL: list[tuple[str, str, int, str]] = [
    ("rebuild", f"{STORE}._locked", 0, ""),
    ("rebuild", f"{BUILD}.write_catalog", 30_000, ""),  # vectors.npy
    ("rebuild", f"{BUILD}.write_catalog", 160_000, ""),  # a copied file
    ("rebuild", f"{BUILD}.pq.write_table", 1_000, ""),
    ("rebuild", f"{BUILD}.recipe.choose", 51_240, "index-0.faiss"),  # all but what is written as the file closes
    ("rebuild", f"{BUILD}._write_golden", 2_000, ""),
    ("rebuild", f"{BUILD}._write", 2_000, ""),
    ("add", f"{CHANGES}._merge", 30_000, ""),
    ("add", f"{CHANGES}.Index.write", 30_000, "index.faiss"),
]


@pytest.mark.parametrize(("action", "step", "size", "named"), FULL)
def test_a_full_disk_is_one_line_and_the_store_as_it_was(
    start: Start, action: str, step: str, size: int, named: str, store: Path, words: dict[str, list[str]]
) -> None:
    """A limit on the size of files is the nearest thing to a full disk that every machine has."""
    before = sorted(path for path in store.rglob("*") if path.name != ".lock"), current_bundle_id(store)
    process = start(words[action], "limit", step, size=size)
    err = process.end()
    assert process.returncode == 1
    assert err.startswith("lhydra index: ")
    assert err.count("\n") == 1, err
    assert str(store) in err
    assert named in err
    assert "File too large" in err or "written" in err
    assert (sorted(path for path in store.rglob("*") if path.name != ".lock"), current_bundle_id(store)) == before
    Bundle.open(store)


def test_current_that_cannot_be_written_stays(start: Start, store: Path, words: dict[str, list[str]]) -> None:
    """The new bundle is whole by then, and stays for a rollback to go to."""
    current = current_bundle_id(store)
    process = start(words["remove"], "limit", f"{STORE}.set_current", size=0)
    err = process.end()
    assert (process.returncode, err.count("\n")) == (1, 1)
    assert f"{store}" in err
    assert current_bundle_id(store) == current
    assert left_over(store) == [".lock"]
    (new,) = [entry.bundle_id for entry in listed.entries(store) if entry.state == "newer"]
    assert stores.rollback(store, new) == Bundle.open(store).bundle_id == new


@pytest.mark.parametrize("place", ["store", "store/below", "store/.lock"])
def test_a_file_in_the_way_is_one_line(
    place: str,
    tiny_model: Path,
    tiny_dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if place.endswith(".lock"):  # a folder where a file is wanted
        (tmp_path / place).mkdir(parents=True)
        place = "store"
    else:
        (tmp_path / "store").write_text("not a folder")
    words = ["--model", str(tiny_model), "--data", str(tiny_dataset.path), "--store", str(tmp_path / place)]
    assert main(["index", "rebuild", *words]) == 1
    err = capsys.readouterr().err
    assert err.startswith("lhydra index: ")
    assert err.count("\n") == 1
    assert str(tmp_path / "store") in err


# -- two at once --------------------------------------------------------------------------------------------


def test_who_comes_second_is_told_who_builds_and_since_when(
    start: Start,
    store: Path,
    words: dict[str, list[str]],
    again: Callable[..., build.Built],
    capsys: pytest.CaptureFixture[str],
) -> None:
    newer, before = current_bundle_id(store), bundles(store)
    with waiting(start, words["rebuild"], f"{BUILD}.write_catalog") as holder:
        for action in words:
            assert main(words[action]) == 1
            err = capsys.readouterr().err
            assert err.count("\n") == 1
            who = f"found lhydra index rebuild by process {holder.pid} on {socket.gethostname()} for "
            assert who in err
            assert err.partition(who)[2].split()[0].isdigit()
        assert main(["index", "list", "--store", str(store)]) == 0
        states = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]]
        assert states == ["current", "previous", "partial"]
        assert main(["index", "verify", "--store", str(store)]) == 0
        assert main(["index", "rollback", "--store", str(store)]) == 0
        assert main(["index", "rollback", newer, "--store", str(store)]) == 0
        assert (current_bundle_id(store), bundles(store), gone(holder.pid)) == (newer, before, False)
        holder.kill()
        assert len(left_over(store)) == 2
        assert Bundle.open(store).bundle_id == newer
        built = again()  # at once: the lock went with its holder
    assert current_bundle_id(store) == built.bundle_id
    assert left_over(store) == [".lock"]


def test_a_lock_that_says_nothing_holds_all_the_same(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stores.building(store, "test"):
        (store / ".lock").write_text("{")
        assert main(["index", "remove", "x", "--store", str(store)]) == 1
    assert "found another builder" in capsys.readouterr().err
    assert main(["index", "remove", "x", "--store", str(store)]) == 1
    assert "track ids: found 1 unknown" in capsys.readouterr().err


def test_a_rebuild_compares_with_what_was_rolled_back_to(
    start: Start, store: Path, words: dict[str, list[str]]
) -> None:
    """The rollback happens in this process after the other one's gate has spoken, before it publishes."""
    newer = current_bundle_id(store)
    with waiting(start, words["rebuild"], f"{BUILD}.gate.check", after=True) as builder:
        older = stores.rollback(store)
        assert (builder.end(), builder.returncode) == ("", 0)
    manifest = Bundle.open(store).manifest
    assert manifest is not None
    assert manifest.bundle_id not in (older, newer)
    assert manifest.gate["against"] == older


def test_the_gate_is_asked_again_for_each_rollback_and_may_then_refuse(
    store: Path, again: Callable[..., build.Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = current_bundle_id(store)
    check, against = gate.check, []

    def rolled_back_meanwhile(folder: Path, new: Bundle, current: Bundle, *args: Any) -> list[gate.Check]:
        against.append(current.bundle_id)
        checks = check(folder, new, current, *args)
        if len(against) < 3:
            stores.rollback(store, None if len(against) == 1 else newer)
            return checks
        return [*checks, gate.Check("odd", listed.REFUSED, 1, 0, "the third time")]

    monkeypatch.setattr(gate, "check", rolled_back_meanwhile)
    older = listed.entries(store)[1].bundle_id
    with pytest.raises(BundleRefused, match="the third time"):
        again()
    assert against == [newer, older, newer]
    assert Bundle.open(store).bundle_id == newer
    (refused,) = [entry for entry in listed.entries(store) if entry.state == "refused"]
    assert refused.manifest is not None
    assert refused.manifest.gate["against"] == newer
    Bundle.open(store, refused.bundle_id)


# -- retention ----------------------------------------------------------------------------------------------


def fake(store: Path, bundle_id: str, verdict: str) -> str:
    """Adds a bundle of which there is a manifest only, which names no files."""
    manifest = Manifest.read(store / current_bundle_id(store))
    (store / bundle_id).mkdir()
    manifest = replace(manifest, bundle_id=bundle_id, files={}, gate={**manifest.gate, "verdict": verdict})
    (store / bundle_id / "manifest.json").write_text(manifest.to_json())
    return bundle_id


def test_a_bundle_that_a_process_has_open_outlives_retention_but_not_the_process(
    store: Path, again: Callable[..., build.Built]
) -> None:
    second, first = (entry.bundle_id for entry in listed.entries(store))
    program = """
import sys
from pathlib import Path
from lhydra.bundle.bundle import Bundle
bundle = Bundle.open(Path(sys.argv[1]), sys.argv[2])
print("open", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(store), first]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        third = again(keep=1)
        assert third.deleted == ()
        assert bundles(store) == sorted([first, second, third.bundle_id])  # in use, previous, current
        Bundle.open(store, first)
    finally:
        reader.kill()
        reader.communicate()
    fourth = again(keep=1)
    assert sorted(fourth.deleted) == sorted([first, second])
    assert bundles(store) == sorted([third.bundle_id, fourth.bundle_id])
    assert left_over(store) == [".lock"]
    assert stores.rollback(store) == Bundle.open(store).bundle_id == third.bundle_id


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_refused_bundles_are_kept_by_their_own_count(keep: int, store: Path) -> None:
    good = [entry.bundle_id for entry in listed.entries(store)]
    refused = [fake(store, f"20200101T00000{n}-{n:08x}", "refused") for n in range(5)]
    older = [fake(store, f"20190101T00000{n}-{n:08x}", "passed") for n in range(2)]
    deleted = stores.retain(store, keep)
    newest_first = [*good, *reversed(older)]
    kept = newest_first[: max(keep, 2)]  # current and previous whatever is asked for
    assert bundles(store) == sorted([*kept, *refused[-keep:]])
    assert sorted(deleted) == sorted({*good, *refused, *older} - {*bundles(store)})


def test_what_is_current_is_kept_however_old(store: Path) -> None:
    """So is what is in use though this version cannot read it: a server of another version may be at work."""
    for n in range(3):
        fake(store, f"2999010{n + 1}T000000-{n:08x}", "passed")
    odd = store / fake(store, "20180101T000000-00000000", "passed") / "manifest.json"
    odd.write_text('{"format": 1}')
    refused = [fake(store, f"20200101T00000{n}-{n:08x}", "refused") for n in range(2)]
    current, previous = (entry.bundle_id for entry in listed.entries(store) if entry.state in ("current", "previous"))
    lease = files.Lease(odd)
    assert len(stores.retain(store, 1)) == 3
    assert bundles(store) == sorted([current, previous, refused[1], odd.parent.name, "29990103T000000-00000002"])
    del lease
    assert stores.retain(store, 1) == [odd.parent.name]
    Bundle.open(store)


def test_retention_does_not_delete_what_somebody_rolls_back_to(
    start: Start, store: Path, again: Callable[..., build.Built]
) -> None:
    """The rollback has checked the bundle whole and is about to write CURRENT."""
    first = listed.entries(store)[1].bundle_id
    again()
    rollback = ["index", "rollback", first, "--store", str(store)]
    with waiting(start, rollback, f"{STORE}.set_current") as process:
        assert first not in stores.retain(store, 1)
        err = process.end()
        assert (process.returncode, err) == (0, "")
    assert Bundle.open(store).bundle_id == first


def test_nobody_changes_current_while_retention_decides(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle found to be neither current nor in use stays so until it is gone."""
    old = fake(store, "20180101T000000-00000000", "passed")
    alone = []

    def probe(path: Path) -> bool:
        descriptor = os.open(store, os.O_RDONLY)  # what set_current locks
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone.append(False)
        except BlockingIOError:
            alone.append(True)
        finally:
            os.close(descriptor)
        return False

    monkeypatch.setattr(files, "in_use", probe)
    assert stores.retain(store, 1) == [old]
    assert alone == [True]


def test_current_never_names_a_bundle_that_is_not_there(store: Path) -> None:
    current = current_bundle_id(store)
    with pytest.raises(BundleMissing, match="no such bundle"):
        stores.set_current(store, "20200101T000000-00000000")
    assert Bundle.open(store).bundle_id == current


def test_a_killed_retention_leaves_whole_bundles_and_its_rest_is_swept(
    start: Start, store: Path, words: dict[str, list[str]], again: Callable[..., build.Built]
) -> None:
    second, first = (entry.bundle_id for entry in listed.entries(store))
    process = start([*words["rebuild"], "--keep", "1"], "kill", "shutil.rmtree", match=".trash-")
    err = process.end()
    assert (process.returncode, err) == (-signal.SIGKILL, "")
    third = Bundle.open(store).bundle_id
    assert bundles(store) == sorted([second, third])
    assert f".trash-{first}" in left_over(store)
    again()
    assert left_over(store) == [".lock"]
