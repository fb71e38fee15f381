"""What a user would try first: popularity, neighbours, iALS, linear autoencoders, on the same split as the model.

    popular   train listeners of the track
    itemknn   cosine, TF-IDF or BM25 neighbours of the tracks played (Deshpande and Karypis 2004), through implicit
    rp3beta   random walks of three steps, less for the popular (Paudel et al. 2017)
    ials      weighted matrix factorisation (Hu, Koren and Volinsky 2008), through implicit
    ease      closed-form linear autoencoder (Steck 2019); inverts over users when they are fewer than tracks
    dlae      likewise, learned from plays of which some are dropped, its diagonal free (Steck 2020)

Each is fitted on the train fold and tuned by a small grid on NDCG@10 of the valid fold. Ties, and with them the
lists of users without train plays, are ordered by popularity. Lists are kept beside the dataset, in
DATASET/baselines, one file per baseline, split and settings.
"""

import contextlib
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lhydra import files
from lhydra.console import with_progress
from lhydra.data.dataset import TRAIN, Dataset, Mask
from lhydra.domain import F32, I64
from lhydra.errors import DataError
from lhydra.evaluation.baseline_fits import FITS, LARGE_TRAIN_PLAYS, MAX_SCORES, SLOW_ROWS, Fit, Params, Scores
from lhydra.evaluation.document import BaselineFacts
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import Moment, Targets, find_targets, masked_from
from lhydra.json_text import parse_json

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NAMES = ("popular", "itemknn", "rp3beta", "ials", "ease", "dlae")
INVERTED_LIMIT = 20_000  # of min(users, tracks): a matrix of that size is inverted
_VERSION = 1  # of what a kept file was computed by
_TUNE_USERS = 1000


@dataclass(frozen=True)
class Baseline:
    """One baseline: its lists, and how it was chosen.

    lists: (n, K) positions in the tracks table, best first, -1 padded; None when it was skipped, for a reason.
    """

    lists: I64 | None
    chosen: Params = field(default_factory=dict)
    tried: int = 0
    took_s: float = 0.0
    valid_ndcg: float | None = None
    cached: bool = False
    skipped: str | None = None

    def to_json(self) -> BaselineFacts:
        """Returns everything but the lists."""
        return {
            "chosen": self.chosen,
            "tried": self.tried,
            "took_s": self.took_s,
            "cached": self.cached,
            "skipped": self.skipped,
            "valid_ndcg@10": self.valid_ndcg,
        }


@dataclass(frozen=True)
class Log:
    """The plays of a dataset as the baselines see them: tracks from most to least popular, ties by track id.

    train: (users, tracks) play counts, float32. order: (tracks,) position in the tracks table of each column.
    """

    train: "csr_matrix"
    order: I64

    @classmethod
    def of(cls, dataset: Dataset) -> "Log":
        """Collects the plays of the train fold.

        Args:
            dataset: a prepared dataset.

        Returns:
            Its log.
        """
        from scipy.sparse import csr_matrix

        plays, n_tracks = dataset.plays, len(dataset.track_ids)
        fed = plays.fold == TRAIN
        track, user = plays.track[fed], plays.user[fed]
        order = np.argsort(-np.bincount(track, minlength=n_tracks), kind="stable")
        column = np.empty(n_tracks, np.int64)
        column[order] = np.arange(n_tracks)
        shape = (len(dataset.user_ids), n_tracks)
        train = csr_matrix((plays.count[fed].astype(np.float32), (user, column[track])), shape)
        train.sort_indices()
        return cls(train, order)


def measure(
    dataset: Dataset,
    names: Sequence[str],
    targets: Targets,
    known: npt.NDArray[np.bool_],
    *,
    as_of: Moment,
    k: int,
    seed: int,
    mask: Mask = "seen",
) -> dict[str, Baseline]:
    """Fits baselines and lists tracks by them; what was measured before on the same data and settings is read back.

    Args:
        dataset: what they are fitted on.
        names: some of NAMES.
        targets: whose users get lists.
        known: (tracks,) bool, what may be listed; what a user heard before the fold of `as_of` is left out.
        as_of: the fold of the targets.
        k: tracks per list.
        seed: of factors and of the users to tune on.
        mask: what is left out of the lists.

    Returns:
        The baselines by name.
    """
    found: dict[str, Baseline] = {}
    log: Log | None = None
    for name in with_progress(names, len(names), "fitting baselines"):
        path = dataset.path / "baselines" / f"{name}-{_key(dataset, name, targets, known, as_of, k, seed, mask)}.npz"
        kept = _read(path)
        if kept is None:
            log = log or Log.of(dataset)
            kept = _measure(name, dataset, log, targets, known, as_of, k, seed, mask)
            if kept.skipped is None:
                _write(path, kept)
        found[name] = kept
    return found


def _measure(
    name: str,
    dataset: Dataset,
    log: Log,
    targets: Targets,
    known: npt.NDArray[np.bool_],
    as_of: Moment,
    k: int,
    seed: int,
    mask: Mask,
) -> Baseline:
    """Tunes, fits and lists one baseline."""
    start = time.monotonic()
    fewer = min(log.train.shape)
    if name in ("ease", "dlae") and fewer > INVERTED_LIMIT:
        what = f"{name.upper()} inverts a matrix over users or tracks"
        return Baseline(None, skipped=f"{what}: {fewer:,} of the fewer, at most {INVERTED_LIMIT:,}")
    fit = FITS[name](log.train, seed)
    usual, *rounds = _grids(name, log.train)
    try:
        valid: Targets | None = find_targets(dataset, "valid").sample(_TUNE_USERS, seed)
    except DataError:
        valid = None
    chosen, best, tried = usual, None, 0
    if valid is not None:
        chosen, best, tried = _tune(fit, usual, rounds, dataset, log, valid, known)
    lists = ranked(fit(chosen), log, dataset, targets, known, as_of, k, mask)
    return Baseline(lists, chosen, tried, round(time.monotonic() - start, 3), best)


def _tune(
    fit: Fit,
    usual: Params,
    rounds: Sequence[dict[str, Sequence[Any]]],
    dataset: Dataset,
    log: Log,
    valid: Targets,
    known: npt.NDArray[np.bool_],
) -> tuple[Params, float, int]:
    """(best, its NDCG@10, how many were tried): every combination of a round, then the next round around the best."""
    seen: dict[str, float] = {}
    best, best_ndcg = usual, -1.0
    for axes in rounds or [{}]:
        for params in _combinations(best, axes):
            key = json.dumps(params, sort_keys=True)
            if key not in seen:
                lists = ranked(fit(params), log, dataset, valid, known, "valid", 10)
                seen[key] = rank_metrics(lists, valid.offsets, valid.tracks, len(log.order), (10,)).means()["ndcg@10"]
                if seen[key] > best_ndcg:
                    best, best_ndcg = params, seen[key]
    return best, best_ndcg, len(seen)


def _combinations(base: Params, axes: dict[str, Sequence[Any]]) -> list[Params]:
    out = [base]
    for name, values in axes.items():
        out = [params | {name: value} for params in out for value in values]
    return out


def _grids(name: str, train: "csr_matrix") -> list[Any]:
    """[what is used without a valid fold, axes of the first round, axes around its best, ...]."""
    usual: Params
    large = train.nnz > LARGE_TRAIN_PLAYS
    if name == "itemknn":
        kinds = ("cosine", "tfidf", "bm25")
        return [
            {"kind": "cosine", "neighbours": 300},
            {"kind": kinds, "neighbours": (300,) if large else (100, 1000)},
        ]
    if name == "rp3beta":
        usual = {"alpha": 0.7, "beta": 0.4, "neighbours": 300 if large else 1000}
        if large:
            return [usual, {"beta": (0.4, 0.6)}]
        return [usual, {"alpha": (0.7, 1.0), "beta": (0.2, 0.4, 0.6)}, {"beta": (0.3, 0.5)}, {"neighbours": (100,)}]
    if name == "ials":
        weights = ("log", "one") if train.nnz and train.data.max() > train.data.min() else ("one",)
        usual = {"factors": 64, "regularization": 40.0, "alpha": 4.0, "weight": weights[0]}
        if large:
            return [usual, {"weight": weights, "alpha": (1.0, 4.0)}]
        first = {"weight": weights, "alpha": (1.0, 4.0)}
        return [usual, first, {"factors": (32, 64, 128)}, {"regularization": (20.0, 60.0), "alpha": (2.0, 8.0)}]
    if name == "ease":
        slow = min(train.shape) > SLOW_ROWS
        return [{"lambda": 300.0}, {"lambda": (100.0, 500.0) if slow else (50.0, 100.0, 200.0, 500.0, 1000.0)}]
    if name == "dlae":
        usual = {"dropout": 0.5, "lambda": 50.0}
        if min(train.shape) > SLOW_ROWS:
            return [usual, {"dropout": (0.33, 0.5)}]
        return [usual, {"dropout": (0.33, 0.5, 0.66)}, {"lambda": (20.0, 100.0, 200.0, 400.0)}]
    return [{}]


def ranked(
    scores: Scores,
    log: Log,
    dataset: Dataset,
    targets: Targets,
    known: npt.NDArray[np.bool_],
    as_of: Moment,
    k: int,
    mask: Mask = "seen",
) -> I64:
    """Lists the best tracks that each user had not heard.

    Args:
        scores: of a fit.
        log: tells the order of the columns, which breaks ties.
        dataset: whose plays are left out.
        targets: whose n users get lists.
        known: (tracks,) bool, what may be listed.
        as_of: plays of folds before it are left out.
        k: tracks per list.
        mask: `train`: plays of train alone are.

    Returns:
        (n, k) positions in the tracks table, best first, -1 padded.
    """
    plays = dataset.plays
    starts = np.searchsorted(plays.user, np.arange(len(dataset.user_ids) + 1))
    column = np.empty_like(log.order)
    column[log.order] = np.arange(len(log.order))
    unknown = np.flatnonzero(~known[log.order])
    width = min(k, len(log.order))
    lists = np.full((len(targets), k), -1, np.int64)
    step = max(1, MAX_SCORES // max(1, len(log.order)))
    for start in range(0, len(targets), step):
        users = targets.users[start : start + step]
        rows = scores(users)
        rows[:, unknown] = -np.inf
        for n, user in enumerate(users):
            own = slice(starts[user], starts[user + 1])
            rows[n, column[plays.track[own][plays.fold[own] < masked_from(as_of, mask)]]] = -np.inf
        enough = _lower_bounds(rows, width)
        for n, row in enumerate(rows):
            top = np.flatnonzero((row >= enough[n]) & (row > -np.inf))
            top = top[np.argsort(-row[top], kind="stable")][:width]
            lists[start + n, : len(top)] = log.order[top]
    return lists


def _lower_bounds(rows: F32, width: int) -> F32:
    """(n,) a score per row that at least `width` others reach: the width-th largest maximum of short blocks."""
    block = max(1, min(64, rows.shape[1] // (4 * width)))
    whole = rows[:, : rows.shape[1] // block * block]
    best = whole.reshape(len(rows), -1, block).max(axis=2)
    return np.asarray(np.partition(best, best.shape[1] - width, axis=1)[:, -width])


def _key(
    dataset: Dataset,
    name: str,
    targets: Targets,
    known: npt.NDArray[np.bool_],
    as_of: Moment,
    k: int,
    seed: int,
    mask: Mask,
) -> str:
    """Names everything that the lists depend on."""
    settings = (_VERSION, name, as_of, k, seed, dataset.info.split, dataset.info.counts, _TUNE_USERS, LARGE_TRAIN_PLAYS)
    decides = settings if mask == "seen" else (*settings, mask)  # what was kept before stays good
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode())
    for array in (targets.users, targets.tracks, known):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> Baseline | None:
    """What `_write` kept, None when there is nothing that can be read."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            about = parse_json(str(kept["about"]))
            return Baseline(kept["lists"].astype(np.int64), **about, cached=True)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, baseline: Baseline) -> None:
    """Keeps `baseline`, whole or not at all; a dataset that cannot be written to keeps nothing."""
    about = {name: value for name, value in asdict(baseline).items() if name not in ("lists", "cached", "skipped")}
    assert baseline.lists is not None
    text = io.BytesIO()
    np.savez_compressed(text, lists=baseline.lists.astype(np.int32), about=np.array(json.dumps(about)))
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        with files.replacing_file(path) as new:
            new.write_bytes(text.getvalue())
