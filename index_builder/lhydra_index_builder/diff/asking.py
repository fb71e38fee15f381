"""Whom to ask, and what both bundles answer."""

import codecs
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lhydra.bundle.bundle import Bundle
from lhydra.console import with_progress
from lhydra.data.dataset import Dataset
from lhydra.domain import I64, Query
from lhydra.errors import DataError, InvalidRequest, UserStoreError, complain
from lhydra.evaluation.bootstrap import F64
from lhydra.json_text import parse_json
from lhydra.limits import MAX_K
from lhydra.queries import Request, check, known_user, to_query
from lhydra.recommender import Recommender
from lhydra.users.store import open_users
from lhydra_index_builder import held_out
from lhydra_index_builder.changes import some_users
from lhydra_index_builder.logged import logged_traffic

SEED = 0
WARM_UP_QUERIES = 50  # asked once before anything is timed
_FIELDS = ("user_id", "k", "exclude_track_ids", "history", "profile", "session", "now_s")
_ENTRY_FIELDS = ("track_id", "count", "timestamp_s")
_SESSION_FIELDS = ("track_id", "timestamp_s", "completed", "skipped")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One track of a recorded history."""

    track_id: str
    count: float
    timestamp_s: int


@dataclass(frozen=True, slots=True)
class _Play:
    """One play of a recorded session."""

    track_id: str
    timestamp_s: int
    completed: bool | None
    skipped: bool | None


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
    states = held_out.draw_users(Dataset.open(folder), "now", None, n, SEED).states
    return Asked([known_user(state, k) for state in states], f"users of {folder}")


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
    return Asked([known_user(state, k) for state in states], f"users of {url or 'the user store'}")


def of_requests(file: Path, store: Path, url: str | None, n: int, k: int) -> Asked:
    """Returns recorded requests, drawn at random, in their order.

    One JSON object per line: `user_id`, and maybe `k`, `exclude_track_ids`, `history` (objects of `track_id` and maybe
    `count` and `timestamp_s`), `profile` (values by column), `session` (objects of `track_id` and maybe `timestamp_s`,
    `completed` and `skipped`) and `now_s`. They become the queries that a server would have made of them, with what the
    user store holds now and within the limits of the API.

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
    requests, now = [], int(time.time())
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                requests.append(_parsed(line, k, now))
            except InvalidRequest as error:
                raise DataError(f"{file} line {number}: {error}") from None
    if not requests:
        raise DataError(complain(file, "no lines", "a request per line"))
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(requests))[:n]).tolist()
    users = open_users(url, store) if _has_users(store, url) else None
    try:
        asked = [requests[i] for i in chosen]
        stored = [None if users is None else users.get(request.user_id) for request in asked]
    finally:
        if users is not None:
            users.close()
    queries = [to_query(request, state, now) for request, state in zip(asked, stored, strict=True)]
    unknown = sum(not query.known and not len(query.state.history) for query in queries)
    return Asked(queries, f"requests of {file}", unknown)


def of_log(place: Path, bundles: Sequence[Bundle], n: int) -> Asked:
    """Returns requests of an answer log, with the state, clock, filter and rules that they had.

    Args:
        place: a file of the log, or its folder.
        bundles: that will be asked.
        n: requests at most.

    Returns:
        The queries.

    Raises:
        DataError: it is no answer log, or nothing in it can be asked.
        MissingExtra: the server is not installed.
    """
    found = logged_traffic(place, bundles, n, lambda line: print(line, file=sys.stderr))
    unknown = sum(not query.known and not len(query.state.history) for query in found.queries)
    return Asked(found.queries, found.words, unknown)


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


def _has_users(store: Path, url: str | None) -> bool:
    """Whether there is a user store; one that was named must be there, lest opening it makes an empty one."""
    if url is None:
        return (store / "users.lmdb").exists()
    scheme, _, rest = url.partition(":")
    if scheme == "lmdb" and rest and not Path(rest).exists():
        raise UserStoreError(complain("--users", f"nothing at {rest}", "a user store"))
    return True


def _parsed(line: bytes, k: int, now: int) -> Request:
    """The request in one line, all checked; `k` where it names none."""
    try:
        request = parse_json(line.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise InvalidRequest("request", str(error), "a JSON object") from None
    _check_fields("request", request, _FIELDS, "user_id")
    _check_text("user_id", request["user_id"])
    given = {name: value for name, value in request.items() if value is not None}
    if not _whole(given.get("k", k)):
        raise InvalidRequest("k", repr(given["k"]), "a whole number")
    excluded, entries, profile = given.get("exclude_track_ids", []), given.get("history", []), given.get("profile", {})
    plays, now_s = given.get("session", []), given.get("now_s", 0)
    if not _whole(now_s):
        raise InvalidRequest("now_s", repr(now_s), "whole seconds since 1970")
    for name, value in (("exclude_track_ids", excluded), ("history", entries), ("session", plays)):
        if not isinstance(value, list):
            raise InvalidRequest(name, repr(value), "a list")
    for i, track_id in enumerate(excluded):
        _check_text(f"exclude_track_ids[{i}]", track_id)
    history = [_entry(f"history[{i}]", entry) for i, entry in enumerate(entries)]
    if not isinstance(profile, dict):
        raise InvalidRequest("profile", repr(profile), "values by column")
    for name, value in profile.items():
        if not (value is None or isinstance(value, str | bool) or _number(value)):
            raise InvalidRequest(f"profile[{name!r}]", repr(value), "text or a finite number")
    session = [_play(f"session[{i}]", play) for i, play in enumerate(plays)]
    found = Request(given["user_id"], given.get("k", k), excluded, history, profile, session=session, now=now_s)
    check(found, MAX_K, now, history="history", profile="profile", session="session")
    return found


def _entry(field: str, entry: object) -> _Entry:
    _check_fields(field, entry, _ENTRY_FIELDS, "track_id")
    assert isinstance(entry, dict)  # checked
    _check_text(f"{field}.track_id", entry["track_id"])
    count = entry.get("count")
    if not (count is None or _number(count)):
        raise InvalidRequest(f"{field}.count", repr(count), "a finite number, not negative")
    return _Entry(entry["track_id"], count or 0, _time(field, entry))


def _play(field: str, play: object) -> _Play:
    _check_fields(field, play, _SESSION_FIELDS, "track_id")
    assert isinstance(play, dict)  # checked
    _check_text(f"{field}.track_id", play["track_id"])
    for name in ("completed", "skipped"):
        if not (play.get(name) is None or isinstance(play[name], bool)):
            raise InvalidRequest(f"{field}.{name}", repr(play[name]), "true or false")
    return _Play(play["track_id"], _time(field, play), play.get("completed"), play.get("skipped"))


def _time(field: str, entry: dict[str, Any]) -> int:
    timestamp_s = entry.get("timestamp_s")
    if not (timestamp_s is None or _whole(timestamp_s)):
        raise InvalidRequest(f"{field}.timestamp_s", repr(timestamp_s), "whole seconds since 1970")
    return timestamp_s or 0


def _check_fields(thing: str, found: object, known: Sequence[str], needed: str) -> None:
    if not isinstance(found, dict):
        raise InvalidRequest(thing, repr(found), "a JSON object")
    if needed not in found:
        raise InvalidRequest(thing, f"no {needed}", f"{needed} and maybe {', '.join(known[1:])}")
    if other := [name for name in found if name not in known]:
        raise InvalidRequest(thing, f"field {other[0]!r}", f"only {', '.join(known)}")


def _check_text(field: str, text: object) -> None:
    if not isinstance(text, str):
        raise InvalidRequest(field, repr(text), "text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(field, repr(text), "text that is UTF-8") from None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    """Whether it is a number that float64 holds."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
