"""Compares the new plays of a dataset with those of before: `python -m lhydra.retraining.checks DATASET`.

New is what the served model has not learned from: every play after its newest. Each check holds them against as many
plays just before, so that what is usual for these listeners is no cause for doubt.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.bundle.catalog import Catalog
from lhydra.bundle.manifest import Manifest, current_bundle_id
from lhydra.data.dataset import Dataset, Events
from lhydra.domain import I64
from lhydra.errors import LhydraError

FIRST_TEST = 0.1  # share held out where nothing is served: there is nothing to compare with
TIMES_BEFORE = 5  # a track may be pushed so many times as much as any was before
PAIRS = 20_000  # of user and track that are asked whose taste they are
LEAST_TOLD = 0.02  # above one half: of vectors that tell users apart less, nothing can be lost
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Check:
    """One check: found and limit are of the unit that `note` names; found is None where nothing was measured."""

    name: str
    found: float | None
    limit: float
    bad: bool
    note: str


def pushed(events: Events, new: Mask, before: Mask, track_ids: list[str], limit: float) -> Check:
    """No track has many plays of users who play little else: that is what bots do.

    Args:
        events: all plays.
        new: (n,) bool, those to look at.
        before: (n,) bool, those to compare with.
        track_ids: by position.
        limit: share of the new plays that is always allowed.

    Returns:
        The check; found: the largest share of a track; it names the track.
    """
    shares, users = _pushed(events, new, len(track_ids))
    usual, _ = _pushed(events, before, len(track_ids))
    worst, most = int(shares.argmax()), float(usual.max(initial=0))
    found, limit = float(shares[worst]), max(limit, TIMES_BEFORE * most)
    name = "one track pushed"
    note = f"{track_ids[worst]} has {found:.1%} of the new plays from {int(users[worst]):,} users who play little else"
    note += f"; the most of a track before was {most:.1%}: `max_pushed`, or {TIMES_BEFORE} times that, is allowed"
    return Check(name, found, limit, found > limit, note)


def _pushed(events: Events, chosen: Mask, n_tracks: int) -> tuple[npt.NDArray[np.float64], I64]:
    """By track: its plays of users of whose plays it is half or more, as a share of all chosen; and those users."""
    user, track = events.user[chosen].astype(np.int64), events.track[chosen]
    pairs, inverse = np.unique(user * n_tracks + track, return_inverse=True)
    plays = np.bincount(inverse, events.count[chosen].astype(np.float64), len(pairs))
    of_user, of_track = pairs // n_tracks, pairs % n_tracks
    little_else = plays >= np.bincount(of_user, plays)[of_user] / 2
    shares = np.bincount(of_track[little_else], plays[little_else], n_tracks)
    return shares / max(plays.sum(), 1), np.bincount(of_track[little_else], minlength=n_tracks)


def own_taste(
    events: Events, new: Mask, before: Mask, vectors: npt.NDArray[Any], rows: I64, least: float, seed: int = 0
) -> Check:
    """New plays fit the users that they are of better than other users: shuffled ones do not.

    Each pair of user and track is asked of whom the track is, the user or another one drawn among all who play: by the
    inner product of its vector and the mean vector of what the user played before.

    Args:
        events: all plays.
        new: (n,) bool, those to look at.
        before: (n,) bool, those to compare with; older than any new.
        vectors: (rows, dim) of the served bundle's tracks.
        rows: (tracks,) row of each track, -1 for none.
        least: share of what was told before that must be left.
        seed: of the drawing.

    Returns:
        The check; found: the share that is left.
    """
    name, limit = "users shuffled", least
    rng = np.random.default_rng(seed)
    old = ~(new | before)
    usual = _told_apart(events, old, before, vectors, rows, rng)
    found = _told_apart(events, old | before, new, vectors, rows, rng)
    if usual is None or found is None or usual - 0.5 < LEAST_TOLD:
        return Check(name, None, limit, False, "too little is known of who plays what to tell users apart")
    left = (found - 0.5) / (usual - 0.5)
    note = (
        f"{found:.1%} of the new plays fit their own user better than another, {usual:.1%} before: {left:.2f} of what"
    )
    note += f" tells users apart is left, `min_own` wants {least:g}"
    return Check(name, left, limit, left < limit, note)


def _told_apart(
    events: Events,
    known: Mask,
    asked: Mask,
    vectors: npt.NDArray[Any],
    rows: I64,
    rng: np.random.Generator,
) -> float | None:
    """How often a track fits its user better than another; 0.5: never told. None where there are too few to ask."""
    n_tracks = len(rows)

    def pairs(mask: Mask) -> tuple[I64, I64]:
        keys = np.unique(events.user[mask].astype(np.int64) * n_tracks + events.track[mask])
        keys = keys[rows[keys % n_tracks] >= 0]
        return keys // n_tracks, keys % n_tracks

    users, tracks = pairs(asked)
    owners, heard = pairs(known)
    has = np.isin(users, owners)
    users, tracks = users[has], tracks[has]
    drawn = rng.permutation(len(users))[:PAIRS]
    users, tracks = users[drawn], tracks[drawn]
    if len(users) < 100:
        return None
    some, place = np.unique(users, return_inverse=True)
    mine = np.isin(owners, some)
    at = np.searchsorted(some, owners[mine])
    taste = np.zeros((len(some), vectors.shape[1]), np.float32)
    step = 1 << 16
    for first in range(0, len(at), step):
        part = slice(first, first + step)
        np.add.at(taste, at[part], vectors[rows[heard[mine][part]]].astype(np.float32))
    taste /= np.bincount(at, minlength=len(some))[:, None]
    other = place[rng.permutation(len(place))]
    track = vectors[rows[tracks]].astype(np.float32)
    own, theirs = ((taste[of] * track).sum(axis=1) for of in (place, other))
    differ = place != other
    return float(((own > theirs) + 0.5 * (own == theirs))[differ].mean()) if differ.any() else None


def look(dataset: Dataset, store: Path | None, holdout: float, max_pushed: float, min_own: float) -> dict[str, Any]:
    """Finds what is new, what of it is to be held out, and what is odd about it.

    Args:
        dataset: all plays, none held out for test.
        store: whose current bundle is served; None where nothing is.
        holdout: share of the new plays to hold out.
        max_pushed: limit of `pushed`.
        min_own: limit of `own_taste`.

    Returns:
        plays, timed (those with a time), new (rows that the served model has not seen), newest (Unix seconds), test
        (the share of all rows with a time to hold out), new_tracks, served (a bundle id or ""), checks.
    """
    events = dataset.events
    timed = int((events.time > 0).sum())
    found: dict[str, Any] = {"plays": len(events), "timed": timed, "newest": int(events.time.max(initial=0))}
    if store is None:
        return found | {"new": len(events), "test": FIRST_TEST, "new_tracks": 0, "served": "", "checks": []}
    bundle_id = current_bundle_id(store)
    manifest = Manifest.read(store / bundle_id, bundle_id)
    learned = max(manifest.parents["split"].get("newest", {}).values(), default=0)
    new = events.time > learned
    n_new = int(new.sum())
    order = np.argsort(np.where(new, -1, events.time), kind="stable")[::-1]  # the newest of the others first
    before = np.zeros(len(events), np.bool_)
    before[order[:n_new]] = True
    before &= ~new
    catalog = Catalog.open(store / bundle_id)
    rows = catalog.rows(dataset.hashes)
    played = np.unique(events.track[new])
    checks = []
    if n_new:
        checks = [pushed(events, new, before, dataset.track_ids, max_pushed)]
        checks.append(own_taste(events, new, before, catalog.vectors, rows, min_own))
    return found | {
        "new": n_new,
        "learned": learned,
        "test": round(holdout * n_new) / max(1, timed),
        "new_tracks": int((rows[played] < 0).sum()),
        "served": bundle_id,
        "checks": [asdict(one) for one in checks],
    }


def main() -> None:
    """Looks at a dataset, and prints what was found as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--store", type=Path)
    for name in ("--holdout", "--max-pushed", "--min-own"):
        parser.add_argument(name, type=float, required=True)
    args = parser.parse_args()
    try:
        found = look(Dataset.open(args.dataset), args.store, args.holdout, args.max_pushed, args.min_own)
    except LhydraError as error:
        raise SystemExit(str(error)) from None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
