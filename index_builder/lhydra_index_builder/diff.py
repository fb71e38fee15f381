"""What would change for listeners between two bundles: both get the same queries, their lists are laid side by side.

A is before, B after. Rows differ between bundles, so tracks are told apart by their hash. A track is judged, in
listeners and genre, by B's catalogue where it is there and by A's where it is not: a list that stays the same has not
shifted, whatever was learned of its tracks meanwhile. Added, removed, new and gone are meant of what may be returned: a
track that `lhydra index remove` took out is gone, though its row is there.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import Catalog
from lhydra.bundle.manifest import current_bundle_id
from lhydra.console import with_progress
from lhydra.data.dataset import Dataset
from lhydra.domain import I64, Hashes, Query, Tier, UserState, Value, make_history, track_hashes
from lhydra.errors import BundleMissing, ConfigError, DataError, InvalidRequest, UserStoreError, complain
from lhydra.evaluation import beyond
from lhydra.evaluation.bootstrap import F64, difference, interval
from lhydra.recommender import Recommender
from lhydra.timing import timed
from lhydra.users.store import UserStore, open_users
from lhydra_index_builder import gate
from lhydra_index_builder.changes import some_users
from lhydra_index_builder.store import entries

Mask = npt.NDArray[np.bool_]
Table = tuple[list[str], list[list[str]]]  # header, rows

FORMAT = 1
SEED = 0
MAX_K = 10_000  # what a server may be told to allow
MOVERS = 5
UNKNOWN = "(unknown)"
HISTORIES = (("0", 0, 0), ("1-10", 1, 10), ("11-50", 11, 50), ("51+", 51, math.inf))
_WARM = 50  # queries asked once before anything is timed
_FIELDS = ("user_id", "k", "exclude_track_ids", "history", "profile")
_ENTRY_FIELDS = ("track_id", "count", "timestamp_s")
_MAX_ID_CHARS, _MAX_COUNT, _MAX_TIME_S = 256, 1e9, 2**36  # the last refuses milliseconds


@dataclass(frozen=True)
class Asked:
    """What both bundles are asked, and on whose behalf.

    source: in words. unknown: queries of users that no user store knows and whose request brings no history.
    """

    queries: Sequence[Query]
    source: str
    unknown: int = 0


@dataclass(frozen=True)
class Side:
    """What one bundle answered to n queries: lists best first, -1 padded."""

    lists: I64  # (n, k) rows of its catalog, or numbers that both sides share
    tiers: I64  # (n,)
    took_ms: F64  # (n,)


@dataclass(frozen=True)
class Tracks:
    """The t tracks that either side recommended, by the number both sides share."""

    a: I64  # (t,) row in A's catalog, -1 where it has none
    b: I64  # (t,) row in B's


@dataclass(frozen=True)
class Changes:
    """How n lists became others. Users without a list on either side are none of `some`."""

    some: Mask  # (n,)
    overlap: F64  # (n,) tracks in common by the length of the longer list, NaN where there is none
    same: Mask  # (n,) the same tracks in the same order
    same_first: Mask  # (n,)
    shift: I64  # (m,) how many places each track moved that is in both lists of a user


# -- whom to ask --------------------------------------------------------------------------------------------


def of_dataset(folder: Path, n: int, k: int) -> Asked:
    """Returns queries of at most `n` users of a prepared dataset, drawn at random, as of now."""
    states = gate.draw(Dataset.open(folder), "now", None, n, SEED).states
    return Asked([_query(state, k) for state in states], f"users of {folder}")


def of_users(store: Path, url: str | None, n: int, k: int) -> Asked:
    """Returns queries of at most `n` users of the user store at `url`, by default the one inside `store`.

    Raises:
        DataError: there is no such store inside `store`.
        UserStoreError: nothing at `url`, or a store that cannot be read.
    """
    expected = "users to ask: `lhydra users load`, --users URL, --data DATASET or --requests FILE"
    if not _has_users(store, url):
        raise DataError(complain(store, "no users.lmdb", expected))
    states = some_users(store, url, n)
    if not states:
        raise DataError(complain(url or store / "users.lmdb", "no users", expected))
    return Asked([_query(state, k) for state in states], f"users of {url or 'the user store'}")


def of_requests(file: Path, store: Path, url: str | None, n: int, k: int) -> Asked:
    """Returns at most `n` of the requests recorded in `file`, drawn at random, in their order.

    One JSON object per line: `user_id`, and maybe `k`, `exclude_track_ids`, `history` (objects of `track_id` and maybe
    `count` and `timestamp_s`) and `profile` (values by column). What the user store holds of a user counts, as a server
    would have it, where the request brings no history. What was heard is left out.

    Raises:
        DataError: a line that is no such request, or no line at all.
        UserStoreError: nothing at `url`, or a store that cannot be read.
    """
    requests = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                requests.append(_request(line))
            except InvalidRequest as error:
                raise DataError(f"{file} line {number}: {error}") from None
    if not requests:
        raise DataError(complain(file, "no lines", "a request per line"))
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(requests))[:n]).tolist()
    users = open_users(url, store) if _has_users(store, url) else None
    try:
        queries = [_recorded(requests[i], users, k) for i in chosen]
    finally:
        if users is not None:
            users.close()
    unknown = sum(not query.known and not len(query.state.history) for query in queries)
    return Asked(queries, f"requests of {file}", unknown)


def _query(state: UserState, k: int) -> Query:
    return Query(k, state, True, state.heard)


def _has_users(store: Path, url: str | None) -> bool:
    """Whether there is a user store; one that was named must be there, lest opening it makes an empty one."""
    if url is None:
        return (store / "users.lmdb").exists()
    scheme, _, rest = url.partition(":")
    if scheme == "lmdb" and rest and not Path(rest).exists():
        raise UserStoreError(complain("--users", f"nothing at {rest}", "a user store"))
    return True


def _recorded(request: Mapping[str, Any], users: UserStore | None, k: int) -> Query:
    """The query that a server would have made of a checked request."""
    history = request.get("history") or []
    tracks = track_hashes(entry["track_id"] for entry in history)
    played = make_history(
        tracks, [entry.get("count") or 1.0 for entry in history], [entry.get("timestamp_s") or 0 for entry in history]
    )
    profile = {name: _value(value) for name, value in (request.get("profile") or {}).items() if value is not None}
    state = UserState(profile, played, np.unique(tracks))
    stored = None if history or users is None else users.get(request["user_id"])
    if stored is not None:
        state = UserState({**profile, **stored.profile}, stored.history, stored.heard, stored.skipped)
    exclude = np.union1d(state.heard, track_hashes(request.get("exclude_track_ids") or []))
    return Query(request.get("k") or k, state, stored is not None, exclude)


def _value(value: Value) -> Value:
    """Whole numbers as such, as a server takes them: they may name a category."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _request(line: bytes) -> dict[str, Any]:
    """Returns the request in one line, every field checked. Raises InvalidRequest naming the first at fault."""
    try:
        request = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("request", str(error), "a JSON object") from None
    _check_fields("request", request, _FIELDS, "user_id")
    _check_id("user_id", request["user_id"])
    if (k := request.get("k")) is not None and not (_whole(k) and 1 <= k <= MAX_K):
        raise InvalidRequest("k", repr(k), f"a whole number from 1 to {MAX_K}")
    for name in ("exclude_track_ids", "history"):
        if not isinstance(request.get(name) or [], list):
            raise InvalidRequest(name, repr(request[name]), "a list")
    for i, track_id in enumerate(request.get("exclude_track_ids") or []):
        _check_id(f"exclude_track_ids[{i}]", track_id)
    for i, entry in enumerate(request.get("history") or []):
        at = f"history[{i}]"
        _check_fields(at, entry, _ENTRY_FIELDS, "track_id")
        _check_id(f"{at}.track_id", entry["track_id"])
        count, timestamp_s = entry.get("count"), entry.get("timestamp_s")
        if count is not None and not (_number(count) and 0 <= count <= _MAX_COUNT):
            raise InvalidRequest(f"{at}.count", repr(count), "a finite number, not negative")
        if timestamp_s is not None and not (_whole(timestamp_s) and 0 <= timestamp_s < _MAX_TIME_S):
            raise InvalidRequest(f"{at}.timestamp_s", repr(timestamp_s), "whole seconds since 1970")
    profile = request.get("profile") or {}
    if not isinstance(profile, dict):
        raise InvalidRequest("profile", repr(profile), "values by column")
    for name, value in profile.items():
        if not (value is None or isinstance(value, str | bool) or (_number(value) and abs(value) <= 1e300)):
            raise InvalidRequest(f"profile[{name!r}]", repr(value), "text or a finite number")
    return request  # type: ignore[no-any-return]


def _check_fields(thing: str, found: object, known: Sequence[str], needed: str) -> None:
    if not isinstance(found, dict):
        raise InvalidRequest(thing, repr(found), "a JSON object")
    if needed not in found:
        raise InvalidRequest(thing, f"no {needed}", f"{needed} and maybe {', '.join(known[1:])}")
    if other := [name for name in found if name not in known]:
        raise InvalidRequest(thing, f"field {other[0]!r}", f"only {', '.join(known)}")


def _check_id(field: str, text: object) -> None:
    if not (isinstance(text, str) and 1 <= len(text) <= _MAX_ID_CHARS):
        raise InvalidRequest(field, repr(text), f"text of 1 to {_MAX_ID_CHARS} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(field, repr(text), "text that is UTF-8") from None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


# -- asking and comparing -----------------------------------------------------------------------------------


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
    tracks, lists_a, lists_b = numbered(a.catalog, rows_a.lists, b.catalog, rows_b.lists)
    changes = changed(lists_a, lists_b)
    settings = {"a": _settings(before), "b": _settings(after)}
    own, users = overlap(changes), int(changes.some.sum())
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
        "order": order(changes),
        "popularity": popularity(lists_a, lists_b, listeners(a, b, tracks)),
        "catalogue": catalogue(a.catalog, b.catalog, tracks, lists_a, lists_b),
        "coverage": {"a": _distinct(lists_a), "b": _distinct(lists_b)},
        f"inter_user_overlap@{min(k, beyond.K)}": {
            side: beyond.inter_user_overlap(lists[:, : beyond.K], SEED)
            for side, lists in (("a", lists_a), ("b", lists_b))
        },
        "genres": genres(lists_a, lists_b, genre_names(a, b, tracks)),
        "cohorts": cohorts(changes, rows_b.tiers, np.array([len(query.state.history) for query in queries], np.int64)),
        "latency": {"a": latency(rows_a.took_ms), "b": latency(rows_b.took_ms)},
    }


def ask(a: Recommender, b: Recommender, queries: Sequence[Query], k: int) -> tuple[Side, Side]:
    """Returns what both answer, rows of their own catalogs; each query goes to both before the next one.

    Who is asked first takes turns, so that whatever else the machine does, and caches that a query leaves warm, are
    the same to both.
    """
    both, n = (a, b), len(queries)
    for recommender in both:
        recommender.warm_up()
        for query in queries[:_WARM]:
            recommender.recommend(query)
    sides = tuple(Side(np.full((n, k), -1, np.int64), np.zeros(n, np.int64), np.zeros(n)) for _ in both)
    for i, query in enumerate(with_progress(queries, n, "asking both bundles")):
        for which in (i % 2, 1 - i % 2):
            started = time.perf_counter_ns()
            found = both[which].recommend(query)
            sides[which].took_ms[i] = (time.perf_counter_ns() - started) / 1e6
            best = found.rows[:k]
            sides[which].lists[i, : len(best)] = best
            sides[which].tiers[i] = found.tier
    return sides[0], sides[1]


def numbered(a: Catalog, lists_a: I64, b: Catalog, lists_b: I64) -> tuple[Tracks, I64, I64]:
    """Returns the tracks that either side recommended, and lists of rows (n, k) as lists of their numbers."""
    own = [_hashes(catalog, lists) for catalog, lists in ((a, lists_a), (b, lists_b))]
    hashes = np.unique(np.concatenate([found for _, found in own]))
    numbers = []
    for lists, (rows, found) in zip((lists_a, lists_b), own, strict=True):
        out = np.full(lists.shape, -1, np.int64)
        out[lists >= 0] = np.searchsorted(hashes, found)[np.searchsorted(rows, lists[lists >= 0])]
        numbers.append(out)
    return Tracks(a.rows(hashes), b.rows(hashes)), numbers[0], numbers[1]


def changed(a: I64, b: I64) -> Changes:
    """Returns how lists (n, k) of shared numbers became others, whatever k."""
    n, k = a.shape
    sizes = np.maximum((a >= 0).sum(axis=1), (b >= 0).sum(axis=1))
    some = sizes > 0
    t = int(max(a.max(initial=0), b.max(initial=0))) + 1
    at_a, at_b = (np.flatnonzero(lists.ravel() >= 0) for lists in (a, b))
    ours, theirs = (at // k * t + lists.ravel()[at] for at, lists in ((at_a, a), (at_b, b)))
    common, in_a, in_b = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    overlap = np.full(n, np.nan)
    overlap[some] = np.bincount(common // t, minlength=n)[some] / sizes[some]
    shift = np.abs(at_a[in_a] - at_b[in_b])
    return Changes(some, overlap, some & (a == b).all(axis=1), some & (a[:, 0] == b[:, 0]), shift)


def overlap(changes: Changes) -> dict[str, float | None]:
    """Returns mean and 95 % interval of overlap@k, and what share of users sees the same, or nothing of before."""
    own = changes.overlap[changes.some]
    return {
        **interval(own, SEED),
        "identical": _share(changes.same[changes.some]),
        "same_tracks": _share(own == 1),
        "nothing": _share(own == 0),
    }


def order(changes: Changes) -> dict[str, float | None]:
    """Returns the mean distance that tracks in both lists moved, and what share of users has the same first track."""
    shift = float(changes.shift.mean()) if len(changes.shift) else None
    return {"rank_shift": shift, "same_first": _share(changes.same_first[changes.some])}


def popularity(a: I64, b: I64, share: F64) -> dict[str, float | None]:
    """Returns the mean share of listeners of lists (n, k), and the paired difference over users with both lists.

    share: (t,) by number.
    """
    means = []
    for lists in (a, b):
        held = lists >= 0
        total = np.where(held, share[np.maximum(lists, 0)], 0).sum(axis=1) if len(share) else np.zeros(len(lists))
        means.append(np.where(held.any(axis=1), total / np.maximum(held.sum(axis=1), 1), np.nan))
    both = ~np.isnan(means[0]) & ~np.isnan(means[1])
    before, after = (mean[both] for mean in means)
    ends = {side: float(mean.mean()) if len(mean) else None for side, mean in (("a", before), ("b", after))}
    return {**ends, **difference(before, after, SEED)}


def catalogue(a: Catalog, b: Catalog, tracks: Tracks, lists_a: I64, lists_b: I64) -> dict[str, int]:
    """Returns how many tracks came and went, and how many of the recommended ones the other could not return.

    recommended_new, recommended_gone: different tracks that B recommends and A does not have, and the reverse.
    """
    new, gone = ~_eligible(a, tracks.a), ~_eligible(b, tracks.b)
    return {
        "a": a.n_eligible,
        "b": b.n_eligible,
        "added": int((_eligible(b, b.hash_rows) & ~_eligible(a, a.rows(b.hashes))).sum()),
        "removed": int((_eligible(a, a.hash_rows) & ~_eligible(b, b.rows(a.hashes))).sum()),
        "recommended_new": int(new[np.unique(lists_b[lists_b >= 0])].sum()),
        "recommended_gone": int(gone[np.unique(lists_a[lists_a >= 0])].sum()),
    }


def listeners(a: Bundle, b: Bundle, tracks: Tracks) -> F64:
    """Returns the share of listeners of each track, (t,)."""
    share = np.zeros(len(tracks.a))
    for bundle, rows in ((a, tracks.a), (b, tracks.b)):  # B has the last word
        share[rows >= 0] = bundle.catalog.share[rows[rows >= 0]]
    return share


def genre_names(a: Bundle, b: Bundle, tracks: Tracks) -> list[str] | None:
    """Returns the genre of each track, (t,), UNKNOWN where there is none; None when neither bundle knows genres."""
    names, known = np.full(len(tracks.a), UNKNOWN, object), False
    for bundle, rows in ((a, tracks.a), (b, tracks.b)):  # B has the last word
        spec = bundle.spec
        if spec.genre is None:
            continue
        known = True
        values = {part.name: part.values for part in spec.track_categories}
        values |= {part.name: part.values for part in spec.track_bags}
        ids = bundle.catalog.ids[rows[rows >= 0], len(spec.track_categories)]  # `genre*` comes after the categories
        names[rows >= 0] = np.array([UNKNOWN, *values[spec.genre]], object)[ids]
    return names.tolist() if known else None


def genres(a: I64, b: I64, names: Sequence[str] | None) -> dict[str, Any] | None:
    """Returns by genre its share of what lists (n, k) recommend, how far the shares moved, and the biggest movers.

    names: (t,) by number. None when there are no genres, or a side without recommendations.
    """
    if names is None or not (a >= 0).any() or not (b >= 0).any():
        return None
    known, of_track = np.unique(np.array(names, str), return_inverse=True)
    shares = [np.bincount(of_track[lists[lists >= 0]], minlength=len(known)) / (lists >= 0).sum() for lists in (a, b)]
    moved = shares[1] - shares[0]
    biggest = [i for i in np.argsort(-np.abs(moved), kind="stable")[:MOVERS].tolist() if moved[i]]
    return {
        "total_variation": float(np.abs(moved).sum() / 2),
        "movers": [
            {"genre": str(known[i]), "a": float(shares[0][i]), "b": float(shares[1][i]), "difference": float(moved[i])}
            for i in biggest
        ],
        "shares": {
            str(name): {"a": before, "b": after}
            for name, before, after in zip(known, shares[0].tolist(), shares[1].tolist(), strict=True)
        },
    }


def cohorts(changes: Changes, tiers: I64, lengths: I64) -> list[dict[str, Any]]:
    """Returns users and overlap@k by tier of B's answer and by length of history; cohorts without users are left out.

    tiers, lengths: (n,).
    """
    groups = [("tier", tier.label, tiers == tier) for tier in Tier]
    groups += [("history", name, (lengths >= low) & (lengths <= high)) for name, low, high in HISTORIES]
    return [
        {"by": by, "name": name, "users": int(own.sum()), "overlap": float(changes.overlap[own].mean())}
        for by, name, own in ((by, name, members & changes.some) for by, name, members in groups)
        if own.any()
    ]


def latency(took_ms: F64) -> dict[str, float | None]:
    """Returns p50_ms and p99_ms of `took_ms`, (n,)."""
    if not len(took_ms):
        return {"p50_ms": None, "p99_ms": None}
    p50, p99 = np.quantile(took_ms, (0.5, 0.99)).tolist()
    return {"p50_ms": round(p50, 4), "p99_ms": round(p99, 4)}


def verdict(found: Mapping[str, float | None], users: int, k: int) -> str:
    """Returns the first line. found: what `overlap` returned; k: the length of every list, 0 where lengths differ."""
    mean, low, high, nothing = (found[name] for name in ("mean", "low", "high", "nothing"))
    if mean is None or low is None or high is None or nothing is None:
        return "neither bundle has a list for anybody who was asked"
    if found["identical"] == 1:
        return f"B gives {_users(users)} exactly the list that A gives"
    if k:
        kept = f"{k * mean:.2f} of {k} tracks of A's lists on average (95 % {k * low:.2f} to {k * high:.2f})"
    else:
        kept = f"{_percent(mean)} of A's lists on average (95 % {_percent(low)} to {_percent(high)})"
    return f"B keeps {kept}; {_percent(nothing)} of users see nothing they saw before"


def _settings(recommender: Recommender) -> dict[str, Any]:
    bundle = recommender.bundle
    return {
        "model": bundle.manifest.model_id if bundle.manifest else None,
        "recipe": bundle.index.recipe,
        "point": asdict(bundle.index.point),
        "depth": recommender.depth,
        "tracks": bundle.catalog.n_eligible,
    }


def _hashes(catalog: Catalog, lists: I64) -> tuple[I64, Hashes]:
    """The different rows in `lists`, ascending, and their hashes."""
    rows = np.unique(lists[lists >= 0])
    return rows, track_hashes(catalog.track_ids(rows))


def _eligible(catalog: Catalog, rows: npt.NDArray[Any]) -> Mask:
    """(n,) whether the catalogue has a track in each of `rows`, and may return it."""
    return (rows >= 0) & ~np.isin(rows, catalog.removed)


def _distinct(lists: I64) -> int:
    return len(np.unique(lists[lists >= 0]))


def _share(of: Mask) -> float | None:
    return float(of.mean()) if len(of) else None


# -- for people ---------------------------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Returns what `between` found as tables, after its summary: settings, lists, sides, genres, cohorts."""
    k, asked, lists = found["k"], found["asked"], found["overlap"]
    whom = f"{asked['queries']:,} {asked['source']}" + (f", {asked['unknown']:,} unknown" if asked["unknown"] else "")
    rows = [["bundle", found["a"], found["b"]]]
    for name in found["differ"]:
        rows.append([name, *(_setting(found["settings"][side][name]) for side in "ab")])
    if not found["differ"]:
        rows.append(["settings", "the same", "the same"])
    out: list[Table] = [(["", "A", "B"], rows)]

    spread = f"95 % {_percent(lists['low'])} to {_percent(lists['high'])}"
    shift = found["order"]["rank_shift"]
    rows = [
        [f"overlap@{k}", _percent(lists["mean"]), spread],
        ["identical lists", _percent(lists["identical"]), "of users"],
        ["the same tracks, in any order", _percent(lists["same_tracks"]), "of users"],
        ["nothing in common", _percent(lists["nothing"]), "of users"],
        ["the same first track", _percent(found["order"]["same_first"]), "of users"],
        ["rank shift", "-" if shift is None else f"{shift:.2f}", "places, of tracks in both lists"],
    ]
    if found["genres"] is not None:
        rows.append(["genre shift", _percent(found["genres"]["total_variation"]), "of recommendations"])
    out.append(([whom, "", ""], rows))

    popular, catalog = found["popularity"], found["catalogue"]
    alike = next(value for name, value in found.items() if name.startswith("inter_user_overlap@"))
    moved = ""
    if popular["low"] is not None:
        by, low, high = (100 * popular[name] for name in ("difference", "low", "high"))
        moved = f"{by:+.3f} (95 % {low:+.3f} to {high:+.3f})"
    rows = [
        ["listeners of a track", *(_percent(popular[side], 3) for side in "ab"), moved],
        ["different tracks recommended", *(f"{found['coverage'][side]:,}" for side in "ab"), ""],
        ["of them not in the other bundle", f"{catalog['recommended_gone']:,}", f"{catalog['recommended_new']:,}", ""],
        ["in common of two users", *(_percent(alike[side]) for side in "ab"), ""],
        ["tracks", f"{catalog['a']:,}", f"{catalog['b']:,}", f"+{catalog['added']:,} -{catalog['removed']:,}"],
    ]
    for name in ("p50_ms", "p99_ms"):
        rows.append([name.replace("_", ", "), *(_ms(found["latency"][side][name]) for side in "ab"), ""])
    out.append((["lists", "A", "B", "B - A"], rows))

    if found["genres"] is not None and found["genres"]["movers"]:
        rows = [
            [one["genre"], _percent(one["a"]), _percent(one["b"]), f"{100 * one['difference']:+.1f}"]
            for one in found["genres"]["movers"]
        ]
        out.append((["genre", "A", "B", "B - A"], rows))
    rows = [[one["by"], one["name"], f"{one['users']:,}", _percent(one["overlap"])] for one in found["cohorts"]]
    out.append((["cohorts by", "", "users", f"overlap@{k}"], rows))
    return out


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {own}" for name, own in value.items())
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _users(n: int) -> str:
    return "the one user" if n == 1 else f"all {n:,} users"
