"""Requests to send: whom to ask for, and mixtures of the kinds of traffic that a server meets."""

import csv
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.load import FEEDBACK, RECORD_PLAYS, Request
from lhydra.errors import ConfigError, DataError, complain
from lhydra_protos.v1 import recommender_pb2 as pb

WARM, HISTORY, NOTHING, FILTERED = "warm", "cold, history", "cold, nothing", "filtered"
MIX = {WARM: 0.70, HISTORY: 0.08, NOTHING: 0.05, FILTERED: 0.10, FEEDBACK: 0.07}
HISTORY_ENTRIES = 20  # tracks of a history in a request
REQUESTS_PER_CASE = 40  # of every case, sent again and again
UNFILTERED, EXCLUSIONS, HEAVY_PLAYS = "unfiltered", 1_000, 10_000
FILTER_KEYS = ("genre", "artist", "min_year", "max_year", "explicit")


@dataclass(frozen=True)
class NamedFilter:
    """A filter by name, and the share of the tracks that it lets through; 0 where that is not known."""

    name: str
    share: float
    filter: pb.Filter


def user_ids(dataset: Path | None, file: Path | None) -> tuple[list[str], str]:
    """Returns whom to ask for.

    Args:
        dataset: a prepared dataset; None for another source.
        file: ids, one a line, or a CSV with a column user_id; None for another source.

    Returns:
        The ids, and where they come from in words; without a source they are made up.

    Raises:
        DataError: the file cannot be read, or there is no id.
    """
    if dataset is not None:
        from lhydra.data.dataset import Dataset

        ids, origin = Dataset.open(dataset).user_ids, f"the users of {dataset}"
    elif file is not None:
        ids, origin = _read_ids(file), f"the ids in {file}"
    else:
        ids, origin = [f"bench-{n}" for n in range(1000)], "made-up ids, so the server knows nobody"
    if not ids:
        raise DataError(complain(dataset or file, "no user id", "at least one"))
    return ids, f"{len(ids)}, {origin}"


def _read_ids(path: Path) -> list[str]:
    """Returns the distinct ids of a CSV with a column user_id, or of a file with one id a line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if "user_id" in header:
                column = header.index("user_id")
                ids = [row[column] for row in rows if len(row) > column]
            else:
                file.seek(0)
                ids = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(complain(path, str(error), "ids, one a line, or a CSV with user_id")) from None
    return list(dict.fromkeys(name for name in ids if name))


def known_users(users: Sequence[str], k: int) -> list[Request]:
    """Returns one request per user.

    Args:
        users: ids.
        k: tracks to ask for.

    Returns:
        The requests, in the order of `users`.
    """
    return [Request(pb.RecommendRequest(user_id=user, k=k).SerializeToString()) for user in users]


def mixed(
    n: int,
    users: Sequence[str],
    tracks: Sequence[str],
    filters: Sequence[pb.Filter],
    *,
    k: int,
    seed: int,
    mix: Mapping[str, float] = MIX,
) -> list[Request]:
    """Draws requests of several kinds at random; kinds that lack something are left out.

    Args:
        n: how many.
        users: known ids.
        tracks: ids of the catalogue, for histories and plays.
        filters: drawn from for filtered requests.
        k: tracks to ask for.
        seed: of the draws.
        mix: shares by kind.

    Returns:
        n requests.
    """
    rng = np.random.default_rng(seed)
    lacking = {FILTERED: not filters, HISTORY: not tracks, FEEDBACK: not tracks}
    shares = {kind: share for kind, share in mix.items() if not lacking.get(kind)}
    kinds = rng.choice(list(shares), n, p=np.array(list(shares.values())) / sum(shares.values()))
    run = uuid.uuid4().hex[:12]  # events and strangers of no other run

    def request(i: int, kind: str) -> Request:
        user = users[int(rng.integers(len(users)))]
        if kind == FEEDBACK:
            play = pb.Play(event_id=f"bench-{run}-{i}", user_id=user, track_id=tracks[int(rng.integers(len(tracks)))])
            return Request(pb.RecordPlaysRequest(plays=[play]).SerializeToString(), kind, RECORD_PLAYS)
        asked = pb.RecommendRequest(user_id=user, k=k)
        if kind in (HISTORY, NOTHING):
            asked.user_id = f"bench-{run}-{i}"
        if kind == HISTORY:
            chosen = rng.choice(len(tracks), min(HISTORY_ENTRIES, len(tracks)), replace=False)
            asked.history.entries.extend(pb.HistoryEntry(track_id=tracks[at], count=1) for at in chosen)
        if kind == FILTERED:
            asked.filter.CopyFrom(filters[int(rng.integers(len(filters)))])
        return Request(asked.SerializeToString(), kind)

    return [request(i, str(kind)) for i, kind in enumerate(kinds)]


def parse_filter(text: str) -> pb.Filter:
    """Reads a filter as it is spelled on the command line.

    Args:
        text: `key=value,...` with the keys genre, artist, min_year, max_year, explicit.

    Returns:
        The filter.

    Raises:
        ConfigError: `text` is something else.
    """
    found = pb.Filter()
    for part in text.split(","):
        key, equals, value = part.partition("=")
        try:
            if not equals or key not in FILTER_KEYS:
                raise ValueError
            if key == "explicit":
                found.explicit = {"true": True, "false": False}[value]
            elif key.endswith("year"):
                setattr(found, key, int(value))
            else:
                getattr(found, f"{key}s").append(value)
        except (ValueError, KeyError):
            raise ConfigError(complain("--filter", part, f"KEY=VALUE with a key of {', '.join(FILTER_KEYS)}")) from None
    return found


def filters_of(catalog: Path) -> list[NamedFilter]:
    """Makes filters for the tracks of a catalogue.

    From all years on, from the median, the top tenth, hundredth and thousandth on; the commonest and the rarest genre;
    the commonest artist and one with a single track where there is one.

    Args:
        catalog: a bundle's catalog.parquet.

    Returns:
        The filters, with the share that each lets through; none without such columns.
    """
    import pyarrow.parquet as pq

    columns = [name for name in ("genre", "artist", "year") if name in pq.read_schema(catalog).names]
    tracks: Any = pq.read_table(catalog, columns=columns).to_pandas()
    n, found = len(tracks), dict[str, NamedFilter]()

    def note(name: str, fits: int, filter: pb.Filter) -> None:
        found.setdefault(name, NamedFilter(name, fits / n, filter))

    if "year" in columns and tracks["year"].notna().any():
        for quantile in (0.0, 0.5, 0.9, 0.99, 0.999):
            year = int(tracks["year"].quantile(quantile))
            note(f"from {year} on", int((tracks["year"] >= year).sum()), pb.Filter(min_year=year))
    for column, field in (("genre", "genres"), ("artist", "artists")):
        if column in columns and all(isinstance(value, str) for value in tracks[column].dropna()[:100]):
            counts = tracks[column].value_counts()
            for value in counts.index[[0, -1]] if len(counts) else ():
                one = pb.Filter()
                getattr(one, field).append(value)
                note(f"{column} {value}", int(counts[value]), one)
    return list(found.values())


def cases(
    users: Sequence[str], tracks: Sequence[str], filters: Sequence[NamedFilter], *, heavy: str, k: int, seed: int
) -> list[Request]:
    """Returns REQUESTS_PER_CASE requests of every case: no filter, each filter, exclusions, a user with many plays.

    Args:
        users: known ids.
        tracks: ids of the catalogue.
        filters: a case each.
        heavy: id of the user with many plays; "" for none.
        k: tracks to ask for.
        seed: of users, exclusions and order.

    Returns:
        The requests in random order.
    """
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(REQUESTS_PER_CASE):
        user = users[int(rng.integers(len(users)))]
        made.append(Request(pb.RecommendRequest(user_id=user, k=k).SerializeToString(), UNFILTERED))
        for case in filters:
            share = f" ({100 * case.share:.3g} %)" if case.share else ""
            asked = pb.RecommendRequest(user_id=user, k=k, filter=case.filter)
            made.append(Request(asked.SerializeToString(), case.name + share))
        if len(tracks) > EXCLUSIONS:
            chosen = [tracks[at] for at in rng.choice(len(tracks), EXCLUSIONS, replace=False)]
            asked = pb.RecommendRequest(user_id=user, k=k, exclude_track_ids=chosen)
            made.append(Request(asked.SerializeToString(), f"{EXCLUSIONS:,} excluded"))
        if heavy:
            made.append(Request(pb.RecommendRequest(user_id=heavy, k=k).SerializeToString(), f"{HEAVY_PLAYS:,} plays"))
    return [made[at] for at in rng.permutation(len(made))]


def plays_of_heavy_user(user: str, tracks: Sequence[str]) -> list[Request]:
    """Returns the requests that record HEAVY_PLAYS plays of a user.

    Args:
        user: id.
        tracks: ids of the catalogue; each play is of another one, as far as there are so many.

    Returns:
        Requests of 1,000 plays each.
    """
    events = [f"bench-{uuid.uuid4().hex[:12]}-{i}" for i in range(HEAVY_PLAYS)]
    plays = [
        pb.Play(event_id=event, user_id=user, track_id=tracks[i % len(tracks)], timestamp_s=1_700_000_000 + i)
        for i, event in enumerate(events)
    ]
    return [
        Request(pb.RecordPlaysRequest(plays=plays[start : start + 1000]).SerializeToString(), FEEDBACK, RECORD_PLAYS)
        for start in range(0, HEAVY_PLAYS, 1000)
    ]
