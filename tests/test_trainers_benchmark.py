"""The benchmark of other recommender libraries: how their lists are judged, and what is said of one that is absent."""

import sys

import numpy as np

from benchmarks import trainers
from lhydra.data.dataset import TEST, Dataset


def test_the_tracks_that_a_user_newly_plays_are_wanted(tiny_dataset: Dataset) -> None:
    plays = tiny_dataset.plays
    lists = []
    for user in range(len(tiny_dataset.user_ids)):
        known = plays.track[(plays.user == user) & (plays.fold != TEST)]
        new = np.setdiff1d(plays.track[(plays.user == user) & (plays.fold == TEST)], known)
        others = np.setdiff1d(np.arange(tiny_dataset.n_tracks), new)
        lists.append(np.concatenate([new, others])[: trainers.K].tolist())
    assert trainers.ndcg(tiny_dataset, lists) == 1
    assert trainers.ndcg(tiny_dataset, [one[::-1] for one in lists]) < 1
    assert trainers.ndcg(tiny_dataset, [[-1] * trainers.K] * len(lists)) == 0


def test_a_library_that_is_absent_is_skipped_with_what_was_said(tiny_dataset: Dataset) -> None:
    found = trainers.peer(tiny_dataset, "import no_such_library", sys.executable, 1, 0)
    assert trainers.told(found, 0.5) == "skipped: ModuleNotFoundError: No module named 'no_such_library'"
    assert "no/such/python" in trainers.peer(tiny_dataset, "", "no/such/python", 1, 0)["skipped"]


def test_when_a_library_is_as_good_is_told() -> None:
    found = {"epochs": [(1.0, 0.1), (2.0, 0.3), (3.0, 0.2)], "plays_per_s": 1000}
    assert "0.3000 at best, after 2 of 3 s; Lhydra's 0.2000 after 2 s; 1,000 plays/s" in trainers.told(found, 0.2)
    assert "Lhydra's 0.4000 not reached" in trainers.told(found, 0.4)
