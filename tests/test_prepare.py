"""`lhydra prepare` from source to dataset: what is kept, what is dropped and said, what is refused."""

import csv
import importlib.util
import json
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra import cli
from lhydra.data.dataset import TEST, TRAIN, VALID, Column, Dataset, DatasetInfo
from lhydra.data.prepare import prepare
from lhydra.data.schema import DeclaredColumns
from lhydra.data.settings import PROTOCOLS, PrepareSettings
from lhydra.errors import ConfigError, DataError, LhydraError
from tests.harness import examples
from tests.realdata import ROOT, real_data

Rows = Sequence[Mapping[str, object]]
Key = tuple[str, str, int]  # user id, track id, fold
TRACK_ROW_GROUP = 65_536  # what readers of a large catalogue rely on


def write(path: Path, rows: Rows) -> Path:
    """Writes rows (all with the same keys) as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path


def plays_of(dataset: Dataset) -> dict[Key, tuple[float, int]]:
    """Returns {(user id, track id, fold): (count, time)}; each key is there once."""
    plays, users, tracks = dataset.plays, dataset.user_ids, dataset.track_ids
    every = list(zip(*(getattr(plays, n).tolist() for n in ("user", "track", "fold", "count", "time")), strict=True))
    found = {(users[u], tracks[t], fold): (count, stamp) for u, t, fold, count, stamp in every}
    assert len(found) == len(every)
    return found


def made(source: Path, out: Path, *, declared: DeclaredColumns = DeclaredColumns(), **given: Any) -> Dataset:  # noqa: B008
    info = prepare(source, out, PrepareSettings(**given), declared)
    dataset = Dataset.open(out)
    assert dataset.info == info
    return dataset


def log(users: int = 4, tracks: int = 5) -> list[dict[str, object]]:
    """A small clean listening log: every user plays every track, later tracks later."""
    return [
        {
            "user_id": f"u{u}",
            "track_id": f"t{t}",
            "playcount": u + t + 1,
            "timestamp": 1_000_000 + 100 * t + u,
        }
        for u in range(users)
        for t in range(tracks)
    ]


def refusal(source: Path, out: Path, **given: Any) -> str:
    """Returns the one line with which `source` is refused, and checks that nothing is left behind."""
    before = set(out.parent.rglob("*")) if out.parent.exists() else set()
    with pytest.raises(LhydraError) as caught:
        prepare(source, out, PrepareSettings(**given))
    after = set(out.parent.rglob("*")) if out.parent.exists() else set()
    assert after == before
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    return message


# What is kept


ID = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=6) | st.sampled_from(
    ["007", "7", "1.0", "NA", "null", "nan", "NULL", " a", "a ", '"', "a,b", "é", "e\u0301", "\U0001f3b5"]
)
EVENT = st.tuples(st.integers(0, 5), st.integers(0, 7), st.sampled_from([1, 2, 7, 0.25, 0.1, 1e6]), st.integers(1, 40))


@pytest.mark.parametrize("protocol", ["temporal", "leave-last", "random"])
@pytest.mark.parametrize("parquet", [False, True])
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=examples(2),
)
@given(
    ids=st.lists(ID, min_size=14, max_size=14, unique=True),
    events=st.lists(EVENT, min_size=2, max_size=50),
    seed=st.integers(0, 9),
)
def test_any_log_is_kept_whole_whatever_its_order(
    tmp_path_factory: pytest.TempPathFactory,
    ids: list[str],
    events: list[tuple[int, int, float, int]],
    protocol: str,
    parquet: bool,
    seed: int,
) -> None:
    if len({user for user, *_ in events}) < 2:
        events = [*events, (0, 0, 1, 5), (1, 0, 1, 5)]
    folder = tmp_path_factory.mktemp("log")
    names = ("user_id", "track_id", "playcount", "timestamp")
    rows = [dict(zip(names, (ids[u], ids[6 + t], count, at), strict=True)) for u, t, count, at in events]
    try:
        first = made(write(folder / "a.csv", rows), folder / "a", split=protocol)
    except DataError:
        assert protocol == "random"  # where chance holds out every pair there are few
        assert len({(row["user_id"], row["track_id"]) for row in rows}) < 12
        return
    random.Random(seed).shuffle(rows)
    if parquet:
        pq.write_table(pa.Table.from_pylist(rows), folder / "b.parquet")
    source = folder / "b.parquet" if parquet else write(folder / "b.csv", rows)
    second = made(source, folder / "b", split=protocol)
    for name in ("plays", "tracks", "users"):
        assert (folder / f"a/{name}.parquet").read_bytes() == (folder / f"b/{name}.parquet").read_bytes()
    assert first.info.split == second.info.split

    assert first.user_ids == sorted({str(row["user_id"]) for row in rows}, key=str.encode)
    assert first.track_ids == sorted({str(row["track_id"]) for row in rows}, key=str.encode)
    plays, found = first.plays, plays_of(first)
    order = list(zip(plays.user.tolist(), plays.time.tolist(), plays.track.tolist(), strict=True))
    assert order == sorted(order)
    assert [a.dtype for a in (plays.user, plays.track, plays.count, plays.time, plays.fold)] == [
        *(np.int32, np.int32, np.float32, np.int64, np.int8)
    ]
    sums: Counter[tuple[str, str]] = Counter()
    latest: dict[tuple[str, str], int] = defaultdict(int)
    for user, track, count, at in events:
        sums[ids[user], ids[6 + track]] += count  # type: ignore[assignment]
        latest[ids[user], ids[6 + track]] = max(latest[ids[user], ids[6 + track]], at)
    kept: Counter[tuple[str, str]] = Counter()
    for (user_id, track_id, fold), (count, at) in found.items():
        assert fold in (TRAIN, VALID, TEST)
        kept[user_id, track_id] += count  # type: ignore[assignment]
        assert at <= latest[user_id, track_id]
    assert kept.keys() == sums.keys()
    assert {pair: max(found[(*pair, f)][1] for f in range(3) if (*pair, f) in found) for pair in kept} == latest
    assert [kept[pair] for pair in sums] == pytest.approx(list(sums.values()), rel=1e-6)
    if protocol != "temporal":
        assert len(found) == len(sums)  # a pair is in one fold
    counts = first.info.counts
    assert counts["plays"] == len(plays) == counts["train"] + counts["valid"] + counts["test"]
    listened = Counter(user for user, _ in sums)
    small = {user for user, n in listened.items() if n < 3 and protocol != "random"}
    assert all(fold == TRAIN for user, _, fold in found if user in small)
    if protocol == "temporal":  # nobody's train play is later than a held-out one, small users aside
        train = [at for (user, _, fold), (_, at) in found.items() if fold == TRAIN and user not in small]
        held = [at for (_, _, fold), (_, at) in found.items() if fold != TRAIN]
        assert not train or not held or max(train) < min(held)
    check_aggregates(first)


def test_fractions_add_up_the_same_in_any_order(tmp_path: Path) -> None:
    counts = [1.0, 2.0**-24, 2.0**-53, 2.0**-53]  # largest first, the small ones get lost
    found = []
    for name, order in (("a", counts), ("b", counts[::-1])):
        rows = [{"user_id": "u", "track_id": "t", "playcount": count} for count in order]
        source = write(tmp_path / f"{name}.csv", [*rows, {"user_id": "v", "track_id": "t", "playcount": 1}])
        found.append(plays_of(made(source, tmp_path / name)))
    assert found[0] == found[1]


def check_aggregates(dataset: Dataset) -> None:
    """Own aggregates against a plain count over the train plays."""
    plays, heard, listeners = Counter[str](), Counter[str](), Counter[str]()
    by_track = Counter[str]()
    for (user, track, fold), (count, _) in plays_of(dataset).items():
        if fold == TRAIN:
            plays[user] += count  # type: ignore[assignment]
            by_track[track] += count  # type: ignore[assignment]
            heard[user] += 1
            listeners[track] += 1
    tracks, users = dataset.tracks, dataset.users
    assert tracks["train_listeners"].to_pylist() == [listeners[track] for track in dataset.track_ids]
    assert users["train_tracks"].to_pylist() == [heard[user] for user in dataset.user_ids]
    assert tracks["train_plays"].to_pylist() == pytest.approx([by_track[track] for track in dataset.track_ids])
    assert users["train_plays"].to_pylist() == pytest.approx([plays[user] for user in dataset.user_ids])
    assert tracks.schema.field("train_plays").type == pa.float64()
    assert users.schema.field("train_tracks").type == pa.int64()


def test_row_groups_are_whole_and_small_for_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in"
    played = [{"user_id": f"u{k % 20_000}", "track_id": f"t{k}"} for k in range(3 * TRACK_ROW_GROUP + 5)]
    source.mkdir()
    pq.write_table(pa.Table.from_pylist(played), source / "plays.parquet")
    whole = made(source, tmp_path / "whole")
    assert groups(tmp_path / "whole/tracks.parquet") == [*[TRACK_ROW_GROUP] * 3, 5]
    assert groups(tmp_path / "whole/users.parquet") == [20_000]
    assert groups(tmp_path / "whole/plays.parquet") == [len(played)]
    monkeypatch.setattr("lhydra.data.writing._TRACK_ROW_GROUP", 4_097)
    monkeypatch.setattr("lhydra.data.writing._ROW_GROUP", 1_500)
    monkeypatch.setattr("lhydra.data.writing._FETCH", 10_000)
    pieces = made(source, tmp_path / "pieces")
    assert groups(tmp_path / "pieces/tracks.parquet") == [*[4_097] * 47, len(played) - 47 * 4_097]
    assert groups(tmp_path / "pieces/users.parquet") == [*[1_500] * 13, 500]
    assert whole.tracks.equals(pieces.tracks)
    assert whole.users.equals(pieces.users)
    assert whole.info == pieces.info


def groups(path: Path) -> list[int]:
    """Returns how many rows each row group of a Parquet file has."""
    metadata = pq.ParquetFile(path).metadata
    return [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]


def test_only_ids_are_needed(tmp_path: Path) -> None:
    rows = [{"user_id": pair[0], "track_id": pair[1]} for pair in ("a1", "a2", "a1", "b2")]
    dataset = made(write(tmp_path / "plays.csv", rows), tmp_path / "out")
    assert plays_of(dataset) == {("a", "1", 0): (2, 0), ("a", "2", 0): (1, 0), ("b", "2", 0): (1, 0)}
    assert dataset.info.split["protocol"] == "random"
    assert not dataset.info.timed
    assert dataset.info.warnings == ("the valid fold is empty", "the test fold is empty")
    assert dataset.info.track_columns == dataset.info.user_columns == ()
    assert dataset.users["train_top_genre"].to_pylist() == [None, None]


def test_tables_with_every_column(tmp_path: Path) -> None:
    write(
        tmp_path / "in/plays.csv",
        [*log(), {"user_id": "new", "track_id": "t0", "playcount": 1, "timestamp": ""}],
    )
    tracks = [
        {
            "track_id": f"t{i}",
            "name": f"N{i}",
            "artist": "",
            "tags": "rock| pop ||",
            "genre": "Rock",
            "main_genre": "",
        }
        | {"year": "2006.0", "energy": "0.5", "explicit": "True", "mood": "sad", "spotify_id": "x"}
        for i in range(6)
    ]
    tracks[1] |= {
        "year": "1999-05-01",
        "energy": "nan",
        "tags": "a, b",
        "genre": "Jazz",
        "main_genre": "jazz",
    }
    tracks[2] |= {"year": "0", "energy": "loud", "tags": " "}
    write(tmp_path / "in/tracks.csv", tracks)
    users = [
        {"user_id": f"u{i}", "age": "30", "country": "Chile", "avg_energy": "0.1", "plan": "free"} for i in range(9)
    ]
    users[3] |= {"age": "abc", "country": ""}
    write(tmp_path / "in/users.csv", users)
    declared = DeclaredColumns(tracks=(Column("mood", "categorical"),), users=(Column("avg_energy", "numeric"),))
    dataset = made(tmp_path / "in", tmp_path / "out", declared=declared, split="random")
    info = dataset.info
    assert [(c.name, c.kind) for c in info.track_columns] == [
        *(
            ("name", "text"),
            ("genre", "categorical"),
            ("main_genre", "categorical"),
            ("explicit", "categorical"),
        ),
        *(("tags", "multi"), ("year", "year"), ("energy", "numeric"), ("mood", "categorical")),
    ]
    assert [c.name for c in info.user_columns] == ["age", "country", "avg_energy"]
    assert dataset.tracks["tags"].to_pylist()[:3] == [["rock", "pop"], ["a, b"], None]
    assert dataset.tracks["year"].to_pylist()[:3] == [2006.0, 1999.0, None]
    assert dataset.tracks["energy"].to_pylist()[:4] == [0.5, None, None, 0.5]
    assert dataset.users["age"].to_pylist()[-6:] == [None, 30.0, 30.0, 30.0, 30.0, 30.0]
    assert dataset.user_ids == ["new", *(f"u{i}" for i in range(9))]
    assert dataset.track_ids == [f"t{i}" for i in range(6)]  # t5 is never played
    assert dict(zip(dataset.user_ids, dataset.profiles(), strict=True))["new"] == {}
    assert dataset.tracks.schema.field("tags").type == pa.list_(pa.field("element", pa.string()))
    assert {dataset.tracks.schema.field(n).type for n in ("name", "genre", "mood")} == {pa.string()}
    assert {dataset.tracks.schema.field(n).type for n in ("year", "energy")} == {pa.float64()}
    assert info.counts["users"] == 10
    assert info.dropped == {}
    text = "\n".join(info.warnings)
    assert "tracks: artist: every cell is missing, left out" in text
    assert "tracks.csv: year: 1 not a year, taken as missing (first '0', line 4)" in text
    assert "tracks.csv: energy: 2 not a number, taken as missing (first 'nan', line 3)" in text
    assert "users.csv: age: 1 not a number, taken as missing (first 'abc', line 5)" in text
    assert "declared and used: avg_energy: they leak held-out plays" in text
    assert "not used: spotify_id (for people, no features)" in text
    assert (
        "not declared: plan; the lines for --config that use them:\n"
        "columns:\n  users:\n    plan: {kind: categorical}" in text
    )
    check_aggregates(dataset)


def test_top_genre_is_of_train_plays(tmp_path: Path) -> None:
    rows = [
        {"user_id": "a", "track_id": "1", "playcount": 2, "genre": "Pop", "split": "train"},
        {"user_id": "a", "track_id": "2", "playcount": 1, "genre": "Folk", "split": "train"},
        {"user_id": "a", "track_id": "3", "playcount": 1, "genre": "Folk", "split": "train"},
        {"user_id": "a", "track_id": "4", "playcount": 9, "genre": "Metal", "split": "test"},
        {"user_id": "b", "track_id": "4", "playcount": 9, "genre": "Metal", "split": "valid"},
        {"user_id": "c", "track_id": "5", "playcount": 9, "genre": "", "split": "train"},
    ]
    dataset = made(write(tmp_path / "flat.csv", rows), tmp_path / "out")
    assert dataset.info.split["protocol"] == "column"
    assert dataset.users["train_top_genre"].to_pylist() == ["Folk", None, None]  # a tie goes by name
    assert [fold for _, _, fold in sorted(plays_of(dataset))] == [0, 0, 0, TEST, VALID, 0]


def test_times_are_utc_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Santiago")
    stamps = {
        "1577872800": 1577872800,
        "1577872800.9": 1577872800,
        "1.5778728e9": 1577872800,
        "2020-01-01": 1577836800,
        "2020-01-01 10:00:00": 1577872800,
        "2020-01-01T10:00:00Z": 1577872800,
        "2020-01-01T10:00:00.25+02:00": 1577865600,
        "2020-01-01T10:00:00-0500": 1577890800,
        "": 0,
    }
    rows = [{"user_id": str(i % 2), "track_id": s or "none", "timestamp": s} for i, s in enumerate(stamps)]
    dataset = made(write(tmp_path / "plays.csv", rows), tmp_path / "out", split="random")
    assert {track: at for (_, track, _), (_, at) in plays_of(dataset).items()} == {
        s or "none": t for s, t in stamps.items()
    }
    assert dataset.info.timed


def test_parquet_times_and_lists(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": [1, 2, 2],
            "track_id": ["a", "b", "a"],
            "timestamp": pa.array([1_600_000_000_500, None, 7_000], pa.timestamp("ms")),
            "playcount": [1.5, 2.0, 3.0],
            "tags": [["x ", "", None, "y|z"], [], ["x ", "", None, "y|z"]],
        }
    )
    pq.write_table(table, tmp_path / "flat.parquet")
    dataset = made(tmp_path / "flat.parquet", tmp_path / "out")
    assert plays_of(dataset) == {
        ("1", "a", 0): (1.5, 1_600_000_000),
        ("2", "b", 0): (2.0, 0),
        ("2", "a", 0): (3.0, 7),
    }
    assert dataset.tracks["tags"].to_pylist() == [["x", "y|z"], None]
    assert "1 plays without a timestamp are in the train fold" in dataset.info.warnings


def test_default_split_is_column_then_temporal_then_random(tmp_path: Path) -> None:
    rows = log()
    timed = write(tmp_path / "timed.csv", rows)
    assert made(timed, tmp_path / "out").info.split["protocol"] == "temporal"
    blank = write(tmp_path / "blank.csv", [row | {"timestamp": ""} for row in rows])
    assert made(blank, tmp_path / "out").info.split["protocol"] == "random"
    given = write(tmp_path / "given.csv", [row | {"split": "train"} for row in rows])
    assert made(given, tmp_path / "out").info.split["protocol"] == "column"
    assert made(given, tmp_path / "out", split="leave-last").info.split["protocol"] == "leave-last"
    leave = plays_of(Dataset.open(tmp_path / "out"))
    assert {track for _, track, fold in leave if fold == TEST} == {"t4"}
    assert {track for _, track, fold in leave if fold == VALID} == {"t3"}


def test_temporal_splits_events_before_adding_up(tmp_path: Path) -> None:
    rows = [
        {"user_id": pair[0], "track_id": pair[1], "timestamp": at}
        for at, pair in enumerate(["a1", "b1", "a2", "b2", "a3", "b3"] * 5, 1)
    ]
    dataset = made(write(tmp_path / "plays.csv", rows), tmp_path / "out", valid=0.2, test=0.2)
    found = plays_of(dataset)
    assert found["a", "1", TRAIN] == (3, 13)
    assert found["a", "1", VALID] == (1, 19)
    assert found["a", "1", TEST] == (1, 25)
    assert sum(count for (_, _, fold), (count, _) in found.items() if fold == TRAIN) == 18


# What is dropped and said, refused with --strict


BAD = [
    ({"user_id": ""}, "empty user_id"),
    ({"track_id": ""}, "empty track_id"),
    ({"playcount": "-1"}, "playcount is negative"),
    ({"playcount": "nan"}, "playcount is NaN or infinite"),
    ({"playcount": "-inf"}, "playcount is NaN or infinite"),
    ({"playcount": "many"}, "playcount is not a number"),
    ({"playcount": ""}, "playcount is not a number"),
    ({"playcount": "1e300"}, "playcount is above 1e12"),
    ({"timestamp": "yesterday"}, "timestamp is neither Unix seconds nor ISO 8601"),
    ({"timestamp": "2020-02-30"}, "timestamp is neither Unix seconds nor ISO 8601"),
    ({"timestamp": "inf"}, "timestamp is neither Unix seconds nor ISO 8601"),
    ({"timestamp": "-5"}, "timestamp is neither Unix seconds nor ISO 8601"),
    ({"timestamp": "1577872800000"}, "timestamp looks like milliseconds, not seconds"),
    ({"timestamp": "4102444800"}, "timestamp is of the year 2100 or later"),
    ({"timestamp": "99999999999"}, "timestamp is of the year 2100 or later"),
    ({"track_id": "t99"}, "track_id is not in tracks.csv"),
]


@pytest.mark.parametrize(("fault", "reason"), BAD)
def test_a_bad_row_is_dropped_and_named(tmp_path: Path, fault: dict[str, str], reason: str) -> None:
    rows = log()
    bad = [*rows[:7], rows[7] | fault, *rows[7:]]
    write(tmp_path / "in/tracks.csv", [{"track_id": f"t{i}"} for i in range(5)])
    write(tmp_path / "in/plays.csv", rows)
    clean = made(tmp_path / "in", tmp_path / "clean")
    write(tmp_path / "in/plays.csv", bad)
    dataset = made(tmp_path / "in", tmp_path / "out")
    assert plays_of(dataset) == plays_of(clean)
    assert dataset.info.dropped == {reason: 1}
    assert f"plays.csv: 1 row dropped: {reason} (line 9)" in dataset.info.warnings
    message = refusal(tmp_path / "in", tmp_path / "none", strict=True)
    assert f"plays.csv: 1 row: {reason} (line 9), expected no bad row" in message


def test_all_bad_rows_are_in_one_report(tmp_path: Path) -> None:
    rows = log() + [log()[0] | fault for fault, _ in BAD for _ in range(5)] + [log()[0] | {"playcount": "0"}]
    write(tmp_path / "in/plays.csv", rows)
    write(tmp_path / "in/tracks.csv", [{"track_id": f"t{i}"} for i in range(5)] + [{"track_id": ""}])
    dataset = made(tmp_path / "in", tmp_path / "out")
    wanted = Counter(reason for _, reason in BAD for _ in range(5))
    wanted["empty track_id"] += 1
    wanted["playcount is 0, which is no play"] += 1
    assert dataset.info.dropped == wanted
    message = refusal(tmp_path / "in", tmp_path / "none", strict=True)
    assert "5 rows: empty user_id (lines 22, 23, 24, ...)" in message
    assert all(reason in message for _, reason in BAD)
    assert "tracks.csv: 1 row: empty track_id" in message
    assert "which is no play" not in message


def test_no_play_is_dropped_but_no_fault(tmp_path: Path) -> None:
    source = write(tmp_path / "plays.csv", [*log(), {"user_id": "z", "track_id": "t", "playcount": 0, "timestamp": 5}])
    dataset = made(source, tmp_path / "out", strict=True)
    assert dataset.info.dropped == {"playcount is 0, which is no play": 1}
    assert "z" not in dataset.user_ids


def test_a_track_twice(tmp_path: Path) -> None:
    write(tmp_path / "in/plays.csv", log())
    tracks = [{"track_id": f"t{i}", "name": "N", "year": "2000", "color": "red"} for i in range(5)]
    same = tracks[1] | {"year": "2000.0", "color": "blue"}  # blue: not declared, so not data
    write(tmp_path / "in/tracks.csv", [*tracks, same])
    assert made(tmp_path / "in", tmp_path / "out", strict=True).info.dropped == {}
    write(tmp_path / "in/tracks.csv", [*tracks, same, tracks[2] | {"name": "other"}, tracks[3] | {"year": ""}])
    dataset = made(tmp_path / "in", tmp_path / "out")
    assert dataset.info.dropped == {"track_id again with different data": 1}
    assert dataset.tracks["name"].to_pylist() == ["N"] * 5
    assert dataset.info.counts["plays"] == 20
    message = refusal(tmp_path / "in", tmp_path / "none", strict=True)
    assert "tracks.csv: 1 row: track_id again with different data (line 8)" in message


def test_flat_rows_that_disagree(tmp_path: Path) -> None:
    rows = [row | {"artist": f"A{row['track_id']}", "age": 20} for row in log()]
    rows[9]["age"] = 21  # of u1, whose first row says 20
    source = write(tmp_path / "flat.csv", rows)
    dataset = made(source, tmp_path / "out", strict=True)
    assert dataset.users["age"].to_pylist() == [20.0] * 4
    assert (
        "flat.csv: 1 row (the first data are kept): user_id again with different data (line 11)"
        in dataset.info.warnings
    )
    rows[12]["artist"] = "somebody"
    write(source, rows)
    dataset = made(source, tmp_path / "out")
    assert dataset.info.counts["plays"] == 20
    assert dataset.tracks["artist"].to_pylist() == [f"At{i}" for i in range(5)]
    assert "track_id again with different data (line 14)" in refusal(source, tmp_path / "none", strict=True)


# What is always refused


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    out, rows = tmp_path / "deep/er/out", log()
    assert "no such file or folder" in refusal(tmp_path / "none.csv", out)
    source = write(tmp_path / "plays.csv", [row | {"user_id": "u0"} for row in rows])
    assert "found plays of 1 user, expected plays of at least 2 users" in refusal(source, out)
    write(source, [row | {"user_id": ""} for row in rows])
    assert "found no usable row (plays.csv: 20 rows dropped: empty user_id (lines 2, 3, 4, ...))" in refusal(
        source, out
    )
    write(source, [row | {"timestamp": "yesterday"} for row in rows])
    assert "plays.csv: timestamp: found 'yesterday', expected Unix seconds or ISO 8601" in refusal(source, out)
    write(source, [row | {"timestamp": 1_600_000_000_000} for row in rows])
    assert "'1600000000000', which looks like milliseconds" in refusal(source, out)
    write(source, [row | {"split": "train"} for row in rows[:9]] + [row | {"split": "dev"} for row in rows[9:]])
    assert "plays.csv: split (line 11): found 'dev', expected train, valid or test" in refusal(source, out)
    assert made(source, tmp_path / "ok", split="random").info.counts["plays"] == 20
    write(source, [row | {"split": "test"} for row in rows])
    assert "found no play in the train fold" in refusal(source, out)
    write(source, [{"user_id": row["user_id"], "track_id": row["track_id"]} for row in rows])
    assert "found no column split" in refusal(source, out, split="column")
    for protocol in ("temporal", "leave-last"):
        assert f"a column timestamp for the {protocol} split" in refusal(source, out, split=protocol)
    assert "fractions" in refusal(source, out, valid=0.5, test=0.5)
    assert "PrepareSettings.valid: found -0.1, expected 0 or more, below 1" in refusal(source, out, valid=-0.1)
    assert "PrepareSettings.seed" in refusal(source, out, seed=-1)
    write(tmp_path / "in/plays.csv", rows)
    write(tmp_path / "in/tracks.csv", [{"track_id": "other"}])
    message = refusal(tmp_path / "in", out)
    assert "tracks.csv: found track_id 'other', and plays.csv has 't0': no track of the plays is in it" in message


def test_the_target_is_a_dataset_or_free(tmp_path: Path) -> None:
    source, out = write(tmp_path / "plays.csv", log()), tmp_path / "out"
    out.write_text("mine")
    assert "found a file, expected a free path" in refusal(source, out)
    out.unlink()
    out.mkdir()
    assert made(source, out).info.counts["plays"] == 20
    (out / "model").mkdir()
    assert "found a folder that also holds model" in refusal(source, out)
    assert (out / "model").is_dir()
    (out / "model").rmdir()
    (out / "baselines").mkdir()
    (out / "baselines/notes.txt").touch()
    assert "found a folder that also holds baselines" in refusal(source, out)
    (out / "baselines/notes.txt").rename(out / "baselines/pop-0.npz")
    write(source, log(users=2))
    assert made(source, out).info.counts["plays"] == 10
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json",
        "events.parquet",
        "plays.parquet",
        "tracks.parquet",
        "users.parquet",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plays.csv"]
    inside = write(out / "raw/plays.csv", log())
    assert "the source" in refusal(inside, out)
    assert inside.exists()
    (out / "dataset.json").unlink()
    assert "found a folder that also holds raw" in refusal(source, out)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    made(source, link)
    assert link.is_symlink()


def test_a_failed_run_keeps_the_old_dataset(tmp_path: Path) -> None:
    source, out = write(tmp_path / "plays.csv", log()), tmp_path / "out"
    made(source, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    write(source, [row | {"playcount": "x"} for row in log()])
    refusal(source, out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


# Declared columns and names


def test_yaml_that_declares_columns(tmp_path: Path) -> None:
    path = tmp_path / "lhydra.yaml"

    def parsed(text: str) -> DeclaredColumns:
        path.write_text(text, encoding="utf-8")
        return DeclaredColumns.from_config(path)

    good = "columns:\n  tracks:\n    mood: {kind: categorical}\n  users: {plan: {kind: multi}}\n"
    assert parsed(good) == DeclaredColumns((Column("mood", "categorical"),), (Column("plan", "multi"),))
    assert parsed("prepare: {seed: 1}") == DeclaredColumns() == DeclaredColumns.from_config(None)
    for text, message in {
        "colums: {}": "unknown key 'colums', the nearest known key is 'columns'",
        "columns: {track: {}}": "columns.track: unknown key 'track', the nearest known key is 'tracks'",
        "columns: {tracks: {mood: {kin: numeric}}}": "tracks.mood.kin: unknown key 'kin', the nearest known",
        "columns: {tracks: {mood: {kind: number}}}": "found number, expected one of numeric",
        "columns: {tracks: {mood: {kind: text}}}": "found text, expected one of",
        "columns: {tracks: {mood: {kind: [x]}}}": "expected one of",
        "columns: {tracks: {mood: categorical}}": "expected a mapping like {mood: {kind: categorical}}",
        "columns: {tracks: [mood]}": "expected a mapping like",
        "columns: {tracks: {train_plays: {kind: numeric}}}": "a name that Lhydra keeps for itself",
    }.items():
        with pytest.raises(ConfigError) as caught:
            parsed(text)
        assert message in str(caught.value)


def test_declared_but_absent_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "plays.csv", log())
    declared = DeclaredColumns(tracks=(Column("mood", "categorical"),))
    with pytest.raises(DataError, match=r"columns\.tracks\.mood: found no such column in .*plays\.csv"):
        prepare(source, tmp_path / "out", columns=declared)
    write(tmp_path / "in/plays.csv", log())
    with pytest.raises(DataError, match=r"columns\.tracks\.mood: found no such column in .*plays\.csv"):
        prepare(tmp_path / "in", tmp_path / "out", columns=declared)


def test_undeclared_flat_columns_name_their_table(tmp_path: Path) -> None:
    rows = [
        row
        | {
            "my mood": f"m{row['track_id']}",
            "bpm": str(row["track_id"])[1:],
            "labels": f"a|{row['track_id']}",
        }
        | {
            "plan": f"p{row['user_id']}",
            "device": f"d{i % 3}",
            "Speed": "1",
            "train_plays": 3,
            "top_genre": "x",
            "": i,
        }
        for i, row in enumerate(log())
    ]
    source = write(tmp_path / "flat.csv", rows)
    warnings = made(source, tmp_path / "out").info.warnings
    assert "not used: train_plays (Lhydra computes columns of these names itself)" in warnings
    assert "not used: device (describe single plays, neither tracks nor users)" in warnings
    assert any(warning.startswith("not used: top_genre (aggregates") for warning in warnings)
    lines = warnings[-1].split("\n")
    assert lines[1:] == [
        "columns:",
        "  tracks:",
        '    "my mood": {kind: categorical}',
        "    bpm: {kind: numeric}",
        "    labels: {kind: multi}",
        "    Speed: {kind: numeric}",
        "  users:",
        "    plan: {kind: categorical}",
    ]
    config = tmp_path / "lhydra.yaml"
    config.write_text("\n".join(lines[1:]))
    dataset = made(source, tmp_path / "out", declared=DeclaredColumns.from_config(config))
    assert [column.name for column in dataset.info.track_columns] == ["my mood", "bpm", "labels", "Speed"]
    assert dataset.tracks["labels"].to_pylist()[0] == ["a", "t0"]
    assert dataset.users["plan"].to_pylist()[0] == "pu0"


def test_rows_with_ids_that_no_request_can_name_are_dropped_and_said(tmp_path: Path) -> None:
    rows = [*log(), {"user_id": "a\nb", "track_id": "t0", "playcount": 1, "timestamp": 3}]
    dataset = made(write(tmp_path / "plays.csv", rows), tmp_path / "out")
    assert "a\nb" not in dataset.user_ids
    assert dataset.info.dropped == {"user_id is longer than 256 characters or holds control characters": 1}
    with pytest.raises(DataError, match="user_id is longer than 256 characters"):
        made(tmp_path / "plays.csv", tmp_path / "strict", strict=True)


# The command


def test_command_prints_a_summary_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "plays.csv", [*log(), log()[0] | {"playcount": "x"}]), tmp_path / "out"
    assert cli.main(["prepare", str(source), str(out), "--split", "leave-last"]) == 0
    printed = capsys.readouterr().out
    assert "20  12 train, 4 valid, 4 test; leave-last split" in printed
    assert "1 row dropped: playcount is not a number (line 22)" in printed
    assert printed.endswith(f"next: lhydra train {out} MODEL\n")
    assert cli.main(["prepare", str(source), str(out), "--json"]) == 0
    text = capsys.readouterr().out
    assert DatasetInfo.from_json(text) == Dataset.open(out).info
    assert json.loads(text)["split"]["protocol"] == "temporal"


def test_command_refuses_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "plays.csv", [*log(), log()[0] | {"playcount": "-1"}]), tmp_path / "out"
    assert cli.main(["prepare", str(source), str(out), "--strict"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" ...")]
    assert errors == [
        f"lhydra prepare: {source}: found plays.csv: 1 row: playcount is negative (line 22),"
        " expected no bad row (strict)"
    ]
    config = tmp_path / "lhydra.yaml"
    config.write_text("prepare: {splt: random}\n")
    assert cli.main(["prepare", str(source), str(out), "--config", str(config)]) == 1
    assert "prepare.splt: unknown key 'splt', the nearest known key is 'split'" in capsys.readouterr().err
    config.write_text("prepare: {split: randomly}\n")
    assert cli.main(["prepare", str(source), str(out), "--config", str(config)]) == 1
    assert "found randomly, expected one of temporal, leave-last, random, column" in capsys.readouterr().err
    assert not out.exists()


def test_help_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    words = (
        "SOURCE",
        "DATASET",
        "user_id",
        "timestamp",
        "tags",
        "occupation",
        "kind: categorical",
        "example",
        "--strict",
    )
    assert all(word in text for word in (*words, *PROTOCOLS))


def test_help_needs_no_data_tools() -> None:
    heavy = ("duckdb", "pyarrow", "numpy")
    code = f"import sys, lhydra.commands.prepare; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_interrupted_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "plays.csv"
    source.write_text("user_id,track_id\n" + "".join(f"u{i % 7},t{i % 11}\n" for i in range(50)))
    steps: list[str] = []
    prepare(source, tmp_path / "whole", say=steps.append)
    assert len(steps) > 2
    for step in steps:

        def interrupt(now: str, wanted: str = step) -> None:
            if now == wanted:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", say=interrupt)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["plays.csv", "whole"]


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("after", [False, True])
def test_interrupted_between_renames_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int, after: bool
) -> None:
    """Where the system cannot exchange two folders in one step."""
    for name, n in (("old", 50), ("new", 60)):
        text = "user_id,track_id\n" + "".join(f"u{i % 7},t{i % 11}\n" for i in range(n))
        (tmp_path / f"{name}.csv").write_text(text)
    prepare(tmp_path / "old.csv", tmp_path / "out")
    rename, calls = Path.rename, 0

    def interrupted(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            raise KeyboardInterrupt
        moved = rename(self, target)
        if calls == nth:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr("lhydra.files._exchange", lambda a, b: False, raising=False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "new.csv", tmp_path / "out")
    monkeypatch.undo()
    counts = Dataset.open(tmp_path / "out").info.counts
    assert counts["plays"] == len(Dataset.open(tmp_path / "out").plays)
    prepare(tmp_path / "new.csv", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "old.csv", "out"]


# Real data


@pytest.mark.real_data
def test_the_sample(tmp_path: Path) -> None:
    source = real_data("lhydra-sample") / "spotify_1k_sample_data.csv"
    dataset = made(source, tmp_path / "out", strict=True)
    counts = dataset.info.counts
    assert (counts["plays"], counts["users"], counts["tracks"]) == (1000, 903, 57)
    assert [column.name for column in dataset.info.user_columns] == ["age", "gender", "region", "country"]
    assert len(dataset.info.track_columns) == 19
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["user_id"], row["track_id"], float(row["playcount"])) for row in rows} == {
        (user, track, count) for (user, track, _), (count, _) in plays_of(dataset).items()
    }
    ages = dict(zip(dataset.user_ids, dataset.users["age"].to_pylist(), strict=True))
    assert all(ages[row["user_id"]] == float(row["age"]) for row in rows)
    first = dataset.tracks.to_pylist()[dataset.track_ids.index("TRAABJS128F9325C99")]
    assert (first["artist"], first["tags"], first["year"]) == ("Beach House", ["indie", "downtempo"], 2006.0)
    check_aggregates(dataset)


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "split"), [("lastfm-hetrec", "random_seed0"), ("movielens-100k", "global_time")])
def test_a_given_split_is_kept_exactly(tmp_path: Path, name: str, split: str) -> None:
    npz = real_data(name) / "splits" / f"{split}.npz"
    spec = importlib.util.spec_from_file_location("to_tables", ROOT.parent / "tools" / "to_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main(name, npz, tmp_path / "in")
    dataset = made(tmp_path / "in", tmp_path / "out", strict=True, split="column")
    with np.load(npz, allow_pickle=False) as z:
        users, tracks = z["user_ids"].astype(str), z["item_ids"].astype(str)
        wanted = sorted(zip(users[z["u"]], tracks[z["i"]], z["fold"].tolist(), strict=True))
    assert sorted(plays_of(dataset)) == wanted
    assert dataset.info.counts["tracks"] == len(tracks)
    assert dataset.info.timed == (name == "movielens-100k")
    check_aggregates(dataset)
