"""Playlists taken for listeners: the slices of the Million Playlist Dataset."""

from lhydra.data.formats.format import Export, Format, Sample, Tables, json_table, not_read
from lhydra.data.songs import SAID

_PLAYLIST = """STRUCT(pid VARCHAR, tracks STRUCT(pos VARCHAR, track_uri VARCHAR, track_name VARCHAR,
    artist_name VARCHAR, album_name VARCHAR, duration_ms VARCHAR)[])[]"""
# an empty playlist is a row of its own, so that it is counted
_ROWS = """(SELECT p.pid AS pid, coalesce(len(p.tracks), 0) = 0 AS bare,
    unnest(CASE WHEN len(p.tracks) > 0 THEN p.tracks ELSE [NULL] END) AS t
    FROM (SELECT unnest(playlists) AS p FROM $file))"""


def _is_slice(sample: Sample) -> bool:
    return sample.named("mpd[.]slice[.].*|challenge_set") or (
        sample.head.lstrip().startswith("{") and sample.has("playlists", "pid", "tracks", "track_uri")
    )


def _slices(export: Export) -> Tables | None:
    """mpd.slice.*.json: a playlist is a user, its order is that of `pos`, and there are no times."""
    files = [sample for sample in export.samples if _is_slice(sample)]
    if not files:
        return None
    columns = {
        "user_id": "pid",
        "track_id": "nullif(trim(t.track_uri), '')",
        "position": "t.pos",
        "name": "t.track_name",
        "artist": "t.artist_name",
        "album": "t.album_name",
        "duration_ms": "t.duration_ms",
    }
    plays = json_table(
        export.path,
        [(sample, "") for sample in files],
        {"playlists": _PLAYLIST},
        columns,
        rows=_ROWS,
        left_out="CASE WHEN bare THEN 'a playlist without tracks' END",
        key="song_id(t.artist_name, t.track_name)",
    )
    notes = (
        "each playlist is a user, by its pid; the order is that of pos, and there are no times",
        f"ids of tracks are Spotify's; where there is none, they are made of {SAID}",
    )
    return Tables(plays, notes=(*notes, *not_read(export, files, " (no playlists)")))


FORMATS = (Format("mpd", "the Million Playlist Dataset", "mpd.slice.*.json with playlists of pid and tracks", _slices),)
