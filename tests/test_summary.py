"""The figures of a log, against a reading of its rows in plain Python; and how `lhydra prepare` tells them."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra import cli
from lhydra.data.dataset import Dataset, DatasetInfo
from lhydra.data.events import PAUSE_S
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.data.summary import summarise
from tests.harness import examples
from tests.realdata import real_data


class Row(NamedTuple):
    """A row of plays; None where its cell is empty."""

    user_id: str
    track_id: str
    timestamp: int | None
    session: str | None
    playcount: float
    skipped: bool | None
    ms_played: int | None


ROWS = st.lists(
    st.builds(
        Row,
        user_id=st.sampled_from("abc"),
        track_id=st.sampled_from("xyz"),
        timestamp=st.none() | st.integers(1_000_000_000, 1_000_000_000 + 4 * PAUSE_S),
        session=st.none() | st.sampled_from("12"),
        playcount=st.sampled_from([0.25, 1, 1, 2, 5]),
        skipped=st.none() | st.booleans(),
        ms_played=st.none() | st.integers(0, 300_000),
    ),
    min_size=2,
    max_size=30,
).filter(lambda rows: len({row.user_id for row in rows}) > 1)
OPTIONAL = ("timestamp", "session", "playcount", "skipped", "ms_played")


def made(rows: list[Row], folder: Path, columns: tuple[str, ...], **given: Any) -> Dataset:
    """Prepares the rows, with the columns named and the two ids alone."""
    kept = ("user_id", "track_id", *columns)
    pq.write_table(pa.table({name: [getattr(row, name) for row in rows] for name in kept}), folder / "plays.parquet")
    prepare(folder / "plays.parquet", folder / "dataset", PrepareSettings(**given))
    return Dataset.open(folder / "dataset")


def nearest_rank(values: Sequence[float], part: float) -> float:
    """The least value that at least `part` of all values do not exceed."""
    return sorted(values)[max(math.ceil(part * len(values)) - 1, 0)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": nearest_rank(values, 0.5), "p90": nearest_rank(values, 0.9), "most": max(values)}


@settings(max_examples=examples(6), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, columns=st.sets(st.sampled_from(OPTIONAL)))
def test_figures_are_those_of_the_rows(
    rows: list[Row], columns: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    shown = tuple(name for name in OPTIONAL if name in columns)
    dataset = made(rows, tmp_path_factory.mktemp("summary"), shown, split="random", valid=0, test=0)
    found = dataset.info.summary
    empty: dict[str, Any] = {"timestamp": None, "session": None, "playcount": 1, "skipped": None, "ms_played": None}
    rows = [row._replace(**{name: empty[name] for name in OPTIONAL if name not in columns}) for row in rows]

    def sums(*names: str) -> list[float]:
        out: dict[Any, float] = defaultdict(float)
        for row in rows:
            out[tuple(getattr(row, name) for name in names)] += row.playcount
        return list(out.values())

    total = sum(row.playcount for row in rows)
    users, tracks, pairs = (sums(*names) for names in (("user_id",), ("track_id",), ("user_id", "track_id")))
    assert (found["kept"], found["plays"]) == (len(rows), total)
    assert (found["users"], found["tracks"]) == (len(users), len(tracks))
    assert (found["per_user"], found["per_track"]) == (spread(users), spread(tracks))
    assert found["repeats"] == pytest.approx(sum(max(count - 1, 0) for count in pairs) / total)

    times = [row.timestamp for row in rows if row.timestamp]
    assert ("time" in found) == bool(times)
    if times:
        assert found["time"] == {"oldest": min(times), "newest": max(times), "unknown": len(rows) - len(times)}
    skips = [row for row in rows if row.skipped is not None]
    assert ("skipped" in found) == bool(skips)
    if skips:
        known = sum(row.playcount for row in skips)
        assert found["skipped"]["known"] == known
        assert found["skipped"]["share"] == pytest.approx(sum(row.playcount for row in skips if row.skipped) / known)
    heard = [row.ms_played for row in rows if row.ms_played is not None]
    assert ("listened" in found) == bool(heard)
    if heard:
        assert found["listened"] == {"known": len(heard), "hours": pytest.approx(sum(heard) / 3_600_000)}
    events = dataset.events  # tests/test_events.py proves their sessions
    sessions: dict[Any, float] = defaultdict(float)
    for user, session, count in zip(events.user, events.session, events.count.tolist(), strict=True):
        sessions[user, session] += count if session >= 0 else 0
    sizes = [size for size in sessions.values() if size]
    named = sum(row.session is not None for row in rows)
    assert ("sessions" in found) == bool(sizes)
    if sizes:
        assert found["sessions"] == {"count": len(sizes), "named": named, "per_session": spread(sizes)}
    seconds = Counter((row.user_id, row.track_id, row.timestamp) for row in rows if row.timestamp)
    assert found["again"] == sum(seconds.values()) - len(seconds)
    assert {name: found[name] for name in summarise(events, dataset.plays, named)} == summarise(
        events, dataset.plays, named
    )


def log(days: int = 4) -> list[Row]:
    """Two users, each with two sessions a day of three plays, the first of which comes back every time."""
    start = 1_577_836_800  # 1 January 2020
    return [
        Row(user, track, start + 86_400 * day + 40_000 * half + 200 * n, None, 1, n == 2, 60_000)
        for day in range(days)
        for half in range(2)
        for user in "ab"
        for n, track in enumerate(("again", f"{user}{day}{half}", f"x{day}{half}"))
    ]


def test_a_known_log_has_its_known_figures(tmp_path: Path) -> None:
    found = made(log(), tmp_path, OPTIONAL).info.summary
    assert (found["plays"], found["users"], found["tracks"]) == (48, 2, 1 + 16 + 8)
    assert found["repeats"] == 14 / 48
    assert found["sessions"] == {"count": 16, "named": 0, "per_session": {"median": 3, "p90": 3, "most": 3}}
    assert found["skipped"] == {"known": 48, "share": 1 / 3}
    assert found["listened"] == {"known": 48, "hours": 0.8}
    assert found["per_track"] == {"median": 1, "p90": 2, "most": 16}


def test_one_row_of_five_plays_is_five_plays_four_of_them_repeats(tmp_path: Path) -> None:
    rows = [Row(user, "t", None, None, count, None, None) for user, count in (("a", 5), ("b", 1))]
    found = made(rows, tmp_path, ("playcount",), split="random", valid=0, test=0).info.summary
    assert (found["kept"], found["plays"], found["repeats"]) == (2, 6, 4 / 6)


def test_what_falls_in_a_gap_counts_in_no_figure(tmp_path: Path) -> None:
    rows = [Row(user, f"t{n}", 1_577_836_800 + 3_600 * n, None, 1, None, None) for n in range(100) for user in "ab"]
    dataset = made(rows, tmp_path, ("timestamp",), split="global-time", gap_s=7_200)
    found = dataset.info.summary
    assert found["rows"] == {"plays": 200}
    assert found["kept"] == len(dataset.events) < 200
    assert found["sessions"]["count"] == len(dataset.events)


def test_rows_matches_and_drops_are_told(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "plays.csv").write_text("user_id,track_id,mood\na,x,1\nb,x,2\nb,y,2\n,x,2\nb,gone,2\n")
    (source / "tracks.csv").write_text("track_id,artist,tags\nx,one,a|b\ny,two,c\nz,three,\n")
    (source / "users.csv").write_text("user_id,age\na,30\n")
    found = prepare(source, tmp_path / "dataset").summary
    assert found["rows"] == {"plays": 5, "tracks": 3, "users": 1}
    assert found["matched"] == {"tracks": {"ids": 3, "with_row": 2}, "users": {"ids": 2, "with_row": 1}}
    assert found["dropped"] == [
        "plays.csv: 1 row dropped: empty user_id (line 5)",
        "plays.csv: 1 row dropped: track_id is not in tracks.csv (line 6)",
    ]
    assert [line.split(":")[0] for line in found["columns"]] == ["not used"]
    assert found["lists"] == ["tracks.csv: tags: cells are split at '|', which 1 of 2 hold"]
    info = Dataset.open(tmp_path / "dataset").info
    kinds = [*found["dropped"], *found["columns"], *found["lists"]]
    assert sorted([*info.notes, *kinds]) == sorted(info.warnings)
    assert [note.split(":")[0] for note in info.notes[:2]] == ["tracks.csv", "users.csv"]


def test_a_dataset_from_before_has_no_summary_and_opens(tmp_path: Path) -> None:
    info = made(log(), tmp_path, OPTIONAL).info
    older = json.loads(info.to_json())
    del older["summary"]
    assert DatasetInfo.from_json(json.dumps(older)).summary == {}


def test_the_command_tells_the_figures_in_aligned_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = made(log(), tmp_path, OPTIONAL)
    assert cli.main(["prepare", str(tmp_path / "plays.parquet"), str(dataset.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  rows              48  of plays read" in lines
    assert "  plays             48  2020-01-01 to 2020-01-04 (UTC); 29.2% repeats" in lines
    assert "  skipped        33.3%  of the 48 plays that tell" in lines
    assert "  sessions          16          3          3          3  a pause of 30 minutes ends one" in lines
    assert max(map(len, lines[1:-1])) <= 100
    capsys.readouterr()
    (tmp_path / "bad.csv").write_text("user_id,track_id,timestamp\na,x,2020-01-01\nb,x,2020-01-01T23:00\n,x,\n")
    assert cli.main(["prepare", str(tmp_path / "bad.csv"), str(tmp_path / "bad")]) == 0
    bad = capsys.readouterr().out.splitlines()
    assert "  rows               3  of plays read, 2 kept" in bad
    assert "  plays              2  2020-01-01 (UTC); 0.0% repeats" in bad
    assert bad[bad.index("dropped") + 1] == "  - bad.csv: 1 row dropped: empty user_id (line 4)"
    head = next(line for line in lines if line.endswith("most"))
    figures = [line for line in lines if line.split()[0] in ("users", "tracks", "sessions")]
    ends = [head.index(name) + len(name) for name in ("median", "90 %", "most")]
    assert len(figures) == 3
    assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in figures for end in ends)


def test_large_figures_stay_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{user},{track},{10**12 - user}" for user in range(3) for track in "xyz"]
    (tmp_path / "plays.csv").write_text("\n".join(["user_id,track_id,playcount", *lines]))
    assert cli.main(["prepare", str(tmp_path / "plays.csv"), str(tmp_path / "dataset")]) == 0
    (users,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["users"]]
    assert len(users.split()) == 5, users


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["30music", "lfm-sessions"])
def test_figures_of_real_logs_are_those_that_pandas_finds(name: str, tmp_path: Path) -> None:
    folder = real_data(name)
    plays = pd.read_csv(folder / "plays.csv.gz", dtype={"user_id": str, "track_id": str, "session": str})
    found = prepare(folder, tmp_path / "dataset").summary
    assert (found["kept"], found["plays"]) == (len(plays), len(plays))
    assert found["repeats"] == pytest.approx(plays.duplicated(["user_id", "track_id"]).mean())
    for key, by in (("per_user", ["user_id"]), ("per_track", ["track_id"])):
        assert found[key] == spread(plays.groupby(by).size().tolist())
    assert found["sessions"]["count"] == plays.groupby(["user_id", "session"]).ngroups
    assert ("time" in found) == ("timestamp" in plays)
    if "time" in found:
        assert (found["time"]["oldest"], found["time"]["newest"]) == (plays.timestamp.min(), plays.timestamp.max())
