"""What an older version sealed, this one opens and answers the same, or refuses on purpose. See golden/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import FORMAT
from lhydra.domain import HISTORY_DTYPE, RECENT_DTYPE, REPEAT_DTYPE, Query, Tier, UserState
from lhydra.errors import BundleMismatch
from lhydra.recommender import Recommender

GOLDEN = Path(__file__).resolve().parent / "golden"
OPENED = (4, 5, 6)  # formats that this version opens


def filled(dtype: np.dtype[np.void], names: tuple[str, ...], columns: list[list[Any]]) -> np.ndarray:
    """A structured array of these columns."""
    array = np.zeros(len(columns[0]), dtype)
    for name, values in zip(names, columns, strict=True):
        array[name] = np.array(values, dtype[name].base).reshape(array[name].shape)
    return array


@pytest.mark.parametrize("number", OPENED)
def test_a_bundle_of_each_known_format_answers_as_it_did(number: int) -> None:
    recommender = Recommender(Bundle.open_folder(GOLDEN / f"bundle_v{number}"))
    answers = json.loads((GOLDEN / f"answers_v{number}.json").read_text())
    for then in answers:
        history = filled(HISTORY_DTYPE, ("track", "count", "time"), then["history"])
        heard = np.array(then["heard"], np.uint64)
        repeats = filled(REPEAT_DTYPE, ("first", "decayed"), then.get("repeats", [[], []]))
        recent = filled(RECENT_DTYPE, ("track", "time", "flags"), then.get("recent", [[], [], []]))
        state, now = UserState(then["profile"], history, heard, repeats=repeats, recent=recent), then.get("now", 0)
        found = recommender.recommend(Query(k=5, state=state, exclude=heard, known=True, now=now))
        assert found.tier.label == then["tier"]
        assert recommender.catalog.track_ids(found.rows) == then["track_ids"]
        assert found.logits.tolist() == pytest.approx(then["logits"], abs=1e-3)
        assert found.scores.tolist() == pytest.approx(then["scores"], abs=1e-3)
        if "with_repeats" in then:
            again = recommender.recommend(Query(k=5, state=state, known=True, now=now))
            assert recommender.catalog.track_ids(again.rows) == then["with_repeats"]
    assert recommender.knows_repeats == (number > 4)
    assert {then["tier"] for then in answers} == {Tier.PERSONAL.label, Tier.SEGMENT.label, Tier.POPULAR.label}
    assert (recommender.catalog.neighbour_weights != 0).any()
    assert recommender.catalog.history.table.dtype == (np.int8 if number > 5 else np.float16)


def test_the_current_format_has_its_golden_bundle() -> None:
    """Whoever raises the format makes one: see golden/make.py."""
    assert FORMAT in OPENED
    assert json.loads((GOLDEN / f"bundle_v{FORMAT}" / "manifest.json").read_text())["format"] == FORMAT


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_bundle_of_an_older_format_is_refused_in_one_line(number: int) -> None:
    folder = GOLDEN / f"bundle_v{number}"
    with pytest.raises(BundleMismatch) as caught:
        Bundle.open_folder(folder)
    assert str(caught.value) == f"{folder / 'manifest.json'}: found format {number}, expected format {FORMAT}"
