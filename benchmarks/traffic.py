"""Requests to send: whom to ask for, and mixtures of the kinds of traffic that a server meets."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load import FEEDBACK, RECORD_PLAYS, Request
from lhydra.errors import ConfigError, complain
from lhydra_protos.v1 import recommender_pb2 as pb

WARM, HISTORY, NOTHING, FILTERED = "warm", "cold, history", "cold, nothing", "filtered"
MIX = {WARM: 0.70, HISTORY: 0.08, NOTHING: 0.05, FILTERED: 0.10, FEEDBACK: 0.07}
ENTRIES = 20  # tracks of a history in a request
FILTER_KEYS = ("genre", "artist", "min_year", "max_year", "explicit")


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


def filters_of(catalog: Path) -> list[pb.Filter]:
    """Returns filters for the tracks in `catalog` (a bundle's catalog.parquet), from lenient to strict.

    The commonest genres, years from the median and from the top tenth on, one artist; empty without such columns.
    """
    import pyarrow.parquet as pq

    columns = [name for name in ("genre", "artist", "year") if name in pq.read_schema(catalog).names]
    tracks: Any = pq.read_table(catalog, columns=columns).to_pandas()
    found = []
    if "year" in columns and tracks["year"].notna().any():
        found += [pb.Filter(min_year=int(tracks["year"].quantile(share))) for share in (0.5, 0.9)]
    if "genre" in columns and not isinstance(tracks["genre"].dropna().iloc[:1].squeeze(), np.ndarray):
        found += [pb.Filter(genres=[str(genre)]) for genre in tracks["genre"].value_counts().index[:3]]
    if "artist" in columns:
        found += [pb.Filter(artists=[str(artist)]) for artist in tracks["artist"].value_counts().index[:1]]
    return found
