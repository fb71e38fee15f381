"""Atomic files of RecBole; the samples are made up.

The shape is that of RecBole's documentation (docs/source/user_guide/data/atomic_files.rst of its repository), the music
columns those that its conversion tools write for LastFM (RecSysDatasets, conversion_tools/src/extended_dataset.py).
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra import cli
from lhydra.data.dataset import Dataset
from tests.harness import examples
from tests.prepared import SAMPLES, prepare
from tests.realdata import real_data
from tests.text_exports import described, plays_of, rows_of

LASTFM = SAMPLES / "recbole" / "lastfm"
RATED = SAMPLES / "recbole" / "rated"


def write(path: Path, header: str, rows: Sequence[Sequence[object]], end: str = "\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    lines = ["\t".join(header.split()), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")
    return path


def test_weights_are_counts_and_the_item_may_be_an_artist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = prepare(capsys, LASTFM, tmp_path / "out")
    rows = rows_of(LASTFM / "lastfm.inter", "\t")[1:]
    assert plays_of(tmp_path / "out") == sorted((user, item, 0, float(weight)) for user, item, weight, _ in rows)
    assert "taken for atomic files of RecBole (--format recbole)" in said
    assert "user_id are the users, artist_id the tracks" in said
    names = {row[0]: row[1] for row in rows_of(LASTFM / "lastfm.item", "\t")[1:]}
    assert {item: track["name"] for item, track in described(tmp_path / "out", "tracks").items()} == names


def test_ratings_are_plays_with_times_and_described_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = prepare(capsys, RATED, tmp_path / "out")
    rows = rows_of(RATED / "rated.inter", "\t")[1:]
    assert plays_of(tmp_path / "out") == sorted((user, item, int(float(time)), 1.0) for user, item, _, time in rows)
    tracks = described(tmp_path / "out", "tracks")
    for item, title, year, genres in rows_of(RATED / "rated.item", "\t")[1:]:
        assert tracks[item] == {"name": title, "tags": genres.split() or None, "year": int(year)}
    users = described(tmp_path / "out", "users")
    for user, age, gender in rows_of(RATED / "rated.user", "\t")[1:]:
        assert users[user] == {"age": float(age), "gender": gender}
    assert "each rating counts as one play" in said


def test_the_flags_that_a_note_names_weigh_by_the_rating(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = " ".join(prepare(capsys, RATED / "rated.inter", tmp_path / "out").split())
    assert "not read: rated.item and rated.user beside it; to use them, give the folder" in said
    command = re.search(r"as its value: lhydra (prepare \S+ DATASET .*?timestamp=\S+)", said)
    assert command
    monkeypatch.chdir(RATED)
    assert cli.main([str(tmp_path / "by") if word == "DATASET" else word for word in shlex.split(command[1])]) == 0
    rows = rows_of(RATED / "rated.inter", "\t")[1:]
    assert plays_of(tmp_path / "by") == sorted((u, i, int(float(time)), float(value)) for u, i, value, time in rows)


def test_train_valid_and_test_files_are_the_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "user_id:token item_id:token timestamp:float"
    parts = {"train": [(1, 1, 5), (2, 1, 6), (2, 2, 7)], "valid": [(1, 2, 8)], "test": [(2, 3, 9), (1, 3, 10)]}
    for part, rows in parts.items():
        write(tmp_path / "x" / f"x.{part}.inter", header, rows)
    said = prepare(capsys, tmp_path / "x", tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert {name: dataset.info.counts[name] for name in parts} == {part: len(rows) for part, rows in parts.items()}
    assert "the folds are those of the files" in said


def test_the_whole_beside_its_folds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.inter", "x.train.inter", "x.test.inter"):
        write(tmp_path / "in" / name, "user_id:token item_id:token", [("a", "1"), ("b", "2")])
    said = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert "found x.inter beside the fold x.test.inter, expected the whole or its folds; give x.inter alone" in said
    assert "taken for" in prepare(capsys, tmp_path / "in" / "x.inter", tmp_path / "out")


def test_two_data_sets_in_one_folder_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write(tmp_path / "x" / f"{name}.inter", "user_id:token item_id:token", [(1, 1), (2, 2)])
    said = prepare(capsys, tmp_path / "x", tmp_path / "out")
    assert "found the .inter files of 2 data sets (a, b), expected those of one; give one file" in said


@pytest.mark.parametrize(
    ("header", "row", "item"),
    [
        ("user_id:token tracks_id:token timestamp:float", (1, "t", 9), "t"),
        ("session_id:token item_id_list:token_seq item_id:token", (1, "a b", "t"), "t"),
        ("item_id:token user_id:token", ("t", 1), "t"),
        ("user_id:token session_id:token rating:float item_id:token", (1, "s", 2, "t"), "t"),
        ("uid:token song:token play_count:float", (1, "t", 2), "t"),
    ],
)
def test_which_column_is_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], header: str, row: tuple[object, ...], item: str
) -> None:
    second = tuple(2 if cell == 1 else cell for cell in row)
    path = write(tmp_path / "x" / "x.inter", header, [row, second], "\r\n")
    prepare(capsys, path, tmp_path / "out")
    found = plays_of(tmp_path / "out")
    assert [(user, track) for user, track, _, _ in found] == [("1", item), ("2", item)]
    assert {count for *_, count in found} == {2.0 if "play_count" in header else 1.0}


CELL = st.text(st.sampled_from('aé"\\:,1 '), min_size=1, max_size=6).filter(lambda text: text.strip() == text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(5))
@given(rows=st.lists(st.tuples(st.sampled_from("xy"), CELL, CELL), min_size=1, max_size=6))
def test_quotes_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[tuple[str, str, str]]) -> None:
    plays = [(user, item, i + 1) for i, (user, item, _) in enumerate([*rows, ("x", "one", ""), ("y", "one", "")])]
    names = {item: name for _, item, name in reversed(rows)} | {"one": '"'}
    write(tmp_path / "x" / "x.inter", "user_id:token item_id:token timestamp:float", plays)
    write(tmp_path / "x" / "x.item", "item_id:token name:token_seq", list(names.items()))
    prepare(capsys, tmp_path / "x", tmp_path / "out")
    assert plays_of(tmp_path / "out") == sorted((user, item, time, 1.0) for user, item, time in plays)
    assert {item: track["name"] for item, track in described(tmp_path / "out", "tracks").items()} == names


def test_a_table_of_another_header_is_not_taken_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.inter", "user item", [(1, 2)])
    said = prepare(capsys, path, tmp_path / "out", "--format", "recbole")
    assert "found x.inter, expected atomic files of RecBole: a .inter file with a header like user_id:token" in said


@pytest.mark.real_data
@pytest.mark.parametrize("source", ["ml-100k.inter", ""])
def test_movielens_100k_as_recbole_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    folder = real_data("movielens-100k")
    prepare(capsys, folder / source, tmp_path / "out")
    rows = rows_of(folder / "ml-100k.inter", "\t")[1:]
    assert plays_of(tmp_path / "out") == sorted((user, item, int(time), 1.0) for user, item, _, time in rows)
    if not source:
        titles = {row[0]: row[1] for row in rows_of(folder / "ml-100k.item", "\t")[1:]}
        assert {item: track["name"] for item, track in described(tmp_path / "out", "tracks").items()} == titles
