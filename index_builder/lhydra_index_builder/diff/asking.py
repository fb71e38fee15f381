"""Whom to ask, and what both bundles answer."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lhydra.console import with_progress
from lhydra.data.dataset import Dataset
from lhydra.domain import I64, Query, UserState, Value, make_history, track_hashes
from lhydra.errors import DataError, InvalidRequest, UserStoreError, complain
from lhydra.evaluation.bootstrap import F64
from lhydra.recommender import Recommender
from lhydra.users.store import UserStore, open_users
from lhydra_index_builder import gate
from lhydra_index_builder.changes import some_users

SEED = 0
MAX_K = 10_000  # what a server may be told to allow
WARM_UP_QUERIES = 50  # asked once before anything is timed
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
class Answers:
    """What one bundle answered to n queries: lists best first, -1 padded."""

    lists: I64  # (n, k) rows of its catalog
    tiers: I64  # (n,)
    took_ms: F64  # (n,)


def of_dataset(folder: Path, n: int, k: int) -> Asked:
    """Returns queries of users of a prepared dataset, drawn at random, as of now.

    Args:
        folder: the dataset.
        n: users at most.
        k: tracks that each query asks for.

    Returns:
        The queries.
    """
    states = gate.draw_users(Dataset.open(folder), "now", None, n, SEED).states
    return Asked([_query(state, k) for state in states], f"users of {folder}")


def of_users(store: Path, url: str | None, n: int, k: int) -> Asked:
    """Returns queries of users of a user store, drawn at random.

    Args:
        store: the folder that bundles are published in.
        url: the user store; None takes the one inside `store`.
        n: users at most.
        k: tracks that each query asks for.

    Returns:
        The queries.

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
    """Returns recorded requests, drawn at random, in their order.

    One JSON object per line: `user_id`, and maybe `k`, `exclude_track_ids`, `history` (objects of `track_id` and maybe
    `count` and `timestamp_s`) and `profile` (values by column). What the user store holds of a user counts, as a server
    would have it, where the request brings no history. What was heard is left out.

    Args:
        file: the requests.
        store: the folder that bundles are published in.
        url: the user store; None takes the one inside `store`, or none where there is none.
        n: requests at most.
        k: tracks to ask for where a request does not say.

    Returns:
        The queries.

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


def ask(a: Recommender, b: Recommender, queries: Sequence[Query], k: int) -> tuple[Answers, Answers]:
    """Returns what both answer; each query goes to both before the next one.

    The two take turns in being asked first, so that other load and caches that a query leaves warm are the same to
    both.

    Args:
        a: serves the bundle before.
        b: serves the bundle after.
        queries: n queries.
        k: tracks to keep of each list.

    Returns:
        The answers of `a` and those of `b`.
    """
    both, n = (a, b), len(queries)
    for recommender in both:
        recommender.warm_up()
        for query in queries[:WARM_UP_QUERIES]:
            recommender.recommend(query)
    sides = tuple(Answers(np.full((n, k), -1, np.int64), np.zeros(n, np.int64), np.zeros(n)) for _ in both)
    for i, query in enumerate(with_progress(queries, n, "asking both bundles")):
        for which in (i % 2, 1 - i % 2):
            started = time.perf_counter_ns()
            found = both[which].recommend(query)
            sides[which].took_ms[i] = (time.perf_counter_ns() - started) / 1e6
            best = found.rows[:k]
            sides[which].lists[i, : len(best)] = best
            sides[which].tiers[i] = found.tier
    return sides[0], sides[1]


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
