"""A file is hashed once a boot, by whoever comes first, and again after anything was done to it."""

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lhydra import files
from lhydra.bundle import verified
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import Manifest
from lhydra.bundle.verified import VerifiedFiles
from lhydra.errors import BundleCorrupt
from lhydra_index_builder import command
from tests.harness import until

GOLDEN = Path(__file__).resolve().parent / "golden" / "bundle_v4"
hashed: list[str] = []


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle in a store of its own, whose files count as settled at once; `hashed` names those that are hashed."""
    plain = verified._hashed

    def noted(path: Path) -> tuple[str, str]:
        hashed.append(path.name)
        return plain(path)

    monkeypatch.setattr(verified, "_hashed", noted)
    monkeypatch.setattr(verified, "SETTLED_NS", 0)
    folder = tmp_path / "store" / Manifest.read(GOLDEN).bundle_id
    shutil.copytree(GOLDEN, folder)
    hashed.clear()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(Manifest.read(folder).files)


def check(folder: Path) -> list[str]:
    """Checks a bundle as `Bundle.open` does; returns the files that were hashed for it."""
    hashed.clear()
    files.check(folder, Manifest.read(folder).files, BundleCorrupt, VerifiedFiles(folder.parent).sha256_of)
    return sorted(hashed)


def memory(folder: Path) -> Path:
    return folder.parent / f".verified-{os.geteuid()}.json"


def test_a_bundle_is_hashed_when_it_is_first_opened_and_not_again(bundle: Path) -> None:
    Bundle.open(bundle.parent, bundle.name)
    assert sorted(hashed) == names(bundle)
    hashed.clear()
    Bundle.open(bundle.parent, bundle.name)
    assert hashed == []
    assert memory(bundle).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in bundle.parent.iterdir() if path != bundle] == [memory(bundle).name]


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    shutil.copyfile(path, other)
    flipped(other)
    shutil.copystat(path, other)
    other.replace(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthened(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("damage", [flipped, replaced, cut, lengthened, Path.unlink])
def test_a_file_that_was_touched_is_refused_though_its_time_was_put_back(
    bundle: Path, damage: Callable[[Path], None]
) -> None:
    check(bundle)
    for name in names(bundle):
        path = bundle / name
        kept, status = path.read_bytes(), path.stat()
        damage(path)
        if path.exists():
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(BundleCorrupt, match=name):
            check(bundle)
        path.write_bytes(kept)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert check(bundle) == [name]
    assert check(bundle) == []


def test_what_is_remembered_is_what_a_file_holds_not_that_it_was_right(bundle: Path) -> None:
    flipped(bundle / "vectors.npy")
    for _ in range(2):
        with pytest.raises(BundleCorrupt, match=r"vectors\.npy: found sha256"):
            check(bundle)
    assert hashed == []


def test_nothing_is_believed_across_a_boot(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(bundle)
    (tmp_path / "boot").write_text("another\n")
    monkeypatch.setattr(verified, "BOOT_ID", tmp_path / "boot")
    assert check(bundle) == names(bundle)
    assert check(bundle) == []
    monkeypatch.setattr(verified, "BOOT_ID", tmp_path / "none")  # a system that does not name its boots
    monkeypatch.setattr(files, "sha256", lambda path: verified._hashed(path)[1])
    assert check(bundle) == names(bundle)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"boot": 1}', '{"files": []}', '{"boot": "BOOT", "files": 3}', "[" * 99_999, "\x00"],
)
def test_a_memory_that_is_none_is_made_anew(bundle: Path, text: str) -> None:
    check(bundle)
    memory(bundle).write_text(text.replace("BOOT", verified._boot_id()))
    assert check(bundle) == names(bundle)
    assert check(bundle) == []


def test_a_memory_that_others_may_have_written_is_not_believed(bundle: Path, tmp_path: Path) -> None:
    check(bundle)
    memory(bundle).chmod(0o666)
    assert check(bundle) == names(bundle)
    memory(bundle).rename(tmp_path / "elsewhere")
    memory(bundle).symlink_to(tmp_path / "elsewhere")
    assert check(bundle) == names(bundle)


def test_where_nothing_can_be_remembered_all_is_hashed(bundle: Path) -> None:
    (memory(bundle) / "in the way").mkdir(parents=True)
    for _ in range(2):
        assert check(bundle) == names(bundle)
    assert [path.name for path in bundle.parent.iterdir() if path != bundle] == [memory(bundle).name]


def test_a_file_that_was_just_written_is_not_remembered_yet(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one tick of the file system's clock another write leaves the ctime as it is."""
    monkeypatch.setattr(verified, "SETTLED_NS", 3_000_000_000)
    (bundle / "popular.npy").touch()
    assert check(bundle) == names(bundle)
    assert "popular.npy" in check(bundle)
    until(lambda: (bundle / "popular.npy").stat().st_ctime_ns + 3_000_000_000 < time.time_ns())
    check(bundle)
    assert check(bundle) == []


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.file_digest

    def slow(file: Any, name: str) -> Any:
        found = digest(file, name)
        if Path(file.name).name == "popular.npy":
            os.utime(file.name)
        return found

    monkeypatch.setattr(hashlib, "file_digest", slow)
    check(bundle)
    assert check(bundle) == ["popular.npy"]


def test_those_who_come_at_once_hash_each_file_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, noted = threading.Barrier(4), verified._hashed

    def together() -> None:
        begun.wait()
        files.check(bundle, Manifest.read(bundle).files, BundleCorrupt, VerifiedFiles(bundle.parent).sha256_of)

    def late(path: Path) -> tuple[str, str]:
        if path.name == names(bundle)[0]:
            time.sleep(0.1)  # long enough for the others to come in, if they can
        return noted(path)

    monkeypatch.setattr(verified, "_hashed", late)
    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(together) for _ in range(4)]:
            one.result()
    assert sorted(hashed) == names(bundle)


def test_nobody_waits_for_a_process_that_hangs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "WAIT_S", 0.05)
    descriptor = os.open(bundle, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert check(bundle) == names(bundle)
    finally:
        os.close(descriptor)


def test_a_store_of_many_bundles_remembers_a_bounded_number_of_files(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "MOST_FILES", 5)
    check(bundle)
    assert len(json.loads(memory(bundle).read_text())["files"]) == 5
    assert len(check(bundle)) == len(names(bundle)) - 5


def test_index_verify_hashes_every_file_whatever_is_remembered(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    check(bundle)
    hashed.clear()
    assert (
        command._verify(argparse.Namespace(store=bundle.parent, bundle=bundle.name, json=False, require_signature=None))
        == 0
    )
    assert sorted(hashed) == names(bundle)
    assert "is sound" in capsys.readouterr().out
