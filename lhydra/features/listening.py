"""What one user has played, by rows of a catalog, and which of it belongs to the session that goes on."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lhydra.domain import F32, HALF_LIVES_DAYS, I64, MAX_RECENT
from lhydra.features.histories import Histories

DAY_S, MINUTE_S = 86_400.0, 60.0
PAUSE_S = 1_800  # a longer pause ends a session
AWAY_S = 30 * DAY_S  # who was away longer is answered as after this: there is little to learn from


def plays_in_session(times: I64, clock: float) -> int:
    """Counts the plays of the session that goes on: those without a pause of more than PAUSE_S up to the clock.

    Args:
        times: (r,) int64 Unix seconds of the last plays, oldest first.
        clock: Unix seconds.

    Returns:
        How many of the last ones, 0 where the session is over.
    """
    if not len(times) or clock - times[-1] > PAUSE_S:
        return 0
    pauses = np.flatnonzero(np.diff(times) > PAUSE_S)
    return len(times) - (int(pauses[-1]) + 1 if len(pauses) else 0)


@dataclass(frozen=True)
class Listening:
    """What one user has played, by rows of a catalog of n tracks.

    Args:
        n: tracks of the catalog.
        rows: (h,) int64, distinct.
        counts: (h,) float32.
        last: (h,) int64 Unix seconds of the last play, 0 or less unknown.
        first: (h,) int64 of the first play, 0 unknown.
        decayed: (h, 3) float32 counts decayed at HALF_LIVES_DAYS, as of the last play.
        recent: (r,) int64 rows of the last plays, oldest first.
        recent_times: (r,) int64.
        recent_flags: (r,) int64.
        now: Unix seconds.
    """

    n: int
    rows: I64
    counts: F32
    last: I64
    first: I64
    decayed: F32
    recent: I64
    recent_times: I64
    recent_flags: I64
    now: int

    @classmethod
    def of_history(cls, history: Histories, n: int, now: int = 0) -> "Listening":
        """Makes it of a history of which no more is known: all plays of a track were at the last one.

        Args:
            history: of one user.
            n: tracks of the catalog.
            now: Unix seconds, 0 for the last play.

        Returns:
            The listening.
        """
        last = np.maximum(history.times, 0)
        decayed = np.repeat(history.counts[:, None], len(HALF_LIVES_DAYS), 1)
        recent = np.flatnonzero(history.times != 0)[-MAX_RECENT:]
        flags = np.zeros(len(recent), np.int64)
        return cls(n, history.rows, history.counts, last, last, decayed, history.rows[recent], last[recent], flags, now)

    @cached_property
    def clock(self) -> float:
        """Unix seconds that ages count from: now, but not long after the last play, which is now where now is 0."""
        away = max(self.now - self.newest, 0) if self.now and self.newest else 0
        return float(self.newest + min(away, AWAY_S))

    @cached_property
    def newest(self) -> int:
        """Unix seconds of the last play, 0 unknown."""
        return max(int(np.maximum.reduce(times, initial=0)) for times in (self.last, self.recent_times))

    @cached_property
    def in_session(self) -> int:
        """How many of the last plays belong to the session that goes on, which may be longer than they reach."""
        return plays_in_session(self.recent_times, self.clock)

    @cached_property
    def began(self) -> int:
        """Unix seconds of the first play of the session that goes on, if one does.

        Where all last plays belong to it, first and last plays of tracks tell how far it reaches back beyond them.
        """
        oldest = int(self.recent_times[len(self.recent_times) - self.in_session])
        if self.in_session < len(self.recent_times):
            return oldest
        times = np.concatenate([self.first, self.last])
        times = np.append(np.sort(times[(times > 0) & (times < oldest)]), oldest)
        pauses = np.flatnonzero(np.diff(times) > PAUSE_S)
        return int(times[pauses[-1] + 1 if len(pauses) else 0])
