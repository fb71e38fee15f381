"""What a rebuild needs is said before it begins, and refused where it does not fit."""

import itertools
import random
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lhydra.bundle.columns_writer import write_columns
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.bundle.model import Model
from lhydra.cli import main
from lhydra.data.dataset import Column, Dataset
from lhydra.errors import ConfigError
from lhydra.files import FileInfo
from lhydra_index_builder import build, changes, plan, sizes
from lhydra_index_builder.config import RebuildSettings


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


def with_columns(dataset: Dataset, folder: Path, width: int, rows: int = 0) -> Dataset:
    """`dataset`, of `rows` tracks, with `width` columns of a text a track and one of `width` values a track besides."""
    table, draw = pq.read_table(dataset.path / "tracks.parquet"), random.Random(0)
    if rows:
        table = pa.concat_tables([table] * (rows // len(table) + 1)).slice(0, rows)
    columns = {f"label {i:02}": "categorical" for i in range(width)} | {"moods": "multi"}
    for name, kind in columns.items():
        texts = (f"{name} {draw.getrandbits(64)}" for _ in range(len(table)))
        lists = ([None, *(f"mood {draw.randrange(500)}" for _ in range(width))] for _ in range(len(table)))
        table = table.append_column(name, pa.array(texts if kind == "categorical" else lists))
    shutil.copytree(dataset.path, folder)
    pq.write_table(table, folder / "tracks.parquet", row_group_size=500)
    described = (*dataset.info.track_columns, *(Column(name, kind) for name, kind in columns.items()))  # type: ignore[arg-type]
    counts = {**dataset.info.counts, "tracks": len(table)}
    return replace(dataset, path=folder, info=replace(dataset.info, track_columns=described, counts=counts))


def of_tracks(files: dict[str, int]) -> int:
    return sum(size for name, size in files.items() if name not in sizes.SMALL)


def test_each_file_of_a_bundle_is_predicted_and_none_larger(
    model: Model, tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    wide = with_columns(tiny_dataset, tmp_path / "wide", 20)
    settings = RebuildSettings(recall_users=20, gate_users=20, force=True)
    for dataset in (tiny_dataset, wide):
        said: list[str] = []
        store = tmp_path / f"store of {dataset.path.name}"
        files = build.rebuild(tiny_model, dataset, store, settings, said.append).manifest.files
        found = {name: info["bytes"] for name, info in files.items()}
        predicted = sizes.file_sizes(model, dataset).files
        assert found.keys() - predicted.keys() == {"index.faiss"}
        assert predicted.keys() <= found.keys()
        assert not {name: (found[name], size) for name, size in predicted.items() if size < found[name]}
        assert of_tracks(predicted) < 1.2 * of_tracks({name: found[name] for name in predicted})
        need = plan.predict(model, dataset, "auto", 0, 1)
        assert sum(found.values()) <= need.disk < 1.5 * sum(found.values()) + sum(sizes.SMALL.values())
        assert said[0].endswith(f"needs about {need}")


def test_the_need_grows_with_the_columns_to_filter_by(model: Model, tiny_dataset: Dataset, tmp_path: Path) -> None:
    needs = []
    for width in (0, 5, 40):
        dataset = with_columns(tiny_dataset, tmp_path / str(width), width)
        needs.append((dataset, plan.predict(model, dataset, "flat", 0, 2)))
    for (_, less), (dataset, more) in itertools.pairwise(needs):
        assert less.memory < more.memory
        assert less.disk < more.disk
        many = sized(dataset, 50_000_000)
        widest = sizes.file_sizes(model, many).widest
        assert plan.predict(model, many, "flat", 0, 2).memory > widest


def test_of_many_tracks_some_tell_how_large_the_columns_will_be(
    model: Model, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = with_columns(tiny_dataset, tmp_path / "many", 5, 8_000)
    monkeypatch.setattr(sizes, "ROWS", 250)  # an eighth is looked at
    kinds: dict[str, str] = {column.name: column.kind for column in dataset.info.track_columns}
    predicted = sizes.file_sizes(model, dataset).files
    (tmp_path / "columns").mkdir()
    names = write_columns(tmp_path / "columns", dataset.path / "tracks.parquet", kinds)
    found = {name: (tmp_path / "columns" / name).stat().st_size for name in names}
    assert (
        of_tracks(found) <= sum(predicted[name] for name in found if name not in sizes.SMALL) < 1.5 * of_tracks(found)
    )


def test_adding_writes_no_more_than_is_predicted(tiny_store: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    settings = RebuildSettings(recall_users=20, gate_users=20, force=True)
    table = tiny_dataset.track_rows(0, 40)
    ids = pa.array([f"{track_id}-new" for track_id in table["track_id"].to_pylist()])
    new = table.set_column(0, "track_id", ids).drop_columns(["train_plays", "train_listeners"])
    pq.write_table(new, tmp_path / "new.parquet")
    source = changes.CurrentBundle.open(store, None, settings)
    need = changes._estimate(source, new)
    built, _, _ = changes.add(tmp_path / "new.parquet", store, settings)
    old = source.folder
    anew = [name for name in built.manifest.files if not (store / built.bundle_id / name).samefile(old / name)]
    written = sum(built.manifest.files[name]["bytes"] for name in anew)
    assert written <= need.disk < 2 * written

    def with_filter(size: int) -> int:
        large: dict[str, FileInfo] = {"filter0_rows.npy": {"bytes": size, "sha256": ""}}
        manifest = replace(source.manifest, files=source.manifest.files | large)
        return changes._estimate(replace(source, manifest=manifest), new).memory

    assert with_filter(1 << 30) < with_filter(1 << 31)
    assert Manifest.read(store / current_bundle_id(store)).n_tracks == 440


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
