"""`lhydra train` as a process: killed or interrupted it continues with --resume to the same result, bit for bit."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from lhydra.bundle import sequence_files
from lhydra.bundle.model import GRAPHS, OPTIONAL, PARTS, Model
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.features.histories import HISTORY_FEATURES
from lhydra.features.moment import CONTEXT, SIGNALS
from lhydra.training.command import outcome
from lhydra.training.config import TrainSettings
from lhydra.training.progress import EpochDone, HeadFitted, Progress, TeacherTried
from lhydra.training.train import train
from tests.quick_export import environ

CONFIG = TrainSettings(epochs=16, dim=32, hidden=32, temperature=0.15, threads=1, head_epochs=1, depth=60)
NAMES = ("epochs", "dim", "hidden", "temperature", "threads", "head_epochs", "depth", "moments")
FLAGS = [word for name in NAMES for word in (f"--{name.replace('_', '-')}", str(getattr(CONFIG, name)))]
# Whoever starts the tests in the background may have SIGINT ignored; a person at a terminal has not.
PROGRAM = """\
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from lhydra.cli import main
sys.exit(main(sys.argv[1:]))
"""


def trained(dataset: Dataset, model: Path, *more: str, until: str = "", then: int = 0) -> tuple[int, list[str]]:
    """Runs `lhydra train` and returns (exit code, lines of stderr); sends signal `then` after the line with `until`."""
    words = [sys.executable, "-c", PROGRAM, "train", str(dataset.path), str(model), *FLAGS, *more]
    quick = environ(model.parent / "site")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=quick) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip())
            if until and until in line:
                process.send_signal(then)
                lines += [line.rstrip() for line in process.stderr]
        return process.wait(), lines


def epochs_of(lines: list[str]) -> list[int]:
    return [int(line.split()[1].partition("/")[0]) for line in lines if line.startswith("epoch")]


@pytest.fixture(scope="module")
def cut(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its second epoch."""
    model = tmp_path_factory.mktemp("killed") / "model"
    code, lines = trained(small_dataset, model, until="epoch   2/", then=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert 2 in epochs_of(lines)
    assert not (model / "model.json").exists()
    return model


def epochs_done(model: Path) -> int:
    """How far the checkpoint is."""
    with safe_open(model / "checkpoint" / "last.safetensors", "pt") as file:
        return int(json.loads(file.metadata()["state"])["epoch"])


def measured(model: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("took_s", "plays_per_s")} for line in lines]


def answers(model: Path, tracks: Dataset) -> list[np.ndarray]:
    """What the three exported graphs say to the same inputs."""
    opened, rng = Model.open(model), np.random.default_rng(0)
    encoded = opened.spec.encode_tracks(tracks.track_columns())
    vectors, history = opened.item_tower.embed(encoded)
    played = history[rng.integers(0, len(history), (40, 9))]
    dense = rng.normal(size=(40, len(opened.spec.user_dense))).astype(np.float32)
    ids = np.stack([rng.integers(0, size, 40) for _, size in opened.spec.user_ids], 1)
    entry = rng.random((40, 9, len(HISTORY_FEATURES))).astype(np.float32)
    users = opened.user_tower.run(dense, ids, played, entry, np.ones((40, 9), np.float32))
    pairs = [np.repeat(part[None], 40, 0) for part in (vectors, encoded.dense, encoded.ids)]
    popularity = rng.random((40, len(vectors))).astype(np.float32)
    together = rng.random((40, len(vectors), 2)).astype(np.float32)
    moment = [rng.random(shape).astype(np.float32) for shape in ((40, len(vectors), len(SIGNALS)), (40, len(CONTEXT)))]
    given = (users, dense, ids, *pairs, popularity, together, *(moment if opened.head.knows_moments else ()))
    return [vectors, history, users, *opened.head.run(*given)]


def test_a_killed_run_resumes_to_the_result_of_an_uninterrupted_one(
    cut: Path, small_dataset: Dataset, tmp_path: Path, quick_export: None
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    shutil.copytree(cut, resumed)
    done = epochs_done(cut)
    code, lines = trained(small_dataset, resumed, "--resume")
    assert code == 0
    assert epochs_of(lines) == list(range(done + 1, CONFIG.epochs + 1))  # what was done is not done again
    train(small_dataset, whole, CONFIG)

    assert measured(resumed) == measured(whole)
    for name in ("last", "best"):
        a, b = (load_file(model / "checkpoint" / f"{name}.safetensors") for model in (resumed, whole))
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a)
    for ours, theirs in zip(answers(resumed, small_dataset), answers(whole, small_dataset), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name in ("neighbours.npy", "neighbour_weights.npy", "features.json", *sequence_files.FILES):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    quality = [json.loads((model / "model.json").read_text())["quality"] for model in (resumed, whole)]
    assert quality[0] == quality[1]
    left = {path.name for path in resumed.rglob("*") if path.is_file()}
    assert left == {path.name for path in whole.rglob("*") if path.is_file()}
    assert left == {
        *PARTS,
        *OPTIONAL,
        *sequence_files.FILES,
        "model.json",
        "metrics.jsonl",
        "last.safetensors",
        "best.safetensors",
        "head.safetensors",
    }


@pytest.mark.parametrize(
    ("number", "ended", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
def test_an_end_is_told_in_one_line_and_leaves_what_resume_needs(
    cut: Path, small_dataset: Dataset, tmp_path: Path, number: int, ended: int, said: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(cut, model)
    done = epochs_done(model)
    code, lines = trained(small_dataset, model, "--resume", until=f"epoch   {done + 1}/", then=number)
    assert code == ended
    after = lines[next(i for i, line in enumerate(lines) if line.startswith(f"epoch   {done + 1}/")) + 1 :]
    assert [line for line in after if not line.startswith("epoch")] == [f"lhydra train: {said}"]
    assert not (model / "model.json").exists()
    kept = epochs_done(model)
    assert kept > done
    resumed: list[Progress] = []

    def one_more(line: Progress) -> None:
        if not isinstance(line, TeacherTried):
            resumed.append(line)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_dataset, model, CONFIG, resume=True, report=one_more)
    assert isinstance(resumed[0], HeadFitted) or (isinstance(resumed[0], EpochDone) and resumed[0].epoch == kept + 1)


def as_prepared_otherwise(dataset: Dataset, folder: Path) -> Path:
    """The same world, fewer tracks: tables of other sizes."""
    rows = "".join(f"u{i % 30},t{i * 7 % 40}\n" for i in range(600))
    (folder / "plays.csv").write_text("user_id,track_id\n" + rows)
    prepare(folder / "plays.csv", folder / "dataset", PrepareSettings())
    return folder / "dataset"


def as_renamed(dataset: Dataset, folder: Path) -> Path:
    """The same tables, from another source: only what the checkpoint says of its data tells them apart."""
    shutil.copytree(dataset.path, folder / "dataset")
    path = folder / "dataset" / "dataset.json"
    path.write_text(replace(dataset.info, source="another").to_json())
    return folder / "dataset"


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (as_prepared_otherwise, "expected a run with the same parents"),
        (as_renamed, "found another dataset, expected a run with the same parents"),
    ],
)
def test_resuming_on_another_dataset_is_refused_in_one_line(
    other: Callable[[Dataset, Path], Path],
    found: str,
    cut: Path,
    small_dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(cut, tmp_path / "model")
    dataset = other(small_dataset, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["train", str(dataset), str(tmp_path / "model"), *FLAGS, "--resume"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1  # no teacher was fitted before
    assert error[0].startswith("lhydra train: ")
    assert "last.safetensors" in error[0]
    assert found in error[0]
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == before


def test_resuming_what_was_never_begun_is_refused(
    small_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(small_dataset.path), str(tmp_path / "model"), *FLAGS, "--resume"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "found no checkpoint, expected a folder with a run to resume" in error
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_tells_nothing_of_the_machine_that_made_it(name: str, tiny_model: Path) -> None:
    """The exporter writes stack traces into every node, with the paths of source files."""
    graph = (tiny_model / name).read_bytes()
    assert b".py" not in graph
    assert str(Path(__file__).resolve().parents[1]).encode() not in graph


@pytest.mark.parametrize(
    ("users", "said"),
    [(2, "of one or two users"), (3, "(retrieval alone")],
)
def test_what_was_validated_is_said_as_it_is(
    users: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], quick_export: None
) -> None:
    assert outcome({}).startswith("no validation plays new to their users")
    rows = [f"u{i % 9},t{(i * 7) % 13},train" for i in range(40)]
    rows += [f"u{user},t{20 + user},valid" for user in range(users)]
    (tmp_path / "plays.csv").write_text("user_id,track_id,split\n" + "\n".join(rows) + "\n")
    assert main(["prepare", str(tmp_path / "plays.csv"), str(tmp_path / "dataset")]) == 0
    flags = ["--epochs", "1", "--head-epochs", "1", "--dim", "8", "--hidden", "8", "--threads", "1"]
    assert main(["train", str(tmp_path / "dataset"), str(tmp_path / "model"), *flags]) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--dim", "--hidden"])
def test_a_width_beyond_any_use_is_refused_before_any_work(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tmp_path / "dataset"), str(tmp_path / "model"), flag, "99999999999"]) == 1
    assert capsys.readouterr().err == f"lhydra train: {flag}: found 99999999999, expected 1 to 4096\n"
    assert not (tmp_path / "model").exists()
