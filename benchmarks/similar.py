"""How good similar tracks are beside others: `python -m benchmarks.similar DATASET=STORE ... --out FILE.json`.

STORE serves a model of DATASET's train fold. What is held out says what a track's similar ones are:

- a dataset with times: what came next in the sessions of the held-out fold. A track of a session is a seed; wanted are
  the tracks of its next 10 plays but itself, each counts by the sessions in which it so followed.
- one without: what the seed's listeners went on to play. Who has the seed in the train fold is a listener; wanted are
  the tracks of their held-out plays, and each counts by the listeners that have it.

NDCG@10 has those counts as gains, over the best list there is; HR@10 is whether one of the ten is wanted. Each seed
counts once. Seeds are drawn with a seed from all that have something wanted and a listener in the train fold, and told
apart by how many listeners those are. The whole catalogue is ranked, nothing but the seed left out.

ItemKNN (cosine with shrinkage, over listeners or sessions) is tuned on the valid fold; so are the weights of the sum in
`lhydra.similar`, on all datasets together, by coordinate ascent from those in use. The test fold is used once, for what
`Similar.find` answers as it is in use; the output says whether its weights are the ones that the valid fold chooses.
Needs the extra `eval`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.environment import one_thread_per_library

one_thread_per_library()

from scipy.sparse import csr_matrix  # noqa: E402

from benchmarks.machine import machine, versions  # noqa: E402
from lhydra.bundle.bundle import Bundle  # noqa: E402
from lhydra.commands.outputs import check_output, is_json_with  # noqa: E402
from lhydra.data.dataset import Dataset  # noqa: E402
from lhydra.domain import F32, I64, Query, track_hashes  # noqa: E402
from lhydra.errors import LhydraError  # noqa: E402
from lhydra.evaluation.bootstrap import difference, interval  # noqa: E402
from lhydra.files import write_text  # noqa: E402
from lhydra.recommender import Recommender  # noqa: E402
from lhydra.similar import PARTS, WEIGHTS, Similar, SimilarQuery  # noqa: E402

F64 = npt.NDArray[np.float64]
K, NEXT = 10, 10
GROUPS = {"1 to 4 listeners": (1, 5), "5 listeners or more": (5, 1 << 30)}
SHRINKAGE = (0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)  # from a cosine to plain counts
STEPS = (0.0, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0)  # of a weight in the ascent, and from nothing NOTHING times these
NOTHING, MOST_ROUNDS = 0.1, 8
NEAREST = 300  # by the vectors, beside all that the tables know: what the sum is tuned on
MAX_SCORES = 1 << 24


@dataclass(frozen=True)
class Wanted:
    """Seeds and what is wanted of them. seeds: (m,) rows of the tracks table. gains: (m, tracks) counts."""

    seeds: I64
    gains: csr_matrix


@dataclass(frozen=True)
class Case:
    """A dataset and what is served of it. positions: of the catalog's rows in the tracks table, -1 for none."""

    dataset: Dataset
    similar: Similar
    positions: I64
    listeners: I64  # (tracks,) of the train fold
    valid: Wanted
    test: Wanted


def main(argv: Sequence[str] | None = None) -> int:
    """Tunes, measures, prints tables and writes them.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="DATASET=STORE")
    parser.add_argument("--seeds", type=int, default=800, help="most of each group of each fold")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of seeds")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "datasets"))
        cases = [_opened(run, args.seeds, args.seed) for run in args.runs]
    except (LhydraError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    chosen, valid = chosen_weights(cases)
    document: dict[str, Any] = {
        "benchmark": "similar",
        "command": f"python -m benchmarks.similar DATASET=STORE ... --seeds {args.seeds} --seed {args.seed}",
        "machine": machine(),
        "versions": versions(),
        "weights": {
            "in_use": dict(zip(PARTS, WEIGHTS, strict=True)),
            "chosen_on_valid": dict(zip(PARTS, chosen, strict=True)),
            "valid_ndcg@10": {"in_use": valid[0], "chosen": valid[1]},
        },
        "datasets": {case.dataset.path.name: measured(case) for case in cases},
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["weights"]))
    for name, found in document["datasets"].items():
        print(f"\n{name}: {found['wanted']}; ItemKNN {found['itemknn']}")
        for group, told in found["groups"].items():
            print(f"{group}, {told['seeds']} seeds")
            for system, row in told["systems"].items():
                above, hr = row["similar_above_by"], row["similar_hr_above_by"]
                print(
                    f"  {system:10} NDCG@10 {row['ndcg@10']['mean']:.4f} HR@10 {row['hr@10']:.4f} "
                    f"listeners {row['median_listeners'] or 0:.0f}; similar {above['difference']:+.4f} "
                    f"({above['low']:+.4f} to {above['high']:+.4f}), HR {hr['difference']:+.4f} "
                    f"({hr['low']:+.4f} to {hr['high']:+.4f})"
                )
    return 0


def held_out(dataset: Dataset, fold: int) -> csr_matrix:
    """Counts what is wanted of every track, as the module says.

    Args:
        dataset: with plays one by one, where it has times.
        fold: that is held out.

    Returns:
        (tracks, tracks) counts, no track of itself.
    """
    n = dataset.n_tracks
    if dataset.info.timed:
        session, track = _sessions(dataset, fold)
        found = [np.empty((3, 0), np.int64)]
        for step in range(1, NEXT + 1):
            same = (session[step:] == session[:-step]) & (track[step:] != track[:-step])
            found.append(np.stack([track[:-step][same], track[step:][same], session[step:][same]]))
        seed, other, _ = np.unique(np.concatenate(found, 1), axis=1)
        return csr_matrix((np.ones(len(seed), np.float32), (seed, other)), (n, n))
    plays = dataset.plays
    before, after = (_matrix(plays.user[part], plays.track[part], n) for part in (plays.fold == 0, plays.fold == fold))
    users = max(before.shape[0], after.shape[0])
    before.resize(users, n)
    after.resize(users, n)
    counts = (before.T @ after).tocsr()
    counts.setdiag(0)
    counts.eliminate_zeros()
    return counts


def draw(gains: csr_matrix, listeners: I64, most: int, seed: int) -> Wanted:
    """Draws seeds of each group.

    Args:
        gains: (tracks, tracks) from `held_out`.
        listeners: (tracks,) of the train fold.
        most: seeds of a group.
        seed: of the draw.

    Returns:
        The seeds, ascending, and what is wanted of them.
    """
    rng, some = np.random.default_rng(seed), np.diff(gains.indptr) > 0
    drawn = [
        rng.permutation(np.flatnonzero(some & (listeners >= low) & (listeners < high)))[:most]
        for low, high in GROUPS.values()
    ]
    seeds = np.sort(np.concatenate(drawn))
    return Wanted(seeds, gains[seeds])


def quality(lists: I64, wanted: Wanted) -> tuple[F64, F64]:
    """Measures lists.

    Args:
        lists: (m, K) rows of the tracks table, best first, -1 padded.
        wanted: of the same m seeds.

    Returns:
        (m,) NDCG@10 and (m,) HR@10.
    """
    discount = 1 / np.log2(np.arange(2, K + 2))
    ndcg, hit = np.zeros(len(lists)), np.zeros(len(lists))
    for i, row in enumerate(lists):
        at = slice(wanted.gains.indptr[i], wanted.gains.indptr[i + 1])
        gains = dict(zip(wanted.gains.indices[at].tolist(), wanted.gains.data[at].tolist(), strict=True))
        best = np.sort(wanted.gains.data[at])[::-1][:K].astype(np.float64)
        got = np.array([gains.get(one, 0.0) for one in row.tolist()])
        ndcg[i], hit[i] = got @ discount[: len(got)] / (best @ discount[: len(best)]), got.any()
    return ndcg, hit


def chosen_weights(cases: Sequence[Case]) -> tuple[list[float], tuple[float, float]]:
    """Chooses the weights of the sum on the valid fold, by coordinate ascent of the mean of all groups' NDCG@10.

    Args:
        cases: the datasets.

    Returns:
        The weights, in the order of PARTS, and the NDCG@10 of the weights in use and of these.
    """
    pools = [_parts(case, case.valid) for case in cases]

    def value(weights: Sequence[float]) -> float:
        lists = [_best_of(pool, np.asarray(weights, np.float32)) for pool in pools]
        return float(np.mean([_on_valid(case, some) for case, some in zip(cases, lists, strict=True)]))

    weights = list(WEIGHTS)
    first = best = value(weights)
    for _ in range(MOST_ROUNDS):
        before = best
        for part in range(1, len(weights)):  # only their ratios count
            for step in STEPS:
                tried = weights.copy()
                tried[part] = round((weights[part] or NOTHING) * step, 3)
                if (found := value(tried)) > best + 1e-5:
                    best, weights = found, tried
        if best <= before + 1e-4:
            break
    return weights, (first, best)


def measured(case: Case) -> dict[str, Any]:
    """Measures everything on the test fold.

    Args:
        case: the dataset.

    Returns:
        What is wanted, the settings of ItemKNN, and by group and system the figures.
    """
    test, (settings, tuned) = case.test, tuned_itemknn(case)
    pool = _parts(case, test)
    lists = {"similar": _served(case, test), "itemknn": tuned(test.seeds)}
    for name in PARTS:
        lists[name] = _best_of(pool, np.array([one == name for one in PARTS], np.float32), alone=True)
    found = {name: quality(some, test) for name, some in lists.items()}

    def row(name: str, members: npt.NDArray[np.bool_]) -> dict[str, Any]:
        (ndcg, hit), ours = ([one[members] for one in found[which]] for which in (name, "similar"))
        listed = lists[name][members]
        return {
            "ndcg@10": interval(ndcg, 0),
            "hr@10": float(hit.mean()),
            "median_listeners": float(np.median(case.listeners[listed[listed >= 0]])) if (listed >= 0).any() else None,
            "similar_above_by": difference(ndcg, ours[0], 0),
            "similar_hr_above_by": difference(hit, ours[1], 0),
        }

    groups = {
        group: {"seeds": int(members.sum()), "systems": {name: row(name, members) for name in lists}}
        for group, members in _groups(case, test).items()
    }
    wanted = "what came next in sessions" if case.dataset.info.timed else "what listeners went on to play"
    return {"wanted": wanted, "itemknn": settings, "groups": groups}


def tuned_itemknn(case: Case) -> tuple[dict[str, Any], Callable[[I64], I64]]:
    """Tunes the neighbour baseline on the valid fold.

    Args:
        case: the dataset.

    Returns:
        The best settings, and what makes lists (m, K) of seeds (m,).
    """
    plays, n = case.dataset.plays, case.dataset.n_tracks
    train = plays.fold == 0
    units = {"listeners": _matrix(plays.user[train], plays.track[train], n)}
    if case.dataset.info.timed:
        units["sessions"] = _matrix(*_sessions(case.dataset, 0), n)
    best: tuple[float, dict[str, Any], Callable[[I64], I64]] | None = None
    for unit, matrix in units.items():
        for shrinkage in SHRINKAGE:
            lists = neighbours(matrix, shrinkage)
            value = _on_valid(case, lists(case.valid.seeds))
            if best is None or value > best[0]:
                best = value, {"cosine_over": unit, "shrinkage": shrinkage, "valid_ndcg@10": value}, lists
    assert best is not None
    return best[1:]


def neighbours(matrix: csr_matrix, shrinkage: float) -> Callable[[I64], I64]:
    """Makes what lists the nearest by cosine, co(i, j) / (sqrt(n_i n_j) + shrinkage).

    A list takes the K nearest of its one seed, so that how many more are kept changes nothing.

    Args:
        matrix: (listeners or sessions, tracks) ones.
        shrinkage: of the cosine.

    Returns:
        Seeds (m,) -> lists (m, K), ties by place, -1 behind the last that has any.
    """
    own = np.asarray(matrix.sum(0)).ravel()
    columns = matrix.tocsc()

    def lists(seeds: I64) -> I64:
        step = max(1, MAX_SCORES // matrix.shape[1])
        return np.concatenate([block(seeds[start : start + step]) for start in range(0, len(seeds), step)])

    def block(seeds: I64) -> I64:
        together = (columns[:, seeds].T @ matrix).toarray()
        cosine = together / (np.sqrt(own[seeds, None] * own) + shrinkage + 1e-9)
        cosine[np.arange(len(seeds)), seeds] = 0
        return _top(cosine)

    return lists


def _on_valid(case: Case, lists: I64) -> float:
    ndcg, _ = quality(lists, case.valid)
    return float(np.mean([ndcg[members].mean() for members in _groups(case, case.valid).values()]))


def _parts(case: Case, wanted: Wanted) -> list[tuple[I64, F32]]:
    """For each seed the tracks that the sum is taken of, as rows of the tracks table, and their parts."""
    hashes = track_hashes(case.dataset.track_ids)
    found = [
        case.similar.parts_of(case.similar.known(hashes[seed : seed + 1]), NEAREST) for seed in wanted.seeds.tolist()
    ]
    return [(case.positions[rows], parts) for rows, parts in found]


def _best_of(pools: list[tuple[I64, F32]], weights: F32, alone: bool = False) -> I64:
    """The best of each pool, (m, K); a part alone lists nothing of which it knows nothing."""
    out = np.full((len(pools), K), -1, np.int64)
    for i, (rows, parts) in enumerate(pools):
        score = parts @ weights
        order = np.argsort(-score, kind="stable")[:K]
        order = order[score[order] != 0] if alone else order
        out[i, : len(order)] = rows[order]
    return out


def _served(case: Case, wanted: Wanted) -> I64:
    """The lists that a caller gets."""
    hashes, none = track_hashes(case.dataset.track_ids), track_hashes([])
    out = np.full((len(wanted.seeds), K), -1, np.int64)
    for i, seed in enumerate(wanted.seeds.tolist()):
        rows = case.similar.find(SimilarQuery(hashes[seed : seed + 1], Query(K), none)).rows
        out[i, : len(rows)] = case.positions[rows]
    return out


def _top(scores: npt.NDArray[Any]) -> I64:
    """The K best of each row, ties by place; -1 in place of what has no score."""
    at = np.argpartition(-scores, K, 1)[:, :K]
    at.sort(1)
    order = np.argsort(-np.take_along_axis(scores, at, 1), 1, kind="stable")
    at = np.take_along_axis(at, order, 1)
    return np.where(np.take_along_axis(scores, at, 1) > 0, at, -1)


def _groups(case: Case, wanted: Wanted) -> dict[str, npt.NDArray[np.bool_]]:
    heard = case.listeners[wanted.seeds]
    return {name: (heard >= low) & (heard < high) for name, (low, high) in GROUPS.items()}


def _sessions(dataset: Dataset, fold: int) -> tuple[I64, I64]:
    """Of the plays of a fold in their order: the number of the session, and the track."""
    events = dataset.events
    kept = np.flatnonzero((events.fold == fold) & (events.session >= 0))
    kept = kept[np.lexsort((events.session[kept], events.user[kept]))]
    user, session = events.user[kept].astype(np.int64), events.session[kept].astype(np.int64)
    _, number = np.unique(user * (int(session.max(initial=0)) + 1) + session, return_inverse=True)
    return number, events.track[kept].astype(np.int64)


def _matrix(row: npt.NDArray[Any], track: npt.NDArray[Any], n: int) -> csr_matrix:
    """Who, or which session, has played what: (rows, n), ones."""
    matrix = csr_matrix((np.ones(len(row), np.float32), (row, track)), (int(row.max(initial=-1)) + 1, n))
    matrix.data[:] = 1
    return matrix


def _opened(run: str, most: int, seed: int) -> Case:
    folder, _, store = run.partition("=")
    dataset, recommender = Dataset.open(Path(folder)), Recommender(Bundle.open(Path(store)))
    plays = dataset.plays
    listeners = np.bincount(plays.track[plays.fold == 0], minlength=dataset.n_tracks)
    valid, test = (draw(held_out(dataset, fold), listeners, most, seed) for fold in (1, 2))
    rows = recommender.catalog.rows(track_hashes(dataset.track_ids))
    positions = np.full(len(recommender.catalog), -1)
    positions[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    return Case(dataset, Similar(recommender), positions, listeners, valid, test)


if __name__ == "__main__":
    sys.exit(main())
