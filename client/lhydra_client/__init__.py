"""The typed client of Lhydra: needs grpcio and protobuf, nothing else.

    from lhydra_client import Client

    with Client("127.0.0.1:50051") as client:
        answer = client.recommend("user-1", k=10)

Names are loaded when first used, so that `lhydra --help` does not pay for importing gRPC.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lhydra_client.aio import AsyncClient
    from lhydra_client.catalogue import CatalogTrack, FoundTracks
    from lhydra_client.client import Client
    from lhydra_client.errors import (
        ClientError,
        InvalidRequest,
        Overloaded,
        PermissionDenied,
        ServerError,
        Timeout,
        Unauthenticated,
        Unavailable,
        Unsupported,
    )
    from lhydra_client.requests import Condition, Filter, HistoryEntry, Play, SessionEntry, recommend_request
    from lhydra_client.results import (
        AppliedRule,
        EventLog,
        Explanation,
        Percentiles,
        Recommendations,
        Recorded,
        Status,
        Track,
    )
    from lhydra_client.rules import Boost, Rules
    from lhydra_client.stored import FoundUsers, GateVerdict, HeardTrack, RecentPlay, StoredBundle, TrackMap, User
else:
    _HOMES = {
        "aio": ("AsyncClient",),
        "catalogue": ("CatalogTrack", "FoundTracks"),
        "client": ("Client",),
        "errors": (
            *("ClientError", "InvalidRequest", "Overloaded", "PermissionDenied", "ServerError"),
            *("Timeout", "Unauthenticated", "Unavailable", "Unsupported"),
        ),
        "requests": ("Condition", "Filter", "HistoryEntry", "Play", "SessionEntry", "recommend_request"),
        "results": (
            *("AppliedRule", "EventLog", "Explanation", "Percentiles", "Recommendations", "Recorded"),
            *("Status", "Track"),
        ),
        "rules": ("Boost", "Rules"),
        "stored": ("FoundUsers", "GateVerdict", "HeardTrack", "RecentPlay", "StoredBundle", "TrackMap", "User"),
    }

    def __getattr__(name):
        """Returns the public name `name`, importing its module."""
        from importlib import import_module

        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"lhydra_client.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AppliedRule",
    "AsyncClient",
    "Boost",
    "CatalogTrack",
    "Client",
    "ClientError",
    "Condition",
    "EventLog",
    "Explanation",
    "Filter",
    "FoundTracks",
    "FoundUsers",
    "GateVerdict",
    "HeardTrack",
    "HistoryEntry",
    "InvalidRequest",
    "Overloaded",
    "Percentiles",
    "PermissionDenied",
    "Play",
    "RecentPlay",
    "Recommendations",
    "Recorded",
    "Rules",
    "ServerError",
    "SessionEntry",
    "Status",
    "StoredBundle",
    "Timeout",
    "Track",
    "TrackMap",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "User",
    "recommend_request",
]
