"""Names, separators and files of other making are mapped as one says; a refusal gives the flags that would work."""

import gzip
import io
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lhydra.cli import main
from lhydra.data.dataset import Dataset

START = 1_600_000_000
ROWS = [
    (f"u{user}", f"t{track}", count, START + i)
    for i, (user, track, count) in enumerate(
        random.Random(0).choices(
            [(user, track, count) for user in range(5) for track in range(9) for count in (1, 3)], k=60
        )
    )
]


def found(dataset: Path) -> list[tuple[str, str, float, int]]:
    """The plays of a dataset, sorted."""
    opened = Dataset.open(dataset)
    events = opened.events
    columns = (events.user.tolist(), events.track.tolist(), events.count.tolist(), events.time.tolist())
    return sorted((opened.user_ids[u], opened.track_ids[t], c, s) for u, t, c, s in zip(*columns, strict=True))


def text(sep: str, header: tuple[str, ...] = (), rows: list[Any] = ROWS) -> str:
    return "".join(sep.join(map(str, row)) + "\n" for row in ([header] if header else []) + list(rows))


HEADER = ("userid", "artistid", "weight", "uts")
MAPPED = "user=userid,track=artistid,count=weight,timestamp=uts"


@pytest.mark.parametrize(
    ("name", "content", "flags"),
    [
        ("log.txt", text("\t", HEADER), ["--sep", "tab", "--columns", MAPPED]),
        ("log.csv", text(";", HEADER), ["--sep", "semicolon", "--columns", MAPPED]),
        ("log.dat", text("::", HEADER), ["--sep", "::", "--columns", MAPPED]),
        ("log.data", text("|"), ["--sep", "pipe", "--no-header", "--columns", "user=1,track=2,count=3,time=4"]),
        ("log", text(","), ["--no-header", "--columns", "user=1,item=2,count=3,timestamp=4"]),
        ("log.tsv", text("\t", ("user_id", "track_id", "playcount", "timestamp")), []),
        ("log.csv", text(",", ("user_id", "song", "n", "timestamp")), ["--columns", "track=song,count=n"]),
        # the mapped column comes before the one of that name
        (
            "log.csv",
            text(",", ("user_id", "song", "n", "when", "track_id"), [(*row, "x") for row in ROWS]),
            ["--columns", "track=song,count=n,timestamp=when"],
        ),
    ],
)
def test_a_file_is_read_as_it_is_said_to_be(name: str, content: str, flags: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert main(["prepare", str(tmp_path / name), str(tmp_path / "out"), *flags]) == 0
    assert found(tmp_path / "out") == sorted(ROWS)


def test_the_configuration_says_it_too(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(text("\t"))
    said = "prepare:\n  sep: tab\n  header: false\n  columns: user=1,track=2,count=3,timestamp=4\n"
    (tmp_path / "lhydra.yaml").write_text(said)
    words = ["prepare", tmp_path / "log.txt", tmp_path / "out", "--config", tmp_path / "lhydra.yaml"]
    assert main([*map(str, words)]) == 0
    assert found(tmp_path / "out") == sorted(ROWS)


NAMES = ("user_id", "track_id", "playcount", "timestamp")


def parquet(path: Path, rows: list[Any], names: tuple[str, ...] = NAMES) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path)


def in_a_folder(folder: Path) -> str:
    turned = [(user, track, time, count) for user, track, count, time in ROWS[20:]]
    (folder / "plays-1.csv").write_text(text(",", NAMES, ROWS[:20]))
    (folder / "plays-2.csv.gz").write_bytes(
        gzip.compress(text(",", ("user_id", "track_id", "timestamp", "playcount"), turned).encode())
    )
    return str(folder)


def by_pattern(folder: Path) -> str:
    in_a_folder(folder)
    return str(folder / "plays-*")


def of_parquet(folder: Path) -> str:
    parquet(folder / "part-0.parquet", ROWS[:30])
    parquet(folder / "part-1.parquet", ROWS[30:])
    (folder / "_SUCCESS").write_text("")
    return str(folder)


def of_parquet_within(folder: Path) -> str:
    parquet(folder / "plays/part-0.parquet", ROWS[:30])
    parquet(folder / "plays/part-1.parquet", ROWS[30:])
    return str(folder)


def zipped(folder: Path) -> str:
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        archive.writestr("export/plays.csv", text(",", NAMES))
        archive.writestr("__MACOSX/x", "")
    return str(folder / "all.zip")


@pytest.mark.parametrize("make", [in_a_folder, by_pattern, of_parquet, of_parquet_within, zipped])
def test_a_table_may_lie_in_several_files(make: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert main(["prepare", make(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert found(tmp_path / "out") == sorted(ROWS)


@pytest.mark.parametrize("packed", ["plain", "gzip", "parquet", "zip"])
def test_standard_input_is_a_source(packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = text(",", NAMES).encode()
    (tmp_path / "in").mkdir()
    if packed == "parquet":
        parquet(tmp_path / "in/x.parquet", ROWS)
        plain = (tmp_path / "in/x.parquet").read_bytes()
    elif packed == "zip":
        plain = Path(zipped(tmp_path / "in")).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(plain) if packed == "gzip" else plain)))
    assert main(["prepare", "-", str(tmp_path / "out")]) == 0
    assert found(tmp_path / "out") == sorted(ROWS)


def test_bad_rows_are_told_with_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plays-1.csv").write_text(text(",", NAMES, [*ROWS[:20], ("u1", "", 1, START)]))
    (tmp_path / "plays-2.csv").write_text(text(",", NAMES, [("", "t", 1, START), *ROWS[20:], ("u1", "t1", "x", START)]))
    assert main(["prepare", str(tmp_path), str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 row dropped: empty track_id (plays-1.csv line 22)" in said
    assert "1 row dropped: empty user_id (plays-2.csv line 2)" in said
    assert "1 row dropped: playcount is not a number (plays-2.csv line 43)" in said


@pytest.mark.parametrize(
    ("name", "content", "flags", "message"),
    [
        ("a.csv", text("\t", HEADER), [], "if the separator is a tab, give --sep tab"),
        ("a.csv", text(";", HEADER), [], "if the separator is a semicolon, give --sep semicolon"),
        ("a.csv", text(",", ("listener", "song")), [], "give --columns user=listener,track=song"),
        ("a.csv", text(",", HEADER), ["--columns", "user=nobody"], "found the columns userid, artistid, weight, uts"),
        ("a.csv", text(",", HEADER), ["--columns", "user"], "--columns: found 'user', expected NAME=COLUMN"),
        ("a.csv", text(",", HEADER), ["--columns", "usr=userid"], "the nearest known key is 'user'"),
        ("a.csv", text(",", HEADER), ["--columns", "user=userid,track=userid"], "named twice, expected each once"),
        ("a.csv", text(","), ["--no-header"], "--columns user=1,track=2 (there are 4)"),
        ("a.csv", text(","), ["--sep", ""], "--sep: found '', expected"),
        ("a.xyz", text("\t"), [], "(of another name: --sep tab, if a tab separates its cells)"),
        ("a.xyz", "x", [], "a .csv, .csv.gz, .tsv, .jsonl or .parquet file (of another name: --sep)"),
        ("a.csv", text(","), ["--format", "lastfm", "--sep", "tab"], "--format lastfm: found it with --columns, --sep"),
        ("a.zip", "no zip", [], "expected a zip archive"),
        ("a.csv", text(",", HEADER), ["--format", "maloja"], "found a.csv, expected an export of Maloja"),
    ],
)
def test_a_refusal_gives_the_next_step(
    name: str, content: str, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert main(["prepare", str(tmp_path / name), str(tmp_path / "out"), *flags]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lhydra")]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out").exists()


def test_files_of_one_table_have_the_same_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plays-1.csv").write_text(text(",", NAMES))
    (tmp_path / "plays-2.csv").write_text(text(",", ("user_id", "track_id", "n", "timestamp")))
    assert main(["prepare", str(tmp_path), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "plays-2.csv: found the columns user_id, track_id, n, timestamp, expected those of plays-1.csv" in error
    assert main(["prepare", str(tmp_path / "no-*.csv"), str(tmp_path / "out")]) == 1
    assert "found no file of that pattern" in capsys.readouterr().err


def test_columns_of_an_export_that_nothing_reads_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(START + i, f"A{i % 3}", f"T{i % 5}", f"u{i % 2}", "loud") for i in range(20)]
    (tmp_path / "scrobbles.csv").write_text(text(",", ("uts", "artist", "track", "user", "mood"), rows))
    assert main(["prepare", str(tmp_path / "scrobbles.csv"), str(tmp_path / "out")]) == 0
    assert Dataset.open(tmp_path / "out").user_ids == ["u0", "u1"]
    assert "columns of scrobbles.csv that are not read: mood" in capsys.readouterr().out
