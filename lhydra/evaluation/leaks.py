"""Leak checks of a prepared dataset: does training get to see what evaluation asks for?

Each finding is {"check", "verdict", "found", "figure"}. Verdicts: `ok`; `warning`, worth a look, the numbers may
still be right; `leak`, the numbers flatter. A `figure` is a share, a count or a correlation, as `found` says.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.data.dataset import TEST, TRAIN, VALID, Column, Dataset, Plays
from lhydra.data.schema import leaks as is_source_aggregate
from lhydra.data.split import MIN_PLAYS
from lhydra.domain import I64

F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[Any]
SAMPLE = 20_000  # tracks, and users, at most that a column is measured on
LEAKING, SUSPICIOUS = 0.7, 0.4  # partial correlations with held-out plays, given train plays
FEWEST = 100  # tracks or users below which a correlation says nothing
MAX_VALUES = 64  # a column of more values is an identity rather than a property: its values are not averaged
Finding = dict[str, Any]


def find_leaks(dataset: Dataset) -> list[Finding]:
    """Returns the findings of every check, in the order of the checks; deterministic but for today's date."""
    plays = dataset.plays
    return [
        _ids(dataset),
        *_repeats(dataset, plays),
        _twin_users(dataset, plays),
        _twin_tracks(dataset, plays),
        _time_order(dataset, plays),
        _time_range(plays),
        _only_in_test(dataset, plays),
        *_own_aggregates(dataset, plays),
        *_track_columns(dataset, plays),
        *_user_columns(dataset, plays),
    ]


# -- rows and ids -----------------------------------------------------------------------------------------


def _ids(dataset: Dataset) -> Finding:
    """The same id twice is two people or tracks whose plays belong together; one half may be in train."""
    twice = close = 0
    for ids in (dataset.user_ids, dataset.track_ids):
        distinct = set(ids)
        twice += len(ids) - len(distinct)
        close += len(distinct) - len({text.strip().casefold() for text in distinct})
    if twice:
        return _finding("duplicate ids", "leak", f"{_n(twice, 'user or track id')} more than once in the tables", twice)
    if close:
        text = f"{_n(close, 'user or track id')} equal to another but for case or spaces around"
        return _finding("duplicate ids", "warning", text, close)
    return _finding("duplicate ids", "ok", "every user and track id once", 0)


def _repeats(dataset: Dataset, plays: Plays) -> tuple[Finding, Finding]:
    """Fold overlap and duplicate plays.

    A pair in train and again later is repeat listening if time separates the two, else a leak.
    """
    keys = _pairs(dataset, plays)
    order = np.argsort(keys * 3 + plays.fold, kind="stable")  # by time within a pair and fold, as the plays are
    same_pair = keys[order[1:]] == keys[order[:-1]]
    fold, times = plays.fold[order], plays.time[order]
    later_fold = same_pair & (fold[1:] > fold[:-1])
    double = int(same_pair.sum()) - int(later_fold.sum())
    text = f"{_n(double, 'row')} of a user and track that the fold holds already"
    if double:
        twice = _finding("duplicate plays", "warning", text, double)
    else:
        twice = _finding("duplicate plays", "ok", "every user and track at most once in a fold", 0)

    pairs = int(later_fold.sum())
    share = pairs / max(1, int((fold > TRAIN).sum()))
    if not pairs:
        return _finding("fold overlap", "ok", "no user has the same track in two folds", 0.0), twice
    by_time = dataset.info.split.get("protocol") in ("temporal", "column") and dataset.info.timed
    not_later = later_fold & ((times[1:] <= times[:-1]) | (times[1:] <= 0))
    wrong = int(not_later.sum()) if by_time else pairs
    text = f"{_n(pairs, 'held-out play')} ({share:.1%}) of a track that the user has in an earlier fold"
    if wrong:
        why = "not later in time than there" if by_time else "which this split must not have"
        return _finding("fold overlap", "leak", f"{text}; {wrong:,} of them {why}", share), twice
    text += ": repeat listening, later in time and never a target"
    return _finding("fold overlap", "ok", text, share), twice


def _twin_users(dataset: Dataset, plays: Plays) -> Finding:
    """Two ids with the very same tracks are one person: what is held out of one is in the train fold of the other."""
    n_users, n_tracks = len(dataset.user_ids), len(dataset.track_ids)
    keys = _distinct(_pairs(dataset, plays))
    user, track = keys // n_tracks, keys % n_tracks
    marks = np.random.PCG64(0).random_raw(n_tracks)
    total = np.zeros(n_users, np.uint64)
    np.add.at(total, user, marks[track])  # equal sets have equal sums; others by an accident of 1 in 2**64
    size = np.bincount(user, minlength=n_users)
    held_out = np.bincount(plays.user[plays.fold > TRAIN], minlength=n_users) > 0
    rich = np.flatnonzero(size >= 5)  # fewer tracks agree by chance
    _, inverse, counts = np.unique(total[rich], return_inverse=True, return_counts=True)
    twins = int((held_out[rich] & (counts[inverse] > 1)).sum())
    share = twins / max(1, int(held_out.sum()))
    if not twins:
        return _finding("twin users", "ok", "no two users with the very same tracks", 0.0)
    text = f"{_n(twins, 'evaluated user')} ({share:.1%}) with the very same tracks as another user"
    return _finding("twin users", "leak" if share >= 0.01 else "warning", text, share)


def _twin_tracks(dataset: Dataset, plays: Plays) -> Finding:
    """A target that the user heard under another id, judged by title and artist."""
    check = "twin tracks"
    names = [column.name for column in dataset.info.track_columns if column.name in ("name", "artist")]
    if len(names) < 2:
        return _finding(check, "ok", "not checked: needs a title and an artist of every track", None)
    title, artist = (_codes(dataset.tracks[name].to_pylist()) for name in ("name", "artist"))
    _, same = np.unique(title * (artist.max(initial=0) + 1) + artist, return_inverse=True)
    twin = np.bincount(same)[same] > 1
    twin &= (title > 0) & (artist > 0)
    stride = len(dataset.track_ids) + 1
    concerned = plays.where(twin[plays.track])
    train, later = concerned.where(concerned.fold == TRAIN), concerned.where(concerned.fold > TRAIN)
    before = train.user.astype(np.int64) * stride + same[train.track]
    heard = np.isin(later.user.astype(np.int64) * stride + same[later.track], before)
    heard &= ~np.isin(_pairs(dataset, later), _pairs(dataset, train))
    count, share = int(heard.sum()), int(heard.sum()) / max(1, int((plays.fold > TRAIN).sum()))
    text = f"{_n(int(twin.sum()), 'track')} share title and artist with another; {_n(count, 'held-out play')}"
    text += f" ({share:.1%}) of a track that the user has in train under another id"
    return _finding(check, "warning" if share > 0.01 else "ok", text, share)


def _only_in_test(dataset: Dataset, plays: Plays) -> Finding:
    """No leak, but what nobody can learn; many of them mean that the split is not what one thinks."""
    train = plays.fold == TRAIN
    test = plays.where(plays.fold == TEST)
    track_known, user_known = np.zeros(len(dataset.track_ids), bool), np.zeros(len(dataset.user_ids), bool)
    track_known[plays.track[train]], user_known[plays.user[train]] = True, True
    lost_track, lost_user = ~track_known[test.track], ~user_known[test.user]
    tracks, users = len(np.unique(test.track[lost_track])), len(np.unique(test.user[lost_user]))
    share = float((lost_track | lost_user).mean()) if len(test) else 0.0
    text = f"{_n(users, 'user')} and {_n(tracks, 'track')} of the test fold without a play in train"
    text += f": {share:.1%} of its plays"
    return _finding("ids only in test", "warning" if share > 0.2 else "ok", text, share)


# -- time -------------------------------------------------------------------------------------------------


def _time_order(dataset: Dataset, plays: Plays) -> Finding:
    """Train plays later than the plays to predict: for a split by time a leak."""
    check, protocol = "future plays in train", str(dataset.info.split.get("protocol"))
    if not dataset.info.timed:
        return _finding(check, "ok", "not checked: the plays have no timestamps", None)
    known = plays.time > 0
    train, later = known & (plays.fold == TRAIN), known & (plays.fold > TRAIN)
    n_users = len(dataset.user_ids)
    first = np.full(n_users, np.iinfo(np.int64).max)
    if protocol == "temporal":
        first[:] = plays.time[later].min(initial=np.iinfo(np.int64).max)
    else:
        np.minimum.at(first, plays.user[later], plays.time[later])
    ahead = train & (plays.time > first[plays.user])
    text = f"{_n(int(ahead.sum()), 'train play')} later than the first held-out play"
    text += "" if protocol == "temporal" else " of their user"
    share = int(ahead.sum()) / max(1, int(train.sum()))
    if not ahead.any():
        return _finding(check, "ok", f"no {text[2:] if text.startswith('0 ') else text}", 0.0)
    if protocol not in ("temporal", "leave-last"):
        note = f"{text}, as in any split that is not by time: the model sees the future"
        return _finding(check, "warning", note, share)
    # who has hardly any plays is all train by the protocol
    small = np.zeros(n_users, bool)
    keys = _distinct(_pairs(dataset, plays))
    small[:] = np.bincount(keys // len(dataset.track_ids), minlength=n_users) < MIN_PLAYS
    if (ahead & ~small[plays.user]).any():
        return _finding(check, "leak", f"{text}, which a {protocol} split must not have", share)
    text += f", all of users with fewer than {MIN_PLAYS} tracks, who are train by the protocol"
    return _finding(check, "warning" if share > 0.01 else "ok", text, share)


def _time_range(plays: Plays) -> Finding:
    early, late = int((plays.time < 0).sum()), int((plays.time > time.time() + 86_400).sum())
    if not early + late:
        return _finding("timestamps", "ok", "no play before 1970 or after today", 0)
    text = f"{_n(early, 'play')} before 1970, {late:,} after today (milliseconds taken for seconds?)"
    return _finding("timestamps", "warning", text, early + late)


# -- columns ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Hidden:
    """Something held out, once what train tells is taken from it; on a log scale or on its own."""

    log: bool
    known: F64  # (n, c) orthonormal columns that span what train tells
    left: F64  # (n,) of norm 1, or all 0

    @classmethod
    def of(cls, hidden: Numbers, known: Sequence[Numbers]) -> "tuple[_Hidden, _Hidden]":
        """Both scales; hidden and every known are (n,)."""
        return cls._on(False, hidden, known), cls._on(True, hidden, known)

    @classmethod
    def _on(cls, log: bool, hidden: Numbers, known: Sequence[Numbers]) -> "_Hidden":
        columns = [np.ones(len(hidden))]
        for values in known:
            scaled = _scaled(values, log)
            spread = float(scaled.std())
            if spread > 0:
                scaled = (scaled - scaled.mean()) / spread
                columns += [scaled, scaled**2]
        basis = np.asarray(np.linalg.qr(np.stack(columns, 1))[0], np.float64)
        return cls(log, basis, _left(_scaled(hidden, log)[:, None], basis)[:, 0])

    def correlation(self, values: F64) -> float:
        """The largest |partial correlation| of the columns of values (n, v), 0 within what chance gives."""
        found = float(np.abs(self.left @ _left(_scaled(values, self.log), self.known)).max(initial=0.0))
        return found if found > 4 / np.sqrt(len(values)) else 0.0


def _left(values: F64, basis: F64) -> F64:
    """What `basis` leaves of the columns of values (n, v), of norm 1; 0 where it leaves only rounding."""
    left = values - basis @ (basis.T @ values)
    some = left.std(0) > 1e-6 * np.maximum(values.std(0), 1e-12)
    left = np.clip(left, *np.quantile(left, (0.01, 0.99), axis=0))  # a single outlier is no correlation
    left -= left.mean(0)
    norm = np.sqrt((left**2).sum(0))
    return np.where(some & (norm > 0), left / np.maximum(norm, 1e-300), 0.0)


def _scaled(values: Numbers, log: bool) -> F64:
    values = np.asarray(values, np.float64)
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)), np.float64) if log else values


def _own_aggregates(dataset: Dataset, plays: Plays) -> Iterator[Finding]:
    """Lhydra's own counts must be those of the train fold."""
    train = plays.where(plays.fold == TRAIN)
    expected = {
        ("tracks", "train_plays"): np.bincount(train.track, train.count, len(dataset.track_ids)),
        ("tracks", "train_listeners"): np.bincount(train.track, minlength=len(dataset.track_ids)),
        ("users", "train_plays"): np.bincount(train.user, train.count, len(dataset.user_ids)),
        ("users", "train_tracks"): np.bincount(train.user, minlength=len(dataset.user_ids)),
    }
    wrong = []
    for (side, name), counts in expected.items():
        table = getattr(dataset, side)
        if name in table.column_names:
            same = np.isclose(table[name].to_numpy().astype(np.float64), counts, rtol=1e-4, atol=1e-3)
            wrong += [f"{side}.{name} ({int((~same).sum()):,} rows)"] * (not same.all())
    if wrong:
        yield _finding("own aggregates", "leak", f"not those of the train fold: {', '.join(wrong)}", len(wrong))
    else:
        yield _finding("own aggregates", "ok", "counts in the tables are those of the train fold", 0)


def _track_columns(dataset: Dataset, plays: Plays) -> Iterator[Finding]:
    """Does a column know how often a track is played in the held-out folds, beyond what train plays tell?"""
    columns = [column for column in dataset.info.track_columns if column.kind != "text"]
    n = len(dataset.track_ids)
    listeners = {fold: np.bincount(plays.track[plays.fold == fold], minlength=n) for fold in (TRAIN, VALID, TEST)}
    plays_of = {
        fold: np.bincount(plays.track[plays.fold == fold], plays.count[plays.fold == fold], n) for fold in listeners
    }
    warm = _drawn(np.flatnonzero(listeners[TRAIN] > 0))  # an unheard track's novelty is a fair predictor
    hidden: list[_Hidden] = []
    if len(warm) >= FEWEST:
        known = [listeners[TRAIN][warm], plays_of[TRAIN][warm]]
        for of in (listeners, plays_of):
            for later in (of[TEST], of[TEST] + of[VALID]):
                hidden += _Hidden.of(later[warm], known)
    yield from _measured("track", dataset.tracks, columns, warm, hidden)


def _user_columns(dataset: Dataset, plays: Plays) -> Iterator[Finding]:
    """Does a column repeat something computed over all plays of a user that the train plays do not tell?"""
    columns = [column for column in dataset.info.user_columns if column.kind != "text"]
    if not columns:
        return
    n_users = len(dataset.user_ids)
    held_out = np.bincount(plays.user[plays.fold > TRAIN], minlength=n_users) > 0
    chosen = _drawn(np.flatnonzero(held_out & (np.bincount(plays.user[plays.fold == TRAIN], minlength=n_users) > 0)))
    place = np.full(n_users, -1)
    place[chosen] = np.arange(len(chosen))
    own = plays.where(place[plays.user] >= 0)
    own = Plays(place[own.user].astype(np.int32), own.track, own.count, own.time, own.fold)
    hidden: list[_Hidden] = []
    if len(chosen) >= FEWEST:
        train = _aggregates(dataset, own.where(own.fold == TRAIN), len(chosen))
        for name, whole in _aggregates(dataset, own, len(chosen)).items():
            hidden += _Hidden.of(whole, [train["tracks"], train["plays"], train[name]])
    yield from _measured("user", dataset.users, columns, chosen, hidden)
    favourites = [_favourite(dataset, own, len(chosen)), _favourite(dataset, own.where(own.fold == TRAIN), len(chosen))]
    differs = favourites[0] != favourites[1]
    for column in (column for column in columns if column.kind == "categorical"):
        if int(differs.sum()) >= 30:
            values = np.array([str(value) for value in dataset.users[column.name].take(chosen).to_pylist()])[differs]
            later, then = (float((values == texts[differs]).mean()) for texts in favourites)
            if later >= 0.5 and later > 2 * then:
                text = f"the favourite genre over all plays for {later:.0%} of users whose train plays tell another"
                verdict = "leak" if later >= 0.9 else "warning"  # a stated taste is right often, a computed one always
                yield _finding(f"user column {column.name}", verdict, text, later)


def _measured(side: str, table: Any, columns: list[Column], chosen: I64, hidden: list[_Hidden]) -> Iterator[Finding]:
    """Findings of the columns at `chosen` rows, those that tell nothing summed up in a single `ok`."""
    highest, quiet = 0.0, 0
    enough = len(chosen) >= FEWEST
    for column in columns:
        figure, text = 0.0, "too few plays to measure it"
        if enough:
            values = _numbers(table[column.name].take(chosen), column)
            figure = max((one.correlation(values) for one in hidden), default=0.0)
            text = f"{figure:.2f} correlated with held-out plays beyond what train plays tell"
        if figure >= LEAKING:
            yield _finding(f"{side} column {column.name}", "leak", text, figure)
        elif figure >= SUSPICIOUS:
            yield _finding(f"{side} column {column.name}", "warning", text, figure)
        elif side == "user" and is_source_aggregate(column.name):
            text = f"declared, by its name an aggregate of the source over all plays; {text}"
            yield _finding(f"{side} column {column.name}", "warning", text, figure)
        else:
            quiet, highest = quiet + 1, max(highest, figure)
    if not enough:
        text = f"not checked: {len(chosen)} {side}s with train{' and held-out' * (side == 'user')} plays are too few"
        yield _finding(f"{side} columns", "ok", text, None)
    elif quiet:
        text = f"{_n(quiet, f'{side} column')} at most {highest:.2f} correlated with held-out plays beyond train plays"
        yield _finding(f"{side} columns", "ok", f"{text}, on {len(chosen):,} {side}s", highest)


def _numbers(values: Any, column: Column) -> F64:
    """The column as numbers (n, v): itself and whether it is missing, or an indicator of each of few values."""
    if column.kind in ("numeric", "year"):
        numbers = np.asarray(values.cast("float64").to_numpy(), np.float64)
        missing = ~np.isfinite(numbers)
        if missing.all():
            return np.empty((len(numbers), 0))
        return np.stack([np.where(missing, np.median(numbers[~missing]), numbers), missing], 1)
    lists = [_listed(value) for value in values.to_pylist()]
    distinct = sorted({text for texts in lists for text in texts})
    if len(distinct) > MAX_VALUES:
        return np.empty((len(lists), 0))
    place = {text: number for number, text in enumerate(distinct)}
    indicators = np.zeros((len(lists), len(distinct)))
    for row, texts in enumerate(lists):
        indicators[row, [place[text] for text in texts]] = 1
    return indicators


def _aggregates(dataset: Dataset, plays: Plays, n: int) -> dict[str, Numbers]:
    """Per user (n,): totals, and means of every number of the tracks, plain and weighted by plays."""
    size = np.bincount(plays.user, minlength=n).astype(np.float64)
    total = np.bincount(plays.user, plays.count.astype(np.float64), n)
    found: dict[str, Numbers] = {"tracks": size, "plays": total}
    for column in dataset.info.track_columns:
        if column.kind in ("numeric", "year"):
            of_track = dataset.tracks[column.name].cast("float64").to_numpy()
            known = np.isfinite(of_track)
            values = np.where(known, of_track, 0)[plays.track]
            present = known[plays.track].astype(np.float64)
            for name, weight in (("", present), ("weighted ", present * plays.count)):
                summed = np.bincount(plays.user, values * weight, n)
                count = np.bincount(plays.user, weight, n)
                found[f"{name}mean {column.name}"] = summed / np.maximum(count, 1e-9)
            if column.name == "duration_ms":
                found["hours"] = np.bincount(plays.user, values * plays.count, n)
    for name, weights in (("genres", None), ("genre plays", plays.count)):
        table = _genre_table(dataset, plays, n, weights)[0]
        if table.size:
            share = table / np.maximum(table.sum(1, keepdims=True), 1e-9)
            found[f"{name} entropy"] = -(share * np.log(np.maximum(share, 1e-12))).sum(1)
            found[f"{name} distinct"] = (table > 0).sum(1).astype(np.float64)
            found[f"{name} distinct share"] = found[f"{name} distinct"] / np.maximum(size, 1)
    return found


def _favourite(dataset: Dataset, plays: Plays, n: int) -> npt.NDArray[np.str_]:
    """The most played genre of each user, "" without one."""
    table, names = _genre_table(dataset, plays, n, plays.count)
    if not table.size:
        return np.full(n, "")
    return np.where(table.any(1), names[table.argmax(1)], "")


def _genre_table(
    dataset: Dataset, plays: Plays, n: int, weights: npt.NDArray[np.float32] | None
) -> tuple[F64, npt.NDArray[np.str_]]:
    """Plays by user and genre, (n, g), and the names of the MAX_VALUES most frequent genres."""
    columns = {column.name for column in dataset.info.track_columns}
    name = next((name for name in ("main_genre", "genre", "tags") if name in columns), None)
    if name is None:
        return np.empty((n, 0)), np.empty(0, np.str_)
    firsts = [next(iter(_listed(value)), "") for value in dataset.tracks[name].to_pylist()]
    names, code = np.unique(np.array(firsts, np.str_), return_inverse=True)
    frequent = np.argsort(-np.bincount(code), kind="stable")
    frequent = np.sort(frequent[names[frequent] != ""][:MAX_VALUES])
    place = np.full(len(names), -1)
    place[frequent] = np.arange(len(frequent))
    of_play = place[code][plays.track]
    kept = of_play >= 0
    cells = plays.user[kept].astype(np.int64) * len(frequent) + of_play[kept]
    flat = np.bincount(cells, None if weights is None else weights[kept], n * len(frequent))
    return flat.reshape(n, len(frequent)).astype(np.float64), names[frequent]


# -- parts ------------------------------------------------------------------------------------------------


def _pairs(dataset: Dataset, plays: Plays) -> I64:
    """(user, track) as one number each."""
    return plays.user.astype(np.int64) * len(dataset.track_ids) + plays.track


def _distinct(keys: I64) -> I64:
    """The distinct keys, ascending; np.unique hashes, which takes ten times as long for millions of distinct ones."""
    ordered = np.sort(keys)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def _drawn(positions: I64) -> I64:
    """At most SAMPLE of positions, drawn with a fixed seed, ascending."""
    if len(positions) <= SAMPLE:
        return positions
    return np.sort(np.random.default_rng(0).choice(positions, SAMPLE, replace=False))


def _codes(texts: list[Any]) -> I64:
    """Texts as numbers, equal but for case; 0 for a missing one."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(text.casefold(), len(known) + 1) if text else 0 for text in texts], np.int64)


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]


def _n(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _finding(check: str, verdict: str, found: str, figure: float | None) -> Finding:
    return {"check": check, "verdict": verdict, "found": found, "figure": None if figure is None else float(figure)}
