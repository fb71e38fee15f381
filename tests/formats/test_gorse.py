"""Exports of Gorse; the samples are made up.

The shape is that of its master's own test (gorse-io/gorse, master/rest_test.go: TestMaster_ExportFeedback and
TestMaster_ExportItems) and of the files in its example/data and test/csv, whose headers vary.
"""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import examples
from tests.prepared import SAMPLES, prepare
from tests.text_exports import Play, described, plays_of, rows_of

GORSE = SAMPLES / "gorse"
NONE = "0001-01-01 00:00:00 +0000 UTC"
DAY = 1577836800  # 2020-01-01


def written(folder: Path, text: str, name: str = "feedback.csv") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


def test_feedback_items_and_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = prepare(capsys, GORSE, tmp_path / "out")
    plays: list[Play] = []
    for _, user, item, time in rows_of(GORSE / "feedback.csv")[1:]:
        day, clock = time.split(" ")[:2]
        hours, minutes, seconds = clock.split(":")
        at = DAY + 86_400 * (int(day[8:]) - 1) + 3600 * int(hours) + 60 * int(minutes) + int(float(seconds))
        plays.append((user, item, 0 if time == NONE else at, 1.0))
    assert plays_of(tmp_path / "out") == sorted(plays)
    assert "taken for an export of Gorse (--format gorse)" in said
    assert "types at the beginning: like, read, star" in " ".join(said.split())
    tracks = described(tmp_path / "out", "tracks")
    assert tracks["i1"] == {"name": 'One, "two"', "genre": "x", "tags": ["comedy", "sci-fi"]}
    assert tracks["i2"] == {"name": "Two\r\nlines", "genre": "x|y", "tags": ["b", "c"]}
    assert tracks["i3"] == {"name": "Three", "genre": None, "tags": ["plain"]}
    assert set(tracks) == {"i1", "i2", "i3", "i4"}


@pytest.mark.parametrize(
    ("text", "times", "said"),
    [
        (
            "FeedbackType,UserId,ItemId,Timestamp\nr,u,i,2020-01-01\nr,v,i,2020-01-01\n",
            DAY,
            "types at the beginning: r",
        ),
        ("feedback_type,user_id,item_id\nr,u,i,2020-01-01\nr,v,i,2020-01-01\n", DAY, "types"),
        ("feedback_type,user_id,item_id,value,time_stamp\nr,u,i,1,2020-01-01\nr,v,i,3,2020-01-01,\n", DAY, "types"),
        ("r,u,i,2020-01-01\nr,v,i,2020-01-01\n", DAY, "types at the beginning: r"),
        ("r,u,i\nr,v,i\n", 0, "types at the beginning: r"),
        ("UserId,ItemId,Rating\nu,i,3\nv,i,6\n", 0, "each feedback is one play"),
        ("UserId,ItemId\r\nu,i,3\r\nv,i,6\r\n", 0, "3 cells for 2 names; those beyond the names are not read"),
        ("\ufeffuser,item,type,time\nu,i,r,2020-01-01\nv,i,r,2020-01-01\n", DAY, "each feedback is one play"),
    ],
)
def test_headers_vary(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, times: int, said: str) -> None:
    printed = prepare(capsys, written(tmp_path / "in", text), tmp_path / "out")
    assert plays_of(tmp_path / "out") == [("u", "i", times, 1.0), ("v", "i", times, 1.0)]
    assert said in " ".join(printed.split())


@pytest.mark.parametrize("zone", ["+0000 UTC", "+0100 CET", "-0330 -0330", "+0800 +08", "+0000", "UTC", ""])
def test_times_as_go_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], zone: str) -> None:
    text = f"type,user,item,time\nr,u,i,2020-01-01 00:00:00.5 {zone}\nr,v,i,2020-01-01 00:00:00 {zone}\n"
    prepare(capsys, written(tmp_path / "in", text), tmp_path / "out")
    east = {"+0100 CET": 3600, "-0330 -0330": -12_600, "+0800 +08": 28_800}.get(zone, 0)
    assert plays_of(tmp_path / "out") == [("u", "i", DAY - east, 1.0), ("v", "i", DAY - east, 1.0)]


def test_numbered_feedback_without_a_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(capsys, written(tmp_path / "in", "0,7,3\n1,7,4\n"), tmp_path / "out")
    assert plays_of(tmp_path / "out") == [("0", "7", 0, 1.0), ("1", "7", 0, 1.0)]


def test_faults_are_named_by_their_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "feedback_type,user_id,item_id,time_stamp\nr,u,i,soon\nr,,i\nr,v\nr,u,i,2020-01-01\nr,v,i,\n"
    said = " ".join(prepare(capsys, written(tmp_path / "in", text), tmp_path / "out").split())
    assert "feedback.csv: 1 row dropped: empty user_id (line 3)" in said
    assert "feedback.csv: 1 row dropped: empty track_id (line 4)" in said
    assert "feedback.csv: 1 row dropped: timestamp is neither Unix seconds nor ISO 8601 (line 2)" in said
    assert plays_of(tmp_path / "out") == [("u", "i", DAY, 1.0), ("v", "i", 0, 1.0)]


def test_other_tables_are_not_taken_for_feedback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "user_id,item_id\nu,i\n", "x.csv")
    said = prepare(capsys, path, tmp_path / "out", "--format", "gorse")
    assert "found x.csv, expected an export of Gorse: feedback.csv" in said


TEXT = st.text(st.sampled_from('a|"{}[]:,1\n\\é'), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(5))
@given(labels=st.lists(TEXT | TEXT.map(lambda text: json.dumps({"x": [text, "b"], "y": 1})), min_size=1, max_size=5))
def test_labels_of_any_kind_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[str]) -> None:
    written(tmp_path / "in", "type,user,item\nr,u,0\nr,v,0\n")
    with (tmp_path / "in" / "items.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["ItemId", "Labels"], *enumerate(labels)])
    prepare(capsys, tmp_path / "in", tmp_path / "out")
    tracks = described(tmp_path / "out", "tracks")
    assert set(tracks) == {str(i) for i in range(len(labels))}
    for i, text in enumerate(labels):
        if text.startswith('{"x": ['):
            assert tracks[str(i)]["tags"] == [x for label in json.loads(text)["x"] if (x := label.strip())]
