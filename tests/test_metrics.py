"""Our metrics against their definitions spelt out, the shared tool, pytrec_eval and scikit-learn."""

import importlib.util
import itertools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pytrec_eval
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.domain import I64
from lhydra.evaluation.classification import BINS, calibration, classify, describe, pr_curve, roc_auc, roc_curve
from lhydra.evaluation.metrics import MRR_DEPTH, RankMetrics, rank_metrics
from tests.realdata import ROOT, real_data

Case = tuple[list[list[int]], list[list[int]], int]  # lists, targets, catalogue size


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Lists shorter and longer than k, users without a list, users without a target, targets outside the catalogue."""
    size = draw(st.integers(1, 40))
    track = st.integers(0, size - 1)
    n = draw(st.integers(1, 6))
    lists = [draw(st.lists(track, unique=True, max_size=30)) for _ in range(n)]
    targets = [draw(st.lists(st.integers(0, size + 3), unique=True, max_size=8)) for _ in range(n - 1)]
    return lists, [*targets, draw(st.lists(track, unique=True, min_size=1, max_size=30))], size


def packed(lists: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> tuple[I64, I64, I64]:
    rows = np.full((len(lists), max(1, *map(len, lists))), -1, np.int64)
    for n, own in enumerate(lists):
        rows[n, : len(own)] = own
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in targets])]).astype(np.int64)
    return rows, offsets, np.array([row for own in targets for row in sorted(own)], np.int64)


def measured(case: Case, ks: Sequence[int] = (10, 20)) -> RankMetrics:
    lists, targets, size = case
    return rank_metrics(*packed(lists, targets), size, ks)


def spelt_out(ranked: list[int], wanted: set[int], k: int) -> dict[str, float]:
    hit_ranks = [rank for rank, track in enumerate(ranked, 1) if track in wanted]
    top = [rank for rank in hit_ranks if rank <= k]
    best = min(k, len(wanted))
    return {
        f"recall@{k}": len(top) / len(wanted),
        f"ndcg@{k}": sum(1 / math.log2(r + 1) for r in top) / sum(1 / math.log2(r + 1) for r in range(1, best + 1)),
        f"map@{k}": sum(n / rank for n, rank in enumerate(top, 1)) / best,
        f"hr@{k}": float(bool(top)),
        "mrr": 1 / hit_ranks[0] if hit_ranks and hit_ranks[0] <= MRR_DEPTH else 0.0,
    }


def shared_tool() -> ModuleType:
    path = ROOT.parent / "tools" / "evaluate.py"
    if not path.is_file():
        pytest.skip("REAL DATA ABSENT: the shared evaluate.py (set LHYDRA_REAL_DATA)")
    spec = importlib.util.spec_from_file_location("shared_evaluate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_equals_tool(split: dict[str, Any], target: str, lists: I64) -> None:
    """lists: (users, K) clean lists of every user of `split`."""
    n_users, n_tracks = len(split["user_ids"]), len(split["item_ids"])
    theirs = shared_tool().evaluate(split, np.arange(n_users), lists, target=target)
    assert theirs["masked_violations"] == theirs["duplicates"] == 0
    wanted = split["fold"] == {"valid": 1, "test": 2}[target]
    pairs = np.unique(np.stack([split["u"][wanted], split["i"][wanted]]).astype(np.int64), axis=1)
    offsets = np.searchsorted(pairs[0], np.arange(n_users + 1)).astype(np.int64)
    ours = rank_metrics(lists, offsets, pairs[1], n_tracks).means()
    shared = set(ours) & set(theirs)
    assert shared == {"recall@10", "recall@20", "ndcg@10", "ndcg@20", "map@10", "hr@10", "mrr", "coverage@10"}
    assert {name: ours[name] for name in shared} == pytest.approx({name: theirs[name] for name in shared}, abs=1e-9)


def unheard_lists(split: dict[str, Any], fold: int, scores: npt.NDArray[np.float64], k: int) -> I64:
    """(users, k) best first by `scores` (users, items), without what was heard before `fold`."""
    scores = scores.copy()
    heard = split["fold"] < fold
    scores[split["u"][heard], split["i"][heard]] = -np.inf
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    top_scores = np.take_along_axis(scores, top, 1)
    best_first = np.argsort(-top_scores, axis=1)
    top[np.isinf(top_scores)] = -1
    return np.take_along_axis(top, best_first, 1).astype(np.int64)


@settings(deadline=None)  # the machine may be busy
@given(cases(), st.sets(st.integers(1, 35), min_size=1, max_size=3))
def test_metrics_are_what_their_definitions_say(case: Case, ks: set[int]) -> None:
    lists, targets, size = case
    found = measured(case, sorted(ks))
    evaluated = [n for n in range(len(lists)) if targets[n]]
    for k in ks:
        for n in evaluated:
            expected = spelt_out(lists[n], set(targets[n]), k)
            assert {name: found.per_user[name][n] for name in expected} == pytest.approx(expected, abs=1e-12)
        distinct = {track for n in evaluated for track in lists[n][:k]}
        assert found.coverage[f"coverage@{k}"] == pytest.approx(len(distinct) / size)
    for name, values in found.per_user.items():
        assert np.isnan(values).tolist() == [not own for own in targets]
        assert found.means()[name] == pytest.approx(values[evaluated].mean())


def test_known_answers() -> None:
    found = measured(([[3, 1, 4], [], [7]], [[1, 4], [5], []], 8), ks=(2,))
    assert found.per_user["recall@2"][:2].tolist() == [0.5, 0.0]
    assert found.per_user["ndcg@2"][0] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert found.per_user["map@2"][0] == 0.25
    assert found.per_user["mrr"][0] == 0.5
    assert found.means()["hr@2"] == 0.5  # over two users: the third has no target
    assert found.coverage == {"coverage@2": 0.25}  # tracks 3 and 1 of 8: the third user's list does not count


def test_mrr_looks_no_deeper_than_its_depth_whatever_k_is() -> None:
    lists = [list(range(30)), list(range(30))]
    targets = [[MRR_DEPTH - 1], [MRR_DEPTH]]
    for ks in ((1,), (10, 20), (30,)):
        assert measured((lists, targets, 40), ks).per_user["mrr"].tolist() == [1 / MRR_DEPTH, 0.0]


@pytest.mark.parametrize(
    ("lists", "offsets", "targets", "message"),
    [
        ([[1, 1]], [0, 1], [1], "same track twice"),
        ([[-1, 1]], [0, 1], [1], "padding before its end"),
        ([[0, 1]], [0, 2], [1, 1], "ascending and distinct"),
        ([[0, 1]], [0, 2], [2, 1], "ascending and distinct"),
        ([[0, 1]], [0, 1], [-1], "ascending and distinct"),
        ([[0, 1]], [0, 0], [], "no user has a target"),
        ([[0, 1]], [0], [], "do not match"),
        ([[0, 1]], [0, 2], [1], "do not match"),
    ],
)
def test_malformed_input_is_refused(
    lists: list[list[int]], offsets: list[int], targets: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rank_metrics(np.array(lists, np.int64), np.array(offsets, np.int64), np.array(targets, np.int64), 5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("target", ["valid", "test"])
def test_equals_the_shared_tool_on_random_splits(seed: int, target: str) -> None:
    rng = np.random.default_rng(seed)
    n_users, n_tracks = int(rng.integers(2, 60)), int(rng.integers(25, 120))
    pairs = rng.choice(n_users * n_tracks, n_users * int(rng.integers(3, 20)), replace=False)
    split = {
        "user_ids": np.array([f"u{n}" for n in range(n_users)]),
        "item_ids": np.array([f"t{n}" for n in range(n_tracks)]),
        "u": pairs // n_tracks,
        "i": pairs % n_tracks,
        "fold": rng.choice(3, len(pairs), p=[0.7, 0.1, 0.2]),
    }
    split["fold"][:2] = 1, 2
    scores = np.round(rng.random((n_users, n_tracks)), 2)  # rounded: ties
    wanted = split["fold"] == 2
    scores[split["u"][wanted], split["i"][wanted]] += rng.random()
    lists = unheard_lists(split, {"valid": 1, "test": 2}[target], scores, 25)
    for n, kept in enumerate(rng.integers(0, 26, n_users)):  # short and empty lists
        lists[n, kept:] = -1
    assert_equals_tool(split, target, lists)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["lastfm-hetrec", "movielens-100k"])
def test_equals_the_shared_tool_on_real_data(name: str) -> None:
    split = shared_tool().load_split(real_data(name) / "splits" / "random_seed0.npz")
    train = split["fold"] == 0
    plays = np.bincount(split["i"][train], minlength=len(split["item_ids"]))
    noise = np.random.default_rng(0).random((len(split["user_ids"]), len(split["item_ids"])))
    for target, fold in (("valid", 1), ("test", 2)):
        assert_equals_tool(split, target, unheard_lists(split, fold, plays * noise, 20))


@settings(deadline=None)  # the machine may be busy
@given(cases())
def test_agrees_with_trec_eval(case: Case) -> None:
    """But for its own definitions: map_cut divides by |T|; recip_rank has no depth; no list, no line in the result."""
    lists, targets, _ = case
    found = measured(case)
    qrel = {str(n): {f"t{row}": 1 for row in own} for n, own in enumerate(targets) if own}
    run = {
        str(n): {f"t{row}": float(-rank) for rank, row in enumerate(own[:MRR_DEPTH])}
        for n, own in enumerate(lists)
        if own and targets[n]
    }
    measures = {"recall.10,20", "ndcg_cut.10,20", "map_cut.10,20", "success.10", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrel, measures).evaluate(run)
    assert set(theirs) == set(run)
    for user, values in theirs.items():
        n = int(user)
        ours = {name: found.per_user[name][n] for name in found.per_user}
        for k in (10, 20):
            assert ours[f"recall@{k}"] == pytest.approx(values[f"recall_{k}"])
            assert ours[f"ndcg@{k}"] == pytest.approx(values[f"ndcg_cut_{k}"])
            wanted = len(targets[n])
            assert ours[f"map@{k}"] * min(k, wanted) / wanted == pytest.approx(values[f"map_cut_{k}"])
        assert ours["hr@10"] == values["success_10"]
        assert ours["mrr"] == pytest.approx(values["recip_rank"])


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_scikit_learn_on_full_rankings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = 35
    ranked = rng.permutation(size)
    wanted = np.flatnonzero(rng.random(size) < 0.2)
    wanted = wanted if len(wanted) else np.array([3])
    found = measured(([ranked.tolist()], [wanted.tolist()], size), (5, 10, size)).means()
    relevant = np.isin(np.arange(size), wanted)
    scores = np.empty(size)
    scores[ranked] = -np.arange(size)
    for k in (5, 10):
        expected = sklearn.metrics.ndcg_score([relevant.astype(float)], [scores], k=k)
        assert found[f"ndcg@{k}"] == pytest.approx(expected)
    assert found[f"map@{size}"] == pytest.approx(sklearn.metrics.average_precision_score(relevant, scores))


probabilities = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.25, 0.5, 1.0]))  # the second: ties


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.booleans(), probabilities), min_size=1, max_size=60))
def test_classification_agrees_with_scikit_learn(examples: list[tuple[bool, float]]) -> None:
    labels = np.array([label for label, _ in examples])
    p = np.array([probability for _, probability in examples], np.float32)
    found = classify(labels, p)
    predicted = p >= 0.5
    assert (found.pairs, found.positives) == (len(labels), labels.sum())
    assert found.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, average="binary", zero_division=0
    )
    assert (found.precision, found.recall, found.f1) == pytest.approx((precision, recall, f1))
    assert found.log_loss == pytest.approx(
        sklearn.metrics.log_loss(labels, p.astype(np.float64), labels=[False, True]), abs=1e-9
    )
    if labels.all() or not labels.any():
        assert found.auc is None
    else:
        assert found.auc == pytest.approx(sklearn.metrics.roc_auc_score(labels, p))


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.booleans(), probabilities), min_size=1, max_size=150))
def test_curves_and_tables_agree_with_scikit_learn(examples: list[tuple[bool, float]]) -> None:
    labels = np.array([label for label, _ in examples])
    p = np.array([probability for _, probability in examples], np.float32).astype(np.float64)
    found = describe(labels, p, "drawn")
    assert found["confusion"] == sklearn.metrics.confusion_matrix(labels, p >= 0.5, labels=[False, True]).tolist()
    bins = calibration(labels, p)
    assert sum(one["n"] for one in bins) == len(labels)
    assert all(a["high"] < b["low"] for a, b in itertools.pairwise(bins))  # equal probabilities stay together
    assert found["ece"] == pytest.approx(
        sum(one["n"] * abs(one["observed"] - one["predicted"]) for one in bins) / len(labels)
    )
    if not labels.any():
        assert (found["pr_auc"], found["pr"], found["roc"]) == (None, [], [])
        return
    assert found["pr_auc"] == pytest.approx(sklearn.metrics.average_precision_score(labels, p))
    precision, recall, _ = sklearn.metrics.precision_recall_curve(labels, p)
    assert np.array(found["pr"]) == pytest.approx(np.stack([recall, precision], axis=1)[-2::-1], abs=1e-6)
    if not labels.all():
        false, true, _ = sklearn.metrics.roc_curve(labels, p, drop_intermediate=False)
        assert np.array(found["roc"]) == pytest.approx(np.stack([false, true], axis=1), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_table_is_that_of_scikit_learn(seed: int) -> None:
    """With no edge on an example (997 and 15 have no common divisor): there the two round differently."""
    rng = np.random.default_rng(seed)
    p = rng.random(998)
    labels = rng.random(998) < p**2
    observed, predicted = sklearn.calibration.calibration_curve(labels, p, n_bins=BINS, strategy="quantile")
    bins = calibration(labels, p)
    assert [one["observed"] for one in bins] == pytest.approx(observed.tolist())
    assert [one["predicted"] for one in bins] == pytest.approx(predicted.tolist())


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(5000) < 0.3
    scores = rng.random(5000) + labels
    roc, pr = roc_curve(labels, scores), pr_curve(labels, scores)
    assert len(roc) == len(pr) == 200
    assert (roc[0], roc[-1], pr[-1][0]) == ([0, 0], [1, 1], 1)
    area = np.trapezoid([tpr for _, tpr in roc], [fpr for fpr, _ in roc])
    assert area == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-3)


def test_perfectly_calibrated_probabilities_have_no_error() -> None:
    p = np.repeat([0.25, 0.75], 400)
    labels = np.concatenate([np.arange(400) < 100, np.arange(400) < 300])
    assert classify(labels, p).ece == 0
    assert classify(~labels, p).ece == 0.5


def test_auc_counts_a_tie_as_half() -> None:
    assert roc_auc(np.array([True, False]), np.array([0.3, 0.3])) == 0.5
    assert roc_auc(np.array([True, False, False]), np.array([0.3, 0.3, 0.1])) == 0.75


def test_nothing_to_classify_is_undefined_not_an_error() -> None:
    found = classify(np.empty(0, np.bool_), np.empty(0, np.float32))
    assert (found.pairs, found.accuracy, found.auc, found.log_loss) == (0, None, None, None)
    assert (found.pr_auc, found.ece) == (None, None)
    assert describe(np.empty(0, np.bool_), np.empty(0), "")["confusion"] == [[0, 0], [0, 0]]
