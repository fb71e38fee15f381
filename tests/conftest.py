"""What many tests share: one tiny world, trained for real once per session, published, its users loaded."""

import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

from lhydra.bundle import catalog_writer
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.model import Model
from lhydra.data import listening
from lhydra.data.dataset import Dataset, user_states
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.data.synth import write_world
from lhydra.training import export as exporting
from lhydra.training.config import TrainSettings
from lhydra.training.train import train
from lhydra.users.store import open_users
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings
from tests.harness import DEEP, deep
from tests.quick_export import traced

os.environ.update(no_grpc_proxy="127.0.0.1")  # plain channels of tests, and of what they start, stay on this machine
# Some machines set it: every process of a test would compile Lhydra anew, a third of the time in which a worker starts,
# and pytest all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
TINY_TRAINING = TrainSettings(epochs=4, dim=32, hidden=32, temperature=0.15, moments=0, threads=1)


LONG_FILES = (  # of a quarter of a minute or more; the first two are not both in want of the tiny model
    *("test_retrain.py", "test_real_data.py", "test_training.py", "test_head.py", "test_crash.py"),
    *("test_supervisor.py", "test_heartbeat.py", "test_demo.py", "test_train_command.py", "test_plays.py"),
    *("test_learns.py", "test_packaging.py", "test_drills.py", "test_warm.py", "test_baselines.py", "test_unseen.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first: one that came last would run alone, and one of the processes would have nothing to do."""
    place = {name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_configure() -> None:
    """Has no test fail for want of time, and servers start as from a terminal, though `nohup` ignores signals.

    A process hands ignored signals on to those it starts; one that has a handler starts them with the default.
    """
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.register_profile(DEEP, deadline=None, max_examples=2_000)
    hypothesis.settings.load_profile("untimed")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


def write_taste(source: Path, *, users: int, tracks: int, plays: int) -> None:
    """Writes a world of few sessions and repeats, so that there is something for the head to learn from few plays."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("REPEAT", 0.12), ("THEME", 0.0), ("SESSION_PLAYS", 1), ("RETURN_DECAY", 0.0)):
            patch.setattr(listening, name, value)
        write_world(source, users=users, tracks=tracks, plays=plays, seed=7)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Dataset:
    """A prepared synthetic world: 300 users, 400 tracks, 12,000 plays, split by time."""
    folder, own = tmp_path_factory.mktemp("tiny"), tmp_path_factory.getbasetemp()
    source = (own if worker_id == "master" else own.parent) / "tiny-source"  # one path: a checkpoint remembers it
    with source.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (source / "world.json").exists():
            write_taste(source, users=300, tracks=400, plays=12_000)
    prepare(source, folder / "dataset", PrepareSettings())
    return Dataset.open(folder / "dataset")


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A third of that, for trainings that are compared with each other only: 100 users, 200 tracks, 3,500 plays."""
    folder = tmp_path_factory.mktemp("small")
    write_taste(folder / "source", users=100, tracks=200, plays=3_500)
    prepare(folder / "source", folder / "dataset", PrepareSettings())
    return Dataset.open(folder / "dataset")


@pytest.fixture(scope="session")
def tiny_model(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A model trained on the tiny dataset for a few epochs: once per run, then copied to each of pytest's processes."""
    folder = tiny_dataset.path.parent / "model"
    if worker_id == "master":
        train(tiny_dataset, folder, TINY_TRAINING)
        return folder
    shared = tmp_path_factory.getbasetemp().parent / "tiny-model"
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "model.json").exists():
            train(tiny_dataset, shared, TINY_TRAINING)
    shutil.copytree(shared, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_store(tiny_dataset: Dataset, tiny_model: Path) -> Path:
    """A store with two bundles, the newer one CURRENT, and every user loaded; dataset and model lie beside it."""
    store = tiny_dataset.path.parent / "store"
    for seed in (0, 1):
        rebuild(tiny_model, tiny_dataset, store, RebuildSettings(recall_users=50, gate_users=50, seed=seed))
    users = open_users(None, store)
    users.load(user_states(tiny_dataset, "now"))
    users.close()
    return store


@pytest.fixture(scope="session")
def tiny_bundle(tiny_dataset: Dataset, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model over the tiny dataset's tracks, never published."""
    return catalog_writer.unpublished_bundle(Model.open(tiny_model), tiny_dataset, tmp_path_factory.mktemp("catalog"))


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces graphs as `tests.quick_export` says, but in `make test-deep`."""
    if not deep():
        monkeypatch.setattr(exporting, "_traced", traced)
