"""How many candidates are reranked: what each depth loses is measured against the head over everything."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.exact import nearest
from lhydra.bundle.index import Index
from lhydra.bundle.manifest import Cascade, DepthPoint
from lhydra.data.dataset import Dataset, user_states
from lhydra.evaluation import cascade
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import ask, find_targets
from lhydra.recommender import DEFAULT_DEPTH, Recommender
from lhydra_index_builder import depth as depths
from lhydra_index_builder.depth import agreements, choose, loss_at


@pytest.fixture(scope="module")
def recommender(tiny_store: Path) -> Recommender:
    return Recommender(Bundle.open(tiny_store))


def curve(*ndcg: float, full: float = 0.2) -> Cascade:
    points = zip(depths.DEPTHS, ndcg, strict=False)
    return {"k": 10, "users": 9, "ndcg": full, "curve": [{"depth": d, "ndcg": x, "agreement": 0.5} for d, x in points]}


def test_the_smallest_depth_from_which_on_little_is_lost() -> None:
    assert choose(curve(0.2, 0.2, 0.2)) == 100
    assert choose(curve(0.19, 0.1981, 0.2)) == 150
    assert choose(curve(0.19, 0.1979, 0.2)) == 200  # 1.05 %
    assert choose(curve(0.2, 0.19, 0.2)) == 200  # a lucky small depth is not trusted
    assert choose(curve(0.1, 0.1, 0.1)) == 200  # none is good enough: the largest
    assert choose(curve(0.21, 0.21, 0.2)) == 100  # fewer candidates may rank better than everything


def test_either_measure_may_acquit_a_depth() -> None:
    points: list[DepthPoint] = [{"depth": 100, "ndcg": 0.18, "agreement": 0.995}]
    measured: Cascade = {**curve(), "curve": points}
    assert loss_at(measured, 100) == pytest.approx(0.005)  # few users, unlucky: the list is the head's
    assert choose(measured) == 100


def test_the_loss_between_and_beyond_the_measured_depths() -> None:
    measured = curve(0.18, 0.19, 0.2)
    assert loss_at(measured, 100) == pytest.approx(0.1)
    assert loss_at(measured, 149) == pytest.approx(0.1)
    assert loss_at(measured, 150) == pytest.approx(0.05)
    assert loss_at(measured, 5000) == pytest.approx(0)
    assert loss_at(measured, 7) == pytest.approx(0.1)  # the best there is to say
    no_hits = curve(0, 0, 0, full=0.0)
    no_hits["curve"] = [{"depth": 100, "ndcg": 0.0, "agreement": 0.97}]
    assert loss_at(no_hits, 100) == pytest.approx(0.03)


@settings(deadline=None)
@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 1000))
def test_agreement_is_the_share_of_the_gain_that_is_kept(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    full, found = np.full((1, 10), -1, np.int64), np.full((1, 10), -1, np.int64)
    full[0, :n], found[0, :m] = rng.permutation(15)[:n], rng.permutation(15)[:m]
    gains = {int(row): 1 / math.log2(rank + 2) for rank, row in enumerate(full[0]) if row >= 0}
    kept = sum(gain for row, gain in gains.items() if row in found[0])
    own = agreements(full, found)[0]
    assert np.isnan(own) if not n else own == pytest.approx(kept / sum(gains.values()))


def slow(recommender: Recommender, dataset: Dataset, user: int, depth: int | None) -> list[int]:
    """The head's ten best of the `depth` nearest unheard tracks, or of all, one by one."""
    state = next(state for _, state in user_states(dataset, "valid", positions=np.array([user])))
    catalog = recommender.catalog
    heard = catalog.rows(state.heard)
    vector = recommender.bundle.embed(recommender.encode(state))
    everything = len(catalog) if depth is None else depth
    rows, _ = nearest(catalog.vectors, vector, everything, heard[heard >= 0])
    logits, _ = recommender.score(state, rows)
    best: list[int] = rows[np.lexsort((rows, -logits))[:10]].tolist()
    return best


def test_the_curve_is_what_reranking_one_by_one_gives(
    recommender: Recommender, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depths, "DEPTHS", (20, 50, 150))
    monkeypatch.setattr(cascade, "SCORE_BLOCK", 37)
    monkeypatch.setattr(depths, "MOST_USERS", 25)
    targets = find_targets(tiny_dataset, "valid")
    found = depths.measure(recommender, tiny_dataset, "valid", targets, threads=2, seed=3)
    some = targets.sample(25, 3)
    assert found["users"] == 25

    def ndcg(depth: int | None) -> float:
        lists = np.array([slow(recommender, tiny_dataset, user, depth) for user in some.users])
        return rank_metrics(lists, some.offsets, some.tracks, len(recommender.catalog), (10,)).means()["ndcg@10"]

    assert found["ndcg"] == pytest.approx(ndcg(None), abs=1e-6)
    assert [at["depth"] for at in found["curve"]] == [20, 50, 150]
    for at in found["curve"]:
        assert at["ndcg"] == pytest.approx(ndcg(at["depth"]), abs=1e-6)
    agreement = [at["agreement"] for at in found["curve"]]
    assert agreement == sorted(agreement)  # a deeper list keeps more
    assert agreement[0] < 1
    same = depths.measure(recommender, tiny_dataset, "valid", targets, threads=1, seed=3)
    assert same == found  # whoever else computes beside it


def test_evaluation_and_builder_score_in_the_same_blocks_and_find_the_same(
    recommender: Recommender, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: set[int] = set()
    score = Bundle.score

    def counted(bundle: Bundle, vector: Any, user: Any, rows: Any, moment: Any = None) -> Any:
        sizes.add(len(rows))
        return score(bundle, vector, user, rows, moment)

    n = len(recommender.catalog)
    bundle = replace(recommender.bundle, index=Index.build(np.asarray(recommender.catalog.vectors), "flat"))
    exact, targets = Recommender(bundle), find_targets(tiny_dataset, "valid")
    run = ask(exact, tiny_dataset, targets, as_of="valid", ks=(10,), seed=0)
    everybody = np.arange(len(targets))
    monkeypatch.setattr(Bundle, "score", counted)
    monkeypatch.setattr(cascade, "SCORE_BLOCK", 150)
    monkeypatch.setattr(cascade, "DEPTHS", (100, 200, 300))
    monkeypatch.setattr(depths, "DEPTHS", (100, 200, 300))
    built = depths.measure(exact, tiny_dataset, "valid", targets, threads=2, seed=0)
    assert {150, n % 150} <= sizes
    assert max(sizes - {100, 200, 300}) == 150
    sizes.clear()
    _, served = cascade.head_alone(exact, tiny_dataset, run, everybody, (10,))
    assert {150, n % 150} <= sizes
    assert [at["depth"] for at in served["curve"]] == [at["depth"] for at in built["curve"]]
    assert [round(at["ndcg"], 6) for at in served["curve"]] == [at["ndcg"] for at in built["curve"]]


def test_without_plays_held_out_the_heads_own_list_decides(recommender: Recommender, tiny_dataset: Dataset) -> None:
    found = depths.measure(recommender, tiny_dataset, "valid", None, threads=2, seed=0)
    assert found["ndcg"] is None
    assert loss_at(found, 100) == pytest.approx(1 - found["curve"][0]["agreement"])
    last = found["curve"][-1]
    assert (last["depth"], last["agreement"]) == (
        len(recommender.catalog),
        1,
    )  # a small catalogue may be reranked whole


def test_the_measured_depth_is_served_unless_another_is_asked_for(tiny_store: Path) -> None:
    bundle = Bundle.open(tiny_store)
    assert bundle.manifest is not None
    assert Recommender(bundle).depth == bundle.manifest.depth == choose(bundle.manifest.cascade)
    assert Recommender(bundle, 70).depth == 70
    assert Recommender(replace(bundle, manifest=None)).depth == DEFAULT_DEPTH
