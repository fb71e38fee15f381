"""GetUser: what is stored of a user, in the words of the bundle being served."""

from collections.abc import Mapping

import numpy as np

from lhydra.domain import COMPLETED, LIVE, SKIPPED, UserState, Value
from lhydra.features.listening import plays_in_session
from lhydra.repeats import repeats_of
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.catalogue import Catalogue


def told(state: UserState, most: int, now: float, catalogue: Catalogue) -> pb.GetUserResponse:
    """Tells of a user.

    Args:
        state: as stored.
        most: entries of the history, and plays.
        now: Unix seconds, up to which the session reaches.
        catalogue: of the bundle.

    Returns:
        The reply, without the ids of bundle and request.
    """
    history, recent = state.history[::-1][:most], state.recent[::-1][:most]
    first = repeats_of(state)["first"][::-1][:most]
    tracks = catalogue.texts(np.concatenate([history["track"], recent["track"]]).astype(np.uint64))
    entries = zip(tracks, history["count"].tolist(), first.tolist(), history["time"].tolist(), strict=False)
    plays = zip(tracks[len(history) :], recent["time"].tolist(), recent["flags"].tolist(), strict=True)
    return pb.GetUserResponse(
        known=True,
        profile=_profile(state.profile),
        history=[
            pb.HeardTrack(
                track_id=track, title=title, artist=artist, count=count, first_s=first_s, last_s=max(last_s, 0)
            )
            for (track, title, artist), count, first_s, last_s in entries
        ],
        history_tracks=len(state.history),
        heard_tracks=len(state.heard),
        plays=[
            pb.RecentPlay(
                track_id=track,
                title=title,
                artist=artist,
                timestamp_s=time_s,
                completed=bool(flags & COMPLETED),
                skipped=bool(flags & SKIPPED),
                live=bool(flags & LIVE),
            )
            for (track, title, artist), time_s, flags in plays
        ],
        session=plays_in_session(state.recent["time"].astype(np.int64), now),
        state_version=state.version,
    )


def _profile(profile: Mapping[str, Value]) -> pb.Profile:
    """What the wire can say of a profile: text and numbers; what is unknown is left out."""
    columns = {}
    for name, value in profile.items():
        if isinstance(value, str):
            columns[name] = pb.Value(text=value)
        elif value is not None:
            columns[name] = pb.Value(number=float(value))
    return pb.Profile(columns=columns)
