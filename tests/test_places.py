"""A command never writes into a folder that is something else: it is refused in one line, and stays byte for byte."""

from pathlib import Path

import pytest

from lhydra.cli import main
from lhydra.data.dataset import TRAIN
from tests.test_evaluate import write_dataset

MANIFESTS = {"dataset.json": "a dataset", "model.json": "a model", "manifest.json": "a bundle", "world.json": "a world"}


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that the command ends with."""
    assert main(list(map(str, words))) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.rstrip("\n")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", ["u0", "u1"], ["t0", "t1"], [(0, 0, TRAIN), (1, 1, TRAIN)]).path


def writers(dataset: Path, store: Path) -> dict[str, tuple[object, ...]]:
    """Every command that writes into a store."""
    (dataset.parent / "tracks.csv").write_text("track_id\nt9\n")
    return {
        "rebuild": ("index", "rebuild", "--model", dataset.parent / "m", "--data", dataset, "--store", store),
        "add": ("index", "add", dataset.parent / "tracks.csv", "--store", store),
        "remove": ("index", "remove", "t0", "--store", store),
        "load": ("users", "load", dataset, "--store", store),
    }


@pytest.mark.parametrize("name", [*MANIFESTS, "holiday.jpg"])
@pytest.mark.parametrize("command", ["rebuild", "add", "remove", "load"])
def test_what_is_no_store_is_never_written_to(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    other = tmp_path / "other"
    (other / "folder").mkdir(parents=True)
    (other / name).write_text("{}")
    for current in (False, name in MANIFESTS):
        if current:  # what an earlier Lhydra let become both stays refused
            (other / "CURRENT").write_text("20200101T000000-00000000\n")
        before = content(other)
        error = refusal(capsys, *writers(dataset, other)[command])
        what = MANIFESTS.get(name, "a folder with other things in it (folder)")
        assert error.endswith(f"{other}: found {what}, expected a store, an empty folder or a free path")
        assert content(other) == before


@pytest.mark.parametrize("command", ["rebuild", "add", "remove", "load"])
def test_a_store_a_free_path_and_an_empty_folder_are_places_for_a_store(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for name in ("free/path", "empty", "users", "published"):
        store = tmp_path / name
        store.parent.mkdir(exist_ok=True)
        if name != "free/path":
            store.mkdir()
        if name == "empty":
            (store / "lost+found").mkdir()  # as on a fresh volume
        if name == "users":
            (store / "users.lmdb").mkdir()
        if name == "published":
            (store / "20200101T000000-00000000").mkdir()
            (store / "notes.txt").write_text("mine")
        if command == "load":
            assert main(list(map(str, writers(dataset, store)[command]))) == 0
            capsys.readouterr()
        else:
            error = refusal(capsys, *writers(dataset, store)[command])
            assert "expected a store, an empty folder or a free path" not in error


def test_servers_and_rollback_leave_a_dataset_alone(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(dataset)
    for words in (("index", "rollback", "--store", dataset), ("index", "list", "--store", dataset), ("serve", dataset)):
        assert "a store that `lhydra index rebuild` has published to" in refusal(capsys, *words)
        assert content(dataset) == before


def test_a_folder_of_other_things_is_no_user_store(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(dataset)
    error = refusal(capsys, "users", "load", dataset, "--users", f"lmdb:{dataset}")
    assert "found a folder with other things in it, expected an LMDB folder, an empty one or a free path" in error
    assert content(dataset) == before
    (tmp_path / "empty" / "lost+found").mkdir(parents=True)
    for place in (tmp_path / "empty", tmp_path / "empty", tmp_path / "free"):
        assert main(["users", "load", str(dataset), "--users", f"lmdb:{place}"]) == 0


def test_training_never_writes_into_a_dataset(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    for name in ("plays.parquet", "checkpoint"):
        (dataset / "checkpoint").mkdir() if name == "checkpoint" else None
        before = content(dataset)
        error = refusal(capsys, "train", dataset, dataset)
        assert error.endswith(f"{dataset}: found a dataset, expected a new folder, or one made by `lhydra train`")
        assert content(dataset) == before


# What is written to a file that is something else


EVALUATION = Path(__file__).parent / "golden" / "evaluation_v1.json"
MINE = {
    "notes.json": b'{"name": "package"}',
    "list.json": b"[1, 2]",
    "broken.json": b'{"protocol": 1, "ranking": ',
    "deep.json": b"[" * 100_000,
    "page.html": b"<!DOCTYPE html>\n<html><head><title>Mine</title></head></html>",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("name", MINE)
def test_results_never_replace_what_is_none(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    mine = tmp_path / name
    mine.write_bytes(MINE[name])
    a = EVALUATION
    for words in (
        ("evaluate", dataset, "--store", "s", "--json", mine),
        ("evaluate", dataset, "--store", "s", "--report", mine),
        ("compare", a, a, "--json", mine),
    ):
        error = refusal(capsys, *words)
        assert f"{words[-2]}: found {mine}, which holds something else, expected a free path, or an earlier" in error
        assert mine.read_bytes() == MINE[name]


def test_a_comparison_never_replaces_an_evaluation_but_an_earlier_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, out = tmp_path / "a.json", tmp_path / "out.json"
    a.write_bytes(EVALUATION.read_bytes())
    assert "which holds something else" in refusal(capsys, "compare", a, a, "--json", a)
    assert a.read_bytes() == EVALUATION.read_bytes()
    out.write_bytes(b"")
    for _ in range(2):
        assert main(["compare", str(a), str(a), "--json", str(out)]) == 0
