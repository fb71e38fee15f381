"""The Last.fm set of HetRec 2011; the sample is made up, in the shape that the readme.txt in its zip describes."""

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from lhydra.data.dataset import Dataset
from tests.prepared import SAMPLES, prepare
from tests.realdata import real_data
from tests.text_exports import Play, described, rows_of

HETREC = SAMPLES / "hetrec"


def summed(dataset: Path) -> list[Play]:
    """The plays of a dataset by pair, sorted."""
    opened = Dataset.open(dataset)
    plays, users, tracks = opened.plays, opened.user_ids, opened.track_ids
    rows = zip(plays.user, plays.track, plays.time.tolist(), plays.count.tolist(), strict=True)
    return sorted((users[user], tracks[track], time, count) for user, track, time, count in rows)


def top_tags(folder: Path) -> dict[str, list[str]]:
    """The ten tags that each artist was given most often, then by name."""
    names = {row[0]: row[1] for row in rows_of(folder / "tags.dat", "\t", "latin-1")[1:]}
    given = Counter((row[1], names[row[2]]) for row in rows_of(folder / "user_taggedartists.dat", "\t")[1:])
    found: dict[str, list[str]] = {}
    for (artist, tag), _ in sorted(given.items(), key=lambda item: (-item[1], item[0][1])):
        found.setdefault(artist, []).append(tag)
    return {artist: tags[:10] for artist, tags in found.items()}


def check(dataset: Path, folder: Path) -> None:
    rows = rows_of(folder / "user_artists.dat", "\t")[1:]
    assert summed(dataset) == sorted((user, artist, 0, float(count)) for user, artist, count in rows)
    tags = top_tags(folder)
    expected = {
        artist: {"name": name, "tags": tags.get(artist)}
        for artist, name, *_ in rows_of(folder / "artists.dat", "\t")[1:]
    }
    assert described(dataset, "tracks") == expected


def test_folder_and_zip_are_read_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = prepare(capsys, HETREC, tmp_path / "out")
    check(tmp_path / "out", HETREC)
    assert "taken for the Last.fm set of HetRec 2011 (--format hetrec)" in said
    assert "tracks are artists; there are no times" in said
    assert "not read: user_friends.dat" in said
    with zipfile.ZipFile(tmp_path / "hetrec.zip", "w") as archive:
        for file in HETREC.iterdir():
            archive.write(file, file.name)
    prepare(capsys, tmp_path / "hetrec.zip", tmp_path / "zipped")
    check(tmp_path / "zipped", HETREC)


def test_counts_alone_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(capsys, HETREC / "user_artists.dat", tmp_path / "out")
    rows = rows_of(HETREC / "user_artists.dat", "\t")[1:]
    assert summed(tmp_path / "out") == sorted((user, artist, 0, float(count)) for user, artist, count in rows)


def test_a_fault_is_named_by_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in HETREC.iterdir():
        text = file.read_bytes()
        if file.name == "user_artists.dat":
            text = text.replace(b"weight\r\n", b"weight\r\n2\t1\tmany\r\n")
        if file.name == "artists.dat":
            text += b"\tNobody\t\t\r\n"
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / file.name).write_bytes(text)
    said = " ".join(prepare(capsys, tmp_path / "in", tmp_path / "out").split())
    assert "user_artists.dat: 1 row dropped: playcount is not a number (line 2)" in said
    assert "artists.dat: 1 row dropped: empty track_id (line 7)" in said


@pytest.mark.real_data
def test_the_real_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = real_data("lastfm-hetrec") / "hetrec2011-lastfm-2k.zip"
    prepare(capsys, archive, tmp_path / "out")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "files")
    check(tmp_path / "out", tmp_path / "files")
