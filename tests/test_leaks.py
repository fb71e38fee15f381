"""Leak checks: each leak planted in a clean synthetic dataset is found; the clean one gives none."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lhydra.data import split
from lhydra.data.dataset import TEST, TRAIN, VALID, Column, Dataset, DatasetInfo, Kind, Plays
from lhydra.evaluation.leaks import find_leaks

USERS, TRACKS, START = 400, 300, 1_600_000_000
GENRES = np.array(["rock", "jazz", "pop", "folk"])


@dataclass
class World:
    """What a dataset is written from; a test spoils one thing of it."""

    plays: Plays
    protocol: str
    tracks: dict[str, tuple[Kind, Any]]
    users: dict[str, tuple[Kind, Any]]
    user_ids: list[str]
    track_ids: list[str]
    timed: bool = True

    def spoil(self, **arrays: Any) -> None:
        """Replaces arrays of the plays."""
        self.plays = replace(self.plays, **arrays)

    def add(self, rows: np.ndarray[Any, Any], **arrays: Any) -> None:
        """Appends copies of the plays at `rows`, other where `arrays` says so."""
        columns = {name: getattr(self.plays, name) for name in ("user", "track", "count", "time", "fold")}
        more = {
            name: np.concatenate([c, np.asarray(arrays.get(name, c[rows]), c.dtype)]) for name, c in columns.items()
        }
        order = np.lexsort((more["time"], more["user"]))
        self.plays = Plays(**{name: column[order] for name, column in more.items()})

    def write(self, path: Path) -> Dataset:
        path.mkdir()
        tables = {"tracks": (self.tracks, self.track_ids), "users": (self.users, self.user_ids)}
        columns = {side: tuple(Column(name, kind) for name, (kind, _) in c.items()) for side, (c, _) in tables.items()}
        counts = {"tracks": len(self.track_ids), "users": len(self.user_ids), "plays": len(self.plays)}
        info = DatasetInfo("test", columns["tracks"], columns["users"], counts, {"protocol": self.protocol}, self.timed)
        (path / "dataset.json").write_text(info.to_json())
        train = self.plays.where(self.plays.fold == TRAIN)
        own = {"tracks": np.bincount(train.track, train.count, TRACKS), "users": None}
        for side, (described, ids) in tables.items():
            table = pa.table({f"{side[:-1]}_id": ids, **{name: pa.array(v) for name, (_, v) in described.items()}})
            if own[side] is not None:
                table = table.append_column("train_plays", pa.array(own[side]))
            pq.write_table(table, path / f"{side}.parquet")
        pq.write_table(pa.table({name: getattr(self.plays, name) for name in vars(self.plays)}), path / "plays.parquet")
        return Dataset.open(path)


def world(protocol: str) -> World:
    """A clean dataset: users with a taste for a genre, popular and unpopular tracks, one play per pair."""
    rng = np.random.default_rng(0)
    genre, taste = rng.integers(4, size=TRACKS), rng.integers(4, size=USERS)
    popular = 1 / (5 + rng.permutation(TRACKS))
    activity = rng.integers(15, 60, size=USERS)
    pairs = []
    for user in range(USERS):
        wish = popular * np.where(genre == taste[user], 4, 1)
        chosen = rng.choice(TRACKS, activity[user], replace=False, p=wish / wish.sum())
        pairs += [(user, track) for track in chosen]
    user, track = np.array(pairs, np.int32).T
    time = rng.integers(START, START + 10**7, len(user))
    count = rng.integers(1, 5, len(user)).astype(np.float32)
    if protocol == "temporal":
        cuts = split.temporal_cuts(time, 0.1, 0.1)
        fold = np.searchsorted(cuts, time, "left").astype(np.int8)
    elif protocol == "leave-last":
        newest_first = np.lexsort((track, -time, user))
        counts = np.bincount(user)
        place = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
        fold = np.zeros(len(user), np.int8)
        fold[newest_first[place == 0]], fold[newest_first[place == 1]] = TEST, VALID
    else:
        fold = rng.choice(3, len(user), p=[0.8, 0.1, 0.1]).astype(np.int8)
    order = np.lexsort((time, user))
    plays = Plays(user[order], track[order], count[order], time[order], fold[order])
    year = rng.integers(1960, 2020, TRACKS).astype(np.float64)
    year[:20] = np.nan
    tracks: dict[str, tuple[Kind, Any]] = {
        "name": ("text", [f"title {n}" for n in range(TRACKS)]),
        "artist": ("categorical", [f"artist {n % 90}" for n in range(TRACKS)]),
        "genre": ("categorical", GENRES[genre]),
        "energy": ("numeric", np.where(genre < 2, 0.3, 0.6) + rng.random(TRACKS) / 3),
        "year": ("year", year),
    }
    users: dict[str, tuple[Kind, Any]] = {
        "age": ("numeric", rng.integers(16, 70, USERS).astype(np.float64)),
        "country": ("categorical", [["Chile", "Peru", None][n] for n in rng.integers(3, size=USERS)]),
        "likes": ("categorical", GENRES[taste]),  # knows the taste, not the plays
    }
    ids = [f"u{n:03}" for n in range(USERS)], [f"t{n:03}" for n in range(TRACKS)]
    return World(plays, protocol, tracks, users, *ids)


def verdicts(spoilt: World, path: Path) -> dict[str, str]:
    findings = find_leaks(spoilt.write(path / "dataset"))
    for finding in findings:
        assert set(finding) == {"check", "verdict", "found", "figure"}
        assert finding["verdict"] in ("ok", "warning", "leak")
        assert finding["found"]
        assert finding["figure"] is None or np.isfinite(finding["figure"])
    return {finding["check"]: finding["verdict"] for finding in findings}


@pytest.mark.parametrize(
    ("protocol", "timed"), [("temporal", True), ("leave-last", True), ("random", True), ("random", False)]
)
def test_a_clean_dataset_has_no_leak(protocol: str, timed: bool, tmp_path: Path) -> None:
    clean = world(protocol)
    if not timed:
        clean.spoil(time=np.zeros(len(clean.plays), np.int64))
        clean.timed = False
    found = verdicts(clean, tmp_path)
    seen_future = {"future plays in train"} if protocol == "random" and timed else set()
    assert {check for check, verdict in found.items() if verdict != "ok"} == seen_future


def test_a_prepared_world_has_no_leak(tiny_dataset: Dataset) -> None:
    findings = find_leaks(tiny_dataset)
    assert {finding["verdict"] for finding in findings} <= {"ok", "warning"}
    assert findings == find_leaks(tiny_dataset)


def only(spoilt: World, path: Path, check: str, verdict: str = "leak") -> None:
    """The planted thing is found, and nothing else is called a leak."""
    found = verdicts(spoilt, path)
    assert found[check] == verdict
    assert {name for name, value in found.items() if value == "leak"} <= {check}


@pytest.mark.parametrize(("protocol", "verdict"), [("random", "leak"), ("leave-last", "leak"), ("temporal", "ok")])
def test_repeats_are_listening_only_where_time_separates_them(protocol: str, verdict: str, tmp_path: Path) -> None:
    spoilt = world(protocol)
    train = np.flatnonzero(spoilt.plays.fold == TRAIN)[:50]
    after = spoilt.plays.time[spoilt.plays.fold == TEST].max() + 1
    spoilt.add(train, fold=np.full(50, TEST), time=np.full(50, after))
    only(spoilt, tmp_path, "fold overlap", verdict)


def test_a_repeat_that_is_not_later_is_a_leak(tmp_path: Path) -> None:
    spoilt = world("temporal")
    test = np.flatnonzero(spoilt.plays.fold == TEST)[:50]
    spoilt.add(test, fold=np.full(50, TRAIN))
    found = verdicts(spoilt, tmp_path)
    assert found["fold overlap"] == found["future plays in train"] == "leak"


def test_a_row_twice_in_a_fold(tmp_path: Path) -> None:
    spoilt = world("random")
    spoilt.add(np.arange(7))
    only(spoilt, tmp_path, "duplicate plays", "warning")


@pytest.mark.parametrize("side", ["user_ids", "track_ids"])
@pytest.mark.parametrize(("change", "verdict"), [(str, "leak"), (str.upper, "warning")])
def test_an_id_twice(side: str, change: Callable[[str], str], verdict: str, tmp_path: Path) -> None:
    spoilt = world("random")
    getattr(spoilt, side)[5] = change(getattr(spoilt, side)[6])
    only(spoilt, tmp_path, "duplicate ids", verdict)


@pytest.mark.parametrize(("twins", "verdict"), [(1, "warning"), (20, "leak")])
def test_one_person_under_two_ids(twins: int, verdict: str, tmp_path: Path) -> None:
    spoilt = world("random")
    rng = np.random.default_rng(0)
    kept = spoilt.plays.user >= twins
    spoilt.plays = spoilt.plays.where(kept)
    rows = np.flatnonzero(spoilt.plays.user >= USERS - twins)
    folds = rng.permutation(spoilt.plays.fold[rows])
    spoilt.add(rows, user=spoilt.plays.user[rows] - (USERS - twins), fold=folds)
    only(spoilt, tmp_path, "twin users", verdict)


def test_a_target_heard_under_another_id(tmp_path: Path) -> None:
    spoilt = world("random")
    plays = spoilt.plays
    for name in ("name", "artist"):  # every track beyond 150 is one of the first again
        texts = spoilt.tracks[name][1]
        texts[150:] = texts[:150]
    only(spoilt, tmp_path, "twin tracks", "warning")
    dataset = Dataset.open(tmp_path / "dataset")
    figure = next(f["figure"] for f in find_leaks(dataset) if f["check"] == "twin tracks")
    train = {(u, t % 150) for u, t, f in zip(plays.user, plays.track, plays.fold, strict=True) if f == TRAIN}
    later = [(u, t % 150) in train for u, t, f in zip(plays.user, plays.track, plays.fold, strict=True) if f != TRAIN]
    assert figure == pytest.approx(np.mean(later))


@pytest.mark.parametrize("protocol", ["temporal", "leave-last"])
def test_train_plays_of_the_future(protocol: str, tmp_path: Path) -> None:
    spoilt = world(protocol)
    time = spoilt.plays.time.copy()
    time[np.flatnonzero(spoilt.plays.fold == TRAIN)[3]] = time.max() + 100
    spoilt.spoil(time=time)
    only(spoilt, tmp_path, "future plays in train")


def test_late_plays_of_tiny_users_are_train_by_the_protocol(tmp_path: Path) -> None:
    spoilt = world("temporal")
    plays = spoilt.plays.where((spoilt.plays.user > 0) | (np.cumsum(spoilt.plays.user == 0) <= 2))
    fold, time = plays.fold.copy(), plays.time.copy()
    fold[plays.user == 0], time[plays.user == 0] = TRAIN, time.max()
    spoilt.plays = replace(plays, fold=fold, time=time)
    only(spoilt, tmp_path, "future plays in train", "ok")


@pytest.mark.parametrize("time", [-5, 10**12])
def test_times_that_cannot_be(time: int, tmp_path: Path) -> None:
    spoilt = world("random")
    times = spoilt.plays.time.copy()
    times[9] = time
    spoilt.spoil(time=times)
    only(spoilt, tmp_path, "timestamps", "warning")


def test_much_that_is_only_in_test(tmp_path: Path) -> None:
    spoilt = world("random")
    fold = spoilt.plays.fold.copy()
    fold[spoilt.plays.track < 100] = TEST
    spoilt.spoil(fold=fold)
    only(spoilt, tmp_path, "ids only in test", "warning")


def test_aggregates_over_other_plays(tmp_path: Path) -> None:
    written = world("random")
    written.write(tmp_path / "dataset")
    fold = written.plays.fold.copy()
    fold[np.flatnonzero(fold == TEST)[:3]] = TRAIN  # after the tables were written
    table = {name: getattr(written.plays, name) for name in vars(written.plays)} | {"fold": fold}
    pq.write_table(pa.table(table), tmp_path / "dataset" / "plays.parquet")
    found = {f["check"]: f["verdict"] for f in find_leaks(Dataset.open(tmp_path / "dataset"))}
    assert found["own aggregates"] == "leak"


def track_leaks(w: World) -> dict[str, tuple[Kind, Any]]:
    rng = np.random.default_rng(1)
    test = w.plays.where(w.plays.fold == TEST)
    every = np.bincount(w.plays.track, w.plays.count, TRACKS)
    listeners = np.bincount(test.track, minlength=TRACKS)
    return {
        "total_plays": ("numeric", every),
        "log_plays": ("numeric", np.log1p(every)),
        "test_listeners": ("numeric", listeners + rng.normal(0, 0.2, TRACKS)),
        "trending": ("categorical", np.where(listeners > np.median(listeners), "yes", "no")),
    }


@pytest.mark.parametrize("name", ["total_plays", "log_plays", "test_listeners"])
@pytest.mark.parametrize("protocol", ["temporal", "random"])
def test_a_track_column_that_knows_held_out_counts(name: str, protocol: str, tmp_path: Path) -> None:
    spoilt = world(protocol)
    spoilt.tracks[name] = track_leaks(spoilt)[name]
    only(spoilt, tmp_path, f"track column {name}")


def test_a_category_that_knows_held_out_counts(tmp_path: Path) -> None:
    spoilt = world("temporal")
    spoilt.tracks["trending"] = track_leaks(spoilt)["trending"]
    only(spoilt, tmp_path, "track column trending", "warning")


@pytest.mark.parametrize("name", ["plays", "tracks", "avg_energy", "mean_year", "genre_diversity"])
@pytest.mark.parametrize("protocol", ["temporal", "random"])
@pytest.mark.parametrize("of", ["all", "train"])
def test_a_user_column_computed_over_all_plays(name: str, protocol: str, of: str, tmp_path: Path) -> None:
    spoilt = world(protocol)
    plays = spoilt.plays if of == "all" else spoilt.plays.where(spoilt.plays.fold == TRAIN)
    energy, year = (np.asarray(spoilt.tracks[column][1]) for column in ("energy", "year"))
    genre = np.asarray(spoilt.tracks["genre"][1])
    column = np.zeros(USERS)
    for user in range(USERS):
        own = plays.user == user
        track, count = plays.track[own], plays.count[own]
        shares = np.array([(genre[track] == one).mean() for one in GENRES])
        column[user] = {
            "plays": count.sum(),
            "tracks": len(track),
            "avg_energy": (energy[track] * count).sum() / count.sum(),
            "mean_year": np.nanmean(year[track]),
            "genre_diversity": -sum(share * np.log(share) for share in shares if share),
        }[name]
    spoilt.users[name] = ("numeric", np.round(column, 5))
    found = verdicts(spoilt, tmp_path)
    named = name in ("avg_energy", "genre_diversity")  # suspicious by its name alone
    if of == "all":
        assert found[f"user column {name}"] == "leak"
    else:
        assert found.get(f"user column {name}") == ("warning" if named else None)
    assert not {check for check, verdict in found.items() if verdict == "leak"} - {f"user column {name}"}


@pytest.mark.parametrize("of", ["all", "train"])
def test_a_favourite_genre_over_all_plays(of: str, tmp_path: Path) -> None:
    spoilt = world("temporal")
    rng = np.random.default_rng(0)
    genre = rng.choice(GENRES, TRACKS)
    spoilt.spoil(count=spoilt.plays.count * np.array([1, 9, 9], np.float32)[spoilt.plays.fold])  # tastes change
    spoilt.tracks["genre"] = ("categorical", genre)
    plays = spoilt.plays if of == "all" else spoilt.plays.where(spoilt.plays.fold == TRAIN)
    column = np.full(USERS, "", object)
    for user in range(USERS):
        own = plays.user == user
        column[user] = max(sorted(GENRES), key=lambda one: plays.count[own][genre[plays.track[own]] == one].sum())
    spoilt.users["best"] = ("categorical", column)
    assert verdicts(spoilt, tmp_path).get("user column best") == ("leak" if of == "all" else None)
