"""Draws the plays of the synthetic world, one block of users at a time: what they like, loyalty, repeats, new releases.

Each block has its own random stream, so a block is the same whether or not others were drawn.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lhydra.data.world import CELLS, DAYS, EPOCHS, START, World
from lhydra.domain import I64

REPEAT, LOYAL, FRESH = 0.12, 0.30, 0.10  # shares of the plays that are not drawn from taste alone
FAVOURITES = 7  # artists a user is loyal to, four of them at a time
ANY_HOUR = 0.3  # share of the plays spread over the day; the others gather in the evening
FRESH_DAYS = 60  # for so long a release is new
BLOCK_USERS, BLOCK_PLAYS = 2048, 1 << 18


@dataclass(frozen=True)
class PlayBlock:
    """Plays of consecutive users, arrays (n,), in (user, time) order."""

    user: npt.NDArray[np.int32]
    track: npt.NDArray[np.int32]
    count: npt.NDArray[np.int32]
    time: I64  # Unix s


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


def draw_plays(world: World, users: slice, rng: np.random.Generator) -> PlayBlock:
    """Returns the plays of a block of users: what they like at the time, among what is released by then.

    Args:
        world: tastes, tracks and their releases.
        users: the block.
        rng: the random stream of the block.

    Returns:
        The plays, by user.
    """
    audience = world.audience
    counts = audience.plays[users]
    n, local = int(counts.sum()), np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts  # each user's first row

    arrival = audience.arrival_day[users][local].astype(np.int64)
    day = arrival + (rng.random(n) * (DAYS - arrival)).astype(np.int64)
    spread = np.where(rng.random(n) < ANY_HOUR, rng.random(n), (19 + 2.2 * rng.normal(size=n)) / 24 % 1)
    time = START + day * 86_400 + (spread * 86_400).astype(np.int64)
    order = np.argsort(local * (DAYS * 86_400) + (time - START), kind="stable")  # users stay where they are
    time, day = time[order], day[order]

    taste = world.taste(users)
    np.cumsum(taste, axis=-1, out=taste)
    taste /= taste[:, :, -1:]
    taste += np.arange(len(counts) * EPOCHS).reshape(-1, EPOCHS, 1)
    epoch = day * EPOCHS // DAYS
    cell = _draw_cell(taste, local * EPOCHS + epoch, rng.random(n))
    chosen = world.by_cell.draw(cell, -1, day, rng.random(n))

    kind = rng.random(n)
    noisy = audience.noisy[users][local]
    repeats = (kind < REPEAT) & ~noisy & (np.arange(n) > first[local])
    loyal = (kind >= REPEAT) & (kind < REPEAT + LOYAL) & ~noisy
    fresh = (kind >= REPEAT + LOYAL) & (kind < REPEAT + LOYAL + FRESH) & ~noisy

    favourite = _favourite_artists(world, taste, rng)
    slot = (day * 4 // DAYS + 4 * rng.random(n) ** 1.5).astype(np.int64)
    artist = favourite[local, np.minimum(slot, FAVOURITES - 1)]
    # all draw their numbers, those of the kind search: in a large catalogue searching is what takes the time
    own = world.by_artist.draw(artist[loyal], -1, day[loyal], rng.random(n)[loyal])
    new = world.by_cell.draw(cell[fresh], np.maximum(day[fresh] - FRESH_DAYS, 0), day[fresh], rng.random(n)[fresh])
    any_track = world.by_release.draw(np.zeros(noisy.sum(), np.int64), -1, day[noisy], rng.random(n)[noisy])
    loyal[loyal] = own >= 0
    fresh[fresh] = new >= 0
    chosen[loyal], chosen[fresh], chosen[noisy] = own[own >= 0], new[new >= 0], any_track

    source = np.arange(n)
    back = first[local] + (rng.random(n) * (source - first[local])).astype(np.int64)
    source[repeats] = back[repeats]
    while not np.array_equal(origin := source[source], source):  # a repeat of a repeat
        source = origin
    track = chosen[source]
    more = np.where(repeats | loyal, 1.2, 0.3) * ~noisy  # mean extra listens
    count = 1 + np.minimum(rng.exponential(size=n) * more, 200).astype(np.int32)
    user = (users.start + local).astype(np.int32)
    return PlayBlock(user, track.astype(np.int32), count, time)


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
