"""Tables and progress: plain lines in a pipe, folded tables, bars and spinners on a terminal."""

import os
import re
import sys

import pytest

from lhydra.console import print_table, progress, step_display
from lhydra.lines import say

HEADER = ["check", "", "found", "limit"]
ROWS = [["unit norm", "passed", "0.0001", "0.0010"], ["[red]overlap:smile:", "refused", "undefined", "-"]]


def test_a_pipe_gets_a_line_per_row_words_left_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEADER, [*ROWS, ["x" * 200, "", "1", ""]], "Gate")
    gap = " " * 181
    assert capsys.readouterr().out == (
        f"\nGate\ncheck{gap}{' ' * 16}{'':7}  {'found':>9}   limit\n"
        f"unit norm{gap}{' ' * 12}passed      0.0001  0.0010\n"
        f"[red]overlap:smile:{gap}  refused  undefined       -\n"
        f"{'x' * 200}  {'':7}  {'1':>9}\n"
    )


def test_a_terminal_gets_lines_of_its_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    print_table(HEADER, [["word " * 30, "", "1", ""]])
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 60
    assert sum(line.count("word") for line in lines) == 30


def test_a_pipe_gets_a_line_per_step_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    for lines in (True, False):
        with step_display(lines=lines) as show:
            show("reading [plays]")
            show("splitting")
    with progress(3, "training", lines=False) as move:
        move(3)
    assert capsys.readouterr().err == "reading [plays]\nsplitting\n"


def test_a_terminal_shows_the_step_and_leaves_no_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with step_display() as show:
        show("reading [plays]")
    with progress(3, "training") as move:
        print("epoch 1", file=sys.stderr)
        move(1)
    said = capsys.readouterr().err
    assert "reading [plays]" in said  # no markup: it is shown as it is
    assert "epoch 1" in said
    assert said.count("\n") < 12


def test_no_bar_shows_0_of_0(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress(0, "users") as move:
        move(0)
    assert capsys.readouterr().err == ""


def test_work_goes_on_where_nobody_reads_its_lines_any_longer() -> None:
    read, end = os.pipe()
    with os.fdopen(end, "w") as stream:
        say("first", stream)
        assert os.read(read, 99) == b"first\n"
        os.close(read)
        say("second", stream)
        say("third", stream)
