"""Compiled kernels: what they compute is what the NumPy code beside their calls computes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra import kernels
from lhydra.domain import F32, I64
from lhydra.features import item_item
from lhydra.features.histories import Histories, entry_features, play_weights, relative_weights
from tests.compiled_kernels import plain, where_a_compiler_is

pytestmark = where_a_compiler_is


def test_where_a_compiler_is_they_are_compiled() -> None:
    assert kernels.compiled is not None, "make setup compiles them"


def test_kernels_older_than_their_source_do_not_run(tmp_path: Path) -> None:
    """Who pulls a change and does not install again has NumPy, and no half of the old and half of the new."""
    (tmp_path / "lhydra").mkdir()
    (tmp_path / "lhydra" / "__init__.py").touch()
    folder = shutil.copytree(Path(kernels.__file__).parent, tmp_path / "lhydra" / "kernels")
    command = [sys.executable, "-c", "from lhydra import kernels; print(kernels.__file__, kernels.compiled is None)"]

    def asked() -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path).stdout

    assert asked() == f"{folder / '__init__.py'} False\n"
    newer = next(folder.glob("*.so")).stat().st_mtime + 1
    os.utime(folder / "numbers.pxi", (newer, newer))
    assert asked() == f"{folder / '__init__.py'} True\n"


def listened(seed: int, n: int, heard: int) -> tuple[I64, F32]:
    """Rows and entry features of one made-up user."""
    rng = np.random.default_rng(seed)
    played = rng.permutation(n)[:heard]
    counts = rng.integers(1, 30, len(played)).astype(np.float32)
    times = np.sort(rng.integers(1, 10**6, len(played))) * (seed % 2)
    histories = Histories.one(played, counts, times)
    entry, _ = entry_features(histories, relative_weights(play_weights(counts), histories.offsets))
    return played, entry


@settings(deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 400), st.integers(0, 40), st.integers(0, 300), st.integers(0, 300))
def test_co_listening_scores(seed: int, n: int, width: int, heard: int, wanted: int) -> None:
    rng = np.random.default_rng(seed)
    neighbours = rng.integers(0, n, (n, width), dtype=np.int32)
    weights = rng.normal(size=(n, width)).astype(np.float16)
    asked = neighbours, weights, *listened(seed, n, heard), rng.integers(0, n, wanted)
    found = item_item.scores(*asked)
    with plain():
        expected = item_item.scores(*asked)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 2**16 - 1))
def test_every_float16_is_widened_as_numpy_does(bits: int) -> None:
    weight = np.array([bits], np.uint16).view(np.float16)
    if np.isfinite(weight).all():
        one = np.zeros((1, 3), np.float32)
        asked = np.zeros((1, 1), np.int32), weight[None], np.array([0]), one, np.array([0])
        assert item_item.scores(*asked)[0, 0] == weight.astype(np.float32)[0]


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (0, 5), (4, 0)])
def test_a_table_with_weights_of_another_shape_is_an_error_and_nothing_is_read(shape: tuple[int, int]) -> None:
    """As in a bundle whose parts do not fit: before, memory behind the weights was read."""
    of_one = np.array([0]), np.zeros((1, 3), np.float32), np.array([3])
    with pytest.raises(ValueError, match="fit each other"):
        item_item.scores(np.zeros((4, 5), np.int32), np.ones(shape, np.float16), *of_one)


def test_plays_without_their_features_are_an_error() -> None:
    table = np.zeros((4, 5), np.int32), np.ones((4, 5), np.float16)
    with pytest.raises(ValueError, match="fit each other"):
        item_item.scores(*table, np.array([0, 1]), np.zeros((1, 3), np.float32), np.array([3]))
