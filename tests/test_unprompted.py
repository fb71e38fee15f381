"""What judges a candidate: the newest plays that came from no list, by logs made by hand."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lhydra.retraining import unprompted
from lhydra.retraining.unprompted import leave_out


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unprompted, "LEAST", 1)


def log(path: Path, rows: list[tuple[int, str | None]], named: bool = True) -> Path:
    """A log of plays, (time, the answer that it came from) each."""
    columns: dict[str, Any] = {"user_id": ["u"] * len(rows), "track_id": [f"t{row}" for row in range(len(rows))]}
    columns |= {"timestamp": [time for time, _ in rows]}
    if named:
        columns["request_id"] = pa.array([answer for _, answer in rows], pa.string())
    (path / "plain").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path / "plain/plays.parquet")
    return path


def kept(path: Path) -> list[int]:
    return [int(track[1:]) for track in pq.read_table(path / "plain/plays.parquet")["track_id"].to_pylist()]


def test_plays_from_lists_judge_nobody_and_teach_as_long_as_they_are_older(tmp_path: Path) -> None:
    rows = [(10, "a"), (20, ""), (110, "b"), (120, None), (130, "c"), (140, ""), (150, "d"), (160, ""), (170, "e")]
    found = leave_out(log(tmp_path / "in", rows), tmp_path / "out", 100, 0.67)
    assert found == {"judges": 2, "listed": 4, "left_out": 2}  # of three new ones without a list, those at 140 and 160
    assert kept(tmp_path / "out") == [0, 1, 2, 3, 4, 5, 7]
    assert pq.read_schema(tmp_path / "out/plain/plays.parquet") == pq.read_schema(tmp_path / "in/plain/plays.parquet")


def test_where_no_play_names_an_answer_all_of_them_judge(tmp_path: Path) -> None:
    rows: list[tuple[int, str | None]] = [(time, None) for time in range(101, 111)]
    for named in (True, False):
        found = leave_out(log(tmp_path / "in", rows, named), tmp_path / "out", 100, 0.3)
        assert found == {"judges": 3, "listed": 0, "left_out": 0}
        assert kept(tmp_path / "out") == list(range(10))


def test_where_every_new_play_came_from_a_list_nothing_is_left_out(tmp_path: Path) -> None:
    found = leave_out(log(tmp_path / "in", [(50, ""), (110, "a"), (120, "b")]), tmp_path / "out", 100, 0.5)
    assert found == {"judges": 0, "listed": 2, "left_out": 0}
    assert kept(tmp_path / "out") == [0, 1, 2]
