"""Plays one by one: their order, sessions, folds and sums, against a reading of the rows in plain Python."""

from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from lhydra.cli import main
from lhydra.data.dataset import TEST, TRAIN, VALID, Dataset
from lhydra.data.events import PAUSE_S, number_sessions
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.errors import DataError
from tests.harness import examples

GOLDEN = Path(__file__).parent / "golden"


class Play(NamedTuple):
    """A row of a source; None where its cell is empty."""

    user: str
    track: str
    time: int | None = None
    session: str | None = None
    position: int | None = None
    times: int = 1
    skipped: bool | None = None
    completed: bool | None = None
    ms_played: int | None = None


COLUMNS = {
    "user": "user_id",
    "track": "track_id",
    "time": "timestamp",
    "session": "session",
    "position": "position",
    "times": "playcount",
    "skipped": "skipped",
    "completed": "completed",
    "ms_played": "ms_played",
}
PLAYS = st.lists(
    st.builds(
        Play,
        user=st.sampled_from("abc"),
        track=st.sampled_from("pqrst"),
        time=st.none() | st.integers(1, 20).map(lambda n: n * 700),
        session=st.none() | st.sampled_from(["1", "2", "10"]),
        position=st.none() | st.integers(0, 30),
        times=st.integers(1, 3),
        skipped=st.none() | st.booleans(),
        completed=st.none() | st.booleans(),
        ms_played=st.none() | st.integers(0, 3),
    ),
    min_size=2,
    max_size=40,
).filter(lambda plays: len({play.user for play in plays}) > 1)
LISTENED = [  # two who hear their tracks anew in other sessions, one of them thrice at once, and one without a clock
    *(Play(user, track, 700 * n, str(n // 4 + 8), n) for user in "ab" for n, track in enumerate("srqpstpqrst", 1)),
    *(Play("a", "t", 7_700, "10", times=times, skipped=True) for times in (1, 2)),
    *(Play("c", track, session="1", position=n, ms_played=n) for n, track in enumerate("pqrp")),
]


def made(plays: list[Play], folder: Path, columns: tuple[str, ...] = tuple(COLUMNS), **given: Any) -> Dataset:
    """Prepares the plays, with the columns named alone."""
    table = pa.table({COLUMNS[name]: [getattr(play, name) for play in plays] for name in columns})
    pq.write_table(table, folder / "plays.parquet")
    prepare(folder / "plays.parquet", folder / "dataset", PrepareSettings(**given))
    return Dataset.open(folder / "dataset")


def rows(dataset: Dataset) -> list[Play]:
    """The events as they were given, in their order; sessions as numbers."""
    e = dataset.events

    def cells(name: str, kind: type = int) -> list[Any]:
        return [None if value < 0 else kind(value) for value in getattr(e, name).tolist()]

    columns = (
        *([dataset.user_ids[user] for user in e.user], [dataset.track_ids[track] for track in e.track]),
        *([time or None for time in e.time.tolist()], cells("session"), cells("position"), cells("count")),
        *(cells("skipped", bool), cells("completed", bool), cells("ms_played")),
    )
    return [Play(*values) for values in zip(*columns, strict=True)]


@settings(max_examples=examples(3), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(plays=LISTENED, timed=True, random=Random(0))
@given(plays=PLAYS, timed=st.booleans(), random=st.randoms(use_true_random=False))
def test_every_play_is_kept_in_order_of_listening(
    plays: list[Play], timed: bool, random: Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("events")
    columns = tuple(name for name in COLUMNS if timed or name != "time")
    found = rows(dataset := made(plays, folder, columns, split="random", valid=0, test=0))
    if not timed:
        plays = [play._replace(time=None) for play in plays]
    assert sorted(map(repr, (play._replace(session=None) for play in plays))) == sorted(
        map(repr, (play._replace(session=None) for play in found))
    )
    own = [play for play in plays if play.position is not None]
    anew = len({(play.user, play.session, play.position) for play in own if play.session}) > len(
        {(play.user, play.position) for play in own if play.session}
    )  # positions count anew in each session

    def key(play: Play) -> tuple[Any, ...]:
        last = 10**9
        session = int(play.session or last) if anew else 0
        position = -1 if play.position is None else play.position
        return play.user, play.time or 0, session, position, play.track, play.times

    ordered = [key(play) for play in sorted(plays, key=key)]
    told = [key(play._replace(session=None))[:2] + key(play)[3:] for play in found]
    assert told == [own[:2] + own[3:] for own in ordered]

    again = made(random.sample(plays, len(plays)), folder, columns, split="random", valid=0, test=0)
    assert rows(again) == found
    assert again.info.split == dataset.info.split


@settings(max_examples=100, deadline=None)
@given(plays=PLAYS, given_any=st.booleans())
def test_sessions_are_those_given_or_told_by_pauses(plays: list[Play], given_any: bool) -> None:
    plays = sorted(plays, key=lambda play: (play.user, play.time or 0))
    codes = {user: number for number, user in enumerate("abc")}
    user = np.array([codes[play.user] for play in plays], np.int32)
    time = np.array([play.time or 0 for play in plays], np.int64)
    session = np.array([int(play.session or 0) for play in plays], np.uint64)
    known = np.array([play.session is not None for play in plays])
    found = number_sessions(user, time, *((session, known) if given_any else ())).tolist()

    numbers: dict[str, dict[Any, int]] = defaultdict(dict)
    pauses = 0
    for i, play in enumerate(plays):
        before = plays[i - 1] if i and plays[i - 1].user == play.user else None
        timed = before is not None and before.time is not None
        if before is None or timed != (play.time is not None) or (play.time or 0) - (before.time or 0) >= PAUSE_S:
            pauses += 1
        given = play.session if given_any else None
        if given is None and play.time is None:
            assert found[i] == -1
            continue
        name = given if given is not None else pauses
        assert found[i] == numbers[play.user].setdefault(name, len(numbers[play.user]))


def test_sessions_that_interleave_are_told_apart() -> None:
    """A phone and a radio play at once; each is one session."""
    user, time = np.zeros(6, np.int32), np.arange(1, 7) * 100
    session = np.array([7, 9, 7, 9, 7, 3], np.uint64)
    assert number_sessions(user, time, session, np.ones(6, np.bool_)).tolist() == [0, 1, 0, 1, 0, 2]


@pytest.mark.parametrize("protocol", ["temporal", "leave-last", "random", "next-session", "global-time"])
@settings(max_examples=examples(2), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(plays=LISTENED, seed=1)
@given(plays=PLAYS, seed=st.integers(0, 3))
def test_plays_are_what_events_add_up_to(
    plays: list[Play], protocol: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not any(play.time for play in plays):
        plays[0] = plays[0]._replace(time=700)
    folder = tmp_path_factory.mktemp("sums")
    try:
        dataset = made(
            plays, folder, split=protocol, seed=seed, valid=0.2, test=0.2, gap_s=500, valid_s=2_000, test_s=900
        )
    except DataError:
        assume(False)  # no play is in train
    events, derived = dataset.events, dataset.plays
    wanted: dict[tuple[int, int, int], tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for user, track, time, count, fold in zip(
        *(getattr(events, name).tolist() for name in ("user", "track", "time", "count", "fold")), strict=True
    ):
        total, latest = wanted[user, track, fold]
        wanted[user, track, fold] = total + count, max(latest, time)
    ordered = sorted((user, time, track, fold, count) for (user, track, fold), (count, time) in wanted.items())
    found = list(
        zip(*(getattr(derived, name).tolist() for name in ("user", "time", "track", "fold", "count")), strict=True)
    )
    assert found == ordered
    split = dataset.info.split
    known = events.time > 0
    for name, fold in (("train", TRAIN), ("valid", VALID)):
        assert split["newest"][name] == events.time[(events.fold == fold) & known].max(initial=0)
    for name, fold in (("valid", VALID), ("test", TEST)):
        of_fold = events.time[events.fold == fold]
        assert split["oldest"][name] == (of_fold.min() if len(of_fold) else 0)
    if protocol in ("leave-last", "random"):  # a pair is in one fold
        assert len(derived) == len(set(zip(derived.user.tolist(), derived.track.tolist(), strict=True)))


def test_without_a_clock_positions_give_the_order(tmp_path: Path) -> None:
    plays = [Play(user, track, position=place) for user in "ab" for place, track in enumerate("srqp")]
    dataset = made(plays, tmp_path, ("user", "track", "position"), split="leave-last")
    folds = {(play.user, play.track): fold for play, fold in zip(rows(dataset), dataset.events.fold, strict=True)}
    assert [folds["a", track] for track in "srqp"] == [TRAIN, TRAIN, VALID, TEST]


def test_positions_that_count_anew_follow_their_sessions(tmp_path: Path) -> None:
    """As in logs that know sessions and places in them alone: session 10 is later than session 9."""
    plays = [Play(user, f"t{s}.{p}", session=str(s), position=p) for user in "ab" for s in (9, 10) for p in range(3)]
    dataset = made(plays, tmp_path, ("user", "track", "session", "position"), split="next-session", valid_sessions=0)
    assert [play.track for play in rows(dataset)][:6] == [f"t{s}.{p}" for s in (9, 10) for p in range(3)]
    assert dataset.events.session[:6].tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.events.fold[:6].tolist() == [TRAIN] * 3 + [TEST] * 3


@pytest.mark.parametrize(
    ("name", "cells", "message"),
    [
        (
            "skipped",
            ["true", "NO", "perhaps"],
            "skipped: 1 not true or false, taken as unknown (first 'perhaps', line 4)",
        ),
        (
            "ms_played",
            ["0", "1500.7", "-3"],
            "ms_played: 1 not a number from 0, taken as unknown (first '-3', line 4)",
        ),
        ("position", ["0", "", "0x1"], "position: 1 not a whole number from 0, taken as unknown (first '0x1', line 4)"),
    ],
)
def test_a_cell_that_cannot_be_read_is_unknown_and_told(
    name: str, cells: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "plays.csv").write_text(
        f"user_id,track_id,{name}\n" + "".join(f"u{i},t{i},{cell}\n" for i, cell in enumerate(cells))
    )
    info = prepare(tmp_path / "plays.csv", tmp_path / "dataset", PrepareSettings())
    assert f"plays.csv: {message}" in info.warnings
    values = getattr(Dataset.open(tmp_path / "dataset").events, name)
    assert values[-1] == -1
    assert values[0] == (1 if name == "skipped" else 0)


@pytest.mark.parametrize(("column", "protocol"), [("position", "leave-last"), ("session", "next-session")])
def test_a_column_without_a_value_gives_no_order(column: str, protocol: str, tmp_path: Path) -> None:
    plays = [Play(user, track) for user in "ab" for track in "pqrs"]
    with pytest.raises(DataError, match=f"no timestamps, and no {column} in any row, expected a column timestamp"):
        made(plays, tmp_path, ("user", "track", column), split=protocol)


def test_positions_that_count_through_decide_alone(tmp_path: Path) -> None:
    order = [("9", 0), ("9", 1), ("2", 2), ("2", 3)]
    plays = [Play(user, f"t{p}", session=s, position=p) for user in "ab" for s, p in order]
    dataset = made(plays, tmp_path, ("user", "track", "session", "position"), split="next-session", valid_sessions=0)
    assert [play.track for play in rows(dataset)][:4] == ["t0", "t1", "t2", "t3"]
    assert dataset.events.fold[:4].tolist() == [TRAIN, TRAIN, TEST, TEST]


def test_a_dataset_of_format_1_opens_and_has_no_events() -> None:
    dataset = Dataset.open(GOLDEN / "dataset_v1")
    assert dataset.info.format == 1
    assert len(dataset.plays) == dataset.info.counts["plays"]
    with pytest.raises(
        DataError, match=r"no events.parquet \(format 1\), expected format 2; run `lhydra prepare` again"
    ):
        _ = dataset.events


def test_a_dataset_of_format_2_stays_what_it_was(tmp_path: Path) -> None:
    golden = Dataset.open(GOLDEN / "dataset_v2")
    assert golden.info.format == 2
    prepare(GOLDEN / "plays.csv", tmp_path / "dataset", PrepareSettings(split="next-session"))
    again = Dataset.open(tmp_path / "dataset")
    assert again.info.split == golden.info.split
    for name in ("events", "plays", "tracks", "users"):
        ours, theirs = (pq.read_table(path / f"{name}.parquet") for path in (again.path, golden.path))
        assert ours.equals(theirs)


@pytest.mark.parametrize("protocol", ["temporal", "leave-last"])
def test_what_training_reads_is_what_format_1_had(protocol: str, tmp_path: Path) -> None:
    prepare(GOLDEN / "plays.csv", tmp_path / "dataset", PrepareSettings(split=protocol))
    before = GOLDEN / ("dataset_v1" if protocol == "temporal" else "dataset_v1_leave_last")
    for name in ("plays", "tracks", "users"):
        ours, theirs = (pq.read_table(path / f"{name}.parquet") for path in (tmp_path / "dataset", before))
        assert ours.equals(theirs)
    assert Dataset.open(before).info.split["hash"] == Dataset.open(tmp_path / "dataset").info.split["hash"]


def test_the_commands_split_by_session_and_by_global_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("next-session", "--valid-sessions", "1", "--test-sessions", "2"),
        ("global-time", "--gap-s", "3600", "--valid-s", "86400", "--test-s", "172800"),
    ):
        assert main(["prepare", str(GOLDEN / "plays.csv"), str(tmp_path / "d"), "--split", *words]) == 0
        assert f"{words[0]} split" in capsys.readouterr().out
        for flag, value in zip(words[1::2], words[2::2], strict=True):
            assert Dataset.open(tmp_path / "d").info.split[flag[2:].replace("-", "_")] == int(value)
