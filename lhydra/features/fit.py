"""How the features are fitted on the train fold: which values get a number, and how numbers are scaled."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.features.columns import Bag, Category, Columns, Number, numbers_of, text_of
from lhydra.features.spec import FeatureSpec

CONSTANT = 1e-12  # of the largest number: a smaller deviation is rounding, and the column is constant


def fit_features(
    tracks: Columns,
    users: Columns,
    track_kinds: Mapping[str, str],
    user_kinds: Mapping[str, str],
    trained: npt.NDArray[np.bool_],
) -> FeatureSpec:
    """Fits the features on raw columns.

    Args:
        tracks: `track_id` and the columns of `track_kinds`.
        users: the columns of `user_kinds`.
        track_kinds: kind by column name: numeric, categorical, multi, year or text.
        user_kinds: likewise.
        trained: (n tracks,) bool, tracks with train plays; only they get an id of their own.

    Returns:
        The fitted features.
    """
    numbers, categories, bags = [], [_track_ids(tracks, trained)], []
    years = [0.0]
    first = 1
    for name, kind in track_kinds.items():
        if kind in ("numeric", "year"):
            numbers.append(_fit_number(name, tracks[name], log=name == "duration_ms"))
        elif kind == "categorical":
            categories.append(Category(name, _frequent((tracks[name]), at_least=2, at_most=50_000)))
        elif kind == "multi":
            values = [value for row in tracks[name] if row is not None for value in dict.fromkeys(row)]
            longest = max((len(row) for row in tracks[name] if row is not None), default=1)
            bags.append(Bag(name, _frequent(values, at_least=2, at_most=5_000), min(max(longest, 1), 16), first))
            first += len(bags[-1].values)
        if name == "year":
            years += [year for year in numbers_of(name, tracks, len(trained)) if 1000 < year < 3000]
    fitted_numbers, fitted_categories = [], []
    for name, kind in user_kinds.items():
        if kind in ("numeric", "year"):
            fitted_numbers.append(_fit_number(name, users[name]))
        elif kind == "categorical":
            fitted_categories.append(Category(name, _frequent(users[name], at_least=2, at_most=10_000)))
    named = [*(category.name for category in categories), *(bag.name for bag in bags)]
    genre = next((name for name in ("genre", "main_genre", "tags") if name in named), None)
    return FeatureSpec(
        tuple(numbers),
        tuple(categories),
        tuple(bags),
        tuple(fitted_numbers),
        tuple(fitted_categories),
        genre,
        max(years),
    )


def _fit_number(name: str, column: Sequence[Any] | npt.NDArray[Any], log: bool = False) -> Number:
    values = numbers_of(name, {name: column}, len(column))
    values = values[~np.isnan(values)]
    values = np.log1p(np.maximum(values, 0)) if log else values
    if not len(values):
        return Number(name, 0.0, 1.0, log)
    largest = float(np.abs(values).max())
    unit = math.ldexp(1.0, math.frexp(largest)[1] - 1)  # a power of two rounds nothing, and squares stay in float64
    mean, std = float((values / unit).mean()) * unit, float((values / unit).std()) * unit
    return Number(name, mean, std if std > CONSTANT * largest else 1.0, log)


def _track_ids(tracks: Columns, trained: npt.NDArray[np.bool_]) -> Category:
    return Category("track_id", tuple(tracks["track_id"][i] for i in np.flatnonzero(trained).tolist()))


def _frequent(values: Iterable[Any], at_least: int, at_most: int) -> tuple[str, ...]:
    """Returns values that occur often enough, most frequent first, ties in text order."""
    counts = Counter(text_of(value) for value in values)
    counts.pop("", None)
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(value for value, count in ranked[:at_most] if count >= at_least)
