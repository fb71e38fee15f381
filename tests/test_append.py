"""A dataset with a source added to it is the dataset of both; tables in memory make the dataset of their files."""

import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lhydra.data.dataset import Column, Dataset
from lhydra.data.prepare import prepare, prepare_tables
from lhydra.data.schema import DeclaredColumns
from lhydra.data.settings import PrepareSettings
from lhydra.errors import DataError

START = 1_600_000_000
GOLDEN = Path(__file__).parent / "golden"


def log(seed: int, users: list[str], n: int) -> list[dict[str, Any]]:
    """Draws plays at distinct seconds, some with skips."""
    rng = random.Random(seed)
    seconds = rng.sample(range(0, 10_000_000, 10), n)
    return [
        {
            "user_id": rng.choice(users),
            "track_id": f"t{rng.randrange(12)}",
            "playcount": rng.choice([1, 1, 2.5]),
            "timestamp": START + 10 * seed + second,
            "skipped": rng.choice([None, True, False]),
            "artist": "A",
            "mood": "calm",
        }
        for second in seconds
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def content(path: Path) -> dict[str, Any]:
    dataset = Dataset.open(path)
    tables = {name: pq.read_table(path / f"{name}.parquet").to_pylist() for name in ("plays", "tracks", "users")}
    events = {name: value.tolist() for name, value in vars(dataset.events).items()}
    return tables | {"events": events, "split": dataset.info.split, "columns": dataset.info.track_columns}


@pytest.mark.parametrize("split", ["temporal", "leave-last", "random", "next-session"])
def test_it_is_the_dataset_of_both(split: str, tmp_path: Path) -> None:
    old, new = log(1, ["a", "b", "c"], 150), log(2, ["b", "d"], 60)
    declared = DeclaredColumns(tracks=(Column("mood", "categorical"),))
    settings = PrepareSettings(split=split, seed=3, valid=0.2, test=0.15)
    prepare(write(tmp_path / "both.parquet", old + new), tmp_path / "both", settings, declared)
    prepare(write(tmp_path / "old.parquet", old), tmp_path / "ds", settings, declared)
    prepare(write(tmp_path / "new.parquet", new), tmp_path / "ds", PrepareSettings(append=True))
    assert content(tmp_path / "ds") == content(tmp_path / "both")


def test_plays_that_are_there_already_are_not_added(tmp_path: Path) -> None:
    old = log(1, ["a", "b"], 80)
    prepare(write(tmp_path / "old.parquet", old), tmp_path / "ds", PrepareSettings())
    before = content(tmp_path / "ds")
    with pytest.raises(DataError, match=r"80 plays, all in .* already, expected at least one that is new"):
        prepare(tmp_path / "old.parquet", tmp_path / "ds", PrepareSettings(append=True))
    assert content(tmp_path / "ds") == before
    more = [{**old[0], "timestamp": START + 7}]
    info = prepare(write(tmp_path / "more.parquet", old + more), tmp_path / "ds", PrepareSettings(append=True))
    assert any("80 plays are in ds already" in warning for warning in info.warnings)
    assert len(Dataset.open(tmp_path / "ds").events) == 81


def test_a_play_of_now_comes_again_with_every_export_and_is_added_once(tmp_path: Path) -> None:
    rows = [{"user_id": f"u{i % 2}", "track_id": f"t{i % 3}", "timestamp": START + i} for i in range(20)]
    prepare(write(tmp_path / "old.parquet", rows), tmp_path / "ds", PrepareSettings())
    for n in (1, 2):
        lines = ["uts,artist,track", ",A,Now", *(f"{START + i},A,B" for i in range(n))]
        (tmp_path / "eva.csv").write_text("\n".join(lines) + "\n")
        info = prepare(tmp_path / "eva.csv", tmp_path / "ds", PrepareSettings(append=True))
        assert len(Dataset.open(tmp_path / "ds").events) == 20 + 1 + n
    assert any("users of ds already, whose plays these are taken for: eva" in warning for warning in info.warnings)


def test_tracks_of_another_export_are_found_by_artist_and_title(tmp_path: Path) -> None:
    rows = [{"user_id": f"u{i % 2}", "track_id": f"t{i % 3}", "timestamp": START + i} for i in range(20)]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/plays.parquet", rows)
    songs = [{"track_id": f"t{i}", "artist": "Björk", "name": f"Jóga {i}"} for i in range(3)]
    write(tmp_path / "in/tracks.parquet", songs)
    prepare(tmp_path / "in", tmp_path / "ds", PrepareSettings())
    lines = ["uts,artist,track", f"{START + 500},BJORK,Joga 1 (feat. X)", f"{START + 900},Bjork,New", f"{START},,"]
    (tmp_path / "eva.csv").write_text("\n".join(lines) + "\n")
    info = prepare(tmp_path / "eva.csv", tmp_path / "ds", PrepareSettings(append=True))
    dataset = Dataset.open(tmp_path / "ds")
    events = dataset.events
    own = events.user == dataset.user_ids.index("eva")
    assert [dataset.track_ids[track] for track in events.track[own]] == ["t1", "bjork - new"]
    assert events.time[own].tolist() == [START + 500, START + 900]
    assert dataset.tracks["name"].to_pylist()[dataset.track_ids.index("bjork - new")] == "New"
    assert any("1 of 2 tracks are known here" in warning for warning in info.warnings)
    assert any("eva.csv: 1 row dropped: empty track_id (line 4)" in warning for warning in info.warnings)


def test_bad_rows_are_refused_where_they_are_not_wanted(tmp_path: Path) -> None:
    prepare(write(tmp_path / "old.parquet", log(1, ["a", "b"], 40)), tmp_path / "ds", PrepareSettings())
    before = content(tmp_path / "ds")
    rows = [*log(2, ["c"], 5), {"user_id": "", "track_id": "t1", "timestamp": START}]
    source = write(tmp_path / "new.parquet", rows)
    with pytest.raises(DataError, match=r"found .*empty user_id .*row 6.*, expected no bad row \(strict\)"):
        prepare(source, tmp_path / "ds", PrepareSettings(append=True, strict=True))
    assert content(tmp_path / "ds") == before
    prepare(source, tmp_path / "ds", PrepareSettings(append=True))
    assert len(Dataset.open(tmp_path / "ds").events) == 45


def test_plays_that_are_added_up_cannot_be_told_from_new_ones(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "dataset_v1", tmp_path / "ds")
    with pytest.raises(DataError, match=r"ds: found no events.parquet \(format 1\), .*run `lhydra prepare` again"):
        prepare(GOLDEN / "plays.csv", tmp_path / "ds", PrepareSettings(append=True))


def test_plays_without_a_time_are_added_and_told(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("user_id,track_id\na,x\nb,y\na,y\n")
    prepare(source, tmp_path / "ds", PrepareSettings(split="random", valid=0, test=0))
    info = prepare(source, tmp_path / "ds", PrepareSettings(append=True))
    assert "3 of the plays added have no time: whether ds had them cannot be told" in info.warnings
    assert len(Dataset.open(tmp_path / "ds").events) == 6
    with pytest.raises(DataError, match=f"^{tmp_path}/ds/plays.parquet: found no timestamps"):
        prepare(source, tmp_path / "ds", PrepareSettings(append=True, split="temporal"))


def test_there_must_be_a_dataset_to_add_to(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", log(1, ["a", "b"], 20))
    with pytest.raises(DataError, match="found nothing, expected a dataset to add to"):
        prepare(source, tmp_path / "gone", PrepareSettings(append=True))
    assert not (tmp_path / "gone").exists()


def test_tables_in_memory_are_read_like_files(tmp_path: Path) -> None:
    plays = [
        {"user_id": user, "track_id": track, "timestamp": datetime.fromtimestamp(START + i, UTC), "playcount": i + 1}
        for i, (user, track) in enumerate([("a", "x"), ("b", "y"), ("a", "y"), ("b", "x"), ("c", "x")])
    ]
    tracks = [{"track_id": "x", "artist": "A", "tags": ["p", "q"]}, {"track_id": "y", "artist": "B", "tags": ["q"]}]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/plays.parquet", plays)
    write(tmp_path / "in/tracks.parquet", tracks)
    prepare(tmp_path / "in", tmp_path / "files", PrepareSettings(split="random"))
    for name, make in (("arrow", pa.Table.from_pylist), ("pandas", pd.DataFrame)):
        prepare_tables(make(plays), tmp_path / name, tracks=make(tracks), settings=PrepareSettings(split="random"))
        assert content(tmp_path / name) == content(tmp_path / "files")
    assert Dataset.open(tmp_path / "pandas").tracks["tags"].to_pylist() == [["p", "q"], ["q"]]


@pytest.mark.parametrize(
    ("plays", "found"),
    [
        (pd.DataFrame({"user": ["a"], "track_id": ["x"]}), "plays.parquet: found the columns user, track_id"),
        (pd.DataFrame({"user_id": ["a", 1], "track_id": ["x", "y"]}), "plays: found "),
        (
            pd.DataFrame({"user_id": [1.5, 2], "track_id": ["x", "y"]}),
            "plays.parquet: user_id: found a column of double",
        ),
        (pd.DataFrame({"user_id": [], "track_id": []}), "plays.parquet: found no rows"),
        (
            pd.DataFrame({"user_id": ["a"], "track_id": ["x"], "playcount": [10**30]}),
            "plays: playcount: found a whole number of more than 64 bits, expected floats",
        ),
        ({"user_id": ["a"], "track_id": ["x"], "playcount": [-(2**64)]}, "plays: playcount: found a whole number of"),
        (pa.table({"user_id": ["a", "b"], "track_id": ["", ""]}), "plays.parquet: found no usable row"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(plays: Any, found: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare_tables(plays, tmp_path / "out")
    assert str(caught.value).startswith(found)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
