"""What single plays say of users beyond what they add up to: first plays, decayed counts, the last plays in order."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lhydra.data.dataset import TEST, TRAIN, VALID, AsOf, Dataset, Events
from lhydra.domain import (
    COMPLETED,
    F32,
    I64,
    SKIPPED,
    Hashes,
    History,
    Recent,
    Repeats,
    UserState,
    Value,
    no_history,
    no_recent,
    no_repeats,
)
from lhydra.errors import DataError, complain
from lhydra.repeats import add_up, at_once, recent_of, single_plays, sums_by_track

_COLUMNS = ["user", "track", "time", "count", "skipped", "completed", "fold"]
_BATCH = 1 << 17  # plays at a time


def in_time(dataset: Dataset) -> bool:
    """Tells whether the folds of every user follow each other: what came before a fold is then what a server knew.

    Args:
        dataset: any.

    Returns:
        False where plays are not kept one by one, or were drawn from at random.
    """
    if not dataset.has_events:
        return False
    fold, user = dataset.events.fold.astype(np.int64), dataset.events.user
    return not ((np.diff(fold) < 0) & (np.diff(user) == 0)).any()


def with_plays(
    dataset: Dataset, as_of: AsOf, states: Iterable[tuple[str, UserState]], *, positions: I64 | None = None
) -> Iterator[tuple[str, UserState]]:
    """Adds to the states of `user_states` what the single plays say, where the dataset keeps them.

    Args:
        dataset: whose plays count; one of format 1 has none.
        as_of: as for `user_states`.
        states: (user id, state) of its users.
        positions: (m,) int64 in the users table, of these users in order; all users by default.

    Yields:
        User id and state.

    Raises:
        DataError: events.parquet cannot be read.
    """
    if not dataset.has_events:
        yield from states
        return
    told = _told(dataset, {"test": TRAIN, "valid": TRAIN, "refit": VALID, "now": TEST}[as_of])
    if positions is not None:
        wanted = set(positions.tolist())
        kept = {position: one for position, one in enumerate(told) if position in wanted}
        told = (kept[position] for position in positions.tolist())
    for (user_id, state), (history, repeats, recent) in zip(states, told, strict=True):
        repeats = _aligned(state.history, history, repeats)
        yield user_id, UserState(state.profile, state.history, state.heard, state.skipped, repeats, recent)


def state_of(profile: Mapping[str, Value], tracks: Hashes, counts: F32, times: I64, flags: I64) -> UserState:
    """Returns what `with_plays` would of one user with these plays.

    Args:
        profile: of the user.
        tracks: (n,) uint64 hashes, in order of listening.
        counts: (n,) plays.
        times: (n,) Unix seconds, 0 unknown.
        flags: (n,) SKIPPED, COMPLETED of each.

    Returns:
        The state.
    """
    single, order = single_plays(tracks, counts, times), np.argsort(times, kind="stable")
    history, repeats = add_up(single, at_once(single))
    (recent,) = recent_of(tracks[order], times[order], np.zeros(len(order), np.int64), 1, flags[order])
    return UserState(profile, history, np.unique(tracks), repeats=repeats, recent=recent)


def flags_of(events: Events) -> I64:
    """Returns what is known of plays beside their tracks and times.

    Args:
        events: n plays.

    Returns:
        (n,) SKIPPED, COMPLETED of each.
    """
    return np.asarray((events.skipped == 1) * SKIPPED + (events.completed == 1) * COMPLETED, np.int64)


def _aligned(history: History, told: History, repeats: Repeats) -> Repeats:
    """The repeats of the entries of a history; told: entries of the same user by track, whose `repeats` are."""
    if not len(history):
        return no_repeats()
    if not len(told):
        return at_once(history)
    at = np.minimum(told["track"].searchsorted(history["track"]), len(told) - 1)
    same = told["track"][at] == history["track"]
    found = repeats[at]
    return found if same.all() else np.where(same, found, at_once(history))


def _told(dataset: Dataset, upto: int) -> Iterator[tuple[History, Repeats, Recent]]:
    """For every user the sums of the single plays up to a fold, by track, and the last of them."""
    n_users, done = len(dataset.user_ids), 0
    for plays in _of_whole_users(dataset):
        columns = {name: plays[name].to_numpy() for name in ("user", "track", "time", "count", "fold")}
        kept = columns["fold"] <= upto
        user, time, tracks = columns["user"][kept], columns["time"][kept], dataset.hashes[columns["track"][kept]]
        flags = np.zeros(len(tracks), np.int64)
        for name, flag in (("skipped", SKIPPED), ("completed", COMPLETED)):
            flags[plays[name].fill_null(False).to_numpy()[kept]] |= flag
        end = int(columns["user"][-1]) + 1
        owners = user.astype(np.int64) - done
        recent = recent_of(tracks, time, owners, end - done, flags)
        single = single_plays(tracks, columns["count"][kept], time)
        history, repeats, own = no_history(), no_repeats(), owners
        if len(single):
            history, repeats, own = sums_by_track(single, at_once(single), owners)
        cuts = np.searchsorted(own, np.arange(end - done + 1)).tolist()
        for i, (start, stop) in enumerate(itertools.pairwise(cuts)):
            yield history[start:stop], repeats[start:stop], recent[i]
        done = end
    for _ in range(done, n_users):
        yield no_history(), no_repeats(), no_recent()


def _of_whole_users(dataset: Dataset) -> Iterator[pa.Table]:
    """The plays in order of users, a few at a time, never a part of a user's; at least one each time."""
    path, rest = dataset.path / "events.parquet", None
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=_COLUMNS):
                table = pa.Table.from_batches([batch])
                table = table if rest is None else pa.concat_tables([rest, table]).combine_chunks()
                if not len(table):
                    continue
                user = table["user"].to_numpy()
                cut = int(np.searchsorted(user, user[-1]))
                if cut:
                    yield table.slice(0, cut)
                rest = table.slice(cut)
    except (OSError, pa.ArrowException) as error:
        raise DataError(complain(path, " ".join(str(error).split()), "a Parquet table")) from None
    if rest is not None and len(rest):
        yield rest
