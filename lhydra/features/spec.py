"""The one definition of features: fitted on training data, saved as JSON, called by training, rebuild and request.

Raw columns become `Encoded` arrays here and nowhere else. Features of a user's history (the audio preference
profile, top genre, diversity, totals) are computed here too, from whatever history is given, so a play that is
hidden from the history is hidden from them, offline and online alike. Cross features of a user and a track
are not here: they are computed inside the head's graph from what this module encodes.

Unknown category = 0. Missing number = the fitted default, which is 0 after scaling. Infinite numbers are refused.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra import kernels
from lhydra.domain import F32, I64
from lhydra.errors import FeatureError, complain
from lhydra.features.columns import (
    Bag,
    Category,
    Columns,
    Number,
    ProfileColumns,
    Profiles,
    joined,
    length_of,
    numbers_of,
    stacked,
)
from lhydra.features.histories import (
    MAX_GAP_DAYS,
    POSITION_SCALE,
    EncodedUsers,
    Histories,
    entry_features,
    play_weights,
    relative_weights,
    spread,
    sums,
)
from lhydra.json_text import parse_json

FORMAT = 2

AGE_BOUNDS = (18.0, 25.0, 35.0, 45.0, 55.0, 65.0)  # age group g holds AGE_BOUNDS[g-2] <= age < AGE_BOUNDS[g-1]
MAX_GENRES = 255  # the most frequent; the others count as unknown where genres are crossed and averaged
# Listening-pattern columns of a user, after the preference profile (one column per track number).
PATTERNS = ("tracks", "plays", "intensity", "genre_diversity", "genre_focus", "artist_diversity", "hours", "spread")
COUNTED = ("genre*", "quadrant", "artist")  # id columns of tracks by which a history is summed up


@dataclass(frozen=True)
class Encoded:
    """Encoded rows: dense (n, d) float32, ids (n, c) int64 with 0 = unknown, bags (n, w) int64 with 0 = nothing."""

    dense: F32
    ids: I64
    bags: I64

    def __len__(self) -> int:
        return len(self.dense)

    def __getitem__(self, rows: Any) -> "Encoded":
        return Encoded(self.dense[rows], self.ids[rows], self.bags[rows])


@dataclass(frozen=True)
class FeatureSpec:
    """The fitted features of tracks and users. Immutable; round-trips through JSON; `lhydra.features.fit` makes it."""

    track_numbers: tuple[Number, ...]
    track_categories: tuple[Category, ...]  # the first is track_id
    track_bags: tuple[Bag, ...]
    user_numbers: tuple[Number, ...]
    user_categories: tuple[Category, ...]
    genre: str | None  # the column that is a track's genre: a category, or a bag whose first value counts
    reference_year: float  # recency of a track counts from here

    # -- what the encoded columns are, in order ---------------------------------------------------------

    @cached_property
    def track_dense(self) -> tuple[str, ...]:
        """Names of the dense track columns."""
        names = [number.name for number in self.track_numbers]
        return (*names, "recency") if "year" in names else tuple(names)

    @cached_property
    def track_ids(self) -> tuple[tuple[str, int], ...]:
        """(name, size with the unknown) of the id columns of tracks."""
        known = [(category.name, len(category.values) + 1) for category in self.track_categories]
        derived = [("genre*", self._genre_size)] if self.genre else []
        quadrant = [("quadrant", 5)] if self._has_mood else []
        return (*known, *derived, *quadrant)

    @cached_property
    def bag_size(self) -> int:
        """Numbers in use by all bags, with 0 for nothing."""
        return 1 + sum(len(bag.values) for bag in self.track_bags)

    @cached_property
    def user_dense(self) -> tuple[str, ...]:
        """Names of the dense user columns: profile numbers, preference profile, listening patterns."""
        numbers = [name for number in self.user_numbers for name in (number.name, f"has_{number.name}")]
        return (*numbers, *(f"prefers_{name}" for name in self.track_dense), *PATTERNS)

    @cached_property
    def user_ids(self) -> tuple[tuple[str, int], ...]:
        """(name, size with the unknown) of the id columns of users."""
        known = [(category.name, len(category.values) + 1) for category in self.user_categories]
        age = [("age_group", len(AGE_BOUNDS) + 2)] if self._has_age else []
        genre = [("top_genre", self._genre_size)] if self.genre else []
        quadrant = [("top_quadrant", 5)] if self._has_mood else []
        return (*known, *age, *genre, *quadrant)

    @cached_property
    def profile_columns(self) -> tuple[str, ...]:
        """Names of the profile columns that are features."""
        return (*(number.name for number in self.user_numbers), *(category.name for category in self.user_categories))

    @cached_property
    def preference(self) -> slice:
        """Where the preference profile lies among the dense user columns: parallel to the dense track columns."""
        first = 2 * len(self.user_numbers)
        return slice(first, first + len(self.track_dense))

    # -- encoding ---------------------------------------------------------------------------------------

    def encode_tracks(self, columns: Columns) -> Encoded:
        """Encodes tracks; missing columns are missing features.

        Args:
            columns: raw columns of n tracks.

        Returns:
            n encoded tracks.

        Raises:
            FeatureError: columns of unequal length, or an infinite number.
        """
        n = length_of(columns)
        dense = [number.scaled(columns, n) for number in self.track_numbers]
        if "recency" in self.track_dense:
            year = numbers_of("year", columns, n)
            age = np.log1p(np.clip(self.reference_year - year, 0, 100)) / 2 - 1
            dense.append(np.where(np.isnan(year), 0.0, age))
        ids = [category.numbered(columns, n) for category in self.track_categories]
        bags = [self._bag(bag, columns, n) for bag in self.track_bags]
        if self.genre:
            by_category = {category.name: i for i, category in enumerate(self.track_categories)}
            if self.genre in by_category:
                genre = ids[by_category[self.genre]]
            else:
                at = [bag.name for bag in self.track_bags].index(self.genre)
                genre = np.maximum(bags[at][:, 0] - self.track_bags[at].first + 1, 0)
            ids.append(np.where(genre < self._genre_size, genre, 0))
        if self._has_mood:
            energy, valence = numbers_of("energy", columns, n), numbers_of("valence", columns, n)
            known = ~(np.isnan(energy) | np.isnan(valence))
            ids.append(np.where(known, 1 + 2 * (energy >= 0.5) + (valence >= 0.5), 0).astype(np.int64))
        return Encoded(stacked(dense, n, np.float32), stacked(ids, n, np.int64), joined(bags, n))

    def encode_profiles(self, columns: Columns) -> Encoded:
        """Encodes the part of users that does not depend on the history.

        Args:
            columns: raw profile columns of n users.

        Returns:
            n encoded profiles; bags are empty.

        Raises:
            FeatureError: columns of unequal length, or an infinite number.
        """
        names, n = self.profile_columns, length_of(columns)
        given = [column.tolist() if isinstance(column, np.ndarray) else column for column in map(columns.get, names)]
        rows = zip(*([None] * n if column is None else column for column in given), strict=True)
        return self.encode_profile_rows([dict(zip(names, row, strict=True)) for row in rows] if names else [{}] * n)

    def encode_profile_rows(self, profiles: Profiles) -> Encoded:
        """Encodes profiles given by row, equal to `encode_profiles`.

        Args:
            profiles: n of them, value by column; columns that are no features are ignored.

        Returns:
            n encoded profiles; bags are empty.

        Raises:
            FeatureError: an infinite number.
        """
        n, (dense, ids) = len(profiles), self._profile_numbers(profiles)
        of_numbers = np.array(dense, np.float32).reshape(n, 2 * len(self.user_numbers))
        of_categories = np.array(ids, np.int64).reshape(n, len(self.user_categories) + self._has_age)
        return Encoded(of_numbers, of_categories, np.zeros((n, 0), np.int64))

    def _profile_numbers(self, profiles: Encoded | Profiles) -> tuple[list[list[float]], list[list[int]]]:
        if isinstance(profiles, Encoded):
            return profiles.dense.tolist(), profiles.ids.tolist()
        return self.profile.encoded(profiles)

    def encode_users(self, profiles: Encoded | Profiles, histories: Histories, tracks: Encoded) -> EncodedUsers:
        """Encodes users: their profiles plus everything computed from the given histories.

        Args:
            profiles: n of them, from `encode_profiles`, or by row as `encode_profile_rows` takes them.
            histories: of the n users.
            tracks: the encoded tracks that `histories.rows` points into.

        Returns:
            n encoded users.
        """
        if kernels.compiled is not None and tracks.dense.dtype == np.float16 and tracks.ids.dtype == np.int32:
            h, counts, times = histories, np.ascontiguousarray(histories.counts), np.ascontiguousarray(histories.times)
            found = kernels.compiled.encode_histories(
                *(tracks.dense.view(np.uint16), tracks.ids, h.offsets, h.rows, counts, times),
                *(*self._profile_numbers(profiles), self._history_columns),
            )
            return EncodedUsers(found[0], found[1], histories, found[2])
        if not isinstance(profiles, Encoded):
            profiles = self.encode_profile_rows(profiles)
        n, offsets = len(profiles), histories.offsets
        lengths = offsets[1:] - offsets[:-1]
        owner = spread(np.arange(n), lengths)
        weight = play_weights(histories.counts)
        track_dense = tracks.dense.take(histories.rows, 0).astype(np.float32, copy=False)
        track_ids = tracks.ids.take(histories.rows, 0)
        summed = np.empty((len(weight), 3 + track_dense.shape[1]), np.float32)  # one pass over the segments
        summed[:, 0], summed[:, 1], summed[:, 2] = weight, histories.counts, self._hours(histories.counts, track_dense)
        np.multiply(track_dense, weight[:, None], out=summed[:, 3:])
        summed = sums(summed, offsets)
        total = np.maximum(summed[:, 0], 1e-9)
        genre = self._shares("genre*", track_ids, owner, weight, total)
        some, size = lengths > 0, np.maximum(lengths, 1)
        entry, spread_days = entry_features(histories, relative_weights(weight, offsets, summed[:, 0]))
        start = profiles.dense.shape[1]
        dense = np.empty((n, len(self.user_dense)), np.float32)
        dense[:, :start] = profiles.dense
        np.divide(summed[:, 3:], total[:, None], out=dense[:, start : -len(PATTERNS)])
        patterns = dense[:, -len(PATTERNS) :]
        patterns[:, 0] = np.log1p(lengths) / 4
        patterns[:, 1] = np.log1p(summed[:, 1]) / 6
        patterns[:, 2] = total / size / 2
        patterns[:, 3] = -(genre * np.log(np.maximum(genre, 1e-9))).sum(1) / 3
        patterns[:, 4] = genre.max(1, initial=0.0)
        patterns[:, 5] = self._distinct("artist", track_ids, owner, offsets) / size
        patterns[:, 6] = np.log1p(summed[:, 2]) / 6
        patterns[:, 7] = spread_days / MAX_GAP_DAYS
        if not some.all():
            patterns[~some] = 0
        ids = [profiles.ids]
        if self.genre:
            ids.append(_top(genre))
        if self._has_mood:
            ids.append(_top(self._shares("quadrant", track_ids, owner, weight, total)))
        return EncodedUsers(dense, np.concatenate(ids, 1), histories, entry)

    # -- JSON ------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Returns the text of features.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "FeatureSpec":
        """Parses what `to_json` wrote.

        Args:
            text: of features.json.

        Returns:
            The features.

        Raises:
            FeatureError: it is anything else.
        """
        try:
            raw = parse_json(text)
            if raw.pop("format") != FORMAT:
                raise ValueError("unknown format")
            parts: tuple[tuple[str, type], ...] = (
                ("track_numbers", Number),
                ("track_categories", Category),
                ("track_bags", Bag),
                ("user_numbers", Number),
                ("user_categories", Category),
            )
            for name, kind in parts:
                rows = [row | ({"values": tuple(row["values"])} if "values" in row else {}) for row in raw[name]]
                raw[name] = tuple(kind(**row) for row in rows)
            return cls(**raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FeatureError(complain("features.json", str(error), f"features of format {FORMAT}")) from None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the JSON, by which model and bundle are compared."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    # -- parts --------------------------------------------------------------------------------------------

    @cached_property
    def profile(self) -> ProfileColumns:
        """How profiles become numbers."""
        numbers = ((one.name, one.mean, one.std, AGE_BOUNDS if one.name == "age" else ()) for one in self.user_numbers)
        return ProfileColumns(tuple((one.name, one.index) for one in self.user_categories), tuple(numbers))

    @cached_property
    def _genre_size(self) -> int:
        sizes = {part.name: len(part.values) for part in self.track_categories}
        sizes |= {part.name: len(part.values) for part in self.track_bags}
        return 1 + min(sizes.get(self.genre or "", 0), MAX_GENRES)

    @cached_property
    def _has_mood(self) -> bool:
        return {"energy", "valence"} <= {number.name for number in self.track_numbers}

    @cached_property
    def _has_age(self) -> bool:
        return "age" in {number.name for number in self.user_numbers}

    @cached_property
    def _track_id_column(self) -> dict[str, int]:
        return {name: i for i, (name, _) in enumerate(self.track_ids)}

    @cached_property
    def _history_columns(self) -> tuple[float, ...]:
        """What `kernels.encode_histories` reads of tracks: columns, -1 for none, with sizes or scale; and constants."""
        at, dense = self._track_id_column, self.track_dense
        sized = [(at[name], self.track_ids[at[name]][1]) if name in at else (-1, 0) for name in COUNTED]
        duration = dense.index("duration_ms") if "duration_ms" in dense else -1
        scale = (self.track_numbers[duration].mean, self.track_numbers[duration].std) if duration >= 0 else (0.0, 1.0)
        profile = 2 * len(self.user_numbers), len(self.user_categories) + self._has_age
        return (*sized[0], *sized[1], *sized[2], duration, *scale, MAX_GAP_DAYS, POSITION_SCALE, *profile)

    def _bag(self, bag: Bag, columns: Columns, n: int) -> I64:
        out = np.zeros((n, bag.width), np.int64)
        index = bag.index
        for i, row in enumerate(columns.get(bag.name, ())):
            if row is not None and len(row):
                known = [number for number in map(index.get, dict.fromkeys(row)) if number][: bag.width]
                out[i, : len(known)] = known
        return out

    def _shares(self, column: str, track_ids: I64, owner: I64, weight: F32, total: F32) -> npt.NDArray[np.float64]:
        """Returns (n, size) shares of each user's listening by value of an id column; column 0 (unknown) is 0.

        `track_ids` (m, ct), `owner` (m,) or (1,) and `weight` (m,) are by history entry, `total` (n,) by user.
        """
        n = len(total)
        if column not in self._track_id_column:
            return np.zeros((n, 1))
        at = self._track_id_column[column]
        size = self.track_ids[at][1]
        flat = np.bincount(owner * size + track_ids[:, at], weight, n * size).reshape(n, size)
        flat[:, 0] = 0
        return np.asarray(flat / total[:, None])

    def _distinct(self, column: str, track_ids: I64, owner: I64, offsets: I64) -> F32:
        """Returns (n,) how many different known values of an id column each user's history holds."""
        if column not in self._track_id_column:
            return np.zeros(len(offsets) - 1, np.float32)
        at = self._track_id_column[column]
        size = self.track_ids[at][1]
        pairs = owner * size + track_ids[:, at]
        pairs.sort()  # each user's stay in place
        new = np.ones(len(pairs), np.float32)
        np.not_equal(pairs[1:], pairs[:-1], out=new[1:])
        new[pairs % size == 0] = 0
        return sums(new, offsets)

    def _hours(self, counts: F32, track_dense: F32) -> F32:
        """Returns (m,) hours of each history entry, at four minutes a play where duration is not a feature."""
        if "duration_ms" not in self.track_dense:
            return np.asarray(counts / 15, np.float32)
        at = self.track_dense.index("duration_ms")
        number = self.track_numbers[at]
        log_ms = track_dense[:, at] * number.std
        log_ms += number.mean
        np.expm1(np.minimum(np.maximum(log_ms, 0, out=log_ms), 20, out=log_ms), out=log_ms)
        return np.asarray(counts * log_ms / 3.6e6, np.float32)


def _top(shares: npt.NDArray[np.float64]) -> I64:
    """Returns (n, 1) the column with the largest share, 0 when all are 0."""
    return np.asarray(shares.argmax(1)[:, None], np.int64)
