"""A table of tracks without listeners, as Kaggle's "Spotify Tracks" is: refused alone, used beside plays.

The header is that of https://www.kaggle.com/datasets/maharshipandya/-spotify-tracks-dataset; the rows are made up.
"""

import gzip
import re
import shlex
from pathlib import Path

import pytest

from tests.prepared import ALL_TRAIN, heard, prepare
from tests.text_exports import described

HEADER = (
    "{},track_id,artists,album_name,track_name,popularity,duration_ms,explicit,danceability,energy,key,loudness,mode,"
    "speechiness,acousticness,instrumentalness,liveness,valence,tempo,time_signature,track_genre\n"
)
ROWS = (
    '0,aaa,Ana;Bo,"Sea, deep",First Wave,73,230666,False,0.676,0.461,1,-6.7,0,0.1,0.03,1e-06,0.358,0.7,87.9,4,rock\n'
    "1,bbb,Mörk Fjord,Sjø,Havn,55,149610,True,0.42,0.166,1,-17.2,1,0.07,0.9,5e-06,0.1,0.2,77.4,4,ambient\n"
)


@pytest.mark.parametrize("first", ["", "Unnamed: 0"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tracks_alone_are_refused_with_the_step_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, end: str
) -> None:
    text = (HEADER.format(first) + ROWS).replace("\n", end)
    (tmp_path / "dataset.csv").write_text(text, encoding="utf-8", newline="")
    said = prepare(capsys, tmp_path / "dataset.csv", tmp_path / "out")
    assert "it names no listeners, only tracks: save it as tracks.* in a folder with plays.*" in said
    columns = re.search(r"with --columns (\S+)$", said)
    assert columns
    (tmp_path / "in").mkdir()
    (tmp_path / "dataset.csv").rename(tmp_path / "in" / "tracks.csv")
    (tmp_path / "in" / "plays.csv").write_text("user_id,track_id\nu,aaa\nv,aaa\nu,bbb\n")
    prepare(capsys, tmp_path / "in", tmp_path / "out", "--columns", columns[1])
    tracks = described(tmp_path / "out", "tracks")
    assert {name: tracks["aaa"][name] for name in ("name", "artist", "album", "genre", "duration_ms")} == {
        "name": "First Wave",
        "artist": "Ana;Bo",
        "album": "Sea, deep",
        "genre": "rock",
        "duration_ms": 230_666,
    }


def test_a_folder_with_one_flat_file_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "README.md").write_text("about it\n")
    (tmp_path / "in" / "sample.csv").write_text("user_id,track_id\nu,a\nv,a\n")
    said = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert said.endswith(f"sample.csv alone is a source: give {tmp_path / 'in' / 'sample.csv'}")


@pytest.mark.parametrize("ending", ["csv", "JSONL", "csv.gz"])
def test_a_folder_with_files_of_one_table_names_their_pattern(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    head = "user_id,track_id\n" if ending != "JSONL" else ""
    rows = [("u", "a"), ("v", "a"), ("u", "b")]
    (tmp_path / "my [days]").mkdir()
    for day in range(2):
        lines = (f"{u}{day},{t}\n" if head else f'{{"user_id": "{u}{day}", "track_id": "{t}"}}\n' for u, t in rows)
        text = (head + "".join(lines)).encode()
        (tmp_path / "my [days]" / f"day-{day}.{ending}").write_bytes(gzip.compress(text) if "gz" in ending else text)
    said = prepare(capsys, tmp_path / "my [days]", tmp_path / "out")
    pattern = said.rpartition(" give ")[2]
    assert said.endswith(f"if all .{ending} files are one table, give '{tmp_path}/my [[]days]/*.{ending}'")
    prepare(capsys, Path(shlex.split(pattern)[0]), tmp_path / "out", *ALL_TRAIN)
    assert len(heard(tmp_path / "out")) == 6
