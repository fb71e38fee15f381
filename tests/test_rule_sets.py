"""Rule sets measured beside no rules: the figures against brute force, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from lhydra.bundle.bundle import Bundle
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.evaluation.rule_sets import PLAIN, list_distance, measure_rules
from lhydra.recommender import Recommender
from lhydra.rules import Calibration, Diversity, Rules


def test_distance_of_a_list_is_one_minus_the_mean_cosine() -> None:
    held = [[0, 1], [1], [], [2, 3, 4], [0, 1]]
    offsets = np.cumsum([0, *map(len, held)])
    packed = np.array([one for own in held for one in own])
    lists = np.array([[0, 1, 2, 3], [0, 4, -1, -1], [2, 1, -1, -1]])
    pairs = [(0, 1), (0, 3), (1, 3)]
    cosines = [len({*held[a]} & {*held[b]}) / np.sqrt(len(held[a]) * len(held[b])) for a, b in pairs]
    expected = [1 - np.mean(cosines), 0.0]  # the third has one track that holds anything
    assert list_distance(lists, offsets, packed, 5) == pytest.approx(np.mean(expected))
    assert list_distance(lists[2:], offsets, packed, 5) is None


def test_sets_are_measured_on_the_same_users(tiny_store: Path, tiny_dataset: Dataset) -> None:
    recommender = Recommender(Bundle.open(tiny_store))
    sets = {
        "nothing": Rules("nothing"),
        "spread": Rules("spread", diversity=Diversity(0.7)),
        "own mix": Rules("own mix", calibration=Calibration("genre", 0.9)),
    }
    plain, nothing, spread, mix = measure_rules(recommender, tiny_dataset, sets, users=80)
    assert [one["name"] for one in (plain, nothing, spread, mix)] == [PLAIN, *sets]
    assert {**nothing, "name": PLAIN} == plain
    for one in (spread, mix):
        assert one["paired"]["difference"] == pytest.approx(one["ndcg@10"] - plain["ndcg@10"])
    assert (spread["gains"]["distance_by_tags"] or 0) > (plain["gains"]["distance_by_tags"] or 0)
    assert (mix["gains"]["calibration_error"] or 0) < 0.5 * (plain["gains"]["calibration_error"] or 0)


def test_the_command_prints_writes_and_draws_them(
    tiny_store: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("sets: {radio: {caps: {artist: 1}}, spread: {diversity: {strength: 0.5}}}")
    asked = ["evaluate", str(tiny_dataset.path), "--store", str(tiny_store), "--users", "40", "--baselines", "none"]
    report = ["--json", str(tmp_path / "e.json"), "--report", str(tmp_path / "e.html")]
    assert main([*asked, "--rules", str(rules), *report]) == 0
    out = capsys.readouterr().out
    assert "Rule sets beside no rules" in out
    assert all(name in out for name in (PLAIN, "radio", "spread"))
    document = json.loads((tmp_path / "e.json").read_text())
    assert [one["name"] for one in document["rules"]] == [PLAIN, "radio", "spread"]
    assert "by tags and by who listens" in (tmp_path / "e.html").read_text()
    rules.write_text("sets: {radio: {caps: {mood: 1}}}")
    assert main([*asked, "--rules", str(rules)]) == 1
    assert "rules: sets.radio.caps: found 'mood', expected a column of the bundle" in capsys.readouterr().err
    assert main([*asked, "--rules", str(rules), "--protocol", "next-day"]) == 1
    assert "--rules: found --protocol next-day, expected --protocol static" in capsys.readouterr().err
