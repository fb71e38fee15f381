"""Laws on a synthetic world with planted taste: the served cascade has learned something, and a play counts at once."""

from collections.abc import Callable

import numpy as np
import pytest

from lhydra.bundle import catalog_writer
from lhydra.bundle.model import Model
from lhydra.data.dataset import TEST, TRAIN, Dataset, user_states
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.data.synth import write_world
from lhydra.domain import I64, Play, Query, Tier, UserState, no_hashes, no_history
from lhydra.evaluation.bootstrap import F64, difference
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Targets, find_targets
from lhydra.recommender import Recommender
from lhydra.training.config import TrainSettings
from lhydra.training.train import train
from lhydra.users.record import UserRecord
from tests.quick_export import quickly

CONFIG = TrainSettings(epochs=5, dim=32, hidden=32, threads=1, head_epochs=2, depth=100, moments=1_000)
K = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """1,500 users, 800 tracks, 60,000 plays of two years; see docs/synthetic-world.md."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "source", users=1_500, tracks=800, plays=60_000, seed=1)
    prepare(folder / "source", folder / "dataset", PrepareSettings())
    return Dataset.open(folder / "dataset")


@pytest.fixture(scope="module")
def recommender(world: Dataset) -> Recommender:
    folder = world.path.parent
    with quickly():
        train(world, folder / "model", CONFIG)
    (folder / "catalog").mkdir()
    return Recommender(
        catalog_writer.unpublished_bundle(Model.open(folder / "model"), world, folder / "catalog"), CONFIG.depth
    )


@pytest.fixture(scope="module")
def targets(world: Dataset) -> Targets:
    return find_targets(world, "test")


def ndcg(lists: I64, targets: Targets, world: Dataset) -> F64:
    """(n,) by user; rows of the catalog are positions in the tracks table here: both go by track id."""
    return rank_metrics(lists, targets.offsets, targets.tracks, len(world.track_ids), (K,)).per_user[f"ndcg@{K}"]


def popular(world: Dataset, heard: list[set[int]]) -> I64:
    """The K tracks with most train listeners that each user has not heard."""
    train_plays = world.plays.where(world.plays.fold == TRAIN)
    listeners = np.bincount(train_plays.track, minlength=len(world.track_ids))
    order = np.argsort(-listeners, kind="stable").tolist()
    return np.array([[row for row in order if row not in own][:K] for own in heard])


def asked(
    recommender: Recommender, world: Dataset, targets: Targets, change: Callable[[UserState], UserState]
) -> tuple[I64, list[set[int]]]:
    """(lists (n, K), heard rows of each) of the users of `targets` as of the test fold, after `change`."""
    lists, heard = [], []
    for _, state in user_states(world, "test", positions=targets.users):
        state = change(state)
        lists.append(recommender.recommend(Query(K, state, True, state.heard)).rows)
        heard.append(set(recommender.catalog.rows(state.heard).tolist()))
    return np.stack(lists), heard


def test_the_cascade_beats_popularity(recommender: Recommender, world: Dataset, targets: Targets) -> None:
    lists, heard = asked(recommender, world, targets, lambda state: state)
    found = difference(ndcg(popular(world, heard), targets, world), ndcg(lists, targets, world), seed=0)
    assert len(targets) > 500
    assert found["low"] is not None
    assert found["low"] > 0.02  # it is not close


def test_new_users_get_lists_from_their_profile(recommender: Recommender, world: Dataset, targets: Targets) -> None:
    """Nobody's plays, only age, gender and place: better than the most popular tracks, for the same held plays."""

    def forgotten(state: UserState) -> UserState:
        return UserState(state.profile, no_history(), no_hashes())

    held = everything_new(world)
    lists, heard = asked(recommender, world, held, forgotten)
    assert not any(heard)
    found = difference(ndcg(popular(world, heard), held, world), ndcg(lists, held, world), seed=0)
    assert found["low"] is not None
    assert found["low"] > 0
    tiers = [
        recommender.recommend(Query(K, forgotten(state), True)).tier
        for _, state in user_states(world, "test", positions=held.users[:20])
    ]
    assert set(tiers) == {Tier.SEGMENT}
    assert len({tuple(row) for row in lists.tolist()}) > 100  # and lists of their own, not one for all


def everything_new(world: Dataset) -> Targets:
    """All test plays of users who have any: of a user without a past everything is new."""
    plays = world.plays.where(world.plays.fold == TEST)
    users, counts = np.unique(plays.user, return_counts=True)
    order = np.lexsort((plays.track, plays.user))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Targets(users.astype(np.int64), offsets, plays.track[order].astype(np.int64), 0)


def test_users_of_one_profile_who_never_played_agree(recommender: Recommender) -> None:
    """What comes of a profile comes of the profile: the same answer again, another for another age."""

    def rows(age: float) -> tuple[int, ...]:
        return tuple(recommender.recommend(Query(K, UserState({"age": age, "country": "Brazil"}))).rows)

    assert rows(20) == rows(20)
    assert rows(20) != rows(65)


def recorded(recommender: Recommender, world: Dataset, state: UserState, track: int, *, skipped: bool) -> UserState:
    """The state after a play of the track at row `track`, later than all others."""
    (track_id,) = recommender.catalog.track_ids(np.array([track]))
    play = Play("e", "u", track_id, int(world.plays.time.max()) + 60, skipped=skipped)
    return UserRecord(state).with_plays([play])[0].state


def test_a_recorded_play_moves_the_next_list_towards_it(
    recommender: Recommender, world: Dataset, targets: Targets
) -> None:
    """One of the candidates below the list, played to the end against skipped: the next list is more like it.

    A skipped play is heard and nothing more, so the one difference between the two is the play in the history. The
    law holds for all users, and for those alone to whose taste one more play adds little.
    """
    catalog, rng, n = recommender.catalog, np.random.default_rng(0), 700
    genres = np.array([genre or "" for genre in world.tracks["genre"].to_pylist()])
    cosine, genre, plays = np.zeros((2, n)), np.zeros((2, n)), np.zeros(n)
    for user, (_, state) in enumerate(user_states(world, "test", positions=targets.users[:n])):
        plays[user] = len(state.history)
        candidates = recommender.recommend(Query(100, state, True, state.heard)).rows
        played = int(rng.choice(candidates[2 * K :]))
        for how, skipped in enumerate((True, False)):
            after = recorded(recommender, world, state, played, skipped=skipped)
            rows = recommender.recommend(Query(K, after, True, after.heard)).rows
            assert played not in rows
            cosine[how, user] = (catalog.vectors[rows] @ catalog.vectors[played]).mean()
            genre[how, user] = (genres[rows] == genres[played]).mean()
    for without, with_play in (cosine, genre):
        for among in (plays >= 0, plays >= 5):
            found = difference(without[among], with_play[among], seed=0)
            assert found["low"] is not None
            assert found["low"] > 0
        assert (with_play > without).sum() > 2 * (with_play < without).sum()


def test_a_played_track_disappears(recommender: Recommender, world: Dataset, targets: Targets) -> None:
    """First of the list, then recorded: out of every later list, whatever it would have scored."""
    for _, state in user_states(world, "test", positions=targets.users[:50]):
        first = int(recommender.recommend(Query(K, state, True, state.heard)).rows[0])
        after = recorded(recommender, world, state, first, skipped=False)
        assert first not in recommender.recommend(Query(100, after, True, after.heard)).rows
        assert first in recommender.recommend(Query(100, after, True)).rows  # unless heard tracks are asked for
