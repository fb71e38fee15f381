"""Training that goes on from a model before: rows are found again by their text, runs resume, others are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lhydra.bundle.model import Model, ModelInfo
from lhydra.cli import main
from lhydra.data.dataset import TRAIN, VALID, Dataset
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.errors import ModelError
from lhydra.features.fit import fit_features
from lhydra.features.histories import HISTORY_FEATURES, Histories
from lhydra.features.spec import FeatureSpec
from lhydra.training.model import Network
from lhydra.training.progress import EpochDone, Progress, TeacherTried
from lhydra.training.shape import Shape
from lhydra.training.step import embed_users, tensor
from lhydra.training.train import train
from lhydra.training.warm import carried, holds_out, parent_of, shortened
from tests.conftest import TINY_TRAINING

QUICK = replace(TINY_TRAINING, epochs=8, head_epochs=1, depth=60)
pytestmark = pytest.mark.usefixtures("quick_export")
TRACK_KINDS = {"artist": "categorical", "genre": "categorical", "tags": "multi", "label": "multi", "year": "year"}
TRACK_KINDS |= {"energy": "numeric", "valence": "numeric"}
USER_KINDS = {"age": "numeric", "country": "categorical"}


# -- rows are found again by their text -------------------------------------------------------------------


def some_tracks(rng: np.random.Generator, n: int, artists: int, tags: int) -> dict[str, list[Any]]:
    return {
        "track_id": [f"t{i}" for i in rng.permutation(n)],
        "artist": [f"a{i}" for i in rng.integers(0, artists, n)],
        "genre": [f"g{i}" for i in rng.integers(0, 6, n)],
        "tags": [[f"tag{i}" for i in rng.integers(0, tags, rng.integers(0, 4))] for _ in range(n)],
        "label": [[f"l{i}"] for i in rng.integers(0, 9, n)],
        "year": rng.integers(1950, 2020, n).tolist(),
        "energy": rng.random(n).tolist(),
        "valence": rng.random(n).tolist(),
    }


def some_users(rng: np.random.Generator, n: int, countries: int) -> dict[str, list[Any]]:
    return {"age": rng.integers(15, 80, n).tolist(), "country": [f"c{i}" for i in rng.integers(0, countries, n)]}


def network_of(spec: FeatureSpec, seed: int) -> Network:
    """A network whose parameters are all drawn at random."""
    torch.manual_seed(seed)
    network = Network(Shape.of(spec, 8, 8, 0.0), len(HISTORY_FEATURES)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
        network.item_tower.bag.weight[0] = 0
    return network


@torch.no_grad()
def embedded(
    network: Network,
    spec: FeatureSpec,
    tracks: dict[str, list[Any]],
    users: dict[str, list[Any]],
    rows: list[int],
    heard: int,
) -> tuple[np.ndarray, ...]:
    """Vectors of some tracks, and of users who each played five of the first `heard`."""
    encoded = spec.encode_tracks({name: [column[i] for i in rows] for name, column in tracks.items()})
    vectors, history = network.item_tower(tensor(encoded.dense), tensor(encoded.ids), tensor(encoded.bags))
    n, rng = len(users["age"]), np.random.default_rng(0)
    played = np.sort(np.stack([rng.permutation(heard)[:5] for _ in range(n)]), 1).ravel()
    counts = rng.uniform(1, 9, 5 * n).astype(np.float32)  # no two genres weigh the same: numbers would decide
    times = np.arange(5 * n, dtype=np.int64)
    histories = Histories(np.arange(0, 5 * n + 1, 5), played, counts, times)
    shown = spec.encode_users(spec.encode_profiles(users), histories, encoded)
    return vectors.numpy(), history.numpy(), embed_users(network, shown, history).numpy()


@settings(max_examples=30)
@given(st.integers(0, 2**16), st.sampled_from([4, 30, 120]), st.sampled_from([3, 40]))
@example(100, 4, 3)  # one track alone has its genre
def test_what_both_fits_know_is_embedded_as_it_was(seed: int, artists: int, tags: int) -> None:
    """Old tracks and users give the same vectors, though every number, and the width of tables, may have changed."""
    rng = np.random.default_rng(seed)
    before = some_tracks(rng, 60, artists // 2, max(tags // 2, 1)), some_users(rng, 30, 3)
    more = some_tracks(rng, 200, artists, tags), some_users(rng, 60, 30)
    more[0]["track_id"] = [f"new {name}" for name in more[0]["track_id"]]
    after = [{name: more[i][name] + before[i][name] for name in before[i]} for i in (0, 1)]  # other numbers
    old, new = (
        fit_features(part[0], part[1], TRACK_KINDS, USER_KINDS, rng.random(len(part[0]["track_id"])) < 0.9)
        for part in (before, after)
    )
    known = {*old.track_categories[0].values} & {*new.track_categories[0].values}
    rows = [i for i, name in enumerate(before[0]["track_id"]) if name in known]
    tagged = {value for bag in old.track_bags for value in bag.values}
    rows = [i for i in rows if tagged >= {*before[0]["tags"][i], *before[0]["label"][i]}]
    artist, genre = ({*old.track_categories[i].values} for i in (1, 2))
    rows = [i for i in rows if before[0]["genre"][i] in genre]  # a genre that is known now counts in a user's diversity
    rows.sort(key=lambda i: before[0]["artist"][i] not in artist)  # a user's artists are counted where they are known
    heard = sum(before[0]["artist"][i] in artist for i in rows)
    assert heard > 5
    spec = replace(
        new, track_numbers=old.track_numbers, user_numbers=old.user_numbers, reference_year=old.reference_year
    )
    parent, network = network_of(old, 1), network_of(spec, 2)
    names = [name for name in network.state_dict() if not name.startswith("head.")]
    kept = {name: value for name, value in parent.state_dict().items() if not name.startswith("head.")}
    found = carried(kept, old, network.state_dict(), spec)
    assert sorted(found) == sorted(names)
    network.load_state_dict(network.state_dict() | found)
    ours = embedded(network, spec, after[0], before[1], [i + 200 for i in rows], heard)
    theirs = embedded(parent, old, before[0], before[1], rows, heard)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


# -- the loop: a dataset, and the same some plays later ---------------------------------------------------


@pytest.fixture(scope="module")
def grown(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """What the small dataset grew out of: its first nine tenths in time, without what was not played by then."""
    source, folder = Path(small_dataset.info.source), tmp_path_factory.mktemp("earlier")
    plays = pq.read_table(source / "plays.parquet")
    last = np.quantile(plays["timestamp"].to_numpy(), 0.9)
    plays = plays.filter(pc.field("timestamp") <= int(last))
    (folder / "source").mkdir()
    pq.write_table(plays, folder / "source" / "plays.parquet")
    for name, key in (("tracks", "track_id"), ("users", "user_id")):
        table = pq.read_table(source / f"{name}.parquet")
        pq.write_table(
            table.filter(pc.is_in(table[key], plays[key].combine_chunks())), folder / "source" / f"{name}.parquet"
        )
    prepare(folder / "source", folder / "dataset", PrepareSettings())
    return Dataset.open(folder / "dataset")


@pytest.fixture
def parent(grown: Dataset, quick_export: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the earlier plays, trained once, whose exported towers know the validation plays too."""
    folder = grown.path.parent / "parent"
    if not folder.exists():
        train(grown, folder, QUICK, refit=True)
    return folder


def vectors_of(model: Model, dataset: Dataset) -> dict[str, np.ndarray]:
    tracks = model.spec.encode_tracks(dataset.track_columns())
    return dict(zip(dataset.track_ids, model.item_tower.embed(tracks)[0], strict=True))


def test_with_no_further_step_old_tracks_are_embedded_as_before(
    grown: Dataset, small_dataset: Dataset, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the parent's best epoch embedded them, before its --refit; tracks of no train play as those without an id.

    Content is fitted to more plays then: without that.
    """
    monkeypatch.setattr("lhydra.training.content.fit", lambda *_: None)
    train(grown, tmp_path / "unrefitted", QUICK)
    monkeypatch.setattr("lhydra.training.train._epoch", lambda *_: (0.0, 0.0))
    info = train(small_dataset, tmp_path / "warm", QUICK, warm=parent)
    before, after = (Model.open(tmp_path / name) for name in ("unrefitted", "warm"))
    assert info.quality["epoch"] == 0
    old, new = vectors_of(before, small_dataset), vectors_of(after, small_dataset)
    known, knows = ({*model.spec.track_categories[0].values} for model in (before, after))
    assert known < knows
    tags = [{bag.values for bag in model.spec.track_bags} for model in (before, after)]
    assert tags[0] != tags[1]  # in another order at least
    for name, value in new.items():
        np.testing.assert_allclose(value, old[name], atol=1e-6)
    refitted = vectors_of(Model.open(parent), small_dataset)
    assert max(np.abs(refitted[name] - old[name]).max() for name in known) > 1e-3


def test_a_warm_run_takes_over_what_was_chosen_and_tells_its_parent(
    small_dataset: Dataset, parent: Path, tmp_path: Path
) -> None:
    told: list[Progress] = []
    info, before = train(small_dataset, tmp_path, QUICK, warm=parent, report=told.append), ModelInfo.read(parent)
    assert info.chosen
    assert before.chosen
    assert json.loads((tmp_path / "model.json").read_text())["warm_from"] == before.model_id == info.warm_from
    assert "warm_from" not in json.loads((parent / "model.json").read_text())
    for name in ("ials", "co-listening", "mix", "temperature"):
        assert info.chosen[name] == before.chosen[name]
    tried = [line.teacher for line in told if isinstance(line, TeacherTried)]
    assert tried == ["ials", "co-listening", "mixture"]  # each once
    epochs = [line for line in told if isinstance(line, EpochDone)]
    assert [line.epoch for line in epochs] == list(range(1, shortened(QUICK).epochs + 1))
    assert len(epochs) < QUICK.epochs
    assert info.config["epochs"] == QUICK.epochs
    assert train(small_dataset, tmp_path / "again", QUICK, warm=tmp_path).warm_from == info.model_id  # and so on


def test_the_gate_of_the_head_goes_along_where_it_helped(small_dataset: Dataset, parent: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(parent, copied)
    info = json.loads((copied / "model.json").read_text())
    for strength, expected in ((0.0, set()), (0.5, {"head.scale", "head.lift", "head.gate.weight", "head.gate.bias"})):
        info["chosen"]["head strength"] = strength
        (copied / "model.json").write_text(json.dumps(info))
        towers = parent_of(copied, tmp_path / "out", small_dataset, QUICK).towers
        assert {name for name in towers if name.startswith("head.")} == expected


def test_a_warm_run_resumes_to_the_same_result(small_dataset: Dataset, parent: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(small_dataset, whole, QUICK, warm=parent, refit=True)

    def interrupt(line: Progress) -> None:
        if isinstance(line, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_dataset, cut, QUICK, warm=parent, refit=True, report=interrupt)
    with pytest.raises(ModelError, match=r"last\.safetensors: found a run that went on from .*, expected one from no"):
        train(small_dataset, cut, QUICK, refit=True, resume=True)
    with pytest.raises(ModelError, match=r"last\.safetensors: found a run that went on from "):
        train(small_dataset, cut, QUICK, warm=whole, refit=True, resume=True)
    train(small_dataset, cut, QUICK, warm=parent, refit=True, resume=True)
    for name in ("last", "best"):
        a, b = (load_file(folder / "checkpoint" / f"{name}.safetensors") for folder in (whole, cut))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key
    ours, theirs = (vectors_of(Model.open(folder), small_dataset) for folder in (whole, cut))
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])
    assert ModelInfo.read(cut).quality == ModelInfo.read(whole).quality


# -- what is no parent ------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_in_one_line_before_anything_is_written(
    small_dataset: Dataset, grown: Dataset, parent: Path, tmp_path: Path
) -> None:
    def refused(text: str, dataset: Dataset = small_dataset, warm: Path = parent, **changes: Any) -> None:
        with pytest.raises(ModelError, match=text) as raised:
            train(dataset, tmp_path / "out", replace(QUICK, **changes), warm=warm)
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "out").exists()

    refused("found --dim 32, expected --dim 16, or train without --warm", dim=16)
    refused("found --hidden 32, expected --hidden 16, or train without --warm", hidden=16)
    refused("--warm: found the folder that is written, expected another model", warm=tmp_path / "out")
    refused(f"{tmp_path}: found", warm=tmp_path)
    columns = tuple(one for one in small_dataset.info.user_columns if one.name != "country")
    info = replace(small_dataset.info, user_columns=columns)
    refused(r"other columns than in .* \(user column country\), expected", replace(small_dataset, info=info))
    info = replace(
        small_dataset.info, split=small_dataset.info.split | {"protocol": "random", "hash": "0", "oldest": {}}
    )
    refused(r"a model of another split \(temporal", replace(small_dataset, info=info))
    copied = tmp_path / "copied"
    shutil.copytree(parent, copied)
    (copied / "checkpoint" / "best.safetensors").unlink()
    refused("best.safetensors: found no such file, expected .*train without --warm", warm=copied)
    with pytest.raises(KeyboardInterrupt):
        train(grown, copied, replace(QUICK, seed=3), report=lambda line: interrupted(line))
    refused("found the checkpoint of another run", warm=copied)


def interrupted(line: Progress) -> None:
    if isinstance(line, EpochDone):
        raise KeyboardInterrupt


def test_folds_and_warm_are_one_or_the_other(
    small_dataset: Dataset, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(small_dataset.path), str(tmp_path / "out"), "--folds", "2", "--warm", str(parent)]
    assert main(words) == 1
    assert "--folds: found --warm too, expected one of them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


RANDOM = {"protocol": "random", "rule": 2, "seed": 0, "valid": 0.1, "test": 0.1, "hash": "a"}
CUT = {"protocol": "temporal", "cuts": {"train": 50, "valid": 70}, "hash": "a"}
SESSIONS = {"protocol": "next-session", "valid_sessions": 1, "test_sessions": 1, "hash": "a"}


@pytest.mark.parametrize(
    ("fitted", "ours", "expected"),
    [
        (RANDOM, RANDOM | {"hash": "b"}, True),
        (RANDOM, RANDOM | {"hash": "b", "seed": 1}, False),
        (RANDOM, RANDOM | {"hash": "b", "test": 0.2}, False),
        (RANDOM, RANDOM | {"hash": "b", "valid": 0.0}, True),
        (RANDOM, RANDOM | {"seed": 1}, True),  # one hash is one split
        (CUT, CUT | {"hash": "b", "cuts": {"train": 50, "valid": 80}}, True),
        (CUT, CUT | {"hash": "b", "cuts": {"train": 49, "valid": 80}}, False),
        (SESSIONS, SESSIONS | {"hash": "b"}, True),
        (SESSIONS, SESSIONS | {"hash": "b", "valid_sessions": 2}, False),
        ({"protocol": "leave-last", "hash": "a"}, {"protocol": "leave-last", "hash": "b"}, True),
        ({"protocol": "leave-last", "hash": "a"}, CUT | {"hash": "b"}, False),
        (CUT | {"newest": {"train": 50}}, RANDOM | {"hash": "b", "oldest": {"valid": 51, "test": 60}}, True),
        (CUT | {"newest": {"train": 50}}, RANDOM | {"hash": "b", "oldest": {"valid": 50, "test": 60}}, False),
        (CUT | {"newest": {"train": 0}}, RANDOM | {"hash": "b", "oldest": {"valid": 50, "test": 60}}, False),
        ({}, CUT, False),
    ],
)
def test_a_parent_has_learnt_from_nothing_that_is_held_out(
    fitted: dict[str, Any], ours: dict[str, Any], expected: bool
) -> None:
    assert holds_out(fitted, ours) is expected


def test_the_train_plays_of_an_earlier_split_in_time_are_train_plays(grown: Dataset, small_dataset: Dataset) -> None:
    """But for listeners of fewer than three tracks, who are all train."""
    many = np.bincount(grown.plays.user) >= 3
    known = {name for name, some in zip(grown.user_ids, many, strict=True) if some}

    def pairs(dataset: Dataset, folds: list[int]) -> set[tuple[str, str]]:
        plays = dataset.plays.where(np.isin(dataset.plays.fold, folds))
        users, tracks = np.array(dataset.user_ids)[plays.user], np.array(dataset.track_ids)[plays.track]
        return {pair for pair in zip(users.tolist(), tracks.tolist(), strict=True) if pair[0] in known}

    assert holds_out(grown.info.split, small_dataset.info.split)
    assert pairs(grown, [TRAIN]) <= pairs(small_dataset, [TRAIN])
    assert not pairs(grown, [TRAIN, VALID]) <= pairs(small_dataset, [TRAIN])
