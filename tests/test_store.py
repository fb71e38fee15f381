"""Publishing, listing, rolling back: CURRENT names a whole bundle at every moment."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import sem

from lhydra import files
from lhydra.bundle import catalog_writer, embedding, listed
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.exact import nearest
from lhydra.bundle.history_vectors import HistoryVectors
from lhydra.bundle.manifest import Manifest, OperatingPoint, current_bundle_id
from lhydra.bundle.model import Model, ModelInfo
from lhydra.cli import main
from lhydra.data.dataset import Dataset, user_states
from lhydra.errors import ConfigError, LhydraError, StoreLocked
from lhydra.recommender import Recommender
from lhydra_index_builder import store as stores
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings

SETTINGS = RebuildSettings(recall_users=20, gate_users=20, recipe="flat", depth=100)


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the tiny store's bundles: two, the newer one current."""
    shutil.copytree(tiny_store, tmp_path / "store", ignore=shutil.ignore_patterns("users.lmdb"))
    return tmp_path / "store"


def left_over(store: Path) -> list[str]:
    hidden = [path.name for path in store.iterdir() if path.name.startswith(".")]
    return [name for name in hidden if not name.startswith(".verified-")]  # those stay


@pytest.mark.parametrize(
    "step",
    [
        "plan.check",
        "write_catalog",
        "depths.measure",
        "recipe.choose",
        "_write_golden",
        "files.seal",
        "Bundle.open_folder",
        "Recommender.warm_up",
        "gate.check",
        "store.add",
    ],
)
def test_a_rebuild_that_fails_leaves_the_store_as_it_was(
    step: str, store: Path, tiny_model: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in store.iterdir()), current_bundle_id(store)

    def fail(*args: object, **named: object) -> None:
        raise LhydraError("no")

    monkeypatch.setattr(f"lhydra_index_builder.build.{step}", fail)
    with pytest.raises(LhydraError, match="no"):
        rebuild(tiny_model, tiny_dataset, store, SETTINGS)
    monkeypatch.undo()
    assert (sorted(path.name for path in store.iterdir()), current_bundle_id(store)) == before
    Bundle.open(store)


def test_a_store_in_use_is_noticed_before_the_model_is_read(
    store: Path, tiny_model: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "open", lambda *given: pytest.fail("the model was read"))
    with stores.building(store, "another"), pytest.raises(StoreLocked, match="found another by process"):
        rebuild(tiny_model, tiny_dataset, store, SETTINGS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": "IVF8,Nonsense"}, "recipe: found IVF8,Nonsense, expected flat or a FAISS factory string"),
        (
            {"recipe": "IVF4096,Flat"},
            "recipe IVF4096,Flat: found 4,096 lists, expected at most one for each of 400 tra",
        ),
        ({"recipe": "auto", "max_bytes_per_track": 1}, "--max-bytes-per-track: found 1, expected at least"),
    ],
)
def test_a_recipe_of_which_nothing_comes_is_refused_before_the_model_is_read(
    wrong: dict[str, Any],
    message: str,
    tmp_path: Path,
    tiny_model: Path,
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Model, "open", lambda *given: pytest.fail("the model was read"))
    with pytest.raises(ConfigError, match=message):
        rebuild(tiny_model, tiny_dataset, tmp_path / "new", replace(SETTINGS, **wrong))
    assert not (tmp_path / "new").exists()


def test_current_is_named_only_after_the_bundle_is_in_place(
    store: Path, tiny_model: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = current_bundle_id(store)
    write_text = files.write_text

    def fail(path: Path, text: str) -> None:
        if path.name == "CURRENT":
            Bundle.open(store, text.strip())  # whole, under its final name
            raise LhydraError("killed here")
        write_text(path, text)

    monkeypatch.setattr("lhydra_index_builder.store.files.write_text", fail)
    with pytest.raises(LhydraError, match="killed here"):
        rebuild(tiny_model, tiny_dataset, store, SETTINGS)
    assert current_bundle_id(store) == before


def test_whoever_builds_sweeps_what_others_left(store: Path) -> None:
    """Nobody else holds the lock, so whatever lies there is of a process that is gone, even one with a living id."""
    left = [store / ".staging-999999999-x", store / f".staging-{os.getpid()}-y", store / ".trash-20260101T000000-0"]
    for folder in left:
        folder.mkdir()
        (folder / "part").write_text("x")
    assert [entry.state for entry in listed.entries(store)].count("partial") == 2
    with stores.building(store, "test") as mine:
        assert mine.is_dir()
        assert not any(folder.exists() for folder in left)
    assert not mine.exists()
    assert left_over(store) == [".lock"]


def test_rollback_goes_back_and_by_id_forth(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = current_bundle_id(store)
    assert main(["index", "rollback", "--store", str(store)]) == 0
    older = current_bundle_id(store)
    assert older < newer
    assert [entry.state for entry in listed.entries(store)] == ["newer", "current"]
    assert main(["index", "rollback", "--store", str(store)]) == 1
    said = capsys.readouterr().err
    assert f"found nothing older than {older}" in said
    assert f"forward again: lhydra index rollback {newer} --store {store}" in said
    assert main(["index", "rollback", newer, "--store", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"bundle_id": newer}
    assert current_bundle_id(store) == newer


def test_rollback_to_a_damaged_bundle_is_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    current = current_bundle_id(store)
    older = next(entry.bundle_id for entry in listed.entries(store) if entry.state == "previous")
    damaged = bytearray((store / older / "vectors.npy").read_bytes())
    damaged[-1] ^= 1
    (store / older / "vectors.npy").write_bytes(damaged)
    assert main(["index", "rollback", "--store", str(store)]) == 1
    assert "vectors.npy: found sha256" in capsys.readouterr().err
    assert current_bundle_id(store) == current
    assert main(["index", "verify", older, "--store", str(store)]) == 1
    assert main(["index", "verify", "--store", str(store)]) == 0


def test_list_shows_every_bundle(store: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "list", "--store", str(store)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["current", "previous"]
    model = ModelInfo.read(tiny_model)
    assert model.parents is not None
    assert lines[0].split()[-3:] == ["ndcg@10", "of", "fold"]  # figures of different folds do not compare
    assert {line.split()[-1] for line in lines[1:]} == {model.parents["split"]["hash"][:6]}
    (store / lines[2].split()[0] / "manifest.json").write_text("{")
    assert main(["index", "list", "--store", str(store), "--json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["current", "broken"]


def test_list_names_files_that_are_gone_or_cut_and_rollback_passes_them_over(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    current, older = (entry.bundle_id for entry in listed.entries(store))
    os.truncate(store / older / "head.onnx", 100)
    (store / current / "vectors.npy").unlink()
    assert [(entry.state, entry.manifest is None) for entry in listed.entries(store)] == [
        ("current", False),
        ("broken", False),
    ]
    assert main(["index", "list", "--store", str(store)]) == 0
    said = capsys.readouterr().out
    assert f"{store / older / 'head.onnx'}: found 100 bytes, expected" in said
    assert f"{store / current / 'vectors.npy'}: found no such file" in said
    assert main(["index", "rollback", "--store", str(store)]) == 1
    assert f"found nothing older than {current}" in capsys.readouterr().err
    (store / "CURRENT").write_text("nobody")
    assert main(["index", "rollback", "--store", str(store)]) == 1
    assert "`lhydra index rollback ID` writes it" in capsys.readouterr().err


def test_the_catalog_is_the_item_tower_over_every_track(
    tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.open(tiny_model)
    monkeypatch.setattr(embedding, "BLOCK", 7)
    monkeypatch.setattr(catalog_writer, "SHARD", 61)
    catalog = catalog_writer.write_catalog(model, tiny_dataset, tmp_path)
    tracks = model.spec.encode_tracks(tiny_dataset.track_columns())
    vectors, history = model.item_tower.embed(tracks)
    for kept, exact in ((catalog.vectors, vectors), (catalog.dense, tracks.dense)):
        assert kept.dtype == np.float16
        np.testing.assert_allclose(kept, exact, rtol=2**-10, atol=1e-4)  # rounded to a half
    np.testing.assert_array_equal(catalog.history.table, HistoryVectors.of(history).table)
    np.testing.assert_array_equal(catalog.ids, tracks.ids)
    np.testing.assert_allclose(np.linalg.norm(catalog.vectors.astype(np.float32), axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("recipe", ["flat", "HNSW4", "IVF8,SQ8", "IVF4,PQ8x4fs"])
def test_the_measured_recall_is_the_truth(recipe: str, tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """What the manifest says is what brute force finds."""
    n = len(tiny_dataset.user_ids)
    settings = replace(SETTINGS, recipe=recipe, recall_users=n, recall=0.9, force=True)
    built = rebuild(tiny_model, tiny_dataset, tmp_path / "store", settings)
    bundle = Bundle.open(tmp_path / "store")
    recommender = Recommender(bundle)
    shares = []
    for _, state in user_states(tiny_dataset, "valid"):
        vector = bundle.embed(recommender.encode(state))
        found = bundle.index.search(vector, settings.depth)[0].tolist()
        exact = [nearest(bundle.catalog.vectors, vector, k, np.empty(0, np.int64))[0].tolist() for k in (10, 100)]
        shares.append((len({*exact[1]} & {*found}) / 100, len({*exact[0]} & {*found[:10]}) / 10))
    recall = built.manifest.recall
    assert (recall["coverage"], recall["recall@10"]) == pytest.approx(np.mean(shares, axis=0), abs=1e-6)
    assert recall["coverage error"] == pytest.approx(sem([share for share, _ in shares]), abs=1e-6)
    assert (recipe != "flat") or recall["coverage"] == 1
    curve = [
        point
        for point in built.manifest.index["curve"]
        if vars(OperatingPoint(point["effort"], point["refine"])) == built.manifest.point
    ]
    assert curve[-1]["least"] >= 0.9 or not built.manifest.index["reached"]


@pytest.mark.parametrize("recipe", ["auto", "IVF8,SQ8"])
def test_the_same_inputs_give_the_same_content(
    recipe: str, tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, recipe=recipe, depth=0)
    a, b = (rebuild(tiny_model, tiny_dataset, tmp_path / "store", settings).manifest for _ in range(2))
    assert a.bundle_id != b.bundle_id
    assert a.files == b.files
    assert a.content == b.content
    other = rebuild(tiny_model, tiny_dataset, tmp_path / "store", replace(settings, recall=0.5)).manifest
    assert other.content != a.content


def test_manifest_round_trip(tiny_store: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_store / current_bundle_id(tiny_store))
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
