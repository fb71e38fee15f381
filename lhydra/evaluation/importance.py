"""Permutation importance (Breiman 2001) on ranking: how much ndcg@10 is lost when an input is shuffled.

What describes users is shuffled among the users measured, what describes tracks among all tracks of the catalogue,
whose vectors are then made anew by the item tower; a group is shuffled as one. The answers come from the same
`Recommender.recommend` that serves, searched exactly; what a user has heard stays excluded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.history_vectors import HistoryVectors
from lhydra.bundle.index import Index
from lhydra.bundle.networks import ItemTower
from lhydra.console import with_progress
from lhydra.data.dataset import Dataset, Mask, user_states
from lhydra.domain import I64, Query, UserState
from lhydra.errors import ModelError
from lhydra.evaluation.bootstrap import interval
from lhydra.evaluation.document import Drop, Importance
from lhydra.evaluation.lists import Recommends
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Moment, Targets, as_rows
from lhydra.features.spec import Encoded, FeatureSpec
from lhydra.recommender import Recommender
from lhydra.timing import timed

K = 10
METRIC = f"ndcg@{K}"
REPEATS = 3  # shuffles of each group; a single feature is shuffled once
LARGE_CATALOGUE = 100_000  # tracks above which a group is shuffled once too
STAGES = ("retrieval", "cascade")
IDENTITIES = ("track_id", "artist", "album")  # columns that say which, not what kind
_EMBED_BLOCK = 16_384  # tracks embedded at a time

F64 = npt.NDArray[np.float64]
Shuffle = Callable[[np.random.Generator], tuple[Bundle, Sequence[UserState]]]


@dataclass(frozen=True)
class _Input:
    """Something to shuffle: `shuffle` gives the bundle and the users with it shuffled."""

    kind: str  # group or feature
    name: str
    shuffle: Shuffle


@timed("evaluate.importance")
def measure(
    recommender: Recommends,
    dataset: Dataset,
    targets: Targets,
    as_of: Moment,
    users: int,
    seed: int,
    mask: Mask = "seen",
) -> Importance:
    """Measures `importance` of the document.

    A drop is the mean over users of ndcg@10 less ndcg@10 with the input shuffled; low and high are its 95 %
    bootstrap interval over users. `notes` say what could not be measured.

    Args:
        recommender: what is evaluated.
        dataset: whose users are asked for.
        targets: what each user went on to play.
        as_of: the fold of the targets.
        users: how many of the users with targets are drawn.
        seed: of the draw, the shuffles and the intervals.
        mask: what is left out of the lists.

    Returns:
        The drops by group and feature.
    """
    bundle = getattr(recommender, "bundle", None)
    if not isinstance(bundle, Bundle):
        return _document(0, 0, None, [], ["Not measured: what is evaluated has no bundle to shuffle."])
    bundle = replace(bundle, index=Index.build(np.asarray(bundle.catalog.vectors), "flat"))
    drawn = targets.sample(users, seed)
    states = [state for _, state in user_states(dataset, as_of, positions=drawn.users, mask=mask)]
    rows = bundle.catalog.rows(dataset.hashes)
    wanted = _wanted(rows, len(bundle.catalog), drawn)
    depth = int(getattr(recommender, "depth", 0))
    repeats = REPEATS if len(bundle.catalog) <= LARGE_CATALOGUE else 1

    def ranked(served: Bundle, asked: Sequence[UserState]) -> dict[str, F64]:
        lists = _lists(Recommender(served, depth), states, asked)
        found = {stage: rank_metrics(own, drawn.offsets, wanted, len(rows), (K,)) for stage, own in lists.items()}
        return {stage: own.per_user[METRIC] for stage, own in found.items()}

    base = ranked(bundle, states)
    inputs = [*_user_inputs(bundle, states)]
    encoded, notes = _encoded(bundle, dataset, rows)
    tower = _item_tower(bundle) if encoded is not None else None
    if encoded is not None and tower is not None:
        inputs += _track_inputs(bundle, states, encoded, tower)
    elif encoded is not None:
        notes = ["Columns of tracks are not measured: the item tower, which their vectors come from, is not at hand."]
    results: list[tuple[_Input, Drop]] = []
    for number, one in enumerate(with_progress(inputs, len(inputs), "measuring importance")):
        shuffled: dict[str, list[F64]] = {stage: [] for stage in STAGES}
        for repeat in range(repeats if one.kind == "group" else 1):
            found = ranked(*one.shuffle(np.random.default_rng([seed, number, repeat])))
            for stage, own in found.items():
                shuffled[stage].append(own)
        for stage in STAGES:
            lost = np.round(base[stage] - np.mean(shuffled[stage], axis=0), 12)  # no change is 0, not nearly 0
            drop = interval(lost, seed)
            results.append((one, {"stage": stage, "drop": drop["mean"], "low": drop["low"], "high": drop["high"]}))
    return _document(len(drawn), repeats, float(base["cascade"].mean()), results, notes)


def _document(
    users: int, repeats: int, base: float | None, results: Sequence[tuple[_Input, Drop]], notes: list[str]
) -> Importance:
    return {
        "metric": METRIC,
        "users": users,
        "repeats": repeats,
        "base": base,
        "groups": [{"group": one.name, **row} for one, row in results if one.kind == "group"],
        "features": [{"feature": one.name, **row} for one, row in results if one.kind == "feature"],
        "notes": notes,
    }


def _wanted(rows: I64, catalogue_size: int, targets: Targets) -> I64:
    """Catalog rows of the targets, ascending within a user."""
    wanted = as_rows(rows, catalogue_size)[targets.tracks]
    return wanted[np.lexsort((wanted, np.repeat(np.arange(len(targets)), np.diff(targets.offsets))))]


def _lists(recommender: Recommender, states: Sequence[UserState], asked: Sequence[UserState]) -> dict[str, I64]:
    """The top K (n, K), -1 padded, of each stage for the users as `asked`, without what they heard in truth."""
    lists = {stage: np.full((len(states), K), -1, np.int64) for stage in STAGES}
    for n, (state, shuffled) in enumerate(zip(states, asked, strict=True)):
        answer = recommender.recommend(Query(k=K, state=shuffled, known=True, exclude=state.heard))
        for stage, own in (("retrieval", answer.candidates[:K]), ("cascade", answer.rows)):
            lists[stage][n, : len(own)] = own
    return lists


def _elsewhere(n: int, rng: np.random.Generator) -> I64:
    """A random permutation (n,) that leaves nobody in place, but for n = 1."""
    order = rng.permutation(n)
    source = np.empty(n, np.int64)
    source[order] = np.roll(order, 1)
    return source


# -- what describes users ---------------------------------------------------------------------------------


def _user_inputs(bundle: Bundle, states: Sequence[UserState]) -> Iterator[_Input]:
    def shuffled(change: Callable[[UserState, UserState, np.random.Generator], UserState]) -> Shuffle:
        """change: a user, the one whose values it gets and a generator -> the user as it is asked for."""

        def shuffle(rng: np.random.Generator) -> tuple[Bundle, Sequence[UserState]]:
            source = _elsewhere(len(states), rng)
            return bundle, [change(state, states[other], rng) for state, other in zip(states, source, strict=True)]

        return shuffle

    spec = bundle.spec
    columns = [*(number.name for number in spec.user_numbers), *(category.name for category in spec.user_categories)]
    yield _Input("group", "history", shuffled(lambda own, other, _: replace(own, history=other.history)))
    if columns:
        yield _Input("group", "demographics", shuffled(lambda own, other, _: replace(own, profile=other.profile)))
    for name in ("count", "track"):
        label = {"count": "play counts", "track": "order of plays"}[name]
        yield _Input("feature", label, shuffled(lambda own, _, rng, name=name: _mixed(own, name, rng)))  # type: ignore[misc]
    for column in columns:
        yield _Input("feature", column, shuffled(lambda own, other, _, c=column: _swapped(own, other, c)))  # type: ignore[misc]


def _mixed(state: UserState, field: str, rng: np.random.Generator) -> UserState:
    """The user with one field of its history shuffled among the entries."""
    history = state.history.copy()
    history[field] = rng.permutation(history[field])
    if field == "track":  # a count belongs to its track
        place = {track: n for n, track in enumerate(state.history["track"].tolist())}
        history["count"] = state.history["count"][[place[track] for track in history["track"].tolist()]]
    return replace(state, history=history)


def _swapped(state: UserState, other: UserState, column: str) -> UserState:
    """The user with one profile column of another."""
    rest = {name: value for name, value in state.profile.items() if name != column}
    new = {column: other.profile[column]} if column in other.profile else {}
    return replace(state, profile=rest | new)


# -- what describes tracks --------------------------------------------------------------------------------


def _track_inputs(bundle: Bundle, states: Sequence[UserState], encoded: Encoded, tower: ItemTower) -> Iterator[_Input]:
    def shuffled(names: Sequence[str]) -> Shuffle:
        def shuffle(rng: np.random.Generator) -> tuple[Bundle, Sequence[UserState]]:
            tracks = shuffle_columns(bundle.spec, encoded, names, _elsewhere(len(encoded), rng))
            return _described(bundle, tracks, tower), states

        return shuffle

    def moved(*names: str) -> Shuffle:
        """Arrays of the catalog by their names, as they are."""

        def shuffle(rng: np.random.Generator) -> tuple[Bundle, Sequence[UserState]]:
            source = _elsewhere(len(bundle.catalog), rng)
            arrays: dict[str, Any] = {name: np.asarray(getattr(bundle.catalog, name))[source] for name in names}
            return replace(bundle, catalog=replace(bundle.catalog, **arrays)), states

        return shuffle

    spec = bundle.spec
    categories = [category.name for category in spec.track_categories]
    kinds = [name for name in categories if name not in IDENTITIES] + [bag.name for bag in spec.track_bags]
    groups = {
        "ids": [name for name in categories if name in IDENTITIES],
        "genre and tags": kinds,
        "content numbers": [number.name for number in spec.track_numbers],
    }
    for group, names in groups.items():
        if names:
            yield _Input("group", group, shuffled(names))
    yield _Input("group", "popularity", moved("popularity"))
    yield _Input("group", "co-listening", moved("item_rows"))
    for name in (name for names in groups.values() for name in names):
        yield _Input("feature", name, shuffled([name]))


def shuffle_columns(spec: FeatureSpec, tracks: Encoded, names: Sequence[str], source: I64) -> Encoded:
    """Shuffles columns of encoded tracks.

    Args:
        spec: what they were encoded by.
        tracks: (n,) encoded tracks.
        names: the columns.
        source: (n,) whose values each track gets.

    Returns:
        (n,) encoded tracks; what comes from the columns is that of track source[i] at i, all else as it was.
    """
    dense, ids, bags = tracks.dense.copy(), tracks.ids.copy(), tracks.bags.copy()
    at = {name: i for i, (name, _) in enumerate(spec.track_ids)}
    for name in names:
        derived = ("recency",) if name == "year" else ()
        for i, column in enumerate(spec.track_dense):
            if column == name or column in derived:
                dense[:, i] = tracks.dense[source, i]
        same = [name] if name in at else []
        same += ["genre*"] if name == spec.genre else []
        for i in (at[column] for column in same):
            ids[:, i] = tracks.ids[source, i]
        start = 0
        for bag in spec.track_bags:
            if bag.name == name:
                bags[:, start : start + bag.width] = tracks.bags[source, start : start + bag.width]
            start += bag.width
    if "quadrant" in at:
        ids[:, at["quadrant"]] = _quadrant(tracks.ids[:, at["quadrant"]], names, source)
    return Encoded(dense, ids, bags)


def _quadrant(quadrant: I64, names: Sequence[str], source: I64) -> I64:
    """Quadrants 1 + 2 · energetic + pleasant with either half, or both, from the track at source; 0 is unknown."""
    energy = quadrant[source] if "energy" in names else quadrant
    valence = quadrant[source] if "valence" in names else quadrant
    known = (energy > 0) & (valence > 0)
    return np.where(known, 1 + 2 * ((energy - 1) // 2) + (valence - 1) % 2, 0)


def _described(bundle: Bundle, tracks: Encoded, tower: ItemTower) -> Bundle:
    """The bundle as if its tracks had been these."""
    blocks = [tower.embed(tracks[start : start + _EMBED_BLOCK]) for start in range(0, len(tracks), _EMBED_BLOCK)]
    vectors, history = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    vectors = vectors.astype(np.float16)
    dense, ids = tracks.dense.astype(np.float16), tracks.ids.astype(np.int32)
    catalog = replace(bundle.catalog, vectors=vectors, history=HistoryVectors.of(history), dense=dense, ids=ids)
    rows = np.arange(len(vectors), dtype=np.int32)
    rows[catalog.removed] = -1
    return replace(bundle, catalog=catalog, index=Index.build(vectors, "flat").with_rows(rows))


def _encoded(bundle: Bundle, dataset: Dataset, rows: I64) -> tuple[Encoded | None, list[str]]:
    """(all tracks of the catalog encoded anew from the dataset, notes); None where the two do not agree."""
    missing = ["Columns of tracks are not measured: the bundle was built from other tracks than the dataset's."]
    track_of = np.full(len(bundle.catalog), -1, np.int64)
    track_of[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    if (track_of < 0).any():
        return None, missing
    encoded = bundle.spec.encode_tracks(dataset.track_columns())[track_of]
    catalog = bundle.catalog
    same = np.array_equal(encoded.dense.astype(catalog.dense.dtype), catalog.dense)
    if not (same and np.array_equal(encoded.ids, catalog.ids)):
        return None, missing
    return encoded, []


def _item_tower(bundle: Bundle) -> ItemTower | None:
    """The item tower that lies beside the user tower, in a model as in a bundle."""
    try:
        return ItemTower(bundle.user_tower.path.with_name("item_tower.onnx"))
    except ModelError:
        return None
