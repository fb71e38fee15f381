"""What a source says is read as it says it, or refused, or told: never taken for something else in silence."""

import bz2
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lhydra import cli
from lhydra.data import lists, times
from lhydra.data.dataset import Dataset

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `lhydra prepare` on the source `in`; returns (exit code, stdout, the last line of stderr)."""

    def command(*flags: str, source: str = "in") -> tuple[int, str, str]:
        code = cli.main(["prepare", str(tmp_path / source), str(tmp_path / "out"), *flags])
        printed = capsys.readouterr()
        return code, " ".join(printed.out.split()), (printed.err.splitlines() or [""])[-1]

    return command


def csv(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def plays(folder: Path, stamps: Sequence[object] = (), header: str = "user_id,track_id,timestamp") -> Path:
    """Writes plays of two users, a track each per stamp, which is quoted."""
    rows = [f'u{i % 2},t{i},"{stamp}"' for i, stamp in enumerate(stamps or range(1_600_000_000, 1_600_000_006))]
    return csv(folder / "plays.csv", header, *rows)


def heard(folder: Path) -> dict[str, int]:
    dataset = Dataset.open(folder)
    ids = dataset.track_ids
    return {
        ids[track]: time for track, time in zip(dataset.plays.track.tolist(), dataset.plays.time.tolist(), strict=True)
    }


def seconds(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp())


@pytest.fixture
def cells() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    times.configure(con)
    lists.configure(con)
    return con


TIMES = {
    "1577836800": seconds(2020, 1, 1),
    " 1577836800 ": seconds(2020, 1, 1),
    "+1577836800": seconds(2020, 1, 1),
    "1577836800.999": seconds(2020, 1, 1),
    "1.5778368e9": seconds(2020, 1, 1),
    "": 0,
    "\t": 0,
    "20200101": seconds(2020, 1, 1),
    "20200101.0": seconds(2020, 1, 1),
    "20200229": seconds(2020, 2, 29),
    "20210229": None,
    "20201301": None,
    "20200101101500": seconds(2020, 1, 1, 10, 15),
    "20200101T101500": seconds(2020, 1, 1, 10, 15),
    "20200101T101500Z": seconds(2020, 1, 1, 10, 15),
    "20200101T101500+0200": seconds(2020, 1, 1, 8, 15),
    "20200101 101500": seconds(2020, 1, 1, 10, 15),
    "20200101T1015": seconds(2020, 1, 1, 10, 15),
    "20200101 10:15": seconds(2020, 1, 1, 10, 15),
    "2020": None,
    "2020.0": None,
    "2020-01": None,
    "2020-001": None,
    "2020-W01-1": None,
    "2020-02-30": None,
    "2020-1-1": seconds(2020, 1, 1),
    "2020-01-01t10:00z": seconds(2020, 1, 1, 10),
    "2020-01-01 10:00:00 UTC": seconds(2020, 1, 1, 10),
    "2020-01-01 10:00:00 +02:00": seconds(2020, 1, 1, 8),
    "2020-01-01T10:00:00-02": seconds(2020, 1, 1, 12),
    "2020-01-01T10:00:00,9999999": seconds(2020, 1, 1, 10),
    "2020-01-01T10:00:00.9999999Z": seconds(2020, 1, 1, 10),
    "2020-01-01T24:00:00": seconds(2020, 1, 2),
    "2020-01-01T10": None,
    "2020-01-01T10:00:60": None,
    "2020-01-01 10:00 PM": None,
    "2020-01-01 10:00:00 CET": None,
    "2020-01-01 10:00:00 Europe/Paris": None,
    "2020-01-01 (BC)": None,
    "2020/01/01": None,
    "01.02.2020": None,
    "0x5E0C0000": None,
    "0b1": None,
    "1_577_836_800": None,
    "1,577,836,800": None,
    "inf": None,
    "nan": None,
    "1577836800000": None,
}


@pytest.mark.parametrize(("cell", "wanted"), TIMES.items())
def test_each_spelling_of_a_time_is_decided_on(cells: duckdb.DuckDBPyConnection, cell: str, wanted: int | None) -> None:
    assert cells.execute("SELECT seconds(?)", [cell]).fetchone() == (wanted,)


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        *(("5", 5.0), (" 5 ", 5.0), ("\t5", 5.0), ("+5", 5.0), ("-.5e1", -5.0), ("5.", 5.0), ("1e-3", 0.001)),
        *((cell, None) for cell in ("0x10", "0b1", "1_000", "1,5", "5%", "inf", "nan", "1e400", "٥", "", "1e", "--5")),
    ],
)
def test_each_spelling_of_a_number_is_decided_on(
    cells: duckdb.DuckDBPyConnection, cell: str, wanted: float | None
) -> None:
    assert cells.execute("SELECT number(?)", [cell]).fetchone() == (wanted,)


COUNTS = (
    *("3000", "0", "007", "3e3", "3E+3", "3000.0", "3000.", " 3000 ", "\t3000", "\u00a03000", "+3000", "3000.7", ".5"),
    *("30000e-1", "12345e-1", "-0", "-0.0", "1e17", "999999999999999999", "9007199254740993", " +9007199254740993"),
    *("1e18", "1000000000000000000", "1e400", "-3", "-3e3", "-.5", "", " ", "0x10", "0b1", "1_000", "3,000", "3 000"),
    *("inf", "nan", "NaN", "true", "٣", "1e", "--5", "+-5", "3000ms", "1.5.2", ".", "e3"),
)


def counted(cell: str) -> Decimal | None:
    """What a cell says as a number from 0, by Python's own reading of the same spellings."""
    try:
        value = Decimal(cell.strip()) if cell.isascii() or "\u00a0" in cell else None
    except ArithmeticError:
        return None
    if value is None or not value.is_finite() or "_" in cell:
        return None
    return value if 0 <= value < 10**18 else None


@pytest.mark.parametrize("cell", COUNTS)
def test_each_spelling_of_a_count_is_decided_on(cells: duckdb.DuckDBPyConnection, cell: str) -> None:
    wanted = counted(cell)
    part, place = cells.execute("SELECT part($cell), place($cell)", {"cell": cell}).fetchall()[0]
    assert part == (None if wanted is None else int(wanted))
    assert place == (None if wanted is None or wanted % 1 else int(wanted))


def test_single_plays_are_read_by_the_grammar_of_numbers(run: Run, tmp_path: Path) -> None:
    header = "user_id,track_id,ms_played,position,skipped,split"
    rows = ["3000,1,1,train", "3e3,1e0,+1,\ttrain", " 3000.9 ,+1.0,1e0,\u00a0train", "-3000,-1,2,train", ",,,train"]
    csv(tmp_path / "in" / "plays.csv", header, *(f"u{i % 2},t{i},{row}" for i, row in enumerate(rows)))
    code, out, _ = run()
    assert code == 0
    events = Dataset.open(tmp_path / "out").events
    by_track = {int(track): i for i, track in enumerate(events.track.tolist())}
    order = [by_track[i] for i in range(5)]
    assert events.ms_played[order].tolist() == [3000, 3000, 3000, -1, -1]
    assert events.position[order].tolist() == [1, 1, 1, -1, -1]
    assert events.skipped[order].tolist() == [1, 1, 1, -1, -1]
    assert "ms_played: 1 not a number from 0, taken as unknown (first '-3000', line 5)" in out
    assert "position: 1 not a whole number from 0, taken as unknown (first '-1', line 5)" in out
    assert "skipped: 1 not true or false, taken as unknown (first '2', line 5)" in out


def test_what_prepare_proposes_as_numeric_it_reads_as_numbers(run: Run, tmp_path: Path) -> None:
    header = "user_id,track_id,mood,count,score"
    csv(tmp_path / "in" / "plays.csv", header, *(f"u{i % 2},t{i},1_00{i},{i}e0,٣" for i in range(4)))
    out = run()[1]
    assert "mood: {kind: categorical}" in out
    assert "score: {kind: categorical}" in out


@pytest.mark.parametrize(
    ("name", "side", "declared"),
    [
        ("genre", "tracks", ""),
        ("artist", "tracks", ""),
        ("name", "tracks", ""),
        ("tempo", "tracks", ""),
        ("country", "users", ""),
        ("my moods", "tracks", 'columns: {tracks: {"my moods": {kind: categorical}}}'),
    ],
)
@pytest.mark.parametrize("flat", [True, False])
def test_the_refusal_of_a_list_says_the_line_that_takes_it(
    name: str, side: str, declared: str, flat: bool, run: Run, tmp_path: Path
) -> None:
    ids = {"user_id": ["a", "b"] * 2, "track_id": [f"t{i}" for i in range(4)]}
    lists = {name: pa.array([["x"], ["y", "z"], None, ["x"]])}
    if flat:
        pq.write_table(pa.table(ids | lists), tmp_path / "in.parquet")
    else:
        (tmp_path / "in").mkdir()
        pq.write_table(pa.table(ids), tmp_path / "in" / "plays.parquet")
        key = {"tracks": "track_id", "users": "user_id"}[side]
        pq.write_table(pa.table({key: ids[key]} | lists), tmp_path / "in" / f"{side}.parquet")
    config = tmp_path / "c.yaml"
    config.write_text(declared)
    source = "in.parquet" if flat else "in"
    code, _, error = run(*["--config", str(config)] * bool(declared), source=source)
    assert code == 1
    assert not (tmp_path / "out").exists()
    assert f"{name}: found a column of list<" in error
    config.write_text(error.split("`")[1])
    assert run("--config", str(config), source=source)[0] == 0
    table = getattr(Dataset.open(tmp_path / "out"), side)
    assert table[name].to_pylist()[:2] == [["x"], ["y", "z"]]


def test_basic_dates_are_dates_and_said(run: Run, tmp_path: Path) -> None:
    plays(tmp_path / "in", ["20200101", "20200102", "20200103", "1577836800", "20209999", "2020"])
    code, out, _ = run("--split", "random")
    assert code == 0
    assert heard(tmp_path / "out") == {
        **{f"t{i}": seconds(2020, 1, 1 + i) for i in range(3)},
        "t3": seconds(2020, 1, 1),
    }
    assert "plays.csv: timestamp: 4 cells of 8 digits are read as dates (YYYYMMDD), not as seconds of 1970" in out
    assert "1 row dropped: timestamp is neither Unix seconds nor ISO 8601 (line 6)" in out
    assert "1 row dropped: timestamp is a year alone, which is no time (line 7)" in out


def test_small_seconds_stay_seconds_and_that_is_said(run: Run, tmp_path: Path) -> None:
    stamps = [5, 100, 2020, 3000, 20200101, 86400]
    plays(tmp_path / "in", stamps)
    code, out, _ = run("--split", "random")
    assert code == 0
    assert list(heard(tmp_path / "out").values()) != []
    assert heard(tmp_path / "out") == {f"t{i}": stamp for i, stamp in enumerate(stamps)}
    assert "timestamp: 2 cells like '2020' are read as seconds of 1970, as most small numbers here are" in out


def test_one_date_among_seconds_is_told_as_one(run: Run, tmp_path: Path) -> None:
    plays(tmp_path / "in", ["20200101", *range(1_600_000_000, 1_600_000_005)])
    assert "timestamp: 1 cell of 8 digits is read as a date (YYYYMMDD), not as seconds of 1970" in run()[1]


OLD = "of 6 known times lie before March 1973"


@pytest.mark.parametrize(
    ("stamps", "old", "first"),
    [
        ([202001, 202002, 202003, 202004, 202101, 202102], 6, "'202001', line 2, is read as 1970-01-03 08:06:41"),
        ([200101, 200102, 200103, 200104, 200105, 200106], 6, "'200101', line 2, is read as 1970-01-03 07:35:01"),
        ([1_600_000_000, 0, 18_262, "", 18_263, 18_264, 1_600_000_001, 18_265], 4, "'18262', line 4, is read as"),
        (["1970-01-19T12:26:40"] * 4 + ["2020-01-01"] * 2, 4, "line 2, is read as 1970-01-19 12:26:40"),
        ([99_999_999] * 4 + [100_000_000] * 2, 4, "'99999999', line 2, is read as 1973-03-03 09:46:39"),
        ([99_999_999] * 3 + [100_000_000] * 3, 0, ""),
        ([202001, *range(1_600_000_000, 1_600_000_005)], 0, ""),
        (["20200101", "20200102"] * 3, 0, ""),
        ([0, "", 0, "", 0, ""], 0, ""),
    ],
)
def test_times_of_the_first_years_after_1970_are_doubted(
    stamps: list[object], old: int, first: str, run: Run, tmp_path: Path
) -> None:
    plays(tmp_path / "in", stamps)
    code, out, _ = run("--split", "random", "--strict")
    assert code == 0
    assert (f"{old} {OLD}" in out) == bool(old)
    assert ("before March 1973" in out) == bool(old)
    assert first in out
    if old:
        assert "give Unix seconds or full dates such as 2020-06-30, or name the column otherwise" in out


def test_times_of_a_wrong_unit_in_parquet_are_doubted(run: Run, tmp_path: Path) -> None:
    stamps = pa.array([1_577_836_800 + i for i in range(6)], pa.timestamp("ms"))  # seconds, said to be milliseconds
    table = {"user_id": ["a", "b"] * 3, "track_id": [f"t{i}" for i in range(6)], "timestamp": stamps}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    out = run("--split", "random", source="in.parquet")[1]
    assert f"in.parquet: timestamp: 6 {OLD} (the first, '1577836', row 1, is read as 1970-01-19 06:17:16" in out


def test_bare_years_are_refused_with_what_to_do(run: Run, tmp_path: Path) -> None:
    plays(tmp_path / "in", [2018, 2019, 2020, 2020, 2021, 2020])
    code, _, error = run()
    assert code == 1
    assert (
        "plays.csv: timestamp: found '2018', a year alone, expected Unix seconds or ISO 8601; give full dates" in error
    )


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kolkata"])
@pytest.mark.parametrize("old", [False, True])
def test_every_unit_of_arrow_reads_exactly(unit: str, zone: str | None, old: bool, run: Run, tmp_path: Path) -> None:
    per = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    stamps = [1_600_000_000 * per + per - 1, 20_200_101 * per, 2020 * per + per // 2, None, -1, 7 * per]
    table = {
        "user_id": ["a", "b"] * 3,
        "track_id": [f"t{i}" for i in range(6)],
        "timestamp": pa.array(stamps, pa.timestamp(unit, zone)),
    }
    pq.write_table(pa.table(table), tmp_path / "in.parquet", use_deprecated_int96_timestamps=old)
    code, out, _ = run("--split", "random", source="in.parquet")
    assert code == 0
    assert heard(tmp_path / "out") == {"t0": 1_600_000_000, "t1": 20_200_101, "t2": 2020, "t3": 0, "t5": 7}
    assert "1 row dropped: timestamp is neither Unix seconds nor ISO 8601 (row 5)" in out


@pytest.mark.parametrize(
    "stamps",
    [
        pa.array([18_262, 18_263], pa.date32()),
        pa.array([18_262 * 86_400_000, 18_263 * 86_400_000], pa.date64()),
        pa.array([1_577_836_800, 1_577_923_200], pa.uint64()),
        pa.array([Decimal("1577836800.25"), Decimal("1577923200.00")]),
        pa.array(["2020-01-01", "2020-01-02"]).dictionary_encode(),
        pa.array(["20200101", "20200102"], pa.large_string()),
        pa.array([1_577_836_800.5, 1_577_923_200.0]),
        pa.array([20_200_101, 20_200_102], pa.int32()),
    ],
)
def test_every_type_of_a_time_reads_exactly(stamps: pa.Array, run: Run, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"user_id": ["a", "b"], "track_id": ["x", "y"], "timestamp": stamps}), tmp_path / "in.parquet"
    )
    assert run("--split", "random", source="in.parquet")[0] == 0
    assert heard(tmp_path / "out") == {"x": 1_577_836_800, "y": 1_577_923_200}


# Ids that match


def test_users_that_match_nobody_are_refused_and_rates_are_told(run: Run, tmp_path: Path) -> None:
    plays(tmp_path / "in")
    csv(tmp_path / "in/users.csv", "user_id,age", "0,30", "1,40")
    code, _, error = run()
    assert code == 1
    assert "users.csv: found user_id '0', and plays.csv has 'u0': no user of the plays is in it" in error
    csv(tmp_path / "in/users.csv", "user_id,age", "u0,30", "x,40")
    csv(tmp_path / "in/tracks.csv", "track_id", *(f"t{i}" for i in range(9) if i != 1))
    code, out, _ = run()
    assert code == 0
    assert "users.csv: 1 of 2 users in the plays have a row (50.0%); 1 more rows are of users that no play names" in out
    assert "tracks.csv: 5 of 6 tracks in the plays have a row (83.3%); 3 more rows" in out
    csv(tmp_path / "in/tracks.csv", "track_id", "T0")
    assert "tracks.csv: found track_id 'T0', and plays.csv has 't0'" in run()[2]


# Lists


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("['rock', 'pop']", ["rock", "pop"]),
        ('["rock","pop"]', ["rock", "pop"]),
        ("['rock' 'pop']", ["rock", "pop"]),
        ("['rock'\n 'pop']", ["rock", "pop"]),
        ("[rock, hip hop]", ["rock", "hip hop"]),
        ('{rock,"hip, hop"}', ["rock", "hip, hop"]),
        ("('a', 'b')", ["a", "b"]),
        ("('a',)", ["a"]),
        ("['it\\'s', \"don't\"]", ["it's", "don't"]),
        ('["caf\\u00e9", null, 3]', ["café", "3"]),
        ("[None, 'x', nan]", ["x"]),
        ("[]", []),
        ("[ ]", []),
        *((cell, None) for cell in ("rock", "", "[", "['a'", "(x)", "[['a'], 'b']", "['a''b']", '{"a": 1}', "[a]b")),
    ],
)
def test_lists_as_programs_write_them(cell: str, wanted: list[str] | None) -> None:
    assert lists.read_list(cell) == wanted


@pytest.mark.parametrize(
    ("tags", "wanted", "said"),
    [
        (["['rock', 'pop']", "[]", "['soul']"], [["rock", "pop"], None, ["soul"]], "3 of 3 cells are lists"),
        (['["rock","a, b"]', "", '["soul"]'], [["rock", "a, b"], None, ["soul"]], "2 of 2 cells are lists"),
        (["{rock,pop}", "{}", "{a}"], [["rock", "pop"], None, ["a"]], "3 of 3 cells are lists"),
        (["['a']", "['b', 'c']", "['d'"], [["a"], ["b", "c"], None], "1 broken lists are taken as missing"),
        (
            ["rock;pop", "Earth, Wind & Fire", "soul"],
            [["rock", "pop"], ["Earth, Wind & Fire"], ["soul"]],
            "split at ';'",
        ),
        (["rock | pop", "a;b", "c, d"], [["rock", "pop"], ["a;b"], ["c, d"]], "split at '|', which 1 of 3 hold"),
        (["rock, pop", "r&amp;b, soul", "a"], [["rock", "pop"], ["r&amp;b", "soul"], ["a"]], "split at ','"),
        (
            ["['rock', 'pop']", '["rock","pop"]', "rock;pop", "[]"],
            [["rock", "pop"], ["rock", "pop"], ["rock", "pop"], None],
            "3 of 4 cells are lists, read as such; others are split at ';', which 1 of the other 1 hold",
        ),
        (
            ["['rock', 'pop']", "a|b", "x", "c;d"],
            [["rock", "pop"], ["a", "b"], ["x"], ["c;d"]],
            "1 of 4 cells are lists, read as such; others are split at '|', which 1 of the other 3 hold; "
            "1 hold a semicolon, which separates nothing here",
        ),
        (
            ["R&amp;B;pop", "R&amp;B", "Drum &#38; Bass;x"],
            [["R&amp;B", "pop"], ["R&amp;B"], ["Drum &#38; Bass", "x"]],
            "';'",
        ),
        (["[unknown]", "a, b", "c"], [["[unknown]"], ["a", "b"], ["c"]], "split at ','"),
        (["a", "b", "c"], [["a"], ["b"], ["c"]], "each is one value"),
    ],
)
def test_tags_are_read_as_one_kind_of_list_and_it_is_said(
    tags: list[str], wanted: list[Any], said: str, run: Run, tmp_path: Path
) -> None:
    plays(tmp_path / "in", [1_600_000_000 + i for i in range(3)])
    rows = ['t{},"{}"'.format(i, tag.replace('"', '""')) for i, tag in enumerate(tags)]
    csv(tmp_path / "in/tracks.csv", "track_id,tags", *rows)
    code, out, _ = run()
    assert code == 0
    assert Dataset.open(tmp_path / "out").tracks["tags"].to_pylist() == wanted
    assert said in out


# Names of columns and files


def test_known_names_match_without_case(run: Run, tmp_path: Path) -> None:
    csv(tmp_path / "in.csv", " USER_ID,Track_Id ,Playcount,TIMESTAMP,Artist", "a,x,3,20200101,A", "b,y,4,20200102,B")
    assert run(source="in.csv")[0] == 0
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.plays.count.tolist() == [3, 4]
    assert dataset.info.timed
    assert dataset.tracks["artist"].to_pylist() == ["A", "B"]
    csv(tmp_path / "in.csv", "user_id,track_id,Artist,artist", "a,x,1,2", "b,y,3,4")
    code, _, error = run(source="in.csv")
    assert code == 1
    assert "found the columns Artist and artist, expected distinct column names" in error


def test_near_names_are_proposed_and_never_used(run: Run, tmp_path: Path) -> None:
    csv(tmp_path / "in.csv", "userid,item_id,uts", "a,x,1600000000", "b,y,1600000000")
    code, _, error = run(source="in.csv")
    assert code == 1
    assert "found the columns userid, item_id, uts, expected a column user_id; if userid is meant, rename it" in error
    assert "give --columns user=userid,track=item_id" in error
    rows = [f"u{i % 2},t{i},{1_600_000_000 + i},{i + 1},{i % 3}" for i in range(9)]
    csv(tmp_path / "in.csv", "user_id,track_id,uts,weight,artistid", *rows)
    code, out, _ = run(source="in.csv")
    assert code == 0
    info = Dataset.open(tmp_path / "out").info
    assert (info.timed, info.track_columns) == (False, ())
    assert "uts (timestamp?), weight (playcount?), artistid (artist?): rename a column to the name in brackets" in out
    assert "or have timestamp=uts,playcount=weight,artist=artistid in --columns" in out
    assert "uts: {kind" not in out
    assert "weight: {kind" not in out


def test_plays_alone_in_a_folder_are_the_flat_form(run: Run, tmp_path: Path) -> None:
    rows = [f"u{i % 2},t{i},{1_600_000_000 + i},A{i},g{i},c{i % 2}" for i in range(6)]
    csv(tmp_path / "in/plays.csv", "user_id,track_id,timestamp,artist,genre,country", *rows)
    assert run()[0] == 0
    alone = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.parquet")}
    assert run(source="in/plays.csv")[0] == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.parquet")} == alone
    assert [column.name for column in Dataset.open(tmp_path / "out").info.track_columns] == ["artist", "genre"]
    csv(tmp_path / "in/users.csv", "user_id,age", "u0,30", "u1,31")
    assert run()[0] == 0
    info = Dataset.open(tmp_path / "out").info
    assert [column.name for column in info.track_columns] == ["artist", "genre"]
    assert [column.name for column in info.user_columns] == ["age"]
    assert "not used: country (describe single plays, neither tracks nor users)" in info.warnings


@pytest.mark.parametrize("name", ["Tracks.csv", "TRACKS.CSV"])
def test_files_match_without_case(name: str, run: Run, tmp_path: Path) -> None:
    plays(tmp_path / "in")
    csv(tmp_path / "in" / name, "track_id,artist", *(f"t{i},A{i}" for i in range(6)))
    assert run()[0] == 0
    assert Dataset.open(tmp_path / "out").tracks["artist"].to_pylist() == [f"A{i}" for i in range(6)]
    csv(tmp_path / "in/tracks.csv", "track_id", "t0")
    assert "expected one tracks file" in run()[2]


def test_files_that_look_like_tables_are_told(run: Run, tmp_path: Path) -> None:
    plays(tmp_path / "in")
    (tmp_path / "in/tracks.tsv.xz").write_bytes(b"x")
    (tmp_path / "in/users.csv.bz2").write_bytes(bz2.compress(b"user_id,age\nu0,3\n"))
    csv(tmp_path / "in/songs.csv", "track_id", "t0")
    csv(tmp_path / "in/README.md", "read me")
    code, out, _ = run()
    assert code == 0
    for name in ("tracks.tsv.xz (save it as tracks.csv", "users.csv.bz2 (save it as users.csv", "songs.csv (the files"):
        assert f"not read: {name}" in out
    assert "README" not in out


# Empty cells, plays twice


def test_the_first_filled_cell_of_each_column_wins(run: Run, tmp_path: Path) -> None:
    plays(tmp_path / "in", [1_600_000_000 + i for i in range(3)])
    rows = ["t0,,x,", "t0,A, ,1990", "t0,B,x,", "t1,,,", "t2,C,soon,2000"]
    csv(tmp_path / "in/tracks.csv", "track_id,artist,year,tempo", *rows)
    code, out, _ = run()
    assert code == 0
    tracks = Dataset.open(tmp_path / "out").tracks
    assert tracks["artist"].to_pylist() == ["A", None, "C"]
    assert tracks["tempo"].to_pylist() == [1990.0, None, 2000.0]
    assert "1 row dropped: track_id again with different data (line 4)" in out


def test_identical_plays_are_counted_and_told(run: Run, tmp_path: Path) -> None:
    rows = [
        "u0,t0,1600000000",
        "u1,t1,1600000000",
        "u0,t0,2020-09-13T12:26:40Z",
        "u0,t0,1600000001",
        "u0,t0,1600000000",
    ]
    csv(tmp_path / "in/plays.csv", "user_id,track_id,timestamp", *rows)
    code, out, _ = run("--split", "random", "--strict")
    assert code == 0
    assert (
        "2 rows again, counted as plays of their own (--deduplicate drops them): same user, track and second"
        " as an earlier row (lines 4, 6)" in out
    )
    assert Dataset.open(tmp_path / "out").plays.count.tolist() == [4, 1]
    code, out, _ = run("--split", "random", "--strict", "--deduplicate")
    assert code == 0
    assert "2 rows dropped: same user, track and second as an earlier row (lines 4, 6)" in out
    assert "counted as plays of their own" not in out
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.plays.count.tolist() == [2, 1]
    assert sorted(dataset.events.time.tolist()) == [1_600_000_000, 1_600_000_000, 1_600_000_001]


def test_plays_without_a_time_are_no_duplicates(tmp_path: Path, run: Run) -> None:
    csv(tmp_path / "in/plays.csv", "user_id,track_id,timestamp", "u0,t0,", "u0,t0,", "u1,t0,5000000", "u1,t0,5000000")
    code, out, _ = run("--split", "random", "--deduplicate")
    assert code == 0
    assert "1 row dropped: same user, track and second as an earlier row (line 5)" in out
    assert Dataset.open(tmp_path / "out").plays.count.tolist() == [2, 1]


@pytest.mark.parametrize("last", ["2026-01-02", "2026-01-02T00:00:01"])
def test_dates_without_a_time_of_day_are_told_where_duplicates_are_dropped(tmp_path: Path, run: Run, last: str) -> None:
    rows = ["u0,t0,2026-01-01", "u0,t0,2026-01-01", "u1,t0,", f"u1,t0,{last}"]
    csv(tmp_path / "in/plays.csv", "user_id,track_id,timestamp", *rows)
    told = "plays.csv: timestamp: every time is a midnight, so that --deduplicate left one play a day of each user and"
    for flags in (["--deduplicate"], []):
        code, out, _ = run("--split", "random", *flags)
        assert code == 0
        assert (told in " ".join(out.split())) == (bool(flags) and last == "2026-01-02")
    csv(tmp_path / "in/plays.csv", "user_id,track_id,timestamp", *rows[1:])
    assert told not in " ".join(run("--split", "random", "--deduplicate")[1].split())  # which dropped nothing


# Columns that cannot be used, and the real reason


@pytest.mark.parametrize(
    "values",
    [
        pa.array([{"x": 1}] * 6),
        pa.array([[("k", 1)]] * 6, pa.map_(pa.string(), pa.int64())),
        pa.array([b"\xff"] * 6),
        pa.array([[{"x": 1}]] * 6),
        pa.array([[[1]]] * 6),
    ],
)
def test_a_column_that_cannot_be_used_is_listed_or_refused_first(values: pa.Array, run: Run, tmp_path: Path) -> None:
    table = {"user_id": ["a", "b"] * 3, "track_id": [f"t{i}" for i in range(6)], "odd": values}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    code, out, _ = run(source="in.parquet")
    assert code == 0
    assert "not used: odd (a column of" in out
    for name in ("artist", "age", "timestamp", "playcount", "split"):
        pq.write_table(pa.table({**table, name: values}), tmp_path / "in.parquet")
        code, _, error = run(source="in.parquet")
        assert code == 1
        assert f"in.parquet: {name}: found a column of" in error


def test_a_fixed_size_list_of_text_is_multi(run: Run, tmp_path: Path) -> None:
    tags = pa.array([["a", "b"], None, ["c", None]], pa.list_(pa.string(), 2))
    table = {"user_id": ["u", "v", "u"], "track_id": ["x", "y", "z"], "tags": tags}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    assert run(source="in.parquet")[0] == 0
    assert Dataset.open(tmp_path / "out").tracks["tags"].to_pylist() == [["a", "b"], None, ["c"]]


def test_the_real_reason_comes_first(run: Run, tmp_path: Path) -> None:
    csv(tmp_path / "in/plays.csv", "user_id,track_id,timestamp", "u0,t0,1600000000", "u1,t1,soon", "u2,t2,later")
    code, _, error = run()
    assert code == 1
    assert "plays.csv: found plays.csv: 2 rows dropped: timestamp is neither Unix seconds nor ISO 8601" in error
    assert "plays of 1 user left, expected plays of at least 2 users" in error


def test_what_is_told_is_in_the_json(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plays(tmp_path / "in")
    csv(tmp_path / "in/users.csv", "user_id,age", "u0,30")
    assert cli.main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--json"]) == 0
    assert "users.csv: 1 of 2 users in the plays have a row (50.0%)" in json.loads(capsys.readouterr().out)["warnings"]
