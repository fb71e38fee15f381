"""Exports of ListenBrainz: a listen a line or an array of them, of one person or of all."""

import json
import re
from collections.abc import Sequence
from typing import Any

from lhydra.data.formats.format import Export, Format, Sample, Tables, by_folder, json_table, milliseconds, not_read
from lhydra.data.songs import SAID

# Clients hand in what they like beside the fields of the documentation: only these are looked for.
_PATHS = (
    *("artist_name", "track_name", "release_name", "mbid_mapping.recording_mbid", "additional_info.recording_mbid"),
    *("additional_info.isrc", "additional_info.spotify_id", "additional_info.duration_ms", "additional_info.duration"),
)
_ARTIST, _TITLE, _RELEASE, _MAPPED, _GIVEN, _ISRC, _SPOTIFY, _MS, _SECONDS = (
    f"said[{i + 1}]" for i in range(len(_PATHS))
)
_LISTED = ", ".join(f"'$.{path}'" for path in _PATHS)
_ROWS = f"(SELECT *, json_extract_string(track_metadata, [{_LISTED}]) AS said FROM $file)"
# a URL of Spotify and its URI name the same track
_URL = f"nullif(regexp_extract({_SPOTIFY}, 'spotify[.]com/.*tracks?/([0-9A-Za-z]+)', 1), '')"
_IDS = ", ".join(f"nullif(trim({cell}), '')" for cell in (_MAPPED, _GIVEN, _ISRC))


def _is_parted(sample: Sample) -> bool:
    return sample.path.resolve().parent.parent.name == "listens"


def _is_listens(sample: Sample) -> bool:
    """Whether a file holds listens, by its place in an export too, and is no page of the API, which wraps them."""
    if _is_parted(sample) and sample.name.endswith((".jsonl", ".listens")):
        return True
    timed = sample.has("listened_at") or sample.has("timestamp")
    return timed and sample.has("track_metadata") and not re.match(r'\s*\{\s*"payload"', sample.head)


def _people(export: Export, files: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """Returns whose listening each file is where the listens do not say: that of user.json, of the folder or file.

    An export has its listens in listens/YEAR/MONTH.jsonl, beside a user.json. In a dump each listen has a user.
    """
    parted = [sample for sample in files if _is_parted(sample)]
    roots = {sample.path: sample.path.resolve().parents[2] for sample in parted}
    names = dict(zip(roots.values(), by_folder(export, list(roots.values())), strict=True))
    for sample in export.samples:
        if sample.name == "user.json" and sample.path.resolve().parent in names and export.user is None:
            names[sample.path.resolve().parent] = _user_of(sample) or names[sample.path.resolve().parent]
    people = []
    for sample in files:
        person = names[roots[sample.path]] if sample.path in roots else export.person(sample)
        people.append((sample, "" if _names_users(sample) else person))
    return people


def _first(sample: Sample) -> dict[str, Any]:
    """Returns the first record of a file, nothing where there is none."""
    text = sample.head.lstrip().removeprefix("[").lstrip()
    try:
        record, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _user_of(sample: Sample) -> str | None:
    name = _first(sample).get("username")
    return name if isinstance(name, str) else None


def _names_users(sample: Sample) -> bool:
    return sample.name.endswith(".listens") or any(
        _first(sample).get(name) not in (None, "") for name in ("user_name", "user_id")
    )


def _listens(export: Export) -> Tables | None:
    files = [sample for sample in export.samples if _is_listens(sample)]
    if not files:
        return None
    people = _people(export, files)
    person = ", nullif($person, '')" if any(name for _, name in people) else ""
    columns = {
        "user_id": f"coalesce(nullif(user_name, ''), nullif(user_id, ''){person})",
        "track_id": f"coalesce({_IDS}, 'spotify:track:' || {_URL}, nullif(trim({_SPOTIFY}), ''))",
        "timestamp": 'coalesce(listened_at, "timestamp")',
        "name": _TITLE,
        "artist": _ARTIST,
        "album": _RELEASE,
        "duration_ms": f"CASE WHEN blank({_MS}) THEN {milliseconds(_SECONDS)} ELSE {_MS} END",
    }
    fields = dict.fromkeys(("listened_at", "timestamp", "user_name", "user_id"), "VARCHAR") | {"track_metadata": "JSON"}
    key = f"song_id({_ARTIST}, {_TITLE})"
    plays = json_table(export.path, people, fields, columns, rows=_ROWS, key=key)
    notes = (
        f"ids of tracks are those of MusicBrainz, else ISRCs, else Spotify's; where there is none, made of {SAID}",
        *_whose(people),
    )
    return Tables(plays, notes=(*notes, *not_read(export, files, " (no listens)")))


def _whose(people: Sequence[tuple[Sample, str]]) -> tuple[str, ...]:
    names = list(dict.fromkeys(person for _, person in people if person))
    more = ", ..." if len(names) > 5 else ""
    return (f"listens without a user are those of {', '.join(names[:5])}{more}",) if names else ()


FORMATS = (
    Format(
        "listenbrainz",
        "listens of ListenBrainz",
        "JSON lines or arrays of listens with listened_at and track_metadata",
        _listens,
    ),
)
