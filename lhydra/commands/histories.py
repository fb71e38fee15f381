"""People's own listening as user states of a bundle: what `recommend --history` and `users load --history` share."""

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra.data.settings import ReadSettings
from lhydra.errors import ConfigError, DataError, complain

if TYPE_CHECKING:
    from lhydra.bundle.catalog import Catalog
    from lhydra.domain import UserState


@dataclass(frozen=True)
class Histories:
    """The states by user id, and what is to be said of how they came about."""

    states: "dict[str, UserState]"
    notes: tuple[str, ...]


def check_flags(args: argparse.Namespace, of_dataset: Sequence[str], *, history: bool) -> None:
    """Refuses flags that would say nothing: those of a dataset for an export, those of an export for a dataset.

    Args:
        args: the flags given.
        of_dataset: settings that only a dataset has a use for.
        history: whether an export is given.

    Raises:
        ConfigError: there is such a flag.
    """
    names = of_dataset if history else [field.name for field in fields(ReadSettings)]
    for name in names:
        if hasattr(args, name):
            flag = "--no-header" if name == "header" else f"--{name.replace('_', '-')}"
            found, expected = ("--history", "a DATASET") if history else ("a DATASET", "--history FILE")
            raise ConfigError(complain(flag, f"it with {found}", f"it with {expected} alone"))


def read_histories(path: Path, read: ReadSettings, catalog: "Catalog") -> Histories:
    """Reads exports of people's listening and finds their tracks in a catalog.

    Tracks that the catalog does not have are left out; skipped plays count as heard, not as liked.

    Args:
        path: a file or folder, as `lhydra prepare` takes it.
        read: what is said of its form.
        catalog: of the bundle.

    Returns:
        A state for each person.

    Raises:
        DataError: the source cannot be used, or no track of it is known.
    """
    import numpy as np
    import pyarrow as pa

    from lhydra.data.history import match_tracks, read_listening
    from lhydra.domain import UserState, no_recent, track_hashes
    from lhydra.repeats import add_up, at_once, make_recent, merge_recent, single_plays

    listening = read_listening(path, read)
    rows = catalog.popular.astype(np.int64)
    texts = {"track_id": catalog.track_ids(rows), "artist": catalog.artists(rows), "name": catalog.titles(rows)}
    matches = match_tracks(
        listening.tracks, pa.table({name: pa.array(text, pa.string()) for name, text in texts.items()})
    )
    if not matches.known:
        first = listening.tracks["track_id"][0].as_py()
        found = f"{matches.tracks:,} tracks, none of which the catalog has (the first is {first!r})"
        raise DataError(complain(path, found, "tracks with ids, or artists and titles, of the catalog"))
    plays = listening.plays
    known = {
        given: int(hashed) for given, hashed in zip(matches.known, track_hashes(matches.known.values()), strict=True)
    }
    hashes = np.array([known.get(track, 0) for track in plays["track_id"].to_pylist()], np.uint64)
    there = np.array([track in known for track in plays["track_id"].to_pylist()], bool)
    counts, times = plays["playcount"].to_numpy(), plays["timestamp"].to_numpy()
    liked = np.ones(len(plays), bool)
    if "skipped" in plays.column_names:
        liked = ~plays["skipped"].combine_chunks().fill_null(False).to_numpy(zero_copy_only=False)
    users = plays["user_id"].combine_chunks().dictionary_encode()
    codes = users.indices.to_numpy(zero_copy_only=False)
    parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    own_rows = dict(zip(users.dictionary.to_pylist(), parts, strict=True))
    states = {}
    for profile in listening.users.to_pylist():
        user = profile.pop("user_id")
        own = own_rows.get(user, np.empty(0, np.int64))
        own = own[there[own]]
        fed = own[liked[own]]
        said = {name: value for name, value in profile.items() if value is not None}
        single = single_plays(hashes[fed], counts[fed], times[fed])
        history, repeats = add_up(single, at_once(single))
        dated = fed[times[fed] > 0]
        recent = merge_recent(no_recent(), make_recent(hashes[dated], times[dated], np.zeros(len(dated), np.int64)))
        states[user] = UserState(said, history, np.unique(hashes[own]), repeats=repeats, recent=recent)
    left_out = int(len(plays) - there.sum())
    summary = f"{matches.told()}; {left_out:,} of {len(plays):,} plays are of other tracks and left out"
    return Histories(states, (*listening.notes, summary))


def with_history(stored: "UserState | None", found: "UserState") -> "UserState":
    """Returns what is known of a person from a store and from an export: of each track the larger count counts.

    The two overlap, and the same export may come again: sums would count plays twice.

    Args:
        stored: the state in the store, None for a person it does not know.
        found: the state that an export gives.

    Returns:
        Both together.
    """
    import numpy as np

    from lhydra.domain import UserState
    from lhydra.repeats import either

    if stored is None:
        return found
    history, repeats, recent = either(stored, found)
    heard = np.union1d(stored.heard, found.heard)
    return UserState({**found.profile, **stored.profile}, history, heard, stored.skipped, repeats, recent)


def tell_notes(notes: Iterable[str]) -> None:
    """Prints what is to be known of how an export was read, on stderr: stdout is for results.

    Args:
        notes: a text each.
    """
    for note in notes:
        print(textwrap.fill(note, 100, initial_indent="- ", subsequent_indent="  "), file=sys.stderr)
