"""A few people's own listening, read like any source, and its tracks found among known ones."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from lhydra.data import rows, songs
from lhydra.data.dataset import Column
from lhydra.data.loading import choose_columns, load_source
from lhydra.data.report import Report
from lhydra.data.schema import DeclaredColumns
from lhydra.data.settings import ReadSettings
from lhydra.data.sources import open_source
from lhydra.data.unpacking import as_given

OPTIONAL = ("session", "position", "skipped", "completed", "ms_played")


@dataclass(frozen=True)
class Listening:
    """What a source says, checked but not divided.

    plays: a row per play, in order of the source: user_id, track_id, playcount, timestamp (Unix s, 0 unknown), and of
    OPTIONAL what the source has. tracks and users: a row per id, with the columns that hold anything. columns: what
    those are. notes: for people.
    """

    plays: pa.Table
    tracks: pa.Table
    users: pa.Table
    columns: DeclaredColumns
    notes: tuple[str, ...]


def read_listening(
    path: Path,
    read: ReadSettings,
    declared: DeclaredColumns = DeclaredColumns(),  # noqa: B008 - frozen
    *,
    strict: bool = False,
) -> Listening:
    """Reads a source of any number of users, one person's history too.

    Args:
        path: as `open_source` takes it.
        read: what is said of its form.
        declared: columns beyond the known ones, used where the source has them.
        strict: whether a bad row refuses the source.

    Returns:
        What it says.

    Raises:
        DataError: it cannot be used, or has a bad row and `strict` is asked for.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lhydra-") as work,
        as_given(path, Path(work)),
        duckdb.connect() as con,
    ):
        rows.configure(con)
        source = open_source(path, read, Path(work))
        here = DeclaredColumns(
            tuple(column for column in declared.tracks if column.name in source.tracks.names),
            tuple(column for column in declared.users if column.name in source.users.names),
        )
        used, report = choose_columns(source, here), Report(warnings=list(source.notes))
        source = load_source(con, source, used, Path(work))
        rows.check_plays(con, source, report)
        tracks = rows.describe(con, source, "tracks", used["tracks"], report)
        users = rows.describe(con, source, "users", used["users"], report)
        if strict:
            report.refuse_faults(source.path)
        rows.make_events(con, source.plays, report)
        found = {name for (name,) in con.execute("SELECT column_name FROM (DESCRIBE events)").fetchall()}
        more = "".join(f", e.{name}" for name in OPTIONAL if name in found)
        plays = con.sql(
            f"""SELECT u.id AS user_id, t.id AS track_id, count AS playcount, time AS timestamp{more}
                FROM events e JOIN users u ON u.position = e.user JOIN tracks t ON t.position = e.track ORDER BY row"""
        ).to_arrow_table()
        tables = []
        for side, columns in (("tracks", tracks), ("users", users)):
            table = con.sql(f"SELECT {', '.join(['id', *columns])} FROM {side} ORDER BY position").to_arrow_table()
            names = [column.name for column in columns.values()]
            tables.append(table.rename_columns([f"{side[:-1]}_id", *names]))
    kinds = DeclaredColumns(tuple(tracks.values()), tuple(users.values()))
    return Listening(plays, tables[0], tables[1], kinds, tuple(report.warnings))


@dataclass(frozen=True)
class Matches:
    """Which known track each track of a source is: `known` by its id, and how many were found in which way."""

    known: dict[str, str]
    by_id: int
    by_name: int
    tracks: int

    def told(self) -> str:
        """Returns how many matched, for people."""
        n = self.by_id + self.by_name
        share = 100 * n / max(self.tracks, 1)
        ways = f"{self.by_id:,} by id, {self.by_name:,} by artist and title"
        return f"{n:,} of {self.tracks:,} tracks are known here ({share:.0f}%: {ways})"


def match_tracks(tracks: pa.Table, known: pa.Table) -> Matches:
    """Finds tracks among known ones: by id, where a Spotify URI is its last part too, else by artist and title.

    Args:
        tracks: track_id, and artist and name where they are known.
        known: track_id, artist and name ("" or null where there is none), the preferred ones first.

    Returns:
        The known id by the id of each track that was found.
    """
    with duckdb.connect() as con:
        songs.configure(con)
        for side, table in (("given", tracks), ("known", known)):
            for name in ("artist", "name"):
                if name not in table.column_names:
                    table = table.append_column(name, pa.nulls(len(table), pa.string()))
            con.register(f"{side}_rows", table)
        con.execute(
            """CREATE TABLE known AS SELECT track_id, first(song_id(artist, name)) AS song, min(place) AS place
                FROM (SELECT *, row_number() OVER () AS place FROM known_rows) GROUP BY track_id"""
        )
        con.execute("CREATE TABLE songs AS SELECT song, arg_min(track_id, place) AS track_id FROM known GROUP BY song")
        found = con.execute(
            """SELECT g.track_id, coalesce(a.track_id, b.track_id), s.track_id
                FROM given_rows g LEFT JOIN known a ON a.track_id = g.track_id
                LEFT JOIN known b ON g.track_id LIKE 'spotify:track:%'
                    AND b.track_id = replace(g.track_id, 'spotify:track:', '')
                LEFT JOIN songs s ON s.song = song_id(g.artist, g.name)"""
        ).fetchall()
    known_ids = {given: by_id or by_name for given, by_id, by_name in found if by_id or by_name}
    by_id = sum(by_id is not None for _, by_id, _ in found)
    return Matches(known_ids, by_id, len(known_ids) - by_id, len(found))


def columns_of(tracks: Sequence[Column], users: Sequence[Column]) -> DeclaredColumns:
    """Returns columns as declarations; text, which no declaration takes, is left out.

    Args:
        tracks: of the tracks.
        users: of the users.

    Returns:
        The declarations.
    """
    return DeclaredColumns(
        tuple(column for column in tracks if column.kind != "text"),
        tuple(column for column in users if column.kind != "text"),
    )
