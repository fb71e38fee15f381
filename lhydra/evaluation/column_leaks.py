"""Leak checks of columns: does one know something of the held-out folds that train plays do not tell?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.data.dataset import TEST, TRAIN, VALID, Column, Dataset, Plays
from lhydra.data.schema import leaks as is_source_aggregate
from lhydra.domain import I64
from lhydra.evaluation.document import Finding, Verdict

F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[Any]
SAMPLE = 20_000  # tracks, and users, at most that a column is measured on
LEAKING, SUSPICIOUS = 0.7, 0.4  # partial correlations with held-out plays, given train plays
FEWEST = 100  # tracks or users below which a correlation says nothing
MAX_VALUES = 64  # a column of more values is an identity rather than a property: its values are not averaged


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


def own_aggregates(dataset: Dataset, plays: Plays) -> Iterator[Finding]:
    """Checks that Lhydra's own counts are those of the train fold.

    Args:
        dataset: its tables hold the counts.
        plays: all plays of the dataset.

    Yields:
        One finding.
    """
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
        yield finding("own aggregates", "leak", f"not those of the train fold: {', '.join(wrong)}", len(wrong))
    else:
        yield finding("own aggregates", "ok", "counts in the tables are those of the train fold", 0)


def track_columns(dataset: Dataset, plays: Plays) -> Iterator[Finding]:
    """Checks whether a column knows how often a track is played in the held-out folds, beyond what train plays tell.

    Args:
        dataset: its tracks have the columns.
        plays: all plays of the dataset.

    Yields:
        A finding per suspicious column, and one for the others together.
    """
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


def user_columns(dataset: Dataset, plays: Plays) -> Iterator[Finding]:
    """Checks whether a column repeats something computed over all plays of a user that the train plays do not tell.

    Args:
        dataset: its users have the columns.
        plays: all plays of the dataset.

    Yields:
        A finding per suspicious column, and one for the others together.
    """
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
                verdict: Verdict = (
                    "leak" if later >= 0.9 else "warning"
                )  # a stated taste is right often, a computed one always
                yield finding(f"user column {column.name}", verdict, text, later)


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
            yield finding(f"{side} column {column.name}", "leak", text, figure)
        elif figure >= SUSPICIOUS:
            yield finding(f"{side} column {column.name}", "warning", text, figure)
        elif side == "user" and is_source_aggregate(column.name):
            text = f"declared, by its name an aggregate of the source over all plays; {text}"
            yield finding(f"{side} column {column.name}", "warning", text, figure)
        else:
            quiet, highest = quiet + 1, max(highest, figure)
    if not enough:
        text = f"not checked: {len(chosen)} {side}s with train{' and held-out' * (side == 'user')} plays are too few"
        yield finding(f"{side} columns", "ok", text, None)
    elif quiet:
        text = f"{counted(quiet, f'{side} column')} at most {highest:.2f} correlated with held-out plays"
        text += " beyond train plays"
        yield finding(f"{side} columns", "ok", f"{text}, on {len(chosen):,} {side}s", highest)


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


def _drawn(positions: I64) -> I64:
    """At most SAMPLE of positions, drawn with a fixed seed, ascending."""
    if len(positions) <= SAMPLE:
        return positions
    return np.sort(np.random.default_rng(0).choice(positions, SAMPLE, replace=False))


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]


def counted(count: int, noun: str) -> str:
    """Says how many.

    Args:
        count: how many.
        noun: of one.

    Returns:
        As `1 row`, `2 rows`.
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def finding(check: str, verdict: Verdict, found: str, figure: float | None) -> Finding:
    """Makes a finding.

    Args:
        check: which check.
        verdict: `ok`; `warning`, worth a look; `leak`, the numbers flatter.
        found: in words.
        figure: a share, a count or a correlation, as `found` says; None where nothing was measured.

    Returns:
        A finding of the document.
    """
    return {"check": check, "verdict": verdict, "found": found, "figure": None if figure is None else float(figure)}
