"""Requests to send: whom to ask for, and mixtures of the kinds of traffic that a server meets."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency.load import FEEDBACK, RECORD_PLAYS, Request
from lhydra.errors import ConfigError, complain
from lhydra_protos.v1 import recommender_pb2 as pb

WARM, HISTORY, NOTHING, FILTERED = "warm", "cold, history", "cold, nothing", "filtered"
MIX = {WARM: 0.70, HISTORY: 0.08, NOTHING: 0.05, FILTERED: 0.10, FEEDBACK: 0.07}
ENTRIES = 20  # tracks of a history in a request
EACH = 40  # requests of every case, sent again and again
UNFILTERED, EXCLUDED, HEAVY = "unfiltered", 1_000, 10_000
FILTER_KEYS = ("genre", "artist", "min_year", "max_year", "explicit")


@dataclass(frozen=True)
class Filtered:
    """A filter by name, and the share of the tracks that it lets through; 0 where that is not known."""

    name: str
    share: float
    filter: pb.Filter


def warm(users: Sequence[str], k: int, depth: int = 0) -> list[Request]:
    """Returns one request per user."""
    return [Request(pb.RecommendRequest(user_id=user, k=k, depth=depth).SerializeToString()) for user in users]


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
    """Returns n requests of the kinds in `mix`, drawn at random by its shares; kinds that lack something are left out.

    users: known ids. tracks: ids of the catalogue, for histories and plays. filters: drawn from for filtered requests.
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
            chosen = rng.choice(len(tracks), min(ENTRIES, len(tracks)), replace=False)
            asked.history.entries.extend(pb.HistoryEntry(track_id=tracks[at], count=1) for at in chosen)
        if kind == FILTERED:
            asked.filter.CopyFrom(filters[int(rng.integers(len(filters)))])
        return Request(asked.SerializeToString(), kind)

    return [request(i, str(kind)) for i, kind in enumerate(kinds)]


def parse_filter(text: str) -> pb.Filter:
    """Returns the filter of `key=value,...` with the keys genre, artist, min_year, max_year, explicit.

    Raises ConfigError for anything else.
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


def filters_of(catalog: Path) -> list[Filtered]:
    """Returns filters for the tracks in `catalog` (a bundle's catalog.parquet), with the share each lets through.

    From all years on, from the median, the top tenth, hundredth and thousandth on; the commonest and the rarest genre;
    the commonest artist and one with a single track where there is one. Empty without such columns.
    """
    import pyarrow.parquet as pq

    columns = [name for name in ("genre", "artist", "year") if name in pq.read_schema(catalog).names]
    tracks: Any = pq.read_table(catalog, columns=columns).to_pandas()
    n, found = len(tracks), dict[str, Filtered]()

    def note(name: str, fits: int, filter: pb.Filter) -> None:
        found.setdefault(name, Filtered(name, fits / n, filter))

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
    users: Sequence[str], tracks: Sequence[str], filters: Sequence[Filtered], *, heavy: str, k: int, seed: int
) -> list[Request]:
    """Returns EACH requests of every case, in random order: none, each filter, 1,000 exclusions, the user `heavy`.

    tracks: ids of the catalogue. heavy: "" for none.
    """
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(EACH):
        user = users[int(rng.integers(len(users)))]
        made.append(Request(pb.RecommendRequest(user_id=user, k=k).SerializeToString(), UNFILTERED))
        for case in filters:
            share = f" ({100 * case.share:.3g} %)" if case.share else ""
            asked = pb.RecommendRequest(user_id=user, k=k, filter=case.filter)
            made.append(Request(asked.SerializeToString(), case.name + share))
        if len(tracks) > EXCLUDED:
            chosen = [tracks[at] for at in rng.choice(len(tracks), EXCLUDED, replace=False)]
            asked = pb.RecommendRequest(user_id=user, k=k, exclude_track_ids=chosen)
            made.append(Request(asked.SerializeToString(), f"{EXCLUDED:,} excluded"))
        if heavy:
            made.append(Request(pb.RecommendRequest(user_id=heavy, k=k).SerializeToString(), f"{HEAVY:,} plays"))
    return [made[at] for at in rng.permutation(len(made))]


def heavy_plays(user: str, tracks: Sequence[str]) -> list[Request]:
    """Returns the requests that record HEAVY plays of `user`, each of another track as far as there are so many."""
    events = [f"bench-{uuid.uuid4().hex[:12]}-{i}" for i in range(HEAVY)]
    plays = [
        pb.Play(event_id=event, user_id=user, track_id=tracks[i % len(tracks)], timestamp_s=1_700_000_000 + i)
        for i, event in enumerate(events)
    ]
    return [
        Request(pb.RecordPlaysRequest(plays=plays[start : start + 1000]).SerializeToString(), FEEDBACK, RECORD_PLAYS)
        for start in range(0, HEAVY, 1000)
    ]
