"""Mistakes: what is missed where, against brute force over users and targets."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lhydra.data.dataset import TRAIN, Dataset
from lhydra.domain import I64, Hashes, track_hashes
from lhydra.evaluation import mistakes
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Run, as_rows, find_targets
from lhydra.evaluation.ties import none_yet
from tests.test_leaks import world


class Catalog:
    """Rows in the order of the ids given."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids
        self._rows = {int(value): row for row, value in enumerate(track_hashes(ids))}

    removed = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def track_ids(self, rows: I64) -> list[str]:
        return [self.ids[row] for row in rows]

    def rows(self, hashes: Hashes) -> I64:
        return np.array([self._rows.get(int(value), -1) for value in hashes], np.int64)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Catalog, Run]:
    """Random candidates and lists; the catalog lacks 20 tracks of the dataset and has 10 more; some have no title."""
    made = world("random")
    made.tracks["name"][1][7] = None
    made.tracks["artist"][1][8] = None
    dataset = made.write(tmp_path_factory.mktemp("mistakes") / "dataset")
    rng = np.random.default_rng(0)
    catalog = Catalog([*rng.permutation(dataset.track_ids)[20:].tolist(), *(f"new{n}" for n in range(10))])
    rows = catalog.rows(track_hashes(dataset.track_ids))
    targets = find_targets(dataset, "test")
    n = len(targets)
    candidates = np.stack([rng.permutation(len(catalog))[:80] for _ in range(n)]).astype(np.int32)
    candidates[:, 70:] = -1
    candidates[3] = -1
    candidates[4, 5:] = -1
    lists = np.full((n, 20), -1, np.int64)
    for user, own in enumerate(candidates):
        some = rng.permutation(own[own >= 0])[:20]
        lists[user, : len(some)] = some
    order = np.lexsort(
        (as_rows(rows, len(catalog))[targets.tracks], np.repeat(targets.users, np.diff(targets.offsets)))
    )
    wanted = as_rows(rows, len(catalog))[targets.tracks][order]
    metrics = {"cascade": rank_metrics(lists, targets.offsets, wanted, len(catalog))}
    nothing = np.empty(0, np.float32)
    run = Run(
        as_of="test",
        targets=targets,
        rows=rows,
        wanted=wanted,
        catalogue_size=len(catalog),
        lists={"cascade": lists, "retrieval": candidates[:, :20].astype(np.int64)},
        candidates=candidates,
        tiers=np.ones(n, np.int8),
        metrics=metrics,
        labels=nothing > 0,
        probabilities=nothing,
        ties=none_yet(n),
    )
    return dataset, catalog, run


def stages(dataset: Dataset, catalog: Catalog, run: Run) -> list[tuple[int, int, str]]:
    """(user's place, track, stage) of each target, one by one, by track id."""
    found = []
    for n in range(len(run.targets)):
        top = {catalog.ids[row] for row in run.lists["cascade"][n, :10] if row >= 0}
        candidates = {catalog.ids[row] for row in run.candidates[n] if row >= 0}
        for track in run.targets.tracks[run.targets.of(n)]:
            track_id = dataset.track_ids[track]
            stage = "hit" if track_id in top else "lost_in_rerank" if track_id in candidates else "lost_in_retrieval"
            found.append((n, int(track), stage))
    return found


@pytest.mark.parametrize("block", [4096, 7, 1])
def test_every_target_is_hit_or_lost_in_one_stage(
    case: tuple[Dataset, Catalog, Run], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mistakes, "_USER_BLOCK", block)
    expected = Counter(stage for *_, stage in stages(*case))
    found: dict[str, Any] = {**mistakes.analyse(*case)}
    assert found["by_stage"] == {"targets": len(case[2].targets.tracks), **expected}
    assert min(expected.values()) > 20
    for key in found["by_stage"]:
        assert sum(row[key] for row in found["by_popularity"]) == found["by_stage"][key]


def test_bins_are_train_listeners(case: tuple[Dataset, Catalog, Run]) -> None:
    dataset, *_ = case
    plays = dataset.plays
    listeners = Counter(plays.track[plays.fold == TRAIN].tolist())
    bounds = [(0, 0), (1, 5), (6, 20), (21, 100), (101, 500), (501, 10**9)]
    names = ["0", "1–5", "6–20", "21–100", "101–500", "over 500"]
    expected: dict[str, Counter[str]] = {}
    for _, track, stage in stages(*case):
        at = next(n for n, (low, high) in enumerate(bounds) if low <= listeners[track] <= high)
        expected.setdefault(f"{names[at]} listeners", Counter())[stage] += 1
    found: list[dict[str, Any]] = [{**row} for row in mistakes.analyse(*case)["by_popularity"]]
    assert [row["bin"] for row in found] == [f"{name} listeners" for name in names if f"{name} listeners" in expected]
    for row in found:
        counts = expected[row["bin"]]
        assert row["targets"] == counts.total()
        assert {stage: row[stage] for stage in counts} == counts


def test_tracks_missed_most(case: tuple[Dataset, Catalog, Run]) -> None:
    dataset, *_ = case
    wanted, got = Counter[int](), Counter[int]()
    for _, track, stage in stages(*case):
        wanted[track] += 1
        got[track] += stage == "hit"
    ranked = sorted(wanted, key=lambda track: (got[track] - wanted[track], track))[: mistakes.MAX_TRACKS]
    found = mistakes.analyse(*case)["tracks"]
    assert [row["track_id"] for row in found] == [dataset.track_ids[track] for track in ranked]
    assert [(row["targets"], row["found"]) for row in found] == [(wanted[track], got[track]) for track in ranked]


def test_users_served_worst(case: tuple[Dataset, Catalog, Run]) -> None:
    dataset, catalog, run = case
    found = mistakes.analyse(*case)["users"]
    ndcg = run.metrics["cascade"].per_user["ndcg@10"]
    size = np.diff(run.targets.offsets)
    ranked = sorted(np.flatnonzero(size >= 3), key=lambda n: (ndcg[n], -size[n], n))[: mistakes.MAX_USERS]
    assert [user["user_id"] for user in found] == [dataset.user_ids[run.targets.users[n]] for n in ranked]
    name, artist = (dataset.tracks[column].to_pylist() for column in ("name", "artist"))

    def title(track: int) -> str:
        if name[track] and artist[track]:
            return f"{name[track]} – {artist[track]}"
        return name[track] or dataset.track_ids[track]

    place = {track_id: track for track, track_id in enumerate(dataset.track_ids)}
    for user, n in zip(found, ranked, strict=True):
        top = [catalog.ids[row] for row in run.lists["cascade"][n, :10] if row >= 0]
        assert user["list"] == [title(place[track_id]) if track_id in place else track_id for track_id in top]
        targets = run.targets.tracks[run.targets.of(int(n))]
        missed = [title(track) for track in targets if dataset.track_ids[track] not in top]
        assert user["missed"] == missed[: mistakes.MAX_MISSED]
        assert user["ndcg@10"] == ndcg[n]
        plays = dataset.plays.where((dataset.plays.user == run.targets.users[n]) & (dataset.plays.fold == TRAIN))
        newest = plays.track[np.argsort(-plays.time, kind="stable")][: mistakes.MAX_HISTORY]
        assert user["history"] == [title(track) for track in newest]


def test_without_enough_targets_the_richest_count(case: tuple[Dataset, Catalog, Run]) -> None:
    dataset, catalog, run = case
    targets = run.targets
    one = replace(targets, offsets=np.arange(len(targets) + 1), tracks=targets.tracks[targets.offsets[:-1]])
    assert len(mistakes.analyse(dataset, catalog, replace(run, targets=one))["users"]) == mistakes.MAX_USERS


def test_a_dataset_without_titles_goes_by_ids(tmp_path: Path, case: tuple[Dataset, Catalog, Run]) -> None:
    made = world("random")
    del made.tracks["name"]
    dataset = made.write(tmp_path / "dataset")
    found = mistakes.analyse(dataset, case[1], case[2])
    assert {row["title"] for row in found["tracks"]} <= set(dataset.track_ids)
