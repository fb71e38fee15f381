"""The benchmark of similar tracks: what is wanted, how lists are measured, and its neighbours, by plain counting."""

from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from benchmarks import similar
from lhydra.data.dataset import Dataset


def pairs(counts: csr_matrix) -> dict[tuple[int, int], float]:
    found = counts.tocoo()
    return dict(zip(zip(found.row.tolist(), found.col.tolist(), strict=True), found.data.tolist(), strict=True))


def test_what_came_next_counts_once_a_session() -> None:
    rng, plays = np.random.default_rng(0), 600
    order = np.sort(rng.integers(0, 9, plays))
    events = SimpleNamespace(
        user=order // 3,
        session=np.where(order % 3 == 2, -1, order % 3),
        track=rng.integers(0, 12, plays),
        fold=rng.choice([0, 2], plays),
    )
    dataset: Any = SimpleNamespace(n_tracks=12, info=SimpleNamespace(timed=True), events=events)
    sessions: dict[int, list[int]] = defaultdict(list)
    for number, track, fold in zip(order.tolist(), events.track.tolist(), events.fold.tolist(), strict=True):
        if fold == 2 and number % 3 != 2:
            sessions[number].append(track)
    expected: Counter[tuple[int, int]] = Counter()
    for tracks in sessions.values():
        near = {(track, other) for at, track in enumerate(tracks) for other in tracks[at + 1 : at + 1 + similar.NEXT]}
        expected.update((track, other) for track, other in near if track != other)
    assert max(expected.values()) > 1
    assert pairs(similar.held_out(dataset, 2)) == expected


def test_what_listeners_went_on_to_play(tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(tiny_dataset.info), "timed", False)
    plays = tiny_dataset.plays
    heard: dict[int, set[int]] = defaultdict(set)
    later: dict[int, set[int]] = defaultdict(set)
    for user, track, fold in zip(plays.user.tolist(), plays.track.tolist(), plays.fold.tolist(), strict=True):
        if fold < 2:
            (later if fold else heard)[user].add(track)
    expected = Counter((seed, other) for user in later for seed in heard[user] for other in later[user] - {seed})
    assert expected
    assert pairs(similar.held_out(tiny_dataset, 1)) == expected


def test_quality_of_known_lists() -> None:
    gains = csr_matrix(np.array([[0, 3, 1, 0], [2, 0, 0, 0]], np.float32))
    lists = np.array([[2, 3, 1, *[-1] * 7], [3, 2, 1, *[-1] * 7]])
    ndcg, hit = similar.quality(lists, similar.Wanted(np.array([0, 1]), gains))
    assert ndcg.tolist() == pytest.approx([(1 + 3 / 2) / (3 + 1 / np.log2(3)), 0])
    assert hit.tolist() == [1, 0]
    best = np.array([[1, 2, *[-1] * 8], [0, *[-1] * 9]])
    assert similar.quality(best, similar.Wanted(np.array([0, 1]), gains))[0].tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("shrinkage", [0, 3.5])
def test_neighbours_are_the_nearest_by_shrunk_cosine(shrinkage: float) -> None:
    rng = np.random.default_rng(3)
    plays = (rng.random((30, 25)) < 0.2).astype(np.float32)
    together, own = plays.T @ plays, plays.sum(0)
    found = similar.neighbours(csr_matrix(plays), shrinkage)(np.arange(25))
    for seed in range(25):
        cosine = [
            0 if other == seed else together[seed, other] / (np.sqrt(own[seed] * own[other]) + shrinkage + 1e-9)
            for other in range(25)
        ]
        best = sorted((value for value in cosine if value > 0), reverse=True)[: similar.K]
        listed = [other for other in found[seed].tolist() if other >= 0]
        assert len(set(listed)) == len(listed) == len(best)
        assert [cosine[other] for other in listed] == pytest.approx(best, rel=1e-5)


def test_seeds_have_listeners_and_something_wanted() -> None:
    gains = csr_matrix(np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0]], np.float32))
    assert similar.draw(gains, np.array([9, 9, 0]), 10, 0).seeds.tolist() == [0]
    assert similar.draw(gains, np.array([9, 9, 2]), 1, 0).seeds.tolist() == [0, 2]
