"""The Last.fm set of HetRec 2011: how often users played artists, who the artists are, and how they were tagged."""

from dataclasses import replace
from pathlib import Path

from lhydra.data.csv_text import literal, scan
from lhydra.data.formats.format import TABS, Export, Format, Sample, Tables, not_read, one_of, text_table
from lhydra.data.table import Table

_DIALECT = replace(TABS, quote=False)
_LATIN = replace(_DIALECT, encoding="latin-1")
_MOST_TAGS = 10  # of an artist: those given most often, then by name
# Rows keep their places, so that messages name the right lines.
_TAGGED = """(SELECT f.*, g.tags FROM (SELECT *, row_number() OVER () AS place FROM $file) f LEFT JOIN (
    SELECT artist, list(tag ORDER BY n DESC, tag)[:{most}] AS tags FROM (
        SELECT a.artist, t.tag, count(*) AS n FROM {given} AS a(tagger, artist, id, d, m, y)
        JOIN {tags} AS t(id, tag) ON a.id = t.id GROUP BY ALL) GROUP BY artist) g ON g.artist = f.id ORDER BY place)"""


def _named(export: Export, *columns: str) -> list[Sample]:
    found = [sample for sample in export.samples if sample.header("\t")[: len(columns)] == list(columns)]
    return one_of(export, found, f"{columns[0]}, {columns[1]} and so on")


def _open(export: Export) -> Tables | None:
    """user_artists.dat as plays, artists.dat as tracks with the tags that users gave them."""
    plays = _named(export, "userid", "artistid", "weight")
    if not plays or len(plays[0].header("\t")) != 3:
        return None
    artists = _named(export, "id", "name", "url")
    given = _named(export, "userid", "artistid", "tagid", "day", "month", "year")
    tags = _named(export, "tagid", "tagvalue")
    columns = {"user_id": "userid", "track_id": "artistid", "playcount": "weight"}
    table = text_table(plays[0].path, [(plays[0], "")], _DIALECT, columns)
    notes = ["tracks are artists; there are no times"]
    tracks = None
    if artists:
        tracks = _artists(artists[0], given[0] if given and tags else None, tags[0] if tags else None)
        if given and tags:
            notes.append(f"tags are those that users gave an artist most often, {_MOST_TAGS} at most")
    used = [*plays, *artists, *(given + tags if artists and given and tags else [])]
    return Tables(table, tracks, notes=(*notes, *not_read(export, used)))


def _artists(artists: Sample, given: Sample | None, tags: Sample | None) -> Table:
    columns = {"track_id": "id", "name": "name", "url": "url"}
    if given is None or tags is None:
        return text_table(artists.path, [(artists, "")], _DIALECT, columns)
    for sample in (given, tags):
        scan(sample.path, _LATIN)
    rows = _TAGGED.format(most=_MOST_TAGS, given=_read(given.path, 6), tags=_read(tags.path, 2))
    table = text_table(artists.path, [(artists, "")], _DIALECT, columns | {"tags": "tags"}, lists=("tags",))
    assert table.derived
    return replace(table, derived=replace(table.derived, rows=rows))


def _read(path: Path, width: int) -> str:
    """SQL that reads a table of tags, which is latin-1; a line of another width says nothing of an artist."""
    columns = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(width))
    file = literal(path).replace("'", "''")
    packed = "gzip" if path.name.lower().endswith(".gz") else "none"
    return (
        f"read_csv('{file}', auto_detect=false, header=true, delim='\t', quote='', escape='', encoding='latin-1',"
        f" compression='{packed}', ignore_errors=true, hive_partitioning=false,"
        f" columns={{{columns}}})"
    )


FORMATS = (
    Format(
        "hetrec",
        "the Last.fm set of HetRec 2011",
        "user_artists.dat with userID, artistID and weight, alone, in its folder or in its zip",
        _open,
    ),
)
