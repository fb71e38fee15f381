"""The benchmark of training on large catalogues: both revisions are asked for the same."""

import json
from pathlib import Path

import pytest

from benchmarks import training
from lhydra.data.dataset import Dataset


def test_a_revision_against_itself_ends_with_the_same_loss(small_dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    words = [str(small_dataset.path), "--before", str(training.HERE), "--steps", "1", "--rounds", "1"]
    words += ["--out", str(out)]
    assert training.main(words) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["before"]["loss"] == row["after"]["loss"]
    assert row["before"]["steps"] == 1
    assert all(value > 0 for value in row["ratio"].values())


def test_a_file_of_something_else_is_left_alone(
    small_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "notes.json"
    out.write_text("{}")
    assert training.main([str(small_dataset.path), "--before", str(training.HERE), "--out", str(out)]) == 1
    assert "notes.json" in capsys.readouterr().err
    assert out.read_text() == "{}"
