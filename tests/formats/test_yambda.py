"""Listens of Yambda; the rows are made up.

The columns are those of the flat form at https://huggingface.co/datasets/yandex/yambda. Times are in steps of 5 s.
The benchmark that comes with it counts a day as 86,400 (benchmarks/yambda/constants.py), so they are seconds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra.data.dataset import Dataset
from tests.harness import examples
from tests.prepared import Heard, heard, prepare
from tests.text_exports import described

ROW = st.tuples(
    st.integers(1, 3),
    st.integers(0, 99),
    st.integers(1, 4),
    st.none() | st.integers(0, 250),
    st.none() | st.integers(1, 400),
)
FIXED = [(1, 0, 1, 100, 200), (2, 7, 1, 3, 180), (2, 9, 2, None, 180), (1, 12, 2, 50, 61)]
TYPES = {
    "uid": pa.uint32(),
    "timestamp": pa.uint32(),
    "item_id": pa.uint32(),
    "is_organic": pa.uint8(),
    "played_ratio_pct": pa.uint16(),
    "track_length_seconds": pa.uint32(),
}


def write(path: Path, rows: list[tuple[Any, ...]], step: int, events: Sequence[str | None] | None = None) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    columns = list(zip(*((u, t * step, i, 1, ratio, length) for u, t, i, ratio, length in rows), strict=True))
    arrays = {name: pa.array(column, kind) for (name, kind), column in zip(TYPES.items(), columns, strict=True)}
    pq.write_table(pa.table(arrays | ({"event_type": events} if events else {})), path)


def expected(rows: list[tuple[Any, ...]]) -> list[Heard]:
    found = []
    for user, at, item, ratio, length in rows:
        ms = -1 if ratio is None or length is None else ratio * length * 10
        done = -1 if ratio is None else int(ratio >= 100)
        found.append(Heard(str(user), str(item), at * 5 or 1, -1 if ms < 0 else int(ms < 30_000), done, ms))
    return sorted(found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(4))
@given(rows=st.lists(ROW, max_size=6), step=st.sampled_from([1, 5]))
def test_every_listen_with_what_was_heard_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[tuple[Any, ...]], step: int
) -> None:
    rows = [*FIXED, *rows]
    write(tmp_path / "in" / "listens.parquet", rows, step)
    said = prepare(capsys, tmp_path / "in" / "listens.parquet", tmp_path / "out")
    assert heard(tmp_path / "out") == expected(rows)
    assert "taken for listens of Yambda (--format yambda)" in said
    assert ("times are units of 5 s" if step == 1 else "times are seconds, in steps of 5") in said


def test_other_events_are_no_plays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "multi_event.parquet", FIXED, 5, ["listen", "listen", "like", "unlike"])
    said = prepare(capsys, tmp_path / "multi_event.parquet", tmp_path / "out", "--strict")
    assert heard(tmp_path / "out") == expected(FIXED[:2])
    assert "2 rows dropped: a like, a dislike or the withdrawal of one (rows 3, 4)" in said


def test_listens_of_a_folder_with_likes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in" / "listens.parquet", FIXED, 5)
    write(tmp_path / "in" / "multi_event.parquet", FIXED, 5, ["listen"] * 4)
    pq.write_table(pa.table({"uid": [1], "timestamp": [5], "item_id": [1]}), tmp_path / "in" / "likes.parquet")
    said = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert heard(tmp_path / "out") == expected(FIXED)
    assert "not read: likes.parquet, multi_event.parquet" in said
    lengths = {track: row["duration_ms"] for track, row in described(tmp_path / "out", "tracks").items()}
    assert lengths == {"1": 200_000, "2": 180_000}  # the first that is said of a track
    assert Dataset.open(tmp_path / "out").info.timed


def test_lists_of_a_user_a_row_are_not_the_flat_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("timestamp", "item_id", "is_organic", "played_ratio_pct", "track_length_seconds")
    pq.write_table(pa.table({"uid": [1, 2]} | {name: [[5], [5]] for name in names}), tmp_path / "listens.parquet")
    said = prepare(capsys, tmp_path / "listens.parquet", tmp_path / "out", "--format", "yambda")
    assert "expected listens of Yambda: Parquet with uid, item_id" in said
    assert "(the flat form)" in said


def test_lengths_beyond_reason_are_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in" / "listens.parquet", [*FIXED, (2, 3, 4, 65535, 4294967295)], 5)
    prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert heard(tmp_path / "out") == expected([*FIXED, (2, 3, 4, 65535, 4294967295)])


def test_an_event_without_a_type_is_no_listen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[str | None] = ["listen", "listen", None, "listen"]
    write(tmp_path / "in" / "multi_event.parquet", FIXED, 5, events)
    prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert heard(tmp_path / "out") == expected([row for row, kind in zip(FIXED, events, strict=True) if kind])


@pytest.mark.parametrize("name", sorted(TYPES.keys() - {"is_organic"}))
@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.uint32())])
def test_columns_of_other_types_are_none_of_its(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: pa.DataType
) -> None:
    cells = {column: pa.array([1, 2]) for column in TYPES}
    cells[name] = pa.array([["1"], ["2"]] if pa.types.is_list(kind) else ["1", "2"]).cast(kind)
    pq.write_table(pa.table(cells), tmp_path / "listens.parquet")
    said = prepare(capsys, tmp_path / "listens.parquet", tmp_path / "out")
    assert "expected a column user_id" in said
