"""Listeners of the synthetic world: what they like, what they play from a list, and what they play anyway.

Chance is drawn per week, before anybody listens, and by what it decides: the same listener, session, place and track
have the same numbers whatever list was shown (common random numbers), so that two services can be compared in pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lhydra.data.listening import FRESH, FRESH_DAYS, REPEAT, RETURN_DECAY, SESSION_PLAYS, YOUNGEST_RETURN
from lhydra.data.world import CELLS, DAYS, EPOCHS, START, World, generator
from lhydra.domain import I64

F64 = npt.NDArray[np.float64]

K = 10  # tracks of a list
WEEKS = 11  # of the service: one before anything is learnt, ten after a retrain each
PAST_WEEKS = 3  # of listening before there was a service
FIRST_DAY = DAYS - 7 * WEEKS  # of the service; its last week ends with the world's window
HALF_LIKED = 20  # the track of this rank is liked by half: more are liked than a list holds
MEAN_SESSIONS, MOST_SESSIONS, MOST_PLAYS = 2.0, 6, 12  # of a listener in a week, of a listener in a week, of a session
PLAY_S, HALF_DAY_S, WEEK_S = 240, 43_200, 604_800  # sessions of a listener begin in different halves of a day
_WEEK_STAGE = 100  # of the random streams; the world's own are below


@dataclass(frozen=True)
class Taste:
    """What listeners like in a week, arrays (users, tracks); tracks that are not released are nobody's."""

    own: F64  # cumulated over tracks: chance that a play of one's own choice is of this track or one before
    fresh: F64  # the same among new releases; the last column is 0 where there are none
    liking: F64  # 0 to 1: chance that a listener who sees the track in a list plays it
    released: npt.NDArray[np.bool_]  # (tracks,)
    noisy: npt.NDArray[np.bool_]  # (users,)


class Draws(NamedTuple):
    """All chance of a week; the first axes are (users, sessions)."""

    sessions: I64  # (users,) how many each has
    start: I64  # Unix s, ascending
    plays: I64
    seen: F64  # and places
    liked: npt.NDArray[np.float32]  # and tracks
    kind: F64  # and plays of the session
    pick: F64  # and plays of the session


class Heard(NamedTuple):
    """One play. place: in the list that it was chosen from, from 1; 0 for one's own choice."""

    track: int
    time: int
    place: int


@dataclass
class Past:
    """What a listener has played, in order."""

    tracks: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def add(self, plays: Sequence[Heard]) -> None:
        """Adds plays.

        Args:
            plays: later than those before.
        """
        self.tracks += [play.track for play in plays]
        self.times += [play.time for play in plays]


def position_bias(places: int) -> F64:
    """Returns the chance that a listener looks at each place of a list, (places,): 1 for the first, and falling.

    Args:
        places: how many.

    Returns:
        1 / log2(1 + place), the discount of DCG.
    """
    return np.asarray(1 / np.log2(2 + np.arange(places)))


def first_day(week: int) -> int:
    """Returns the day of the world's window with which a week begins.

    Args:
        week: of the service, from 0; below 0 before it.

    Returns:
        Days since the window began.
    """
    return FIRST_DAY + 7 * week


def taste_of(world: World, week: int) -> Taste:
    """Returns what listeners like in a week: the world's chance of a play, over the tracks that are released.

    Args:
        world: the hidden truth.
        week: of the service.

    Returns:
        The taste. A track of chance p is liked by p / (p + h), h the listener's chance of rank HALF_LIKED.
    """
    catalog, audience, day = world.catalog, world.audience, first_day(week)
    released = catalog.release_day <= day
    new = released & (catalog.release_day > max(day - FRESH_DAYS, 0))
    cells = world.taste(slice(0, len(audience.age)))[:, day * EPOCHS // DAYS]
    chance = _chance(cells, world, released)
    chance[audience.noisy] = released / released.sum()
    rank = min(HALF_LIKED, chance.shape[1])
    half = -np.partition(-chance, rank - 1, axis=1)[:, rank - 1 : rank]
    liking = chance / (chance + np.maximum(half, np.finfo(float).tiny))
    return Taste(np.cumsum(chance, 1), np.cumsum(_chance(cells, world, new), 1), liking, released, audience.noisy)


def _chance(cells: F64, world: World, among: npt.NDArray[np.bool_]) -> F64:
    """Chance of each track `among`, (users, tracks): of its cell, (users, CELLS), and within it by popularity."""
    weight = world.catalog.weight * among
    mass = np.bincount(world.catalog.cell, weight, CELLS)
    share = np.divide(weight, mass[world.catalog.cell], out=np.zeros_like(weight), where=weight > 0)
    return np.asarray(cells[:, world.catalog.cell] * share)


def draw_week(world: World, week: int, seed: int) -> Draws:
    """Draws the chance of a week.

    Args:
        world: whose listeners; those who played more in its log have more sessions.
        week: of the service; -PAST_WEEKS is the first.
        seed: of the drill.

    Returns:
        The draws, the same for the same arguments.
    """
    rng = generator(seed, _WEEK_STAGE, week + PAST_WEEKS)
    users, tracks = len(world.audience.age), len(world.catalog.style)
    shape = users, MOST_SESSIONS
    activity = world.audience.plays / world.audience.plays.mean()
    sessions = np.minimum(rng.poisson(MEAN_SESSIONS * activity), MOST_SESSIONS)
    halves = np.argsort(rng.random((users, 14)), axis=1)[:, :MOST_SESSIONS]
    halves[np.arange(MOST_SESSIONS) >= sessions[:, None]] = 14  # behind those that are wanted
    start = np.sort(halves, axis=1) * HALF_DAY_S + rng.integers(HALF_DAY_S // 2, size=shape)
    return Draws(
        sessions,
        START + first_day(week) * 86_400 + start,
        np.minimum(1 + rng.poisson(SESSION_PLAYS - 1, size=shape), MOST_PLAYS),
        rng.random((*shape, K)),
        rng.random((*shape, tracks), dtype=np.float32),
        rng.random((*shape, MOST_PLAYS)),
        rng.random((*shape, MOST_PLAYS)),
    )


def listen(taste: Taste, draws: Draws, user: int, session: int, shown: Sequence[int], past: Past) -> list[Heard]:
    """Returns the plays of a session: those from the list, from the top down, then those that come without it.

    Args:
        taste: of the week.
        draws: of the week.
        user: who listens.
        session: of the week, from 0.
        shown: tracks of the list, best first.
        past: what they played before.

    Returns:
        As many plays as the draws give the session.
    """
    rows, n = np.asarray(shown, np.int64), int(draws.plays[user, session])
    seen = draws.seen[user, session, : len(rows)] < position_bias(len(rows))
    taken = np.flatnonzero(seen & (draws.liked[user, session, rows] < taste.liking[user, rows]))[:n]
    start = int(draws.start[user, session])
    plays = [Heard(int(rows[at]), start + PLAY_S * i, int(at) + 1) for i, at in enumerate(taken)]
    for i in range(len(plays), n):
        time = start + PLAY_S * i
        kind, pick = draws.kind[user, session, i], draws.pick[user, session, i]
        plays.append(Heard(_own_choice(taste, user, kind, pick, past, time), time, 0))
    return plays


def _own_choice(taste: Taste, user: int, kind: float, pick: float, past: Past, time: int) -> int:
    """A repeat, a new release or what taste gives, in the shares of `lhydra synth` (loyalty to artists is left out)."""
    if kind < REPEAT and not taste.noisy[user]:
        age = time - np.asarray(past.times, np.float64)
        old = np.flatnonzero(age >= YOUNGEST_RETURN)
        if len(old):
            return past.tracks[int(old[_at(np.cumsum(age[old] ** -RETURN_DECAY), pick)])]
    fresh = taste.fresh[user]
    if REPEAT <= kind < REPEAT + FRESH and fresh[-1] > 0 and not taste.noisy[user]:
        return _at(fresh, pick)
    return _at(taste.own[user], pick)


def _at(mass: F64, r: float) -> int:
    """The place that r, in [0, 1), of a cumulated mass falls on."""
    at = int(np.searchsorted(mass, r * mass[-1], side="right"))
    return min(at, len(mass) - 1)


def expected_liking(liking: F64, shown: Sequence[int]) -> float:
    """Returns how much a list is liked: the mean liking of its K places, weighed with the chance that they are seen.

    Args:
        liking: (tracks,) of the listener.
        shown: tracks, best first; places that are missing are liked by nobody.

    Returns:
        0 to 1.
    """
    bias = position_bias(K)
    return float(bias[: len(shown)] @ liking[np.asarray(shown, np.int64)] / bias.sum())


def best_list(taste: Taste, user: int, past: Past) -> I64:
    """Returns the list that a service which knew everything would show: the most liked tracks not heard before.

    Args:
        taste: of the week.
        user: whose list.
        past: what they played before.

    Returns:
        (K,) tracks, best first; fewer where fewer are left.
    """
    liking = np.where(taste.released, taste.liking[user], -1.0)
    liking[past.tracks] = -1.0
    order = np.argsort(-liking, kind="stable")[:K]
    return np.asarray(order[liking[order] >= 0], np.int64)
