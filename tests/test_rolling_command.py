"""`lhydra evaluate` with a rolling protocol, on a made-up log of habits: tables, document, refusals."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lhydra import cli
from lhydra.data.dataset import Dataset
from lhydra.evaluation.rolling.run import learned
from tests.prepared import prepare

T0 = 1_600_000_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve users with eight sessions of six plays: half habits, the rest walks along a ring that others walk too."""
    rng, rows = np.random.default_rng(0), ["user_id,track_id,timestamp,session"]
    for user in range(12):
        habits = rng.integers(0, 60, 4)
        for session in range(8):
            place = rng.integers(60)
            for play in range(6):
                track = habits[play // 2] if play % 2 else (place + play) % 60
                rows.append(f"u{user},t{track},{T0 + session * 86_400 + user * 60 + play * 200},s{session}")
    path = tmp_path_factory.mktemp("rolling") / "plays.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def dataset(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    prepare(capsys, source, tmp_path / "dataset", "--split", "next-session", "--valid-sessions", "2")
    return tmp_path / "dataset"


@pytest.mark.parametrize(
    "flags", [("next-session",), ("next-session", "--known", "2"), ("next-day",), ("next-track",)], ids=" ".join
)
def test_three_figures_are_printed_and_written(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    out = tmp_path / "a.json"
    fast = ["--baselines", "popular,popular-lately,own-count,bll,co-listening,blend"]
    document: dict[str, Any] = {}
    for _ in range(2 if flags == ("next-day",) else 1):  # what it wrote itself may be replaced, and is the same again
        assert cli.main(["evaluate", str(dataset), "--json", str(out), *fast, "--protocol", *flags]) == 0
        printed = capsys.readouterr().out
        before, document = document, json.loads(out.read_text(encoding="utf-8"))
        assert before in ({}, document)
    assert all(f"{figure}: best is " in printed for figure in ("all", "repeat", "discovery"))
    targets = document["counts"]["targets"]
    assert targets["all"] == targets["repeat"] + targets["discovery"] > 0
    assert document["counts"]["users"] == 12
    for figure, own in document["ranking"].items():
        assert set(own) == set(document["chosen"])
        for name, found in own.items():
            assert 0 <= found["ndcg@10"]["low"] <= found["ndcg@10"]["mean"] <= found["ndcg@10"]["high"] <= 1
            assert found["recall@10"]["mean"] <= found["recall@100"]["mean"]
            users = [value for value in document["per_user"]["figures"][figure][name]["ndcg@10"] if value is not None]
            assert np.mean(users) == pytest.approx(found["ndcg@10"]["mean"], abs=1e-5)
    best = max(
        own["valid"] for name, figures in document["chosen"].items() for own in [figures["all"]] if name != "blend"
    )
    assert document["chosen"]["blend"]["all"]["valid"] >= best - 1e-6
    assert document["repeats"]["lists"]["own-count"]["mean"] > document["repeats"]["lists"]["popular"]["mean"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--protocol", "next-day", "--known", "3"), "--known: found 3, expected a protocol of sessions"),
        (("--protocol", "next-session", "--k", "5"), "--k: found 5, expected nothing with --protocol next-session"),
        (("--protocol", "next-session", "--mask", "train"), "--mask: found train, expected nothing"),
        (("--protocol", "next-session", "--baselines", "ease"), "--baselines: found ease, expected some of popular,"),
        (("--protocol", "next-session", "--baselines", "none"), "--baselines: found none, expected at least one"),
        (
            ("--protocol", "next-session", "--known", "6"),
            "test fold: found none to ask for, expected a session of more",
        ),
        (("--known", "3"), "--protocol: found --known with --protocol static, expected one of next-session"),
        (("--model", "m", "--baselines", "bll"), "--baselines: found bll with --protocol static, expected some of"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    dataset: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert cli.main(["evaluate", str(dataset), *flags]) != 0
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert not printed.out


def test_without_times_ages_are_sessions(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split(",") for line in source.read_text(encoding="utf-8").splitlines()]
    untimed = tmp_path / "untimed.csv"
    lines = ["user_id,track_id,session,position"]
    lines += [f"{user},{track},{session[1:]},{place}" for place, (user, track, _, session) in enumerate(rows[1:])]
    untimed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepare(capsys, untimed, tmp_path / "untimed", "--split", "next-session")
    assert cli.main(["evaluate", str(tmp_path / "untimed"), "--protocol", "next-session"]) == 0
    printed = capsys.readouterr().out
    assert "popular-lately skipped: plays have no times" in printed
    assert "unit hours" not in printed
    assert cli.main(["evaluate", str(tmp_path / "untimed"), "--protocol", "next-day"]) != 0
    assert "no times, expected plays with a time" in capsys.readouterr().err


def test_a_model_is_measured_beside_the_baselines(
    tiny_dataset: Dataset, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    flags = ["--protocol", "next-session", "--baselines", "popular,bll", "--users", "20", "--json", str(out)]
    assert cli.main(["evaluate", str(tiny_dataset.path), "--model", str(tiny_model), *flags]) == 0
    printed = capsys.readouterr().out
    assert "Served less the others, NDCG@10, the same users" in printed
    assert "NOT A FAIR MEASURE" not in printed
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["counts"]["users"] == 20
    for figure, own in document["paired"].items():
        for name, found in own.items():
            means = [document["ranking"][figure][one]["ndcg@10"]["mean"] for one in ("served", name)]
            assert found["ndcg@10"]["difference"] == pytest.approx(means[0] - means[1], abs=1e-9)
    assert set(document["ranking"]["discovery"]) == {"popular", "bll", "served", "served-allow"}


def test_a_model_of_another_split_is_told() -> None:
    ours = {"hash": "a", "protocol": "temporal", "seed": 0, "valid": 0.1, "test": 0.1, "oldest": {"test": 50}}
    dataset = SimpleNamespace(info=SimpleNamespace(split=ours))
    assert learned(dataset, ours) == ""  # type: ignore[arg-type]
    assert learned(dataset, {**ours, "hash": "b", "newest": {"train": 30, "valid": 49}}) == ""  # type: ignore[arg-type]
    for fitted in ({}, {**ours, "hash": "b"}, {**ours, "hash": "b", "newest": {"train": 30, "valid": 50}}):
        assert "the model" in learned(dataset, fitted)  # type: ignore[arg-type]
