"""Tracks that few have played, or nobody: what lists find of them, beside content alone and beside the truth.

    python -m benchmarks.rare DATASET NAME=LISTS.csv [NAME=LISTS.csv ...] [--world WORLD] [--out results.json]

Each LISTS.csv is what `lhydra recommend DATASET STORE --users all --k 20` wrote. Beside them: popularity; content KNN,
the cosine of a track's columns with those of what the user has heard, which knows no listener; and, with --world, the
folder of `lhydra synth` that the dataset came from, the truth: the chance of each play, which no model knows.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from benchmarks.machine import machine, versions
from benchmarks.paired import read_lists
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import TEST, Dataset
from lhydra.data.listening import FRESH, FRESH_DAYS
from lhydra.data.world import DAYS, START, make_world
from lhydra.domain import I64
from lhydra.errors import DataError, LhydraError, complain
from lhydra.evaluation.bootstrap import intervals
from lhydra.evaluation.cohorts import FEW_PLAYS, train_counts
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Targets, find_targets
from lhydra.features.fit import fit_features
from lhydra.files import write_text

K, DAY_S = 20, 86_400
BLOCK_USERS = 256
METRICS = ("ndcg@10", "recall@20")
F64 = npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, writes JSON.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("lists", nargs="+", metavar="NAME=LISTS.csv")
    parser.add_argument("--world", type=Path, help="the folder that `lhydra synth` wrote")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("versions", "systems"))
        dataset = Dataset.open(args.dataset)
        targets = find_targets(dataset, "test")
        found = {name: read_lists(dataset, Path(path), targets) for name, _, path in map(_named, args.lists)}
        listeners = train_counts(dataset)[0]
        found["popularity"] = ranked(np.tile(listeners.astype(np.float64), (len(targets), 1)), dataset, targets)
        found["content KNN"] = ranked(by_content(dataset, targets), dataset, targets)
        if args.world:
            found["truth"] = ranked(by_truth(dataset, targets, args.world), dataset, targets)
    except (LhydraError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    systems = {name: measured(lists, targets, listeners) for name, lists in found.items()}
    document = {"machine": machine(), "versions": versions(), "at_most": FEW_PLAYS, "systems": systems}
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    for name, row in systems.items():
        cells = (f"{slice_} {one['mean']:.4f} ±{(one['high'] - one['low']) / 2:.4f}" for slice_, one in row.items())
        print(f"{name:12}", *cells, sep="  ")
    return 0


def measured(lists: I64, targets: Targets, listeners: I64) -> dict[str, Any]:
    """Measures lists on all targets, and on rare and new ones alone.

    Args:
        lists: (n, 20) positions, -1 padded.
        targets: of the n users.
        listeners: (tracks,) of the train fold.

    Returns:
        By metric and slice its mean over the users who have such targets, with a bootstrap interval.
    """
    wanted = listeners[targets.tracks]
    out: dict[str, Any] = {}
    for slice_, kept in (("", wanted >= 0), (" rare", wanted <= FEW_PLAYS), (" new", wanted == 0)):
        sizes = np.add.reduceat(kept, targets.offsets[:-1], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        per_user = rank_metrics(lists, offsets, targets.tracks[kept], len(listeners), (10, K)).per_user
        for name in METRICS if not slice_ else METRICS[1:]:
            (out[f"{name}{slice_}"],) = intervals(per_user[name][:, None], 0) if kept.any() else ({},)
    return {name: one for name, one in out.items() if one}


def ranked(scores: F64, dataset: Dataset, targets: Targets) -> I64:
    """Lists the best tracks that a user has not heard.

    Args:
        scores: (n, tracks) float64, changed in place.
        dataset: its plays before the test fold are left out.
        targets: of the n users.

    Returns:
        (n, 20) int64 positions, best first.
    """
    user, track = _heard(dataset, targets)
    scores[user, track] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :K]


def by_content(dataset: Dataset, targets: Targets) -> F64:
    """Scores tracks by their columns: numbers as they are scaled for training, categories by inverse frequency.

    Args:
        dataset: tracks and plays.
        targets: whose users are scored for.

    Returns:
        (n, tracks) float64 cosines with the mean of what the user has heard.
    """
    tracks, users = dataset.track_columns(), dataset.user_columns()
    own, theirs = ({c.name: c.kind for c in some} for some in (dataset.info.track_columns, dataset.info.user_columns))
    encoded = fit_features(tracks, users, own, theirs, np.ones(dataset.n_tracks, np.bool_)).encode_tracks(tracks)
    n, columns = dataset.n_tracks, [*encoded.ids.T[1:], *encoded.bags.T]  # the track's own id says nothing of others
    ids = np.where(np.array(columns) > 0, np.array(columns), -1)
    bags = len(encoded.ids.T) - 1
    parts = [sp.csr_matrix(np.nan_to_num(encoded.dense.astype(np.float64)))]
    for group in (*ids[:bags, None], ids[bags:]):
        row, at = np.tile(np.arange(n), len(group)), group.ravel()
        one = sp.csr_matrix((np.ones((at >= 0).sum()), (row[at >= 0], at[at >= 0])), shape=(n, max(at.max(), 0) + 1))
        parts.append(one @ sp.diags(np.log(n / np.maximum(np.asarray(one.sum(0)).ravel(), 1))))
    whole = sp.hstack(parts).tocsr()
    norms = np.sqrt(np.asarray(whole.multiply(whole).sum(1))).ravel()
    unit = sp.diags(1 / np.maximum(norms, 1e-9)) @ whole
    user, track = _heard(dataset, targets)
    heard = sp.csr_matrix((np.ones(len(user)), (user, track)), shape=(len(targets), n))
    return np.asarray(((heard @ unit) @ unit.T).toarray())


def by_truth(dataset: Dataset, targets: Targets, world: Path) -> F64:
    """Scores tracks by the world's own chances, of taste and new releases, in the days of the test fold.

    Loyalty and sessions are left out: which artists are loved then is drawn for every session.

    Args:
        dataset: prepared from the world.
        targets: whose users are scored for.
        world: the folder that `lhydra synth` wrote.

    Returns:
        (n, tracks) float64.

    Raises:
        DataError: it is no world.
    """
    try:
        made = make_world(**json.loads((world / "world.json").read_text(encoding="utf-8"))["arguments"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(complain(world, "no world.json of one", "a folder that `lhydra synth` wrote")) from None
    own, users = (
        np.array([int(one[1:]) for one in ids])
        for ids in (dataset.track_ids, np.asarray(dataset.user_ids)[targets.users])
    )
    catalog, plays = made.catalog, dataset.plays
    begin = (int(plays.time[plays.fold == TEST].min()) - START) // DAY_S
    cell, weight = np.asarray(catalog.cell)[own], catalog.weight[own]
    born, days = np.maximum(catalog.release_day[own], begin), DAYS - begin
    there, fresh_until = (DAYS - born) / days, np.minimum(catalog.release_day[own] + FRESH_DAYS, DAYS)
    fresh = np.where(catalog.release_day[own] > 0, np.maximum(fresh_until - born, 0) / days, 0)
    scores = np.empty((len(targets), len(own)))
    for start in range(0, len(users), BLOCK_USERS):
        some = users[start : start + BLOCK_USERS]
        likes = np.stack([made.taste(slice(user, user + 1))[0, -1] for user in some])
        for n, (share, when) in enumerate(((1 - FRESH, there), (FRESH, fresh))):
            mass = np.bincount(cell, weight * when, likes.shape[1])
            part = share * likes[:, cell] * (weight * when / np.maximum(mass[cell], 1e-12))
            scores[start : start + BLOCK_USERS] = part if not n else scores[start : start + BLOCK_USERS] + part
    return scores


def _heard(dataset: Dataset, targets: Targets) -> tuple[I64, I64]:
    """Places among the users of the targets, and tracks, of all plays before the test fold."""
    place = np.full(len(dataset.user_ids), -1)
    place[targets.users] = np.arange(len(targets))
    known = dataset.plays.where(dataset.plays.fold < TEST)
    of = place[known.user]
    return of[of >= 0], known.track[of >= 0].astype(np.int64)


def _named(run: str) -> tuple[str, str, str]:
    name, equals, path = run.partition("=")
    if not equals or not name:
        raise DataError(complain("lists", repr(run), "NAME=LISTS.csv"))
    return name, equals, path


if __name__ == "__main__":
    sys.exit(main())
