"""Settings of `lhydra prepare`; apart from the code that uses them, so that `--help` needs no data tools."""

from dataclasses import dataclass

from lhydra.config import Settings, setting
from lhydra.errors import ConfigError, complain
from lhydra.limits import AN_ID, is_id

FORMATS = (
    *("auto", "tables", "lastfm", "lastfm-1k", "lastfm-360k", "hetrec", "triplets", "spotify", "spotify-extended"),
    *("listenbrainz", "maloja", "mpd", "recbole", "movielens", "gorse", "yambda"),
)
_SEPARATORS = ("tab", "comma", "semicolon", "pipe", "space")
PROTOCOLS = ("temporal", "leave-last", "random", "column", "next-session", "global-time")


ALIASES = {
    "user": "user_id",
    "track": "track_id",
    "item": "track_id",
    "count": "playcount",
    "time": "timestamp",
    "title": "name",
}


@dataclass(frozen=True)
class ReadSettings(Settings):
    """What is said of the form of a source; what is not said is found out."""

    format: str = setting(
        "auto", "what the source is; auto looks at its files and says what it took them for", choices=FORMATS
    )
    columns: str | None = setting(
        None,
        "columns by the names that Lhydra knows, such as user=userid,track=artistid,count=weight,timestamp=uts",
        listed=True,
    )
    only: str | None = setting(
        None,
        "rows that are plays, where a log has events of other kinds too: event=play, or event=play,complete",
        listed=True,
    )
    sep: str | None = setting(None, "what separates cells: tab, comma, semicolon, pipe, space, or the characters")
    header: bool = setting(True, "whether the first line names the columns; without it they are 1, 2, ...")
    user: str | None = setting(None, "whose listening it is, for exports of one person (default: the name of the file)")

    def __post_init__(self) -> None:
        """Checks every field, and that `columns` and `only` can be read."""
        super().__post_init__()
        self.mapping()
        self.kept()
        if self.sep == "" or (self.sep and (len(self.sep.encode()) > 4 and self.sep not in _SEPARATORS)):
            raise ConfigError(complain("--sep", repr(self.sep), f"{', '.join(_SEPARATORS)}, or 1 to 4 characters"))
        if self.user is not None and not is_id(self.user):
            raise ConfigError(complain("--user", repr(self.user), f"an id of {AN_ID}"))

    def mapping(self) -> dict[str, str]:
        """Reads `columns`.

        Returns:
            The column of the file by its known name.

        Raises:
            ConfigError: a part is no NAME=COLUMN, or names something twice or something unknown.
        """
        found: dict[str, str] = {}
        for part in self.columns.split(",") if self.columns is not None else ():
            key, equals, name = part.partition("=")
            known = ALIASES.get(key.strip().lower(), key.strip().lower())
            example = "NAME=COLUMN, separated by commas, such as user=userid,track=artistid"
            if not equals or not key.strip() or not name:
                raise ConfigError(complain("--columns", repr(part), example))
            if known in found or name in found.values():
                raise ConfigError(complain("--columns", f"{part}, named twice", "each once"))
            found[known] = name
        return found

    def kept(self) -> dict[str, tuple[str, ...]]:
        """Reads `only`.

        Returns:
            By column, the values of which a row has one to be a play.

        Raises:
            ConfigError: a value stands before any column, or a column or a value is empty.
        """
        found: dict[str, tuple[str, ...]] = {}
        column = ""
        for part in self.only.split(",") if self.only is not None else ():
            name, equals, value = part.rpartition("=")
            column, value = (name.strip() if equals else column), value.strip()
            if not column or not value:
                raise ConfigError(complain("--only", repr(part), "COLUMN=VALUE, or COLUMN=VALUE,VALUE"))
            found[column] = (*found.get(column, ()), value)
        return found


@dataclass(frozen=True)
class PrepareSettings(ReadSettings):
    """How to prepare a dataset. `valid` and `test` are fractions: of the plays (temporal), of the pairs (random)."""

    split: str | None = setting(
        None,
        "how plays are divided into train, valid and test; without it: column if there is one, else temporal"
        " if there are timestamps, else random",
        choices=PROTOCOLS,
    )
    seed: int = setting(0, "seed of the random split", low=0)
    valid: float = setting(0.1, "fraction of the plays in the valid fold (temporal, random)", low=0, below=1)
    test: float = setting(0.1, "fraction of the plays in the test fold (temporal, random)", low=0, below=1)
    valid_sessions: int = setting(1, "each user's sessions in the valid fold (next-session)", low=0)
    test_sessions: int = setting(1, "each user's sessions in the test fold (next-session)", low=1)
    valid_s: int = setting(86_400, "length of the valid fold in seconds (global-time)", low=0)
    test_s: int = setting(86_400, "length of the test fold in seconds (global-time)", low=1)
    gap_s: int = setting(1_800, "seconds left out before the valid and before the test fold (global-time)", low=0)
    plays: str | None = setting(
        None,
        "plays that servers recorded, taken along: a bundle store, lmdb:PATH, redis://HOST:PORT/DB, or what"
        " `lhydra plays export` wrote, a file or a folder of them",
    )
    append: bool = setting(False, "add SOURCE to what DATASET holds; it is divided again, by its own rule unless told")
    deduplicate: bool = setting(
        False, "drop plays of the same user, track and second as an earlier row: events that were sent twice"
    )
    strict: bool = setting(False, "refuse a source with bad rows instead of dropping them")

    def __post_init__(self) -> None:
        """Checks every field, and that plays are left for train."""
        super().__post_init__()
        if self.valid + self.test >= 1:
            found = f"{self.valid:g} and {self.test:g}"
            raise ConfigError(complain("prepare.valid and prepare.test", found, "fractions that leave some for train"))
