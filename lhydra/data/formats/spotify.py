"""Exports of Spotify: the listening of an account over a year, and the extended history of all its years."""

from collections.abc import Sequence

from lhydra.data.formats.format import Export, Format, Sample, Tables, by_folder, json_table, not_read, skip, start
from lhydra.data.songs import SAID

_ENDS = "times are the ends of plays, and were turned into their starts by the time listened"
_SKIPS = "plays of less than 30 s count as skips"
_NOT_TRACKS = "CASE WHEN episodeName IS NOT NULL OR podcastName IS NOT NULL THEN 'an episode of a podcast' END"


def _people(export: Export, files: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """Returns whose listening each file is: a folder is a person's, as the files do not say."""
    return list(zip(files, by_folder(export, [sample.path.parent for sample in files]), strict=True))


def _notes(people: Sequence[tuple[Sample, str]]) -> tuple[str, ...]:
    names = list(dict.fromkeys(person for _, person in people))
    more = ", ..." if len(names) > 5 else ""
    if len(names) == 1:
        return (_ENDS, _SKIPS, f"all plays are those of {names[0]} (--user NAME names another)")
    return (_ENDS, _SKIPS, f"{len(names):,} folders, each one user's: {', '.join(names[:5])}{more}")


def _is_account(sample: Sample) -> bool:
    """Whether a file holds the listening of a year."""
    return sample.named("streaminghistory(_music)?_?[0-9]*") or sample.has("endTime", "msPlayed", "trackName")


def _is_podcast(sample: Sample) -> bool:
    return sample.named("streaminghistory_podcast_?[0-9]*") or sample.has("endTime", "msPlayed", "episodeName")


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


def _is_extended(sample: Sample) -> bool:
    """Whether a file holds years of listening, and not of watching."""
    holds = sample.has("ts", "ms_played", "master_metadata_track_name")
    return sample.named("(streaming_history_audio|endsong).*") or (
        holds and not sample.named("(streaming_history_video|endvideo).*")
    )


_TRACK, _ARTIST = "master_metadata_track_name", "master_metadata_album_artist_name"
_PODCAST, _BOOK = ("spotify_episode_uri", "episode_name"), ("audiobook_uri", "audiobook_title", "audiobook_chapter_uri")
_NO_MUSIC = f"""CASE WHEN blank(spotify_track_uri) AND blank({_TRACK}) THEN CASE
    WHEN NOT blank(coalesce({", ".join(_PODCAST)})) THEN 'an episode of a podcast'
    WHEN NOT blank(coalesce({", ".join(_BOOK)})) THEN 'an audiobook' END END"""
_COMPLETED = """CASE WHEN blank(reason_end) OR reason_end IN ('unknown', 'none') THEN NULL
    ELSE CAST(reason_end = 'trackdone' AS VARCHAR) END"""


def _extended(export: Export) -> Tables | None:
    """Streaming_History_Audio_*.json, endsong_*.json: of their fields only those named here are read, no others."""
    files = [sample for sample in export.samples if _is_extended(sample)]
    if not files:
        return None
    people = _people(export, files)
    album = "master_metadata_album_album_name"
    fields = ("ts", "ms_played", _TRACK, _ARTIST, album, "spotify_track_uri", *_PODCAST, *_BOOK, "reason_end")
    columns = {
        "user_id": "$person",
        "track_id": "nullif(trim(spotify_track_uri), '')",
        "timestamp": start("ts", "ms_played"),
        "name": _TRACK,
        "artist": _ARTIST,
        "album": album,
        "ms_played": "ms_played",
        "skipped": skip("ms_played", "skipped"),
        "completed": _COMPLETED,
    }
    types = dict.fromkeys((*fields, "skipped"), "VARCHAR")
    key = f"song_id({_ARTIST}, {_TRACK})"
    plays = json_table(export.path, people, types, columns, left_out=_NO_MUSIC, key=key)
    notes = (
        f"ids of tracks are Spotify's; where there is none, they are made of {SAID}",
        "addresses, account names, devices and countries of connection are not read",
        *_notes(people),
    )
    years = [
        sample for sample in export.samples if sample not in files and (_is_account(sample) or _is_podcast(sample))
    ]
    notes += tuple(f"not read: {sample.path.name} (account data: --format spotify)" for sample in years[:5])
    return Tables(plays, notes=(*notes, *not_read(export, [*files, *years], " (no extended history of tracks)")))


FORMATS = (
    Format(
        "spotify-extended",
        "Spotify's extended streaming history",
        "Streaming_History_Audio_*.json or endsong_*.json with ts, ms_played and master_metadata_track_name",
        _extended,
    ),
    Format(
        "spotify",
        "Spotify's account data",
        "StreamingHistory*.json with endTime, artistName, trackName and msPlayed",
        _account,
    ),
)
