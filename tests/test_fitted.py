"""A model and its bundles tell of each user whether they were fitted on the user's plays, and of nobody else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lhydra.bundle import fitted
from lhydra.bundle.catalog_writer import fitted_users
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.bundle.model import Model
from lhydra.cli import main
from lhydra.data.dataset import VALID, Dataset
from lhydra.errors import BundleCorrupt
from lhydra_index_builder import changes
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings
from tests.test_bundle import put

CONFIG = RebuildSettings(recall_users=20, gate_users=20, force=True, depth=150, recipe="flat")
STRANGERS = [f"stranger {i}" for i in range(2_000)]


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_store, tmp_path / "store")
    return tmp_path / "store"


def current(store: Path) -> Path:
    return store / current_bundle_id(store)


def sealed_anew(folder: Path, **files: object) -> None:
    """Changes what the manifest says of files; None: no such file."""
    document = json.loads((folder / "manifest.json").read_text())
    for name, info in files.items():
        document["files"].pop(name.replace("__", "."))
        if info is not None:
            document["files"][name.replace("__", ".")] = info
    put(folder, json.dumps(document))


def test_exactly_those_whose_plays_were_fitted_are_known(tiny_dataset: Dataset, tiny_model: Path, store: Path) -> None:
    plays = tiny_dataset.plays
    ids = {tiny_dataset.user_ids[user] for user in plays.user[plays.fold <= VALID].tolist()}
    assert set(fitted_users(tiny_dataset)) == ids
    for folder in (tiny_model, current(store)):
        assert {user for user in (*tiny_dataset.user_ids, *STRANGERS) if fitted.holds(folder, user)} == ids


def test_a_bundle_knows_whom_it_was_fitted_on_after_every_change(
    store: Path, tiny_dataset: Dataset, tiny_model: Path
) -> None:
    user = fitted_users(tiny_dataset)[5]
    changes.remove(tiny_dataset.track_ids[:1], store, CONFIG)
    assert fitted.holds(current(store), user)
    changes.remove(tiny_dataset.track_ids[1:2], store, CONFIG)
    assert fitted.holds(current(store), user)
    found, unknown = fitted.bundles_of(store, user)
    assert (len(found), found[0], unknown) == (4, current_bundle_id(store), [])
    assert found == sorted(found, reverse=True)
    assert fitted.bundles_of(store, "nobody") == ([], [])
    seal = Manifest.read(current(store)).files[fitted.FILE]
    rebuild(tiny_model, tiny_dataset, store, CONFIG)
    assert Manifest.read(current(store)).files[fitted.FILE] == seal  # the same content, the same bytes


def test_users_of_model_and_dataset_are_joined_and_keys_are_not_shared(tmp_path: Path) -> None:
    model, bundle, other = (tmp_path / name for name in ("model", "bundle", "other"))
    for folder in (model, bundle, other):
        folder.mkdir()
    fitted.save(model, ["a", "b"])
    fitted.save(bundle, ["b", "雨"], model)
    fitted.save(other, ["a", "b"])
    assert [fitted.holds(bundle, user) for user in ("a", "b", "雨", "c", "")] == [True, True, True, False, False]
    ours, theirs = (np.load(folder / fitted.FILE) for folder in (model, other))
    assert not np.intersect1d(ours["hashes"], theirs["hashes"]).size
    assert ours["key"].tobytes() != theirs["key"].tobytes()


def test_a_bundle_without_the_file_opens_and_is_not_known(store: Path, tmp_path: Path, tiny_model: Path) -> None:
    folder = current(store)
    sealed_anew(folder, fitted_users__npz=None)
    assert fitted.bundles_of(store, "x")[1] == [folder.name]
    assert main(["index", "verify", "--store", str(store)]) == 0
    model = shutil.copytree(tiny_model, tmp_path / "model")
    document = json.loads((model / "model.json").read_text())
    document["files"].pop(fitted.FILE)  # as models of before: the file beside it is nobody's
    (model / "model.json").write_text(json.dumps(document))
    assert fitted.FILE not in Model.open(model).info.files


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x05\x06" + bytes(18), b"\x80\x04K\x01.", b"x" * 100])
def test_a_file_that_is_none_is_one_line(content: bytes, store: Path, tmp_path: Path) -> None:
    (tmp_path / fitted.FILE).write_bytes(content)
    with pytest.raises(BundleCorrupt) as caught:
        fitted.holds(tmp_path, "ann")
    assert "\n" not in str(caught.value)
    folder = current(store)
    (folder / fitted.FILE).unlink()
    (folder / fitted.FILE).write_bytes(content)  # another one than was sealed is not even read
    assert fitted.bundles_of(store, "ann")[1] == [folder.name]


def test_delete_names_the_bundles(store: Path, tiny_dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    user = fitted_users(tiny_dataset)[0]
    assert main(["users", "delete", user, "--store", str(store)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"deleted {user} from ")
    assert f"fitted on the plays of this person: {current_bundle_id(store)} (current)\n" in said
    assert said.count("fitted on the plays") == 2
    sealed_anew(current(store), fitted_users__npz=None)
    assert main(["users", "delete", "nobody", "--store", str(store)]) == 0
    said = capsys.readouterr().out
    assert "fitted on" not in said
    assert f"made by an earlier Lhydra, or damaged: {current_bundle_id(store)}\n" in said
