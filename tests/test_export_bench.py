"""The benchmark of exports measures the command that people type, and says what it was given."""

import json
from pathlib import Path

from benchmarks import export


def test_every_play_is_recorded_once_and_goes_out(tmp_path: Path) -> None:
    out = tmp_path / "export.json"
    assert export.main([str(tmp_path), "--plays", "2500", "--repeats", "2", "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert len(told["plays_per_s"]) == 2
    assert min(told["plays_per_s"]) > 0
    assert str(tmp_path) not in out.read_text()


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "export.json"
    out.write_text("mine")
    assert export.main([str(tmp_path), "--plays", "10", "--out", str(out)]) == 1
    assert out.read_text() == "mine"
