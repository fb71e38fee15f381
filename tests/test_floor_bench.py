"""The benchmark of the distance to the floor: the floor gives the same answers, and ratios are of the same round."""

import json
from pathlib import Path

import pytest

from benchmarks import floor
from lhydra.bundle.bundle import Bundle
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from lhydra.recommender import Recommender
from lhydra.users.store import open_users


def test_ratios_are_of_the_same_round_and_medians_are_told() -> None:
    def found(real: float, bare: float) -> dict[str, dict[str, float]]:
        sides = {"real": dict.fromkeys((*floor.ABOVE, *floor.STAGES, "shared", "whole", "processor"), real)}
        return sides | {"floor": dict.fromkeys((*floor.STAGES, "shared", "whole", "processor"), bare)}

    told = floor.told([found(300, 100), found(20, 10), found(1000, 250)])
    assert told["whole"] == {"real_us": 300, "floor_us": 100, "ratio": 3, "least": 2, "greatest": 4}
    assert told["processor"] == told["whole"]
    assert told["encode"] == {"real_us": 300, "floor_us": 0}


def test_the_floor_answers_with_the_same_tracks_or_it_is_none(
    tiny_store: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, users = Bundle.open(tiny_store), open_users(None, tiny_store)
    bare = floor.Floor(tiny_store / bundle.bundle_id, bundle, 60, 20)
    recommender = Recommender(bundle, 60)
    assert len(floor.listened(recommender, users, bare, tiny_dataset.user_ids, 12)) == 12
    monkeypatch.setattr(bare, "gathered", {name: table[::-1] for name, table in bare.gathered.items()})
    with pytest.raises(LhydraError, match="other tracks"):
        floor.listened(recommender, users, bare, tiny_dataset.user_ids, 12)
    users.close()


def test_both_are_measured_on_a_real_store(
    tiny_store: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, asked = tmp_path / "floor.json", [str(tiny_dataset.path), str(tiny_store), "--k", "5", "--depth", "20"]
    assert floor.main([*asked, "--users", "4", "--repeats", "2", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found["floor"]) == [*floor.ABOVE, *floor.STAGES, "shared", "whole", "processor"]
    assert all(row["least"] <= row["ratio"] <= row["greatest"] for row in found["floor"].values() if "ratio" in row)
    assert len(capsys.readouterr().out.splitlines()) == len(found["floor"]) + 1
