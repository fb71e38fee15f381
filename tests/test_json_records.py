"""JSON of one's own is read as the CSV of the same cells would be, or refused with one line."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra import cli
from lhydra.data.dataset import Column
from lhydra.data.loading import load
from lhydra.data.settings import ReadSettings
from lhydra.data.sources import open_source
from lhydra.data.tracks import read_tracks
from lhydra.errors import DataError
from tests.harness import examples


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a flat source as text by column, those that are there."""
    source = open_source(path)
    with duckdb.connect() as con:
        load(con, source.plays, "raw", source.plays.names, path.parent)
        rows = con.execute("SELECT * FROM raw ORDER BY rowid").fetchall()
    pairs = [dict(zip(source.plays.names, row, strict=True)) for row in rows]
    return [{name: cell for name, cell in row.items() if cell is not None} for row in pairs]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    return message


def lines(path: Path, *records: Any) -> Path:
    text = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "a.json", "[a]*.JSONL"])
def test_each_key_is_a_column(tmp_path: Path, name: str) -> None:
    first = {"User": {"Id": 7, "geo": {"country": "DE"}}, "song": "007", "tags": ["a|b", "c"], "seen": True, "n": None}
    second = {"song": 12345678901234567890123, "tags": [], "User": {"Id": 9007199254740993}, 'it\'s "odd"': 1.5}
    path = lines(tmp_path / name, first, second)
    assert "if User.Id is meant, rename it, or give --columns user=User.Id,track=song" in refused(path)
    mapped = open_source(path, ReadSettings(columns="user=User.Id,track=song"))
    with duckdb.connect() as con:
        table = load(con, mapped.plays, "raw", mapped.plays.names, tmp_path)
        rows = con.execute("SELECT * FROM raw").fetchall()
    assert table.names == ("user_id", "User.geo.country", "track_id", "tags", "seen", "n", 'it\'s "odd"')
    assert rows == [
        ("7", "DE", "007", ["a|b", "c"], "true", None, None),
        ("9007199254740993", None, "12345678901234567890123", [], None, None, "1.5"),
    ]
    assert table.is_list("tags")
    assert table.places([1]) == "record 2"


def test_an_array_a_mark_and_several_files_with_other_keys(tmp_path: Path) -> None:
    rows = [{"user_id": "a", "track_id": "b"}, {"track_id": "c", "user_id": "d", "name": "e"}]
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=2))
    assert read(tmp_path / "array.json") == rows
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(tmp_path / "plain.jsonl", *rows).read_bytes())
    assert read(tmp_path / "marked.jsonl") == rows
    (tmp_path / "parts").mkdir()
    lines(tmp_path / "parts" / "1.jsonl", rows[0])
    lines(tmp_path / "parts" / "2.jsonl.gz", rows[1])
    assert read(tmp_path / "parts" / "*") == rows
    (tmp_path / "parts" / "3.csv").write_text("user_id,track_id\nx,y\n")
    assert "1.jsonl beside files of another kind" in refused(tmp_path / "parts" / "*")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing in it"),
        (" \n", "nothing in it"),
        ("[]", "JSON that is no object with a key"),
        ("{}", "JSON that is no object with a key"),
        ("[1, 2]", "JSON that is no object with a key"),
        ('{"user_id": "a", "track_id": "b"}\n5\n{"user_id": "a"}', "JSON that is no object with a key"),
        ('{"user_id": "a", "track_id": "b"}\n{"user_id": "a"', "an end after"),
        ('{"user_id": "a", "track_id": "b"}\n{"user_id" "a"}', "unexpected character (near record"),
        ('{"user_id": "a", "track_id": "b", "track_id": "c"}', "an object with a key twice"),
        ('{"user_id": "a", "track_id": "b", "x": 1, "X": 2}', "the keys x and X"),
        ('{"user_id": "a", "track_id": "b", "Track_Id": 2}', "the keys track_id and Track_Id"),
        ('{"user_id": "a", "track": {"name": "b"}}', "a column track_id"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    assert found in refused(tmp_path / "a.jsonl")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(text)
    assert found in refused(tmp_path / "b.jsonl.gz")


def test_flags_for_separated_text_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "a.jsonl", {"user_id": "a", "track_id": "b"})
    for flags, said in ((["--sep", "tab"], "--sep tab"), (["--no-header"], "--no-header")):
        assert cli.main(["prepare", str(path), str(tmp_path / "out"), *flags]) == 1
        assert f"{said}: found a.jsonl, which is JSON, expected" in capsys.readouterr().err


_CELLS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.none(),
)
_KEYS = st.sampled_from(["name", "x y", 'q"', "q'", "ключ", "a,b", "$person", "$file", "row", "c0", "SELECT"])


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(_KEYS, _CELLS), min_size=1, max_size=6), st.booleans())
def test_cells_are_what_the_file_says(tmp_path: Path, rows: list[dict[str, Any]], within: bool) -> None:
    records = [{"user_id": "u", "track_id": i} | ({"in": row} if within else row) for i, row in enumerate(rows)]
    found = read(lines(tmp_path / "a.jsonl", *records))
    before = "in." if within else ""
    assert found == [
        {"user_id": "u", "track_id": str(i)}
        | {before + name: as_text(cell) for name, cell in row.items() if cell is not None}
        for i, row in enumerate(rows)
    ]


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 200), st.sampled_from(['"', "{", "}", "[", "]", ",", ":", "\\", "\n", " ", "0", "-", ""]))
def test_json_bent_anywhere_is_read_exactly_or_refused(tmp_path: Path, at: int, spot: str) -> None:
    body = "".join(
        json.dumps({"user_id": f"u{i}", "track_id": i, "in": {"name": "a b", "tags": ["x", "y"]}}) + "\n"
        for i in range(3)
    )
    at %= len(body)
    (tmp_path / "a.jsonl").write_text(body[:at] + spot + body[at + 1 :])
    try:
        found = read(tmp_path / "a.jsonl")
    except DataError:
        return
    text, records = body[:at] + spot + body[at + 1 :], list[dict[str, Any]]()
    while text := text.lstrip():
        record, end = json.JSONDecoder().raw_decode(text)
        records, text = [*records, record], text[end:]
    assert len(found) == len(records)
    for name in ("user_id", "track_id"):
        assert [row.get(name) for row in found] == [as_text(one[name]) if name in one else None for one in records]


def test_a_dataset_is_that_of_the_same_csv(tmp_path: Path) -> None:
    """Times are read, bad cells told and tracks described alike."""
    rows = [
        {
            "user_id": f"u{i % 7}",
            "track_id": f"t{i % 11}",
            "timestamp": f"2024-{1 + i % 3:02}-{1 + i % 28:02}T10:00:00+02:00",
            "year": y,
        }
        for i, y in enumerate([2001, "", "x", 1999] * 30)
    ]
    names = list(rows[0])
    cells = "".join(",".join(str(row[name]) for name in names) + "\n" for row in rows)
    (tmp_path / "plays.csv").write_text(",".join(names) + "\n" + cells)
    lines(tmp_path / "plays.jsonl", *rows)
    for kind in ("csv", "jsonl"):
        assert cli.main(["prepare", str(tmp_path / f"plays.{kind}"), str(tmp_path / kind)]) == 0
    written = sorted(name for name in os.listdir(tmp_path / "csv") if name.endswith(".parquet"))
    assert {"events.parquet", "plays.parquet", "tracks.parquet", "users.parquet"} <= set(written)
    for name in written:
        assert (tmp_path / "csv" / name).read_bytes() == (tmp_path / "jsonl" / name).read_bytes(), name


def test_tables_in_a_folder_and_tracks_to_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines(
        tmp_path / "plays.jsonl", *({"user_id": f"u{i}", "track_id": f"t{i % 3}", "of": [{"a": 1}]} for i in range(9))
    )
    lines(tmp_path / "tracks.jsonl", *({"track_id": f"t{i}", "tags": ["a", f"b{i}"]} for i in range(3)))
    (tmp_path / "users.csv").write_text("user_id,country\nu0,DE\n")
    assert cli.main(["prepare", str(tmp_path), str(tmp_path.parent / f"{tmp_path.name}-out")]) == 0
    told = capsys.readouterr().out
    assert "columns of plays.jsonl that are not read: of" in told
    assert "of tracks: tags; of users: country" in told
    table, _ = read_tracks(tmp_path / "tracks.jsonl", [Column("tags", "multi")])
    assert table.to_pydict() == {"track_id": ["t0", "t1", "t2"], "tags": [["a", f"b{i}"] for i in range(3)]}
