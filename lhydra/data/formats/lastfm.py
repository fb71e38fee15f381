"""Exports of Last.fm: a person's scrobbles as CSV in several dialects, and the research sets made of them."""

import re
from collections.abc import Sequence
from dataclasses import replace

from lhydra.data.csv_text import CSV
from lhydra.data.formats.format import BARE_TABS, Export, Format, Sample, Tables, not_read, text_table
from lhydra.data.songs import SAID
from lhydra.data.table import Table
from lhydra.errors import DataError, complain

_MADE = f"tracks without an id of MusicBrainz have one made of {SAID}"
_MBID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# 01 Jan 2020 12:34; what is no such time stays as it is, to be refused, and an empty cell is an unknown time
_SPOKEN = """CASE WHEN blank({0}) THEN NULL ELSE coalesce(CAST(CAST(epoch(
    try_strptime(trim({0}), ['%d %b %Y %H:%M', '%d %b %Y, %H:%M'])) AS BIGINT) AS VARCHAR), {0}) END"""
_TRACK = {"track_id": "nullif(trim(track_mbid), '')", "name": "track", "artist": "artist"}
_SPOKEN_TIME = re.compile(r"[0-9]{1,2} [^\W\d]+ [0-9]{4},? [0-9]{1,2}:[0-9]{2}")
_USERS = ("user", "username", "user_name", "user_id", "userid")
_PROFILE = ("listener", "gender", "age", "country", "signup")


def _scrobbles(export: Export) -> Tables | None:
    """A CSV a person: with the header of lastfm-to-csv tools (uts, artist, track), or without any."""
    tables = [sample for sample in export.samples if sample.name.endswith(".csv")]
    titled = [sample for sample in tables if set(sample.header()) >= {"artist", "track", "uts"}]
    spoken = [sample for sample in tables if _is_spoken(sample)]
    if titled and spoken:
        found = f"scrobbles without a header, where {titled[0].path.name} has one"
        raise DataError(
            complain(spoken[0].path, found, "one form; prepare those of one, then add the others (--append)")
        )
    files = titled or spoken
    if not files:
        return None
    users = _people(export, files)
    if titled:
        header = set(titled[0].header())
        columns = {"user_id": "$person", "timestamp": _SPOKEN.format("uts")} | _TRACK
        columns |= {"album": "album"} if "album" in header else {}
        columns |= {} if "track_mbid" in header else {"track_id": "NULL"}
        if named := [name for name in _USERS if name in header]:  # of several people in one file
            columns["user_id"] = named[0]
        table = text_table(export.path, users, CSV, columns, key="song_id(artist, track)")
    else:
        columns = (
            {"user_id": "$person", "timestamp": _SPOKEN.format("played"), "album": "album"}
            | _TRACK
            | {"track_id": "NULL"}
        )
        names = ("artist", "album", "track", "played")
        bare = replace(CSV, header=False)
        table = text_table(export.path, users, bare, columns, names=names, key="song_id(artist, track)")
    left = not_read(export, files)
    if not table.of_one_person:
        return Tables(table, notes=(_MADE, *left))
    people = sorted({person for _, person in users})
    more = f" and {len(people) - 5:,} more" if len(people) > 5 else ""
    whose = f"each file is one user's: {', '.join(people[:5])}{more} (--user NAME names another)"
    return Tables(table, notes=(_MADE, whose, *left))


def _people(export: Export, files: Sequence[Sample]) -> list[tuple[Sample, str]]:
    """Whose each file is; files of one name in several folders are several people's, and go by their paths."""
    people = [export.person(sample) for sample in files]
    if export.user is None and len(set(people)) < len(people):
        folder = export.path.resolve()
        paths = [sample.path.resolve() for sample in files]
        people = [
            str(path.relative_to(folder) if path.is_relative_to(folder) else path).partition(".")[0] for path in paths
        ]
    return list(zip(files, people, strict=True))


def _is_spoken(sample: Sample) -> bool:
    """Whether most rows have four cells of which the last is a time like 01 Jan 2020 12:34, or empty."""
    times = [row[3].strip() for row in sample.rows() if len(row) == 4]
    spoken = [time for time in times if not time or _SPOKEN_TIME.fullmatch(time)]
    return any(spoken) and 2 * len(spoken) > len(sample.rows())


def _is_1k(sample: Sample) -> bool:
    return sample.mostly("\t", lambda row: len(row) == 6 and row[1][10:11] == "T" and row[1][:4].isdigit())


def _thousand(export: Export) -> Tables | None:
    """Last.fm 1K: user, time, artist MBID, artist, track MBID, track; quotes are text."""
    files = [sample for sample in export.samples if _is_1k(sample)]
    if not files:
        return None
    columns = {"user_id": "listener", "timestamp": "played"} | _TRACK
    names = ("listener", "played", "artist_mbid", "artist", "track_mbid", "track")
    table = _table(export, files, columns, names, "song_id(artist, track)")
    return Tables(table, users=_profiles(export), notes=(_MADE,))


def _is_360k(sample: Sample) -> bool:
    """Whether most lines have user, MBID or nothing, artist and a whole number, and one has an MBID."""
    rows = [line.split("\t") for line in sample.lines()]
    return any(len(row) == 4 and _MBID.fullmatch(row[1]) for row in rows) and sample.mostly(
        "\t", lambda row: len(row) == 4 and (not row[1] or bool(_MBID.fullmatch(row[1]))) and row[3].strip().isdigit()
    )


def _artists(export: Export) -> Tables | None:
    """Last.fm 360K: user, artist MBID, artist, plays; the artists are the tracks."""
    files = [sample for sample in export.samples if _is_360k(sample)]
    if not files:
        return None
    columns = {"user_id": "listener", "track_id": "nullif(trim(mbid), '')", "playcount": "plays", "name": "artist"}
    names = ("listener", "mbid", "artist", "plays")
    table = _table(export, files, columns, names, "short_id(plain_name(artist))")
    made = f"those without an id of MusicBrainz have one made of {SAID.replace('artist and title', 'the name')}"
    return Tables(table, users=_profiles(export), notes=(f"tracks are artists; {made}; there are no times",))


def _profiles(export: Export) -> Table | None:
    """Who the users are: with a header in 1K, without one in 360K."""
    found = [sample for sample in export.samples if sample.name.endswith("profile.tsv")]
    if not found or len(found[0].first_line.split("\t")) != len(_PROFILE):
        return None
    columns = {"user_id": "listener", **{name: name for name in _PROFILE[1:]}}
    dialect = replace(BARE_TABS, header=found[0].first_line.startswith("#"))
    return text_table(found[0].path, [(found[0], "")], dialect, columns, names=_PROFILE)


def _table(export: Export, files: list[Sample], columns: dict[str, str], names: Sequence[str], key: str) -> Table:
    path = files[0].path if len(files) == 1 else export.path
    return text_table(path, [(sample, "") for sample in files], BARE_TABS, columns, names=names, key=key)


FORMATS = (
    Format("lastfm-1k", "the Last.fm 1K data set", "tab-separated user, time, MBID, artist, MBID, track", _thousand),
    Format("lastfm-360k", "the Last.fm 360K data set", "tab-separated user, MBID, artist, plays", _artists),
    Format("lastfm", "scrobbles of Last.fm as CSV", "CSV files with uts, artist and track", _scrobbles),
)
