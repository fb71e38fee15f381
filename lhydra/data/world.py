"""The hidden structure of the synthetic world: styles, tracks, users, and how the ones like the others.

Everything here follows from (users, tracks, plays, seed). A track lies in one of CELLS cells (a style and one
of three moods); a user likes cells, and within a cell tracks are taken by popularity. docs/synthetic-world.md
lists the planted effects. No matrix product is used: BLAS would let the thread count change the last bits.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lhydra.data.names import artist_names, track_titles
from lhydra.data.scenes import (
    COUNTRIES,
    COUNTRY_REGION,
    COUNTRY_SHARE,
    GENDERS,
    GENRES,
    HOME_GENRES,
    MOODS,
    REGIONS,
    STYLE_GENRE,
    STYLE_MOOD,
    STYLE_YEAR,
    STYLES,
)
from lhydra.domain import F32, I64

START = 1_672_531_200  # 2023-01-01 UTC, Unix s: the first day of the window
DAYS = 731  # to 2024-12-31
EPOCHS = 8  # taste is constant within one, and drifts from one to the next
LATENT = 8  # width of the personal taste vector
TRACKS_PER_ARTIST = 8
ZIPF, ZIPF_SHIFT = 1.0, 3.0  # the weight of the track of rank r is (r + shift) ** -zipf
NEW_TRACKS, NEW_USERS, NOISY_USERS = 0.20, 0.40, 0.03  # shares
MIN_PLAYS = 5  # rows per user, where the numbers allow it
DRIFT = math.radians(75)  # how far personal taste turns over the window
PERSONAL, AGE, PLACE, MOOD = 1.5, 2.0, 1.5, 2.0  # strengths of what makes a user like a cell

CELLS = len(STYLES) * len(MOODS)


@dataclass(frozen=True)
class Shelf:
    """Tracks grouped (by cell, by artist …), each group in order of release, so that any span of days is a slice."""

    order: npt.NDArray[np.int32]  # (n,) tracks by (group, release day)
    key: I64  # (n,) group * (DAYS + 1) + release day, ascending
    mass: npt.NDArray[np.float64]  # (n + 1,) cumulated weights along `order`

    @classmethod
    def of(
        cls, group: npt.NDArray[np.integer], day: npt.NDArray[np.integer], weight: npt.NDArray[np.float64]
    ) -> "Shelf":
        """Returns the shelf of all tracks; group, release day and weight (n,) each.

        Args:
            group: (n,) of each track.
            day: (n,) of release.
            weight: (n,) float64, how often it is drawn.

        Returns:
            The shelf.
        """
        key = group.astype(np.int64) * (DAYS + 1) + day
        order = np.argsort(key, kind="stable").astype(np.int32)
        mass = np.zeros(len(order) + 1)
        np.cumsum(weight[order], out=mass[1:])
        return cls(order, key[order], mass)

    def draw(self, group: I64, after: I64 | int, day: I64, r: npt.NDArray[np.float64]) -> I64:
        """Returns a track of each `group` released in (after, day], taken by weight; -1 where there is none.

        Args:
            group: (n,) int64.
            after: days, -1 for any.
            day: (n,) int64.
            r: (n,) uniform in [0, 1).

        Returns:
            (n,) int32 tracks, -1 where there is none.
        """
        low = np.searchsorted(self.key, group * (DAYS + 1) + after, side="right")
        high = np.searchsorted(self.key, group * (DAYS + 1) + day, side="right")
        none = low >= high
        target = self.mass[low] + r * (self.mass[high] - self.mass[low])
        at = np.searchsorted(self.mass, target, side="right") - 1
        at = np.clip(at, low, np.maximum(high - 1, low))
        return np.where(none, -1, self.order[np.minimum(at, len(self.order) - 1)])


@dataclass(frozen=True)
class Catalog:
    """All tracks, arrays (n,) by position."""

    artist: npt.NDArray[np.int32]
    artist_names: pa.StringArray  # by artist
    title: npt.NDArray[np.int32]  # position in `names.every_title()`
    style: npt.NDArray[np.int32]
    mood: npt.NDArray[np.int32]  # position in MOODS
    pulse: npt.NDArray[np.float64]  # the number behind the mood and most audio features
    brightness: npt.NDArray[np.float64]  # the number behind valence
    release_day: npt.NDArray[np.int32]  # 0: before the window
    weight: npt.NDArray[np.float64]  # popularity, Zipf-Mandelbrot

    @property
    def cell(self) -> npt.NDArray[np.int32]:
        """The cell of each track, (n,): style * 3 + mood."""
        return self.style * len(MOODS) + self.mood


@dataclass(frozen=True)
class Audience:
    """All users, arrays (n,) by position."""

    age: npt.NDArray[np.int32]
    gender: npt.NDArray[np.int32]
    country: npt.NDArray[np.int32]
    arrival_day: npt.NDArray[np.int32]  # no play before it
    noisy: npt.NDArray[np.bool_]
    personal: F32  # (n, 2, LATENT): taste turns from the first vector towards the second
    mood: npt.NDArray[np.float64]  # preferred mood, -1 calm to 1 driving
    plays: I64  # rows of the log


@dataclass(frozen=True)
class World:
    """Everything hidden; made by `make_world`."""

    catalog: Catalog
    audience: Audience
    style_vectors: F32  # (styles, LATENT): what the personal vectors are multiplied with
    place_genre: npt.NDArray[np.float64]  # (countries, genres) logits
    gender_genre: npt.NDArray[np.float64]  # (genders, genres) logits
    cell_mass: npt.NDArray[np.float64]  # (CELLS,) popularity of each cell's tracks together
    by_cell: Shelf
    by_artist: Shelf
    by_release: Shelf  # one group, uniform weights: what noisy users draw from

    def taste(self, users: slice) -> npt.NDArray[np.float64]:
        """Returns the probability of each cell.

        Args:
            users: which.

        Returns:
            (users, EPOCHS, CELLS) float64, rows summing to 1.
        """
        audience = self.audience
        angle = (DRIFT * np.arange(EPOCHS) / (EPOCHS - 1)).astype(np.float32)
        turn = np.stack([np.cos(angle), np.sin(angle)])
        vector = np.einsum("uvd,ve->ued", audience.personal[users], turn)
        style = PERSONAL * np.einsum("ued,sd->ues", vector, self.style_vectors).astype(np.float64)
        style += self.demographic_taste(users)[:, None, :]
        centre = np.linspace(-1, 1, len(MOODS))
        mood = -MOOD * (audience.mood[users][:, None] - centre) ** 2
        logits = (style[:, :, :, None] + mood[:, None, None, :]).reshape(len(mood), EPOCHS, CELLS)
        chance = np.exp(logits - logits.max(axis=-1, keepdims=True)) * self.cell_mass
        chance /= chance.sum(axis=-1, keepdims=True)
        return np.asarray(chance)

    def demographic_taste(self, users: slice) -> npt.NDArray[np.float64]:
        """Returns the part of the style logits that age, gender and country explain, (users, styles).

        Args:
            users: which.

        Returns:
            (users, styles) float64.
        """
        audience = self.audience
        loved_at = np.clip(2024 - STYLE_YEAR + 18, 16, 68)  # the age of those who were 18 in its year
        age = -0.5 * ((audience.age[users][:, None] - loved_at) / 14) ** 2
        genre = PLACE * self.place_genre[audience.country[users]] + self.gender_genre[audience.gender[users]]
        return np.asarray(AGE * np.maximum(age, -3) + genre[:, STYLE_GENRE])


def generator(seed: int, *stage: int) -> np.random.Generator:
    """Returns the random stream of one stage of the world `seed`.

    Args:
        seed: of the world.
        stage: numbers of the stage.

    Returns:
        A generator that depends on these alone.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=stage)))


def make_world(users: int, tracks: int, plays: int, seed: int) -> World:
    """Returns the world of these sizes.

    Args:
        users: how many, at least 1.
        tracks: how many, at least 1.
        plays: how many, at least as many as users.
        seed: 0 or more.

    Returns:
        The world; sizes are not checked here.
    """
    rng = generator(seed, 0)
    genre_vectors = rng.normal(size=(len(GENRES), LATENT))
    style_vectors = 0.75 * genre_vectors[STYLE_GENRE] + 0.65 * rng.normal(size=(len(STYLES), LATENT))
    place = 0.6 * rng.normal(size=(len(REGIONS), len(GENRES)))[COUNTRY_REGION]
    place += 0.5 * rng.normal(size=(len(COUNTRIES), len(GENRES)))
    for country, region in enumerate(COUNTRY_REGION):
        for genre in HOME_GENRES[region]:
            place[country, GENRES.index(genre)] += 1.5
    gender = 0.5 * rng.normal(size=(len(GENDERS), len(GENRES)))
    catalog = _make_catalog(tracks, generator(seed, 1))
    audience = _make_audience(users, plays, generator(seed, 2))
    mass = np.bincount(catalog.cell, catalog.weight, CELLS)
    return World(
        catalog,
        audience,
        (style_vectors / math.sqrt(LATENT) * 1.6).astype(np.float32),
        place,
        gender,
        mass / mass.sum(),
        Shelf.of(catalog.cell, catalog.release_day, catalog.weight),
        Shelf.of(catalog.artist, catalog.release_day, np.sqrt(catalog.weight)),
        Shelf.of(np.zeros(tracks, np.int64), catalog.release_day, np.ones(tracks)),
    )


def _make_catalog(n: int, rng: np.random.Generator) -> Catalog:
    artists = max(1, round(n / TRACKS_PER_ARTIST))
    size = np.cumsum((np.arange(artists) + 5.0) ** -0.5)
    artist = np.searchsorted(size / size[-1], rng.random(n), side="right").astype(np.int32)
    artist = rng.permutation(artists).astype(np.int32)[np.minimum(artist, artists - 1)]
    style_share = rng.dirichlet(np.full(len(STYLES), 4.0))
    main_style = rng.choice(len(STYLES), size=artists, p=style_share)
    each = len(STYLES) // len(GENRES)  # styles of a genre, next to each other
    sibling = STYLE_GENRE[main_style] * each + rng.integers(each, size=artists)
    style = np.where(rng.random(n) < 0.85, main_style[artist], sibling[artist]).astype(np.int32)
    pulse = STYLE_MOOD[style] + 0.35 * rng.normal(size=artists)[artist] + 0.5 * rng.normal(size=n)
    brightness = 0.6 * rng.normal(size=len(STYLES))[style] + 0.8 * rng.normal(size=n)
    mood = np.digitize(pulse, [-0.4, 0.5]).astype(np.int32)
    fame = rng.normal(size=artists)[artist] + rng.normal(size=n)
    rank = np.empty(n)
    rank[np.argsort(-fame, kind="stable")] = np.arange(n)
    weight = (rank + 1 + ZIPF_SHIFT) ** -ZIPF
    release_day = np.where(rng.random(n) < NEW_TRACKS, rng.integers(1, DAYS, size=n), 0).astype(np.int32)
    cell = style * len(MOODS) + mood
    oldest = np.lexsort((release_day, cell))
    first = oldest[np.flatnonzero(np.diff(cell[oldest], prepend=-1))]
    release_day[first] = 0  # no cell is ever without a track to play
    names, title = artist_names(artists, rng), track_titles(n, rng)
    return Catalog(artist, names, title, style, mood, pulse, brightness, release_day, weight / weight.sum())


def _make_audience(n: int, plays: int, rng: np.random.Generator) -> Audience:
    age = np.clip(14 + rng.gamma(2.2, 10.0, size=n), 14, 85).astype(np.int32)
    arrival = np.where(rng.random(n) < NEW_USERS, (DAYS - 7) * np.sqrt(rng.random(n)), 0).astype(np.int32)
    mood = np.clip(0.7 * rng.normal(size=n) - (age - 34) / 40, -1.5, 1.5)
    base = min(MIN_PLAYS, plays // n)
    activity = np.exp(0.8 * rng.normal(size=n)) * (DAYS - arrival)
    rest = rng.multinomial(plays - base * n, activity / activity.sum())
    return Audience(
        age=age,
        gender=rng.integers(len(GENDERS), size=n).astype(np.int32),
        country=rng.choice(len(COUNTRIES), size=n, p=COUNTRY_SHARE / COUNTRY_SHARE.sum()).astype(np.int32),
        arrival_day=arrival,
        noisy=rng.random(n) < NOISY_USERS,
        personal=rng.normal(size=(n, 2, LATENT)).astype(np.float32),
        mood=mood,
        plays=base + rest.astype(np.int64),
    )
