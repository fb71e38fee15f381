"""The page of a dataset: what it draws and says, of logs with and without times; and where it is written."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lhydra import cli
from lhydra.data.dataset import Dataset
from lhydra.data.page import render
from tests.test_summary import OPTIONAL, Row, log, made

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


class Page(HTMLParser):
    """The texts of a page, the charts that it draws, and what its elements would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.charts: list[dict[str, Any]] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open = "chart" if ("type", "application/json") in attrs else tag
        self.fetched += [
            str(value) for name, value in attrs if name in ("src", "href") and not str(value).startswith("#")
        ]

    def handle_data(self, data: str) -> None:
        if self._open == "chart" and data.strip():
            self.charts.append(json.loads(data))
        elif self._open not in ("script", "style"):
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def chart(self, y: str) -> dict[str, Any]:
        (found,) = [chart for chart in self.charts if chart["y"] == y]
        return found


def test_a_page_draws_the_plays_by_time_user_track_session_and_age(tmp_path: Path) -> None:
    page = Page(render(made(log(), tmp_path, OPTIONAL)))
    assert "48 plays of 25 tracks by 2 users" in page.text
    assert "1 January 2020 to 4 January 2020" in page.text
    by_time = page.chart("plays")
    assert sum(by_time["heights"]) == 48
    assert by_time["starts"][0] == "2020-01-01 00:00"
    assert by_time["notes"][0] == "2020-01-01 00:00: 6 plays"
    assert page.chart("users")["heights"] == [0, 0, 0, 0, 2]  # 24 plays each
    assert page.chart("users")["notes"][-1] == "16 to 31 plays: 2 users"
    assert page.chart("tracks")["heights"] == [16, 8, 0, 0, 1]
    assert page.chart("sessions")["heights"] == [0, 16]
    assert "one ends where its user plays nothing for 30 minutes" in page.text
    (line,) = page.chart("returns a day")["series"]
    assert len([rate for rate in line["y"] if rate is not None]) == 1  # all 14 come back after about half a day
    assert page.fetched == []


def test_a_page_says_why_a_part_is_absent(tmp_path: Path) -> None:
    rows = [Row(user, f"t{n}", None, None, 3, None, None) for user in "ab" for n in range(20)]
    page = Page(render(made(rows, tmp_path, ("playcount",))))
    assert {chart["y"] for chart in page.charts} == {"users", "tracks"}
    for said in (
        "Without times.",
        "The source tells no times",
        "The source tells neither sessions nor the times that would show them.",
        "66.7% of the plays are of a track that its user had played before. Without times it is not known how soon.",
        "None but the ids",
    ):
        assert said in page.text


def test_a_page_of_times_without_returns_says_so(tmp_path: Path) -> None:
    rows = [Row(user, f"{user}{n}", 1_577_836_800 + 100 * n, None, 1, None, None) for user in "ab" for n in range(20)]
    page = Page(render(made(rows, tmp_path, ("timestamp",))))
    assert "Too few come back at a known age to draw how soon." in page.text


def source_of_faults(folder: Path) -> Path:
    """A source with a name, rows, columns and cells that would do harm where they are taken for HTML."""
    source = folder / "<b>source"
    source.mkdir()
    lines = [f"{user},{track},{1_577_836_800 + 1_000 * n}" for n, user in enumerate("abab") for track in ("x", "y")]
    (source / "plays.csv").write_text("\n".join(["user_id,track_id,timestamp", *lines, ",x,3", "a,gone,4"]))
    mood = HOSTILE.replace('"', '""')
    (source / "tracks.csv").write_text(f'track_id,artist,"{mood}"\nx,one,"{mood}"\ny,,2\n')
    return source


def test_dropped_rows_and_columns_are_told_with_what_would_use_them(tmp_path: Path) -> None:
    report = tmp_path / "prepare.html"
    assert cli.main(["prepare", str(source_of_faults(tmp_path)), str(tmp_path / "d"), "--report", str(report)]) == 0
    page = Page(report.read_text(encoding="utf-8"))
    assert "1 row dropped: empty user_id (line 10)" in page.text
    assert "1 row dropped: track_id is not in tracks.csv (line 11)" in page.text
    assert "tracks of the plays that have a row of their own 2 of 3" in page.text
    assert "artist tracks categorical 50.0%" in page.text
    assert "not used, not declared" in page.text
    assert "columns: tracks:" in page.text
    assert HOSTILE in page.text
    assert "img" not in page.tags
    assert page.tags.count("script") == len(page.charts) + 2
    assert page.tags.count("b") == page.text.count("half of them") + 2  # the figures of the tiles alone


def test_a_page_is_written_only_where_it_may_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = made(log(), tmp_path, OPTIONAL)
    source, report = str(tmp_path / "plays.parquet"), tmp_path / "page.html"

    def refused(*words: str) -> str:
        assert cli.main(["prepare", *words]) == 1
        return capsys.readouterr().err.splitlines()[-1]

    mine = b"<!DOCTYPE html>\n<html><head><title>d \xc2\xb7 Lhydra evaluation</title></head></html>"
    report.write_bytes(mine)
    free = tmp_path / "free"
    assert "which holds something else" in refused(source, str(free), "--report", str(report))
    assert report.read_bytes() == mine
    assert f"expected one that exists: mkdir -p '{tmp_path / 'no such'}'" in refused(
        source, str(free), "--report", str(tmp_path / "no such" / "page.html")
    )
    assert "which holds something else" in refused(source, str(free), "--report", source)
    assert not free.exists()
    within = dataset.path / "page.html"
    assert "in the dataset, expected a file elsewhere" in refused(source, str(dataset.path), "--report", str(within))
    assert not within.exists()

    report.unlink()
    assert "expected" in refused(str(tmp_path / "nothing"), str(free), "--report", str(report))
    assert not report.exists()
    for _ in range(2):  # an earlier page is replaced
        assert cli.main(["prepare", source, str(free), "--report", str(report)]) == 0
    assert f"wrote {report}: open it in a browser" in capsys.readouterr().out
    assert cli.main(["prepare", source, str(free), "--report", str(report), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["plays"] == 48


def test_a_page_without_its_tools_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    made(log(), tmp_path, OPTIONAL)
    words = ["prepare", str(tmp_path / "plays.parquet"), str(tmp_path / "out"), "--report", str(tmp_path / "page.html")]
    assert cli.main(words) == 1
    assert "lhydra[eval]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_page_that_cannot_be_written_leaves_the_dataset_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    made(log(), tmp_path, OPTIONAL)
    out, report = tmp_path / "out", tmp_path / "page.html"
    monkeypatch.setattr("lhydra.files.write_text", full)
    assert cli.main(["prepare", str(tmp_path / "plays.parquet"), str(out), "--report", str(report)]) == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == (
        f"lhydra prepare: --report {report}: found No space left on device,"
        f" expected a file that can be written; {out} is whole"
    )
    assert "prepared from" in told.out
    assert Dataset.open(out).info.counts["users"] == 2


def test_any_log_has_a_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n, span in enumerate((1, 3_600, 86_400 * 30, 86_400 * 3_000, 3_000_000_000)):
        rows = [
            Row(user, str(rng.integers(5)), int(1_000_000_000 + rng.integers(span)), None, float(count), None, None)
            for user in "abc"
            for count in rng.choice([0.3, 1, 2, 1e9], 10)
        ]
        folder = tmp_path / str(n)
        folder.mkdir()
        page = Page(render(made(rows, folder, ("timestamp", "playcount"), split="random")))
        assert sum(page.chart("users")["heights"]) == 3
        assert all(np.isfinite(chart["heights"]).all() for chart in page.charts if "heights" in chart)
