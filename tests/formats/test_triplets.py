"""Triplets of the Taste Profile; the sample is made up.

The shape is that of http://millionsongdataset.com/tasteprofile/: user, song and play count, separated by tabs.
"""

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import examples
from tests.prepared import SAMPLES, prepare
from tests.text_exports import plays_of, rows_of

TRIPLETS = SAMPLES / "triplets" / "train_triplets.txt"
ID = st.text(st.sampled_from('aé"\\ ,1'), min_size=1, max_size=4).filter(lambda text: text.strip() == text)


def write(folder: Path, lines: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "x.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder / "x.txt"


@pytest.mark.parametrize("packed", [False, True])
def test_every_triplet_is_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: bool) -> None:
    path = TRIPLETS
    if packed:
        path = tmp_path / "train_triplets.txt.gz"
        path.write_bytes(gzip.compress(TRIPLETS.read_bytes().replace(b"\n", b"\r\n")))
    said = prepare(capsys, path, tmp_path / "out")
    expected = sorted((user, song, 0, float(count)) for user, song, count in rows_of(TRIPLETS, "\t"))
    assert plays_of(tmp_path / "out") == expected
    assert "taken for triplets of the Taste Profile (--format triplets)" in said


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(5))
@given(rows=st.lists(st.tuples(st.sampled_from("xy"), ID, st.integers(1, 9)), min_size=1, max_size=6))
def test_ids_stay_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[tuple[str, str, int]]
) -> None:
    rows = [*rows, ("x", "one", 1), ("y", "one", 2)]
    prepare(capsys, write(tmp_path / "in", ["\t".join(map(str, row)) for row in rows]), tmp_path / "out")
    assert plays_of(tmp_path / "out") == sorted((user, song, 0, float(count)) for user, song, count in rows)


@pytest.mark.parametrize(
    "line", ["u\ts\tmany", "u\ts\t1.5", "u\ts", "user\tsong\tplays", "u\t\t3", "u\ts\t1\t2", "u\ts\t-1"]
)
def test_what_is_no_triplet_is_not_taken_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    path = write(tmp_path, [line, "u\ts\t1", "v\ts\t1"])
    assert "expected a .csv, .csv.gz, .tsv, .jsonl or .parquet file" in prepare(capsys, path, tmp_path / "out")
    said = prepare(capsys, path, tmp_path / "out", "--format", "triplets")
    assert "found x.txt, expected triplets of the Taste Profile: tab-separated user, song and count" in said


def test_a_bad_count_far_down_is_named_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"u{i % 3}\ts{i % 7}\t{i % 5 + 1}" for i in range(200)]
    lines[150] = "u1\ts1\tmany"
    said = prepare(capsys, write(tmp_path, lines), tmp_path / "out")
    assert "1 row dropped: playcount is not a number (line 151)" in said
