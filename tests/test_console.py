"""Tables: aligned lines in a pipe, folded to its width on a terminal."""

import re
import sys

import pytest

from lhydra.console import print_table

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
