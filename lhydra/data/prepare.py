"""Turns a source into a dataset: reads, checks, splits, aggregates, writes; all of it or nothing."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lhydra import __version__, files
from lhydra.data import rows, split
from lhydra.data.append import PLAIN, together
from lhydra.data.dataset import TEST, TRAIN, VALID, Column, Dataset, DatasetInfo, Events, Plays
from lhydra.data.events import AGAIN, add_up, again, drop_again, read_log
from lhydra.data.loading import choose_columns, load_source
from lhydra.data.logged import Logged
from lhydra.data.report import Report
from lhydra.data.schema import DeclaredColumns
from lhydra.data.settings import PrepareSettings
from lhydra.data.sources import Side, Source, open_source
from lhydra.data.summary import summarise
from lhydra.data.table import Table
from lhydra.data.undeclared import column_warnings
from lhydra.data.unpacking import TOGETHER, as_given
from lhydra.data.writing import write_events, write_tables
from lhydra.domain import track_hashes
from lhydra.errors import DataError, NothingNew, complain
from lhydra.timing import timed

_MEMORY = "2GB"  # DuckDB's share; beyond it, it spills beside the dataset
_THREADS = min(os.cpu_count() or 1, 8)  # more would not fit the memory
_FOLDS = {"train": TRAIN, "valid": VALID, "test": TEST}
_FILES = ("dataset.json", "tracks.parquet", "users.parquet", "plays.parquet", "events.parquet")
_CACHE = "baselines"  # what `lhydra evaluate` keeps beside them, and computes again
Say = Callable[[str], None]


def prepare(
    source: Path,
    out: Path,
    settings: PrepareSettings = PrepareSettings(),  # noqa: B008 - frozen
    columns: DeclaredColumns = DeclaredColumns(),  # noqa: B008 - frozen
    say: Say = lambda step: None,
    *,
    logged: Logged | None = None,
) -> DatasetInfo:
    """Writes the dataset of `source` to the folder `out` and returns what its dataset.json says.

    An `out` that is a dataset already is replaced, as a whole and at the end; with `append` its plays stay in it.
    Plays of an event log that the source has too, of the same user, track and second, are its own.

    Args:
        source: a file or folder, a pattern, or `-` for standard input.
        out: the folder to write.
        settings: how to split, and what to refuse.
        columns: what is declared beyond the known columns.
        say: hears each step begin.
        logged: plays that servers recorded, taken along.

    Returns:
        What dataset.json says.

    Raises:
        DataError: a source that cannot be used, bad rows with `strict`, or an `out` that is something else.
    """
    source, out = Path(source), Path(out).resolve()  # through a symbolic link, not over it
    files.recover(out)
    _check_target(source, out)
    with files.replacing_folder(out) as folder, as_given(source, folder.parent, out):
        try:
            if settings.append:
                opened, settings, columns = _added(source, out, settings, columns, folder.parent)
            else:
                opened = open_source(source, settings, folder.parent)
            held = Dataset.open(out).info.logged if settings.append else {}
            info = _build(opened, folder, settings, columns, say)
            if held:
                info = _holding(held, info, folder)
            if logged is not None:
                info = _with_logged(logged, info, folder, settings, columns, say)
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            reason = str(error).splitlines()[0]
            raise DataError(complain(source, reason, f"to fit {_MEMORY} of memory and the free disk")) from None
        except RuntimeError as error:
            if str(error) == "Query interrupted":  # what DuckDB makes of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        say("publishing")
    return info


def prepare_tables(
    plays: Any,
    out: Path,
    tracks: Any = None,
    users: Any = None,
    settings: PrepareSettings = PrepareSettings(),  # noqa: B008 - frozen
    columns: DeclaredColumns = DeclaredColumns(),  # noqa: B008 - frozen
) -> DatasetInfo:
    """Writes the dataset of tables in memory, with the checks of files.

    Args:
        plays: a pandas DataFrame, an Arrow table, or what `pyarrow.table` takes; the columns are those of a source.
        out: the folder to write.
        tracks: likewise; None where plays say what is known of them.
        users: likewise.
        settings: how to split, and what to refuse.
        columns: what is declared beyond the known columns.

    Returns:
        What dataset.json says.

    Raises:
        DataError: a table that cannot be used; messages call it plays.parquet, and so on.
    """
    with tempfile.TemporaryDirectory(prefix="lhydra-") as work:
        folder = Path(work) / "tables"
        folder.mkdir()
        for name, table in (("plays", plays), ("tracks", tracks), ("users", users)):
            if table is not None:
                pq.write_table(_to_arrow(name, table), folder / f"{name}.parquet")
        try:
            return prepare(folder, out, settings, columns)
        except DataError as error:
            raise DataError(str(error).replace(f"{folder}/", "")) from None


def _to_arrow(name: str, table: Any) -> pa.Table:
    try:
        if isinstance(table, pa.Table):
            return table
        frame = hasattr(table, "iloc")
        return pa.Table.from_pandas(table, preserve_index=False) if frame else pa.table(table)
    except (pa.ArrowException, TypeError, ValueError) as error:
        expected = "a table whose columns each hold values of one kind"
        raise DataError(complain(name, " ".join(str(error).split()), expected)) from None
    except OverflowError:
        wide = [f"{name}: {column}" for column in table if any(map(_is_too_wide, table[column]))]
        found, expected = "a whole number of more than 64 bits", "floats or text"
        raise DataError(complain(wide[0] if wide else name, found, expected)) from None


def _is_too_wide(value: object) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def _added(
    source: Path, out: Path, settings: PrepareSettings, columns: DeclaredColumns, work: Path
) -> tuple[Source, PrepareSettings, DeclaredColumns]:
    """Returns the dataset at `out` and `source` as one source, and how to prepare it."""
    if not out.exists():
        raise DataError(complain(out, "nothing", "a dataset to add to, without --append a new one is made"))
    folder = work / TOGETHER
    folder.mkdir()
    dataset = Dataset.open(out)
    settings, columns, notes = together(source, dataset, settings, columns, folder)
    opened = open_source(folder, settings, work)
    return replace(opened, path=Path(f"{dataset.info.source} + {source}"), notes=notes), settings, columns


def _with_logged(
    logged: Logged,
    info: DatasetInfo,
    folder: Path,
    settings: PrepareSettings,
    columns: DeclaredColumns,
    say: Say,
) -> DatasetInfo:
    """Adds the plays of an event log to the dataset in `folder`; returns what its dataset.json says then."""
    say("adding recorded plays")
    work = folder.parent / "logged"
    work.mkdir()
    before = folder.rename(work / "the source")  # as notes call it
    settings = replace(settings, split=settings.split or info.split["protocol"], **PLAIN)
    try:
        settings, columns, notes = together(logged.path, Dataset.open(before), settings, columns, work)
    except NothingNew:
        before.rename(folder)
    else:
        folder.mkdir()
        opened = open_source(work, settings, folder.parent)
        told = (note.replace(f"added to {before.name}", "recorded plays") for note in notes)
        opened = replace(opened, path=logged.path, notes=(*info.notes, *told))
        source, info = info.source, _build(opened, folder, settings, columns, say)
        info = replace(info, source=f"{source} + plays of {logged.told}")
    return _holding({"store": logged.store, "position": logged.until}, info, folder)


def _holding(logged: dict[str, str], info: DatasetInfo, folder: Path) -> DatasetInfo:
    """Says in dataset.json how far the dataset in `folder` holds an event log."""
    info = replace(info, logged=logged)
    (folder / "dataset.json").write_text(info.to_json(), encoding="utf-8")
    return info


def _build(source: Source, folder: Path, settings: PrepareSettings, columns: DeclaredColumns, say: Say) -> DatasetInfo:
    """Writes the dataset into `folder`; what is needed only meanwhile lies beside it."""
    work = folder.parent
    columns = columns.resolved(source.tracks.names, source.users.names)
    used = choose_columns(source, columns)
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": _MEMORY,
        "threads": _THREADS,
        "temp_directory": str(work / "spill"),
    }
    with duckdb.connect(config=config) as con:
        rows.configure(con)
        report = Report(warnings=list(source.notes))
        say("reading")
        source = load_source(con, source, used, work)
        tables = {"plays": source.plays} | {side: source.beside_plays(side) for side in used}
        report.rows = {name: table.rows for name, table in tables.items() if table}
        say("checking")
        tracks, users = _check(con, source, used, settings, report)
        say("splitting")
        rule, events, plays = _split(con, source.plays, settings, report)
        report.unused = column_warnings(con, source, columns, work)
        report.warnings += report.unused
        say("writing")
        with ThreadPoolExecutor(1) as beside:  # Parquet is packed without holding up Python
            written = beside.submit(write_events, events, folder)
            n_tracks, n_users, named = write_tables(con, folder, tracks, users, plays)
            summary = summarise(events, plays, report.named)
            written.result()
    counts = {"tracks": n_tracks, "users": n_users, "plays": len(plays)}
    counts |= {name: int((plays.fold == fold).sum()) for name, fold in _FOLDS.items()}
    info = DatasetInfo(
        source=str(source.path),
        track_columns=tuple(tracks.values()),
        user_columns=tuple(users.values()),
        counts=counts,
        split=rule | {"hash": named},
        timed=bool((plays.time > 0).any()),
        dropped=report.dropped,
        warnings=(*report.warnings, *(f"the {name} fold is empty" for name in _FOLDS if not counts[name])),
        lhydra_version=__version__,
        summary=summary | report.told(),
    )
    (folder / "dataset.json").write_text(info.to_json(), encoding="utf-8")
    return info


@timed("prepare.check")
def _check(
    con: duckdb.DuckDBPyConnection,
    source: Source,
    used: Mapping[Side, Sequence[Column]],
    settings: PrepareSettings,
    report: Report,
) -> tuple[dict[str, Column], dict[str, Column]]:
    """Makes the tables `tracks`, `users`, `events`; returns the columns of the first two."""
    if "split" in source.plays.names and settings.split in (None, "column"):
        rows.check_split_values(con, source.plays)
    rows.check_plays(con, source, report)
    tracks = rows.describe(con, source, "tracks", used["tracks"], report)
    users = rows.describe(con, source, "users", used["users"], report)
    if settings.strict:
        report.refuse_faults(source.path)
    rows.make_events(con, source.plays, report)
    if settings.deduplicate:
        drop_again(con, source.plays, report)
    if con.execute("SELECT min(user) = max(user) FROM events").fetchall() == [(True,)]:
        alone = "plays of at least 2 users (one person's are added to a dataset by --append, or asked for by"
        raise report.left(source.plays.path, "plays of 1 user", f"{alone} `lhydra recommend STORE --history`)")
    done = "SELECT table_name FROM duckdb_tables() WHERE table_name NOT IN ('tracks', 'users', 'events')"
    for (table,) in con.execute(done).fetchall():
        con.execute(f"DROP TABLE {table}")  # memory and disk for what comes
    return tracks, users


@timed("prepare.split")
def _split(
    con: duckdb.DuckDBPyConnection, table: Table, settings: PrepareSettings, report: Report
) -> tuple[dict[str, Any], Events, Plays]:
    """Divides `events`, in order of listening; returns the rule, the plays, and what they add up to."""
    unknown, known = con.execute(
        "SELECT count(*) FILTER (time = 0), count(*) FILTER (time > 0) FROM events"
    ).fetchall()[0]
    protocol = settings.split or ("column" if "split" in table.names else "temporal" if known else "random")
    _check_protocol(con, protocol, table, known)
    if unknown and known and protocol not in ("column", "random"):
        where = "count as the oldest" if protocol == "leave-last" else "are in the train fold"
        report.warnings.append(f"{unknown:,} plays without a timestamp {where}")
    if "session" in table.names:
        (report.named,) = con.execute("SELECT count(session) FROM events").fetchall()[0]
    log = read_log(con)
    con.execute("DROP TABLE events")
    report.again = len(twice := again(log))
    if report.again:
        fate = "again, counted as plays of their own (--deduplicate drops them)"
        report.note(table, AGAIN, report.again, table.places(twice[:3].tolist()), fate, fault=False)
    events, fold, cuts = log.events, log.events.fold, None
    if protocol == "temporal":
        cuts = split.temporal_cuts(events.time[events.time > 0], settings.valid, settings.test)
        fold = split.temporal(log, *cuts)
    elif protocol == "global-time":
        fold, *ends = split.global_time(events.time, settings)
        cuts = (ends[0], ends[1])
    elif protocol == "next-session":
        fold = split.next_session(events.user, events.session, settings.valid_sessions, settings.test_sessions)
    elif protocol == "leave-last":
        fold = log.spread(split.leave_last(events.user[log.last], log.last))
    elif protocol == "random":
        users, tracks = (
            track_hashes(con.execute(f"SELECT id FROM {side} ORDER BY position").fetchnumpy()["id"])
            for side in ("users", "tracks")
        )
        fold = log.spread(split.random(users, tracks, events.user[log.last], events.track[log.last], settings))
    plays = add_up(log, fold)
    events = replace(events, fold=fold)
    if left_out := int((fold == split.LEFT_OUT).sum()):
        report.warnings.append(f"{left_out:,} plays in the gaps of {settings.gap_s:,} s are in no fold and left out")
        plays, events = plays.where(plays.fold != split.LEFT_OUT), events.where(fold != split.LEFT_OUT)
    if not (plays.fold == TRAIN).any():
        longer = {"global-time": "a log longer than the folds and gaps", "next-session": "users with more sessions"}
        raise report.left(table.path, "no play in the train fold", longer.get(protocol, "at least one"))
    return _described(protocol, settings, cuts, events), events, plays


def _check_protocol(con: duckdb.DuckDBPyConnection, protocol: str, table: Table, timed: bool) -> None:
    """Refuses a protocol that needs what the source does not tell."""
    if protocol == "column" and "split" not in table.names:
        raise DataError(complain(table.path, "no column split", "one for the split protocol column"))
    if timed or protocol not in ("temporal", "global-time", "leave-last", "next-session"):
        return
    order = {"leave-last": "position", "next-session": "session"}.get(protocol, "")
    wanted = f"a column timestamp for the {protocol} split" + (f", or {order}" if order else "")
    if order not in table.names:
        raise DataError(complain(table.path, "no timestamps", wanted))
    if not con.execute(f"SELECT count({order}) FROM events").fetchall()[0][0]:
        raise DataError(complain(table.path, f"no timestamps, and no {order} in any row", wanted))


def _described(
    protocol: str, settings: PrepareSettings, cuts: tuple[int, int] | None, events: Events
) -> dict[str, Any]:
    """Returns what is kept of the rule by which `events` were divided, and how far each fold goes."""
    times = {name: events.time[events.fold == fold] for name, fold in _FOLDS.items()}
    found: dict[str, Any] = {
        "protocol": protocol,
        "seed": settings.seed,
        "valid": settings.valid,
        "test": settings.test,
        "rule": split.RULE,
        "newest": {name: int(times[name].max(initial=0)) for name in ("train", "valid")},
        "oldest": {name: int(times[name].min()) if len(times[name]) else 0 for name in ("valid", "test")},
    }
    if cuts:
        found["cuts"] = {"train": cuts[0], "valid": cuts[1]}
    if protocol == "next-session":
        found |= {"valid_sessions": settings.valid_sessions, "test_sessions": settings.test_sessions}
    if protocol == "global-time":
        found |= {"gap_s": settings.gap_s, "valid_s": settings.valid_s, "test_s": settings.test_s}
    return found


def _check_target(source: Path, out: Path) -> None:
    """Refuses an `out` that is neither free nor a dataset, or that holds the source."""
    if source.resolve().is_relative_to(out):
        raise DataError(complain(out, f"the source {source} in it", "another folder for the dataset"))
    expected = "a free path, an empty folder, or a dataset and nothing else"
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(complain(out, "a file", expected))
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in (*_FILES, _CACHE))
    cache = out / _CACHE
    if cache.exists() and not (cache.is_dir() and all(kept.suffix == ".npz" for kept in cache.iterdir())):
        others.append(_CACHE)
    if others:
        raise DataError(complain(out, f"a folder that also holds {others[0]}", f"{expected}; move it away first"))
    if any(out.iterdir()) and not (out / "dataset.json").is_file():
        raise DataError(complain(out, "a folder without the dataset.json of a dataset", expected))
