"""What benchmarks/README.md says is there: every command with its flags, every file it names."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from lhydra.commands.outputs import is_json_with

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


def committed() -> list[tuple[Path, Path]]:
    """Results, and the program that wrote each."""
    found = []
    for path in sorted((ROOT / "benchmarks/results").rglob("*.json")):
        name = json.loads(path.read_text()).get("benchmark", "")
        programs = (ROOT / f"benchmarks/{name}.py", ROOT / f"benchmarks/{name}/command.py")
        found += [(path, program) for program in programs if name and program.exists()]
    return found


@pytest.mark.parametrize(("path", "program"), committed(), ids=lambda path: path.stem)
def test_a_benchmark_replaces_an_earlier_result_of_its_own(path: Path, program: Path) -> None:
    (keys,) = re.findall(r"is_json_with\((.*?)\)", program.read_text())
    assert is_json_with(*ast.literal_eval(f"[{keys}]"))(path.read_bytes())
