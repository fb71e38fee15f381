"""`benchmarks/paired.py`: lists against baselines, where the right answer is known."""

import json
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import paired
from lhydra.data.dataset import Dataset
from lhydra.evaluation.run import find_targets


def written(dataset: Dataset, path: Path, *, hits: bool) -> Path:
    """Lists of every user's own targets, best first; or for nobody."""
    targets = find_targets(dataset, "test")
    rows = [
        (dataset.user_ids[user], rank, dataset.track_ids[track])
        for n, user in enumerate(targets.users if hits else [])
        for rank, track in enumerate(targets.tracks[targets.of(n)][:20], 1)
    ]
    pd.DataFrame(rows, columns=["user_id", "rank", "track_id"]).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("hits", [True, False])
def test_perfect_lists_are_perfect_and_no_lists_count_nothing(
    tiny_dataset: Dataset, tmp_path: Path, hits: bool
) -> None:
    run = f"{tiny_dataset.path}={written(tiny_dataset, tmp_path / 'lists.csv', hits=hits)}"
    assert paired.main([run, run, "--baselines", "popular", "--out", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["runs"] == 2
    own, popular = (found["systems"][name]["ndcg@10"] for name in ("lhydra", "popular"))
    assert own["mean"] == pytest.approx(1.0 if hits else 0.0)
    assert 0 < popular["mean"] < 1
    above = popular["lhydra_above_by"]
    assert above["difference"] == pytest.approx(own["mean"] - popular["mean"])
    assert above["low"] > 0 if hits else above["high"] < 0
    assert own["lhydra_above_by"]["low"] == own["lhydra_above_by"]["high"] == 0


@pytest.mark.parametrize(
    ("text", "names"),
    [("user_id,rank,track_id\nU1,1,nowhere\n", "track nowhere"), ("user_id,track_id\nU1,T1\n", "no column rank")],
)
def test_lists_of_something_else_are_refused_in_one_line(
    tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, names: str
) -> None:
    lists = tmp_path / "lists.csv"
    lists.write_text(text)
    assert paired.main([f"{tiny_dataset.path}={lists}", "--baselines", "popular"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert names in line
    assert str(lists) in line
