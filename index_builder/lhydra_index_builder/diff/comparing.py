"""Two bundles of a store compared: who is asked, every measure, one document."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import current_bundle_id
from lhydra.domain import Query
from lhydra.errors import BundleMissing, ConfigError, complain
from lhydra.evaluation import beyond
from lhydra.recommender import Recommender
from lhydra.timing import timed
from lhydra_index_builder.diff import measures
from lhydra_index_builder.diff.asking import MAX_K, SEED, ask, of_dataset, of_requests, of_users
from lhydra_index_builder.diff.telling import verdict
from lhydra_index_builder.store import entries

FORMAT = 1


@timed("diff")
def between(
    store: Path,
    a: str,
    b: str,
    *,
    data: Path | None = None,
    requests: Path | None = None,
    users: str | None = None,
    sample: int = 500,
    k: int = 10,
) -> dict[str, Any]:
    """Returns `compare` of two bundles of a store, with `asked`; a, b: ids, or `current` and `previous`.

    Raises:
        ConfigError: a number out of range, or users for whom there is no use.
        DataError, UserStoreError: nobody to ask, or a request that is none; see `of_users` and `of_requests`.
        BundleError: no such bundle, or one that is not sound.
    """
    for flag, value, most in (("--k", k, MAX_K), ("--sample", sample, math.inf)):
        if not 1 <= value <= most:
            raise ConfigError(complain(flag, value, f"a number from 1 to {MAX_K}" if flag == "--k" else "at least 1"))
    if data is not None and (requests is not None or users is not None):
        raise ConfigError(complain("--data", f"{'--users' if requests is None else '--requests'} too", "one of them"))
    ids = resolve(store, a), resolve(store, b)
    if data is not None:
        asked = of_dataset(data, sample, k)
    elif requests is not None:
        asked = of_requests(requests, store, users, sample, k)
    else:
        asked = of_users(store, users, sample, k)
    found = compare(Bundle.open(store, ids[0]), Bundle.open(store, ids[1]), asked.queries, k)
    return {**found, "asked": {"source": asked.source, "queries": len(asked.queries), "unknown": asked.unknown}}


def resolve(store: Path, name: str) -> str:
    """Returns the id of the bundle that is called so. Raises BundleMissing when there is none."""
    if name == "current":
        return current_bundle_id(store)
    states = {entry.bundle_id: entry.state for entry in entries(store) if entry.state != "partial"}
    if name == "previous":
        previous = [bundle_id for bundle_id, state in states.items() if state == "previous"]
        if not previous:
            raise BundleMissing(complain(store, "no previous bundle", "one before the current, or an id"))
        return previous[0]
    if name not in states:
        expected = f"current, previous, or one that `lhydra index list --store {store}` names"
        raise BundleMissing(complain("bundle id", repr(name), expected))
    return name


def compare(a: Bundle, b: Bundle, queries: Sequence[Query], k: int) -> dict[str, Any]:
    """Returns what would change for those who ask, plain JSON values; null where there was nothing to measure.

    k: so many tracks of each list are compared, whatever k the queries ask for.
    """
    before, after = Recommender(a), Recommender(b)
    rows_a, rows_b = ask(before, after, queries, k)
    tracks, lists_a, lists_b = measures.numbered(a.catalog, rows_a.lists, b.catalog, rows_b.lists)
    changes = measures.changed(lists_a, lists_b)
    settings = {"a": _settings(before), "b": _settings(after)}
    own, users = measures.overlap(changes), int(changes.some.sum())
    full = ((np.minimum(lists_a, lists_b) >= 0).all(axis=1) | ~changes.some).all()
    return {
        "summary": [verdict(own, users, k if full else 0)],
        "format": FORMAT,
        "k": k,
        "users": users,
        "a": a.bundle_id,
        "b": b.bundle_id,
        "settings": settings,
        "differ": [name for name, value in settings["a"].items() if value != settings["b"][name]],
        "overlap": own,
        "order": measures.order(changes),
        "popularity": measures.popularity(lists_a, lists_b, measures.listeners(a, b, tracks)),
        "catalogue": measures.catalogue(a.catalog, b.catalog, tracks, lists_a, lists_b),
        "coverage": {"a": measures.distinct(lists_a), "b": measures.distinct(lists_b)},
        f"inter_user_overlap@{min(k, beyond.K)}": {
            side: beyond.inter_user_overlap(lists[:, : beyond.K], SEED)
            for side, lists in (("a", lists_a), ("b", lists_b))
        },
        "genres": measures.genres(lists_a, lists_b, measures.genre_names(a, b, tracks)),
        "cohorts": measures.cohorts(
            changes, rows_b.tiers, np.array([len(query.state.history) for query in queries], np.int64)
        ),
        "latency": {"a": measures.latency(rows_a.took_ms), "b": measures.latency(rows_b.took_ms)},
    }


def _settings(recommender: Recommender) -> dict[str, Any]:
    bundle = recommender.bundle
    return {
        "model": bundle.manifest.model_id if bundle.manifest else None,
        "recipe": bundle.index.recipe,
        "point": asdict(bundle.index.point),
        "depth": recommender.depth,
        "tracks": bundle.catalog.n_eligible,
    }
