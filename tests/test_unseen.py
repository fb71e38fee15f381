"""What a model has seen: told by its split, by every command that judges it; end to end with two seeds of a split."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.cli import main
from lhydra.data.dataset import TEST, TRAIN, VALID, Dataset, DatasetInfo
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.evaluation.run import find_targets
from lhydra.evaluation.unseen import unseen
from lhydra_index_builder import held_out
from tests.quick_export import quickly

Row = tuple[int, int, int, int]  # user, track, time, fold
Printed = pytest.CaptureFixture[str]
RANDOM = {"protocol": "random", "rule": 2, "seed": 0, "valid": 0.1, "test": 0.1, "hash": "ours"}
OTHER = {"protocol": "temporal", "seed": 0, "valid": 0.1, "test": 0.1, "hash": "theirs"}


def dataset_of(path: Path, rows: list[Row], split: dict[str, Any]) -> Dataset:
    """A dataset of 4 users and 6 tracks with these plays."""
    path.mkdir()
    counts = {"tracks": 6, "users": 4, "plays": len(rows)}
    info = DatasetInfo("test", (), (), counts, split, timed=True)
    (path / "dataset.json").write_text(info.to_json())
    pq.write_table(pa.table({"user_id": [f"u{n}" for n in range(4)]}), path / "users.parquet")
    pq.write_table(pa.table({"track_id": [f"t{n}" for n in range(6)]}), path / "tracks.parquet")
    user, track, time, fold = np.array(sorted(rows, key=lambda row: (row[0], row[2], row[1])), np.int64).T
    columns = {
        "user": user.astype(np.int32),
        "track": track.astype(np.int32),
        "count": np.ones(len(rows), np.float32),
        "time": time,
        "fold": fold.astype(np.int8),
    }
    pq.write_table(pa.table(columns), path / "plays.parquet")
    return Dataset.open(path)


plays = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9), st.sampled_from([TRAIN, VALID, TEST])),
    min_size=1,
    unique_by=lambda row: (row[0], row[1], row[3]),
)


@settings(deadline=None)  # the machine may be busy
@given(plays, st.integers(0, 9), st.integers(0, 9), st.sampled_from(["test", "valid"]))
def test_of_another_split_only_what_was_first_played_later_is_unseen(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], train: int, valid: int, as_of: Any
) -> None:
    rows = [*rows, (0, 0, 5, VALID), (0, 1, 5, TEST)]
    rows = list({(row[0], row[1], row[3]): row for row in rows}.values())
    fold = {"test": TEST, "valid": VALID}[as_of]
    earlier = {(user, track) for user, track, _, own in rows if own < fold}
    expected = sorted({(user, track) for user, track, _, own in rows if own == fold} - earlier)
    if not expected:
        return
    dataset = dataset_of(tmp_path_factory.mktemp("d") / "d", rows, RANDOM)
    targets = find_targets(dataset, as_of)
    newest = max(train, valid) if as_of == "test" else train
    first = {pair: min(time for user, track, time, _ in rows if (user, track) == pair) for pair in expected}
    found = unseen(dataset, targets, OTHER | {"newest": {"train": train, "valid": valid}}, as_of)
    assert found.mask.tolist() == [bool(newest) and first[pair] > newest for pair in expected]
    assert (found.why == "") == bool(found.mask.all())
    left = targets.only(found.mask)
    pairs = [(int(user), int(track)) for n, user in enumerate(left.users) for track in left.tracks[left.of(n)]]
    assert pairs == [pair for pair, kept in zip(expected, found.mask, strict=True) if kept]


@pytest.mark.parametrize(
    ("ours", "fitted", "as_of", "why"),
    [
        (RANDOM, RANDOM, "test", ""),
        (RANDOM, RANDOM | {"hash": "theirs"}, "test", ""),  # drawn per pair: more plays move nobody
        (RANDOM, RANDOM | {"hash": "theirs", "test": 0.2}, "test", ""),  # which holds ours out too
        (RANDOM, RANDOM | {"hash": "theirs", "valid": 0.0}, "test", ""),
        (RANDOM, RANDOM | {"hash": "theirs", "valid": 0.0}, "valid", "another split"),
        (RANDOM, RANDOM | {"hash": "theirs", "test": 0.05}, "test", "another split"),
        (
            RANDOM,
            RANDOM | {"hash": "theirs", "seed": 1},
            "test",
            "random, seed 1, theirs; this dataset: random, seed 0",
        ),
        (RANDOM, RANDOM | {"hash": "theirs", "rule": 3}, "test", "another split"),
        (OTHER, OTHER, "test", ""),
        (OTHER, OTHER | {"hash": "x"}, "test", "does not say how far it goes; prepare and train again"),
        (OTHER, OTHER | {"hash": "x", "newest": {"train": 0, "valid": 0}}, "test", "whose plays have no times"),
        (OTHER, OTHER | {"hash": "x", "newest": {"train": 9, "valid": 0}}, "test", "up to 1970-01-01T00:00:09; train"),
        (OTHER, {}, "test", "does not say what it was fitted on"),
    ],
)
def test_two_splits_fit_together_or_it_is_said_why_not(
    tmp_path: Path, ours: dict[str, Any], fitted: dict[str, Any], as_of: Any, why: str
) -> None:
    dataset = dataset_of(tmp_path / "d", [(0, 0, 1, TRAIN), (0, 1, 2, VALID), (0, 2, 3, TEST)], ours)
    found = unseen(dataset, find_targets(dataset, as_of), fitted, as_of)
    assert why in found.why
    assert found.mask.all() == (not why)
    if "rule" in ours:  # the draw of an earlier Lhydra: any play moved everybody
        old = {name: value for name, value in fitted.items() if name != "rule"}
        found = unseen(dataset, find_targets(dataset, as_of), old, as_of)
        assert found.mask.all() == (fitted == ours)


def test_the_gate_judges_by_what_is_new_to_both_or_says_why_not(tmp_path: Path, monkeypatch: Any) -> None:
    rows = [(user, 0, 1, TRAIN) for user in range(4)] + [(user, 1, user + 1, TEST) for user in range(4)]
    dataset = dataset_of(tmp_path / "d", rows, OTHER)
    monkeypatch.setattr(held_out, "MIN_USERS", 2)
    for newest, users in ((1, [1, 2, 3]), (2, [2, 3])):
        older = OTHER | {"hash": "older", "newest": {"train": 1, "valid": newest}}
        found, why = held_out.for_gate(dataset, {"new": OTHER, "current": older})
        assert (found.users.tolist() if found else [], why) == (users, "")
        found, why = held_out.for_gate(dataset, {"new": older, "current": OTHER})
        assert (found.users.tolist() if found else [], why) == (users, "")
    older = OTHER | {"hash": "older", "newest": {"train": 3, "valid": 0}}
    found, why = held_out.for_gate(dataset, {"new": OTHER, "current": older})
    assert found is None
    assert why.startswith(
        "1 users with test plays that neither model has learned from, of 2 needed. current: the model"
    )
    found, why = held_out.for_gate(dataset_of(tmp_path / "e", rows[:4], OTHER), {"new": OTHER})
    assert (found, why) == (None, "the test fold holds nothing that is new to its users")


@pytest.mark.parametrize("rule", ["temporal", "leave-last", "random"])
def test_a_later_dataset_is_new_to_an_earlier_model_and_not_the_other_way(tmp_path: Path, rule: str) -> None:
    """A log of 400 seconds, a play in each, and the same log when it was 200 seconds old."""
    rng = np.random.default_rng(3)
    lines = [f"u{rng.integers(6)},t{rng.integers(300)},{1_600_000_000 + second}" for second in range(400)]
    for name, length in (("early", 200), ("late", 400)):
        (tmp_path / f"{name}.csv").write_text("user_id,track_id,timestamp\n" + "\n".join(lines[:length]) + "\n")
        prepare(tmp_path / f"{name}.csv", tmp_path / name, PrepareSettings(split=rule))
    early, late = (Dataset.open(tmp_path / name) for name in ("early", "late"))
    learned = early.plays.where(early.plays.fold < TEST)
    known = {(early.user_ids[u], early.track_ids[t]) for u, t in zip(learned.user, learned.track, strict=True)}
    targets = find_targets(late, "test")
    found = unseen(late, targets, early.info.split, "test")
    pairs = [
        (late.user_ids[user], late.track_ids[track])
        for n, user in enumerate(targets.users)
        for track in targets.tracks[targets.of(n)]
    ]
    assert known.isdisjoint(pair for pair, kept in zip(pairs, found.mask, strict=True) if kept)
    assert found.mask.any()
    if rule in ("temporal", "random"):
        assert found.mask.all()
        assert found.why == ""
    back = unseen(early, find_targets(early, "test"), late.info.split, "test")
    if rule == "random":  # drawn by pairs: what is test here is test there
        assert back.mask.all()
    else:
        assert not back.mask.any()
        assert "on plays up to" in back.why


def test_the_first_of_several_plays_decides(tmp_path: Path) -> None:
    """Who played a track before the model was fitted and again later has taught it the track."""
    rows = [f"u{user},t{track},{1_600_000_000 + 10 * track + user}" for user in range(4) for track in range(9)]
    rows += [f"u{user},t9,{1_600_000_000 + when}" for user in range(4) for when in (15 + user, 200 + user)]
    (tmp_path / "plays.csv").write_text("user_id,track_id,timestamp\n" + "\n".join(rows) + "\n")
    prepare(tmp_path / "plays.csv", tmp_path / "d", PrepareSettings(split="leave-last"))
    dataset = Dataset.open(tmp_path / "d")
    fitted = OTHER | {"newest": {"train": 1_600_000_100, "valid": 0}}
    assert not unseen(dataset, find_targets(dataset, "test"), fitted, "test").mask.any()
    before = OTHER | {"newest": {"train": 1_600_000_010, "valid": 0}}
    assert unseen(dataset, find_targets(dataset, "test"), before, "test").mask.all()


def test_of_several_plays_only_the_last_is_known(tmp_path: Path) -> None:
    split = OTHER | {"cuts": {"train": 3, "valid": 6}}
    dataset = dataset_of(tmp_path / "d", [(0, 0, 1, TRAIN), (0, 1, 9, TEST), (0, 2, 9, TEST)], split)
    vars(dataset)["plays"] = replace(dataset.plays, count=np.array([1, 2, 1], np.float32))
    targets = find_targets(dataset, "test")
    for newest, mask in ((6, [True, True]), (7, [False, True])):
        fitted = OTHER | {"hash": "x", "newest": {"train": newest, "valid": 0}}
        assert unseen(dataset, targets, fitted, "test").mask.tolist() == mask


# -- from end to end ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world split twice at random, by seed 0 and 1, a model trained on each, and the first published.

    That of seed 1 is refitted.
    """
    at = tmp_path_factory.mktemp("two")
    sizes = ["--users", "100", "--tracks", "200", "--plays", "3500", "--seed", "0"]
    assert main(["synth", str(at / "w"), *sizes]) == 0
    for seed in "01":
        data, model = str(at / f"ds{seed}"), str(at / f"m{seed}")
        assert main(["prepare", str(at / "w"), data, "--split", "random", "--seed", seed]) == 0
        refit = ["--refit"] * (seed == "1")
        with quickly():
            assert main(["train", data, model, *SMALL, *refit]) == 0
    rebuild = ["--model", str(at / "m0"), "--data", str(at / "ds0"), "--store", str(at / "store")]
    assert main(["index", "rebuild", *rebuild, *FEW]) == 0
    return at


SMALL = [
    *("--epochs", "2", "--head-epochs", "1", "--threads", "1"),
    *("--dim", "32", "--hidden", "32", "--moments", "0"),
]
FEW = ["--recall-users", "20", "--depth", "100", "--max-changed-lists", "1"]


@pytest.fixture
def evaluated(two: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[str], Path]]:
    """Evaluates: the lines that are printed, and the document."""
    monkeypatch.setattr("lhydra.evaluation.mistakes.analyse", lambda *_: None)  # long, and not looked at here
    monkeypatch.setattr("lhydra.evaluation.importance.measure", lambda *_: None)

    def evaluate(data: str, *what: str) -> tuple[list[str], Path]:
        out = two / f"{data}-{'-'.join(what).replace('/', '_')}.json"
        capsys.readouterr()
        assert main(["evaluate", str(two / data), *what, "--baselines", "popular", "--json", str(out)]) == 0
        return capsys.readouterr().out.splitlines(), out

    return evaluate


def test_a_model_of_another_seed_is_told_refused_and_not_judged_by(
    two: Path, evaluated: Callable[..., tuple[list[str], Path]], capsys: Printed
) -> None:
    honest, a = evaluated("ds1", "--model", str(two / "m1"))
    assert honest[0].startswith("cascade NDCG@10")
    assert "the best baseline popular" in honest[0]
    assert json.loads(a.read_text())["protocol"]["seen"]["targets"] == 0
    for what in ("--model", str(two / "m0")), ("--store", str(two / "store")):
        told, b = evaluated("ds1", *what)
        seen = json.loads(b.read_text())["protocol"]["seen"]
        assert told[0].startswith(f"NOT A FAIR MEASURE: the model may have learned from {seen['targets']}")
        assert 0 < seen["targets"] <= seen["of"] == json.loads(a.read_text())["protocol"]["seen"]["of"]
        assert "random, seed 0" in told[0]
        assert "no verdict" in told[1]
        assert not any("beats" in line for line in told)
        for pair in ([str(a), str(b)], [str(b), str(a)]):
            assert main(["compare", *pair]) == 1
            captured = capsys.readouterr()
            assert (captured.out, captured.err.count("\n")) == ("", 1)
            assert f"{seen['targets']} of {seen['of']} targets that its model may have learned from" in captured.err
    rebuild = ["--model", str(two / "m1"), "--data", str(two / "ds1"), "--store", str(two / "store"), *FEW]
    assert main(["index", "rebuild", *rebuild]) == 0
    checks = {
        one["name"]: one for one in Manifest.read(two / "store" / current_bundle_id(two / "store")).gate["checks"]
    }
    quality = checks["quality"]
    assert quality["verdict"] == "skipped"
    assert "the model of CURRENT: the model was fitted under another split (random, seed 0" in quality["note"]


def test_a_refitted_model_is_measured_on_test_plays_alone(
    two: Path, evaluated: Callable[..., tuple[list[str], Path]], capsys: Printed
) -> None:
    told, out = evaluated("ds1", "--model", str(two / "m1"))
    assert told[0].startswith("cascade NDCG@10")
    assert "the model learned from the valid fold too (--refit), the baselines did not" in told[:3]
    assert json.loads(out.read_text())["protocol"]["fitted_on"] == "train and valid"
    capsys.readouterr()
    assert main(["evaluate", str(two / "ds1"), "--model", str(two / "m1"), "--as-of", "valid"]) == 1
    found = f"found valid, from which {two / 'm1'} has learned (--refit)"
    assert capsys.readouterr() == ("", f"lhydra evaluate: --as-of: {found}, expected test\n")


def test_one_more_play_passes_the_gate_without_force(two: Path, tmp_path: Path, capsys: Printed) -> None:
    """A log without times, split at the same seed again: only the new pair is drawn, all others are as they were."""
    plays = pq.read_table(two / "w" / "plays.parquet", columns=["user_id", "track_id"])
    pairs = set(zip(*plays.to_pydict().values(), strict=True))
    user, tracks = plays["user_id"][0].as_py(), plays["track_id"].to_pylist()
    more = {"user_id": [user], "track_id": [next(track for track in tracks if (user, track) not in pairs)]}
    for name, table in (("before", plays), ("after", pa.concat_tables([plays, pa.table(more, plays.schema)]))):
        shutil.copytree(two / "w", tmp_path / "w", dirs_exist_ok=True)
        pq.write_table(table, tmp_path / "w" / "plays.parquet")
        assert main(["prepare", str(tmp_path / "w"), str(tmp_path / name), "--seed", "0"]) == 0
        assert not Dataset.open(tmp_path / name).info.timed
        rebuild = ["--model", str(two / "m0"), "--data", str(tmp_path / name), "--store", str(tmp_path / "store")]
        assert main(["index", "rebuild", *rebuild, "--recall-users", "20", "--depth", "100"]) == 0, capsys.readouterr()
    before, after = (Dataset.open(tmp_path / name).info for name in ("before", "after"))
    assert after.counts["plays"] == before.counts["plays"] + 1
    assert after.split["hash"] != before.split["hash"]
    gate = Manifest.read(tmp_path / "store" / current_bundle_id(tmp_path / "store")).gate
    verdicts = {check["name"]: check["verdict"] for check in gate["checks"]}
    assert (gate["verdict"], verdicts["quality"], verdicts["changed lists"]) == ("passed", "passed", "passed")
