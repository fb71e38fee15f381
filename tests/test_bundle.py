"""A bundle that is not exactly what was sealed is refused before it answers anything, naming the file."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
import onnx
import pytest

from lhydra import files
from lhydra.bundle import listed
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import ARRAYS, OWN_LENGTH, TEXT, Catalog, CatalogArray
from lhydra.bundle.catalog_writer import write_hashes
from lhydra.bundle.manifest import CHECKSUM, Manifest, current_bundle_id
from lhydra.bundle.model import Model
from lhydra.bundle.strings import StringColumn
from lhydra.domain import track_hashes
from lhydra.errors import BundleCorrupt, BundleError, BundleMismatch, BundleMissing, DataError
from lhydra_index_builder import store as stores


@pytest.fixture
def copy(tiny_store: Path, tmp_path: Path) -> Path:
    """A store of its own with one bundle; gives the bundle's folder."""
    bundle_id = current_bundle_id(tiny_store)
    shutil.copytree(tiny_store / bundle_id, tmp_path / "store" / bundle_id)
    (tmp_path / "store" / "CURRENT").write_text(f"{bundle_id}\n")
    return tmp_path / "store" / bundle_id


def names(folder: Path) -> list[str]:
    return sorted(Manifest.read(folder).files)


def put(folder: Path, text: str) -> None:
    """Makes a text the manifest of a bundle as Lhydra would have written it."""
    (folder / "manifest.json").write_text(text)
    (folder / CHECKSUM).write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  manifest.json\n")


def reseal(folder: Path, names: Iterable[str] = ()) -> None:
    """Makes a manifest of the files as they are now, with more of them."""
    document = json.loads((folder / "manifest.json").read_text())
    document["files"] = files.seal(folder, [*document["files"], *names])
    put(folder, json.dumps(document))


def test_every_file_flipped_cut_or_removed_is_named(copy: Path) -> None:
    for name in names(copy):
        whole = (copy / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for damaged in (bytes(flipped), whole[:-1], whole + b"x", None):
            (copy / name).unlink()
            if damaged is not None:
                (copy / name).write_bytes(damaged)
            with pytest.raises(BundleCorrupt) as caught:
                Bundle.open(copy.parent)
            assert name in str(caught.value)
            assert ", expected " in str(caught.value)
            assert "\n" not in str(caught.value)
            (copy / name).write_bytes(whole)
    Bundle.open(copy.parent)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("format", 99, BundleMismatch),
        ("n_tracks", 7, BundleMismatch),
        ("dim", 5, BundleMismatch),
        ("features", "0" * 64, BundleMismatch),
        ("surprise", 1, BundleCorrupt),
    ],
)
def test_an_edited_manifest_is_refused(copy: Path, key: str, value: object, error: type[BundleError]) -> None:
    document = json.loads((copy / "manifest.json").read_text()) | {key: value}
    put(copy, json.dumps(document))
    with pytest.raises(error):
        Bundle.open(copy.parent)


def test_a_bundle_in_a_folder_of_another_name_is_refused_by_all_who_open_it(copy: Path, tiny_model: Path) -> None:
    store, bundle_id, other = copy.parent, copy.name, "20990101T000000-00000000"
    shutil.copytree(copy, store / other)
    (store / "CURRENT").write_text(f"{other}\n")
    for ask in (Bundle.open, lambda store: stores.rollback(store, other)):
        with pytest.raises(BundleMismatch) as caught:
            ask(store)
        line = str(caught.value)
        assert line.startswith(f"{store / other / 'manifest.json'}: found bundle {bundle_id}, expected {other}")
        assert "\n" not in line
    assert {entry.bundle_id: entry.state for entry in listed.entries(store)}[other] == "broken"
    assert Bundle.open(store, bundle_id).bundle_id == bundle_id
    Model.open(shutil.copytree(tiny_model, store.parent / "renamed"))  # a model's folder is named by its user


def test_a_copy_makes_no_bundle_younger(tiny_store: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(tiny_store, tmp_path / "store")
    (name,) = (entry.bundle_id for entry in listed.entries(copied) if entry.state == "current")
    os.utime(copied / name, (0, 0))
    made = datetime.fromisoformat(Manifest.read(copied / name, name).created).timestamp()
    (age_s,) = (entry.age_s for entry in listed.entries(copied) if entry.state == "current")
    assert 0 <= time.time() - made - age_s < 60
    (copied / name / "manifest.json").write_text("{")
    assert {entry.bundle_id: entry.age_s for entry in listed.entries(copied)}[name] > 1e9  # of the folder, now


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}"])
def test_a_manifest_that_is_none_is_refused(copy: Path, text: str) -> None:
    put(copy, text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(copy.parent)


def test_a_file_left_out_of_the_manifest_is_missed(copy: Path) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    del document["files"]["vectors.npy"]
    put(copy, json.dumps(document))
    with pytest.raises(BundleCorrupt, match=r"no vectors\.npy"):
        Bundle.open(copy.parent)


def test_golden_users_catch_parts_that_do_not_belong_together(copy: Path) -> None:
    """Sealed anew, checksums agree; only the golden users can tell that a table was swapped for another."""
    history = np.load(copy / "history.npy")
    np.save(copy / "history.npy", history[::-1])
    reseal(copy)
    with pytest.raises(BundleMismatch, match=r"golden vectors: found .* off, expected at most 0\.0001"):
        Bundle.open(copy.parent)


def test_golden_scores_catch_another_head(copy: Path) -> None:
    graph = onnx.load(copy / "head.onnx")
    for weights in graph.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT:
            doubled = onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weights), weights.name)
            weights.CopyFrom(doubled)
    onnx.save(graph, copy / "head.onnx")
    reseal(copy)
    with pytest.raises(BundleMismatch, match="golden scores"):
        Bundle.open(copy.parent)


def test_one_table_says_what_the_arrays_of_a_catalog_are(tiny_bundle: Bundle) -> None:
    assert [array.name for array in ARRAYS] == [field.name for field in dataclasses.fields(Catalog)]
    for array in ARRAYS:
        value = getattr(tiny_bundle.catalog, array.name)
        assert isinstance(value, StringColumn) == (array.dtype == TEXT)
        if array.extent != OWN_LENGTH:
            assert len(value) == len(tiny_bundle.catalog)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: array.name)
def test_an_array_of_another_type_or_length_is_named(copy: Path, array: CatalogArray) -> None:
    path = copy / array.file_names[0]
    value = np.load(path)
    other = np.int8 if array.dtype == TEXT else np.float64
    np.save(path, value.astype(other))
    with pytest.raises(BundleCorrupt, match=f"{path.name}: found {np.dtype(other)}( of 1 dimensions)?, expected "):
        Catalog.open(copy)
    np.save(path, value)
    if array.extent != OWN_LENGTH and array.name != "vectors":
        last = copy / array.file_names[-1]
        np.save(last, np.load(last)[:-1])
        with pytest.raises(BundleCorrupt, match=f"{path.name}: found .* rows, expected .* rows"):
            Catalog.open(copy)


@pytest.mark.parametrize("text", ["", "nonsense\n", "../../etc\n", "20260101T000000-00000000 x\n"])
def test_a_current_that_names_no_bundle_is_refused(copy: Path, text: str) -> None:
    (copy.parent / "CURRENT").write_text(text)
    with pytest.raises(BundleMissing, match="CURRENT"):
        current_bundle_id(copy.parent)


def test_a_store_without_current_or_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="no CURRENT"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleMissing, match="no such folder"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "20260101T000000-00000000").mkdir()
    with pytest.raises(
        BundleMissing, match=r"no CURRENT, expected .* or `lhydra index rollback ID` to one of its bundles"
    ):
        Bundle.open(tmp_path)
    (tmp_path / "20260101T000000-00000000").rmdir()
    (tmp_path / "CURRENT").write_text("20260101T000000-00000000\n")
    with pytest.raises(BundleMissing, match="no such bundle"):
        Bundle.open(tmp_path)


def test_opening_and_answering_needs_no_training_and_no_data_tools(tiny_store: Path) -> None:
    program = f"""
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from lhydra.bundle.bundle import Bundle
from lhydra.recommender import Recommender
Recommender(Bundle.open(Path({str(tiny_store)!r}))).warm_up()
heavy = {{"torch", "pandas", "pyarrow", "duckdb", "rich", "sklearn", "onnx"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_rows_are_the_inverse_of_ids(tiny_bundle: Bundle) -> None:
    catalog: Catalog = tiny_bundle.catalog
    rows = np.arange(len(catalog))
    assert catalog.rows(track_hashes(catalog.track_ids(rows))).tolist() == rows.tolist()
    assert catalog.rows(track_hashes(["unknown", ""])).tolist() == [-1, -1]
    assert catalog.track_ids(rows) == sorted(catalog.track_ids(rows))


def test_texts_come_back_as_they_were() -> None:
    texts = ["", "a", "Björk", "雨", "a\nb", ""]
    assert StringColumn.of(texts).at(np.array([5, 3, 2, 0, 4, 1])) == ["", "雨", "Björk", "", "a\nb", "a"]


def test_two_ids_with_one_hash_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' and 'c' with one hash"):
        write_hashes(tmp_path, np.array([1, 2, 1], np.uint64), StringColumn.of(["a", "b", "c"]))


@pytest.mark.parametrize("other", [False, True])
def test_features_are_told_by_what_they_say_not_by_how_they_are_spelled(copy: Path, other: bool) -> None:
    said = json.loads((copy / "features.json").read_text())
    if other:
        said["reference_year"] += 1
    (copy / "features.json").write_text(json.dumps(said, indent=1))
    reseal(copy)
    if other:
        with pytest.raises(BundleMismatch, match=r"features\.json: found [0-9a-f]{64}, expected"):
            Bundle.open(copy.parent)
    else:
        assert Bundle.open(copy.parent).bundle_id == copy.name
