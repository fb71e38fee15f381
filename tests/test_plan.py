"""What a rebuild needs is said before it begins, and refused where it does not fit."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from lhydra.bundle.model import Model
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.errors import ConfigError
from lhydra_index_builder import plan


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return Model.open(tiny_model)


def sized(dataset: Dataset, n: int) -> Dataset:
    return replace(dataset, info=replace(dataset.info, counts={**dataset.info.counts, "tracks": n}))


def test_the_need_grows_with_tracks_processes_and_codes(model: Model, tiny_dataset: Dataset) -> None:
    def need(n: int, recipe: str = "auto", max_bytes: int = 0, processes: int = 2) -> plan.ResourceEstimate:
        return plan.predict(model, sized(tiny_dataset, n), recipe, max_bytes, processes)

    sizes = [need(n) for n in (10_000, 100_000, 1_000_000, 10_000_000)]
    assert [size.memory for size in sizes] == sorted(size.memory for size in sizes)
    assert [size.disk for size in sizes] == sorted(size.disk for size in sizes)
    assert sizes[-1].memory < 12 * sizes[-2].memory  # no worse than linear
    assert need(10_000_000, "HNSW32").memory > need(10_000_000, "IVF16384,SQ8").memory
    assert need(10_000_000, "flat").memory > need(10_000_000, "IVF16384,SQ8").memory
    assert need(100_000, processes=8).memory > need(100_000, processes=1).memory


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    words = ["index", "rebuild", "--model", str(tiny_model), "--data", str(tiny_dataset.path), "--store", str(store)]
    assert main([*words, "--max-memory-gib", "0.25"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("400 tracks of 32 numbers: needs about ")
    assert printed.err.startswith("lhydra index: --max-memory-gib: found 0.25, expected about ")
    assert printed.err.endswith("GiB for this rebuild\n")
    assert printed.err.count("\n") == 1
    assert not store.exists()


def test_a_small_machine_and_a_full_disk_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(plan, "free_memory", lambda: 2**30)
    plan.check(plan.ResourceEstimate(2**30, 10), tmp_path / "not" / "there", 0)
    with pytest.raises(ConfigError, match=r"^memory: found 1\.0 GiB free, expected about 2\.0 GiB for this rebuild$"):
        plan.check(plan.ResourceEstimate(2**31, 10), tmp_path, 0)
    monkeypatch.setattr(plan, "free_memory", lambda: None)  # a system that does not say refuses nobody
    plan.check(plan.ResourceEstimate(2**50, 10), tmp_path, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 9 * 10**9, 10**9))
    with pytest.raises(ConfigError, match=r"disk of .*: found 1\.0 GB free, expected about 3\.0 GB for this rebuild$"):
        plan.check(plan.ResourceEstimate(1, 3 * 10**9), tmp_path, 0)


def test_the_free_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan.free_memory()
    assert found is None or found > 2**20
    assert plan.cores(3) == 3
    assert plan.cores(0) >= 1
