"""The catalogue as callers see it: tracks by their ids, and by words of titles and artists."""

from collections.abc import Iterable
from dataclasses import dataclass

from lhydra_client import checks
from lhydra_client.requests import Filter, filter_message
from lhydra_protos.v1 import recommender_pb2 as pb


@dataclass(frozen=True, slots=True)
class CatalogTrack:
    """What the catalogue says of a track.

    Attributes:
        track_id: the track.
        title: "" where the catalog has none.
        artist: "" where the catalog has none.
        share: of the listeners whose plays the model learnt from, those who played it.
        removed: whether it counts in histories but is never returned.
    """

    track_id: str
    title: str
    artist: str
    share: float
    removed: bool


@dataclass(frozen=True, slots=True)
class FoundTracks:
    """Tracks looked up by ids, or found by words.

    Attributes:
        tracks: in the order asked for; of a search, best first.
        bundle_id: the bundle that answered.
        request_id: finds the call in the server's log.
        unknown_ids: ids asked for that the bundle does not hold.
        found: of a search, how many tracks there are in all.
    """

    tracks: tuple[CatalogTrack, ...]
    bundle_id: str
    request_id: str
    unknown_ids: tuple[str, ...] = ()
    found: int = 0


def tracks_request(track_ids: Iterable[str]) -> pb.GetTracksRequest:
    """Makes the request of `Client.tracks`.

    Args:
        track_ids: the tracks.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    return pb.GetTracksRequest(track_ids=checks.texts("track_ids", track_ids))


def search_request(text: str, k: int | None, filter: Filter | None) -> pb.SearchTracksRequest:
    """Makes the request of `Client.search`.

    Args:
        text: words, or beginnings of words.
        k: how many tracks.
        filter: which tracks are eligible; None for all.

    Returns:
        The message.

    Raises:
        InvalidRequest: a value that the wire cannot express; names the field.
    """
    most = checks.whole("k", checks.given(k, 10), *checks.UINT32)
    request = pb.SearchTracksRequest(text=checks.text("text", text), k=most)
    if filter is not None:
        request.filter.CopyFrom(filter_message(filter))
    return request


def looked_up(reply: pb.GetTracksResponse) -> FoundTracks:
    """Turns a reply into plain values.

    Args:
        reply: to GetTracks.

    Returns:
        The tracks.
    """
    return FoundTracks(_tracks(reply.tracks), reply.bundle_id, reply.request_id, tuple(reply.unknown_ids))


def searched(reply: pb.SearchTracksResponse) -> FoundTracks:
    """Turns a reply into plain values.

    Args:
        reply: to SearchTracks.

    Returns:
        The tracks, best first.
    """
    return FoundTracks(_tracks(reply.tracks), reply.bundle_id, reply.request_id, found=reply.found)


def _tracks(tracks: Iterable[pb.CatalogTrack]) -> tuple[CatalogTrack, ...]:
    return tuple(CatalogTrack(t.track_id, t.title, t.artist, t.share, t.removed) for t in tracks)
