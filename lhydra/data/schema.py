"""The columns Lhydra knows by name, what kind they are, and the extra ones a configuration declares."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from lhydra.config import Null, read_section, shown, unknown
from lhydra.data.dataset import Column, Kind
from lhydra.errors import ConfigError, complain

AUDIO = (
    *("danceability", "energy", "key", "loudness", "mode", "speechiness", "acousticness"),
    *("instrumentalness", "liveness", "valence", "tempo", "time_signature"),
)
PLAY_COLUMNS = (
    *("user_id", "track_id", "playcount", "timestamp", "split"),
    *("session", "position", "skipped", "completed", "ms_played"),
)
TRACK_COLUMNS: Mapping[str, Kind] = {
    "name": "text",
    "artist": "categorical",
    "album": "categorical",
    "genre": "categorical",
    "main_genre": "categorical",
    "explicit": "categorical",
    "tags": "multi",
    "year": "year",
    "duration_ms": "numeric",
    **dict.fromkeys(AUDIO, "numeric"),
}
USER_COLUMNS: Mapping[str, Kind] = {
    "age": "numeric",
    "gender": "categorical",
    "region": "categorical",
    "country": "categorical",
    "occupation": "categorical",
}
IGNORED = (  # known, and no feature
    *("spotify_id", "spotify_preview_url"),
    *("event_id", "request_id", "recorded_ms"),  # of `lhydra plays export`
)
RESERVED = ("train_plays", "train_listeners", "train_tracks", "train_top_genre")  # Lhydra's own aggregates
_NEAR: Mapping[str, tuple[str, ...]] = {  # names that other programs use, without case and punctuation
    "user_id": ("user", "uid", "username", "listener", "listenerid", "member", "memberid", "account", "accountid"),
    "track_id": ("track", "tid", "item", "itemid", "iid", "song", "songid", "movieid", "recordingid", "trackuri"),
    "playcount": ("weight", "count", "counts", "plays", "nplays", "listens", "listencount", "scrobbles", "frequency"),
    "timestamp": (
        *("ts", "uts", "time", "date", "datetime", "epoch", "unixtime", "playedat", "listenedat", "createdat"),
        *("eventtime", "starttime", "endtime", "utctime", "playdate", "timestampms", "timestamps"),
    ),
    "split": ("fold", "subset", "partition"),
    "session": ("sessionid",),
    "skipped": ("skip", "isskipped", "wasskipped"),
    "ms_played": ("playedms", "playtime", "listeningtime", "listenedms"),
    "name": ("title", "trackname", "tracktitle", "songname"),
    "artist": ("artistid", "artistname", "artists", "performer"),
    "album": ("albumid", "albumname", "albumtitle", "release"),
    "genre": ("genres", "genreid", "genrename", "trackgenre"),
    "tags": ("tag", "taglist"),
    "year": ("releaseyear", "releasedate"),
    "duration_ms": ("duration", "length", "lengthms"),
    "gender": ("sex",),
    "country": ("countrycode", "countryname"),
    "occupation": ("job", "profession"),
}
DECLARABLE = tuple(kind for kind in get_args(Kind) if kind != "text")


@dataclass(frozen=True)
class DeclaredColumns:
    """Columns that the configuration adds to the known ones, by the table they describe."""

    tracks: tuple[Column, ...] = ()
    users: tuple[Column, ...] = ()

    @classmethod
    def from_config(cls, path: Path | None) -> "DeclaredColumns":
        """Returns what the section `columns` of a YAML file declares, nothing without a file.

        Args:
            path: the YAML file.

        Returns:
            The columns of both tables.

        Raises:
            ConfigError: an unknown key or kind, or a name that Lhydra keeps for itself.
        """
        section = read_section(path, "columns") if path is not None else {}
        for side in section:
            if side not in ("tracks", "users"):
                raise ConfigError(unknown(f"{path}: columns.{side}", side, ("tracks", "users")))
        declared = {side: _declared(f"{path}: columns.{side}", entries) for side, entries in section.items()}
        return cls(**declared)

    def resolved(self, tracks: Sequence[str], users: Sequence[str]) -> "DeclaredColumns":
        """Returns the declarations by the names that the tables go by, where they differ in case only.

        Args:
            tracks: names of the columns of tracks.
            users: names of the columns of users.

        Returns:
            The same declarations; a column that is not there keeps its name.
        """

        def find(column: Column, names: Sequence[str]) -> Column:
            known = canonical(column.name)
            return replace(column, name=known) if column.name not in names and known in names else column

        return DeclaredColumns(
            tuple(find(column, tracks) for column in self.tracks), tuple(find(column, users) for column in self.users)
        )


def _declared(where: str, entries: Any) -> tuple[Column, ...]:
    example = "a mapping like {mood: {kind: categorical}}"
    if isinstance(entries, Null):
        return ()
    if not isinstance(entries, dict):
        raise ConfigError(complain(where, shown(entries), example))
    columns = []
    for name, entry in entries.items():
        if not (isinstance(name, str) and isinstance(entry, dict) and entry):
            raise ConfigError(complain(f"{where}.{name}", shown(entry), example))
        for key in entry:
            if key != "kind":
                raise ConfigError(unknown(f"{where}.{name}.{key}", str(key), ["kind"]))
        if entry["kind"] not in DECLARABLE:
            raise ConfigError(complain(f"{where}.{name}.kind", shown(entry["kind"]), "one of " + ", ".join(DECLARABLE)))
        if name in (*RESERVED, "user_id", "track_id"):
            raise ConfigError(complain(f"{where}.{name}", "a name that Lhydra keeps for itself", "another column"))
        columns.append(Column(name, entry["kind"]))
    return tuple(columns)


def canonical(name: str) -> str:
    """Returns the known name that `name` is but for case and surrounding space, else the name without the space.

    Args:
        name: of a column, as a file has it.

    Returns:
        The name to go by.
    """
    return _FOLDED.get(name.strip().casefold(), name.strip())


def near(name: str) -> str | None:
    """Returns the known name that a column may be meant to have; it is proposed to people, never assumed.

    Args:
        name: of a column that is not known.

    Returns:
        The known name, None when it is near none.
    """
    bare = _bare(name)
    if bare in _BY_BARE_NAME or len(bare) < 5:
        return _BY_BARE_NAME.get(bare)
    close = get_close_matches(bare, _BY_BARE_NAME, 1, 0.85)
    return _BY_BARE_NAME[close[0]] if close else None


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


_KNOWN = (*PLAY_COLUMNS, *TRACK_COLUMNS, *USER_COLUMNS)
_FOLDED = {name.casefold(): name for name in (*_KNOWN, *IGNORED, *RESERVED)}
_BY_BARE_NAME = {other: name for name, others in _NEAR.items() if name in _KNOWN for other in others}
_BY_BARE_NAME |= {_bare(name): name for name in _KNOWN}


def leaks(name: str) -> bool:
    """Whether the user column `name` is a source aggregate, computed over plays that evaluation hides.

    Args:
        name: of a user column.

    Returns:
        True for a name that aggregates of listening go by.
    """
    name = name.casefold()
    return name.startswith("avg_") or name in ("top_genre", "genre_diversity", "monthly_hours")


def used_columns(names: Iterable[str], known: Mapping[str, Kind], declared: Sequence[Column]) -> tuple[Column, ...]:
    """Returns the columns of a table to use: those of `known` that it has, in that order, then the declared.

    A declaration changes the kind of a known column.

    Args:
        names: of the columns that the table has.
        known: kinds of the columns that Lhydra knows, by name.
        declared: columns that a configuration declares.

    Returns:
        The columns, known ones first.
    """
    kinds = {name: kind for name, kind in known.items() if name in set(names)}
    kinds |= {column.name: column.kind for column in declared}
    return tuple(Column(name, kind) for name, kind in kinds.items())


def yaml_lines(tracks: Sequence[Column], users: Sequence[Column]) -> list[str]:
    """Returns the YAML lines that declare these columns.

    Args:
        tracks: columns of tracks.
        users: columns of users.

    Returns:
        The lines, without line ends.
    """
    lines = ["columns:"]
    for side, columns in (("tracks", tracks), ("users", users)):
        lines += [f"  {side}:"] * bool(columns)
        lines += [f"    {_entry(column)}" for column in columns]
    return lines


def declaration(side: str, column: Column) -> str:
    """Returns the whole YAML that declares one column, on one line.

    Args:
        side: `tracks` or `users`.
        column: the column.

    Returns:
        The line.
    """
    return f"columns: {{{side}: {{{_entry(column)}}}}}"


def _entry(column: Column) -> str:
    plain = column.name.isascii() and column.name.isidentifier() and column.name.lower() not in _YAML_WORDS
    name = column.name if plain else json.dumps(column.name, ensure_ascii=False)
    return f"{name}: {{kind: {column.kind}}}"


_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
