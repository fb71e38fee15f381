"""Equal scores: one order of them everywhere, and what a figure owes to it, against every order there is."""

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.data.dataset import Dataset
from lhydra.domain import F32, I64, Query, Recommendation, Tier, UserState
from lhydra.evaluation import compare as comparing
from lhydra.evaluation import ties
from lhydra.evaluation.evaluate import evaluate
from lhydra.evaluation.metrics import rank_metrics
from lhydra.training import head as heads
from lhydra.training.teachers import _top
from lhydra.training.validate import best_first
from tests.test_evaluate import FakeCatalog, FakeRecommender, names, world

__all__ = ["world"]  # a fixture
World = tuple[Dataset, FakeRecommender]
FEW = 6


class Scored:
    """Answers with tracks by given scores, ties by row; as many as are asked for."""

    def __init__(self, scores: list[int], tier: Tier) -> None:
        self.scores, self.tier = np.array(scores, np.float32), tier
        self.catalog = FakeCatalog(names("t", len(scores)))

    def recommend(self, query: Query) -> Recommendation:
        order = np.argsort(-self.scores, kind="stable")
        rows, seen = order[: query.k], order if self.tier is not Tier.POPULAR else order[: query.k]
        logits = self.scores[rows]
        return Recommendation(rows, logits, logits, logits, seen, self.scores[seen], self.tier, {})


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=FEW),
    st.sets(st.integers(0, FEW), min_size=1),
    st.sampled_from([Tier.PERSONAL, Tier.POPULAR]),
)
def test_lowest_and_highest_are_those_of_all_orders(scores: list[int], hits: set[int], tier: Tier) -> None:
    k = 2
    wanted, offsets = np.array(sorted(hits)), np.array([0, len(hits)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ties, "K", k)
        found = ties.none_yet(1)
        recommender: Any = Scored(scores, tier)
        ties.note(found, 0, recommender, UserState(), recommender.recommend(Query(k + 1)), wanted)
        lowest, highest = found.ndcg(offsets, wanted, FEW + 1)
    figures = []
    for order in permutations(range(len(scores))):
        own = [scores[row] for row in order]
        if own == sorted(own, reverse=True):
            padded = np.array([[*order, -1, -1][:k]])
            figures.append(rank_metrics(padded, offsets, wanted, FEW + 1, (k,)).means()[f"ndcg@{k}"])
    assert (lowest, highest) == pytest.approx((min(figures), max(figures)))
    ordered = sorted(scores, reverse=True)
    assert bool(found.at_cut[0]) == (len(scores) > k and ordered[k - 1] == ordered[k])


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.lists(st.integers(-2, 3), min_size=8, max_size=8), min_size=1, max_size=4), st.integers(1, 7))
def test_training_orders_equal_scores_as_lists_are_served(scores: list[list[int]], k: int) -> None:
    array = np.array(scores, np.float32)
    expected = np.stack([np.lexsort((np.arange(8), -row))[:k] for row in array])
    best, columns = best_first(torch.from_numpy(array), k)
    assert columns.tolist() == expected.tolist()
    assert best.tolist() == np.take_along_axis(array, expected, 1).tolist()
    assert _top(array, k).tolist() == expected.tolist()


def test_the_head_in_training_orders_equal_logits_by_track(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four retrieved candidates, in the order of retrieval, and one random track, which is never listed."""
    rows = torch.tensor([[7, 3, 9, 1, 0]])
    excluded = torch.tensor([[False, False, True, False, False]])
    examples: Any = SimpleNamespace(rows=rows, excluded=excluded, retrieved=4)
    logits = torch.tensor([[1.0, 1.0, 5.0, 1.0, 9.0]])
    monkeypatch.setattr(heads, "_parts", lambda *_, **__: (logits, torch.zeros_like(logits)))
    nothing: Any = SimpleNamespace(eval=lambda: None)
    found = heads._ranked(nothing, examples, logits, nothing, np.array([0]), (0.0,))
    assert found[0.0][0].tolist() == [1, 3, 7, -1, -1]


class Undecided(FakeRecommender):
    """Scores everything alike."""

    def scores(self, state: UserState) -> tuple[F32, F32]:
        return np.zeros(len(self.catalog), np.float32), np.zeros(len(self.catalog), np.float32)

    def score(self, state: UserState, rows: I64, now: int = 0) -> tuple[F32, F32]:
        return np.zeros(len(rows), np.float32), np.full(len(rows), 0.5, np.float32)


def test_verdicts_know_what_ties_decide(world: World) -> None:
    dataset, recommender = world
    sure = evaluate(recommender, dataset, baselines=("popular",))
    assert sure["ties"]["lists"] == 0
    assert sure["ties"]["lowest"] == sure["ties"]["highest"]
    assert sure["ties"]["lowest"] == pytest.approx(sure["ranking"]["cascade"]["ndcg@10"]["mean"])
    assert not any("share a score" in line or "ties" in line for line in sure["summary"])
    found = evaluate(Undecided(FakeCatalog(names("t", 80))), dataset, baselines=("popular",))
    own = found["ties"]
    assert own["lists"] == 1
    served = found["ranking"]["cascade"]["ndcg@10"]["mean"] or 0.0
    assert own["lowest"] == 0 < served < own["highest"]
    assert "not certain: ties" in found["summary"][0]
    assert any(line.startswith("100% of the lists share a score at place 10") for line in found["summary"])
    told = comparing.compare(sure, found, ("a", "b"))["summary"][0]
    assert told.endswith("not certain: ties)")
    assert "ties" not in comparing.compare(sure, sure, ("a", "b"))["summary"][0]
