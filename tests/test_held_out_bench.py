"""The benchmark of held-out folds: its measure on rows that were planted, and the fold that it draws."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import held_out

ROWS, USERS, TASTES = 30, 200, 9


@pytest.fixture(scope="module")
def plays() -> pd.DataFrame:
    """Users move through three tastes of twenty tracks each; the last rows, of the third, are test; valid is random."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        tracks = [
            20 * taste + track for taste in rng.permutation(TASTES)[:3] for track in rng.permutation(20)[: ROWS // 3]
        ]
        folds = np.array(["train"] * 26 + ["test"] * 4)
        folds[rng.permutation(26)[:3]] = "valid"
        rows += [(f"u{user}", f"t{track}", fold) for track, fold in zip(tracks, folds, strict=True)]
    return pd.DataFrame(rows, columns=list(held_out.COLUMNS))


def test_what_comes_last_is_like_the_last_train_rows(plays: pd.DataFrame) -> None:
    valid, test = (held_out.likeness(plays, fold) for fold in ("valid", "test"))
    assert test[-2:].min() > 3 * test[:5].max()
    assert valid.max() < 2 * valid.min()
    again = held_out.likeness(held_out.last_valid(plays), "valid")
    assert again[-1] > 3 * again[1:5].max()  # the first tenth holds what was valid


def test_likeness_is_the_mean_cosine() -> None:
    """Of two users who share all train rows, by hand; a user without a held-out row is left out."""
    shared = [(user, f"t{track}", "train") for user in ("a", "b") for track in range(held_out.LEAST)]
    plays = pd.DataFrame([*shared, ("b", "alone", "train"), ("a", "alone", "test")], columns=list(held_out.COLUMNS))
    both, alone = 2 + held_out.SHRINKAGE, 1 + held_out.SHRINKAGE
    np.testing.assert_allclose(held_out.likeness(plays, "test"), 1 / np.sqrt(both * alone), rtol=1e-6)
    assert np.isnan(held_out.likeness(plays, "valid")).all()


def test_the_last_ninth_is_valid(plays: pd.DataFrame) -> None:
    drawn = held_out.last_valid(plays)
    pairs = ["user_id", "track_id"]
    before, after = (rows.set_index(pairs)["split"].sort_index() for rows in (plays, drawn))
    assert (before.index == after.index).all()
    assert ((before == "test") == (after == "test")).all()
    assert not ((before == "valid") & (after == "valid")).any()  # their places are not known
    for user, own in drawn.groupby("user_id"):
        held = plays[(plays.user_id == user) & (plays.split == "train")]["track_id"].tolist()[-3:]
        assert own[own.split == "valid"]["track_id"].tolist() == held  # a ninth of 26


def test_the_command_writes_a_source(plays: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    plays.assign(playcount=1).to_csv(source / "plays.csv", index=False)
    (source / "tracks.csv").write_text("track_id\nt0\n")
    assert held_out.main([str(source), "--last", str(tmp_path / "last"), "--out", str(tmp_path / "out.json")]) == 0
    assert (tmp_path / "last/tracks.csv").read_text() == "track_id\nt0\n"
    written = pd.read_csv(tmp_path / "last/plays.csv", dtype=str)
    assert written[list(held_out.COLUMNS)].equals(held_out.last_valid(plays))
    assert capsys.readouterr().out.startswith("valid 0.")
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["command"] == "python -m benchmarks.held_out source --last OUT"
    assert held_out.main([str(tmp_path / "absent")]) == 1
