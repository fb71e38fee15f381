"""Slices of the Million Playlist Dataset go in as they are: a playlist is a user, its order is kept.

The samples are made up, in the shape of https://recsys-challenge.spotify.com/readme.
"""

import gzip
import json
from pathlib import Path

import pytest

from tests.prepared import SAMPLES, Heard, heard, prepare

SLICES = SAMPLES / "mpd"


def counted(folder: Path) -> list[Heard]:
    """An independent count of slices."""
    found = []
    for file in folder.glob("*.json"):
        for playlist in json.loads(file.read_text(encoding="utf-8"))["playlists"]:
            user = str(playlist["pid"])
            found += [Heard(user, track["track_uri"], 0, position=track["pos"]) for track in playlist["tracks"]]
    return sorted(found)


def test_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(prepare(capsys, SLICES, tmp_path / "out").split())
    assert heard(tmp_path / "out") == counted(SLICES)
    assert "taken for the Million Playlist Dataset (--format mpd)" in said
    assert "1 row dropped: a playlist without tracks (mpd.slice.0-2.json record 7)" in said
    prepare(capsys, SLICES, tmp_path / "again", "--split", "leave-last")


def test_slices_that_are_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in SLICES.glob("*.json"):
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    prepare(capsys, tmp_path / "mpd.slice.*.json.gz", tmp_path / "out")
    assert heard(tmp_path / "out") == counted(SLICES)


@pytest.mark.parametrize("packed", [False, True])
def test_a_slice_that_is_cut_short_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, packed: bool
) -> None:
    whole = (SLICES / "mpd.slice.3-4.json").read_bytes()
    written = gzip.compress(whole) if packed else whole
    name = f"mpd.slice.3-4.json{'.gz' if packed else ''}"
    for part in (0.5, 0.7, 0.9, 0.99):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / "mpd.slice.0-2.json").write_bytes((SLICES / "mpd.slice.0-2.json").read_bytes())
        (tmp_path / "in" / name).write_bytes(written[: int(part * len(written))])
        said = prepare(capsys, tmp_path / "in", tmp_path / "out")
        assert f"{name}: found" in said
        assert "fetch the file anew" in said
