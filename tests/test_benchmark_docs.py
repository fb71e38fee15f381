"""What benchmarks/README.md says is there: every command with its flags, every file it names."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "benchmarks" / "README.md"
COMMANDS = re.findall(r"^python -m benchmarks\.(\w+) ([^#\n]*)", README.read_text().replace("\\\n", " "), re.MULTILINE)


@pytest.mark.parametrize("name", sorted({name for name, _ in COMMANDS}))
def test_every_documented_command_knows_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = (ROOT / "benchmarks" / name).is_dir()
    program = importlib.import_module(f"benchmarks.{name}.command" if folder else f"benchmarks.{name}")
    with pytest.raises(SystemExit) as caught:
        program.main(["--help"])
    assert caught.value.code == 0
    told = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    used = {word for command, words in COMMANDS if command == name for word in re.findall(r"--[a-z0-9-]+", words)}
    assert used <= told


def test_every_benchmark_is_documented() -> None:
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def main(" in path.read_text()}
    folders = {path.parent.name for path in (ROOT / "benchmarks").glob("*/__main__.py")}
    assert {name for name, _ in COMMANDS} == files | folders


def test_every_file_that_is_named_is_there() -> None:
    text = README.read_text()
    folders = [ROOT / "benchmarks", ROOT / "benchmarks" / "latency", ROOT / "benchmarks" / "ann"]
    for name in set(re.findall(r"`([a-z_0-9]+\.py)`", text)):
        assert any((folder / name).exists() for folder in folders), name
