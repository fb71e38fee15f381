"""What operators get back: users, bundles and the map of the catalogue, as frozen values."""

import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lhydra_client import checks
from lhydra_protos.v1 import recommender_pb2 as pb


@dataclass(frozen=True, slots=True)
class HeardTrack:
    """A track of a history.

    Attributes:
        track_id: "" where the bundle does not hold the track.
        title: "" where the catalog has none.
        artist: "" where the catalog has none.
        count: plays.
        first_s: first play, Unix seconds; 0 unknown.
        last_s: last play, Unix seconds; 0 unknown.
    """

    track_id: str
    title: str
    artist: str
    count: float
    first_s: int
    last_s: int


@dataclass(frozen=True, slots=True)
class RecentPlay:
    """One of the last plays.

    Attributes:
        track_id: "" where the bundle does not hold the track.
        title: "" where the catalog has none.
        artist: "" where the catalog has none.
        timestamp_s: Unix seconds.
        completed: whether it was played to the end.
        skipped: whether it was skipped.
        live: whether a server recorded it; others were loaded with data.
    """

    track_id: str
    title: str
    artist: str
    timestamp_s: int
    completed: bool
    skipped: bool
    live: bool


@dataclass(frozen=True, slots=True)
class User:
    """What is stored of a user.

    Attributes:
        known: False where nothing is stored.
        profile: text or numbers by column.
        history: newest first.
        history_tracks: how many the history has, however many are told.
        heard_tracks: how many tracks were ever heard, which the history need not hold.
        plays: newest first.
        session: how many of the newest plays are the session of now, however many are told.
        state_version: rises with every change.
        bundle_id: the bundle that answered.
        request_id: finds the call in the server's log.
    """

    known: bool
    profile: Mapping[str, str | float]
    history: tuple[HeardTrack, ...]
    history_tracks: int
    heard_tracks: int
    plays: tuple[RecentPlay, ...]
    session: int
    state_version: int
    bundle_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class FoundUsers:
    """Users found by the beginning of their ids.

    Attributes:
        user_ids: ascending by their UTF-8 bytes.
        more: whether there are, or may be, others.
        request_id: finds the call in the server's log.
    """

    user_ids: tuple[str, ...]
    more: bool
    request_id: str


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """One check of a gate.

    Attributes:
        name: of the check.
        verdict: "passed", "refused", or "skipped" where there was nothing to measure it by.
        found: what was measured; None for nothing.
        limit: what it was held against.
        note: the unit, or why it was skipped.
    """

    name: str
    verdict: str
    found: float | None
    limit: float | None
    note: str


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A bundle of the server's store.

    Attributes:
        bundle_id: its id.
        model_id: the model in it.
        current: whether the store calls it CURRENT.
        serving: whether the worker that answered serves it.
        previous: whether a rollback would take it.
        created_s: Unix seconds.
        tracks: that may be returned.
        bytes: of its files.
        index_recipe: how the index was built.
        lhydra_version: that made it.
        verdict: of its gate: "passed", "refused" or "forced".
        gates: the checks of the gate.
        error: why it cannot be opened; "" where nothing speaks against it.
    """

    bundle_id: str
    model_id: str
    current: bool
    serving: bool
    previous: bool
    created_s: int
    tracks: int
    bytes: int
    index_recipe: str
    lhydra_version: str
    verdict: str
    gates: tuple[GateVerdict, ...]
    error: str


@dataclass(frozen=True, slots=True)
class TrackMap:
    """Tracks as points of a plane; x and y are from 0 to 65,535.

    Attributes:
        track_ids: those asked for by id, then the others, most listeners first.
        x: of each track.
        y: of each track.
        column: that `labels` are from; "" for none.
        labels: the value of each track, "" for none, or for one that is too rare to be told.
        projection: "pca" or "umap"; "" where the bundle has no map, and then there are no tracks.
        bundle_id: the bundle that answered.
        request_id: finds the call in the server's log.
    """

    track_ids: tuple[str, ...]
    x: tuple[int, ...]
    y: tuple[int, ...]
    column: str
    labels: tuple[str, ...]
    projection: str
    bundle_id: str
    request_id: str


def user_request(user_id: str, max_entries: int | None) -> pb.GetUserRequest:
    """Makes the request of `Client.user`.

    Args:
        user_id: the listener.
        max_entries: of the history and of the plays.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    entries = checks.whole("max_entries", checks.given(max_entries, 0), *checks.UINT32)
    return pb.GetUserRequest(user_id=checks.text("user_id", user_id), max_entries=entries)


def users_request(prefix: str | None, k: int | None) -> pb.SearchUsersRequest:
    """Makes the request of `Client.users`.

    Args:
        prefix: of the ids.
        k: how many.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    start, most = checks.given(prefix, ""), checks.given(k, 10)
    return pb.SearchUsersRequest(prefix=checks.text("prefix", start), k=checks.whole("k", most, *checks.UINT32))


def map_request(max_points: int | None, column: str | None, track_ids: Iterable[str] | None) -> pb.GetMapRequest:
    """Makes the request of `Client.track_map`.

    Args:
        max_points: tracks.
        column: to label them by.
        track_ids: those wanted in any case.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    points = checks.whole("max_points", checks.given(max_points, 0), *checks.UINT32)
    tracks = checks.texts("track_ids", checks.given(track_ids, ()))
    label = checks.text("column", checks.given(column, ""))
    return pb.GetMapRequest(max_points=points, column=label, track_ids=tracks)


def user(reply: pb.GetUserResponse) -> User:
    """Turns a reply into plain values.

    Args:
        reply: to GetUser.

    Returns:
        The user.
    """
    columns = reply.profile.columns
    profile = {name: columns[name].text if columns[name].HasField("text") else columns[name].number for name in columns}
    return User(
        reply.known,
        profile,
        tuple(HeardTrack(t.track_id, t.title, t.artist, t.count, t.first_s, t.last_s) for t in reply.history),
        reply.history_tracks,
        reply.heard_tracks,
        tuple(
            RecentPlay(t.track_id, t.title, t.artist, t.timestamp_s, t.completed, t.skipped, t.live)
            for t in reply.plays
        ),
        reply.session,
        reply.state_version,
        reply.bundle_id,
        reply.request_id,
    )


def users(reply: pb.SearchUsersResponse) -> FoundUsers:
    """Turns a reply into plain values.

    Args:
        reply: to SearchUsers.

    Returns:
        The ids.
    """
    return FoundUsers(tuple(reply.user_ids), reply.more, reply.request_id)


def bundles(reply: pb.ListBundlesResponse) -> tuple[StoredBundle, ...]:
    """Turns a reply into plain values.

    Args:
        reply: to ListBundles.

    Returns:
        The bundles, newest first.
    """
    return tuple(
        StoredBundle(
            *(one.bundle_id, one.model_id, one.current, one.serving, one.previous, one.created_s, one.tracks),
            *(one.bytes, one.index_recipe, one.lhydra_version, one.verdict, tuple(map(_gate, one.gates)), one.error),
        )
        for one in reply.bundles
    )


def _gate(one: pb.GateVerdict) -> GateVerdict:
    found = one.found if one.HasField("found") else None
    return GateVerdict(one.name, one.verdict, found, one.limit if one.HasField("limit") else None, one.note)


def track_map(reply: pb.GetMapResponse) -> TrackMap:
    """Turns a reply into plain values.

    Args:
        reply: to GetMap.

    Returns:
        The tracks with their places.
    """
    places = array("H")
    places.frombytes(reply.places)
    if sys.byteorder == "big":
        places.byteswap()
    values = dict(enumerate(reply.values))
    labels = tuple(values.get(at, "") for at in reply.value_of)
    x, y = tuple(places[::2]), tuple(places[1::2])
    return TrackMap(
        tuple(reply.track_ids), x, y, reply.column, labels, reply.projection, reply.bundle_id, reply.request_id
    )
