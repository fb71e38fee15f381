"""What would bring a track into a list: changes of the request, each tried by serving it.

What drops the track must be lifted first. Beyond that, one change at a time is tried: a rule, more candidates, a longer
list, a few plays of tracks that go with it. Only what was served with the track in the list is told.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lhydra.domain import I64
from lhydra.explain.path import BLOCKED, EXCLUDED, HEARD, REMOVED, Path, path_of
from lhydra.limits import MAX_DEPTH
from lhydra.recommender import MAX_BATCH, Recommender
from lhydra.traced import Traced

SINGLES, TOGETHER = 2, (2, 4)  # plays that are tried: of one track each, then of so many at once


@dataclass(frozen=True)
class Change:
    """One change of a request.

    Args:
        field: exclude_track_ids (without the track), repeat_policy (allow), a field of the filter (left out),
            rules.blocks and rules.off, rules.caps[COLUMN] (no cap), depth, k, session (plays after those of now).
        words: for people.
        number: of depth and k.
        rows: of the tracks to play.
    """

    field: str
    words: str
    number: int = 0
    rows: tuple[int, ...] = ()


Changes = tuple[Change, ...]
Serve = Callable[[Sequence[Changes]], Sequence[Traced | None]]  # None where the request cannot be answered


def bring_in(
    recommender: Recommender, traced: Traced, path: Path, max_k: int, serve: Serve
) -> list[tuple[Changes, int]]:
    """Finds changes that bring a track into the list.

    Args:
        recommender: that answered.
        traced: the request.
        path: of the track, which is not in the list.
        max_k: the largest k allowed.
        serve: answers the request with changes.

    Returns:
        Changes with which the track was in the list, and its place in it; of each kind the smallest, fewest changes
        first. None where nothing was found.
    """
    if path.place or path.row < 0 or REMOVED in path.dropped_by:
        return []
    lifts = tuple(_lift(one) for one in path.dropped_by)
    if lifts:
        options = [lifts]
        if BLOCKED in path.dropped_by:  # by the server's own set
            options.append(tuple(Change("rules.off", "no rules") if c.field == BLOCKED else c for c in lifts))
        for option, tried in zip(options, serve(options), strict=True):
            if tried is None:
                continue
            path, traced, lifts = path_of(recommender, tried, path.row), tried, option
            if path.place:
                return [(option, path.place)]
            if not path.dropped_by:
                break
        if path.dropped_by:
            return []
    kinds = [_rules(traced), _depths(traced, path), _longer(traced, path, max_k), _plays(recommender, path.row)]
    tries = [(*lifts, one) for kind in kinds for one in kind][:MAX_BATCH]
    places = {
        changes[-1]: _place(tried, path.row)
        for changes, tried in zip(tries, serve(tries), strict=True)
        if tried is not None
    }
    found = []
    for kind in kinds:
        works = [one for one in kind if places.get(one)]
        found += [((*lifts, one), places[one]) for one in works[:1]]
    return found


def _lift(dropped: str) -> Change:
    words = {EXCLUDED: "not excluded", HEARD: "repeats allowed", BLOCKED: "not blocked by the request"}
    return Change("repeat_policy" if dropped == HEARD else dropped, words.get(dropped, f"without {dropped}"))


def _rules(traced: Traced) -> list[Change]:
    rules = traced.query.rules
    if rules is None:
        return []
    caps = [Change(f"rules.caps[{column}]", f"no cap on {column}") for column, _ in rules.caps]
    return [*caps, Change("rules.off", "no rules")]


def _depths(traced: Traced, path: Path) -> list[Change]:
    """More candidates help only who is scored high enough, and is near enough or brought by another source."""
    if path.is_candidate or path.head_rank > traced.query.k:
        return []
    near, wanted = path.index_rank, list[int]()
    if near:
        wanted = [max(near, path.depth + 1), near + path.depth // 4, near + path.depth, 2 * near]
    if traced.brought:  # all sources take a share of any depth
        wanted += [2 * path.depth, 4 * path.depth, 5 * near]
    numbers = sorted({min(one, MAX_DEPTH) for one in wanted if one > path.depth})
    return [Change("depth", f"depth {one:,} in place of {path.depth:,}", one) for one in numbers]


def _longer(traced: Traced, path: Path, max_k: int) -> list[Change]:
    k = traced.query.k
    least = path.head_rank if path.is_candidate else max(path.head_rank, path.index_rank)
    if not least:
        return []
    more = [2 * least, 4 * least] if traced.made is not None or traced.brought else []
    wanted = sorted({max(least, k + 1), *(step.after for step in path.steps[-1:]), *more})
    return [Change("k", f"a list of {one:,} in place of {k:,}", one) for one in wanted if k < one <= max_k]


def _plays(recommender: Recommender, row: int) -> list[Change]:
    rows = _going_with(recommender, row)
    some = [rows[i : i + 1] for i in range(min(SINGLES, len(rows)))]
    some += [rows[:n] for n in TOGETHER if n <= len(rows)]
    catalog = recommender.catalog
    changes = []
    for one in some:
        names = [
            f"{title or name} by {artist}" if artist else title or name
            for title, artist, name in zip(
                catalog.titles(one), catalog.artists(one), catalog.track_ids(one), strict=True
            )
        ]
        changes.append(Change("session", f"a play of {', of '.join(names)}", rows=tuple(one.tolist())))
    return changes


def _going_with(recommender: Recommender, row: int) -> I64:
    """Tracks that it follows, and that the same listeners play, strongest first; then those that are near."""
    catalog, index = recommender.catalog, recommender.bundle.index
    item = int(catalog.item_rows[row])
    found: list[int] = []
    if item:
        weights = catalog.neighbour_weights[item]
        best = catalog.neighbours[item][np.argsort(-weights, kind="stable")[: max(TOGETHER)]]
        known = {int(catalog.item_rows[at]): int(at) for at in np.flatnonzero(np.isin(catalog.item_rows, best))}
        found = [known[one] for one in best.tolist() if one and one in known]
    before = recommender.bundle.sequences.before(row).tolist()[: max(TOGETHER)]
    found = [one for pair in itertools.zip_longest(before, found) for one in pair if one is not None]
    near = index.search(catalog.vectors[row : row + 1].astype(np.float32), max(TOGETHER) + 1)[0]
    found += near.tolist()
    return np.array([one for one in dict.fromkeys(found) if one != row][: max(TOGETHER)], np.int64)


def _place(traced: Traced, row: int) -> int:
    assert traced.answer is not None
    at = np.flatnonzero(traced.answer.rows == row)
    return int(at[0]) + 1 if len(at) else 0
