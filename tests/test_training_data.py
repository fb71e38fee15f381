"""Laws of the training arrays: how plays are hidden, selected and held out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra.data.dataset import TRAIN, VALID, AsOf, Dataset, user_states
from lhydra.domain import I64, MAX_HISTORY, Play, UserState
from lhydra.evaluation import mistakes
from lhydra.features.histories import Histories, offsets_of, spans
from lhydra.training.data import NEXT_PLAYS, Targets, TrainingData, hide, load, select, targets
from lhydra.users.record import UserRecord
from lhydra.users.store import UserStore, open_users
from tests.test_evaluate import write_dataset

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def timely(tiny_dataset: Dataset) -> TrainingData:
    return load(tiny_dataset)


@pytest.fixture(scope="module")
def data(timely: TrainingData) -> TrainingData:
    return replace(timely, in_order=False)


@pytest.fixture(scope="module")
def users(data: TrainingData) -> I64:
    return np.flatnonzero(np.diff(data.train.offsets) > 0)


def histories_of(lengths: list[int]) -> Histories:
    m = sum(lengths)
    counts = np.arange(m, dtype=np.float32) + 1
    return Histories(offsets_of(np.array(lengths, np.int64)), np.arange(m) * 3, counts, np.arange(m) + 100)


def of(part: Histories | Targets, i: int) -> list[int]:
    rows: list[int] = part.rows[part.offsets[i] : part.offsets[i + 1]].tolist()
    return rows


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=10))
def test_spans_concatenate_ranges(pieces: list[tuple[int, int]]) -> None:
    starts, ends = np.array([(a, a + n) for a, n in pieces], np.int64).reshape(-1, 2).T
    slow = [at for a, n in pieces for at in range(a, a + n)]
    assert spans(starts, ends).tolist() == slow


@given(LENGTHS, st.data())
def test_select_keeps_what_it_is_told(lengths: list[int], draw: st.DataObject) -> None:
    histories = histories_of(lengths)
    users = draw.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    total = sum(lengths[u] for u in users)
    keep = draw.draw(st.lists(st.booleans(), min_size=total, max_size=total))
    found = select(histories, np.array(users, np.int64), np.array(keep, bool))
    flags = iter(keep)
    slow = [[row for row in of(histories, u) if next(flags)] for u in users]
    assert [of(found, i) for i in range(len(users))] == slow
    assert found.offsets[-1] == len(found.rows)
    assert (found.counts == found.rows // 3 + 1).all()
    assert (found.times == found.rows // 3 + 100).all()


def test_select_takes_the_newest_of_a_long_history() -> None:
    histories = histories_of([3, MAX_HISTORY + 5, 0])
    found = select(histories, np.array([1, 2, 0]))
    assert np.diff(found.offsets).tolist() == [MAX_HISTORY, 0, 3]
    assert of(found, 0) == of(histories, 1)[-MAX_HISTORY:]
    assert of(found, 2) == of(histories, 0)


@pytest.mark.parametrize("seed", range(3))
def test_hide_splits_each_users_train_plays_in_two(data: TrainingData, users: I64, seed: int) -> None:
    seen, hidden = hide(data, users, np.random.default_rng(seed), keep=0.7, cold=0.1, longest=10**9)
    assert (hidden.users == users).all()
    assert (np.diff(hidden.offsets) >= 1).all()
    for i, user in enumerate(users):
        assert sorted(of(seen, i) + of(hidden, i)) == sorted(of(data.train, user))
        assert of(hidden, i) == sorted(of(hidden, i), key=of(data.train, user).index)


def test_hidden_plays_take_count_and_time_with_them(data: TrainingData, users: I64) -> None:
    seen, _ = hide(data, users, np.random.default_rng(0), keep=0.5, cold=0.1, longest=10**9)
    owner = np.repeat(users, np.diff(seen.offsets))
    whole = np.repeat(np.arange(len(data.train.offsets) - 1), np.diff(data.train.offsets))
    plays = zip(whole, data.train.rows, data.train.counts, data.train.times, strict=True)
    assert set(zip(owner, seen.rows, seen.counts, seen.times, strict=True)) <= set(plays)


def test_cold_users_see_nothing(data: TrainingData, users: I64) -> None:
    rng = np.random.default_rng(1)
    many = np.repeat(users, 5)
    seen, hidden = hide(data, many, rng, keep=0.999, cold=0.3, longest=10**9)
    lengths = np.diff(data.train.offsets)[many]
    long = lengths >= 5  # with keep near 1, only the cold ones of them see nothing
    empty = (np.diff(seen.offsets) == 0)[long]
    assert abs(empty.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / long.sum())
    assert (np.diff(hidden.offsets)[long][empty] == lengths[long][empty]).all()
    nobody, _ = hide(data, many, rng, keep=0.9, cold=0.0, longest=10**9)
    assert ((np.diff(nobody.offsets) == 0)[lengths >= 40]).sum() == 0


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.8])
def test_the_share_kept_is_as_asked(data: TrainingData, users: I64, keep: float) -> None:
    seen, _ = hide(data, users, np.random.default_rng(2), keep, cold=0.0, longest=10**9)
    plays, spread = len(data.train.rows), 5 * np.sqrt(keep * (1 - keep) / len(data.train.rows))
    share = len(seen.rows) / plays
    assert keep - len(users) / plays - spread <= share <= keep + spread  # one target at least per user


def test_the_longest_history_is_respected_on_average(data: TrainingData, users: I64) -> None:
    long = users[np.diff(data.train.offsets)[users] >= 20]
    draws = [hide(data, long, np.random.default_rng(s), 0.9, 0.0, 10) for s in range(10)]
    mean = np.mean([np.diff(seen.offsets).mean() for seen, _ in draws])
    assert 7 < mean < 10
    for seen, hidden in draws:
        assert not any(set(of(seen, i)) & set(of(hidden, i)) for i in range(len(long)))


def test_the_same_stream_hides_the_same(data: TrainingData, users: I64) -> None:
    (a, x), (b, y), (c, _) = (hide(data, users, np.random.default_rng(s), 0.8, 0.05, 512) for s in (3, 3, 4))
    assert a.rows.tolist() == b.rows.tolist()
    assert x.rows.tolist() == y.rows.tolist()
    assert a.rows.tolist() != c.rows.tolist()


def test_training_reads_the_train_fold_only(tiny_dataset: Dataset, data: TrainingData) -> None:
    plays = tiny_dataset.plays
    train = [(u, t) for u, t, f in zip(plays.user, plays.track, plays.fold, strict=True) if f == TRAIN]
    owner = np.repeat(np.arange(len(tiny_dataset.user_ids)), np.diff(data.train.offsets))
    assert list(zip(owner, data.train.rows, strict=True)) == train
    listeners = [len({u for u, t in train if t == track}) for track in range(0, data.n_tracks, 7)]
    assert data.listeners[::7].tolist() == listeners
    assert (data.listeners > 0).sum() == len(data.spec.track_categories[0].values)  # ids of trained tracks only


@pytest.mark.parametrize("fold", [VALID, VALID + 1])
def test_targets_were_not_heard_in_an_earlier_fold(tiny_dataset: Dataset, fold: int) -> None:
    plays = tiny_dataset.plays
    found, earlier, wanted = targets(tiny_dataset, fold), set(), set()
    for user, track, at in zip(plays.user.tolist(), plays.track.tolist(), plays.fold.tolist(), strict=True):
        if at < fold:
            earlier.add((user, track))
        elif at == fold:
            wanted.add((user, track))
    owner = np.repeat(found.users, np.diff(found.offsets)).tolist()
    assert list(zip(owner, found.rows.tolist(), strict=True)) == sorted(wanted - earlier)
    assert wanted & earlier, "the world repeats plays, else this shows nothing"


# -- what comes next --------------------------------------------------------------------------------------


def test_a_split_by_time_is_seen_to_be_one(tiny_dataset: Dataset, timely: TrainingData) -> None:
    assert timely.in_order
    plays = tiny_dataset.plays
    shuffled = np.random.default_rng(0).permutation(plays.fold)
    assert not load(tiny_dataset, replace(plays, fold=shuffled)).in_order
    assert not load(tiny_dataset, replace(plays, time=np.zeros_like(plays.time))).in_order


def test_half_of_the_users_are_cut_in_time(timely: TrainingData, users: I64) -> None:
    seen, hidden = hide(timely, users, np.random.default_rng(0), keep=0.8, cold=0.0, longest=10**9)
    cut = 0
    for i, user in enumerate(users):
        own, shown, wanted = of(timely.train, user), of(seen, i), of(hidden, i)
        assert wanted
        assert not set(shown) & set(wanted)
        at = len(shown)
        if shown == own[:at] and wanted == own[at : at + NEXT_PLAYS]:
            cut += 1
        else:
            assert sorted(shown + wanted) == sorted(own)
    assert 0.4 < cut / len(users) < 0.65  # short histories are cut by chance, too


def test_a_cut_is_as_likely_after_any_play(timely: TrainingData, users: I64) -> None:
    (longest,) = users[np.diff(timely.train.offsets)[users].argsort()[-1:]]
    length, many = len(of(timely.train, longest)), np.full(4_000, longest)
    seen, hidden = hide(timely, many, np.random.default_rng(1), keep=0.8, cold=0.0, longest=10**9)
    is_cut = np.array(
        [of(hidden, i) == of(timely.train, longest)[n : n + NEXT_PLAYS] for i, n in enumerate(np.diff(seen.offsets))]
    )
    places = np.diff(seen.offsets)[is_cut] / length
    assert abs(places.mean() - 0.5) < 0.03
    assert places.std() == pytest.approx(1 / np.sqrt(12), rel=0.1)


# -- both folds -------------------------------------------------------------------------------------------


def test_with_validation_plays_too_a_track_heard_twice_is_one_entry(tiny_dataset: Dataset) -> None:
    plays = tiny_dataset.plays
    data = load(tiny_dataset, upto=VALID)
    assert len(data.valid.users) == len(data.valid.rows) == 0
    for user in range(0, len(tiny_dataset.user_ids), 7):
        own = plays.where((plays.user == user) & (plays.fold <= VALID))
        counts: dict[int, float] = {}
        times: dict[int, int] = {}
        for track, count, time in zip(own.track.tolist(), own.count.tolist(), own.time.tolist(), strict=True):
            counts[track] = counts.get(track, 0) + count
            times[track] = max(times.get(track, 0), time)
        at = slice(data.train.offsets[user], data.train.offsets[user + 1])
        assert dict(zip(data.train.rows[at].tolist(), data.train.counts[at].tolist(), strict=True)) == counts
        assert data.train.times[at].tolist() == sorted(times.values())
    heard = {(u, t) for u, t, f in zip(plays.user, plays.track, plays.fold, strict=True) if f <= VALID}
    assert data.listeners.sum() == len(heard)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Plays of few distinct times and counts, some in two folds; the first user has more than a history holds."""
    rng, n_tracks = np.random.default_rng(0), MAX_HISTORY + 200
    rows = [
        (user, int(track), fold, int(rng.choice([0, 5, 5, 7])), float(rng.choice([0.1, 0.2, 1, 1, 2, 3])))
        for user, n in enumerate((n_tracks, 300, 1))
        for fold, most in ((TRAIN, n), (VALID, n // 3))
        for track in rng.permutation(n_tracks)[:most]
    ]
    rows.sort(key=lambda row: (row[0], row[3], row[1]))  # as a dataset keeps them
    ids = [f"t{i:04}" for i in range(n_tracks)]
    dataset = write_dataset(tmp_path_factory.mktemp("tied") / "data", ["a", "b", "c"], ids, [row[:3] for row in rows])
    columns = zip(*rows, strict=True)
    types = (np.int32, np.int32, np.int8, np.int64, np.float32)
    user, track, fold, time, count = (np.array(column, kind) for column, kind in zip(columns, types, strict=True))
    table = pa.table({"user": user, "track": track, "count": count, "time": time, "fold": fold})
    pq.write_table(table, dataset.path / "plays.parquet")
    return Dataset.open(dataset.path)


@pytest.mark.parametrize(("as_of", "upto"), [("test", TRAIN), ("refit", VALID)])
def test_training_sees_histories_in_the_order_in_which_they_are_served(
    tied: Dataset, as_of: AsOf, upto: int, tmp_path: Path
) -> None:
    trained = select(load(tied, upto=upto).train, np.arange(3))
    states = dict(user_states(tied, as_of))
    users = open_users(None, tmp_path)
    users.load(states.items())
    for i, (user_id, state) in enumerate(states.items()):
        at = slice(trained.offsets[i], trained.offsets[i + 1])
        for history in (state.history, stored(users, user_id).history, recorded(tied, i, upto).history):
            assert history["track"].tolist() == tied.hashes[trained.rows[at]].tolist()
            assert history["count"].tolist() == trained.counts[at].tolist()
            assert history["time"].tolist() == trained.times[at].tolist()
    users.close()
    assert np.diff(trained.offsets).tolist()[0] == MAX_HISTORY


def stored(users: UserStore, user_id: str) -> UserState:
    state = users.get(user_id)
    assert state is not None
    return state


def recorded(dataset: Dataset, user: int, upto: int) -> UserState:
    """What a server makes of the same plays, told in another order and one call after the other."""
    plays = dataset.plays.where((dataset.plays.user == user) & (dataset.plays.fold <= upto))
    ids = dataset.track_ids
    told = [
        Play(str(i), "u", ids[plays.track[i]], int(plays.time[i]), float(plays.count[i])) for i in range(len(plays))
    ]
    record = UserRecord()
    for part in (told[1::2], told[::2]):
        record, _ = record.with_plays(part)
    return record.state


def test_a_report_shows_the_newest_of_the_history_first(tied: Dataset) -> None:
    for user, (_, state) in enumerate(user_states(tied, "test")):
        newest = tied.hashes[mistakes._newest(tied, user)]
        assert newest.tolist() == state.history["track"][::-1][: mistakes.MAX_HISTORY].tolist()
