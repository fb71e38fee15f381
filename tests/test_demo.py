"""`lhydra demo`: the whole road by the commands that a user types."""

import os
from pathlib import Path

import pytest

from lhydra.cli import main
from tests.harness import deep
from tests.quick_export import environ


def test_the_demo_goes_all_the_way(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not deep():  # its training is a process
        monkeypatch.setenv("PYTHONPATH", environ(tmp_path / "site")["PYTHONPATH"])
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: became.append(words))
    argv = [
        "demo",
        str(tmp_path / "demo"),
        "--users",
        "80",
        "--tracks",
        "150",
        "--plays",
        "2000",
        "--epochs",
        "2",
        "--open",
    ]
    assert main(argv) == 0
    shown = capfd.readouterr().out
    assert "listened most recently to" in shown
    table = shown[shown.index("lhydra query recommend") :]
    assert sum(line.strip().split(" ")[0] in map(str, range(1, 11)) for line in table.splitlines()) == 10
    for command in ("lhydra serve", "lhydra query", "lhydra evaluate", "lhydra web"):
        assert f"  {command}" in shown
    assert [words[2:] for words in became] == [["lhydra.cli", "web", str(tmp_path / "demo" / "store"), "--open"]]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert main(["demo", str(tmp_path / "mine")]) == 1
    assert "something else" in capfd.readouterr().err
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
