"""The clock of plays that have none: a session a day, a play every 200 s, in order of listening."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lhydra.data.clock import play_times
from lhydra.data.dataset import Events


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(-1, 3), st.integers(0, 1).map(lambda known: known * 1_600_000_000)),
        max_size=30,
    )
)
def test_a_session_is_a_day_and_a_play_200_seconds(rows: list[tuple[int, int, int]]) -> None:
    rows.sort(key=lambda row: row[0])
    user, session, time = (np.array([row[n] for row in rows], np.int64) for n in range(3))
    nothing = np.full(len(rows), -1)
    events = Events(
        user.astype(np.int32), nothing.astype(np.int32), time, nothing, np.ones(len(rows), np.float32),
        session.astype(np.int32), nothing.astype(np.int8), nothing.astype(np.int8), nothing,
        np.zeros(len(rows), np.int8),
    )  # fmt: skip
    dated = {row[0] for row in rows if row[2]}
    place: Counter[tuple[int, int]] = Counter()
    law = []
    for own, which, known in rows:
        law.append(known if own in dated or which < 0 else 1_000_000_000 + which * 86_400 + place[own, which] * 200)
        place[own, which] += 1
    assert play_times(events).tolist() == law
    assert play_times(events).dtype == np.int64
