"""The synthetic world: the same bytes every time, a sound log, and every planted effect measurable from the tables."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra import cli
from lhydra.data import listening, scenes, synth, world
from lhydra.data.names import artist_names
from lhydra.data.synth import write_world
from lhydra.errors import ConfigError, DataError

Ints = npt.NDArray[np.int64]
DEMO = {"users": 2_000, "tracks": 3_000, "plays": 150_000, "seed": 0}
SMALL = {"users": 60, "tracks": 90, "plays": 700, "seed": 5}


@dataclass(frozen=True)
class Log:
    """The tables of a world as arrays; users and tracks by position, categories by code, -1 where missing."""

    user: Ints
    track: Ints
    count: Ints
    time: Ints
    tracks: dict[str, list[Any]]
    users: dict[str, list[Any]]
    truth: dict[str, Any]

    @property
    def genre(self) -> Ints:
        """Code of each track's genre."""
        return codes(self.tracks["genre"])

    @property
    def age_band(self) -> Ints:
        """Each user's age in bands of ten years."""
        return np.array([-1 if age is None else age // 10 for age in self.users["age"]])


def write(out: Path, sizes: dict[str, int], on_plays: Callable[[int], None] = lambda written: None) -> None:
    users, tracks, plays, seed = (sizes[name] for name in ("users", "tracks", "plays", "seed"))
    write_world(out, users=users, tracks=tracks, plays=plays, seed=seed, on_plays=on_plays)


def read_log(folder: Path) -> Log:
    plays = pq.read_table(folder / "plays.parquet")
    tracks, users = (pq.read_table(folder / f"{name}.parquet").to_pydict() for name in ("tracks", "users"))
    position = {
        name: {v: k for k, v in enumerate(ids)} for name, ids in (("u", users["user_id"]), ("t", tracks["track_id"]))
    }
    return Log(
        np.array([position["u"][v] for v in plays["user_id"].to_pylist()]),
        np.array([position["t"][v] for v in plays["track_id"].to_pylist()]),
        plays["playcount"].to_numpy().astype(np.int64),
        plays["timestamp"].to_numpy(),
        tracks,
        users,
        json.loads((folder / "world.json").read_text()),
    )


def codes(values: list[Any]) -> Ints:
    known = {value: code for code, value in enumerate(sorted({v for v in values if v is not None}))}
    return np.array([known.get(value, -1) for value in values])


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def information(a: Ints, b: Ints) -> float:
    """Mutual information in nats of two arrays of codes (n,), pairs with a missing one left out."""
    known = (a >= 0) & (b >= 0)
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a[known], b[known]), 1.0)
    joint /= joint.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum())


def draw_all(made: world.World, seed: int) -> tuple[Ints, Ints, Ints]:
    duration_ms = np.full(len(made.catalog.style), 220_000, np.int32)
    drawn = [
        listening.draw_plays(made, block, world.generator(seed, 5, number), duration_ms)
        for number, block in enumerate(listening.blocks(made))
    ]
    parts = ((block.user, block.track, block.time) for block in drawn)
    user, track, time = (np.concatenate(part).astype(np.int64) for part in zip(*parts, strict=True))
    return user, track, time


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "demo"
    write(folder, DEMO)
    return folder


@pytest.fixture(scope="module")
def log(demo_folder: Path) -> Log:
    return read_log(demo_folder)


@pytest.fixture(scope="module")
def made() -> world.World:
    return world.make_world(**DEMO)


# The same bytes every time


def test_same_arguments_give_the_same_bytes_whatever_threads_or_hash_seed(tmp_path: Path) -> None:
    write(tmp_path / "a", SMALL)
    command = "from pathlib import Path; from lhydra.data.synth import write_world; "
    command += f"write_world(Path({str(tmp_path / 'b')!r}), **{SMALL})"
    environ = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", command], env=environ, cwd=Path(__file__).parents[1], check=True)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert set(hashes(tmp_path / "a")) == {"plays.parquet", "tracks.parquet", "users.parquet", "world.json"}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"users": 60, "tracks": 90, "plays": 700, "seed": 5}, "b9d991569d478842"),
        ({"users": 3, "tracks": 5, "plays": 40, "seed": 1}, "02d4035bbbbb3ff4"),
    ],
)
def test_a_world_stays_what_it_was(sizes: dict[str, int], expected: str, tmp_path: Path) -> None:
    write(tmp_path / "w", sizes)
    found = hashlib.sha256()  # of values, not of files; quality results rest on them
    for name in ("tracks", "users", "plays"):
        for column in pq.read_table(tmp_path / "w" / f"{name}.parquet").itercolumns():
            values = column.to_pylist()
            found.update(repr([round(v, 2) if isinstance(v, float) else v for v in values]).encode())
    assert found.hexdigest()[:16] == expected


def test_another_seed_is_another_world(tmp_path: Path) -> None:
    write(tmp_path / "a", SMALL)
    write(tmp_path / "b", SMALL | {"seed": 6})
    a, b = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert all(a[name] != b[name] for name in a)


def test_a_block_is_the_same_drawn_alone_and_is_one_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "BLOCK_USERS", 16)
    monkeypatch.setattr(listening, "BLOCK_PLAYS", 150)
    seen: list[int] = []
    write(tmp_path / "w", SMALL, on_plays=seen.append)
    file = pq.ParquetFile(tmp_path / "w" / "plays.parquet")
    made = world.make_world(**SMALL)
    duration_ms = pq.read_table(tmp_path / "w" / "tracks.parquet")["duration_ms"].to_numpy().astype(np.int32)
    blocks = listening.blocks(made)
    assert file.metadata.num_row_groups == len(blocks) > 3
    assert seen == np.cumsum([file.metadata.row_group(k).num_rows for k in range(len(blocks))]).tolist()
    for number in reversed(range(len(blocks))):
        drawn = listening.draw_plays(made, blocks[number], world.generator(SMALL["seed"], 5, number), duration_ms)
        group = file.read_row_group(number)
        assert group["timestamp"].to_pylist() == drawn.time.tolist()
        assert group["track_id"].to_pylist() == [f"T{track:07d}" for track in drawn.track]
        assert group["user_id"].to_pylist() == [f"U{user:06d}" for user in drawn.user]
        for name in ("session", "skipped", "completed", "ms_played"):
            assert group[name].to_pylist() == getattr(drawn, name).tolist()


def test_tracks_do_not_depend_on_the_size_of_their_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "whole", SMALL | {"tracks": 400})
    monkeypatch.setattr(synth, "BLOCK_TRACKS", 37)
    write(tmp_path / "blocks", SMALL | {"tracks": 400})
    metadata = pq.ParquetFile(tmp_path / "blocks" / "tracks.parquet").metadata
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [*[37] * 10, 30]
    whole, blocks = (pq.read_table(tmp_path / name / "tracks.parquet") for name in ("whole", "blocks"))
    assert whole.equals(blocks)
    whole_hashes, block_hashes = hashes(tmp_path / "whole"), hashes(tmp_path / "blocks")
    assert {name for name in whole_hashes if whole_hashes[name] != block_hashes[name]} == {"tracks.parquet"}


def test_a_large_catalogue_is_not_held_as_text(tmp_path: Path) -> None:
    sizes = {"users": 5, "tracks": 400_000, "plays": 50, "seed": 0}
    command = (
        "import resource; from pathlib import Path; from lhydra.data.synth import write_world; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        f"write_world(Path({str(tmp_path / 'few')!r}), **{sizes | {'tracks': 65_536}}); before = peak(); "
        f"write_world(Path({str(tmp_path / 'many')!r}), **{sizes}); print((peak() - before) * 1024)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", command], cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300 * 400_000


def test_row_groups_bound_what_is_held_at_once(demo_folder: Path) -> None:
    metadata = pq.ParquetFile(demo_folder / "plays.parquet").metadata
    assert metadata.num_row_groups == len(listening.blocks(world.make_world(**DEMO)))
    assert all(metadata.row_group(k).num_rows <= listening.BLOCK_PLAYS for k in range(metadata.num_row_groups))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_blocks_cover_all_users_once_within_both_limits(plays: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listening, "BLOCK_USERS", 7)
        patch.setattr(listening, "BLOCK_PLAYS", 50)
        made = world.make_world(len(plays), 5, len(plays), 0)
        made.audience.plays[:] = plays
        blocks = listening.blocks(made)
    assert [user for block in blocks for user in range(block.start, block.stop)] == list(range(len(plays)))
    for block in blocks:
        assert block.stop - block.start <= 7
        assert sum(plays[block]) <= 50


# A sound log


def test_schema_and_ranges(demo_folder: Path, log: Log) -> None:
    schema = pq.read_schema(demo_folder / "plays.parquet")
    kinds = {name: str(schema.field(name).type) for name in schema.names}
    assert kinds == {
        **{"user_id": "string", "track_id": "string", "playcount": "int32", "timestamp": "int64", "session": "int32"},
        **{"skipped": "bool", "completed": "bool", "ms_played": "int32"},
    }
    assert list(log.users) == ["user_id", "age", "gender", "region", "country"]
    assert list(log.tracks) == [
        *("track_id", "name", "artist", "genre", "tags", "year", "duration_ms", "danceability", "energy", "key"),
        *("loudness", "mode", "speechiness", "acousticness", "instrumentalness", "liveness", "valence", "tempo"),
        *("time_signature", "explicit"),
    ]
    assert log.tracks["track_id"][:2] == ["T0000000", "T0000001"]
    assert log.users["user_id"][-1] == "U001999"
    for name in ("danceability", "energy", "speechiness", "acousticness", "instrumentalness", "liveness", "valence"):
        values = np.array(log.tracks[name])
        assert values.min() >= 0
        assert values.max() <= 1
        assert values.std() > 0.03
    assert set(log.tracks["key"]) == set(range(12))
    assert set(log.tracks["mode"]) == {0, 1}
    assert set(log.tracks["genre"]) == {*scenes.GENRES, None}
    assert all(13 < age < 86 for age in log.users["age"] if age is not None)
    country_region = dict(zip(log.users["country"], log.users["region"], strict=True))
    assert len(country_region) == len(scenes.COUNTRIES)
    start, end = log.truth["window"]["start"], log.truth["window"]["end"]
    assert start <= log.time.min() < start + 86_400
    assert end - 86_400 <= log.time.max() < end


def test_some_values_are_missing_as_in_life(log: Log) -> None:
    for name, share in log.truth["missing"].items():
        column = (log.users | log.tracks)[name]
        assert 0.3 * share < column.count(None) / len(column) < 2.5 * share


def test_names_are_readable_and_artists_distinct(log: Log) -> None:
    for text in log.tracks["name"] + log.tracks["artist"]:
        assert text.replace(" & ", " ").replace(" ", "").isalpha()
    names = artist_names(50_000, np.random.default_rng(0)).to_pylist()
    assert len(set(names)) == 50_000
    assert names[20_160:20_162] == [f"{names[0]} 2", f"{names[1]} 2"]
    assert names[40_320] == f"{names[0]} 3"
    assert artist_names(7, np.random.default_rng(0)).to_pylist() == names[:7]


@pytest.mark.parametrize(
    ("users", "tracks", "plays"),
    [(1, 1, 1), (1, 1, 50), (3, 1, 10), (7, 2, 7), (5, 400, 23), (40, 3, 900), (1, 2_000, 3_000)],
)
def test_counts_are_exact_at_any_size(users: int, tracks: int, plays: int, tmp_path: Path) -> None:
    write_world(tmp_path / "w", users=users, tracks=tracks, plays=plays, seed=1)
    log = read_log(tmp_path / "w")
    assert (len(log.users["user_id"]), len(log.tracks["track_id"]), len(log.time)) == (users, tracks, plays)
    assert np.bincount(log.user, minlength=users).min() >= min(5, plays // users)
    assert log.count.min() >= 1
    check_time(log)


def test_every_user_of_the_demo_world_has_five_plays(log: Log) -> None:
    assert len(log.time) == 150_000
    assert np.bincount(log.user, minlength=2_000).min() >= 5


def check_time(log: Log) -> None:
    """No play before its track's release or its user's arrival; each user's plays in order of time."""
    released = np.array([log.truth["new_tracks"].get(track, 0) for track in log.tracks["track_id"]])
    arrived = np.array([log.truth["new_users"].get(user, 0) for user in log.users["user_id"]])
    assert (log.time >= released[log.track]).all()
    assert (log.time >= arrived[log.user]).all()
    assert (np.lexsort((log.time, log.user)) == np.arange(len(log.time))).all()


def test_no_play_before_release_or_arrival(log: Log) -> None:
    check_time(log)
    assert 500 < len(log.truth["new_tracks"]) < 700
    assert 700 < len(log.truth["new_users"]) < 900
    assert {log.tracks["year"][int(track[1:])] for track in log.truth["new_tracks"]} == {2023, 2024, None}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_shelf_draws_by_weight_among_what_was_released(data: st.DataObject) -> None:
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=12)
    )
    group, day, weight = (np.array(column) for column in zip(*rows, strict=True))
    n = len(rows)
    shelf = world.Shelf.of(group, day, weight.astype(np.float64))
    wanted, after, until = (data.draw(st.integers(low, high)) for low, high in ((0, 2), (-1, 9), (0, 9)))
    r = (np.arange(1_000) + 0.5) / 1_000
    drawn = shelf.draw(np.full(1_000, wanted), after, np.full(1_000, until), r)
    allowed = np.flatnonzero((group == wanted) & (day > after) & (day <= until))
    if len(allowed) == 0:
        assert (drawn == -1).all()
    else:
        share = np.bincount(drawn, minlength=n) / 1_000
        assert np.allclose(share[allowed], weight[allowed] / weight[allowed].sum(), atol=2e-3)
        assert share[allowed].sum() == pytest.approx(1)


# What the world hides, found in the tables


def test_popularity_is_zipf(log: Log) -> None:
    counts = np.sort(np.bincount(log.track, minlength=3_000))[::-1]
    rank = np.arange(10, 1_000)
    slope = np.polyfit(np.log(rank + 1), np.log(counts[rank]), 1)[0]
    assert -1.1 < slope < -0.6


@pytest.mark.parametrize(("column", "ratio"), [("age", 2), ("country", 4), ("region", 8), ("gender", 2)])
def test_demographics_tell_the_genre(column: str, ratio: float, log: Log) -> None:
    rng = np.random.default_rng(0)
    trait = log.age_band if column == "age" else codes(log.users[column])
    played = log.genre[log.track]
    shuffled = max(information(rng.permutation(trait)[log.user], played) for _ in range(10))
    assert information(trait[log.user], played) > ratio * shuffled


def test_people_love_the_music_of_their_youth(log: Log) -> None:
    year = np.array([np.nan if v is None else v for v in log.tracks["year"]])[log.track]
    age = np.array([np.nan if v is None else v for v in log.users["age"]])[log.user]
    known = np.isfinite(year) & np.isfinite(age)
    assert np.corrcoef(year[known], age[known])[0, 1] < -0.3


def test_mood_is_personal_and_heard_in_the_audio(log: Log, made: world.World) -> None:
    style = made.catalog.style
    energy = np.array(log.tracks["energy"])
    energy -= (np.bincount(style, energy) / np.bincount(style))[style]  # against its own style
    late = log.time > np.median(log.time)
    played = [np.bincount(log.user[half], minlength=2_000) for half in (late, ~late)]
    mean = [
        np.bincount(log.user[half], energy[log.track[half]], 2_000) / np.maximum(n, 1)
        for half, n in zip((late, ~late), played, strict=True)
    ]
    often = (played[0] >= 20) & (played[1] >= 20)
    assert np.corrcoef(mean[0][often], mean[1][often])[0, 1] > 0.6
    assert np.corrcoef(made.audience.age[often], mean[0][often])[0, 1] < -0.1


def test_audio_and_tags_tell_the_style(log: Log, made: world.World) -> None:
    names = ("danceability", "energy", "speechiness", "acousticness", "instrumentalness", "valence", "tempo")
    sound = np.array([log.tracks[name] for name in names]).T
    sound = (sound - sound.mean(0)) / sound.std(0)
    genre = scenes.STYLE_GENRE[made.catalog.style]
    even = np.arange(len(genre)) % 2 == 0
    centres = np.array([sound[even & (genre == g)].mean(0) for g in range(len(scenes.GENRES))])
    guess = ((sound[~even][:, None] - centres) ** 2).sum(-1).argmin(1)
    largest = np.bincount(genre).max() / len(genre)
    assert (guess == genre[~even]).mean() > 2 * largest
    tagged = [
        scenes.STYLES[style] in tags.split("|")
        for style, tags in zip(made.catalog.style, log.tracks["tags"], strict=True)
        if tags is not None
    ]
    assert 0.85 < np.mean(tagged) < 0.95


def same_artist(user: Ints, track: Ints, made: world.World) -> float:
    """Pairs of distinct tracks of one artist heard by one user, against artists shuffled within each cell."""
    pairs = np.unique(user * 3_000 + track)
    user, track = pairs // 3_000, pairs % 3_000

    def count(artist: Ints) -> int:
        n = np.unique(user * 1_000 + artist[track], return_counts=True)[1]
        return int((n * (n - 1)).sum())

    rng = np.random.default_rng(0)
    shuffled = made.catalog.artist.astype(np.int64)
    for cell in np.unique(made.catalog.cell):
        own = np.flatnonzero(made.catalog.cell == cell)
        shuffled[own] = shuffled[rng.permutation(own)]
    return count(made.catalog.artist.astype(np.int64)) / count(shuffled)


def test_users_are_loyal_to_artists(log: Log, made: world.World, monkeypatch: pytest.MonkeyPatch) -> None:
    loyal = same_artist(log.user, log.track, made)
    monkeypatch.setattr(listening, "LOYAL", 0.0)
    user, track, _ = draw_all(made, 0)
    assert loyal > 1.4 * same_artist(user, track, made) > 1.4


def likeness(user: Ints, track: Ints, time: Ints, made: world.World) -> tuple[float, float]:
    """Mean cosine between a user's styles (square roots of counts) an epoch apart, and seven epochs apart."""
    epoch = (time - world.START) * world.EPOCHS // (world.DAYS * 86_400)
    heard = np.zeros((2_000, world.EPOCHS, len(scenes.STYLES)))
    np.add.at(heard, (user, epoch, made.catalog.style[track]), 1)
    heard = np.sqrt(heard[(heard.sum(2) >= 5).all(1) & ~made.audience.noisy])
    heard /= np.linalg.norm(heard, axis=2, keepdims=True)
    return float((heard[:, :-1] * heard[:, 1:]).sum(2).mean()), float((heard[:, 0] * heard[:, -1]).sum(1).mean())


def test_taste_drifts(log: Log, made: world.World, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = likeness(log.user, log.track, log.time, made)
    assert near - far > 0.15
    monkeypatch.setattr(world, "DRIFT", 0.0)
    near, far = likeness(*draw_all(made, 0), made)
    assert near - far < 0.09  # what returns is recent rather than old


def test_noisy_users_follow_nothing(log: Log) -> None:
    noisy = np.isin(log.users["user_id"], log.truth["noisy_users"])
    assert 30 < noisy.sum() < 100
    fame = np.log(np.bincount(log.track, minlength=3_000).clip(1))[log.track]
    ours = noisy[log.user]
    assert fame[ours].mean() < fame[~ours].mean() - 1
    genres = np.zeros((2_000, len(scenes.GENRES) + 1))
    np.add.at(genres, (log.user, log.genre[log.track]), 1)
    many = genres.sum(1) >= 50
    top_share = genres.max(1)[many] / genres.sum(1)[many]
    assert top_share[noisy[many]].mean() < 0.25 < 0.4 < top_share[~noisy[many]].mean()


def test_plays_repeat(log: Log) -> None:
    distinct = len(np.unique(log.user * 3_000 + log.track))
    assert 0.2 < 1 - distinct / len(log.user) < 0.7
    assert 0.1 < (log.count > 1).mean() < 0.4
    assert 5 < log.count.max() <= 201


@pytest.mark.parametrize(
    "sizes", [DEMO, SMALL, {"users": 1, "tracks": 5, "plays": 3_000, "seed": 2}], ids=["demo", "small", "one user"]
)
def test_sessions_are_those_that_pauses_tell(sizes: dict[str, int], tmp_path: Path) -> None:
    write(tmp_path / "w", sizes)
    plays = pq.read_table(tmp_path / "w" / "plays.parquet").to_pandas()
    same = plays["user_id"].eq(plays["user_id"].shift())
    pause = plays["timestamp"].diff()[same]
    step = plays["session"].diff()[same]
    assert set(step) <= {0, 1}
    assert (plays["session"][~same] == 0).all()
    assert (pause[step == 0] < listening.PAUSE).all()
    assert (pause[step == 0] >= 0).all()
    assert (pause[step == 1] > listening.PAUSE).all()
    assert plays["timestamp"].between(world.START, world.START + world.DAYS * 86_400 - 1).all()


def test_a_log_too_dense_for_the_window_is_played_faster(tmp_path: Path) -> None:
    write(tmp_path / "w", {"users": 1, "tracks": 5, "plays": 200_000, "seed": 2})
    time = pq.read_table(tmp_path / "w" / "plays.parquet")["timestamp"].to_numpy()
    assert (np.diff(time) >= 0).all()
    assert world.START <= time[0] < time[-1] < world.START + world.DAYS * 86_400


def test_a_session_keeps_to_a_theme(log: Log, made: world.World, demo_folder: Path) -> None:
    session = pq.read_table(demo_folder / "plays.parquet")["session"].to_numpy()
    cell = made.catalog.cell[log.track]
    follows = (np.diff(log.user) == 0) & ~np.isin(log.user[1:], np.flatnonzero(made.audience.noisy))
    within = follows & (np.diff(session) == 0)
    across = follows & (np.diff(session) == 1)
    alike = cell[1:] == cell[:-1]
    assert alike[within].mean() > 1.2 * alike[across].mean()


def test_what_returns_follows_a_power_law_of_age(made: world.World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decay found by maximum likelihood, over what each return could have been instead, is the planted one."""
    log_ages, starts, chosen = [np.empty(0)], [0], [0]
    plain = listening._repeated

    def watched(wanted: Any, time: Ints, local: Ints, first: Ints, r: Any) -> Ints:
        source = plain(wanted, time, local, first, r)
        rows = np.flatnonzero(source < np.arange(len(source)))
        for row in rows[:: max(1, len(rows) // 2_000)]:
            old = np.arange(max(first[local[row]], row - listening.MEMORY), row)
            old = old[time[old] <= time[row] - listening.YOUNGEST_RETURN]
            assert source[row] in old
            log_ages.append(np.log(time[row] - time[old]))
            chosen.append(starts[-1] + int(source[row] - old[0]))
            starts.append(starts[-1] + len(old))
        return source

    monkeypatch.setattr(listening, "_repeated", watched)
    draw_all(made, 0)
    ages, at = np.concatenate(log_ages), np.array(starts[:-1])

    def likelihood(decay: float) -> float:
        return float((-decay * ages[chosen[1:]] - np.log(np.add.reduceat(np.exp(-decay * ages), at))).mean())

    decays = np.arange(0.5, 1.5, 0.02)
    assert decays[np.argmax([likelihood(decay) for decay in decays])] == pytest.approx(listening.RETURN_DECAY, abs=0.06)


def test_skips_depend_on_where_a_play_came_from(log: Log, made: world.World, demo_folder: Path) -> None:
    plays = pq.read_table(demo_folder / "plays.parquet")
    skipped, completed, played = (plays[name].to_numpy() for name in ("skipped", "completed", "ms_played"))
    duration = np.array(log.tracks["duration_ms"])[log.track]
    noisy = made.audience.noisy[log.user]
    assert skipped[noisy].mean() == pytest.approx(log.truth["skips"]["noise"], abs=0.02)
    again = np.zeros(len(played), bool)
    known: set[tuple[int, int]] = set()
    for row, pair in enumerate(zip(log.user.tolist(), log.track.tolist(), strict=True)):
        again[row] = pair in known
        known.add(pair)
    assert skipped[~noisy & ~again].mean() > 1.3 * skipped[~noisy & again].mean()
    assert not (skipped & completed).any()
    assert ((played == duration) == completed).all()
    assert (played[skipped] <= np.minimum(30_000, duration[skipped] / 2)).all()
    assert (played[~skipped] >= duration[~skipped] // 2).all()
    assert played.min() > 0


def test_new_releases_are_played_more_while_they_are_new(log: Log, made: world.World) -> None:
    released = made.catalog.release_day
    age = ((log.time - world.START) // 86_400 - released[log.track])[released[log.track] > 0]
    days_out = (world.DAYS - released[released > 0])[:, None] > np.arange(world.DAYS)  # tracks that reach each age
    rate = np.bincount(age, minlength=world.DAYS) / np.maximum(days_out.sum(0), 1)
    assert rate[:60].mean() > 2 * rate[60:180].mean()


def test_demographics_beat_popularity_for_brand_new_users(log: Log) -> None:
    past = log.time < np.quantile(log.time, 0.85)
    brand_new = np.setdiff1d(log.user[~past], log.user[past])
    assert len(brand_new) > 100
    segment = np.clip(log.age_band + 1, 0, 6) * len(scenes.REGIONS) + codes(log.users["region"])
    plays = np.zeros((segment.max() + 1, 3_000))
    np.add.at(plays, (segment[log.user[past]], log.track[past]), 1)
    popular = plays.sum(0) / plays.sum()
    by_segment = plays / np.maximum(plays.sum(1, keepdims=True), 1) + 0.3 * popular

    def recall(score: Callable[[int], npt.NDArray[np.float64]]) -> float:
        found = []
        for user in brand_new:
            top = np.argsort(-score(user), kind="stable")[:20]
            found.append(np.isin(np.unique(log.track[log.user == user]), top).mean())
        return float(np.mean(found))

    assert recall(lambda user: by_segment[segment[user]]) > 1.1 * recall(lambda user: popular) > 0.1


def test_hidden_taste_predicts_the_plays(log: Log, made: world.World) -> None:
    taste = made.taste(slice(0, 2_000))
    assert np.allclose(taste.sum(2), 1)
    epoch = (log.time - world.START) * world.EPOCHS // (world.DAYS * 86_400)
    known = ~made.audience.noisy[log.user]
    cell = made.catalog.cell[log.track]
    own = taste[log.user, epoch, cell][known]
    demographic = np.exp(made.demographic_taste(slice(0, 2_000)))[:, np.arange(world.CELLS) // 3] * made.cell_mass
    demographic /= demographic.sum(1, keepdims=True)
    # nats per play, against the plays' own marginal: each layer of the world explains more
    marginal = (np.bincount(cell, minlength=world.CELLS) / len(cell))[cell][known]
    assert np.log(own).mean() > np.log(demographic[log.user, cell][known]).mean() + 0.3
    assert np.log(own).mean() > np.log(marginal).mean() + 0.5


def test_world_json_says_what_is_hidden(log: Log, made: world.World) -> None:
    truth = log.truth
    assert truth["made_by"] == "lhydra synth"
    assert truth["arguments"] == DEMO
    assert [style["name"] for style in truth["styles"]] == list(scenes.STYLES)
    assert np.allclose(truth["style_vectors"], made.style_vectors, atol=1e-4)
    assert truth["country_genre_logits"]["Brazil"]["Latin"] == pytest.approx(
        world.PLACE * made.place_genre[scenes.COUNTRIES.index("Brazil"), scenes.GENRES.index("Latin")], abs=1e-4
    )
    assert truth["counts"] == {name: len(truth[name]) for name in ("new_tracks", "new_users", "noisy_users")}


# Refusals, and nothing half-written


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"users": 0}, "users: found 0, expected 1 to 10,000,000"),
        ({"tracks": -3}, "tracks: found -3, expected 1 to 10,000,000"),
        ({"plays": 0}, "plays: found 0, expected 1 to 1,000,000,000"),
        ({"users": 10**12}, "users: found 1,000,000,000,000, expected 1 to 10,000,000"),
        ({"plays": 59}, "plays: found 59, expected at least one per user (60)"),
        ({"seed": -1}, "seed: found -1, expected 0 to 2^63 - 1"),
    ],
)
def test_sizes_that_make_no_world_are_refused(wrong: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        write(tmp_path / "w", SMALL | wrong)
    assert str(error.value) == message
    assert list(tmp_path.iterdir()) == []


def test_a_previous_world_and_an_empty_folder_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    write(tmp_path / "w", SMALL)
    before = hashes(tmp_path / "w")
    write(tmp_path / "w", SMALL | {"seed": 9})
    assert hashes(tmp_path / "w") != before
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_anything_else_is_left_alone(tmp_path: Path) -> None:
    expected = "expected a new or empty folder, or a world made by `lhydra synth` and nothing else"
    cases = {
        "thesis": ("thesis.doc", "a folder that holds thesis.doc"),
        "foreign": ("world.json", "a folder without the world.json of one"),
        "half": ("plays.parquet", "a folder without the world.json of one"),
    }
    for name, (held, found) in cases.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / held).write_text("{}")
        with pytest.raises(DataError) as error:
            write(tmp_path / name, SMALL)
        assert str(error.value) == f"{tmp_path / name}: found {found}, {expected}"
        assert [path.name for path in (tmp_path / name).iterdir()] == [held]
    write(tmp_path / "mine", SMALL)
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    for path in (tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        with pytest.raises(DataError, match="expected a new or empty folder"):
            write(path, SMALL)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_a_failure_midway_leaves_what_was_there(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "old", SMALL)
    before = hashes(tmp_path / "old")

    def fail(written: int) -> None:
        raise failure

    for name in ("old", "new"):
        with pytest.raises((DataError, KeyboardInterrupt, ValueError)) as error:
            write(tmp_path / name, SMALL | {"seed": 9}, on_plays=fail)
        if isinstance(failure, OSError):
            assert str(error.value) == (
                f"{tmp_path / name}: found [Errno 28] No space left on device, expected a place with room for a world"
            )
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert hashes(tmp_path / "old") == before

    monkeypatch.setattr("lhydra.files._exchange", lambda a, b: False)
    monkeypatch.setattr(Path, "rename", refusing_second(Path.rename))
    with pytest.raises(DataError, match="second rename"):
        write(tmp_path / "old", SMALL | {"seed": 9})
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert hashes(tmp_path / "old") == before


def refusing_second(rename: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
    """`rename`, except that the second call (staging into place) fails; the third puts the old world back."""
    calls: list[Path] = []

    def renamed(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("second rename")
        return rename(self, target)

    return renamed


def test_a_file_larger_than_the_system_allows_is_one_line(tmp_path: Path) -> None:
    command = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
        "from lhydra.cli import main; sys.exit(main(['synth', sys.argv[1], '--tracks', '2000']))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path / "w")], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"lhydra synth: {tmp_path / 'w'}: found ")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/w: found .* expected a place with room for a world"):
        write(tmp_path / "file" / "w", SMALL)


# The command


def arguments(out: Path) -> list[str]:
    return ["synth", str(out), "--users", "60", "--tracks", "90", "--plays", "700"]


def test_command_says_what_it_wrote_and_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "w"
    assert cli.main([*arguments(out), "--seed", "5"]) == 0
    said = capsys.readouterr()
    assert f"wrote {out}: 60 users, 90 tracks, 700 plays (seed 5, " in said.out
    assert said.out.splitlines()[-1] == f"next: lhydra prepare {out} DATASET"
    assert said.err == ""  # a line every few seconds, and it took less
    write(tmp_path / "same", SMALL)
    assert hashes(out) == hashes(tmp_path / "same")


def test_command_draws_a_bar_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(arguments(tmp_path / "w")) == 0
    assert "plays: 700" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--plays", "9"], "plays: found 9, expected at least one per user (60)"),
        (["--users", "many"], "--users: found many, expected a whole number"),
        (["--config", "{config}"], "{config}: synth.user: unknown key 'user', the nearest known key is 'users'"),
    ],
)
def test_command_refuses_in_one_line(
    extra: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "lhydra.yaml"
    config.write_text("synth:\n  user: 3\n")
    told = [word.replace("{config}", str(config)) for word in extra]
    assert cli.main([*arguments(tmp_path / "w"), *told]) == 1
    assert capsys.readouterr().err == f"lhydra synth: {message.replace('{config}', str(config))}\n"
    assert not (tmp_path / "w").exists()
