"""Exports of Maloja: the scrobbles of one server, which is one person's."""

from lhydra.data.formats.format import (
    SKIPPED_MS,
    Export,
    Format,
    Sample,
    Tables,
    json_table,
    milliseconds,
    not_read,
    skip,
)
from lhydra.data.songs import SAID

_SCROBBLE = """STRUCT("time" VARCHAR, duration VARCHAR,
    track STRUCT(artists VARCHAR[], title VARCHAR, "length" VARCHAR, album STRUCT(albumtitle VARCHAR)))[]"""
_ARTISTS = "array_to_string(s.track.artists, ', ')"
_HEARD = milliseconds("s.duration")


def _is_maloja(sample: Sample) -> bool:
    return sample.named("maloja_export_.*") or (
        sample.head.lstrip().startswith("{") and sample.has("scrobbles", "track", "artists", "time")
    )


def _scrobbles(export: Export) -> Tables | None:
    """{"scrobbles": [...]} as `maloja export` writes it: times and lengths in seconds, several artists a track."""
    files = [sample for sample in export.samples if _is_maloja(sample)]
    if not files:
        return None
    columns = {
        "user_id": "$person",
        "track_id": "NULL",
        "timestamp": 's."time"',
        "name": "s.track.title",
        "artist": _ARTISTS,
        "album": "s.track.album.albumtitle",
        "duration_ms": milliseconds('s.track."length"'),
        "ms_played": _HEARD,
        "skipped": skip(_HEARD),
    }
    plays = json_table(
        export.path,
        [(sample, export.person(sample)) for sample in files],
        {"scrobbles": _SCROBBLE},
        columns,
        rows="(SELECT unnest(scrobbles) AS s FROM $file)",
        key=f"song_id({_ARTISTS}, s.track.title)",
    )
    notes = (
        f"ids of tracks are made of {SAID}; several artists are joined by commas",
        f"plays of less than {SKIPPED_MS // 1000} s count as skips",
        f"{len(files):,} file{'s' * (len(files) > 1)}, each one user's",
    )
    return Tables(plays, notes=(*notes, *not_read(export, files, " (no scrobbles)")))


FORMATS = (
    Format("maloja", "an export of Maloja", 'a JSON object with "scrobbles", which have time and track', _scrobbles),
)
