"""What a log is like, in figures: how much is played, by whom, when, how much of it again, skipped or to the end.

Every figure counts plays: a row of playcount 5 is 5 plays. What it takes is one pass over a column or two.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.data.dataset import Events, Plays
from lhydra.timing import timed

F64 = npt.NDArray[np.float64]


@timed("prepare.summarise")
def summarise(events: Events, plays: Plays, named: int) -> dict[str, Any]:
    """Returns the figures of a log; what it does not tell (times, sessions, skips, time listened) is left out.

    Args:
        events: n plays in order of listening, at least one.
        plays: what they add up to.
        named: rows of which the source says the session.

    Returns:
        As docs/data-format.md describes the `summary` of dataset.json.
    """
    per_user, per_track = (sums(key, events.count) for key in (events.user, events.track))
    total = float(per_user.sum())
    found: dict[str, Any] = {
        "kept": len(events),
        "plays": _plain(total),
        "users": int((per_user > 0).sum()),
        "tracks": int((per_track > 0).sum()),
        "per_user": spread(per_user),
        "per_track": spread(per_track),
        "repeats": repeats(plays) / total,
    }
    if (timed := int(np.count_nonzero(events.time))) > 0:
        oldest = np.min(events.time, where=events.time > 0, initial=np.iinfo(np.int64).max)
        found["time"] = {"oldest": int(oldest), "newest": int(events.time.max()), "unknown": len(events) - timed}
    if len(sizes := session_plays(events)):
        found["sessions"] = {"count": len(sizes), "named": named, "per_session": spread(sizes)}
    for name in ("skipped", "completed"):
        values = getattr(events, name)
        if known := float(events.count[values >= 0].sum(dtype=np.float64)):
            share = float(events.count[values > 0].sum(dtype=np.float64)) / known
            found[name] = {"known": _plain(known), "share": share}
    told = events.ms_played >= 0
    if told.any():
        found["listened"] = {"known": int(told.sum()), "hours": int(events.ms_played[told].sum()) / 3_600_000}
    return found


def spread(values: F64) -> dict[str, float]:
    """Returns the median, the 90th percentile and the most of those values that are above 0, each a value itself.

    Args:
        values: float64, at least one of them above 0.

    Returns:
        By `median`, `p90` and `most`: of the values in order, the first that a half, nine tenths, all do not exceed.
    """
    median, p90, most = np.quantile(values[values > 0], (0.5, 0.9, 1), method="inverted_cdf").tolist()
    return {"median": _plain(median), "p90": _plain(p90), "most": _plain(most)}


def repeats(plays: Plays) -> float:
    """Counts the plays of a track that its user had played before: of each user and track all but one.

    Args:
        plays: sums by user, track and fold.

    Returns:
        How many; it needs no times.
    """
    pair = plays.user.astype(np.int64) << 32 | plays.track
    order = np.argsort(pair)
    pair = pair[order]
    starts = np.flatnonzero(np.append(True, pair[1:] != pair[:-1]))
    totals = np.add.reduceat(plays.count[order].astype(np.float64), starts)
    return float(np.maximum(totals - 1, 0).sum())  # less than one play, of a fractional playcount, repeats nothing


def session_plays(events: Events) -> F64:
    """Returns how many plays each session has.

    Args:
        events: n plays in order of listening.

    Returns:
        (sessions,) float64, by user and session; empty where no session is known.
    """
    starts = np.flatnonzero(np.append(True, events.user[1:] != events.user[:-1]))
    numbers = np.maximum.reduceat(events.session, starts).astype(np.int64) + 1  # of sessions, by user
    offsets = np.cumsum(numbers) - numbers
    key = np.repeat(offsets, np.diff(starts, append=len(events)))
    key += events.session
    known = events.session >= 0
    sizes = sums(key, events.count) if known.all() else sums(key[known], events.count[known])
    return sizes[sizes > 0]  # a gap between folds may have taken whole sessions


def sums(key: npt.NDArray[Any], count: npt.NDArray[np.float32]) -> F64:
    """Adds up the plays of each key.

    Args:
        key: (n,) whole numbers from 0.
        count: (n,) float32 plays.

    Returns:
        (greatest key + 1,) float64.
    """
    single = bool((count == 1).all())  # then rows are counted, at half the cost
    return np.bincount(key, None if single else count).astype(np.float64)


def _plain(value: float) -> float:
    return int(value) if value.is_integer() else value
