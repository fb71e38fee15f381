"""The benchmark of the co-listening table: two revisions that are the same give the same table."""

import json
from pathlib import Path

import pytest

from benchmarks import co_listening, training
from lhydra.data.dataset import Dataset


def test_a_revision_against_itself_gives_the_same_table(small_dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    words = [str(small_dataset.path), "--before", str(training.HERE), "--threads", "1", "--out", str(out)]
    assert co_listening.main(words) == 0
    before, after = json.loads(out.read_text())["rows"]
    same = ("tracks", "played", "plays", "weights", "sum")
    assert [before[name] for name in same] == [after[name] for name in same]
    assert before["weights"] > 0
    assert after["peak_mib"] >= after["loaded_peak_mib"] > 0


def test_a_file_of_something_else_is_left_alone(
    small_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "notes.json"
    out.write_text("{}")
    assert co_listening.main([str(small_dataset.path), "--out", str(out)]) == 1
    assert "notes.json" in capsys.readouterr().err
    assert out.read_text() == "{}"
