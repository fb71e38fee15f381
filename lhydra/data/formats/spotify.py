"""Exports of Spotify: the listening of an account over a year, and the extended history of all its years."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from lhydra.data.formats.format import Export, Format, Sample, Tables, json_table, not_read, skip, start
from lhydra.data.songs import SAID

_ENDS = "times are the ends of plays, and were turned into their starts by the time listened"
_SKIPS = "plays of less than 30 s count as skips"
_NOT_TRACKS = "CASE WHEN episodeName IS NOT NULL OR podcastName IS NOT NULL THEN 'an episode of a podcast' END"


def _people(export: Export, files: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """Returns whose listening each file is: a folder is a person's, as the files do not say."""
    folders = [sample.path.resolve().parent for sample in files]
    if export.user is not None or (len(set(folders)) == 1 and not _is_within(export, folders[0])):
        return [(sample, export.person()) for sample in files]
    if len(set(folders)) == 1:
        return [(sample, export.person(Sample(folders[0], "", ""))) for sample in files]
    common = Path(os.path.commonpath(folders))
    within = [folder.relative_to(common).parts for folder in folders]
    return [(sample, parts[0] if parts else export.person()) for sample, parts in zip(files, within, strict=True)]


def _is_within(export: Export, folder: Path) -> bool:
    """Whether the export is a file or a pattern in the folder, which then is the person's."""
    here = export.path.resolve()
    return (here.parent == folder or glob.has_magic(str(export.path))) and not here.is_dir()


def _notes(people: Sequence[tuple[Sample, str]]) -> tuple[str, ...]:
    names = list(dict.fromkeys(person for _, person in people))
    more = ", ..." if len(names) > 5 else ""
    if len(names) == 1:
        return (_ENDS, _SKIPS, f"all plays are those of {names[0]} (--user NAME names another)")
    return (_ENDS, _SKIPS, f"{len(names):,} folders, each one user's: {', '.join(names[:5])}{more}")


def _is_account(sample: Sample) -> bool:
    """Whether a file holds the listening of a year; one without a record is known by its name."""
    named = sample.name.startswith("streaminghistory") and sample.head.strip() == "[]"
    return named or (sample.has("endTime", "msPlayed") and sample.has("trackName"))


def _is_podcast(sample: Sample) -> bool:
    return sample.has("endTime", "msPlayed", "episodeName")


def _account(export: Export) -> Tables | None:
    """StreamingHistory*.json: endTime in UTC to the minute, artistName, trackName, msPlayed."""
    if not any(_is_account(sample) for sample in export.samples):
        return None
    files = [sample for sample in export.samples if _is_account(sample) or _is_podcast(sample)]
    people = _people(export, files)
    fields = ("endTime", "artistName", "trackName", "msPlayed", "podcastName", "episodeName")
    columns = {
        "user_id": "$person",
        "track_id": "NULL",
        "timestamp": start("endTime", "msPlayed"),
        "name": "trackName",
        "artist": "artistName",
        "ms_played": "msPlayed",
        "skipped": skip("msPlayed"),
    }
    plays = json_table(
        export.path,
        people,
        dict.fromkeys(fields, "VARCHAR"),
        columns,
        left_out=_NOT_TRACKS,
        key="song_id(artistName, trackName)",
    )
    notes = (f"ids of tracks are made of {SAID}", *_notes(people))
    return Tables(plays, notes=(*notes, *not_read(export, files, " (no listening to tracks)")))


FORMATS = (
    Format(
        "spotify",
        "Spotify's account data",
        "StreamingHistory*.json with endTime, artistName, trackName and msPlayed",
        _account,
    ),
)
