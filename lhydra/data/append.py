"""Adds a source to a dataset: what both hold becomes one source in Lhydra's own form, which `prepare` reads as any."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lhydra.data.dataset import TEST, TRAIN, VALID, Column, Dataset, Kind
from lhydra.data.events import number_sessions
from lhydra.data.history import OPTIONAL, Listening, match_tracks, read_listening
from lhydra.data.schema import TRACK_COLUMNS, USER_COLUMNS, DeclaredColumns
from lhydra.data.settings import PrepareSettings, ReadSettings
from lhydra.errors import NothingNew, complain

_FOLDS = {TRAIN: "train", VALID: "valid", TEST: "test"}
# settings of the form of a source, as they are of Lhydra's own form
PLAIN: dict[str, Any] = {field.name: getattr(ReadSettings(), field.name) for field in fields(ReadSettings)}
_PREFERRED = ("track_id", "artist", "name")


def together(
    source: Path, dataset: Dataset, settings: PrepareSettings, columns: DeclaredColumns, work: Path
) -> tuple[PrepareSettings, DeclaredColumns, tuple[str, ...]]:
    """Writes the plays, tracks and users of a dataset and of a source as one source.

    A track of the source that the dataset has, by id or else by artist and title, is that of the dataset. A play of the
    same user, track and second as one of the dataset is that play, so that an export may come again.

    Args:
        source: what is added, as `prepare` takes it.
        dataset: what it is added to.
        settings: of the command; without a split, the dataset is divided by its own rule again.
        columns: what is declared beyond what the dataset declares.
        work: an empty folder, where the source is written.

    Returns:
        Settings and declarations to prepare it with, and notes on what was added.

    Raises:
        DataError: the source cannot be used; NothingNew where it adds nothing.
    """
    info = dataset.info
    declared = DeclaredColumns(
        _declared(info.track_columns, columns.tracks, TRACK_COLUMNS),
        _declared(info.user_columns, columns.users, USER_COLUMNS),
    )
    listening = read_listening(source, settings, declared, strict=settings.strict)
    settings = _own_split(settings, info.split)
    old = _plays_of(dataset, with_fold=settings.split == "column")
    known = dataset.tracks.sort_by([("train_plays", "descending")])
    matches = match_tracks(listening.tracks, known.select([name for name in _PREFERRED if name in known.column_names]))
    new, again = _new_plays(listening, matches.known, old, timed=info.timed)
    if not len(new):
        raise NothingNew(
            complain(source, f"{again:,} plays, all in {dataset.path} already", "at least one that is new")
        )
    plays = pa.concat_tables([old, new], promote_options="permissive")
    strange = [given not in matches.known for given in listening.tracks["track_id"].to_pylist()]
    tracks = _side(
        dataset.tracks, listening.tracks.filter(pa.array(strange, pa.bool_())), declared.tracks, TRACK_COLUMNS
    )
    met = pc.is_in(listening.users["user_id"], value_set=dataset.users["user_id"])
    users = _side(dataset.users, listening.users.filter(pc.invert(met)), declared.users, USER_COLUMNS)
    for name, table in (("plays", plays), ("tracks", tracks), ("users", users)):
        pq.write_table(table, work / f"{name}.parquet")
    notes = [*listening.notes, f"added to {dataset.path.name}: {len(new):,} plays; {matches.told()}"]
    if again:
        notes.append(f"{again:,} plays are in {dataset.path.name} already (same user, track and second) and not added")
    if not info.timed and (untimed := int(pc.sum(pc.is_null(new["timestamp"])).as_py() or 0)):
        notes.append(
            f"{untimed:,} of the plays added have no time: whether {dataset.path.name} had them cannot be told"
        )
    if known_already := listening.users["user_id"].filter(met).to_pylist():
        more = f" and {len(known_already) - 3:,} more" if len(known_already) > 3 else ""
        who = ", ".join(known_already[:3]) + more
        notes.append(f"users of {dataset.path.name} already, whose plays these are taken for: {who}")
    if settings.split == "column":
        notes.append("the added plays are in the train fold: the dataset's own folds come from a column")
    return replace(settings, **PLAIN), declared, tuple(notes)  # the form of the source is used up


def _declared(own: tuple[Column, ...], more: tuple[Column, ...], known: Mapping[str, Kind]) -> tuple[Column, ...]:
    """Returns the columns of a dataset that need a declaration, and those declared now."""
    kinds = {column.name: column for column in own if known.get(column.name) != column.kind}
    return tuple((kinds | {column.name: column for column in more}).values())


def _own_split(settings: PrepareSettings, split: Mapping[str, Any]) -> PrepareSettings:
    """Returns the settings with the rule by which the dataset was divided, where no split is asked for."""
    if settings.split is not None:
        return settings
    names = {field.name for field in fields(PrepareSettings)} - {field.name for field in fields(ReadSettings)}
    rule = {name: value for name, value in split.items() if name in names}
    return replace(settings, split=str(split["protocol"]), **rule)


def _plays_of(dataset: Dataset, *, with_fold: bool) -> pa.Table:
    """Returns a dataset's plays in the form of a source."""
    plays = dataset.events
    columns: dict[str, pa.Array] = {
        "user_id": pa.array(dataset.user_ids, pa.string()).take(pa.array(plays.user)),
        "track_id": pa.array(dataset.track_ids, pa.string()).take(pa.array(plays.track)),
        "playcount": pa.array(plays.count.astype(np.float64)),
        "timestamp": pa.array(plays.time, mask=plays.time <= 0),
    }
    given = not np.array_equal(plays.session, number_sessions(plays.user, plays.time))
    for name in OPTIONAL:
        values = getattr(plays, name).astype(np.int64)
        if (values >= 0).any() and (given or name != "session"):
            columns[name] = pa.array(values, mask=values < 0)
    if with_fold:
        columns["split"] = pa.array([_FOLDS[fold] for fold in plays.fold.tolist()], pa.string())
    return pa.table(columns)


def _new_plays(listening: Listening, known: dict[str, str], old: pa.Table, *, timed: bool) -> tuple[pa.Table, int]:
    """Returns the plays of a source that are not in `old`, with the ids of known tracks, and how many were there."""
    plays = listening.plays
    ids = [known.get(track, track) for track in plays["track_id"].to_pylist()]
    times = plays["timestamp"].combine_chunks()
    unknown = pc.less_equal(times, 0)
    columns = {
        "user_id": plays["user_id"].combine_chunks(),
        "track_id": pa.array(ids, pa.string()),
        "playcount": plays["playcount"].combine_chunks(),
        "timestamp": pc.if_else(unknown, pa.scalar(None, pa.int64()), times),
    }
    for name in OPTIONAL:
        if name in plays.column_names:
            column = plays[name].combine_chunks()
            columns[name] = column.cast(pa.int64()) if pa.types.is_boolean(column.type) else column
    if "session" in columns:  # their names are the source's own: they go on where the dataset's end
        names = columns["session"].dictionary_encode()
        first = (pc.max(old["session"]).as_py() + 1) if "session" in old.column_names else 0
        columns["session"] = pc.add(names.indices.cast(pa.int64()), first)
    if "position" in columns and not timed and "position" in old.column_names:
        columns["position"] = pc.add(columns["position"].cast(pa.int64()), pc.max(old["position"]).as_py() + 1)
    if "split" in old.column_names:
        columns["split"] = pa.array(["train"] * len(plays), pa.string())
    table = pa.table(columns)
    keys = ["user_id", "track_id", "timestamp"]
    there = old.select(keys).filter(pc.is_valid(old["timestamp"])).group_by(keys).aggregate([])
    if timed:  # a play without a time among others with one, as that of now: it comes again with every export
        pairs = old.select(keys).filter(pc.is_null(old["timestamp"])).group_by(keys[:2]).aggregate([])
        there = pa.concat_tables([there, pairs.append_column("timestamp", pa.nulls(len(pairs), pa.int64()))])
        there = there.set_column(2, "timestamp", pc.fill_null(there["timestamp"], -1))
    there = there.append_column("there", pa.array(np.ones(len(there), bool)))
    numbered = table.select(keys).append_column("row", pa.array(np.arange(len(table))))
    if timed:
        numbered = numbered.set_column(2, "timestamp", pc.fill_null(numbered["timestamp"], -1))
    joined = numbered.join(there, keys, join_type="left outer").sort_by("row")
    fresh = pc.is_null(joined["there"])
    return table.filter(fresh), len(table) - int(pc.sum(fresh.cast(pa.int64())).as_py() or 0)


def _side(old: pa.Table, new: pa.Table, declared: tuple[Column, ...], known: Mapping[str, Kind]) -> pa.Table:
    """Returns the rows of tracks or users of both, without the aggregates that `prepare` makes itself."""
    wanted = {column.name for column in declared} | set(known)
    key = old.column_names[0]
    tables = [
        table.select([name for name in table.column_names if name == key or name in wanted]) for table in (old, new)
    ]
    both = pa.concat_tables(tables, promote_options="permissive")
    return both.select([name for name in both.column_names if both[name].null_count < len(both)])
