"""The prepared dataset on disk: Parquet tables and dataset.json. Written by `prepare`, read by everybody else.

DATASET/dataset.json     format, columns and their kinds, counts, split protocol and hash, warnings
tracks.parquet   track_id and the track columns, in track_id order; own aggregates of train plays
users.parquet    user_id and the user columns, in user_id order; own aggregates of train plays
events.parquet   a row per play in order of listening: user, track (positions in the tables), time, position, count,
                 session, skipped, completed, ms_played, fold; since format 2
plays.parquet    what they add up to by user, track and fold: count, time; in (user, time, track) order
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lhydra.domain import F32, I64, Hashes, UserState, track_hashes
from lhydra.errors import DataError, complain
from lhydra.json_text import parse_json
from lhydra.repeats import hashes_of, histories_of, single_plays

FORMAT, OLDEST_FORMAT = 2, 1
Kind = Literal["numeric", "categorical", "multi", "year", "text"]  # text is for people, never a feature
AsOf = Literal["test", "valid", "refit", "now"]
Mask = Literal["seen", "train"]  # what of a user is left out of lists: all folds before, or train alone
TRAIN, VALID, TEST = 0, 1, 2
_TOGETHER = 512  # users whose states are built at once


@dataclass(frozen=True)
class Column:
    """A column of the tracks or users table and how it is used."""

    name: str
    kind: Kind


EVENTS_SCHEMA = pa.schema(
    [
        ("user", pa.int32()),
        ("track", pa.int32()),
        ("time", pa.int64()),
        ("position", pa.int64()),
        ("count", pa.float32()),
        ("session", pa.int32()),
        ("skipped", pa.bool_()),
        ("completed", pa.bool_()),
        ("ms_played", pa.int64()),
        ("fold", pa.int8()),
    ]
)


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset.json says."""

    source: str
    track_columns: tuple[Column, ...]
    user_columns: tuple[Column, ...]
    counts: dict[str, int]  # tracks, users, plays, train, valid, test
    # protocol, its settings, rule; cuts: last s of train and valid; newest: s of the newest play of train and valid;
    # oldest: of valid and test, 0 where any has no time; hash of the fold of every pair. Models and bundles keep it.
    split: dict[str, Any]
    timed: bool  # whether plays carry timestamps
    dropped: dict[str, int] = field(default_factory=dict)  # bad rows left out, by reason
    warnings: tuple[str, ...] = ()
    lhydra_version: str = ""
    format: int = FORMAT
    summary: dict[str, Any] = field(default_factory=dict)  # figures of the log; none in datasets made before it
    # how far it holds the event log of a user store: the store's id and a position; none where it holds none of it
    logged: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """The warnings that the summary does not tell by their kind."""
        by_kind = {message for kind in ("dropped", "columns", "lists") for message in self.summary.get(kind, ())}
        return [message for message in self.warnings if message not in by_kind]

    def to_json(self) -> str:
        """Returns the text of dataset.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "DatasetInfo":
        """Returns what `to_json` wrote.

        Args:
            text: of dataset.json.

        Returns:
            What it says.

        Raises:
            ValueError: it is not what `to_json` writes; KeyError and TypeError likewise.
        """
        raw = parse_json(text)
        if raw["format"] not in (OLDEST_FORMAT, FORMAT):
            raise ValueError(f"format {raw['format']!r}, expected {FORMAT}")
        for side in ("track_columns", "user_columns"):
            raw[side] = tuple(Column(**column) for column in raw[side])
        return cls(**raw | {"warnings": tuple(raw["warnings"])})


@dataclass(frozen=True)
class Plays:
    """All plays as arrays of one length n, in (user, time, track) order; one entry per user, track and fold."""

    user: npt.NDArray[np.int32]  # position in the users table
    track: npt.NDArray[np.int32]  # position in the tracks table
    count: F32
    time: I64  # Unix seconds of the last play, 0 when unknown
    fold: npt.NDArray[np.int8]  # TRAIN, VALID or TEST

    def __len__(self) -> int:
        return len(self.user)

    def where(self, mask: npt.NDArray[np.bool_]) -> "Plays":
        """Selects plays.

        Args:
            mask: (n,) bool.

        Returns:
            The plays where it is True.
        """
        return Plays(self.user[mask], self.track[mask], self.count[mask], self.time[mask], self.fold[mask])


@dataclass(frozen=True)
class Events:
    """All plays one by one as arrays of one length n, in order of listening: by user, time, position, track."""

    user: npt.NDArray[np.int32]  # position in the users table
    track: npt.NDArray[np.int32]  # position in the tracks table
    time: I64  # Unix seconds, 0 unknown
    position: I64  # order where there is no clock, -1 unknown
    count: F32
    session: npt.NDArray[np.int32]  # of the user, from 0; -1 unknown
    skipped: npt.NDArray[np.int8]  # 1, 0; -1 unknown
    completed: npt.NDArray[np.int8]  # 1, 0; -1 unknown
    ms_played: I64  # -1 unknown
    fold: npt.NDArray[np.int8]  # TRAIN, VALID or TEST

    def __len__(self) -> int:
        return len(self.user)

    def where(self, mask: npt.NDArray[np.bool_]) -> "Events":
        """Selects plays.

        Args:
            mask: (n,) bool.

        Returns:
            The plays where it is True.
        """
        return Events(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


@dataclass(frozen=True)
class Dataset:
    """An opened dataset; tables are read when first asked for."""

    path: Path
    info: DatasetInfo

    @classmethod
    def open(cls, path: Path) -> "Dataset":
        """Opens the dataset at `path`.

        Args:
            path: the folder.

        Returns:
            The dataset, its tables not read yet.

        Raises:
            DataError: it is not a dataset.
        """
        path = Path(path)
        expected = "a folder made by `lhydra prepare`"
        if not path.exists():
            raise DataError(complain(path, "nothing", expected))
        try:
            info = DatasetInfo.from_json((path / "dataset.json").read_bytes())
        except OSError:
            raise DataError(complain(path, "no dataset.json", expected)) from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(complain(path / "dataset.json", str(error), expected)) from None
        for name in ("tracks", "users", "plays"):
            if not (path / f"{name}.parquet").is_file():
                raise DataError(complain(path, f"no {name}.parquet", expected))
        return cls(path, info)

    @cached_property
    def tracks(self) -> pa.Table:
        """The tracks table, whole."""
        return self._read("tracks")

    @cached_property
    def users(self) -> pa.Table:
        """The users table, whole."""
        return self._read("users")

    @cached_property
    def plays(self) -> Plays:
        """All plays."""
        table = self._read("plays")
        return Plays(*(table[name].to_numpy() for name in ("user", "track", "count", "time", "fold")))

    @property
    def has_events(self) -> bool:
        """Whether single plays are kept, as since format 2."""
        return (self.path / "events.parquet").is_file()

    @cached_property
    def events(self) -> Events:
        """All plays one by one; DataError where the dataset is of format 1, which only has what they add up to."""
        if not self.has_events:
            found = f"no events.parquet (format {self.info.format})"
            raise DataError(complain(self.path, found, f"format {FORMAT}; run `lhydra prepare` again"))
        table = self._read("events")
        columns = {}
        for name in EVENTS_SCHEMA.names:
            column = table[name]
            if column.null_count:
                column = (column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column).fill_null(-1)
            columns[name] = column.to_numpy()
        columns["skipped"], columns["completed"] = (columns[name].astype(np.int8) for name in ("skipped", "completed"))
        return Events(**columns)

    @cached_property
    def track_ids(self) -> list[str]:
        """Track ids by position."""
        ids: list[str] = self.tracks["track_id"].to_pylist()
        return ids

    @cached_property
    def user_ids(self) -> list[str]:
        """User ids by position."""
        ids: list[str] = self.users["user_id"].to_pylist()
        return ids

    @property
    def n_tracks(self) -> int:
        """How many tracks there are."""
        return self.info.counts["tracks"]

    @cached_property
    def hashes(self) -> Hashes:
        """Track hashes by position, (n,) uint64; the table is read piece by piece."""
        found = np.empty(self.n_tracks, np.uint64)
        with pq.ParquetFile(self.path / "tracks.parquet") as file:
            start = 0
            for batch in file.iter_batches(1 << 16, columns=["track_id"]):
                found[start : start + len(batch)] = track_hashes(batch.column(0).to_pylist())
                start += len(batch)
        return found

    def profiles(self, positions: I64 | None = None) -> Iterator[dict[str, Any]]:
        """Yields users' declared profile columns; missing values are left out.

        Args:
            positions: (m,) int64 in the users table; all users in table order by default.

        Yields:
            Values by column.
        """
        names = [column.name for column in self.info.user_columns]
        table = self.users if positions is None else self.users.take(pa.array(positions))
        for batch in table.select(names).to_batches(max_chunksize=4096) if names else ():
            for row in batch.to_pylist():
                yield {name: value for name, value in row.items() if value is not None}
        if not names:
            yield from ({} for _ in range(table.num_rows))

    def track_columns(self, start: int = 0, length: int | None = None) -> dict[str, Any]:
        """Returns some tracks as `FeatureSpec.encode_tracks` takes them.

        Args:
            start: the first track.
            length: how many; all behind it by default.

        Returns:
            Values by column.
        """
        return self.columns_of(self.tracks.slice(start, length))

    def columns_of(self, tracks: pa.Table) -> dict[str, Any]:
        """Returns rows of the tracks table as `FeatureSpec.encode_tracks` takes them.

        Args:
            tracks: rows of the tracks table.

        Returns:
            Values by column.
        """
        return track_columns(tracks, self.info.track_columns)

    def track_rows(self, start: int, stop: int) -> pa.Table:
        """Reads some tracks alone, with all their columns: as much of the file as holds them.

        Args:
            start: the first track.
            stop: the one after the last.

        Returns:
            The rows.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with pq.ParquetFile(self.path / "tracks.parquet") as file:
                sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                ends = np.cumsum(sizes)
                groups = [i for i, end in enumerate(ends) if end > start and end - sizes[i] < stop]
                first = int(ends[groups[0]] - sizes[groups[0]]) if groups else 0
                return file.read_row_groups(groups).slice(start - first, stop - start)
        except (OSError, pa.ArrowException) as error:
            path = self.path / "tracks.parquet"
            raise DataError(complain(path, " ".join(str(error).split()), "a Parquet table")) from None

    def user_columns(self) -> dict[str, Any]:
        """Returns all users as `FeatureSpec.encode_profiles` takes them."""
        return _columns(self.users, self.info.user_columns, "user_id")

    def _read(self, name: str) -> pa.Table:
        path = self.path / f"{name}.parquet"
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(complain(path, " ".join(str(error).split()), "a Parquet table")) from None


def track_columns(table: pa.Table, columns: tuple[Column, ...]) -> dict[str, Any]:
    """Returns a tracks table as `FeatureSpec.encode_tracks` takes it.

    Args:
        table: rows of tracks.parquet.
        columns: the declared columns that it has.

    Returns:
        Values by column, track_id included.
    """
    return _columns(table, columns, "track_id")


def _columns(table: pa.Table, columns: tuple[Column, ...], key: str) -> dict[str, Any]:
    out: dict[str, Any] = {key: table[key].to_pylist()}
    for column in columns:
        if column.kind in ("numeric", "year"):
            out[column.name] = table[column.name].cast(pa.float64()).to_numpy()  # null becomes NaN
        elif column.kind != "text":
            out[column.name] = table[column.name].to_pylist()
    return out


def user_states(
    dataset: Dataset, as_of: AsOf, *, positions: I64 | None = None, mask: Mask = "seen"
) -> Iterator[tuple[str, UserState]]:
    """Yields (user id, state) as of a moment; the one place where histories and heard sets are built from plays.

    Args:
        dataset: whose plays count.
        as_of: `test`: history = train, heard = train and valid; `valid`: both = train; `refit`, for a model that
            learned from both: both = train and valid; `now`: both = everything.
        positions: (m,) int64 in the users table, to yield in that order; all users by default.
        mask: `train`: heard = train alone, whatever the moment.

    Yields:
        User id and state.
    """
    history_folds = {"test": TRAIN, "valid": TRAIN, "refit": VALID, "now": TEST}[as_of]
    heard_folds = {"test": VALID, "valid": TRAIN, "refit": VALID, "now": TEST}[as_of]
    heard_folds = TRAIN if mask == "train" else heard_folds
    hashes = dataset.hashes
    plays, ids = dataset.plays, dataset.user_ids
    starts = np.searchsorted(plays.user, np.arange(len(ids) + 1))
    chosen = np.arange(len(ids)) if positions is None else np.asarray(positions)
    profiles = dataset.profiles(positions)
    for first in range(0, len(chosen), _TOGETHER):
        some = chosen[first : first + _TOGETHER]
        sizes = starts[some + 1] - starts[some]
        ends = np.cumsum(sizes)
        rows = np.repeat(starts[some] - ends + sizes, sizes) + np.arange(sizes.sum())
        owners, tracks, fold = np.repeat(np.arange(len(some)), sizes), hashes[plays.track[rows]], plays.fold[rows]
        fed, heard = fold <= history_folds, fold <= heard_folds
        own = single_plays(tracks[fed], plays.count[rows][fed], plays.time[rows][fed])
        histories = histories_of(own, owners[fed], len(some))
        heards = hashes_of(tracks[heard], owners[heard], len(some))
        for position, history, known in zip(some, histories, heards, strict=True):
            yield ids[position], UserState(next(profiles), history, known)
