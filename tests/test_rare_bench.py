"""The benchmark of rare tracks: its slices and its scores against slow ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import rare
from lhydra.data.dataset import Dataset
from lhydra.evaluation.cohorts import FEW_PLAYS, train_counts
from lhydra.evaluation.run import Targets, find_targets


@pytest.fixture(scope="module")
def targets(tiny_dataset: Dataset) -> Targets:
    return find_targets(tiny_dataset, "test")


def test_slices_are_measured_on_their_targets_alone(tiny_dataset: Dataset, targets: Targets) -> None:
    """A list of a user's rare targets finds all rare ones, and of the others those that are rare."""
    listeners, lists = train_counts(tiny_dataset)[0], np.full((len(targets), rare.K), -1)
    for user in range(len(targets)):
        wanted = targets.tracks[targets.offsets[user] : targets.offsets[user + 1]]
        own = wanted[listeners[wanted] <= FEW_PLAYS][: rare.K]
        lists[user, : len(own)] = own
    found = rare.measured(lists, targets, listeners)
    assert found["recall@20 rare"]["mean"] == found["recall@20 new"]["mean"] == 1
    shares = [
        (listeners[targets.tracks[targets.offsets[user] : targets.offsets[user + 1]]] <= FEW_PLAYS).mean()
        for user in range(len(targets))
    ]
    assert found["recall@20"]["mean"] == pytest.approx(np.mean(shares))


def test_content_finds_what_shares_columns_with_what_was_heard(tiny_dataset: Dataset, targets: Targets) -> None:
    scores = rare.by_content(tiny_dataset, targets)
    assert np.isfinite(scores).all()
    genre, plays = np.array(tiny_dataset.tracks["genre"].to_pylist(), object), tiny_dataset.plays
    agree = []
    for user in range(len(targets)):
        heard = genre[plays.track[(plays.user == targets.users[user]) & (plays.fold < 2)]]
        if len(named := [one for one in heard if one]):
            favourite = pd.Series(named).mode()[0]
            agree.append((genre[np.argsort(-scores[user])[:20]] == favourite).mean())
    assert np.mean(agree) > 3 * pd.Series(genre).value_counts(normalize=True).iloc[0]


def test_the_truth_finds_more_than_anything_else(
    tiny_dataset: Dataset, targets: Targets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        {"user_id": tiny_dataset.user_ids[user], "rank": 1, "track_id": tiny_dataset.track_ids[0]}
        for user in targets.users
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "lists.csv", index=False)
    world = Path(tiny_dataset.info.source)
    argv = [str(tiny_dataset.path), f"one={tmp_path / 'lists.csv'}", "--world", str(world)]
    assert rare.main([*argv, "--out", str(tmp_path / "out.json")]) == 0
    printed = {line.split("  ")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert list(printed) == ["one", "popularity", "content KNN", "truth"]
    systems = pd.read_json(tmp_path / "out.json", typ="series")["systems"]
    recall = {name: row["recall@20"]["mean"] for name, row in systems.items()}
    assert recall["truth"] == max(recall.values()) > recall["popularity"] > recall["one"]
    assert rare.main([str(tiny_dataset.path), "lists.csv"]) == 1
    assert "NAME=LISTS.csv" in capsys.readouterr().err
    assert rare.main([*argv[:2], "--world", str(tmp_path)]) == 1
    assert "a folder that `lhydra synth` wrote" in capsys.readouterr().err
