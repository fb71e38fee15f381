"""What an older version sealed, this version opens and answers the same. See golden/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest

from lhydra.bundle import Bundle
from lhydra.domain import HISTORY_DTYPE, Query, UserState
from lhydra.recommender import Recommender

GOLDEN = Path(__file__).resolve().parent / "golden"


def test_a_bundle_of_format_1_answers_as_it_did() -> None:
    recommender = Recommender(Bundle.open_folder(GOLDEN / "bundle_v1"))
    for then in json.loads((GOLDEN / "answers_v1.json").read_text()):
        history = np.zeros(len(then["history"][0]), HISTORY_DTYPE)
        for name, values in zip(("track", "count", "time"), then["history"], strict=True):
            history[name] = np.array(values, HISTORY_DTYPE[name])
        heard = np.array(then["heard"], np.uint64)
        state = UserState(then["profile"], history, heard)
        found = recommender.recommend(Query(k=5, state=state, exclude=heard, known=True))
        assert found.tier.label == then["tier"]
        assert recommender.catalog.track_ids(found.rows) == then["track_ids"]
        assert found.logits.tolist() == pytest.approx(then["logits"], abs=1e-3)
