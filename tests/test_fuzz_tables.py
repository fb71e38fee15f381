"""A slice of the drill on random tables, and the drill's own eyes."""

from pathlib import Path

import pytest

from lhydra.data import times
from tests import fuzz_tables


@pytest.mark.parametrize("seed", range(20))
def test_random_tables_are_read_as_they_mean(seed: int, tmp_path: Path) -> None:
    assert not fuzz_tables.compare(seed, tmp_path)


def test_the_drill_sees_a_wrong_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "_MACROS", times._MACROS.replace("with_dates() AS true", "with_dates() AS false"))
    folders = [tmp_path / str(seed) for seed in range(20)]
    for folder in folders:
        folder.mkdir()
    assert any(fuzz_tables.compare(seed, folder) for seed, folder in enumerate(folders))  # stops at the first
