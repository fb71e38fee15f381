"""JSON of one's own is read as the CSV of the same cells would be, or refused with one line."""

import contextlib
import gzip
import io
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
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
    with duckdb.connect() as con, TemporaryDirectory() as work:
        source = open_source(path, work=Path(work))
        load(con, source.plays, "raw", source.plays.names, Path(work))
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
    (tmp_path / "work").mkdir()
    path = lines(tmp_path / name, first, second)
    assert "if User.Id is meant, rename it, or give --columns user=User.Id,track=song" in refused(path)
    mapped = open_source(path, ReadSettings(columns="user=User.Id,track=song"), tmp_path / "work")
    with duckdb.connect() as con:
        table = load(con, mapped.plays, "raw", mapped.plays.names, tmp_path)
        rows = con.execute("SELECT * FROM raw").fetchall()
    assert table.names == ("user_id", "User.geo.country", "track_id", "tags", "seen", "n", 'it\'s "odd"')
    assert rows == [
        ("7", "DE", "007", ["a|b", "c"], "true", None, None),
        ("9007199254740993", None, "12345678901234567890123", [], None, None, "1.5"),
    ]
    assert table.is_list("tags")
    assert table.places([1]) == "row 2"


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
        ("", "found no record, expected a record a line, or an array of records"),
        (" \n", "no record"),
        ("[]", "no record"),
        ("{}", "records without a key"),
        ('{"a": [{"b": 1}]}', "nothing but lists of objects: a"),
        ("[1, 2]", "line 1: found what is no record"),
        ("5", "line 1: found 5, which is no record"),
        ('{"user_id": "a", "track_id": "b"}\n5\n{"user_id": "a"}', "line 2: found 5, which is no record"),
        ('{"user_id": "a",\n"track_id": "b"}\n{"user_id":\n "a"', "line 4: found a record that is cut short"),
        ('[{"user_id": "a", "track_id": "b"}', "line 1: found an array that does not end"),
        ('[{"user_id": "a", "track_id": "b"},]', "line 1: found what is no JSON"),
        ('[{"user_id": "a", "track_id": "b"}\n{"user_id": "c"}]', "line 2: found no comma between records"),
        ('[{"user_id": "a", "track_id": "b"}]\n[]', "line 1: found more after the end of the array"),
        ('{"user_id": "a", "track_id": "b",}', "line 1: found what is no JSON"),
        ('{"user_id": "a", "track_id": NaN}', "line 1: found what is no JSON"),
        ("[" * 100_000, "line 1: found"),
        ('{"a":' * 100_000, "line 1: found"),
        ('{"user_id": "a", "track_id": "b", "track_id": "c"}', "line 1: found the key track_id twice"),
        ('{"user_id": "a", "track_id": "b"}\n{"x": 1, "x": 2}', "line 2: found the key x twice"),
        ('{"user_id": "a", "in": {"x": 1}, "in.x": 2}', "line 1: found the key in.x twice, once by dots"),
        ('{"user_id": "a", "track_id": "b", "Track_Id": 2}', "the columns track_id and Track_Id"),
        ('{"user_id": ["a"], "track_id": "b"}', "user_id: found a column of list<"),
        ('{"user_id": "a", "track": {"name": "b"}}', "a column track_id"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    assert found in refused(tmp_path / "a.jsonl")
    if not text:
        return
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(text)
    assert found in refused(tmp_path / "b.jsonl.gz")


def test_keys_may_be_named_as_they_like(tmp_path: Path) -> None:
    row = {"user_id": "a", "track_id": "b", "Odd": "x", "odd_1": "y", "X": "1", "x": "2", "": "e"}
    assert read(lines(tmp_path / "a.jsonl", row, {"in": {"": "1", "ID": "2", "id": "3"}}))[0] == row


def test_many_and_rare_keys_are_columns_each(tmp_path: Path) -> None:
    rows = [{"user_id": "a", "track_id": "b", f"k{i}": str(i), "in": {f"k{i}": "1"}} for i in range(300)]
    found = read(lines(tmp_path / "a.jsonl", *rows))
    assert found[7] == {"user_id": "a", "track_id": "b", "k7": "7", "in.k7": "1"}
    assert len({name for row in found for name in row}) == 602


def test_numbers_are_the_text_of_the_file(tmp_path: Path) -> None:
    numbers = ["1.10", "1e5", "1E+5", "-0", "-0.0", "12345678901234567890.0", "12345678901234567891.0", "1" * 5000]
    text = "".join(f'{{"user_id": "u", "track_id": {number}, "all": [{number}]}}\n' for number in numbers)
    (tmp_path / "a.jsonl").write_text(text)
    assert [(row["track_id"], row["all"]) for row in read(tmp_path / "a.jsonl")] == [(one, [one]) for one in numbers]


def test_text_beside_objects_and_lists_keeps_to_its_own_column(tmp_path: Path) -> None:
    """Ids that are an object in some records are ids of none of them; nothing becomes the text of an object."""
    rows: list[dict[str, Any]] = [{"track_id": "t", "user_id": "a"}, {"track_id": "t", "user_id": {"id": "b"}}]
    assert read(lines(tmp_path / "a.jsonl", *rows)) == [rows[0], {"track_id": "t", "user_id.id": "b"}]
    rows = [{"user_id": "a", "track_id": "t", "tags": "x"}, {"user_id": "a", "track_id": "t", "tags": ["y", None, 1]}]
    found = [row["tags"] for row in read(lines(tmp_path / "b.jsonl", *rows * 2))]
    assert found == [["x"], ["y", None, "1"]] * 2
    rows = [{"user_id": "a", "track_id": "t"}, {"user_id": ["a"], "track_id": "t"}]
    assert "user_id: found a column of list<" in refused(lines(tmp_path / "c.jsonl", *rows))


def test_pieces_of_a_file_have_the_columns_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lhydra.data.json_records._BATCH", 2)
    rows = [
        {"user_id": "a", "track_id": str(i)} | ({"n": "x"} if i == 4 else {"m": ["y"]} if i == 6 else {"m": "z"})
        for i in range(9)
    ]
    found = read(lines(tmp_path / "a.jsonl", *rows))
    assert found == [row | ({"m": [row["m"]]} if row.get("m") == "z" else {}) for row in rows]


def test_keys_that_are_no_columns_are_told_wherever_they_lie(tmp_path: Path) -> None:
    first = {"user_id": "a", "track_id": "b", "items": [{"a": 1}], "in": {"items": "x", "deep": [[1]], "ok": 1}}
    (tmp_path / "work").mkdir()
    source = open_source(lines(tmp_path / "a.jsonl", first), work=tmp_path / "work")
    assert source.notes == ("columns of a.jsonl that are not read: items, in.deep",)
    _, warnings = read_tracks(tmp_path / "a.jsonl", [])
    assert warnings[0] == source.notes[0]


def test_lines_that_are_no_json_are_bad_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [json.dumps({"user_id": f"u{i % 5}", "track_id": f"t{i % 7}"}) for i in range(40)]
    good[3], good[20] = '{"user_id": "u1", "track', "x" + good[20]
    (tmp_path / "a.jsonl").write_text("\n".join(good) + '\n{"user_id": "u')
    assert cli.main(["prepare", str(tmp_path / "a.jsonl"), str(tmp_path / "out")]) == 0
    assert "a.jsonl: 3 rows dropped: no JSON (lines 4, 21, 41)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["dropped"] == {"no JSON": 3}
    assert cli.main(["prepare", str(tmp_path / "a.jsonl"), str(tmp_path / "out"), "--strict"]) == 1
    assert "3 rows: no JSON (lines 4, 21, 41), expected no bad row (strict)" in capsys.readouterr().err


def test_json_beside_tables_and_exports_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a folder was before JSON of one's own was read."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "plays.csv").write_text("user_id,track_id\n" + "".join(f"u{i % 3},t{i % 5}\n" for i in range(30)))
    for name in ("plays.schema.json", "plays_meta.json", "tracks.json", "users.json"):
        (folder / name).write_text('{"type": "object"}')
    assert cli.main(["prepare", str(folder), str(out)]) == 0
    assert "not read: tracks.json" in capsys.readouterr().out
    listen = {"listened_at": 1600000000, "user_name": "a", "track_metadata": {"artist_name": "b", "track_name": "c"}}
    (tmp_path / "lb").mkdir()
    lines(
        tmp_path / "lb" / "plays.jsonl",
        *(listen | {"user_name": name, "listened_at": 1600000000 + i} for i, name in enumerate("abab")),
    )
    assert cli.main(["prepare", str(tmp_path / "lb"), str(tmp_path / "lb-out")]) == 0
    assert "listens of ListenBrainz" in capsys.readouterr().out


def test_files_of_one_name_keep_their_own_columns(tmp_path: Path) -> None:
    """With a mark each, and in folders that would name columns."""
    row = {"user_id": "a", "track_id": "b"}
    for name, more in (("artist=X", {"artist": "A"}), ("artist=Y", {})):
        (tmp_path / name).mkdir()
        lines(tmp_path / name / "log.jsonl", row | more)
        path = tmp_path / name / "log.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(tmp_path / "*" / "log.jsonl") == [row | {"artist": "A"}, row]


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n \n"])
@pytest.mark.parametrize("packed", [False, True])
def test_standard_input_is_known_by_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes, packed: bool
) -> None:
    data = before + b"".join(b'{"user_id": "u%d", "track_id": "t%d"}\n' % (i % 3, i % 5) for i in range(30))
    stdin = io.TextIOWrapper(io.BytesIO(gzip.compress(data) if packed else data))
    monkeypatch.setattr("sys.stdin", stdin)
    assert cli.main(["prepare", "-", str(tmp_path / "out")]) == 0


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
    for line in filter(str.strip, text.split("\n")):  # a line that is no JSON is a bad row
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    if len(found) != len(records):  # else it is read as a whole: no line is left out
        records = []
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
