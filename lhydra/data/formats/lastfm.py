"""Exports of Last.fm: a person's scrobbles as CSV in several dialects, and the research sets made of them."""

import csv
from dataclasses import replace

from lhydra.data.csv_text import CSV
from lhydra.data.formats.format import BARE_TABS, Export, Format, Sample, Tables, text_table
from lhydra.data.songs import SAID

_MADE = f"tracks without an id of MusicBrainz have one made of {SAID}"
# 01 Jan 2020 12:34; what is no such time stays as it is, to be refused, and an empty cell is an unknown time
_SPOKEN = "coalesce(CAST(CAST(epoch(try_strptime(trim(played), '%d %b %Y %H:%M')) AS BIGINT) AS VARCHAR), played)"


def _scrobbles(export: Export) -> Tables | None:
    """A CSV a person: with the header of lastfm-to-csv tools (uts, artist, track), or without any."""
    files = [sample for sample in export.samples if sample.name.endswith(".csv")]
    if not files:
        return None
    header = files[0].header()
    users = [(sample, export.person(sample)) for sample in files]
    if {"artist", "track", "uts"} <= set(header):
        columns = {
            "user_id": "$person",
            "track_id": "nullif(trim(track_mbid), '')" if "track_mbid" in header else "NULL",
            "timestamp": "uts",
            "name": "track",
            "artist": "artist",
        } | ({"album": "album"} if "album" in header else {})
        table = text_table(export.path, users, CSV, columns, key="song_id(artist, track)")
    elif all(_is_spoken(sample) for sample in files):
        columns = {
            "user_id": "$person",
            "track_id": "NULL",
            "timestamp": _SPOKEN,
            "name": "track",
            "artist": "artist",
            "album": "album",
        }
        # a time that cannot be read is one: not the empty cell that stands for "unknown"
        columns["timestamp"] = (
            f"CASE WHEN trim(played) = '' THEN NULL ELSE coalesce(({columns['timestamp']})::VARCHAR, played) END"
        )
        names = ("artist", "album", "track", "played")
        bare = replace(CSV, header=False)
        table = text_table(export.path, users, bare, columns, names=names, key="song_id(artist, track)")
    else:
        return None
    return Tables(table, notes=(_MADE, f"{len(users):,} files, each one user's"))


def _is_spoken(sample: Sample) -> bool:
    """Whether the last cell of the first line is a time like 01 Jan 2020 12:34, after three others."""
    cells = next(csv.reader([sample.first_line]), [])
    words = cells[3].split() if len(cells) == 4 else []
    return len(words) == 4 and words[0].isdigit() and words[1].isalpha() and words[2].isdigit() and ":" in words[3]


def _is_1k(sample: Sample) -> bool:
    rows = [line.split("\t") for line in sample.lines()]
    return bool(rows) and all(len(row) == 6 and row[1][10:11] == "T" and row[1][:4].isdigit() for row in rows)


def _thousand(export: Export) -> Tables | None:
    """Last.fm 1K: user, time, artist MBID, artist, track MBID, track; quotes are text."""
    files = [sample for sample in export.samples if _is_1k(sample)]
    if not files:
        return None
    columns = {
        "user_id": "user",
        "track_id": "nullif(trim(track_mbid), '')",
        "timestamp": "time",
        "name": "track",
        "artist": "artist",
    }
    names = ("user", "time", "artist_mbid", "artist", "track_mbid", "track")
    users = [(sample, "") for sample in files]
    table = text_table(export.path, users, BARE_TABS, columns, names=names, key="song_id(artist, track)")
    return Tables(table, notes=(_MADE,))


FORMATS = (
    Format("lastfm-1k", "the Last.fm 1K data set", "tab-separated user, time, MBID, artist, MBID, track", _thousand),
    Format("lastfm", "scrobbles of Last.fm as CSV", "CSV files with uts, artist and track", _scrobbles),
)
