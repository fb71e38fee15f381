"""Intervals: the resamples they promise, the share of truths they hold, and that pairing helps."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.evaluation import bootstrap
from lhydra.evaluation.bootstrap import RESAMPLES, difference, interval, intervals, resampled_means
from lhydra.evaluation.compare import verdict
from lhydra.retraining.decide import decide


@pytest.mark.parametrize("n", [1, 7, 300])
def test_resampled_means_are_means_of_n_users_drawn_with_replacement(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((n, 3))
    monkeypatch.setattr(bootstrap, "_MAX_DRAWN", 64 * n)  # several passes
    found = resampled_means(values, 5)
    rng = np.random.default_rng([5, n])
    expected: list[Any] = []
    while len(expected) < RESAMPLES:
        drawn = rng.integers(n, size=(min(64, RESAMPLES - len(expected)), n))
        expected += [values[own].mean(axis=0) for own in drawn]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    worlds = rng.exponential(size=(80, 400))  # users by world; the mean of each is 1
    found = intervals(worlds, 3)
    held = np.mean([one["low"] <= 1 <= one["high"] for one in found])  # type: ignore[operator]
    assert 0.90 < held < 0.98


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 9))
def test_the_mean_lies_in_its_interval_and_the_interval_in_the_values(numbers: list[float], seed: int) -> None:
    values = np.array(numbers)
    found = interval(values, seed)
    assert found["mean"] == pytest.approx(values.mean())
    assert values.min() - 1e-9 <= found["low"] <= found["high"] <= values.max() + 1e-9  # type: ignore[operator]
    assert found == interval(values, seed)
    assert found == interval(np.append(values, np.nan), seed)  # a user without a number does not count


def test_without_users_nothing_is_known() -> None:
    assert interval(np.array([np.nan]), 0) == {"mean": None, "low": None, "high": None}
    assert difference(np.empty(0), np.empty(0), 0) == {"difference": None, "low": None, "high": None}


def test_of_one_user_no_interval_is_known_and_nothing_is_certain() -> None:
    """Every resample of one user is that user: an interval without width would say that the difference is sure."""
    assert interval(np.array([0.5, np.nan]), 0) == {"mean": 0.5, "low": None, "high": None}
    found = difference(np.array([0.2]), np.array([0.3]), 0)
    assert (found["low"], found["high"]) == (None, None)
    assert found["difference"] == pytest.approx(0.1)
    line = verdict({"a": 0.2, "b": 0.3, **found})
    assert line == "B, cascade NDCG@10 0.3000, is better than A 0.2000 by 0.1000 (of one user; not certain)"


def test_what_nobody_was_measured_by_gets_no_verdict() -> None:
    nothing = {"a": None, "b": None, "difference": None, "low": None, "high": None}
    assert verdict(nothing) == "no verdict: no user has a cascade NDCG@10 in both"  # type: ignore[arg-type]
    assert not decide({"stages": {"cascade": {"ndcg@10": nothing}}}, 0, 0.01)["helps"]
    assert not decide({"stages": {"cascade": {"ndcg@10": nothing}}}, 5, 0.01)["helps"]


@pytest.mark.parametrize(("change", "helps"), [(-0.4, False), (-0.004, True), (0.1, True)])
def test_new_tracks_do_not_excuse_what_one_user_lost(change: float, helps: bool) -> None:
    """An interval that is not known reaches nowhere."""
    of_one = {"a": 0.5, "b": 0.5 + change, "difference": change, "low": None, "high": None}
    assert decide({"stages": {"cascade": {"ndcg@10": of_one}}}, 3, 0.01)["helps"] is helps


def test_a_difference_is_paired() -> None:
    """Two stages that go up and down together: their difference is surer than either mean."""
    rng = np.random.default_rng(2)
    a = rng.random(200)
    b = a + 0.01 + 0.001 * rng.standard_normal(200)
    found, alone = difference(a, b, 0), interval(a, 0)
    assert found["difference"] == pytest.approx((b - a).mean())
    assert 0 < found["low"] < found["high"]  # type: ignore[operator]
    assert found["high"] - found["low"] < 0.05 * (alone["high"] - alone["low"])  # type: ignore[operator]
    assert difference(b, a, 0)["low"] == pytest.approx(-found["high"])  # type: ignore[operator]
