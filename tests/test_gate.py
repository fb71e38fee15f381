"""The gate: a bundle with a fault is kept from CURRENT by the check that is meant for it, and by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lhydra.bundle import listed
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.embedding import embed
from lhydra.bundle.history_vectors import HistoryVectors
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.bundle.model import REFITTED, Model
from lhydra.bundle.networks import ItemTower
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.domain import F32, Query, UserState
from lhydra.errors import BundleRefused, ModelError
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import find_targets
from lhydra.features.spec import Encoded
from lhydra.queries import known_user
from lhydra.recommender import Recommender
from lhydra_index_builder import gate
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings
from lhydra_index_builder.held_out import UserSample, draw_users

CONFIG = RebuildSettings(recall_users=30, gate_users=200, depth=100)


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_store, tmp_path / "store", ignore=shutil.ignore_patterns("users.lmdb"))
    return tmp_path / "store"


@pytest.fixture(scope="module")
def asked(tiny_dataset: Dataset) -> UserSample:
    return draw_users(tiny_dataset, "test", find_targets(tiny_dataset, "test"), 100, 0)


@pytest.fixture(scope="module")
def opened(tiny_store: Path) -> Bundle:
    return Bundle.open(tiny_store)


def verdicts(checks: list[gate.Check]) -> dict[str, str]:
    return {check.name: check.verdict for check in checks}


def all_of(store: Path, new: Bundle, current: Bundle | None, asked: UserSample) -> dict[str, str]:
    folder = store / current_bundle_id(store)
    return verdicts(gate.check(folder, new, current, "none", asked, CONFIG))


def test_a_bundle_beside_itself_passes_everything(tiny_store: Path, opened: Bundle, asked: UserSample) -> None:
    assert set(all_of(tiny_store, opened, opened, asked).values()) == {"passed"}
    alone = all_of(tiny_store, opened, None, asked)
    assert {name for name, verdict in alone.items() if verdict == "skipped"} == {
        *("quality", "catalogue", "changed lists"),
    }


def with_catalog(bundle: Bundle, **arrays: object) -> Bundle:
    return replace(bundle, catalog=replace(bundle.catalog, **arrays))  # type: ignore[arg-type]


def test_worse_lists_are_refused_for_quality(tiny_store: Path, opened: Bundle, asked: UserSample) -> None:
    """Vectors of other tracks: what is retrieved is noise, and surely worse."""
    rng = np.random.default_rng(0)
    shuffled = with_catalog(
        opened,
        popularity=rng.permutation(opened.catalog.popularity),
        item_rows=rng.permutation(opened.catalog.item_rows),
        dense=rng.permutation(opened.catalog.dense),
        vectors=rng.permutation(opened.catalog.vectors),
        history=HistoryVectors(rng.permutation(opened.catalog.history.table)),
    )
    found = gate.check(tiny_store / opened.bundle_id, shuffled, opened, "", asked, CONFIG)
    quality = next(check for check in found if check.name == "quality")
    assert quality.verdict == "refused"
    assert quality.found is not None
    assert quality.found > 0.2
    other_way = gate.check(tiny_store / opened.bundle_id, opened, shuffled, "", asked, CONFIG)
    assert verdicts(other_way)["quality"] == "passed"


def test_quality_is_the_ndcg_of_the_served_lists(opened: Bundle, asked: UserSample, tiny_dataset: Dataset) -> None:
    recommender = Recommender(opened)
    lists = gate.served_lists(recommender, [known_user(state, gate.TOP_K) for state in asked.states])
    found = gate.quality(recommender, lists, recommender, lists, asked, CONFIG)
    assert asked.held_out is not None
    targets = asked.held_out.targets  # rows are positions: the bundle holds the dataset's tracks
    expected = rank_metrics(lists, targets.offsets, targets.tracks, len(opened.catalog), (10,)).means()["ndcg@10"]
    assert f"{expected:.4f} before, {expected:.4f} now" in found.note
    assert expected > 0.02
    everything = find_targets(tiny_dataset, "test")
    assert set(targets.users) <= set(everything.users)


@pytest.mark.parametrize(
    ("after", "width", "verdict", "asked"),
    [(0.30, 9.0, "passed", 0), (0.40, 9.0, "passed", 0), (0.20, 0.01, "refused", 2), (0.20, 0.09, "passed", 2)],
)
def test_users_are_asked_for_equal_scores_only_where_these_could_decide(
    after: float, width: float, verdict: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    current, new, widths = SimpleNamespace(ndcg=0.30), SimpleNamespace(ndcg=after), []

    def tie_width(*given: object) -> float:
        widths.append(width)
        return width

    monkeypatch.setattr(gate, "_ndcg", lambda recommender, *_: np.full(20, recommender.ndcg))
    monkeypatch.setattr(gate, "_tie_width", tie_width)
    sample: Any = SimpleNamespace(held_out=True, states=[])
    lists: Any = None
    found = gate.quality(new, lists, current, lists, sample, CONFIG)  # type: ignore[arg-type]
    assert (found.verdict, len(widths)) == (verdict, asked)
    assert found.note.endswith("not certain: ties") == (verdict == "passed" and asked == 2)


def test_lists_that_share_nothing_are_refused(opened: Bundle, asked: UserSample) -> None:
    recommender = Recommender(opened)
    lists = gate.served_lists(recommender, [known_user(state, gate.TOP_K) for state in asked.states])
    other = np.where(lists >= 0, (lists + 1) % len(opened.catalog), -1)
    half = lists.copy()
    half[: len(half) // 4] = other[: len(half) // 4]
    moved = [gate.changed(opened, lists, opened, theirs, CONFIG).found for theirs in (lists, half, other)]
    assert moved[0] == 0
    in_common = np.array([bool(set(a) & set(b)) for a, b in zip(lists, other, strict=True)])
    assert moved[2] == pytest.approx(1 - in_common.mean())
    assert moved[1] == pytest.approx((~in_common[: len(half) // 4]).sum() / len(half))


def test_lists_that_are_the_same_for_all_are_refused(opened: Bundle) -> None:
    same = np.tile(np.arange(10), (50, 1))
    assert gate.overlap(same, opened, CONFIG).verdict == "refused"
    apart = np.arange(300).reshape(30, 10)
    assert gate.overlap(apart, opened, CONFIG).verdict == "passed"
    assert gate.overlap(same[:1], opened, CONFIG).verdict == "skipped"


def test_vectors_that_are_not_of_unit_norm_are_refused(tmp_path: Path, opened: Bundle, tiny_store: Path) -> None:
    vectors, history = np.array(opened.catalog.vectors), np.array(opened.catalog.history.table)
    halves = opened.catalog.history.at(np.arange(len(vectors))[None])[0]
    for name, array, at, value, verdict in (
        ("vectors", vectors, 3, 1.0, "refused"),
        ("vectors", vectors, 3, np.nan, "refused"),
        ("history", halves, 7, np.inf, "refused"),
        ("history", halves, 7, 2.0, "passed"),
        ("history", history, (7, -1), -1, "refused"),  # a scale that is none
        ("history", history, (7, -1), 0x40, "passed"),
    ):
        np.save(tmp_path / "vectors.npy", vectors)
        np.save(tmp_path / "history.npy", history)
        spoilt = array.copy()
        spoilt[at] = value
        np.save(tmp_path / f"{name}.npy", spoilt)
        assert gate.vectors(tmp_path).verdict == verdict


@pytest.mark.parametrize("off", [-0.0015, -0.00102, -0.00098, -0.0005, 0.0, 0.0005, 0.00098, 0.00102, 0.0015])
def test_norms_are_measured_finer_than_vectors_are_stored(tmp_path: Path, off: float) -> None:
    """Halves near 1 are .001 apart: a norm computed in them is good or bad by chance. The oracle is float64."""
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(4096, 32))
    halves = ((1 + off) * unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float16)
    exact = np.abs(np.linalg.norm(halves.astype(np.float64), axis=1) - 1)
    on_side = halves[(exact > 1e-3) == (abs(off) > 1e-3)]  # rounding moves some over the limit
    assert len(on_side) > 1000
    np.save(tmp_path / "history.npy", on_side)
    np.save(tmp_path / "vectors.npy", on_side)
    found = gate.vectors(tmp_path)
    assert found.found == pytest.approx(np.abs(np.linalg.norm(on_side.astype(np.float64), axis=1) - 1).max(), abs=1e-6)
    assert found.verdict == ("refused" if abs(off) > 1e-3 else "passed")
    for vector in on_side[:50]:  # one alone, too
        np.save(tmp_path / "vectors.npy", vector[None])
        assert gate.vectors(tmp_path).verdict == found.verdict


@pytest.mark.parametrize(
    ("factor", "off"), [(1.5, "0.5"), (0.5, "0.5"), (1.0015, "0.0015"), (np.nan, "inf"), (1.0009, ""), (0.9991, "")]
)
def test_an_item_tower_with_one_vector_off_unit_norm_is_refused(
    tiny_dataset: Dataset, tiny_model: Path, factor: float, off: str
) -> None:
    tower = ItemTower(tiny_model / "item_tower.onnx")

    class Off(ItemTower):
        def __init__(self) -> None:
            """Opens nothing."""

        def embed(self, tracks: Encoded) -> tuple[F32, F32]:
            vectors, history = tower.embed(tracks)
            vectors[3] *= factor
            return vectors, history

    def embedded() -> None:
        embed(Model.open(tiny_model).spec, Off(), tiny_dataset.track_rows(0, 20), tiny_dataset.columns_of)

    if off:
        with pytest.raises(ModelError, match=f"item tower: found a norm {off} off 1, expected vectors of unit norm"):
            embedded()
    else:
        embedded()


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("recall", {"recall": {"coverage": 0.93}}),
        ("recall", {"recall": {"coverage": 0.93, "coverage error": 0.0049}}),
        (
            "cascade loss",
            {"cascade": {"k": 10, "users": 9, "ndcg": 0.2, "curve": [{"depth": 100, "ndcg": 0.18, "agreement": 0.9}]}},
        ),
    ],
)
def test_what_was_measured_is_held_against_its_limit(name: str, changed: dict[str, object], opened: Bundle) -> None:
    assert opened.manifest is not None
    worse = replace(opened, manifest=replace(opened.manifest, depth=100, **changed))  # type: ignore[arg-type]
    check = {"recall": gate.recall, "cascade loss": gate.cascade}[name]
    found = check(worse, CONFIG)
    assert found.verdict == "refused"
    assert check(opened, CONFIG).verdict == "passed"
    for part in (name, f"{found.found:.4g}", f"{found.limit:.4g}"):  # names the check, the figure and the limit
        assert part in found.line


def test_few_users_refuse_no_sound_index(opened: Bundle) -> None:
    """The gate refused to add 1,000 tracks to 10 million, as 8 users found .935 of what the limit of .94 asks for."""
    assert opened.manifest is not None
    measured = replace(opened.manifest, recall={"coverage": 0.935, "coverage error": 0.012})
    found = gate.recall(replace(opened, manifest=measured), CONFIG)
    assert (found.verdict, found.note) == ("passed", "coverage of the exact nearest 100, give or take 0.024")


def test_every_promise_that_is_broken_is_seen(opened: Bundle, asked: UserSample) -> None:
    recommender = Recommender(opened)
    query = Query(10, asked.states[0], True, asked.states[0].heard)
    good = recommender.recommend(query)
    assert gate.broken_promise(recommender, query, good) == ""
    heard = opened.catalog.rows(query.exclude)[:1]
    rows = good.rows.copy()
    for spoilt, word in (
        (replace(good, rows=rows[:9]), "9 tracks of 10"),
        (replace(good, rows=np.r_[rows[:9], rows[:1]]), "twice"),
        (replace(good, rows=np.r_[rows[:9], -1]), "none"),
        (replace(good, rows=np.r_[heard, rows[1:]]), "excluded"),
        (replace(good, scores=np.r_[good.scores[:9], np.nan].astype(np.float32)), "finite"),
        (replace(good, logits=good.logits[::-1]), "best first"),
    ):
        assert word in gate.broken_promise(recommender, query, spoilt)


def test_the_smoke_requests_find_a_recommender_that_falls_short(opened: Bundle, asked: UserSample) -> None:
    class Short(Recommender):
        def recommend(self, query: Query, check: object = None) -> object:  # type: ignore[override]
            found = super().recommend(query)
            return replace(found, rows=found.rows[:9]) if query.k > 100 else found

    assert gate.requests(Recommender(opened), asked.states).verdict == "passed"
    found = gate.requests(Short(opened), asked.states)
    assert found.verdict == "refused"
    assert found.note.startswith("k above depth: 9 tracks of")
    assert gate.requests(Recommender(opened), [UserState()]).verdict == "passed"


# -- from end to end ------------------------------------------------------------------------------------------


def fewer_tracks(dataset: Dataset, folder: Path, gone: int) -> Dataset:
    """The dataset without its last `gone` tracks."""
    ids, users = dataset.track_ids, dataset.user_ids
    kept = dataset.plays.track < len(ids) - gone
    rows = zip(dataset.plays.user[kept], dataset.plays.track[kept], dataset.plays.time[kept], strict=True)
    lines = [f"{users[user]},{ids[track]},{time}" for user, track, time in rows]
    lines += [f"{users[0]},{track},1672531200" for track in ids[: len(ids) - gone]]  # every track is played
    folder.mkdir()
    (folder / "plays.csv").write_text("user_id,track_id,timestamp\n" + "\n".join(lines) + "\n")
    prepare(folder / "plays.csv", folder / "dataset", PrepareSettings())
    return Dataset.open(folder / "dataset")


def test_a_refused_bundle_stays_for_inspection_and_current_stays(
    store: Path, tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = current_bundle_id(store)
    small = fewer_tracks(tiny_dataset, tmp_path / "small", 40)
    arguments = ["index", "rebuild", "--model", str(tiny_model), "--data", str(small.path), "--store", str(store)]
    arguments += ["--recall-users", "20", "--gate-users", "50", "--max-quality-loss", "1", "--max-changed-lists", "1"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "refused: catalogue: found 0.1, limit 0.05 (of CURRENT's tracks, 40, gone)" in error
    assert current_bundle_id(store) == before
    refused = next(entry for entry in listed.entries(store) if entry.state == "refused")
    assert refused.manifest is not None
    assert refused.manifest.gate["verdict"] == "refused"
    Bundle.open(store, refused.bundle_id)  # whole, to look at
    # nobody comes to it by accident
    assert main(["index", "rollback", refused.bundle_id, "--store", str(store)]) == 1
    assert "refused by its gate (catalogue)" in capsys.readouterr().err
    assert current_bundle_id(store) == before
    assert main(["index", "rollback", refused.bundle_id, "--store", str(store), "--force"]) == 0
    assert current_bundle_id(store) == refused.bundle_id
    assert main(["index", "rollback", before, "--store", str(store)]) == 0
    capsys.readouterr()
    # a limit is a setting; and force publishes and says so for good
    assert main([*arguments, "--max-shrink", "0.2"]) == 0
    assert main(["index", "rollback", before, "--store", str(store)]) == 0
    capsys.readouterr()
    assert main([*arguments, "--force"]) == 0
    assert "FORCED" in capsys.readouterr().out
    forced = Manifest.read(store / current_bundle_id(store))
    assert forced.gate["verdict"] == "forced"
    assert [check["name"] for check in forced.gate["checks"] if check["verdict"] == "refused"] == ["catalogue"]
    assert main(["index", "list", "--store", str(store), "--json"]) == 0
    states = [row["state"] for row in json.loads(capsys.readouterr().out)]
    assert sorted(states) == ["current", "older", "older", "previous", "refused"]
    assert main(["index", "list", "--store", str(store)]) == 0
    assert "forced" in capsys.readouterr().out.splitlines()[1]


def test_a_model_that_learned_from_the_validation_plays_is_judged_by_test_plays(
    store: Path, tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    refitted = tmp_path / "refitted"
    shutil.copytree(tiny_model, refitted)
    document = json.loads((refitted / "model.json").read_text()) | {"fitted_on": REFITTED}
    (refitted / "model.json").write_text(json.dumps(document))
    built = rebuild(refitted, tiny_dataset, store, CONFIG)
    checks = {check["name"]: check["verdict"] for check in built.manifest.gate["checks"]}
    assert checks["quality"] == "passed"
    assert built.manifest.cascade["ndcg"] is None  # the depth is chosen on validation plays
    again = rebuild(tiny_model, tiny_dataset, store, CONFIG)  # beside one that did
    assert {check["name"]: check["verdict"] for check in again.manifest.gate["checks"]}["quality"] == "passed"


def test_a_current_that_does_not_open_keeps_nobody_from_publishing(
    store: Path, tiny_model: Path, tiny_dataset: Dataset
) -> None:
    broken = store / current_bundle_id(store) / "vectors.npy"
    broken.write_bytes(broken.read_bytes()[:-1])
    built = rebuild(tiny_model, tiny_dataset, store, CONFIG)
    assert current_bundle_id(store) == built.bundle_id
    notes = [check["note"] for check in built.manifest.gate["checks"] if check["verdict"] == "skipped"]
    assert all("CURRENT does not open" in note for note in notes)
    assert notes


def test_a_refusal_is_an_error_of_its_own(
    store: Path, tiny_model: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "vectors", lambda folder: gate.Check("vectors", "refused", 9.0, 1.0, "spoilt"))
    with pytest.raises(BundleRefused, match=r"refused: vectors: found 9, limit 1 \(spoilt\); it stays in the store"):
        rebuild(tiny_model, tiny_dataset, store, CONFIG)
