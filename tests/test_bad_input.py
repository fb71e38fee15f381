"""Bad input to whole commands: exit 1 and one line that names thing, found and expected; nothing half-written.

Sources are in `test_prepare` and `test_sources`, requests as messages in `test_server`.
"""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lhydra.bundle.manifest import current_bundle_id
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from tests.test_supervisor import Server, running


def refusal(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """Returns the one line that `lhydra WORDS` is refused with, without its beginning."""
    capfd.readouterr()
    assert main([str(word) for word in words]) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    start = f"lhydra {words[0]}: "
    assert line.startswith(start), line
    assert line.isprintable()
    return line.removeprefix(start)


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def names(tiny_dataset: Dataset, tiny_store: Path, tmp_path: Path) -> dict[str, Path]:
    """What the words in capitals of the cases below stand for."""
    folder = tiny_store.parent
    empty = tmp_path / "empty"
    empty.mkdir()
    typo = tmp_path / "typo.yaml"
    section = "{pord: 1, epoch: 1, see: 1, bundel: x, recip: flat}"
    commands = ("demo", "synth", "prepare", "train", "evaluate", "recommend", "users", "index", "serve")
    typo.write_text("".join(f"{name}: {section}\n" for name in commands))
    return {
        "SOURCE": Path(tiny_dataset.info.source), "DATASET": folder / "dataset", "MODEL": folder / "model",
        "STORE": tiny_store, "GONE": tmp_path / "gone", "EMPTY": empty, "OUT": tmp_path / "out",
        "CSV": tmp_path / "out.csv", "TYPO": typo,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("prepare GONE OUT", "GONE"),
        ("train GONE OUT", "GONE"),
        ("evaluate GONE --store STORE", "GONE"),
        ("evaluate DATASET --store GONE", "GONE"),
        ("evaluate DATASET --model GONE", "GONE"),
        ("evaluate DATASET --model EMPTY", "EMPTY"),
        ("recommend GONE STORE --out CSV", "GONE"),
        ("recommend DATASET GONE --out CSV", "GONE"),
        ("recommend DATASET EMPTY --out CSV", "EMPTY"),
        ("users load GONE --store OUT", "GONE"),
        ("index rebuild --model GONE --data DATASET --store OUT", "GONE"),
        ("index rebuild --model EMPTY --data DATASET --store OUT", "EMPTY"),
        ("index rebuild --model DATASET --data DATASET --store OUT", "DATASET"),
        ("index rebuild --model MODEL --data GONE --store OUT", "GONE"),
        ("index list --store GONE", "GONE"),
        ("index list --store EMPTY", "EMPTY"),
        ("index verify --store GONE", "GONE"),
        ("index verify --store EMPTY", "EMPTY"),
        ("index rollback --store EMPTY", "EMPTY"),
        ("index verify no-such-bundle --store STORE", "no-such-bundle"),
        ("serve GONE --port 0", "GONE"),
        ("serve EMPTY --port 0", "EMPTY"),
    ],
)
def test_missing_and_foreign_folders(
    command: str, named: str, names: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path)
    line = refusal(capfd, *(names.get(word, word) for word in command.split()))
    assert str(names.get(named, named)) in line
    assert "found " in line
    assert ", expected " in line
    assert {path for path in files(tmp_path) - before if path.is_file()} == set()


@pytest.mark.parametrize(
    "command",
    [
        "demo OUT",
        "synth OUT",
        "prepare SOURCE OUT",
        "train DATASET OUT",
        "evaluate DATASET --store STORE",
        "recommend DATASET STORE --out CSV",
        "users load DATASET --store OUT",
        "index rebuild --model MODEL --data DATASET --store OUT",
        "serve STORE --port 0",
    ],
)
def test_a_misspelt_config_key(
    command: str, names: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path)
    line = refusal(capfd, *(names.get(word, word) for word in command.split()), "--config", names["TYPO"])
    section = command.split()[0]
    assert line.startswith(f"{names['TYPO']}: {section}.pord: unknown key 'pord', the nearest known key is '")
    assert files(tmp_path) == before


@pytest.mark.parametrize("part", ["index.faiss", "head.onnx", "features.json"])
def test_a_bundle_with_one_byte_flipped(
    part: str, names: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(names["STORE"], store)
    path = store / current_bundle_id(store) / part
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = files(tmp_path)
    for words in (
        ("index", "verify", "--store", store),
        ("serve", store, "--port", "0", "--workers", "1"),
        ("recommend", names["DATASET"], store, "--out", names["CSV"]),
        ("evaluate", names["DATASET"], "--store", store),
    ):
        line = refusal(capfd, *words) if words[0] != "serve" else _serve_refusal(*words)
        assert part in line
        assert "found " in line
        assert ", expected " in line
    assert {path for path in files(tmp_path) - before if "users.lmdb" not in str(path)} == set()


def _serve_refusal(*words: object) -> str:
    """As `refusal`, in a process of its own: the supervisor takes over the signals of its process."""
    command = [sys.executable, "-m", "lhydra.cli", *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 1
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("lhydra serve: ")
    return line


def test_a_port_in_use(names: dict[str, Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = _serve_refusal("serve", names["STORE"], "--port", port)
    assert f"127.0.0.1:{port}: found the port in use, expected a free port" in line


def test_a_query_that_nobody_answers(capfd: pytest.CaptureFixture[str]) -> None:
    line = refusal(capfd, "query", "status", "--address", "127.0.0.1:1", "--timeout-s", "2")
    assert "127.0.0.1:1" in line


@pytest.fixture(scope="module")
def server(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    serve = ("-m", "lhydra.cli", "serve", tiny_store, "--port", "0", "--workers", "1")
    with running(serve, tmp_path_factory.mktemp("bad") / "log") as started:
        yield started


@pytest.mark.parametrize(
    ("user", "k", "field", "expected"),
    [
        ("u", 0, "k", "1 to 1000"),
        ("u", 10**9, "k", "1 to 1000"),
        ("u", -1, "k", ""),
        ("", 10, "user_id", "1 to 256 characters"),
        ("x" * 10_240, 10, "user_id", "1 to 256 characters"),
        ("a\nb", 10, "user_id", "no control characters"),
        ("\x1b[31m", 10, "user_id", "no control characters"),
    ],
    ids=["k-0", "k-1e9", "k-negative", "empty", "10-KB", "newline", "escape"],
)
def test_a_bad_query(
    user: str, k: int, field: str, expected: str, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capfd, "query", "recommend", user, f"--k={k}", "--address", server.address)
    assert line.startswith(f"{field}: found ")
    assert expected in line.partition(", expected ")[2]
