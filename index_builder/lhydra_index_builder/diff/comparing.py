"""Two bundles of a store compared: who is asked, every measure, one document."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.listed import entries
from lhydra.bundle.manifest import current_bundle_id
from lhydra.domain import Query
from lhydra.errors import BundleMissing, ConfigError, complain
from lhydra.evaluation import beyond
from lhydra.limits import MAX_K
from lhydra.recommender import Recommender
from lhydra.timing import timed
from lhydra_index_builder.diff import measures
from lhydra_index_builder.diff.asking import SEED, ask, of_dataset, of_log, of_requests, of_users
from lhydra_index_builder.diff.result import Audience, Both, BundleFacts, Comparison
from lhydra_index_builder.diff.telling import verdict
from lhydra_index_builder.logged import is_log


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
) -> Comparison:
    """Returns how the lists of two bundles of a store differ, for users of the user store where nothing else is said.

    Args:
        store: the folder that bundles are published in.
        a: the bundle before: an id, `current` or `previous`.
        b: the bundle after, likewise.
        data: a prepared dataset whose users to ask.
        requests: recorded requests to ask: a file of them, or an answer log.
        users: URL of the user store, `STORE/users.lmdb` by default.
        sample: users or requests at most.
        k: tracks to compare of each list.

    Returns:
        The comparison, with whom it asked.

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
    bundles = Bundle.open(store, ids[0]), Bundle.open(store, ids[1])
    if data is not None:
        asked = of_dataset(data, sample, k)
    elif requests is not None and is_log(requests):
        asked = of_log(requests, bundles, sample)
    elif requests is not None:
        asked = of_requests(requests, store, users, sample, k)
    else:
        asked = of_users(store, users, sample, k)
    found = compare(*bundles, asked.queries, k)
    return replace(found, asked=Audience(asked.source, len(asked.queries), asked.unknown))


def resolve(store: Path, name: str) -> str:
    """Returns the id of the bundle that is called so.

    Args:
        store: the folder that bundles are published in.
        name: an id, `current` or `previous`.

    Returns:
        The bundle id.

    Raises:
        BundleMissing: there is no such bundle.
    """
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


def compare(a: Bundle, b: Bundle, queries: Sequence[Query], k: int) -> Comparison:
    """Returns what would change for those who ask.

    Args:
        a: the bundle before.
        b: the bundle after.
        queries: what both are asked.
        k: tracks to compare of each list, whatever k the queries ask for.

    Returns:
        The comparison, without `asked`.
    """
    before, after = Recommender(a), Recommender(b)
    answers_a, answers_b = ask(before, after, queries, k)
    tracks, lists_a, lists_b = measures.numbered(a.catalog, answers_a.lists, b.catalog, answers_b.lists)
    changes = measures.changed(lists_a, lists_b)
    settings = Both(_facts(before), _facts(after))
    own, users = measures.overlap(changes), int(changes.some.sum())
    full = ((np.minimum(lists_a, lists_b) >= 0).all(axis=1) | ~changes.some).all()
    lengths = np.array([len(query.state.history) for query in queries], np.int64)
    common = (beyond.inter_user_overlap(lists[:, : beyond.K], SEED) for lists in (lists_a, lists_b))
    return Comparison(
        summary=[verdict(own, users, k if full else 0)],
        k=k,
        users=users,
        a=a.bundle_id,
        b=b.bundle_id,
        settings=settings,
        differ=[name for name, value in vars(settings.a).items() if value != vars(settings.b)[name]],
        overlap=own,
        order=measures.order(changes),
        popularity=measures.popularity(lists_a, lists_b, measures.listeners(a, b, tracks)),
        catalogue=measures.catalogue(a.catalog, b.catalog, tracks, lists_a, lists_b),
        coverage=Both(*(len(np.unique(lists[lists >= 0])) for lists in (lists_a, lists_b))),
        common_at=min(k, beyond.K),
        common=Both(*common),
        genres=measures.genres(lists_a, lists_b, measures.genre_names(a, b, tracks)),
        cohorts=measures.cohorts(changes, answers_b.tiers, lengths),
        latency=Both(measures.latency(answers_a.took_ms), measures.latency(answers_b.took_ms)),
    )


def _facts(recommender: Recommender) -> BundleFacts:
    bundle = recommender.bundle
    return BundleFacts(
        model=bundle.manifest.model_id if bundle.manifest else None,
        recipe=bundle.index.recipe,
        point=bundle.index.point,
        depth=recommender.depth,
        tracks=bundle.catalog.n_eligible,
    )
