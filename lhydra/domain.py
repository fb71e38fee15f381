"""The words of Lhydra as types: ids, array aliases, histories, queries, recommendations.

A track is named by its id (text) for people, by the 64-bit hash of its id in user state (so that state
outlives any bundle), and by its row inside one bundle's catalog.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from lhydra.rules import Applied, Rules

Value = str | float | int | bool | None
F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]
I64 = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]  # sorted, distinct, unless said otherwise
History = npt.NDArray[np.void]  # structured, HISTORY_DTYPE, newest last
Repeats = npt.NDArray[np.void]  # structured, REPEAT_DTYPE, in the order of a history
Recent = npt.NDArray[np.void]  # structured, RECENT_DTYPE, newest last

HALF_LIVES_DAYS = (1, 30, 365)
SKIPPED, COMPLETED, LIVE = 1, 2, 4  # flags of RECENT_DTYPE; LIVE: recorded by a server, not loaded
HISTORY_DTYPE = np.dtype([("track", "<u8"), ("count", "<f4"), ("time", "<i8")])
# time: Unix s; 0 unknown, and so below 0, where entries of one history are ordered by it
REPEAT_DTYPE = np.dtype([("first", "<u4"), ("decayed", "<f4", (len(HALF_LIVES_DAYS),))])  # first: Unix s, 0 unknown
RECENT_DTYPE = np.dtype([("track", "<u8"), ("time", "<u4"), ("flags", "<u4")])
MAX_HISTORY = 2048  # entries that feed the model; what is heard (excluded) has no limit
MAX_RECENT = 256  # single plays that are remembered in their order
MAX_SKIPPED = 64  # skipped tracks that are remembered as such
MAX_TOTAL = 1e18  # plays of one track, added up: no sum passes it, and its square is finite in float32
STAGES = ("queue", "lookup", "exclude", "encode", "embed", "retrieve", "rerank", "select")


class Tier(IntEnum):
    """How an answer was made, from most to least personal; the numbers are those of the wire."""

    PERSONAL = 1
    HISTORY = 2
    SEGMENT = 3
    POPULAR = 4

    @property
    def label(self) -> str:
        """The word people read: personal, history, segment or popular."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Play:
    """One play event. `count` >= 1, `time` in Unix seconds; `event_id` names the event for retries.

    request_id: of the answer that the play came from, session_id: as the caller names it; empty where unknown.
    ms_played: milliseconds, None where unknown.
    """

    event_id: str
    user_id: str
    track_id: str
    time: int
    count: float = 1.0
    completed: bool | None = None
    skipped: bool | None = None
    request_id: str = ""
    session_id: str = ""
    ms_played: int | None = None


_NO_HISTORY, _NO_HASHES = np.empty(0, HISTORY_DTYPE), np.empty(0, np.uint64)
_NO_REPEATS, _NO_RECENT = np.empty(0, REPEAT_DTYPE), np.empty(0, RECENT_DTYPE)


def no_history() -> History:
    """Returns an empty history, (0,) HISTORY_DTYPE."""
    return _NO_HISTORY


def no_hashes() -> Hashes:
    """Returns no hashes, (0,) uint64."""
    return _NO_HASHES


def no_repeats() -> Repeats:
    """Returns no repeats, (0,) REPEAT_DTYPE."""
    return _NO_REPEATS


def no_recent() -> Recent:
    """Returns no recent plays, (0,) RECENT_DTYPE."""
    return _NO_RECENT


@dataclass(frozen=True, slots=True)
class UserState:
    """What is known of one user: declared profile columns, history (newest last), everything heard.

    skipped: the tracks skipped last and not played to satisfaction since, oldest first, at most MAX_SKIPPED.
    repeats: of each entry of the history the first play, and its count decayed at each of HALF_LIVES_DAYS as of the
    entry's last play; empty where nothing is known. recent: the last plays one by one, at most MAX_RECENT.
    version: rises with every change in the user store, 0 for a state that lies in none.
    """

    profile: Mapping[str, Value] = field(default_factory=dict)
    history: History = field(default_factory=no_history)
    heard: Hashes = field(default_factory=no_hashes)
    skipped: Hashes = field(default_factory=no_hashes)  # lately, and not played since; oldest first
    repeats: Repeats = field(default_factory=no_repeats)
    recent: Recent = field(default_factory=no_recent)
    version: int = 0


class Repeat(IntEnum):
    """What happens to tracks the user has heard; the numbers are those of the wire."""

    EXCLUDE = 1
    ALLOW = 2
    DECAY = 3
    LEARNT = 4


@dataclass(frozen=True)
class Condition:
    """What one column must say of a track; at least one thing is set, and all that is set holds.

    A track of which the column says nothing has none of the values, and no number.
    """

    column: str
    any_of: tuple[str, ...] = ()  # at least one of these values
    all_of: tuple[str, ...] = ()  # every one of them
    none_of: tuple[str, ...] = ()  # none of them
    min: float | None = None  # inclusive, like max
    max: float | None = None
    where: str = field(default="filter.", compare=False)  # for errors: the field, or what comes before its last name

    def __post_init__(self) -> None:
        for name in ("any_of", "all_of", "none_of"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))

    def at(self, part: str) -> str:
        """Returns the name of a field in the request, for errors.

        Args:
            part: the name of the field in this class.

        Returns:
            The path of the field, as `filter.conditions[0].min`.
        """
        return self.where + part if self.where.endswith(".") else self.where


@dataclass(frozen=True, slots=True)
class Query:
    """One request to the recommender, already looked up and checked.

    k: how many tracks; depth: candidates to rerank, 0 for the recommender's own.
    known: the user id was found in the user store (decides the tier only).
    exclude: hashes of tracks that must not be returned, in any order; repeat: whether heard ones may be.
    filter: conditions that every track returned must meet, which the bundle's columns can answer
    (`lhydra.bundle.columns.check`). now: Unix seconds, from which ages count.
    rules: what makes the list of the scored candidates, None for their order; seed: of the draws of its exploration.
    explain: whether who serves it tells sources and reasons, see `lhydra.explain`.
    """

    k: int
    state: UserState = field(default_factory=UserState)
    known: bool = False
    exclude: Hashes = field(default_factory=no_hashes)
    depth: int = 0
    repeat: Repeat = Repeat.ALLOW
    filter: tuple[Condition, ...] = ()
    now: int = 0
    rules: Rules | None = None
    seed: int = 0
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Recommendation:
    """An answer, best first, all arrays (n,) with n = min(k, eligible tracks).

    rows: int64 rows of the bundle's catalog. scores: float32 calibrated probabilities, descending.
    logits: float32, the head's raw output that orders the list. retrieval_scores: float32 cosines.
    candidates, candidate_scores: (m,) rows and cosines that retrieval alone would return, best first, m at
    least min(k, eligible).

    With rules the list is in their order, so scores need not descend. applied: what each rule did. moved_by: for each
    track the rules that brought it into the list or further up. propensity: (n,) float32 chance with which each track
    came to its place, given those above it; None without exploration. sources, reasons: of each track, where
    they are asked for: what it was a candidate by, and why it is there in words. brought: by source of candidates the
    rows that it found, `nearest` among them, also those without room; {} where that is the only one, and with rules.
    """

    rows: I64
    scores: F32
    logits: F32
    retrieval_scores: F32
    candidates: I64
    candidate_scores: F32
    tier: Tier
    stage_us: Mapping[str, int]
    applied: tuple[Applied, ...] = ()
    moved_by: tuple[tuple[str, ...], ...] = ()
    propensity: F32 | None = None
    sources: tuple[tuple[str, ...], ...] = ()
    reasons: tuple[tuple[str, ...], ...] = ()
    brought: Mapping[str, I64] = field(default_factory=dict)


def track_hashes(track_ids: Iterable[str]) -> Hashes:
    """Returns the 64-bit hashes that stand for track ids in user state: BLAKE2b of 8 bytes, little endian.

    Args:
        track_ids: n ids, of events too.

    Returns:
        (n,) uint64 in the order given.
    """
    blake2b = hashlib.blake2b
    packed = b"".join(blake2b(track_id.encode(), digest_size=8).digest() for track_id in track_ids)
    return np.frombuffer(packed, "<u8").astype(np.uint64, copy=False)


def saturated(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns counts of plays that later arithmetic can bear: 0 for what is no number, MAX_TOTAL at most.

    Args:
        counts: any shape.

    Returns:
        The counts, each from 0 to MAX_TOTAL.
    """
    counted: npt.NDArray[np.float64] = np.fmin(np.fmax(counts, 0.0), MAX_TOTAL)
    return counted


def history_order(tracks: Hashes, counts: F32, times: I64, users: I64 | None = None) -> I64:
    """Returns the one order of history entries: by time, among equal times by count, then by track hash.

    Training, evaluation and service share it, so a model sees histories as it will be asked, and the newest
    MAX_HISTORY are the same tracks everywhere. Of plays without a time, the most played count as the newest.

    Args:
        tracks: (n,) uint64 hashes.
        counts: (n,) float32 plays, in the precision of HISTORY_DTYPE.
        times: (n,) Unix seconds, 0 unknown.
        users: (n,) whose entry each is; the order is user by user.

    Returns:
        (n,) int64 positions, newest last.
    """
    keys = (tracks, counts, times)
    return np.lexsort(keys if users is None else (*keys, users))


def make_history(tracks: Hashes, counts: Sequence[float] | F32, times: Sequence[int] | I64) -> History:
    """Returns the history of these plays: one entry per track (counts added, latest time), in `history_order`.

    Args:
        tracks: (n,) uint64 hashes in any order, repeats allowed.
        counts: (n,) plays.
        times: (n,) Unix seconds, 0 unknown.

    Returns:
        At most MAX_HISTORY entries, the last in that order.
    """
    if len(tracks) == 0:
        return no_history()
    unique, inverse = np.unique(np.asarray(tracks, np.uint64), return_inverse=True)
    entries = np.zeros(len(unique), HISTORY_DTYPE)
    entries["track"] = unique
    entries["count"] = saturated(np.bincount(inverse, np.asarray(counts, np.float64), len(unique)))
    latest = np.zeros(len(unique), np.int64)
    np.maximum.at(latest, inverse, np.asarray(times, np.int64))
    entries["time"] = latest
    return entries[history_order(unique, entries["count"], entries["time"])[-MAX_HISTORY:]]
