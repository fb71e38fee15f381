"""Replacing a folder or a file: killed or interrupted anywhere, the old one or the new one is there, whole."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lhydra import files
from tests.harness import deep

OLD, NEW = {"a": "old", "b/c": "old"}, {"a": "new", "b/c": "new", "d": "new"}


def fill(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def replace_folder(place: Path) -> None:
    with files.replacing_folder(place / "target") as new:
        fill(new, NEW)
        (new.parent / "spill").write_text("x")


def replace_file(place: Path) -> None:
    files.write_text(place / "target" / "a", "new")


@pytest.fixture(params=["exchange", "two renames"])
def exchange(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the system exchanges two folders in one step; where it cannot, only the other way is tried."""
    if request.param == "exchange":
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        if not files._exchange(tmp_path / "a", tmp_path / "b"):
            pytest.skip("no renameat2 here")
        shutil.rmtree(tmp_path / "a")
        shutil.rmtree(tmp_path / "b")
        return True
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    return False


def at_line(n: int, act: Callable[[], None]) -> Callable[[FrameType, str, Any], Any]:
    """Returns a trace function that calls `act` before the nth line of files.py or call of a function of shutil.py."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if event != {files.__file__: "line", shutil.__file__: "call"}.get(frame.f_code.co_filename):
            return trace
        steps += 1
        if steps == n:
            act()
        return trace

    return trace


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted() -> None:
    raise KeyboardInterrupt


def stopped_at(n: int, stop: Callable[[], None], work: Callable[[Path], None], place: Path) -> bool:
    """Whether a process that does `work` was stopped before line `n`, False when it had ended by then."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            sys.settrace(at_line(n, stop))
            work(place)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return status != 0


def moments(tmp_path: Path, stop: Callable[[], None], work: Callable[[Path], None]) -> Iterator[tuple[int, Path]]:
    """Yields (line, place): there the old folder `target` was being replaced until the process was stopped.

    In `make test-deep` it is killed before every line and interrupted before every line, else killed before the even
    and interrupted before the odd ones.
    """
    for n in range(1, 2_000) if deep() else range(2 if stop is killed else 1, 2_000, 2):
        place = tmp_path / str(n)
        fill(place / "target", OLD)
        if not stopped_at(n, stop, work, place):
            assert n > 30
            return
        yield n, place
    raise AssertionError("no end")


@pytest.mark.parametrize("stop", [killed, interrupted])
def test_a_folder_is_the_old_or_the_new_whatever_stops_its_replacement(
    tmp_path: Path, exchange: bool, stop: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "sync", lambda path: None)  # slow, and changes nothing that can be seen here
    seen = set()
    for n, place in moments(tmp_path, stop, replace_folder):
        if exchange:  # readers too find one of them at every moment
            assert content(place / "target") in (OLD, NEW), n
        files.recover(place / "target")
        found = content(place / "target")
        assert found in (OLD, NEW), n
        assert os.listdir(place) == ["target"], n
        seen.add(found["a"])
        replace_folder(place)
        assert content(place / "target") == NEW
        assert os.listdir(place) == ["target"]
        shutil.rmtree(place)
    assert seen == {"old", "new"}


@pytest.mark.parametrize("stop", [killed, interrupted])
def test_a_file_is_the_old_or_the_new_whatever_stops_its_replacement(
    tmp_path: Path, stop: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "sync", lambda path: None)
    seen = set()
    for n, place in moments(tmp_path, stop, replace_file):
        found = content(place / "target")["a"]
        seen.add(found)
        assert found in ("old", "new"), n
        replace_file(place)
        assert content(place / "target") == OLD | {"a": "new"}
        shutil.rmtree(place)
    assert seen == {"old", "new"}


def test_what_fails_in_the_block_leaves_all_as_it_was(tmp_path: Path, exchange: bool) -> None:
    fill(tmp_path / "target", OLD)
    for target in (tmp_path / "target", tmp_path / "some" / "where" / "else"):
        with suppress(ValueError), files.replacing_folder(target) as new:
            (new / "part").write_text("x")
            raise ValueError("no")
        with suppress(ValueError), files.replacing_file(tmp_path / "target" / "a") as part:
            part.write_text("x")
            raise ValueError("no")
    assert os.listdir(tmp_path) == ["target"]
    assert content(tmp_path / "target") == OLD


def test_all_is_on_disk_before_it_is_named_and_the_name_after(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def sync(path: Path) -> None:
        new = content(tmp_path / "target").get("a") == "new"
        synced.append(f"{path.name} {'after' if new else 'before'}")

    monkeypatch.setattr(files, "sync", sync)
    fill(tmp_path / "target", OLD)
    replace_folder(tmp_path)
    assert sorted(synced[:-1]) == ["a before", "b before", "c before", "d before", "new before"]
    assert synced[-1] == f"{tmp_path.name} after"
    fill(tmp_path / "target", OLD)
    synced.clear()
    replace_file(tmp_path)
    assert synced == ["a before", "target after"]


def test_what_another_process_is_writing_is_not_swept(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from lhydra import files
with files.replacing_folder(Path(sys.argv[1])) as new:
    (new / "a").write_text("slow")
    print("here", flush=True)
    sys.stdin.read()
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(tmp_path / "target")]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        replace_folder(tmp_path)
        assert content(tmp_path / "target") == NEW
        assert len(os.listdir(tmp_path)) == 2
        process.communicate()
        assert process.returncode == 0
    assert content(tmp_path / "target") == {"a": "slow"}
    assert os.listdir(tmp_path) == ["target"]


def test_only_what_replacing_left_is_swept(tmp_path: Path) -> None:
    """A folder whose name begins like that of another keeps what an interruption left of it."""
    others = [".target.keep", ".target.0123", ".target.b.01234567", ".target.0123456g", "target.01234567"]
    for name in others:
        fill(tmp_path / name / "old", OLD)
    fill(tmp_path / ".target.01234567" / "old", OLD)
    (tmp_path / ".target.76543210").write_text("a file")
    files.recover(tmp_path / "target")
    assert content(tmp_path / "target") == OLD
    assert sorted(os.listdir(tmp_path)) == sorted([*others, ".target.76543210", "target"])


def test_a_mount_point_gets_the_files_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "target", OLD | {"other": "kept"})
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path / "target")
    replace_folder(tmp_path)
    assert content(tmp_path / "target") == NEW | {"other": "kept"}
    assert os.listdir(tmp_path) == ["target"]


def test_links_only_what_is_missing(tmp_path: Path) -> None:
    fill(tmp_path / "old", {"a": "old", "checkpoint/x": "x", ".hidden": "h", ".scratch/y": "y"})
    fill(tmp_path / "new", {"a": "new"})
    files.link_missing(tmp_path / "old", tmp_path / "new")
    assert content(tmp_path / "new") == {"a": "new", "checkpoint/x": "x", ".hidden": "h"}
    assert (tmp_path / "new" / "checkpoint" / "x").samefile(tmp_path / "old" / "checkpoint" / "x")
