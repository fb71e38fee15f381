"""The README and docs promise only what exists: commands, flags, files, and Python that runs against a server."""

import argparse
import importlib
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from lhydra.data.synth import write_world
from tests.fake_recommender import FakeRecommender, serving

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("C*.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, and of every action of a command as `index rebuild`."""
    found: dict[str, argparse.ArgumentParser] = {}
    for entry in entry_points(group="lhydra.commands"):
        parser = argparse.ArgumentParser()
        importlib.import_module(entry.value).configure(parser)
        found[entry.name] = parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{entry.name} {name}": sub for name, sub in action.choices.items()}
    return found


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `lhydra …` line and inline command of a page, comments cut off."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for match in re.finditer(r"(?:^|[`$] ?|^ +)lhydra ([a-z][^`\n#]*)", text, re.MULTILINE):
        yield match[1].replace("&", " ").replace("…", " ").split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_flag_on_a_page_exists(page: Path) -> None:
    known = parsers()
    for words in commands(page):
        name = next((key for key in (" ".join(words[:2]), words[0]) if key in known), None)
        assert name is not None, f"{page.name}: lhydra {' '.join(words)}"
        flags = {flag for action in known[name]._actions for flag in action.option_strings} | {"--log-level"}
        for word in words:
            if word.startswith("--"):
                flag = word.strip("[]().,;:").partition("=")[0]
                assert flag in flags, f"{page.name}: lhydra {name} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def python_blocks(page: Path) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a source called `listening`, against a server where the page expects one."""
    write_world(tmp_path / "listening", users=30, tracks=40, plays=1_200, seed=0)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with serving(FakeRecommender()) as address:
        for block in python_blocks(page):
            exec(compile(block.replace("127.0.0.1:50051", address), page.name, "exec"), names)


def test_pages_with_python_are_found() -> None:
    assert {"README.md", "api.md", "data-format.md"} <= {page.name for page in PAGES if python_blocks(page)}
