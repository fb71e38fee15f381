"""The benchmark of rules: what it computes has known answers, and it runs on a real store."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import lists
from lhydra.data.dataset import Dataset


def test_what_rules_add_is_the_median_of_the_differences() -> None:
    plain = np.array([100.0, 200, 300, 400, 500])
    found = lists.added(plain + 50, plain, 0)
    assert found["median_us"] == 350
    assert found["adds_us"] == found["adds_low_us"] == found["adds_high_us"] == 50
    assert found["ratio"] == pytest.approx(350 / 300)


def test_every_rule_set_is_measured_beside_none(
    tiny_store: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, asked = tmp_path / "lists.json", [str(tiny_dataset.path), str(tiny_store), "--users", "3", "--k", "5"]
    assert lists.main([*asked, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found["rule_sets"]) == list(lists.rule_sets("artist", "genre"))
    assert found["rule_sets"][lists.PLAIN]["ratio"] == 1
    assert len(capsys.readouterr().out.splitlines()) == len(found["rule_sets"])
    assert lists.main([*asked, "--calibrate", "nothing"]) == 1
    assert "--calibrate" in capsys.readouterr().err
