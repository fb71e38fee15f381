"""What each source of candidates adds, as `lhydra evaluate` tells it: against sets, on drawn answers and by hand."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.cli import main
from lhydra.domain import I64, Recommendation, Tier
from lhydra.evaluation.document import read_document
from lhydra.evaluation.report.page import render
from lhydra.evaluation.sources import K, Tally, described, note, unheard


def answer(candidates: I64, brought: dict[str, I64], listed: int, tier: Tier = Tier.PERSONAL) -> Recommendation:
    rows, nothing = candidates[::-1][:listed], np.zeros(listed, np.float32)
    cosines = np.zeros(len(candidates), np.float32)
    return Recommendation(rows, nothing, nothing, nothing, candidates, cosines, tier, {}, brought=brought)


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(deadline=None)
def test_counts_are_those_of_sets(seed: int, users: int) -> None:
    rng, tally = np.random.default_rng(seed), Tally()
    names, expected, whole = (
        ("nearest", "a", "b"),
        {name: np.zeros(5, int) for name in ("nearest", "a", "b")},
        [0, 0, 0],
    )
    targets = 0
    for _ in range(users):
        brought = {name: rng.permutation(80)[: rng.integers(0, 60)] for name in names}
        candidates = rng.permutation(np.unique(np.concatenate(list(brought.values()))))[:50]
        wanted = np.unique(rng.integers(0, 80, 12))
        found = answer(candidates, brought, min(25, len(candidates)))
        note(tally, found, wanted)
        targets += len(wanted)
        shortlist, top = set(candidates.tolist()), set(found.rows[:K].tolist())
        for name in names:
            own = set(brought[name].tolist()) & shortlist
            others = set().union(*(set(brought[other].tolist()) for other in names if other != name))
            hits = own & set(wanted.tolist())
            sizes = len(own), len(hits), len(hits - others), len(hits & top), len((hits & top) - others)
            expected[name] += np.array(sizes)
        whole[0] += len(shortlist)
        whole[1] += len(shortlist & set(wanted.tolist()))
        whole[2] += len(top & set(wanted.tolist()))
    told = described(tally, targets)
    assert (told["targets"], told["found"], told["listed"], told["k"]) == (targets, whole[1], whole[2], K)
    for one in told["by_source"]:
        n, *counts = expected[one["source"]].tolist()
        assert [one["found"], one["found_alone"], one["listed"], one["listed_alone"]] == counts
        assert one["candidates"] == (n / whole[0] if whole[0] else 0.0)


def test_where_nothing_is_said_all_come_from_the_nearest_or_the_most_played() -> None:
    tally, rows = Tally(), np.arange(30)
    note(tally, answer(rows, {}, 20), np.array([0, 25, 90]))  # listed are 29 to 10
    note(tally, answer(rows, {}, 20, Tier.POPULAR), np.array([12]))
    told = described(tally, 4)
    assert [(one["source"], one["found"], one["listed_alone"]) for one in told["by_source"]] == [
        ("nearest", 2, 1),
        ("popular", 1, 1),
    ]
    assert (told["found"], told["listed"]) == (3, 2)
    assert described(Tally(), 0)["by_source"] == []


def test_evaluate_prints_and_writes_the_sources(tiny_store: Path, tmp_path: Path, capsys: object) -> None:
    data, out = tiny_store.parent / "dataset", tmp_path / "a.json"
    words = ["--store", str(tiny_store), "--users", "60", "--baselines", "none", "--json", str(out)]
    assert main(["evaluate", str(data), *words]) == 0
    document = read_document(out)
    found = document["sources"]
    assert found["listed"] <= found["found"] <= found["targets"] == document["counts"]["targets"]
    assert {one["source"] for one in found["by_source"]} <= {"nearest", "popular", "co-listening"}
    assert "Sources of candidates" in capsys.readouterr().out  # type: ignore[attr-defined]
    assert "Where candidates come from" in render(document)
    del document["sources"]  # as one that was written before
    assert "Where candidates come from" not in render(document)


def test_sources_that_live_on_the_order_of_plays_say_why_they_are_empty() -> None:
    """Not of a share of 0 that was chosen, and not where one of them brought something."""
    tally: Tally = {}
    one = answer(np.arange(5), {"nearest": np.arange(5), "own": np.arange(0), "following": np.array([1])}, 3)
    note(tally, one, np.array([1]))
    assert unheard(described(tally, 1)).startswith("own: nothing here")
    alone: Tally = {}
    note(alone, answer(np.arange(5), {"nearest": np.arange(5), "co-listening": np.arange(0)}, 3), np.array([1]))
    assert unheard(described(alone, 1)) == unheard({}) == ""
