"""What the page of a dataset draws, against a reading of the plays in plain Python."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.data.dataset import Events
from lhydra.data.distributions import FEWEST_RETURNS, MOST_STEPS, YOUNGEST_S, doubling, over_time, returns

START = 1_577_836_800  # Wednesday, 1 January 2020


def events(plays: list[tuple[int, int, int, float]]) -> Events:
    """Plays (user, track, time, count) in order of listening."""
    plays = sorted(plays, key=lambda play: (play[0], play[2]))
    user, track, time, count = (np.array(values) for values in zip(*plays, strict=True))
    unknown = np.full(len(plays), -1)
    return Events(
        user=user.astype(np.int32),
        track=track.astype(np.int32),
        time=time.astype(np.int64),
        position=unknown,
        count=count.astype(np.float32),
        session=unknown.astype(np.int32),
        skipped=unknown.astype(np.int8),
        completed=unknown.astype(np.int8),
        ms_played=unknown,
        fold=np.zeros(len(plays), np.int8),
    )


SPANS = st.sampled_from([1, 60, 3_600, 86_400, 30 * 86_400, 3 * 365 * 86_400, 40 * 365 * 86_400])


@st.composite
def logs(draw: st.DrawFn) -> list[tuple[int, int, int, float]]:
    """Plays of a few users and tracks in a span that is drawn too; some without a time."""
    span = draw(SPANS)
    play = st.tuples(
        st.integers(0, 2),
        st.integers(0, 2),
        st.just(0) | st.integers(START, START + span),
        st.sampled_from([1.0, 1.0, 3.0, 0.5]),
    )
    return draw(st.lists(play, min_size=1, max_size=30))


def step_of(name: str, second: int) -> str:
    """The start of the step that a second lies in."""
    at = datetime.fromtimestamp(second, UTC)
    if name in ("minute", "hour"):
        return at.strftime("%Y-%m-%dT%H:%M" if name == "minute" else "%Y-%m-%dT%H:00")
    if name == "week":
        at -= timedelta(days=at.weekday())
    return at.strftime({"month": "%Y-%m-01", "year": "%Y-01-01"}.get(name, "%Y-%m-%d"))


@settings(max_examples=60, deadline=None)
@given(plays=logs())
def test_plays_over_time_are_those_of_each_step(plays: list[tuple[int, int, int, float]]) -> None:
    found = over_time(events(plays))
    expected: Counter[str] = Counter()
    for _, _, time, count in plays:
        if time:
            assert found is not None
            expected[step_of(found.step, time)] += count  # type: ignore[assignment]
    if found is None:
        assert not expected
        return
    assert {start: plays for start, plays in zip(found.starts, found.plays, strict=True) if plays} == expected
    assert found.starts == sorted(set(found.starts))
    assert len(found.starts) <= MOST_STEPS
    assert found.plays[0] > 0 < found.plays[-1]


def test_a_log_of_three_years_is_told_by_weeks_from_monday() -> None:
    found = over_time(events([(0, 0, START, 1), (0, 0, START + 3 * 365 * 86_400, 1)]))
    assert found is not None
    assert (found.step, found.starts[:2]) == ("week", ["2019-12-30", "2020-01-06"])


@given(st.lists(st.sampled_from([0.5, 1, 1.5, 2, 3, 4, 7, 8, 1e12]) | st.integers(1, 1 << 40), min_size=1))
def test_doubling_bins_hold_what_lies_between_powers_of_two(values: list[float]) -> None:
    expected = Counter(max(int(value), 1).bit_length() - 1 for value in values)
    assert {place: int(n) for place, n in enumerate(doubling(np.array(values, np.float64))) if n} == expected


@settings(max_examples=60, deadline=None)
@given(plays=logs())
def test_returns_by_age_are_those_of_a_life_table(plays: list[tuple[int, int, int, float]]) -> None:
    timed = sorted(play for play in plays if play[2])
    last = {user: max(time for other, _, time, _ in timed if other == user) for user, _, _, _ in timed}
    lives: list[tuple[int, bool]] = []  # for how long a play was the last of its track, and whether it came back
    for pair in {play[:2] for play in timed}:
        times = sorted(time for user, track, time, _ in timed if (user, track) == pair)
        lives += [(after - before, True) for before, after in pairwise(times)]
        lives.append((last[pair[0]] - times[-1], False))
    found = returns(events(plays))
    oldest = max((age for age, _ in lives), default=0)
    if found is None:
        assert oldest <= YOUNGEST_S
        return
    assert found.youngest[0] == YOUNGEST_S
    assert (found.oldest[:-1] == found.youngest[1:]).all()
    assert ((found.oldest / found.youngest >= 1.5) & (found.oldest / found.youngest <= 2.5)).all()
    assert found.youngest[-1] <= oldest < found.oldest[-1]
    for low, high, came, exposure in zip(found.youngest, found.oldest, found.returns, found.exposure, strict=True):
        assert came == sum(low <= age < high for age, back in lives if back)
        assert exposure == sum(min(max(age - low, 0), high - low) for age, _ in lives)
    for came, exposure, rate in zip(found.returns, found.exposure, found.per_day, strict=True):
        assert rate == pytest.approx(came * 86_400 / exposure) if came >= FEWEST_RETURNS else np.isnan(rate)


def test_returns_that_fall_as_a_power_of_age_are_found_to() -> None:
    rng = np.random.default_rng(0)
    plays = []
    for user in range(50):  # a hazard of 1 / age: half of what has an age comes back before twice that age
        time, age = START, 0
        while time < START + 1_000_000:
            plays.append((user, 0, time, 1.0))
            age = int(120 / rng.uniform(1e-9, 1))
            time += age
        plays.append((user, 1, START + 1_000_000, 1.0))
    found = returns(events(plays))
    assert found is not None
    good = ~np.isnan(found.per_day) & (found.youngest >= 240)
    slope = np.polyfit(np.log(found.youngest[good]), np.log(found.per_day[good]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.15)
