"""Atomic files of RecBole: tab-separated tables whose header gives each column a type."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lhydra.data.csv_text import records
from lhydra.data.formats.format import BARE_TABS, Export, Format, Sample, Tables, not_read, text_table
from lhydra.data.schema import PLAY_COLUMNS, TRACK_COLUMNS, USER_COLUMNS, near
from lhydra.data.table import Table
from lhydra.errors import DataError, complain

_DIALECT = replace(BARE_TABS, header=True)  # quotes are text: its tools write cells as they are
_TYPES = ("token", "token_seq", "float", "float_seq")
_USERS = ("user", "uid", "session", "listener")
_COUNTS = ("num_repeat",)
_FOLDS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}  # x.train.inter
_TEXT = {"movie_title": "name", "tracks_name": "name"}
_LISTS = {"class": "tags", "genre": "tags", "genres": "tags", "categories": "tags"}


@dataclass(frozen=True)
class _Field:
    """A column of an atomic file: its name without the type, its type, and SQL of its cell."""

    name: str
    kind: str
    cell: str


def _fields(path: Path) -> list[_Field]:
    """The columns of a file by its header; no type is none of RecBole's."""
    _, header = next(records(path, 1, _DIALECT, strict=True))
    found = []
    for name in header:
        base, _, kind = name.strip().rpartition(":")
        found.append(_Field(base.strip().casefold(), kind, '"' + name.strip().casefold().replace('"', '""') + '"'))
    return found


def _is_atomic(sample: Sample, ending: str) -> bool:
    typed = [name.rpartition(":")[2] in _TYPES for name in sample.header("\t")]
    return sample.name.endswith(ending) and all(typed) and len(typed) > (ending == ".inter")


def _ids(fields: list[_Field]) -> tuple[_Field, _Field] | None:
    """The columns of users and items: the first token column called so, else the first, and the first of the others."""
    tokens = [field for field in fields if field.kind == "token"]
    if len(tokens) < 2:
        return None
    user = next((field for word in _USERS for field in tokens if field.name.startswith(word)), tokens[0])
    others = [field for field in tokens if field != user]
    said = [field for field in others if near(field.name) == "track_id"]
    return user, (said or [field for field in others if near(field.name) not in PLAY_COLUMNS] or others)[0]


def _open(export: Export) -> Tables | None:
    """One .inter or several of the same columns; .item and .user where they are."""
    inter, items, users = (
        [sample for sample in export.samples if _is_atomic(sample, ending)] for ending in (".inter", ".item", ".user")
    )
    ids = _ids(_fields(inter[0].path)) if inter else None
    if ids is None:
        return None
    sets = sorted({sample.name.partition(".")[0] for sample in inter})
    if len(sets) > 1:
        several = f"the .inter files of {len(sets)} data sets ({', '.join(sets[:5])})"
        raise DataError(complain(export.path, several, "those of one; give one file, or a folder for each"))
    user, item = ids
    fields = _fields(inter[0].path)
    columns, lists = _columns(fields, {user.name: "user_id", item.name: "track_id"}, PLAY_COLUMNS)
    folds = [_FOLDS.get(sample.name.split(".")[-2], "") for sample in inter]
    if any(folds) and not all(folds):  # the whole set and its folds would count each play twice
        whole = inter[folds.index("")].path.name
        part = next(sample.path.name for sample, fold in zip(inter, folds, strict=True) if fold)
        mixed = f"{whole} beside the fold {part}"
        raise DataError(complain(export.path, mixed, f"the whole or its folds; give {whole} alone, or move it away"))
    if all(folds) and "split" not in columns:
        columns["split"] = "$person"
    plays = _table(export, inter, columns, lists, folds)
    tables = {}
    for side, found, key, known in (("track", items, item, TRACK_COLUMNS), ("user", users, user, USER_COLUMNS)):
        if found:
            described = _fields(found[0].path)
            name = key.name if key.name in {field.name for field in described} else described[0].name
            columns, lists = _columns(described, {name: f"{side}_id"}, tuple(known))
            tables[side] = _table(export, found, columns, lists)
    notes = [f"{user.name} are the users, {item.name} the tracks"]
    if all(folds):
        notes.append(f"the folds are those of the files: {', '.join(sample.path.name for sample in inter)}")
    rating = next((field for field in fields if field.name == "rating"), None)
    if rating and "playcount" not in plays.names:
        notes.append(_weighing(inter[0], fields, user, item, rating))
    notes += not_read(export, [*inter, *items, *users])
    beside = [inter[0].path.with_suffix(ending) for ending in (".item", ".user")]
    left = [path.name for path in beside if path.exists() and path not in {sample.path for sample in export.samples}]
    if left:
        notes.append(f"not read: {' and '.join(left)} beside it; to use them, give the folder instead of the file")
    return Tables(plays, tables.get("track"), tables.get("user"), tuple(notes))


def _columns(
    fields: list[_Field], ids: dict[str, str], known: tuple[str, ...]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """An SQL expression for each column by the name that Lhydra knows, and which of them hold lists."""
    columns: dict[str, str] = {}
    lists = []
    names = {field.name for field in fields}
    for field in fields:
        name = ids.get(field.name) or _meant(field, known)
        if name in columns or (name != field.name and name in names and field.name not in ids):
            name = field.name  # two columns could be meant: the one that says so is
        if name in columns:
            continue
        columns[name] = field.cell
        if field.kind.endswith("_seq") and name not in ("name", "artist", "album"):
            columns[name] = f"[x FOR x IN string_split({field.cell}, ' ') IF x <> '']"
            lists.append(name)
    return columns, tuple(lists)


def _meant(field: _Field, known: tuple[str, ...]) -> str:
    """The known column that a field is, or its own name."""
    if field.name in _COUNTS:
        return "playcount"
    if field.kind.endswith("_seq"):
        name = _TEXT.get(field.name) or _LISTS.get(field.name) or near(field.name)
    else:
        name = _TEXT.get(field.name) or near(field.name)
    return name if name in known and name not in ("user_id", "track_id") else field.name


def _weighing(sample: Sample, fields: list[_Field], user: _Field, item: _Field, rating: _Field) -> str:
    """The note that a rating is no count, with the flags that would make it one."""
    named = [("user", user), ("track", item), ("count", rating)]
    named += [("timestamp", field) for field in fields if near(field.name) == "timestamp"][:1]
    columns = ",".join(f"{key}={field.name}:{field.kind}" for key, field in named)
    flags = f"lhydra prepare {sample.path.name} DATASET --sep tab --columns {columns}"
    return f"each rating counts as one play; to count it as its value: {flags}"


def _table(
    export: Export, found: list[Sample], columns: dict[str, str], lists: tuple[str, ...], folds: Sequence[str] = ()
) -> Table:
    path = found[0].path if len(found) == 1 else export.path
    samples = list(zip(found, folds or [""] * len(found), strict=True))
    return text_table(path, samples, _DIALECT, columns, lists=lists)


FORMATS = (
    Format(
        "recbole", "atomic files of RecBole", "a .inter file with a header like user_id:token, item_id:token", _open
    ),
)
