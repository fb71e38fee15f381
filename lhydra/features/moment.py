"""A user at a moment: which tracks come into question because of what was just played, and what speaks for each.

Signals of a track tell how often and how lately the user has played it (decayed counts and base-level learning,
Σ age^-d: Anderson & Schooler 1991), whether it is part of the session that goes on, and how strongly it follows what
was played last: by everybody's transitions (`lhydra.features.sequences`) and by the user's own last plays. Training,
batch and request compute them here. `lhydra/kernels/moment.pxi`, where it is compiled, does what is written here in
NumPy: the same sums in the same order.
"""

import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lhydra import kernels
from lhydra.domain import COMPLETED, F32, HALF_LIVES_DAYS, I64, MAX_RECENT, SKIPPED, Recent, Repeats
from lhydra.features.listening import AWAY_S, DAY_S, MINUTE_S, PAUSE_S, Listening
from lhydra.features.sequences import FOLLOWS, Sequences
from lhydra.scratch import borrowed_places

if TYPE_CHECKING:
    from lhydra.kernels.compiled import CompiledMoment

F64 = npt.NDArray[np.float64]
# (h,) rows, counts and times of the history, (m,) its rows with -1 for unknown ones, its repeats; (r,) rows likewise of
# the last plays, and they.
Recorded = tuple[I64, F32, I64, I64, Repeats, I64, Recent]
POWERS = (0.5, 1.0, 1.5)  # d of base-level learning
# age^-d as a sum of 2^(-age / half-life) and a constant, by non-negative least squares of the relative error from 2 to
# 1,100 days: for plays older than those that are remembered one by one.
_EXPONENTIALS = np.array(
    [(1.99268, 0.25203, 0.06098, 0.02218), (2.27769, 0.06514, 0.00501, 0.00019), (1.70058, 0.0105, 0.00024, 0.0)]
).T
_RATES = -math.log(2) / np.array(HALF_LIVES_DAYS)  # a day
LAST_FEW, LAST_MANY = 3, 50  # plays that are asked with: of the first the one n places back counts n^-4, else 1 / n
_AGO = np.arange(1, LAST_MANY + 1.0)
_FALLS = np.stack([np.square(np.square(1 / _AGO)) * (_AGO <= LAST_FEW), 1 / _AGO])  # of the play one back, two back, …
_STEPS = np.arange(1, FOLLOWS + 1)  # of the user's own plays later, n of which count 1 / n, as everybody's do
LEAST_COUNT = 0.5  # plays before a session, from which on a track was heard before it
LATELY = 20  # plays of which it is told how many repeat earlier ones of the MAX_RECENT remembered
_OWN = (
    *("heard", "count", "minutes since last", "minutes since first"),
    *(f"decayed {days}" for days in HALF_LIVES_DAYS),
    *(f"base level {power}" for power in POWERS),
    *("in session", "plays since", "skipped", "completed"),
)
SIGNALS = (  # raw: the head takes the logarithms
    *_OWN,
    *("after few", "after many", "own after few", "own after many", "few", "many"),
)
N_OWN = len(_OWN)
_AFTER, _OWN_AFTER, _BOTH = (slice(N_OWN + n, N_OWN + n + 2) for n in (0, 2, 4))
CONTEXT = (
    *("in session", "session plays", "tracks", "plays", "distinct", "repeating", "away"),
    *("session repeats", "last repeats"),
)
_FEW, _MANY, _TOGETHER = range(3)  # sums of what follows the last few and the last many plays, of what goes beside
SOURCES = ("own", "following", "together")  # of candidates, beside the nearest vectors
_LAWS = (
    None
    if kernels.compiled is None
    else kernels.compiled.MomentLaws(
        falls=_FALLS,
        rates=_RATES,
        powers=np.array(POWERS),
        exponentials=_EXPONENTIALS,
        numbers={
            **{"pause_s": PAUSE_S, "away_s": int(AWAY_S), "minute_s": MINUTE_S, "day_s": DAY_S},
            **{"follows": FOLLOWS, "lately": LATELY, "least_count": LEAST_COUNT, "unknown": 2 * MAX_RECENT},
            **{"skipped": SKIPPED, "completed": COMPLETED, "n_own": N_OWN, "n_signals": len(SIGNALS)},
        },
    )
)


class Moment:
    """One user at one moment: sums by track are made once, then candidates and signals are looked up in them.

    Rows of the history, the last plays and all that goes with them lie back to back; each distinct one is known by
    the number of one place where it stands. What only heard tracks have is computed when one is asked for.

    Args:
        listening: of the user.
        sequences: the tables, of the same catalog; empty ones say nothing.
    """

    _listening_of: Callable[[], Listening]  # where it is made only when asked for

    def __init__(self, listening: Listening, sequences: Sequences) -> None:
        self._listening = one = listening
        self._sequences = sequences
        self.compiled: CompiledMoment | None = None
        if kernels.compiled is None:
            self._sum_up()
            return
        sums = kernels.compiled.CompiledMoment(_LAWS, sequences.compiled, one.n, int(one.now))
        history, recent = (one.rows, one.counts, one.last), (one.recent, one.recent_times, one.recent_flags)
        self.compiled = sums.told(*history, one.first, one.decayed, *recent)

    @classmethod
    def of(
        cls, recorded: Recorded, n: int, now: int, listening: Callable[[], Listening], sequences: Sequences
    ) -> "Moment":
        """Makes it of what the user store keeps: where kernels are compiled, without the arrays of a `Listening`.

        Args:
            recorded: of the user.
            n: tracks of the catalog.
            now: Unix seconds, 0 for the last play.
            listening: returns all that as a `Listening`, for whoever asks what would be without a track.
            sequences: the tables, of the same catalog.

        Returns:
            The moment.
        """
        if kernels.compiled is None:
            return cls(listening(), sequences)
        moment = cls.__new__(cls)
        moment._listening_of, moment._sequences = listening, sequences
        moment.compiled = kernels.compiled.CompiledMoment(_LAWS, sequences.compiled, n, now).recorded(*recorded)
        return moment

    @cached_property
    def _listening(self) -> Listening:
        return self._listening_of()

    def _sum_up(self) -> None:
        one, sequences = self._listening, self._sequences
        self._heard = played = np.concatenate([one.rows, one.recent])
        h, r = len(one.rows), len(one.recent)
        with borrowed_places(one.n) as place:
            place[played] = np.arange(h + r)
            self._played = place.take(played)  # of the last plays the newest place, h and more
            self._back = (h + r) - self._played[h:].astype(np.int64)  # plays ago, of the newest play of each track
            lately = self._back[-LAST_MANY:]
            ago = lately[lately == np.arange(len(lately), 0, -1)]  # each track once
            rows, weights, of, cut = sequences.others(one.recent.take(r - ago))
            self._rows = np.concatenate([played, rows])
            place[rows] = np.arange(h + r, h + r + len(rows))
            place[played] = self._played
            number = place.take(rows)
        few, many = _FALLS[_FEW].take(ago - 1), _FALLS[_MANY].take(ago - 1)
        self._size = len(self._rows) + 1  # the last entry stands for all other tracks
        follow, weight, beside = number[:cut], weights[:cut], number[cut:]
        self._sums = np.empty((3, self._size))
        self._sums[_FEW] = np.bincount(follow, weight * few.take(of[:cut]), self._size)
        self._sums[_MANY] = np.bincount(follow, weight * many.take(of[:cut]), self._size)
        self._sums[_TOGETHER] = np.bincount(beside, weights[cut:] * many.take(of[cut:]), self._size)
        self._number = number

    @cached_property
    def _own_sums(self) -> F64:
        """(2, size) of what followed the user's last plays when they had been played before."""
        one, h = self._listening, len(self._listening.rows)
        at = np.flatnonzero(self._back <= LAST_MANY)[:, None]
        later = at + _STEPS
        inside = later < len(one.recent)
        later[~inside] = 0
        session = np.zeros(len(one.recent), np.int64)
        np.cumsum(one.recent_times[1:] - one.recent_times[:-1] > PAUSE_S, out=session[1:])
        inside &= session.take(later) == session.take(at)
        few, many = _FALLS.take(self._back.take(at) - 1, 1)
        if len(self._sequences):
            damping = self._sequences.damping.take(one.recent.take(at)).astype(np.float64)
            damping[damping == 0] = 1
            few, many = few * damping, many * damping
        followed = self._played[h:].take(later[inside])
        sums = np.empty((2, self._size))
        sums[_FEW] = np.bincount(followed, (few / _STEPS)[inside], self._size)
        sums[_MANY] = np.bincount(followed, (many / _STEPS)[inside], self._size)
        return sums

    @cached_property
    def _entry(self) -> I64:
        """(size,) of each number the entry of the history, h for none."""
        h = len(self._listening.rows)
        entry = np.full(self._size, h, np.int64)
        entry[self._played[:h]] = np.arange(h)
        return entry

    @cached_property
    def _age(self) -> F64:
        """(h,) days since the last play of each track of the history."""
        return np.asarray(np.maximum(self._listening.clock - self._listening.last, MINUTE_S) / DAY_S)

    @cached_property
    def _decayed(self) -> F64:
        """(h, 3) decayed counts as of now."""
        return np.asarray(self._listening.decayed * np.exp(self._age[:, None] * _RATES))

    @cached_property
    def _base_level(self) -> F64:
        """(h, 3) Σ age^-d of each track of the history: exact for the last plays, else by its decayed counts."""
        one = self._listening
        h, n = len(one.rows), len(HALF_LIVES_DAYS)
        entry = self._entry.take(self._played[h:])
        age = np.maximum(one.clock - one.recent_times, MINUTE_S) / DAY_S
        falls = np.exp(np.concatenate([_RATES[:, None] * age, -np.array(POWERS)[:, None] * np.log(age)]))
        at = entry + (h + 1) * np.arange(len(falls))[:, None]
        lately = np.bincount(at.ravel(), falls.ravel(), len(falls) * (h + 1)).reshape(len(falls), h + 1)[:, :h]
        older = np.maximum(self._decayed - lately[:n].T, 0.0)
        more = np.maximum(one.counts - np.bincount(entry, minlength=h + 1)[:h], 0.0)
        return np.asarray(older @ _EXPONENTIALS[:n] + more[:, None] * _EXPONENTIALS[n] + lately[n:].T)

    def candidates(self, shares: tuple[float, ...], depth: int, *, repeats: bool = True) -> tuple[I64, I64, I64]:
        """Finds the tracks that come into question, by source.

        Args:
            shares: of each of SOURCES, how much of the depth its candidates may take.
            depth: candidates in all.
            repeats: whether tracks that the user has heard may be among them; without, they may still be.

        Returns:
            For each of SOURCES distinct rows, in no order; those that follow may come twice.
        """
        n_own, n_few, n_many, n_together = room = room_of(shares, depth)
        if self.compiled is not None:
            return self.compiled.candidates(*room, repeats)
        own, sums = np.empty(0, np.int64), self._sums
        if repeats:
            own = _top(self._listening.rows, self._base_level[:, 1], n_own)
            sums = sums[:_TOGETHER] + self._own_sums
        few = self._first(sums[_FEW], n_few)
        many = self._first(sums[_MANY], n_many)
        return own, np.concatenate([few, many]), self._first(self._sums[_TOGETHER], n_together)

    def _first(self, sums: F64, n: int) -> I64:
        """The n rows with the largest of a sum."""
        found = np.flatnonzero(sums != 0)
        return _top(self._rows.take(found), sums.take(found), n)

    def signals(self, rows: I64) -> F32:
        """Looks up what speaks for some tracks.

        Args:
            rows: (m,) int64 of the catalog, distinct.

        Returns:
            (m, len(SIGNALS)) float32.
        """
        if self.compiled is not None:
            return self.compiled.signals(rows)
        found = np.zeros((len(rows), len(SIGNALS)), np.float32)
        if self._size == 1:
            return found
        known, played = len(self._heard), self._rows
        with borrowed_places(self._listening.n) as place:
            place[played[known:]] = self._number
            place[self._heard] = self._played
            number = place.take(rows)
        number[played.take(number, mode="clip") != rows] = self._size - 1
        heard = np.flatnonzero(number < known)
        strongest = _strongest(self._sums[:_TOGETHER])
        for which in (_FEW, _MANY):  # the same, whether heard tracks are asked for or not
            everybody = self._sums[which].take(number) / strongest[which]
            found[:, _AFTER.start + which] = found[:, _BOTH.start + which] = everybody
        if len(heard):
            at = number.take(heard)
            followed = self._own_sums.take(at, 1)
            found[heard, :N_OWN] = self._own(self._entry.take(at))
            found[heard, _OWN_AFTER] = (followed / _strongest(self._own_sums)).T
            found[heard, _BOTH] += (followed / strongest).T
        return found

    def _own(self, entry: I64) -> F32:
        """(m, N_OWN) of m entries of the history, zeros for the entry h."""
        one = self._listening
        h, r = len(one.rows), len(one.recent)
        own = np.zeros((len(entry), N_OWN), np.float32)
        some = np.flatnonzero(entry < h)
        at = entry.take(some)
        of = np.zeros((len(at), N_OWN), np.float32)
        of[:, 0], of[:, 1], of[:, 2] = 1, one.counts.take(at), self._age.take(at) * (DAY_S / MINUTE_S)
        last, first = one.last.take(at), one.first.take(at)
        of[:, 3] = np.maximum(one.clock - np.where(first > 0, first, last), MINUTE_S) / MINUTE_S
        of[:, 4:7] = self._decayed.take(at, 0)
        of[:, 7:10] = self._base_level.take(at, 0) / np.maximum(self._base_level.max(0, initial=0), 1e-9)
        played = self._played.take(at).astype(np.int64)
        since = np.where(played >= h, h + r - 1 - played, 2 * MAX_RECENT)
        of[:, 11] = since
        if one.in_session:
            of[:, 10] = (since < one.in_session) | (last >= one.began)
        if one.recent_flags.any():
            entries = self._entry.take(self._played[h:])
            for column, flag in ((12, SKIPPED), (13, COMPLETED)):
                of[:, column] = np.bincount(entries, (one.recent_flags & flag) > 0, h + 1).take(at)
        own[some] = of
        return own

    def without(self, row: int) -> "Moment":
        """Returns the moment of the same user had one track never been played.

        Args:
            row: of the catalog.

        Returns:
            Another moment; what is the same of all other tracks is not computed again.
        """
        one = self._listening
        at, recent = np.flatnonzero(one.rows == row), one.recent != row

        def left(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.concatenate([values[: at[0]], values[at[0] + 1 :]]) if len(at) else values

        last_plays = one.recent[recent], one.recent_times[recent], one.recent_flags[recent]
        less = Listening(
            *(one.n, left(one.rows), left(one.counts), left(one.last), left(one.first), left(one.decayed)),
            *(*last_plays, one.now),
        )
        moment = Moment(less, self._sequences)
        if self.compiled is None and less.clock == one.clock:
            shared = {"_age": self._age, "_decayed": self._decayed, "_base_level": self._base_level}
            vars(moment).update({name: left(values) for name, values in shared.items()})
        return moment

    def context(self) -> F32:
        """Returns what the moment is like, (len(CONTEXT),) float32."""
        if self.compiled is not None:
            return self.compiled.context()
        one = self._listening
        h, r = len(one.rows), len(one.recent)
        recent = self._played[h:]
        heard = np.zeros(h + r, np.bool_)
        heard[recent[:-LATELY]] = True
        repeating = np.count_nonzero(heard.take(recent[-LATELY:])) / LATELY if r > LATELY else 0.0
        distinct = np.count_nonzero(recent == np.arange(h, h + r)) / max(r, 1)
        sizes = (math.log1p(size) for size in (one.in_session, h, float(np.add.reduce(one.counts))))
        away = math.log1p(max(one.clock - one.newest, MINUTE_S) / MINUTE_S)
        return np.array([one.in_session > 0, *sizes, distinct, repeating, away, *self._repeated()], np.float32)

    def _repeated(self) -> tuple[float, float]:
        """Whether the last plays of the session that goes on were of tracks heard before it: their share; the last one.

        Sessions of new music go on with new music.
        """
        one, h = self._listening, len(self._listening.rows)
        if not one.in_session:
            return 0.0, 0.0
        entry = self._entry.take(self._played[-one.in_session :])
        before = np.append(one.first < one.began, False)
        if one.began == one.recent_times[-one.in_session]:  # plays without a time are told by counts, if all are known
            before |= np.append(one.counts, 0.0) - np.bincount(entry, minlength=h + 1) > LEAST_COUNT
        repeated = before.take(entry)
        return float(repeated.mean()), float(repeated[-1])


@lru_cache(maxsize=64)
def room_of(shares: tuple[float, ...], depth: int) -> tuple[int, int, int, int]:
    """Returns how many candidates each source may bring, those that follow the last few plays and the many apart.

    Args:
        shares: of each of SOURCES, how much of the depth its candidates may take.
        depth: candidates in all.

    Returns:
        Of own tracks; of those that follow few, and many; of those that go together with what was played.
    """
    n_own, n_following, n_together = [round(share * depth) for share in shares]
    return n_own, n_following - n_following // 2, n_following // 2, n_together


def _strongest(sums: F64) -> F64:
    """(2, 1) the largest of each sum, 1 where all are 0."""
    largest = np.maximum.reduce(sums, 1, keepdims=True)
    largest[largest == 0] = 1
    return np.asarray(largest)


def _top(rows: I64, values: F64, n: int) -> I64:
    """The rows with the n largest values, ties by row, in no order."""
    if len(values) <= n:
        return rows
    if not n:
        return np.empty(0, np.int64)
    bound = np.partition(values, len(values) - n)[len(values) - n]
    above, equal = values > bound, np.sort(rows[values == bound])
    return np.concatenate([rows[above], equal[: n - np.count_nonzero(above)]])
