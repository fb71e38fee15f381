"""How the lists of two bundles differ: every measure of the comparison."""

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

Mask = npt.NDArray[np.bool_]

MOVERS = 5
UNKNOWN = "(unknown)"
HISTORIES = (("0", 0, 0), ("1-10", 1, 10), ("11-50", 11, 50), ("51+", 51, math.inf))


@dataclass(frozen=True)
class Tracks:
    """The t tracks that either side recommended, by the number both sides share."""

    a: I64  # (t,) row in A's catalog, -1 where it has none
    b: I64  # (t,) row in B's


@dataclass(frozen=True)
class Changes:
    """How n lists became others. Users without a list on either side are none of `some`."""

    some: Mask  # (n,)
    overlap: F64  # (n,) tracks in common by the length of the longer list, NaN where there is none
    same: Mask  # (n,) the same tracks in the same order
    same_first: Mask  # (n,)
    shift: I64  # (m,) how many places each track moved that is in both lists of a user


def numbered(a: Catalog, lists_a: I64, b: Catalog, lists_b: I64) -> tuple[Tracks, I64, I64]:
    """Returns the tracks that either side recommended, and lists of rows (n, k) as lists of their numbers."""
    own = [_hashes(catalog, lists) for catalog, lists in ((a, lists_a), (b, lists_b))]
    hashes = np.unique(np.concatenate([found for _, found in own]))
    numbers = []
    for lists, (rows, found) in zip((lists_a, lists_b), own, strict=True):
        out = np.full(lists.shape, -1, np.int64)
        out[lists >= 0] = np.searchsorted(hashes, found)[np.searchsorted(rows, lists[lists >= 0])]
        numbers.append(out)
    return Tracks(a.rows(hashes), b.rows(hashes)), numbers[0], numbers[1]


def changed(a: I64, b: I64) -> Changes:
    """Returns how lists (n, k) of shared numbers became others, whatever k."""
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


def overlap(changes: Changes) -> dict[str, float | None]:
    """Returns mean and 95 % interval of overlap@k, and what share of users sees the same, or nothing of before."""
    own = changes.overlap[changes.some]
    return {
        **interval(own, SEED),
        "identical": _share(changes.same[changes.some]),
        "same_tracks": _share(own == 1),
        "nothing": _share(own == 0),
    }


def order(changes: Changes) -> dict[str, float | None]:
    """Returns the mean distance that tracks in both lists moved, and what share of users has the same first track."""
    shift = float(changes.shift.mean()) if len(changes.shift) else None
    return {"rank_shift": shift, "same_first": _share(changes.same_first[changes.some])}


def popularity(a: I64, b: I64, share: F64) -> dict[str, float | None]:
    """Returns the mean share of listeners of lists (n, k), and the paired difference over users with both lists.

    share: (t,) by number.
    """
    means = []
    for lists in (a, b):
        held = lists >= 0
        total = np.where(held, share[np.maximum(lists, 0)], 0).sum(axis=1) if len(share) else np.zeros(len(lists))
        means.append(np.where(held.any(axis=1), total / np.maximum(held.sum(axis=1), 1), np.nan))
    both = ~np.isnan(means[0]) & ~np.isnan(means[1])
    before, after = (mean[both] for mean in means)
    ends = {side: float(mean.mean()) if len(mean) else None for side, mean in (("a", before), ("b", after))}
    return {**ends, **difference(before, after, SEED)}


def catalogue(a: Catalog, b: Catalog, tracks: Tracks, lists_a: I64, lists_b: I64) -> dict[str, int]:
    """Returns how many tracks came and went, and how many of the recommended ones the other could not return.

    recommended_new, recommended_gone: different tracks that B recommends and A does not have, and the reverse.
    """
    new, gone = ~_eligible(a, tracks.a), ~_eligible(b, tracks.b)
    return {
        "a": a.n_eligible,
        "b": b.n_eligible,
        "added": int((_eligible(b, b.hash_rows) & ~_eligible(a, a.rows(b.hashes))).sum()),
        "removed": int((_eligible(a, a.hash_rows) & ~_eligible(b, b.rows(a.hashes))).sum()),
        "recommended_new": int(new[np.unique(lists_b[lists_b >= 0])].sum()),
        "recommended_gone": int(gone[np.unique(lists_a[lists_a >= 0])].sum()),
    }


def listeners(a: Bundle, b: Bundle, tracks: Tracks) -> F64:
    """Returns the share of listeners of each track, (t,)."""
    share = np.zeros(len(tracks.a))
    for bundle, rows in ((a, tracks.a), (b, tracks.b)):  # B has the last word
        share[rows >= 0] = bundle.catalog.share[rows[rows >= 0]]
    return share


def genre_names(a: Bundle, b: Bundle, tracks: Tracks) -> list[str] | None:
    """Returns the genre of each track, (t,), UNKNOWN where there is none; None when neither bundle knows genres."""
    names, known = np.full(len(tracks.a), UNKNOWN, object), False
    for bundle, rows in ((a, tracks.a), (b, tracks.b)):  # B has the last word
        spec = bundle.spec
        if spec.genre is None:
            continue
        known = True
        values = {part.name: part.values for part in spec.track_categories}
        values |= {part.name: part.values for part in spec.track_bags}
        ids = bundle.catalog.ids[rows[rows >= 0], len(spec.track_categories)]  # `genre*` comes after the categories
        names[rows >= 0] = np.array([UNKNOWN, *values[spec.genre]], object)[ids]
    return names.tolist() if known else None


def genres(a: I64, b: I64, names: Sequence[str] | None) -> dict[str, Any] | None:
    """Returns by genre its share of what lists (n, k) recommend, how far the shares moved, and the biggest movers.

    names: (t,) by number. None when there are no genres, or a side without recommendations.
    """
    if names is None or not (a >= 0).any() or not (b >= 0).any():
        return None
    known, of_track = np.unique(np.array(names, str), return_inverse=True)
    shares = [np.bincount(of_track[lists[lists >= 0]], minlength=len(known)) / (lists >= 0).sum() for lists in (a, b)]
    moved = shares[1] - shares[0]
    biggest = [i for i in np.argsort(-np.abs(moved), kind="stable")[:MOVERS].tolist() if moved[i]]
    return {
        "total_variation": float(np.abs(moved).sum() / 2),
        "movers": [
            {"genre": str(known[i]), "a": float(shares[0][i]), "b": float(shares[1][i]), "difference": float(moved[i])}
            for i in biggest
        ],
        "shares": {
            str(name): {"a": before, "b": after}
            for name, before, after in zip(known, shares[0].tolist(), shares[1].tolist(), strict=True)
        },
    }


def cohorts(changes: Changes, tiers: I64, lengths: I64) -> list[dict[str, Any]]:
    """Returns users and overlap@k by tier of B's answer and by length of history; cohorts without users are left out.

    tiers, lengths: (n,).
    """
    groups = [("tier", tier.label, tiers == tier) for tier in Tier]
    groups += [("history", name, (lengths >= low) & (lengths <= high)) for name, low, high in HISTORIES]
    return [
        {"by": by, "name": name, "users": int(own.sum()), "overlap": float(changes.overlap[own].mean())}
        for by, name, own in ((by, name, members & changes.some) for by, name, members in groups)
        if own.any()
    ]


def latency(took_ms: F64) -> dict[str, float | None]:
    """Returns p50_ms and p99_ms of `took_ms`, (n,)."""
    if not len(took_ms):
        return {"p50_ms": None, "p99_ms": None}
    p50, p99 = np.quantile(took_ms, (0.5, 0.99)).tolist()
    return {"p50_ms": round(p50, 4), "p99_ms": round(p99, 4)}


def _hashes(catalog: Catalog, lists: I64) -> tuple[I64, Hashes]:
    """The different rows in `lists`, ascending, and their hashes."""
    rows = np.unique(lists[lists >= 0])
    return rows, track_hashes(catalog.track_ids(rows))


def _eligible(catalog: Catalog, rows: npt.NDArray[Any]) -> Mask:
    """(n,) whether the catalogue has a track in each of `rows`, and may return it."""
    return (rows >= 0) & ~np.isin(rows, catalog.removed)


def distinct(lists: I64) -> int:
    """Returns how many different tracks `lists` recommend."""
    return len(np.unique(lists[lists >= 0]))


def _share(of: Mask) -> float | None:
    return float(of.mean()) if len(of) else None
