"""How the lists of two bundles differ: every measure of the comparison.

Lists are (n, k) int64, n users by k places, best first, -1 padded. `numbered` gives the tracks of both bundles numbers
that both share; lists of such numbers are what the other functions compare.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import Catalog
from lhydra.domain import I64, Hashes, Tier, track_hashes
from lhydra.evaluation.bootstrap import F64, difference, interval
from lhydra_index_builder.diff.asking import SEED
from lhydra_index_builder.diff.result import (
    Both,
    CatalogueChanges,
    Cohort,
    GenreMove,
    Genres,
    Latency,
    Order,
    Overlap,
    Popularity,
)

Mask = npt.NDArray[np.bool_]

MAX_GENRE_MOVES = 5
UNKNOWN_GENRE = "(unknown)"
HISTORY_LENGTHS = (("0", 0, 0), ("1-10", 1, 10), ("11-50", 11, 50), ("51+", 51, math.inf))


@dataclass(frozen=True)
class Tracks:
    """The t tracks that either bundle recommended, by the number that both share."""

    a: I64  # (t,) row in A's catalog, -1 where it has none
    b: I64  # (t,) row in B's


@dataclass(frozen=True)
class Changes:
    """How n lists became others. `some` leaves out users without a list on either side."""

    some: Mask  # (n,)
    overlap: F64  # (n,) tracks in common by the length of the longer list, NaN where there is none
    same: Mask  # (n,) the same tracks in the same order
    same_first: Mask  # (n,)
    shift: I64  # (m,) how many places each track moved that is in both lists of a user


def numbered(a: Catalog, lists_a: I64, b: Catalog, lists_b: I64) -> tuple[Tracks, I64, I64]:
    """Returns the tracks that either side recommended, and both sides' lists in shared numbers.

    Args:
        a: A's catalog.
        lists_a: (n, k) rows of `a`.
        b: B's catalog.
        lists_b: (n, k) rows of `b`.

    Returns:
        The tracks, A's lists and B's lists of their numbers, (n, k) int64 each.
    """
    own = [_hashes(catalog, lists) for catalog, lists in ((a, lists_a), (b, lists_b))]
    hashes = np.unique(np.concatenate([found for _, found in own]))
    numbers = []
    for lists, (rows, found) in zip((lists_a, lists_b), own, strict=True):
        out = np.full(lists.shape, -1, np.int64)
        out[lists >= 0] = np.searchsorted(hashes, found)[np.searchsorted(rows, lists[lists >= 0])]
        numbers.append(out)
    return Tracks(a.rows(hashes), b.rows(hashes)), numbers[0], numbers[1]


def changed(a: I64, b: I64) -> Changes:
    """Returns how lists became others.

    Args:
        a: (n, k) A's lists of shared numbers.
        b: (n, k) B's.

    Returns:
        What changed for each of the n users.
    """
    n, k = a.shape
    sizes = np.maximum((a >= 0).sum(axis=1), (b >= 0).sum(axis=1))
    some = sizes > 0
    t = int(max(a.max(initial=0), b.max(initial=0))) + 1
    at_a, at_b = (np.flatnonzero(lists.ravel() >= 0) for lists in (a, b))
    ours, theirs = (at // k * t + lists.ravel()[at] for at, lists in ((at_a, a), (at_b, b)))
    common, in_a, in_b = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    overlap = np.full(n, np.nan)
    overlap[some] = np.bincount(common // t, minlength=n)[some] / sizes[some]
    shift = np.abs(at_a[in_a] - at_b[in_b])
    return Changes(some, overlap, some & (a == b).all(axis=1), some & (a[:, 0] == b[:, 0]), shift)


def overlap(changes: Changes) -> Overlap:
    """Returns the mean of overlap@k with its interval, and the shares of users with the same list or none of it.

    Args:
        changes: what `changed` returned.

    Returns:
        Shares from 0 to 1; None without users.
    """
    own = changes.overlap[changes.some]
    return Overlap(
        **interval(own, SEED),
        identical=_share(changes.same[changes.some]),
        same_tracks=_share(own == 1),
        nothing=_share(own == 0),
    )


def order(changes: Changes) -> Order:
    """Returns how far tracks in both lists moved, and how many users have the same first track.

    Args:
        changes: what `changed` returned.

    Returns:
        Mean places and a share from 0 to 1; None where there is nothing to average.
    """
    shift = float(changes.shift.mean()) if len(changes.shift) else None
    return Order(shift, _share(changes.same_first[changes.some]))


def popularity(a: I64, b: I64, share: F64) -> Popularity:
    """Returns the mean share of listeners of what each bundle recommends, over users with both lists.

    Args:
        a: (n, k) A's lists of shared numbers.
        b: (n, k) B's.
        share: (t,) share of listeners of each track, by number.

    Returns:
        Both means and their paired difference; None without such users.
    """
    means = []
    for lists in (a, b):
        held = lists >= 0
        total = np.where(held, share[np.maximum(lists, 0)], 0).sum(axis=1) if len(share) else np.zeros(len(lists))
        means.append(np.where(held.any(axis=1), total / np.maximum(held.sum(axis=1), 1), np.nan))
    both = ~np.isnan(means[0]) & ~np.isnan(means[1])
    before, after = (mean[both] for mean in means)
    ends = (float(mean.mean()) if len(mean) else None for mean in (before, after))
    return Popularity(*ends, **difference(before, after, SEED))


def catalogue(a: Catalog, b: Catalog, tracks: Tracks, lists_a: I64, lists_b: I64) -> CatalogueChanges:
    """Returns how many tracks came and went, and how many of the recommended ones the other could not return.

    Args:
        a: A's catalog.
        b: B's catalog.
        tracks: what `numbered` returned.
        lists_a: (n, k) A's lists of shared numbers.
        lists_b: (n, k) B's.

    Returns:
        Counts of tracks that may be returned.
    """
    new, gone = ~_eligible(a, tracks.a), ~_eligible(b, tracks.b)
    return CatalogueChanges(
        a=a.n_eligible,
        b=b.n_eligible,
        added=int((_eligible(b, b.hash_rows) & ~_eligible(a, a.rows(b.hashes))).sum()),
        removed=int((_eligible(a, a.hash_rows) & ~_eligible(b, b.rows(a.hashes))).sum()),
        recommended_new=int(new[np.unique(lists_b[lists_b >= 0])].sum()),
        recommended_gone=int(gone[np.unique(lists_a[lists_a >= 0])].sum()),
    )


def listeners(a: Bundle, b: Bundle, tracks: Tracks) -> F64:
    """Returns the share of listeners of each track, as B has it where it has the track.

    Args:
        a: bundle A.
        b: bundle B.
        tracks: what `numbered` returned.

    Returns:
        (t,) float64 shares from 0 to 1, by number.
    """
    share = np.zeros(len(tracks.a))
    for bundle, rows in ((a, tracks.a), (b, tracks.b)):  # B has the last word
        share[rows >= 0] = bundle.catalog.share[rows[rows >= 0]]
    return share


def genre_names(a: Bundle, b: Bundle, tracks: Tracks) -> list[str] | None:
    """Returns the genre of each track, as B has it where it has the track.

    Args:
        a: bundle A.
        b: bundle B.
        tracks: what `numbered` returned.

    Returns:
        t names by number, UNKNOWN_GENRE where a track has none; None when neither bundle knows genres.
    """
    names, known = np.full(len(tracks.a), UNKNOWN_GENRE, object), False
    for bundle, rows in ((a, tracks.a), (b, tracks.b)):  # B has the last word
        spec = bundle.spec
        if spec.genre is None:
            continue
        known = True
        values = {part.name: part.values for part in spec.track_categories}
        values |= {part.name: part.values for part in spec.track_bags}
        ids = bundle.catalog.ids[rows[rows >= 0], len(spec.track_categories)]  # `genre*` comes after the categories
        names[rows >= 0] = np.array([UNKNOWN_GENRE, *values[spec.genre]], object)[ids]
    return names.tolist() if known else None


def genres(a: I64, b: I64, names: Sequence[str] | None) -> Genres | None:
    """Returns the share of each genre in what is recommended, how far the shares moved, and the biggest movers.

    Args:
        a: (n, k) A's lists of shared numbers.
        b: (n, k) B's.
        names: t genres by number, or None.

    Returns:
        Shares from 0 to 1; None when there are no genres, or a side without recommendations.
    """
    if names is None or not (a >= 0).any() or not (b >= 0).any():
        return None
    known, of_track = np.unique(np.array(names, str), return_inverse=True)
    before, after = (
        np.bincount(of_track[lists[lists >= 0]], minlength=len(known)) / (lists >= 0).sum() for lists in (a, b)
    )
    moved = after - before
    shares = {str(name): Both(*own) for name, *own in zip(known, before.tolist(), after.tolist(), strict=True)}
    biggest = [i for i in np.argsort(-np.abs(moved), kind="stable")[:MAX_GENRE_MOVES].tolist() if moved[i]]
    movers = [GenreMove(float(before[i]), float(after[i]), str(known[i]), float(moved[i])) for i in biggest]
    return Genres(float(np.abs(moved).sum() / 2), movers, shares)


def cohorts(changes: Changes, tiers: I64, lengths: I64) -> list[Cohort]:
    """Returns users and overlap@k by tier of B's answer and by length of history.

    Args:
        changes: what `changed` returned.
        tiers: (n,) the `Tier` of B's answer to each user.
        lengths: (n,) entries in the history of each user.

    Returns:
        The cohorts that have users, in a fixed order.
    """
    groups = [("tier", tier.label, tiers == tier) for tier in Tier]
    groups += [("history", name, (lengths >= low) & (lengths <= high)) for name, low, high in HISTORY_LENGTHS]
    return [
        Cohort(by, name, int(own.sum()), float(changes.overlap[own].mean()))
        for by, name, own in ((by, name, members & changes.some) for by, name, members in groups)
        if own.any()
    ]


def latency(took_ms: F64) -> Latency:
    """Returns the median and the 99th percentile.

    Args:
        took_ms: (n,) milliseconds.

    Returns:
        Milliseconds, to four places; None without queries.
    """
    if not len(took_ms):
        return Latency(None, None)
    p50, p99 = np.quantile(took_ms, (0.5, 0.99)).tolist()
    return Latency(round(p50, 4), round(p99, 4))


def _hashes(catalog: Catalog, lists: I64) -> tuple[I64, Hashes]:
    """The different rows in `lists`, ascending, and their hashes."""
    rows = np.unique(lists[lists >= 0])
    return rows, track_hashes(catalog.track_ids(rows))


def _eligible(catalog: Catalog, rows: npt.NDArray[Any]) -> Mask:
    """(n,) whether the catalogue has a track in each of `rows`, and may return it."""
    return (rows >= 0) & ~np.isin(rows, catalog.removed)


def _share(of: Mask) -> float | None:
    return float(of.mean()) if len(of) else None
