"""Cohorts, hard cases, beyond accuracy and cascade loss: each against its definition spelt out on a small world."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lhydra.data.dataset import TRAIN, Column, Dataset
from lhydra.domain import I64, Tier
from lhydra.evaluation import cascade, cohorts
from lhydra.evaluation.beyond import K, beyond_accuracy, inter_user_overlap, intra_list_diversity, kl_calibration
from lhydra.evaluation.evaluate import evaluate
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Run, as_rows, ask, find_targets
from tests.test_evaluate import FakeCatalog, FakeRecommender, left_out, names, random_plays, write_dataset

World = tuple[Dataset, FakeRecommender, Run]
N_USERS, N_TRACKS = 60, 90


@pytest.fixture
def world(tmp_path: Path) -> World:
    """60 users with age and country, 90 tracks with tags; the catalog lacks t005 and has another order."""
    plays = [play for play in random_plays(4, N_USERS, N_TRACKS) if play[2] != TRAIN or play[0] > 2 or play[0] == 1]
    dataset = write_dataset(tmp_path / "dataset", names("u", N_USERS), names("t", N_TRACKS), plays)
    ages: list[float | None] = [None if user % 29 == 0 else 20 + user / 2 for user in range(N_USERS)]
    countries = [None if user % 5 == 0 else f"c{user % 3}" for user in range(N_USERS)]
    tags = [[] if track % 10 == 0 else [f"g{track % 4}", *(["rare"] * (track % 8 == 1))] for track in range(N_TRACKS)]
    users = pa.table({"user_id": dataset.user_ids, "age": ages, "country": countries})
    tracks = pa.table({"track_id": dataset.track_ids, "tags": pa.array(tags, pa.list_(pa.string()))})
    pq.write_table(users, dataset.path / "users.parquet")
    pq.write_table(tracks, dataset.path / "tracks.parquet")
    info = replace(
        dataset.info,
        user_columns=(Column("age", "numeric"), Column("country", "categorical")),
        track_columns=(Column("tags", "multi"),),
    )
    dataset = Dataset(dataset.path, info)
    recommender = FakeRecommender(FakeCatalog([track for track in names("t", N_TRACKS)[::-1] if track != "t005"]))
    run = ask(recommender, dataset, find_targets(dataset, "test"), as_of="test", ks=(10, 20), seed=0)
    return dataset, recommender, run


def listeners(dataset: Dataset) -> I64:
    plays = dataset.plays
    return np.bincount(plays.track[plays.fold == TRAIN], minlength=N_TRACKS)


def test_cohorts_are_means_over_their_users(world: World) -> None:
    dataset, _, run = world
    found: dict[Any, dict[str, Any]] = {(one["by"], one["name"]): {**one} for one in cohorts.cohorts(dataset, run, 0)}
    users = run.targets.users.tolist()
    per_user = run.metrics["cascade"].per_user

    def check(by: str, name: str, belongs: Callable[[int], bool]) -> None:
        members = np.array([belongs(user) for user in users])
        assert found[by, name]["users"] == members.sum()
        for metric in ("ndcg@10", "recall@20"):
            one = found[by, name][metric]
            assert one["mean"] == pytest.approx(per_user[metric][members].mean())
            assert one["low"] <= one["mean"] <= one["high"]

    check("age group", "25-34", lambda user: 10 <= user < 30 and user != 29)
    check("age group", "35-44", lambda user: 30 <= user < 50)
    check("country", "c0", lambda user: user % 5 != 0 and user % 3 == 0)
    check("country", "c2", lambda user: user % 5 != 0 and user % 3 == 2)
    check("tier", "personal", lambda user: True)
    assert ("age group", "18-24") not in found  # too few users
    activity = [one for (by, _), one in found.items() if by == "activity"]
    assert sum(one["users"] for one in activity) == len(users)
    assert len(activity) in (3, 4)


def test_the_favourite_genre_is_that_of_most_train_tracks(world: World) -> None:
    dataset, _, run = world
    found = {one["name"]: one["users"] for one in cohorts.cohorts(dataset, run, 0) if one["by"] == "genre"}
    plays, tags = dataset.plays, dataset.tracks["tags"].to_pylist()
    sizes: dict[str, int] = {}
    for user in run.targets.users:
        shares: dict[str, float] = {}
        for track in plays.track[(plays.user == user) & (plays.fold == TRAIN)]:
            for tag in tags[track]:
                shares[tag] = shares.get(tag, 0) + 1 / len(tags[track])
        best = [tag for tag in shares if shares[tag] > max(shares.values()) - 1e-9]
        if best:
            order = ["g1", "rare", "g2", "g3", "g0"]  # as the tracks name them first
            favourite = min(best, key=order.index)
            sizes[favourite] = sizes.get(favourite, 0) + 1
    assert found == {name: size for name, size in sizes.items() if size >= cohorts.FEWEST_USERS}


def test_hard_cases_are_judged_on_their_targets_alone(world: World) -> None:
    dataset, _, run = world
    found: dict[str, Any] = {**cohorts.slices(dataset, run, 0)}
    heard, targets = listeners(dataset), run.targets
    numbers = as_rows(run.rows, run.catalogue_size)
    own = np.bincount(dataset.plays.user[dataset.plays.fold == TRAIN], minlength=N_USERS)[targets.users]
    coldest = set(np.argsort(own, kind="stable")[: len(own) // 5].tolist())
    kept: dict[str, Callable[[int, int], bool]] = {
        "few_play_tracks": lambda n, track: heard[track] <= 5,
        "new_tracks": lambda n, track: heard[track] == 0,
        "new_users": lambda n, track: own[n] == 0,
        "cold_users": lambda n, track: n in coldest,
    }
    assert (own == 0).any()
    for name, keep in kept.items():
        wanted = [
            sorted(int(numbers[track]) for track in targets.tracks[targets.of(n)] if keep(n, track))
            for n in range(len(targets))
        ]
        some = [n for n in range(len(targets)) if wanted[n]]
        assert found[name]["targets"] == sum(map(len, wanted))
        assert found[name]["users"] == len(some)
        if some:
            offsets = np.concatenate([[0], np.cumsum([len(wanted[n]) for n in some])])
            flat = np.array([row for n in some for row in wanted[n]])
            means = rank_metrics(run.lists["cascade"][some], offsets, flat, run.catalogue_size).means()
            for metric in ("ndcg@10", "recall@20"):
                assert found[name][metric] == pytest.approx(means[metric])
                assert found[name]["intervals"][metric]["mean"] == found[name][metric]
        else:
            assert found[name]["ndcg@10"] is None


def test_beyond_accuracy_is_what_its_definitions_say(world: World) -> None:
    dataset, recommender, run = world
    vectors = np.random.default_rng(0).standard_normal((run.catalogue_size, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = beyond_accuracy(dataset, run, vectors, 0)
    heard, plays, tags = listeners(dataset), dataset.plays, dataset.tracks["tags"].to_pylist()
    place = {track_id: position for position, track_id in enumerate(dataset.track_ids)}
    lists = [[place[name] for name in recommender.catalog.track_ids(own[:K])] for own in run.lists["cascade"]]
    histories = [plays.track[(plays.user == user) & (plays.fold == TRAIN)] for user in run.targets.users]
    train_users = len(set(plays.user[plays.fold == TRAIN]))
    assert found["coverage@10"] == len({track for own in lists for track in own}) / run.catalogue_size
    lifts = [
        heard[own].mean() / heard[history].mean() for own, history in zip(lists, histories, strict=True) if len(history)
    ]
    assert found["popularity_lift"] == pytest.approx(np.mean(lifts))
    bits = [-math.log2(max(1, heard[track]) / train_users) for own in lists for track in own]
    assert found["novelty"] == pytest.approx(np.mean(bits))
    cosines = vectors[run.lists["cascade"][:, :K]] @ vectors[run.lists["cascade"][:, :K]].transpose(0, 2, 1)
    off = ~np.eye(K, dtype=bool)
    assert found["intra_list_diversity"] == pytest.approx(1 - cosines[:, off].mean(), abs=1e-5)

    def shares(tracks: Any) -> dict[str, float]:
        out: dict[str, float] = {}
        for track in tracks:
            for tag in set(tags[track]):
                out[tag] = out.get(tag, 0) + 1 / len(set(tags[track]))
        return {tag: value / sum(out.values()) for tag, value in out.items()}

    divergences = []
    for own, history in zip(lists, histories, strict=True):
        p, q = shares(history), shares(own)
        if p and q:
            divergences.append(sum(s * math.log(s / (0.99 * q.get(tag, 0) + 0.01 * s)) for tag, s in p.items()))
    assert found["genre_calibration"] == pytest.approx(np.mean(divergences))
    assert found["alarms"] == []


def test_the_same_list_for_everybody_raises_an_alarm(world: World) -> None:
    dataset, _, run = world
    same = np.tile(np.arange(20), (len(run.targets), 1))
    found = beyond_accuracy(dataset, replace(run, lists={"cascade": same}), None, 0)
    assert found["inter_user_overlap"] == 1
    assert found["intra_list_diversity"] is None
    assert found["alarms"] == [
        "two users have 100% of their top 10 in common: the lists hardly depend on who is asking"
    ]


def test_overlap_is_over_pairs_of_different_users() -> None:
    assert inter_user_overlap(np.array([[0, 1], [1, 2]]), 0) == 0.5
    assert inter_user_overlap(np.array([[0, 1], [1, -1], [-1, -1]]), 0) == 1  # one of one; no list does not count
    assert inter_user_overlap(np.array([[0, 1]]), 0) is None
    lists = np.array([[0, 1], [2, 3], [4, 5], [0, 5]])
    assert inter_user_overlap(lists, 0) == pytest.approx(1 / 6, abs=0.02)  # 2 of 6 pairs share a half


def test_diversity_and_calibration_at_their_ends() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert intra_list_diversity(np.array([[0, 1, -1]]), vectors) == pytest.approx(0)
    assert intra_list_diversity(np.array([[0, 2, -1]]), vectors) == pytest.approx(1)
    assert intra_list_diversity(np.array([[0, -1, -1]]), vectors) is None
    same = np.array([[0.25, 0.75], [0, 0]])
    assert kl_calibration(same, same) == pytest.approx(0)
    assert kl_calibration(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])) == pytest.approx(math.log(100))


def test_the_head_alone_and_each_depth_against_brute_force(world: World) -> None:
    dataset, recommender, run = world
    recommender.queries.clear()
    chosen = np.arange(1, len(run.targets), 2)
    lists, loss = cascade.head_alone(recommender, dataset, run, chosen, (10, 20))
    assert [at["depth"] for at in loss["curve"]] == [10, 20, 50, 89]
    ndcg: dict[int, list[float]] = {}
    overlap: dict[int, list[float]] = {}
    for n, query, found in zip(chosen, recommender.queries, lists, strict=True):
        retrieval, logits = recommender.scores(query.state)
        free = np.flatnonzero(~np.isin(recommender.catalog.hashes, left_out(query)))
        everything = free[np.lexsort((free, -logits[free]))]
        assert found.tolist() == everything[:20].tolist()
        wanted = run.wanted[run.targets.of(int(n))]
        for at in loss["curve"]:
            some = free[np.argsort(-retrieval[free], kind="stable")][: at["depth"]]
            some = some[np.lexsort((some, -logits[some]))][:10]
            overlap.setdefault(at["depth"], []).append(len(set(some) & set(everything[:10])) / 10)
            one = rank_metrics(some[None], np.array([0, len(wanted)]), wanted, run.catalogue_size, (10,))
            ndcg.setdefault(at["depth"], []).append(one.means()["ndcg@10"])
    for at in loss["curve"]:
        assert at["overlap"] == pytest.approx(np.mean(overlap[at["depth"]]))
        assert at["ndcg"] == pytest.approx(np.mean(ndcg[at["depth"]]))
        assert at["ndcg_difference"] == pytest.approx(at["ndcg"] - loss["full"]["ndcg@10"])
    assert (loss["curve"][-1]["overlap"], loss["curve"][-1]["ndcg_difference"]) == (1, 0)  # everything is a candidate
    assert loss["users"] == len(chosen)


def test_a_large_catalogue_is_scored_for_a_seeded_sample_of_users(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, recommender, _ = world
    assert cascade.draw_users(50, 1000, 0).tolist() == list(range(50))
    some = cascade.draw_users(10_000, 10**6, 3)
    assert len(some) == 100
    assert some.tolist() == sorted(set(cascade.draw_users(10_000, 10**6, 3).tolist()))
    assert some.tolist() != cascade.draw_users(10_000, 10**6, 4).tolist()
    whole = evaluate(recommender, dataset)
    monkeypatch.setattr(cascade, "_MAX_PAIRS", 0)
    monkeypatch.setattr(cascade, "_FEWEST_USERS", 15)
    monkeypatch.setattr(cascade, "SCORE_BLOCK", 7)
    found = evaluate(recommender, dataset)
    own = found["per_user"]["stages"]["head"]["ndcg@10"]
    kept = [value for value in own if value is not None]
    assert len(kept) == found["counts"]["users_of_head_alone"] == found["cascade_loss"]["users"] == 15
    assert found["ranking"]["head"]["ndcg@10"]["mean"] == pytest.approx(np.mean(kept), abs=1e-6)
    everybody = whole["per_user"]["stages"]["head"]["ndcg@10"]
    assert all(a is None or a == b for a, b in zip(own, everybody, strict=True))


def test_tiers_are_cohorts(world: World) -> None:
    dataset, _, run = world
    tiers = np.where(np.arange(len(run.targets)) < 20, Tier.POPULAR, Tier.HISTORY).astype(np.int8)
    found = {one["name"]: one["users"] for one in cohorts.cohorts(dataset, replace(run, tiers=tiers), 0)}
    assert (found["popular"], found["history"]) == (20, len(run.targets) - 20)
