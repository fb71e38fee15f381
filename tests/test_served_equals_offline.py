"""A live server with two workers gives the lists that `lhydra recommend --as-of now` writes, and follows plays."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra_client import Client, Play, Recommendations
from tests.test_supervisor import Server, running

N_USERS, K = 200, 20


@pytest.fixture(scope="module")
def server(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    store = folder / "store"
    shutil.copytree(tiny_store, store)  # plays are recorded here
    serve = ("-m", "lhydra.cli", "serve", store, "--port", "0", "--workers", "2")
    with running(serve, folder / "log") as started:
        yield started


def ids(found: Recommendations) -> list[str]:
    return [track.track_id for track in found.tracks]


@pytest.mark.parametrize(("repeat", "n"), [("exclude", N_USERS), ("allow", 40), ("decay", 40), ("learnt", 40)])
def test_ids_and_scores_are_those_of_recommend(
    server: Server, tiny_dataset: Dataset, tiny_store: Path, tmp_path: Path, repeat: Any, n: int
) -> None:
    users, out = tiny_dataset.user_ids[:n], tmp_path / "lists.csv"
    now_s = int(tiny_dataset.plays.time.max()) + 20 * 86_400
    options = ["--users", ",".join(users), "--as-of", "now", "--k", str(K), "--out", str(out)]
    options += ["--repeat", repeat, "--now-s", str(now_s)]
    assert main(["recommend", str(tiny_dataset.path), str(tiny_store), *options]) == 0
    offline: dict[str, list[tuple[str, float]]] = {}
    with out.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            offline.setdefault(row["user_id"], []).append((row["track_id"], float(row["score"])))
    assert len(offline) == n
    with Client(server.address, timeout_s=60) as client:
        for user in users:
            found = client.recommend(user, k=K, repeat=repeat, now_s=now_s)
            assert ids(found) == [track_id for track_id, _ in offline[user]], user
            assert [track.score for track in found.tracks] == pytest.approx(
                [score for _, score in offline[user]], abs=1e-5
            )


def test_a_recorded_play_changes_the_next_list_on_every_worker(server: Server, tiny_dataset: Dataset) -> None:
    user = tiny_dataset.user_ids[-1]
    with Client(server.address, timeout_s=60) as client:
        before = client.recommend(user, k=K)
        played = before.tracks[0].track_id
        assert client.record_plays([Play(user, played)]).recorded == 1
    lists = []
    for _ in range(12):  # a connection each: they spread over the workers
        with Client(server.address, timeout_s=60) as client:
            after = client.recommend(user, k=K)
            lists.append(ids(after))
            scores = {track.track_id: track.score for track in after.tracks}
    assert all(found == lists[0] for found in lists)
    assert played not in lists[0]
    kept = {track.track_id: track.score for track in before.tracks if track.track_id in scores}
    assert kept
    assert any(scores[track_id] != score for track_id, score in kept.items())  # not only left out: ranked anew


def test_tiers_say_what_is_known(server: Server, tiny_dataset: Dataset) -> None:
    profile: dict[str, str | float] = {"age": 30, "gender": "female", "country": "Chile"}
    with Client(server.address, timeout_s=60) as client:
        tiers = {
            "nothing": client.recommend("nobody").tier,
            "profile": client.recommend("nobody", profile=profile).tier,
            "history": client.recommend("nobody", history=tiny_dataset.track_ids[:3]).tier,
        }
        assert not set(tiny_dataset.track_ids[:3]) & set(
            ids(client.recommend("nobody", k=1000, history=tiny_dataset.track_ids[:3]))
        )
    assert {name: tier.lower() for name, tier in tiers.items()} == {
        "nothing": "popular",
        "profile": "segment",
        "history": "history",
    }


def test_any_k_gives_that_many_distinct_tracks_or_all(server: Server, tiny_dataset: Dataset) -> None:
    n = len(tiny_dataset.track_ids)
    with Client(server.address, timeout_s=60) as client:
        for k in (1, 2, 10, 99, 100, 101, n - 1, n, n + 1, 1000):
            found = ids(client.recommend("nobody", k=k))
            assert len(found) == len(set(found)) == min(k, n)
