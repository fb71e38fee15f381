"""A person's own export is answered, and brought to a running store, by the readers of `prepare`."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lhydra.bundle.bundle import Bundle
from lhydra.cli import main
from lhydra.commands.histories import with_history
from lhydra.data.dataset import Dataset
from lhydra.data.history import match_tracks
from lhydra.domain import Play, UserState, make_history, track_hashes
from lhydra.queries import known_user
from lhydra.recommender import Recommender
from lhydra.users.store import open_users

START = 1_577_836_800  # 2020-01-01


def scrobbles(path: Path, tracks: list[tuple[str, str]]) -> None:
    """Writes plays of (artist, title) as lastfm-to-csv tools do, 200 s apart."""
    with path.open("w", newline="") as file:
        out = csv.writer(file, quoting=csv.QUOTE_ALL)
        out.writerow(["uts", "utc_time", "artist", "artist_mbid", "album", "album_mbid", "track", "track_mbid"])
        for i, (artist, title) in enumerate(tracks):
            out.writerow([START + 200 * i, "01 Jan 2020, 00:00", artist, "", "", "", title, ""])


@pytest.fixture
def liked(tiny_dataset: Dataset) -> list[tuple[str, str, str]]:
    """(id, artist, title) of 30 tracks whose artist and title no other track has."""
    rows = tiny_dataset.tracks.select(["track_id", "artist", "name"]).to_pylist()
    songs = [(row["artist"], row["name"]) for row in rows]
    alone = [(row["track_id"], *song) for row, song in zip(rows, songs, strict=True) if songs.count(song) == 1]
    return random.Random(0).sample(alone, 30)


def test_an_export_is_answered_as_its_plays_would_be(
    tiny_store: Path, liked: list[tuple[str, str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plays = random.Random(1).choices(liked, k=80)
    unknown = [("Nobody", "Nothing")] * 3
    scrobbles(
        tmp_path / "ada.csv", [(f"{artist.upper()} ", f"{title} (feat. B)") for _, artist, title in plays] + unknown
    )
    words = ["recommend", tiny_store, "--history", tmp_path / "ada.csv", "--k", "7", "--out", tmp_path / "lists.csv"]
    assert main([*map(str, words)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    distinct = len({track for track, _, _ in plays})
    assert f"{distinct} of {distinct + 1} tracks are known here" in said
    assert "3 of 83 plays are of other tracks" in said
    tracks = track_hashes(track for track, _, _ in plays)
    times = [START + 200 * i for i in range(len(plays))]
    state = UserState({}, make_history(tracks, [1.0] * len(plays), times), np.unique(tracks))
    recommender = Recommender(Bundle.open(tiny_store))
    wanted = recommender.catalog.track_ids(recommender.recommend(known_user(state, 7)).rows)
    with (tmp_path / "lists.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["track_id"] for row in found] == wanted
    assert {row["user_id"] for row in found} == {"ada"}
    assert main([*map(str, words[:-2])]) == 0
    printed = capsys.readouterr().out
    assert "for ada" in printed
    assert all(track in printed for track in wanted)


def test_a_store_takes_a_history_once_however_often_it_comes(
    tiny_store: Path, liked: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    (track, artist, title), (other, *_), *_ = liked
    person = tmp_path / "bo"
    person.mkdir()
    played = [(artist, title, 200_000), (artist, title, 200_000), (*liked[2][1:], 1000)]
    entries = [
        {"endTime": f"2020-01-01 00:{i:02d}", "artistName": a, "trackName": t, "msPlayed": ms}
        for i, (a, t, ms) in enumerate(played, start=10)
    ]
    (person / "StreamingHistory0.json").write_text(json.dumps(entries))
    url = f"lmdb:{tmp_path}/users"
    users = open_users(url, tmp_path)
    users.record([Play("e1", "bo", other, START, 4.0)])
    users.close()
    words = ["users", "load", "--history", person, "--store", tiny_store, "--users", url]
    states = []
    for _ in range(2):
        assert main([*map(str, words)]) == 0
        users = open_users(url, tmp_path)
        states.append(users.get("bo"))
        users.close()
    first, second = states
    assert first is not None
    assert second is not None
    assert first.history.tolist() == second.history.tolist()
    counts = {int(entry["track"]): float(entry["count"]) for entry in first.history}
    hashes = [int(hashed) for hashed in track_hashes([track, other, liked[2][0]])]
    assert counts == {hashes[0]: 2.0, hashes[1]: 4.0}  # the third was skipped: heard, not liked
    assert set(hashes) == set(first.heard.tolist())


def test_of_two_overlapping_histories_nothing_counts_twice() -> None:
    tracks = track_hashes(["a", "b", "c"])
    stored = UserState({"age": 3}, make_history(tracks[:2], [5, 1], [10, 20]), np.sort(tracks[:2]), tracks[:1])
    found = UserState({"age": 4, "country": "FR"}, make_history(tracks[1:], [3, 2], [15, 30]), np.sort(tracks[1:]))
    both = with_history(stored, found)
    by_track = {int(entry["track"]): (float(entry["count"]), int(entry["time"])) for entry in both.history}
    assert by_track == dict(zip(tracks.tolist(), [(5.0, 10), (3.0, 20), (2.0, 30)], strict=True))
    assert both.heard.tolist() == sorted(tracks.tolist())
    assert both.profile == {"age": 3, "country": "FR"}
    assert both.skipped.tolist() == tracks[:1].tolist()
    assert with_history(None, found) is found


def test_tracks_match_by_id_before_names_and_by_uri() -> None:
    known = pa.table(
        {
            "track_id": ["k1", "k2", "4uLU", "k4"],
            "artist": ["Björk", "Björk", "Q", ""],
            "name": ["Jóga", "Joga", "z", "y"],
        }
    )
    given = pa.table(
        {
            "track_id": ["k2", "spotify:track:4uLU", "x", "y", "z"],
            "artist": ["Bjork", "nobody", "BJÖRK", None, "Q"],
            "name": ["Joga", "nothing", "Joga (feat. Someone)", "y", "zz"],
        }
    )
    found = match_tracks(given, known)
    assert found.known == {"k2": "k2", "spotify:track:4uLU": "4uLU", "x": "k1"}
    assert (found.by_id, found.by_name, found.tracks) == (2, 1, 5)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["recommend", "STORE"], "DATASET and --history: found neither"),
        (["recommend", "DATASET", "STORE", "--history", "FILE"], "DATASET and --history: found both"),
        (["recommend", "STORE", "--history", "OTHER"], "1 tracks, none of which the catalog has"),
        (["recommend", "STORE", "--history", "GONE"], "no such file or folder"),
        (["users", "load", "--store", "STORE"], "DATASET and --history: found neither"),
        (["users", "load", "--history", "FILE", "--users", "lmdb:x"], "--store: found nothing"),
        (["recommend", "STORE", "--history", "NAMED", "--user", "ada"], "which names its users"),
        (["recommend", "STORE", "--history", "FILE", "--users", "ada"], "--users: found it with --history"),
        (["recommend", "STORE", "--history", "FILE", "--mask", "train"], "--mask: found it with --history"),
        (["users", "load", "--history", "FILE", "--store", "STORE", "--as-of", "test"], "--as-of: found it with"),
        (["recommend", "DATASET", "STORE", "--out", "o.csv", "--user", "u1"], "--user: found it with a DATASET"),
        (["users", "load", "DATASET", "--store", "STORE", "--no-header"], "--no-header: found it with a DATASET"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: list[str],
    found: str,
    tiny_dataset: Dataset,
    tiny_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scrobbles(tmp_path / "ada.csv", [("A", "B")])
    (tmp_path / "named.csv").write_text("user_id,track_id\na,b\nc,d\n")
    places = {
        "STORE": tiny_store, "DATASET": tiny_dataset.path, "FILE": tmp_path / "ada.csv", "OTHER": tmp_path / "ada.csv",
        "GONE": tmp_path / "gone.csv", "NAMED": tmp_path / "named.csv",
    }  # fmt: skip
    is_usage = found.startswith(("DATASET and --history", "--store"))
    assert main([str(places.get(word, word)) for word in words]) == (2 if is_usage else 1)
    error = capsys.readouterr().err.strip()
    assert found in error
    assert error.count("\n") == 0


def test_flags_may_stand_between_places(tiny_dataset: Dataset, tiny_store: Path, tmp_path: Path) -> None:
    flags = ["--k", "1", "--users", "U000001"]
    out = ["--out", str(tmp_path / "lists.csv")]
    places = [str(tiny_dataset.path), str(tiny_store)]
    orders = [[*places, *flags, *out], [places[0], *flags, places[1], *out], [*flags, *out, *places]]
    found = set()
    for words in orders:
        assert main(["recommend", *words]) == 0
        found.add((tmp_path / "lists.csv").read_text())
    assert len(found) == 1


def test_people_of_one_folder_get_the_lists_of_each_alone(
    tiny_store: Path, liked: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    lists: dict[str, list[str]] = {}
    (tmp_path / "all").mkdir()
    for i, name in enumerate(("cy", "ada", "bo")):
        for folder in (tmp_path, tmp_path / "all"):
            scrobbles(folder / f"{name}.csv", [song[1:] for song in random.Random(i).choices(liked, k=20)])
    for source in ("cy.csv", "ada.csv", "bo.csv", "all"):
        words = ["recommend", tiny_store, "--history", tmp_path / source, "--k", "5", "--out", tmp_path / "lists.csv"]
        assert main([*map(str, words)]) == 0
        with (tmp_path / "lists.csv").open() as file:
            lists[source] = [f"{row['user_id']} {row['track_id']}" for row in csv.DictReader(file)]
    assert sorted(lists["all"]) == sorted(lists["cy.csv"] + lists["ada.csv"] + lists["bo.csv"])
