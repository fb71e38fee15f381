"""The columns Lhydra knows by name, what kind they are, and the extra ones a configuration declares."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lhydra.config import Null, read_section, shown, unknown
from lhydra.data.dataset import Column, Kind
from lhydra.errors import ConfigError, complain

AUDIO = (
    *("danceability", "energy", "key", "loudness", "mode", "speechiness", "acousticness"),
    *("instrumentalness", "liveness", "valence", "tempo", "time_signature"),
)
PLAY_COLUMNS = ("user_id", "track_id", "playcount", "timestamp", "split")
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
IGNORED = ("spotify_id", "spotify_preview_url")  # known, and no feature
RESERVED = ("train_plays", "train_listeners", "train_tracks", "train_top_genre")  # Lhydra's own aggregates
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
                raise ConfigError(f"{path}: columns.{side}: {unknown(side, ('tracks', 'users'))}")
        declared = {side: _declared(f"{path}: columns.{side}", entries) for side, entries in section.items()}
        return cls(**declared)


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
                raise ConfigError(f"{where}.{name}.{key}: {unknown(str(key), ['kind'])}")
        if entry["kind"] not in DECLARABLE:
            raise ConfigError(complain(f"{where}.{name}.kind", shown(entry["kind"]), "one of " + ", ".join(DECLARABLE)))
        if name in (*RESERVED, "user_id", "track_id"):
            raise ConfigError(complain(f"{where}.{name}", "a name that Lhydra keeps for itself", "another column"))
        columns.append(Column(name, entry["kind"]))
    return tuple(columns)


def leaks(name: str) -> bool:
    """Whether the user column `name` is a source aggregate, computed over plays that evaluation hides.

    Args:
        name: of a user column.

    Returns:
        True for a name that aggregates of listening go by.
    """
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
        for column in columns:
            plain = column.name.isascii() and column.name.isidentifier() and column.name.lower() not in _YAML_WORDS
            name = column.name if plain else json.dumps(column.name, ensure_ascii=False)
            lines.append(f"    {name}: {{kind: {column.kind}}}")
    return lines


_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
