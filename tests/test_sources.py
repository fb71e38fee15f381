"""Files that are not what they claim to be are refused with one line; odd but valid ones are read exactly."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra.data import loading as sources
from lhydra.data.loading import load
from lhydra.data.sources import Source, open_source
from lhydra.errors import DataError
from tests.harness import examples


def read(path: Path) -> list[tuple[Any, ...]]:
    """Returns the rows of a flat source as text, empty cells as ''."""
    source = open_source(path)
    with duckdb.connect() as con:
        load(con, source.plays, "raw", source.plays.names, path.parent)
        rows = con.execute("SELECT * FROM raw ORDER BY rowid").fetchall()
    return [tuple("" if cell is None else cell for cell in row) for row in rows]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    return message


def flat(folder: Path, content: bytes | str, name: str = "flat.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "an empty file"),
        ("user_id,track_id\n", "a header and no rows"),
        ("user_id,track_id\r\n", "a header and no rows"),
        ("\n\nuser_id,track_id\na,b\n", "line 1: found a blank line"),
        ("user_id,song\na,b\n", "found the columns user_id, song, expected a column track_id"),
        ("user;track\na;b\n", "found the columns user;track, expected a column user_id"),
        ("user_id,track_id,user_id\na,b,c\n", "more than one column user_id"),
        ('user_id,track_id\na,b\n"c,d\ne,f\n', "line 3: found a quote that is never closed"),
        ('user_id,track_id\na,b\n"c,d', "line 3: found a quote that is never closed"),
        ('user_id,track_id\na,b\n"c"x,d\n', "line 3: found text after a closing quote"),
        ('user_id,track_id\na,b\n"c" ,d\n', "line 3: found text after a closing quote"),
        ('user_id,"track_id\na,b\n', "line 1: found a quote that is never closed"),
        ("user_id,track_id\na,b\nc\n", "line 3: found 1 cells, expected 2"),
        ("user_id,track_id\na,b\n\nc,d,e\n", "line 4: found 3 cells, expected 2"),
        (b"user_id,track_id\na,b\nc\0,d\n", "line 3: found a NUL byte"),
        (b"user_id,track_id\na,b\n\xe9t\xe9,d\n", "line 3: found the byte 0xe9, which is not UTF-8"),
        (b"user_id,track_id\na,b\nc,\xc3", "line 3: found the byte 0xc3, which is not UTF-8"),
        ("user_id,track_id\na,b\n".encode("utf-16"), "line 1: found the byte 0xff"),
        ('user_id,track_id\na,b\n"' + "x,y\n" * 50_000, "line 3: found a cell above 131,072 characters"),
    ],
)
def test_csv_that_is_none_is_refused(tmp_path: Path, content: bytes | str, found: str) -> None:
    assert found in refused(flat(tmp_path, content))
    packed = content.encode() if isinstance(content, str) else content
    if packed:
        assert found in refused(flat(tmp_path, gzip.compress(packed), "flat.csv.gz"))


def test_files_that_are_not_there_or_not_alone(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nowhere")
    assert "found nothing in it" in refused(tmp_path)
    flat(tmp_path, "a text", "notes.txt")
    assert "found notes.txt, expected a folder with plays.csv" in refused(tmp_path)
    assert "found a .txt file" in refused(tmp_path / "notes.txt")
    flat(tmp_path, "user_id,track_id\na,b\n", "plays.csv")
    assert read(tmp_path) == [("a", "b")]
    flat(tmp_path, "user_id,track_id\na,b\n", "plays.parquet")
    assert "found plays.csv and plays.parquet, expected one plays file" in refused(tmp_path)
    (tmp_path / "plays.parquet").unlink()
    flat(tmp_path, "name\nx\n", "tracks.csv")
    assert "tracks.csv: found the columns name, expected a column track_id" in refused(tmp_path)
    flat(tmp_path, "{}", "dataset.json")
    assert "prepared already" in refused(tmp_path)


def test_broken_gzip_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(b"user_id,track_id\n" + b"a,b\n" * 1000)
    assert "broken gzip" in refused(flat(tmp_path, packed[:-9], "cut.csv.gz"))
    assert "broken gzip" in refused(flat(tmp_path, b"user_id,track_id\na,b\n", "not.csv.gz"))
    assert "broken gzip" in refused(flat(tmp_path, packed[:15] + b"\x55" + packed[16:], "bent.csv.gz"))
    assert "0x8b" in refused(flat(tmp_path, packed, "packed.csv"))


def test_parquet_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flat.parquet"
    pq.write_table(pa.table({"user_id": [f"u{i}" for i in range(1000)], "track_id": list(range(1000))}), path)
    whole = path.read_bytes()
    assert read(path)[:2] == [("u0", "0"), ("u1", "1")]
    path.write_bytes(whole[:-40])
    assert "expected a Parquet file" in refused(path)
    path.write_bytes(whole[:50] + bytes(500) + whole[550:])
    assert "expected a Parquet file" in refused(path)
    path.write_bytes(b"user_id,track_id\n")
    assert "expected a Parquet file" in refused(path)
    pq.write_table(pa.table({"user_id": [1.0], "track_id": ["a"]}), path)
    assert "user_id: found a column of double, expected ids as text or whole numbers" in refused(path)
    pq.write_table(pa.table({"user_id": ["a"], "track_id": [b"a"]}), path)
    assert "found a column of binary" in refused(path)
    pq.write_table(pa.table({"user_id": pa.array([], pa.string()), "track_id": pa.array([], pa.string())}), path)
    assert "found no rows" in refused(path)
    pq.write_table(pa.table({"user_id": ["a"], "track_id": ["b"], "age": [{"x": 1}]}), path)
    assert "age: found a column of struct" in refused(path)


def test_parquet_types_arrive_as_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": pa.array(["007", "1.0"]).dictionary_encode(),
            "track_id": pa.array([2**63, 5], pa.uint64()),
            "Mood": [0.1, None],
            "mood": pa.array([True, False]),
            'od"d': [["a", None], []],
            "timestamp": pa.array([1_600_000_000_999, None], pa.timestamp("ms", "Europe/Paris")),
        }
    )
    pq.write_table(table, tmp_path / "flat.parquet")
    assert read(tmp_path / "flat.parquet") == [
        ("007", str(2**63), "0.1", "true", ["a", None], "1600000000"),
        ("1.0", "5", "", "false", [], ""),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffuser_id,track_id\n007,1.0\n",
        "user_id,track_id\r\nNA,null\r\nnan,a b\r\n",
        "user_id,track_id\r a ,\tb\rc,d\r",
        "user_id,track_id\na,b\r\nc,d\n",  # mixed line ends
        'user_id,track_id\n"a\r\nb","c""d"\n\n\ne,f',
        'user_id,track_id\n "a",b\n',
        'user_id,track_id\na"b,#c\nx\\,\u2028é\n',
    ],
)
def test_odd_csv_is_read_as_the_standard_reader_does(tmp_path: Path, content: str) -> None:
    wanted = list(csv.reader(io.StringIO(content.removeprefix("\ufeff"), newline="")))[1:]
    assert read(flat(tmp_path, content)) == [tuple(row) for row in wanted if row]


def test_well_formed_csv_takes_the_fast_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_rewritten", lambda table, folder: pytest.fail("read twice"))
    content = 'user_id,track_id\n"a\nb","c""d"\n007, e f\n\n,é\n'
    wanted = [("a\nb", 'c"d'), ("007", " e f"), ("", "é")]
    assert read(flat(tmp_path, content)) == wanted
    assert read(flat(tmp_path, gzip.compress(content.encode()), "flat.csv.gz")) == wanted


CELL = st.text(st.sampled_from('aé1 ",\n\r\\|'), max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(25))
@given(
    rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
    spot=st.none() | st.tuples(st.integers(0, 10_000), st.sampled_from(['"', " ", "\r", "\n", "x", ""])),
)
def test_csv_bent_anywhere_is_read_exactly_or_refused(
    tmp_path: Path, rows: list[tuple[str, str, str]], end: str, spot: tuple[int, str] | None
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(rows)
    body = text.getvalue()
    if spot is not None:
        at = spot[0] % (len(body) + 1)
        body = body[:at] + spot[1] + body[at + (not spot[1]) :]
    (tmp_path / "0-flat.csv.parquet").unlink(missing_ok=True)
    path = flat(tmp_path, f"user_id,track_id,name{end}{body}")
    try:
        wanted = [tuple(row) for row in csv.reader(io.StringIO(body, newline=""), strict=True) if row]
    except csv.Error:
        wanted = []
    if not wanted or any(len(row) < 3 or any(row[3:]) for row in wanted):
        refused(path)
    elif all(len(row) == 3 for row in wanted):
        assert read(path) == wanted


def test_places_are_lines_of_the_file(tmp_path: Path) -> None:
    path = flat(tmp_path, 'user_id,track_id\na,b\n\n"c\n\nd",e\nf,g\n')
    source: Source = open_source(path)
    with duckdb.connect() as con:
        table = load(con, source.plays, "raw", source.plays.names, tmp_path)
    assert table.places([0]) == "line 2"
    assert table.places([1, 2]) == "lines 4, 7"


NAMES = (
    "a[1].csv",
    "a*.csv",
    "a?.csv",
    "a{1,b}.csv",
    "~/a1.csv",
    "track_id=x/a1.csv",
    "b\\*.csv",
    "a[!x].csv.gz",
    "-.csv",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_a_pattern_means_that_file_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("a1.csv", "ab.csv", "b/x.csv", "a1.csv.gz", name):
        path = tmp_path / other
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"user_id,track_id\n{'wanted' if other == name else 'other'},t\n".encode()
        path.write_bytes(gzip.compress(text) if other.endswith(".gz") else text)
    monkeypatch.chdir(tmp_path)
    assert read(Path(name)) == read(tmp_path / name) == [("wanted", "t")]


@pytest.mark.parametrize("folder", ["track_id=x", "p[1]"])
def test_a_folder_that_is_a_pattern_or_a_partition_says_nothing(folder: str, tmp_path: Path) -> None:
    for other in ("p1", folder):
        (tmp_path / other).mkdir()
        table = pa.table({"user_id": ["wanted" if other == folder else "other"], "track_id": ["t"]})
        pq.write_table(table, tmp_path / other / "a.parquet")
    assert read(tmp_path / folder / "a.parquet") == [("wanted", "t")]
