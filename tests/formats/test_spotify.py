"""Exports of Spotify go in as they are: every play, its start, its skips, and nothing of the account.

The samples are made up. The files of the account data are described at
https://support.spotify.com/article/understanding-my-data/: endTime is when the stream ended, in UTC.
The extended history is described there too, and in the ReadMeFirst that comes with it: ts is when the track stopped
playing, in UTC.
"""

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from lhydra.data.dataset import Dataset
from lhydra.data.history import read_listening
from lhydra.data.settings import ReadSettings
from lhydra.errors import DataError
from tests.harness import examples
from tests.prepared import ALL_TRAIN, SAMPLES, Heard, heard, prepare, song_id

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


def test_what_is_no_music_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(capsys, ACCOUNT, tmp_path / "account", "--strict")
    prepare(capsys, EXTENDED, tmp_path / "extended", "--strict")
    assert heard(tmp_path / "extended") == extended_plays(EXTENDED)


def test_a_fraction_of_a_second_counts_in_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(EXTENDED, tmp_path / "in")
    file = tmp_path / "in" / "bo" / "endsong_0.json"
    text = file.read_text(encoding="utf-8").replace("04:05:06Z", "04:05:06.824Z").replace("240000", "240825")
    file.write_text(text, encoding="utf-8")
    prepare(capsys, tmp_path / "in", tmp_path / "out")
    first = min(play.time for play in heard(tmp_path / "out"))
    assert first == int(datetime(2016, 2, 3, 4, 1, 5, tzinfo=UTC).timestamp())


@pytest.mark.parametrize("packed", [False, True])
def test_one_persons_data_are_a_history(tmp_path: Path, *, packed: bool) -> None:
    shutil.copytree(ACCOUNT / "bo", tmp_path / "bo" / "MyData")
    shutil.make_archive(str(tmp_path / "bo"), "zip", tmp_path / "bo")
    source = tmp_path / ("bo.zip" if packed else "bo")
    plays = read_listening(source, ReadSettings()).plays.to_pylist()
    found = [(play["user_id"], play["track_id"], play["timestamp"]) for play in plays]
    assert sorted(found) == [tuple(play[:3]) for play in account_plays(ACCOUNT) if play.user == "bo"]
    assert {play["user_id"] for play in read_listening(source, ReadSettings(user="ada")).plays.to_pylist()} == {"ada"}


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


def test_a_file_of_a_byte_order_mark_alone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ACCOUNT, tmp_path / "in")
    (tmp_path / "in" / "bo" / "StreamingHistory9.json").write_bytes(b"\xef\xbb\xbf \n")
    said = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert f"{tmp_path}/in/bo/StreamingHistory9.json: found nothing in it" in said


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_fault_in_an_archive_is_told_by_the_place_within_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (ACCOUNT / "bo" / "StreamingHistory0.json").read_bytes()
    files = {"My Data/ada/StreamingHistory0.json": whole, "My Data/bo/StreamingHistory0.json": whole[:-20]}
    archive = packed(tmp_path / "my data.zip", files)
    place = f"{archive}/My Data/bo/StreamingHistory0.json: found an end"
    assert place in prepare(capsys, archive, tmp_path / "out")
    with pytest.raises(DataError, match=f"^{place}"):
        read_listening(archive, ReadSettings())


def test_an_archive_of_nothing_or_of_archives_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = packed(
        tmp_path / "whole.zip", {"StreamingHistory0.json": (ACCOUNT / "bo/StreamingHistory0.json").read_bytes()}
    )
    for name, files, found in (
        ("empty.zip", {}, "found an archive with nothing in it"),
        ("nested.zip", {"a.zip": whole.read_bytes()}, "nested.zip/a.zip: found a .zip file"),
        ("long.zip", {"x" * 300: b""}, "long.zip: found File name too long"),
    ):
        said = prepare(capsys, packed(tmp_path / name, files), tmp_path / "out")
        assert said.startswith(f"lhydra prepare: {tmp_path}/{name}")
        assert found in said


EXTENDED = SAMPLES / "spotify-extended"
# What an extended history says of a person beyond the plays: nothing of it may be kept.
SECRETS = ("192.0.2.77", "2001:db8", "secret", "Android", "Acme", "web_player", "Gecko", "incognito", "ip_addr")


def extended_plays(folder: Path) -> list[Heard]:
    """An independent count of the extended history of several people, a folder each."""
    found = []
    rows = [
        (file.parent.name, row) for file in folder.glob("*/*.json") if "Video" not in file.name for row in read(file)
    ]
    key: dict[str, str | None] = {}
    for _, row in rows:
        name = song_id(row["master_metadata_album_artist_name"] or "", row["master_metadata_track_name"] or "")
        key[name] = row["spotify_track_uri"] or key.get(name)
    for person, row in rows:
        if not row["master_metadata_track_name"]:
            continue
        name = song_id(row["master_metadata_album_artist_name"], row["master_metadata_track_name"])
        end = datetime.fromisoformat(row["ts"].replace("Z", "+00:00"))
        time = (int(end.timestamp()) * 1000 - row["ms_played"]) // 1000
        skipped = int(bool(row["skipped"]) or row["ms_played"] < 30_000)
        completed = -1 if row["reason_end"] == "unknown" else int(row["reason_end"] == "trackdone")
        found.append(Heard(person, key[name] or name, time, skipped, completed, row["ms_played"]))
    return sorted(found)


def read(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return rows


def test_extended_history_of_two_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(prepare(capsys, EXTENDED, tmp_path / "out").split())
    assert heard(tmp_path / "out") == extended_plays(EXTENDED)
    assert "taken for Spotify's extended streaming history (--format spotify-extended)" in said
    assert "1 row dropped: an episode of a podcast (Streaming_History_Audio_2022-2023_0.json record 6)" in said
    assert "1 row dropped: an audiobook (Streaming_History_Audio_2022-2023_0.json record 7)" in said
    assert "not read: Streaming_History_Video_2023.json" in said
    assert Dataset.open(tmp_path / "out").info.counts["tracks"] == 5


def test_nothing_of_the_account_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = prepare(capsys, EXTENDED, tmp_path / "out")
    told, raw = said + (tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"), b""
    for file in sorted((tmp_path / "out").rglob("*.parquet")):
        table = pq.read_table(file)
        told += f"{table.column_names} {table.to_pylist()}"
        raw += file.read_bytes()
    told = told.replace(str(tmp_path), "")
    assert not [secret for secret in (*SECRETS, '"ZW"', "'ZW'") if secret in told]
    assert not [secret for secret in SECRETS if secret.encode() in raw]


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (lambda text: f"[{text}]", "array instead of object (near record 1)"),
        (lambda text: text.replace('"platform"', '"ts"', 1), "an object with a key twice (near record 1)"),
        (lambda text: text.rstrip()[:-1] + ', "192.0.2.77"]', "varchar instead of object (near record 4)"),
        (lambda text: text.replace("Lanterns", "\\ud83d", 1), "no low surrogate in string (near record"),
        (lambda text: text.replace('"username"', ', "username"', 1), "unexpected character (near record"),
        (lambda text: text.replace("bo.secret", 'bo."secret', 1), "unexpected character (near record"),
        (lambda text: text + text, "array instead of object (near record"),
        (lambda text: text + '{"ip_addr": "192.0.2.77"}', "an end after '}', which does not close '['"),
        (lambda text: text.encode("utf-16"), "an end after"),
        (lambda text: text.replace("Lanterns", "\xe4").encode("latin-1"), "invalid utf-8 encoding in string (near"),
        (lambda text: gzip.compress(text.encode()), "an end after"),
    ],
)
def test_what_is_no_json_is_refused_without_what_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: Callable[[str], str | bytes], found: str
) -> None:
    for person, name in (("ada", "Streaming_History_Audio_2023_1.json"), ("bo", "endsong_0.json")):
        text = (EXTENDED / person / name).read_text(encoding="utf-8")
        written = broken(text) if person == "bo" else text
        (tmp_path / "in" / person).mkdir(parents=True)
        (tmp_path / "in" / person / name).write_bytes(written.encode() if isinstance(written, str) else written)
    said = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert f"bo/endsong_0.json: found {found}" in said
    assert "export it again" in said
    assert not [secret for secret in SECRETS if secret in said.replace(str(tmp_path), "")]


def test_files_with_nothing_in_them_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(EXTENDED, tmp_path / "in")
    (tmp_path / "in" / "bo" / "endsong_1.json").write_text(" \n", encoding="utf-8")
    (tmp_path / "in" / "bo" / "endsong_2.json.gz").write_text("[]", encoding="utf-8")
    said = " ".join(prepare(capsys, tmp_path / "in", tmp_path / "out").split())
    assert heard(tmp_path / "out") == extended_plays(EXTENDED)
    assert "not read: endsong_1.json (empty, or broken)" in said
    assert "not read: endsong_2.json.gz (empty, or broken)" in said


def test_account_data_beside_an_extended_history_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(EXTENDED, tmp_path / "in")
    shutil.copy(ACCOUNT / "bo" / "StreamingHistory0.json", tmp_path / "in" / "bo")
    said = prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert heard(tmp_path / "out") == extended_plays(EXTENDED)
    assert "not read: StreamingHistory0.json (account data: --format spotify)" in " ".join(said.split())


text = st.sampled_from(["Kite", "KITE", "Kit\u00e9", 'The "Knot"', "a, b", "back\\slash", "Slow (feat. Ann)", "\n\tz"])
row = st.fixed_dictionaries(
    {
        "endTime": st.datetimes(datetime(2010, 1, 1), datetime(2024, 1, 1)).map(
            lambda at: at.strftime("%Y-%m-%d %H:%M")
        ),
        "artistName": text,
        "trackName": text,
        "msPlayed": st.one_of(st.integers(0, 10**7), st.sampled_from([29_999, 30_000])),
    },
    optional={"incognito": st.booleans(), "more": st.lists(text)},
)


@settings(
    max_examples=examples(3),
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(
    files=[
        [
            {"endTime": "2019-12-31 23:59", "artistName": "Kite", "trackName": 'The "Knot"', "msPlayed": 30_000},
            {"endTime": "2019-12-31 23:59", "artistName": "Kite", "trackName": 'The "Knot"', "msPlayed": 29_999},
            {"endTime": "2020-01-01 00:00", "artistName": "KITE", "trackName": "Kité", "msPlayed": 0},
        ],
        [
            {
                "endTime": "2020-02-29 12:00",
                "artistName": "a, b",
                "trackName": "\n\tz",
                "msPlayed": 61_000,
                "more": ["Kite"],
            }
        ],
        [{"endTime": "2019-12-31 23:59", "artistName": "Kite", "trackName": 'The "Knot"', "msPlayed": 9_000_000}],
    ],
    form=7,
)
@given(files=st.lists(st.lists(row, min_size=1, max_size=12), min_size=2, max_size=4), form=st.integers(0, 7))
def test_any_account_data_are_counted_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[list[dict[str, Any]]], form: int
) -> None:
    shutil.rmtree(tmp_path / "in", ignore_errors=True)
    shutil.rmtree(tmp_path / "plain", ignore_errors=True)
    for i, rows in enumerate(files):
        name = f"{'ab'[i % 2]}/StreamingHistory_music_{i}.json"
        written = json.dumps(rows, indent=form % 2 or None, ensure_ascii=form < 4)
        data = written.replace("\n", "\r\n").encode("utf-8-sig" if form & 2 else "utf-8")
        for folder, content in (("plain", written.encode()), ("in", gzip.compress(data) if form & 4 else data)):
            path = tmp_path / folder / (f"{name}.gz" if form & 4 and folder == "in" else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    prepare(capsys, tmp_path / "in", tmp_path / "out", *ALL_TRAIN)
    assert heard(tmp_path / "out") == account_plays(tmp_path / "plain")
