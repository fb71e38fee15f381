"""Exports of Last.fm; the samples are made up.

The shapes: scrobbles as https://benjaminbenben.com/lastfm-to-csv/ (no header) and ghan64/lastfm-to-csv write them; the
data sets as the README files of lastfm-dataset-1K and lastfm-dataset-360K (https://zenodo.org/records/6090214) say.
"""

import csv
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import examples
from tests.prepared import SAMPLES, prepare, song_id
from tests.text_exports import Play, described, plays_of, rows_of

Row = dict[str, str]


def seconds(text: str, form: str) -> int:
    return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())


def expected(rows: list[tuple[str, Row]]) -> list[Play]:
    """Plays of (user, row) pairs: ids of MusicBrainz where a play of the song has one, else made."""
    known = {song_id(row["artist"], row["track"]): row["mbid"] for _, row in rows if row["mbid"]}
    plays = []
    for user, row in rows:
        song = song_id(row["artist"], row["track"])
        plays.append((user, row["mbid"] or known.get(song, song), int(row["time"]), 1.0))
    return sorted(plays)


def full(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{**row, "mbid": row["track_mbid"], "time": row["uts"]} for row in csv.DictReader(file)]


def short(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{**row, "mbid": "", "time": row["uts"]} for row in csv.DictReader(file)]


def spoken(path: Path) -> list[Row]:
    names = ("artist", "album", "track", "time")
    rows = [dict(zip(names, row, strict=True)) for row in rows_of(path)]
    return [{**row, "mbid": "", "time": str(seconds(row["time"], "%d %b %Y %H:%M"))} for row in rows]


@pytest.mark.parametrize("dialect", ["full", "spoken"])
@pytest.mark.parametrize("other", ["aa_friends.csv", "zz_friends.csv"])
def test_tables_of_another_kind_beside_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dialect: str, other: str
) -> None:
    shutil.copytree(SAMPLES / "lastfm" / dialect, tmp_path / "in")
    prepare(capsys, tmp_path / "in", tmp_path / "alone")
    (tmp_path / "in" / other).write_text("friend,since\nx,2001\n", encoding="utf-8")
    said = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert plays_of(tmp_path / "out") == plays_of(tmp_path / "alone")
    assert f"not read: {other}" in said


def test_two_dialects_in_a_folder_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dialect, name in (("full", "ada.csv"), ("spoken", "bo.csv")):
        shutil.copytree(SAMPLES / "lastfm" / dialect, tmp_path / dialect)
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(tmp_path / dialect / name, tmp_path / "in")
    said = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert "bo.csv: found scrobbles without a header, where ada.csv has one" in said


@pytest.mark.parametrize("read", [full, short, spoken])
def test_scrobbles_in_each_dialect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], read: Callable[[Path], list[Row]]
) -> None:
    folder = SAMPLES / "lastfm" / read.__name__
    said = prepare(capsys, folder, tmp_path / "out")
    rows = [(file.stem, row) for file in sorted(folder.glob("*.csv")) for row in read(file)]
    assert plays_of(tmp_path / "out") == expected(rows)
    assert "taken for scrobbles of Last.fm as CSV (--format lastfm)" in said
    assert "each file is one user's: ada, bo" in said
    tracks = described(tmp_path / "out", "tracks")
    assert {track["artist"] for track in tracks.values()} <= {row["artist"] for _, row in rows}
    assert {track["album"] for track in tracks.values()} <= {row["album"] or None for _, row in rows}


def test_one_persons_file_is_refused_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = prepare(capsys, SAMPLES / "lastfm" / "full" / "ada.csv", tmp_path / "out")
    assert "found plays of 1 user, expected plays of at least 2 users" in said


def test_files_of_one_name_are_several_peoples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for person in ("ada", "bo"):
        (tmp_path / "in" / person).mkdir(parents=True)
        text = (SAMPLES / "lastfm" / "short" / f"{person}.csv").read_bytes()
        (tmp_path / "in" / person / "scrobbles.csv").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    prepare(capsys, tmp_path / "in", tmp_path / "out")
    rows = [(f"{p}/scrobbles", row) for p in ("ada", "bo") for row in short(SAMPLES / "lastfm" / "short" / f"{p}.csv")]
    assert plays_of(tmp_path / "out") == expected(rows)


def test_times_may_be_spoken_under_a_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for person, time in (("ada", "01 Jan 2020, 12:34"), ("bo", "01 Jan 2020 12:34")):
        (tmp_path / "in" / f"{person}.csv").write_text(f'artist,album,track,uts\nA,B,C,"{time}"\nA,B,C,1577882041\n')
    prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert [time for _, _, time, _ in plays_of(tmp_path / "out")] == [1577882040, 1577882041] * 2


@pytest.mark.parametrize("time", ["32 Jan 2020 12:34", "soon"])
def test_a_time_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], time: str) -> None:
    for person in ("ada", "bo"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{person}.csv").write_text(f"A,B,C,01 Jan 2020 12:34\nA,B,D,{time}\nA,B,E,\n")
    said = " ".join(prepare(capsys, tmp_path / "in", tmp_path / "out").split())
    assert "2 rows dropped: timestamp is neither Unix seconds nor ISO 8601 (ada.csv line 2, bo.csv line 2)" in said
    assert [play[2] for play in plays_of(tmp_path / "out")] == [1577882040, 0] * 2


def test_last_fm_1k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = SAMPLES / "lastfm-1k"
    said = prepare(capsys, folder, tmp_path / "out")
    names = ("user", "time", "artist_mbid", "artist", "mbid", "track")
    file = folder / "userid-timestamp-artid-artname-traid-traname.tsv"
    rows = [dict(zip(names, row, strict=True)) for row in rows_of(file, "\t")]
    timed = [(row["user"], row | {"time": str(seconds(row["time"], "%Y-%m-%dT%H:%M:%SZ"))}) for row in rows]
    assert plays_of(tmp_path / "out") == expected(timed)
    assert "taken for the Last.fm 1K data set (--format lastfm-1k)" in said
    users = described(tmp_path / "out", "users")
    for user, gender, age, country, _ in rows_of(folder / "userid-profile.tsv", "\t")[1:]:
        assert users[user] == {"age": float(age) if age else None, "gender": gender, "country": country}


def test_last_fm_360k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = SAMPLES / "lastfm-360k"
    said = prepare(capsys, folder, tmp_path / "out")
    rows = rows_of(folder / "usersha1-artmbid-artname-plays.tsv", "\t")
    made = {name: song_id(name, "x").removesuffix(" - x") for _, _, name, _ in rows}
    assert plays_of(tmp_path / "out") == sorted((user, mbid or made[name], 0, float(n)) for user, mbid, name, n in rows)
    assert "taken for the Last.fm 360K data set (--format lastfm-360k)" in said
    assert "tracks are artists" in said
    users = described(tmp_path / "out", "users")
    for user, gender, age, country, _ in rows_of(folder / "usersha1-profile.tsv", "\t"):
        assert users[user] == {"age": float(age) if age else None, "gender": gender or None, "country": country}


def test_a_fault_in_the_first_lines_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        "lastfm-1k/userid-timestamp-artid-artname-traid-traname.tsv",
        "lastfm-360k/usersha1-artmbid-artname-plays.tsv",
    ):
        lines = (SAMPLES / name).read_text(encoding="utf-8").splitlines()
        cells = lines[1].split("\t")
        cells[1 if "1k" in name else 3] = "many"
        lines[1] = "\t".join(cells)
        path = tmp_path / f"{name[7:9]}.tsv"
        path.write_text("\n".join(lines), encoding="utf-8")
        said = " ".join(prepare(capsys, path, tmp_path / name[7:9]).split())
        assert f"{path.name}: 1 row dropped: {'timestamp' if '1k' in name else 'playcount'} is n" in said
        assert "(line 2)" in said


CELL = st.text(st.sampled_from('aé"\\ ,1'), min_size=1, max_size=5).filter(lambda text: text.strip(' "\\,') != "")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(4))
@given(rows=st.lists(st.tuples(st.sampled_from("xy"), CELL, CELL), min_size=1, max_size=5))
def test_quotes_in_the_cells_of_1k_are_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[tuple[str, str, str]]
) -> None:
    rows = [*rows, ("x", "one", "two"), ("y", "one", "two")]
    (tmp_path / "in").mkdir(exist_ok=True)
    lines = [f"{user}\t2009-05-04T23:08:5{i}Z\t\t{artist}\t\t{track}\n" for i, (user, artist, track) in enumerate(rows)]
    (tmp_path / "in" / "x.tsv").write_text("".join(lines), encoding="utf-8")
    prepare(capsys, tmp_path / "in", tmp_path / "out")
    start = seconds("2009-05-04T23:08:50Z", "%Y-%m-%dT%H:%M:%SZ")
    names = {track["name"] for track in described(tmp_path / "out", "tracks").values()}
    assert names <= {track for _, _, track in rows}
    expected_plays = sorted((user, start + i) for i, (user, _, _) in enumerate(rows))
    assert sorted((user, time) for user, _, time, _ in plays_of(tmp_path / "out")) == expected_plays
