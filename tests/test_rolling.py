"""Rolling evaluation against brute force: what is asked when, what is known by then, and what each baseline says."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.bundle import Bundle
from lhydra.data.clock import play_times
from lhydra.data.dataset import Dataset, DatasetInfo, Events, user_states
from lhydra.data.plays import with_plays
from lhydra.domain import MAX_RECENT, Query, Recommendation, Repeat, make_history
from lhydra.errors import DataError
from lhydra.evaluation.rolling.baselines import baselines
from lhydra.evaluation.rolling.blend import candidates, fit_weights
from lhydra.evaluation.rolling.document import heard_in_truth
from lhydra.evaluation.rolling.factors import fold_in
from lhydra.evaluation.rolling.lists import FIGURES, K, Lister
from lhydra.evaluation.rolling.measure import measure
from lhydra.evaluation.rolling.moments import DAY_S, PROTOCOLS, Moments, find_moments
from lhydra.evaluation.rolling.past import Known, Past, fold_seen
from lhydra.evaluation.rolling.served import PICKED, SERVED, Served
from lhydra.evaluation.rolling.slices import last_ages, slices
from lhydra.recommender import Recommender
from tests.harness import examples

TRACKS = 8
T0 = 1_600_000_000


def events_of(rows: list[tuple[int, int, int, int, int]]) -> Events:
    """Plays from (user, time, session, track, fold), in order of user and time."""
    user, time, session, track, fold = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    nothing = np.full(len(rows), -1)
    return Events(
        user=user.astype(np.int32),
        track=track.astype(np.int32),
        time=time,
        position=nothing,
        count=np.ones(len(rows), np.float32),
        session=session.astype(np.int32),
        skipped=nothing.astype(np.int8),
        completed=nothing.astype(np.int8),
        ms_played=nothing,
        fold=fold.astype(np.int8),
    )


def dataset_of(events: Events) -> Dataset:
    """A dataset of these plays, without files."""
    info = DatasetInfo("", (), (), {"tracks": TRACKS}, {}, True)
    dataset = Dataset(Path("made-up"), info)
    dataset.__dict__["events"] = events
    return dataset


@st.composite
def worlds(draw: st.DrawFn) -> Events:
    """Three users, sessions that may interleave, folds in order of time within each user."""
    rows = []
    for user in range(3):
        folds = sorted(draw(st.lists(st.integers(0, 2), min_size=3, max_size=14)))
        time, session, newest = T0 + user, 0, 0
        clock = draw(st.booleans())
        for fold in folds:
            time += draw(st.sampled_from([60, 600, 5_000, 60_000]))
            session = draw(st.sampled_from([session, newest, newest + 1]))
            newest = max(newest, session)
            rows.append((user, time if clock else 0, session, draw(st.integers(0, TRACKS - 1)), fold))
    return events_of(rows)


def some_moments(events: Events) -> list[Moments]:
    """All moments of all protocols that there are."""
    found = []
    for protocol, as_of, known in itertools.product(PROTOCOLS, ("valid", "test"), (0, 2)):
        if known and protocol == "next-day":
            continue
        try:
            found.append(find_moments(dataset_of(events), protocol, as_of, known))
        except DataError:
            continue
    return found


Row = tuple[int, int, int, int, int, int]  # place, user, time, session, track, fold


def listed(events: Events) -> list[Row]:
    columns = (events.user, events.time, events.session, events.track, events.fold)
    return list(zip(range(len(events)), *(column.tolist() for column in columns), strict=True))


@settings(deadline=None, max_examples=60)
@given(worlds(), st.sampled_from([1, 2]), st.integers(0, 2))
def test_sessions_are_asked_when_they_begin_and_for_what_they_hold(events: Events, fold: int, known: int) -> None:
    as_of = {1: "valid", 2: "test"}[fold]
    expected = {}
    single = {}
    for user, session in {(row[1], row[3]) for row in listed(events)}:
        plays = [row for row in listed(events) if row[1] == user and row[3] == session]
        if plays[0][5] != fold:
            continue
        for place in range(max(known, 1), len(plays)):
            if plays[place][5] == fold:
                single[user, plays[place][0]] = {plays[place][4]}
        wanted = {row[4] for row in plays[known:] if row[5] == fold}
        if wanted:
            expected[user, plays[known][0]] = wanted
    missed: list[dict[tuple[int, int], set[int]]] = []
    for protocol, law in (("next-session", expected), ("next-track", single)):
        try:
            found = find_moments(dataset_of(events), protocol, as_of, known)  # type: ignore[arg-type]
        except DataError:
            missed.append(law)
            continue
        parts = np.split(found.tracks, found.offsets[1:-1])
        keys = zip(found.user.tolist(), found.cut.tolist(), strict=True)
        assert {key: set(own.tolist()) for key, own in zip(keys, parts, strict=True)} == law
        for n, own in enumerate(parts):
            before = {row[4] for row in listed(events)[: found.cut[n]] if row[1] == found.user[n]}
            assert [track in before for track in own.tolist()] == found.heard[
                found.offsets[n] : found.offsets[n + 1]
            ].tolist()
    assert not any(missed)


@settings(deadline=None, max_examples=60)
@given(worlds(), st.sampled_from([1, 2]))
def test_a_day_knows_what_lies_before_it(events: Events, fold: int) -> None:
    rows = [row for row in listed(events) if row[5] == fold and row[2] > 0]
    if not rows:
        return
    found = find_moments(dataset_of(events), "next-day", {1: "valid", 2: "test"}[fold])
    oldest = min(row[2] for row in rows)
    law: dict[tuple[int, int], set[int]] = defaultdict(set)
    for row in rows:
        law[row[1], oldest + (row[2] - oldest) // DAY_S * DAY_S].add(row[4])
    parts = np.split(found.tracks, found.offsets[1:-1])
    keys = zip(found.user.tolist(), found.now.tolist(), strict=True)
    assert {key: set(own.tolist()) for key, own in zip(keys, parts, strict=True)} == law
    for user, cut, now in zip(found.user, found.cut, found.now, strict=True):
        own = [row for row in listed(events) if row[1] == user]
        assert [row[0] for row in own if row[2] < now] == [row[0] for row in own if row[0] < cut]


def test_folds_that_are_not_in_time_are_refused() -> None:
    events = events_of([(0, T0, 0, 0, 2), (0, T0 + 1, 0, 1, 0)])
    with pytest.raises(DataError, match="plays of train after plays held out, expected a split in time"):
        find_moments(dataset_of(events), "next-session", "test")


def scores_of(past: Past, known: Known, name: str, params: dict[str, Any]) -> dict[int, float]:
    tracks, scores = baselines(clock=True)[name].fit(past, params)(known)
    assert len(set(tracks.tolist())) == len(tracks)
    assert (scores > 0).all()
    return dict(zip(tracks.tolist(), scores.tolist(), strict=True))


def close(found: dict[int, float], law: dict[int, float]) -> None:
    law = {track: score for track, score in law.items() if score > 0}
    assert found.keys() == law.keys()
    for track, score in law.items():
        assert found[track] == pytest.approx(score)


@settings(deadline=None, max_examples=25)
@given(worlds())
def test_each_baseline_says_what_its_definition_says(events: Events) -> None:
    past = Past(events, TRACKS, fold_seen(events, 3, 0))
    train = [row for row in listed(events) if row[5] == 0]
    listeners = Counter(track for _, track in {(row[1], row[4]) for row in train})
    for moments in some_moments(events):
        for n in {0, len(moments) // 2, len(moments) - 1}:
            known = past.at(moments, n)
            user, cut, now = int(moments.user[n]), int(moments.cut[n]), int(moments.now[n])
            mine = [row for row in listed(events) if row[1] == user and row[0] < cut]
            seen = sorted({*(row for row in train if row[1] != user), *mine})
            assert known.tracks.tolist() == [row[4] for row in mine]
            close(scores_of(past, known, "own-count", {}), dict(Counter(row[4] for row in mine)))
            close(
                scores_of(past, known, "own-recency", {}),
                {row[4]: 1 / (len(mine) - place) for place, row in enumerate(mine)},
            )
            coming = int(moments.session[n])
            if coming < 0:
                coming = max((row[3] for row in mine), default=-1) + 1
            bll: dict[int, float] = defaultdict(float)
            for row in mine:
                bll[row[4]] += max(coming - row[3], 1) ** -0.7
            close(scores_of(past, known, "bll", {"unit": "sessions", "d": 0.7}), bll)
            if all(row[2] for row in mine):
                bll = defaultdict(float)
                for row in mine:
                    bll[row[4]] += (max(now - row[2], 60) / 3600) ** -0.7
                close(scores_of(past, known, "bll", {"unit": "hours", "d": 0.7}), bll)
            lately: dict[int, float] = defaultdict(float)
            for row in listed(events):
                if 0 < row[2] < now:
                    lately[row[4]] += 2 ** ((row[2] - now) / (3 * DAY_S))
            close(scores_of(past, known, "popular-lately", {"days": 3}), lately)
            weights: dict[int, float] = {}
            for ago, row in enumerate(mine[::-1][:5], 1):
                weights.setdefault(row[4], ago**-0.5)
            for which in ("users", "sessions"):
                held: dict[Any, set[int]] = defaultdict(set)
                for row in seen:
                    held[row[1] if which == "users" else (row[1], row[3])].add(row[4])
                together: dict[int, float] = defaultdict(float)
                for tracks in held.values():
                    near = sum(weight / math.sqrt(max(listeners[t], 1)) for t, weight in weights.items() if t in tracks)
                    for track in tracks:
                        together[track] += near / math.sqrt(len(tracks)) / math.sqrt(max(listeners[track], 1))
                params = {"rows": which, "unit": "plays", "d": 0.5, "last": 5, "norm": 0.5}
                close(scores_of(past, known, "co-listening", params), together)
            follows: dict[int, float] = defaultdict(float)
            in_session: dict[tuple[int, int], list[int]] = defaultdict(list)
            for row in seen:
                in_session[row[1], row[3]].append(row[4])
            for tracks in in_session.values():  # type: ignore[assignment]
                for a, b in itertools.combinations(range(len(tracks)), 2):
                    before, after = list(tracks)[a], list(tracks)[b]
                    if b - a <= 10 and before in weights:
                        follows[after] += weights[before] / math.sqrt(max(listeners[before], 1)) / (b - a)
            params = {"unit": "plays", "d": 0.5, "last": 5, "norm": 0.5, "fall": 1.0}
            close(scores_of(past, known, "transitions", params), follows)
            neighbours: dict[Any, set[int]] = defaultdict(set)
            first = next((row[0] for row in mine if row[3] == moments.session[n]), cut)
            for row in seen:
                if row[1] != user or row[0] < first:
                    neighbours[row[1], row[3]].add(row[4])
            like: dict[int, float] = defaultdict(float)
            for tracks in neighbours.values():
                near = sum(weight for track, weight in weights.items() if track in tracks) / math.sqrt(len(tracks))
                for track in tracks:
                    like[track] += near
            params = {"neighbours": 99, "unit": "plays", "d": 0.5, "last": 5, "idf": False}
            close(scores_of(past, known, "v-sknn", params), like)


@settings(deadline=None, max_examples=examples(10))
@given(worlds(), st.randoms(use_true_random=False))
def test_no_baseline_looks_at_what_comes_later(events: Events, random: Any) -> None:
    past = Past(events, TRACKS, fold_seen(events, 3, 0))
    for moments in some_moments(events):
        n = random.randrange(len(moments))
        user, cut, now = moments.user[n], moments.cut[n], moments.now[n]
        rows = np.arange(len(events))
        own = (events.user == user) & (rows >= cut)
        for name, one in baselines(clock=True).items():
            later = own & (events.fold > 0) | (events.user != user) & (events.fold > 0)
            if name == "popular-lately":  # sees others until the moment, and nobody after it
                later = own | (events.user != user) & (events.time >= now)
            moved = np.where(later, (events.track + 3) % TRACKS, events.track).astype(np.int32)
            changed = Past(replace(events, track=moved), TRACKS, past.seen)
            for params in one.grid[: 1 if name == "ials" else None]:
                a, b = (one.fit(there, params)(there.at(moments, n)) for there in (past, changed))
                assert a[0].tolist() == b[0].tolist()
                np.testing.assert_allclose(a[1], b[1])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 29), max_size=12),
    st.dictionaries(st.integers(0, 29), st.sampled_from([0.5, 1.0, 2.0]), max_size=29),
    st.integers(1, 12),
)
def test_lists_are_the_best_then_what_most_listen_to(heard: list[int], scores: dict[int, float], k: int) -> None:
    events = events_of([(user, T0, 0, track, 0) for user in range(4) for track in range(0, 30, user + 1)])
    past = Past(events, 30, fold_seen(events, 4, 0))
    known = Known(
        0, 0, 0, np.array(heard, np.int64), np.zeros(len(heard), np.int64), np.ones(len(heard)), np.zeros(0, bool)
    )
    scored = np.array(sorted(scores), np.int64), np.array([scores[track] for track in sorted(scores)])
    found = Lister(past, k).lists(known, scored, FIGURES)
    order = sorted(
        range(30), key=lambda track: (-scores.get(track, 0), -sum(track % (u + 1) == 0 for u in range(4)), track)
    )
    assert found["all"].tolist() == order[:k]
    assert found["repeat"].tolist() == [track for track in order if track in heard][:k]
    assert found["discovery"].tolist() == [track for track in order if track not in heard][:k]


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 6))
def test_a_user_is_folded_in_by_weighted_least_squares(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    factors, confidence = rng.normal(size=(9, 3)), rng.random(n) * 5
    own = rng.permutation(9)[:n]
    weight, target = np.ones(9), np.zeros(9)
    weight[own], target[own] = 1 + confidence, 1
    rows = np.concatenate([factors * np.sqrt(weight)[:, None], np.sqrt(0.5) * np.eye(3)])
    law = np.linalg.lstsq(rows, np.concatenate([target * np.sqrt(weight), np.zeros(3)]), rcond=None)[0]
    single = [values.astype(np.float32) for values in (factors[own], confidence, factors.T @ factors + 0.5 * np.eye(3))]
    assert fold_in(*single).tolist() == pytest.approx(law.tolist(), rel=1e-3, abs=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 999))
def test_a_blend_is_never_worse_than_its_start_on_what_chose_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, wanted = [], []
    for _ in range(6):
        scored = []
        for _ in range(3):
            tracks = np.sort(rng.permutation(30)[: rng.integers(0, 20)])
            scored.append((tracks, rng.random(len(tracks)) + 0.01))
        made = candidates(scored)
        for track, features in zip(made.tracks.tolist(), made.features, strict=True):
            for (tracks, scores), feature in zip(scored, features.tolist(), strict=True):
                law = scores[tracks == track] / scores.max() if (tracks == track).any() else [0]
                assert feature == pytest.approx(law[0])
        assert set(made.tracks.tolist()) == {track for tracks, _ in scored for track in tracks.tolist()}
        found.append(made)
        wanted.append(np.sort(rng.permutation(30)[: rng.integers(0, 6)]))
    users, start = np.array([0, 0, 1, 1, 2, 2]), np.array([1.0, 0.0, 0.0])

    def ndcg(weights: Any) -> float:
        by_user: dict[int, list[float]] = defaultdict(list)
        for made, targets, user in zip(found, wanted, users.tolist(), strict=True):
            if len(targets):
                scores = made.features @ weights.astype(np.float32)
                top = made.tracks[np.argsort(-scores, kind="stable")[:5]]
                gain = sum(1 / math.log2(place + 2) for place, track in enumerate(top) if track in targets)
                by_user[user].append(gain / sum(1 / math.log2(place + 2) for place in range(min(5, len(targets)))))
        return float(np.mean([np.mean(values) for values in by_user.values()])) if by_user else 0.0

    weights, best = fit_weights(found, wanted, users, start, 5)
    assert (weights >= 0).all()
    assert best >= fit_weights(found, wanted, users, start, 5)[1] >= 0
    if len(set((np.concatenate([made.features @ weights for made in found])).tolist())) == sum(
        len(made.tracks) for made in found
    ):  # no ties, whose order is free here
        assert best == pytest.approx(ndcg(weights))


def test_what_is_served_knows_the_plays_before_the_moment_alone(tiny_bundle: Bundle, tiny_dataset: Dataset) -> None:
    recommender, moments = Recommender(tiny_bundle), find_moments(tiny_dataset, "next-session", "test")
    past = Past(
        tiny_dataset.events, tiny_dataset.n_tracks, fold_seen(tiny_dataset.events, len(tiny_dataset.user_ids), 0)
    )
    served, position = Served(recommender, tiny_dataset), tiny_bundle.catalog.rows(tiny_dataset.hashes)
    for n in (0, len(moments) // 2, len(moments) - 1):
        known = past.at(moments, n)
        own = slice(known.cut - len(known.tracks), known.cut)
        hashes, counts = tiny_dataset.hashes[known.tracks], tiny_dataset.events.count[own]
        state = served.state(known)
        assert state.history.tolist() == make_history(hashes, counts, known.times).tolist()
        assert state.heard.tolist() == np.unique(hashes).tolist()
        assert state.recent["track"].tolist() == hashes[known.times > 0][-MAX_RECENT:].tolist()
        assert state.profile == next(tiny_dataset.profiles(np.array([known.user])))
        found = served.lists(known)
        for key, repeat in {("all", SERVED): Repeat.ALLOW, ("discovery", SERVED): Repeat.EXCLUDE}.items():
            answer = recommender.recommend(Query(K, state, True, repeat=repeat, now=known.now))
            assert position[found[key]].tolist() == answer.rows.tolist()  # type: ignore[index]
        heard = np.unique(known.tracks)
        assert np.isin(found["repeat", SERVED], heard).all()
        assert len(found["repeat", SERVED]) == min(K, len(heard))
        logits = recommender.score(state, position[found["repeat", SERVED]])[0]
        assert (np.diff(logits) <= 0).all()
        assert not np.isin(found["discovery", PICKED], heard).any()
        picked = found["all", SERVED][~np.isin(found["all", SERVED], heard)]
        assert len(found["discovery", PICKED]) >= len(picked)


def test_the_state_of_a_moment_is_what_users_load_writes(tiny_bundle: Bundle, tiny_dataset: Dataset) -> None:
    """Asked at the end of a user's train plays, with valid to come."""
    served, events = Served(Recommender(tiny_bundle), tiny_dataset), tiny_dataset.events
    begin = np.searchsorted(events.user, np.arange(len(tiny_dataset.user_ids)))
    seen, checked = fold_seen(events, len(tiny_dataset.user_ids), 0), 0
    loaded = with_plays(tiny_dataset, "valid", user_states(tiny_dataset, "valid"))
    for user, (_, law) in enumerate(loaded):
        tracks = events.track[begin[user] : seen[user]].astype(np.int64)
        nothing = np.empty(0, np.int64)
        known = Known(user, int(seen[user]), 0, tracks, nothing, nothing.astype(np.float64), nothing.astype(np.bool_))
        found = served.state(known)
        for name in ("history", "heard", "skipped", "repeats", "recent"):
            assert getattr(found, name).tobytes() == getattr(law, name).tobytes(), name
        assert found.profile == law.profile
        checked += len(found.recent) > 0
    assert checked > len(begin) // 2


def test_plays_without_a_clock_are_served_with_that_of_their_sessions(
    tiny_bundle: Bundle, tiny_dataset: Dataset
) -> None:
    events = replace(tiny_dataset.events, time=np.zeros_like(tiny_dataset.events.time))
    dataset = Dataset(tiny_dataset.path, tiny_dataset.info)
    dataset.__dict__["events"] = events
    asked: list[Query] = []

    class Listens(Recommender):
        def recommend(self, query: Query, check: Callable[[], None] = lambda: None) -> Recommendation:
            asked.append(query)
            return super().recommend(query, check)

    moments = find_moments(dataset, "next-session", "test")
    past = Past(events, dataset.n_tracks, fold_seen(events, len(dataset.user_ids), 0))
    known = past.at(moments, len(moments) // 2)
    Served(Listens(tiny_bundle), dataset).lists(known)
    times = play_times(events)
    for query in asked:
        assert query.now == times[known.cut] > query.state.recent["time"][-1]
        last = min(MAX_RECENT, len(known.tracks))
        assert query.state.recent["track"].tolist() == dataset.hashes[known.tracks[-last:]].tolist()
        assert query.state.recent["time"].tolist() == times[known.cut - last : known.cut].tolist()


@settings(deadline=None, max_examples=40)
@given(worlds(), st.integers(0, 99))
def test_slices_part_lists_targets_and_users(events: Events, seed: int) -> None:
    rng = np.random.default_rng(seed)
    past = Past(events, TRACKS, fold_seen(events, 3, 0))
    for moments in some_moments(events):
        lists = {"x": np.stack([rng.permutation(TRACKS)[:3] for _ in range(len(moments))])}
        found = {"x": measure(lists["x"], moments, "all", TRACKS)}
        parts = slices(lists, found, moments, past, heard_in_truth(moments))
        sizes: Counter[str] = Counter()
        sums: dict[str, float] = defaultdict(float)
        for part in parts:
            sizes[part["by"]] += part["n"]
            sums[part["by"]] += part["n"] * part["scorers"]["x"]
        assert sizes["place"] in (0, len(moments))
        assert sizes["age"] == moments.heard.sum()
        assert sizes["share"] == len(np.unique(moments.user))
        for by, law in (("place", found["x"].by_moment), ("share", found["x"].by_user)):
            assert by not in sums or sums[by] == pytest.approx(law["ndcg@10"].sum())
        hits = 0
        for n in range(len(moments)):
            own = slice(moments.offsets[n], moments.offsets[n + 1])
            known, coming = past.at(moments, n), int(moments.session[n])
            sessions = events.session[known.cut - len(known.tracks) : known.cut]
            coming = coming if coming >= 0 else int(sessions.max(initial=-1)) + 1
            law_ages = [
                max(coming - int(sessions[known.tracks == track][-1]), 1) if heard else 0
                for track, heard in zip(moments.tracks[own].tolist(), moments.heard[own].tolist(), strict=True)
            ]
            assert last_ages(moments, past)[own].tolist() == law_ages
            hits += sum(track in lists["x"][n] for track in moments.tracks[own][moments.heard[own]])
        assert sums["age"] == pytest.approx(hits)
