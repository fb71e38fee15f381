"""Draws the plays of the synthetic world, one block of users at a time: sessions, what is liked, what returns, skips.

Each block has its own random stream, so a block is the same whether or not others were drawn.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lhydra.data.world import CELLS, DAYS, EPOCHS, START, World
from lhydra.domain import I64

REPEAT, LOYAL, FRESH = 0.20, 0.30, 0.10  # shares of the plays that are not drawn from taste alone
FAVOURITES = 7  # artists a user is loyal to, four of them at a time
ANY_HOUR = 0.3  # share of the sessions spread over the day; the others gather in the evening
FRESH_DAYS = 60  # for so long a release is new
SESSION_PLAYS = 5  # mean plays of a session
THEME = 0.6  # share of a session's plays that stay with its cell, and with its favourite artist
RETURN_DECAY = 0.9  # a play of this age is repeated with chance age ** -decay (Anderson & Schooler 1991)
YOUNGEST_RETURN = 3_600  # s; what was played since is not repeated
MEMORY = 1_000  # plays; what lies further back is not repeated
SKIPPED = {"repeat": 0.04, "loyalty": 0.08, "taste": 0.18, "new_release": 0.25, "noise": 0.40}  # chance, by origin
STOPPED = 0.08  # share of the plays not skipped that end early all the same
LONGEST_PLAY, LONGEST_BREATH, PAUSE = 900, 600, 1_800  # s: a play, what lies between two of a session, between sessions
BLOCK_USERS, BLOCK_PLAYS = 2048, 1 << 18
_PAIRS = 1 << 21  # of a play and an earlier one, weighed at once
_DAY = 86_400


@dataclass(frozen=True)
class PlayBlock:
    """Plays of consecutive users, arrays (n,), in (user, time) order."""

    user: npt.NDArray[np.int32]
    track: npt.NDArray[np.int32]
    count: npt.NDArray[np.int32]
    time: I64  # Unix s
    session: npt.NDArray[np.int32]  # of the user, from 0
    skipped: npt.NDArray[np.bool_]
    completed: npt.NDArray[np.bool_]
    ms_played: npt.NDArray[np.int32]


class _Sessions(NamedTuple):
    """Which session each row is in, (n,), and each session's user and start, (sessions,) in (user, time) order."""

    of_row: I64
    user: I64  # place in the block
    start: I64  # s since START
    pace: npt.NDArray[np.float64]  # 1, below for a log that only fits when it is played faster


def blocks(world: World) -> list[slice]:
    """Returns the users of each block: at most BLOCK_USERS, and at most BLOCK_PLAYS rows unless one user has more.

    Args:
        world: whose users.

    Returns:
        Slices of users, in order.
    """
    ends = np.cumsum(world.audience.plays)
    found, start = [], 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + BLOCK_PLAYS, side="right"))
        stop = max(start + 1, min(stop, start + BLOCK_USERS))
        found.append(slice(start, stop))
        start = stop
    return found


def draw_plays(world: World, users: slice, rng: np.random.Generator, duration_ms: npt.NDArray[np.int32]) -> PlayBlock:
    """Returns the plays of a block of users: what they like at the time, among what is released by then.

    Args:
        world: tastes, tracks and their releases.
        users: the block.
        rng: the random stream of the block.
        duration_ms: (tracks,) int32.

    Returns:
        The plays, by user.
    """
    audience = world.audience
    counts = audience.plays[users]
    n, local = int(counts.sum()), np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts  # each user's first row
    sessions = _draw_sessions(counts, audience.arrival_day[users].astype(np.int64), rng)
    session_day = sessions.start // _DAY
    day = session_day[sessions.of_row]

    taste = world.taste(users)
    np.cumsum(taste, axis=-1, out=taste)
    taste /= taste[:, :, -1:]
    taste += np.arange(len(counts) * EPOCHS).reshape(-1, EPOCHS, 1)
    theme = _draw_cell(taste, sessions.user * EPOCHS + session_day * EPOCHS // DAYS, rng.random(len(session_day)))
    cell = _draw_cell(taste, local * EPOCHS + day * EPOCHS // DAYS, rng.random(n))
    in_theme = rng.random(n) < THEME
    cell = np.where(in_theme, theme[sessions.of_row], cell)
    chosen = world.by_cell.draw(cell, -1, day, rng.random(n))

    kind = rng.random(n)
    noisy = audience.noisy[users][local]
    loyal = (kind >= REPEAT) & (kind < REPEAT + LOYAL) & ~noisy
    fresh = (kind >= REPEAT + LOYAL) & (kind < REPEAT + LOYAL + FRESH) & ~noisy

    favourite = _favourite_artists(world, taste, rng)
    which = np.where(in_theme, rng.random(len(session_day))[sessions.of_row], rng.random(n))
    slot = (day * 4 // DAYS + 4 * which**1.5).astype(np.int64)
    artist = favourite[local, np.minimum(slot, FAVOURITES - 1)]
    # all draw their numbers, those of the kind search: in a large catalogue searching is what takes the time
    own = world.by_artist.draw(artist[loyal], -1, day[loyal], rng.random(n)[loyal])
    new = world.by_cell.draw(cell[fresh], np.maximum(day[fresh] - FRESH_DAYS, 0), day[fresh], rng.random(n)[fresh])
    any_track = world.by_release.draw(np.zeros(noisy.sum(), np.int64), -1, day[noisy], rng.random(n)[noisy])
    loyal[loyal] = own >= 0
    fresh[fresh] = new >= 0
    chosen[loyal], chosen[fresh], chosen[noisy] = own[own >= 0], new[new >= 0], any_track

    # how long each play may take is laid out before what is repeated is known: a repeat looks back in time
    breath = np.minimum(rng.exponential(20, n), LONGEST_BREATH)
    part = rng.random(n)
    begun = np.flatnonzero(np.diff(sessions.of_row, prepend=-1))

    def times(skipped: npt.NDArray[np.bool_], track: I64) -> tuple[I64, npt.NDArray[np.int32]]:
        played = _listened(skipped, part, duration_ms[track])
        takes = np.minimum(played / 1000, LONGEST_PLAY) + breath
        before = np.cumsum(takes) - takes
        within = (before - before[begun][sessions.of_row]) * sessions.pace[local]
        return sessions.start[sessions.of_row] + within.astype(np.int64), played

    origin = np.select([noisy, loyal, fresh], [4, 1, 3], default=2)
    chance, skip = np.array(list(SKIPPED.values())), rng.random(n)
    planned, _ = times(skip < chance[origin], chosen)
    source = _repeated((kind < REPEAT) & ~noisy, planned, local, first, rng.random(n))
    repeats = source < np.arange(n)
    origin[repeats] = 0
    while not np.array_equal(earlier := source[source], source):  # a repeat of a repeat
        source = earlier
    track = chosen[source]
    skipped = skip < chance[origin]
    time, played = times(skipped, track)
    more = np.where(repeats | loyal, 1.2, 0.3) * ~noisy  # mean extra listens
    count = 1 + np.minimum(rng.exponential(size=n) * more, 200).astype(np.int32)
    first_session = np.searchsorted(sessions.user, np.arange(len(counts)))
    return PlayBlock(
        user=(users.start + local).astype(np.int32),
        track=track.astype(np.int32),
        count=count,
        time=START + time,
        session=(sessions.of_row - first_session[local]).astype(np.int32),
        skipped=skipped,
        completed=played == duration_ms[track],
        ms_played=played,
    )


def _draw_sessions(counts: I64, arrival_day: I64, rng: np.random.Generator) -> _Sessions:
    """Parts each user's rows, `counts` of them, into sessions in order of time, each pair of them PAUSE apart.

    A session has room for its plays at their longest. Where a user's sessions would overlap they move on; where the
    window then ends too soon they move back; a log that does not fit at all is played faster.
    """
    n, local = int(counts.sum()), np.repeat(np.arange(len(counts)), counts)
    begins = rng.random(n) < 1 / SESSION_PLAYS
    begins[np.cumsum(counts) - counts] = True
    of_row = np.cumsum(begins) - 1
    user, m = local[begins], int(begins.sum())
    arrival = arrival_day[user]
    day = arrival + (rng.random(m) * (DAYS - arrival)).astype(np.int64)
    hour = np.where(rng.random(m) < ANY_HOUR, rng.random(m), (19 + 2.2 * rng.normal(size=m)) / 24 % 1)
    wished = day * _DAY + (hour * _DAY).astype(np.int64)
    wished = wished[np.argsort(user * (DAYS * _DAY) + wished, kind="stable")]  # users stay where they are

    room = np.bincount(of_row) * (LONGEST_PLAY + LONGEST_BREATH) + PAUSE + 1.0
    total, window = np.bincount(user, room), (DAYS - arrival_day) * float(_DAY)
    pace = np.minimum(1.0, window / total)
    room *= pace[user]
    total *= pace
    ends = np.cumsum(room)
    before = ends - room
    before -= before[np.searchsorted(user, np.arange(len(counts)))][user]  # of the user's own
    slack = wished - before - arrival * float(_DAY)  # time that is left over before each session
    stride = 2.0 * DAYS * _DAY  # more than any slack, so that users do not mix
    slack = np.maximum.accumulate(np.maximum(slack, 0) + user * stride) - user * stride
    slack = np.minimum(slack, (window - total)[user])
    start = (arrival * float(_DAY) + before + slack).astype(np.int64)
    return _Sessions(of_row, user, start, pace)


def _listened(
    skipped: npt.NDArray[np.bool_], part: npt.NDArray[np.float64], duration_ms: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Returns ms listened, (n,): a skip takes a few seconds to half a minute, seldom a play ends before its end."""
    early = np.minimum(2_000 + 28_000 * part**2, 0.5 * duration_ms)
    stopped = np.where(part < STOPPED, (0.5 + 0.45 * part / STOPPED) * duration_ms, duration_ms)
    return np.where(skipped, early, stopped).astype(np.int32)


def _repeated(wanted: npt.NDArray[np.bool_], time: I64, local: I64, first: I64, r: npt.NDArray[np.float64]) -> I64:
    """Returns for each row the row it repeats, itself where none: one of this age with chance age ** -RETURN_DECAY.

    wanted, time, local, r: (n,), rows in order of user and time; first: (users,) each user's first row.
    """
    source = np.arange(len(time))
    stride = 4 * DAYS * _DAY  # so that users do not mix
    old = np.searchsorted(local * stride + time, local * stride + time - YOUNGEST_RETURN, side="right")
    oldest = np.maximum(first[local], source - MEMORY)
    rows = np.flatnonzero(wanted & (old > oldest))
    ends = np.cumsum((old - oldest)[rows])
    for part in np.split(rows, np.searchsorted(ends, np.arange(_PAIRS, ends[-1] if len(ends) else 0, _PAIRS))):
        sizes = (old - oldest)[part]
        ends_here = np.cumsum(sizes)
        of_pair = np.repeat(np.arange(len(part)), sizes)
        earlier = oldest[part][of_pair] + np.arange(len(of_pair)) - (ends_here - sizes)[of_pair]
        mass = np.cumsum((time[part][of_pair] - time[earlier]).astype(np.float64) ** -RETURN_DECAY)
        above = mass[ends_here - 1]
        below = np.concatenate([np.zeros(min(1, len(part))), above[:-1]])
        at = np.searchsorted(mass, below + r[part] * (above - below), side="right")
        source[part] = earlier[np.clip(at, ends_here - sizes, ends_here - 1)]
    return source


def _draw_cell(cumulated: npt.NDArray[np.float64], row: I64, r: npt.NDArray[np.float64]) -> I64:
    """A cell for each (user, epoch) row; cumulated: row number + cumulated chances, ascending when flattened."""
    at = np.searchsorted(cumulated.reshape(-1), row + r * (1 - 1e-9), side="right")
    return np.asarray(np.minimum(at - row * CELLS, CELLS - 1), np.int64)


def _favourite_artists(world: World, cumulated: npt.NDArray[np.float64], rng: np.random.Generator) -> I64:
    """Each user's favourite artists from the first half year's to the last's, (users, FAVOURITES)."""
    n = len(cumulated)
    epoch = np.arange(FAVOURITES) * EPOCHS // FAVOURITES
    row = (np.arange(n)[:, None] * EPOCHS + epoch).reshape(-1)
    cell = _draw_cell(cumulated, row, rng.random(n * FAVOURITES))
    day = np.tile((epoch + 1) * DAYS // EPOCHS, n)
    track = world.by_cell.draw(cell, -1, day, rng.random(n * FAVOURITES))
    return world.catalog.artist[track].astype(np.int64).reshape(n, FAVOURITES)
