"""Exports of Spotify go in as they are: every play, its start, its skips, and nothing of the account.

The samples are made up. The files of the account data are described at
https://support.spotify.com/article/understanding-my-data/: endTime is when the stream ended, in UTC.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lhydra.data.dataset import Dataset
from tests.prepared import SAMPLES, Heard, heard, prepare, song_id

ACCOUNT = SAMPLES / "spotify"


def account_plays(folder: Path) -> list[Heard]:
    """An independent count of the account data of several people, a folder each."""
    found = []
    for file in sorted(folder.glob("*/StreamingHistory*.json")):
        if "podcast" in file.name:
            continue
        for row in json.loads(file.read_text(encoding="utf-8")):
            end = datetime.strptime(row["endTime"], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
            time = (int(end.timestamp()) * 1000 - row["msPlayed"]) // 1000
            track = song_id(row["artistName"], row["trackName"])
            skipped = int(row["msPlayed"] < 30_000)
            found.append(Heard(file.parent.name, track, time, skipped, ms=row["msPlayed"]))
    return sorted(found)


def test_account_data_of_two_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = prepare(capsys, ACCOUNT, tmp_path / "out")
    assert heard(tmp_path / "out") == account_plays(ACCOUNT)
    assert "taken for Spotify's account data (--format spotify)" in said
    assert "2 folders, each one user's: ada, bo" in said
    assert "times are the ends of plays" in said
    assert "2 rows dropped: an episode of a podcast (StreamingHistory_podcast_0.json records 1, 2)" in said
    assert "not read: Playlist1.json, Userdata.json" in said
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.info.counts["users"] == 2
    assert dataset.info.counts["tracks"] == 6
    names = dict(zip(dataset.track_ids, dataset.tracks["name"].to_pylist(), strict=True))
    assert names["bjorn alund - frozen harbour"] == 'Frozen "Harbour"'


def test_one_persons_data_alone_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = prepare(capsys, ACCOUNT / "bo", tmp_path / "out")
    assert "found plays of 1 user" in said


@pytest.mark.parametrize(
    "cut", ['"msPlayed": 222', '    "endTime": "2023-01-01 00:06"', '},\n  {\n    "endTime": "2023-01-01 00:02']
)
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: str) -> None:
    text = (ACCOUNT / "bo" / "StreamingHistory0.json").read_text(encoding="utf-8")
    for person, whole in (("ada", True), ("bo", False)):
        (tmp_path / "in" / person).mkdir(parents=True)
        end = text if whole else text[: text.index(cut) + 3 if cut[0] == "}" else text.index(cut)]
        (tmp_path / "in" / person / "StreamingHistory0.json").write_text(end, encoding="utf-8")
    said = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert "bo/StreamingHistory0.json: found" in said
    assert "export it again" in said


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
