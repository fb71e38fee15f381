"""The one command: finding subcommands, exit codes, missing extras, and what is imported when."""

import argparse
import json
import signal
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest

from lhydra import cli, files
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError

HEAVY = ("numpy", "torch", "faiss", "grpc", "onnxruntime", "duckdb", "pandas", "pyarrow", "yaml", "rich", "lmdb")
BLOCKER = """\
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED, words = json.loads(sys.argv[1])
sys.meta_path.insert(0, Blocker())
from lhydra.cli import main
sys.exit(main(words))
"""


def without(modules: tuple[str, ...], *words: object) -> "subprocess.CompletedProcess[str]":
    """Runs `lhydra WORDS` where `modules` cannot be imported."""
    argument = json.dumps([modules, [str(word) for word in words]])
    return subprocess.run([sys.executable, "-c", BLOCKER, argument], capture_output=True, text=True, check=False)


def test_every_subcommand_is_found_and_has_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    found = {entry.name: entry.load() for entry in entry_points(group=cli.GROUP)}
    assert set(found) >= set(cli.ORDER)
    for module in found.values():
        assert module.HELP
        assert isinstance(module.EXTRA, str)
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert [shown.index(f"\n    {name} ") for name in cli.ORDER] == sorted(
        shown.index(f"\n    {name} ") for name in cli.ORDER
    )


def test_every_command_and_its_subcommands_can_tell_how_they_are_used() -> None:
    """Help texts are formats to argparse: a per cent sign ends in a traceback. Each tells one default at most."""
    told = 0
    for entry in entry_points(group=cli.GROUP):
        parsers = [argparse.ArgumentParser(prog=entry.name)]
        entry.load().configure(parsers[0])
        while parsers:
            parser = parsers.pop()
            assert "usage" in parser.format_help()
            told += 1
            for action in parser._actions:
                assert (action.help or "").count("(default: ") <= 1, action.help
                if isinstance(action, argparse._SubParsersAction):
                    parsers += set(action.choices.values())
    assert told > len(cli.ORDER)  # `index` and `users` have some of their own


@pytest.mark.parametrize("words", [(), *((name,) for name in cli.ORDER)], ids=lambda words: words[0] if words else "-")
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom lhydra.cli import main\n"
        f"try: main([*{words!r}, '--help'])\nexcept SystemExit as ended: assert ended.code == 0\n"
        f"print('heavy:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("heavy: []\n")


@pytest.mark.parametrize(
    ("module", "extra", "words"),
    [
        ("torch", "train", ("train", "DATASET", "out/model")),
        ("pyarrow", "data", ("prepare", "SOURCE", "out/dataset")),
        ("duckdb", "data", ("prepare", "SOURCE", "out/dataset")),
        ("numpy", "data", ("synth", "out/world")),
        ("faiss", "index", ("recommend", "DATASET", "STORE", "--out", "lists.csv")),
        ("onnxruntime", "index", ("evaluate", "DATASET", "--store", "STORE")),
        ("lmdb", "index", ("users", "load", "DATASET", "--store", "out/store")),
        ("faiss", "index", ("index", "rebuild", "--model", "MODEL", "--data", "DATASET", "--store", "out/store")),
        ("onnxruntime", "index", ("index", "verify", "--store", "STORE")),
        ("grpc_health", "server", ("serve", "STORE", "--port", "0")),
        ("yaml", "data", ("prepare", "SOURCE", "out/dataset", "--config", "lhydra.yaml")),
    ],
)
def test_a_missing_extra_is_named(
    module: str, extra: str, words: tuple[str, ...], tiny_dataset: Dataset, tiny_store: Path, tmp_path: Path
) -> None:
    source, dataset = Path(tiny_dataset.info.source), tiny_dataset.path
    places = {"DATASET": dataset, "STORE": tiny_store, "MODEL": tiny_store.parent / "model", "SOURCE": source}
    (tmp_path / "lhydra.yaml").write_text("prepare: {}\n")
    full = [places.get(word, tmp_path / word if "out/" in word or "." in word else word) for word in words]
    ran = without((module,), *full)
    assert ran.returncode == 1
    lines = [line for line in ran.stderr.splitlines() if line.startswith("lhydra ")]
    assert lines == [f"lhydra {words[0]}: this command needs {module}; install with: pip install 'lhydra[{extra}]'"]
    assert "Traceback" not in ran.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lhydra.yaml"]  # nothing half-written


def test_query_needs_grpc_and_protobuf_only() -> None:
    heavy = tuple(name for name in HEAVY if name != "grpc")
    ran = without(heavy, "query", "status", "--address", "127.0.0.1:1", "--timeout-s", "2")
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("lhydra query: ")
    assert "127.0.0.1:1" in line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (LhydraError("store: found x, expected y"), 1, "lhydra index: store: found x, expected y\n"),
        (KeyboardInterrupt(), 130, "lhydra index: interrupted\n"),
        (FileNotFoundError(2, "No such file", "a/b"), 1, "lhydra index: No such file: a/b\n"),
        (OSError(28, "No space left on device"), 1, "lhydra index: No space left on device\n"),
        (MemoryError(), 1, "lhydra index: out of memory\n"),
    ],
    ids=["fine", "refused", "interrupted", "file", "disk", "memory"],
)
def test_exit_codes(
    error: BaseException | None,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(args: object) -> int:
        if error is not None:
            raise error
        return 0

    command = SimpleNamespace(run=run, EXTRA="index")
    monkeypatch.setattr(cli, "_parse", lambda argv: (SimpleNamespace(command="index", log_level="warning"), command))
    assert main(["index"]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("words", [(), ("no-such",), ("synth",), ("synth", "out", "--no-such-flag")])
def test_wrong_usage_ends_with_2(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_log_level_is_taken_anywhere(place: int) -> None:
    words = ["users", "load", "dataset"]
    args, _ = cli._parse([*words[:place], "--log-level", "debug", *words[place:]])
    assert (args.log_level, args.command) == ("debug", "users")
    assert cli._parse(["serve", "store"])[0].log_level == "info"
    assert cli._parse(["users", "load", "dataset"])[0].log_level == "warning"


def test_a_name_with_two_values_is_refused_and_names_apart_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--cap", "artist=1", "--cap", "artist=2"], "--cap artist: found it twice, 1 and 2, expected it once"),
        (["--profile", "a=x", "b=y", "a=z"], "--profile a: found it twice, x and z, expected it once"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["query", "recommend", "u", "--address", "127.0.0.1:1", *words])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert main(["query", "recommend", "u", "--address", "127.0.0.1:1", "--cap", "artist=1", "--cap", "genre=2"]) == 1


def test_sigterm_is_one_line_and_143_and_leaves_no_half_and_no_handler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(args: object) -> int:
        with files.replacing_folder(tmp_path / "made") as folder:
            (folder / "half").write_text("")
            signal.raise_signal(signal.SIGTERM)
        return 0

    command = SimpleNamespace(run=run, EXTRA="index")
    monkeypatch.setattr(cli, "_parse", lambda argv: (SimpleNamespace(command="index", log_level="warning"), command))
    for _ in range(2):
        assert main(["index"]) == 143
        assert capsys.readouterr().err == "lhydra index: ended by SIGTERM\n"
        assert list(tmp_path.iterdir()) == []
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("number", "ended", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
def test_an_end_that_comes_while_an_object_is_taken_away_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, ended: int, said: str
) -> None:
    class Held:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def run(args: object) -> int:
        Held()
        threading.Event().wait(60)
        return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts tests may have had it ignored
    command = SimpleNamespace(run=run, EXTRA="index")
    monkeypatch.setattr(cli, "_parse", lambda argv: (SimpleNamespace(command="index", log_level="warning"), command))
    try:
        assert main(["index"]) == ended
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == f"lhydra index: {said}\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_end_of_either_kind_kills(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    found: list[object] = []

    def run(args: object) -> int:
        try:
            signal.raise_signal(number)
        finally:
            found.extend(signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM))
        return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = SimpleNamespace(run=run, EXTRA="index")
    monkeypatch.setattr(cli, "_parse", lambda argv: (SimpleNamespace(command="index", log_level="warning"), command))
    try:
        assert main(["index"]) in (130, 143)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [signal.SIG_DFL, signal.SIG_DFL]


def test_an_interrupt_while_a_command_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lhydra.cli.importlib.import_module", interrupted)
    assert main(["serve", "store"]) == 130
    assert capsys.readouterr().err == "lhydra: interrupted\n"
