"""Ratings of MovieLens in its three forms; the samples are made up.

The shapes are those of the README files of ml-1m (https://files.grouplens.org/datasets/movielens/ml-1m-README.txt),
ml-latest (…/ml-latest-README.html) and ml-100k (…/ml-100k-README.txt).
"""

import gzip
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lhydra import cli
from tests.prepared import SAMPLES, prepare
from tests.realdata import real_data
from tests.text_exports import described, plays_of, rows_of

FORMS = {"ml-1m": ("ratings.dat", "::"), "ml-latest": ("ratings.csv", ","), "ml-100k": ("u.data", "\t")}
MOVIES = {"ml-1m": ("movies.dat", "::"), "ml-latest": ("movies.csv", ","), "ml-100k": ("u.item", "|")}


def ratings(form: str) -> list[list[str]]:
    name, sep = FORMS[form]
    rows = rows_of(SAMPLES / "movielens" / form / name, sep)
    return rows[1:] if sep == "," else rows


@pytest.mark.parametrize("form", FORMS)
def test_every_rating_is_a_play(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    said = prepare(capsys, SAMPLES / "movielens" / form, tmp_path / "out")
    assert plays_of(tmp_path / "out") == sorted((user, movie, int(time), 1.0) for user, movie, _, time in ratings(form))
    assert "taken for ratings of MovieLens (--format movielens)" in said
    assert "each rating counts as one play" in said


@pytest.mark.parametrize("form", FORMS)
def test_movies_are_the_tracks(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    prepare(capsys, SAMPLES / "movielens" / form, tmp_path / "out")
    name, sep = MOVIES[form]
    rows = rows_of(SAMPLES / "movielens" / form / name, sep, "utf-8-sig" if form == "ml-latest" else "latin-1")
    found = described(tmp_path / "out", "tracks")
    assert set(found) == {row[0] for row in rows[form == "ml-latest" :]}
    for row in rows[form == "ml-latest" :]:
        year = re.findall(r"\((\d{4})[^)]*\)", row[1])
        track = found[row[0]]
        assert track["name"] == row[1]
        assert track["year"] == (int(year[-1]) if year else None)
        if form != "ml-100k":
            listed = [genre for genre in row[2].split("|") if genre != "(no genres listed)"]
            assert (track["tags"] or []) == listed
            assert (track["genre"] or "") == "|".join(listed)
    assert found["7"]["tags"] == (["Children's", "Comedy"])


def test_users_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form, name, sep in (("ml-1m", "users.dat", "::"), ("ml-100k", "u.user", "|")):
        prepare(capsys, SAMPLES / "movielens" / form, tmp_path / form)
        for row in rows_of(SAMPLES / "movielens" / form / name, sep):
            gender, age = (row[1], row[2]) if form == "ml-1m" else (row[2], row[1])
            expected = {"gender": gender, "age": float(age), "occupation": row[3]}
            assert described(tmp_path / form, "users")[row[0]] == expected


@pytest.mark.parametrize("form", FORMS)
def test_the_flags_that_a_note_names_weigh_by_the_rating(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    said = " ".join(prepare(capsys, SAMPLES / "movielens" / form, tmp_path / "out").split())
    command = re.search(r"as its stars: lhydra (prepare \S+ DATASET .*?timestamp=\S+)", said)
    assert command
    monkeypatch.chdir(SAMPLES / "movielens" / form)
    weighed = [str(tmp_path / "weighed") if word == "DATASET" else word for word in shlex.split(command[1])]
    assert cli.main(weighed) == 0
    expected = sorted((user, movie, int(time), float(stars)) for user, movie, stars, time in ratings(form))
    assert plays_of(tmp_path / "weighed") == expected


def test_ratings_alone_packed_and_with_windows_line_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form, (name, _) in FORMS.items():
        text = (SAMPLES / "movielens" / form / name).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress(text))
        said = prepare(capsys, packed, tmp_path / f"{form}-out")
        expected = sorted((user, movie, int(time), 1.0) for user, movie, _, time in ratings(form))
        assert plays_of(tmp_path / f"{form}-out") == expected
        assert "no titles" in said


def test_a_rating_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(SAMPLES / "movielens" / "ml-1m", tmp_path / "ml")
    lines = (folder / "ratings.dat").read_text().splitlines() * 5
    lines[1:1] = ["1::7::3::yesterday", "::7::3::978300000", "1::7777::3::978300000"]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    said = " ".join(prepare(capsys, folder, tmp_path / "out").split())
    assert "ratings.dat: 1 row dropped: timestamp is neither Unix seconds nor ISO 8601 (line 2)" in said
    assert "ratings.dat: 1 row dropped: empty user_id (line 3)" in said
    assert "movies.dat: 5 of 6 tracks in the plays have a row" in said  # a movie without a title is a play all the same
    assert len(plays_of(tmp_path / "out")) == len(lines) - 2
    lines[1] = "1::7::3"
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    assert "ratings.dat: line 2: found 3 cells, expected 4" in prepare(capsys, folder, tmp_path / "none")


def test_what_is_no_rating_is_refused_with_what_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,1,slow,1000000000\n")
    said = prepare(capsys, tmp_path / "tags.csv", tmp_path / "out", "--format", "movielens")
    assert "found tags.csv, expected ratings of MovieLens: ratings.dat" in said


def test_columns_that_are_not_there_are_not_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ratings.csv").write_text('"userId","movieId","rating"\n1,7,4\n2,7,3\n')
    (tmp_path / "in" / "movies.csv").write_text('movieId,title\n7,"A, B (1999)"\n')
    prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert plays_of(tmp_path / "out") == [("1", "7", 0, 1.0), ("2", "7", 0, 1.0)]
    assert described(tmp_path / "out", "tracks") == {"7": {"name": "A, B (1999)", "year": 1999}}


def test_a_part_of_ml_100k_is_known_by_its_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(capsys, SAMPLES / "movielens" / "ml-100k" / "u1.base", tmp_path / "out")
    rows = rows_of(SAMPLES / "movielens" / "ml-100k" / "u1.base", "\t")
    assert plays_of(tmp_path / "out") == sorted((user, movie, int(time), 1.0) for user, movie, _, time in rows)


def test_two_data_sets_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = prepare(capsys, shutil.copytree(SAMPLES / "movielens" / "ml-1m", tmp_path / "in" / "a"), tmp_path / "a")
    assert "not read" not in said
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "b")
    said = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert "found 2 files of ratings (a/ratings.dat, b/ratings.dat), expected one; give it, or its folder" in said
    assert "not read: tags.csv" in prepare(capsys, SAMPLES / "movielens" / "ml-latest", tmp_path / "latest")


@pytest.mark.real_data
def test_movielens_1m_with_its_own_movies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = real_data("movielens-1m")
    with gzip.open(folder / "interactions.csv.gz", "rt") as file:
        pairs = [line.rstrip("\n").split(",")[:2] for line in file][1:60_001]
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "ratings.dat").write_text("".join(f"{u}::{m}::4::{978300000 + int(m)}\n" for u, m in pairs))
    for name in ("movies.dat", "users.dat"):
        shutil.copy(folder / name, tmp_path / "ml" / name)
    prepare(capsys, tmp_path / "ml", tmp_path / "out")
    assert plays_of(tmp_path / "out") == sorted((u, m, 978300000 + int(m), 1.0) for u, m in pairs)
    movies = rows_of(folder / "movies.dat", "::")  # this copy is UTF-8
    found = described(tmp_path / "out", "tracks")
    titles = {row[0]: row[1] for row in movies}
    assert {movie: track["name"] for movie, track in found.items() if track["name"]} == titles
    assert all(found[movie]["year"] for movie in titles)
    assert set(found) == {*titles, *(movie for _, movie in pairs)}
