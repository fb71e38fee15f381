"""What a user's moment says of tracks, against plain loops; and the tables of what goes with what in time."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra import kernels
from lhydra.bundle import sequence_files
from lhydra.domain import HALF_LIVES_DAYS, MAX_RECENT, SKIPPED
from lhydra.features import sequences as tables
from lhydra.features.histories import Histories
from lhydra.features.listening import AWAY_S, PAUSE_S, Listening
from lhydra.features.moment import _EXPONENTIALS, CONTEXT, LAST_FEW, LAST_MANY, N_OWN, POWERS, SIGNALS, Moment
from lhydra.features.sequences import FOLLOWS, NO_SEQUENCES, TOGETHER, Sequences, fit_sequences
from lhydra.repeats import add_up, at_once, single_plays

DAY = 86_400
N = 40


def plays_of(seed: int, n: int, pauses: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Tracks and times of n plays, some of them after a long pause."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(n) < pauses, rng.integers(PAUSE_S + 1, 20 * DAY, n), rng.integers(1, PAUSE_S + 1, n))
    return rng.integers(0, N, n), 1_500_000_000 + np.cumsum(steps)


def listening_of(
    tracks: np.ndarray, times: np.ndarray, now: int, flags: np.ndarray | None = None, n: int = N
) -> Listening:
    """As a user store would hold these plays."""
    plays = single_plays(tracks.astype(np.uint64), np.ones(len(tracks), np.float32), times)
    history, repeats = add_up(plays, at_once(plays))
    last = slice(max(len(tracks) - MAX_RECENT, 0), len(tracks))
    own = np.zeros(len(tracks), np.int64) if flags is None else flags
    return Listening(
        n,
        history["track"].astype(np.int64),
        history["count"].copy(),
        history["time"].copy(),
        repeats["first"].astype(np.int64),
        repeats["decayed"].copy(),
        tracks[last].astype(np.int64),
        times[last].astype(np.int64),
        own[last],
        now,
    )


def sequences_of(seed: int, n: int = 300) -> tuple[Sequences, np.ndarray, np.ndarray, np.ndarray]:
    """Tables of random sessions, with what they were fitted on."""
    rng = np.random.default_rng(seed)
    track, session = rng.integers(0, N, n), np.sort(rng.integers(0, n // 12, n))
    listeners = rng.integers(0, 50, N)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "WIDTHS", (N, N))
        return fit_sequences(track, session, listeners, 1e9), track, session, listeners


def columns(found: np.ndarray, name: str) -> np.ndarray:
    return np.asarray(found[:, SIGNALS.index(name)])


def test_the_tables_hold_what_loops_over_all_pairs_find() -> None:
    fitted, track, session, listeners = sequences_of(3)
    follow: dict[tuple[int, int], float] = defaultdict(float)
    beside: dict[tuple[int, int], float] = defaultdict(float)
    damping = np.maximum(listeners, 1) ** -0.5
    for i, first in enumerate(track.tolist()):
        for j in range(i + 1, len(track)):
            later = int(track[j])
            if session[i] != session[j] or first == later:
                continue
            if j - i <= FOLLOWS:
                follow[first, later] += damping[first] / (j - i)
            if j - i <= TOGETHER:
                beside[first, later] += damping[first] * damping[later]
                beside[later, first] += damping[first] * damping[later]
    rows, weights, of, cut = fitted.others(np.arange(N))
    for part, expected in ((slice(cut), follow), (slice(cut, None), beside)):
        found = dict(zip(zip(of[part].tolist(), rows[part].tolist(), strict=True), weights[part].tolist(), strict=True))
        assert found.keys() == expected.keys()
        np.testing.assert_allclose([found[key] for key in expected], list(expected.values()), rtol=2e-3)


def test_a_full_table_keeps_the_strongest_within_80_bytes_a_track() -> None:
    rng = np.random.default_rng(0)
    track, session = rng.integers(0, 500, 60_000), np.repeat(np.arange(3_000), 20)
    fitted = fit_sequences(track, session, np.ones(500, np.int64))
    size = fitted.offsets.nbytes + fitted.rows.nbytes + fitted.weights.nbytes + fitted.damping.nbytes
    assert size <= 80 * 500 + 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "WIDTHS", (500, 500))
        whole = fit_sequences(track, session, np.ones(500, np.int64), 1e9)
    (_, some, _, some_cut), (_, all_, _, all_cut) = fitted.others(np.array([7])), whole.others(np.array([7]))
    for kept, every in ((some[:some_cut], all_[:all_cut]), (some[some_cut:], all_[all_cut:])):
        assert 0 < len(kept) < len(every)
        np.testing.assert_array_equal(kept, np.sort(every)[::-1][: len(kept)])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 400), st.integers(0, 3 * DAY))
def test_signals_are_those_of_plain_loops(seed: int, n: int, away: int) -> None:
    tracks, times = plays_of(seed, n)
    now = int(times[-1]) + away if n else 1_600_000_000
    flags = np.random.default_rng(seed).integers(0, 2, n) * SKIPPED
    fitted, *_, listeners = sequences_of(seed % 5)
    listening = listening_of(tracks, times, now, flags)
    moment = Moment(listening, fitted)
    rows = np.random.default_rng(seed + 1).permutation(N)
    found = moment.signals(rows)
    assert found.shape == (N, len(SIGNALS))
    assert np.isfinite(found).all()
    assert np.isfinite(moment.context()).all()
    count = Counter(tracks.tolist())
    np.testing.assert_array_equal(columns(found, "count"), [count[row] for row in rows.tolist()])
    np.testing.assert_array_equal(columns(found, "heard"), [row in count for row in rows.tolist()])
    recent, recent_times = tracks[-MAX_RECENT:].tolist(), times[-MAX_RECENT:].tolist()
    session = 0
    if n and now - recent_times[-1] <= PAUSE_S:
        session = 1
        while session < len(recent) and recent_times[-session] - recent_times[-session - 1] <= PAUSE_S:
            session += 1
    assert moment.context()[CONTEXT.index("in session")] == (session > 0)
    inside = recent[len(recent) - session :]
    before = [float(count[row] > inside.count(row)) for row in inside] or [0.0]
    repeats = moment.context()[[CONTEXT.index("session repeats"), CONTEXT.index("last repeats")]]
    assert repeats.tolist() == pytest.approx([np.mean(before), before[-1]])
    for i, row in enumerate(rows.tolist()):
        if row not in count:
            assert not found[i, : SIGNALS.index("after few")].any()
            continue
        ages = (now - times[tracks == row]) / DAY
        for days in HALF_LIVES_DAYS:
            expected = np.exp2(-np.maximum(ages, 1 / 1440) / days).sum()
            assert columns(found, f"decayed {days}")[i] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        minutes = max((now - times[tracks == row].max()) / 60, 1)
        assert columns(found, "minutes since last")[i] == pytest.approx(minutes, rel=1e-5)
        minutes = max((now - times[tracks == row].min()) / 60, 1)
        assert columns(found, "minutes since first")[i] == pytest.approx(minutes, rel=1e-5)
        since = recent[::-1].index(row) if row in recent else 2 * MAX_RECENT
        assert columns(found, "plays since")[i] == since
        assert columns(found, "in session")[i] == (row in recent[len(recent) - session :] if session else False)
        skips = int((flags[-MAX_RECENT:][np.array(recent) == row] > 0).sum())
        assert columns(found, "skipped")[i] == skips
    for name, sums in sums_of(recent, recent_times, fitted, listeners).items():
        wanted = [sums[row] for row in rows.tolist()]
        np.testing.assert_allclose(columns(found, name), wanted, rtol=2e-3, atol=1e-6, err_msg=name)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(MAX_RECENT - 20, 3 * MAX_RECENT), st.integers(0, 300), st.booleans())
def test_a_session_longer_than_the_plays_remembered_is_known_from_its_begin(
    seed: int, length: int, earlier: int, pause: bool
) -> None:
    """Half of its plays are of new tracks, so what is known of tracks tells of every part of it."""
    rng, n = np.random.default_rng(seed), 2_000
    old = rng.integers(0, 150, earlier)
    own = np.where(rng.random(length) < 0.5, rng.permutation(n - 150)[:length] + 150, rng.integers(0, 150, length))
    tracks = np.concatenate([old, own])
    steps = rng.integers(1, 100, len(tracks))
    steps[earlier] += PAUSE_S
    times = 1_500_000_000 + np.cumsum(steps)
    now = int(times[-1]) + pause * (PAUSE_S + 1)
    moment = Moment(listening_of(tracks, times, now, n=n), NO_SEQUENCES)
    repeats = moment.context()[[CONTEXT.index("session repeats"), CONTEXT.index("last repeats")]]
    inside = columns(moment.signals(np.arange(n)), "in session")
    if pause:
        assert not repeats.any()
        assert not inside.any()
        return
    heard = np.isin(own[-MAX_RECENT:], old)
    assert repeats.tolist() == pytest.approx([heard.mean(), float(heard[-1])])
    np.testing.assert_array_equal(inside, np.isin(np.arange(n), own))


def sums_of(
    recent: list[int], times: list[int], fitted: Sequences, listeners: np.ndarray
) -> dict[str, dict[int, float]]:
    """The sequence signals by track: sums, each divided by the largest of its own or of everybody's."""
    back: dict[int, int] = {}
    for i, row in enumerate(reversed(recent), 1):
        back.setdefault(row, i)
    after: list[dict[int, float]] = [defaultdict(float), defaultdict(float)]  # the last few, the last many
    own: list[dict[int, float]] = [defaultdict(float), defaultdict(float)]
    for row, ago in back.items():
        if ago > LAST_MANY:
            continue
        rows, weights, _, follow = fitted.others(np.array([row]))
        for other, weight in zip(rows[:follow].tolist(), weights[:follow].tolist(), strict=True):
            after[0][other] += weight * ago**-4.0 * (ago <= LAST_FEW)
            after[1][other] += weight / ago
    for i, row in enumerate(recent):
        damping = max(int(listeners[row]), 1) ** -0.5
        for step in range(1, FOLLOWS + 1):
            if i + step >= len(recent) or times[i + step] - times[i + step - 1] > PAUSE_S:
                break
            other, ago = recent[i + step], back[row]
            own[0][other] += damping * ago**-4.0 / step * (ago <= LAST_FEW)
            own[1][other] += damping / ago / step * (ago <= LAST_MANY)
    found: dict[str, dict[int, float]] = {}
    for name, everybody, mine in zip(("few", "many"), after, own, strict=True):
        largest = max(everybody.values(), default=0.0) or 1.0
        found[f"after {name}"] = {row: everybody[row] / largest for row in range(N)}
        found[f"own after {name}"] = {row: mine[row] / (max(mine.values(), default=0.0) or 1.0) for row in range(N)}
        found[name] = {row: (everybody[row] + mine[row]) / largest for row in range(N)}
    return found


@pytest.mark.parametrize("power", range(3))
def test_base_level_learning_is_the_sum_of_powers_of_ages(power: int) -> None:
    tracks, times = plays_of(5, 200)
    now = int(times[-1]) + 100
    found = columns(
        Moment(listening_of(tracks, times, now), NO_SEQUENCES).signals(np.arange(N)), f"base level {POWERS[power]}"
    )
    exact = np.bincount(tracks, (np.maximum(now - times, 60) / DAY) ** -POWERS[power], N)
    np.testing.assert_allclose(found, exact / exact.max(), rtol=1e-3)
    older = np.geomspace(2, 1_100, 50)  # plays that only decayed counts remember
    kept = np.exp2(-older[:, None] / np.array(HALF_LIVES_DAYS)) @ _EXPONENTIALS[:3, power] + _EXPONENTIALS[3, power]
    assert np.abs(np.log(kept * older ** POWERS[power])).max() < math.log(3.2)


def test_signals_of_new_tracks_are_the_same_whether_heard_ones_are_asked_for_or_not() -> None:
    tracks, times = plays_of(9, 60)
    listening, fitted = listening_of(tracks % 20, times, int(times[-1])), sequences_of(2)[0]
    new = np.arange(20, N)
    alone = Moment(listening, fitted)
    np.testing.assert_array_equal(alone.signals(new), Moment(listening, fitted).signals(np.arange(N))[20:])
    if kernels.compiled is None:
        assert "_own_sums" not in vars(alone)  # what costs the most is computed for heard tracks only


def test_candidates_are_the_strongest_of_each_source() -> None:
    tracks, times = plays_of(1, 120)
    fitted, *_ = sequences_of(1)
    moment = Moment(listening_of(tracks, times, int(times[-1])), fitted)
    own, following, together = moment.candidates((0.25, 0.25, 0.25), 16)
    signals = moment.signals(np.arange(N))
    assert set(own) == set(np.argsort(-columns(signals, "base level 1.0"))[:4])
    assert set(following) == {
        *np.argsort(-columns(signals, "few"))[:2].tolist(),
        *np.argsort(-columns(signals, "many"))[:2].tolist(),
    }
    back = {int(row): ago for ago, row in reversed(list(enumerate(reversed(tracks.tolist()), 1)))}
    beside: dict[int, float] = defaultdict(float)
    for row, ago in back.items():
        rows, weights, _, follow = fitted.others(np.array([row]))
        for other, weight in zip(rows[follow:].tolist(), weights[follow:].tolist(), strict=True):
            beside[other] += weight / ago * (ago <= LAST_MANY)
    assert set(together) == set(sorted(beside, key=lambda row: -beside[row])[:4])
    assert [len(one) for one in moment.candidates((0.0, 0.0, 0.0), 16)] == [0, 0, 0]


def test_who_was_away_for_long_is_answered_as_after_a_month() -> None:
    tracks, times = plays_of(2, 50)
    newest = int(times[-1])
    found = [
        Moment(listening_of(tracks, times, now), NO_SEQUENCES).signals(np.arange(N))
        for now in (newest + int(AWAY_S), newest + 100 * DAY, newest + 7_000 * DAY)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_nothing_is_known_of_nobody() -> None:
    nothing = Histories.one(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    nobody = Listening.of_history(nothing, N)
    for fitted in (NO_SEQUENCES, sequences_of(0)[0]):
        moment = Moment(nobody, fitted)
        assert not moment.signals(np.arange(N)).any()
        assert [len(one) for one in moment.candidates((0.3, 0.3, 0.2), 20)] == [0, 0, 0]


def test_tables_under_other_rows_say_the_same() -> None:
    fitted, *_ = sequences_of(4)
    to = np.random.default_rng(0).permutation(N + 10)[:N].astype(np.int64)
    to[[3, 7]] = -1
    moved = sequence_files.rearranged(fitted, to, N + 10)
    for track in range(N):
        if to[track] < 0:
            continue
        before, after = fitted.others(np.array([track])), moved.others(to[[track]])
        kept = to[before[0]] >= 0
        np.testing.assert_array_equal(to[before[0]][kept], after[0])
        np.testing.assert_array_equal(before[1][kept], after[1])
        assert np.count_nonzero(kept[: before[3]]) == after[3]
        assert fitted.damping[track] == moved.damping[to[track]]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says whether what follows runs compiled or in NumPy."""
    module = kernels.compiled
    if module is None:
        pytest.skip("NOT TESTED: lhydra.kernels is not compiled here")
    return lambda wanted: monkeypatch.setattr(kernels, "compiled", module if wanted else None)


@st.composite
def any_listening(draw: st.DrawFn) -> Listening:
    """What a store may hold and what it should not: last plays that no history has, unknown times, no order."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    h, r = draw(st.integers(0, N)), draw(st.sampled_from([0, 1, 2, 5, 19, 20, 21, 60, MAX_RECENT]))
    rows = rng.permutation(N)[:h].astype(np.int64)
    _, times = plays_of(draw(st.integers(0, 10**6)), r + h, draw(st.sampled_from([0.0, 0.2, 1.0])))
    last, first = times[rng.permutation(r + h)[:h]], times[rng.permutation(r + h)[:h]]
    for unknown in (last, first):
        unknown[rng.random(h) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = draw(st.sampled_from([0, -5]))
    recent, own = rng.integers(0, draw(st.sampled_from([1, 5, N])), r), times[-r:] if r else times[:0]
    if draw(st.booleans()):
        own = rng.permutation(own)
    counts = rng.integers(1, draw(st.sampled_from([2, 9])), h).astype(np.float32)
    decayed = (counts[:, None] * draw(st.sampled_from([0.0, 0.5, 1.0]))).repeat(3, 1).astype(np.float32)
    flags = rng.integers(0, draw(st.sampled_from([1, 8])), r)
    now = draw(st.sampled_from([0, 1, 1_400_000_000, int(times[-1]) + 5 if len(times) else 9, 2_000_000_000]))
    return Listening(N, rows, counts, last, first, decayed, recent, own.astype(np.int64), flags, now)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_listening(), st.integers(-1, 4), st.integers(0, 30), st.booleans())
def test_a_compiled_moment_says_what_numpy_says(
    compiled: Callable[[bool], None], listening: Listening, seed: int, depth: int, repeats: bool
) -> None:
    fitted = NO_SEQUENCES if seed < 0 else sequences_of(seed)[0]
    said, shares = [], (1.0, 0.7, 0.6)
    for wanted in (False, True):
        compiled(wanted)
        moment = Moment(listening, fitted)
        assert (moment.compiled is not None) is wanted
        found = moment.candidates(shares, depth, repeats=repeats)
        said.append((moment.signals(np.arange(N)), moment.signals(np.arange(N)[::-3]), moment.context(), found))
    (all_, some, context, found), (all_2, some_2, context_2, found_2) = said
    np.testing.assert_allclose(all_2, all_, rtol=1e-5)
    np.testing.assert_array_equal(all_2[:, N_OWN:], all_[:, N_OWN:])  # sums in the same order
    np.testing.assert_array_equal(some_2, all_2[::-3])
    np.testing.assert_allclose(some_2, some, rtol=1e-5)
    np.testing.assert_allclose(context_2, context, rtol=1e-6)
    assert [len(one) for one in found_2] == [len(one) for one in found]
    for one, other in zip(found_2[1:], found[1:], strict=True):
        np.testing.assert_array_equal(np.sort(one), np.sort(other))
    level = columns(all_, "base level 1.0")
    np.testing.assert_allclose(np.sort(level[found_2[0]]), np.sort(level[found[0]]), rtol=1e-5)


def test_compiled_sums_refuse_what_does_not_fit(compiled: Callable[[bool], None]) -> None:
    compiled(True)
    tracks, times = plays_of(3, 60)
    fitted, listening = sequences_of(2)[0], listening_of(tracks, times, int(times[-1]))
    beyond, rows = fitted.offsets.copy(), fitted.rows.copy()
    beyond[tracks[-1] + 1] = rows[fitted.offsets[tracks[-1]]] = 10**6
    negative = fitted.offsets.copy()
    negative[tracks[-1]] = -4
    elsewhere = listening.recent.copy()
    elsewhere[-1] = N
    short = Sequences(fitted.offsets[: 2 * 5 + 1], fitted.rows, fitted.weights, fitted.damping[:5], fitted.shares)
    for other, tables_of in (
        (listening, replace(fitted, offsets=beyond)),
        (listening, replace(fitted, offsets=negative)),
        (listening, replace(fitted, rows=rows)),
        (listening, short),
        (replace(listening, recent=elsewhere), fitted),
        (replace(listening, rows=listening.rows - 10), fitted),
    ):
        with pytest.raises(IndexError):
            Moment(other, tables_of)
    for other in (replace(listening, counts=listening.counts[:-1]), replace(listening, recent_times=times[:3])):
        with pytest.raises(ValueError, match="differ in length"):
            Moment(other, fitted)
    for row in (-1, N):
        with pytest.raises(IndexError):
            Moment(listening, fitted).signals(np.array([row]))


def test_lists_longer_than_all_tracks_take_memory_for_each_track_once(compiled: Callable[[bool], None]) -> None:
    """Of a bundle that another tool wrote: with the same list behind each of the last plays, tables never ended."""
    compiled(True)
    n, m = 3, 2**23
    nothing, one = np.empty(0, np.int64), np.zeros(m, np.int32)
    offsets = np.array([0, m, m, m, m, m, m], np.int32)
    tables = Sequences(offsets, one, np.ones(m, np.float16), np.ones(n, np.float16), np.zeros(3, np.float32))
    recent = np.zeros(MAX_RECENT, np.int64)
    times = np.arange(1, MAX_RECENT + 1)
    none = nothing, nothing.astype(np.float32), nothing, nothing, np.empty((0, 3), np.float32)
    moment = Moment(Listening(n, *none, recent, times, np.zeros(MAX_RECENT, np.int64), 0), tables)
    assert moment.signals(np.arange(n))[0, N_OWN] == 1
